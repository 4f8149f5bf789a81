//! The delivery log's table: written in batches, pruned in chunks, read by the commands.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postgres::types::{ToSql, Type};
use postgres::{Client, Row};
use uuid::Uuid;

use super::session::{Failed, Session};
use super::{Store, StoreError};
use crate::domain::delivery::UnixMillis;
use crate::domain::encoding::{header_of_id, header_of_name};
use crate::domain::history::{Entry, What};

/// How many entries are deleted with one statement: a hundredth of a second's work.
pub const PRUNE_CHUNK: u64 = 5_000;

/// How many entries [`Store::history`] returns at most: what people can still read is far below.
pub const MOST_ENTRIES: usize = 5_000;

/// How many entries [`Follower::next`] returns at most.
const PAGE: i64 = 1_000;

/// How far back the first entries are looked for that fit, in entries.
const LOOK_BACK: i64 = 100_000;

/// What was being written so long before can be seen by now, or never will be: several times
/// [`STATEMENT_TIMEOUT`](super::STATEMENT_TIMEOUT), since a commit may wait for a standby server.
const SETTLED: Duration = Duration::from_secs(15);

/// What [`entry`] reads of a row.
///
/// Anybody may have written it: texts are bounded, and times are those that a number can say.
const ENTRY: &str = "id,
     coalesce((extract(epoch FROM least(greatest(at, 'epoch'), '9999-12-31')) * 1000)::bigint, 0)
         AS at,
     coalesce(left(event_id, 255), '') AS event_id, coalesce(left(event_type, 255), '') AS event_type,
     left(account, 255) AS account, webhook_id, coalesce(left(queue, 255), '') AS queue, coalesce(left(outcome, 64), '') AS outcome,
     coalesce(attempt, 0) AS attempt, status, left(reason, 1024) AS reason,
     coalesce(left(detail, 4096), '') AS detail, ms,
     CASE WHEN next_attempt_at IS NOT NULL
          THEN (extract(epoch FROM least(greatest(next_attempt_at, 'epoch'), '9999-12-31')) * 1000)::bigint
     END AS next_attempt_at,
     left(dead, 1024) AS dead";

/// A snapshot in which nothing was there yet.
const NOTHING: &str = "1:1:";

/// Writes and prunes the log, over a connection of its own.
#[derive(Debug)]
pub struct LogSession(Session);

/// Entries that could not be written.
#[derive(Debug)]
pub struct Unwritten {
    /// Why.
    pub error: StoreError,
    /// Those that are worth another attempt; none where it would be in vain, or where PostgreSQL
    /// may be writing them yet.
    pub entries: Vec<Entry>,
}

impl LogSession {
    /// A session that is not opened yet.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self(store.session("webhook-notifier log"))
    }

    /// Writes all of them, or none.
    ///
    /// # Errors
    /// [`Unwritten`]. Where the connection broke at the wrong moment, they may have been written
    /// all the same.
    pub fn write(&mut self, mut entries: Vec<Entry>) -> Result<(), Unwritten> {
        let mut written = self.insert(&entries);
        if let Err(Failed::Error(StoreError::Refused(_))) = written {
            // The database's encoding lacks a character; other names were looked up there before.
            for entry in &mut entries {
                entry.detail.retain(|c| c.is_ascii());
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
            if !matches!(&failed, Failed::Error(error) if error.is_passing()) {
                entries.clear();
            }
            Unwritten { error: failed.into(), entries }
        })
    }

    fn insert(&mut self, entries: &[Entry]) -> Result<(), Failed> {
        let columns = Columns::of(entries);
        self.0.run(move |client| columns.insert(client))
    }

    /// Deletes entries that are older than that, at most [`PRUNE_CHUNK`] of them, and says how
    /// many. What another instance is deleting just now is left to it.
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

    /// Closes the connection, until it is needed again.
    pub fn rest(&mut self) {
        self.0.rest();
    }
}

/// Entries, column by column.
#[derive(Default)]
struct Columns {
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
    ms: Vec<Option<i64>>,
    next_attempt_at: Vec<Option<i64>>,
    dead: Vec<Option<String>>,
}

impl Columns {
    fn of(entries: &[Entry]) -> Self {
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
            columns.ms.push(entry.ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)));
            columns.next_attempt_at.push(entry.next_attempt_at);
            columns.dead.push(entry.dead);
        }
        columns
    }

    fn insert(&self, client: &mut Client) -> Result<(), postgres::Error> {
        let parameters: [(&(dyn ToSql + Sync), Type); 14] = [
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
        ];
        let inserted = client.execute_typed(
            "INSERT INTO delivery_attempts (at, event_id, event_type, webhook_id, queue, outcome,
                 attempt, status, reason, detail, ms, next_attempt_at, dead, account)
             SELECT to_timestamp(at / 1000.0), event_id, event_type, webhook_id, queue, outcome,
                 attempt, status, reason, detail, ms,
                 to_timestamp(next_attempt_at / 1000.0), dead, account
             FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                 AS entries (at, event_id, event_type, webhook_id, queue, outcome, attempt,
                     status, reason, detail, ms, next_attempt_at, dead, account)",
            &parameters,
        );
        inserted.map(drop)
    }
}

impl Store {
    /// What the log has of an event, oldest first. At most [`MOST_ENTRIES`]: those of this webhook
    /// before others, and new ones before old ones.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn history(&self, event_id: &str, webhook: Option<Uuid>) -> Result<Vec<Entry>, StoreError> {
        let most = i64::try_from(MOST_ENTRIES).unwrap_or(i64::MAX);
        let asked = format!(
            "WITH newest AS (
                 SELECT * FROM delivery_attempts WHERE event_id = $1
                 ORDER BY webhook_id = $2 DESC NULLS LAST, id DESC LIMIT $3
             )
             SELECT {ENTRY} FROM newest ORDER BY newest.at, id"
        );
        let event_id = event_id.to_owned();
        self.once(move |client| {
            let rows = client.query_typed(
                &asked,
                &[(&event_id, Type::TEXT), (&webhook, Type::UUID), (&most, Type::INT8)],
            )?;
            rows.iter().filter_map(|row| entry(row).transpose()).collect()
        })
    }

    /// How many deliveries entered the backlog of a webhook after this event did.
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
        let count: i64 = self.once(move |client| {
            let rows = client.query_typed(
                "SELECT count(*) FROM delivery_attempts
                 WHERE queue = $2 AND webhook_id = $3
                     AND outcome = 'held_back' AND next_attempt_at IS NULL AND dead IS NULL
                     AND id > (SELECT max(id) FROM delivery_attempts
                               WHERE event_id = $1 AND queue = $2 AND webhook_id = $3)",
                &[(&event_id, Type::TEXT), (&queue, Type::TEXT), (&webhook, Type::UUID)],
            )?;
            rows.first().map_or(Ok(0), |row| row.try_get(0))
        })?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Whether the log has its table.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn has_log(&self) -> Result<bool, StoreError> {
        self.once(|client| {
            let asked = "SELECT to_regclass('delivery_attempts') IS NOT NULL";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(false), |row| row.try_get(0))
        })
    }

    /// Since when the log says whose events are; none if it did from its beginning.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn accounts_since(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.once(|client| {
            let asked = "SELECT (extract(epoch FROM applied_at) * 1000)::bigint
                         FROM schema_migrations WHERE name = 'accounts'";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(None), |row| row.try_get(0))
        })
    }

    /// When the oldest entry of the log was made; none if it is empty.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn oldest_entry(&self) -> Result<Option<UnixMillis>, StoreError> {
        self.once(|client| {
            let asked = "SELECT (extract(epoch FROM min(at)) * 1000)::bigint FROM delivery_attempts
                         WHERE isfinite(at)";
            let rows = client.query_typed(asked, &[])?;
            rows.first().map_or(Ok(None), |row| row.try_get(0))
        })
    }
}

/// Nothing where it is of a later version's kind.
fn entry(row: &Row) -> Result<Option<Entry>, postgres::Error> {
    let Some(what) = What::of_label(row.try_get("outcome")?) else { return Ok(None) };
    let count = |name| Ok(u32::try_from(row.try_get::<_, i32>(name)?).unwrap_or(0));
    let status: Option<i32> = row.try_get("status")?;
    let ms: Option<i64> = row.try_get("ms")?;
    Ok(Some(Entry {
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
        ms: ms.and_then(|ms| u64::try_from(ms).ok()),
        next_attempt_at: row.try_get("next_attempt_at")?,
        dead: row.try_get("dead")?,
    }))
}

/// Sees each entry once, as it is written, by whichever instance.
///
/// Ids are given before a commit, so a smaller one may be seen after a larger. What was seen before
/// is told by PostgreSQL's snapshots instead: an entry is new if its transaction was not yet over
/// at the last look, and is now. Ids only bound where to look.
#[derive(Debug)]
pub struct Follower {
    session: Session,
    webhook: Option<Uuid>,
    account: Option<String>,
    only_failures: bool,
    /// What was seen, as a snapshot.
    seen: Option<String>,
    /// What is being seen, page by page: as a snapshot, and up to which id.
    page: Option<(String, i64)>,
    /// The largest id at the last looks, and when they were; the first of them was long enough
    /// before the last one.
    ids: VecDeque<(Instant, i64)>,
}

/// Entries that [`Follower::next`] has seen.
#[derive(Debug)]
pub struct Seen {
    /// In the order of their ids.
    pub entries: Vec<Entry>,
    /// Whether there may be more already.
    pub more: bool,
}

impl Follower {
    /// Follows all webhooks or one, all events or those of one account; everything, or only what is not
    /// well.
    #[must_use]
    pub fn new(
        store: &Store,
        webhook: Option<Uuid>,
        account: Option<String>,
        only_failures: bool,
    ) -> Self {
        Self {
            session: store.session("webhook-notifier tail"),
            webhook,
            account,
            only_failures,
            seen: None,
            page: None,
            ids: VecDeque::new(),
        }
    }

    /// The entries that are new since it was last asked; the first time, the last `lines` ones.
    ///
    /// # Errors
    /// [`StoreError`]. Whoever asks again misses nothing.
    pub fn next(&mut self, lines: u32) -> Result<Seen, StoreError> {
        let (until, after) = match self.page.clone() {
            Some(page) => page,
            None => {
                let (until, last_id) = self.session.run(look)?;
                let settled = self.settled(last_id);
                self.ids.push_back((Instant::now(), last_id));
                let first = last_id.saturating_sub(LOOK_BACK);
                (until, if self.seen.is_some() { settled } else { first })
            }
        };
        let Some(seen) = self.seen.clone() else {
            let newest = self.select("DESC", NOTHING.to_owned(), &until, after, lines.into())?;
            self.seen = Some(until);
            let entries = newest.into_iter().rev().filter_map(|(_, entry)| entry);
            return Ok(Seen { entries: entries.collect(), more: false });
        };
        let found = self.select("ASC", seen, &until, after, PAGE)?;
        let more = i64::try_from(found.len()).is_ok_and(|count| count == PAGE);
        match found.last() {
            Some((last, _)) if more => self.page = Some((until, *last)),
            _ => (self.seen, self.page) = (Some(until), None),
        }
        Ok(Seen { entries: found.into_iter().filter_map(|(_, entry)| entry).collect(), more })
    }

    /// Up to which id all has been seen, now that the largest is `last_id`: what had settled when
    /// we last looked, however long ago that was.
    fn settled(&mut self, last_id: i64) -> i64 {
        // The table was made anew.
        if self.ids.back().is_some_and(|(_, id)| *id > last_id) {
            self.ids.clear();
        }
        let Some((last, _)) = self.ids.back().copied() else { return 0 };
        let is_settled = |(at, _): &(Instant, i64)| last.duration_since(*at) >= SETTLED;
        while self.ids.get(1).is_some_and(is_settled) {
            self.ids.pop_front();
        }
        self.ids.front().filter(|look| is_settled(look)).map_or(0, |(_, id)| *id)
    }

    fn select(
        &mut self,
        order: &str,
        seen: String,
        until: &str,
        after: i64,
        most: i64,
    ) -> Result<Vec<(i64, Option<Entry>)>, StoreError> {
        let (until, webhook, only_failures) = (until.to_owned(), self.webhook, self.only_failures);
        let account = self.account.clone();
        let asked = format!(
            "SELECT {ENTRY} FROM delivery_attempts
             WHERE id > $1
                 AND NOT pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
                 AND pg_visible_in_snapshot(tx, $3::text::pg_snapshot)
                 AND ($4 IS NULL OR webhook_id = $4)
                 AND (NOT $5 OR outcome NOT IN ('delivered', 'handed_over', 'unmatched'))
                 AND ($7 IS NULL OR account = $7)
             ORDER BY id {order} LIMIT $6"
        );
        let found = self.session.run(move |client| {
            let rows = client.query_typed(
                &asked,
                &[
                    (&after, Type::INT8),
                    (&seen, Type::TEXT),
                    (&until, Type::TEXT),
                    (&webhook, Type::UUID),
                    (&only_failures, Type::BOOL),
                    (&most, Type::INT8),
                    (&account, Type::TEXT),
                ],
            )?;
            rows.iter().map(|row| Ok((row.try_get("id")?, entry(row)?))).collect()
        });
        Ok(found?)
    }
}

/// What can be seen now, and the largest id.
fn look(client: &mut Client) -> Result<(String, i64), postgres::Error> {
    let asked =
        "SELECT pg_current_snapshot()::text, coalesce(max(id), 0)::bigint FROM delivery_attempts";
    // Not by `query`, which makes a prepared statement: a pooler may give the next step another session.
    let rows = client.query_typed(asked, &[])?;
    rows.first()
        .map_or_else(|| Ok((NOTHING.to_owned(), 0)), |row| Ok((row.try_get(0)?, row.try_get(1)?)))
}
