//! The class of a receiver: how soon it answers. A prompt receiver may use any free capacity; slow and
//! unproven ones may use only part of it.

use std::time::Duration;

use super::Moment;

/// A request that takes longer than this makes its receiver slow from that moment on. A receiver that
/// answers in 300 ms isn't slow, only far away.
pub const SLOW: Duration = Duration::from_secs(1);

/// A slow receiver becomes prompt again after at least this many answers in a row within [`SLOW`] …
const ANSWERS: u32 = 3;

/// … over at least this time, doubled by each relapse. One quick answer among slow ones proves nothing:
/// a hostile receiver can give it at will.
const PROBATION: Duration = Duration::from_secs(30);

/// The longest probation. The relapses of a receiver that was prompt for this long are forgotten.
const LONGEST_PROBATION: Duration = Duration::from_secs(3_600);

/// How soon a receiver answers, as this process has observed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Its answers come within [`SLOW`].
    Prompt,
    /// It has not answered yet.
    #[default]
    Unproven,
    /// One of its requests took longer than [`SLOW`], and its probation isn't over.
    Slow,
}

impl Class {
    /// The label for programs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Unproven => "unproven",
            Self::Slow => "slow",
        }
    }
}

/// A receiver's class, and what determines its changes.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassHistory {
    class: Class,
    /// When the receiver got this class.
    since: Moment,
    /// While the receiver is slow: the number of its answers in a row within [`SLOW`], and when the first
    /// of them came.
    answers: u32,
    answering_since: Moment,
    /// How often the receiver became slow after having been prompt.
    relapses: u32,
}

impl ClassHistory {
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Since when the receiver has had its class.
    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// Records that one of its requests has been in flight for longer than [`SLOW`].
    pub(super) fn took_long(&mut self, now: Moment) {
        if self.class == Class::Prompt {
            let lasted = now.saturating_sub(self.since);
            self.relapses = if lasted >= LONGEST_PROBATION { 1 } else { self.relapses + 1 };
        }
        if self.class != Class::Slow {
            (self.class, self.since) = (Class::Slow, now);
        }
        self.answers = 0;
    }

    /// Records that one of its requests ended within [`SLOW`]. Failures count too: quick ones take up
    /// hardly any capacity.
    pub(super) fn answered(&mut self, now: Moment) {
        match self.class {
            Class::Prompt => return,
            Class::Unproven => {}
            Class::Slow => {
                if self.answers == 0 {
                    self.answering_since = now;
                }
                self.answers += 1;
                let lasted = now.saturating_sub(self.answering_since);
                if self.answers < ANSWERS || lasted < self.probation() {
                    return;
                }
            }
        }
        (self.class, self.since) = (Class::Prompt, now);
    }

    fn probation(&self) -> Duration {
        let doublings = self.relapses.saturating_sub(1).min(16);
        (PROBATION * (1 << doublings)).min(LONGEST_PROBATION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    /// How many seconds a receiver stays slow if it answers once a second from `now` on.
    fn slow_for(history: &mut ClassHistory, now: u64) -> u64 {
        let mut seconds = 0;
        while history.class() == Class::Slow {
            history.answered(at(now + seconds));
            seconds += 1;
        }
        seconds - 1
    }

    #[test]
    fn the_first_answer_proves_a_receiver_and_a_long_wait_makes_it_slow() {
        let mut history = ClassHistory::default();
        assert_eq!(history.class(), Class::Unproven);
        history.answered(at(1));
        assert_eq!((history.class(), history.since()), (Class::Prompt, at(1)));
        history.took_long(at(9));
        assert_eq!((history.class(), history.since()), (Class::Slow, at(9)));
        let mut silent = ClassHistory::default();
        silent.took_long(at(2));
        assert_eq!(silent.class(), Class::Slow);
    }

    #[test]
    fn a_slow_receiver_becomes_prompt_after_three_answers_over_half_a_minute() {
        let mut history = ClassHistory::default();
        history.took_long(at(0));
        for now in [1, 2, 3, 30] {
            history.answered(at(now));
            assert_eq!(history.class(), Class::Slow, "at {now}");
        }
        history.answered(at(31));
        assert_eq!(history.class(), Class::Prompt);
        // Two answers are too few, whatever the time between them.
        history.took_long(at(40));
        history.answered(at(50));
        history.answered(at(500));
        assert_eq!(history.class(), Class::Slow);
        // Each slow request starts the probation anew.
        history.took_long(at(501));
        assert_eq!(slow_for(&mut history, 600), 30);
    }

    #[test]
    fn each_relapse_doubles_the_probation_unless_the_receiver_was_prompt_for_an_hour() {
        let mut history = ClassHistory::default();
        let mut now = 0;
        let mut probations = Vec::new();
        for _ in 0..10 {
            history.took_long(at(now));
            let lasted = slow_for(&mut history, now);
            probations.push(lasted);
            now += lasted + 10;
        }
        assert_eq!(probations, [30, 30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        history.took_long(at(now + 3_600));
        assert_eq!(slow_for(&mut history, now + 3_600), 30);
    }
}
