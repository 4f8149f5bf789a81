//! A receiver that fails or is overloaded: its circuit breaker, `Retry-After`, and what becomes of the
//! deliveries that are held back.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{InFlight, held};
use crate::harness::{
    DeadLetter, Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, wait_until,
};

#[test]
fn a_receiver_that_fails_occasionally_keeps_its_breaker_closed_and_gets_every_event() {
    let sandbox = Sandbox::new();
    let firsts = AtomicUsize::new(0);
    // Of every twenty events, six in a row fail.
    let receiver = Receiver::answering(move |request| {
        let fails = request.attempt == 1 && firsts.fetch_add(1, Ordering::SeqCst) % 20 < 6;
        Reply::Status(if fails { 500 } else { 200 })
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    let events: Vec<_> = (0..300).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 300.0
    });
    let failures = notifier.metric("webhook_request_failure_total", &[]);
    assert_eq!(failures, 90.0);
    assert_eq!(notifier.metric("webhook_circuit_breaker_transitions_total", &[]), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 390);
}

/// What a receiver measured when a request arrived.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Requests in flight, including this one.
    in_flight: usize,
    /// How many had been answered before.
    answered: u32,
}

/// Records this for each request, from a given moment on.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<(usize, u32, Vec<Seen>)>>);

impl Watched {
    /// Records a request, which is in flight for this time.
    fn during(&self, time: Duration) {
        {
            let (in_flight, answered, seen) = &mut *self.0.lock().expect("no holder panics");
            *in_flight += 1;
            seen.push(Seen { in_flight: *in_flight, answered: *answered });
        }
        thread::sleep(time);
        let (in_flight, answered, _) = &mut *self.0.lock().expect("no holder panics");
        *in_flight -= 1;
        *answered += 1;
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().expect("no holder panics").2.clone()
    }
}

#[test]
fn a_breaker_opens_after_a_second_of_failures_probes_closes_and_the_requests_ramp_up() {
    let sandbox = Sandbox::alone(1);
    let fixed = Arc::new(AtomicBool::new(false));
    let watched = Watched::default();
    let receiver = Receiver::answering({
        let (fixed, watched) = (Arc::clone(&fixed), watched.clone());
        move |_| match fixed.load(Ordering::SeqCst) {
            true => {
                watched.during(Duration::from_millis(200));
                Reply::Status(200)
            }
            false => Reply::Status(500),
        }
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "5,100ms,1m")
        .env("RETRY_SCHEDULE", "200ms,repeat")
        .start();
    let events: Vec<_> = (0..30).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    let line = notifier.wait_stderr(SOON, "circuit breaker open");
    assert!(line.contains(&format!("webhook={webhook} for=")), "{line}");
    let before = receiver.requests();
    let outage = before[before.len() - 1].at - before[0].at;
    // It began with the first request, a little before that arrived.
    assert!(outage >= Duration::from_millis(900), "open after {outage:?}");
    assert!(before.len() > 5, "{} failures in a row", before.len());
    assert_eq!(notifier.metric("webhook_circuit_breakers_open", &[]), 1.0);

    let state = |notifier: &Notifier, state: &str| {
        notifier.metric("webhook_circuit_breaker_transitions_total", &[("state", state)])
    };
    wait_until(LATER, "four probes fail", || state(&notifier, "open") >= 5.0);
    fixed.store(true, Ordering::SeqCst);
    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 30.0
    });
    notifier.wait_stderr(SOON, "circuit breaker closed");

    let requests = receiver.requests();
    let failed = requests.len() - watched.seen().len();
    let began = requests[0].at;
    for pair in requests[failed.saturating_sub(4)..=failed].windows(2) {
        let (outage, pause) = (pair[0].at - began, pair[1].at - pair[0].at);
        // A quarter of the outage, which jitter shortens by up to a fifth, and then until the next
        // delivery is due.
        assert!(pause >= outage.mul_f64(0.19), "{pause:?} after {outage:?}");
        assert!(pause <= outage / 2 + Duration::from_secs(5), "{pause:?} after {outage:?}");
    }
    for seen in watched.seen() {
        // After the probe there is one request at a time, and each success doubles that.
        let most = 1_usize << seen.answered.saturating_sub(1).min(10);
        assert!(seen.in_flight <= most, "{seen:?}");
    }
    assert_eq!(state(&notifier, "half_open"), state(&notifier, "open"));
    assert_eq!(state(&notifier, "closed"), 1.0);
    assert_eq!(notifier.metric("webhook_circuit_breakers_open", &[]), 0.0);
    assert!(held(&notifier, &sandbox.retry_queue(), "breaker") >= 20.0);
    notifier.terminate();
    sandbox.wait_drained();
    for event in &events {
        assert!(!receiver.of("/", event).is_empty(), "an event without an attempt");
    }
}

#[test]
fn an_overloaded_receiver_gets_half_as_many_requests() {
    let sandbox = Sandbox::alone(1);
    // While overloaded, it collects requests to refuse them together.
    let overloaded = Arc::new(AtomicBool::new(false));
    let gathered = InFlight::default();
    let watched = Watched::default();
    let receiver = Receiver::answering({
        let (overloaded, gathered) = (Arc::clone(&overloaded), gathered.clone());
        let watched = watched.clone();
        move |_| {
            if !overloaded.load(Ordering::SeqCst) {
                watched.during(Duration::from_millis(100));
                return Reply::Status(200);
            }
            gathered.during(|| {
                let since = Instant::now();
                // Less than the second after which it would count as slow.
                while gathered.now() < 16 && since.elapsed() < Duration::from_millis(600) {
                    thread::sleep(Duration::from_millis(5));
                }
                overloaded.store(false, Ordering::SeqCst);
                // So that all of them are counted before the first one ends.
                thread::sleep(Duration::from_millis(100));
            });
            Reply::Status(503)
        }
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=32", sandbox.queue()))
        .env("RETRY_SCHEDULE", "1s,repeat")
        .env("CIRCUIT_BREAKER", "off")
        .start();
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_request_success_total", &[], 1.0);

    overloaded.store(true, Ordering::SeqCst);
    let events: Vec<_> = (0..40).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 41.0
    });
    let refused = gathered.most();
    assert!(refused >= 2, "only {refused} were refused together");
    for seen in &watched.seen()[1..] {
        // Half of the refused ones, and one more with each success.
        let most = refused.div_ceil(2) + seen.answered as usize;
        assert!(seen.in_flight <= most, "{seen:?} after {refused} were refused");
    }
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn the_failures_of_one_event_alone_open_no_breaker() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1..=8 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,repeat").start();

    sandbox.publish(&Event::new("order.paid"));

    receiver.wait_at("/", 9);
    let state = [("state", "open")];
    assert_eq!(notifier.metric("webhook_circuit_breaker_transitions_total", &state), 0.0);
}

#[test]
fn retry_after_holds_the_whole_receiver_back() {
    for status in [429, 502, 503, 504] {
        let sandbox = Sandbox::new();
        let asked = AtomicBool::new(false);
        let receiver = Receiver::answering(move |_| match asked.swap(true, Ordering::SeqCst) {
            false => Reply::WithHeaders(status, vec![("retry-after", String::from("2"))]),
            true => Reply::Status(200),
        });
        sandbox.webhook(&receiver.url("/"), &["*"]);
        let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", "2s,repeat").start();

        sandbox.publish(&Event::new("order.paid"));
        notifier.wait_stderr(SOON, "attempt failed");
        let events: Vec<_> = (0..5).map(|_| Event::new("order.paid")).collect();
        sandbox.broker.publish(sandbox.queue(), &events);
        wait_until(SOON, "the other events are held back", || {
            let held = |why| held(&notifier, sandbox.queue(), why);
            held("retry_after") + held("behind") == 5.0
        });

        let requests = receiver.wait_at("/", 7);
        let gap = requests[1].at - requests[0].at;
        assert!(gap >= Duration::from_secs(2), "{status}: the next request after {gap:?}");
        notifier.terminate();
        sandbox.wait_drained();
        assert_eq!(receiver.requests().len(), 7, "{status}: each other event once");
    }
}

#[test]
fn a_delivery_that_is_held_back_counts_no_attempt_and_expires() {
    let sandbox = Sandbox::new();
    let (receiver, _) = Receiver::failing(500);
    let webhook = sandbox.webhook(&receiver.url("/"), &["order.*"]);
    let notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,1m,1m")
        .env("RETRY_SCHEDULE", "4s,1m,repeat")
        .env("DELIVERY_MAX_AGE", "3s")
        .start();
    // The breaker opens at the failure of a second event, a second after the first one.
    sandbox.publish(&Event::new("order.first"));
    let first = receiver.wait_at("/", 1)[0].at;
    wait_until(SOON, "a second is over", || first.elapsed() > Duration::from_millis(1_100));
    sandbox.publish(&Event::new("order.second"));
    notifier.wait_metric("webhook_circuit_breakers_open", &[], 1.0);
    let attempts = receiver.requests().len();

    let event = Event::new("order.third");
    sandbox.publish(&event);
    wait_until(SOON, "it waits", || held(&notifier, sandbox.queue(), "breaker") == 1.0);
    let died = |reason| notifier.metric("webhook_dead_letters_total", &[("reason", reason)]);
    // The breaker stays open for a minute. The first two events return from their wait queue, too old for
    // the backlog; the third becomes too old there.
    wait_until(SOON, "all expire", || died("expired") == 3.0);
    assert_eq!(receiver.requests().len(), attempts, "no attempt while the breaker is open");
    let mut letters: Vec<_> = (0..3).map(|_| sandbox.take_dead()).collect();
    letters.sort_by_key(|letter| letter.text("x-event-type").to_owned());
    let failed = (Some(1), "status 500");
    let expected = [
        ("order.first", failed),
        ("order.second", failed),
        ("order.third", (Some(0), "no attempt yet: the receiver's circuit breaker is open")),
    ];
    for (letter, (kind, (attempts, last_error))) in letters.iter().zip(expected) {
        assert_eq!(letter.text("x-dead-reason"), "expired");
        assert_eq!(letter.text("x-event-type"), kind);
        assert_eq!(letter.text("x-webhook-id"), webhook.to_string());
        assert_eq!(letter.number("x-attempt"), attempts);
        assert_eq!(letter.text("x-last-error"), last_error);
    }
    assert!(receiver.of("/", &event).is_empty());
}

#[test]
fn a_delivery_that_never_had_an_attempt_says_why_it_died() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| {
        // The first event is older than DELIVERY_MAX_AGE when it has failed.
        thread::sleep(Duration::from_millis(20));
        Reply::WithHeaders(503, vec![("retry-after", String::from("3600"))])
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "1s,1h")
        .env("CIRCUIT_BREAKER", "off")
        .env("DELIVERY_MAX_AGE", "1ms")
        .start();
    let first = Event::new("order.paid");
    sandbox.publish(&first);
    notifier.wait_stderr(SOON, "attempt failed");

    // According to its headers, this delivery was handed over long ago, and never attempted.
    let event = Event::new("order.paid");
    let headers = [
        ("x-event-id", event.id.clone()),
        ("x-event-type", "order.paid".to_owned()),
        ("x-webhook-id", webhook.to_string()),
        ("x-last-error", String::new()),
        ("x-origin-queue", sandbox.queue().to_owned()),
    ];
    let mut table = amiquip::FieldTable::new();
    for (name, value) in headers {
        table.insert(name.to_owned(), amiquip::AmqpValue::LongString(value));
    }
    for (name, value) in [("x-attempt", 0), ("x-first-received-at", 1_000)] {
        table.insert(name.to_owned(), amiquip::AmqpValue::LongLongInt(value));
    }
    let parked = event.headers(table);
    sandbox.broker.publish(&sandbox.retry_queue(), std::slice::from_ref(&parked));

    let line = notifier.wait_stderr(SOON, "delivery dead");
    assert!(line.contains("reason=expired"), "{line}");
    let mut letters = [sandbox.take_dead(), sandbox.take_dead()];
    letters.sort_by_key(|letter| letter.number("x-attempt"));
    assert_eq!(letters[0].text("x-event-id"), parked.id);
    assert_eq!(letters[0].number("x-attempt"), Some(0));
    assert_eq!(
        letters[0].text("x-last-error"),
        "no attempt yet: the receiver asked us to wait (Retry-After)"
    );
    assert_eq!(letters[1].text("x-event-id"), first.id);
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn a_dead_letter_that_expired_starts_over_when_it_is_replayed() {
    let sandbox = Sandbox::new();
    let (receiver, fixed) = Receiver::failing(500);
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("DELIVERY_MAX_AGE", "1s")
        .start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "expired")], 1.0);

    fixed.store(true, Ordering::Relaxed);
    let before = receiver.requests().len();
    let replayed = sandbox.command(&["dead-letters", "replay", "--reason", "expired"]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    receiver.wait_at("/", before + 1);
    sandbox.wait_drained();

    // What can't be delivered still becomes visible.
    fixed.store(false, Ordering::Relaxed);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "expired")], 2.0);
    let attempts = i64::try_from(receiver.of("/", &event).len()).expect("a few");
    sandbox.expect_dead(&DeadLetter {
        event: &event,
        kind: "order.paid",
        webhook,
        reason: "expired",
        attempts,
    });
}
