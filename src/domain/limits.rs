//! How much a receiver can take, as its webhook says, and whose turn it is when that is not enough.
//!
//! A delivery that comes when a limit is reached joins a *queue*: not of deliveries, which wait at
//! the broker, but of turns. Each turn is one interval after the one before, so those who wait come
//! back one after the other, in the order in which they first came, and each moves only as often as
//! it takes the wait queues to add up to its wait. Turns are a plan and not the limit itself: what
//! spoils it (deliveries that went to another process, or died) costs order, and never the limit.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::receiver::Moment;
use super::shown::quoted;

/// How long turns are kept for deliveries that don't come. Longer than the shortest delay of nearly
/// every schedule, by which one may be late.
const PATIENCE: Duration = Duration::from_secs(5);

/// A rate is saved up for so long: that many attempts may follow on each other at once after a rest.
/// Those who wait come back in clumps of about that size.
const BURST: Duration = Duration::from_secs(1);

/// The furthest turn. Nothing waits as long (DELIVERY_MAX_AGE), and time has to stay a number.
const FURTHEST: Duration = Duration::from_secs(87_600 * 3_600);

/// What a rate may be: from one attempt in a quarter of an hour to more than a process can make.
const RATES: RangeInclusive<f64> = 0.001..=100_000.0;

/// The limits of a receiver, in this process. The default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Attempts under way at a time.
    pub max_in_flight: Option<NonZeroU32>,
    /// Attempts a second.
    pub rate: Option<Rate>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::max_in_flight`]
    InFlight,
    /// [`Limits::rate`]
    Rate,
}

impl Limit {
    /// Each of them.
    pub const ALL: [Self; 2] = [Self::InFlight, Self::Rate];

    /// In metrics, and in the delivery log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::InFlight => "max_in_flight",
            Self::Rate => "rate",
        }
    }
}

/// Attempts per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// From one attempt to the next.
    interval: Duration,
}

impl Rate {
    /// How far ahead of the rate a receiver may be asked.
    fn allowance(self) -> Duration {
        BURST.saturating_sub(self.interval)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rate = text.parse().ok().filter(|rate| RATES.contains(rate));
        let rate: f64 = rate.ok_or_else(|| {
            let (shown, least, most) = (quoted(text), RATES.start(), RATES.end());
            format!("{shown} is not a number from {least} to {most}")
        })?;
        Ok(Self { interval: Duration::from_secs_f64(rate.recip()) })
    }
}

impl Limits {
    /// Whether there are none.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.max_in_flight.is_none() && self.rate.is_none()
    }

    /// From one attempt to the next at the limit, where one takes as long as `usual`.
    fn interval(self, usual: Duration) -> Duration {
        let place = self.max_in_flight.map_or(Duration::ZERO, |most| usual / most.get());
        self.rate.map_or(place, |rate| rate.interval.max(place))
    }
}

/// Who has had, and who waits for, an attempt at one receiver that has limits.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    rate: Option<Rate>,
    /// When all of the burst is saved up again.
    full_at: Moment,
    /// When an attempt was last made.
    made_at: Moment,
    /// What lies between two turns now.
    interval: Duration,
    /// The last turn that was given to one that came first then.
    tail: Moment,
    /// The last turn that was given to one that came at its turn, and yet had no attempt.
    late_tail: Moment,
}

impl Turns {
    /// Asks for an attempt, which is made then, where so many are under way and one usually takes so
    /// long. `turn` is how far off the delivery's turn is, if it was given one when it came before.
    ///
    /// # Errors
    /// Which limit is reached, and how far off its turn is now.
    pub fn ask(
        &mut self,
        limits: Limits,
        (under_way, usual): (usize, Duration),
        turn: Option<Duration>,
        now: Moment,
    ) -> Result<(), (Limit, Duration)> {
        let has_place = limits.max_in_flight.is_none_or(|most| under_way < most.get() as usize);
        self.plan(limits, has_place, usual, now);
        // One beyond the end of our queue is another process's, or from before the last change.
        let end = self.tail.max(self.late_tail);
        let turn = turn.filter(|left| left.is_zero() || now + *left <= end);
        if !has_place {
            return Err((Limit::InFlight, self.give(turn, now)));
        }
        if let Some(rate) = limits.rate {
            // Who comes first comes after those who wait.
            let is_its_turn = turn.map_or(self.tail <= now, |left| left.is_zero());
            if !is_its_turn || self.full_at > now + rate.allowance() {
                return Err((Limit::Rate, self.give(turn, now)));
            }
            self.full_at = self.full_at.max(now) + rate.interval;
        }
        self.made_at = now;
        Ok(())
    }

    /// Sees to it that the turns that were given still mean something.
    fn plan(&mut self, limits: Limits, has_place: bool, usual: Duration, now: Moment) {
        let interval = limits.interval(usual);
        if self.rate != limits.rate {
            *self = Self { rate: limits.rate, full_at: now, made_at: now, ..Self::default() };
        } else if has_place && now > self.made_at + usual.max(interval) + PATIENCE {
            // There could have been attempts, and nobody came for whom turns were kept.
            (self.tail, self.late_tail) = (now, now);
        } else if interval != self.interval && !self.interval.is_zero() {
            let factor = interval.as_secs_f64() / self.interval.as_secs_f64();
            for tail in [&mut self.tail, &mut self.late_tail] {
                let wait = tail.saturating_sub(now).as_secs_f64() * factor;
                *tail = now + Duration::try_from_secs_f64(wait).unwrap_or(FURTHEST).min(FURTHEST);
            }
        }
        self.interval = interval;
    }

    /// Gives a turn to a delivery that has no attempt now, and says how far off it is.
    fn give(&mut self, turn: Option<Duration>, now: Moment) -> Duration {
        let tail = match turn {
            Some(left) if !left.is_zero() => return left,
            // Its turn was somebody else's. Not behind all the others once more.
            Some(_) => &mut self.late_tail,
            None => &mut self.tail,
        };
        *tail = ((*tail).max(now) + self.interval).min(now + FURTHEST);
        *tail - now
    }

    /// Whether there is nothing to remember.
    #[must_use]
    pub fn is_over(&self, now: Moment) -> bool {
        now >= self.full_at && now >= self.tail && now >= self.late_tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn rate(text: &str) -> Limits {
        Limits { rate: Some(text.parse().expect("a rate")), max_in_flight: None }
    }

    fn in_flight(most: u32) -> Limits {
        Limits { max_in_flight: NonZeroU32::new(most), rate: None }
    }

    /// Turns, and the clock.
    #[derive(Default)]
    struct Subject {
        turns: Turns,
        under_way: usize,
        now: Moment,
    }

    impl Subject {
        fn ask(&mut self, limits: Limits, turn: Option<Duration>) -> Result<(), (Limit, Duration)> {
            self.turns.ask(limits, (self.under_way, ms(200)), turn, self.now)
        }

        fn after(&mut self, millis: u64) -> &mut Self {
            self.now += ms(millis);
            self
        }
    }

    #[test]
    fn a_rate_is_a_number_that_means_something() {
        for good in ["0.001", "1", "1e1", "2.5", "100000"] {
            assert!(good.parse::<Rate>().is_ok(), "{good}");
        }
        for bad in ["", "0", "-0", "-1", "NaN", "nan", "inf", "Infinity", "1e9", "1e-9", "x", " 1"]
        {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn after_a_rest_as_many_as_a_second_has_may_follow_on_each_other_and_then_one_at_a_time() {
        let (mut subject, limit) = (Subject::default(), rate("4"));
        for _ in 0..4 {
            assert_eq!(subject.ask(limit, None), Ok(()));
        }
        assert_eq!(subject.ask(limit, None), Err((Limit::Rate, ms(250))));
        assert_eq!(subject.ask(limit, None), Err((Limit::Rate, ms(500))));
        assert_eq!(subject.after(250).ask(limit, Some(Duration::ZERO)), Ok(()));
        assert_eq!(subject.ask(limit, Some(Duration::ZERO)), Err((Limit::Rate, ms(250))));
        // Less than one a second: one.
        let (mut subject, limit) = (Subject::default(), rate("0.5"));
        assert_eq!(subject.ask(limit, None), Ok(()));
        assert_eq!(subject.after(1_999).ask(limit, Some(ms(0))), Err((Limit::Rate, ms(2_000))));
        assert_eq!(subject.after(1).ask(limit, Some(ms(0))), Ok(()));
    }

    #[test]
    fn who_comes_first_comes_after_those_who_wait_and_who_comes_early_keeps_its_turn() {
        let (mut subject, limit) = (Subject::default(), rate("1"));
        assert_eq!(subject.ask(limit, None), Ok(()));
        assert_eq!(subject.ask(limit, None), Err((Limit::Rate, ms(1_000))));
        assert_eq!(subject.ask(limit, None), Err((Limit::Rate, ms(2_000))));
        subject.after(1_500);
        assert_eq!(subject.ask(limit, None), Err((Limit::Rate, ms(1_500))), "two are before it");
        assert_eq!(subject.ask(limit, Some(ms(500))), Err((Limit::Rate, ms(500))));
        assert_eq!(subject.ask(limit, Some(ms(0))), Ok(()), "its turn has come");
    }

    #[test]
    fn what_was_kept_for_nobody_is_for_who_comes() {
        let (mut subject, limit) = (Subject::default(), rate("1"));
        assert_eq!(subject.ask(limit, None), Ok(()));
        for _ in 0..99 {
            assert!(subject.ask(limit, None).is_err());
        }
        assert!(subject.after(6_000).ask(limit, None).is_err());
        assert_eq!(subject.after(1).ask(limit, None), Ok(()));
    }

    #[test]
    fn a_turn_of_another_queue_is_worth_nothing() {
        let (mut subject, limit) = (Subject::default(), rate("1"));
        assert_eq!(subject.ask(limit, Some(ms(9_000))), Ok(()), "nobody waits here");
        assert_eq!(subject.ask(limit, Some(ms(9_000))), Err((Limit::Rate, ms(1_000))));
        assert_eq!(subject.ask(limit, Some(Duration::MAX / 2)), Err((Limit::Rate, ms(2_000))));
    }

    #[test]
    fn a_change_of_the_rate_counts_at_once() {
        let mut subject = Subject::default();
        assert_eq!(subject.ask(rate("0.001"), None), Ok(()));
        for _ in 0..9 {
            assert!(subject.ask(rate("0.001"), None).is_err());
        }
        assert_eq!(subject.ask(rate("1"), None), Ok(()));
        assert_eq!(subject.ask(rate("1"), Some(ms(4_000_000))), Err((Limit::Rate, ms(1_000))));
        assert_eq!(subject.ask(in_flight(1), Some(ms(1_000))), Ok(()), "without a rate");
    }

    #[test]
    fn whoever_comes_gets_a_place_that_is_free_and_the_others_a_turn_when_one_should_be() {
        let (mut subject, limit) = (Subject::default(), in_flight(2));
        assert_eq!(subject.ask(limit, None), Ok(()));
        subject.under_way = 2;
        // Two places, each for 200 ms.
        assert_eq!(subject.ask(limit, None), Err((Limit::InFlight, ms(100))));
        assert_eq!(subject.ask(limit, None), Err((Limit::InFlight, ms(200))));
        assert_eq!(subject.ask(limit, Some(ms(150))), Err((Limit::InFlight, ms(150))));
        assert_eq!(subject.ask(limit, Some(ms(0))), Err((Limit::InFlight, ms(100))), "late");
        subject.under_way = 1;
        assert_eq!(subject.ask(limit, None), Ok(()));
        assert_eq!(subject.ask(limit, Some(ms(200))), Ok(()));
        // It has become ten times as fast: so have those who wait.
        subject.under_way = 2;
        let held = subject.turns.ask(limit, (2, ms(20)), None, subject.now);
        assert_eq!(held, Err((Limit::InFlight, ms(30))));
    }

    /// What became of deliveries that came at these times: in which order they had their attempts, and
    /// when, and how often they had to wait. They wait as the broker's queues have it, and an attempt
    /// takes a second.
    fn served(limit: Limits, arrivals: &[Moment]) -> (Vec<(usize, Moment)>, usize) {
        let delays = [1_000, 2_000, 4_000, 8_000, 16_000, 60_000, 300_000].map(ms);
        let mut turns = Turns::default();
        let coming = arrivals.iter().enumerate().map(|(n, at)| Reverse((*at, n, None)));
        let mut coming: BinaryHeap<Reverse<(Moment, usize, Option<Moment>)>> = coming.collect();
        let (mut made, mut waits) = (Vec::new(), 0);
        let mut ends: Vec<Moment> = Vec::new();
        while let Some(Reverse((now, n, turn))) = coming.pop() {
            let left = turn.map(|turn: Moment| turn.saturating_sub(now));
            ends.retain(|end| *end > now);
            match turns.ask(limit, (ends.len(), ms(1_000)), left, now) {
                Ok(()) => {
                    made.push((n, now));
                    ends.push(now + ms(1_000));
                }
                Err((_, left)) => {
                    waits += 1;
                    let delay = delays.into_iter().rev().find(|delay| *delay <= left);
                    let back = now + delay.unwrap_or(delays[0]);
                    coming.push(Reverse((back, n, Some(now + left))));
                }
            }
        }
        (made, waits)
    }

    #[test]
    fn a_crowd_is_served_at_the_limit_in_its_order_and_moves_little() {
        let arrivals = vec![Moment::ZERO; 5_000];
        let (made, waits) = served(in_flight(2), &arrivals);
        let (_, last) = made[made.len() - 1];
        assert!((2_490..2_550).contains(&last.as_secs()), "two places: the last came at {last:?}");
        assert!(waits < 20 * arrivals.len(), "two places: {waits} waits");

        let (made, waits) = served(rate("10"), &arrivals);
        let (_, last) = made[made.len() - 1];
        assert!((490..520).contains(&last.as_secs()), "the last came at {last:?}");
        for (nth, (n, at)) in made.iter().enumerate() {
            assert!(nth.abs_diff(*n) < 40, "{n} came as number {nth}, at {at:?}");
        }
        assert!(waits < 12 * arrivals.len(), "{waits} waits");
    }

    proptest! {
        #[test]
        fn whatever_comes_the_rate_holds_and_all_are_served_at_it(
            per_second in 1_u32..50, gaps in prop::collection::vec(0_u64..400, 1..200),
        ) {
            let mut last = Moment::ZERO;
            let arrivals: Vec<_> = gaps.into_iter().map(|gap| { last += ms(gap); last }).collect();
            let (made, waits) = served(rate(&per_second.to_string()), &arrivals);
            for (n, (_, begin)) in made.iter().enumerate() {
                let end = *begin + ms(1_000);
                let within = made[n..].iter().take_while(|(_, at)| *at < end).count();
                prop_assert!(within <= 2 * per_second as usize, "{} within a second", within);
            }
            // In the time that it takes at this rate, and little more: one is late by a second.
            let due = Duration::from_secs(arrivals.len() as u64) / per_second;
            let (_, took) = made[made.len() - 1];
            prop_assert!(took <= last + due + due / 4 + ms(4_000), "{took:?} for {due:?}");
            prop_assert!(waits <= 12 * arrivals.len(), "{waits} waits");
        }

        #[test]
        fn no_question_makes_it_panic(
            asks in prop::collection::vec(
                (0_u32..3, 0_usize..3, any::<u32>(), prop::option::of(any::<i64>()), any::<u32>(), 0..4_usize),
                0..60,
            ),
        ) {
            let (mut turns, mut now) = (Turns::default(), Moment::ZERO);
            for (most, under_way, usual, turn, gap, which) in asks {
                now += ms(gap.into());
                let turn = turn.map(|turn| ms(turn.unsigned_abs()));
                let rate = ["0.001", "1", "100000"].get(which).map(|text| rate(text));
                let rate = rate.and_then(|limits| limits.rate);
                let limits = Limits { max_in_flight: NonZeroU32::new(most), rate };
                let usual = ms(usual.into());
                if let Err((_, left)) = turns.ask(limits, (under_way, usual), turn, now) {
                    prop_assert!(left <= FURTHEST);
                }
            }
        }
    }
}
