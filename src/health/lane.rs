//! Whether a lane consumes, and if not, why.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether a lane consumes its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// It hasn't consumed yet.
    Starting,
    /// It consumes.
    Consuming,
    /// It has consumed before, but doesn't now.
    Interrupted(Interruption),
}

/// Why a lane does not consume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It lost its connection to RabbitMQ, or can't connect.
    Broker,
    /// RabbitMQ doesn't confirm our messages.
    Confirms,
    /// PostgreSQL doesn't answer what the lane needs.
    Database,
}

/// The state of one lane, and since when it has been in it.
#[derive(Debug)]
pub(super) struct LaneHealth(Mutex<(LaneState, Instant)>);

impl LaneHealth {
    pub(super) fn new() -> Self {
        Self(Mutex::new((LaneState::Starting, Instant::now())))
    }

    pub(super) fn begin(&self) {
        let mut standing = self.lock();
        if standing.0 != LaneState::Consuming {
            *standing = (LaneState::Consuming, Instant::now());
        }
    }

    /// Records that consuming ended. [`Self::explain`] sets the reason later; until then it is the likeliest
    /// one.
    pub(super) fn end(&self) {
        let mut standing = self.lock();
        if standing.0 == LaneState::Consuming {
            *standing = (LaneState::Interrupted(Interruption::Broker), Instant::now());
        }
    }

    /// Sets why it doesn't consume. The beginning of the state stays.
    pub(super) fn explain(&self, why: Interruption) {
        self.lock().0 = LaneState::Interrupted(why);
    }

    pub(super) fn is_consuming(&self) -> bool {
        self.lock().0 == LaneState::Consuming
    }

    pub(super) fn now(&self) -> (LaneState, Duration) {
        let (state, since) = *self.lock();
        (state, since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, (LaneState, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_keeps_its_beginning_when_its_reason_is_set() {
        let health = LaneHealth::new();
        health.end();
        assert_eq!(health.now().0, LaneState::Starting);
        health.begin();
        health.begin();
        assert_eq!(health.now().0, LaneState::Consuming);
        health.end();
        let (state, since) = *health.lock();
        assert_eq!(state, LaneState::Interrupted(Interruption::Broker));
        health.explain(Interruption::Database);
        health.end();
        assert_eq!(*health.lock(), (LaneState::Interrupted(Interruption::Database), since));
    }
}
