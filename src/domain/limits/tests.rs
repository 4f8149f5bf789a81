use super::*;
use proptest::prelude::*;

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn rate(text: &str) -> Limits {
    Limits { rate: Some(text.parse().expect("a rate")), max_in_flight: None }
}

fn at_most(most: u32) -> Limits {
    Limits { max_in_flight: NonZeroU32::new(most), rate: None }
}

#[test]
fn a_rate_is_a_number_within_its_bounds() {
    for good in ["0.001", "1", "1e1", "2.5", "100000"] {
        assert!(good.parse::<Rate>().is_ok(), "{good}");
    }
    for bad in ["", "0", "-0", "-1", "NaN", "nan", "inf", "Infinity", "1e9", "1e-9", "x", " 1"] {
        assert!(bad.parse::<Rate>().is_err(), "{bad}");
    }
}

#[test]
fn after_an_idle_time_a_burst_of_one_second_may_begin_at_once() {
    let mut allowance = Allowance::default();
    let mut ask = |limits, millis| allowance.ask(limits, 0, None, ms(millis));
    for _ in 0..4 {
        assert_eq!(ask(rate("4"), 0), Ok(()));
    }
    assert_eq!(ask(rate("4"), 0), Err((Limit::Rate, ms(250))));
    assert_eq!(ask(rate("4"), 249), Err((Limit::Rate, ms(1))));
    assert_eq!(ask(rate("4"), 250), Ok(()));
    assert_eq!(ask(rate("4"), 250), Err((Limit::Rate, ms(250))));
    // At less than one per second the burst is one attempt. A change of the rate applies at once.
    assert_eq!(ask(rate("0.5"), 300), Ok(()));
    assert_eq!(ask(rate("0.5"), 2_299), Err((Limit::Rate, ms(1))));
    assert_eq!(ask(rate("0.5"), 2_300), Ok(()));
}

#[test]
fn instances_share_max_in_flight_in_whole_numbers_and_the_rate_exactly() {
    let most = |limit: u32, count: usize| -> Vec<u32> {
        let part = |number| at_most(limit).part(number, count).max_in_flight;
        (0..count).filter_map(part).map(NonZeroU32::get).collect()
    };
    assert_eq!(most(4, 3), [2, 1, 1]);
    assert_eq!(most(5, 2), [3, 2]);
    assert_eq!(most(3, 3), [1, 1, 1]);
    assert_eq!(most(1, 2), [1, 1], "at least one each");
    assert!(at_most(3).suffice_for(3) && !at_most(3).suffice_for(4));
    assert!(rate("3").suffice_for(2) && !rate("3").suffice_for(4) && !rate("0.5").suffice_for(1));
    assert!(Limits::default().suffice_for(1_000));
    // Half of four per second is two per second, half a second apart.
    let mut allowance = Allowance::default();
    let mut ask = |millis| allowance.ask(rate("4").part(0, 2), 0, None, ms(millis));
    assert_eq!((ask(0), ask(0), ask(0)), (Ok(()), Ok(()), Err((Limit::Rate, ms(500)))));
    assert_eq!(ask(499), Err((Limit::Rate, ms(1))));
    assert_eq!(ask(500), Ok(()));
}

#[test]
fn a_change_of_the_number_of_instances_grants_no_burst() {
    let mut allowance = Allowance::default();
    let mut ask = |count, millis| allowance.ask(rate("4").part(0, count), 0, None, ms(millis));
    for _ in 0..4 {
        assert_eq!(ask(1, 0), Ok(()));
    }
    // The four attempts that each stood for a quarter of a second now stand for half a second each.
    assert_eq!(ask(2, 0), Err((Limit::Rate, ms(1_500))));
    assert_eq!(ask(1, 0), Err((Limit::Rate, ms(250))));
    assert_eq!(ask(2, 250), Err((Limit::Rate, ms(1_000))));
    assert_eq!(ask(1, 250), Ok(()));
}

#[test]
fn no_more_attempts_are_in_flight_than_max_in_flight() {
    let mut allowance = Allowance::default();
    let mut ask = |in_flight| allowance.ask(at_most(2), in_flight, Some(0), ms(0));
    assert_eq!((ask(0), ask(1)), (Ok(()), Ok(())));
    assert_eq!(ask(2), Err((Limit::InFlight, ms(0))));
    assert_eq!(ask(1), Ok(()));
}

#[test]
fn backlogs_take_turns_and_do_not_wait_for_one_that_no_longer_asks() {
    let mut allowance = Allowance::default();
    let mut ask = |queue, millis| allowance.ask(rate("1"), 0, queue, ms(millis)).is_ok();
    assert!(ask(Some(0), 0));
    assert!(!ask(Some(0), 10) && !ask(Some(1), 10) && !ask(Some(2), 10));
    assert!(!ask(Some(1), 1_000), "0 was refused before 1");
    assert!(ask(Some(0), 1_001));
    assert!(!ask(Some(0), 1_002));
    assert!(!ask(None, 2_001) && !ask(Some(0), 2_001) && !ask(Some(2), 2_001));
    assert!(!ask(Some(2), 2_050), "it waits for 1");
    assert!(ask(Some(2), 2_051), "1 doesn't ask");
    assert!(ask(Some(0), 3_051));
    assert!(ask(None, 4_051), "no backlog waits");
}

proptest! {
    #[test]
    fn attempts_use_the_rate_and_never_exceed_it(
        per_second in 1_u32..50, gaps in prop::collection::vec((0_u64..400, 0_usize..3), 1..200),
    ) {
        let limits = rate(&per_second.to_string());
        let (mut allowance, mut now) = (Allowance::default(), Moment::ZERO);
        let mut made: Vec<Moment> = Vec::new();
        for (gap, queue) in gaps {
            now += ms(gap);
            // As a backlog's first delivery does: it asks again when the limit allows.
            while let Err((_, wait)) = allowance.ask(limits, 0, Some(queue), now) {
                prop_assert!(!wait.is_zero() && wait <= ms(1_000) + COURTESY);
                now += wait;
            }
            made.push(now);
        }
        for (n, begin) in made.iter().enumerate() {
            let within = made[n..].iter().take_while(|at| **at < *begin + ms(1_000)).count();
            prop_assert!(within <= 2 * per_second as usize, "{} within a second", within);
        }
    }
}
