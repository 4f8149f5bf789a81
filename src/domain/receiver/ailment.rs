//! What is wrong with a receiver, as an operator wants to know it.

use std::time::Duration;

use super::{Moment, Receiver, SLOW, State};
use crate::domain::outcome::Reason;

/// Why a receiver is degraded, since when, and when it gets its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ailment {
    /// How bad it is.
    pub condition: Condition,
    /// Failures since its last success.
    pub failures: u32,
    /// Why the last of them failed; `None` if there are none, and it is only slow.
    pub reason: Option<Reason>,
    /// For how long it has been degraded.
    pub lasted: Duration,
    /// When it gets its next attempt.
    pub next: Next,
}

/// How bad it is. In this order operators want to see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Its circuit breaker is open.
    Open,
    /// Its circuit breaker is half-open: a probe is under way.
    HalfOpen,
    /// It asked us to stay away.
    StayAway,
    /// Its last attempt failed.
    Failing,
    /// Its last attempt took over a second, or one takes that long right now.
    Slow,
}

/// When a degraded receiver gets its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is under way, and nobody else's is made before it has ended.
    Probing,
    /// Not before this time is over, and then by the next delivery that comes for it.
    After(Duration),
    /// By the next delivery that comes for it.
    WithNextDelivery,
}

impl Condition {
    /// A word for programs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::HalfOpen => "half_open",
            Self::StayAway => "stay_away",
            Self::Failing => "failing",
            Self::Slow => "slow",
        }
    }
}

impl Receiver {
    /// What is wrong with it at `now`; `None` while it is not degraded.
    #[must_use]
    pub fn ailment(&self, now: Moment) -> Option<Ailment> {
        if !self.is_degraded(now) {
            return None;
        }
        let opened_until = match self.state {
            State::Open(until, _) => until,
            State::HalfOpen(_) | State::Closed => Moment::ZERO,
        };
        let away_for = opened_until.max(self.stay_away_until).saturating_sub(now);
        let condition = match self.state {
            State::Open(..) => Condition::Open,
            State::HalfOpen(_) => Condition::HalfOpen,
            State::Closed if now < self.stay_away_until => Condition::StayAway,
            State::Closed if self.failures > 0 => Condition::Failing,
            State::Closed => Condition::Slow,
        };
        let next = match condition {
            Condition::HalfOpen => Next::Probing,
            _ if away_for.is_zero() => Next::WithNextDelivery,
            _ => Next::After(away_for),
        };
        Some(Ailment {
            condition,
            failures: self.failures,
            reason: self.reason,
            lasted: now.saturating_sub(self.degraded_since()),
            next,
        })
    }

    fn degraded_since(&self) -> Moment {
        if self.failures > 0 || self.slow {
            return self.since;
        }
        // Nothing has ended badly yet: the one that is under way takes long.
        self.under_way.iter().map(|attempt| attempt.began + SLOW).min().unwrap_or(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::receiver::{Attempt, Breaker, Ended, Place};

    const FAILED: Ended<'static> = failed("a", None);

    const fn failed(event: &str, retry_after: Option<Duration>) -> Ended<'_> {
        Ended::Failed { event, reason: Reason::Timeout, retry_after }
    }

    fn begin(receiver: &mut Receiver, now: u64) -> Attempt {
        let (attempt, _) = receiver.admit(Place::new(1, 8, false), at(now)).expect("an attempt");
        attempt
    }

    fn attempt(receiver: &mut Receiver, [began, over]: [u64; 2], ended: Ended<'_>) {
        let breaker: Breaker = "2,30s,10m".parse().expect("a breaker");
        let attempt = begin(receiver, began);
        receiver.end(attempt, ended, breaker, at(over));
    }

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_receiver_that_is_well_has_no_ailment() {
        let mut receiver = Receiver::default();
        assert_eq!(receiver.ailment(at(0)), None);
        attempt(&mut receiver, [1, 2], Ended::Delivered);
        assert_eq!(receiver.ailment(at(2)), None);
        attempt(&mut receiver, [2, 3], FAILED);
        attempt(&mut receiver, [3, 4], Ended::Delivered);
        assert_eq!(receiver.ailment(at(4)), None);
    }

    #[test]
    fn failures_are_counted_from_the_first_and_explained_by_the_last() {
        let mut receiver = Receiver::default();
        attempt(&mut receiver, [0, 1], Ended::Delivered);
        attempt(&mut receiver, [10, 20], FAILED);
        attempt(&mut receiver, [30, 40], FAILED);
        let expected = Ailment {
            condition: Condition::Failing,
            failures: 2,
            reason: Some(Reason::Timeout),
            lasted: at(25),
            next: Next::WithNextDelivery,
        };
        assert_eq!(receiver.ailment(at(45)), Some(expected));
    }

    #[test]
    fn an_open_breaker_says_when_its_probe_is_due_and_a_probe_that_it_is_under_way() {
        let mut receiver = Receiver::default();
        attempt(&mut receiver, [0, 0], failed("a", None));
        attempt(&mut receiver, [0, 0], failed("b", None));
        let shown = |receiver: &Receiver, now| {
            receiver.ailment(at(now)).map(|ailment| (ailment.condition, ailment.next))
        };
        assert_eq!(shown(&receiver, 10), Some((Condition::Open, Next::After(at(20)))));
        assert_eq!(shown(&receiver, 31), Some((Condition::Open, Next::WithNextDelivery)));
        let _ = begin(&mut receiver, 40);
        assert_eq!(shown(&receiver, 41), Some((Condition::HalfOpen, Next::Probing)));
    }

    #[test]
    fn a_receiver_that_asked_us_to_stay_away_says_for_how_long_still() {
        let mut receiver = Receiver::default();
        attempt(&mut receiver, [0, 0], failed("a", Some(at(100))));
        let ailment = receiver.ailment(at(50)).expect("it failed");
        assert_eq!((ailment.condition, ailment.next), (Condition::StayAway, Next::After(at(48))));
        let ailment = receiver.ailment(at(98)).expect("it failed");
        assert_eq!((ailment.condition, ailment.next), (Condition::Failing, Next::WithNextDelivery));
    }

    #[test]
    fn slowness_lasts_since_the_slow_answer_or_since_it_became_too_long_a_wait() {
        let mut receiver = Receiver::default();
        attempt(&mut receiver, [0, 3], Ended::Delivered);
        let ailment = receiver.ailment(at(10)).expect("it was slow");
        assert_eq!((ailment.condition, ailment.reason), (Condition::Slow, None));
        assert_eq!(ailment.lasted, at(7));

        let mut receiver = Receiver::default();
        let _ = begin(&mut receiver, 5);
        let ailment = receiver.ailment(at(10)).expect("it takes long");
        assert_eq!((ailment.condition, ailment.lasted), (Condition::Slow, at(4)));
    }
}
