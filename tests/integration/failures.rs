//! The ways in which a receiver can fail to answer.

use crate::harness::{DeadLetter, Event, Receiver, Reply, Sandbox};

/// Both attempts fail in the same way: the delivery is parked after the first and dead after the second,
/// and both are counted with one of these reasons.
#[track_caller]
fn check_failure(url: &str, reasons: &[&str]) {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook(url, &["*"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms")
        .env("REQUEST_TIMEOUT", "1s")
        .env("CONNECT_TIMEOUT", "500ms")
        .env("SHUTDOWN_TIMEOUT", "2s")
        .start();
    let event = Event::new("order.paid");

    sandbox.publish(&event);

    sandbox.expect_dead(&DeadLetter {
        event: &event,
        kind: "order.paid",
        webhook,
        reason: "exhausted",
        attempts: 2,
    });
    let metrics = notifier.metrics();
    let counted: f64 = reasons
        .iter()
        .map(|reason| metrics.sum("webhook_request_failure_total", &[("reason", reason)]))
        .sum();
    assert_eq!(counted, 2.0, "not under {reasons:?}: {metrics:?}");
    assert_eq!(metrics.sum("webhook_request_failure_total", &[]), 2.0);
    assert_eq!(metrics.sum("webhook_retries_scheduled_total", &[]), 1.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_refused_connection_is_a_failed_attempt() {
    check_failure(&Receiver::new().refusing_url(), &["refused"]);
}

#[test]
fn a_reset_connection_is_a_failed_attempt() {
    let receiver = Receiver::answering(|_| Reply::Reset);
    check_failure(&receiver.url("/"), &["reset"]);
}

#[test]
fn a_connection_that_ends_without_an_answer_is_a_failed_attempt() {
    let receiver = Receiver::answering(|_| Reply::Close);
    check_failure(&receiver.url("/"), &["reset", "io", "protocol"]);
}

#[test]
fn an_answer_that_is_not_http_is_a_failed_attempt() {
    let receiver = Receiver::answering(|_| Reply::Garbage);
    check_failure(&receiver.url("/"), &["protocol"]);
}

#[test]
fn no_answer_in_time_is_a_failed_attempt() {
    let receiver = Receiver::answering(|_| Reply::Hang);
    check_failure(&receiver.url("/"), &["timeout"]);
}

#[test]
fn an_answer_that_drips_past_the_limit_is_a_failed_attempt() {
    let receiver = Receiver::answering(|_| Reply::Drip);
    check_failure(&receiver.url("/"), &["timeout"]);
}

#[test]
fn a_name_that_does_not_resolve_is_a_failed_attempt() {
    // A machine without a name server may find out only by a timeout.
    check_failure("http://no-such-host.invalid/", &["dns", "timeout"]);
}

#[test]
fn a_failed_tls_handshake_is_a_failed_attempt() {
    let receiver = Receiver::new();
    let url = receiver.url("/").replace("http:", "https:");
    check_failure(&url, &["tls"]);
    assert_eq!(receiver.at("/").len(), 0);
}

#[test]
fn an_endless_response_is_neither_read_nor_waited_for() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/endless" => Reply::Endless,
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/endless"), &["endless"]);
    sandbox.webhook(&receiver.url("/"), &["next"]);
    let notifier = sandbox.notifier().start();

    sandbox.publish(&Event::new("endless"));
    sandbox.publish(&Event::new("next"));

    receiver.wait_at("/", 1);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.at("/endless").len(), 1);
}
