//! Webhooks as the commands show and change them.

use std::collections::HashMap;

use postgres::types::Type;
use postgres::{Client, Row};
use serde::{Serialize, Serializer};
use serde_json::Number;
use uuid::Uuid;

use super::change::{ColumnChange, NewSecret, Owned};
use super::row::{self, some, text};
use super::time::{NOW_IN_UTC, rfc3339_seconds};
use super::{Parameter, Store, StoreError};
use crate::domain::account;
use crate::domain::secret::Secret;
use crate::domain::webhook::{Patterns, Webhook};

/// The longest `events` that is shown, in characters of JSON: several thousand patterns.
const MOST_OF_EVENTS: usize = 1 << 20;

/// The largest `events` that is decompressed, in stored bytes: that takes less than a second.
const MOST_OF_PACKED_EVENTS: usize = 256 << 10;

/// The longest description or reason that is read, in characters.
const MOST_OF_TEXT: usize = 10_000;

/// A webhook with everything that the commands show.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Registered {
    /// The primary key.
    pub id: Uuid,
    /// Where its events go.
    pub post_url: String,
    /// The patterns of the event types it wants.
    pub events: Vec<String>,
    /// When it was registered, in RFC 3339. The column has no time zone: its times count as UTC.
    pub created_at: Option<String>,
    /// When it was disabled, in RFC 3339.
    pub disabled_at: Option<String>,
    /// Why it was disabled.
    pub disabled_reason: Option<String>,
    /// When it was paused, in RFC 3339.
    pub paused_at: Option<String>,
    /// Whether its requests are signed.
    pub signed: bool,
    /// Until when its requests are also signed with the previous secret, in RFC 3339.
    pub previous_secret_expires_at: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// Its account.
    pub account: Option<String>,
    /// The names of its headers. Their values are secrets.
    #[serde(serialize_with = "hide_values")]
    pub headers: Option<Vec<String>>,
    /// The time limit of its requests, as in the table.
    #[serde(serialize_with = "as_number")]
    pub timeout_ms: Option<String>,
    /// How many of its requests may be in flight, as in the table.
    #[serde(serialize_with = "as_number")]
    pub max_in_flight: Option<String>,
    /// How many requests per second it may get, as in the table.
    #[serde(serialize_with = "as_number")]
    pub rate_per_second: Option<String>,
    /// The statuses after which its deliveries aren't retried, as in the table.
    pub no_retry_status: Option<String>,
    /// Why its URL, secret or settings can't be used, so that all deliveries are rejected.
    pub unusable: Option<String>,
    /// Which of its patterns can't match anything, and why. Also doubts about its account.
    pub warnings: Vec<String>,
    /// Whether none of its patterns can match anything, so that it gets no event.
    #[serde(skip)]
    pub wants_nothing: bool,
    /// Whether `events` was too large to be read completely.
    #[serde(skip)]
    pub is_cut: bool,
}

/// Shown instead of a text that is too large.
const TOO_LARGE: &str = "(too large)";

impl Registered {
    /// The columns that [`Registered::of`] reads.
    pub(super) fn columns() -> String {
        let events = format!(
            "CASE WHEN events IS NULL THEN NULL
                  WHEN pg_column_size(events) > {MOST_OF_PACKED_EVENTS} THEN '?'
                  ELSE left(to_json(events)::text, {MOST_OF_EVENTS} + 1) END AS events"
        );
        let expires_at = format!(
            "CASE WHEN previous_secret_expires_at > now() THEN {} END AS previous_secret_expires_at",
            rfc3339_seconds("previous_secret_expires_at")
        );
        [
            row::columns_of_webhook(),
            events,
            format!("{} AS created_at", rfc3339_seconds("created_at")),
            format!("{} AS disabled_at", rfc3339_seconds("disabled_at")),
            text("disabled_reason", MOST_OF_TEXT),
            format!("{} AS paused_at", rfc3339_seconds("paused_at")),
            text("description", MOST_OF_TEXT),
            "secret IS NOT NULL AS signed".to_owned(),
            expires_at,
        ]
        .join(", ")
    }

    pub(super) fn of(row: &Row) -> Result<Self, postgres::Error> {
        let columns = row::columns(row)?;
        // If the text was cut, it is no longer valid JSON.
        let patterns = Patterns::read(some(row, "events")?.as_deref());
        Ok(Self {
            id: row.try_get("id")?,
            post_url: shown(row, "post_url")?.unwrap_or_default(),
            events: patterns.texts,
            created_at: some(row, "created_at")?,
            disabled_at: some(row, "disabled_at")?,
            disabled_reason: shown(row, "disabled_reason")?,
            paused_at: some(row, "paused_at")?,
            signed: row.try_get("signed")?,
            previous_secret_expires_at: some(row, "previous_secret_expires_at")?,
            description: shown(row, "description")?,
            account: shown(row, "account")?,
            headers: columns.header_names(),
            unusable: row::webhook(row)?.target.err(),
            warnings: columns
                .account
                .as_deref()
                .and_then(account::doubt)
                .into_iter()
                .chain(patterns.warnings)
                .collect(),
            timeout_ms: columns.timeout_ms,
            max_in_flight: columns.max_in_flight,
            rate_per_second: columns.rate_per_second,
            no_retry_status: shown(row, "no_retry_status")?,
            wants_nothing: patterns.match_nothing,
            is_cut: patterns.is_cut,
        })
    }

    /// The name of a column that wasn't read completely. [`row::cut`] checks those that a delivery needs.
    pub(super) fn cut(&self) -> Option<&'static str> {
        let is_long = |text: &Option<String>| {
            text.as_ref()
                .is_some_and(|text| text == TOO_LARGE || text.chars().nth(MOST_OF_TEXT).is_some())
        };
        match self {
            _ if self.is_cut => Some("events"),
            _ if is_long(&self.description) => Some("description"),
            _ if self.disabled_at.is_some() && is_long(&self.disabled_reason) => {
                Some("disabled_reason")
            }
            _ => None,
        }
    }

    /// A webhook of which only the id and the switches can be read.
    fn unreadable(id: Uuid, why: &str, state: row::Switches) -> Self {
        let at_some_time = |is_so: bool| is_so.then(|| "?".to_owned());
        Self {
            id,
            disabled_at: at_some_time(state.is_disabled),
            paused_at: at_some_time(state.is_paused),
            unusable: Webhook::unreadable(id, why).target.err(),
            ..Self::default()
        }
    }
}

/// A text to show. If it was too large, PostgreSQL sent question marks instead ([`text`]).
fn shown(row: &Row, name: &str) -> Result<Option<String>, postgres::Error> {
    let is_too_large = |text: &String| text.len() > 256 && text.bytes().all(|byte| byte == b'?');
    let text = some(row, name)?;
    Ok(text.map(|text| if is_too_large(&text) { TOO_LARGE.to_owned() } else { text }))
}

fn hide_values<S: Serializer>(names: &Option<Vec<String>>, to: S) -> Result<S::Ok, S::Error> {
    match names {
        None => to.serialize_none(),
        Some(names) => to.collect_map(names.iter().map(|name| (name, "***"))),
    }
}

/// Serializes a number as such, and anything else as text.
fn as_number<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
    let number = text.as_deref().and_then(|text| serde_json::from_str::<Number>(text).ok());
    if number.is_some() { number.serialize(to) } else { text.serialize(to) }
}

impl Store {
    /// All webhooks, oldest first, or only the one with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn list(&self, id: Option<Uuid>) -> Result<Vec<Registered>, StoreError> {
        self.returned_by(
            "SELECT id FROM webhooks WHERE ($1 IS NULL OR id = $1) AND id IS NOT NULL
             ORDER BY created_at, id",
            vec![(Box::new(id), Type::UUID)],
        )
    }

    /// The webhooks of an account, oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of_account(&self, account: &str) -> Result<Vec<Registered>, StoreError> {
        let found = self.returned_by(
            &format!(
                "SELECT id FROM webhooks WHERE {} = $1 ORDER BY created_at, id",
                row::OF_ACCOUNT
            ),
            vec![(Box::new(account.to_owned()), Type::TEXT)],
        );
        let mut found = match found {
            // The database's encoding lacks a character of the account, so the table can't contain it.
            Err(StoreError::InvalidValue(_)) if !account.is_ascii() => Vec::new(),
            found => found?,
        };
        // PostgreSQL may consider other accounts equal, by the column's collation.
        found.retain(|webhook| webhook.account.as_deref().is_none_or(|its| its == account));
        Ok(found)
    }

    /// The webhooks whose URL is one of these texts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn of_urls(&self, urls: &[String]) -> Result<Vec<Registered>, StoreError> {
        self.returned_by(
            "SELECT id FROM webhooks WHERE post_url::text = ANY($1) AND id IS NOT NULL
             ORDER BY created_at, id",
            vec![(Box::new(urls.to_vec()), Type::TEXT_ARRAY)],
        )
    }

    /// At most `most` webhooks, enabled or not: first those with these ids, then those with one of these
    /// patterns. Webhooks of other accounts come last.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn concerned(
        &self,
        ids: &[Uuid],
        patterns: &[String],
        account: Option<&str>,
        most: i64,
    ) -> Result<Vec<Registered>, StoreError> {
        let query = |account: Option<&str>| {
            self.returned_by(
                &format!(
                    "SELECT id FROM webhooks WHERE id = ANY($1) OR events && $2
                     ORDER BY id = ANY($1) DESC,
                         (account IS NULL OR coalesce({} = $4, false)) DESC, created_at, id LIMIT $3",
                    row::OF_ACCOUNT
                ),
                vec![
                    (Box::new(ids.to_vec()), Type::UUID_ARRAY),
                    (Box::new(patterns.to_vec()), Type::TEXT_ARRAY),
                    (Box::new(most), Type::INT8),
                    (Box::new(account.map(str::to_owned)), Type::TEXT),
                ],
            )
        };
        match query(account) {
            // As in `of_account`.
            Err(StoreError::InvalidValue(_)) if account.is_some_and(|it| !it.is_ascii()) => {
                query(None)
            }
            found => found,
        }
    }

    /// Registers a webhook.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn add(
        &self,
        post_url: &str,
        events: &[String],
        secret: &Secret,
        settings: Vec<ColumnChange>,
    ) -> Result<Registered, StoreError> {
        let mut parameters: Vec<Owned> = vec![
            (Box::new(post_url.to_owned()), Type::TEXT),
            (Box::new(events.to_vec()), Type::TEXT_ARRAY),
            (Box::new(secret.expose().to_owned()), Type::TEXT),
        ];
        let (mut columns, mut values) = (String::new(), String::new());
        for change in settings {
            columns += &format!(", {}", change.column);
            values += &format!(", {}", change.push_to(&mut parameters));
        }
        let added = self.returned_by(
            &format!(
                "INSERT INTO webhooks (post_url, events, secret, created_at{columns})
                 VALUES ($1, $2, $3, {NOW_IN_UTC}{values}) RETURNING id"
            ),
            parameters,
        )?;
        let added = added.into_iter().next();
        added.ok_or_else(|| StoreError::failing(self.place(), "the INSERT returned no row"))
    }

    /// Changes at least one setting or the secret of a webhook. `None` if it doesn't exist.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set(
        &self,
        id: Uuid,
        settings: Vec<ColumnChange>,
        secret: Option<NewSecret>,
    ) -> Result<Option<Registered>, StoreError> {
        let mut parameters: Vec<Owned> = vec![(Box::new(id), Type::UUID)];
        let mut changes: Vec<_> = settings
            .into_iter()
            .map(|change| {
                let column = change.column;
                format!("{column} = {}", change.push_to(&mut parameters))
            })
            .collect();
        changes.extend(secret.map(|secret| secret.push_to(&mut parameters)));
        let changes = changes.join(", ");
        let changed = self.returned_by(
            &format!("UPDATE webhooks SET {changes} WHERE id = $1 RETURNING id"),
            parameters,
        );
        changed.map(|mut changed| changed.pop())
    }

    /// Deletes a webhook and returns it as it was; `None` if it doesn't exist.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, id: Uuid) -> Result<Option<Registered>, StoreError> {
        self.query_once(move |client| {
            let was = read(client, &[id])?;
            let removed =
                client.execute_typed("DELETE FROM webhooks WHERE id = $1", &[(&id, Type::UUID)])?;
            Ok(was.into_iter().next().filter(|_| removed > 0))
        })
    }

    /// Disables a webhook for this reason, or with `None` enables it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_disabled(
        &self,
        id: Uuid,
        reason: Option<&str>,
    ) -> Result<Option<Registered>, StoreError> {
        let changed = self.returned_by(
            "UPDATE webhooks SET disabled_reason = $2,
                 disabled_at = CASE WHEN $2 IS NULL THEN NULL ELSE coalesce(disabled_at, now()) END
             WHERE id = $1 RETURNING id",
            vec![(Box::new(id), Type::UUID), (Box::new(reason.map(str::to_owned)), Type::TEXT)],
        );
        changed.map(|mut changed| changed.pop())
    }

    /// Pauses or resumes a webhook. If it is paused already, it keeps its `paused_at`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn set_paused(&self, id: Uuid, is_paused: bool) -> Result<Option<Registered>, StoreError> {
        let changed = self.returned_by(
            "UPDATE webhooks SET paused_at = CASE WHEN $2 THEN coalesce(paused_at, now()) END
             WHERE id = $1 RETURNING id",
            vec![(Box::new(id), Type::UUID), (Box::new(is_paused), Type::BOOL)],
        );
        changed.map(|mut changed| changed.pop())
    }

    /// The webhooks whose ids a statement returns, in its order. The statement takes effect even if their
    /// rows can't be read.
    fn returned_by(
        &self,
        statement: &str,
        parameters: Vec<Owned>,
    ) -> Result<Vec<Registered>, StoreError> {
        let statement = statement.to_owned();
        let mut session = self.unnamed_session();
        let ids: Vec<Uuid> = session.run(move |client| {
            let parameters: Vec<Parameter<'_>> =
                parameters.iter().map(|(value, kind)| (&**value as _, kind.clone())).collect();
            let rows = client.query_typed(&statement, &parameters)?;
            rows.iter().map(|row| row.try_get(0)).collect()
        })?;
        let mut all = Vec::with_capacity(ids.len());
        for part in ids.chunks(row::CHUNK).map(<[Uuid]>::to_vec) {
            all.extend(session.run(move |client| read(client, &part))?);
        }
        session.keep();
        Ok(all)
    }
}

/// The webhooks with these ids, in this order.
fn read(client: &mut Client, ids: &[Uuid]) -> Result<Vec<Registered>, postgres::Error> {
    let columns = Registered::columns();
    let found = row::each(client, &columns, ids, Registered::of, Registered::unreadable)?;
    let mut found: HashMap<Uuid, Registered> =
        found.into_iter().map(|webhook| (webhook.id, webhook)).collect();
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}
