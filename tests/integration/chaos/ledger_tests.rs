//! The ledger, on histories made by hand.

use std::time::Duration;

use super::{
    cast::{Kind, Webhook},
    history::{DeadLetter, History, Published, Request, Strike},
    ledger::Ledger,
    plan::Fault,
};

const HEALTHY: Webhook = Webhook::HealthyA;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// One promised event of that kind, accepted everywhere at 10 s but at the dead receiver, where it
/// is dead.
fn good(kind: Kind) -> History {
    let mut history = History::default();
    history.events.push(Published { kind, promised: true });
    for webhook in Webhook::ALL.into_iter().filter(|webhook| webhook.wants(kind)) {
        match webhook {
            Webhook::Dead => history.dead.push(DeadLetter { number: 0, webhook }),
            _ => history.requests.push(accepted(webhook, 10_000)),
        }
    }
    history
}

fn accepted(webhook: Webhook, at: u64) -> Request {
    Request { number: 0, webhook, at: ms(at), accepted: true }
}

fn strike(fault: Fault, struck: u64) -> Strike {
    let (struck, healed, recovered) = (ms(struck), ms(struck + 100), ms(struck + 500));
    Strike { fault, kills: false, cuts: 1, notifiers: 1, struck, healed, recovered }
}

#[track_caller]
fn check(history: &History, expected: &[&str]) -> Ledger {
    let ledger = Ledger::of(history);
    assert_eq!(ledger.problems(), expected, "{ledger:?}");
    ledger
}

#[test]
fn a_run_in_which_each_delivery_has_one_end_is_good() {
    for (kind, delivered, dead) in [
        (Kind::Plain, 3, 0),
        (Kind::Hangs, 4, 0),
        (Kind::Dies, 3, 1),
        (Kind::Mixed, 5, 0),
        (Kind::Breaks, 4, 0),
        (Kind::Alternates, 4, 0),
        (Kind::Crowds, 7, 0),
    ] {
        let ledger = check(&good(kind), &[]);
        assert_eq!(ledger.total(|row| row.delivered), delivered);
        assert_eq!(ledger.total(|row| row.dead), dead);
        assert_eq!(ledger.total(|row| row.promised), delivered + dead);
        assert_eq!(ledger.bound, 0);
    }
}

#[test]
fn what_was_promised_and_neither_arrived_nor_died_is_lost() {
    let mut history = good(Kind::Plain);
    history.requests.remove(0);
    // An answer of 503 is no delivery.
    history.requests.push(Request { accepted: false, ..accepted(HEALTHY, 11_000) });
    let ledger = check(&history, &["1 promised deliveries are lost"]);
    assert_eq!(ledger.examples, ["event 0 at healthy-a: is lost"]);

    let mut history = good(Kind::Dies);
    history.dead.clear();
    check(&history, &["1 promised deliveries are lost"]);
}

#[test]
fn what_was_not_promised_may_be_missing() {
    let mut history = good(Kind::Plain);
    history.events[0].promised = false;
    history.requests.clear();
    let ledger = check(&history, &[]);
    assert_eq!((ledger.promised, ledger.unconfirmed), (0, 1));
}

#[test]
fn a_repeat_that_no_fault_explains_is_a_neighbours() {
    let mut history = good(Kind::Plain);
    history.requests.push(accepted(HEALTHY, 12_000));
    let unexplained =
        ["1 repeats are not explained by a fault", "1 repeats, and at most 0 are explained"];
    let ledger = check(&history, &unexplained);
    assert_eq!(ledger.because_of_a_neighbour(), 1);

    // Too long before, too late, or after the repeat.
    for struck in [7_000, 13_000, 12_100] {
        history.strikes = vec![strike(Fault::NotifierKilled, struck)];
        check(&history, &unexplained[..1]);
    }
    // At the right time, but nothing that could.
    for harmless in [Fault::PostgresKilled, Fault::NotifierTerminated, Fault::MemoryAlarm] {
        history.strikes = vec![strike(harmless, 10_100)];
        check(&history, &unexplained);
    }
}

#[test]
fn a_repeat_after_a_fault_that_struck_while_the_message_was_in_hand_is_explained() {
    for fault in [Fault::NotifierKilled, Fault::BrokerKilled, Fault::Cut, Fault::BrokerFrozen] {
        for struck in [9_600, 10_000, 11_500] {
            let mut history = good(Kind::Plain);
            history.requests.push(accepted(HEALTHY, 12_000));
            history.strikes = vec![strike(fault, struck)];
            let ledger = check(&history, &[]);
            assert_eq!(ledger.total(|row| row.repeats), 1);
            assert_eq!(ledger.because_of_a_neighbour(), 0);
        }
    }
}

#[test]
fn a_delivery_that_was_held_back_may_have_been_doubled_before_its_first_request() {
    for (webhook, struck, explained) in [
        // When the event came to the others.
        (HEALTHY, 10_100, true),
        // While it waited.
        (HEALTHY, 15_000, true),
        // Before it was there.
        (HEALTHY, 7_000, false),
        (Webhook::Flaky, 2_000, false),
        (Webhook::Flaky, 10_100, true),
    ] {
        let mut history = good(Kind::Plain);
        history.requests.extend([accepted(webhook, 20_000), accepted(webhook, 20_100)]);
        history.requests.retain(|request| (request.webhook, request.at) != (webhook, ms(10_000)));
        history.strikes = vec![strike(Fault::BrokerKilled, struck)];
        let unexplained = Ledger::of(&history).total(|row| row.unexplained);
        assert_eq!(unexplained == 0, explained, "{webhook:?}, {struck}");
    }
}

#[test]
fn what_a_receiver_that_never_fails_has_had_for_long_no_fault_doubles() {
    for (webhook, explained) in [
        (HEALTHY, false),
        (Webhook::Far, false),
        (Webhook::CrowdA, false),
        (Webhook::VeryFlaky, true),
        (Webhook::Outage, true),
        (Webhook::Alternating, true),
        (Webhook::CrowdC, true),
    ] {
        let kind = Kind::ALL.into_iter().find(|kind| webhook.wants(*kind)).expect("a kind");
        let mut history = good(kind);
        history.requests.push(accepted(webhook, 31_000));
        history.strikes = vec![strike(Fault::BrokerKilled, 30_000)];
        let unexplained = Ledger::of(&history).total(|row| row.unexplained);
        assert_eq!(unexplained == 0, explained, "{webhook:?}");
    }
}

#[test]
fn only_what_hangs_each_time_or_is_never_there_may_be_dead() {
    for webhook in Webhook::ALL {
        let kind = Kind::ALL.into_iter().find(|kind| webhook.wants(*kind)).expect("a kind");
        let mut history = good(kind);
        history.requests.retain(|request| request.webhook != webhook);
        history.dead = vec![DeadLetter { number: 0, webhook }];
        let may_be_given_up = matches!(webhook, Webhook::Hanging | Webhook::Dead);
        let wrong = ["1 deliveries are dead that should have been made"];
        check(&history, if may_be_given_up { &[] } else { &wrong });
    }
}

#[test]
fn a_fault_that_doubled_a_failed_attempt_explains_that_its_retry_is_accepted_twice() {
    let mut history = good(Kind::Plain);
    history.requests.push(Request { accepted: false, ..accepted(Webhook::Flaky, 8_000) });
    history.requests.push(accepted(Webhook::Flaky, 10_100));
    check(
        &history,
        &["1 repeats are not explained by a fault", "1 repeats, and at most 0 are explained"],
    );
    history.strikes = vec![strike(Fault::BrokerStopped, 8_100)];
    check(&history, &[]);
}

#[test]
fn more_repeats_than_the_faults_can_cause_are_too_many() {
    let mut history = good(Kind::Plain);
    history.strikes = vec![strike(Fault::NotifierKilled, 10_000)];
    // 48 messages with seven webhooks each, 48 with one.
    history.requests.extend((0..384).map(|_| accepted(HEALTHY, 12_000)));
    let ledger = check(&history, &[]);
    assert_eq!(ledger.bound, 384);
    history.requests.push(accepted(HEALTHY, 12_000));
    check(&history, &["385 repeats, and at most 384 are explained"]);
}

#[test]
fn dead_after_delivered_is_a_repeat_and_dead_in_place_of_delivered_is_wrong() {
    let mut history = good(Kind::Plain);
    history.dead.push(DeadLetter { number: 0, webhook: HEALTHY });
    history.strikes = vec![strike(Fault::NotifierKilled, 10_000)];
    let ledger = check(&history, &[]);
    assert_eq!((ledger.total(|row| row.repeats), ledger.given_up()), (1, 0));

    history.requests.retain(|request| request.webhook != HEALTHY);
    check(&history, &["1 deliveries are dead that should have been made"]);
}

#[test]
fn what_nobody_wanted_or_published_must_not_arrive() {
    let mut history = good(Kind::Plain);
    history.requests.push(accepted(Webhook::Hanging, 10_000));
    history.requests.push(Request { number: 7, ..accepted(HEALTHY, 10_000) });
    check(&history, &["2 deliveries were not wanted"]);
}
