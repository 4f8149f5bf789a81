//! The delivery log's table: written in batches, pruned in chunks, read by the commands.

use std::time::Duration;

use postgres::types::{ToSql, Type};
use postgres::{Client, Row};
use uuid::Uuid;

use super::session::{Failed, Session};
use super::time::unix_millis;
use super::{Store, StoreError};
use crate::domain::answer::Excerpt;
use crate::domain::delivery_log::{LogEntry, What};
use crate::domain::encoding::{header_of_id, header_of_name};
use crate::domain::time::UnixMillis;

mod asked;
mod follower;

pub use asked::{MOST_MARKS, Reported};
pub use follower::{Follower, NewEntries};

/// How many entries one statement deletes at most: a hundredth of a second's work.
pub const PRUNE_CHUNK: u64 = 5_000;

/// The most entries that [`Store::entries_of`] returns: far more than anybody reads.
pub const MOST_ENTRIES: usize = 5_000;

/// The columns that [`entry`] reads. Anybody may have written the rows: texts are cut, and times limited to
/// what a number can express.
fn entry_columns() -> String {
    format!(
        "id, coalesce({}, 0) AS at, coalesce(left(event_id, 255), '') AS event_id,
         coalesce(left(event_type, 255), '') AS event_type, left(account, 255) AS account, webhook_id,
         coalesce(left(queue, 255), '') AS queue, coalesce(left(outcome, 64), '') AS outcome,
         coalesce(attempt, 0) AS attempt, status, left(reason, 1024) AS reason,
         coalesce(left(detail, 4096), '') AS detail, left(status_line, 1024) AS status_line,
         left(answer_body, 4097) AS answer_body, ms, {} AS next_attempt_at, left(dead, 1024) AS dead",
        unix_millis("at"),
        unix_millis("next_attempt_at")
    )
}

/// Writes and prunes the log on its own connection.
#[derive(Debug)]
pub struct LogSession(Session);

/// Entries that couldn't be written.
#[derive(Debug)]
pub struct Unwritten {
    /// The error.
    pub error: StoreError,
    /// The entries that are worth another attempt: none if it would fail again, or if PostgreSQL may still
    /// be writing them.
    pub entries: Vec<LogEntry>,
}

impl LogSession {
    /// A session. Opens no connection yet.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self(store.session("webhook-notifier log"))
    }

    /// Writes all entries, or none.
    ///
    /// # Errors
    /// [`Unwritten`]. If the connection broke right after the commit, they are written nevertheless.
    pub fn write(&mut self, mut entries: Vec<LogEntry>) -> Result<(), Unwritten> {
        let mut written = self.insert(&entries);
        if let Err(Failed::Error(StoreError::InvalidValue(_))) = written {
            // The database's encoding lacks a character. Ids and accounts are written in the form that
            // their headers have, for which `why` searches too.
            for entry in &mut entries {
                entry.detail.retain(|c| c.is_ascii());
                if let Some(answer) = &mut entry.answer {
                    answer.status_line.retain(|c| c.is_ascii());
                    answer.body.retain(|c| c.is_ascii());
                }
                if let Some(account) = entry.account.as_mut().filter(|it| !it.is_ascii()) {
                    *account = header_of_name(account).into_owned();
                }
                if !entry.event_id.is_ascii() {
                    entry.event_id = header_of_id(&entry.event_id).into_owned();
                }
            }
            written = self.insert(&entries);
        }
        written.map_err(|failed| {
            if !matches!(&failed, Failed::Error(error) if error.is_temporary()) {
                entries.clear();
            }
            Unwritten { error: failed.into(), entries }
        })
    }

    fn insert(&mut self, entries: &[LogEntry]) -> Result<(), Failed> {
        let columns = EntryColumns::of(entries);
        self.0.run(move |client| columns.insert(client))
    }

    /// Deletes at most [`PRUNE_CHUNK`] entries that are older than `keep`, and returns how many it deleted.
    /// Skips entries that another instance is deleting.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn prune(&mut self, keep: Duration) -> Result<u64, StoreError> {
        let keep = keep.as_secs_f64();
        let most = i64::try_from(PRUNE_CHUNK).unwrap_or(i64::MAX);
        let pruned = self.0.run(move |client| {
            client.execute_typed(
                "DELETE FROM delivery_attempts WHERE id = ANY(ARRAY(
                     SELECT id FROM delivery_attempts WHERE at < now() - make_interval(secs => $1)
                     ORDER BY at LIMIT $2 FOR UPDATE SKIP LOCKED
                 ))",
                &[(&keep, Type::FLOAT8), (&most, Type::INT8)],
            )
        });
        Ok(pruned?)
    }

    /// Closes the connection until it is needed again.
    pub fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

/// Entries, column by column.
#[derive(Default)]
struct EntryColumns {
    at: Vec<i64>,
    event_id: Vec<String>,
    event_type: Vec<String>,
    account: Vec<Option<String>>,
    webhook_id: Vec<Option<Uuid>>,
    queue: Vec<String>,
    outcome: Vec<&'static str>,
    attempt: Vec<i32>,
    status: Vec<Option<i32>>,
    reason: Vec<Option<String>>,
    detail: Vec<String>,
    status_line: Vec<Option<String>>,
    answer_body: Vec<Option<String>>,
    ms: Vec<Option<i64>>,
    next_attempt_at: Vec<Option<i64>>,
    dead: Vec<Option<String>>,
}

impl EntryColumns {
    fn of(entries: &[LogEntry]) -> Self {
        let mut columns = Self::default();
        let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
        for entry in entries.iter().cloned() {
            columns.at.push(entry.at);
            columns.event_id.push(entry.event_id);
            columns.event_type.push(entry.event_type);
            columns.account.push(entry.account);
            columns.webhook_id.push(entry.webhook_id);
            columns.queue.push(entry.queue);
            columns.outcome.push(entry.what.label());
            columns.attempt.push(count(entry.attempt));
            columns.status.push(entry.status.map(i32::from));
            columns.reason.push(entry.reason);
            columns.detail.push(entry.detail);
            let answer = entry.answer.map(|answer| *answer);
            let (status_line, body) = answer.map(|it| (it.status_line, it.body)).unzip();
            columns.status_line.push(status_line);
            columns.answer_body.push(body);
            columns.ms.push(entry.ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)));
            columns.next_attempt_at.push(entry.next_attempt_at);
            columns.dead.push(entry.dead);
        }
        columns
    }

    fn insert(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let parameters: [(&(dyn ToSql + Sync), Type); 16] = [
            (&self.at, Type::INT8_ARRAY),
            (&self.event_id, Type::TEXT_ARRAY),
            (&self.event_type, Type::TEXT_ARRAY),
            (&self.webhook_id, Type::UUID_ARRAY),
            (&self.queue, Type::TEXT_ARRAY),
            (&self.outcome, Type::TEXT_ARRAY),
            (&self.attempt, Type::INT4_ARRAY),
            (&self.status, Type::INT4_ARRAY),
            (&self.reason, Type::TEXT_ARRAY),
            (&self.detail, Type::TEXT_ARRAY),
            (&self.ms, Type::INT8_ARRAY),
            (&self.next_attempt_at, Type::INT8_ARRAY),
            (&self.dead, Type::TEXT_ARRAY),
            (&self.account, Type::TEXT_ARRAY),
            (&self.status_line, Type::TEXT_ARRAY),
            (&self.answer_body, Type::TEXT_ARRAY),
        ];
        let inserted = client.execute_typed(
            "INSERT INTO delivery_attempts (at, event_id, event_type, webhook_id, queue, outcome,
                 attempt, status, reason, detail, ms, next_attempt_at, dead, account, status_line,
                 answer_body)
             SELECT to_timestamp(at / 1000.0), event_id, event_type, webhook_id, queue, outcome,
                 attempt, status, reason, detail, ms,
                 to_timestamp(next_attempt_at / 1000.0), dead, account, status_line, answer_body
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
                 AS entries (at, event_id, event_type, webhook_id, queue, outcome, attempt,
                     status, reason, detail, ms, next_attempt_at, dead, account, status_line,
                     answer_body)",
            &parameters,
        );
        inserted.map(drop)
    }
}

impl Store {
    /// The log's entries about an event, oldest first. If there are more than [`MOST_ENTRIES`], those of
    /// this webhook take precedence, then newer ones.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn entries_of(
        &self,
        event_id: &str,
        webhook: Option<Uuid>,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let most = i64::try_from(MOST_ENTRIES).unwrap_or(i64::MAX);
        let asked = format!(
            "WITH newest AS (
                 SELECT * FROM delivery_attempts WHERE event_id = $1
                 ORDER BY webhook_id = $2 DESC NULLS LAST, id DESC LIMIT $3
             )
             SELECT {} FROM newest ORDER BY newest.at, id",
            entry_columns()
        );
        let event_id = event_id.to_owned();
        self.query_once(move |client| {
            let rows = client.query_typed(
                &asked,
                &[(&event_id, Type::TEXT), (&webhook, Type::UUID), (&most, Type::INT8)],
            )?;
            rows.iter().filter_map(|row| entry(row).transpose()).collect()
        })
    }

    /// How many deliveries entered the webhook's backlog after this event's delivery.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn entered_after(
        &self,
        event_id: &str,
        queue: &str,
        webhook: Uuid,
    ) -> Result<u64, StoreError> {
        let [event_id, queue] = [event_id, queue].map(str::to_owned);
        let count: i64 = self.query_once(move |client| {
            let rows = client.query_typed(
                // The condition on the time allows the use of the index. It has a minute to spare because
                // entries aren't written exactly in the order of time.
                "WITH own AS MATERIALIZED (
                     SELECT max(id) AS id, max(at) - interval '1 minute' AS at
                     FROM delivery_attempts
                     WHERE event_id = $1 AND queue = $2 AND webhook_id = $3
                 )
                 SELECT count(*) FROM delivery_attempts
                 WHERE queue = $2 AND webhook_id = $3
                     AND outcome = 'held_back' AND next_attempt_at IS NULL AND dead IS NULL
                     AND at >= (SELECT at FROM own) AND id > (SELECT id FROM own)",
                &[(&event_id, Type::TEXT), (&queue, Type::TEXT), (&webhook, Type::UUID)],
            )?;
            rows.first().map_or(Ok(0), |row| row.try_get(0))
        })?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Whether the log's table exists.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn has_log(&self) -> Result<bool, StoreError> {
        self.query_once(|client| {
            let asked = "SELECT to_regclass('delivery_attempts') IS NOT NULL";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(false), |row| row.try_get(0))
        })
    }

    /// Since when entries contain accounts; `None` if they always did.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn accounts_since(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.query_once(|client| {
            let asked = "SELECT (extract(epoch FROM applied_at) * 1000)::bigint
                         FROM schema_migrations WHERE name = 'accounts'";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(None), |row| row.try_get(0))
        })
    }

    /// The time of the oldest entry; `None` if the log is empty.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn oldest_entry(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.query_once(|client| {
            let asked = "SELECT (extract(epoch FROM min(at)) * 1000)::bigint FROM delivery_attempts
                         WHERE isfinite(at)";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(None), |row| row.try_get(0))
        })
    }
}

/// `None` for an outcome of a later version.
fn entry(row: &Row) -> Result<Option<LogEntry>, postgres::Error> {
    let Some(what) = What::of_label(row.try_get("outcome")?) else { return Ok(None) };
    let count = |name| Ok(u32::try_from(row.try_get::<_, i32>(name)?).unwrap_or(0));
    let status: Option<i32> = row.try_get("status")?;
    let ms: Option<i64> = row.try_get("ms")?;
    Ok(Some(LogEntry {
        at: row.try_get("at")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        account: row.try_get("account")?,
        webhook_id: row.try_get("webhook_id")?,
        queue: row.try_get("queue")?,
        what,
        attempt: count("attempt")?,
        status: status.and_then(|status| u16::try_from(status).ok()),
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        answer: answer(row)?.map(Box::new),
        ms: ms.and_then(|ms| u64::try_from(ms).ok()),
        next_attempt_at: row.try_get("next_attempt_at")?,
        dead: row.try_get("dead")?,
    }))
}

/// The receiver's answer, if it was kept. Anybody may have written the row, so the answer is checked again.
fn answer(row: &Row) -> Result<Option<Excerpt>, postgres::Error> {
    let status_line: Option<String> = row.try_get("status_line")?;
    let body: Option<String> = row.try_get("answer_body")?;
    let is_kept = status_line.is_some() || body.is_some();
    let (status_line, body) = (status_line.unwrap_or_default(), body.unwrap_or_default());
    Ok(is_kept.then(|| Excerpt::read(&status_line, &body)))
}
