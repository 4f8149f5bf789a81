use super::*;

#[test]
fn a_lane_that_could_not_start_more_consumers_tries_again_after_a_while() {
    let stuck = Observation { busy: 1, stuck: 1, has_rested: false, done: 0 };
    let mut growth = Growth::new(64, Moment::ZERO);
    let second = Duration::from_secs(1);
    assert!(matches!(growth.adjust(stuck, second * 2), Adjustment::Start(_)));
    growth.limit_to(1, second * 2);
    for seconds in 3..=31 {
        assert_eq!(growth.adjust(stuck, second * seconds), Adjustment::Keep, "{seconds} s");
    }
    assert!(matches!(growth.adjust(stuck, second * 32), Adjustment::Start(_)));
}

/// The consumers of a lane after some seconds of saturation. Each message takes `work` on one of the
/// `processors`, and `travel` in addition.
fn consumers_after(seconds: u64, work: f64, travel: f64, processors: f64, most: usize) -> usize {
    let mut growth = Growth::new(most, Moment::ZERO);
    let (mut done, mut now) = (0.0, Moment::ZERO);
    while now < Duration::from_secs(seconds) {
        now += INTERVAL;
        let consumers = growth.consumers() as f64;
        let rate = (consumers / (work + travel)).min(processors / work);
        done += rate * INTERVAL.as_secs_f64();
        let busy = growth.consumers();
        let stuck = if work + travel > STUCK.as_secs_f64() { busy } else { 0 };
        let observed = Observation { busy, stuck, has_rested: false, done: done as u64 };
        let _ = growth.adjust(observed, now);
    }
    growth.consumers()
}

#[test]
fn a_saturated_lane_grows_as_far_as_it_helps() {
    // Two processors, a tenth of a millisecond per message.
    assert_eq!(consumers_after(2, 1e-4, 1e-4, 2.0, 64), 4);
    assert_eq!(consumers_after(2, 1e-4, 3e-4, 2.0, 64), 8);
    assert_eq!(consumers_after(4, 1e-4, 5e-3, 2.0, 64), 64, "five milliseconds away");
    assert_eq!(consumers_after(4, 1e-4, 5e-3, 2.0, 6), 6);
    assert_eq!(consumers_after(30, 1e-4, 0.0, 1.0, 64), 1, "one processor: one is enough");
}

#[test]
fn a_lane_has_some_more_consumers_than_are_stuck() {
    let mut growth = Growth::new(64, Moment::ZERO);
    let mut times = 0;
    let mut adjust = |stuck: usize| {
        times += 1;
        let observed = Observation { busy: stuck, stuck, has_rested: false, done: 0 };
        let step = growth.adjust(observed, INTERVAL * times);
        (step, growth.consumers())
    };
    assert_eq!(adjust(1), (Adjustment::Start(2), 3));
    assert_eq!(adjust(1), (Adjustment::Keep, 3));
    assert_eq!(adjust(3), (Adjustment::Start(3), 6));
    let mut all = 6;
    for _ in 0..12 {
        all = adjust(all).1;
    }
    assert_eq!(all, 64);
    assert_eq!(adjust(64), (Adjustment::Keep, 64), "the lane has its maximum");
}

#[test]
fn consumers_that_are_no_longer_needed_end_within_half_a_minute_except_one() {
    let mut growth = Growth::new(64, Moment::ZERO);
    let observed = |busy, stuck| Observation { busy, stuck, has_rested: true, done: 0 };
    for n in 0..2 {
        let _ = growth.adjust(observed(8, 4), INTERVAL * n);
    }
    assert_eq!(growth.consumers(), 8);
    let mut ended = Vec::new();
    for second in 1..120 {
        let busy = if second < 60 { 3 } else { 0 };
        let step = growth.adjust(observed(busy, 0), Duration::from_secs(second));
        if let Adjustment::End(count) = step {
            ended.push((second, count, growth.consumers()));
        }
    }
    assert_eq!(ended, [(30, 5, 3), (75, 2, 1)]);
}

#[test]
fn a_lane_with_idle_consumers_is_left_as_it_is() {
    let mut growth = Growth::new(64, Moment::ZERO);
    for n in 1..1_000 {
        let observed = Observation { busy: 1, stuck: 0, has_rested: true, done: u64::from(n) * 99 };
        assert_eq!(growth.adjust(observed, INTERVAL * n), Adjustment::Keep);
    }
}

#[test]
fn messages_that_are_only_passed_on_are_no_reason_to_grow() {
    let mut growth = Growth::new(64, Moment::ZERO);
    for n in 1..1_000 {
        let observed = Observation { busy: 1, stuck: 0, has_rested: false, done: 0 };
        assert_eq!(growth.adjust(observed, INTERVAL * n), Adjustment::Keep);
    }
}

#[test]
fn trials_that_gain_little_become_rare() {
    let mut growth = Growth::new(64, Moment::ZERO);
    let mut trials = 0;
    for n in 1..=30_000_u32 {
        let observed = Observation {
            busy: growth.consumers(),
            stuck: 0,
            has_rested: false,
            done: u64::from(n) * 40,
        };
        trials +=
            usize::from(matches!(growth.adjust(observed, INTERVAL * n), Adjustment::Start(_)));
    }
    assert!((8..=12).contains(&trials), "{trials} in five minutes");
}
