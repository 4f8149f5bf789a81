//! A signal ends the process soon, cleanly, and without losing or repeating anything.

mod servers;

use std::time::{Duration, Instant};

use crate::harness::{
    Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Signal, holds_for, wait_until,
};

/// What the last line of the log reports about a shutdown.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    finished: u64,
    parked: u64,
    handed_back: u64,
}

#[track_caller]
fn summary(notifier: &Notifier) -> Summary {
    let log = notifier.stderr();
    let last = log.last().expect("there is a log");
    let (_, counts) =
        last.split_once("stopped: ").unwrap_or_else(|| panic!("the last line is {last}"));
    let count = |part: Option<&str>, what: &str| {
        let count = part.and_then(|part| part.strip_suffix(what));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{last}"))
    };
    let mut parts = counts.split(", ");
    Summary {
        finished: count(parts.next(), "finished"),
        parked: count(parts.next(), "parked"),
        handed_back: count(parts.next(), "handed back"),
    }
}

/// Sends the signal and expects a clean exit. Returns how long it took.
#[track_caller]
fn clean_exit(notifier: &mut Notifier, signal: Signal) -> (Duration, Summary) {
    let began = Instant::now();
    notifier.signal(signal);
    let exit = notifier.wait_exit(SOON);
    assert_eq!(exit.code, Some(0));
    (began.elapsed(), summary(notifier))
}

/// Sends SIGTERM and expects a clean exit within the limit.
#[track_caller]
fn check_exit(notifier: &mut Notifier, limit: Duration) -> Summary {
    let (took, summary) = clean_exit(notifier, Signal::TERM);
    assert!(took < limit, "it took {took:?}, not less than {limit:?}");
    summary
}

#[track_caller]
fn check_idle_exit(signal: Signal) {
    let sandbox = Sandbox::alone(3);
    let mut notifier = sandbox.notifier().start();
    let (took, summary) = clean_exit(&mut notifier, signal);
    assert_eq!(summary, Summary { finished: 0, parked: 0, handed_back: 0 });
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[test]
fn an_idle_notifier_ends_within_a_second_of_sigterm() {
    check_idle_exit(Signal::TERM);
}

#[test]
fn an_idle_notifier_ends_within_a_second_of_sigint() {
    check_idle_exit(Signal::INT);
}

#[test]
fn a_request_in_flight_is_finished_and_the_other_events_stay_in_the_queue() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_secs(2), 200));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    let events: Vec<_> = (0..21).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at("/", 1);

    let summary = check_exit(&mut notifier, Duration::from_secs(6));

    assert_eq!((summary.finished, summary.parked), (1, 0), "{summary:?}");
    // RabbitMQ may have sent one more once the first was acked.
    assert!(summary.handed_back <= 1, "{summary:?}");
    assert_eq!(receiver.requests().len(), 1);
    assert_eq!(receiver.requests()[0].id(), events[0].id);
    wait_until(SOON, "the others are ready again", || {
        sandbox.broker.ready(sandbox.queue()) == Some(20)
    });
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}

#[test]
fn a_request_that_fails_during_the_shutdown_is_still_parked() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Slow(Duration::from_secs(1), 500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let launch = || sandbox.notifier().env("RETRY_SCHEDULE", "1s");
    let mut notifier = launch().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);

    let summary = check_exit(&mut notifier, Duration::from_secs(6));
    assert_eq!(summary, Summary { finished: 1, parked: 1, handed_back: 0 });
    assert_eq!(sandbox.broker.ready(sandbox.queue()), Some(0), "it was requeued");

    let second = launch().start();
    receiver.wait_at("/", 2);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2);
}

#[test]
fn a_hanging_receiver_delays_the_shutdown_no_longer_than_a_request_may_take() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Hang,
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let launch = || {
        sandbox
            .notifier()
            .env("REQUEST_TIMEOUT", "2s")
            .env("CONNECT_TIMEOUT", "1s")
            .env("SHUTDOWN_TIMEOUT", "4s")
            .env("RETRY_SCHEDULE", "1s")
    };
    let mut notifier = launch().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/", 1);

    check_exit(&mut notifier, Duration::from_secs(6));

    let second = launch().start();
    assert_eq!(receiver.wait_at("/", 2)[1].id(), event.id);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2);
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Hang,
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut first =
        sandbox.notifier().env("REQUEST_TIMEOUT", "60s").env("SHUTDOWN_TIMEOUT", "90s").start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/", 1);
    first.signal(Signal::TERM);
    holds_for(Duration::from_millis(500), "it waits for the request", || first.is_running());

    first.signal(Signal::TERM);
    let exit = first.wait_exit(SOON);
    assert!(exit.took < Duration::from_secs(5), "{exit:?}");

    // Nothing is lost: the event wasn't acked.
    let second = sandbox.notifier().start();
    assert_eq!(receiver.wait_at("/", 2)[1].id(), event.id);
    second.terminate();
    sandbox.wait_drained();
}

/// An event for several webhooks, and SIGTERM during the first one's request.
#[track_caller]
fn check_interrupted_fan_out(capacity: u16) {
    let paths = ["/a", "/b", "/c", "/d", "/e", "/f"];
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_millis(700), 200));
    for path in paths {
        sandbox.webhook(&receiver.url(path), &["*"]);
    }
    let queues = format!("{}={capacity}", sandbox.queue());
    let launch = || sandbox.notifier().env("QUEUES", &queues);
    let mut first = launch().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "a first request", || !receiver.requests().is_empty());
    check_exit(&mut first, Duration::from_secs(16));

    let second = launch().env("RETRY_SCHEDULE", "1s").start();
    for path in paths {
        receiver.wait_at(path, 1);
    }
    second.terminate();
    sandbox.wait_drained();
    for path in paths {
        let requests = receiver.at(path);
        assert_eq!(requests.len(), 1, "requests at {path}");
        assert_eq!(requests[0].id(), event.id);
        assert_eq!(requests[0].body, event.body);
    }
}

#[test]
fn a_fan_out_interrupted_by_a_shutdown_reaches_each_webhook_once_over_both_runs() {
    check_interrupted_fan_out(1);
    check_interrupted_fan_out(4);
    check_interrupted_fan_out(64);
}

#[test]
fn a_lane_that_grows_when_the_signal_arrives_repeats_nothing() {
    let sandbox = Sandbox::new();
    let receivers: Vec<_> = (0..40)
        .map(|_| Receiver::answering(|_| Reply::Slow(Duration::from_secs(1), 200)))
        .collect();
    let mut events = Vec::new();
    for (n, receiver) in receivers.iter().enumerate() {
        let kind = format!("kind.{n}");
        sandbox.webhook(&receiver.url("/"), &[&kind]);
        events.push(Event::new(&kind));
    }
    let launch = || sandbox.notifier().env("RETRY_SCHEDULE", "1s,repeat");
    let mut first = launch().start();
    sandbox.broker.publish(sandbox.queue(), &events);
    let with_request =
        || receivers.iter().filter(|receiver| !receiver.requests().is_empty()).count();
    wait_until(SOON, "some are in flight", || with_request() >= 5);

    let summary = check_exit(&mut first, Duration::from_secs(12));
    assert!(summary.finished >= 1, "{summary:?}");

    let second = launch().start();
    wait_until(SOON, "all have a request", || with_request() == receivers.len());
    second.terminate();
    sandbox.wait_drained();
    for (receiver, event) in receivers.iter().zip(&events) {
        let requests = receiver.requests();
        assert_eq!(requests.len(), 1, "{summary:?}");
        assert_eq!(requests[0].id(), event.id);
    }
}

#[test]
fn events_taken_over_from_a_stuck_consumer_are_neither_lost_nor_repeated() {
    let sandbox = Sandbox::new();
    let stuck = Receiver::answering(|_| Reply::Slow(Duration::from_secs(3), 200));
    let healthy = Receiver::answering(|_| Reply::Slow(Duration::from_millis(50), 200));
    sandbox.webhook(&stuck.url("/"), &["stuck"]);
    sandbox.webhook(&healthy.url("/"), &["healthy"]);
    let mut events = vec![Event::new("stuck")];
    events.extend((0..60).map(|_| Event::new("healthy")));
    sandbox.broker.publish(sandbox.queue(), &events);
    let launch =
        || sandbox.notifier().env("PREFETCH_COUNT", "64").env("RETRY_SCHEDULE", "100ms,repeat");
    let mut first = launch().start();
    stuck.wait_at("/", 1);
    healthy.wait_at("/", 3);
    check_exit(&mut first, Duration::from_secs(12));

    let second = launch().start();
    wait_until(SOON, "all arrive", || healthy.requests().len() + stuck.requests().len() >= 61);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(stuck.requests().len(), 1);
    for event in &events[1..] {
        assert_eq!(healthy.of("/", event).len(), 1);
    }
}

#[test]
fn nothing_is_taken_over_from_a_stuck_consumer_after_the_signal() {
    let sandbox = Sandbox::new();
    let stuck = Receiver::answering(|_| Reply::Slow(Duration::from_secs(4), 200));
    let healthy = Receiver::answering(|_| Reply::Slow(Duration::from_millis(200), 200));
    sandbox.webhook(&stuck.url("/"), &["stuck"]);
    sandbox.webhook(&healthy.url("/"), &["healthy"]);
    let queues = format!("{}=1024", sandbox.queue());
    let launch = || {
        sandbox
            .notifier()
            .env("QUEUES", &queues)
            .env("PREFETCH_COUNT", "1000")
            .env("RETRY_SCHEDULE", "100ms,repeat")
    };
    let mut first = launch().start();
    // Until its first answer a receiver gets one request at a time.
    sandbox.publish(&Event::new("healthy"));
    first.wait_metric("webhook_request_success_total", &[], 1.0);
    // Those prefetched behind the first would wait for it if no other thread took them over.
    let mut events = vec![Event::new("stuck")];
    events.extend((0..600).map(|_| Event::new("healthy")));
    sandbox.broker.publish(sandbox.queue(), &events);
    stuck.wait_at("/", 1);
    healthy.wait_at("/", 3);
    let signalled = Instant::now();
    check_exit(&mut first, Duration::from_secs(12));

    // It takes a while until every thread has noticed the signal.
    let limit = signalled + Duration::from_secs(1);
    let late = healthy.requests().iter().filter(|request| request.at > limit).count();
    assert_eq!(late, 0, "requests begun long after the signal");
    let second = launch().start();
    wait_until(LATER, "all arrive", || healthy.requests().len() >= 601);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!((stuck.requests().len(), healthy.requests().len()), (1, 601));
}

/// SIGTERM while deliveries to prompt receivers wait for the capacity of one, which a slow one uses.
#[track_caller]
fn check_interrupted_wait(slow_kind: &str, prompt_kind: &str) {
    let sandbox = Sandbox::new();
    let slow = Receiver::answering(|_| Reply::Slow(Duration::from_secs(2), 200));
    let prompt: Vec<_> = (0..3).map(|_| Receiver::new()).collect();
    for receiver in &prompt {
        sandbox.webhook(&receiver.url("/"), &["warm.up", prompt_kind]);
    }
    sandbox.webhook(&slow.url("/"), &[slow_kind]);
    let launch = || {
        sandbox
            .notifier()
            .env("QUEUES", sandbox.one_at_a_time())
            .env("PREFETCH_COUNT", "8")
            .env("RETRY_SCHEDULE", "100ms,repeat")
    };
    let mut first = launch().start();
    sandbox.publish(&Event::new("warm.up"));
    first.wait_metric("webhook_request_success_total", &[], 3.0);
    let mut events = vec![Event::new(slow_kind)];
    if slow_kind != prompt_kind {
        events.extend((0..3).map(|_| Event::new(prompt_kind)));
    }
    sandbox.broker.publish(sandbox.queue(), &events);
    slow.wait_at("/", 1);
    if slow_kind != prompt_kind {
        let received = || first.metric("webhook_events_received_total", &[]) >= 3.0;
        wait_until(SOON, "the next event is received", received);
    }

    check_exit(&mut first, Duration::from_secs(8));

    let second = launch().start();
    for receiver in &prompt {
        receiver.wait_at("/", events.len().max(2));
    }
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(slow.requests().len(), 1);
    for receiver in &prompt {
        for event in events.iter().skip(usize::from(slow_kind != prompt_kind)) {
            assert_eq!(receiver.of("/", event).len(), 1);
        }
    }
}

#[test]
fn deliveries_that_wait_for_capacity_at_the_signal_are_neither_lost_nor_repeated() {
    check_interrupted_wait("slow", "prompt");
    check_interrupted_wait("all", "all");
}
