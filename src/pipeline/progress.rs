//! What others see of a thread that settles messages: whether it is at one, since when, and what is
//! left of it that somebody else could do.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::fan_out::FanOut;
use crate::domain::growth::{RESTED, STUCK};

/// One thread's progress.
#[derive(Debug)]
pub struct Progress {
    /// Times count from here, in nanoseconds.
    start: Instant,
    /// When it took its message; 0 while it waits for one.
    busy_since: AtomicU64,
    /// When it last got on with it: took it, or was done with one of its deliveries.
    moved_at: AtomicU64,
    /// Since when it has waited, or had before it took its message.
    waiting_since: AtomicU64,
    /// When it last took a message after a wait of [`RESTED`].
    rested_at: AtomicU64,
    /// It waits for PostgreSQL.
    asks: AtomicBool,
    /// The event that it is at, where several webhooks want it.
    event: Mutex<Option<Arc<FanOut>>>,
}

impl Progress {
    /// Of a thread that waits for its first message.
    #[must_use]
    pub fn new() -> Self {
        let [busy_since, moved_at, waiting_since, rested_at] = Default::default();
        Self {
            start: Instant::now(),
            busy_since,
            moved_at,
            waiting_since,
            rested_at,
            asks: AtomicBool::new(false),
            event: Mutex::default(),
        }
    }

    /// It has a message, perhaps right after the one before.
    pub fn begins(&self, now: Instant) {
        let now = self.nanoseconds(now);
        let waited = now.saturating_sub(self.waiting_since.load(Ordering::Relaxed));
        if self.message().is_none() && Duration::from_nanos(waited) >= RESTED {
            self.rested_at.store(now, Ordering::Relaxed);
        }
        self.moved_at.store(now, Ordering::Relaxed);
        // In one order with who looks whether it may stop looking.
        self.busy_since.store(now, Ordering::SeqCst);
    }

    /// It is done with one of the deliveries of its message.
    pub(super) fn moves(&self) {
        self.moved_at.store(self.nanoseconds(Instant::now()), Ordering::Relaxed);
    }

    /// It waits for the next.
    pub fn ends(&self) {
        self.ends_at(Instant::now());
    }

    fn ends_at(&self, now: Instant) {
        if self.message().is_some() {
            self.waiting_since.store(self.nanoseconds(now), Ordering::Relaxed);
            self.busy_since.store(0, Ordering::SeqCst);
        }
    }

    /// The message that it is at, by when it took it.
    #[must_use]
    pub fn message(&self) -> Option<u64> {
        Some(self.busy_since.load(Ordering::SeqCst)).filter(|since| *since > 0)
    }

    /// Whether it has been at one delivery for [`STUCK`], and not because of PostgreSQL: that is not
    /// helped by more threads, which would only have to hand more messages back.
    #[must_use]
    pub fn is_stuck(&self, now: Instant) -> bool {
        let moved_at = self.moved_at.load(Ordering::Relaxed);
        let stood = Duration::from_nanos(self.nanoseconds(now).saturating_sub(moved_at));
        !self.asks.load(Ordering::Relaxed) && self.message().is_some() && stood >= STUCK
    }

    /// Asks PostgreSQL, perhaps.
    pub(super) fn while_asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.asks.store(true, Ordering::Relaxed);
        let answer = ask();
        self.asks.store(false, Ordering::Relaxed);
        answer
    }

    /// Whether it has had nothing to do since `since`, for [`RESTED`] at least.
    #[must_use]
    pub fn has_rested(&self, since: Instant, now: Instant) -> bool {
        let waited = || {
            let since = self.waiting_since.load(Ordering::Relaxed);
            Duration::from_nanos(self.nanoseconds(now).saturating_sub(since))
        };
        self.rested_at.load(Ordering::Relaxed) > self.nanoseconds(since)
            || self.message().is_none() && waited() >= RESTED
    }

    /// What is left of its event that another thread could do.
    #[must_use]
    pub fn rest_of_event(&self) -> Option<Arc<FanOut>> {
        // Each lock is given back before the next is taken, so that no two threads wait for each other.
        let event = self.lock().clone();
        event.filter(|event| event.has_more())
    }

    pub(super) fn set_event(&self, event: Option<Arc<FanOut>>) {
        *self.lock() = event;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<FanOut>>> {
        self.event.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never 0, which is no time.
    fn nanoseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_work_from_rest() {
        let progress = Progress::new();
        let at = |millis| progress.start + Duration::from_millis(millis);
        assert!(!progress.is_stuck(at(5)));
        assert!(progress.has_rested(at(0), at(5)));
        progress.begins(at(10));
        assert!(!progress.is_stuck(at(19)) && progress.is_stuck(at(20)));
        progress
            .while_asking(|| assert!(!progress.is_stuck(at(20)), "more threads would not help"));
        assert!(progress.is_stuck(at(20)));
        assert!(progress.has_rested(at(9), at(15)), "before it");
        assert!(!progress.has_rested(at(11), at(15)));
        progress.ends_at(at(20));
        assert!(!progress.has_rested(at(11), at(21)));
        progress.begins(at(21));
        progress.ends_at(at(22));
        assert!(!progress.has_rested(at(11), at(23)), "a millisecond is no rest");
        assert!(progress.has_rested(at(11), at(24)));
    }
}
