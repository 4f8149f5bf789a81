//! A receiver that fails or keeps us waiting is left alone, and its neighbours notice nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    DeadLetter, Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, holds_for, wait_until,
};

fn held(notifier: &Notifier, queue: &str, reason: &str) -> f64 {
    let labels = [("queue", queue), ("reason", reason)];
    notifier.metric("webhook_deliveries_held_total", &labels)
}

/// Answers 500 until it is mended.
fn broken() -> (Receiver, Arc<AtomicBool>) {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let receiver = Receiver::answering(move |_| {
        Reply::Status(if is_mended.load(Ordering::Relaxed) { 200 } else { 500 })
    });
    (receiver, mended)
}

/// Answers 200 after it has waited, and counts how many requests it has had at once.
pub(crate) fn counting(wait: impl Fn() + Send + Sync + 'static) -> (Receiver, Arc<AtomicUsize>) {
    let at_once = AtomicUsize::new(0);
    let most = Arc::new(AtomicUsize::new(0));
    let peak = Arc::clone(&most);
    let receiver = Receiver::answering(move |_| {
        peak.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        wait();
        at_once.fetch_sub(1, Ordering::SeqCst);
        Reply::Status(200)
    });
    (receiver, most)
}

#[test]
fn a_degraded_receiver_gets_its_first_attempts_in_the_retry_lane_until_a_quick_success() {
    let sandbox = Sandbox::new();
    let (receiver, mended) = broken();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1s,1h").start();
    let successes =
        |queue: &str| notifier.metric("webhook_request_success_total", &[("queue", queue)]);

    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_receivers_degraded", &[], 1.0);
    mended.store(true, Ordering::Relaxed);
    sandbox.publish(&Event::new("order.paid"));
    wait_until(SOON, "both arrive in the retry lane", || successes(&sandbox.retry_queue()) == 2.0);
    assert_eq!(held(&notifier, sandbox.queue(), "degraded"), 1.0);
    assert_eq!(notifier.metric("webhook_receivers_degraded", &[]), 0.0);

    sandbox.publish(&Event::new("order.paid"));
    wait_until(SOON, "the third arrives at once", || successes(sandbox.queue()) == 1.0);
    assert_eq!(receiver.requests().len(), 4);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn receivers_that_never_answer_delay_nobody_from_the_first_event_on() {
    let sandbox = Sandbox::alone(1);
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/hanging-a" | "/hanging-b" => Reply::Hang,
        "/slow" => Reply::Slow(Duration::from_secs(2), 200),
        _ => Reply::Status(200),
    });
    for (path, kind) in
        [("/hanging-a", "a"), ("/hanging-b", "b"), ("/slow", "slow"), ("/healthy", "healthy")]
    {
        sandbox.webhook(&receiver.url(path), &[kind]);
    }
    let queues = format!("{}=8", sandbox.queue());
    let notifier = sandbox.notifier().env("QUEUES", queues).start();

    // They all come at once: nothing is known of anybody.
    let kinds = ["a", "b", "slow", "healthy"];
    let events: Vec<_> = (0..120).map(|n| Event::new(kinds[n % kinds.len()])).collect();
    let published = Instant::now();
    sandbox.broker.publish(sandbox.queue(), &events);

    let last = receiver.wait_at("/healthy", 30)[29].at - published;
    // If each of the others had its request, they would fill eight consumers for over a minute.
    assert!(last < Duration::from_secs(8), "the last of the healthy came after {last:?}");
    wait_until(SOON, "the others are held back", || {
        held(&notifier, sandbox.queue(), "bulkhead") + held(&notifier, sandbox.queue(), "degraded")
            >= 50.0
    });
}

#[test]
fn a_receiver_that_keeps_us_waiting_gets_a_quarter_of_each_lanes_consumers() {
    let sandbox = Sandbox::new();
    // It answers too slowly for anybody, and too fast to be degraded.
    let (receiver, most) = counting(|| thread::sleep(Duration::from_millis(600)));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let queues = format!("{}=8", sandbox.queue());
    let notifier =
        sandbox.notifier().env("QUEUES", queues).env("RETRY_SCHEDULE", "200ms,repeat").start();

    let first = Event::new("order.paid");
    sandbox.publish(&first);
    receiver.wait_at("/", 1);
    // Until then it counts as prompt.
    let since = receiver.requests()[0].at;
    wait_until(SOON, "it keeps us waiting", || since.elapsed() > Duration::from_millis(150));
    let events: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    wait_until(LATER, "all arrive", || receiver.requests().len() == 21);
    notifier.wait_metric("webhook_request_success_total", &[], 21.0);
    // Two in the lane of the events, two in that of the retries.
    let most = most.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} requests at once");
    assert!(held(&notifier, sandbox.queue(), "bulkhead") >= 1.0);
    assert!(held(&notifier, &sandbox.retry_queue(), "bulkhead") >= 1.0);
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0, "nothing failed");
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 21, "each once");
}

#[test]
fn a_breaker_opens_probes_and_closes_and_says_so() {
    let sandbox = Sandbox::new();
    let (receiver, mended) = broken();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "5,2s,4s")
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .start();
    let events: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    let line = notifier.wait_stderr(SOON, "circuit breaker open");
    assert!(line.contains(&format!("webhook={webhook} for=2s")), "{line}");
    assert_eq!(notifier.metric("webhook_circuit_breakers_open", &[]), 1.0);
    let requests = receiver.wait_at_within(LATER, "/", 7);
    for (nth, earliest) in [(5, 2_000), (6, 4_000)] {
        let gap = requests[nth].at - requests[nth - 1].at;
        assert!(gap >= Duration::from_millis(earliest), "request {nth} came after {gap:?}");
    }
    mended.store(true, Ordering::Relaxed);
    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 20.0
    });

    notifier.wait_stderr(SOON, "circuit breaker closed");
    let state =
        |state| notifier.metric("webhook_circuit_breaker_transitions_total", &[("state", state)]);
    // Twice a probe failed: then one succeeded, or there was one more failure before it.
    let opened = state("open");
    assert!((3.0..=4.0).contains(&opened), "{opened}");
    assert_eq!((state("half_open"), state("closed")), (opened, 1.0));
    assert_eq!(notifier.metric("webhook_circuit_breakers_open", &[]), 0.0);
    assert!(held(&notifier, &sandbox.retry_queue(), "breaker") >= 15.0);
    notifier.terminate();
    sandbox.wait_drained();
    for event in &events {
        let attempts = receiver.of("/", event).len();
        assert!((1..=8).contains(&attempts), "{attempts} attempts of one event");
    }
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
        let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", "2s,1h").start();

        sandbox.publish(&Event::new("order.paid"));
        notifier.wait_stderr(SOON, "attempt failed");
        let events: Vec<_> = (0..5).map(|_| Event::new("order.paid")).collect();
        sandbox.broker.publish(sandbox.queue(), &events);
        wait_until(SOON, "the others are held back", || {
            held(&notifier, sandbox.queue(), "retry_after") == 5.0
        });

        let requests = receiver.wait_at("/", 7);
        let gap = requests[1].at - requests[0].at;
        // The 2 % that a broker's clock may be ahead.
        assert!(gap >= Duration::from_millis(1_950), "{status}: asked again after {gap:?}");
        notifier.terminate();
        sandbox.wait_drained();
        assert_eq!(receiver.requests().len(), 7, "{status}: each of the others once");
    }
}

#[test]
fn what_is_held_back_backs_off_counts_no_attempt_and_expires() {
    let sandbox = Sandbox::new();
    let (receiver, _) = broken();
    let webhook = sandbox.webhook(&receiver.url("/"), &["order.*"]);
    let notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,1m,1m")
        .env("RETRY_SCHEDULE", "700ms,1m,repeat")
        .env("DELIVERY_MAX_AGE", "500ms")
        .start();
    // Two events, two failures: open.
    sandbox.publish(&Event::new("order.first"));
    sandbox.publish(&Event::new("order.second"));
    notifier.wait_metric("webhook_circuit_breakers_open", &[], 1.0);
    let attempts = receiver.requests().len();

    let event = Event::new("order.third");
    sandbox.publish(&event);
    wait_until(SOON, "it waits", || held(&notifier, sandbox.queue(), "breaker") == 1.0);
    let died = |reason| notifier.metric("webhook_dead_letters_total", &[("reason", reason)]);
    // The pause is a minute. The first two come back sooner, too old to wait once more.
    wait_until(SOON, "the first two expire", || died("expired") == 2.0);
    assert_eq!(receiver.requests().len(), attempts, "no attempt while the breaker is open");
    for kind in ["order.first", "order.second"] {
        let letter = sandbox.take_dead();
        assert_eq!(letter.text("x-dead-reason"), "expired");
        assert_eq!(letter.text("x-event-type"), kind);
        assert_eq!(letter.text("x-webhook-id"), webhook.to_string());
        assert_eq!(letter.number("x-attempt"), Some(1));
        assert_eq!(letter.number("x-deferrals"), Some(1));
        assert_eq!(letter.text("x-last-error"), "status 500");
    }
    holds_for(Duration::from_millis(500), "the third waits for the breaker", || {
        died("expired") == 2.0 && receiver.of("/", &event).is_empty()
    });
}

#[test]
fn a_delivery_that_never_had_an_attempt_says_why_it_died() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| {
        // The first event is older than DELIVERY_MAX_AGE by the time it has failed.
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

    // Published long ago, as far as its headers say: handed over, and not attempted since.
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
        "no attempt yet: the receiver asked us to stay away"
    );
    assert_eq!(letters[1].text("x-event-id"), first.id);
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn an_event_that_very_many_want_is_split_and_each_gets_it_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/7" if request.attempt == 1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    for n in 0..300 {
        sandbox.webhook(&receiver.url(&format!("/{n}")), &["order.*"]);
    }
    let mut notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=4", sandbox.queue()))
        .env("FANOUT_INLINE", "299")
        .env("RETRY_SCHEDULE", "200ms")
        .start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);

    let line = notifier.wait_stderr(SOON, "event split");
    assert!(line.contains(&format!("event={} webhooks=300", event.id)), "{line}");
    wait_until(LATER, "all have it", || {
        notifier.metric("webhook_request_success_total", &[]) == 300.0
    });
    assert_eq!(held(&notifier, sandbox.queue(), "split"), 300.0);
    let queue = [("queue", sandbox.queue())];
    assert_eq!(notifier.metric("webhook_request_success_total", &queue), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    for n in 0..300 {
        let requests = receiver.of(&format!("/{n}"), &event);
        assert_eq!(requests.len(), if n == 7 { 2 } else { 1 }, "requests at /{n}");
        assert_eq!(requests[0].body, event.body);
    }
}

#[test]
fn a_dead_letter_of_a_receiver_that_was_held_back_starts_over_when_it_is_replayed() {
    let sandbox = Sandbox::new();
    let (receiver, mended) = broken();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("DELIVERY_MAX_AGE", "1s")
        .start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "expired")], 1.0);

    mended.store(true, Ordering::Relaxed);
    let before = receiver.requests().len();
    let replayed = sandbox.command(&["dead-letters", "replay", "--reason", "expired"]);
    assert_eq!(replayed.code, Some(0), "{replayed:?}");
    receiver.wait_at("/", before + 1);
    sandbox.wait_drained();

    // And what can't be delivered keeps saying so.
    mended.store(false, Ordering::Relaxed);
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
