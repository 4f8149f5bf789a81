//! What we conclude from a receiver's attempts: may it have another one now?
//!
//! Three rules, all of them about one receiver, so that none of them touches its neighbours:
//!
//! - **Degraded**: its last attempt failed or was slow, or one is taking long right now. Its first
//!   attempts are not made in the lane of new events but in that of the retries.
//! - **Bulkhead** (Nygard, *Release It!*): while it keeps us waiting it gets its share of a lane's
//!   consumers, and no more. One that has not shown yet how fast it is gets that at first, too.
//! - **Circuit breaker** (the same book): after several failures in a row it is left alone for a
//!   while, then probed by one attempt.
//!
//! And what its webhook says that it can take ([`super::limits`]), which is no fault of it.
//!
//! Times are [`Moment`]s, handed in: nothing here knows a clock.

use std::fmt;
use std::time::Duration;

use super::limits::{Limit, Limits, Turns};
use super::outcome::Reason;

mod ailment;
mod breaker;

pub use ailment::{Ailment, Condition, Next};
pub use breaker::Breaker;

/// A time, as the duration since any fixed moment before it.
pub type Moment = Duration;

/// A success that took longer than this leaves its receiver degraded, and so does an attempt that
/// has been under way for that long.
pub const SLOW: Duration = Duration::from_secs(1);

/// From here on an attempt keeps us waiting. A receiver answers within some tens of milliseconds
/// across a continent; one that has not begun to fail yet must not fill a lane before [`SLOW`] tells.
pub const PROMPT: Duration = Duration::from_millis(100);

/// What an attempt takes at least, where it is guessed when the next can begin.
const QUICKEST: Duration = Duration::from_millis(1);

/// The longest that a receiver's own `Retry-After` keeps us away from it. A header that says "next
/// year" is a mistake, and its receiver would get nothing until we are restarted.
pub const LONGEST_STAY: Duration = Duration::from_secs(3_600);

/// How much of its `Retry-After` a receiver gets for sure, in percent. The delivery that it asked
/// to come back then waits by the broker's clock, which may run a percent faster than ours, and
/// should not be told to wait once more.
const CERTAIN: u32 = 98;

/// The lane in which an attempt would be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The lane's number.
    pub lane: usize,
    /// How many of its consumers may wait for one receiver.
    pub share: usize,
    /// Whether it is a lane of new events, where only healthy receivers are asked.
    pub is_first: bool,
}

impl Place {
    /// A lane with so many consumers, of which a quarter may wait for one receiver, and one always.
    #[must_use]
    pub fn new(lane: usize, consumers: u16, is_first: bool) -> Self {
        Self { lane, share: usize::from(consumers / 4).max(1), is_first }
    }
}

/// What is asked for: an attempt, of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// Where it would be made.
    pub place: Place,
    /// What the webhook says.
    pub limits: Limits,
    /// How far off the delivery's turn is, if it had to wait for one.
    pub turn: Option<Duration>,
}

impl From<Place> for Ask {
    /// By a delivery that comes for the first time to a receiver without limits.
    fn from(place: Place) -> Self {
        Self { place, limits: Limits::default(), turn: None }
    }
}

/// An attempt that may be made, and is under way until [`Receiver::end`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Attempt {
    lane: usize,
    /// When it began.
    pub began: Moment,
    is_probe: bool,
}

/// Why no attempt may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Not in this lane: the receiver is degraded.
    Degraded,
    /// It keeps its share of this lane's consumers waiting.
    Bulkhead,
    /// Its share is being used for its very first attempts: what they show is known after this
    /// time at the latest.
    Unproven(Duration),
    /// The circuit breaker is open for so long, or waits for what its probe finds.
    Breaker(Duration),
    /// The receiver asked us to stay away for so long (`Retry-After`).
    StayAway(Duration),
    /// It gets as much as it can take already. The delivery's turn is so far off.
    Limit(Limit, Duration),
}

impl Hold {
    /// How long an attempt would be in vain at least.
    #[must_use]
    pub const fn remaining(self) -> Duration {
        match self {
            Self::Degraded | Self::Bulkhead | Self::Unproven(_) => Duration::ZERO,
            Self::Breaker(remaining) | Self::StayAway(remaining) | Self::Limit(_, remaining) => {
                remaining
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Degraded => "the receiver is degraded",
            Self::Bulkhead | Self::Unproven(_) => {
                "the receiver keeps its share of the consumers waiting"
            }
            Self::Breaker(_) => "the receiver's circuit breaker is open",
            Self::StayAway(_) => "the receiver asked us to stay away",
            Self::Limit(Limit::InFlight, _) => "the webhook's max_in_flight is reached",
            Self::Limit(Limit::Rate, _) => "the webhook's rate_per_second is reached",
        })
    }
}

/// How an attempt ended, as far as it says something about the receiver.
#[derive(Clone, Copy, Debug)]
pub enum Ended<'a> {
    /// The receiver has the event.
    Delivered,
    /// It has not.
    Failed {
        /// Which event it was.
        event: &'a str,
        /// What kind of failure.
        reason: Reason,
        /// How long the receiver asked us to stay away.
        retry_after: Option<Duration>,
    },
}

/// A change of the circuit breaker's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// No attempts for so long.
    Open(Duration),
    /// One attempt, to see.
    HalfOpen,
    /// As many as there are.
    Closed,
}

impl Transition {
    /// Every kind of transition.
    pub const ALL: [Self; 3] = [Self::Open(Duration::ZERO), Self::HalfOpen, Self::Closed];

    /// The metrics label: the state that follows.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::HalfOpen => "half_open",
            Self::Closed => "closed",
        }
    }
}

/// How fast the last answer came, or its failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Pace {
    /// There was none yet.
    #[default]
    Unknown,
    /// Within [`PROMPT`].
    Prompt,
    /// Later.
    Lingering,
}

/// The circuit breaker's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    /// Until then, and opened for that long.
    Open(Moment, Duration),
    /// A probe is under way; before it, it was open for that long.
    HalfOpen(Duration),
}

/// One receiver, as its attempts show it. The default is one of which nothing is known: healthy.
#[derive(Clone, Debug, Default)]
pub struct Receiver {
    /// Failures since the last success.
    failures: u32,
    /// The event of the first of them.
    event: Box<str>,
    /// Whether another event failed as well since then.
    several: bool,
    /// Why the last of them failed.
    reason: Option<Reason>,
    slow: bool,
    /// When an attempt ended that had still found it well: while it is degraded, since when.
    since: Moment,
    pace: Pace,
    state: State,
    stay_away_until: Moment,
    under_way: Vec<Attempt>,
    /// How long an attempt takes, on a moving average.
    usual: Duration,
    /// None: it never had limits.
    turns: Option<Box<Turns>>,
}

impl Receiver {
    /// Asks for an attempt at `now`, which begins then.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn admit(
        &mut self,
        ask: impl Into<Ask>,
        now: Moment,
    ) -> Result<(Attempt, Option<Transition>), Hold> {
        let ask = ask.into();
        let place = ask.place;
        if now < self.stay_away_until {
            return Err(Hold::StayAway(self.stay_away_until - now));
        }
        match self.state {
            State::Open(until, _) if now < until => return Err(Hold::Breaker(until - now)),
            State::HalfOpen(_) => return Err(Hold::Breaker(Duration::ZERO)),
            State::Open(..) | State::Closed => {}
        }
        if place.is_first && self.is_degraded(now) {
            return Err(Hold::Degraded);
        }
        self.check_share(place, now)?;
        if !ask.limits.is_none() {
            // The last to be asked: it counts what it lets pass.
            let so_far = (self.under_way.len(), self.usual.max(QUICKEST));
            let turns = self.turns.get_or_insert_default();
            turns
                .ask(ask.limits, so_far, ask.turn, now)
                .map_err(|(limit, turn)| Hold::Limit(limit, turn))?;
        }
        let mut attempt = Attempt { lane: place.lane, began: now, is_probe: false };
        let mut transition = None;
        if let State::Open(_, pause) = self.state {
            attempt.is_probe = true;
            self.state = State::HalfOpen(pause);
            transition = Some(Transition::HalfOpen);
        }
        self.under_way.push(attempt);
        Ok((attempt, transition))
    }

    fn check_share(&self, place: Place, now: Moment) -> Result<(), Hold> {
        let here = self.under_way.iter().filter(|attempt| attempt.lane == place.lane).count();
        if here < place.share {
            return Ok(());
        }
        let oldest = self.under_way.iter().map(|attempt| attempt.began).min().unwrap_or(now);
        if now > oldest + PROMPT {
            return Err(Hold::Bulkhead);
        }
        match self.pace {
            Pace::Prompt => Ok(()),
            Pace::Lingering => Err(Hold::Bulkhead),
            Pace::Unknown => Err(Hold::Unproven(oldest + PROMPT - now)),
        }
    }

    /// An attempt ended at `now`.
    pub fn end(
        &mut self,
        attempt: Attempt,
        ended: Ended<'_>,
        breaker: Breaker,
        now: Moment,
    ) -> Option<Transition> {
        self.let_go(attempt);
        let is_prompt = now <= attempt.began + PROMPT;
        self.pace = if is_prompt { Pace::Prompt } else { Pace::Lingering };
        if self.failures == 0 && !self.slow {
            self.since = now;
        }
        self.usual = (self.usual * 7 + now.saturating_sub(attempt.began)) / 8;
        match ended {
            Ended::Delivered => {
                self.failures = 0;
                self.several = false;
                self.reason = None;
                self.slow = now > attempt.began + SLOW;
                let was = std::mem::take(&mut self.state);
                (was != State::Closed).then_some(Transition::Closed)
            }
            Ended::Failed { event, reason, retry_after } => {
                self.failed(event);
                self.reason = Some(reason);
                if let Some(wanted) = retry_after {
                    let until = now + wanted.min(LONGEST_STAY) * CERTAIN / 100;
                    self.stay_away_until = self.stay_away_until.max(until);
                }
                self.after_failure(attempt, breaker, now)
            }
        }
    }

    /// An attempt was not made after all, and says nothing about the receiver.
    pub fn give_back(&mut self, attempt: Attempt) {
        self.let_go(attempt);
        if let (State::HalfOpen(pause), true) = (self.state, attempt.is_probe) {
            // As it was: over, and due for a probe.
            self.state = State::Open(Moment::ZERO, pause);
        }
    }

    fn let_go(&mut self, attempt: Attempt) {
        if let Some(at) = self.under_way.iter().position(|other| *other == attempt) {
            let _ = self.under_way.swap_remove(at);
        }
    }

    fn failed(&mut self, event: &str) {
        if self.failures == 0 {
            self.event = event.into();
        } else {
            self.several |= *self.event != *event;
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// Opens the breaker, if this failure does.
    ///
    /// The failures of one event alone don't: they come as slowly as the retry schedule says, and
    /// an operator's schedule holds. It takes a second event to make a receiver's failures many.
    fn after_failure(
        &mut self,
        attempt: Attempt,
        breaker: Breaker,
        now: Moment,
    ) -> Option<Transition> {
        let thresholds = breaker.0?;
        let pause = match self.state {
            State::HalfOpen(pause) if attempt.is_probe => {
                pause.saturating_mul(2).min(thresholds.longest)
            }
            State::Closed if self.several && self.failures >= thresholds.failures => {
                thresholds.pause
            }
            // It began before the breaker opened: old news.
            _ => return None,
        };
        self.state = State::Open(now + pause, pause);
        Some(Transition::Open(pause))
    }

    /// Whether its last attempt failed or was slow, or one is slow right now.
    #[must_use]
    pub fn is_degraded(&self, now: Moment) -> bool {
        self.failures > 0
            || self.slow
            || self.under_way.iter().any(|attempt| now > attempt.began + SLOW)
    }

    /// Whether the circuit breaker keeps it from getting attempts as they come.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state != State::Closed
    }

    /// Whether there is anything to remember of it but how fast it is.
    #[must_use]
    pub fn is_unremarkable(&self, now: Moment) -> bool {
        self.under_way.is_empty()
            && !self.is_degraded(now)
            && !self.is_broken()
            && now >= self.stay_away_until
            && self.turns.as_ref().is_none_or(|turns| turns.is_over(now))
    }

    /// Whether an attempt is under way.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests;
