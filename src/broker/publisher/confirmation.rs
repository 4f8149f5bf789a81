//! What whoever publishes waits for: the broker's confirm of one message.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, select};

use super::{CONFIRM_TIMEOUT, Slip, TICK};
use crate::shutdown::Shutdown;

/// How long who ends waits for the confirm of a message that was refused: until it was sent to
/// another queue, where there is one.
const LAST_CHANCE: Duration = Duration::from_secs(7);

/// A message was not confirmed in time: nobody knows whether the broker has it, so the message it
/// was made of must not be acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RabbitMQ did not confirm the message")]
pub struct NotConfirmed;

/// A message on its way: to be waited for before anything relies on it. Who drops it has given up, and
/// the message is not published any more, if it was not by then.
#[derive(Debug)]
#[must_use]
pub struct Confirmation {
    pub(super) outcome: Receiver<()>,
    pub(super) deadline: Instant,
    pub(super) slip: Arc<Slip>,
}

impl Confirmation {
    /// Waits until the broker has the message safely: for minutes, if it has to be; from `shutdown` on
    /// only as long as [`Confirmation::wait_at_end`].
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

    /// Waits for a message that is worth little: at the first refusal it is given up.
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

    /// Waits as long as somebody may who ends, and for whom this is the last message.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait_at_end(&self) -> Result<(), NotConfirmed> {
        self.outcome.recv_timeout(self.patience_at_end()).map_err(|_| NotConfirmed)
    }

    /// How long that is.
    #[must_use]
    pub fn patience_at_end(&self) -> Duration {
        let most = if self.is_refused() { LAST_CHANCE } else { CONFIRM_TIMEOUT };
        most.min(self.patience())
    }

    /// What is known so far; `None` if that is nothing yet.
    #[must_use]
    pub fn poll(&self) -> Option<Result<(), NotConfirmed>> {
        match self.outcome.try_recv() {
            Ok(()) => Some(Ok(())),
            Err(TryRecvError::Empty) if Instant::now() < self.deadline => None,
            Err(_) => Some(Err(NotConfirmed)),
        }
    }

    /// For `select!`: becomes ready when the message is confirmed or given up, though not when
    /// [`Confirmation::patience`] is over.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<()> {
        &self.outcome
    }

    /// How much longer it may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn is_refused(&self) -> bool {
        self.slip.is_refused.load(Ordering::Relaxed)
    }
}
