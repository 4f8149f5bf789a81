//! A failed delivery returns on time, alone, whatever restarts meanwhile.

use std::time::Duration;

use crate::harness::{Event, LATER, Receiver, Reply, SOON, Sandbox, receiver::Request, wait_until};

/// How far from its due time, measured from the first attempt, a retry may be: a third of a second, and 2 %.
/// The broker's own clock runs up to 1 % fast or slow while Erlang corrects it towards the system's ("time
/// correction" in Erlang's manual).
fn tolerance(due: Duration) -> Duration {
    Duration::from_millis(333) + due / 50
}

/// By how much a busy machine may delay the retries altogether. The delays themselves are logged.
const BUSY: Duration = Duration::from_secs(3);

#[test]
fn a_failing_receiver_is_retried_on_schedule_and_its_neighbour_is_asked_once() {
    let sandbox = Sandbox::alone(1);
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/failing", 1..=5) => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/failing"), &["order.*"]);
    sandbox.webhook(&receiver.url("/healthy"), &["order.paid"]);
    let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1s,2s,4s,8s,16s").start();

    let event = Event::new("order.paid").body("{ \"a\":1,\t\"a\":2 }");
    sandbox.publish(&event);
    let attempts = receiver.wait_at_within(LATER, "/failing", 6);
    wait_until(SOON, "the last attempt is counted", || {
        notifier.metric("webhook_request_success_total", &[]) >= 2.0
    });

    for attempt in &attempts {
        assert_eq!(attempt.id(), event.id);
        assert_eq!(attempt.body, event.body);
        assert_eq!(attempt.header("content-type"), "application/json");
    }
    // The timestamp is the attempt's, not the event's.
    let stamp = |request: &Request| -> i64 {
        let stamp = request.header("webhook-timestamp");
        stamp.parse().expect("unix seconds")
    };
    let span = stamp(&attempts[5]) - stamp(&attempts[0]);
    assert!((30..=40).contains(&span), "timestamps span {span} s");

    let retry_queue = sandbox.retry_queue();
    let metrics = notifier.metrics();
    let success = |queue: &str| metrics.value("webhook_request_success_total", &[("queue", queue)]);
    let failure = |queue: &str| {
        let labels = [("queue", queue), ("reason", "status_5xx")];
        metrics.value("webhook_request_failure_total", &labels)
    };
    assert_eq!(success(sandbox.queue()), Some(1.0), "the neighbour's");
    assert_eq!(success(&retry_queue), Some(1.0), "the sixth attempt");
    assert_eq!(failure(sandbox.queue()), Some(1.0), "the first attempt");
    assert_eq!(failure(&retry_queue), Some(4.0), "attempts two to five");
    assert_eq!(metrics.sum("webhook_request_failure_total", &[]), 5.0);
    assert_eq!(metrics.sum("webhook_retries_scheduled_total", &[]), 5.0);
    assert_eq!(metrics.sum("webhook_dead_letters_total", &[]), 0.0);

    for (number, next) in ["1s", "2s", "4s", "8s", "16s"].into_iter().enumerate() {
        let line = notifier.wait_stderr(SOON, &format!("attempt={} ", number + 1));
        for part in [
            "WARN",
            "attempt failed",
            &format!("event={}", event.id),
            "reason=status_5xx",
            &format!("next={next}"),
        ] {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
    }
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.at("/healthy").len(), 1);
    assert_eq!(receiver.at("/failing").len(), 6);

    for (attempt, due) in attempts.iter().zip([0, 1, 3, 7, 15, 31]) {
        let due = Duration::from_secs(due);
        let at = attempt.at - attempts[0].at;
        assert!(
            at + tolerance(due) >= due && at <= due + tolerance(due) + BUSY,
            "attempt {} was made at {at:?}, not at {due:?}",
            attempt.attempt
        );
    }
}

#[test]
fn a_schedule_that_repeats_continues_beyond_its_last_delay() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1..=7 => Reply::Status(503),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,200ms,repeat").start();

    sandbox.publish(&Event::new("order.paid"));

    receiver.wait_at("/", 8);
    wait_until(SOON, "the eighth attempt is counted", || {
        notifier.metric("webhook_request_success_total", &[]) >= 1.0
    });
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 7.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}

/// One webhook that fails once, and another one that doesn't.
fn fails_once() -> Receiver {
    Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/failing", 1) => Reply::Status(500),
        _ => Reply::Status(200),
    })
}

/// What [`fails_once`] must have received after the retry.
#[track_caller]
fn assert_delivered_once_each(receiver: &Receiver, event: &Event) {
    for (path, count) in [("/failing", 2), ("/healthy", 1)] {
        let requests = receiver.of(path, event);
        assert_eq!(requests.len(), count, "requests at {path}");
        for request in requests {
            assert_eq!(request.body, event.body);
        }
    }
}

#[test]
fn a_waiting_retry_survives_a_restart_of_the_notifier() {
    let sandbox = Sandbox::new();
    let receiver = fails_once();
    sandbox.webhook(&receiver.url("/failing"), &["*"]);
    sandbox.webhook(&receiver.url("/healthy"), &["*"]);
    let launch = || sandbox.notifier().env("RETRY_SCHEDULE", "3s");
    let first = launch().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "the retry is parked", || {
        first.metric("webhook_retries_scheduled_total", &[]) == 1.0
    });
    first.terminate();

    let second = launch().start();

    receiver.wait_at("/failing", 2);
    second.terminate();
    sandbox.wait_drained();
    assert_delivered_once_each(&receiver, &event);
}

#[test]
fn a_waiting_retry_survives_the_death_of_the_notifier() {
    let sandbox = Sandbox::new();
    let receiver = fails_once();
    sandbox.webhook(&receiver.url("/failing"), &["both"]);
    sandbox.webhook(&receiver.url("/healthy"), &["both", "healthy"]);
    let launch = || sandbox.notifier().env("RETRY_SCHEDULE", "3s");
    let first = launch().start();
    let event = Event::new("both");
    sandbox.publish(&event);
    first.wait_metric("webhook_retries_scheduled_total", &[], 1.0);
    sandbox.wait_acked(&receiver, "/healthy", "healthy");
    first.kill();

    let second = launch().start();

    wait_until(SOON, "the retry arrives", || receiver.of("/failing", &event).len() == 2);
    sandbox.wait_drained();
    second.terminate();
    sandbox.wait_drained();
    assert_delivered_once_each(&receiver, &event);
}

#[test]
fn an_event_whose_notifier_dies_during_the_request_is_delivered_by_the_next_one() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Hang,
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let first = sandbox.notifier().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/", 1);
    first.kill();

    let second = sandbox.notifier().start();

    let requests = receiver.wait_at("/", 2);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(requests[1].id(), event.id);
    assert_eq!(requests[1].body, event.body);
}

#[test]
fn a_retry_does_not_wait_behind_a_long_queue_of_events() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/failing", 1) => Reply::Status(500),
        ("/slow", _) => Reply::Slow(Duration::from_millis(200), 200),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/failing"), &["fails"]);
    sandbox.webhook(&receiver.url("/slow"), &["slow"]);
    let _notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("RETRY_SCHEDULE", "1s")
        .start();

    sandbox.publish(&Event::new("fails"));
    // Ten seconds of work for the only place; the retry gets its turn in between.
    let backlog: Vec<_> = (0..50).map(|_| Event::new("slow")).collect();
    sandbox.broker.publish(sandbox.queue(), &backlog);

    receiver.wait_at("/failing", 2);
    let still_waiting = sandbox.broker.ready(sandbox.queue()).expect("the queue");
    assert!(still_waiting > 0, "the retry was only after the backlog");
}
