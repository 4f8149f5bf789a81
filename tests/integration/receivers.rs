//! A receiver that fails or answers slowly is left alone, and its neighbours aren't affected.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    DeadLetter, Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, wait_until,
};

fn held(notifier: &Notifier, queue: &str, reason: &str) -> f64 {
    let labels = [("queue", queue), ("reason", reason)];
    notifier.metric("webhook_deliveries_held_total", &labels)
}

/// Answers 500 until it is fixed.
fn broken() -> (Receiver, Arc<AtomicBool>) {
    let mended = Arc::new(AtomicBool::new(false));
    let is_mended = Arc::clone(&mended);
    let receiver = Receiver::answering(move |_| {
        Reply::Status(if is_mended.load(Ordering::Relaxed) { 200 } else { 500 })
    });
    (receiver, mended)
}

/// Counts requests under way, at one receiver or several.
#[derive(Clone, Default)]
struct AtOnce {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl AtOnce {
    /// Waits while a request is under way.
    fn during(&self, wait: impl FnOnce()) {
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        wait();
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn now(&self) -> usize {
        self.now.load(Ordering::SeqCst)
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Forgets the maximum.
    fn reset(&self) {
        self.most.store(0, Ordering::SeqCst);
    }
}

/// Answers 200 after a wait, and counts how many requests it had at once.
pub(crate) fn counting(wait: impl Fn() + Send + Sync + 'static) -> (Receiver, Arc<AtomicUsize>) {
    let at_once = AtOnce::default();
    let most = Arc::clone(&at_once.most);
    let receiver = Receiver::answering(move |_| {
        at_once.during(&wait);
        Reply::Status(200)
    });
    (receiver, most)
}

#[test]
fn with_the_default_settings_receivers_that_never_answer_delay_nobody() {
    let sandbox = Sandbox::alone(1);
    let hanging: Vec<_> = (0..6).map(|_| Receiver::answering(|_| Reply::Hang)).collect();
    let healthy = Receiver::new();
    let mut kinds = Vec::new();
    for (n, receiver) in hanging.iter().enumerate() {
        kinds.push(format!("hanging.{n}"));
        sandbox.webhook(&receiver.url("/"), &[&kinds[n]]);
    }
    kinds.push(String::from("healthy"));
    sandbox.webhook(&healthy.url("/"), &["healthy"]);
    let notifier = sandbox.notifier().start();
    let one_of_each = || kinds.iter().map(|kind| Event::new(kind)).collect::<Vec<_>>();
    // REQUEST_TIMEOUT is ten seconds.
    let limit = Duration::from_secs(5);

    // Nothing is known about any receiver yet.
    let published = Instant::now();
    let events: Vec<_> = (0..10).flat_map(|_| one_of_each()).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    let last = healthy.wait_at("/", 10)[9].at - published;
    assert!(last < limit, "the last of the first came after {last:?}");

    for n in 11..=60 {
        let published = Instant::now();
        sandbox.broker.publish(sandbox.queue(), &one_of_each());
        let took = healthy.wait_at("/", n)[n - 1].at.saturating_duration_since(published);
        assert!(took < limit, "event {n} came after {took:?}");
    }
    for receiver in &hanging {
        assert!(!receiver.requests().is_empty(), "each was asked");
    }
    assert!(held(&notifier, sandbox.queue(), "unproven") >= 1.0);
    notifier.kill();
}

#[test]
fn an_event_for_many_hanging_receivers_reaches_a_healthy_one_at_once_and_so_does_the_next() {
    let sandbox = Sandbox::alone(1);
    let hanging: Vec<_> = (0..30).map(|_| Receiver::answering(|_| Reply::Hang)).collect();
    let healthy = Receiver::new();
    for receiver in &hanging[..15] {
        sandbox.webhook(&receiver.url("/"), &["*"]);
    }
    sandbox.webhook(&healthy.url("/"), &["*"]);
    for receiver in &hanging[15..] {
        sandbox.webhook(&receiver.url("/"), &["*"]);
    }
    let notifier = sandbox.notifier().start();

    for n in 1..=3 {
        let published = Instant::now();
        sandbox.publish(&Event::new("order.paid"));
        let took = healthy.wait_at("/", n)[n - 1].at - published;
        assert!(took < Duration::from_secs(5), "event {n} came after {took:?}");
    }
    wait_until(SOON, "each hanging one is asked, too", || {
        hanging.iter().all(|receiver| !receiver.requests().is_empty())
    });
    notifier.kill();
}

#[test]
fn a_lane_grows_while_its_consumers_are_stuck_and_shrinks_to_one_afterwards() {
    let sandbox = Sandbox::new();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let receivers: Vec<_> = (0..6)
        .map(|_| {
            let released = released.clone();
            Receiver::answering(move |_| {
                let _ = released.recv_timeout(SOON);
                Reply::Status(200)
            })
        })
        .collect();
    for (n, receiver) in receivers.iter().enumerate() {
        sandbox.webhook(&receiver.url("/"), &[&format!("kind.{n}")]);
    }
    let notifier =
        sandbox.notifier().env("REQUEST_TIMEOUT", "1m").env("SHUTDOWN_TIMEOUT", "1m").start();
    let consumers = |queue: &str| {
        let consumers = notifier.metric("webhook_lane_consumers", &[("queue", queue)]);
        (consumers, sandbox.broker.consumers(queue))
    };
    wait_until(SOON, "it begins with one", || consumers(sandbox.queue()) == (1.0, Some(1)));

    let events: Vec<_> = (0..6).map(|n| Event::new(&format!("kind.{n}"))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    for receiver in &receivers {
        receiver.wait_at("/", 1);
    }
    wait_until(SOON, "one is free beside those that are stuck", || {
        let (told, seen) = consumers(sandbox.queue());
        told >= 7.0 && seen >= Some(7)
    });
    assert_eq!(consumers(&sandbox.retry_queue()), (1.0, Some(1)), "which has nothing to do");

    drop(release);
    // The surplus consumers end within half a minute.
    wait_until(LATER, "one is left", || consumers(sandbox.queue()) == (1.0, Some(1)));
    assert_eq!(notifier.metric("webhook_request_success_total", &[]), 6.0);
    notifier.terminate();
    sandbox.wait_drained();
    for receiver in &receivers {
        assert_eq!(receiver.requests().len(), 1);
    }
}

/// How many events a distant receiver gets at a time, if the queue has that capacity.
#[track_caller]
fn most_at_once(capacity: Option<u16>, events: usize) -> usize {
    let sandbox = Sandbox::new();
    let (receiver, most) = counting(|| thread::sleep(Duration::from_millis(200)));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut launch = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,repeat");
    if let Some(capacity) = capacity {
        launch = launch.env("QUEUES", format!("{}={capacity}", sandbox.queue()));
    }
    let notifier = launch.start();
    // Until its first answer it gets one request at a time.
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_request_success_total", &[], 1.0);

    let events: Vec<_> = (0..events).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at_within(LATER, "/", events.len() + 1);
    notifier.wait_metric("webhook_request_success_total", &[], events.len() as f64 + 1.0);
    assert_eq!(notifier.metric("webhook_request_failure_total", &[]), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    for event in &events {
        assert_eq!(receiver.of("/", event).len(), 1, "requests of one event");
    }
    most.load(Ordering::SeqCst)
}

#[test]
fn a_distant_receiver_gets_many_concurrent_requests_and_at_most_half_of_the_capacity() {
    let most = most_at_once(None, 300);
    assert!((12..=32).contains(&most), "{most} at once of 64");
    let most = most_at_once(Some(8), 40);
    assert!((3..=4).contains(&most), "{most} at once of 8");
}

#[test]
fn the_webhooks_of_one_account_get_at_most_three_quarters_of_the_capacity() {
    let sandbox = Sandbox::new();
    let at_once = AtOnce::default();
    let stays = Arc::new(AtomicBool::new(false));
    let receivers: Vec<_> = (0..20)
        .map(|_| {
            let (at_once, stays) = (at_once.clone(), Arc::clone(&stays));
            Receiver::answering(move |_| {
                let stays = stays.load(Ordering::SeqCst);
                // Less than the second from which a receiver counts as slow.
                at_once
                    .during(|| thread::sleep(Duration::from_millis(if stays { 700 } else { 20 })));
                Reply::Status(200)
            })
        })
        .collect();
    for receiver in &receivers {
        let id = sandbox.webhook(&receiver.url("/"), &["order.paid"]);
        sandbox.database.execute("UPDATE webhooks SET account = 'acme' WHERE id = $1", &[&id]);
    }
    let of_acme = || Event::new("order.paid").body(r#"{"account":"acme"}"#);
    let other = Receiver::new();
    sandbox.webhook(&other.url("/"), &["other"]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=16", sandbox.queue()))
        .env("RETRY_SCHEDULE", "200ms,repeat")
        .start();
    let delivered = |count: f64| {
        wait_until(LATER, "all have it", || {
            notifier.metric("webhook_request_success_total", &[]) == count
        });
    };
    sandbox.publish(&Event::new("other"));
    sandbox.publish(&of_acme());
    delivered(21.0);

    at_once.reset();
    stays.store(true, Ordering::SeqCst);
    sandbox.publish(&of_acme());
    wait_until(SOON, "the account has its share", || {
        held(&notifier, sandbox.queue(), "group") >= 1.0
    });
    let published = Instant::now();
    sandbox.publish(&Event::new("other"));
    let took = other.wait_at("/", 2)[1].at.saturating_duration_since(published);
    delivered(42.0);
    let most = at_once.most();
    assert!((9..=12).contains(&most), "{most} at once of 16");
    assert!(took < Duration::from_secs(5), "another customer's came after {took:?}");
    notifier.terminate();
    sandbox.wait_drained();
    for receiver in &receivers {
        assert_eq!(receiver.requests().len(), 2);
    }
}

#[test]
fn requests_with_retries_never_exceed_the_capacity_and_all_events_arrive() {
    let sandbox = Sandbox::new();
    let at_once = AtOnce::default();
    let receivers: Vec<_> = (0..12)
        .map(|n| {
            let at_once = at_once.clone();
            Receiver::answering(move |request| {
                at_once.during(|| thread::sleep(Duration::from_millis(300)));
                let fails = n % 2 == 0 && request.attempt == 1;
                Reply::Status(if fails { 500 } else { 200 })
            })
        })
        .collect();
    for receiver in &receivers {
        sandbox.webhook(&receiver.url("/"), &["*"]);
    }
    let notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=4", sandbox.queue()))
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("CIRCUIT_BREAKER", "off")
        .start();
    let events: Vec<_> = (0..5).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 60.0
    });
    let most = at_once.most();
    assert!((3..=4).contains(&most), "{most} at once of 4");
    let by = |queue: String| {
        notifier.metric("webhook_request_success_total", &[("queue", queue.as_str())])
    };
    let later = by(sandbox.retry_queue()) + by(format!("{}.backlog", sandbox.queue()));
    assert!(later >= 30.0, "{later} by other ways than their queue");
    notifier.terminate();
    sandbox.wait_drained();
    for (n, receiver) in receivers.iter().enumerate() {
        for event in &events {
            assert_eq!(receiver.of("/", event).len(), if n % 2 == 0 { 2 } else { 1 });
        }
    }
}

#[test]
fn a_receiver_that_fails_occasionally_keeps_its_breaker_closed_and_gets_every_event() {
    let sandbox = Sandbox::new();
    let firsts = AtomicUsize::new(0);
    // Six in a row of twenty events fail.
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

/// What a receiver saw when a request arrived.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Requests under way, including this one.
    under_way: usize,
    /// How many had been answered before.
    answered: u32,
}

/// Counts requests from a given moment on.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<(usize, u32, Vec<Seen>)>>);

impl Watched {
    /// Answers a request after this time.
    fn takes(&self, time: Duration) {
        {
            let (under_way, answered, seen) = &mut *self.0.lock().expect("no holder panics");
            *under_way += 1;
            seen.push(Seen { under_way: *under_way, answered: *answered });
        }
        thread::sleep(time);
        let (under_way, answered, _) = &mut *self.0.lock().expect("no holder panics");
        *under_way -= 1;
        *answered += 1;
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().expect("no holder panics").2.clone()
    }
}

#[test]
fn a_breaker_opens_after_a_second_of_failures_probes_closes_and_the_requests_ramp_up() {
    let sandbox = Sandbox::alone(1);
    let mended = Arc::new(AtomicBool::new(false));
    let watched = Watched::default();
    let receiver = Receiver::answering({
        let (mended, watched) = (Arc::clone(&mended), watched.clone());
        move |_| match mended.load(Ordering::SeqCst) {
            true => {
                watched.takes(Duration::from_millis(200));
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
    mended.store(true, Ordering::SeqCst);
    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 30.0
    });
    notifier.wait_stderr(SOON, "circuit breaker closed");

    let requests = receiver.requests();
    let failed = requests.len() - watched.seen().len();
    let began = requests[0].at;
    for pair in requests[failed.saturating_sub(4)..=failed].windows(2) {
        let (outage, pause) = (pair[0].at - began, pair[1].at - pair[0].at);
        // A quarter, which jitter shortens by up to a fifth; and then until the next delivery comes.
        assert!(pause >= outage.mul_f64(0.19), "{pause:?} after {outage:?}");
        assert!(pause <= outage / 2 + Duration::from_secs(5), "{pause:?} after {outage:?}");
    }
    for seen in watched.seen() {
        // After the probe there is one, and each success doubles that.
        let most = 1_usize << seen.answered.saturating_sub(1).min(10);
        assert!(seen.under_way <= most, "{seen:?}");
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
    let gathered = AtOnce::default();
    let watched = Watched::default();
    let receiver = Receiver::answering({
        let (overloaded, gathered) = (Arc::clone(&overloaded), gathered.clone());
        let watched = watched.clone();
        move |_| {
            if !overloaded.load(Ordering::SeqCst) {
                watched.takes(Duration::from_millis(100));
                return Reply::Status(200);
            }
            gathered.during(|| {
                let since = Instant::now();
                // Less than the second from which it would count as slow.
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
    assert!(refused >= 2, "{refused} at once");
    for seen in &watched.seen()[1..] {
        // One more with each success; a request that was sent may not have arrived.
        let most = refused.div_ceil(2) + seen.answered as usize;
        assert!(seen.under_way <= most, "{seen:?} after {refused}");
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
        wait_until(SOON, "the others are held back", || {
            let held = |why| held(&notifier, sandbox.queue(), why);
            held("retry_after") + held("behind") == 5.0
        });

        let requests = receiver.wait_at("/", 7);
        let gap = requests[1].at - requests[0].at;
        assert!(gap >= Duration::from_secs(2), "{status}: asked again after {gap:?}");
        notifier.terminate();
        sandbox.wait_drained();
        assert_eq!(receiver.requests().len(), 7, "{status}: each of the others once");
    }
}

#[test]
fn a_delivery_that_is_held_back_counts_no_attempt_and_expires() {
    let sandbox = Sandbox::new();
    let (receiver, _) = broken();
    let webhook = sandbox.webhook(&receiver.url("/"), &["order.*"]);
    let notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,1m,1m")
        .env("RETRY_SCHEDULE", "4s,1m,repeat")
        .env("DELIVERY_MAX_AGE", "3s")
        .start();
    // Two events, two failures, a second between them: the breaker is open.
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
    // The pause is a minute. The first two return from their wait, too old for the backlog; the third
    // becomes too old there.
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

    // Published long ago, according to its headers: handed over, and not attempted since.
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
fn an_event_for_very_many_webhooks_is_split_and_each_gets_it_once() {
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
    // First attempts aren't retries, whether or not they waited in a backlog.
    let retries = sandbox.retry_queue();
    let retried = notifier.metric("webhook_request_success_total", &[("queue", &retries)]);
    assert!(retried <= 1.0, "{retried}");
    notifier.terminate();
    sandbox.wait_drained();
    for n in 0..300 {
        let requests = receiver.of(&format!("/{n}"), &event);
        assert_eq!(requests.len(), if n == 7 { 2 } else { 1 }, "requests at /{n}");
        assert_eq!(requests[0].body, event.body);
    }
}

#[test]
fn a_dead_letter_that_expired_starts_over_when_it_is_replayed() {
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

    // What can't be delivered still becomes visible.
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
