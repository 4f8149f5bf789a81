//! Settles the prefetched messages of a stuck consumer in another thread.
//!
//! This is needed only if PREFETCH_COUNT is above 1. The messages aren't handed back to the broker, which would
//! count as redeliveries. The consumer acks them once it is free again, because an ack needs its channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use amiquip::ConsumerMessage;
use crossbeam_channel::RecvTimeoutError;

use super::crew::{ConsumerHandle, Shared};
use crate::pipeline::{Progress, Settlement};
use crate::workers::Task;

/// How long a relief waits for another message before it checks whether its consumer is free again. Until then
/// both take messages.
const LINGERING: Duration = Duration::from_millis(100);

/// What a relief returns to the consumer.
pub(super) enum Returned {
    /// One of its messages, and how it was settled.
    Settled(amiquip::Delivery, Settlement),
    /// One of its messages that has waited too long to be begun.
    Old(amiquip::Delivery),
    /// A notification instead of a message, or a message that may not be begun.
    Other(ConsumerMessage),
    /// The relief takes no more messages.
    Over,
}

/// A thread that takes over messages of a consumer, as its lane sees it.
#[derive(Debug, Default)]
pub(super) struct Relief {
    pub(super) progress: Progress,
    over: AtomicBool,
}

impl Relief {
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Settles the messages that wait for this consumer, as long as it is stuck at this message. Messages that
    /// haven't begun when the session ends are handed back.
    pub(super) fn work(&self, shared: &Shared, handle: &ConsumerHandle, stuck_at: u64) {
        let _over = Over { relief: self, handle };
        while !shared.is_ending() && handle.progress().message() == Some(stuck_at) {
            let message = match handle.take_message(LINGERING) {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let returned = match message {
                ConsumerMessage::Delivery(delivery) if handle.take(delivery.delivery_tag()) => {
                    Returned::Old(delivery)
                }
                ConsumerMessage::Delivery(mut delivery) if !shared.is_ending() => {
                    shared.pipeline.tally().taken();
                    let settlement = shared.settle(&mut delivery, &self.progress);
                    self.progress.ends();
                    Returned::Settled(delivery, settlement)
                }
                other => Returned::Other(other),
            };
            let is_last = match &returned {
                Returned::Settled(_, settlement) => matches!(settlement, Settlement::HandBack(_)),
                Returned::Old(_) => false,
                _ => true,
            };
            handle.give_back(returned);
            if is_last {
                return;
            }
        }
    }
}

/// However a relief ends, its consumer must not wait for it forever.
struct Over<'a> {
    relief: &'a Relief,
    handle: &'a ConsumerHandle,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.relief.over.store(true, Ordering::Relaxed);
        if thread::panicking() {
            // As if the consumer had panicked, which ends the process.
            self.handle.set_failed();
        }
        self.handle.give_back(Returned::Over);
    }
}

/// [`Relief::work`] as a task for [`crate::workers`].
pub(super) fn task(
    relief: Arc<Relief>,
    shared: Arc<Shared>,
    handle: Arc<ConsumerHandle>,
    stuck_at: u64,
) -> Task {
    Box::new(move || {
        relief.work(&shared, &handle, stuck_at);
        None
    })
}
