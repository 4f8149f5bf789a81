//! The table of backlogs: which there are, since when and why, and whether one is being removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use postgres::types::Type;
use postgres::{Client, Row};
use uuid::Uuid;

use super::{Parameter, Store, StoreError, bounded_by_timeout, connect, explain, no_answer};
use crate::domain::time::{UnixMillis, from_unix_millis, to_unix_millis};

/// How many rows are read: several times as many as notifiers make.
const MOST_ROWS: i64 = 10_000;

/// Whether the table is there and may be read.
pub(super) const LOOK: &str = "SELECT webhook_id FROM backlogs LIMIT 0";

/// The last moment that is written, in milliseconds since 1970: the end of the year 9999, which every
/// calendar can print.
const LAST_MILLIS: UnixMillis = 253_402_300_799_000;

/// What begins the removal of a backlog. Another statement holds the lock for some milliseconds, so
/// three seconds are enough, and less than the statement may take. Whoever holds the row's lock deletes
/// a queue meanwhile, which takes seconds at most; the server takes the lock from one that is gone.
const BEGIN_REMOVAL: &str = "BEGIN; SET LOCAL lock_timeout = '3s';
     SET LOCAL idle_in_transaction_session_timeout = '1min'";

/// A backlog, as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogRow {
    /// The queue that its events were published to.
    pub queue: String,
    /// Whose deliveries wait.
    pub webhook: Uuid,
    /// Since when they do. Never in the future.
    pub since: SystemTime,
    /// Why, as its owner wrote it.
    pub cause: String,
    /// How quick the receiver was, as its owner wrote it.
    pub class: String,
    /// Until when they wait at least, where that is known.
    pub until: Option<SystemTime>,
    /// Whether somebody is about to delete the queue, unless it is opened again.
    pub is_closing: bool,
}

/// Whether a webhook gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Enabled,
    /// They wait until it is resumed.
    Paused,
    /// It gets none. It may be paused, too.
    Disabled,
}

/// Why a backlog was not removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoveError<E> {
    /// PostgreSQL failed. Where it failed in the end, the queue is deleted and its row may be there.
    #[error("{0}")]
    Store(StoreError),
    /// The queue could not be deleted: the row is as it was.
    #[error("{0}")]
    Queue(E),
}

impl Store {
    /// All backlogs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn backlogs(&self) -> Result<Vec<BacklogRow>, StoreError> {
        self.query(|client| {
            // Anybody may have written them: bounded, and times that a number can say. (The broker's
            // names have 255 bytes at most.)
            let rows = client.query_typed(
                "SELECT left(queue, 255) AS queue, webhook_id,
                     coalesce(left(cause, 255), '') AS cause,
                     coalesce(left(class, 255), '') AS class, closing_at IS NOT NULL AS is_closing,
                     (extract(epoch FROM greatest(least(since, now()), 'epoch')) * 1000)::bigint
                         AS since,
                     CASE WHEN isfinite(until) THEN (extract(epoch FROM until) * 1000)::bigint
                     END AS until
                 FROM backlogs WHERE queue IS NOT NULL AND webhook_id IS NOT NULL
                 ORDER BY backlogs.queue, webhook_id LIMIT $1",
                &[(&MOST_ROWS, Type::INT8)],
            )?;
            rows.iter().map(backlog).collect()
        })
    }

    /// Writes that a backlog is there, before its queue is declared; or opens one again that is
    /// closing. Where its queue is being deleted just now, this waits until it is gone, for as long as a
    /// statement may take, and holds a connection of the pool. A backlog that is open already keeps its
    /// `since`, and tells nobody.
    ///
    /// # Errors
    /// [`StoreError`]; nobody would know of a queue that is made then.
    pub fn open_backlog(
        &self,
        queue: &str,
        webhook: Uuid,
        cause: &str,
        class: &str,
    ) -> Result<(), StoreError> {
        let [queue, cause, class] = [queue, cause, class].map(str::to_owned);
        self.query(move |client| {
            let parameters: [Parameter<'_>; 4] = [
                (&queue, Type::TEXT),
                (&webhook, Type::UUID),
                (&cause, Type::TEXT),
                (&class, Type::TEXT),
            ];
            // First this, which tells nobody: an INSERT would, also where it inserts nothing.
            let open = client.execute_typed(
                "UPDATE backlogs SET cause = $3, class = $4,
                     until = CASE WHEN cause = $3 THEN until END
                 WHERE queue = $1 AND webhook_id = $2 AND closing_at IS NULL",
                &parameters,
            )?;
            if open > 0 {
                return Ok(());
            }
            // The columns of `backlogs` are those of before.
            let opened = client.execute_typed(
                "INSERT INTO backlogs (queue, webhook_id, cause, class) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (queue, webhook_id) DO UPDATE
                 SET cause = excluded.cause, class = excluded.class, closing_at = NULL,
                     since = CASE WHEN backlogs.closing_at IS NULL THEN backlogs.since
                                  ELSE now() END,
                     until = CASE WHEN backlogs.closing_at IS NULL
                                       AND backlogs.cause = excluded.cause
                                  THEN backlogs.until END",
                &parameters,
            );
            opened.map(drop)
        })
    }

    /// Writes why a backlog waits, and until when. Tells nobody.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn note_backlog(
        &self,
        queue: &str,
        webhook: Uuid,
        cause: &str,
        class: &str,
        until: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        let [queue, cause, class] = [queue, cause, class].map(str::to_owned);
        let until = until.map(millis);
        self.query(move |client| {
            let noted = client.execute_typed(
                "UPDATE backlogs SET cause = $3, class = $4, until = to_timestamp($5 / 1000.0)
                 WHERE queue = $1 AND webhook_id = $2",
                &[
                    (&queue, Type::TEXT),
                    (&webhook, Type::UUID),
                    (&cause, Type::TEXT),
                    (&class, Type::TEXT),
                    (&until, Type::INT8),
                ],
            );
            noted.map(drop)
        })
    }

    /// Writes that what waits in a backlog waits since now: it was empty before. Tells nobody.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn restart_backlog(&self, queue: &str, webhook: Uuid) -> Result<(), StoreError> {
        let queue = queue.to_owned();
        self.query(move |client| {
            let restarted = client.execute_typed(
                "UPDATE backlogs SET since = now() WHERE queue = $1 AND webhook_id = $2",
                &[(&queue, Type::TEXT), (&webhook, Type::UUID)],
            );
            restarted.map(drop)
        })
    }

    /// Marks a backlog as closing; false if there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn close_backlog(&self, queue: &str, webhook: Uuid) -> Result<bool, StoreError> {
        let queue = queue.to_owned();
        self.query(move |client| {
            let closing = client.execute_typed(
                "UPDATE backlogs SET closing_at = coalesce(closing_at, now())
                 WHERE queue = $1 AND webhook_id = $2",
                &[(&queue, Type::TEXT), (&webhook, Type::UUID)],
            )?;
            Ok(closing > 0)
        })
    }

    /// Deletes the row of a backlog that is closing, together with its queue: whoever opens it again
    /// meanwhile waits until both are gone. False if it isn't closing any more; then nothing is done.
    /// On a connection of its own.
    ///
    /// `delete_queue` has to end within seconds. After a minute, or when the connection breaks, the lock
    /// is free, and others may use the queue that it is about to delete.
    ///
    /// # Errors
    /// [`RemoveError`].
    pub fn remove_backlog<E>(
        &self,
        queue: &str,
        webhook: Uuid,
        delete_queue: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, RemoveError<E>> {
        let (connector, queue) = (self.connector.clone(), queue.to_owned());
        let begun = bounded_by_timeout(&self.connector, move || {
            let mut client = connect(&connector)?;
            let mut delete = || {
                client.batch_execute(BEGIN_REMOVAL)?;
                client.execute_typed(
                    "DELETE FROM backlogs
                     WHERE queue = $1 AND webhook_id = $2 AND closing_at IS NOT NULL",
                    &[(&queue, Type::TEXT), (&webhook, Type::UUID)],
                )
            };
            let deleted = delete().map_err(|error| explain(connector.place(), &error))?;
            Ok((client, deleted > 0))
        });
        let (client, is_closing) =
            begun.unwrap_or_else(|| Err(no_answer(self.place()))).map_err(RemoveError::Store)?;
        if !is_closing {
            // Nothing hangs on how this ends.
            let _ = self.end(client, "ROLLBACK");
            return Ok(false);
        }
        if let Err(error) = delete_queue() {
            let _ = self.end(client, "ROLLBACK");
            return Err(RemoveError::Queue(error));
        }
        self.end(client, "COMMIT").map_err(RemoveError::Store)?;
        Ok(true)
    }

    /// Ends a transaction and the connection, which may take as long as to ask.
    fn end(&self, mut client: Client, how: &'static str) -> Result<(), StoreError> {
        let place = Arc::clone(self.place());
        let ended = bounded_by_timeout(&self.connector, move || {
            client.batch_execute(how).map_err(|error| explain(&place, &error))?;
            Ok(())
        });
        ended.unwrap_or_else(|| Err(no_answer(self.place())))
    }

    /// The ids of all webhooks, bounded.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn webhook_ids(&self) -> Result<Vec<Uuid>, StoreError> {
        self.query(|client| {
            let rows = client.query_typed("SELECT id FROM webhooks LIMIT 100000", &[])?;
            rows.iter().map(|row| row.try_get("id")).collect()
        })
    }

    /// Whether these webhooks get their events. Those that are missing in the answer are deleted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn standings(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Standing>, StoreError> {
        let ids = ids.to_vec();
        self.query(move |client| {
            let rows = client.query_typed(
                "SELECT id, disabled_at IS NOT NULL AS is_disabled,
                     paused_at IS NOT NULL AS is_paused
                 FROM webhooks WHERE id = ANY($1)",
                &[(&ids, Type::UUID_ARRAY)],
            )?;
            let standing = |row: &Row| {
                let standing = match (row.try_get("is_disabled")?, row.try_get("is_paused")?) {
                    (true, _) => Standing::Disabled,
                    (false, true) => Standing::Paused,
                    (false, false) => Standing::Enabled,
                };
                Ok((row.try_get("id")?, standing))
            };
            rows.iter().map(standing).collect()
        })
    }
}

fn backlog(row: &Row) -> Result<BacklogRow, postgres::Error> {
    let until: Option<i64> = row.try_get("until")?;
    Ok(BacklogRow {
        queue: row.try_get("queue")?,
        webhook: row.try_get("webhook_id")?,
        since: time(row.try_get("since")?),
        cause: row.try_get("cause")?,
        class: row.try_get("class")?,
        until: until.map(time),
        is_closing: row.try_get("is_closing")?,
    })
}

/// Within the calendar, whatever it is.
fn millis(time: SystemTime) -> UnixMillis {
    to_unix_millis(time).min(LAST_MILLIS)
}

fn time(millis: UnixMillis) -> SystemTime {
    from_unix_millis(millis.min(LAST_MILLIS))
}
