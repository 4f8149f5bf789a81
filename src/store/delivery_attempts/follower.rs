//! Reads the log's new entries as they are written.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::types::Type;
use uuid::Uuid;

use super::super::session::Session;
use super::super::{Store, StoreError};
use super::{entry, entry_columns};
use crate::domain::delivery_log::LogEntry;

/// The most entries that [`Follower::next`] returns.
const PAGE: i64 = 1_000;

/// How far back, in entries, the first call searches for matching entries, and the later ones for those
/// that were being written then. This is more than are written within [`SETTLED`]. (The entries of one
/// webhook have an index.)
const LOOK_BACK: i64 = 100_000;

/// An entry that was being written this long ago is visible by now, or never will be. This is several
/// times [`STATEMENT_TIMEOUT`](super::super::STATEMENT_TIMEOUT), because a commit may wait for a standby.
const SETTLED: Duration = Duration::from_secs(15);

/// A snapshot in which no transaction is visible.
const NOTHING: &str = "1:1:";

/// Returns each entry once, soon after any instance has written it.
///
/// Ids are assigned before the commit, so a smaller id may become visible after a larger one. Therefore
/// PostgreSQL's snapshots decide: an entry is new if its transaction is visible in the current snapshot and
/// wasn't in the previous one. Ids only limit the search.
#[derive(Debug)]
pub struct Follower {
    session: Session,
    webhook: Option<Uuid>,
    account: Option<String>,
    only_failures: bool,
    /// The snapshot whose entries have been returned.
    seen: Option<String>,
    /// While a snapshot is read page by page: the snapshot, and the last id that was returned.
    page: Option<(String, i64)>,
    /// All entries up to this id were visible at the first call.
    floor: i64,
    /// The largest ids at recent snapshots, with their times. The first is the latest snapshot that had
    /// settled at the time of the last.
    ids: VecDeque<(Instant, i64)>,
}

/// New entries from [`Follower::next`].
#[derive(Debug)]
pub struct NewEntries {
    /// In the order of their ids.
    pub entries: Vec<LogEntry>,
    /// Whether more may be available at once.
    pub more: bool,
}

impl Follower {
    /// Follows all webhooks or one, all events or those of one account, and everything or only failures.
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
            floor: 0,
            ids: VecDeque::new(),
        }
    }

    /// The new entries since the last call; at the first call, the last `lines` entries.
    ///
    /// # Errors
    /// [`StoreError`]. The next call misses nothing.
    pub fn next(&mut self, lines: u32) -> Result<NewEntries, StoreError> {
        let (until, after) = match self.page.clone() {
            Some(page) => page,
            None => {
                let (until, last_id) = self.session.run(current_snapshot)?;
                if self.seen.is_none() {
                    self.floor = last_id.saturating_sub(LOOK_BACK);
                }
                let after = self.settled(last_id);
                self.ids.push_back((Instant::now(), last_id));
                (until, after)
            }
        };
        let Some(seen) = self.seen.clone() else {
            // The index of one webhook's entries orders them by time.
            let (order, after) = match self.webhook {
                Some(_) => ("delivery_attempts.at DESC", 0),
                None => ("id DESC", self.floor),
            };
            let newest = self.select(order, NOTHING.to_owned(), &until, after, lines.into())?;
            self.seen = Some(until);
            let entries = newest.into_iter().rev().filter_map(|(_, entry)| entry);
            return Ok(NewEntries { entries: entries.collect(), more: false });
        };
        let found = self.select("id", seen, &until, after, PAGE)?;
        let more = i64::try_from(found.len()).is_ok_and(|count| count == PAGE);
        match found.last() {
            Some((last, _)) if more => self.page = Some((until, *last)),
            _ => (self.seen, self.page) = (Some(until), None),
        }
        Ok(NewEntries { entries: found.into_iter().filter_map(|(_, entry)| entry).collect(), more })
    }

    /// The id up to which all entries have been returned, given the largest id now: those that had settled at
    /// the last snapshot, however long ago that was.
    fn settled(&mut self, last_id: i64) -> i64 {
        // Somebody has created the table anew.
        if self.ids.back().is_some_and(|(_, id)| *id > last_id) {
            self.ids.clear();
            self.floor = 0;
        }
        let Some((last, _)) = self.ids.back().copied() else { return self.floor };
        let is_settled = |(at, _): &(Instant, i64)| last.duration_since(*at) >= SETTLED;
        while self.ids.get(1).is_some_and(is_settled) {
            self.ids.pop_front();
        }
        self.ids.front().filter(|first| is_settled(first)).map_or(self.floor, |(_, id)| *id)
    }

    fn select(
        &mut self,
        order: &str,
        seen: String,
        until: &str,
        after: i64,
        most: i64,
    ) -> Result<Vec<(i64, Option<LogEntry>)>, StoreError> {
        let (until, webhook, only_failures) = (until.to_owned(), self.webhook, self.only_failures);
        let account = self.account.clone();
        let asked = format!(
            "SELECT {} FROM delivery_attempts
             WHERE id > $1
                 AND ($4 IS NULL OR webhook_id = $4)
                 AND NOT pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
                 AND pg_visible_in_snapshot(tx, $3::text::pg_snapshot)
                 AND (NOT $5 OR outcome NOT IN ('delivered', 'handed_over', 'unmatched'))
                 AND ($7 IS NULL OR account = $7)
             ORDER BY {order} LIMIT $6",
            entry_columns()
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

/// The snapshot of what is visible now, and the largest id.
fn current_snapshot(client: &mut Client) -> Result<(String, i64), postgres::Error> {
    let asked =
        "SELECT pg_current_snapshot()::text, coalesce(max(id), 0)::bigint FROM delivery_attempts";
    // Not with `query`: it prepares a statement, and a pooler may run the next step in another session.
    let rows = client.query_typed(asked, &[])?;
    rows.first()
        .map_or_else(|| Ok((NOTHING.to_owned(), 0)), |row| Ok((row.try_get(0)?, row.try_get(1)?)))
}
