//! The table of instances. Each updates its row every few seconds, which shows that it is alive.

use std::time::Duration;

use postgres::types::Type;
use postgres::{Client, Row};
use uuid::Uuid;

use super::listen::INSTANCES_CHANNEL;
use super::{Parameter, Store, StoreError};
use crate::domain::instances::InstanceRecord;

/// How many rows are read at most: far more instances than anybody runs.
const MOST_ROWS: i64 = 1_000;

/// The row's next number. Somebody may have written the largest one, after which it starts at 0.
const NEXT_BEAT: &str = "CASE WHEN beats < 9223372036854775807 THEN beats + 1 ELSE 0 END";

/// The table's identity as notifications contain it.
pub(super) const INSTANCES: &str = "to_regclass('notifier_instances')::oid::text";

/// Commands don't show an instance whose row wasn't updated for this long.
const SHOWN_FOR: Duration = Duration::from_secs(30);

impl Store {
    /// Records that an instance is alive and which queues it serves, and returns all rows. With `is_first`
    /// it has just started: a row of the same name is from a process that has ended, and is deleted. With
    /// `is_change` it serves other queues than before, and the other instances are notified.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn beat(
        &self,
        me: &InstanceRecord,
        is_first: bool,
        is_change: bool,
    ) -> Result<Vec<InstanceRecord>, StoreError> {
        let me = me.clone();
        self.query(move |client| {
            let queues: Vec<&String> = me.queues.iter().collect();
            let parameters: [Parameter<'_>; 3] =
                [(&me.id, Type::UUID), (&queues, Type::TEXT_ARRAY), (&me.name, Type::TEXT)];
            let alive = client.execute_typed(
                &format!(
                    "UPDATE notifier_instances
                     SET beats = {NEXT_BEAT}, seen_at = now(), queues = $2 WHERE id = $1"
                ),
                &parameters[..2],
            )?;
            if alive == 0 {
                client.execute_typed(
                    "INSERT INTO notifier_instances (id, queues, name) VALUES ($1, $2, $3)
                     ON CONFLICT (id) DO UPDATE SET queues = $2",
                    &parameters,
                )?;
                if is_first {
                    client.execute_typed(
                        "DELETE FROM notifier_instances WHERE name = $2 AND id <> $1",
                        &[(&me.id, Type::UUID), (&me.name, Type::TEXT)],
                    )?;
                }
            }
            if alive == 0 || is_change {
                notify(client)?;
            }
            read(client, "true")
        })
    }

    /// The rows of all instances, dead ones included.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn instances(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        self.query(|client| read(client, "true"))
    }

    /// Deletes the rows of instances that have stopped or are dead, unless they were updated meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn forget_instances(&self, gone: &[(Uuid, Option<i64>)]) -> Result<(), StoreError> {
        let gone = gone.to_vec();
        self.query(move |client| {
            let mut count = 0;
            for (id, beats) in &gone {
                count += client.execute_typed(
                    "DELETE FROM notifier_instances WHERE id = $1 AND beats = coalesce($2, beats)",
                    &[(id, Type::UUID), (beats, Type::INT8)],
                )?;
            }
            if count > 0 { notify(client) } else { Ok(()) }
        })
    }

    /// The instances that are alive, for commands to show; none if the table doesn't exist or may not be
    /// read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn instances_alive(&self) -> Result<Vec<InstanceRecord>, StoreError> {
        let seconds = SHOWN_FOR.as_secs();
        self.query(move |client| {
            let may_be_read =
                "SELECT 1 WHERE has_table_privilege(to_regclass('notifier_instances'), 'SELECT')";
            if client.query_typed(may_be_read, &[])?.is_empty() {
                return Ok(Vec::new());
            }
            read(client, &format!("seen_at > now() - interval '{seconds} s'"))
        })
    }
}

fn read(client: &mut Client, which: &str) -> Result<Vec<InstanceRecord>, postgres::Error> {
    // Anybody may have written the rows, so texts are cut.
    let entries = format!(
        "SELECT id, coalesce(left(name, 255), '') AS name, coalesce(beats, 0) AS beats,
             ARRAY(SELECT left(queue, 255) FROM unnest(queues) AS queue
                   WHERE queue IS NOT NULL LIMIT 1000) AS queues
         FROM notifier_instances WHERE id IS NOT NULL AND {which}
         ORDER BY seen_at DESC, id LIMIT {MOST_ROWS}"
    );
    let rows = client.query_typed(&entries, &[])?;
    rows.iter().map(entry).collect()
}

fn entry(row: &Row) -> Result<InstanceRecord, postgres::Error> {
    let queues: Vec<String> = row.try_get("queues")?;
    Ok(InstanceRecord {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        queues: queues.into_iter().collect(),
        beats: row.try_get("beats")?,
    })
}

fn notify(client: &mut Client) -> Result<(), postgres::Error> {
    let statement = format!("SELECT pg_notify($1, {INSTANCES})");
    client.query_typed(&statement, &[(&INSTANCES_CHANNEL, Type::TEXT)]).map(drop)
}

/// The statements of `run` on this table, so written that they affect no row: for
/// [`Store::missing_rights`].
pub(super) const STATEMENTS: &str = "INSERT INTO notifier_instances (id, name, queues)
     SELECT NULL::uuid, '', '{}' WHERE false
     ON CONFLICT (id) DO UPDATE SET queues = '{}';
     UPDATE notifier_instances SET beats = beats + 1, seen_at = now(), queues = '{}'
     WHERE id IS NULL AND false;
     DELETE FROM notifier_instances WHERE name = '' AND false";
