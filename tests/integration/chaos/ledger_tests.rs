//! The ledger, for histories written by hand.

use std::time::Duration;

use super::{
    cast::{Kind, Webhook},
    history::{DeadLetter, Departure, History, Pause, Published, Request, Strike},
    ledger::Ledger,
    plan::Fault,
};

const HEALTHY: Webhook = Webhook::HealthyA;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// The history of one promised event of that kind: at 10 s all receivers accept it, except the dead one,
/// whose delivery is a dead letter.
fn good(kind: Kind) -> History {
    let mut history = History::default();
    history.events.push(Published { kind, queue: 0, at: ms(9_900), promised: true });
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
    let (struck, repaired, recovered) = (ms(struck), ms(struck + 100), ms(struck + 500));
    let began = struck;
    Strike { fault, cuts: 1, notifiers: 1, began, struck, repaired, recovered }
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
        (Kind::Changes, 6, 0),
    ] {
        let ledger = check(&good(kind), &[]);
        assert_eq!(ledger.total(|row| row.delivered), delivered);
        assert_eq!(ledger.total(|row| row.dead), dead);
        assert_eq!(ledger.total(|row| row.promised), delivered + dead);
        assert_eq!(ledger.bound, 0);
    }
}

#[test]
fn a_promised_delivery_that_neither_arrived_nor_died_is_lost() {
    let mut history = good(Kind::Plain);
    history.requests.remove(0);
    // A 503 is no delivery.
    history.requests.push(Request { accepted: false, ..accepted(HEALTHY, 11_000) });
    let ledger =
        check(&history, &["1 promised deliveries are lost, and were not deleted with their queue"]);
    assert_eq!(ledger.examples, ["event 0 at healthy-a: is lost"]);

    let mut history = good(Kind::Dies);
    history.dead.clear();
    check(&history, &["1 promised deliveries are lost, and were not deleted with their queue"]);
}

#[test]
fn an_event_that_was_not_promised_may_be_missing() {
    let mut history = good(Kind::Plain);
    history.events[0].promised = false;
    history.requests.clear();
    let ledger = check(&history, &[]);
    assert_eq!((ledger.promised, ledger.unconfirmed), (0, 1));
}

#[test]
fn a_repeat_that_no_fault_explains_is_blamed_on_a_neighbour() {
    let mut history = good(Kind::Plain);
    history.requests.push(accepted(HEALTHY, 12_000));
    let unexplained =
        ["1 repeats are not explained by a fault", "1 repeats: the faults can cause at most 0"];
    let ledger = check(&history, &unexplained);
    assert_eq!(ledger.because_of_a_neighbour(), 1);

    // Too early, too late, or after the repeat.
    for struck in [7_000, 13_000, 12_100] {
        history.strikes = vec![strike(Fault::NotifierKilled, struck)];
        check(&history, &unexplained[..1]);
    }
    // At the right time, but a fault that can't cause it.
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
fn a_delivery_that_was_held_back_may_be_duplicated_before_its_first_request() {
    for (webhook, struck, explained) in [
        // When the event reached the others.
        (HEALTHY, 10_100, true),
        // While it waited.
        (HEALTHY, 15_000, true),
        // Before it existed.
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
fn no_fault_explains_a_repeat_of_what_a_healthy_receiver_has_had_for_long() {
    for (webhook, explained) in [
        (HEALTHY, false),
        (Webhook::Far, false),
        (Webhook::CrowdA, false),
        (Webhook::VeryFlaky, true),
        (Webhook::Outage, true),
        (Webhook::Alternating, true),
        (Webhook::CrowdC, true),
        (Webhook::Away, true),
        (Webhook::Paused, true),
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
fn no_more_may_be_lost_than_was_deleted_with_a_queue() {
    let mut history = good(Kind::Plain);
    history.requests.retain(|request| !request.webhook.is_healthy());
    history.deleted = 2;
    check(&history, &[]);
    history.deleted = 1;
    check(&history, &["1 promised deliveries are lost, and were not deleted with their queue"]);
}

#[test]
fn only_receivers_that_always_hang_or_are_never_there_may_have_dead_letters() {
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
fn a_fault_that_duplicated_a_failed_attempt_explains_that_its_retry_arrives_twice() {
    let mut history = good(Kind::Plain);
    history.requests.push(Request { accepted: false, ..accepted(Webhook::Flaky, 8_000) });
    history.requests.push(accepted(Webhook::Flaky, 10_100));
    check(
        &history,
        &["1 repeats are not explained by a fault", "1 repeats: the faults can cause at most 0"],
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
    check(&history, &["385 repeats: the faults can cause at most 384"]);
}

#[test]
fn dead_after_delivered_is_a_repeat_and_dead_instead_of_delivered_is_wrong() {
    let mut history = good(Kind::Plain);
    history.dead.push(DeadLetter { number: 0, webhook: HEALTHY });
    history.strikes = vec![strike(Fault::NotifierKilled, 10_000)];
    let ledger = check(&history, &[]);
    assert_eq!((ledger.total(|row| row.repeats), ledger.given_up()), (1, 0));

    history.requests.retain(|request| request.webhook != HEALTHY);
    check(&history, &["1 deliveries are dead that should have been made"]);
}

#[test]
fn a_delivery_that_no_webhook_wanted_or_of_no_published_event_must_not_arrive() {
    let mut history = good(Kind::Plain);
    history.requests.push(accepted(Webhook::Hanging, 10_000));
    history.requests.push(Request { number: 7, ..accepted(HEALTHY, 10_000) });
    check(&history, &["2 deliveries were not wanted"]);
}

#[test]
fn deliveries_that_waited_for_a_deleted_webhook_are_dropped_and_no_others() {
    let without = |webhook: Webhook| {
        let mut history = good(Kind::Changes);
        history.requests.retain(|request| request.webhook != webhook);
        history.departures = vec![Departure { webhook: Webhook::Leaving, from: 0, to: 1 }];
        history
    };
    let ledger = check(&without(Webhook::Leaving), &[]);
    assert_eq!(ledger.total(|row| row.dropped), 1);
    assert_eq!(ledger.total(|row| row.promised), 6);
    assert_eq!(ledger.total(|row| row.delivered), 5);

    check(
        &without(Webhook::Away),
        &["1 promised deliveries are lost, and were not deleted with their queue"],
    );
    let mut history = without(Webhook::Leaving);
    history.departures[0] = Departure { webhook: Webhook::Leaving, from: 1, to: 9 };
    check(&history, &["1 promised deliveries are lost, and were not deleted with their queue"]);

    let mut history = good(Kind::Changes);
    history.departures = vec![Departure { webhook: Webhook::Leaving, from: 0, to: 1 }];
    assert_eq!(check(&history, &[]).total(|row| row.dropped), 0);
}

#[test]
fn nothing_is_sent_to_a_webhook_while_it_is_paused() {
    for (from, to, wrong) in
        [(9_000, 10_001, true), (9_000, 10_000, false), (10_001, 11_000, false)]
    {
        let mut history = good(Kind::Changes);
        history.pauses = vec![Pause { from: ms(from), to: ms(to) }];
        let expected = ["1 requests came while their webhook was paused"];
        check(&history, if wrong { &expected } else { &[] });
    }
}

/// The history of plain events, published from 10 s on, one per second, that reach a healthy receiver at
/// these times.
fn came(at: &[u64]) -> History {
    let mut history = History::default();
    for (number, at) in at.iter().enumerate() {
        let published = ms(10_000 + 1_000 * number as u64);
        // Not promised: the other receivers need not get it.
        let (kind, queue) = (Kind::Plain, 0);
        history.events.push(Published { kind, queue, at: published, promised: false });
        history.requests.push(Request { number, ..accepted(HEALTHY, *at) });
    }
    history.requests.sort_by_key(|request| request.at);
    history
}

#[track_caller]
fn overtaken(history: &History) -> (usize, usize) {
    let ledger = Ledger::of(history);
    (ledger.total(|row| row.overtaken), ledger.total(|row| row.ordered))
}

#[test]
fn a_delivery_is_overtaken_by_a_later_event_that_was_no_longer_in_flight() {
    assert_eq!(overtaken(&came(&[10_001, 11_001, 12_001])), (0, 3));
    assert_eq!(overtaken(&came(&[20_000, 11_001, 12_001])), (1, 3));
    assert_eq!(overtaken(&came(&[20_000, 20_010, 12_001])), (2, 3));
    // The later event may still have been in flight.
    assert_eq!(overtaken(&came(&[20_000, 18_501, 21_000])), (0, 3));
    assert_eq!(overtaken(&came(&[20_000, 18_500, 21_000])), (1, 3));
    check(&came(&[20_000, 11_001]), &["1 of 2 deliveries came out of order"]);
}

#[test]
fn one_of_a_thousand_may_be_out_of_order() {
    let in_order: Vec<u64> = (0..1_000).map(|number| 10_001 + 1_000 * number).collect();
    let mut history = came(&in_order);
    let late = history.requests.remove(500);
    history.requests.insert(503, Request { at: ms(513_600), ..late });
    assert_eq!(overtaken(&history), (1, 1_000));
    check(&history, &[]);
    history.requests.pop();
    check(&history, &["1 of 999 deliveries came out of order"]);
}

#[test]
fn the_order_is_that_of_first_requests_in_one_queue() {
    // A retry: its first request was in order.
    let mut history = came(&[20_000, 11_001]);
    history.requests.insert(0, Request { accepted: false, ..accepted(HEALTHY, 10_001) });
    assert_eq!(overtaken(&history), (0, 2));
    // A repeat of the later event.
    let mut history = came(&[10_001, 11_001]);
    history.requests.push(Request { number: 0, ..accepted(HEALTHY, 12_000) });
    assert_eq!(overtaken(&history), (0, 2));
    let mut history = came(&[20_000, 11_001]);
    history.events[1].queue = 1;
    assert_eq!(overtaken(&history), (0, 2));
    let mut history = came(&[20_000, 11_001]);
    for request in &mut history.requests {
        request.webhook = Webhook::Flaky;
    }
    assert_eq!(overtaken(&history), (0, 0));
}

#[test]
fn deliveries_on_their_way_when_a_fault_disturbs_the_order_do_not_count() {
    for (fault, struck, expected) in [
        (Fault::NotifierKilled, 15_000, (0, 1)),
        (Fault::NotifierTerminated, 15_000, (0, 1)),
        (Fault::PostgresKilled, 15_000, (0, 1)),
        // Over before it was published, or later than its arrival.
        (Fault::NotifierKilled, 9_000, (1, 2)),
        (Fault::NotifierKilled, 20_001, (1, 2)),
        (Fault::ReceiverAway, 15_000, (1, 2)),
        (Fault::WebhookPaused, 15_000, (1, 2)),
        (Fault::WebhookDeleted, 15_000, (1, 2)),
    ] {
        let mut history = came(&[20_000, 11_001]);
        history.strikes = vec![strike(fault, struck)];
        assert_eq!(overtaken(&history), expected, "{fault:?} at {struck}");
    }
}
