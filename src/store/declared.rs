//! Reads the webhooks in the form of a file, and applies a file's changes in one transaction.
//!
//! After the rows were read, they may be changed by SQL, by a command, or by a notifier after a 410. So the
//! transaction compares each row's `xmin`, which every change changes, with the one that was read. If any
//! differs, nothing is changed.

use std::collections::{BTreeMap, HashMap, HashSet};

use postgres::Row;
use postgres::types::Type;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::registered::Registered;
use super::row;
use super::session::{Failed, Session};
use super::time::NOW_IN_UTC;
use super::{Store, StoreError};
use crate::domain::declared::{Existing, Field, Plan, SecretHeaders, Values};
use crate::domain::secret::Secret;
use crate::domain::settings::{Column, Columns};

/// How many rows a statement changes at most: that takes some hundredths of a second.
const CHUNK: usize = 500;

/// The wait for a lock is shorter than a statement may take, so that the error says which of the two limits
/// was exceeded. If the client hangs, the server ends the transaction after a minute.
///
/// The lock keeps others from writing: otherwise two files applied at the same time would both register
/// the same new webhooks.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '3s';
     SET LOCAL idle_in_transaction_session_timeout = '1min';
     LOCK TABLE webhooks IN SHARE ROW EXCLUSIVE MODE";

/// Selects some webhooks that didn't exist when the plan was made.
const NEW_WEBHOOKS: &str = "SELECT id FROM webhooks AS w WHERE id IS NOT NULL
     AND NOT EXISTS (SELECT 1 FROM unnest($1::uuid[]) AS there(id) WHERE there.id = w.id) LIMIT 20";

/// How long a webhook's old secret continues to sign after a file replaced it.
const KEEP_OF_SECRET: &str = "interval '24 hours'";

/// Why a plan wasn't applied. Except for [`ApplyError::Unknown`], nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// PostgreSQL failed.
    #[error("{0}")]
    Store(StoreError),
    /// Somebody else changed, removed or registered these webhooks after they were read.
    #[error("somebody else has changed some of the webhooks meanwhile")]
    Changed(Vec<Uuid>),
    /// The commit failed, so that either everything or nothing was changed.
    #[error("{0}")]
    Unknown(StoreError),
}

impl From<Failed> for ApplyError {
    fn from(failed: Failed) -> Self {
        Self::Store(failed.into())
    }
}

impl Store {
    /// All webhooks, oldest first, in the form of a file, with their secrets.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn declared(&self) -> Result<Vec<Existing>, StoreError> {
        let mut session = self.session("webhook-notifier");
        let ids: Vec<Uuid> = session.run(|client| {
            let all = "SELECT id FROM webhooks WHERE id IS NOT NULL ORDER BY created_at, id";
            client.query_typed(all, &[])?.iter().map(|row| row.try_get(0)).collect()
        })?;
        let mut found: HashMap<Uuid, Existing> = HashMap::with_capacity(ids.len());
        for part in ids.chunks(row::CHUNK).map(<[Uuid]>::to_vec) {
            let columns = format!("{}, xmin::text AS version", Registered::columns());
            let read = session
                .run(move |client| row::each(client, &columns, &part, existing, unreadable))?;
            found.extend(read.into_iter().map(|webhook| (webhook.id, webhook)));
        }
        session.disconnect();
        Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
    }

    /// Applies the whole plan in one transaction, or nothing. `existing` are the webhooks that existed when
    /// the plan was made.
    ///
    /// # Errors
    /// [`ApplyError`].
    pub fn apply(&self, plan: &Plan, existing: Vec<Uuid>) -> Result<(), ApplyError> {
        let mut session = self.session("webhook-notifier");
        session.run(|client| client.batch_execute(BEGIN))?;
        let new = session.run(move |client| {
            let new = client.query_typed(NEW_WEBHOOKS, &[(&existing, Type::UUID_ARRAY)])?;
            new.iter().map(|row| row.try_get(0)).collect::<Result<Vec<Uuid>, _>>()
        })?;
        if !new.is_empty() {
            let _ = session.run(|client| client.batch_execute("ROLLBACK"));
            session.disconnect();
            return Err(ApplyError::Changed(new));
        }
        for RowChanges { statement, rows } in changes_of(plan) {
            let meant: Vec<Uuid> = rows.iter().map(|(id, _)| *id).collect();
            let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
            let done = execute(&mut session, statement, Value::Array(rows).to_string())?;
            let others: Vec<Uuid> = meant.into_iter().filter(|id| !done.contains(id)).collect();
            if !others.is_empty() {
                // If this fails, the end of the connection rolls back too.
                let _ = session.run(|client| client.batch_execute("ROLLBACK"));
                session.disconnect();
                return Err(ApplyError::Changed(others));
            }
        }
        let committed = session.run(|client| client.batch_execute("COMMIT"));
        committed.map_err(|failed| ApplyError::Unknown(failed.into()))?;
        session.disconnect();
        Ok(())
    }
}

/// Executes a statement on these rows. Returns the ids of the rows that it changed.
fn execute(
    session: &mut Session,
    statement: String,
    rows: String,
) -> Result<HashSet<Uuid>, Failed> {
    session.run(move |client| {
        let done = client.query_typed(&statement, &[(&rows, Type::TEXT)])?;
        done.iter().map(|row| row.try_get(0)).collect()
    })
}

/// A statement, and the rows that it has to change, which are its JSON parameter.
struct RowChanges {
    statement: String,
    rows: Vec<(Uuid, Value)>,
}

/// The statements of a plan. Removals come first, because a constraint that somebody added may require unique
/// URLs. Of a changed webhook, only the columns that differ are written.
fn changes_of(plan: &Plan) -> impl Iterator<Item = RowChanges> {
    let mut all = Vec::new();
    let mut push = |statement: String, rows: Vec<(Uuid, Value)>| {
        for rows in rows.chunks(CHUNK) {
            all.push(RowChanges { statement: statement.clone(), rows: rows.to_vec() });
        }
    };
    let removed =
        plan.removed.iter().map(|it| (it.id, json!({ "id": it.id, "version": it.version })));
    push(
        "DELETE FROM webhooks AS w USING jsonb_to_recordset($1::jsonb) AS n(id uuid, version text)
         WHERE w.id = n.id AND w.xmin::text = n.version RETURNING w.id"
            .to_owned(),
        removed.collect(),
    );
    let mut by_fields: BTreeMap<Vec<Field>, Vec<(Uuid, Value)>> = BTreeMap::new();
    for it in &plan.changed {
        let fields: Vec<Field> = it.differences.iter().map(|difference| difference.field).collect();
        let mut row = Map::new();
        row.insert("id".to_owned(), json!(it.id));
        row.insert("version".to_owned(), json!(it.version));
        fields.iter().for_each(|field| put(&mut row, *field, &it.to));
        by_fields.entry(fields).or_default().push((it.id, Value::Object(row)));
    }
    for (fields, rows) in by_fields {
        let columns: Vec<_> = fields.iter().map(|field| parameter_columns(*field)).collect();
        let changes: Vec<_> = fields.iter().map(|field| assignments(*field)).collect();
        let (columns, changes) = (columns.join(", "), changes.join(", "));
        push(
            format!(
                "UPDATE webhooks AS w SET {changes}
                 FROM jsonb_to_recordset($1::jsonb) AS n(id uuid, version text, {columns})
                 WHERE w.id = n.id AND w.xmin::text = n.version RETURNING w.id"
            ),
            rows,
        );
    }
    let added = plan.added.iter().enumerate().map(|(place, it)| {
        let mut row = Map::new();
        row.insert("id".to_owned(), json!(it.id));
        row.insert("place".to_owned(), json!(place));
        Field::all().for_each(|field| put(&mut row, field, &it.values));
        (it.id, Value::Object(row))
    });
    let columns: Vec<_> = Field::all().map(parameter_columns).collect();
    let settings: Vec<_> = Column::ALL.into_iter().map(Column::name).collect();
    let (columns, settings) = (columns.join(", "), settings.join(", "));
    push(
        // Their times are a microsecond apart, so that they keep the order of the file.
        format!(
            "INSERT INTO webhooks (id, created_at, post_url, events, secret, paused_at, disabled_at,
                 disabled_reason, {settings})
             SELECT id, {NOW_IN_UTC} + place * interval '1 microsecond', post_url, events, secret,
                 CASE WHEN paused THEN now() END, CASE WHEN disabled THEN now() END,
                 disabled_reason, {settings}
             FROM jsonb_to_recordset($1::jsonb) AS n(id uuid, place integer, {columns})
             ON CONFLICT DO NOTHING RETURNING id"
        ),
        added.collect(),
    );
    all.into_iter()
}

/// The columns of a field in the JSON parameter, with their types.
fn parameter_columns(field: Field) -> &'static str {
    match field {
        Field::PostUrl => "post_url text",
        Field::Events => "events text[]",
        Field::Setting(Column::Headers) => "headers jsonb",
        Field::Setting(Column::TimeoutMs) => "timeout_ms integer",
        Field::Setting(Column::MaxInFlight) => "max_in_flight integer",
        Field::Setting(Column::RatePerSecond) => "rate_per_second double precision",
        Field::Setting(Column::NoRetryStatus) => "no_retry_status text",
        Field::Setting(Column::Description) => "description text",
        Field::Setting(Column::Account) => "account text",
        Field::Paused => "paused boolean",
        Field::Disabled => "disabled boolean, disabled_reason text",
        Field::Secret => "secret text",
    }
}

/// A field's assignments. On the right of SET, columns have their old values.
fn assignments(field: Field) -> String {
    match field {
        Field::PostUrl | Field::Events | Field::Setting(_) => {
            let name = field.name();
            format!("{name} = n.{name}")
        }
        Field::Paused => {
            "paused_at = CASE WHEN n.paused THEN coalesce(w.paused_at, now()) END".to_owned()
        }
        Field::Disabled => {
            "disabled_at = CASE WHEN n.disabled THEN coalesce(w.disabled_at, now()) END,
             disabled_reason = n.disabled_reason"
                .to_owned()
        }
        Field::Secret => format!(
            "secret = n.secret, previous_secret = w.secret,
             previous_secret_expires_at = CASE WHEN w.secret IS NOT NULL
                 THEN now() + {KEEP_OF_SECRET} END"
        ),
    }
}

/// Adds a field's columns to a row of the JSON parameter.
fn put(row: &mut Map<String, Value>, field: Field, values: &Values) {
    let mut put = |name: &str, value: Value| drop(row.insert(name.to_owned(), value));
    match field {
        Field::PostUrl => put("post_url", json!(values.post_url)),
        Field::Events => put("events", json!(values.events)),
        Field::Setting(Column::Headers) if values.headers.is_empty() => {}
        Field::Setting(Column::Headers) => {
            let headers = values.headers.iter().map(|(name, value)| (name, value.expose()));
            put("headers", json!(headers.collect::<BTreeMap<_, _>>()));
        }
        Field::Setting(column) => put(column.name(), json!(values.settings.get(&column))),
        Field::Paused => put("paused", json!(values.paused)),
        Field::Disabled => {
            put("disabled", json!(values.disabled.is_some()));
            put("disabled_reason", json!(values.disabled));
        }
        Field::Secret => put("secret", json!(values.secret.as_ref().map(Secret::expose))),
    }
}

fn existing(row: &Row) -> Result<Existing, postgres::Error> {
    let registered = Registered::of(row)?;
    let columns = row::columns(row)?;
    let secret = row::some(row, "secret")?;
    let (headers, flaw_of_headers) = headers(&columns);
    let cut = row::cut(row)?.or_else(|| registered.cut());
    let too_large =
        cut.map(|name| format!("its {name} is too large to be read: correct it by SQL"));
    let has_odd_headers = flaw_of_headers.is_some();
    let flaw = too_large.or(flaw_of_headers);
    let Columns { timeout_ms, max_in_flight, rate_per_second, no_retry_status, account, .. } =
        columns;
    let settings = [
        (Column::TimeoutMs, timeout_ms),
        (Column::MaxInFlight, max_in_flight),
        (Column::RatePerSecond, rate_per_second),
        (Column::NoRetryStatus, no_retry_status),
        (Column::Account, account),
        (Column::Description, registered.description),
    ];
    let settings =
        settings.into_iter().filter_map(|(column, text)| Some((column, text?))).collect();
    let is_disabled = registered.disabled_at.is_some();
    let values = Values {
        post_url: registered.post_url,
        events: registered.events,
        headers,
        settings,
        paused: registered.paused_at.is_some(),
        disabled: is_disabled.then(|| registered.disabled_reason.unwrap_or_default()),
        secret: secret.map(Secret::new),
    };
    Ok(Existing {
        id: registered.id,
        version: row.try_get("version")?,
        values,
        flaw,
        has_odd_headers,
    })
}

fn headers(columns: &Columns) -> (SecretHeaders, Option<String>) {
    let Some(text) = &columns.headers else { return (SecretHeaders::new(), None) };
    let flaw = || {
        let remedy =
            "correct them by `webhooks set ID` with --header, or remove them with --unset header";
        Some(format!("its headers are not a JSON object of strings: {remedy}"))
    };
    // The parser's own message isn't used: it could quote a value.
    let Ok(all) = serde_json::from_str::<BTreeMap<String, String>>(text.expose()) else {
        return (SecretHeaders::new(), flaw());
    };
    let count = all.len();
    let headers: SecretHeaders = all
        .into_iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), Secret::new(value)))
        .collect();
    let flaw = if headers.len() == count { None } else { flaw() };
    (headers, flaw)
}

fn unreadable(id: Uuid, why: &str, _: row::Switches) -> Existing {
    let flaw = format!("its row in the table cannot be read: {why}: correct it by SQL");
    Existing {
        id,
        version: None,
        values: Values::default(),
        flaw: Some(flaw),
        has_odd_headers: false,
    }
}
