//! Creates and repairs the tables.
//!
//! Each file in `sql/` is applied once; together they lead from the original table to the tables of this
//! version. Somebody may drop a part of a table later. So `migrate` also checks which parts exist, and
//! restores those that are missing. It changes no row. If other migrations than this version knows were
//! applied to the database, it changes nothing at all.

use postgres::types::Type;
use postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Store, StoreError, explain};

mod migrations;
mod missing;
mod tables;

use migrations::{ACCOUNTS, MIGRATIONS, Migration};
use missing::{exists, missing_columns, missing_parts, restore};
use tables::{JOURNAL, TABLES};

pub use migrations::Differences;

/// How many of the affected webhooks are listed.
const MOST_NAMED: i64 = 5;

/// The advisory lock that each step of `migrate` holds, so that two can't collide: a number that no other
/// program should use.
const MIGRATION_LOCK: i64 = 0x7765_6268_6f6f_6b73;

/// What `migrate` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The migrations that were applied for the first time.
    pub applied: Vec<&'static str>,
    /// The parts that had existed, were missing, and were restored.
    pub restored: Vec<String>,
    /// The webhooks whose account was only a label until now; `None` if there are none.
    pub labelled: Option<Labelled>,
}

/// The webhooks whose account was only a label and now decides which events they get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// How many there are.
    pub count: u64,
    /// The ids of the first ones.
    pub named: Vec<Uuid>,
}

/// Why `migrate` failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MigrateError {
    /// A statement failed. The steps before it stay.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other migrations were applied to the database.
    #[error("nothing was changed: {0}")]
    Differing(Differences),
}

impl Store {
    /// Creates the tables, or the parts that are missing, and returns what was done.
    ///
    /// # Errors
    /// [`MigrateError`].
    pub fn migrate(&self) -> Result<Migrated, MigrateError> {
        let mut client = self.connect()?;
        let explained = |error: postgres::Error| explain(self.place(), &error);
        let differences = begin(&mut client).map_err(explained)?;
        if !differences.is_empty() {
            return Err(MigrateError::Differing(differences));
        }
        Ok(migrate(&mut client).map_err(explained)?)
    }

    /// How the migrations that were applied to the database differ from this version's. `run` doesn't need
    /// to know: an older version works on a newer one's tables.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn differing_migrations(&self) -> Result<Differences, StoreError> {
        self.query_once(|client| {
            let mut transaction = client.transaction()?;
            let applied = migrations::applied(&mut transaction)?;
            transaction.rollback()?;
            Ok(Differences::of(&applied))
        })
    }

    /// The missing parts of the tables, such as `column webhooks.secret`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn missing(&self) -> Result<Vec<String>, StoreError> {
        self.query_once(|client| {
            let mut transaction = client.transaction()?;
            let mut missing = Vec::new();
            for table in &TABLES {
                missing
                    .extend(missing_parts(&mut transaction, table)?.into_iter().map(|it| it.what));
            }
            transaction.rollback()?;
            Ok(missing)
        })
    }
}

/// Creates or completes the table of applied migrations, unless other ones were applied.
fn begin(client: &mut Client) -> Result<Differences, postgres::Error> {
    exclusively(client, |transaction| {
        let applied = migrations::applied(transaction)?;
        let differences = Differences::of(&applied);
        if !differences.is_empty() {
            return Ok(differences);
        }
        transaction.batch_execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (
                 version INTEGER PRIMARY KEY,
                 name TEXT NOT NULL,
                 applied_at TIMESTAMPTZ NOT NULL DEFAULT now(),
                 checksum TEXT
             )",
        )?;
        for lacking in missing_columns(transaction, &JOURNAL)? {
            transaction.batch_execute(&lacking.sql)?;
        }
        if applied.iter().any(|it| it.checksum.is_none()) {
            let count = migrations::add_checksums(transaction)?;
            log::info!(
                "recorded the checksums of {count} migrations that an older version had applied"
            );
        }
        Ok(differences)
    })
}

fn migrate(client: &mut Client) -> Result<Migrated, postgres::Error> {
    let mut migrated = Migrated::default();
    // Later migrations need the tables of earlier ones.
    for table in &TABLES {
        let restored = exclusively(client, |transaction| {
            let known = transaction.query_typed(
                "SELECT 1 FROM schema_migrations WHERE version = $1",
                &[(&table.version, Type::INT4)],
            )?;
            let is_lost = !known.is_empty() && !exists(transaction, table)?;
            if is_lost {
                transaction.batch_execute(migrations::creating(table))?;
            }
            Ok(is_lost)
        })?;
        if restored {
            migrated.restored.push(format!("table {}", table.name));
        }
    }
    for migration in &MIGRATIONS {
        if exclusively(client, |transaction| apply(transaction, migration))? {
            migrated.applied.push(migration.name);
        }
    }
    if migrated.applied.contains(&ACCOUNTS) {
        migrated.labelled = labelled(client)?;
    }
    for table in &TABLES {
        let restored = exclusively(client, |transaction| restore(transaction, table))?;
        // If a whole table was restored, its parts aren't listed too.
        let whole = format!("table {}", table.name);
        if !migrated.restored.contains(&whole) {
            migrated.restored.extend(restored);
        }
    }
    Ok(migrated)
}

/// Applies a migration if it wasn't applied before; returns whether it did.
fn apply(
    transaction: &mut Transaction<'_>,
    migration: &Migration,
) -> Result<bool, postgres::Error> {
    let Migration { version, name, sql } = migration;
    let recorded = transaction.execute_typed(
        "INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)
         ON CONFLICT DO NOTHING",
        &[(version, Type::INT4), (name, Type::TEXT), (&migration.checksum(), Type::TEXT)],
    )?;
    if recorded == 1 {
        transaction.batch_execute(sql)?;
    }
    Ok(recorded == 1)
}

fn labelled(client: &mut Client) -> Result<Option<Labelled>, postgres::Error> {
    let rows = client.query_typed(
        "SELECT (SELECT count(*) FROM webhooks WHERE account IS NOT NULL) AS count,
                ARRAY(SELECT id FROM webhooks WHERE account IS NOT NULL AND id IS NOT NULL
                      ORDER BY created_at, id LIMIT $1) AS named",
        &[(&MOST_NAMED, Type::INT8)],
    )?;
    let Some(row) = rows.first() else { return Ok(None) };
    let count: i64 = row.try_get("count")?;
    let count = u64::try_from(count).unwrap_or(0);
    Ok((count > 0).then_some(Labelled { count, named: row.try_get("named")? }))
}

/// Runs a step in a transaction, while no other `migrate` runs one. The lock ends with the transaction: a
/// pooler may run the next step in another session.
fn exclusively<T>(
    client: &mut Client,
    step: impl FnOnce(&mut Transaction<'_>) -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    let mut transaction = client.transaction()?;
    // To index a large table may take longer than our other statements may.
    transaction.batch_execute("SET LOCAL statement_timeout = 0")?;
    transaction
        .execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&MIGRATION_LOCK, Type::INT8)])?;
    let done = step(&mut transaction)?;
    transaction.commit()?;
    Ok(done)
}
