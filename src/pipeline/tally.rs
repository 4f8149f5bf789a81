//! Counts the messages that are finished after shutdown was requested, for the last log line of the process.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::shutdown::Shutdown;

/// Counts messages from shutdown on; before that only those in hand. Displays as the last log line of the
/// process.
#[derive(Debug)]
pub struct Tally {
    shutdown: Shutdown,
    finished: AtomicU64,
    parked: AtomicU64,
    handed_back: AtomicU64,
    in_hand: AtomicU64,
}

impl Tally {
    /// Counts from this shutdown on.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        let [finished, parked, handed_back, in_hand] = Default::default();
        Self { shutdown, finished, parked, handed_back, in_hand }
    }

    /// Counts a message that a lane has taken.
    pub fn taken(&self) {
        self.in_hand.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts messages that a lane no longer has in hand: settled, or lost with its connection.
    pub fn let_go(&self, messages: usize) {
        self.in_hand.fetch_sub(messages as u64, Ordering::Relaxed);
    }

    /// Counts messages that were acked.
    pub fn finished(&self, messages: usize) {
        self.count(&self.finished, messages);
    }

    /// Counts a message that was handed back to the broker.
    pub fn handed_back(&self) {
        self.count(&self.handed_back, 1);
    }

    /// Counts a delivery that waits for its next attempt.
    pub(super) fn parked(&self) {
        self.count(&self.parked, 1);
    }

    fn count(&self, counter: &AtomicU64, number: usize) {
        if self.shutdown.is_requested() {
            counter.fetch_add(number as u64, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [finished, parked, handed_back, in_hand] =
            [&self.finished, &self.parked, &self.handed_back, &self.in_hand]
                .map(|counter| counter.load(Ordering::Relaxed));
        // The broker requeues the messages that lanes still hold when the process ends.
        let handed_back = handed_back + in_hand;
        write!(formatter, "{finished} finished, {parked} parked, {handed_back} handed back")
    }
}
