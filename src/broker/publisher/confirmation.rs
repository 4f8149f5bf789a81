//! The broker's confirm of one message, for the thread that published it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};

use super::{CONFIRM_TIMEOUT, Slip, TICK};
use crate::shutdown::Shutdown;

/// How long to wait at shutdown for the confirm of a message that was refused: long enough to reroute it.
const LAST_CHANCE: Duration = Duration::from_secs(7);

/// A message was not confirmed in time. Whether the broker has it is unknown, so the message that it came
/// from must not be acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RabbitMQ did not confirm the message")]
pub struct NotConfirmed;

/// The outstanding confirm of a message. Wait for it before anything relies on the message. Dropping this
/// gives up: if the message is not published by then, it won't be.
#[derive(Debug)]
#[must_use]
pub struct Confirmation {
    pub(super) outcome: Receiver<()>,
    pub(super) deadline: Instant,
    pub(super) slip: Arc<Slip>,
}

impl Confirmation {
    /// Waits until the broker has confirmed the message: for minutes, if necessary; from `shutdown` on, as
    /// long as [`Confirmation::wait_at_end`].
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait(&self, shutdown: &Shutdown) -> Result<(), NotConfirmed> {
        select! {
            recv(self.outcome) -> answer => answer.map_err(|_| NotConfirmed),
            recv(shutdown.receiver()) -> _ => self.wait_at_end(),
            default(self.patience()) => Err(NotConfirmed),
        }
    }

    /// Waits for the confirm of a message of little value: gives up when it is refused once.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait_unless_refused(&self) -> Result<(), NotConfirmed> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        while !self.is_refused() && Instant::now() < deadline {
            match self.outcome.recv_timeout(TICK / 5) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(NotConfirmed),
            }
        }
        self.outcome.try_recv().map_err(|_| NotConfirmed)
    }

    /// Waits for the confirm of one last message, as long as there is time at shutdown.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait_at_end(&self) -> Result<(), NotConfirmed> {
        self.outcome.recv_timeout(self.patience_at_end()).map_err(|_| NotConfirmed)
    }

    /// How long [`Confirmation::wait_at_end`] may take.
    #[must_use]
    pub fn patience_at_end(&self) -> Duration {
        let most = if self.is_refused() { LAST_CHANCE } else { CONFIRM_TIMEOUT };
        most.min(self.patience())
    }

    /// The outcome, if it is known.
    #[must_use]
    pub fn poll(&self) -> Option<Result<(), NotConfirmed>> {
        match self.outcome.try_recv() {
            Ok(()) => Some(Ok(())),
            Err(TryRecvError::Empty) if Instant::now() < self.deadline => None,
            Err(_) => Some(Err(NotConfirmed)),
        }
    }

    /// For `select!`: becomes ready when the message is confirmed or given up, but not when
    /// [`Confirmation::patience`] is over.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<()> {
        &self.outcome
    }

    /// How much longer the confirm may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_refused(&self) -> bool {
        self.slip.is_refused.load(Ordering::Relaxed)
    }
}
