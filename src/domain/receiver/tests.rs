//! The rules, one by one, and all of them under whatever may happen.

use super::*;
use std::num::NonZeroU32;

use proptest::prelude::*;

const RETRY: usize = 1;

fn breaker() -> Breaker {
    "5,30s,10m".parse().expect("a breaker")
}

/// A lane of eight consumers, of which two may wait for one receiver.
fn place(is_first: bool) -> Place {
    Place::new(usize::from(!is_first) * RETRY, 8, is_first)
}

fn ms(millis: u64) -> Moment {
    Duration::from_millis(millis)
}

/// A receiver and its clock.
#[derive(Default)]
struct Subject {
    receiver: Receiver,
    now: Moment,
    events: u32,
}

impl Subject {
    fn after(&mut self, millis: u64) -> &mut Self {
        self.now += ms(millis);
        self
    }

    #[track_caller]
    fn begin(&mut self, is_first: bool) -> Attempt {
        self.receiver.admit(place(is_first), self.now).expect("an attempt").0
    }

    fn hold(&mut self, is_first: bool) -> Option<Hold> {
        self.receiver.clone().admit(place(is_first), self.now).err()
    }

    /// It has answered promptly before.
    fn proven() -> Self {
        let mut subject = Self::default();
        let attempt = subject.begin(true);
        subject.deliver(attempt);
        subject
    }

    fn deliver(&mut self, attempt: Attempt) -> Option<Transition> {
        self.receiver.end(attempt, Ended::Delivered, breaker(), self.now)
    }

    /// Each failure is another event's.
    fn fail(&mut self, attempt: Attempt, retry_after: Option<u64>) -> Option<Transition> {
        self.events += 1;
        let event = self.events.to_string();
        let retry_after = retry_after.map(Duration::from_secs);
        let ended = Ended::Failed { event: &event, reason: Reason::Timeout, retry_after };
        self.receiver.end(attempt, ended, breaker(), self.now)
    }

    /// Fails so often, at once, in the retry lane.
    #[track_caller]
    fn fail_times(&mut self, times: u32) -> Option<Transition> {
        let mut last = None;
        for _ in 0..times {
            let attempt = self.begin(false);
            last = self.fail(attempt, None);
        }
        last
    }
}

#[test]
fn a_degraded_receiver_gets_its_first_attempts_in_the_retry_lane_until_a_quick_success() {
    let mut subject = Subject::default();
    let attempt = subject.begin(true);
    subject.after(5).fail(attempt, None);
    assert_eq!(subject.hold(true), Some(Hold::Degraded));
    assert_eq!(subject.hold(false), None);

    let slow = subject.begin(false);
    subject.after(1_001).deliver(slow);
    assert_eq!(subject.hold(true), Some(Hold::Degraded), "a slow success mends nothing");

    let quick = subject.begin(false);
    subject.after(999).deliver(quick);
    assert_eq!(subject.hold(true), None);
    assert!(subject.receiver.is_unremarkable(subject.now));
}

#[test]
fn a_receiver_that_has_not_answered_for_a_second_is_degraded_already() {
    let mut subject = Subject::default();
    let waiting = subject.begin(true);
    assert_eq!(subject.after(1_000).hold(true), None);
    assert_eq!(subject.after(1).hold(true), Some(Hold::Degraded));
    subject.deliver(waiting);
    assert_eq!(subject.hold(true), Some(Hold::Degraded), "the answer came too late");
}

#[test]
fn a_receiver_that_keeps_us_waiting_gets_a_quarter_of_the_consumers() {
    let mut subject = Subject::proven();
    let attempts = [subject.begin(true), subject.begin(true)];
    assert_eq!(subject.after(100).hold(true), None, "it still is prompt");
    assert_eq!(subject.after(1).hold(true), Some(Hold::Bulkhead));
    assert_eq!(subject.hold(false), None, "the other lane has a share of its own");
    subject.deliver(attempts[0]);
    assert_eq!(subject.hold(true), None, "one of its two places is free again");
    subject.deliver(attempts[1]);
    let attempts = [subject.begin(true), subject.begin(true)];
    assert_eq!(subject.hold(true), Some(Hold::Bulkhead), "it is known to linger");
    for attempt in attempts {
        subject.deliver(attempt);
    }
    let _ = [subject.begin(true), subject.begin(true)];
    assert_eq!(subject.hold(true), None, "it has answered promptly again");
}

#[test]
fn a_receiver_that_has_not_answered_yet_has_to_prove_itself() {
    let mut subject = Subject::default();
    let attempts = [subject.begin(true), subject.begin(true)];
    assert_eq!(subject.after(30).hold(true), Some(Hold::Unproven(ms(70))));
    assert_eq!(subject.hold(false), None);
    subject.deliver(attempts[0]);
    let _ = subject.begin(true);
    assert_eq!(subject.hold(true), None);
}

#[test]
fn a_lane_of_few_consumers_gives_one_to_each() {
    let shares = [1, 3, 4, 7, 8, 256].map(|consumers| Place::new(0, consumers, true).share);
    assert_eq!(shares, [1, 1, 1, 1, 2, 64]);
}

#[test]
fn five_failures_open_the_breaker_and_each_failed_probe_doubles_the_pause() {
    let mut subject = Subject::default();
    assert_eq!(subject.fail_times(4), None);
    assert_eq!(subject.fail_times(1), Some(Transition::Open(ms(30_000))));
    for pause in [30, 60, 120, 240, 480, 600, 600] {
        assert_eq!(subject.hold(false), Some(Hold::Breaker(Duration::from_secs(pause))));
        subject.after(pause * 1_000 - 1);
        assert_eq!(subject.hold(false), Some(Hold::Breaker(ms(1))));
        subject.after(1);
        assert_eq!(subject.hold(true), Some(Hold::Degraded), "probes are for the retry lane");
        let (probe, transition) =
            subject.receiver.admit(place(false), subject.now).expect("a probe");
        assert_eq!(transition, Some(Transition::HalfOpen));
        assert_eq!(subject.hold(false), Some(Hold::Breaker(Duration::ZERO)), "one at a time");
        let next = Duration::from_secs((pause * 2).min(600));
        assert_eq!(subject.fail(probe, None), Some(Transition::Open(next)));
    }
    subject.after(600_000);
    let probe = subject.begin(false);
    assert_eq!(subject.deliver(probe), Some(Transition::Closed));
    assert!(subject.receiver.is_unremarkable(subject.now));
    assert_eq!(subject.fail_times(4), None, "it starts over");
    assert_eq!(subject.fail_times(1), Some(Transition::Open(ms(30_000))));
}

#[test]
fn a_success_in_between_starts_the_count_over() {
    let mut subject = Subject::default();
    subject.fail_times(4);
    let attempt = subject.begin(false);
    assert_eq!(subject.deliver(attempt), None);
    assert_eq!(subject.fail_times(4), None);
}

#[test]
fn what_began_before_the_breaker_opened_opens_it_no_further_but_closes_it() {
    let mut subject = Subject::proven();
    let attempts: Vec<_> = (0..7).map(|_| subject.begin(false)).collect();
    let ends: Vec<_> = attempts[..6].iter().map(|attempt| subject.fail(*attempt, None)).collect();
    assert_eq!(ends.iter().flatten().count(), 1, "{ends:?}");
    assert_eq!(subject.hold(false), Some(Hold::Breaker(ms(30_000))));
    assert_eq!(subject.deliver(attempts[6]), Some(Transition::Closed));
    assert_eq!(subject.hold(true), None);
}

#[test]
fn one_event_alone_opens_no_breaker() {
    let mut receiver = Receiver::default();
    let mut fail = |event: &str| {
        let (attempt, _) = receiver.admit(place(false), Moment::ZERO).expect("an attempt");
        let ended = Ended::Failed { event, reason: Reason::Timeout, retry_after: None };
        receiver.end(attempt, ended, breaker(), Moment::ZERO)
    };
    for _ in 0..50 {
        assert_eq!(fail("a"), None);
    }
    assert_eq!(fail("b"), Some(Transition::Open(ms(30_000))));
}

#[test]
fn retry_after_keeps_everything_away_from_the_receiver() {
    let mut subject = Subject::default();
    let (first, second) = (subject.begin(true), subject.begin(true));
    subject.fail(first, Some(60));
    assert_eq!(subject.hold(false), Some(Hold::StayAway(ms(58_800))));
    subject.fail(second, Some(1));
    assert_eq!(subject.hold(true), Some(Hold::StayAway(ms(58_800))), "the longer one holds");
    assert_eq!(subject.after(58_800).hold(false), None);

    let attempt = subject.begin(false);
    subject.fail(attempt, Some(u64::MAX));
    assert_eq!(subject.hold(false), Some(Hold::StayAway(LONGEST_STAY * 98 / 100)));
}

#[test]
fn a_limit_that_is_reached_is_no_fault_and_counts_all_lanes() {
    let mut receiver = Receiver::default();
    let limits = Limits { max_in_flight: NonZeroU32::new(2), ..Limits::default() };
    let mut ask = |is_first: bool, now: u64| {
        let ask = Ask { limits, ..Ask::from(place(is_first)) };
        receiver.admit(ask, ms(now)).map(|(attempt, _)| attempt)
    };
    let attempts = [ask(true, 0).expect("a place"), ask(false, 0).expect("another")];
    for is_first in [true, false] {
        assert!(matches!(ask(is_first, 1), Err(Hold::Limit(Limit::InFlight, _))));
    }
    for attempt in attempts {
        receiver.end(attempt, Ended::Delivered, breaker(), ms(1));
    }
    assert!(!receiver.is_degraded(ms(1)) && !receiver.is_broken());
    assert!(!receiver.is_unremarkable(ms(1)), "two wait for it");
    assert!(receiver.is_unremarkable(ms(10_000)));
    let ask = Ask { limits, ..Ask::from(place(true)) };
    assert!(receiver.admit(ask, ms(10)).is_ok());
}

#[test]
fn a_probe_that_was_not_made_is_made_by_the_next() {
    let mut subject = Subject::default();
    subject.fail_times(5);
    let probe = subject.after(30_000).begin(false);
    subject.receiver.give_back(probe);
    let probe = subject.begin(false);
    assert_eq!(subject.fail(probe, None), Some(Transition::Open(ms(60_000))));
}

#[test]
fn a_breaker_that_is_off_never_opens() {
    let off: Breaker = "off".parse().expect("a breaker");
    let mut receiver = Receiver::default();
    for n in 0..100 {
        let (attempt, _) = receiver.admit(place(false), Moment::ZERO).expect("an attempt");
        let (event, reason) = (&n.to_string(), Reason::Timeout);
        let ended = Ended::Failed { event, reason, retry_after: None };
        assert_eq!(receiver.end(attempt, ended, off, Moment::ZERO), None);
    }
}

/// What may happen to a receiver.
#[derive(Clone, Copy, Debug)]
enum Step {
    Ask { is_first: bool },
    End { which: prop::sample::Index, delivered: bool, retry_after: Option<u64> },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        any::<bool>().prop_map(|is_first| Step::Ask { is_first }),
        (any::<prop::sample::Index>(), any::<bool>(), prop::option::of(0_u64..100)).prop_map(
            |(which, delivered, retry_after)| Step::End { which, delivered, retry_after }
        ),
        (0_u64..20_000).prop_map(Step::Wait),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(steps in prop::collection::vec(step(), 0..200)) {
        let mut subject = Subject::default();
        let mut under_way: Vec<(Attempt, bool)> = Vec::new();
        let mut ended_any = false;
        // By the transitions alone: until when the breaker is open, and whether one probes.
        let (mut open_until, mut probing) = (Moment::ZERO, false);
        let mut see = |transition: Option<Transition>, now: Moment| match transition {
            Some(Transition::Open(pause)) => {
                assert!((ms(30_000)..=ms(600_000)).contains(&pause));
                (open_until, probing) = (now + pause, false);
                (open_until, probing)
            }
            Some(Transition::HalfOpen) => {
                assert!(!probing);
                probing = true;
                (open_until, probing)
            }
            Some(Transition::Closed) => {
                (open_until, probing) = (Moment::ZERO, false);
                (open_until, probing)
            }
            None => (open_until, probing),
        };
        for step in steps {
            let now = subject.now;
            match step {
                Step::Wait(millis) => drop(subject.after(millis)),
                Step::Ask { is_first } => {
                    let waits = under_way.iter().any(|(a, _)| now > a.began + PROMPT);
                    let here = under_way.iter().filter(|(_, first)| *first == is_first).count();
                    let (until, was_probing) = see(None, now);
                    let degraded = subject.receiver.is_degraded(now);
                    match subject.receiver.admit(place(is_first), now) {
                        Ok((attempt, transition)) => {
                            prop_assert!(now >= until && !was_probing);
                            prop_assert!(!(is_first && degraded));
                            prop_assert!(!waits || here < 2);
                            see(transition, now);
                            under_way.push((attempt, is_first));
                        }
                        Err(Hold::Degraded) => prop_assert!(is_first && degraded),
                        Err(Hold::Bulkhead) => prop_assert!(here >= 2),
                        Err(Hold::Unproven(wait)) => {
                            prop_assert!(here >= 2 && !waits && !ended_any && wait <= PROMPT);
                        }
                        Err(Hold::Breaker(remaining)) => {
                            prop_assert!(was_probing || now + remaining == until);
                        }
                        Err(Hold::Limit(..)) => prop_assert!(false, "it has none"),
                        Err(Hold::StayAway(remaining)) => {
                            prop_assert!(!remaining.is_zero() && remaining <= LONGEST_STAY);
                        }
                    }
                }
                Step::End { which, delivered, retry_after } => {
                    if under_way.is_empty() {
                        continue;
                    }
                    let (attempt, _) = under_way.swap_remove(which.index(under_way.len()));
                    ended_any = true;
                    let transition = if delivered {
                        subject.deliver(attempt)
                    } else {
                        subject.fail(attempt, retry_after)
                    };
                    see(transition, now);
                    prop_assert!(!delivered || !subject.receiver.is_broken());
                }
            }
            prop_assert_eq!(subject.receiver.is_busy(), !under_way.is_empty());
            let now = subject.now;
            let ailment = subject.receiver.ailment(now);
            prop_assert_eq!(ailment.is_some(), subject.receiver.is_degraded(now));
            prop_assert!(ailment.is_none_or(|ailment| ailment.lasted <= now));
        }
    }

    #[test]
    fn a_prompt_receiver_is_never_held_back(gaps in prop::collection::vec(0_u64..500, 1..50)) {
        let mut subject = Subject::proven();
        for gap in gaps {
            let attempts: Vec<_> = (0..8).map(|_| subject.begin(true)).collect();
            subject.after(gap % 100);
            for attempt in attempts {
                prop_assert_eq!(subject.deliver(attempt), None);
            }
            subject.after(gap);
        }
    }
}
