//! The age of the oldest delivery that waits, read when the metrics are.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::domain::waiting;

/// The deliveries that this process has parked from one queue, and that still wait.
///
/// What it doesn't know: deliveries that another process parked, or this one before it was
/// restarted, until it parks them again; and that a wait ends early or late, or is purged, since the
/// broker tells nobody.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Only locked to park, which takes the broker a thousand times as long, and to read.
    known: Mutex<waiting::Waiting>,
    /// Moments count from here.
    start: Instant,
    oldest: Gauge,
}

impl Waiting {
    pub(super) fn new(oldest: Gauge) -> Self {
        Self { known: Mutex::default(), start: Instant::now(), oldest }
    }

    pub(super) fn add(&self, age: Duration, delay: Duration) {
        let now = self.start.elapsed();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).add(age, delay, now);
    }

    /// Sets the gauge to the age as it is now; to zero, where nothing waits.
    pub(super) fn look(&self) {
        let now = self.start.elapsed();
        let oldest = self.known.lock().unwrap_or_else(PoisonError::into_inner).oldest(now);
        self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
    }
}
