//! The type of new event queues, and how it can be changed.

use std::collections::HashSet;

use amiquip::{AmqpProperties, AmqpValue, FieldTable};

use crate::harness::{Event, LATER, Message, Receiver, SOON, Sandbox, Servers, Signal, wait_until};

fn of_type(kind: &str) -> FieldTable {
    [("x-queue-type".to_owned(), AmqpValue::LongString(kind.to_owned()))].into()
}

/// Whether a queue exists with this type.
fn is_of_type(sandbox: &Sandbox, queue: &str, kind: &str) -> bool {
    sandbox.broker.ready(queue).is_some() && sandbox.broker.declare(queue, of_type(kind)).is_ok()
}

fn aside(sandbox: &Sandbox) -> String {
    format!("webhooks.moving.{}", sandbox.queue())
}

#[test]
fn a_missing_queue_is_created_with_the_chosen_type() {
    for kind in ["quorum", "classic"] {
        let sandbox = Sandbox::without_queues(&Servers::shared(), 1);
        let notifier = sandbox.notifier().env("QUEUE_TYPE", kind).start();
        assert!(is_of_type(&sandbox, sandbox.queue(), kind), "{kind}");
        assert!(is_of_type(&sandbox, &sandbox.dead_queue(), "quorum"), "{kind}");
        notifier.terminate();
    }
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let refused = sandbox.launch(&["run"]).env("QUEUE_TYPE", "stream").spawn().finish(SOON);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("QUEUE_TYPE"), "{refused:?}");
}

#[test]
fn an_existing_queue_keeps_its_type() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("QUEUE_TYPE", "quorum").start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    assert!(!is_of_type(&sandbox, sandbox.queue(), "quorum"));
    notifier.terminate();
}

/// Properties with every field and every type of header.
fn peculiar(number: usize, user: &str) -> AmqpProperties {
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let inner: FieldTable = [("n".to_owned(), AmqpValue::Double(0.5))].into();
    let headers: FieldTable = [
        ("text".to_owned(), text("ä")),
        ("flag".to_owned(), AmqpValue::Boolean(true)),
        ("byte".to_owned(), AmqpValue::ShortShortInt(-7)),
        ("short".to_owned(), AmqpValue::ShortInt(-700)),
        ("long".to_owned(), AmqpValue::LongInt(-70_000)),
        ("longer".to_owned(), AmqpValue::LongLongInt(i64::MIN)),
        ("bytes".to_owned(), AmqpValue::ByteArray(vec![0, 255])),
        ("time".to_owned(), AmqpValue::Timestamp(1_764_000_000)),
        ("none".to_owned(), AmqpValue::Void),
        ("list".to_owned(), AmqpValue::FieldArray(vec![text("a"), AmqpValue::LongInt(1)])),
        ("table".to_owned(), AmqpValue::FieldTable(inner)),
    ]
    .into();
    AmqpProperties::default()
        .with_content_type("application/json".to_owned())
        .with_content_encoding("identity".to_owned())
        .with_headers(headers)
        .with_delivery_mode(2)
        .with_priority(3)
        .with_correlation_id("correlation".to_owned())
        .with_reply_to("reply".to_owned())
        .with_expiration("86400000".to_owned())
        .with_message_id(format!("id-{number:05}"))
        .with_timestamp(1_764_000_000)
        .with_type_("order.paid".to_owned())
        .with_user_id(user.to_owned())
        .with_app_id("app".to_owned())
}

fn ids(messages: &[Message]) -> Vec<String> {
    let id = |message: &Message| message.properties.message_id().clone().unwrap_or_default();
    messages.iter().map(id).collect()
}

#[test]
fn a_classic_queue_becomes_a_quorum_queue_and_back_with_all_its_messages() {
    const COUNT: usize = 1_050;
    let sandbox = Sandbox::new();
    let user = url::Url::parse(&sandbox.servers.amqp_url).expect("a URL").username().to_owned();
    let events: Vec<_> = (0..COUNT)
        .map(|number| Event::raw(format!("{{\"n\":{number}}}")).properties(peculiar(number, &user)))
        .collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    let dry = sandbox.command(&["queues", "move", sandbox.queue(), "--dry-run"]);
    let summary =
        format!("{} is a classic queue; messages: {COUNT}, consumers: 0", sandbox.queue());
    assert_eq!((dry.code, dry.stdout), (Some(0), summary));
    for kind in ["quorum", "classic", "quorum"] {
        let moved = sandbox.command(&["queues", "move", sandbox.queue(), "--to", kind]);
        assert_eq!(moved.code, Some(0), "{moved:?}");
        let summary =
            format!("{} is a {kind} queue now, with its messages: {COUNT}", sandbox.queue());
        assert!(moved.stdout.ends_with(&summary), "{moved:?}");
        assert!(is_of_type(&sandbox, sandbox.queue(), kind));
        assert_eq!(sandbox.broker.ready(&aside(&sandbox)), None);
    }
    let again = sandbox.command(&["queues", "move", sandbox.queue()]);
    assert!(again.stdout.starts_with("nothing to do"), "{again:?}");

    let messages = sandbox.broker.take_all(sandbox.queue()).expect("it is there");
    assert_eq!(messages.len(), COUNT);
    for (number, (message, event)) in messages.iter().zip(&events).enumerate() {
        assert_eq!(message.body, event.body);
        // A quorum queue counts deliveries.
        let mut headers = message.properties.headers().clone().expect("there are some");
        headers.remove("x-delivery-count");
        let properties = message.properties.clone().with_headers(headers);
        assert_eq!(properties, peculiar(number, &user));
    }
}

#[test]
fn events_left_in_the_old_queue_are_delivered_from_the_new_one() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.notifier().start().terminate();
    let events: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    let moved = sandbox.command(&["queues", "move", sandbox.queue(), "--json"]);
    let printed: serde_json::Value = serde_json::from_str(&moved.stdout).expect("JSON");
    assert_eq!((&printed["type"], &printed["messages"]), (&"quorum".into(), &20.into()));
    let notifier = sandbox.notifier().start();
    receiver.wait_at("/", 20);
    sandbox.wait_drained();
    notifier.terminate();
    assert_eq!(receiver.requests().len(), 20);
}

#[test]
fn a_move_that_is_killed_again_and_again_loses_nothing_and_keeps_the_order() {
    const COUNT: usize = 6_000;
    let sandbox = Sandbox::new();
    let events: Vec<_> =
        (0..COUNT).map(|number| Event::new("order.paid").id(&format!("{number:05}"))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    let aside = aside(&sandbox);
    let mut kills = 0;
    let mut kill_when = |what: &str, is_time: &dyn Fn() -> bool| {
        let mut moving = sandbox.launch(&["queues", "move", sandbox.queue()]).spawn();
        wait_until(SOON, what, || is_time() || !moving.is_running());
        kills += usize::from(moving.is_running());
        moving.kill();
    };
    let put_aside = |least: u32| {
        let aside = aside.clone();
        let sandbox = &sandbox;
        move || sandbox.broker.ready(&aside).is_some_and(|count| count >= least)
    };
    kill_when("some are put aside", &put_aside(1));
    kill_when("more are put aside", &put_aside(3_000));
    let comes_back = || {
        is_of_type(&sandbox, sandbox.queue(), "quorum")
            && sandbox.broker.ready(sandbox.queue()) > Some(0)
    };
    kill_when("some are back", &comes_back);

    wait_until(SOON, "the last one's consumer has ended", || {
        sandbox.broker.consumers(&aside).is_none_or(|count| count == 0)
    });
    let mut interrupted = sandbox.launch(&["queues", "move", sandbox.queue()]).spawn();
    wait_until(SOON, "it is under way", || {
        sandbox.broker.consumers(&aside) == Some(1) || !interrupted.is_running()
    });
    interrupted.signal(Signal::INT);
    let interrupted = interrupted.finish(SOON);
    if interrupted.code != Some(0) {
        assert_eq!(interrupted.code, Some(1), "{interrupted:?}");
        assert!(
            interrupted.stderr.contains("nothing is lost: run the command again"),
            "{interrupted:?}"
        );
    }
    let last = sandbox.launch(&["queues", "move", sandbox.queue()]).spawn().finish(LATER);
    assert_eq!(last.code, Some(0), "{last:?}");
    assert!(is_of_type(&sandbox, sandbox.queue(), "quorum"));
    assert_eq!(sandbox.broker.ready(&aside), None);

    let left = ids(&sandbox.broker.take_all(sandbox.queue()).expect("it is there"));
    assert!(left.len() <= COUNT + 32 * kills, "{} after {kills} kills", left.len());
    let mut seen = HashSet::new();
    let first: Vec<_> = left.iter().filter(|id| seen.insert(*id)).cloned().collect();
    let expected: Vec<_> = events.iter().map(|event| event.id.clone()).collect();
    let differs = first.iter().zip(&expected).position(|(one, other)| one != other);
    assert_eq!(
        (first.len(), differs),
        (expected.len(), None),
        "{:?}",
        differs.map(|at| &first[at])
    );
}

#[test]
fn a_queue_that_is_used_or_that_would_lose_something_is_left_alone() {
    let sandbox = Sandbox::with_queues(2);
    let [consumed, prioritized] = [&sandbox.queues[0], &sandbox.queues[1]];
    let refused = |queue: &str, code: i32, reason: &str| {
        let finished = sandbox.command(&["queues", "move", queue]);
        assert_eq!(finished.code, Some(code), "{queue}: {finished:?}");
        assert!(finished.stderr.contains(reason), "no {reason:?}: {finished:?}");
    };
    let notifier = sandbox.notifier().start();
    refused(consumed, 1, "stop the notifiers");
    notifier.terminate();

    sandbox.broker.delete(prioritized).expect("it is there");
    let arguments = [("x-max-priority".to_owned(), AmqpValue::LongInt(5))];
    sandbox.broker.declare(prioritized, arguments.into()).expect("it is gone");
    sandbox.broker.publish(prioritized, &[Event::new("order.paid")]);
    refused(prioritized, 1, "x-max-priority");
    assert_eq!(sandbox.broker.ready(prioritized), Some(1));

    refused(&format!("{consumed}_nowhere"), 1, "there is no queue");
    refused(&sandbox.retry_queue(), 2, "belongs to the notifier");
    refused("webhooks.orphaned", 2, "belongs to the notifier");
}
