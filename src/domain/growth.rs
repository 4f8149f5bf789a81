//! How many consumers a lane has: one while that is enough, more while messages wait for slow receivers,
//! and fewer afterwards.
//!
//! A lane grows for two reasons. Consumers are *stuck* if they have worked on their messages for a
//! while. If all of them are stuck, the next message waits for receivers that have nothing to do with
//! it, so the lane always has a few more consumers than are stuck. Or the lane is *saturated*: each
//! message takes little time, but the next one is already there. Only a trial can tell whether more
//! consumers help then: they do if requests travel far, and don't if the processor is the limit. So
//! their number is doubled, and halved again if that gained little.

use std::time::Duration;

use super::time::Moment;

/// What is observed of a lane at one time.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many consumers have a message.
    pub busy: usize,
    /// How many of them have had it for [`STUCK`] and sleep.
    pub stuck: usize,
    /// Whether one of them has been idle for at least [`RESTED`] since the last look.
    pub rested: bool,
    /// The number of messages finished here so far. Messages that were refused and moved on don't count:
    /// they justify no consumers.
    pub done: u64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start this many consumers.
    Stay,
    /// End this many consumers.
    Start(usize),
    /// So many fewer.
    End(usize),
}

/// How often a lane is checked while it has work.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// The number of spare consumers is this plus half the stuck ones: the more are stuck, the sooner the
/// next one is, perhaps two at a time.
const SPARE: usize = 2;

/// A thread that has worked on its message for this long, and sleeps, is stuck. Nearby receivers take a
/// fraction of this time, and nobody notices such a delay for the message behind.
pub const STUCK: Duration = Duration::from_millis(10);

/// A thread that waited this long for its next message was idle. From a queue that holds more, the next
/// message comes within some hundred microseconds after the ack.
pub const RESTED: Duration = Duration::from_millis(2);

/// A trial counts at least this many messages …
const SAMPLE: u64 = 64;

/// … over at least this time. Anything shorter measures what else the machine did.
const SAMPLE_TIME: Duration = Duration::from_millis(20);

/// A trial that hasn't counted enough messages by then is inconclusive.
const LONGEST_SAMPLE: Duration = Duration::from_secs(1);

/// Twice the consumers are kept if they are faster by this factor.
const WORTHWHILE: f64 = 1.2;

/// The pause after an unsuccessful trial, doubled after each further one.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// At the end of each period, consumers that weren't needed during it end.
const PERIOD: Duration = Duration::from_secs(15);

/// How long a lane starts no more consumers after a failure to start some. What was missing, such as
/// threads, may be available again later.
const LIMITED_FOR: Duration = Duration::from_secs(30);

/// Decides how many consumers a lane has.
#[derive(Clone, Debug)]
pub struct Growth {
    most: usize,
    /// The number of consumers that could be started, and how long no more are tried.
    limited: Option<(usize, Moment)>,
    consumers: usize,
    /// The current measurement while the lane is saturated.
    sample: Option<Sample>,
    /// The rate and the number of consumers before they were doubled.
    trial: Option<(f64, usize)>,
    /// No trial begins before this time.
    rest_until: Moment,
    rest: Duration,
    /// The most consumers needed at one time in this period.
    peak: usize,
    period_ends: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    since: Moment,
    done: u64,
}

impl Growth {
    /// For a lane that has one consumer and may have `most`.
    #[must_use]
    pub fn new(most: usize, now: Moment) -> Self {
        Self {
            most,
            limited: None,
            consumers: 1,
            sample: None,
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

    /// Tells that no more than `consumers` could be started.
    pub fn is_limited_to(&mut self, consumers: usize, now: Moment) {
        self.consumers = consumers;
        self.trial = None;
        self.limited = Some((consumers, now + LIMITED_FOR));
    }

    fn most(&mut self, now: Moment) -> usize {
        self.limited = self.limited.filter(|(_, until)| now < *until);
        self.limited.map_or(self.most, |(most, _)| most)
    }

    /// Decides by what is observed at `now`.
    pub fn look(&mut self, look: Look, now: Moment) -> Step {
        let stuck = look.stuck;
        let spare = if stuck > 0 { SPARE + stuck / 2 } else { 0 };
        let needed = (stuck + spare).min(self.most(now));
        self.peak = self.peak.max(look.busy).max(needed);
        if needed > self.consumers {
            // A trial would only measure how slow the receivers are.
            self.sample = None;
            self.trial = None;
            let more = needed - self.consumers;
            self.consumers += more;
            return Step::Start(more);
        }
        let by_trial = self.try_more(look, now);
        if by_trial == Step::Stay { self.end_idle(now) } else { by_trial }
    }

    fn try_more(&mut self, look: Look, now: Moment) -> Step {
        if look.rested {
            self.sample = None;
            self.trial = None;
            return Step::Stay;
        }
        let Some(Sample { since, done }) = self.sample else {
            self.sample = Some(Sample { since: now, done: look.done });
            return Step::Stay;
        };
        let (lasted, done) = (now.saturating_sub(since), look.done.saturating_sub(done));
        if lasted < SAMPLE_TIME || done < SAMPLE && lasted < LONGEST_SAMPLE {
            return Step::Stay;
        }
        self.sample = None;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = done as f64 / lasted.as_secs_f64();
        if let Some((before, consumers)) = self.trial.take() {
            if done < SAMPLE || rate < before * WORTHWHILE {
                let surplus = self.consumers.saturating_sub(consumers);
                self.consumers -= surplus;
                self.rest_until = now + self.rest;
                self.rest = (self.rest * 2).min(LONGEST_REST);
                return if surplus > 0 { Step::End(surplus) } else { Step::Stay };
            }
            self.rest = REST;
        }
        let more = self.consumers.min(self.most(now).saturating_sub(self.consumers));
        if done < SAMPLE || now < self.rest_until || more == 0 {
            return Step::Stay;
        }
        self.trial = Some((rate, self.consumers));
        self.consumers += more;
        Step::Start(more)
    }

    fn end_idle(&mut self, now: Moment) -> Step {
        if now < self.period_ends {
            return Step::Stay;
        }
        let needed = std::mem::take(&mut self.peak).max(1);
        self.period_ends = now + PERIOD;
        let surplus = self.consumers.saturating_sub(needed);
        self.consumers -= surplus;
        if surplus > 0 { Step::End(surplus) } else { Step::Stay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_could_not_have_more_consumers_tries_again_after_a_while() {
        let stuck = Look { busy: 1, stuck: 1, rested: false, done: 0 };
        let mut growth = Growth::new(64, Moment::ZERO);
        let second = Duration::from_secs(1);
        assert!(matches!(growth.look(stuck, second * 2), Step::Start(_)));
        growth.is_limited_to(1, second * 2);
        for seconds in 3..=31 {
            assert_eq!(growth.look(stuck, second * seconds), Step::Stay, "{seconds} s");
        }
        assert!(matches!(growth.look(stuck, second * 32), Step::Start(_)));
    }

    /// The consumers of a lane after some seconds of saturation. Each message takes `work` on one of the
    /// `processors`, and `travel` in addition.
    fn consumers_after(
        seconds: u64,
        work: f64,
        travel: f64,
        processors: f64,
        most: usize,
    ) -> usize {
        let mut growth = Growth::new(most, Moment::ZERO);
        let (mut done, mut now) = (0.0, Moment::ZERO);
        while now < Duration::from_secs(seconds) {
            now += INTERVAL;
            let consumers = growth.consumers() as f64;
            let rate = (consumers / (work + travel)).min(processors / work);
            done += rate * INTERVAL.as_secs_f64();
            let busy = growth.consumers();
            let stuck = if work + travel > STUCK.as_secs_f64() { busy } else { 0 };
            let look = Look { busy, stuck, rested: false, done: done as u64 };
            let _ = growth.look(look, now);
        }
        growth.consumers()
    }

    #[test]
    fn a_saturated_lane_grows_as_far_as_it_helps() {
        // Two processors, a tenth of a millisecond per message.
        assert_eq!(consumers_after(2, 1e-4, 1e-4, 2.0, 64), 4);
        assert_eq!(consumers_after(2, 1e-4, 3e-4, 2.0, 64), 8);
        assert_eq!(consumers_after(4, 1e-4, 5e-3, 2.0, 64), 64, "five milliseconds away");
        assert_eq!(consumers_after(4, 1e-4, 5e-3, 2.0, 6), 6);
        assert_eq!(consumers_after(30, 1e-4, 0.0, 1.0, 64), 1, "one processor: one is enough");
    }

    #[test]
    fn a_lane_has_some_consumers_more_than_are_stuck() {
        let mut growth = Growth::new(64, Moment::ZERO);
        let mut looks = 0;
        let mut look = |stuck: usize| {
            looks += 1;
            let look = Look { busy: stuck, stuck, rested: false, done: 0 };
            let step = growth.look(look, INTERVAL * looks);
            (step, growth.consumers())
        };
        assert_eq!(look(1), (Step::Start(2), 3));
        assert_eq!(look(1), (Step::Stay, 3));
        assert_eq!(look(3), (Step::Start(3), 6));
        let mut all = 6;
        for _ in 0..12 {
            all = look(all).1;
        }
        assert_eq!(all, 64);
        assert_eq!(look(64), (Step::Stay, 64), "it has all that it may have");
    }

    #[test]
    fn what_is_not_needed_any_more_ends_within_half_a_minute_and_one_stays() {
        let mut growth = Growth::new(64, Moment::ZERO);
        let look = |busy, stuck| Look { busy, stuck, rested: true, done: 0 };
        for n in 0..2 {
            let _ = growth.look(look(8, 4), INTERVAL * n);
        }
        assert_eq!(growth.consumers(), 8);
        let mut ended = Vec::new();
        for second in 1..120 {
            let busy = if second < 60 { 3 } else { 0 };
            let step = growth.look(look(busy, 0), Duration::from_secs(second));
            if let Step::End(count) = step {
                ended.push((second, count, growth.consumers()));
            }
        }
        assert_eq!(ended, [(30, 5, 3), (75, 2, 1)]);
    }

    #[test]
    fn a_lane_that_has_time_is_left_as_it_is() {
        let mut growth = Growth::new(64, Moment::ZERO);
        for n in 1..1_000 {
            let look = Look { busy: 1, stuck: 0, rested: true, done: u64::from(n) * 99 };
            assert_eq!(growth.look(look, INTERVAL * n), Step::Stay);
        }
    }

    #[test]
    fn what_only_moves_on_is_no_reason_to_grow() {
        let mut growth = Growth::new(64, Moment::ZERO);
        for n in 1..1_000 {
            let look = Look { busy: 1, stuck: 0, rested: false, done: 0 };
            assert_eq!(growth.look(look, INTERVAL * n), Step::Stay);
        }
    }

    #[test]
    fn trials_that_bring_little_become_rare() {
        let mut growth = Growth::new(64, Moment::ZERO);
        let mut trials = 0;
        for n in 1..=30_000_u32 {
            let look =
                Look { busy: growth.consumers(), stuck: 0, rested: false, done: u64::from(n) * 40 };
            trials += usize::from(matches!(growth.look(look, INTERVAL * n), Step::Start(_)));
        }
        assert!((8..=12).contains(&trials), "{trials} in five minutes");
    }
}
