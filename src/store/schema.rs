//! The tables: how they are created, and which parts exist.
//!
//! The files in `sql/` lead from the original table to those of this version, each once. Somebody may
//! drop a part of them later; so `migrate` looks at what is there, too, and not only at its list, and
//! puts back what is missing. It touches no row, and nothing at all where the database has had other
//! migrations than this version knows.

use postgres::types::Type;
use postgres::{Client, Transaction};
use uuid::Uuid;

use super::{Store, StoreError, explain};

mod migrations;
mod missing;
mod tables;

use migrations::{ACCOUNTS, MIGRATIONS, Migration};
use missing::{is_there, look, missing_columns, restore};
use tables::{JOURNAL, TABLES};

pub use migrations::Differences;

/// How many of the affected webhooks are named.
const MOST_NAMED: i64 = 5;

/// An arbitrary number that no other program uses for locks. Held during each step of `migrate`, so that
/// two don't collide.
const MIGRATION_LOCK: i64 = 0x7765_6268_6f6f_6b73;

/// What `migrate` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The migrations that were applied for the first time.
    pub applied: Vec<&'static str>,
    /// What had existed before and was missing.
    pub restored: Vec<String>,
    /// The webhooks whose account was only a label until now; `None` if there are none.
    pub labelled: Option<Labelled>,
}

/// Webhooks whose account was a label and now decides which events they get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    /// How many there are.
    pub count: u64,
    /// The ids of the first ones.
    pub named: Vec<Uuid>,
}

/// Why `migrate` did not do its work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotMigrated {
    /// PostgreSQL did not do what was asked. What was done before stays.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database has had other migrations.
    #[error("nothing was changed: {0}")]
    Differing(Differences),
}

impl Store {
    /// Creates the tables or adds what is missing, and says what was done.
    ///
    /// # Errors
    /// [`NotMigrated`].
    pub fn migrate(&self) -> Result<Migrated, NotMigrated> {
        let mut client = self.connect()?;
        let explained = |error: postgres::Error| explain(self.place(), &error);
        let differences = begin(&mut client).map_err(explained)?;
        if !differences.is_empty() {
            return Err(NotMigrated::Differing(differences));
        }
        Ok(migrate(&mut client).map_err(explained)?)
    }

    /// How the migrations that the database has had differ from this version's. What runs is not
    /// concerned: a newer version's tables serve an older one, too.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn differing_migrations(&self) -> Result<Differences, StoreError> {
        self.once(|client| {
            let mut transaction = client.transaction()?;
            let applied = migrations::applied(&mut transaction)?;
            transaction.rollback()?;
            Ok(Differences::of(&applied))
        })
    }

    /// What is missing in the tables, such as `column webhooks.secret`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn missing(&self) -> Result<Vec<String>, StoreError> {
        self.once(|client| {
            let mut transaction = client.transaction()?;
            let mut missing = Vec::new();
            for table in &TABLES {
                missing.extend(look(&mut transaction, table)?.into_iter().map(|it| it.what));
            }
            transaction.rollback()?;
            Ok(missing)
        })
    }
}

/// Makes the table that records what was applied, and completes it, unless something else was applied.
fn begin(client: &mut Client) -> Result<Differences, postgres::Error> {
    alone(client, |transaction| {
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
    // Later files rely on tables that existed before.
    for table in &TABLES {
        let restored = alone(client, |transaction| {
            let known = transaction.query_typed(
                "SELECT 1 FROM schema_migrations WHERE version = $1",
                &[(&table.version, Type::INT4)],
            )?;
            let is_lost = !known.is_empty() && !is_there(transaction, table)?;
            if is_lost {
                transaction.batch_execute(migrations::making(table))?;
            }
            Ok(is_lost)
        })?;
        if restored {
            migrated.restored.push(format!("table {}", table.name));
        }
    }
    for migration in &MIGRATIONS {
        if alone(client, |transaction| apply(transaction, migration))? {
            migrated.applied.push(migration.name);
        }
    }
    if migrated.applied.contains(&ACCOUNTS) {
        migrated.labelled = labelled(client)?;
    }
    for table in &TABLES {
        let restored = alone(client, |transaction| restore(transaction, table))?;
        // If a table was restored, so were all its parts.
        let made = format!("table {}", table.name);
        if !migrated.restored.contains(&made) {
            migrated.restored.extend(restored);
        }
    }
    Ok(migrated)
}

/// Whether it had to be applied.
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

/// Runs a step that no other `migrate` runs at the same time, completely or not at all. The lock ends
/// with the step: a pooler may give the next step another session.
fn alone<T>(
    client: &mut Client,
    step: impl FnOnce(&mut Transaction<'_>) -> Result<T, postgres::Error>,
) -> Result<T, postgres::Error> {
    let mut transaction = client.transaction()?;
    // Indexing a large table may take longer than our queries may.
    transaction.batch_execute("SET LOCAL statement_timeout = 0")?;
    transaction
        .execute_typed("SELECT pg_advisory_xact_lock($1)", &[(&MIGRATION_LOCK, Type::INT8)])?;
    let done = step(&mut transaction)?;
    transaction.commit()?;
    Ok(done)
}
