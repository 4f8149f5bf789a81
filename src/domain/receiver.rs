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
use std::str::FromStr;
use std::time::Duration;

use super::limits::{Limit, Limits, Turns};
use super::outcome::Reason;
use super::retry::Span;
use super::shown::quoted;

mod ailment;

pub use ailment::{Ailment, Condition, Next};

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

/// When the circuit breaker opens, and for how long. As a setting: `5,30s,10m`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker(Option<Thresholds>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Thresholds {
    failures: u32,
    pause: Duration,
    longest: Duration,
}

impl Breaker {
    /// The pauses that it makes, shortest first: each is worth a wait queue, so that what is held
    /// back returns when the pause is over.
    #[must_use]
    pub fn pauses(self) -> Vec<Span> {
        let Some(Thresholds { pause, longest, .. }) = self.0 else { return Vec::new() };
        let doubled = std::iter::successors(Some(pause), |pause| pause.checked_mul(2));
        let mut pauses: Vec<Duration> = doubled.take_while(|pause| *pause < longest).collect();
        pauses.push(longest);
        pauses.into_iter().map(Span::from).collect()
    }
}

impl FromStr for Breaker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let shown = quoted(text);
        let usage = || {
            format!("{shown} is neither `off` nor failures, first and longest pause: `5,30s,10m`")
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [failures, pause, longest] = parts[..] else { return Err(usage()) };
        let failures = failures.parse().ok().filter(|n| (1..=1_000).contains(n));
        let failures = failures.ok_or_else(usage)?;
        let pause = pause.parse::<Span>()?.get();
        let longest = longest.parse::<Span>()?.get();
        if pause.is_zero() || longest < pause || longest > Duration::from_secs(86_400) {
            return Err(format!("{shown}: the pauses must be from 1ms to 24h, the longest last"));
        }
        // Each doubling is a wait queue.
        if longest.as_millis() > pause.as_millis() << 10 {
            return Err(format!("{shown}: the longest pause is over 1024 times the first"));
        }
        Ok(Self(Some(Thresholds { failures, pause, longest })))
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => formatter.write_str("off"),
            Some(Thresholds { failures, pause, longest }) => {
                write!(formatter, "{failures},{},{}", Span::from(pause), Span::from(longest))
            }
        }
    }
}

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
mod tests {
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
        let ends: Vec<_> =
            attempts[..6].iter().map(|attempt| subject.fail(*attempt, None)).collect();
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

    #[test]
    fn the_pauses_double_up_to_the_longest() {
        let check = |text: &str, expected: &[&str]| {
            let pauses = text.parse::<Breaker>().expect("a breaker").pauses();
            assert_eq!(pauses.iter().map(Span::to_string).collect::<Vec<_>>(), expected);
        };
        check("5,30s,10m", &["30s", "1m", "2m", "4m", "8m", "10m"]);
        check("5,1s,4s", &["1s", "2s", "4s"]);
        check("5,1s,1s", &["1s"]);
        check("off", &[]);
    }

    #[test]
    fn what_is_no_breaker_is_refused() {
        for good in ["off", "5,30s,10m", "1,1ms,1ms", "1000,24h,24h"] {
            assert_eq!(good.parse::<Breaker>().map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "5",
            "5,30s",
            "0,30s,10m",
            "-1,1s,1s",
            "5,0s,1s",
            "5,10m,30s",
            "5,1s,25h",
            "5,1ms,2s",
            "5,x,y",
        ] {
            assert!(bad.parse::<Breaker>().is_err(), "{bad}");
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
}
