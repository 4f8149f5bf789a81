//! The process ends within its limit although RabbitMQ or PostgreSQL is away or silent.

use std::time::Duration;

use super::{Summary, check_exit};
use crate::harness::{Event, Proxy, Receiver, Reply, SOON, Sandbox, wait_until};

#[test]
fn it_ends_while_it_connects_to_its_broker_at_the_start() {
    let sandbox = Sandbox::new();
    let refusing = Receiver::new();
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", refusing.refusing_url().replace("http:", "amqp:"))
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
fn it_ends_within_its_limit_while_no_confirm_arrives() {
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

    let summary = check_exit(&mut notifier, Duration::from_secs(8));
    assert_eq!(summary, Summary { finished: 0, parked: 0, handed_back: 1 });

    // Closes the frozen connection, which the broker would keep until it misses heartbeats.
    drop(proxy);
    let second = launch().start();
    receiver.wait_at("/", 2);
    second.terminate();
    sandbox.wait_drained();
}

/// SIGTERM while PostgreSQL is away and the notifier holds an event whose webhooks it doesn't know.
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
