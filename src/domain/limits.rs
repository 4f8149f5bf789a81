//! A webhook's own limits: how many requests may be in flight at a time, and how many per second.
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
    /// How many attempts may be in flight at a time.
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

    /// Whether `count` instances can share the limits: each of them may have a request in flight, and
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
    /// Asks for an attempt that begins now, while `in_flight` others are in flight. `queue` is the queue
    /// whose backlog asks; `None` for a delivery that isn't in a backlog.
    ///
    /// # Errors
    /// The limit that is reached, and the minimum wait; zero means until a request ends.
    pub fn ask(
        &mut self,
        limits: Limits,
        in_flight: usize,
        queue: Option<usize>,
        now: Moment,
    ) -> Result<(), (Limit, Duration)> {
        if self.rate != limits.rate {
            self.full_at = self.full_at_then(limits.rate, now);
            self.rate = limits.rate;
        }
        let refused =
            self.check(limits, in_flight, now).or_else(|| self.is_others_turn(queue, now));
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

    fn check(&self, limits: Limits, in_flight: usize, now: Moment) -> Option<(Limit, Duration)> {
        if limits.max_in_flight.is_some_and(|most| in_flight >= most.get() as usize) {
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
mod tests;
