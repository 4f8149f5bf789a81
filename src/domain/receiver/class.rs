//! Which receivers may hold capacity that others need: those that have proved to answer soon. The others
//! may hold a limited part.

use std::time::Duration;

use super::Moment;

/// A request that takes longer makes its receiver slow from that moment on. A receiver that answers in
/// 300 ms isn't slow, only far away.
pub const SLOW: Duration = Duration::from_secs(1);

/// A slow receiver becomes prompt again after at least this many answers within [`SLOW`] …
const ANSWERS: u32 = 3;

/// … over at least this time, doubled by each relapse. One quick answer among slow ones proves nothing:
/// a hostile receiver can give it at will.
const PROBATION: Duration = Duration::from_secs(30);

/// The longest probation. A receiver that was prompt for this long has its relapses forgotten.
const LONGEST_PROBATION: Duration = Duration::from_secs(3_600);

/// How soon a receiver answers, as far as this process has observed.
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
    /// When it got this class.
    since: Moment,
    /// The answers within [`SLOW`] in a row while it is slow, and when the first of them came.
    answers: u32,
    answering_since: Moment,
    /// How often it became slow after having been prompt.
    relapses: u32,
}

impl ClassHistory {
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Since when it has its class.
    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// One of its requests has been under way for longer than [`SLOW`].
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

    /// One of its requests ended within [`SLOW`]. A failure counts too: if it comes soon, it costs no
    /// capacity.
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

    /// How many seconds a receiver stays slow that answers once a second from `now` on.
    fn slow_for(standing: &mut ClassHistory, now: u64) -> u64 {
        let mut seconds = 0;
        while standing.class() == Class::Slow {
            standing.answered(at(now + seconds));
            seconds += 1;
        }
        seconds - 1
    }

    #[test]
    fn the_first_answer_proves_a_receiver_and_a_long_wait_makes_it_slow() {
        let mut standing = ClassHistory::default();
        assert_eq!(standing.class(), Class::Unproven);
        standing.answered(at(1));
        assert_eq!((standing.class(), standing.since()), (Class::Prompt, at(1)));
        standing.took_long(at(9));
        assert_eq!((standing.class(), standing.since()), (Class::Slow, at(9)));
        let mut silent = ClassHistory::default();
        silent.took_long(at(2));
        assert_eq!(silent.class(), Class::Slow);
    }

    #[test]
    fn slowness_ends_with_three_answers_over_half_a_minute() {
        let mut standing = ClassHistory::default();
        standing.took_long(at(0));
        for now in [1, 2, 3, 30] {
            standing.answered(at(now));
            assert_eq!(standing.class(), Class::Slow, "at {now}");
        }
        standing.answered(at(31));
        assert_eq!(standing.class(), Class::Prompt);
        // Two answers are too few, whatever the time between them.
        standing.took_long(at(40));
        standing.answered(at(50));
        standing.answered(at(500));
        assert_eq!(standing.class(), Class::Slow);
        // Each slow request starts the probation anew.
        standing.took_long(at(501));
        assert_eq!(slow_for(&mut standing, 600), 30);
    }

    #[test]
    fn each_relapse_doubles_the_probation_until_it_was_prompt_for_an_hour() {
        let mut standing = ClassHistory::default();
        let mut now = 0;
        let mut probations = Vec::new();
        for _ in 0..10 {
            standing.took_long(at(now));
            let lasted = slow_for(&mut standing, now);
            probations.push(lasted);
            now += lasted + 10;
        }
        assert_eq!(probations, [30, 30, 60, 120, 240, 480, 960, 1_920, 3_600, 3_600]);
        standing.took_long(at(now + 3_600));
        assert_eq!(slow_for(&mut standing, now + 3_600), 30);
    }
}
