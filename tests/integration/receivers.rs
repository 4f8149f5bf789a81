//! Receivers share a queue's capacity: one that is slow, far away or never answers doesn't affect its
//! neighbours.

mod failing;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, wait_until};

fn held(notifier: &Notifier, queue: &str, reason: &str) -> f64 {
    let labels = [("queue", queue), ("reason", reason)];
    notifier.metric("webhook_deliveries_held_total", &labels)
}

/// Counts the requests in flight at one receiver or several.
#[derive(Clone, Default)]
struct InFlight {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl InFlight {
    /// Counts a request as in flight while `wait` runs.
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

/// Answers 200 after a wait. Also returns the most requests in flight so far.
pub(crate) fn counting(wait: impl Fn() + Send + Sync + 'static) -> (Receiver, Arc<AtomicUsize>) {
    let in_flight = InFlight::default();
    let most = Arc::clone(&in_flight.most);
    let receiver = Receiver::answering(move |_| {
        in_flight.during(&wait);
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
    assert!(last < limit, "the last of the first events arrived after {last:?}");

    for n in 11..=60 {
        let published = Instant::now();
        sandbox.broker.publish(sandbox.queue(), &one_of_each());
        let took = healthy.wait_at("/", n)[n - 1].at.saturating_duration_since(published);
        assert!(took < limit, "event {n} arrived after {took:?}");
    }
    for receiver in &hanging {
        assert!(!receiver.requests().is_empty(), "each got a request");
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
        assert!(took < Duration::from_secs(5), "event {n} arrived after {took:?}");
    }
    wait_until(SOON, "each hanging receiver gets a request, too", || {
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
    wait_until(SOON, "the lane begins with one consumer", || {
        consumers(sandbox.queue()) == (1.0, Some(1))
    });

    let events: Vec<_> = (0..6).map(|n| Event::new(&format!("kind.{n}"))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    for receiver in &receivers {
        receiver.wait_at("/", 1);
    }
    wait_until(SOON, "there is one consumer more than stuck ones", || {
        let (reported, seen) = consumers(sandbox.queue());
        reported >= 7.0 && seen >= Some(7)
    });
    assert_eq!(consumers(&sandbox.retry_queue()), (1.0, Some(1)), "the retry lane is idle");

    drop(release);
    // The surplus consumers end within half a minute.
    wait_until(LATER, "one consumer is left", || consumers(sandbox.queue()) == (1.0, Some(1)));
    assert_eq!(notifier.metric("webhook_request_success_total", &[]), 6.0);
    notifier.terminate();
    sandbox.wait_drained();
    for receiver in &receivers {
        assert_eq!(receiver.requests().len(), 1);
    }
}

/// The most requests that a distant receiver gets at a time, if the queue has that capacity.
#[track_caller]
fn most_in_flight(capacity: Option<u16>, events: usize) -> usize {
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
    let most = most_in_flight(None, 300);
    assert!((12..=32).contains(&most), "{most} in flight of 64");
    let most = most_in_flight(Some(8), 40);
    assert!((3..=4).contains(&most), "{most} in flight of 8");
}

#[test]
fn the_webhooks_of_one_account_get_at_most_three_quarters_of_the_capacity() {
    let sandbox = Sandbox::new();
    let in_flight = InFlight::default();
    let takes_long = Arc::new(AtomicBool::new(false));
    let receivers: Vec<_> = (0..20)
        .map(|_| {
            let (in_flight, takes_long) = (in_flight.clone(), Arc::clone(&takes_long));
            Receiver::answering(move |_| {
                // Less than the second after which a receiver counts as slow.
                let millis = if takes_long.load(Ordering::SeqCst) { 700 } else { 20 };
                in_flight.during(|| thread::sleep(Duration::from_millis(millis)));
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

    in_flight.reset();
    takes_long.store(true, Ordering::SeqCst);
    sandbox.publish(&of_acme());
    wait_until(SOON, "the account has its share", || {
        held(&notifier, sandbox.queue(), "group") >= 1.0
    });
    let published = Instant::now();
    sandbox.publish(&Event::new("other"));
    let took = other.wait_at("/", 2)[1].at.saturating_duration_since(published);
    delivered(42.0);
    let most = in_flight.most();
    assert!((9..=12).contains(&most), "{most} in flight of 16");
    assert!(took < Duration::from_secs(5), "another account's event arrived after {took:?}");
    notifier.terminate();
    sandbox.wait_drained();
    for receiver in &receivers {
        assert_eq!(receiver.requests().len(), 2);
    }
}

#[test]
fn requests_with_retries_never_exceed_the_capacity_and_all_events_arrive() {
    let sandbox = Sandbox::new();
    let in_flight = InFlight::default();
    let receivers: Vec<_> = (0..12)
        .map(|n| {
            let in_flight = in_flight.clone();
            Receiver::answering(move |request| {
                in_flight.during(|| thread::sleep(Duration::from_millis(300)));
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
    let most = in_flight.most();
    assert!((3..=4).contains(&most), "{most} in flight of 4");
    let by = |queue: String| {
        notifier.metric("webhook_request_success_total", &[("queue", queue.as_str())])
    };
    let later = by(sandbox.retry_queue()) + by(format!("{}.backlog", sandbox.queue()));
    assert!(later >= 30.0, "only {later} by the retry and backlog lanes");
    notifier.terminate();
    sandbox.wait_drained();
    for (n, receiver) in receivers.iter().enumerate() {
        for event in &events {
            assert_eq!(receiver.of("/", event).len(), if n % 2 == 0 { 2 } else { 1 });
        }
    }
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
