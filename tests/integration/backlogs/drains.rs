//! A notifier that ends while a backlog drains, or while it holds the heads of several.

use std::time::Duration;

use super::{
    CAPACITY, Customer, Manner, open_breaker, pauses::set_paused, publish, wait_held,
    with_a_breaker_for_a_minute,
};
use crate::harness::{Event, LATER, Notifier, SOON, Sandbox, wait_until};

/// They take two seconds, so that even on a busy machine the notifier ends in the middle of them.
const ALL: usize = 1_500;

struct Stage {
    sandbox: Sandbox,
    customer: Customer,
    events: Vec<Event>,
    notifier: Notifier,
}

/// A backlog of `count` events that drains, and of which at least `arrived` have arrived.
#[track_caller]
fn draining(count: usize, arrived: usize) -> Stage {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::takes(50));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    set_paused(&sandbox, webhook, true);
    let notifier = sandbox.notifier().start();
    let events = publish(&sandbox, count);
    wait_held(&notifier, &sandbox, count);
    set_paused(&sandbox, webhook, false);
    wait_until(SOON, "it drains", || customer.accepted() >= arrived);
    Stage { sandbox, customer, events, notifier }
}

#[test]
fn a_kill_while_a_backlog_drains_loses_nothing_and_repeats_what_was_in_flight() {
    let Stage { sandbox, customer, events, notifier } = draining(ALL, 150);
    notifier.kill();
    let accepted = customer.accepted();
    assert!(accepted < ALL - 50, "{accepted} of {ALL} before the end");

    let notifier = sandbox.notifier().start();
    customer.wait_accepted(LATER, &events);
    sandbox.drain(Vec::from([notifier]), || sandbox.notifier());
    let repeats = customer.repeats(&events);
    assert!(repeats <= CAPACITY, "{repeats} events were repeated");
}

#[test]
fn a_shutdown_while_a_backlog_drains_is_quick_and_loses_and_repeats_nothing() {
    let Stage { sandbox, customer, events, notifier } = draining(ALL, 150);
    let exit = notifier.terminate();
    assert!(exit.took < Duration::from_secs(10), "{exit:?}");
    let accepted = customer.accepted();
    assert!(accepted < ALL - 50, "{accepted} of {ALL} before the end");

    let notifier = sandbox.notifier().start();
    customer.wait_accepted(LATER, &events);
    sandbox.wait_drained();
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    // Up to a capacity may be reordered on the way into the backlog, and again on the way out.
    customer.assert_in_order(&events, 2 * CAPACITY);
}

#[test]
fn a_shutdown_while_heads_are_held_is_quick_and_loses_and_repeats_nothing() {
    let sandbox = Sandbox::new();
    let away = Customer::new(Manner::AT_ONCE);
    let paused = Customer::new(Manner::AT_ONCE);
    sandbox.webhook(&away.url(), &["order.paid"]);
    let paused_webhook = sandbox.webhook(&paused.url(), &["later"]);
    set_paused(&sandbox, paused_webhook, true);
    let notifier = with_a_breaker_for_a_minute(&sandbox).start();
    let mut events = publish(&sandbox, 5);
    away.wait_accepted(SOON, &events);
    away.becomes(Manner::Refuses(503));
    // These wait for a minute.
    let failed = open_breaker(&sandbox, &notifier);
    let before = super::held(&notifier, sandbox.queue());
    events.extend(publish(&sandbox, 50));
    let later: Vec<_> = (0..50).map(|_| Event::new("later")).collect();
    sandbox.broker.publish(sandbox.queue(), &later);
    wait_until(SOON, "all are held back", || {
        super::held(&notifier, sandbox.queue()) >= before + 100.0
    });

    let exit = notifier.terminate();
    assert!(exit.took < Duration::from_secs(10), "{exit:?}");
    assert_eq!(paused.requests(), 0);
    away.becomes(Manner::AT_ONCE);
    set_paused(&sandbox, paused_webhook, false);
    let notifier = with_a_breaker_for_a_minute(&sandbox).start();
    away.wait_accepted(SOON, &events);
    paused.wait_accepted(SOON, &later);
    away.wait_accepted(LATER, &failed);
    sandbox.wait_drained();
    notifier.terminate();
    sandbox.wait_drained();
    away.assert_each_once(&[events, failed].concat());
    paused.assert_each_once(&later);
    paused.assert_in_order(&later, CAPACITY);
}
