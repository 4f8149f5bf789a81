//! A receiver that states when to retry gets its deliveries then: not before, and not long after.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use crate::{
    commands,
    harness::{Event, Notifier, Receiver, Reply, SOON, Sandbox, unwrapped, wait_until},
};

/// Answers its first request with this status and `Retry-After`, and all others with 200.
fn busy_once(status: u16, retry_after: impl Fn() -> String + Send + Sync + 'static) -> Receiver {
    let asked = AtomicBool::new(false);
    Receiver::answering(move |_| match asked.swap(true, Ordering::SeqCst) {
        false => Reply::WithHeaders(status, vec![("retry-after", retry_after())]),
        true => Reply::Status(200),
    })
}

fn held(notifier: &Notifier, reason: &str) -> f64 {
    notifier.metric("webhook_deliveries_held_total", &[("reason", reason)])
}

/// Its only delivery fails first, and is attempted again after this time, which was announced as the
/// delay.
#[track_caller]
fn check(
    schedule: &str,
    status: u16,
    retry_after: fn() -> String,
    next: Option<&str>,
    waits: Duration,
) {
    let sandbox = Sandbox::new();
    let receiver = busy_once(status, retry_after);
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", schedule).start();

    sandbox.publish(&Event::new("order.paid"));

    let line = notifier.wait_stderr(SOON, "attempt failed");
    assert!(next.is_none_or(|next| line.contains(&format!("next={next} "))), "{line}");
    // That is sooner than the schedule's next step.
    let requests = receiver.wait_at("/", 2);
    let waited = requests[1].at - requests[0].at;
    assert!(waited >= waits, "only {waited:?}");
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2);
}

#[test]
fn a_429_with_seconds_is_retried_after_them_and_not_by_the_schedule() {
    check("1s,1h", 429, || String::from("3"), Some("3s"), Duration::from_secs(3));
}

#[test]
fn a_503_with_a_date_is_retried_then() {
    // A date has whole seconds.
    let in_four_seconds = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(4));
    check("1s,1h", 503, in_four_seconds, None, Duration::from_secs(3));
}

#[test]
fn a_retry_after_that_equals_a_delay_of_the_schedule_is_that_delay() {
    check("1s,2s,1h", 503, || String::from("2"), Some("2s"), Duration::from_secs(2));
}

#[test]
fn retry_after_is_heeded_for_429_and_503_only_and_nonsense_is_ignored() {
    let second = Duration::from_millis(990);
    check("1s,1h", 500, || String::from("30"), Some("1s"), second);
    check("1s,1h", 429, || String::from("-5 or so"), Some("1s"), second);
    check("1s,1h", 503, || String::from("Thu, 01 Jan 1970 00:00:00 GMT"), Some("1s"), second);
}

#[test]
fn a_retry_after_of_more_than_an_hour_is_an_hour_whatever_the_schedule_has() {
    for (schedule, wanted) in [
        ("1s,6h,24h", "7200"),
        ("1s,2s", "86400"),
        ("1s,repeat", "999999999999999999999999999999"),
        ("1s,1h,6h", "3601"),
    ] {
        let sandbox = Sandbox::new();
        let receiver = busy_once(503, || wanted.to_owned());
        let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
        let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", schedule).start();
        let event = Event::new("order.paid");

        sandbox.publish(&event);

        let line = notifier.wait_stderr(SOON, "attempt failed");
        assert!(line.contains("next=1h "), "{schedule}, {wanted}: {line}");
        if schedule.contains("1h") {
            continue;
        }
        wait_until(SOON, "it waits in its receiver's backlog", || {
            held(&notifier, "retry_after") == 1.0
        });
        wait_until(SOON, "`why` says until when", || {
            let why = unwrapped(&sandbox.command(&["why", &event.id]).stdout);
            why.contains("retry_after; its receiver is asked again at")
                && ["(in 59m", "(in 60m", "(in 1h"].iter().any(|part| why.contains(part))
        });
        assert_eq!(receiver.requests().len(), 1, "{schedule}");
        commands::succeed(&sandbox, &["webhooks", "remove", &webhook.to_string()]);
        assert!(notifier.is_running());
    }
}

#[test]
fn the_next_process_heeds_retry_after_too() {
    let sandbox = Sandbox::new();
    let receiver = busy_once(429, || String::from("7"));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let start = || sandbox.notifier().env("RETRY_SCHEDULE", "1s,1h").start();
    let mut notifier = start();
    let first = Event::new("order.paid");
    sandbox.publish(&first);
    notifier.wait_stderr(SOON, "attempt failed");
    let second = Event::new("order.paid");
    sandbox.publish(&second);
    wait_until(SOON, "the second is in its backlog", || held(&notifier, "retry_after") >= 1.0);

    notifier.kill();
    let notifier = start();

    let requests = receiver.wait_at("/", 3);
    for request in &requests[1..] {
        let waited = request.at - requests[0].at;
        assert!(waited >= Duration::from_secs(7), "asked again after {waited:?}");
    }
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.of("/", &second).len(), 1);
}
