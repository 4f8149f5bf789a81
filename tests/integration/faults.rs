//! Servers that stop and crash under a running notifier. These tests have their own pair of servers, and
//! run one after another.

use std::time::Duration;

use crate::harness::{
    Event, FaultServers, LATER, MemoryAlarm, Notifier, Receiver, Reply, SOON, Sandbox, holds_for,
    servers::{End, Server},
    wait_until,
};

/// Delivers one event, which proves that everything is connected.
#[track_caller]
fn warm_up(sandbox: &Sandbox, receiver: &Receiver, path: &str, kind: &str) {
    sandbox.publish(&Event::new(kind));
    receiver.wait_at(path, 1);
}

#[track_caller]
fn assert_not_ready(notifier: &Notifier, line: &str) {
    wait_until(SOON, &format!("/readyz says {line:?}"), || {
        let answer = notifier.get("/readyz");
        answer.status == 503 && answer.body.contains(line)
    });
}

/// The broker stops with a retry and an event in its queues, and starts again.
#[track_caller]
fn check_broker_restart(end: End) {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 2);
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/failing", 1) => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/healthy"), &["healthy", "both"]);
    sandbox.webhook(&receiver.url("/failing"), &["both"]);
    let mut notifier =
        sandbox.notifier().env("AMQP_RETRY_DELAY", "500ms").env("RETRY_SCHEDULE", "4s").start();
    warm_up(&sandbox, &receiver, "/healthy", "healthy");
    let waiting = Event::new("both");
    sandbox.publish(&waiting);
    notifier.wait_metric("webhook_retries_scheduled_total", &[], 1.0);
    sandbox.wait_acked(&receiver, "/healthy", "healthy");

    faults.end(Server::Broker, end);
    for queue in &sandbox.queues {
        assert_not_ready(&notifier, &format!("lane {queue} is not consuming"));
    }
    faults.start(Server::Broker);

    let after = Event::new("healthy");
    let in_other_queue = Event::new("healthy");
    sandbox.publish(&after);
    sandbox.broker.publish(&sandbox.queues[1], std::slice::from_ref(&in_other_queue));
    for (path, event, count) in
        [("/healthy", &after, 1), ("/healthy", &in_other_queue, 1), ("/failing", &waiting, 2)]
    {
        wait_until(LATER, &format!("{count} requests at {path}"), || {
            receiver.of(path, event).len() >= count
        });
    }
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    sandbox.wait_drained();
    assert!(notifier.is_running());
    notifier.terminate();
    sandbox.wait_drained();

    for request in receiver.of("/failing", &waiting) {
        assert_eq!(request.body, waiting.body);
    }
    for event in [&after, &in_other_queue] {
        assert_eq!(receiver.of("/healthy", event).len(), 1);
    }
    match end {
        End::Stop => {
            assert_eq!(receiver.of("/healthy", &waiting).len(), 1);
            assert_eq!(receiver.of("/failing", &waiting).len(), 2);
        }
        // RabbitMQ writes acks to disk a little later: after a crash, a message that was acked just
        // before may be redelivered.
        End::Kill => assert!(!receiver.of("/healthy", &waiting).is_empty()),
    }
}

#[test]
fn a_stop_of_the_broker_is_survived_and_no_waiting_retry_lost() {
    check_broker_restart(End::Stop);
}

#[test]
fn a_crash_of_the_broker_is_survived_and_no_waiting_retry_lost() {
    check_broker_restart(End::Kill);
}

/// PostgreSQL stops, events arrive whose webhooks the notifier does not have yet, and PostgreSQL starts again.
#[track_caller]
fn check_postgres_restart(end: End) {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/known"), &["known"]);
    sandbox.webhook(&receiver.url("/new"), &["new.*"]);
    let mut notifier = sandbox.notifier().start();
    warm_up(&sandbox, &receiver, "/known", "known");

    faults.end(Server::Postgres, end);
    assert_not_ready(&notifier, "PostgreSQL does not answer");
    assert_eq!(notifier.metric("webhook_database_up", &[]), 0.0);
    let events: Vec<_> = (0..5).map(|number| Event::new(&format!("new.{number}"))).collect();
    let received = || notifier.metric("webhook_events_received_total", &[]);
    let before = received();
    sandbox.broker.publish(sandbox.queue(), &events);
    holds_for(Duration::from_secs(6), "no event is sent or dropped", || {
        receiver.at("/new").is_empty()
    });
    let meanwhile = received() - before;
    // PostgreSQL was unreachable for the first event, as did those that the lane's other consumers got meanwhile;
    // they were handed back. Then the lane queries PostgreSQL before it consumes anything.
    assert!(meanwhile <= events.len() as f64, "a hot loop: {meanwhile} receptions");
    // The notifier holds none of them.
    wait_until(SOON, "all wait", || sandbox.broker.ready(sandbox.queue()) == Some(5));
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    assert_eq!(notifier.get("/healthz").status, 200);

    faults.start(Server::Postgres);
    receiver.wait_at_within(LATER, "/new", events.len());
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    assert!(notifier.is_running());
    // What is registered from now on takes effect, too.
    sandbox.webhook(&receiver.url("/later"), &["known"]);
    wait_until(SOON, "a new webhook is honoured", || {
        sandbox.publish(&Event::new("known"));
        !receiver.at("/later").is_empty()
    });
    sandbox.wait_drained();
    notifier.terminate();
    sandbox.wait_drained();
    for event in &events {
        assert_eq!(receiver.of("/new", event).len(), 1, "deliveries of {}", event.id);
    }
}

#[test]
fn a_stop_of_postgresql_holds_events_back_until_it_returns() {
    check_postgres_restart(End::Stop);
}

#[test]
fn a_crash_of_postgresql_holds_events_back_until_it_returns() {
    check_postgres_restart(End::Kill);
}

#[test]
fn a_start_without_postgresql_waits_for_it() {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    faults.end(Server::Postgres, End::Stop);

    let mut notifier = sandbox.notifier().start_unready();
    sandbox.publish(&Event::new("order.paid"));
    assert_not_ready(&notifier, "PostgreSQL does not answer");
    holds_for(Duration::from_secs(2), "it waits", || notifier.is_running());
    faults.start(Server::Postgres);

    notifier.wait_stderr(LATER, "ready: ");
    receiver.wait_at("/", 1);
    wait_until(SOON, "it is ready", || notifier.is_ready());
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn a_memory_alarm_of_the_broker_is_reported_and_loses_no_failed_delivery() {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let (alarmed, until_alarmed) = crossbeam_channel::bounded::<()>(0);
    let receiver =
        Receiver::answering(move |request| match (request.path.as_str(), request.attempt) {
            ("/failing", 1) => {
                // The wait is for the channel's end.
                let _ = until_alarmed.recv_timeout(SOON);
                Reply::Status(500)
            }
            _ => Reply::Status(200),
        });
    sandbox.webhook(&receiver.url("/healthy"), &["healthy"]);
    sandbox.webhook(&receiver.url("/failing"), &["failing"]);
    let notifier = sandbox.notifier().env("REQUEST_TIMEOUT", "30s").env("SHUTDOWN_TIMEOUT", "30s");
    let notifier = notifier.start();
    warm_up(&sandbox, &receiver, "/healthy", "healthy");
    notifier.wait_metric("webhook_broker_accepting", &[], 1.0);
    // Before the alarm, during which RabbitMQ accepts no message from the test either.
    let (failing, healthy) = (Event::new("failing"), Event::new("healthy"));
    sandbox.publish(&failing);
    sandbox.publish(&healthy);
    receiver.wait_at("/failing", 1);
    let alarm = MemoryAlarm::raised(&faults);
    drop(alarmed);
    notifier.wait_metric("webhook_broker_accepting", &[], 0.0);
    wait_until(SOON, "the status page shows it", || {
        let status = notifier.get("/status.json").body;
        status.contains("RabbitMQ accepts no messages")
            || status.contains("RabbitMQ has confirmed no")
    });
    drop(alarm);
    notifier.wait_metric("webhook_broker_accepting", &[], 1.0);
    for (path, event, count) in [("/healthy", &healthy, 1), ("/failing", &failing, 2)] {
        wait_until(LATER, &format!("{count} requests at {path}"), || {
            receiver.of(path, event).len() >= count
        });
    }
    sandbox.wait_drained();
    notifier.terminate();
}
