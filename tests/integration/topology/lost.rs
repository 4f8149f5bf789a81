//! Queues that are deleted, with their messages, and queues that can't be created or used.

use amiquip::FieldTable;

use crate::harness::{
    Broker, Event, FaultServers, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, Vhost, unwrapped,
    wait_for, wait_until,
};

/// Fails once, and always at `/never`; answers 410 at `/gone`.
fn receiver() -> Receiver {
    Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/gone", _) => Reply::Status(410),
        ("/never", _) | (_, 1) => Reply::Status(500),
        _ => Reply::Status(200),
    })
}

fn lost(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_topology_lost_total", &[("object", "queue")])
}

fn unusable(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_topology_unusable", &[])
}

#[track_caller]
fn expect_why(sandbox: &Sandbox, event: &Event, parts: &[&str]) {
    let finished = sandbox.command(&["why", &event.id]);
    let words = unwrapped(&finished.stdout);
    for part in parts {
        assert!(words.contains(part), "no {part:?} in {words}");
    }
    assert!(!words.contains("to do nothing"), "{words}");
}

#[track_caller]
fn expect_advice(notifier: &Notifier, state: &str, what: &str) {
    wait_until(SOON, &format!("the page shows {what}"), || {
        let status = notifier.get("/status.json").body;
        status.contains(what) && status.contains(&format!("\"state\":\"{state}\""))
    });
}

#[test]
fn a_deleted_queue_is_not_taken_for_empty_and_what_it_held_is_reported() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = receiver();
    sandbox.webhook(&receiver.url("/never"), &["waits"]);
    sandbox.webhook(&receiver.url("/gone"), &["dies"]);
    let mut notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h").start();
    let (waiting, dead) = (Event::new("waits"), Event::new("dies"));
    sandbox.publish(&waiting);
    sandbox.publish(&dead);
    let wait = "webhooks.wait.1h";
    for queue in [wait, &sandbox.dead_queue()] {
        notifier.wait_metric("webhook_queue_messages", &[("queue", queue)], 1.0);
    }

    for (count, queue) in [(1.0, wait), (2.0, &sandbox.dead_queue())] {
        sandbox.broker.delete(queue).expect("it is there");
        let line = notifier.wait_stderr(SOON, &format!("queue lost queue={queue} messages=1:"));
        assert!(line.contains("ERROR") && line.contains("publish their events again"), "{line}");
        wait_until(SOON, "it is created again", || sandbox.broker.ready(queue) == Some(0));
        assert_eq!(lost(&notifier), count);
        expect_advice(&notifier, "attention", &format!("The queue {queue} was deleted"));
    }
    expect_why(&sandbox, &waiting, &["lost, most likely", wait, "publish the event again"]);
    expect_why(&sandbox, &dead, &["deleted with that queue", "otherwise publish the event again"]);
    notifier.wait_stderr(SOON, "recreated queue=webhooks.wait.1h");
    assert_eq!(unusable(&notifier), 0.0);

    // The queues that it consumes, too.
    for (count, queue) in [(3.0, &sandbox.retry_queue()), (4.0, &sandbox.queues[0])] {
        sandbox.broker.delete(queue).expect("it is there");
        notifier.wait_stderr(SOON, &format!("queue lost queue={queue} messages=0:"));
        wait_until(SOON, "it is consumed again", || sandbox.broker.consumers(queue) == Some(1));
        assert_eq!(lost(&notifier), count);
    }
    notifier.terminate();

    // Nobody creates them again now.
    for queue in [wait, &sandbox.dead_queue()] {
        sandbox.broker.delete(queue).expect("it is there");
    }
    expect_why(&sandbox, &waiting, &["lost, most likely", wait, "publish the event again"]);
    expect_why(&sandbox, &dead, &["which no longer exists", "publish the event again"]);
    let listed = sandbox.command(&["dead-letters", "list"]);
    assert_eq!(listed.code, Some(1), "{listed:?}");
    assert!(listed.stderr.contains("somebody has deleted it"), "{listed:?}");
}

#[test]
fn a_queue_that_is_deleted_during_a_check_is_reported() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = receiver();
    sandbox.webhook(&receiver.url("/never"), &["waits"]);
    let proxy = Proxy::before(&vhost.servers.amqp_url);
    let amqp_url = proxy.url(&vhost.servers.amqp_url);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h").env("AMQP_URL", amqp_url);
    let mut notifier = notifier.start();
    sandbox.publish(&Event::new("waits"));
    let wait = "webhooks.wait.1h";
    notifier.wait_metric("webhook_queue_messages", &[("queue", wait)], 1.0);

    let (broker, mut calls) = (Broker::new(&vhost.servers.amqp_url), 0);
    proxy.before_each(move |bytes| {
        if bytes.windows(wait.len()).any(|part| part == wait.as_bytes()) {
            calls += 1;
            // The first call says that it is there.
            if calls == 2 {
                assert_eq!(broker.delete(wait).ok(), Some(1));
            }
        }
    });
    let line = notifier.wait_stderr(SOON, &format!("queue lost queue={wait} messages=1:"));
    assert!(line.contains("publish their events again"), "{line}");
    assert_eq!(lost(&notifier), 1.0);
    notifier.terminate();
}

#[test]
fn an_unusable_queue_affects_only_what_needs_it() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = receiver();
    sandbox.webhook(&receiver.url("/"), &["order.paid"]);
    let start = || sandbox.notifier().env("RETRY_SCHEDULE", "400ms,1s,repeat").start();
    let mut notifier = start();
    let check = |notifier: &Notifier| {
        let (event, malformed) = (Event::new("order.paid"), Event::raw("not JSON"));
        sandbox.broker.publish(sandbox.queue(), &[event.clone(), malformed]);
        wait_until(SOON, "its retry arrives", || receiver.of("/", &event).len() == 2);
        assert_eq!(notifier.metric("webhook_broker_accepting", &[]), 1.0);
        assert!(notifier.is_ready());
    };
    check(&notifier);
    assert_eq!(sandbox.take_dead().text("x-dead-reason"), "malformed");

    let wait = "webhooks.wait.400ms";
    wait_for(SOON, "it is a classic one", || {
        // The notifier may have been faster.
        let _ = sandbox.broker.delete(wait);
        sandbox.broker.declare(wait, FieldTable::new()).ok()
    });
    notifier.wait_stderr(SOON, &format!("queue lost queue={wait}"));
    let line = notifier.wait_stderr(SOON, &format!("not usable queue={wait}"));
    assert!(line.contains("ERROR") && line.contains("empty it and delete it"), "{line}");
    check(&notifier);
    assert_eq!(sandbox.take_dead().text("x-dead-reason"), "malformed");
    assert_eq!(sandbox.broker.ready(wait), Some(0), "nothing is in it");
    notifier.terminate();
    // A restart doesn't make it worse.
    let mut notifier = start();
    let line = notifier.wait_stderr(SOON, &format!("not usable queue={wait}"));
    assert!(line.contains("ERROR"), "{line}");
    check(&notifier);
    assert_eq!(sandbox.take_dead().text("x-dead-reason"), "malformed");
    assert_eq!(unusable(&notifier), 1.0);
    expect_advice(&notifier, "trouble", &format!("The queue {wait} can't be used"));
    sandbox.broker.delete(wait).expect("it is there");
    wait_until(SOON, "it is usable again", || unusable(&notifier) == 0.0);

    wait_for(SOON, "there is none, and none may be made", || {
        // The notifier may have been faster.
        vhost.may_configure(".*");
        sandbox.broker.delete(&sandbox.dead_queue()).expect("it is created again");
        vhost.may_configure(r"^(?!.*\.dead$).*");
        sandbox.broker.ready(&sandbox.dead_queue()).is_none().then_some(())
    });
    let line = notifier.wait_stderr(SOON, &format!("not usable queue={}", sandbox.dead_queue()));
    assert!(line.contains("no permission for"), "{line}");
    check(&notifier);
    wait_until(SOON, "the dead letter is where an operator finds it", || {
        sandbox.broker.ready("webhooks.orphaned") == Some(1)
    });
    let message = sandbox.broker.take("webhooks.orphaned").expect("it is there");
    assert_eq!(message.text("x-dead-reason"), "malformed");
    assert_eq!(message.text("x-origin-queue"), sandbox.queue());
    vhost.may_configure(".*");
    wait_until(SOON, "all is there again", || unusable(&notifier) == 0.0);
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    notifier.terminate();
}

#[test]
fn a_limit_of_queues_is_reported_as_such() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let is_advice = |line: &str| {
        line.contains("ERROR") && line.contains("max-queues") && !line.contains("delete it")
    };
    vhost.limit_queues(4);
    let refused = sandbox.notifier().spawn().finish(SOON);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let last = refused.stderr.lines().last().unwrap_or_default();
    assert!(is_advice(last), "{refused:?}");

    vhost.limit_queues(-1);
    let mut notifier = sandbox.notifier().start();
    vhost.limit_queues(4);
    let wait = "webhooks.wait.24h";
    sandbox.broker.delete(wait).expect("it was made");
    let line = notifier.wait_stderr(SOON, &format!("not usable queue={wait}"));
    assert!(is_advice(&line), "{line}");
    vhost.limit_queues(-1);
    wait_until(SOON, "it is created again", || sandbox.broker.ready(wait) == Some(0));
    notifier.terminate();
}
