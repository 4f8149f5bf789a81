//! Checks whether this user has the rights that `run` needs: executes its statements so that they affect no
//! row.

use postgres::{Client, error::SqlState};

use super::{Store, StoreError, conditions, explain, instances};

/// The consequence if this user may not use the table of instances.
pub const UNSHARED_LIMITS: &str = "each instance keeps the limits of webhooks (max_in_flight, \
     rate_per_second) by itself, so two instances send twice as much";

/// The statements of `run`, each with the consequence if it is forbidden. They affect no row, but
/// PostgreSQL requires the same rights for them.
const STATEMENTS: [(&str, &str); 7] = [
    (
        "a webhook that answers 410 stays enabled",
        "UPDATE webhooks SET disabled_at = now(), disabled_reason = '' WHERE false",
    ),
    (
        "no backlog can be created: deliveries that have to wait for their receiver lose their order",
        "INSERT INTO backlogs (queue, webhook_id, cause, class)
         SELECT '', NULL::uuid, '', '' WHERE false
         ON CONFLICT (queue, webhook_id) DO UPDATE
         SET cause = excluded.cause, class = excluded.class, until = NULL, since = now(),
             closing_at = NULL",
    ),
    ("no backlog can be removed", "DELETE FROM backlogs WHERE closing_at IS NOT NULL AND false"),
    (
        "webhooks.events does not report webhooks that fail or change, and DISABLE_AFTER disables none",
        conditions::STATEMENTS,
    ),
    (UNSHARED_LIMITS, instances::STATEMENTS),
    (
        "nothing is logged for `why` and `tail`",
        "INSERT INTO delivery_attempts (at, event_id, event_type, queue, outcome, attempt, detail)
         SELECT now(), '', '', '', '', 0, '' WHERE false",
    ),
    (
        "the delivery log grows without limit",
        "DELETE FROM delivery_attempts WHERE id = ANY(ARRAY(
             SELECT id FROM delivery_attempts WHERE false FOR UPDATE SKIP LOCKED))",
    ),
];

/// The index of the first statement that concerns the delivery log.
const OF_LOG: usize = 5;

impl Store {
    /// Checks the rights that `run` needs besides reading. Returns the consequence of each missing right,
    /// and the error with the remedy. `with_log`: whether the delivery log is on.
    ///
    /// # Errors
    /// [`StoreError`] if they can't be checked.
    pub fn missing_rights(
        &self,
        with_log: bool,
    ) -> Result<Vec<(&'static str, StoreError)>, StoreError> {
        let place = std::sync::Arc::clone(self.place());
        self.query_once(move |client| {
            let statements = if with_log { &STATEMENTS[..] } else { &STATEMENTS[..OF_LOG] };
            let mut missing = Vec::new();
            for (follows, statement) in statements {
                if let Err(error) = attempt(client, statement) {
                    // An error without a code concerns the connection.
                    if error.as_db_error().is_none() {
                        return Err(error);
                    }
                    let is_missing = error.code() == Some(&SqlState::UNDEFINED_TABLE);
                    // A missing table is reported elsewhere, and isn't about rights.
                    if !is_missing {
                        missing.push((*follows, explain(&place, &error)));
                    }
                }
            }
            Ok(missing)
        })
    }
}

/// Executes the statement and rolls it back, so that not even a trigger's notification is sent.
fn attempt(client: &mut Client, statement: &str) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(statement)?;
    transaction.rollback()
}
