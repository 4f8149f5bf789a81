//! Whether requests get out to receivers: what EGRESS_PROXY says of that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus::IntGauge;

/// The proxy, as requests find it. Without one it is never away. Shared by all who send.
#[derive(Debug)]
pub struct EgressState {
    up: IntGauge,
    /// The same as whether there is something below, for who only wants to know that.
    is_away: AtomicBool,
    away: Mutex<Option<(Instant, String)>>,
}

impl EgressState {
    pub(super) fn new(up: IntGauge) -> Self {
        up.set(1);
        Self { up, is_away: AtomicBool::new(false), away: Mutex::default() }
    }

    /// A receiver has answered.
    pub fn answered(&self) {
        if self.is_away.load(Ordering::Relaxed) {
            let mut away = self.lock();
            *away = None;
            self.is_away.store(false, Ordering::Relaxed);
            self.up.set(1);
        }
    }

    /// A request did not get past the proxy. Says for how long that has been so.
    pub fn failed(&self, problem: &str) -> Duration {
        let mut away = self.lock();
        let since = away.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *away = Some((since, problem.to_owned()));
        self.is_away.store(true, Ordering::Relaxed);
        self.up.set(0);
        since.elapsed()
    }

    /// For how long the proxy has let nothing through, and why; none if it does.
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
    fn it_is_away_from_its_first_failure_until_somebody_answers() {
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
