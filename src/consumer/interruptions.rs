//! The log lines about interrupted lanes. A server that goes away interrupts all lanes at once, so the lanes
//! that report the same cause within a moment share one line.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long to wait for other lanes with the same cause. Most notice it within milliseconds of each other; one
/// that notices it later has a line of its own. This wait is a part of the backoff, so no lane connects later
/// because of it.
pub(super) const GATHERING: Duration = Duration::from_millis(200);

/// The interruptions that have not been logged yet: the queues of the lanes, by cause. Shared by all lanes.
#[derive(Debug, Default)]
pub struct Interruptions(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Interruptions {
    /// Adds the lane of this queue. Returns whether it is the first with this cause: its thread then has to
    /// [log](Self::log) the cause after [`GATHERING`].
    pub(super) fn add(&self, queue: &str, cause: &str) -> bool {
        let mut waiting = self.lock();
        let queues = waiting.entry(cause.to_owned()).or_default();
        queues.insert(queue.to_owned());
        queues.len() == 1
    }

    /// Logs the cause once, with the queues of all lanes that have it.
    pub(super) fn log(&self, cause: &str) {
        if let Some(queues) = self.take(cause) {
            log::warn!("lane interrupted queue={queues} cause={cause:?}");
        }
    }

    fn take(&self, cause: &str) -> Option<String> {
        let queues = self.lock().remove(cause)?;
        Some(queues.into_iter().collect::<Vec<_>>().join(","))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_with_the_same_cause_are_logged_together_by_the_first_and_later_ones_again() {
        let interruptions = Interruptions::default();
        let added = [("b", "away"), ("c", "cancelled"), ("a", "away"), ("b", "away")]
            .map(|(queue, cause)| interruptions.add(queue, cause));
        assert_eq!(added, [true, true, false, false]);
        assert_eq!(interruptions.take("away").as_deref(), Some("a,b"));
        assert_eq!(interruptions.take("away"), None, "it is logged once");
        assert!(interruptions.add("b", "away"), "after that it is news");
        assert_eq!(interruptions.take("cancelled").as_deref(), Some("c"));
    }
}
