//! A paused webhook gets no events and loses none.

use uuid::Uuid;

use super::{CAPACITY, Customer, Manner, held_because, publish, wait_held};
use crate::{
    commands::succeed,
    harness::{Event, LATER, Notifier, SOON, Sandbox, holds_for, wait_until},
};
use std::time::Duration;

/// How it is paused.
#[derive(Clone, Copy, Debug)]
enum By {
    Command,
    Sql,
}

impl By {
    #[track_caller]
    fn set(self, sandbox: &Sandbox, webhook: Uuid, is_paused: bool) {
        match self {
            Self::Command => {
                let verb = if is_paused { "pause" } else { "resume" };
                succeed(sandbox, &["webhooks", verb, &webhook.to_string()]);
            }
            Self::Sql => set_paused(sandbox, webhook, is_paused),
        }
    }
}

/// Pauses or resumes it by SQL.
pub(super) fn set_paused(sandbox: &Sandbox, webhook: Uuid, is_paused: bool) {
    let sql = match is_paused {
        true => "UPDATE webhooks SET paused_at = now() WHERE id = $1",
        false => "UPDATE webhooks SET paused_at = NULL WHERE id = $1",
    };
    sandbox.database.execute(sql, &[&webhook]);
}

/// Publishes one event after another until the notifier knows of the pause.
#[track_caller]
pub(super) fn publish_until_held(sandbox: &Sandbox, notifier: &Notifier) -> Vec<Event> {
    let mut published = Vec::new();
    wait_until(SOON, "the notifier knows of the pause", || {
        published.extend(publish(sandbox, 1));
        held_because(notifier, sandbox.queue(), "paused") >= 1.0
    });
    published
}

#[track_caller]
fn check_pause(by: By, dies_meanwhile: bool) {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let mut notifier = sandbox.notifier().start();
    let mut events = publish(&sandbox, 3);
    customer.wait_accepted(SOON, &events);

    by.set(&sandbox, webhook, true);
    events.extend(publish_until_held(&sandbox, &notifier));
    // Events published from now on are held back. The earlier ones arrive.
    events.extend(publish(&sandbox, 30));
    let has_all = || {
        let held = super::held(&notifier, sandbox.queue());
        held + customer.accepted() as f64 == events.len() as f64
    };
    wait_until(SOON, "each has arrived or is held back", has_all);
    let before = customer.requests();
    let quiet = || customer.requests() == before;
    holds_for(Duration::from_millis(500), "nothing is sent", quiet);

    if dies_meanwhile {
        notifier.kill();
        notifier = sandbox.notifier().start();
        events.extend(publish(&sandbox, 10));
        wait_held(&notifier, &sandbox, 10);
        holds_for(Duration::from_millis(1_500), "nothing is sent after the restart", quiet);
    }
    by.set(&sandbox, webhook, false);
    customer.wait_accepted(SOON, &events);
    let own = if dies_meanwhile { events.len() - before } else { events.len() };
    notifier.wait_metric("webhook_request_success_total", &[], own as f64);
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0);
    assert_eq!(super::held(&notifier, &sandbox.retry_queue()), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    customer.assert_in_order(&events, CAPACITY);
}

#[test]
fn a_webhook_paused_by_a_command_gets_nothing_until_it_is_resumed_and_then_all_in_order() {
    check_pause(By::Command, false);
}

#[test]
fn a_webhook_paused_by_sql_gets_nothing_until_it_is_resumed_and_then_all_in_order() {
    check_pause(By::Sql, false);
}

#[test]
fn a_pause_and_the_waiting_deliveries_outlive_the_notifier() {
    check_pause(By::Command, true);
}

#[test]
fn a_webhook_paused_before_the_first_start_gets_all_in_order_once_it_is_resumed() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::takes(10));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let early = publish(&sandbox, 30);
    // With one consumer, the order is strict.
    let notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    let mut events = [early, publish(&sandbox, 30)].concat();
    wait_held(&notifier, &sandbox, 60);
    assert_eq!(customer.requests(), 0);

    set_paused(&sandbox, webhook, false);
    wait_until(SOON, "the first ones arrive", || customer.accepted() >= 10);
    // These queue behind the waiting ones.
    events.extend(publish(&sandbox, 20));
    customer.wait_accepted(SOON, &events);
    notifier.wait_metric("webhook_request_success_total", &[], 80.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    customer.assert_in_order(&events, 1);
    assert_eq!(customer.most(), 1);
}

#[test]
fn a_webhook_paused_and_resumed_over_and_over_gets_all_events() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::takes(5));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let notifier = sandbox.notifier().start();
    let mut events = Vec::new();
    for _ in 0..100 {
        set_paused(&sandbox, webhook, true);
        events.extend(publish(&sandbox, 3));
        set_paused(&sandbox, webhook, false);
    }
    customer.wait_accepted(SOON, &events);
    notifier.wait_metric("webhook_request_success_total", &[], 300.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn a_delivery_that_becomes_too_old_during_a_pause_is_dead_within_about_a_minute() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("DELIVERY_MAX_AGE", "5s")
        .start();
    let events = publish(&sandbox, 20);
    wait_held(&notifier, &sandbox, 20);

    let expired = [("reason", "expired")];
    wait_until(LATER, "all are dead", || {
        notifier.metric("webhook_dead_letters_total", &expired) == 20.0
    });
    assert_eq!(notifier.count_stderr(&["delivery dead", "reason=expired"]), 20);
    let letters = sandbox.broker.take_all(&sandbox.dead_queue()).expect("it answers");
    let ids: Vec<_> = letters.iter().map(|letter| letter.text("x-event-id")).collect();
    assert_eq!(ids, events.iter().map(|event| event.id.as_str()).collect::<Vec<_>>());
    assert!(letters.iter().all(|letter| letter.text("x-dead-reason") == "expired"));
    assert_eq!(letters[0].text("x-last-error"), "no attempt yet: the webhook is paused");
    assert_eq!(customer.requests(), 0);
}
