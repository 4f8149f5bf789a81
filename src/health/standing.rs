//! Whether a lane consumes, and if not, why: more than its gauge says.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether a lane consumes its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Not yet.
    Starting,
    /// It does.
    Consuming,
    /// Not now.
    Interrupted(Interruption),
}

/// Why a lane does not consume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// Its connection to RabbitMQ was lost, or it gets none.
    Broker,
    /// RabbitMQ confirms no message.
    Confirms,
    /// What it needs of PostgreSQL can't be had.
    Database,
}

/// The state of one lane, and since when.
#[derive(Debug)]
pub(super) struct Standing(Mutex<(LaneState, Instant)>);

impl Standing {
    pub(super) fn new() -> Self {
        Self(Mutex::new((LaneState::Starting, Instant::now())))
    }

    pub(super) fn begin(&self) {
        let mut standing = self.lock();
        if standing.0 != LaneState::Consuming {
            *standing = (LaneState::Consuming, Instant::now());
        }
    }

    /// It has ended, for a reason that is told later; most likely it is this one.
    pub(super) fn end(&self) {
        let mut standing = self.lock();
        if standing.0 == LaneState::Consuming {
            *standing = (LaneState::Interrupted(Interruption::Broker), Instant::now());
        }
    }

    /// Why it does not consume. Since when is known already.
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
    fn an_interruption_lasts_from_its_beginning_whatever_is_found_out_later() {
        let standing = Standing::new();
        standing.end();
        assert_eq!(standing.now().0, LaneState::Starting);
        standing.begin();
        standing.begin();
        assert_eq!(standing.now().0, LaneState::Consuming);
        standing.end();
        let (state, since) = *standing.lock();
        assert_eq!(state, LaneState::Interrupted(Interruption::Broker));
        standing.explain(Interruption::Database);
        standing.end();
        assert_eq!(*standing.lock(), (LaneState::Interrupted(Interruption::Database), since));
    }
}
