//! How many consumers a lane has: one while that is enough, more while messages wait for receivers
//! that take their time, and fewer again when they don't.
//!
//! A lane grows for two reasons. Consumers are *stuck*: they have been at their messages for a while,
//! and when all of them are, the next message waits for a receiver that is none of its business. So
//! there are always some more than are stuck. Or the lane is *saturated*: each message is over soon, and the
//! next is there already. Whether more consumers help then only a trial can tell: they do where
//! requests travel, and not where the processor is the limit. So their number is doubled, and halved
//! again where that brought little.

use std::time::Duration;

use super::time::Moment;

/// What is seen of a lane at a time.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many consumers are at a message.
    pub busy: usize,
    /// How many of them have been for [`STUCK`], and sleep.
    pub stuck: usize,
    /// Whether one of them had nothing to do since the last look, for [`RESTED`] at least.
    pub rested: bool,
    /// Messages so far that were done with here. What was refused and moved on is not worth more
    /// consumers.
    pub done: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// So many consumers more.
    Start(usize),
    /// So many fewer.
    End(usize),
}

/// How often a lane is looked at while it has something to do.
pub const INTERVAL: Duration = Duration::from_millis(10);

/// So many consumers more than are stuck, and half as many as are: the more are, the sooner the next
/// one is, and perhaps two at a time.
const SPARE: usize = 2;

/// A thread that has been at its message for this long, and sleeps, is stuck. Receivers nearby take a fraction of
/// it; to whoever waits behind one it is a delay that nobody notices.
pub const STUCK: Duration = Duration::from_millis(10);

/// A thread that waited this long for its next message had nothing to do. From a queue that holds
/// more the next one comes within some hundred microseconds of the ack.
pub const RESTED: Duration = Duration::from_millis(2);

/// What a trial is judged by: so many messages at least …
const SAMPLE: u64 = 64;

/// … over this time at least. Anything shorter shows what else the machine did.
const SAMPLE_TIME: Duration = Duration::from_millis(20);

/// A trial that has not seen enough messages by then shows nothing.
const LONGEST_SAMPLE: Duration = Duration::from_secs(1);

/// By how much twice the consumers have to be faster to be kept.
const WORTHWHILE: f64 = 1.2;

/// How long after a trial that brought little the next may begin, doubled by each that follows.
const REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// Consumers that were not needed for the whole of such a period end with it.
const PERIOD: Duration = Duration::from_secs(15);

/// How long a lane does without more consumers once they could not be started: what lacked, such as
/// threads, may be there again later.
const LIMITED_FOR: Duration = Duration::from_secs(30);

/// Decides how many consumers a lane has.
#[derive(Clone, Debug)]
pub struct Growth {
    most: usize,
    /// As many as could be started, and until when no more are tried.
    limited: Option<(usize, Moment)>,
    consumers: usize,
    /// What is being counted while the lane is saturated.
    sample: Option<Sample>,
    /// The rate before the consumers were doubled, and how many there were.
    trial: Option<(f64, usize)>,
    /// No trial before.
    rest_until: Moment,
    rest: Duration,
    /// The most that were needed at a time in this period.
    peak: usize,
    period_ends: Moment,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    since: Moment,
    done: u64,
}

impl Growth {
    /// Of a lane that has one consumer, and may have `most`.
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

    /// How many consumers there should be by now.
    #[must_use]
    pub fn consumers(&self) -> usize {
        self.consumers
    }

    /// No more than there are could be started.
    pub fn is_limited_to(&mut self, consumers: usize, now: Moment) {
        self.consumers = consumers;
        self.trial = None;
        self.limited = Some((consumers, now + LIMITED_FOR));
    }

    fn most(&mut self, now: Moment) -> usize {
        self.limited = self.limited.filter(|(_, until)| now < *until);
        self.limited.map_or(self.most, |(most, _)| most)
    }

    /// Decides, by what is seen at `now`.
    pub fn look(&mut self, look: Look, now: Moment) -> Step {
        let stuck = look.stuck;
        let spare = if stuck > 0 { SPARE + stuck / 2 } else { 0 };
        let needed = (stuck + spare).min(self.most(now));
        self.peak = self.peak.max(look.busy).max(needed);
        if needed > self.consumers {
            // What a trial would show now is how slow the receivers are.
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

    /// A lane whose messages take `work` of one processor each of which there are `processors`, and
    /// `travel` besides; and how many consumers it has after so many seconds of saturation.
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
        // Two processors, a tenth of a millisecond each.
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
