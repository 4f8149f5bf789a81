//! The part of a consumer that other threads see: its progress, and its messages, which they may take over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use amiquip::ConsumerMessage;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::consumer::relief::Returned;
use crate::domain::in_hand::Ages;
use crate::pipeline::Progress;

/// A consumer as other threads see it.
pub(in crate::consumer) struct ConsumerHandle {
    progress: Progress,
    /// Set once it consumes.
    messages: OnceLock<Receiver<ConsumerMessage>>,
    returned: Sender<Returned>,
    /// The last tag that was taken, and the last tag that has waited too long to be begun.
    taken: AtomicU64,
    old: AtomicU64,
    gate: Mutex<Gate>,
}

/// Whether other threads may take over messages of a consumer.
#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    reliefs: usize,
    failed: bool,
}

impl ConsumerHandle {
    pub(super) fn new(returned: Sender<Returned>) -> Self {
        let (taken, old, gate) = Default::default();
        let messages = OnceLock::new();
        Self { progress: Progress::new(), messages, returned, taken, old, gate }
    }

    pub(in crate::consumer) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Sets the receiver of the consumer's messages.
    pub(in crate::consumer) fn set_messages(&self, messages: &Receiver<ConsumerMessage>) {
        // It is set only once.
        let _ = self.messages.set(messages.clone());
    }

    /// From now on no thread may take over messages.
    pub(in crate::consumer) fn close(&self) {
        self.gate().closed = true;
    }

    /// Takes the message with this tag. Returns whether it has waited too long to be begun.
    pub(in crate::consumer) fn take(&self, tag: u64) -> bool {
        self.taken.fetch_max(tag, Ordering::Relaxed);
        tag <= self.old.load(Ordering::Relaxed)
    }

    /// Records how long messages have waited.
    pub(super) fn update_ages(&self, ages: &mut Ages, patience: Duration, now: Duration) {
        let waiting = self.messages.get().map_or(0, |messages| messages.len() as u64);
        ages.note(self.taken.load(Ordering::Relaxed) + waiting, now);
        self.old.store(ages.old(patience, now), Ordering::Relaxed);
    }

    pub(super) fn has_messages(&self) -> bool {
        self.messages.get().is_some_and(|messages| !messages.is_empty())
    }

    /// Takes one of the consumer's messages for a relief, which waits for at most `limit`.
    pub(in crate::consumer) fn take_message(
        &self,
        limit: Duration,
    ) -> Result<ConsumerMessage, RecvTimeoutError> {
        match self.messages.get() {
            Some(messages) if !self.gate().closed => messages.recv_timeout(limit),
            _ => Err(RecvTimeoutError::Disconnected),
        }
    }

    /// Called by a relief: returns something to the consumer.
    pub(in crate::consumer) fn give_back(&self, returned: Returned) {
        // The consumer waits until all reliefs have ended.
        let _ = self.returned.send(returned);
    }

    pub(in crate::consumer) fn has_reliefs(&self) -> bool {
        let gate = self.gate();
        // As if the panic had happened in this thread.
        assert!(!gate.failed, "a relief panicked");
        gate.reliefs > 0
    }

    /// Registers one more relief. Returns false if that is no longer allowed.
    pub(super) fn add_relief(&self) -> bool {
        let mut gate = self.gate();
        gate.reliefs += usize::from(!gate.closed);
        !gate.closed
    }

    pub(in crate::consumer) fn remove_relief(&self) {
        self.gate().reliefs -= 1;
        let _ = self.has_reliefs();
    }

    pub(in crate::consumer) fn set_failed(&self) {
        self.gate().failed = true;
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
