//! A signal ends the process soon, cleanly, and without losing or repeating
//! anything.

use std::time::{Duration, Instant};

use crate::harness::{
    Event, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, holds_for, wait_until,
};

/// What the last line says of a shutdown.
#[derive(Debug, PartialEq, Eq)]
struct Goodbye {
    finished: u64,
    parked: u64,
    handed_back: u64,
}

#[track_caller]
fn goodbye(notifier: &Notifier) -> Goodbye {
    let log = notifier.stderr();
    let last = log.last().expect("there is a log");
    let (_, counts) =
        last.split_once("stopped: ").unwrap_or_else(|| panic!("the last line is {last}"));
    let count = |part: Option<&str>, what: &str| {
        let count = part.and_then(|part| part.strip_suffix(what));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or_else(|| panic!("{last}"))
    };
    let mut parts = counts.split(", ");
    Goodbye {
        finished: count(parts.next(), "finished"),
        parked: count(parts.next(), "parked"),
        handed_back: count(parts.next(), "handed back"),
    }
}

/// Sends the signal and expects a clean end. Returns how long it took.
#[track_caller]
fn clean_exit(notifier: &mut Notifier, signal: &str) -> (Duration, Goodbye) {
    let began = Instant::now();
    notifier.signal(signal);
    let exit = notifier.wait_exit(SOON);
    assert_eq!(exit.code, Some(0));
    (began.elapsed(), goodbye(notifier))
}

/// SIGTERM, and a clean end within the limit.
#[track_caller]
fn check_exit(notifier: &mut Notifier, limit: Duration) -> Goodbye {
    let (took, goodbye) = clean_exit(notifier, "TERM");
    assert!(took < limit, "it took {took:?}, not less than {limit:?}");
    goodbye
}

#[track_caller]
fn check_idle_exit(signal: &str) {
    let sandbox = Sandbox::alone(3);
    let mut notifier = sandbox.notifier().start();
    let (took, goodbye) = clean_exit(&mut notifier, signal);
    assert_eq!(goodbye, Goodbye { finished: 0, parked: 0, handed_back: 0 });
    assert!(took < Duration::from_secs(1), "it took {took:?}");
}

#[test]
fn an_idle_notifier_ends_within_a_second_of_sigterm() {
    check_idle_exit("TERM");
}

#[test]
fn an_idle_notifier_ends_within_a_second_of_sigint() {
    check_idle_exit("INT");
}

#[test]
fn a_request_under_way_is_finished_and_what_was_not_begun_stays_in_the_queue() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_secs(2), 200));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().env("PREFETCH_COUNT", "5").start();
    let events: Vec<_> = (0..21).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at("/", 1);

    let goodbye = check_exit(&mut notifier, Duration::from_secs(6));

    assert_eq!((goodbye.finished, goodbye.parked), (1, 0), "{goodbye:?}");
    // What was prefetched behind it, and perhaps one that came for its ack.
    assert!((4..=5).contains(&goodbye.handed_back), "{goodbye:?}");
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

    let goodbye = check_exit(&mut notifier, Duration::from_secs(6));
    assert_eq!(goodbye, Goodbye { finished: 1, parked: 1, handed_back: 0 });
    assert_eq!(sandbox.broker.ready(sandbox.queue()), Some(0), "it was requeued");

    let second = launch().start();
    receiver.wait_at("/", 2);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2);
}

#[test]
fn a_receiver_that_hangs_delays_the_end_no_longer_than_a_request_may_take() {
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
fn a_second_signal_ends_it_at_once() {
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
    first.signal("TERM");
    holds_for(Duration::from_millis(500), "it waits for the request", || first.is_running());

    first.signal("TERM");
    let exit = first.wait_exit(SOON);
    assert!(exit.took < Duration::from_secs(5), "{exit:?}");

    // Nothing is lost by that: the event was not acked.
    let second = sandbox.notifier().start();
    assert_eq!(receiver.wait_at("/", 2)[1].id(), event.id);
    second.terminate();
    sandbox.wait_drained();
}

/// An event for several webhooks, and SIGTERM while the first is being asked.
#[track_caller]
fn check_interrupted_fan_out(fanout: &str) {
    let paths = ["/a", "/b", "/c", "/d", "/e", "/f"];
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_millis(700), 200));
    for path in paths {
        sandbox.webhook(&receiver.url(path), &["*"]);
    }
    let launch = || sandbox.notifier().env("FANOUT", fanout);
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
fn a_fan_out_that_a_shutdown_interrupts_reaches_each_webhook_once_over_both_lives() {
    check_interrupted_fan_out("1");
    check_interrupted_fan_out("4");
}

#[test]
fn it_ends_while_it_looks_for_its_broker_at_the_start() {
    let sandbox = Sandbox::new();
    let nobody = Receiver::new();
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", nobody.refusing_url().replace("http:", "amqp:"))
        .env("AMQP_CONNECTION_ATTEMPTS", "100")
        .env("AMQP_RETRY_DELAY", "30s")
        .start_unready();
    check_exit(&mut notifier, Duration::from_secs(5));
}

#[test]
fn it_ends_while_it_reconnects_to_its_broker() {
    let sandbox = Sandbox::with_queues(2);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "30s")
        .start();
    proxy.refuse();
    wait_until(SOON, "it notices", || !notifier.is_ready());
    check_exit(&mut notifier, Duration::from_secs(5));
}

#[test]
fn it_ends_while_its_broker_keeps_the_connection_but_is_silent() {
    let sandbox = Sandbox::with_queues(2);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("REQUEST_TIMEOUT", "2s")
        .env("CONNECT_TIMEOUT", "1s")
        .env("SHUTDOWN_TIMEOUT", "3s")
        .start();
    proxy.freeze();
    check_exit(&mut notifier, Duration::from_secs(8));
}

#[test]
fn it_ends_within_its_limit_while_a_confirm_does_not_come() {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Slow(Duration::from_secs(1), 500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let launch = || {
        sandbox
            .notifier()
            .env("RETRY_SCHEDULE", "1s")
            .env("REQUEST_TIMEOUT", "2s")
            .env("CONNECT_TIMEOUT", "1s")
            .env("SHUTDOWN_TIMEOUT", "4s")
    };
    let mut notifier = launch().env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url)).start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    proxy.freeze();

    let goodbye = check_exit(&mut notifier, Duration::from_secs(8));
    assert_eq!(goodbye, Goodbye { finished: 0, parked: 0, handed_back: 1 });

    // Ends the frozen connection, which the broker would keep until the next heartbeats.
    drop(proxy);
    let second = launch().start();
    receiver.wait_at("/", 2);
    second.terminate();
    sandbox.wait_drained();
}

/// A notifier that reaches PostgreSQL through a proxy and holds an event that
/// it knows no receivers for, when the signal comes.
#[track_caller]
fn check_exit_without_postgres(go_away: fn(&Proxy)) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(sandbox.database.url());
    let launch = || {
        sandbox
            .notifier()
            .env("REQUEST_TIMEOUT", "2s")
            .env("CONNECT_TIMEOUT", "1s")
            .env("SHUTDOWN_TIMEOUT", "3s")
    };
    let mut notifier = launch().env("DATABASE_URL", proxy.url(sandbox.database.url())).start();
    go_away(&proxy);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "the event is received", || {
        notifier.metric("webhook_events_received_total", &[]) >= 1.0
    });

    check_exit(&mut notifier, Duration::from_secs(8));
    wait_until(SOON, "the event is in the queue again", || {
        sandbox.broker.ready(sandbox.queue()) == Some(1)
    });

    let second = launch().start();
    assert_eq!(receiver.wait_at("/", 1)[0].id(), event.id);
    second.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn it_ends_while_postgresql_refuses_connections() {
    check_exit_without_postgres(Proxy::refuse);
}

#[test]
fn it_ends_while_postgresql_keeps_the_connection_but_is_silent() {
    check_exit_without_postgres(Proxy::freeze);
}
