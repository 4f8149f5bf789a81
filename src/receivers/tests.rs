use super::line::PATIENCE;
use super::*;
use std::thread;

use crate::domain::outcome::Reason;
use crate::domain::pace::ReceiverCounts;
use crate::domain::webhook::Group;
use crate::shutdown::{self, Shutdown};

fn receivers(capacity: u16) -> Receivers {
    Receivers::new([capacity], "5,1s,5m".parse().expect("a breaker"), || 0.5)
}

fn by(webhook: u128) -> Ask {
    let (webhook, group) = (Uuid::from_u128(webhook), Group::of(&webhook.to_string()));
    Ask { queue: 0, webhook, group, limits: Limits::default(), is_head: false }
}

fn admit(receivers: &Receivers, shutdown: &Shutdown, webhook: u128) -> Result<Attempt, Refusal> {
    let limit = Duration::from_secs(600);
    receivers.wait(receivers.ask(by(webhook), DeliveryKind::Fresh, false)?, limit, shutdown)
}

fn prove(receivers: &Receivers, shutdown: &Shutdown, webhook: u128) {
    let attempt = admit(receivers, shutdown, webhook).expect("an attempt");
    receivers.end(attempt, AttemptEnd::Delivered);
}

/// Two receivers that have answered; the first one has the only place.
fn with_one_place(shutdown: &Shutdown) -> (Receivers, Attempt) {
    let receivers = receivers(1);
    prove(&receivers, shutdown, 1);
    prove(&receivers, shutdown, 2);
    let first = admit(&receivers, shutdown, 1).expect("the only place");
    (receivers, first)
}

#[test]
fn a_delivery_that_waits_for_a_place_begins_when_there_is_one() {
    let (_trigger, shutdown) = shutdown::channel();
    let (receivers, first) = with_one_place(&shutdown);
    thread::scope(|scope| {
        let second = scope.spawn(|| admit(&receivers, &shutdown, 2));
        while receivers.lock().waiting.is_empty() {
            thread::yield_now();
        }
        receivers.end(first, AttemptEnd::Delivered);
        let second = second.join().expect("no panic").expect("the place");
        assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 1));
        receivers.give_back(second);
    });
    assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 0));
}

#[test]
fn a_delivery_that_waits_too_long_goes_to_the_backlog_and_the_next_one_queues_behind_it() {
    let (_trigger, shutdown) = shutdown::channel();
    let receivers = receivers(2);
    prove(&receivers, &shutdown, 1);
    let first = admit(&receivers, &shutdown, 1).expect("its share");
    let entry_of = |refusal: Refusal| refusal.entry.expect("a place in the backlog");
    let second = admit(&receivers, &shutdown, 1).expect_err("it has its share");
    assert_eq!(second.hold, Hold::Share);
    receivers.end(first, AttemptEnd::Delivered);
    let third = admit(&receivers, &shutdown, 1).expect_err("others come first");
    assert_eq!(third.hold, Hold::Share, "what holds up those before it");
    thread::scope(|scope| {
        let waits = scope.spawn(|| receivers.wait_to_enter(entry_of(third)));
        while receivers.lock().entering.is_empty() {
            thread::yield_now();
        }
        receivers.wait_to_enter(entry_of(second));
        receivers.entered(entry_of(second), true);
        waits.join().expect("its turn");
    });
    receivers.entered(entry_of(third), false);
    assert!(receivers.is_backlog_in_use(0, Uuid::from_u128(1)));
    let last = receivers.last_in_backlog(0, Uuid::from_u128(1));
    assert!(receivers.note_backlog_empty(0, Uuid::from_u128(1), last));
    let again = admit(&receivers, &shutdown, 1).expect("nothing is before it");
    receivers.give_back(again);
}

#[test]
fn a_breaker_that_is_open_only_by_the_table_closes_once_all_backlogs_of_its_webhook_are_empty() {
    let receivers = Receivers::new([1, 1], "5,1s,5m".parse().expect("a breaker"), || 0.5);
    let webhook = Uuid::from_u128(1);
    let is_emptied = |queue| {
        let last = receivers.last_in_backlog(queue, webhook);
        receivers.note_backlog_empty(queue, webhook, last)
    };
    let restore = || {
        for queue in [0, 1] {
            receivers.found_backlog(queue, webhook);
            receivers.restore(webhook, true, Some(Duration::from_secs(3_600)));
        }
    };
    restore();
    assert!(is_emptied(0) && receivers.is_broken(webhook), "the other one holds some");
    assert!(is_emptied(1) && !receivers.is_broken(webhook));
    assert_eq!(receivers.count(), ReceiverCounts { known: 1, ailing: 1, slow: 1, broken: 0 });
    assert_eq!(receivers.outages().0, []);

    // What this process has observed stays.
    restore();
    let Ok(Turn::Begins(probe)) = receivers.ask_head(Ask { is_head: true, ..by(1) }, false) else {
        panic!("a probe is due")
    };
    let (event, reason, is_overload) = ("e", Reason::Dns, false);
    let (status, retry_after) = (None, None);
    let ended = AttemptEnd::Failed { event, reason, status, is_overload, retry_after };
    receivers.end(probe, ended);
    assert!(is_emptied(0) && is_emptied(1) && receivers.is_broken(webhook));
}

#[test]
fn the_bell_rings_after_a_request_while_it_is_on() {
    let (_trigger, shutdown) = shutdown::channel();
    let receivers = receivers(2);
    let bell = receivers.bell(0);
    prove(&receivers, &shutdown, 1);
    assert!(bell.try_recv().is_err());
    receivers.listen(0, true);
    prove(&receivers, &shutdown, 1);
    prove(&receivers, &shutdown, 1);
    assert!(bell.try_recv().is_ok() && bell.try_recv().is_err());
}

#[test]
fn shutdown_ends_the_wait() {
    let (trigger, shutdown) = shutdown::channel();
    let (receivers, first) = with_one_place(&shutdown);
    thread::scope(|scope| {
        let second = scope.spawn(|| admit(&receivers, &shutdown, 2));
        while receivers.lock().waiting.is_empty() {
            thread::yield_now();
        }
        trigger.fire();
        let refusal = Refusal { hold: Hold::Full, entry: None };
        assert_eq!(second.join().expect("no panic"), Err(refusal));
    });
    receivers.end(first, AttemptEnd::Delivered);
    assert!(receivers.lock().waiting.is_empty() && !receivers.lock().intake.has_waiting());
}

#[test]
fn of_several_waiting_deliveries_the_one_that_is_called_first_is_returned() {
    let (trigger, shutdown) = shutdown::channel();
    let receivers = receivers(1);
    for webhook in 1..=3 {
        prove(&receivers, &shutdown, webhook);
    }
    let first = admit(&receivers, &shutdown, 1).expect("the only place");
    let line = |webhook| match receivers.ask(by(webhook), DeliveryKind::Fresh, false) {
        Ok(Turn::Waits(in_line)) => (webhook, in_line),
        other => panic!("{other:?}"),
    };
    let mut lines = vec![line(2), line(3)];
    let patience = Duration::from_secs(60);
    let mut next = |limit| receivers.wait_for_any(&mut lines, limit, patience, &shutdown);
    let soon = Duration::from_secs(30);
    assert!(next(PATIENCE * 2).is_none(), "every place is taken");
    receivers.end(first, AttemptEnd::Delivered);
    // Capacity released by one goes to the other, whatever their order in the list.
    let (one, attempt) = next(soon).expect("it is called");
    receivers.give_back(attempt.expect("the place"));
    let (other, attempt) = next(soon).expect("it is called");
    assert_eq!(one + other, 2 + 3);
    let held = attempt.expect("the place");

    lines = vec![line(if other == 2 { 3 } else { 2 })];
    trigger.fire();
    let refused = receivers.wait_for_any(&mut lines, soon, patience, &shutdown);
    let (_, refused) = refused.expect("shutdown");
    assert_eq!(refused, Err(Refusal { hold: Hold::Full, entry: None }));
    assert!(lines.is_empty() && receivers.lock().waiting.is_empty());
    receivers.give_back(held);
}

#[test]
fn of_ailing_receivers_the_worst_are_shown_and_all_are_counted() {
    let (_trigger, shutdown) = shutdown::channel();
    let receivers = receivers(64);
    let fail = |webhook: u128, retry_after: Option<u64>| {
        let attempt = admit(&receivers, &shutdown, webhook).expect("an attempt");
        let retry_after = retry_after.map(Duration::from_secs);
        let (event, reason, is_overload) = ("e", Reason::Dns, false);
        let status = None;
        let ended = AttemptEnd::Failed { event, reason, status, is_overload, retry_after };
        receivers.end(attempt, ended);
    };
    for webhook in 1..5 {
        fail(webhook, None);
    }
    fail(7, Some(60));
    let (shown, count) = receivers.ailing(3);
    assert_eq!(count, ReceiverCounts { known: 5, ailing: 5, slow: 0, broken: 0 });
    assert_eq!(count, receivers.count());
    let conditions: Vec<_> = shown.iter().map(|(_, ailment)| ailment.condition).collect();
    assert_eq!(conditions, [Condition::StayAway, Condition::Failing, Condition::Failing]);
    assert_eq!(shown[0].0, Uuid::from_u128(7));
    assert_eq!(receivers.ailing(9).0.len(), 5);
}
