//! What is wrong with a receiver, for operators.

use std::time::Duration;

use super::{Circuit, Class, Moment, Receiver};
use crate::domain::outcome::Reason;

/// What is wrong with a receiver, since when, and when it gets its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ailment {
    /// The condition.
    pub condition: Condition,
    /// Failures since its last success.
    pub failures: u32,
    /// Why the last of them failed; `None` if there are none because it is only slow.
    pub reason: Option<Reason>,
    /// The status of its answer to that attempt, if it answered.
    pub status: Option<u16>,
    /// How long it has been failing or slow, whichever is longer.
    pub lasted: Duration,
    /// When it gets its next attempt.
    pub next: Next,
}

/// What is wrong with a receiver, the most urgent for operators first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Its circuit breaker is open.
    Open,
    /// Its circuit breaker is half-open: a probe is in flight.
    HalfOpen,
    /// It sent `Retry-After`.
    StayAway,
    /// Its last attempt failed.
    Failing,
    /// Its requests take over a second, or recently did.
    Slow,
}

/// When a receiver with an ailment gets its next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A probe is in flight, and no other attempt begins before its end.
    Probing,
    /// It gets its next attempt with the first delivery that comes after this time.
    After(Duration),
    /// It gets its next attempt with the next delivery.
    WithNextDelivery,
}

impl Condition {
    /// The label for metrics and JSON.
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
    /// What is wrong with the receiver at `now`; `None` if nothing is.
    #[must_use]
    pub fn ailment(&self, now: Moment) -> Option<Ailment> {
        let failing_since = self.is_failing().then_some(self.failing_since);
        let slow_since = (self.class() == Class::Slow).then_some(self.class_history.since());
        let since = failing_since.into_iter().chain(slow_since).min()?;
        let opened_until = match self.circuit {
            Circuit::Open(until) => until,
            Circuit::HalfOpen | Circuit::Closed => Moment::ZERO,
        };
        let away_for = opened_until.max(self.stay_away_until).saturating_sub(now);
        let condition = match self.circuit {
            Circuit::Open(..) => Condition::Open,
            Circuit::HalfOpen => Condition::HalfOpen,
            Circuit::Closed if now < self.stay_away_until => Condition::StayAway,
            Circuit::Closed if self.is_failing() => Condition::Failing,
            Circuit::Closed => Condition::Slow,
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
            status: self.status,
            lasted: now.saturating_sub(since),
            next,
        })
    }
}
