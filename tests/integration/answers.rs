//! What counts as an answer: also one that is sent before the request was read, and one that doesn't quite
//! conform to the standard. And the messages if there is none.

use std::{net::TcpListener, thread};

use crate::harness::{
    Authority, Event, Receiver, Reply, SOON, Sandbox, Terminator, Then, Wire, wait_until,
};

/// An event whose body is larger than the buffers between both sides.
fn large_event(kind: &str) -> Event {
    let mut event = Event::new(kind);
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(1_000_000)).into_bytes();
    event
}

/// Answers as soon as it has read the head, and closes the connection.
fn answers_early(answer: &'static str) -> Wire {
    Wire::serving(move |connection| {
        if connection.head().is_some() {
            connection.send(answer);
        }
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const TOO_LARGE: &str = "HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno.";
const GONE: &str = "HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n";

#[test]
fn an_answer_sent_before_the_body_was_read_counts() {
    const TIMES: usize = 60;
    let sandbox = Sandbox::new();
    let [ok, too_large, gone] = [OK, TOO_LARGE, GONE].map(answers_early);
    sandbox.webhook(&ok.url(), &["ok"]);
    sandbox.webhook(&too_large.url(), &["too.large"]);
    sandbox.webhook(&gone.url(), &["gone"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    let metric = |name: &str| notifier.metrics().sum(name, &[]);

    let events: Vec<_> = (0..TIMES).map(|_| large_event("ok")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    wait_until(SOON, "all are delivered", || {
        metric("webhook_request_success_total") + metric("webhook_request_failure_total")
            >= TIMES as f64
    });
    assert_eq!(metric("webhook_request_failure_total"), 0.0);

    for (kind, error) in [("gone", "status 410"), ("too.large", "status 413")] {
        sandbox.publish(&large_event(kind));
        assert_eq!(sandbox.take_dead().text("x-last-error"), error);
    }
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn an_answer_sent_before_the_body_was_read_counts_under_tls_too() {
    const TIMES: usize = 10;
    let authority = Authority::new("a CA of the tests");
    let early = answers_early(TOO_LARGE);
    let terminator = Terminator::before(&early.url(), authority.good());
    let trusted = authority.file();
    let sandbox = Sandbox::new();
    sandbox.webhook(&terminator.url(&early.url()), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("TLS_CA_FILE", trusted.path())
        .env("RETRY_SCHEDULE", "100ms")
        .env("CIRCUIT_BREAKER", "off")
        .start();
    for _ in 0..TIMES {
        sandbox.publish(&large_event("a"));
        assert_eq!(sandbox.take_dead().text("x-last-error"), "status 413");
    }
    notifier.terminate();
}

#[test]
fn a_receiver_that_answers_and_then_neither_reads_nor_closes_has_answered() {
    let receiver = Wire::serving(|connection| {
        if connection.head().is_some() {
            connection
                .send("HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            connection.stall();
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("REQUEST_TIMEOUT", "3s")
        .env("RETRY_SCHEDULE", "100ms")
        .env("MAX_EVENT_BYTES", "8MiB")
        .start();
    let mut event = Event::new("a");
    // More than the largest buffer that the kernel gives a connection.
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(8_000_000)).into_bytes();
    sandbox.publish(&event);
    assert_eq!(sandbox.take_dead().text("x-last-error"), "status 413");
    notifier.terminate();
}

/// Heads that curl accepts.
const HEADS: &[&str] = &[
    "x-folded: one\r\n two\r\n\tthree\r\ncontent-length: 0\r\n",
    " folded\r\ncontent-length: 0\r\n",
    "x-folded: one\r\n \r\ncontent-length: 0\r\n",
    "Content-Length : 0\r\n",
    "x-spaced \t: 1\r\ncontent-length: 0\r\n",
    "no header at all\r\ncontent-length: 0\r\n",
    "PHP Warning:  Undefined variable $x in /srv/hook.php on line 3\r\ncontent-length: 0\r\n",
    "<br />\n<b>Notice</b>: a PHP notice in <b>/srv/hook.php</b>\n\tof two lines\ncontent-length: 0\n",
    ": no name\r\ncontent-length: 0\r\n",
];

#[test]
fn a_head_that_curl_accepts_is_accepted_in_whatever_pieces_it_arrives() {
    let receiver = Receiver::answering(|request| {
        let number: usize = request.path[2..].parse().expect("the number of a head");
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", HEADS[number]).into_bytes();
        match &request.path[..2] {
            "/w" => Reply::Raw(head, Then::Stay),
            _ => {
                let (first, rest) = head.split_at(head.len() / 2);
                let later = Then::Later(std::time::Duration::from_millis(20), rest.to_vec());
                Reply::Raw(first.to_vec(), later)
            }
        }
    });
    let sandbox = Sandbox::new();
    for number in 0..HEADS.len() {
        for way in ["w", "p"] {
            sandbox.webhook(&receiver.url(&format!("/{way}{number}")), &["*"]);
        }
    }
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    let all = (2 * 2 * HEADS.len()) as f64;
    for event in [Event::new("a"), Event::new("b")] {
        sandbox.publish(&event);
    }
    wait_until(SOON, "all have answered", || {
        let metrics = notifier.metrics();
        metrics.sum("webhook_request_success_total", &[])
            + metrics.sum("webhook_request_failure_total", &[])
            >= all
    });
    assert_eq!(notifier.metrics().sum("webhook_request_failure_total", &[]), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn each_failure_names_what_the_receivers_owner_has_to_change() {
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/hang" => Reply::Hang,
        "/close" => Reply::Close,
        "/reset" => Reply::Reset,
        "/drip" => Reply::Drip,
        "/garbage" => Reply::Garbage,
        "/half" => Reply::Raw(b"HTTP/1.1 200 OK\r\na: b\r\n".to_vec(), Then::Close),
        _ => Reply::Raw(b"HTTP/1.1 abc\r\n\r\n".to_vec(), Then::Stay),
    });
    let authority = Authority::new("a CA of the tests");
    let terminator = Terminator::before(&receiver.url("/"), authority.good());
    let https = terminator.url(&receiver.url("/"));
    let sandbox = Sandbox::new();
    let cases = [
        ("hang", receiver.url("/hang"), "no answer within 500ms: it should answer first"),
        ("close", receiver.url("/close"), "closed the connection without an answer"),
        ("reset", receiver.url("/reset"), "closed the connection without an answer"),
        ("drip", receiver.url("/drip"), "its headers were not complete within 500ms"),
        ("garbage", receiver.url("/garbage"), "its answer is not HTTP/1.1: \"SMTP 220"),
        ("half", receiver.url("/half"), "in the middle of its answer"),
        ("bad", receiver.url("/bad"), "is not valid HTTP"),
        ("nobody", receiver.refusing_url(), "connection refused: does the receiver run"),
        ("http.to.tls", https.replace("https:", "http:"), "its URL must begin with https://"),
        ("tls.to.http", receiver.url("/").replace("http:", "https:"), "a port that speaks TLS?"),
        ("ca", https, "certificate into TLS_CA_FILE"),
    ];
    for (kind, url, _) in &cases {
        sandbox.webhook(url, &[kind]);
    }
    let notifier =
        sandbox.notifier().env("REQUEST_TIMEOUT", "500ms").env("RETRY_SCHEDULE", "100ms").start();
    for (kind, url, expected) in &cases {
        sandbox.publish(&Event::new(kind));
        let dead = sandbox.take_dead();
        let error = dead.text("x-last-error");
        assert!(error.contains(expected), "{kind} {url}: no {expected:?} in {error:?}");
    }
    notifier.terminate();
}

#[test]
fn a_connection_that_ends_in_the_tls_handshake_is_reported_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let server = thread::spawn(move || listener.incoming().take(2).for_each(drop));
    let sandbox = Sandbox::new();
    sandbox.webhook(&format!("https://{address}/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    sandbox.publish(&Event::new("a"));
    let dead = sandbox.take_dead();
    let error = dead.text("x-last-error");
    assert!(error.contains("in the TLS handshake"), "{error}");
    notifier.terminate();
    server.join().expect("it does not panic");
}

#[test]
fn a_url_of_more_than_8_kib_is_refused_and_by_sql_makes_its_webhook_unusable() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let url = |length: usize| {
        let begin = receiver.url("/");
        let rest = "a".repeat(length - begin.len());
        begin + &rest
    };
    let id = sandbox.webhook(&url(8_193), &["long"]).to_string();
    let add = sandbox.command(&["webhooks", "add", &url(8_193), "*"]);
    assert_eq!(add.code, Some(1), "{add:?}");
    assert!(add.stderr.contains("longer than 8192 characters"), "{add:?}");
    let notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("long"));
    let dead = sandbox.take_dead();
    assert_eq!(dead.text("x-dead-reason"), "rejected");
    assert_eq!(dead.text("x-webhook-id"), id);
    assert!(dead.text("x-last-error").contains("longer than 8192 characters"), "{dead:?}");
    // The longest one is sent whole.
    sandbox.webhook(&url(8_192), &["longest"]);
    sandbox.publish(&Event::new("longest"));
    wait_until(SOON, "it arrives", || !receiver.requests().is_empty());
    assert!(receiver.url("").len() + receiver.requests()[0].path.len() == 8_192);
    notifier.terminate();
}
