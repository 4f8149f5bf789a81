use super::*;
use std::num::NonZeroU32;

use proptest::prelude::*;

use crate::domain::limits::Allowance;

const LONG_AGO: Option<Duration> = Some(Duration::from_secs(3_600));
const LONGEST_REQUEST: Duration = Duration::from_secs(10);

fn in_flight(most: u32) -> Limits {
    Limits { max_in_flight: NonZeroU32::new(most), rate: None }
}

fn rate(text: &str) -> Limits {
    Limits { max_in_flight: None, rate: Some(text.parse().expect("a rate")) }
}

fn queues(names: &str) -> BTreeSet<String> {
    names.chars().map(String::from).collect()
}

/// What each instance knows. `served` has a text for each instance, and each letter of it is a queue.
fn fleet(served: &[&str]) -> Vec<Instances> {
    let alive: Vec<Instance> = (1..)
        .zip(served)
        .map(|(id, names)| Instance { id: Uuid::from_u128(id), queues: queues(names) })
        .collect();
    let of = |one: &Instance| Instances::new(one.id, alive.clone(), LONGEST_REQUEST);
    alive.iter().map(of).collect()
}

/// How many requests each instance may have in flight, the largest number first.
fn most(fleet: &[Instances], webhook: u128, limits: Limits, known: Option<Duration>) -> Vec<u32> {
    let share = |one: &Instances| one.share(Uuid::from_u128(webhook), limits, known);
    let most = |limits: Limits| limits.max_in_flight.map_or(0, NonZeroU32::get);
    let mut all: Vec<u32> = fleet.iter().map(|one| share(one).map_or(0, most)).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all
}

#[test]
fn an_instance_that_is_alone_has_all_of_the_limits() {
    let limits = Limits { rate: rate("0.5").rate, ..in_flight(1) };
    for instances in [Instances::default(), fleet(&["ab"]).remove(0)] {
        assert!(!instances.are_several());
        for known in [None, Some(Duration::ZERO), LONG_AGO] {
            assert_eq!(instances.share(Uuid::nil(), limits, known), Some(limits));
        }
    }
}

#[test]
fn every_instance_sends_to_a_webhook_without_limits() {
    for one in fleet(&["ab", "b"]) {
        assert_eq!(one.share(Uuid::nil(), Limits::default(), LONG_AGO), Some(Limits::default()));
    }
}

#[test]
fn each_instance_has_a_part_if_the_limits_suffice_and_otherwise_one_has_all() {
    let three = fleet(&["ab", "ab", "ab"]);
    for (limit, expected) in
        [(9, [3, 3, 3]), (4, [2, 1, 1]), (3, [1, 1, 1]), (2, [2, 0, 0]), (1, [1, 0, 0])]
    {
        assert_eq!(most(&three, 7, in_flight(limit), None), expected, "{limit}");
    }
    // With less than one attempt per second each, the burst couldn't be shared.
    let sharers = |limits: Limits| {
        let has_some = |one: &&Instances| one.share(Uuid::nil(), limits, None).is_some();
        three.iter().filter(has_some).count()
    };
    assert_eq!([sharers(rate("3")), sharers(rate("2.9")), sharers(rate("0.1"))], [3, 1, 1]);
    // The limit that can't be shared decides: the sender has all of both.
    let both = Limits { rate: rate("1").rate, ..in_flight(9) };
    assert_eq!(most(&three, 7, both, None), [9, 0, 0]);
}

#[test]
fn the_sender_has_all_of_the_limits_once_the_others_have_stopped_sending() {
    let three = fleet(&["ab", "ab", "ab"]);
    let known = |secs| Some(Duration::from_secs(secs));
    for (secs, expected) in [(0, 3), (12, 3), (13, 9), (3_600, 9)] {
        assert_eq!(most(&three, 7, in_flight(9), known(secs)), [expected, 0, 0], "{secs} s");
    }
    let of_sender = |secs| {
        let shares = three.iter().filter_map(|one| one.share(Uuid::nil(), rate("9"), known(secs)));
        shares.collect::<Vec<_>>()
    };
    assert_eq!(of_sender(2), [rate("9").part(0, 3)]);
    assert_eq!(of_sender(3), [rate("9")]);
}

#[test]
fn if_instances_serve_different_queues_each_queue_has_a_sender() {
    for webhook in 0..100 {
        let split = fleet(&["a", "b"]);
        assert_eq!(most(&split, webhook, in_flight(9), LONG_AGO), [5, 4]);
        // Together more than the limit, because otherwise one queue would never be served.
        assert_eq!(most(&split, webhook, in_flight(1), None), [1, 1]);
        let nested = fleet(&["a", "ab", "b"]);
        let shares = most(&nested, webhook, in_flight(9), LONG_AGO);
        assert!([[9, 0, 0], [5, 4, 0]].contains(&[shares[0], shares[1], shares[2]]), "{shares:?}");
        assert_eq!(most(&nested, webhook, in_flight(9), None), [3, 3, 3]);
    }
}

#[test]
fn senders_are_spread_evenly_and_few_webhooks_get_another_when_an_instance_joins() {
    let sender = |fleet: &[Instances], webhook: u128| {
        let webhook = Uuid::from_u128(webhook * 0x1_0001);
        fleet.iter().position(|one| one.share(webhook, in_flight(1), None).is_some())
    };
    let three = fleet(&["a"; 3]);
    let four = fleet(&["a"; 4]);
    let mut counts = [0; 3];
    let mut moved = 0;
    for webhook in 0..3_000 {
        let before = sender(&three, webhook).expect("one");
        let after = sender(&four, webhook).expect("one");
        counts[before] += 1;
        if after != before {
            assert_eq!(after, 3, "only the new instance takes over");
            moved += 1;
        }
    }
    assert!(counts.iter().all(|count| (850..1_150).contains(count)), "{counts:?}");
    assert!((600..900).contains(&moved), "{moved} of 3,000");
}

#[test]
fn the_order_is_the_same_in_every_version() {
    let place = |webhook, instance| place(Uuid::from_u128(webhook), Uuid::from_u128(instance)).0;
    assert_eq!(place(0, 0), 0);
    assert_ne!(place(1, 2), place(2, 1));
    assert_eq!(place(1, 2), 0xe890_53ce_0e45_3281);
}

proptest! {
    #[test]
    fn all_instances_together_keep_the_rate_and_its_burst(
        count in 1_usize..5,
        more in 0_u32..20,
        asks in prop::collection::vec((0_u64..100, 0_usize..5), 1..300),
    ) {
        let per_second = more + u32::try_from(count).expect("few");
        let limits = rate(&per_second.to_string());
        let mut allowances = vec![Allowance::default(); count];
        let (mut now, mut made) = (Duration::from_secs(1), 0.0);
        for (gap, instance) in asks {
            now += Duration::from_millis(gap);
            let share = limits.part(instance % count, count);
            while allowances[instance % count].ask(share, 0, None, now).is_ok() {
                made += 1.0;
            }
            // The clock began at one second, with the burst of that second saved up.
            let most = f64::from(per_second) * now.as_secs_f64();
            prop_assert!(made <= most + 0.001, "{} after {:?}", made, now);
        }
    }

    #[test]
    fn all_instances_together_keep_the_limits_and_every_queue_has_a_sender(
        served in prop::collection::vec("[abc]{1,3}", 1..6),
        webhook in any::<u128>(),
        limit in 1_u32..12,
        per_second in 1_u32..30,
        in_backlog in any::<bool>(),
    ) {
        let served: Vec<&str> = served.iter().map(String::as_str).collect();
        let fleet = fleet(&served);
        let all_served: Vec<BTreeSet<String>> = served.iter().map(|names| queues(names)).collect();
        let are_alike = all_served.windows(2).all(|two| two[0] == two[1]);
        let limits = Limits { rate: rate(&per_second.to_string()).rate, ..in_flight(limit) };
        let known = in_backlog.then_some(Duration::from_secs(3_600));
        let shares: Vec<Option<Limits>> =
            fleet.iter().map(|one| one.share(Uuid::from_u128(webhook), limits, known)).collect();
        let senders = shares.iter().flatten().count();
        for (one, share) in fleet.iter().zip(&shares) {
            let sender = one.sent_by(Uuid::from_u128(webhook), limits, in_backlog);
            prop_assert_eq!(sender == SentBy::Other, share.is_none());
            let is_each = fleet.len() == 1 || !in_backlog && limits.suffice_for(fleet.len());
            prop_assert_eq!(sender == SentBy::Each, is_each);
            let for_now = sender == SentBy::This { for_now: true };
            prop_assert!(!for_now || one.sent_by(Uuid::nil(), limits, false) == SentBy::Each);
        }
        let sum: u32 =
            shares.iter().flatten().filter_map(|it| it.max_in_flight).map(NonZeroU32::get).sum();
        // Together they have exactly the limit, except that each of several senders has at least one
        // request.
        prop_assert_eq!(sum, limit.max(u32::try_from(senders).expect("few")));
        if are_alike {
            prop_assert_eq!(sum, limit);
            let one_for_each = limit as usize >= fleet.len() && per_second as usize >= fleet.len();
            let expected = if one_for_each && !in_backlog { fleet.len() } else { 1 };
            prop_assert_eq!(senders, expected);
        }
        for share in shares.iter().flatten() {
            prop_assert_eq!(share.rate, limits.part(0, senders).rate);
        }
        // Each queue is served by an instance that may send.
        for queue in all_served.iter().flatten() {
            let serves = |(share, served): (&Option<Limits>, &BTreeSet<String>)| {
                share.is_some() && served.contains(queue)
            };
            prop_assert!(shares.iter().zip(&all_served).any(serves), "nobody sends from {}", queue);
        }
    }
}
