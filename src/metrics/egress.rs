//! Whether EGRESS_PROXY lets requests through to receivers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

/// Whether the proxy lets requests through, judged by the results of requests. Without a proxy it never counts
/// as away. All senders share this.
#[derive(Debug)]
pub struct EgressState {
    up: IntGauge,
    /// True while `away` has a value, so that an answer usually takes no lock.
    is_away: AtomicBool,
    away: Mutex<Option<(Instant, String)>>,
}

impl EgressState {
    pub(super) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { up, is_away: AtomicBool::new(false), away: Mutex::default() }
    }

    /// Records that a receiver answered.
    pub fn answered(&self) {
        if self.is_away.load(Ordering::Relaxed) {
            let mut away = self.lock();
            *away = None;
            self.is_away.store(false, Ordering::Relaxed);
            self.up.set(1);
        }
    }

    /// Records that the proxy did not let a request through. Returns for how long it has let none through.
    pub fn failed(&self, problem: &str) -> Duration {
        let mut away = self.lock();
        let since = away.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *away = Some((since, problem.to_owned()));
        self.is_away.store(true, Ordering::Relaxed);
        self.up.set(0);
        since.elapsed()
    }

    /// For how long the proxy has let nothing through, and why; `None` while it works.
    #[must_use]
    pub fn problem(&self) -> Option<(Duration, String)> {
        self.lock().as_ref().map(|(since, problem)| (since.elapsed(), problem.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_is_away_from_its_first_failure_until_a_receiver_answers() {
        let up = IntGauge::new("up", "up").expect("a name");
        let state = EgressState::new(up.clone());
        assert_eq!((up.get(), state.problem()), (1, None));
        state.failed("first");
        assert!(state.failed("second") < Duration::from_secs(60));
        assert_eq!(state.problem().map(|(_, problem)| problem).as_deref(), Some("second"));
        assert_eq!(up.get(), 0);
        state.answered();
        assert_eq!((up.get(), state.problem()), (1, None));
    }
}
