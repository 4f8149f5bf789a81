//! Whether a lane consumes, and if not, why.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whether a lane consumes its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// It has not consumed yet.
    Starting,
    /// It consumes.
    Consuming,
    /// It has consumed before, but does not now.
    Interrupted(Interruption),
}

/// Why a lane does not consume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interruption {
    /// It lost its connection to RabbitMQ, or can't connect.
    Broker,
    /// RabbitMQ confirms no message.
    Confirms,
    /// PostgreSQL does not give it what it needs.
    Database,
}

/// The state of one lane, and since when it has been in it.
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

    /// Records that consuming ended. [`Self::explain`] sets the reason later; until then, the likeliest is
    /// assumed.
    pub(super) fn end(&self) {
        let mut standing = self.lock();
        if standing.0 == LaneState::Consuming {
            *standing = (LaneState::Interrupted(Interruption::Broker), Instant::now());
        }
    }

    /// Sets why it does not consume. The time since when stays.
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
