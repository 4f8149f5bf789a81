//! What this process knows of each receiver: which of them are degraded.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::IntGauge;
use uuid::Uuid;

/// An attempt that takes longer than this marks its receiver as degraded.
const SLOW: Duration = Duration::from_secs(1);

/// The most receivers that are remembered, so that a flood of failing webhooks can't fill memory.
const MOST: usize = 10_000;

/// The degraded receivers: their last attempt failed, or took over a second.
#[derive(Debug)]
pub struct Receivers {
    degraded: Mutex<HashSet<Uuid>>,
    gauge: IntGauge,
}

impl Receivers {
    /// None is degraded yet; `gauge` follows their number.
    #[must_use]
    pub fn new(gauge: IntGauge) -> Self {
        Self { degraded: Mutex::default(), gauge }
    }

    /// Takes note of an attempt.
    pub fn note(&self, webhook: Uuid, delivered: bool, took: Duration) {
        self.update(|degraded| {
            if delivered && took <= SLOW {
                degraded.remove(&webhook);
            } else if degraded.len() < MOST {
                degraded.insert(webhook);
            }
        });
    }

    /// The webhook is deleted or disabled.
    pub fn forget(&self, webhook: Uuid) {
        self.update(|degraded| {
            degraded.remove(&webhook);
        });
    }

    fn update(&self, change: impl FnOnce(&mut HashSet<Uuid>)) {
        let mut degraded = self.degraded.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut degraded);
        self.gauge.set(i64::try_from(degraded.len()).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_degraded_until_a_quick_success() {
        let gauge = IntGauge::new("g", "g").expect("a gauge");
        let receivers = Receivers::new(gauge.clone());
        let (a, b) = (Uuid::from_u128(1), Uuid::from_u128(2));
        receivers.note(a, false, Duration::ZERO);
        receivers.note(b, true, Duration::from_secs(2));
        assert_eq!(gauge.get(), 2);
        receivers.note(a, true, Duration::from_millis(5));
        receivers.forget(b);
        assert_eq!(gauge.get(), 0);
    }
}
