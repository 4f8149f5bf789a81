//! The age of the oldest waiting delivery, computed when the metrics are read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::domain::waiting::OldestWaiting;

/// The oldest waiting delivery that this process has parked from one queue, or consumes from its backlogs.
///
/// Deliveries that another process parked, or this one before its restart, count only once this process parks
/// them again. Nor does it notice if a wait ends early or late, or if a queue is purged: the broker reports
/// neither.
#[derive(Debug)]
pub(super) struct OldestOfQueue {
    /// Locked only when a delivery is parked, which takes the broker a thousand times as long, and when the
    /// metrics are read.
    parked: Mutex<OldestWaiting>,
    /// The origin of the times in `parked`.
    start: Instant,
    /// Since when the oldest delivery from the backlogs has waited.
    in_backlog: Mutex<Option<Instant>>,
    oldest: Gauge,
}

impl OldestOfQueue {
    pub(super) fn new(oldest: Gauge) -> Self {
        Self {
            parked: Mutex::default(),
            start: Instant::now(),
            in_backlog: Mutex::default(),
            oldest,
        }
    }

    pub(super) fn add(&self, age: Duration, delay: Duration) {
        let now = self.start.elapsed();
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).add(age, delay, now);
    }

    /// Sets since when the oldest delivery from the backlogs has waited.
    pub(super) fn set_in_backlog(&self, since: Option<Instant>) {
        *self.in_backlog.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Sets the gauge to the present age, or to zero if nothing waits.
    pub(super) fn update(&self) {
        let now = self.start.elapsed();
        let oldest = self.parked.lock().unwrap_or_else(PoisonError::into_inner).oldest(now);
        let in_backlog = *self.in_backlog.lock().unwrap_or_else(PoisonError::into_inner);
        let in_backlog = in_backlog.map(|since| since.elapsed());
        self.oldest.set(oldest.max(in_backlog).unwrap_or_default().as_secs_f64());
    }
}
