//! Queries of the commands: a webhook's report, and ids that begin with a text.

use std::collections::BTreeMap;

use postgres::Row;
use postgres::types::Type;
use uuid::Uuid;

use super::super::time::unix_millis;
use super::super::{Store, StoreError};
use super::{entry, entry_columns};
use crate::domain::delivery_log::report::{CountedEntry, WebhookReport};
use crate::domain::delivery_log::{LogEntry, What};
use crate::domain::time::UnixMillis;

/// The most entries of a webhook that a report reads. They take some seconds; older ones are left out.
pub const MOST_MARKS: usize = 200_000;

/// A report of a webhook, and the entries that it refers to.
#[derive(Debug)]
pub struct Reported {
    /// The report.
    pub report: WebhookReport,
    /// The entries by id.
    pub entries: BTreeMap<i64, LogEntry>,
    /// Whether older entries of the period were left out.
    pub truncated: bool,
}

impl Store {
    /// The report of a webhook's deliveries since a time, from at most [`MOST_MARKS`] entries.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn report(&self, webhook: Uuid, since: UnixMillis) -> Result<Reported, StoreError> {
        let most = i64::try_from(MOST_MARKS).unwrap_or(i64::MAX);
        self.query_once(move |client| {
            // The report counts by a few small columns. Only the entries that it shows are then read
            // completely.
            let newest = format!(
                "SELECT id, {} AS at, left(event_id, 255) AS event_id, left(outcome, 64) AS outcome,
                     status, left(reason, 1024) AS reason, ms, left(dead, 1024) AS dead
                 FROM (SELECT * FROM delivery_attempts
                       WHERE webhook_id = $1 AND at >= to_timestamp($2 / 1000.0)
                       ORDER BY delivery_attempts.at DESC LIMIT $3) AS newest
                 ORDER BY newest.at, id",
                unix_millis("at")
            );
            let rows = client.query_typed(
                &newest,
                &[(&webhook, Type::UUID), (&since, Type::INT8), (&most, Type::INT8)],
            )?;
            let marks = rows.iter().filter_map(|row| mark(row).transpose());
            let report = WebhookReport::of(marks.collect::<Result<Vec<_>, postgres::Error>>()?);
            let ids: Vec<i64> = report.entries().collect();
            let columns = entry_columns();
            let asked = format!("SELECT {columns} FROM delivery_attempts WHERE id = ANY($1)");
            let rows_of_ids = client.query_typed(&asked, &[(&ids, Type::INT8_ARRAY)])?;
            let mut entries = BTreeMap::new();
            for row in &rows_of_ids {
                if let Some(entry) = entry(row)? {
                    entries.insert(row.try_get("id")?, entry);
                }
            }
            Ok(Reported { report, entries, truncated: rows.len() >= MOST_MARKS })
        })
    }

    /// How many deliveries of a webhook wait for their next attempt in the wait queues, which all
    /// webhooks share, according to its newest [`MOST_MARKS`] entries.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn waiting_for_attempt(&self, webhook: Uuid) -> Result<u64, StoreError> {
        let most = i64::try_from(MOST_MARKS).unwrap_or(i64::MAX);
        let count: i64 = self.query_once(move |client| {
            let rows = client.query_typed(
                "SELECT count(DISTINCT event_id) FROM (
                     SELECT event_id, next_attempt_at FROM delivery_attempts
                     WHERE webhook_id = $1 ORDER BY at DESC LIMIT $2
                 ) AS newest WHERE next_attempt_at > now()",
                &[(&webhook, Type::UUID), (&most, Type::INT8)],
            )?;
            rows.first().map_or(Ok(0), |row| row.try_get(0))
        })?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The ids of at most `most` events in the log that begin with this text.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn events_beginning(&self, with: &str, most: i64) -> Result<Vec<String>, StoreError> {
        // Escapes the characters that are special in LIKE.
        let escaped: String = with
            .chars()
            .flat_map(|c| matches!(c, '\\' | '%' | '_').then_some('\\').into_iter().chain([c]))
            .collect();
        let pattern = format!("{escaped}%");
        self.query_once(move |client| {
            // By the index it goes from each id to the next, however many entries each id has.
            let rows = client.query_typed(
                "WITH RECURSIVE ids (event_id) AS (
                     (SELECT event_id FROM delivery_attempts WHERE event_id LIKE $1
                      ORDER BY event_id USING ~<~ LIMIT 1)
                     UNION ALL
                     SELECT (SELECT next.event_id FROM delivery_attempts AS next
                             WHERE next.event_id LIKE $1 AND next.event_id ~>~ ids.event_id
                             ORDER BY next.event_id USING ~<~ LIMIT 1)
                     FROM ids WHERE ids.event_id IS NOT NULL
                 )
                 SELECT left(event_id, 255) FROM ids WHERE event_id IS NOT NULL LIMIT $2",
                &[(&pattern, Type::TEXT), (&most, Type::INT8)],
            )?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
    }

    /// At most `most` ids of webhooks in this range: of registered webhooks, and with `logged` also of those
    /// in the log.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn webhooks_between(
        &self,
        first: Uuid,
        last: Uuid,
        most: i64,
        logged: bool,
    ) -> Result<Vec<Uuid>, StoreError> {
        const OF_LOG: &str = "UNION (
            WITH RECURSIVE ids (id) AS (
                (SELECT webhook_id FROM delivery_attempts WHERE webhook_id BETWEEN $1 AND $2
                 ORDER BY webhook_id LIMIT 1)
                UNION ALL
                SELECT (SELECT next.webhook_id FROM delivery_attempts AS next
                        WHERE next.webhook_id > ids.id AND next.webhook_id <= $2
                        ORDER BY next.webhook_id LIMIT 1)
                FROM ids WHERE ids.id IS NOT NULL
            )
            SELECT id FROM ids WHERE id IS NOT NULL LIMIT $3)";
        let of_log = if logged { OF_LOG } else { "" };
        let asked = format!(
            "SELECT id FROM (
                 (SELECT id FROM webhooks WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT $3) {of_log}
             ) AS found ORDER BY id LIMIT $3"
        );
        self.query_once(move |client| {
            let rows = client.query_typed(
                &asked,
                &[(&first, Type::UUID), (&last, Type::UUID), (&most, Type::INT8)],
            )?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })
    }

    /// Whether the first `characters` of their ids distinguish all registered webhooks.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn webhooks_differ_within(&self, characters: i32) -> Result<bool, StoreError> {
        self.query_once(move |client| {
            let rows = client.query_typed(
                "SELECT count(*) = count(DISTINCT left(id::text, $1)) FROM webhooks",
                &[(&characters, Type::INT4)],
            )?;
            rows.first().map_or(Ok(true), |row| row.try_get(0))
        })
    }
}

/// `None` for an outcome of a later version.
fn mark(row: &Row) -> Result<Option<CountedEntry>, postgres::Error> {
    let Some(what) = What::of_label(row.try_get("outcome")?) else { return Ok(None) };
    let status: Option<i32> = row.try_get("status")?;
    let ms: Option<i64> = row.try_get("ms")?;
    Ok(Some(CountedEntry {
        id: row.try_get("id")?,
        at: row.try_get("at")?,
        event_id: row.try_get("event_id")?,
        what,
        status: status.and_then(|status| u16::try_from(status).ok()),
        reason: row.try_get("reason")?,
        ms: ms.and_then(|ms| u64::try_from(ms).ok()),
        dead: row.try_get("dead")?,
    }))
}
