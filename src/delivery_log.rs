//! The delivery log: records what happens to deliveries, without waiting for PostgreSQL.
//!
//! The pipeline puts an entry into a bounded channel and continues. A separate thread writes entries in batches, on
//! its own connection. While PostgreSQL is away, entries wait in the channel; if it is full, further ones are dropped
//! and counted. No decision depends on the log, so a dropped entry affects no delivery.

use std::mem;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use prometheus::IntCounter;

use crate::clock::unix_millis;
use crate::config::Config;
use crate::domain::causes::Causes;
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::{Extent, Happened, LogEntry};
use crate::domain::event::Event;
use crate::domain::retry::Backoff;
use crate::metrics::LogRows;
use crate::shutdown::Shutdown;
use crate::store::{LogSession, PRUNE_CHUNK, Store, StoreError, Unwritten};

/// How many entries may wait for the thread: more than it writes in a second. They take a few MiB, or ten if
/// receivers' answers are long. They are boxed because the channel allocates all places at the start.
const MOST_WAITING: usize = 8_192;

/// How many entries are written together. Larger batches are no faster.
const BATCH: usize = 512;

/// How long the first entry of a batch waits for others. `tail` shows entries this much later.
const LINGER: Duration = Duration::from_millis(200);

/// How often the thread checks what is due while there are no entries.
const TICK: Duration = Duration::from_secs(1);

/// How long an idle connection is kept: it costs PostgreSQL a process.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often old entries are deleted.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// How long no entry must be dropped before the log counts as complete again. Also the delay before old entries are
/// deleted again after a failure.
const RECOVERY_TIME: Duration = Duration::from_secs(5);

/// The time limit for the last entries after all deliveries have ended: less than the process waits for its last
/// threads.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// Records what happens to deliveries. Never waits.
#[derive(Debug)]
pub struct DeliveryLog {
    extent: Extent,
    entries: Sender<Box<LogEntry>>,
    dropped: IntCounter,
}

/// The thread that writes entries and deletes old ones.
#[derive(Debug)]
pub struct LogWriter {
    entries: Receiver<Box<LogEntry>>,
    session: LogSession,
    keep: Duration,
    rows: LogRows,
    jitter: fn() -> f64,
    /// Entries that couldn't be written yet.
    batch: Vec<LogEntry>,
    gaps: Gaps,
    prune_at: Instant,
    /// Why old entries couldn't be deleted the last time.
    prune_error: Option<StoreError>,
    /// When the connection was last used.
    used: Instant,
}

/// Creates the log and its thread's part; the latter is `None` if the log is off.
#[must_use]
pub fn open(
    config: &Config,
    store: &Store,
    rows: LogRows,
    jitter: fn() -> f64,
) -> (DeliveryLog, Option<LogWriter>) {
    let is_on = config.delivery_log != Extent::Off;
    let (sender, entries) = bounded(if is_on { MOST_WAITING } else { 0 });
    let dropped = rows.dropped.clone();
    let log = DeliveryLog { extent: config.delivery_log, entries: sender, dropped };
    let now = Instant::now();
    let writer = is_on.then(|| LogWriter {
        entries,
        session: LogSession::new(store),
        keep: config.delivery_log_keep,
        rows,
        jitter,
        batch: Vec::new(),
        gaps: Gaps::default(),
        prune_at: now,
        prune_error: None,
        used: now,
    });
    (log, writer)
}

impl DeliveryLog {
    /// Records what happened to a delivery of an event from `queue`.
    pub fn record(&self, queue: &str, delivery: &Delivery, happened: Happened) {
        if self.extent.includes(&happened, delivery) {
            self.send(LogEntry::of(&happened, queue, delivery, unix_millis()));
        }
    }

    /// Records that no webhook wants this event from `queue`.
    pub fn record_unmatched(&self, queue: &str, event: &Event) {
        if self.extent == Extent::All {
            self.send(LogEntry::unmatched(queue, event, unix_millis()));
        }
    }

    fn send(&self, entry: LogEntry) {
        if self.entries.try_send(Box::new(entry)).is_err() {
            self.dropped.inc();
        }
    }
}

impl LogWriter {
    /// Writes entries and deletes old ones until `stop`. Then writes the rest within two seconds.
    pub fn run(mut self, stop: &Shutdown) {
        let mut backoff = Backoff::default();
        while !stop.is_requested() {
            self.gather(stop);
            let written = self.write();
            if written.is_ok() {
                backoff.reset();
                self.prune();
            }
            let error = written.as_ref().err().or(self.prune_error.as_ref());
            self.gaps.report(self.rows.dropped.get(), error);
            if written.is_err() {
                let _ = stop.wait(backoff.next_wait((self.jitter)()));
            }
            if self.used.elapsed() > IDLE_TIMEOUT {
                self.session.disconnect();
            }
        }
        let deadline = Instant::now() + LAST_WRITE_TIMEOUT;
        while Instant::now() < deadline {
            self.fill();
            if self.batch.is_empty() || self.write().is_err() {
                return;
            }
        }
    }

    /// Waits for entries, and a little longer for more.
    fn gather(&mut self, stop: &Shutdown) {
        if self.batch.is_empty() {
            select! {
                recv(stop.receiver()) -> _ => return,
                recv(self.entries) -> entry => match entry {
                    Ok(entry) => self.batch.push(*entry),
                    // Nobody is left to send entries.
                    Err(_) => {
                        let _ = stop.wait(TICK);
                        return;
                    }
                },
                default(TICK) => return,
            }
            let deadline = Instant::now() + LINGER;
            while self.batch.len() < BATCH {
                match self.entries.recv_deadline(deadline) {
                    Ok(entry) => self.batch.push(*entry),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
        }
        self.fill();
    }

    /// Takes waiting entries until the batch is full.
    fn fill(&mut self) {
        let room = BATCH.saturating_sub(self.batch.len());
        self.batch.extend(self.entries.try_iter().take(room).map(|entry| *entry));
    }

    /// Writes the batch. After a failure, the entries that are worth another attempt remain in it.
    fn write(&mut self) -> Result<(), StoreError> {
        let batch = mem::take(&mut self.batch);
        let count = batch.len() as u64;
        if count == 0 {
            return Ok(());
        }
        self.used = Instant::now();
        match self.session.write(batch) {
            Ok(()) => {
                self.rows.written.inc_by(count);
                Ok(())
            }
            Err(Unwritten { error, entries }) => {
                self.rows.dropped.inc_by(count - entries.len() as u64);
                self.batch = entries;
                Err(error)
            }
        }
    }

    /// Deletes some old entries if that is due. If there may be more, it is due again soon, so that entries are deleted
    /// faster than new ones arrive.
    fn prune(&mut self) {
        if Instant::now() < self.prune_at {
            return;
        }
        let pruned = self.session.prune(self.keep);
        self.prune_at = Instant::now()
            + match pruned {
                Ok(PRUNE_CHUNK) => TICK,
                Ok(_) => PRUNE_INTERVAL,
                Err(_) => RECOVERY_TIME,
            };
        self.prune_error = pruned.err();
    }
}

/// Reports gaps: one line when they begin and for each new cause, and one when the log is complete again.
#[derive(Debug, Default)]
struct Gaps {
    /// How many entries were dropped at the last check.
    dropped: u64,
    /// Set while gaps are reported: how many entries had been dropped before, and when the last gap was.
    reported: Option<(u64, Instant)>,
    causes: Causes,
}

impl Gaps {
    fn report(&mut self, dropped: u64, error: Option<&StoreError>) {
        let before = mem::replace(&mut self.dropped, dropped);
        // Entries wait while PostgreSQL doesn't answer. They also wait if it answers with an error, but that is
        // reported as a gap.
        let has_gap = dropped > before
            || error.is_some_and(|error| !matches!(error, StoreError::Unavailable(_)));
        if has_gap {
            let cause = error.map(ToString::to_string);
            let cause =
                cause.unwrap_or_else(|| "more entries than PostgreSQL can write".to_owned());
            if self.causes.is_news(&cause) {
                log::warn!("delivery log has gaps cause={cause:?}; deliveries go on");
            }
        }
        self.reported = match self.reported {
            None if has_gap => Some((before, Instant::now())),
            Some((before, _)) if has_gap => Some((before, Instant::now())),
            Some((before, last)) if error.is_none() && last.elapsed() >= RECOVERY_TIME => {
                log::info!("delivery log complete again dropped={}", dropped - before);
                self.causes.end();
                None
            }
            unchanged => unchanged,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::domain::outcome::Decision;
    use crate::metrics::Metrics;

    #[test]
    fn an_entry_is_queued_without_a_wait_or_dropped_and_counted() {
        let config = Settings::default().read().expect("the defaults");
        let store = Store::new(&config).expect("an URL");
        let rows = Metrics::new(["q".to_owned()]).expect("distinct names").log_rows();
        let (log, writer) = open(&config, &store, rows.clone(), || 0.5);
        let writer = writer.expect("it is not off");
        let mut delivery = Delivery {
            event: Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None },
            webhook_id: uuid::Uuid::nil(),
            attempts: 1,
            first_received_at: 0,
            last_error: String::new(),
            last_answer: None,
            not_before: None,
        };
        let delivered = Happened::Attempted {
            failure: None,
            status: Some(200),
            took: Duration::ZERO,
            decision: Decision::Delivered,
        };
        log.record("q", &delivery, delivered);
        log.record_unmatched("q", &delivery.event);
        assert_eq!(writer.entries.len(), 0, "by default only failures are recorded");
        delivery.last_error = "status 500".to_owned();
        for _ in 0..MOST_WAITING + 3 {
            log.record("q", &delivery, delivered);
        }
        assert_eq!((writer.entries.len(), rows.dropped.get()), (MOST_WAITING, 3));
    }
}
