//! The delivery log: recording what happens to deliveries never waits for PostgreSQL.
//!
//! The pipeline puts an entry into a bounded channel and goes on. A separate thread writes entries in
//! batches, on its own connection. While PostgreSQL is away, entries are kept as far as there is room;
//! the rest is dropped and counted. The log only records and decides nothing, so nothing else is lost
//! with an entry.

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

/// How many entries may wait for the thread: over a second's worth at its rate, and a few MiB, or ten if
/// receivers' answers are long. They are boxed because the channel reserves a place for each from the
/// start.
const MOST_WAITING: usize = 8_192;

/// How many entries are written together. More make it no faster.
const BATCH: usize = 512;

/// How long the first entry of a batch waits for others: what `tail` shows is that old.
const LINGER: Duration = Duration::from_millis(200);

/// How often the thread checks what is due while there is nothing to write.
const TICK: Duration = Duration::from_secs(1);

/// How long an idle connection is kept: it costs PostgreSQL a process.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often old entries are searched for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// How long the log must have no gaps before that is logged, and how soon deleting old entries is tried
/// again after a failure.
const CALM: Duration = Duration::from_secs(5);

/// How long the last entries may take to be written after everything else has ended: less than the
/// process waits for its last threads.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Records what happens to deliveries. Never waits.
#[derive(Debug)]
pub struct DeliveryLog {
    extent: Extent,
    entries: Sender<Box<LogEntry>>,
    dropped: IntCounter,
}

/// The thread's part.
#[derive(Debug)]
pub struct Writer {
    entries: Receiver<Box<LogEntry>>,
    session: LogSession,
    keep: Duration,
    rows: LogRows,
    jitter: fn() -> f64,
    /// Entries that couldn't be written yet.
    batch: Vec<LogEntry>,
    gaps: Gaps,
    prune_at: Instant,
    /// Why the last chunk couldn't be deleted.
    not_pruned: Option<StoreError>,
    used: Instant,
}

/// Creates both ends of the log. If it is off, there is nothing to run.
#[must_use]
pub fn open(
    config: &Config,
    store: &Store,
    rows: LogRows,
    jitter: fn() -> f64,
) -> (DeliveryLog, Option<Writer>) {
    let is_on = config.delivery_log != Extent::Off;
    let (sender, entries) = bounded(if is_on { MOST_WAITING } else { 0 });
    let dropped = rows.dropped.clone();
    let log = DeliveryLog { extent: config.delivery_log, entries: sender, dropped };
    let now = Instant::now();
    let writer = is_on.then(|| Writer {
        entries,
        session: LogSession::new(store),
        keep: config.delivery_log_keep,
        rows,
        jitter,
        batch: Vec::new(),
        gaps: Gaps::default(),
        prune_at: now,
        not_pruned: None,
        used: now,
    });
    (log, writer)
}

impl DeliveryLog {
    /// Records what happened to a delivery of an event from `queue`.
    pub fn record(&self, queue: &str, delivery: &Delivery, happened: Happened) {
        if self.extent.includes(&happened, delivery) {
            self.leave(LogEntry::of(&happened, queue, delivery, unix_millis()));
        }
    }

    /// Records that no webhook wants this event from `queue`.
    pub fn record_unmatched(&self, queue: &str, event: &Event) {
        if self.extent == Extent::All {
            self.leave(LogEntry::unmatched(queue, event, unix_millis()));
        }
    }

    fn leave(&self, entry: LogEntry) {
        if self.entries.try_send(Box::new(entry)).is_err() {
            self.dropped.inc();
        }
    }
}

impl Writer {
    /// Writes and prunes until `stop`, and then writes the rest within two seconds.
    pub fn run(mut self, stop: &Shutdown) {
        let mut backoff = Backoff::default();
        while !stop.is_requested() {
            self.gather(stop);
            let written = self.write();
            if written.is_ok() {
                backoff.reset();
                self.prune();
            }
            let error = written.as_ref().err().or(self.not_pruned.as_ref());
            self.gaps.report(self.rows.dropped.get(), error);
            if written.is_err() {
                let _ = stop.wait(backoff.next_wait((self.jitter)()));
            }
            if self.used.elapsed() > IDLE_TIMEOUT {
                self.session.rest();
            }
        }
        let deadline = Instant::now() + LAST_WORDS;
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

    /// Takes the entries that are there, as far as there is room.
    fn fill(&mut self) {
        let room = BATCH.saturating_sub(self.batch.len());
        self.batch.extend(self.entries.try_iter().take(room).map(|entry| *entry));
    }

    /// Writes the batch. What remains of it is worth another attempt.
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

    /// Deletes some old entries if that is due. If there may be more, it is due again soon: entries must
    /// not come faster than they go.
    fn prune(&mut self) {
        if Instant::now() < self.prune_at {
            return;
        }
        let pruned = self.session.prune(self.keep);
        self.prune_at = Instant::now()
            + match pruned {
                Ok(PRUNE_CHUNK) => TICK,
                Ok(_) => PRUNE_INTERVAL,
                Err(_) => CALM,
            };
        self.not_pruned = pruned.err();
    }
}

/// Logs when the log begins to have gaps, for each new cause, and when that is over: one line each.
#[derive(Debug, Default)]
struct Gaps {
    /// How many entries were dropped at the last check.
    dropped: u64,
    /// Set while gaps are reported: how many were dropped before, and when the last gap was.
    reported: Option<(u64, Instant)>,
    causes: Causes,
}

impl Gaps {
    fn report(&mut self, dropped: u64, error: Option<&StoreError>) {
        let before = mem::replace(&mut self.dropped, dropped);
        // While PostgreSQL is only away, entries wait for it. They also do while it can't write, but
        // that is logged.
        let is_so = dropped > before
            || error.is_some_and(|error| !matches!(error, StoreError::Unavailable(_)));
        if is_so {
            let cause = error.map(ToString::to_string);
            let cause = cause.unwrap_or_else(|| "more entries than PostgreSQL takes".to_owned());
            if self.causes.is_news(&cause) {
                log::warn!("delivery log has gaps cause={cause:?}; deliveries go on");
            }
        }
        self.reported = match self.reported {
            None if is_so => Some((before, Instant::now())),
            Some((before, _)) if is_so => Some((before, Instant::now())),
            Some((before, last)) if error.is_none() && last.elapsed() >= CALM => {
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
    fn who_tells_what_happened_never_waits_and_what_is_too_much_is_counted() {
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
        assert_eq!(writer.entries.len(), 0, "by default it tells of failures");
        delivery.last_error = "status 500".to_owned();
        for _ in 0..MOST_WAITING + 3 {
            log.record("q", &delivery, delivered);
        }
        assert_eq!((writer.entries.len(), rows.dropped.get()), (MOST_WAITING, 3));
    }
}
