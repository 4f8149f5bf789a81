//! What a receiver answers when it refuses an event is kept, up to DELIVERY_LOG_BODY, and shown where
//! people look for it; without secrets, and without successful responses.

use std::time::Duration;

use serde_json::Value;

use crate::commands::{json, succeed};
use crate::harness::{
    Event, Notifier, Receiver, Reply, SOON, Sandbox,
    receiver::{Request, Then},
    unwrapped, wait_for, wait_until,
};

/// An answer with this status line and body.
fn answer(status: &str, body: &str) -> Reply {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
    Reply::Raw([head.as_bytes(), body.as_bytes()].concat(), Then::Stay)
}

fn start(sandbox: &Sandbox) -> Notifier {
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms");
    notifier.env("CIRCUIT_BREAKER", "off").start()
}

/// Publishes an event of that type, and waits until its delivery is dead.
fn until_dead(sandbox: &Sandbox, notifier: &Notifier, kind: &str) -> Event {
    let before = notifier.metric("webhook_dead_letters_total", &[]);
    let event = Event::new(kind);
    sandbox.publish(&event);
    notifier.wait_metric("webhook_dead_letters_total", &[], before + 1.0);
    event
}

/// Waits until the log has `count` failed attempts of the event. Returns their status lines and bodies.
fn logged(sandbox: &Sandbox, event: &Event, count: usize) -> Vec<(Option<String>, Option<String>)> {
    wait_for(SOON, &format!("{count} attempts are logged"), || {
        let rows = sandbox.database.query(
            "SELECT status_line, answer_body FROM delivery_attempts
             WHERE event_id = $1 AND outcome IN ('failed', 'delivered') ORDER BY id",
            &[&event.id],
        );
        (rows.len() == count).then(|| rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    })
}

#[test]
fn a_receivers_answer_is_shown_wherever_people_look_without_secrets() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request: &Request| {
        let key = request.header("x-api-key");
        let body = format!(
            "{{\"error\": \"quota of plan basic\",\r\n  \"path\": \"{}\", \"key\": \"{key}\"}}\u{1b}[2J",
            request.path
        );
        answer("429 Slow down, please", &body)
    });
    let webhook = sandbox.webhook(&receiver.url("/in?token=s3cret"), &["order.*"]);
    sandbox.database.execute("UPDATE webhooks SET headers = '{\"x-api-key\": \"k3y-k3y\"}'", &[]);
    let notifier = start(&sandbox);
    let event = until_dead(&sandbox, &notifier, "order.paid");
    let line = "HTTP/1.1 429 Slow down, please";
    let body = "{\"error\": \"quota of plan basic\", \"path\": \"/in?token=***\", \"key\": \"***\"}\\u{1b}[2J";

    let expected = (Some(line.to_owned()), Some(body.to_owned()));
    assert_eq!(logged(&sandbox, &event, 2), [expected.clone(), expected]);
    let why = || unwrapped(&succeed(&sandbox, &["why", &event.id]));
    assert!(why().contains(&format!("answer {line} (attempt 2) {body}")), "{}", why());
    let report = json(&succeed(&sandbox, &["why", &event.id, "--json"]));
    let case = &report["webhooks"][0];
    assert_eq!(case["entries"][0]["answer"]["status_line"], line, "{report}");
    assert_eq!(case["entries"][1]["answer"]["body"], body, "{report}");

    let tail = sandbox.launch(&["tail"]).spawn();
    let shown =
        tail.wait_stdout(SOON, "status 429 Slow down, please: {\"error\": \"quota of plan basic\"");
    assert!(shown.contains(&event.id), "{shown}");

    let of_webhook = ["--webhook", &webhook.to_string()];
    let show = [&["dead-letters", "show"], &of_webhook[..]].concat();
    let shown = succeed(&sandbox, &show);
    for part in [format!("x-last-status-line: {line}"), format!("x-last-body: {body}")] {
        assert!(shown.contains(&part), "no {part} in {shown}");
    }
    let letter = json(&succeed(&sandbox, &[&show[..], &["--json"]].concat()));
    assert_eq!(letter[0]["dead_letter"]["last_answer"]["body"], body, "{letter}");
    assert_eq!(letter[0]["headers"]["x-last-status-line"], line, "{letter}");

    // Long afterwards, and without the log, its dead letter still has it.
    let table =
        sandbox.database.query("SELECT string_agg(l::text, ' ') FROM delivery_attempts l", &[]);
    let table: String = table[0].get(0);
    sandbox.database.execute("DELETE FROM delivery_attempts", &[]);
    assert!(why().contains(&format!("answer {line} {body}")), "{}", why());
    let all = [table, why(), report.to_string(), letter.to_string(), notifier.stderr().join("\n")];
    for text in all {
        assert!(!text.contains("s3cret") && !text.contains("k3y-k3y"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }
}

#[test]
fn as_much_of_an_answer_is_kept_as_the_setting_says_and_no_delivery_waits_for_more() {
    let sandbox = Sandbox::new();
    let long = "0123456789".repeat(60);
    let body = long.clone();
    let receiver = Receiver::answering(move |request| match request.path.as_str() {
        "/long" => answer("500 Long", &body),
        "/large" => answer("500 Large", &"y".repeat(1 << 20)),
        "/slow" => {
            let begun = b"HTTP/1.1 500 Slow\r\ncontent-length: 99\r\n\r\nbegun".to_vec();
            Reply::Raw(begun, Then::Later(Duration::from_secs(3_600), Vec::new()))
        }
        "/bare" => Reply::Raw(b"HTTP/1.1 500\r\ncontent-length: 0\r\n\r\n".to_vec(), Then::Stay),
        "/binary" => {
            let head = b"HTTP/1.1 500 \xff\r\ncontent-length: 4\r\n\r\n\x00\xff\r\n".to_vec();
            Reply::Raw(head, Then::Stay)
        }
        _ => answer("200 Fine", "thank you"),
    });
    for path in ["long", "large", "slow", "bare", "binary", "fine"] {
        sandbox.webhook(&receiver.url(&format!("/{path}")), &[path]);
    }
    let start = |bytes: &str| {
        let notifier =
            sandbox.notifier().env("RETRY_SCHEDULE", "100ms").env("CIRCUIT_BREAKER", "off");
        let notifier = notifier.env("DELIVERY_LOG_BODY", bytes).env("DELIVERY_LOG", "all");
        notifier.env("REQUEST_TIMEOUT", "1s").start()
    };
    let notifier = start("512");
    let kept = |kind: &str| {
        let event = until_dead(&sandbox, &notifier, kind);
        let attempts = logged(&sandbox, &event, 2);
        assert_eq!(attempts[0], attempts[1]);
        let (line, body) = attempts[0].clone();
        (line.expect("a status line"), body.expect("a body"))
    };
    let before = receiver.connections();
    assert_eq!(kept("long"), ("HTTP/1.1 500 Long".to_owned(), format!("{}…", &long[..512])));
    assert_eq!(receiver.connections() - before, 1, "what was read to its end is used again");
    assert_eq!(kept("large").1, format!("{}…", "y".repeat(512)));
    assert_eq!(kept("slow"), ("HTTP/1.1 500 Slow".to_owned(), "begun".to_owned()));
    assert_eq!(kept("bare"), ("HTTP/1.1 500".to_owned(), String::new()));
    assert_eq!(kept("binary"), ("HTTP/1.1 500 \u{fffd}".to_owned(), "\\0\u{fffd}".to_owned()));
    let fine = Event::new("fine");
    sandbox.publish(&fine);
    assert_eq!(logged(&sandbox, &fine, 1), [(None, None)]);
    notifier.terminate();

    let notifier = start("10");
    let event = until_dead(&sandbox, &notifier, "long");
    let (_, body) = logged(&sandbox, &event, 2).remove(0);
    assert_eq!(body.as_deref(), Some("0123456789…"));
    let most = sandbox.launch(&["check"]).env("DELIVERY_LOG_BODY", "4097").spawn().finish(SOON);
    assert_eq!(most.code, Some(2), "{most:?}");
    assert!(most.stderr.contains("not a number from 0 to 4096"), "{most:?}");
}

#[test]
fn where_excerpts_are_turned_off_nothing_is_kept() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| answer("500 Secret", "secret"));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    for (log, body) in [("all", "0"), ("off", "512")] {
        let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").env("DELIVERY_LOG", log);
        let notifier = notifier.env("DELIVERY_LOG_BODY", body).start();
        until_dead(&sandbox, &notifier, "order.paid");
        let letters = json(&succeed(&sandbox, &["dead-letters", "show", "--json"]));
        assert_eq!(letters[0]["dead_letter"]["last_error"], "status 500", "{letters}");
        assert_eq!(letters[0]["dead_letter"]["last_answer"], Value::Null, "{letters}");
        notifier.terminate();
        let table = sandbox.database.query("SELECT l::text FROM delivery_attempts l", &[]);
        let table: Vec<String> = table.iter().map(|row| row.get(0)).collect();
        assert!(!letters.to_string().to_lowercase().contains("secret"), "{letters}");
        assert!(!table.join(" ").to_lowercase().contains("secret"), "{table:?}");
        succeed(&sandbox, &["dead-letters", "purge", "--all"]);
    }
}

#[test]
fn a_replayed_delivery_forgets_an_answer_that_is_no_longer_the_last() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| answer("500 Oh", "the first"));
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = start(&sandbox);
    until_dead(&sandbox, &notifier, "order.paid");
    let letter = || {
        let letters = json(&succeed(&sandbox, &["dead-letters", "show", "--json"]));
        letters[0]["dead_letter"].clone()
    };
    assert_eq!(letter()["last_answer"]["body"], "the first");
    sandbox.database.execute(
        "UPDATE webhooks SET post_url = $1 WHERE id = $2",
        &[&receiver.refusing_url(), &webhook],
    );
    succeed(&sandbox, &["dead-letters", "replay"]);
    wait_until(SOON, "it is dead again", || {
        let letter = letter();
        let error = letter["last_error"].as_str().unwrap_or_default();
        error.contains("connection refused") && letter["last_answer"].is_null()
    });
}
