//! Which receivers may hold capacity that others need: those that have shown to answer soon, and of
//! the rest only so many at a time.

use std::time::Duration;

use super::Moment;

/// A request that takes longer makes its receiver slow, from that moment on. One that answers in
/// 300 ms is not slow, only far away.
pub const SLOW: Duration = Duration::from_secs(1);

/// So many answers within [`SLOW`] at least end a receiver's slowness …
const ANSWERS: u32 = 3;

/// … over this time at least, doubled by each relapse. One quick answer among slow ones proves
/// nothing: somebody hostile can give it at will.
const PROBATION: Duration = Duration::from_secs(30);

/// The longest probation, and for how long a receiver has to be prompt for its relapses to be
/// forgotten.
const LONGEST_PROBATION: Duration = Duration::from_secs(3_600);

/// How soon a receiver answers, as far as this process has seen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Its answers come within [`SLOW`].
    Prompt,
    /// It has not answered yet.
    #[default]
    Unproven,
    /// A request of it took longer than [`SLOW`], and it has not made up for it yet.
    Slow,
}

impl Class {
    /// A word for programs, and the metrics label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Unproven => "unproven",
            Self::Slow => "slow",
        }
    }
}

/// A receiver's class, and what may change it.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassHistory {
    class: Class,
    /// When it got this class.
    since: Moment,
    /// Answers within [`SLOW`] in a row while it is slow, and when the first of them came.
    answers: u32,
    answering_since: Moment,
    /// How often it became slow after it had been prompt.
    relapses: u32,
}

impl ClassHistory {
    pub(super) fn class(&self) -> Class {
        self.class
    }

    /// Since when it has had its class.
    pub(super) fn since(&self) -> Moment {
        self.since
    }

    /// A request of it has been under way for longer than [`SLOW`].
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

    /// A request of it ended within [`SLOW`], however: a failure that comes soon costs no capacity.
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

    /// After how many seconds it is prompt again that answers once a second from `now` on.
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
        // Two answers are too few, however far apart.
        standing.took_long(at(40));
        standing.answered(at(50));
        standing.answered(at(500));
        assert_eq!(standing.class(), Class::Slow);
        // And each long wait begins it anew.
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
