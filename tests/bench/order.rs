//! Checks whether first attempts arrived in the order of publishing.

use std::{collections::HashSet, fmt, time::Duration};

use crate::receiver::{Answer, Receipt, nanoseconds};

/// How far the arrival of one webhook's events was in order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Order {
    /// The events without a failed attempt.
    counted: usize,
    /// Those of them that arrived after the answer to a later event: their request began too late.
    overtaken: usize,
    /// Those that arrived while a later event's request was in flight: the two may have begun in order.
    together: usize,
}

impl Order {
    /// For a receiver that takes `latency` for each answer.
    pub(crate) fn of(receipts: &[Receipt], latency: Duration) -> Self {
        let latency = nanoseconds(latency);
        let is_success = |receipt: &&Receipt| receipt.answer == Answer::Success;
        let failed = receipts.iter().filter(|receipt| !is_success(receipt));
        let mut seen: HashSet<u32> = failed.map(|receipt| receipt.event).collect();
        let mut came: Vec<_> = receipts.iter().filter(is_success).collect();
        came.sort_unstable_by_key(|receipt| receipt.at);
        // Each event's first arrival, if none of its attempts failed.
        came.retain(|receipt| seen.insert(receipt.event));

        let mut order = Self { counted: came.len(), ..Self::default() };
        let mut ended = came.iter().peekable();
        let (mut latest_ended, mut latest) = (0, 0);
        for receipt in &came {
            while let Some(before) = ended.next_if(|before| before.at + latency <= receipt.at) {
                latest_ended = latest_ended.max(before.event);
            }
            if receipt.event < latest_ended {
                order.overtaken += 1;
            } else if receipt.event < latest {
                order.together += 1;
            }
            latest = latest.max(receipt.event);
        }
        order
    }

    /// The percentage of events that a later one has overtaken. Those of concurrent requests don't count.
    pub(crate) fn overtaken_percent(&self) -> f64 {
        self.overtaken as f64 / self.counted.max(1) as f64 * 100.0
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { counted, overtaken, together } = self;
        write!(
            f,
            "of {counted} events without a failed attempt, {overtaken} arrived after the answer to a later one, {together} while a later one was in flight"
        )
    }
}
