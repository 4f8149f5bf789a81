//! Reused connections: one that the receiver has closed, or that is dead, doesn't fail an attempt, and no
//! event is sent twice to a receiver that has answered it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use crate::harness::{
    Authority, Event, LATER, Launch, Notifier, SOON, Sandbox, Terminator, Wire, wait_until,
    wire::Connection,
};

/// If an attempt fails, its retry follows soon.
fn launch(sandbox: &Sandbox) -> Launch {
    sandbox.notifier().env("RETRY_SCHEDULE", "100ms,repeat").env("CIRCUIT_BREAKER", "off")
}

fn failures(notifier: &Notifier) -> f64 {
    notifier.metrics().sum("webhook_request_failure_total", &[])
}

fn successes(notifier: &Notifier) -> f64 {
    notifier.metrics().sum("webhook_request_success_total", &[])
}

/// Publishes events one by one, each after the last one is delivered.
#[track_caller]
fn deliver(sandbox: &Sandbox, notifier: &Notifier, count: usize) -> Vec<Event> {
    let before = successes(notifier);
    let mut events = Vec::new();
    for done in 1..=count {
        let event = Event::new("order.paid");
        sandbox.publish(&event);
        events.push(event);
        let expected = before + done as f64;
        wait_until(SOON, "the event is delivered", || successes(notifier) >= expected);
    }
    events
}

/// The receiver answers the first request of each connection, and does this with the second.
#[track_caller]
fn check_second_request(end: fn(&mut Connection)) {
    let receiver = Wire::serving(move |connection| {
        if connection.request().is_some() {
            connection.ok("");
            end(connection);
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = launch(&sandbox).start();
    deliver(&sandbox, &notifier, 10);
    assert_eq!(failures(&notifier), 0.0, "{:?}", receiver.seen());
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_reused_connection_that_was_closed_before_it_read_the_request_costs_no_attempt() {
    check_second_request(|connection| {
        connection.wait_for_input();
    });
}

#[test]
fn a_reused_connection_that_ends_instead_of_an_answer_costs_no_attempt() {
    check_second_request(|connection| {
        connection.request();
    });
}

#[test]
fn a_reused_tls_connection_that_ends_instead_of_an_answer_costs_no_attempt() {
    let receiver = Wire::serving(|connection| {
        if connection.request().is_some() {
            connection.ok("");
            connection.request();
        }
    });
    let authority = Authority::new("a CA of the tests");
    let terminator = Terminator::before(&receiver.url(), authority.good());
    let trusted = authority.file();
    let sandbox = Sandbox::new();
    sandbox.webhook(&terminator.url(&receiver.url()), &["*"]);
    let notifier = launch(&sandbox).env("TLS_CA_FILE", trusted.path()).start();
    deliver(&sandbox, &notifier, 10);
    assert_eq!(failures(&notifier), 0.0, "{:?}", receiver.seen());
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_request_is_sent_at_most_twice_and_only_because_of_a_reused_connection() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let breaks = Arc::clone(&is_broken);
    let receiver = Wire::serving(move |connection| {
        while connection.request().is_some() {
            if breaks.load(Ordering::SeqCst) {
                return;
            }
            connection.ok("");
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    let attempt = |expected: usize| {
        let event = Event::new("order.paid");
        let before = failures(&notifier);
        sandbox.publish(&event);
        let dead = sandbox.take_dead();
        assert_eq!(failures(&notifier), before + 2.0);
        assert!(dead.text("x-last-error").contains("without an answer"), "{dead:?}");
        let seen = receiver.seen().into_iter().filter(|seen| seen.id == event.id).count();
        assert_eq!(seen, expected, "{:?}", receiver.seen());
    };
    // Two attempts, each on a new connection.
    attempt(2);
    // The first attempt sends one request more, on the connection that had worked.
    is_broken.store(false, Ordering::SeqCst);
    deliver(&sandbox, &notifier, 1);
    is_broken.store(true, Ordering::SeqCst);
    attempt(3);
    notifier.terminate();
}

#[test]
fn no_request_is_sent_again_once_a_byte_of_its_answer_has_arrived() {
    let receiver = Wire::serving(|connection| {
        while connection.request().is_some() {
            // The first request of each connection is answered.
            connection.ok("");
            if connection.request().is_some() {
                connection.send("HTTP/1.1 200 OK\r\n");
                return;
            }
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let notifier = launch(&sandbox).start();
    deliver(&sandbox, &notifier, 1);
    let event = deliver(&sandbox, &notifier, 1).remove(0);
    assert_eq!(failures(&notifier), 1.0, "a failed attempt, and a retry on a fresh connection");
    let seen = receiver.seen().into_iter().filter(|seen| seen.id == event.id).count();
    assert_eq!(seen, 2, "{:?}", receiver.seen());
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn keep_alive_says_how_long_and_how_often_a_connection_is_used() {
    // By webhook: three requests per connection; one second of idle time (half of it, to be safe).
    let few = Wire::serving(|connection| {
        let mut left = 3;
        while connection.request().is_some() {
            left -= 1;
            connection.ok(&format!("keep-alive: timeout=60, max={left}\r\n"));
        }
    });
    let short = Wire::serving(|connection| {
        while connection.request().is_some() {
            connection.ok("Keep-Alive: timeout=1\r\n");
        }
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&few.url(), &["order.*"]);
    let notifier = launch(&sandbox).start();
    deliver(&sandbox, &notifier, 9);
    let mut uses: BTreeMap<usize, usize> = BTreeMap::new();
    for seen in few.seen() {
        *uses.entry(seen.connection).or_default() += 1;
    }
    assert_eq!(uses, BTreeMap::from([(0, 3), (1, 3), (2, 3)]));

    sandbox.webhook(&short.url(), &["idle"]);
    let arrives = |count: usize| {
        sandbox.publish(&Event::new("idle"));
        wait_until(SOON, "the event arrives", || short.seen().len() == count);
    };
    arrives(1);
    // More than the time after which it must not be used any more. On a busy machine it may take longer.
    thread::sleep(Duration::from_millis(700));
    arrives(2);
    let connections: Vec<_> = short.seen().iter().map(|seen| seen.connection).collect();
    assert_eq!(connections, [0, 1]);
    assert_eq!(failures(&notifier), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
}

/// How many connections have been used in the tests below, and the deadline there.
const WARM: usize = 8;
const DEADLINE: Duration = Duration::from_secs(6);

/// A receiver with [`WARM`] connections that have served requests. `then` is what it does with each of them
/// from then on; it answers on all others. Its kernel buffers `buffer` bytes that are never read.
#[track_caller]
fn warm(buffer: usize, then: fn(&mut Connection)) -> (Wire, Sandbox, Notifier) {
    let all_are_here = Arc::new(Barrier::new(WARM));
    let receiver = Wire::with_buffer(buffer, move |connection| {
        if connection.number >= WARM {
            return connection.answer_all();
        }
        if connection.number == 0 {
            // Until it has answered, a receiver gets one request at a time.
            connection.request();
            connection.ok("");
        }
        connection.request();
        all_are_here.wait();
        connection.ok("");
        then(connection);
    });
    let sandbox = Sandbox::new();
    sandbox.webhook(&receiver.url(), &["*"]);
    let limit = format!("{}s", DEADLINE.as_secs());
    let notifier = launch(&sandbox).env("REQUEST_TIMEOUT", limit).start();
    deliver(&sandbox, &notifier, 1);
    let events: Vec<_> = (0..WARM).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    let all = (WARM + 1) as f64;
    wait_until(SOON, "all connections are warm", || successes(&notifier) == all);
    assert_eq!(failures(&notifier), 0.0);
    (receiver, sandbox, notifier)
}

#[test]
fn of_several_silently_dead_connections_only_one_costs_a_timeout() {
    // Like a relay that has lost its other side: it accepts everything, and never answers.
    let (receiver, sandbox, notifier) = warm(16 << 10, |connection| {
        connection.head();
        connection.swallow();
    });
    let before = receiver.seen().len();
    sandbox.publish(&Event::new("order.paid"));
    wait_until(SOON, "one of them carries it", || receiver.seen().len() > before);
    // After half of the deadline without an answer, the notifier no longer trusts the other connections. Only
    // the time shows that it got that far.
    thread::sleep(DEADLINE * 6 / 10);
    for event in deliver(&sandbox, &notifier, 5) {
        let seen: Vec<_> = receiver.seen().into_iter().filter(|seen| seen.id == event.id).collect();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert!(seen[0].connection >= WARM, "{seen:?}");
    }
    let all = (WARM + 1 + 5 + 1) as f64;
    wait_until(LATER, "the first one is delivered, too", || successes(&notifier) == all);
    assert_eq!(failures(&notifier), 1.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn if_nothing_acknowledges_a_request_the_same_attempt_uses_a_fresh_connection() {
    // As if no packet got through: the event doesn't fit into the little buffer of the kernel.
    let (receiver, sandbox, notifier) = warm(1, |connection| connection.stall());
    let mut event = Event::new("order.paid");
    event.body = format!(r#"{{"padding": "{}"}}"#, "x".repeat(3_800)).into_bytes();
    let before = successes(&notifier);
    sandbox.publish(&event);
    wait_until(LATER, "the event is delivered", || successes(&notifier) > before);
    deliver(&sandbox, &notifier, 5);
    assert_eq!(failures(&notifier), 0.0);
    let seen: Vec<_> = receiver.seen().into_iter().filter(|seen| seen.id == event.id).collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    notifier.terminate();
    sandbox.wait_drained();
}
