//! Receivers that read a large body slowly, or not at all. What they send meanwhile is no answer until it
//! is complete, and the usual deadline applies.

use std::{thread, time::Duration};

use crate::harness::{
    Authority, Event, Launch, Notifier, SOON, Sandbox, Terminator, Wire, wait_until,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a receiver doesn't read: less than the deadline, and more than a third of it.
const STALL: Duration = Duration::from_secs(3);

/// An event whose body is larger than the largest buffers that the kernel gives a connection.
fn large_event() -> Event {
    let mut event = Event::new("large");
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(8_000_000)).into_bytes();
    event
}

fn launch(sandbox: &Sandbox) -> Launch {
    sandbox
        .notifier()
        .env("REQUEST_TIMEOUT", format!("{}s", REQUEST_TIMEOUT.as_secs()))
        .env("RETRY_SCHEDULE", "100ms")
        .env("MAX_EVENT_BYTES", "16MiB")
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

/// Answers a small request at once. When it has the head of a large one, it sends something, pauses, and
/// then reads and answers it.
fn slow_reader(sends: &'static str) -> Wire {
    Wire::serving(move |connection| {
        while let Some(seen) = connection.head() {
            if seen.length > 100_000 {
                connection.send(sends);
                thread::sleep(STALL);
            }
            connection.body(&seen);
            connection.ok("");
        }
    })
}

#[track_caller]
fn check_slow_reader(sends: &'static str) {
    let receiver = slow_reader(sends);
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = launch(&sandbox).start();
    check_delivered(&sandbox, &notifier);
    assert_eq!(receiver.seen().len(), 2, "each arrived once");
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
    let trusted = authority.file();
    let sandbox = Sandbox::new();
    sandbox.webhook(&terminator.url(&receiver.url()), &["*"]);
    let notifier = launch(&sandbox).env("TLS_CA_FILE", trusted.path()).start();
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
        // It closes the connection without reading a byte of the next request.
        connection.wait_for_input();
        thread::sleep(Duration::from_millis(100));
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = launch(&sandbox).start();
    check_delivered(&sandbox, &notifier);
    assert_eq!(receiver.seen().len(), 2, "each was read once");
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn interim_answers_without_end_do_not_outlast_the_deadline() {
    let receiver = Wire::serving(|connection| {
        if connection.head().is_some() {
            // This takes more than a minute if the notifier reads for that long.
            for _ in 0..700 {
                connection.send("HTTP/1.1 100\r\n\r\n");
                thread::sleep(Duration::from_millis(100));
            }
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = launch(&sandbox).start();
    sandbox.publish(&large_event());
    // Two attempts.
    let error = sandbox.take_dead();
    assert!(error.text("x-last-error").contains("within 6s"), "{error:?}");
    notifier.terminate();
}
