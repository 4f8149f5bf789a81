//! The age of the oldest delivery that waits, read when the metrics are.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus::Gauge;

use crate::domain::waiting;

/// The deliveries that this process has parked from one queue, or has in hand of its backlogs, and that
/// still wait.
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
    /// Since when the oldest has waited that somebody has in hand.
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

    /// The oldest that somebody has in hand has waited since then.
    pub(super) fn has_in_hand(&self, since: Option<Instant>) {
        *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Sets the gauge to the age as it is now; to zero, where nothing waits.
    pub(super) fn look(&self) {
        let now = self.start.elapsed();
        let oldest = self.known.lock().unwrap_or_else(PoisonError::into_inner).oldest(now);
        let in_hand = *self.in_hand.lock().unwrap_or_else(PoisonError::into_inner);
        let in_hand = in_hand.map(|since| since.elapsed());
        self.oldest.set(oldest.max(in_hand).unwrap_or_default().as_secs_f64());
    }
}
