//! Limits which share of time something may take.

use std::time::Duration;

/// A time budget: a fixed share of all time, saved up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    most: Duration,
    /// The share is 1/`part`.
    part: u32,
    spent: Duration,
    /// The time of the last update.
    at: Duration,
}

impl Effort {
    /// A budget of 1/`part` of all time, of which `most` may be spent at once.
    #[must_use]
    pub const fn new(most: Duration, part: u32) -> Self {
        Self { most, part, spent: Duration::ZERO, at: Duration::ZERO }
    }

    /// Whether any budget is left at `now`. `now` may count from any moment.
    pub fn is_affordable(&mut self, now: Duration) -> bool {
        let earned = now.saturating_sub(self.at) / self.part;
        self.spent = self.spent.saturating_sub(earned);
        self.at = now;
        self.spent < self.most
    }

    /// Spends `time`.
    pub fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_at_once_comes_back_in_time() {
        let ms = Duration::from_millis;
        let mut effort = Effort::new(ms(100), 10);
        assert!(effort.is_affordable(ms(5_000)));
        for _ in 0..9 {
            effort.spend(ms(11));
            assert!(effort.is_affordable(ms(5_000)));
        }
        effort.spend(ms(11));
        assert!(!effort.is_affordable(ms(5_000)));
        assert!(
            !effort.is_affordable(ms(5_090)),
            "nine milliseconds are earned, and there were ten too many"
        );
        assert!(effort.is_affordable(ms(5_110)));
        // No more than `most` is saved up.
        effort.spend(ms(101));
        assert!(!effort.is_affordable(ms(5_111)));
        assert!(effort.is_affordable(ms(60_000)));
        effort.spend(ms(100));
        assert!(!effort.is_affordable(ms(60_000)));
    }
}
