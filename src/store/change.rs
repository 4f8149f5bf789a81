//! A change of a webhook as the commands express it.

use std::fmt;
use std::time::Duration;

use postgres::types::Type;

use crate::domain::secret::Secret;
use crate::domain::settings::Column;

/// A statement's parameter that can be sent to another thread, and its type.
pub(super) type Owned = (Box<dyn postgres::types::ToSql + Sync + Send>, Type);

/// The new value of one column of a webhook.
pub struct ColumnChange {
    /// The column.
    pub(super) column: &'static str,
    /// The value in a form that PostgreSQL parses; `None` for NULL. It may be a secret, so `Debug` omits it.
    value: Owned,
    /// The column's type.
    kind: &'static str,
}

impl fmt::Debug for ColumnChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ColumnChange").field("column", &self.column).finish_non_exhaustive()
    }
}

impl ColumnChange {
    /// Sets the value of a setting's column; `None` removes the setting.
    #[must_use]
    pub fn new(column: Column, value: Option<&Secret>) -> Self {
        let kind = match column {
            Column::Headers => "jsonb",
            Column::TimeoutMs | Column::MaxInFlight => "integer",
            Column::RatePerSecond => "double precision",
            Column::NoRetryStatus | Column::Description | Column::Account => "text",
        };
        let value = value.map(|value| value.expose().to_owned());
        Self { column: column.name(), value: (Box::new(value), Type::TEXT), kind }
    }

    /// Sets the URL.
    #[must_use]
    pub fn url(url: &str) -> Self {
        Self { column: "post_url", value: (Box::new(url.to_owned()), Type::TEXT), kind: "text" }
    }

    /// Sets the patterns, replacing all others.
    #[must_use]
    pub fn events(patterns: &[String]) -> Self {
        let value: Owned = (Box::new(patterns.to_vec()), Type::TEXT_ARRAY);
        Self { column: "events", value, kind: "text[]" }
    }

    /// Appends the value to a statement's parameters, and returns its placeholder with the column's type.
    pub(super) fn push_to(self, parameters: &mut Vec<Owned>) -> String {
        parameters.push(self.value);
        format!("${}::{}", parameters.len(), self.kind)
    }
}

/// A webhook's new secret, and the time during which the old one signs as well.
#[derive(Debug)]
pub struct NewSecret {
    /// The new secret; the caller has checked it.
    pub secret: Secret,
    /// How long the old secret continues to sign; with zero it ends at once.
    pub keep: Duration,
}

impl NewSecret {
    /// Appends its two values to a statement's parameters, and returns the assignments. Setting the same
    /// secret again changes nothing: the previous secret stays.
    pub(super) fn push_to(self, parameters: &mut Vec<Owned>) -> String {
        let first = parameters.len() + 1;
        let (secret, keep) = (format!("${first}"), format!("${}", first + 1));
        parameters.push((Box::new(self.secret.expose().to_owned()), Type::TEXT));
        parameters.push((Box::new(self.keep.as_secs_f64()), Type::FLOAT8));
        // On the right of SET, columns have their old values.
        format!(
            "secret = {secret},
             previous_secret = CASE
                 WHEN {keep} > 0 AND secret = {secret} THEN previous_secret
                 WHEN {keep} > 0 THEN secret END,
             previous_secret_expires_at = CASE
                 WHEN {keep} > 0 AND secret = {secret} THEN previous_secret_expires_at
                 WHEN {keep} > 0 AND secret IS NOT NULL
                     THEN now() + make_interval(secs => {keep}) END"
        )
    }
}
