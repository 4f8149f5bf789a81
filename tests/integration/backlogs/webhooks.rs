//! A webhook is deleted or disabled while its backlog has deliveries.

use std::time::Duration;

use super::{
    Customer, Manner, backlog, held, open_breaker, pauses::set_paused, publish, wait_held,
    with_a_breaker_for_a_minute,
};
use crate::harness::{Event, Notifier, SOON, Sandbox, holds_for, wait_until};

/// A removal takes 35 s with the backlog closed and 35 s with it unbound; each step may be a second or two
/// late.
const REMOVAL: Duration = Duration::from_secs(110);

fn dropped(notifier: &Notifier, reason: &str) -> f64 {
    notifier.metric("webhook_deliveries_dropped_total", &[("reason", reason)])
}

#[test]
fn the_backlog_of_a_deleted_webhook_is_dropped_and_removed() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    let neighbour = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["order.paid"]);
    sandbox.webhook(&neighbour.url(), &["other"]);
    let notifier = with_a_breaker_for_a_minute(&sandbox).start();
    open_breaker(&sandbox, &notifier);
    let before = held(&notifier, sandbox.queue());
    publish(&sandbox, 300);
    wait_until(SOON, "all are held back", || held(&notifier, sandbox.queue()) >= before + 300.0);
    let requests = customer.requests();
    customer.becomes(Manner::AT_ONCE);
    let delete = "DELETE FROM webhooks WHERE id = $1";
    sandbox.database.execute(delete, &[&webhook]);

    wait_until(SOON, "they are dropped", || dropped(&notifier, "deleted") >= 300.0);
    let all = dropped(&notifier, "deleted");
    assert_eq!(all, held(&notifier, sandbox.queue()));
    let id = webhook.to_string();
    assert_eq!(notifier.count_stderr(&["deliveries dropped", &id, "reason=deleted"]), 1);
    assert_eq!(notifier.count_stderr(&["delivery dropped", &id]), 0);
    let queue = backlog(&sandbox, webhook);
    assert_eq!(sandbox.broker.ready(&queue), Some(0));
    let other = Event::new("other");
    sandbox.publish(&other);
    neighbour.wait_accepted(SOON, &[other]);

    wait_until(REMOVAL, "the queue is deleted", || sandbox.broker.ready(&queue).is_none());
    wait_until(SOON, "and its row", || sandbox.backlogs().is_empty());
    assert_eq!(customer.requests(), requests, "nothing was sent");
    assert_eq!(notifier.metric("webhook_backlogs_lost_total", &[]), 0.0);
    assert_eq!(notifier.count_stderr(&["backlog removed", &id]), 1);
    assert_eq!(notifier.count_stderr(&["interrupted"]), 0);
    let other = Event::new("other");
    sandbox.publish(&other);
    neighbour.wait_accepted(SOON, &[other]);
    notifier.terminate();
}

#[test]
fn the_backlog_of_a_disabled_webhook_is_dropped_and_later_events_arrive_once_it_is_enabled() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let notifier = sandbox.notifier().start();
    publish(&sandbox, 300);
    wait_held(&notifier, &sandbox, 300);
    let disable = "UPDATE webhooks SET disabled_at = now(), paused_at = NULL WHERE id = $1";
    sandbox.database.execute(disable, &[&webhook]);

    wait_until(SOON, "they are dropped", || dropped(&notifier, "disabled") >= 300.0);
    holds_for(Duration::from_millis(500), "each is dropped once", || {
        dropped(&notifier, "disabled") == 300.0
    });
    let id = webhook.to_string();
    assert_eq!(notifier.count_stderr(&["deliveries dropped", &id, "reason=disabled"]), 1);
    assert_eq!(notifier.count_stderr(&["delivery dropped", &id]), 0);
    assert_eq!(customer.requests(), 0);

    let enable = "UPDATE webhooks SET disabled_at = NULL WHERE id = $1";
    sandbox.database.execute(enable, &[&webhook]);
    // No receiver gets an event that the notifier receives before it knows of the change.
    let mut events = Vec::new();
    wait_until(SOON, "it gets events again", || {
        events.extend(publish(&sandbox, 1));
        customer.accepted() >= 1
    });
    let more = publish(&sandbox, 20);
    customer.wait_accepted(SOON, &more);
    customer.assert_each_once(&more);
    assert_eq!(dropped(&notifier, "disabled"), 300.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_webhook_deleted_while_the_head_of_its_backlog_waits_takes_no_capacity() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let busy = Customer::new(Manner::takes(4_000));
    let webhook = sandbox.webhook(&customer.url(), &["order.paid"]);
    let rate = "UPDATE webhooks SET rate_per_second = 1 WHERE id = $1";
    sandbox.database.execute(rate, &[&webhook]);
    sandbox.webhook(&busy.url(), &["busy"]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .start();
    publish(&sandbox, 4);
    wait_held(&notifier, &sandbox, 3);
    // The whole capacity is in use when the head is due.
    let first = Event::new("busy");
    sandbox.publish(&first);
    wait_until(SOON, "the capacity is in use", || busy.requests() == 1);
    let due = std::time::Instant::now() + Duration::from_millis(1_500);
    wait_until(SOON, "the head is due", || std::time::Instant::now() > due);
    sandbox.database.execute("DELETE FROM webhooks WHERE id = $1", &[&webhook]);
    wait_until(SOON, "its backlog is dropped", || dropped(&notifier, "deleted") >= 1.0);
    busy.wait_accepted(SOON, &[first]);

    busy.becomes(Manner::AT_ONCE);
    let second = Event::new("busy");
    sandbox.publish(&second);
    busy.wait_accepted(SOON, &[second]);
    notifier.terminate();
}
