//! The confirms that a message waits for.
//!
//! A lane doesn't wait for them one by one: while the broker writes one message's deliveries to disk,
//! the next message is settled, as far as PREFETCH_COUNT allows.

use std::collections::VecDeque;
use std::time::Instant;

use prometheus::IntCounter;

use super::Tally;
use crate::broker::{Confirmation, NotConfirmed};
use crate::notices::PendingDeath;
use crate::shutdown::Shutdown;

/// A published message, and what to count once it is confirmed.
#[derive(Debug)]
pub(super) struct Promise {
    pub(super) confirmation: Confirmation,
    /// `None` if it was counted already.
    pub(super) counter: Option<IntCounter>,
    /// Whether it is a delivery that waits for its next attempt.
    pub(super) is_parked: bool,
    /// The notice to send once it is confirmed.
    pub(super) death: Option<Box<PendingDeath>>,
}

/// The confirms that a message waits for before it may be acked.
#[derive(Debug)]
pub struct Promises {
    open: VecDeque<Promise>,
    /// When the message was received.
    pub(super) received: Instant,
}

impl Promises {
    pub(super) fn new(received: Instant) -> Self {
        Self { open: VecDeque::new(), received }
    }

    pub(super) fn extend(&mut self, promises: impl IntoIterator<Item = Promise>) {
        self.open.extend(promises);
    }

    /// Reads the confirms that have arrived. Returns true once all have.
    ///
    /// # Errors
    /// [`NotConfirmed`] if one didn't arrive in time.
    pub fn poll(&mut self, tally: &Tally) -> Result<bool, NotConfirmed> {
        while let Some(promise) = self.open.front() {
            match promise.confirmation.poll() {
                None => return Ok(false),
                Some(Err(error)) => return Err(error),
                Some(Ok(())) => self.keep_first(tally),
            }
        }
        Ok(true)
    }

    /// Waits for the first ones until at most `most` are open; only briefly once `shutdown` is requested.
    pub(super) fn wait_until_open(
        &mut self,
        most: usize,
        tally: &Tally,
        shutdown: &Shutdown,
    ) -> Result<(), NotConfirmed> {
        while self.open.len() > most {
            if let Some(promise) = self.open.front() {
                promise.confirmation.wait(shutdown)?;
            }
            self.keep_first(tally);
        }
        Ok(())
    }

    /// Whether none is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The confirm to wait for next.
    #[must_use]
    pub fn first(&self) -> Option<&Confirmation> {
        self.open.front().map(|promise| &promise.confirmation)
    }

    /// Removes and counts the first one, which is confirmed.
    pub fn keep_first(&mut self, tally: &Tally) {
        let Some(promise) = self.open.pop_front() else { return };
        if let Some(counter) = promise.counter {
            counter.inc();
        }
        if promise.is_parked {
            tally.parked();
        }
        if let Some(death) = promise.death {
            death.publish();
        }
    }
}
