//! How many consumers a lane has: one while that is enough, more while messages wait for slow receivers,
//! and fewer afterwards.
//!
//! A lane grows for two reasons:
//!
//! - Consumers are *stuck*: they have worked on their messages for a while. If all were stuck, the next
//!   message would wait for receivers that have nothing to do with it. So a lane always has a few more
//!   consumers than are stuck.
//! - The lane is *saturated*: each message takes little time, but the next one is already there. More
//!   consumers help if requests travel far, and don't if the processor is the limit. Only a trial can
//!   tell, so their number is doubled, and halved again if throughput hardly increased.

use std::time::Duration;

use super::time::Moment;

/// The state of a lane at one time.
#[derive(Clone, Copy, Debug)]
pub struct Observation {
    /// How many consumers have a message.
    pub busy: usize,
    /// How many consumers are stuck: they have had their message for [`STUCK`], and sleep.
    pub stuck: usize,
    /// Whether a consumer has been idle for at least [`RESTED`] since the last observation.
    pub has_rested: bool,
    /// How many messages the lane has finished so far. Messages that were only passed on without an
    /// attempt don't count: they justify no consumers.
    pub done: u64,
}

/// A change of the number of consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    /// Keep the number of consumers.
    Keep,
    /// Start this many consumers.
    Start(usize),
    /// End this many consumers.
    End(usize),
}

/// How often a lane is checked while it has work.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// A lane has this many spare consumers, plus half the number of stuck ones: the more are stuck, the
/// sooner others follow.
const SPARE: usize = 2;

/// A thread that has worked on its message for this long, and sleeps, is stuck. Nearby receivers take a
/// fraction of this time, and such a delay of the next message is negligible.
pub const STUCK: Duration = Duration::from_millis(10);

/// A thread that waited this long for its next message was idle. If the queue holds more messages, the
/// next one comes within some hundred microseconds after the ack.
pub const RESTED: Duration = Duration::from_millis(2);

/// A measurement counts at least this many messages …
const SAMPLE: u64 = 64;

/// … over at least this time. A shorter one would mostly measure what else the machine did.
const SAMPLE_TIME: Duration = Duration::from_millis(20);

/// A measurement that hasn't counted enough messages within this time is inconclusive.
const LONGEST_SAMPLE: Duration = Duration::from_secs(1);

/// The doubled number of consumers is kept if throughput increased by this factor.
const WORTHWHILE: f64 = 1.2;

/// The pause after an unsuccessful trial. Each further one doubles it, up to the longest pause.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// At the end of each period, consumers that weren't needed during it end.
const PERIOD: Duration = Duration::from_secs(15);

/// How long a lane starts no more consumers after it failed to start one. The missing resource, such as
/// threads, may be available again later.
const LIMITED_FOR: Duration = Duration::from_secs(30);

/// Decides how many consumers a lane has.
#[derive(Clone, Debug)]
pub struct Growth {
    most: usize,
    /// If a consumer couldn't be started: how many there are, and until when no more are started.
    limited: Option<(usize, Moment)>,
    consumers: usize,
    /// The current measurement while the lane is saturated.
    measurement: Option<Measurement>,
    /// During a trial: the throughput and the number of consumers before it.
    trial: Option<(f64, usize)>,
    /// No trial begins before this time.
    rest_until: Moment,
    rest: Duration,
    /// The largest number of consumers needed at one time in this period.
    peak: usize,
    period_ends: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Measurement {
    since: Moment,
    done: u64,
}

impl Growth {
    /// Creates the state of a lane that has one consumer and may have up to `most`.
    #[must_use]
    pub fn new(most: usize, now: Moment) -> Self {
        Self {
            most,
            limited: None,
            consumers: 1,
            measurement: None,
            trial: None,
            rest_until: Moment::ZERO,
            rest: REST,
            peak: 0,
            period_ends: now + PERIOD,
        }
    }

    /// How many consumers there should be.
    #[must_use]
    pub fn consumers(&self) -> usize {
        self.consumers
    }

    /// Limits the lane to `consumers` for a while, because no more could be started.
    pub fn limit_to(&mut self, consumers: usize, now: Moment) {
        self.consumers = consumers;
        self.trial = None;
        self.limited = Some((consumers, now + LIMITED_FOR));
    }

    fn most(&mut self, now: Moment) -> usize {
        self.limited = self.limited.filter(|(_, until)| now < *until);
        self.limited.map_or(self.most, |(most, _)| most)
    }

    /// Decides how the number of consumers changes, given the state of the lane at `now`.
    pub fn adjust(&mut self, observed: Observation, now: Moment) -> Adjustment {
        let stuck = observed.stuck;
        let spare = if stuck > 0 { SPARE + stuck / 2 } else { 0 };
        let needed = (stuck + spare).min(self.most(now));
        self.peak = self.peak.max(observed.busy).max(needed);
        if needed > self.consumers {
            // A trial would only measure how slow the receivers are.
            self.measurement = None;
            self.trial = None;
            let more = needed - self.consumers;
            self.consumers += more;
            return Adjustment::Start(more);
        }
        let by_trial = self.run_trial(observed, now);
        if by_trial == Adjustment::Keep { self.end_idle(now) } else { by_trial }
    }

    fn run_trial(&mut self, observed: Observation, now: Moment) -> Adjustment {
        if observed.has_rested {
            self.measurement = None;
            self.trial = None;
            return Adjustment::Keep;
        }
        let Some(Measurement { since, done }) = self.measurement else {
            self.measurement = Some(Measurement { since: now, done: observed.done });
            return Adjustment::Keep;
        };
        let (lasted, done) = (now.saturating_sub(since), observed.done.saturating_sub(done));
        if lasted < SAMPLE_TIME || done < SAMPLE && lasted < LONGEST_SAMPLE {
            return Adjustment::Keep;
        }
        self.measurement = None;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = done as f64 / lasted.as_secs_f64();
        if let Some((before, consumers)) = self.trial.take() {
            if done < SAMPLE || rate < before * WORTHWHILE {
                let surplus = self.consumers.saturating_sub(consumers);
                self.consumers -= surplus;
                self.rest_until = now + self.rest;
                self.rest = (self.rest * 2).min(LONGEST_REST);
                return if surplus > 0 { Adjustment::End(surplus) } else { Adjustment::Keep };
            }
            self.rest = REST;
        }
        let more = self.consumers.min(self.most(now).saturating_sub(self.consumers));
        if done < SAMPLE || now < self.rest_until || more == 0 {
            return Adjustment::Keep;
        }
        self.trial = Some((rate, self.consumers));
        self.consumers += more;
        Adjustment::Start(more)
    }

    fn end_idle(&mut self, now: Moment) -> Adjustment {
        if now < self.period_ends {
            return Adjustment::Keep;
        }
        let needed = std::mem::take(&mut self.peak).max(1);
        self.period_ends = now + PERIOD;
        let surplus = self.consumers.saturating_sub(needed);
        self.consumers -= surplus;
        if surplus > 0 { Adjustment::End(surplus) } else { Adjustment::Keep }
    }
}

#[cfg(test)]
mod tests;
