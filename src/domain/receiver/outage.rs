//! How long a receiver has failed without a success.

use super::{Moment, Receiver};

/// Failures without a success, as far as this process has observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the first of them began, or when the last success came, whichever was later.
    pub since: Moment,
    /// When the last of them ended.
    pub failed_at: Moment,
    /// When its circuit breaker opened, if it is open.
    pub opened_at: Option<Moment>,
}

impl Receiver {
    /// Its current outage; `None` if its last attempt succeeded.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.is_failing().then(|| Outage {
            since: self.failing_since,
            failed_at: self.failed_at,
            opened_at: self.is_broken().then_some(self.opened_at),
        })
    }

    /// When its last success came; `None` if this process knows of none.
    #[must_use]
    pub fn succeeded_at(&self) -> Option<Moment> {
        (!self.succeeded_at.is_zero()).then_some(self.succeeded_at)
    }
}
