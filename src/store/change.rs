//! What of a webhook is to be other than it is, as the commands say it.

use std::fmt;
use std::time::Duration;

use postgres::types::Type;

use crate::domain::secret::Secret;
use crate::domain::settings::Column;

/// A parameter that another thread can have.
pub(super) type Owned = (Box<dyn postgres::types::ToSql + Sync + Send>, Type);

/// What of a webhook is to be what.
pub struct ColumnChange {
    /// The column where it stands.
    pub(super) column: &'static str,
    /// As PostgreSQL reads it; none, to have none. Perhaps a secret, so this does not print itself.
    value: Owned,
    /// What its column is.
    kind: &'static str,
}

impl fmt::Debug for ColumnChange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ColumnChange").field("column", &self.column).finish_non_exhaustive()
    }
}

impl ColumnChange {
    /// The setting in this column is to be that; `None` to have none.
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

    /// Its events are to go to this URL.
    #[must_use]
    pub fn url(url: &str) -> Self {
        Self { column: "post_url", value: (Box::new(url.to_owned()), Type::TEXT), kind: "text" }
    }

    /// It is to want events of these patterns, and of no others.
    #[must_use]
    pub fn events(patterns: &[String]) -> Self {
        let value: Owned = (Box::new(patterns.to_vec()), Type::TEXT_ARRAY);
        Self { column: "events", value, kind: "text[]" }
    }

    /// Makes the value a parameter of a statement, and says how it stands there, as what its column is.
    pub(super) fn joining(self, parameters: &mut Vec<Owned>) -> String {
        parameters.push(self.value);
        format!("${}::{}", parameters.len(), self.kind)
    }
}

/// A secret that a webhook is to have, and how long the one that it had goes on signing, too.
#[derive(Debug)]
pub struct NewSecret {
    /// Checked by whoever gives it.
    pub secret: Secret,
    /// Zero ends the other one at once.
    pub keep: Duration,
}

impl NewSecret {
    /// Makes both parameters of a statement, and says what is set to what. Set again, it changes
    /// nothing: the secret before it stays the one before it.
    pub(super) fn joining(self, parameters: &mut Vec<Owned>) -> String {
        let first = parameters.len() + 1;
        let (secret, keep) = (format!("${first}"), format!("${}", first + 1));
        parameters.push((Box::new(self.secret.expose().to_owned()), Type::TEXT));
        parameters.push((Box::new(self.keep.as_secs_f64()), Type::FLOAT8));
        // The columns on the right of SET are those of before.
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
