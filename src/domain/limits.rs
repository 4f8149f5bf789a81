//! A webhook's own limits: how many requests may be under way at a time, and how many per second.
//!
//! A rate is limited as in ATM networks (GCRA, ITU-T I.371): an attempt may begin while the attempts so
//! far are at most one second ahead of the rate. Deliveries beyond a limit wait in the receiver's
//! backlog, whose first delivery asks again as soon as the limit allows.
//!
//! A webhook may have backlogs of several event queues. They take turns: a backlog that was refused
//! comes before one that was served.
//!
//! If several instances run, each has a part of the limits: [`super::instances`].

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::shown::quoted;
use super::time::Moment;

/// How much of a rate can be saved up: after an idle time, the attempts of one second may begin at once.
const BURST: Duration = Duration::from_secs(1);

/// How long the other backlogs wait for one that was refused before them. That backlog wakes at the same
/// time and, unless it is gone, asks within a millisecond or two.
const COURTESY: Duration = Duration::from_millis(50);

/// The allowed rates: from one attempt in a quarter of an hour to more than a process can make.
const RATES: RangeInclusive<f64> = 0.001..=100_000.0;

/// A receiver's limits in this process; none by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How many attempts may be under way at a time.
    pub max_in_flight: Option<NonZeroU32>,
    /// How many attempts per second may begin.
    pub rate: Option<Rate>,
}

/// One of the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::max_in_flight`]
    InFlight,
    /// [`Limits::rate`]
    Rate,
}

impl Limit {
    /// All limits.
    pub const ALL: [Self; 2] = [Self::InFlight, Self::Rate];

    /// The label in metrics and the delivery log.
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
    /// The time from one attempt to the next, over all instances.
    interval: Duration,
    /// How many instances share it.
    sharers: u32,
}

impl Rate {
    /// The time from one attempt of this instance to its next.
    fn interval(self) -> Duration {
        self.interval.saturating_mul(self.sharers)
    }

    /// How far the attempts of this instance may be ahead of their rate.
    fn allowance(self) -> Duration {
        BURST.saturating_sub(self.interval())
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
        Ok(Self { interval: Duration::from_secs_f64(rate.recip()), sharers: 1 })
    }
}

impl Limits {
    /// Whether no limit is set.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.max_in_flight.is_none() && self.rate.is_none()
    }

    /// Whether `count` instances can share the limits: each of them may have a request under way, and
    /// begin at least one attempt per second.
    pub(super) fn suffice_for(self, count: usize) -> bool {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        // Each interval is rounded to whole nanoseconds.
        let burst = BURST + Duration::from_nanos(count.into());
        self.max_in_flight.is_none_or(|most| most.get() >= count)
            && self.rate.is_none_or(|rate| rate.interval.saturating_mul(count) <= burst)
    }

    /// The part of instance `number` (from 0) of `count`. If `max_in_flight` can't be divided evenly, the
    /// first instances get one more; each gets at least one.
    pub(super) fn part(self, number: usize, count: usize) -> Self {
        let [number, count] = [number, count].map(|it| u32::try_from(it).unwrap_or(u32::MAX));
        let count = count.max(1);
        let in_flight = |most: NonZeroU32| {
            let part = most.get() / count + u32::from(number < most.get() % count);
            NonZeroU32::new(part).unwrap_or(NonZeroU32::MIN)
        };
        Self {
            max_in_flight: self.max_in_flight.map(in_flight),
            rate: self.rate.map(|rate| Rate { sharers: count, ..rate }),
        }
    }
}

/// How much of its webhook's limits a receiver has used, and which backlogs wait their turn.
#[derive(Clone, Debug, Default)]
pub struct Allowance {
    rate: Option<Rate>,
    /// When the whole burst is saved up again.
    full_at: Moment,
    /// The queues whose backlogs were refused, the earliest first.
    line: VecDeque<usize>,
    /// Since when others have yielded to the first of them.
    yielding_since: Option<Moment>,
}

impl Allowance {
    /// Asks for an attempt that begins now, while `under_way` others are under way. `queue` is the queue
    /// whose backlog asks; `None` for a delivery that isn't in a backlog.
    ///
    /// # Errors
    /// The limit that is reached, and the minimum wait; zero means until a request ends.
    pub fn ask(
        &mut self,
        limits: Limits,
        under_way: usize,
        queue: Option<usize>,
        now: Moment,
    ) -> Result<(), (Limit, Duration)> {
        if self.rate != limits.rate {
            self.full_at = self.full_at_then(limits.rate, now);
            self.rate = limits.rate;
        }
        let refused =
            self.check(limits, under_way, now).or_else(|| self.is_others_turn(queue, now));
        if let Some(refused) = refused {
            if let Some(queue) = queue.filter(|queue| !self.line.contains(queue)) {
                self.line.push_back(queue);
            }
            return Err(refused);
        }
        self.line.retain(|waiting| Some(*waiting) != queue);
        self.yielding_since = None;
        if let Some(rate) = limits.rate {
            self.full_at = self.full_at.max(now) + rate.interval();
        }
        Ok(())
    }

    /// When the whole burst is saved up again at another rate. If only the number of instances has
    /// changed, the used part of the burst stays used; otherwise each such change would grant all
    /// instances a new burst.
    fn full_at_then(&self, rate: Option<Rate>, now: Moment) -> Moment {
        match (self.rate, rate) {
            (Some(before), Some(rate)) if before.interval == rate.interval => {
                let missing = self.full_at.saturating_sub(now);
                now + missing.saturating_mul(rate.sharers) / before.sharers.max(1)
            }
            _ => now,
        }
    }

    fn check(&self, limits: Limits, under_way: usize, now: Moment) -> Option<(Limit, Duration)> {
        if limits.max_in_flight.is_some_and(|most| under_way >= most.get() as usize) {
            return Some((Limit::InFlight, Duration::ZERO));
        }
        let early = self.full_at.saturating_sub(now + limits.rate?.allowance());
        (!early.is_zero()).then_some((Limit::Rate, early))
    }

    /// Whether a backlog that was refused earlier comes first; if so, for how long this one has to wait.
    fn is_others_turn(&mut self, queue: Option<usize>, now: Moment) -> Option<(Limit, Duration)> {
        let first = self.line.front().copied()?;
        if queue == Some(first) {
            return None;
        }
        let since = *self.yielding_since.get_or_insert(now);
        if now >= since + COURTESY {
            // The first one no longer asks.
            self.line.pop_front();
            self.yielding_since = None;
            return self.is_others_turn(queue, now);
        }
        let limit = if self.rate.is_some() { Limit::Rate } else { Limit::InFlight };
        Some((limit, since + COURTESY - now))
    }

    /// Whether the whole burst is available and no backlog waits, so that nothing has to be remembered.
    #[must_use]
    pub fn is_unused(&self, now: Moment) -> bool {
        now >= self.full_at && self.line.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_rate_is_a_number_within_its_bounds() {
        for good in ["0.001", "1", "1e1", "2.5", "100000"] {
            assert!(good.parse::<Rate>().is_ok(), "{good}");
        }
        for bad in ["", "0", "-0", "-1", "NaN", "nan", "inf", "Infinity", "1e9", "1e-9", "x", " 1"]
        {
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
            let part = |number| in_flight(limit).part(number, count).max_in_flight;
            (0..count).filter_map(part).map(NonZeroU32::get).collect()
        };
        assert_eq!(most(4, 3), [2, 1, 1]);
        assert_eq!(most(5, 2), [3, 2]);
        assert_eq!(most(3, 3), [1, 1, 1]);
        assert_eq!(most(1, 2), [1, 1], "at least one each");
        assert!(in_flight(3).suffice_for(3) && !in_flight(3).suffice_for(4));
        assert!(
            rate("3").suffice_for(2) && !rate("3").suffice_for(4) && !rate("0.5").suffice_for(1)
        );
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
    fn no_more_attempts_are_under_way_than_max_in_flight() {
        let mut allowance = Allowance::default();
        let mut ask = |under_way| allowance.ask(in_flight(2), under_way, Some(0), ms(0));
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
}
