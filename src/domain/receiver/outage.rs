//! How long a receiver has failed without a success.

use super::{Moment, Receiver};

/// A series of failures without a success, as this process has observed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// When the first failed attempt began, or when the last success came, whichever was later.
    pub since: Moment,
    /// When the last failed attempt ended.
    pub failed_at: Moment,
    /// When the receiver's circuit breaker opened, if it is open or half-open.
    pub opened_at: Option<Moment>,
}

impl Receiver {
    /// The receiver's current outage; `None` if its last attempt succeeded.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.is_failing().then(|| Outage {
            since: self.failing_since,
            failed_at: self.failed_at,
            opened_at: self.is_broken().then_some(self.opened_at),
        })
    }

    /// When the receiver's last success came; `None` if this process knows of none.
    #[must_use]
    pub fn succeeded_at(&self) -> Option<Moment> {
        (!self.succeeded_at.is_zero()).then_some(self.succeeded_at)
    }
}
