//! TLS with RabbitMQ, PostgreSQL and receivers: real handshakes, and certificates that must be refused.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use crate::harness::{
    Authority, Event, FaultServers, LATER, Receiver, Reply, SOON, Sandbox, Terminator, TextFile,
    process::Finished,
    servers::{End, Server},
    tls::{Certificate, drip},
    wait_until,
};

/// The name of the CA in TLS_CA_FILE.
const TRUSTED: &str = "a CA of the tests";

fn with_parameters(url: &str, parameters: &str) -> String {
    let sign = if url.contains('?') { '&' } else { '?' };
    format!("{url}{sign}{parameters}")
}

/// An event that is larger than TLS records, amiquip's frames and a socket's buffer together.
fn large_event(kind: &str) -> Event {
    let mut event = Event::new(kind);
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(900_000)).into_bytes();
    event
}

#[test]
fn events_are_consumed_parked_and_delivered_by_tls_and_survive_a_crash_of_the_broker() {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let authority = Authority::new(TRUSTED);
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let plain = receiver.url("/");
    let terminator = Terminator::before(&plain, authority.good());
    sandbox.webhook(&terminator.url(&plain), &["*"]);
    let (servers, servers_ca) = faults.by_tls();
    let servers_ca = fs::read_to_string(servers_ca).expect("services.sh made it");
    let trusted = TextFile::new(&[servers_ca, authority.pem()].concat());
    let (certificate, key) = (faults.tls_file("client.pem"), faults.tls_file("client.key"));
    let database_url = format!(
        "{}&{}",
        with_parameters(sandbox.database.url(), "sslmode=verify-full"),
        format_args!("sslcert={certificate}&sslkey={key}"),
    );
    let mut notifier = sandbox
        .notifier()
        .env(
            "AMQP_URL",
            with_parameters(&servers.amqp_url, &format!("certfile={certificate}&keyfile={key}")),
        )
        .env("DATABASE_URL", database_url)
        .env("TLS_CA_FILE", trusted.path())
        .env("RETRY_SCHEDULE", "200ms")
        .start();
    let deliver = || {
        let event = large_event("large");
        sandbox.publish(&event);
        wait_until(LATER, "the event arrives", || receiver.of("/", &event).len() >= 2);
        for request in receiver.of("/", &event) {
            assert_eq!(request.body, event.body);
        }
    };

    deliver();

    let connections = faults.rabbitmqctl(&[
        "-q",
        "list_connections",
        "client_properties",
        "ssl",
        "peer_cert_subject",
    ]);
    let ours: Vec<_> =
        connections.lines().filter(|line| line.contains("webhook-notifier")).collect();
    // Two lanes, the publisher, and the monitor of the queues. There may be more that are just closing.
    assert!(ours.len() >= 4, "{connections}");
    for connection in ours {
        assert!(connection.contains("\ttrue\tCN=webhook-notifier client"), "{connection}");
    }
    let sessions = sandbox.database.query(
        "SELECT ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE application_name LIKE 'webhook-notifier%'",
        &[],
    );
    assert!(!sessions.is_empty());
    for session in sessions {
        assert!(session.get::<_, bool>("ssl"));
        assert_eq!(session.get::<_, &str>("client_dn"), "/CN=webhook-notifier client");
    }

    faults.end(Server::Broker, End::Kill);
    faults.start(Server::Broker);
    deliver();
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    assert!(notifier.is_running());
    notifier.terminate();
    sandbox.wait_drained();
}

/// The bad certificates, and the messages about them.
fn bad_certificates(trusted: &Authority) -> [(Certificate, &'static str, &'static str); 4] {
    [
        (Authority::new("another").good(), "UnknownIssuer", "certificate into TLS_CA_FILE"),
        (Authority::new(TRUSTED).good(), "BadSignature", "certificate into TLS_CA_FILE"),
        (trusted.of_another_name(), "not valid for name", "use a name that is in the certificate"),
        (trusted.expired(), "expired", "it needs a new certificate"),
    ]
}

/// Expects exit code 1, and one ERROR line with the problem and the remedy.
#[track_caller]
fn assert_refused(finished: &Finished, wrong: &str, remedy: &str) {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{finished:?}");
    assert!(errors[0].contains(wrong) && errors[0].contains(remedy), "{wrong:?}: {}", errors[0]);
}

#[test]
fn a_broker_with_a_bad_certificate_is_refused_with_the_reason() {
    let sandbox = Sandbox::new();
    let authority = Authority::new(TRUSTED);
    let trusted = authority.file();
    for (certificate, wrong, remedy) in bad_certificates(&authority) {
        let terminator = Terminator::before(&sandbox.servers.amqp_url, certificate);
        let finished = sandbox
            .notifier()
            .env("AMQP_URL", terminator.url(&sandbox.servers.amqp_url))
            .env("AMQP_CONNECTION_ATTEMPTS", "1")
            .env("TLS_CA_FILE", trusted.path())
            .spawn()
            .finish(SOON);
        assert_refused(&finished, wrong, remedy);
    }
    // The same route works with a good certificate, or this would prove nothing.
    let terminator = Terminator::before(&sandbox.servers.amqp_url, authority.good());
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", terminator.url(&sandbox.servers.amqp_url))
        .env("TLS_CA_FILE", trusted.path())
        .start();
    notifier.terminate();
}

#[test]
fn a_broker_that_speaks_no_tls_is_refused_with_the_reason() {
    let sandbox = Sandbox::new();
    let finished = sandbox
        .notifier()
        .env("AMQP_URL", sandbox.servers.amqp_url.replace("amqp:", "amqps:"))
        .env("AMQP_CONNECTION_ATTEMPTS", "1")
        .spawn()
        .finish(SOON);
    assert_refused(&finished, "TLS: ", "is this a port that speaks TLS?");
}

#[test]
fn postgresql_is_checked_as_sslmode_says() {
    let sandbox = Sandbox::new();
    let authority = Authority::new(TRUSTED);
    let trusted = authority.file();
    let start = |terminator: &Terminator, mode: &str| {
        let url = terminator.url(sandbox.database.url());
        sandbox
            .notifier()
            .env("DATABASE_URL", with_parameters(&url, &format!("sslmode={mode}")))
            .env("TLS_CA_FILE", trusted.path())
    };
    let bad = bad_certificates(&authority);
    // The modes that still accept each certificate, by libpq's table.
    let lenient: [&[_]; 4] = [&["require"], &["require"], &["require", "verify-ca"], &["require"]];
    for ((certificate, wrong, remedy), lenient) in bad.into_iter().zip(lenient) {
        let terminator = Terminator::before(&sandbox.servers.database_url, certificate);
        for mode in ["require", "verify-ca", "verify-full"] {
            if lenient.contains(&mode) {
                start(&terminator, mode).start().terminate();
            } else {
                assert_refused(&start(&terminator, mode).spawn().finish(SOON), wrong, remedy);
            }
        }
    }
    let terminator = Terminator::before(&sandbox.servers.database_url, authority.good());
    start(&terminator, "verify-full").start().terminate();
}

#[test]
fn postgresql_that_speaks_no_tls_is_refused_where_it_is_required() {
    let sandbox = Sandbox::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("postgres://someone@{}/", listener.local_addr().expect("it is bound"));
    let end = listener.try_clone().expect("a handle");
    // All that such a server answers to the SSLRequest.
    let server = thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            if client.read_exact(&mut [0; 8]).is_err() || client.write_all(b"N").is_err() {
                return;
            }
        }
    });
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = with_parameters(&url, &format!("sslmode={mode}"));
        let finished = sandbox.notifier().env("DATABASE_URL", url).spawn().finish(SOON);
        assert_refused(&finished, "does not offer TLS", "turn `ssl` on there");
    }
    // Ends the server.
    drop(TcpStream::connect(end.local_addr().expect("it is bound")));
    server.join().expect("it does not panic");
}

#[test]
fn a_receiver_with_a_bad_certificate_gets_nothing_and_the_dead_letter_says_why() {
    let sandbox = Sandbox::new();
    let authority = Authority::new(TRUSTED);
    let trusted = authority.file();
    let receiver = Receiver::new();
    let plain = receiver.url("/");
    let good = Terminator::before(&plain, authority.good());
    sandbox.webhook(&good.url(&plain), &["good"]);
    let cases = bad_certificates(&authority).map(|(certificate, wrong, remedy)| {
        (Terminator::before(&plain, certificate), wrong, remedy)
    });
    for (terminator, wrong, _) in &cases {
        sandbox.webhook(&terminator.url(&plain), &[wrong]);
    }
    let notifier = sandbox
        .notifier()
        .env("TLS_CA_FILE", trusted.path())
        .env("RETRY_SCHEDULE", "100ms")
        .start();

    for (_, wrong, remedy) in &cases {
        let event = Event::new(wrong);
        sandbox.publish(&event);
        let dead = sandbox.take_dead();
        assert_eq!(dead.text("x-event-id"), event.id);
        assert_eq!(dead.text("x-dead-reason"), "exhausted");
        let error = dead.text("x-last-error");
        assert!(error.contains(wrong) && error.contains(remedy), "{error}");
    }
    assert_eq!(notifier.metric("webhook_request_failure_total", &[("reason", "tls")]), 8.0);
    assert!(receiver.requests().is_empty());

    sandbox.publish(&Event::new("good"));
    receiver.wait_at("/", 1);
    notifier.terminate();
    sandbox.wait_drained();
}

/// Checks that both attempts time out, and not much later than they should.
#[track_caller]
fn check_timeout(authority: &Authority, url: &str, request_timeout: &str, limit: f64) {
    let sandbox = Sandbox::new();
    let trusted = authority.file();
    sandbox.webhook(url, &["*"]);
    let notifier = sandbox
        .notifier()
        .env("TLS_CA_FILE", trusted.path())
        .env("CONNECT_TIMEOUT", "500ms")
        .env("REQUEST_TIMEOUT", request_timeout)
        .env("RETRY_SCHEDULE", "100ms")
        .start();

    sandbox.publish(&Event::new("order.paid"));

    assert_eq!(sandbox.take_dead().text("x-dead-reason"), "exhausted");
    let metrics = notifier.metrics();
    let sum = |name| metrics.sum(name, &[]);
    assert_eq!(metrics.sum("webhook_request_failure_total", &[("reason", "timeout")]), 2.0);
    let mean = sum("webhook_request_duration_seconds_sum") / 2.0;
    // A busy machine may be late. Without the limit it would be ten seconds or more.
    assert!(mean >= limit && mean < limit + 4.0, "{mean} s");
    notifier.terminate();
}

#[test]
fn a_receiver_that_never_begins_its_handshake_costs_no_more_than_connecting_may() {
    // The kernel accepts the connection; nothing answers on it.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("https://{}/", silent.local_addr().expect("it is bound"));
    check_timeout(&Authority::new(TRUSTED), &url, "10s", 0.5);
}

#[test]
fn a_handshake_that_drips_costs_no_more_than_connecting_may() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let url = format!("https://{address}/");
    let server = thread::spawn(move || {
        // The head of a record of the maximal size, which is never completed.
        let record = [&[0x16, 3, 3, 0x40, 0], &[0; 200][..]].concat();
        for client in listener.incoming().take(2) {
            let _ = drip(&client.expect("a client"), &record);
        }
    });
    check_timeout(&Authority::new(TRUSTED), &url, "10s", 0.5);
    server.join().expect("it does not panic");
}

#[test]
fn a_response_that_drips_below_tls_ends_with_the_deadline() {
    let authority = Authority::new(TRUSTED);
    let receiver = Receiver::new();
    let plain = receiver.url("/");
    let terminator = Terminator::dripping(&plain, authority.good());
    check_timeout(&authority, &terminator.url(&plain), "1s", 1.0);
}
