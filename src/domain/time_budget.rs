//! Limits the share of time that some work may take.

use std::time::Duration;

/// A time budget: a fixed share of all time. Unused budget is saved up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct TimeBudget {
    most: Duration,
    /// The budget is this part of all time: 1/`part`.
    part: u32,
    /// How much has been spent and not been earned back yet.
    spent: Duration,
    /// The time of the last update.
    at: Duration,
}

impl TimeBudget {
    /// A budget of 1/`part` of all time, of which `most` may be spent at once.
    #[must_use]
    pub const fn new(most: Duration, part: u32) -> Self {
        Self { most, part, spent: Duration::ZERO, at: Duration::ZERO }
    }

    /// Whether any budget is left at `now`, which may count from any moment.
    pub fn is_affordable(&mut self, now: Duration) -> bool {
        let earned = now.saturating_sub(self.at) / self.part;
        self.spent = self.spent.saturating_sub(earned);
        self.at = now;
        self.spent < self.most
    }

    /// Takes `time` from the budget.
    pub fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spent_budget_is_earned_back_over_time() {
        let ms = Duration::from_millis;
        let mut budget = TimeBudget::new(ms(100), 10);
        assert!(budget.is_affordable(ms(5_000)));
        for _ in 0..9 {
            budget.spend(ms(11));
            assert!(budget.is_affordable(ms(5_000)));
        }
        budget.spend(ms(11));
        assert!(!budget.is_affordable(ms(5_000)));
        assert!(
            !budget.is_affordable(ms(5_090)),
            "nine milliseconds are earned back, but ten too many were spent"
        );
        assert!(budget.is_affordable(ms(5_110)));
        // No more than `most` is saved up.
        budget.spend(ms(101));
        assert!(!budget.is_affordable(ms(5_111)));
        assert!(budget.is_affordable(ms(60_000)));
        budget.spend(ms(100));
        assert!(!budget.is_affordable(ms(60_000)));
    }
}
