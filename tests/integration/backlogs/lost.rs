//! A backlog's queue, binding or row is deleted.

use std::time::Duration;

use super::{
    Customer, Manner, backlog, held, open_breaker, pauses::set_paused, publish, wait_held,
};
use crate::harness::{Event, LATER, Notifier, SOON, Sandbox, wait_for, wait_until};

fn lost(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_backlogs_lost_total", &[])
}

#[test]
fn a_deleted_backlog_is_reported_and_created_again_and_the_others_continue() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    let other = Customer::new(Manner::takes(20));
    let webhook = sandbox.webhook(&customer.url(), &["order.paid"]);
    let other_webhook = sandbox.webhook(&other.url(), &["other"]);
    let slowly = "UPDATE webhooks SET max_in_flight = 1 WHERE id = $1";
    sandbox.database.execute(slowly, &[&other_webhook]);
    let mut notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,2s,2s")
        .env("RETRY_SCHEDULE", "1m,repeat")
        .start();
    open_breaker(&sandbox, &notifier);
    let before = held(&notifier, sandbox.queue());
    publish(&sandbox, 20);
    wait_until(SOON, "all are held back", || held(&notifier, sandbox.queue()) >= before + 20.0);
    let others: Vec<_> = (0..400).map(|_| Event::new("other")).collect();
    sandbox.broker.publish(sandbox.queue(), &others);
    wait_until(SOON, "the other has a backlog", || other.accepted() >= 50);

    let queue = backlog(&sandbox, webhook);
    sandbox.broker.delete(&queue).expect("it is there");
    let at_deletion = other.accepted();
    assert!(at_deletion < 350, "{at_deletion} of 400 were delivered before");
    let line = notifier.wait_stderr(SOON, "backlog lost");
    assert!(line.contains("ERROR") && line.contains(&format!("queue={queue} messages=")), "{line}");
    notifier.wait_metric("webhook_backlogs_lost_total", &[], 1.0);
    let new = publish(&sandbox, 10);
    wait_until(SOON, "there is a new backlog", || sandbox.broker.ready(&queue) > Some(0));
    wait_until(Duration::from_secs(10), "the other backlog drains", || {
        other.accepted() > at_deletion + 20
    });

    customer.becomes(Manner::AT_ONCE);
    customer.wait_accepted(LATER, &new);
    other.wait_accepted(SOON, &others);
    assert!(notifier.is_running());
    assert_eq!(lost(&notifier), 1.0);
    assert_eq!(notifier.count_stderr(&["backlog lost"]), 1);
    notifier.terminate();
    customer.assert_each_once(&new);
    other.assert_in_order(&others, super::CAPACITY);
}

/// Deletes a backlog with some deliveries, and publishes until it exists again. Checks that the loss is reported.
fn delete_while_events_arrive(sandbox: &Sandbox, notifier: &mut Notifier, queue: &str) {
    let deliveries = [("queue", sandbox.queue())];
    let waiting = wait_for(SOON, "all that wait are counted", || {
        let counted = notifier.metric("webhook_backlog_deliveries", &deliveries);
        (counted >= 5.0 && sandbox.broker.ready(queue).map(f64::from) == Some(counted))
            .then_some(counted)
    });
    sandbox.broker.delete(queue).expect("it is there");
    wait_until(SOON, "there is a new backlog", || {
        publish(sandbox, 1);
        sandbox.broker.ready(queue).is_some()
    });
    let line = notifier.wait_stderr(SOON, &format!("backlog lost queue={queue}"));
    assert!(line.contains(&format!("messages={waiting}:")), "{line}");
    assert_eq!(lost(notifier), 1.0);
    assert!(notifier.get("/status.json").body.contains(&format!("The queue {queue} was deleted")));
    assert_eq!(notifier.metric("webhook_topology_unusable", &[]), 0.0);
}

#[test]
fn a_backlog_that_is_deleted_while_events_arrive_for_it_is_reported_if_its_webhook_is_paused() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let mut notifier = sandbox.notifier().start();
    publish(&sandbox, 5);
    delete_while_events_arrive(&sandbox, &mut notifier, &backlog(&sandbox, webhook));
    set_paused(&sandbox, webhook, false);
    let new = publish(&sandbox, 3);
    customer.wait_accepted(LATER, &new);
    notifier.terminate();
}

#[test]
fn a_backlog_that_is_deleted_while_events_arrive_for_it_is_reported_if_its_breaker_is_open() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let mut notifier = sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,5s,5s")
        .env("RETRY_SCHEDULE", "1m,repeat")
        .start();
    open_breaker(&sandbox, &notifier);
    publish(&sandbox, 10);
    delete_while_events_arrive(&sandbox, &mut notifier, &backlog(&sandbox, webhook));
    let new = publish(&sandbox, 3);
    customer.becomes(Manner::AT_ONCE);
    customer.wait_accepted(LATER, &new);
    assert_eq!(notifier.count_stderr(&["backlog interrupted"]), 0);
    assert_eq!(notifier.count_stderr(&["backlog lost"]), 1);
    notifier.terminate();
}

#[test]
fn a_request_in_flight_while_its_backlog_is_deleted_ends_well() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    sandbox.database.execute("UPDATE webhooks SET max_in_flight = 1 WHERE id = $1", &[&webhook]);
    let mut notifier = sandbox.notifier().start();
    let first = publish(&sandbox, 1);
    customer.wait_accepted(SOON, &first);
    customer.becomes(Manner::takes(8_000));
    publish(&sandbox, 3);
    // The first of them was in its queue, the second one in the backlog.
    let queue = backlog(&sandbox, webhook);
    wait_until(SOON, "the head of the backlog is in flight, and the last one is there", || {
        customer.requests() == 3 && held(&notifier, sandbox.queue()) >= 2.0
    });
    sandbox.broker.delete(&queue).expect("it is there");
    notifier.wait_stderr(SOON, "backlog lost");
    let new = publish(&sandbox, 3);
    wait_until(SOON, "there is a new backlog", || sandbox.broker.ready(&queue) > Some(0));
    assert_eq!(customer.accepted(), 2, "the request is still in flight");
    customer.becomes(Manner::AT_ONCE);
    customer.wait_accepted(SOON, &new);
    let more = publish(&sandbox, 20);
    customer.wait_accepted(SOON, &more);
    assert!(notifier.is_running());
    assert_eq!(notifier.count_stderr(&["panicked"]), 0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&[new, more].concat());
    assert_eq!(customer.most(), 1);
}

#[test]
fn a_delivery_without_a_binding_waits_a_minute_and_the_binding_is_created_again() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let mut notifier = sandbox.notifier().start();
    let mut events = publish(&sandbox, 5);
    wait_held(&notifier, &sandbox, 5);
    let queue = backlog(&sandbox, webhook);
    wait_until(SOON, "all wait there", || sandbox.broker.ready(&queue) == Some(5));
    let key = format!("{}.{webhook}", sandbox.queue());
    sandbox.broker.unbind(&queue, "webhooks.backlog", &key);

    let returned = publish(&sandbox, 1);
    wait_held(&notifier, &sandbox, 6);
    assert_eq!(sandbox.broker.ready(&queue), Some(5), "without a binding it can't get there");
    wait_until(SOON, "it is bound again", || {
        events.extend(publish(&sandbox, 1));
        sandbox.broker.ready(&queue) > Some(5)
    });
    set_paused(&sandbox, webhook, false);
    customer.wait_accepted(LATER, &returned);
    customer.wait_accepted(SOON, &events);
    events.extend(returned);
    notifier.wait_metric("webhook_request_success_total", &[], events.len() as f64);
    assert_eq!(lost(&notifier), 0.0);
    assert!(notifier.is_running());
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn a_deleted_row_is_written_again() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let notifier = sandbox.notifier().start();
    let mut events = publish(&sandbox, 5);
    wait_held(&notifier, &sandbox, 5);
    assert_eq!(sandbox.database.execute("DELETE FROM backlogs", &[]), 1);
    wait_until(SOON, "the row exists again", || sandbox.backlogs() == [backlog(&sandbox, webhook)]);

    events.extend(publish(&sandbox, 5));
    wait_held(&notifier, &sandbox, 10);
    assert_eq!(lost(&notifier), 0.0);
    set_paused(&sandbox, webhook, false);
    customer.wait_accepted(SOON, &events);
    notifier.wait_metric("webhook_request_success_total", &[], 10.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    customer.assert_in_order(&events, super::CAPACITY);
}

#[test]
fn a_backlog_without_a_row_is_found_at_the_next_start() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let notifier = sandbox.notifier().start();
    let events = publish(&sandbox, 5);
    wait_held(&notifier, &sandbox, 5);
    notifier.terminate();
    assert_eq!(sandbox.database.execute("DELETE FROM backlogs", &[]), 1);
    set_paused(&sandbox, webhook, false);

    let mut notifier = sandbox.notifier().start();
    let line = notifier.wait_stderr(SOON, "backlog found");
    assert!(line.contains(&backlog(&sandbox, webhook)), "{line}");
    customer.wait_accepted(SOON, &events);
    wait_until(SOON, "it has a row", || sandbox.backlogs() == [backlog(&sandbox, webhook)]);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}
