//! Since when webhooks have been failing, as the notifiers have recorded it.

use std::collections::HashMap;

use uuid::Uuid;

use super::time::rfc3339_seconds;
use super::{Store, StoreError};

/// How many rows are read at most: more than a process remembers receivers.
const MOST_ROWS: usize = 20_000;

impl Store {
    /// Since when each failing webhook has had no success, in RFC 3339, to the second. Empty if the table doesn't exist or
    /// may not be read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn failing_since(&self) -> Result<HashMap<Uuid, String>, StoreError> {
        let since = rfc3339_seconds("greatest(failing_since, succeeded_at, rested_at)");
        self.query(move |client| {
            let may_be_read =
                "SELECT 1 WHERE has_table_privilege(to_regclass('webhook_conditions'), 'SELECT')";
            if client.query_typed(may_be_read, &[])?.is_empty() {
                return Ok(HashMap::new());
            }
            let failing = format!(
                "SELECT webhook_id, {since} AS since FROM webhook_conditions
                 WHERE failing_since IS NOT NULL AND isfinite(failing_since)
                     AND failed_at > coalesce(succeeded_at, '-infinity') LIMIT {MOST_ROWS}"
            );
            let rows = client.query_typed(&failing, &[])?;
            rows.iter().map(|row| Ok((row.try_get("webhook_id")?, row.try_get("since")?))).collect()
        })
    }
}
