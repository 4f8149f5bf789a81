//! The rules one by one, then random sequences.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::domain::limits::Limits;
use crate::domain::receiver::AttemptEnd;
use crate::domain::webhook::Group;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn by(webhook: u128) -> Ask {
    let (webhook, group) = (Uuid::from_u128(webhook), Group::of(&webhook.to_string()));
    Ask { queue: 0, webhook, group, limits: Limits::default(), is_head: false }
}

fn one_at_a_time(webhook: u128) -> Ask {
    Ask { limits: Limits { max_in_flight: NonZeroU32::new(1), rate: None }, ..by(webhook) }
}

fn head(ask: Ask) -> Ask {
    Ask { is_head: true, ..ask }
}

fn intake(capacity: usize) -> Intake {
    let breaker = "5,1s,5m".parse().expect("a breaker");
    Intake::new(Pace::new([capacity], breaker, 1_000), [capacity])
}

/// The receivers of these webhooks have answered already.
fn proven(capacity: usize, webhooks: impl IntoIterator<Item = u128>) -> Intake {
    let mut intake = intake(capacity);
    for webhook in webhooks {
        let attempt = begins(&mut intake, by(webhook), DeliveryKind::Fresh);
        deliver(&mut intake, attempt);
    }
    intake
}

fn deliver(intake: &mut Intake, attempt: Attempt) -> Called {
    intake.pace.end(attempt, AttemptEnd::Delivered, 0.0, ms(1));
    intake.call(ms(1))
}

#[track_caller]
fn begins(intake: &mut Intake, ask: Ask, kind: DeliveryKind) -> Attempt {
    match intake.ask(ask, kind, false, ms(1)) {
        (Ok(Intent::Begins(attempt)), called) if called.is_empty() => attempt,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn waits(intake: &mut Intake, ask: Ask, kind: DeliveryKind) -> WaiterNumber {
    match intake.ask(ask, kind, false, ms(1)) {
        (Ok(Intent::Waits(number)), called) if called.is_empty() => number,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn enters(intake: &mut Intake, ask: Ask, kind: DeliveryKind) -> (Hold, EntryTicket) {
    match intake.ask(ask, kind, false, ms(1)) {
        (Err(Refusal { hold, entry: Some(entry) }), called) if called.is_empty() => (hold, entry),
        other => panic!("{other:?}"),
    }
}

#[test]
fn deliveries_that_wait_for_another_request_begin_in_order_when_it_ends() {
    let mut intake = proven(64, [1]);
    let first = begins(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    let second = waits(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    let third = waits(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    let mut called = deliver(&mut intake, first);
    let (number, began) = called.pop().expect("the second");
    assert_eq!((number, called.len()), (second, 0));
    let called = deliver(&mut intake, began.expect("an attempt"));
    assert_eq!(called.first().map(|(number, _)| *number), Some(third));
    assert!(!intake.has_waiting() && !intake.contents.is_in_use((0, Uuid::from_u128(1))));
}

#[test]
fn a_delivery_that_has_waited_long_enough_enters_the_backlog_with_all_that_keep_the_order() {
    let mut intake = proven(64, [1]);
    let _first = begins(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    let waiting = [(); 3].map(|()| waits(&mut intake, one_at_a_time(1), DeliveryKind::Fresh));
    let retry = waits(&mut intake, one_at_a_time(1), DeliveryKind::Retry);
    // It makes no difference that another thread's clock may be ahead.
    let called = intake.give_up(waiting[1], ms(100));
    assert_eq!(called.iter().map(|(number, _)| *number).collect::<Vec<_>>(), waiting);
    let entries = called.into_iter().map(|(_, answer)| answer.expect_err("it enters").entry);
    for (at, entry) in entries.enumerate() {
        let entry = entry.expect("a place");
        assert!(intake.contents.is_next(entry), "number {at}");
        intake.contents.note_entered(entry, true);
    }
    assert!(intake.has_waiting(), "a retry keeps no order");
    let hold = Hold::Limit(Limit::InFlight, ms(0));
    assert_eq!(
        enters(&mut intake, by(1), DeliveryKind::Fresh).0,
        hold,
        "the reason of those before it"
    );
    assert_eq!(intake.give_up(retry, ms(100)).len(), 1);
    assert!(intake.give_up(retry, ms(100)).is_empty());
}

#[test]
fn few_deliveries_wait_and_one_too_many_sends_them_all_to_the_backlog() {
    let mut intake = proven(64, [1, 2]);
    let _first = begins(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    for _ in 0..MOST_EACH {
        waits(&mut intake, one_at_a_time(1), DeliveryKind::Fresh);
    }
    let _other = begins(&mut intake, one_at_a_time(2), DeliveryKind::Fresh);
    waits(&mut intake, one_at_a_time(2), DeliveryKind::Fresh);
    let (answer, called) = intake.ask(one_at_a_time(1), DeliveryKind::Fresh, false, ms(1));
    assert_eq!(called.len(), MOST_EACH);
    let last = answer.expect_err("it enters").entry.expect("a place");
    assert!(!intake.contents.is_next(last));
}

#[test]
fn deliveries_to_a_prompt_receiver_wait_for_a_place_and_keep_their_order() {
    let mut intake = proven(1, [1, 2]);
    let first = begins(&mut intake, by(1), DeliveryKind::Fresh);
    let second = waits(&mut intake, by(2), DeliveryKind::Fresh);
    let third = waits(&mut intake, by(2), DeliveryKind::Fresh);
    assert!(intake.give_up(second, ms(100)).is_empty(), "it continues to wait");
    let mut called = deliver(&mut intake, first);
    let (number, began) = called.pop().expect("the second");
    assert_eq!((number, called.len()), (second, 0));
    let called = deliver(&mut intake, began.expect("an attempt"));
    assert_eq!(called.first().map(|(number, _)| *number), Some(third));
}

#[test]
fn new_deliveries_queue_behind_a_backlog_until_it_is_empty_and_retries_do_not() {
    let mut intake = proven(64, [1]);
    let key = (0, Uuid::from_u128(1));
    intake.contents.note_found(key);
    let (hold, entry) = enters(&mut intake, by(1), DeliveryKind::Fresh);
    assert_eq!(hold, Hold::Behind);
    let last = intake.contents.last_entry(key);
    assert!(!intake.contents.note_empty(key, last), "one is on its way there");
    intake.contents.note_entered(entry, true);
    let retry = begins(&mut intake, by(1), DeliveryKind::Retry);
    deliver(&mut intake, retry);
    assert!(!intake.contents.note_empty(key, last - 1), "it entered after the broker was asked");
    assert!(intake.contents.note_empty(key, last));
    let (hold, entry) = match intake.ask(by(1), DeliveryKind::Fresh, true, ms(1)).0 {
        Err(Refusal { hold, entry: Some(entry) }) => (hold, entry),
        other => panic!("{other:?}"),
    };
    assert_eq!(hold, Hold::Paused);
    intake.contents.note_entered(entry, true);
    assert_eq!(
        enters(&mut intake, by(1), DeliveryKind::Fresh).0,
        Hold::Paused,
        "the reason of the first"
    );
    for _ in 0..2 {
        let begun = intake.ask_head(head(by(1)), true, ms(1));
        let Ok(Intent::Begins(attempt)) = begun else { panic!("{begun:?}") };
        deliver(&mut intake, attempt);
    }
    assert!(intake.contents.is_in_use(key), "one is still on its way there");
}

/// A backlog of two deliveries that have waited long enough, because their receiver had used up its
/// share, and a request to that receiver which is in flight.
fn with_a_short_backlog(webhook: u128) -> (Intake, Vec<EntryTicket>, Attempt) {
    let mut intake = proven(2, [webhook]);
    let first = begins(&mut intake, by(webhook), DeliveryKind::Fresh);
    let waiting = [(); 2].map(|()| waits(&mut intake, by(webhook), DeliveryKind::Fresh));
    let called = intake.give_up(waiting[0], ms(100));
    let entry = |(_, answer): (WaiterNumber, Result<Attempt, Refusal>)| {
        answer.expect_err("it enters").entry.expect("a place")
    };
    let entries: Vec<_> = called.into_iter().map(entry).collect();
    assert_eq!(entries.len(), 2);
    entries.iter().for_each(|entry| intake.contents.note_entered(*entry, true));
    (intake, entries, first)
}

#[track_caller]
fn head_begins(intake: &mut Intake, webhook: u128) -> Attempt {
    match intake.ask_head(head(by(webhook)), true, ms(1)) {
        Ok(Intent::Begins(attempt)) => attempt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_deliveries_wait_for_a_brisk_receiver_and_none_enters_a_backlog() {
    let mut intake = proven(2, [1]);
    let first = begins(&mut intake, by(1), DeliveryKind::Fresh);
    let waiting = [(); 3 * MOST_EACH].map(|()| waits(&mut intake, by(1), DeliveryKind::Fresh));
    let called = deliver(&mut intake, first);
    assert_eq!(called.iter().map(|(number, _)| *number).collect::<Vec<_>>(), waiting[..1]);
    // The receiver hasn't accepted anything for a second.
    let (answer, called) = intake.ask(by(1), DeliveryKind::Fresh, false, ms(1_002));
    assert!(answer.is_err());
    assert_eq!(called.len(), waiting.len() - 1);
}

#[test]
fn deliveries_behind_a_short_backlog_of_a_brisk_receiver_begin_when_it_is_empty() {
    let (mut intake, _, first) = with_a_short_backlog(1);
    let waiting = [(); 2 * MOST_EACH].map(|()| waits(&mut intake, by(1), DeliveryKind::Fresh));
    assert!(deliver(&mut intake, first).is_empty(), "the backlog comes first");
    for _ in 0..2 {
        let attempt = head_begins(&mut intake, 1);
        let called = deliver(&mut intake, attempt);
        let began = called.iter().map(|(number, _)| *number).collect::<Vec<_>>();
        let expected = if intake.contents.is_in_use((0, Uuid::from_u128(1))) { 0 } else { 1 };
        assert_eq!(began, waiting[..expected]);
    }
}

#[test]
fn deliveries_do_not_wait_behind_a_backlog_that_is_long_unknown_or_limited() {
    let (mut intake, entries, _) = with_a_short_backlog(1);
    for _ in entries.len()..=SHORT * 2 {
        let waiting = waits(&mut intake, by(1), DeliveryKind::Fresh);
        assert_eq!(intake.give_up(waiting, ms(100)).len(), 1, "it enters");
    }
    // The backlog isn't short any more.
    assert_eq!(enters(&mut intake, by(1), DeliveryKind::Fresh).0, Hold::Share);

    let (mut intake, ..) = with_a_short_backlog(1);
    intake.contents.note_found((0, Uuid::from_u128(1)));
    assert_eq!(
        enters(&mut intake, by(1), DeliveryKind::Fresh).0,
        Hold::Share,
        "its contents are unknown"
    );

    let mut intake = proven(4, [1]);
    let [first, _second] = [(); 2].map(|()| begins(&mut intake, by(1), DeliveryKind::Fresh));
    let waiting = waits(&mut intake, by(1), DeliveryKind::Fresh);
    assert_eq!(intake.give_up(waiting, ms(100)).len(), 1);
    waits(&mut intake, by(1), DeliveryKind::Fresh);
    deliver(&mut intake, first);
    let hold = Hold::Limit(Limit::InFlight, ms(0));
    assert_eq!(intake.ask_head(head(one_at_a_time(1)), true, ms(1)), Err(hold));
    let (answer, called) = intake.ask(by(1), DeliveryKind::Fresh, false, ms(1));
    assert_eq!(answer.expect_err("its webhook has a limit").hold, hold);
    assert_eq!(called.len(), 1);

    let (mut intake, ..) = with_a_short_backlog(1);
    let (answer, _) = intake.ask(by(1), DeliveryKind::Fresh, false, ms(1_002));
    assert!(answer.is_err(), "the receiver hasn't accepted anything for a second");
}

#[test]
fn a_delivery_that_does_not_enter_its_backlog_leaves_no_trace() {
    let mut intake = proven(64, [1]);
    intake.contents.note_found((0, Uuid::from_u128(1)));
    let (_, entry) = enters(&mut intake, by(1), DeliveryKind::Fresh);
    intake.contents.note_entered(entry, false);
    assert!(intake.contents.is_in_use((0, Uuid::from_u128(1))));
    let key = (0, Uuid::from_u128(1));
    assert!(intake.contents.note_empty(key, intake.contents.last_entry(key)));
    let _ = begins(&mut intake, by(1), DeliveryKind::Fresh);
}

/// A delivery's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waits(WaiterNumber),
    Enters(EntryTicket),
    IsInBacklog,
    WaitsAsHead(WaiterNumber),
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Comes(u128, bool, bool),
    Ends(usize),
    GivesUp(usize),
    Publishes,
    AsksHead(u128),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u128..3, prop::bool::weighted(0.2), prop::bool::weighted(0.1))
            .prop_map(|(webhook, retry, paused)| Op::Comes(webhook, retry, paused)),
        3 => (0_usize..100).prop_map(Op::Ends),
        1 => (0_usize..100).prop_map(Op::GivesUp),
        3 => Just(Op::Publishes),
        3 => (0_u128..3).prop_map(Op::AsksHead),
    ]
}

/// A model of deliveries and backlogs.
#[derive(Default)]
struct World {
    /// The deliveries that haven't begun, in the order of arrival: webhook, whether it is a retry, state.
    doing: BTreeMap<usize, (u128, bool, Doing)>,
    in_flight: Vec<Attempt>,
    backlogs: HashMap<u128, VecDeque<usize>>,
    /// For each webhook, its deliveries that were never attempted before, in the order in which they began.
    begun: HashMap<u128, Vec<usize>>,
    count: usize,
}

impl World {
    fn begins(&mut self, delivery: usize, webhook: u128, is_retry: bool, attempt: Attempt) {
        self.in_flight.push(attempt);
        if !is_retry {
            self.begun.entry(webhook).or_default().push(delivery);
        }
    }

    fn note(&mut self, called: Called) {
        for (number, answer) in called {
            let mut all = self.doing.iter();
            let is_one =
                |doing: Doing| doing == Doing::Waits(number) || doing == Doing::WaitsAsHead(number);
            let found = all.find(|(_, (.., doing))| is_one(*doing)).map(|(n, one)| (*n, *one));
            let (delivery, (webhook, is_retry, doing)) = found.expect("it waits");
            let next = match (answer, doing) {
                (Ok(attempt), _) => {
                    if let Doing::WaitsAsHead(_) = doing {
                        self.backlogs.entry(webhook).or_default().pop_front();
                    }
                    self.doing.remove(&delivery);
                    self.begins(delivery, webhook, is_retry, attempt);
                    continue;
                }
                (Err(_), Doing::WaitsAsHead(_)) => Doing::IsInBacklog,
                (Err(refusal), _) => Doing::Enters(refusal.entry.expect("a place")),
            };
            self.doing.insert(delivery, (webhook, is_retry, next));
        }
    }
}

#[test]
fn deliveries_in_a_backlog_that_another_instance_consumes_are_not_counted() {
    let mut intake = proven(64, [1]);
    let key = (0, Uuid::from_u128(1));
    let enters = |intake: &mut Intake| {
        let (refused, _) = intake.ask(by(1), DeliveryKind::Fresh, true, ms(1));
        refused.expect_err("it is paused").entry.expect("a place")
    };
    let before = enters(&mut intake);
    intake.contents.note_found(key);
    intake.contents.set_elsewhere(key, true);
    assert!(intake.contents.is_in_use(key), "one is on its way there");
    intake.contents.note_entered(before, true);
    assert!(!intake.contents.is_in_use(key));
    let (first, second) = (enters(&mut intake), enters(&mut intake));
    assert!(intake.contents.is_next(first) && !intake.contents.is_next(second));
    intake.contents.note_entered(first, true);
    intake.contents.set_elsewhere(key, false);
    intake.contents.note_entered(second, true);
    assert!(intake.contents.is_in_use(key), "it is ours again");
}

proptest! {
    /// Deliveries that were never attempted begin in the order in which they came, however they wait and
    /// enter backlogs, and no delivery is forgotten.
    #[test]
    fn deliveries_begin_in_the_order_in_which_they_came(
        capacity in 1_usize..6, ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut intake = intake(capacity);
        let mut world = World::default();
        for op in ops {
            match op {
                Op::Comes(webhook, is_retry, is_paused) => {
                    let delivery = world.count;
                    world.count += 1;
                    let kind = if is_retry { DeliveryKind::Retry } else { DeliveryKind::Fresh };
                    let (answer, called) = intake.ask(by(webhook), kind, is_paused, ms(1));
                    world.note(called);
                    let doing = match answer {
                        Ok(Intent::Begins(attempt)) => {
                            world.begins(delivery, webhook, is_retry, attempt);
                            continue;
                        }
                        Ok(Intent::Waits(number)) => Doing::Waits(number),
                        Err(refusal) => Doing::Enters(refusal.entry.expect("a place")),
                    };
                    world.doing.insert(delivery, (webhook, is_retry, doing));
                }
                Op::Ends(n) => {
                    if !world.in_flight.is_empty() {
                        let attempt = world.in_flight.remove(n % world.in_flight.len());
                        let called = deliver(&mut intake, attempt);
                        world.note(called);
                    }
                }
                Op::GivesUp(n) => {
                    let mut waiting = world.doing.values().filter_map(|(.., doing)| match doing {
                        Doing::Waits(number) => Some(*number),
                        _ => None,
                    }).collect::<Vec<_>>();
                    if !waiting.is_empty() {
                        let number = waiting.swap_remove(n % waiting.len());
                        let called = intake.give_up(number, ms(1));
                        world.note(called);
                    }
                }
                Op::Publishes => {
                    let mut all = world.doing.iter().rev();
                    let next = all.find_map(|(delivery, (webhook, _, doing))| match doing {
                        Doing::Enters(entry) if intake.contents.is_next(*entry) => {
                            Some((*delivery, *webhook, *entry))
                        }
                        _ => None,
                    });
                    if let Some((delivery, webhook, entry)) = next {
                        intake.contents.note_entered(entry, true);
                        world.backlogs.entry(webhook).or_default().push_back(delivery);
                        let at = world.doing.get_mut(&delivery).expect("it enters");
                        at.2 = Doing::IsInBacklog;
                    }
                }
                Op::AsksHead(webhook) => {
                    let first = world.backlogs.get(&webhook).and_then(|queue| queue.front());
                    if let Some(delivery) = first.copied()
                        && world.doing[&delivery].2 == Doing::IsInBacklog
                    {
                        match intake.ask_head(head(by(webhook)), true, ms(1)) {
                            Ok(Intent::Begins(attempt)) => {
                                let (_, is_retry, _) =
                                    world.doing.remove(&delivery).expect("it is there");
                                world.backlogs.entry(webhook).or_default().pop_front();
                                world.begins(delivery, webhook, is_retry, attempt);
                            }
                            Ok(Intent::Waits(number)) => {
                                let at = world.doing.get_mut(&delivery).expect("it is there");
                                at.2 = Doing::WaitsAsHead(number);
                            }
                            Err(_) => {}
                        }
                    }
                }
            }
            for begun in world.begun.values() {
                prop_assert!(begun.is_sorted(), "{begun:?}");
            }
            let waiting = world.doing.values().filter(|(.., doing)| {
                matches!(doing, Doing::Waits(_) | Doing::WaitsAsHead(_))
            });
            let numbers: BTreeSet<WaiterNumber> = waiting.map(|(.., doing)| match doing {
                Doing::Waits(number) | Doing::WaitsAsHead(number) => *number,
                _ => 0,
            }).collect();
            prop_assert_eq!(numbers, intake.line.keys().copied().collect::<BTreeSet<_>>());
            for webhook in 0..3 {
                let there = world.doing.values().any(|(other, _, doing)| {
                    *other == webhook && !matches!(doing, Doing::Waits(_))
                });
                prop_assert_eq!(there, intake.contents.is_in_use((0, Uuid::from_u128(webhook))));
            }
        }
    }
}
