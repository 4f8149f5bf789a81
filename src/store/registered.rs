//! A webhook as the commands show and change it.

use std::fmt;

use postgres::Row;
use postgres::types::Type;
use serde::{Serialize, Serializer};
use serde_json::Number;
use uuid::Uuid;

use super::{Parameter, Store, StoreError, columns, webhook};
use crate::domain::secret::Secret;
use crate::domain::settings::Column;

/// A webhook with all that the commands show of it.
#[derive(Clone, Debug, Serialize)]
pub struct Registered {
    /// The primary key.
    pub id: Uuid,
    /// Where its events go.
    pub post_url: String,
    /// The patterns of the event types that it wants.
    pub events: Vec<String>,
    /// When it was registered: database time, as text.
    pub created_at: Option<String>,
    /// When it was disabled: database time, as text.
    pub disabled_at: Option<String>,
    /// Why.
    pub disabled_reason: Option<String>,
    /// When it was paused: database time, as text.
    pub paused_at: Option<String>,
    /// Whether its requests are signed.
    pub signed: bool,
    /// Until when they are signed with the previous secret, too: database time, as text.
    pub previous_secret_expires_at: Option<String>,
    /// What it is for, in somebody's words.
    pub description: Option<String>,
    /// Whose it is.
    pub account: Option<String>,
    /// The names of its headers. Their values are secrets.
    #[serde(serialize_with = "hide_values")]
    pub headers: Option<Vec<String>>,
    /// Its deadline, as it stands in the table.
    #[serde(serialize_with = "as_number")]
    pub timeout_ms: Option<String>,
    /// How many requests may be under way at a time, as it stands in the table.
    #[serde(serialize_with = "as_number")]
    pub max_in_flight: Option<String>,
    /// How many requests there may be in a second, as it stands in the table.
    #[serde(serialize_with = "as_number")]
    pub rate_per_second: Option<String>,
    /// What is wrong with URL, secret or settings, so that all deliveries are rejected.
    pub unusable: Option<String>,
}

impl Registered {
    pub(super) fn of(row: &Row) -> Result<Self, postgres::Error> {
        let columns = columns(row)?;
        Ok(Self {
            id: row.try_get("id")?,
            post_url: row.try_get("post_url")?,
            events: row.try_get("events")?,
            created_at: row.try_get("created_at")?,
            disabled_at: row.try_get("disabled_at")?,
            disabled_reason: row.try_get("disabled_reason")?,
            paused_at: row.try_get("paused_at")?,
            signed: row.try_get("signed")?,
            previous_secret_expires_at: row.try_get("previous_secret_expires_at")?,
            description: row.try_get("description")?,
            account: row.try_get("account")?,
            headers: columns.header_names(),
            unusable: webhook(row)?.target.err(),
            timeout_ms: columns.timeout_ms,
            max_in_flight: columns.max_in_flight,
            rate_per_second: columns.rate_per_second,
        })
    }
}

fn hide_values<S: Serializer>(names: &Option<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
    match names {
        None => to.serialize_none(),
        Some(names) => to.collect_map(names.iter().map(|name| (name, "***"))),
    }
}

/// What is no number stays a text.
fn as_number<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    let number = text.as_deref().and_then(|text| serde_json::from_str::<Number>(text).ok());
    if number.is_some() { number.serialize(to) } else { text.serialize(to) }
}

/// What a setting of a webhook is to be; `None` to have none.
pub struct Change {
    /// Where it stands.
    column: Column,
    /// As PostgreSQL reads it. Perhaps a secret, so this does not print itself.
    value: Option<String>,
}

impl fmt::Debug for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Change").field("column", &self.column).finish_non_exhaustive()
    }
}

impl Change {
    /// The setting in this column is to be that.
    #[must_use]
    pub fn new(column: Column, value: Option<&Secret>) -> Self {
        Self { column, value: value.map(|value| value.expose().to_owned()) }
    }

    /// Makes the value a parameter of a statement, and says how it stands there, as what its column is.
    fn joining<'a>(&'a self, parameters: &mut Vec<Parameter<'a>>) -> String {
        parameters.push((&self.value, Type::TEXT));
        let kind = match self.column {
            Column::Headers => "jsonb",
            Column::TimeoutMs | Column::MaxInFlight => "integer",
            Column::RatePerSecond => "double precision",
            Column::Description | Column::Account => "text",
        };
        format!("${}::{kind}", parameters.len())
    }
}

impl Store {
    /// Registers a webhook.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add(
        &self,
        post_url: &str,
        events: &[String],
        secret: &Secret,
        settings: &[Change],
    ) -> Result<Registered, StoreError> {
        let secret = secret.expose();
        let mut parameters: Vec<Parameter<'_>> =
            vec![(&post_url, Type::TEXT), (&events, Type::TEXT_ARRAY), (&secret, Type::TEXT)];
        let (mut columns, mut values) = (String::new(), String::new());
        for change in settings {
            columns += &format!(", {}", change.column.name());
            values += &format!(", {}", change.joining(&mut parameters));
        }
        let added = self.command(
            &format!(
                "INSERT INTO webhooks (post_url, events, secret{columns})
                 VALUES ($1, $2, $3{values}) RETURNING *"
            ),
            &parameters,
        )?;
        let added = added.into_iter().next();
        added.ok_or_else(|| StoreError::Unavailable("no row came back".to_owned()))
    }

    /// Changes the settings of a webhook; at least one. `None` if there is none with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set(&self, id: Uuid, settings: &[Change]) -> Result<Option<Registered>, StoreError> {
        let mut parameters: Vec<Parameter<'_>> = vec![(&id, Type::UUID)];
        let changes: Vec<_> = settings
            .iter()
            .map(|change| format!("{} = {}", change.column.name(), change.joining(&mut parameters)))
            .collect();
        let changes = changes.join(", ");
        self.command(
            &format!("UPDATE webhooks SET {changes} WHERE id = $1 RETURNING *"),
            &parameters,
        )
        .map(|mut changed| changed.pop())
    }

    /// The webhooks of an account, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of_account(&self, account: &str) -> Result<Vec<Registered>, StoreError> {
        self.command(
            "SELECT * FROM webhooks WHERE account::text = $1 ORDER BY created_at, id",
            &[(&account, Type::TEXT)],
        )
    }
}
