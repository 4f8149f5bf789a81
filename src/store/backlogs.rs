//! The table of backlogs: which backlogs exist, since when and why, and which are being removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use postgres::types::Type;
use postgres::{Client, Row};
use uuid::Uuid;

use super::{Parameter, Store, StoreError, bounded_by_timeout, connect, explain, no_answer};
use crate::domain::time::{UnixMillis, from_unix_millis, to_unix_millis};

/// How many rows are read at most: several times as many as notifiers create.
const MOST_ROWS: i64 = 10_000;

/// Fails if the table doesn't exist or may not be read.
pub(super) const PROBE: &str = "SELECT webhook_id FROM backlogs LIMIT 0";

/// The latest time that is written, in milliseconds since 1970: the end of the year 9999, which every
/// calendar can print.
const LAST_MILLIS: UnixMillis = 253_402_300_799_000;

/// Begins the removal of a backlog. Other statements hold the row's lock for some milliseconds, so three
/// seconds are enough, and less than a statement may take. The removal holds the lock while it deletes
/// the queue, which takes seconds at most. If the client is gone, the server releases the lock.
const BEGIN_REMOVAL: &str = "BEGIN; SET LOCAL lock_timeout = '3s';
     SET LOCAL idle_in_transaction_session_timeout = '1min'";

/// A row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogRow {
    /// The queue that its events were published to.
    pub queue: String,
    /// The webhook whose deliveries wait.
    pub webhook: Uuid,
    /// Since when deliveries have waited in it. Never in the future.
    pub since: SystemTime,
    /// Why they wait, as the instance that consumes it recorded it.
    pub cause: String,
    /// The receiver's class, as the same instance recorded it.
    pub class: String,
    /// The earliest end of the wait, if it is known.
    pub until: Option<SystemTime>,
    /// Whether its queue is about to be deleted, unless the backlog is opened again.
    pub is_closing: bool,
}

/// Whether a webhook gets its events now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Enabled,
    /// Its events wait until it is resumed.
    Paused,
    /// It gets no events. It may be paused too.
    Disabled,
}

/// Why a backlog wasn't removed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RemoveError<E> {
    /// PostgreSQL failed. If it failed at the end, the queue is deleted and the row may still exist.
    #[error("{0}")]
    Store(StoreError),
    /// The queue couldn't be deleted; the row is unchanged.
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
            // Anybody may have written the rows: texts are cut, and times limited to what a number can
            // express. (The broker's names have at most 255 bytes.)
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

    /// Records a backlog before its queue is declared, or reopens one that is closing. While its queue is
    /// being deleted, this waits, for as long as a statement may take, and holds a connection of the
    /// pool. If the backlog is open already, it keeps its `since`, and nobody is notified.
    ///
    /// # Errors
    /// [`StoreError`]. If its queue were created then, the other instances would not know of it.
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
            // The UPDATE comes first because it notifies nobody. An INSERT notifies even if it inserts nothing.
            let open = client.execute_typed(
                "UPDATE backlogs SET cause = $3, class = $4,
                     until = CASE WHEN cause = $3 THEN until END
                 WHERE queue = $1 AND webhook_id = $2 AND closing_at IS NULL",
                &parameters,
            )?;
            if open > 0 {
                return Ok(());
            }
            // On the right of SET, the columns of `backlogs` have their old values.
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

    /// Records why a backlog waits, and until when. Notifies nobody.
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

    /// Records that a backlog's deliveries have waited only since now, because it was empty before.
    /// Notifies nobody.
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

    /// Marks a backlog as closing; false if it doesn't exist.
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

    /// Deletes the row of a closing backlog together with its queue. An instance that opens the backlog
    /// meanwhile waits until both are gone. Returns false, and does nothing, if the backlog is no longer
    /// closing. Uses its own connection.
    ///
    /// `delete_queue` has to end within seconds. After a minute, or if the connection breaks, the lock
    /// is released, and others may use the queue that is about to be deleted.
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
            // If this fails, the end of the connection rolls back too.
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

    /// Ends a transaction and its connection, within the time of a query.
    fn end(&self, mut client: Client, how: &'static str) -> Result<(), StoreError> {
        let place = Arc::clone(self.place());
        let ended = bounded_by_timeout(&self.connector, move || {
            client.batch_execute(how).map_err(|error| explain(&place, &error))?;
            Ok(())
        });
        ended.unwrap_or_else(|| Err(no_answer(self.place())))
    }

    /// The ids of all webhooks, up to a limit.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn webhook_ids(&self) -> Result<Vec<Uuid>, StoreError> {
        self.query(|client| {
            let rows = client.query_typed("SELECT id FROM webhooks LIMIT 100000", &[])?;
            rows.iter().map(|row| row.try_get("id")).collect()
        })
    }

    /// Whether these webhooks get their events. Deleted ones are missing in the result.
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

/// A time that every calendar can print.
fn millis(time: SystemTime) -> UnixMillis {
    to_unix_millis(time).min(LAST_MILLIS)
}

fn time(millis: UnixMillis) -> SystemTime {
    from_unix_millis(millis.min(LAST_MILLIS))
}
