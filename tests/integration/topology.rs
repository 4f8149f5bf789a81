//! The queues and exchanges that the notifier creates, and those that it leaves as the operator created
//! them.

use amiquip::{AmqpValue, FieldTable};

use crate::harness::{Event, Receiver, Reply, SOON, Sandbox, Servers, wait_until};

mod lost;
mod orphaned;

fn arguments<const N: usize>(arguments: [(&str, AmqpValue); N]) -> FieldTable {
    let owned = arguments.map(|(name, value)| (name.to_owned(), value));
    FieldTable::from(owned)
}

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

#[test]
fn missing_queues_are_made_durable_and_those_that_hold_retries_and_dead_letters_replicated() {
    let sandbox = Sandbox::without_queues(&Servers::shared(), 2);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1500ms,90s").start();
    notifier.terminate();

    // RabbitMQ refuses a declaration that differs from what exists.
    for queue in &sandbox.queues {
        let declare = |suffix: &str, arguments: FieldTable| {
            let queue = format!("{queue}{suffix}");
            assert!(sandbox.broker.ready(&queue).is_some(), "there is no {queue}");
            sandbox
                .broker
                .declare(&queue, arguments)
                .unwrap_or_else(|error| panic!("{queue} is different: {error:#}"));
        };
        let dead_queue = format!("{queue}.dead");
        declare("", FieldTable::new());
        declare(".dead", arguments([("x-queue-type", text("quorum"))]));
        declare(
            ".retry",
            arguments([
                ("x-queue-type", text("quorum")),
                ("x-dead-letter-exchange", text("")),
                ("x-dead-letter-routing-key", text(&dead_queue)),
            ]),
        );
    }
    for (delay, milliseconds) in [("1500ms", 1500), ("90s", 90_000)] {
        let queue = format!("webhooks.wait.{delay}");
        assert!(sandbox.broker.ready(&queue).is_some(), "there is no {queue}");
        let expected = arguments([
            ("x-queue-type", text("quorum")),
            ("x-message-ttl", AmqpValue::LongLongInt(milliseconds)),
            ("x-dead-letter-exchange", text("webhooks.retry")),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]);
        sandbox
            .broker
            .declare(&queue, expected)
            .unwrap_or_else(|error| panic!("{queue} is different: {error:#}"));
    }
}

#[test]
fn a_queue_that_the_operator_made_is_used_as_it_is() {
    let sandbox = Sandbox::without_queues(&Servers::shared(), 2);
    let limited = arguments([
        ("x-max-length", AmqpValue::LongInt(1000)),
        ("x-max-priority", AmqpValue::LongInt(5)),
    ]);
    let quorum = arguments([("x-queue-type", text("quorum"))]);
    let own = [limited, quorum];
    for (queue, arguments) in sandbox.queues.iter().zip(&own) {
        sandbox.broker.declare(queue, arguments.clone()).expect("a fresh name");
    }
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();

    for queue in &sandbox.queues {
        sandbox.broker.publish(queue, &[Event::new("order.paid")]);
    }

    receiver.wait_at("/", 4);
    notifier.terminate();
    sandbox.wait_drained();
    for (queue, arguments) in sandbox.queues.iter().zip(own) {
        sandbox.broker.declare(queue, arguments).expect("it is as it was");
    }
}

#[test]
fn a_retry_queue_with_other_arguments_fails_the_start_with_its_name_and_the_remedy() {
    let sandbox = Sandbox::new();
    let retry_queue = sandbox.retry_queue();
    sandbox.broker.declare(&retry_queue, FieldTable::new()).expect("a fresh name");
    sandbox.broker.publish(&retry_queue, &[Event::new("precious")]);

    let finished = sandbox.notifier().spawn().finish(SOON);

    assert_eq!(finished.code, Some(1), "{finished:?}");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{finished:?}");
    assert!(errors[0].contains(&retry_queue), "{errors:?}");
    assert!(errors[0].contains("delete"), "no remedy in {errors:?}");
    assert_eq!(sandbox.broker.ready(&retry_queue), Some(1), "it was emptied");
}

#[test]
fn another_start_accepts_everything_as_the_first_left_it() {
    let sandbox = Sandbox::without_queues(&Servers::shared(), 1);
    for _ in 0..2 {
        let notifier = sandbox.notifier().start();
        wait_until(SOON, "both lanes are consumed", || {
            let consumers = |queue: &str| sandbox.broker.consumers(queue);
            consumers(sandbox.queue()) == Some(1) && consumers(&sandbox.retry_queue()) == Some(1)
        });
        notifier.terminate();
    }
}

#[test]
fn a_deleted_wait_queue_costs_no_retry() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    // A delay that no other test uses.
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "432ms,repeat")
        .env("CIRCUIT_BREAKER", "off")
        .env("QUEUES", format!("{}=4", sandbox.queue()))
        .start();
    sandbox.broker.delete("webhooks.wait.432ms").expect("the notifier has made it");

    let events: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    for event in &events {
        wait_until(SOON, "a second attempt", || receiver.of("/", event).len() >= 2);
    }
    wait_until(SOON, "all are counted", || {
        notifier.metric("webhook_request_success_total", &[]) >= events.len() as f64
    });
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_message_that_was_returned_often_is_renewed_before_a_delivery_limit_can_drop_it() {
    let sandbox = Sandbox::without_queues(&Servers::shared(), 1);
    // At its limit of 5 this queue drops a message, since it has no dead-letter exchange.
    let limited =
        arguments([("x-queue-type", text("quorum")), ("x-delivery-limit", AmqpValue::LongInt(5))]);
    sandbox.broker.declare(sandbox.queue(), limited).expect("a fresh name");
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    sandbox.broker.bounce(sandbox.queue(), 4);

    let mut notifier = sandbox.notifier().start();
    notifier.wait_stderr(SOON, "message replaced by a copy queue=");
    receiver.wait_at("/", 1);
    notifier.terminate();

    sandbox.wait_drained();
    let requests = receiver.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!((requests[0].id(), &requests[0].body), (event.id.as_str(), &event.body));
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}
