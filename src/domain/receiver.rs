//! One receiver's state, derived from its attempts. It decides whether the receiver may have another
//! attempt now.
//!
//! The state has four independent parts:
//!
//! - **Class**: prompt, unproven or slow. Slow and unproven receivers may use only part of a queue's
//!   capacity ([`super::pace`]).
//! - **Circuit breaker** (Nygard, *Release It!*): after several failures in a row, over at least a
//!   second, the receiver gets no requests for a quarter of the time that its outage has lasted. Then one
//!   attempt probes it.
//! - **Ramp**: an overloaded receiver gets half as many requests at a time, then gradually more.
//! - **`Retry-After`**: the receiver gets no requests before the time that it named.
//!
//! In addition, its webhook may have limits ([`super::limits`]); reaching them is no fault. A quick
//! failure costs other receivers nothing, so by itself it prevents no further attempt.
//!
//! Times are [`Moment`]s passed as arguments: nothing here reads a clock.

use std::time::Duration;

use super::limits::{Allowance, Limits};
use super::outcome::{LONGEST_STAY, Reason};
use super::pace::Hold;
use super::time::Moment;

mod ailment;
mod breaker;
mod class;
mod outage;
mod ramp;

use class::ClassHistory;
use ramp::Ramp;

pub use ailment::{Ailment, Condition, Next};
pub use breaker::{Breaker, LEAST_OUTAGE};
pub use class::{Class, SLOW};
pub use outage::Outage;

/// A receiver that can answer within this time is near. Ten such requests, one after the other in one
/// thread, take little time and cost less than ten threads.
const NEAR: Duration = Duration::from_millis(1);

/// A receiver is active if it accepted an event within this time. It is long enough that a short stall
/// of our machine doesn't look like a stall of the receiver.
const ACTIVE: Duration = Duration::from_millis(500);

/// How an attempt ended, as far as that says something about the receiver.
#[derive(Clone, Copy, Debug)]
pub enum AttemptEnd<'a> {
    /// The receiver has the event.
    Delivered,
    /// The receiver doesn't have the event.
    Failed {
        /// The event's id.
        event: &'a str,
        /// The kind of failure.
        reason: Reason,
        /// The answer's status, if there was an answer.
        status: Option<u16>,
        /// Whether the receiver seems overloaded.
        is_overload: bool,
        /// The receiver's `Retry-After`.
        retry_after: Option<Duration>,
    },
}

/// A change of the circuit breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The receiver gets no attempts for this long.
    Open(Duration),
    /// The receiver gets one attempt as a probe.
    HalfOpen,
    /// The receiver gets attempts without restriction.
    Closed,
}

impl Transition {
    /// Every kind of transition.
    pub const ALL: [Self; 3] = [Self::Open(Duration::ZERO), Self::HalfOpen, Self::Closed];

    /// The metrics label: the new state.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::HalfOpen => "half_open",
            Self::Closed => "closed",
        }
    }
}

/// The circuit breaker's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Circuit {
    #[default]
    Closed,
    /// Until then.
    Open(Moment),
    /// A probe is in flight.
    HalfOpen,
}

/// An attempt that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndedAttempt {
    /// The number of the queue whose capacity it used.
    pub(super) queue: usize,
    pub(super) began: Moment,
    pub(super) is_probe: bool,
}

/// One receiver's state. By default the receiver is unproven and has no failures.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    /// The number of failed attempts since the last success.
    failures: u32,
    /// When the first of these attempts began, or when the last success came, whichever was later.
    failing_since: Moment,
    /// When the last of them ended.
    failed_at: Moment,
    /// When the circuit breaker opened, if it is open or half-open.
    opened_at: Moment,
    /// The id of the event whose attempt failed first.
    event: Box<str>,
    /// Whether an attempt for another event has failed since.
    several_events: bool,
    /// Why the last attempt failed.
    reason: Option<Reason>,
    /// The status of the last failed answer.
    status: Option<u16>,
    succeeded_at: Moment,
    class_history: ClassHistory,
    ramp: Ramp,
    circuit: Circuit,
    stay_away_until: Moment,
    /// Attempts in flight, by queue number.
    in_flight: Vec<u32>,
    /// How long its quickest requests take. It decreases at once and increases slowly: a longer time says
    /// more about the load of this machine than about the distance.
    quickest: Duration,
    /// `None` if its webhook never had limits.
    allowance: Option<Box<Allowance>>,
}

impl Receiver {
    /// Checks whether the receiver may have an attempt at `now`, regardless of capacity and limits.
    pub(super) fn check(&self, now: Moment) -> Result<(), Hold> {
        if now < self.stay_away_until {
            return Err(Hold::StayAway(self.stay_away_until - now));
        }
        match self.circuit {
            Circuit::Open(until) if now < until => Err(Hold::Breaker(until - now)),
            Circuit::HalfOpen => Err(Hold::Breaker(Duration::ZERO)),
            Circuit::Open(_) | Circuit::Closed if !self.ramp.has_room(self.total()) => {
                Err(Hold::Ramp)
            }
            Circuit::Open(_) | Circuit::Closed => Ok(()),
        }
    }

    /// Begins an attempt at `now` if its webhook's limits allow it. The caller has called
    /// [`Receiver::check`] before. Returns whether the attempt is a probe.
    pub(super) fn begin(
        &mut self,
        queue: usize,
        limits: Limits,
        is_head: bool,
        now: Moment,
    ) -> Result<bool, Hold> {
        if !limits.is_none() {
            // The limits are checked last, since this counts the attempt.
            let in_flight = self.total() as usize;
            let allowance = self.allowance.get_or_insert_default();
            let asked = allowance.ask(limits, in_flight, is_head.then_some(queue), now);
            asked.map_err(|(limit, wait)| Hold::Limit(limit, wait))?;
        }
        if self.in_flight.len() <= queue {
            self.in_flight.resize(queue + 1, 0);
        }
        self.in_flight[queue] += 1;
        let is_probe = matches!(self.circuit, Circuit::Open(_));
        if is_probe {
            self.circuit = Circuit::HalfOpen;
        }
        Ok(is_probe)
    }

    /// Records that at `now` one of its requests has been in flight for longer than [`SLOW`].
    pub(super) fn took_long(&mut self, now: Moment) {
        self.class_history.took_long(now);
    }

    /// Records that an attempt ended at `now`. `jitter` is a random number from 0 to 1.
    pub(super) fn end(
        &mut self,
        attempt: EndedAttempt,
        ended: AttemptEnd<'_>,
        breaker: Breaker,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        let in_flight = self.total();
        self.release(attempt.queue);
        if now <= attempt.began + SLOW {
            self.class_history.answered(now);
        }
        let took = now.saturating_sub(attempt.began);
        self.quickest = if self.quickest.is_zero() {
            took
        } else {
            took.min(self.quickest + took.saturating_sub(self.quickest) / 64)
        };
        match ended {
            AttemptEnd::Delivered => {
                self.failures = 0;
                self.several_events = false;
                (self.reason, self.status) = (None, None);
                self.succeeded_at = now;
                if std::mem::take(&mut self.circuit) == Circuit::Closed {
                    self.ramp.succeeded(in_flight);
                    return None;
                }
                self.ramp.restart(now);
                Some(Transition::Closed)
            }
            AttemptEnd::Failed { event, reason, status, is_overload, retry_after } => {
                self.failed(event, attempt.began);
                self.failed_at = now;
                (self.reason, self.status) = (Some(reason), status);
                if is_overload {
                    self.ramp.overloaded(attempt.began, in_flight, now);
                } else {
                    self.ramp.failed();
                }
                if let Some(wanted) = retry_after {
                    self.stay_away(wanted, now);
                }
                self.open_after_failure(attempt, breaker, jitter, now)
            }
        }
    }

    /// Cancels an attempt that wasn't made, which says nothing about the receiver.
    pub(super) fn give_back(&mut self, attempt: EndedAttempt) {
        self.release(attempt.queue);
        if self.circuit == Circuit::HalfOpen && attempt.is_probe {
            // As before the attempt: the pause is over, and a probe is due.
            self.circuit = Circuit::Open(Moment::ZERO);
        }
    }

    /// Records that the receiver asked for no requests for this long, [`LONGEST_STAY`] at most.
    pub(super) fn stay_away(&mut self, wanted: Duration, now: Moment) {
        self.stay_away_until = self.stay_away_until.max(now + wanted.min(LONGEST_STAY));
    }

    /// If its circuit breaker is open, makes a probe due.
    pub(super) fn probe_now(&mut self) {
        if let Circuit::Open(until) = &mut self.circuit {
            *until = Moment::ZERO;
        }
    }

    /// Takes over the state that another process recorded, unless this process knows more.
    pub(super) fn restore(&mut self, is_slow: bool, away_for: Option<Duration>, now: Moment) {
        if is_slow && self.class() == Class::Unproven {
            self.class_history.took_long(now);
        }
        if let Some(away_for) = away_for
            && self.circuit == Circuit::Closed
            && self.failures == 0
            && self.succeeded_at.is_zero()
        {
            self.failures = 1;
            self.failing_since = now.saturating_sub(away_for);
            (self.failed_at, self.opened_at) = (self.failing_since, self.failing_since);
            self.circuit = Circuit::Open(Moment::ZERO);
        }
    }

    /// Forgets everything except the attempts in flight.
    pub(super) fn forget(&mut self) {
        *self = Self { in_flight: std::mem::take(&mut self.in_flight), ..Self::default() };
    }

    fn release(&mut self, queue: usize) {
        if let Some(count) = self.in_flight.get_mut(queue) {
            *count = count.saturating_sub(1);
        }
    }

    fn failed(&mut self, event: &str, began: Moment) {
        if self.failures == 0 {
            self.event = event.into();
            self.failing_since = began.max(self.succeeded_at);
        } else {
            self.several_events |= *self.event != *event;
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Opens the circuit breaker if this failure is reason enough.
    ///
    /// Failures of a single event never open it, however many there are. They are as rare as the retry
    /// schedule says, and an open breaker would delay that event's retries beyond the operator's schedule.
    fn open_after_failure(
        &mut self,
        attempt: EndedAttempt,
        breaker: Breaker,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        let thresholds = breaker.0?;
        let outage = now.saturating_sub(self.failing_since);
        let opens = match self.circuit {
            Circuit::HalfOpen => attempt.is_probe,
            Circuit::Closed => {
                self.several_events
                    && self.failures >= thresholds.failures
                    && outage >= LEAST_OUTAGE
            }
            // The attempt began before the breaker opened, so its failure is no news.
            Circuit::Open(_) => false,
        };
        if !opens {
            return None;
        }
        // A failed attempt says nothing about the time after its begin. If it hung, the receiver may have
        // recovered meanwhile, so the time that we waited must not lengthen the pause.
        let known = attempt.began.saturating_sub(self.failing_since);
        if self.circuit == Circuit::Closed {
            self.opened_at = now;
        }
        let pause = thresholds.pause(known, jitter);
        self.circuit = Circuit::Open(now + pause);
        Some(Transition::Open(pause))
    }

    /// The class of the receiver: how soon it answers.
    #[must_use]
    pub fn class(&self) -> Class {
        self.class_history.class()
    }

    /// How many attempts in flight use this queue's capacity.
    pub(super) fn in_flight(&self, queue: usize) -> usize {
        self.in_flight.get(queue).map_or(0, |count| *count as usize)
    }

    fn total(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    /// Whether the receiver is near: an attempt usually ends sooner than another thread could begin it.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.class() == Class::Prompt && self.failures == 0 && self.quickest <= NEAR
    }

    /// Whether the receiver is brisk: near and active, so that the next of its requests will probably
    /// deliver an event within a moment.
    #[must_use]
    pub fn is_brisk(&self, now: Moment) -> bool {
        self.is_near() && now <= self.succeeded_at + ACTIVE
    }

    /// Whether the circuit breaker is open or half-open.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.circuit != Circuit::Closed
    }

    /// Whether its last attempt failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether the receiver can be forgotten: nothing is known of it except how fast it is.
    #[must_use]
    pub fn is_unremarkable(&self, now: Moment) -> bool {
        !self.is_busy()
            && !self.is_failing()
            && self.class() != Class::Slow
            && !self.is_broken()
            && now >= self.stay_away_until
            && self.allowance.as_ref().is_none_or(|allowance| allowance.is_unused(now))
    }

    /// Whether an attempt is in flight.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.total() > 0
    }
}
