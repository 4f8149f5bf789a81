//! The tables as all migrations together create them.

use super::migrations;

/// A table as all migrations together create it, to find missing parts.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// The number of the migration that creates it.
    pub(super) version: i32,
    pub(super) columns: &'static [TableColumn],
    pub(super) key: &'static [&'static str],
    /// The names and definitions of its indexes.
    pub(super) indexes: &'static [(&'static str, &'static str)],
    /// The triggers that report its changes, and the migration that creates them.
    pub(super) triggers: Option<(&'static str, &'static str)>,
}

/// A column, and its values in existing rows if it has to be restored.
pub(super) struct TableColumn {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    pub(super) value: DefaultValue,
}

/// The value of a column that a row doesn't give.
pub(super) enum DefaultValue {
    Null,
    /// None: the column is NOT NULL. If it is restored, existing rows get this value.
    Filled(&'static str),
    /// This default of the column.
    Default(&'static str),
    Identity,
}

const fn column(name: &'static str, kind: &'static str) -> TableColumn {
    TableColumn { name, kind, value: DefaultValue::Null }
}

const fn filled(name: &'static str, kind: &'static str, with: &'static str) -> TableColumn {
    TableColumn { name, kind, value: DefaultValue::Filled(with) }
}

const fn default(name: &'static str, kind: &'static str, value: &'static str) -> TableColumn {
    TableColumn { name, kind, value: DefaultValue::Default(value) }
}

pub(super) const TABLES: [Table; 5] = [
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
        triggers: Some(("triggers of webhooks", migrations::CHANGES)),
    },
    Table {
        name: "delivery_attempts",
        version: 7,
        columns: &[
            TableColumn { name: "id", kind: "BIGINT", value: DefaultValue::Identity },
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
        triggers: Some(("trigger backlogs_changed", migrations::BACKLOGS)),
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

/// The table of applied migrations. Only the columns that an older version's table lacks are listed.
pub(super) const JOURNAL: Table = Table {
    name: "schema_migrations",
    version: 0,
    columns: &[column("checksum", "TEXT")],
    key: &["version"],
    indexes: &[],
    triggers: None,
};
