//! The broker's connection: how a start without it fails, and what its loss means for events.

use std::{
    collections::BTreeSet,
    iter,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use amiquip::FieldTable;
use url::Url;
use webhook_notifier::{
    broker::{Link, SETUP_TIMEOUT},
    config::{Amqp, Host, Settings},
    domain::secret::Secret,
    shutdown,
};

use crate::harness::{
    Event, LATER, Proxy, Receiver, Reply, SOON, Sandbox, Servers, holds_for, wait_until,
};

const PASSWORD: &str = "s3cret-Pa55word";

/// A start that must fail: exit code 1, and one line with the reason.
#[track_caller]
fn check_no_start(sandbox: &Sandbox, amqp_url: &str, expected: &str) {
    let finished = sandbox
        .notifier()
        .env("AMQP_URL", amqp_url)
        .env("AMQP_CONNECTION_ATTEMPTS", "3")
        .env("AMQP_RETRY_DELAY", "200ms")
        .spawn()
        .finish(SOON);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{finished:?}");
    assert!(errors[0].to_lowercase().contains(expected), "no {expected:?} in {errors:?}");
    assert!(!finished.stderr.contains(PASSWORD), "{finished:?}");
    assert!(!finished.stdout.contains(PASSWORD), "{finished:?}");
}

#[test]
fn without_a_broker_the_start_fails_after_the_attempts_with_one_clear_line() {
    let sandbox = Sandbox::new();
    let refusing = Receiver::new();
    let mut url = Url::parse(&refusing.refusing_url().replace("http:", "amqp:")).expect("a URL");
    url.set_username("someone").expect("it has a host");
    url.set_password(Some(PASSWORD)).expect("it has a host");
    let address = format!("127.0.0.2:{}", url.port().expect("a port"));
    check_no_start(&sandbox, url.as_str(), &address);
}

#[test]
fn a_broker_that_refuses_the_login_fails_the_start_with_one_clear_line() {
    let sandbox = Sandbox::new();
    let mut url = Url::parse(&sandbox.servers.amqp_url).expect("a URL");
    url.set_password(Some(PASSWORD)).expect("it has a host");
    check_no_start(&sandbox, url.as_str(), "amqp");
}

/// AMQP_URL of the tests' servers, with these addresses.
fn amqp(addresses: &[SocketAddr]) -> Amqp {
    let url = Url::parse(&Servers::shared().amqp_url).expect("a URL");
    let defaults = Settings::default().read().expect("the defaults").amqp;
    let user = url.username().to_owned();
    let password = Secret::new(url.password().expect("a password").to_owned());
    let host = |address: &SocketAddr| Host { name: address.ip().to_string(), port: address.port() };
    Amqp { hosts: addresses.iter().map(host).collect(), user, password, ..defaults }
}

#[test]
fn an_address_that_accepts_and_stays_silent_does_not_prevent_the_use_of_the_next() {
    let url = Url::parse(&Servers::shared().amqp_url).expect("a URL");
    let broker = SocketAddr::new(
        url.host_str().and_then(|host| host.parse().ok()).expect("an address"),
        url.port().expect("a port"),
    );
    let silent = TcpListener::bind("127.0.0.2:0").expect("a free port");
    let refusing = TcpListener::bind("127.0.0.3:0").expect("a free port");
    let [first, second] = [&silent, &refusing].map(|one| one.local_addr().expect("it is bound"));
    drop(refusing);
    let (_trigger, shutdown) = shutdown::channel();
    let limit = Duration::from_secs(3);
    let open = |addresses: &[SocketAddr]| Link::open(&amqp(addresses), limit, &shutdown);

    for addresses in [[first, second, broker], [second, first, broker], [broker, first, second]] {
        open(&addresses).expect("one of them is RabbitMQ").close();
    }
    // A host that failed while another one worked is tried last, so it doesn't delay the next
    // connections.
    let began = Instant::now();
    for _ in 0..3 {
        open(&[first, second, broker]).expect("one of them is RabbitMQ").close();
    }
    assert!(
        began.elapsed() < SETUP_TIMEOUT,
        "they waited for the silent one: {:?}",
        began.elapsed()
    );

    let error = open(&[first, second]).expect_err("none of them is RabbitMQ").to_string();
    for (address, expected) in
        [(first, "accepts connections and does not answer"), (second, "cannot connect")]
    {
        assert!(
            error.contains(&format!("{address} {expected}")),
            "no {address} {expected} in {error}"
        );
    }
}

/// Two routes to the broker in one URL, as for two nodes of a cluster.
#[track_caller]
fn check_that_it_goes_on_at_the_other_node(goes_away: fn(&Proxy)) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let nodes = [(); 2].map(|()| Proxy::before(&sandbox.servers.amqp_url));
    let urls = nodes.each_ref().map(|node| node.url(&sandbox.servers.amqp_url));
    let places = urls.each_ref().map(|url| {
        let url = Url::parse(url).expect("a URL");
        format!("{}:{}", url.host_str().expect("a host"), url.port().expect("a port"))
    });
    let both = urls[0].replace(&places[0], &places.join(","));
    let mut notifier = sandbox.notifier().env("AMQP_URL", format!("{both}?heartbeat=1")).start();
    let deliver = || {
        let event = Event::new("order.paid");
        sandbox.publish(&event);
        wait_until(LATER, "it is delivered", || !receiver.of("/", &event).is_empty());
    };
    deliver();
    let used = usize::from(nodes[1].accepted() > 0);
    assert_eq!(nodes[1 - used].accepted(), 0, "all connections go to one node");

    goes_away(&nodes[used]);
    deliver();
    let line = notifier.wait_stderr(LATER, "it is tried last from now on");
    assert!(line.contains(&places[used]) && line.contains("WARN"), "{line}");
    wait_until(LATER, "it is ready", || notifier.is_ready());

    nodes[used].close_frozen();
    nodes[used].thaw();
    goes_away(&nodes[1 - used]);
    deliver();
    notifier.wait_stderr(LATER, &format!("RabbitMQ at {} works again", places[used]));
    wait_until(LATER, "it is ready", || notifier.is_ready());
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn if_its_node_refuses_connections_it_continues_at_the_next() {
    check_that_it_goes_on_at_the_other_node(Proxy::refuse);
}

#[test]
fn if_its_node_falls_silent_it_continues_at_the_next() {
    check_that_it_goes_on_at_the_other_node(Proxy::freeze);
}

#[test]
fn a_deleted_queue_is_declared_and_consumed_again() {
    let sandbox = Sandbox::with_queues(2);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();

    for queue in [sandbox.queue().to_owned(), sandbox.retry_queue()] {
        sandbox.broker.delete(&queue).expect("it exists");
        wait_until(SOON, &format!("{queue} is consumed again"), || {
            sandbox.broker.consumers(&queue) == Some(1)
        });
    }

    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    wait_until(SOON, "it is ready again", || notifier.is_ready());
    assert!(notifier.is_running());
    // It must be durable and without arguments, or this declaration would be refused.
    sandbox.broker.declare(sandbox.queue(), FieldTable::new()).expect("the queue is as it was");
}

#[test]
fn nothing_is_lost_when_connections_break_again_and_again() {
    let sandbox = Sandbox::with_queues(2);
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Slow(Duration::from_millis(10), 500),
        _ => Reply::Slow(Duration::from_millis(10), 200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "100ms")
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("CIRCUIT_BREAKER", "off")
        .env("PREFETCH_COUNT", "10")
        .start();
    let events: Vec<_> = (0..200).map(|_| Event::new("order.paid")).collect();
    for (queue, events) in sandbox.queues.iter().zip(events.chunks(100)) {
        sandbox.broker.publish(queue, events);
    }

    for round in 1..=5 {
        // In the middle of the work, wherever that is.
        wait_until(LATER, "deliveries continue", || receiver.requests().len() >= round * 30);
        proxy.cut();
    }

    let delivered = || -> BTreeSet<String> {
        let requests = receiver.requests();
        let second = requests.iter().filter(|request| request.attempt >= 2);
        second.map(|request| request.id().to_owned()).collect()
    };
    wait_until(LATER, "each event is delivered", || delivered().len() == events.len());
    let published: BTreeSet<_> = events.iter().map(|event| event.id.clone()).collect();
    assert_eq!(delivered(), published);
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    sandbox.wait_drained();
    notifier.terminate();
    for queue in &sandbox.queues {
        // The cuts caused repeats. When it stopped, a lane may have held up to a prefetch of them, and
        // as many waited.
        for queue in [queue.clone(), format!("{queue}.retry")] {
            let back: Vec<_> = iter::from_fn(|| sandbox.broker.take(&queue)).collect();
            assert!(
                back.len() <= 20,
                "{queue}: more were redelivered than were in progress: {back:?}"
            );
        }
        assert_eq!(sandbox.broker.ready(&format!("{queue}.dead")), Some(0));
    }
}

#[test]
fn an_event_whose_connection_breaks_during_the_request_is_not_lost() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Slow(Duration::from_secs(1), 500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "100ms")
        .env("RETRY_SCHEDULE", "200ms")
        .start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/", 1);

    proxy.cut();

    assert_eq!(receiver.wait_at("/", 2)[1].id(), event.id);
    wait_until(SOON, "it is ready again", || notifier.is_ready());
    sandbox.wait_drained();
    notifier.terminate();
    wait_until(SOON, "its queue is empty", || sandbox.broker.ready(sandbox.queue()) == Some(0));
    // The event was redelivered with the new connection. What its first attempt had parked may still be
    // parked once the publisher is connected again: a repeat, for which this was too early.
    let left: Vec<_> = iter::from_fn(|| sandbox.broker.take(&sandbox.retry_queue())).collect();
    assert!(left.len() <= 1, "{left:?}");
    assert!(left.iter().all(|message| message.body == event.body), "{left:?}");
}

#[test]
fn events_taken_over_from_a_stuck_consumer_are_not_lost_when_its_connection_breaks() {
    let sandbox = Sandbox::new();
    let stuck = Receiver::answering(|_| Reply::Slow(Duration::from_secs(2), 200));
    let healthy = Receiver::answering(|_| Reply::Slow(Duration::from_millis(50), 200));
    sandbox.webhook(&stuck.url("/"), &["stuck"]);
    sandbox.webhook(&healthy.url("/"), &["healthy"]);
    let mut events = vec![Event::new("stuck")];
    events.extend((0..60).map(|_| Event::new("healthy")));
    sandbox.broker.publish(sandbox.queue(), &events);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "100ms")
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("PREFETCH_COUNT", "64")
        .start();
    stuck.wait_at("/", 1);
    healthy.wait_at("/", 3);

    proxy.cut();

    for event in &events[1..] {
        wait_until(LATER, "it arrives", || !healthy.of("/", event).is_empty());
    }
    wait_until(LATER, "the stuck one is delivered again", || stuck.requests().len() >= 2);
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    sandbox.wait_drained();
    notifier.terminate();
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}

#[test]
fn a_broker_that_falls_silent_is_noticed_by_its_heartbeat() {
    let sandbox = Sandbox::with_queues(2);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "500ms")
        .start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);

    proxy.freeze();
    let lanes = || notifier.metric("webhook_broker_connected", &[]);
    wait_until(LATER, "every lane has noticed", || lanes() == 0.0);
    let answer = notifier.get("/readyz");
    assert_eq!(answer.status, 503);
    for queue in &sandbox.queues {
        let line = format!("lane {queue} is not consuming");
        assert!(answer.body.contains(&line), "{answer:?}");
    }
    assert_eq!(notifier.get("/healthz").status, 200);

    proxy.thaw();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let requests = receiver.wait_at_within(LATER, "/", 2);
    assert_eq!(requests[1].id(), event.id);
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    assert!(notifier.is_running());
}

#[test]
fn while_the_broker_is_away_there_is_no_hot_loop() {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url))
        .env("AMQP_RETRY_DELAY", "1s")
        .start();
    proxy.refuse();
    wait_until(SOON, "it notices", || !notifier.is_ready());
    let (connections, lines) = (proxy.accepted(), notifier.stderr().len());
    holds_for(Duration::from_secs(3), "it runs", || notifier.is_running());
    // Two lanes, the publisher and the monitor, each several times.
    let connections = proxy.accepted() - connections;
    assert!((1..=40).contains(&connections), "{connections} connections in three seconds");
    let lines = notifier.stderr().len() - lines;
    assert!(lines <= 30, "{lines} lines of log in three seconds");

    proxy.thaw();
    wait_until(SOON, "it is ready again", || notifier.is_ready());
}
