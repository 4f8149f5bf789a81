//! Follows the log as it is written.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use postgres::Client;
use postgres::types::Type;
use uuid::Uuid;

use super::super::session::Session;
use super::super::{Store, StoreError};
use super::{ENTRY, entry};
use crate::domain::delivery_log::LogEntry;

/// The most entries that [`Follower::next`] returns.
const PAGE: i64 = 1_000;

/// How many entries back the first matching ones are searched for, and those that were being written at
/// the first look; more than are written during [`SETTLED`]. (Entries of one webhook have an index.)
const LOOK_BACK: i64 = 100_000;

/// What was being written this long ago is visible by now, or never will be: several times
/// [`STATEMENT_TIMEOUT`](super::super::STATEMENT_TIMEOUT), because a commit may wait for a standby.
const SETTLED: Duration = Duration::from_secs(15);

/// A snapshot in which nothing is visible.
const NOTHING: &str = "1:1:";

/// Returns each entry once, as it is written by any instance.
///
/// Ids are assigned before the commit, so a smaller id may become visible after a larger one.
/// PostgreSQL's snapshots tell what has been seen: an entry is new if its transaction wasn't complete at
/// the last look and is now. Ids only limit the search.
#[derive(Debug)]
pub struct Follower {
    session: Session,
    webhook: Option<Uuid>,
    account: Option<String>,
    only_failures: bool,
    /// What has been seen, as a snapshot.
    seen: Option<String>,
    /// What is being read page by page: the snapshot, and the last id.
    page: Option<(String, i64)>,
    /// Up to this id, everything from before the first look is visible.
    floor: i64,
    /// The largest ids at recent looks, with their times; the first look was long enough before the last
    /// one.
    ids: VecDeque<(Instant, i64)>,
}

/// Entries from [`Follower::next`].
#[derive(Debug)]
pub struct Seen {
    /// In the order of their ids.
    pub entries: Vec<LogEntry>,
    /// Whether there may be more already.
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
    pub fn next(&mut self, lines: u32) -> Result<Seen, StoreError> {
        let (until, after) = match self.page.clone() {
            Some(page) => page,
            None => {
                let (until, last_id) = self.session.run(look)?;
                if self.seen.is_none() {
                    self.floor = last_id.saturating_sub(LOOK_BACK);
                }
                let after = self.settled(last_id);
                self.ids.push_back((Instant::now(), last_id));
                (until, after)
            }
        };
        let Some(seen) = self.seen.clone() else {
            // By its index, which orders the webhook's entries by time.
            let (order, after) = match self.webhook {
                Some(_) => ("delivery_attempts.at DESC", 0),
                None => ("id DESC", self.floor),
            };
            let newest = self.select(order, NOTHING.to_owned(), &until, after, lines.into())?;
            self.seen = Some(until);
            let entries = newest.into_iter().rev().filter_map(|(_, entry)| entry);
            return Ok(Seen { entries: entries.collect(), more: false });
        };
        let found = self.select("id", seen, &until, after, PAGE)?;
        let more = i64::try_from(found.len()).is_ok_and(|count| count == PAGE);
        match found.last() {
            Some((last, _)) if more => self.page = Some((until, *last)),
            _ => (self.seen, self.page) = (Some(until), None),
        }
        Ok(Seen { entries: found.into_iter().filter_map(|(_, entry)| entry).collect(), more })
    }

    /// Up to which id everything has been seen, given the largest id: what had settled at the last look,
    /// however long ago that was.
    fn settled(&mut self, last_id: i64) -> i64 {
        // The table was created anew.
        if self.ids.back().is_some_and(|(_, id)| *id > last_id) {
            self.ids.clear();
            self.floor = 0;
        }
        let Some((last, _)) = self.ids.back().copied() else { return self.floor };
        let is_settled = |(at, _): &(Instant, i64)| last.duration_since(*at) >= SETTLED;
        while self.ids.get(1).is_some_and(is_settled) {
            self.ids.pop_front();
        }
        self.ids.front().filter(|look| is_settled(look)).map_or(self.floor, |(_, id)| *id)
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
            "SELECT {ENTRY} FROM delivery_attempts
             WHERE id > $1
                 AND ($4 IS NULL OR webhook_id = $4)
                 AND NOT pg_visible_in_snapshot(tx, $2::text::pg_snapshot)
                 AND pg_visible_in_snapshot(tx, $3::text::pg_snapshot)
                 AND (NOT $5 OR outcome NOT IN ('delivered', 'handed_over', 'unmatched'))
                 AND ($7 IS NULL OR account = $7)
             ORDER BY {order} LIMIT $6"
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

/// What is visible now, and the largest id.
fn look(client: &mut Client) -> Result<(String, i64), postgres::Error> {
    let asked =
        "SELECT pg_current_snapshot()::text, coalesce(max(id), 0)::bigint FROM delivery_attempts";
    // Not with `query`, which prepares a statement: a pooler may give the next step another session.
    let rows = client.query_typed(asked, &[])?;
    rows.first()
        .map_or_else(|| Ok((NOTHING.to_owned(), 0)), |row| Ok((row.try_get(0)?, row.try_get(1)?)))
}
