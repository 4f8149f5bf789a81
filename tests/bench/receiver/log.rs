//! What receivers got, and how it differs from what they should have got.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

/// One request, when its last byte had arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    /// The number of the event.
    pub(crate) event: u32,
    /// The number at the end of the path.
    pub(crate) webhook: u32,
    pub(crate) sent: u64,
    pub(crate) at: u64,
    pub(crate) answer: Answer,
}

/// The answer to a request, sent at once or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 200: the event is delivered.
    Success,
    /// 500.
    Failure,
    /// 503.
    Unavailable,
    Nothing,
}

impl Receipt {
    /// Nanoseconds from publishing to arrival.
    pub(crate) fn latency(&self) -> u64 {
        self.at.saturating_sub(self.sent)
    }
}

/// What one or more receivers got.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Mutex<Entries>,
    reached: Condvar,
}

#[derive(Debug, Default)]
struct Entries {
    receipts: Vec<Receipt>,
    delivered: usize,
    connections: usize,
    /// Requests that contained no event.
    unexpected: usize,
    /// How many deliveries somebody waits for.
    awaited: usize,
}

/// How what arrived differs from what should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Differences {
    pub(crate) missing: usize,
    repeated: usize,
    /// Deliveries that should not exist, and requests without an event.
    unexpected: usize,
}

impl Differences {
    pub(crate) fn are_none(self) -> bool {
        self == Self::default()
    }

    /// Whether deliveries are missing at most: these may still arrive.
    pub(crate) fn are_only_missing(self) -> bool {
        Self { missing: 0, ..self }.are_none()
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, repeated, unexpected } = self;
        write!(f, "{missing} missing, {repeated} repeated, {unexpected} unexpected")
    }
}

impl Log {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("no receiver panics while it holds it")
    }

    pub(super) fn count_connection(&self) {
        self.lock().connections += 1;
    }

    /// Counts a request without an event.
    pub(super) fn count_unexpected(&self) {
        self.lock().unexpected += 1;
    }

    pub(super) fn push(&self, receipt: Receipt) {
        let mut entries = self.lock();
        entries.receipts.push(receipt);
        let delivered = receipt.answer == Answer::Success;
        entries.delivered += usize::from(delivered);
        let reached = delivered && entries.delivered == entries.awaited;
        drop(entries);
        if reached {
            self.reached.notify_all();
        }
    }

    /// Waits until this many deliveries have arrived. False if they haven't before the timeout.
    pub(crate) fn wait(&self, count: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut entries = self.lock();
        entries.awaited = count;
        while entries.delivered < count {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            entries = self.reached.wait_timeout(entries, left).expect("as above").0;
        }
        true
    }

    /// The same for requests, answered or not.
    pub(crate) fn wait_requests(&self, count: usize, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.lock().receipts.len() < count {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// How many deliveries have arrived.
    pub(crate) fn delivered(&self) -> usize {
        self.lock().delivered
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().connections
    }

    /// All requests, successful or not.
    pub(crate) fn receipts(&self) -> Vec<Receipt> {
        self.lock().receipts.clone()
    }

    /// The requests that succeeded.
    pub(crate) fn deliveries(&self) -> Vec<Receipt> {
        let entries = self.lock();
        let delivered = |receipt: &&Receipt| receipt.answer == Answer::Success;
        entries.receipts.iter().filter(delivered).copied().collect()
    }

    /// Compares what arrived with what should have: these events, each at one webhook.
    pub(crate) fn differences(&self, events: impl IntoIterator<Item = u32>) -> Differences {
        self.differences_by(|receipt| receipt.event, events)
    }

    /// Compares what arrived with what should have: one event, at each of these webhooks.
    pub(crate) fn differences_by_webhook(
        &self,
        webhooks: impl IntoIterator<Item = u32>,
    ) -> Differences {
        self.differences_by(|receipt| receipt.webhook, webhooks)
    }

    /// Compares what arrived with what should have: deliveries, identified by event and webhook.
    pub(crate) fn differences_by_delivery(
        &self,
        deliveries: impl IntoIterator<Item = (u32, u32)>,
    ) -> Differences {
        self.differences_by(|receipt| (receipt.event, receipt.webhook), deliveries)
    }

    fn differences_by<K: Eq + Hash>(
        &self,
        key: fn(&Receipt) -> K,
        expected: impl IntoIterator<Item = K>,
    ) -> Differences {
        let mut times: HashMap<K, usize> = HashMap::new();
        for delivery in self.deliveries() {
            *times.entry(key(&delivery)).or_default() += 1;
        }
        let unexpected = self.lock().unexpected;
        let mut differences = Differences { unexpected, ..Differences::default() };
        for delivery in expected {
            match times.remove(&delivery) {
                None => differences.missing += 1,
                Some(times) => differences.repeated += times - 1,
            }
        }
        differences.unexpected += times.len();
        differences
    }
}
