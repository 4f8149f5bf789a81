//! The age of the oldest waiting delivery, computed when the metrics are read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::domain::waiting::OldestWaiting;

/// The waiting deliveries that this process has parked from one queue, or has in hand from its backlogs.
///
/// It does not know deliveries that another process parked, or this one before its restart, until this
/// process parks them again. Nor does it know that a wait ended early or late, or was purged: the broker
/// tells nobody.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Locked only to park, for which the broker takes a thousand times as long, and to read the metrics.
    known: Mutex<OldestWaiting>,
    /// The origin of the times in `known`.
    start: Instant,
    /// Since when the oldest delivery in hand has waited.
    in_hand: Mutex<Option<Instant>>,
    oldest: Gauge,
}

impl Waiting {
    pub(super) fn new(oldest: Gauge) -> Self {
        Self { known: Mutex::default(), start: Instant::now(), in_hand: Mutex::default(), oldest }
    }

    pub(super) fn add(&self, age: Duration, delay: Duration) {
        let now = self.start.elapsed();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).add(age, delay, now);
    }

    /// Sets since when the oldest delivery in hand has waited.
    pub(super) fn has_in_hand(&self, since: Option<Instant>) {
        *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Sets the gauge to the current age, or to zero if nothing waits.
    pub(super) fn look(&self) {
        let now = self.start.elapsed();
        let oldest = self.known.lock().unwrap_or_else(PoisonError::into_inner).oldest(now);
        let in_hand = *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let in_hand = in_hand.map(|since| since.elapsed());
        self.oldest.set(oldest.max(in_hand).unwrap_or_default().as_secs_f64());
    }
}
