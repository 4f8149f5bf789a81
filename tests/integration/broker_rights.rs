//! What RabbitMQ has to permit: exactly the documented permissions are enough, and `check` reports what is
//! missing.

use amiquip::{AmqpValue, FieldTable};

use crate::{
    harness::{
        Event, FaultServers, Receiver, Reply, SOON, Sandbox, Servers, Vhost, notifier::Launch,
        process::Finished, wait_until,
    },
    readme::manual,
};

/// The three patterns of the manual, for the one queue of a sandbox.
fn documented_rights(sandbox: &Sandbox) -> [String; 3] {
    let manual = manual("rabbitmq");
    let (_, rest) = manual.split_once("rabbitmqctl set_permissions").expect("it is documented");
    // Every second piece lies between the quotes.
    let mut patterns = rest.split('\'').skip(1).step_by(2).map(|pattern| {
        assert!(pattern.starts_with("^("), "no pattern: {pattern}");
        pattern.replace("(high|medium|low)_priority", sandbox.queue())
    });
    std::array::from_fn(|_| patterns.next().expect("three patterns"))
}

fn launch(sandbox: &Sandbox, vhost: &Vhost<'_>, arguments: &[&str]) -> Launch {
    sandbox.launch(arguments).env("AMQP_URL", &vhost.url)
}

#[track_caller]
fn check(sandbox: &Sandbox, vhost: &Vhost<'_>) -> Finished {
    launch(sandbox, vhost, &["check"]).spawn().finish(SOON)
}

#[track_caller]
fn assert_fails(finished: &Finished, subject: &str, expected: &[&str]) {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let failures = finished.stdout.lines().filter(|line| line.starts_with("FAIL"));
    let about: Vec<_> = failures.filter(|line| line.contains(subject)).collect();
    for part in expected {
        assert!(
            about.iter().any(|line| line.contains(part)),
            "no {part:?} in {about:?}: {finished:?}"
        );
    }
}

#[test]
fn the_documented_rights_are_enough_to_deliver_retry_dead_letter_and_keep_backlogs() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    let sandbox = Sandbox::without_queues(&vhost.servers, 1);
    let rights = documented_rights(&sandbox);
    vhost.grant(rights.each_ref().map(String::as_str));

    // First nothing exists, and afterwards everything does.
    let finished = check(&sandbox, &vhost);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(sandbox.broker.ready(sandbox.queue()), None, "`check` creates no queue");
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/retried", 1) | ("/dead", 1 | 2) => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/retried"), &["retried"]);
    sandbox.webhook(&receiver.url("/dead"), &["dead"]);
    let paused = sandbox.webhook(&receiver.url("/paused"), &["paused"]).to_string();
    let pause = |verb: &str| {
        let finished = launch(&sandbox, &vhost, &["webhooks", verb, &paused]).spawn().finish(SOON);
        assert_eq!(finished.code, Some(0), "{finished:?}");
    };
    pause("pause");
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", &vhost.url)
        .env("RETRY_SCHEDULE", "200ms")
        .env("CIRCUIT_BREAKER", "off")
        .start();

    let events = ["retried", "dead", "paused"].map(Event::new);
    let [retried, dead, waiting] = &events;
    sandbox.broker.publish(sandbox.queue(), &events);
    wait_until(SOON, "it is delivered by a retry", || receiver.of("/retried", retried).len() == 2);
    wait_until(SOON, "it is dead", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(1));
    wait_until(SOON, "it waits in a backlog", || {
        sandbox.backlogs().iter().any(|queue| sandbox.broker.ready(queue) == Some(1))
    });
    assert_eq!(receiver.of("/paused", waiting).len(), 0);
    pause("resume");
    wait_until(SOON, "the backlog is delivered", || receiver.of("/paused", waiting).len() == 1);

    for arguments in [
        &["dead-letters", "list"][..],
        &["dead-letters", "replay", "--reason", "exhausted"],
        &["publish", sandbox.queue(), "{}", "--type", "retried", "--id", "by-command"],
        &["check"],
    ] {
        let finished = launch(&sandbox, &vhost, arguments).spawn().finish(SOON);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
    }
    wait_until(SOON, "the dead letter is delivered", || receiver.of("/dead", dead).len() >= 3);
    wait_until(SOON, "what the command published, too", || {
        receiver.requests().iter().any(|request| request.id() == "by-command")
    });
    assert!(notifier.is_ready());
    let log = notifier.stderr().join("\n");
    assert!(!log.contains("ACCESS_REFUSED"), "{log}");
    notifier.terminate();
}

#[test]
fn check_says_which_right_is_missing_and_how_it_is_granted() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let queue = format!("to read queue {:?}", sandbox.queue());
    let grants = "rabbitmqctl set_permissions -p";
    for (rights, expected) in [
        (["^$", "^$", "^$"], vec!["to configure", "to write", "to read", grants]),
        ([".*", ".*", r"^(webhooks\..*|.*\.(retry|dead))$"], vec![&queue, grants]),
        (
            [".*", r"^(webhooks\..*|.*\.retry)$", ".*"],
            vec!["to write the default exchange", grants],
        ),
        (
            [".*", r"^(amq\.default|webhooks\.(retry|backlog.*|wait\..*)|.*\.retry)$", ".*"],
            vec![r#"to write exchange "webhooks.wait""#, grants],
        ),
        (
            [".*", r"^(amq\.default|webhooks\.(retry|wait|backlog))$", ".*"],
            vec!["to write queue", grants],
        ),
        ([".*", ".*", r"^.*(priority|high|retry|dead|\.[0-9]+[smh])$"], vec!["to read exchange"]),
    ] {
        vhost.grant(rights);
        let finished = check(&sandbox, &vhost);
        assert_fails(&finished, "rights", &expected);
        let ready = |queue: &str| sandbox.broker.ready(queue);
        assert_eq!(ready(sandbox.queue()), Some(0));
        assert_eq!(ready(&sandbox.retry_queue()), None, "`check` creates no queue");
    }

    vhost.grant([".*", ".*", ".*"]);
    // Topic permissions are checked for existing exchanges only.
    let notifier = sandbox.notifier().start();
    notifier.terminate();
    vhost.grant_topics("webhooks.wait", ["^none$", ".*"]);
    assert_fails(
        &check(&sandbox, &vhost),
        "rights",
        &["rabbitmqctl set_topic_permissions -p", "by topic permissions to write"],
    );
    vhost.grant_topics("webhooks.wait", [".*", ".*"]);
    assert_eq!(check(&sandbox, &vhost).code, Some(0));
}

#[test]
fn check_says_that_a_virtual_host_has_no_room_for_the_queues() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    vhost.grant([".*", ".*", ".*"]);
    // There is room for some of them.
    vhost.limit_queues(4);
    assert_fails(
        &check(&sandbox, &vhost),
        "room",
        &["max-queues", "queues are missing, 3 can be created"],
    );
    vhost.limit_queues(-1);
    let finished = check(&sandbox, &vhost);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(sandbox.broker.ready(&sandbox.retry_queue()), None, "`check` creates no queue");

    // Without backlogs everything is delivered, too.
    sandbox.notifier().start().terminate();
    vhost.limit_queues(1);
    let finished = check(&sandbox, &vhost);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("no queue can be created for a backlog"), "{finished:?}");
}

#[test]
fn a_stream_as_event_queue_is_reported_by_check_and_run_until_it_is_gone() {
    let sandbox = Sandbox::without_queues(&Servers::shared(), 2);
    let stream = AmqpValue::LongString("stream".to_owned());
    let arguments = FieldTable::from([("x-queue-type".to_owned(), stream)]);
    sandbox.broker.declare(sandbox.queue(), arguments).expect("a fresh name");
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);

    assert_fails(&sandbox.command(&["check"]), sandbox.queue(), &["is a stream", "delete it"]);

    let mut notifier = sandbox.notifier().start_unready();
    let line = notifier.wait_stderr(SOON, "is a stream");
    assert!(line.contains(sandbox.queue()), "{line}");
    // Its neighbour isn't affected.
    let other = Event::new("order.paid");
    sandbox.broker.publish(&sandbox.queues[1], std::slice::from_ref(&other));
    wait_until(SOON, "the other queue is consumed", || receiver.of("/", &other).len() == 1);
    assert!(!notifier.is_ready());

    sandbox.broker.delete(sandbox.queue()).expect("it is there");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "it is delivered", || receiver.of("/", &event).len() == 1);
    notifier.terminate();
    assert_eq!(sandbox.command(&["check"]).code, Some(0));
}
