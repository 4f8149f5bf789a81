//! Receivers that read a large body slowly, or not at all: what they send meanwhile isn't an answer
//! before it is complete, and their deadline is the usual one.

use std::{io::Write as _, thread, time::Duration};

use tempfile::NamedTempFile;

use crate::harness::{Authority, Event, Notifier, SOON, Sandbox, Terminator, Wire, wait_until};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);

/// Less than the deadline, and more than a third of it.
const STALL: Duration = Duration::from_secs(3);

/// More than the largest buffers that the kernel gives a connection.
fn large_event() -> Event {
    let mut event = Event::new("large");
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(8_000_000)).into_bytes();
    event
}

fn start(sandbox: &Sandbox) -> Notifier {
    sandbox
        .notifier()
        .env("REQUEST_TIMEOUT", format!("{}s", REQUEST_TIMEOUT.as_secs()))
        .env("RETRY_SCHEDULE", "100ms")
        .env("MAX_EVENT_BYTES", "16MiB")
        .start()
}

/// Sends a small event first, and then a large one on the same connection; each is delivered by one
/// attempt.
#[track_caller]
fn check_delivered(sandbox: &Sandbox, notifier: &Notifier) {
    let sum = |name: &str| notifier.metrics().sum(name, &[]);
    for (done, event) in [(1.0, Event::new("small")), (2.0, large_event())] {
        sandbox.publish(&event);
        wait_until(SOON, "the attempt is over", || {
            sum("webhook_request_success_total") + sum("webhook_request_failure_total") >= done
        });
        assert_eq!(sum("webhook_request_failure_total"), 0.0);
    }
}

/// Answers a small request, and then a large one: sends something once it has the head, pauses, and then
/// reads and answers it.
fn slow_reader(says: &'static str) -> Wire {
    Wire::serving(move |connection| {
        while let Some(seen) = connection.head() {
            if seen.length > 100_000 {
                connection.say(says);
                thread::sleep(STALL);
            }
            connection.body(&seen);
            connection.ok("");
        }
    })
}

#[track_caller]
fn check_slow_reader(says: &'static str) {
    let receiver = slow_reader(says);
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = start(&sandbox);
    check_delivered(&sandbox, &notifier);
    assert_eq!(receiver.seen().len(), 2, "each came once");
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_receiver_that_reads_late_is_waited_for_on_a_reused_connection_too() {
    check_slow_reader("");
}

#[test]
fn an_interim_answer_before_the_body_is_read_does_not_end_the_attempt() {
    check_slow_reader("HTTP/1.1 100 Continue\r\n\r\n");
}

#[test]
fn a_receiver_that_reads_late_under_tls_gets_the_whole_body() {
    let receiver = slow_reader("");
    let authority = Authority::new("a CA of the tests");
    let terminator = Terminator::before(&receiver.url(), authority.good());
    let mut trusted = NamedTempFile::new().expect("a file");
    trusted.write_all(authority.pem().as_bytes()).expect("it is writable");
    let sandbox = Sandbox::new();
    sandbox.webhook(&terminator.url(&receiver.url()), &["*"]);
    let file = trusted.path().to_str().expect("a plain path").to_owned();
    let notifier = sandbox
        .notifier()
        .env("TLS_CA_FILE", file)
        .env("REQUEST_TIMEOUT", format!("{}s", REQUEST_TIMEOUT.as_secs()))
        .env("RETRY_SCHEDULE", "100ms")
        .env("MAX_EVENT_BYTES", "16MiB")
        .start();
    check_delivered(&sandbox, &notifier);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_reused_connection_that_is_closed_under_the_body_is_no_failed_attempt() {
    let receiver = Wire::serving(|connection| {
        if connection.number > 0 {
            return connection.answer_all();
        }
        let seen = connection.request().expect("a small one");
        assert!(seen.length < 100_000);
        connection.ok("");
        // It closes the connection without having read a byte of the next request.
        connection.has_more();
        thread::sleep(Duration::from_millis(100));
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = start(&sandbox);
    check_delivered(&sandbox, &notifier);
    assert_eq!(receiver.seen().len(), 2, "each was read once");
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn interim_answers_without_end_do_not_outlast_the_deadline() {
    let receiver = Wire::serving(|connection| {
        if connection.head().is_some() {
            // This takes more than a minute, if somebody reads for that long.
            for _ in 0..700 {
                connection.say("HTTP/1.1 100\r\n\r\n");
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = start(&sandbox);
    sandbox.publish(&large_event());
    // Two attempts.
    let error = sandbox.take_dead();
    assert!(error.text("x-last-error").contains("within 6s"), "{error:?}");
    notifier.terminate();
}
