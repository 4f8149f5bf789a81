//! The tables: how they are created, and which parts exist.
//!
//! The files in `sql/` lead from the original table to those of this version, each applied once.
//! Somebody may drop a part later. So `migrate` checks what exists, not only its list, and restores what
//! is missing. It changes no rows.

use postgres::types::Type;
use postgres::{Client, Transaction};
use uuid::Uuid;

use super::listen::TRIGGERS;
use super::{Store, StoreError, explain};

const WEBHOOKS: &str = include_str!("../../sql/001_webhooks.sql");
const DELIVERY_ATTEMPTS: &str = include_str!("../../sql/007_delivery_attempts.sql");
const BACKLOGS: &str = include_str!("../../sql/008_backlogs.sql");
const CONDITIONS: &str = include_str!("../../sql/013_webhook_conditions.sql");
const INSTANCES: &str = include_str!("../../sql/014_instances.sql");
const CHANGES: &str = include_str!("../../sql/015_changes.sql");

/// The migration since which `webhooks.account` decides which events a webhook gets.
const ACCOUNTS: &str = "accounts";

/// How many of the affected webhooks are named.
const MOST_NAMED: i64 = 5;

/// Each migration may be applied again to its own result.
const MIGRATIONS: [(i32, &str, &str); 15] = [
    (1, "webhooks", WEBHOOKS),
    (2, "events_index", include_str!("../../sql/002_events_index.sql")),
    (3, "disabled", include_str!("../../sql/003_disabled.sql")),
    (4, "notify", include_str!("../../sql/004_notify.sql")),
    (5, "secrets", include_str!("../../sql/005_secrets.sql")),
    (6, "settings", include_str!("../../sql/006_settings.sql")),
    (7, "delivery_attempts", DELIVERY_ATTEMPTS),
    (8, "backlogs", BACKLOGS),
    (9, "deferrals", include_str!("../../sql/009_deferrals.sql")),
    (10, ACCOUNTS, include_str!("../../sql/010_accounts.sql")),
    (11, "no_retry_status", include_str!("../../sql/011_no_retry_status.sql")),
    (12, "answers", include_str!("../../sql/012_answers.sql")),
    (13, "webhook_conditions", CONDITIONS),
    (14, "instances", INSTANCES),
    (15, "changes", CHANGES),
];

/// An arbitrary number that no other program uses for locks. Held during each step of `migrate`, so that
/// two don't collide.
const MIGRATION_LOCK: i64 = 0x7765_6268_6f6f_6b73;

/// A table as all files together create it, to find what is missing.
struct Table {
    name: &'static str,
    /// The migration that creates it.
    version: i32,
    columns: &'static [Column],
    key: &'static [&'static str],
    indexes: &'static [(&'static str, &'static str)],
    /// The triggers that report its changes, and the file that creates them.
    triggers: Option<(&'static str, &'static str)>,
}

/// A column, and the value of its existing rows if it has to be restored.
struct Column {
    name: &'static str,
    kind: &'static str,
    rest: Rest,
}

enum Rest {
    Nullable,
    /// NOT NULL, with this value for existing rows.
    Filled(&'static str),
    /// The column has this default.
    Default(&'static str),
    Identity,
}

const fn column(name: &'static str, kind: &'static str) -> Column {
    Column { name, kind, rest: Rest::Nullable }
}

const fn filled(name: &'static str, kind: &'static str, with: &'static str) -> Column {
    Column { name, kind, rest: Rest::Filled(with) }
}

const fn default(name: &'static str, kind: &'static str, value: &'static str) -> Column {
    Column { name, kind, rest: Rest::Default(value) }
}

const TABLES: [Table; 5] = [
    Table {
        name: "webhooks",
        version: 1,
        columns: &[
            default("id", "UUID NOT NULL", "gen_random_uuid()"),
            filled("post_url", "TEXT", "''"),
            filled("events", "TEXT[]", "'{}'"),
            default("created_at", "TIMESTAMP", "now()"),
            column("disabled_at", "TIMESTAMPTZ"),
            column("disabled_reason", "TEXT"),
            column("secret", "TEXT"),
            column("previous_secret", "TEXT"),
            column("previous_secret_expires_at", "TIMESTAMPTZ"),
            column("headers", "JSONB"),
            column("timeout_ms", "INTEGER"),
            column("max_in_flight", "INTEGER"),
            column("rate_per_second", "DOUBLE PRECISION"),
            column("description", "TEXT"),
            column("account", "TEXT"),
            column("paused_at", "TIMESTAMPTZ"),
            column("no_retry_status", "TEXT"),
        ],
        key: &["id"],
        indexes: &[
            ("webhooks_events_idx", "USING GIN (events) WITH (fastupdate = off)"),
            (
                "webhooks_everybodys_idx",
                "USING GIN (events) WITH (fastupdate = off) WHERE account IS NULL",
            ),
            ("webhooks_account_idx", "(left(account::text, 256))"),
            ("webhooks_at_rest_idx", "(id) WHERE disabled_at IS NOT NULL OR paused_at IS NOT NULL"),
        ],
        triggers: Some(("triggers of webhooks", CHANGES)),
    },
    Table {
        name: "delivery_attempts",
        version: 7,
        columns: &[
            Column { name: "id", kind: "BIGINT", rest: Rest::Identity },
            default("tx", "XID8 NOT NULL", "pg_current_xact_id()"),
            filled("at", "TIMESTAMPTZ", "now()"),
            filled("event_id", "TEXT", "''"),
            filled("event_type", "TEXT", "''"),
            column("webhook_id", "UUID"),
            filled("queue", "TEXT", "''"),
            filled("outcome", "TEXT", "''"),
            filled("attempt", "INTEGER", "0"),
            column("status", "INTEGER"),
            column("reason", "TEXT"),
            filled("detail", "TEXT", "''"),
            column("ms", "BIGINT"),
            column("next_attempt_at", "TIMESTAMPTZ"),
            column("dead", "TEXT"),
            column("account", "TEXT"),
            column("status_line", "TEXT"),
            column("answer_body", "TEXT"),
        ],
        key: &["id"],
        indexes: &[
            ("delivery_attempts_event_id_idx", "(event_id text_pattern_ops)"),
            ("delivery_attempts_webhook_idx", "(webhook_id, at)"),
            ("delivery_attempts_at_idx", "(at)"),
        ],
        triggers: None,
    },
    Table {
        name: "backlogs",
        version: 8,
        columns: &[
            filled("queue", "TEXT", "''"),
            filled("webhook_id", "UUID", "gen_random_uuid()"),
            default("since", "TIMESTAMPTZ NOT NULL", "now()"),
            filled("cause", "TEXT", "''"),
            filled("class", "TEXT", "''"),
            column("until", "TIMESTAMPTZ"),
            column("closing_at", "TIMESTAMPTZ"),
        ],
        key: &["queue", "webhook_id"],
        indexes: &[],
        triggers: Some(("trigger backlogs_changed", BACKLOGS)),
    },
    Table {
        name: "webhook_conditions",
        version: 13,
        columns: &[
            filled("webhook_id", "UUID", "gen_random_uuid()"),
            column("failing_since", "TIMESTAMPTZ"),
            column("failed_at", "TIMESTAMPTZ"),
            column("open_since", "TIMESTAMPTZ"),
            column("succeeded_at", "TIMESTAMPTZ"),
            column("rested_at", "TIMESTAMPTZ"),
            column("told_failing_at", "TIMESTAMPTZ"),
            default("told_disabled", "BOOLEAN NOT NULL", "false"),
            default("told_paused", "BOOLEAN NOT NULL", "false"),
        ],
        key: &["webhook_id"],
        indexes: &[],
        triggers: None,
    },
    Table {
        name: "notifier_instances",
        version: 14,
        columns: &[
            filled("id", "UUID", "gen_random_uuid()"),
            filled("name", "TEXT", "''"),
            filled("queues", "TEXT[]", "'{}'"),
            default("beats", "BIGINT NOT NULL", "0"),
            default("seen_at", "TIMESTAMPTZ NOT NULL", "now()"),
        ],
        key: &["id"],
        indexes: &[],
        triggers: None,
    },
];

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

/// Something that is missing, and how to restore it.
struct Missing {
    /// `column webhooks.secret`
    what: String,
    sql: String,
}

impl Store {
    /// Creates the tables or adds what is missing, and says what was done.
    ///
    /// # Errors
    /// [`StoreError`]. Earlier steps remain done.
    pub fn migrate(&self) -> Result<Migrated, StoreError> {
        let mut client = self.connect()?;
        migrate(&mut client).map_err(|error| explain(self.place(), &error))
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

fn migrate(client: &mut Client) -> Result<Migrated, postgres::Error> {
    let mut migrated = Migrated::default();
    alone(client, |transaction| {
        transaction.batch_execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (
                 version INTEGER PRIMARY KEY,
                 name TEXT NOT NULL,
                 applied_at TIMESTAMPTZ NOT NULL DEFAULT now()
             )",
        )
    })?;
    // Later files rely on tables that existed before.
    for table in &TABLES {
        let restored = alone(client, |transaction| {
            let known = transaction.query_typed(
                "SELECT 1 FROM schema_migrations WHERE version = $1",
                &[(&table.version, Type::INT4)],
            )?;
            let is_lost = !known.is_empty() && !is_there(transaction, table)?;
            if is_lost {
                transaction.batch_execute(MIGRATIONS[index(table)].2)?;
            }
            Ok(is_lost)
        })?;
        if restored {
            migrated.restored.push(format!("table {}", table.name));
        }
    }
    for (version, name, sql) in MIGRATIONS {
        let is_new = alone(client, |transaction| {
            let recorded = transaction.execute_typed(
                "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)
                 ON CONFLICT DO NOTHING",
                &[(&version, Type::INT4), (&name, Type::TEXT)],
            )?;
            if recorded == 1 {
                transaction.batch_execute(sql)?;
            }
            Ok(recorded == 1)
        })?;
        if is_new {
            migrated.applied.push(name);
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

fn index(table: &Table) -> usize {
    MIGRATIONS.iter().position(|(version, ..)| *version == table.version).unwrap_or(0)
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

/// Restores what is missing in an existing table.
fn restore(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<String>, postgres::Error> {
    let mut restored = Vec::new();
    // Columns come first, because the rest needs them.
    while let missing @ [_, ..] = look(transaction, table)?.as_slice() {
        let known = restored.len();
        for Missing { what, sql } in missing {
            if !restored.contains(what) {
                transaction.batch_execute(sql)?;
                restored.push(what.clone());
            }
        }
        if restored.len() == known {
            break;
        }
    }
    Ok(restored)
}

fn is_there(transaction: &mut Transaction<'_>, table: &Table) -> Result<bool, postgres::Error> {
    let name = table.name;
    let rows =
        transaction.query_typed("SELECT to_regclass($1) IS NOT NULL", &[(&name, Type::TEXT)])?;
    rows.first().map_or(Ok(false), |row| row.try_get(0))
}

/// What is missing of a table: the table itself, or columns, or what depends on these.
fn look(transaction: &mut Transaction<'_>, table: &Table) -> Result<Vec<Missing>, postgres::Error> {
    let name = table.name;
    if !is_there(transaction, table)? {
        let sql = MIGRATIONS[index(table)].2.to_owned();
        return Ok(vec![Missing { what: format!("table {name}"), sql }]);
    }
    let columns = missing_columns(transaction, table)?;
    if !columns.is_empty() {
        return Ok(columns);
    }
    let mut missing = missing_key(transaction, table)?;
    missing.extend(missing_defaults(transaction, table)?);
    for (index, on) in table.indexes {
        let rows = transaction.query_typed(
            "SELECT 1 FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
             WHERE indrelid = to_regclass($1) AND relname = $2",
            &[(&name, Type::TEXT), (index, Type::TEXT)],
        )?;
        if rows.is_empty() {
            let sql = format!("CREATE INDEX {index} ON {name} {on}");
            missing.push(Missing { what: format!("index {index}"), sql });
        }
    }
    if let Some((triggers, sql)) = table.triggers {
        let rows = transaction.query_typed(&format!("SELECT {TRIGGERS}"), &[])?;
        let fires: Option<String> = rows.first().map_or(Ok(None), |row| row.try_get(name))?;
        if fires.is_none() {
            missing.push(Missing { what: triggers.to_owned(), sql: sql.to_owned() });
        }
    }
    Ok(missing)
}

fn missing_columns(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<Missing>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT attname::text FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
        &[(&name, Type::TEXT)],
    )?;
    let there = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let missing = table.columns.iter().filter(|column| !there.iter().any(|it| it == column.name));
    let add = |Column { name: column, kind, rest }: &Column| {
        let add = format!("ALTER TABLE {name} ADD COLUMN {column} {kind}");
        let sql = match rest {
            Rest::Nullable => add,
            Rest::Filled(with) => format!(
                "{add} NOT NULL DEFAULT {with};
                 ALTER TABLE {name} ALTER COLUMN {column} DROP DEFAULT"
            ),
            Rest::Default(value) => format!("{add} DEFAULT {value}"),
            Rest::Identity => format!("{add} GENERATED ALWAYS AS IDENTITY"),
        };
        Missing { what: format!("column {name}.{column}"), sql }
    };
    Ok(missing.map(add).collect())
}

/// The key is missing if no unique index has exactly its columns.
fn missing_key(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<Missing>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT indisprimary, ARRAY(SELECT attname::text FROM pg_attribute
                                    WHERE attrelid = indrelid AND attnum = ANY(indkey)
                                    ORDER BY attname) AS columns
         FROM pg_index
         WHERE indrelid = to_regclass($1) AND indisunique AND indisvalid AND indpred IS NULL
             AND indexprs IS NULL",
        &[(&name, Type::TEXT)],
    )?;
    let mut has_primary = false;
    for row in &rows {
        let columns: Vec<String> = row.try_get("columns")?;
        // The key's columns are listed in alphabetical order.
        if columns == table.key {
            return Ok(Vec::new());
        }
        has_primary |= row.try_get::<_, bool>("indisprimary")?;
    }
    let columns = table.key.join(", ");
    let sql = match has_primary {
        // Somebody's own key, on other columns.
        true => format!("CREATE UNIQUE INDEX ON {name} ({columns})"),
        false => format!("ALTER TABLE {name} ADD PRIMARY KEY ({columns})"),
    };
    Ok(vec![Missing { what: format!("primary key of {name}"), sql }])
}

fn missing_defaults(
    transaction: &mut Transaction<'_>,
    table: &Table,
) -> Result<Vec<Missing>, postgres::Error> {
    let name = table.name;
    let rows = transaction.query_typed(
        "SELECT attname::text FROM pg_attribute
         WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped
             AND NOT atthasdef AND attidentity = ''",
        &[(&name, Type::TEXT)],
    )?;
    let without = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>()?;
    let lacks = |column: &&Column| without.iter().any(|name| name == column.name);
    let default = |column: &Column| {
        let at = format!("ALTER TABLE {name} ALTER COLUMN {}", column.name);
        let sql = match column.rest {
            Rest::Nullable | Rest::Filled(_) => return None,
            Rest::Default(value) => format!("{at} SET DEFAULT {value}"),
            Rest::Identity => format!(
                "{at} SET NOT NULL; {at} ADD GENERATED ALWAYS AS IDENTITY;
                 SELECT setval(pg_get_serial_sequence('{name}', '{0}'),
                               (SELECT coalesce(max({0}), 0) + 1 FROM {name}), false)",
                column.name
            ),
        };
        Some(Missing { what: format!("default of {name}.{}", column.name), sql })
    };
    Ok(table.columns.iter().filter(lacks).filter_map(default).collect())
}
