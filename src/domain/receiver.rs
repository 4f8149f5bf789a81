//! What is known of one receiver from its attempts: may it have another one now?
//!
//! There are four independent parts:
//!
//! - **Class**: prompt, unproven or slow. The slow and the unproven may use only part of a queue's
//!   capacity ([`super::pace`]).
//! - **Circuit breaker** (Nygard, *Release It!*): after several failures in a row, over at least a
//!   second, the receiver gets nothing for a quarter of the time that its outage has lasted. Then one
//!   attempt probes it.
//! - **Ramp**: an overloaded receiver gets half as many requests at a time.
//! - **`Retry-After`**: it gets nothing before that time.
//!
//! In addition there are its webhook's limits ([`super::limits`]), which aren't a fault. A failure that
//! comes quickly costs nobody anything: by itself it prevents no further attempt.
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

/// A receiver that can answer within this time is near: ten such requests in one thread cost less than
/// each in a thread of its own, and are over soon.
const NEAR: Duration = Duration::from_millis(1);

/// A receiver that accepted something within this time is active. It is long enough that a short stall
/// of our machine doesn't count as one of the receiver.
const LATELY: Duration = Duration::from_millis(500);

/// How an attempt ended, as far as that says something about the receiver.
#[derive(Clone, Copy, Debug)]
pub enum AttemptEnd<'a> {
    /// The receiver has the event.
    Delivered,
    /// The receiver doesn't have it.
    Failed {
        /// The event.
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
    /// No attempts for this long.
    Open(Duration),
    /// One attempt as a probe.
    HalfOpen,
    /// No restriction.
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
    /// A probe is under way.
    HalfOpen,
}

/// An attempt that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Over {
    /// The number of the queue whose capacity it used.
    pub(super) queue: usize,
    pub(super) began: Moment,
    pub(super) is_probe: bool,
}

/// One receiver as its attempts show it. By default nothing is known: it is unproven and has no
/// failures.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    /// Failures since the last success.
    failures: u32,
    /// When the first of them began, or when the last success came, whichever was later.
    failing_since: Moment,
    /// When the last of them ended.
    failed_at: Moment,
    /// When the circuit breaker opened, if it is open or half-open.
    opened_at: Moment,
    /// The event of the first of them.
    event: Box<str>,
    /// Whether another event has failed since.
    several: bool,
    /// Why the last of them failed.
    reason: Option<Reason>,
    /// The status that it answered with.
    status: Option<u16>,
    succeeded_at: Moment,
    standing: ClassHistory,
    ramp: Ramp,
    state: Circuit,
    stay_away_until: Moment,
    /// Attempts under way, by queue number.
    under_way: Vec<u32>,
    /// How long its quickest requests take: follows quickly down and slowly up. Anything beyond it says
    /// more about our load than about the distance.
    quickest: Duration,
    /// `None` if it never had limits.
    allowance: Option<Box<Allowance>>,
}

impl Receiver {
    /// Whether it may have an attempt at `now`, apart from capacity and limits.
    pub(super) fn check(&self, now: Moment) -> Result<(), Hold> {
        if now < self.stay_away_until {
            return Err(Hold::StayAway(self.stay_away_until - now));
        }
        match self.state {
            Circuit::Open(until) if now < until => Err(Hold::Breaker(until - now)),
            Circuit::HalfOpen => Err(Hold::Breaker(Duration::ZERO)),
            Circuit::Open(_) | Circuit::Closed if !self.ramp.has_room(self.total()) => {
                Err(Hold::Ramp)
            }
            Circuit::Open(_) | Circuit::Closed => Ok(()),
        }
    }

    /// Begins an attempt at `now` if its webhook's limits allow it; [`Receiver::check`] has passed
    /// before. Returns whether it is a probe.
    pub(super) fn begin(
        &mut self,
        queue: usize,
        limits: Limits,
        is_head: bool,
        now: Moment,
    ) -> Result<bool, Hold> {
        if !limits.is_none() {
            // The limits are checked last, since this counts the attempt.
            let under_way = self.total() as usize;
            let allowance = self.allowance.get_or_insert_default();
            let asked = allowance.ask(limits, under_way, is_head.then_some(queue), now);
            asked.map_err(|(limit, wait)| Hold::Limit(limit, wait))?;
        }
        if self.under_way.len() <= queue {
            self.under_way.resize(queue + 1, 0);
        }
        self.under_way[queue] += 1;
        let is_probe = matches!(self.state, Circuit::Open(_));
        if is_probe {
            self.state = Circuit::HalfOpen;
        }
        Ok(is_probe)
    }

    /// At `now`, one of its requests has been under way for longer than [`SLOW`].
    pub(super) fn took_long(&mut self, now: Moment) {
        self.standing.took_long(now);
    }

    /// An attempt ended at `now`. `jitter` is a random number from 0 to 1.
    pub(super) fn end(
        &mut self,
        over: Over,
        ended: AttemptEnd<'_>,
        breaker: Breaker,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        let under_way = self.total();
        self.let_go(over.queue);
        if now <= over.began + SLOW {
            self.standing.answered(now);
        }
        let took = now.saturating_sub(over.began);
        self.quickest = if self.quickest.is_zero() {
            took
        } else {
            took.min(self.quickest + took.saturating_sub(self.quickest) / 64)
        };
        match ended {
            AttemptEnd::Delivered => {
                self.failures = 0;
                self.several = false;
                (self.reason, self.status) = (None, None);
                self.succeeded_at = now;
                if std::mem::take(&mut self.state) == Circuit::Closed {
                    self.ramp.succeeded(under_way);
                    return None;
                }
                self.ramp.restart(now);
                Some(Transition::Closed)
            }
            AttemptEnd::Failed { event, reason, status, is_overload, retry_after } => {
                self.failed(event, over.began);
                self.failed_at = now;
                (self.reason, self.status) = (Some(reason), status);
                if is_overload {
                    self.ramp.overloaded(over.began, under_way, now);
                } else {
                    self.ramp.failed();
                }
                if let Some(wanted) = retry_after {
                    self.stay_away(wanted, now);
                }
                self.after_failure(over, breaker, jitter, now)
            }
        }
    }

    /// An attempt wasn't made after all, which says nothing about the receiver.
    pub(super) fn give_back(&mut self, over: Over) {
        self.let_go(over.queue);
        if self.state == Circuit::HalfOpen && over.is_probe {
            // As before: the pause is over, and a probe is due.
            self.state = Circuit::Open(Moment::ZERO);
        }
    }

    /// It asked for no requests for this long; at most [`LONGEST_STAY`] counts.
    pub(super) fn stay_away(&mut self, wanted: Duration, now: Moment) {
        self.stay_away_until = self.stay_away_until.max(now + wanted.min(LONGEST_STAY));
    }

    /// If its circuit breaker is open, makes a probe due.
    pub(super) fn probe_now(&mut self) {
        if let Circuit::Open(until) = &mut self.state {
            *until = Moment::ZERO;
        }
    }

    /// Takes over what another process knew, unless this one knows more.
    pub(super) fn restore(&mut self, is_slow: bool, away_for: Option<Duration>, now: Moment) {
        if is_slow && self.class() == Class::Unproven {
            self.standing.took_long(now);
        }
        if let Some(away_for) = away_for
            && self.state == Circuit::Closed
            && self.failures == 0
            && self.succeeded_at.is_zero()
        {
            self.failures = 1;
            self.failing_since = now.saturating_sub(away_for);
            (self.failed_at, self.opened_at) = (self.failing_since, self.failing_since);
            self.state = Circuit::Open(Moment::ZERO);
        }
    }

    /// Forgets everything except what is under way.
    pub(super) fn forget(&mut self) {
        *self = Self { under_way: std::mem::take(&mut self.under_way), ..Self::default() };
    }

    fn let_go(&mut self, queue: usize) {
        if let Some(count) = self.under_way.get_mut(queue) {
            *count = count.saturating_sub(1);
        }
    }

    fn failed(&mut self, event: &str, began: Moment) {
        if self.failures == 0 {
            self.event = event.into();
            self.failing_since = began.max(self.succeeded_at);
        } else {
            self.several |= *self.event != *event;
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Opens the breaker if this failure is the one to do it.
    ///
    /// The failures of a single event don't: they are as rare as the retry schedule says, and the
    /// operator's schedule is to be followed. Many failures count only if a second event fails too.
    fn after_failure(
        &mut self,
        over: Over,
        breaker: Breaker,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        let thresholds = breaker.0?;
        let outage = now.saturating_sub(self.failing_since);
        let opens = match self.state {
            Circuit::HalfOpen => over.is_probe,
            Circuit::Closed => {
                self.several && self.failures >= thresholds.failures && outage >= LEAST_OUTAGE
            }
            // The attempt began before the breaker opened, so it says nothing new.
            Circuit::Open(_) => false,
        };
        if !opens {
            return None;
        }
        // A failed attempt says nothing about the time after it began: if it hung, the receiver may have
        // recovered meanwhile, and the pause must not grow by the time that we waited.
        let known = over.began.saturating_sub(self.failing_since);
        if self.state == Circuit::Closed {
            self.opened_at = now;
        }
        let pause = thresholds.pause(known, jitter);
        self.state = Circuit::Open(now + pause);
        Some(Transition::Open(pause))
    }

    /// How soon it answers.
    #[must_use]
    pub fn class(&self) -> Class {
        self.standing.class()
    }

    /// How many attempts under way use this queue's capacity.
    pub(super) fn under_way(&self, queue: usize) -> usize {
        self.under_way.get(queue).map_or(0, |count| *count as usize)
    }

    fn total(&self) -> u32 {
        self.under_way.iter().sum()
    }

    /// Whether an attempt usually ends before another thread could begin it.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.class() == Class::Prompt && self.failures == 0 && self.quickest <= NEAR
    }

    /// Whether one of its requests will probably end within a moment, with a delivered event.
    #[must_use]
    pub fn is_brisk(&self, now: Moment) -> bool {
        self.is_near() && now <= self.succeeded_at + LATELY
    }

    /// Whether the circuit breaker is open or half-open.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state != Circuit::Closed
    }

    /// Whether its last attempt failed.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// Whether nothing has to be remembered except how fast it is.
    #[must_use]
    pub fn is_unremarkable(&self, now: Moment) -> bool {
        !self.is_busy()
            && !self.is_failing()
            && self.class() != Class::Slow
            && !self.is_broken()
            && now >= self.stay_away_until
            && self.allowance.as_ref().is_none_or(|allowance| allowance.is_over(now))
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.total() > 0
    }
}
