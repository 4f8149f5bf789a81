//! Checks whether this user may do what `run` does, by doing it to no row.

use postgres::{Client, error::SqlState};

use super::{Store, StoreError, conditions, explain, instances};

/// The consequence if the table of instances can't be used.
pub const EACH_BY_ITSELF: &str = "each instance keeps the limits of webhooks (max_in_flight, rate_per_second) by itself: two of them \
     send twice as much";

/// What `run` does, and the consequence if it isn't allowed. Each statement touches no row, which
/// PostgreSQL allows or refuses as if it did.
const WORK: [(&str, &str); 7] = [
    (
        "a webhook that answers 410 stays enabled",
        "UPDATE webhooks SET disabled_at = now(), disabled_reason = '' WHERE false",
    ),
    (
        "no backlog can be created: what a receiver can't take waits in no order",
        "INSERT INTO backlogs (queue, webhook_id, cause, class)
         SELECT '', NULL::uuid, '', '' WHERE false
         ON CONFLICT (queue, webhook_id) DO UPDATE
         SET cause = excluded.cause, class = excluded.class, until = NULL, since = now(),
             closing_at = NULL",
    ),
    ("no backlog can be removed", "DELETE FROM backlogs WHERE closing_at IS NOT NULL AND false"),
    (
        "webhooks.events tells nobody of webhooks that fail or are changed, and DISABLE_AFTER disables \
         none",
        conditions::WORK,
    ),
    (EACH_BY_ITSELF, instances::WORK),
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

/// The statements from here on concern the delivery log.
const OF_LOG: usize = 5;

impl Store {
    /// Tries what `run` does besides reading, on no row. Returns what would fail: the consequence, and
    /// the error with what to do. `with_log`: whether there is a delivery log to write.
    ///
    /// # Errors
    /// [`StoreError`] if it couldn't be tried.
    pub fn unable(&self, with_log: bool) -> Result<Vec<(&'static str, StoreError)>, StoreError> {
        let place = std::sync::Arc::clone(self.place());
        self.once(move |client| {
            let work = if with_log { &WORK[..] } else { &WORK[..OF_LOG] };
            let mut unable = Vec::new();
            for (follows, statement) in work {
                if let Err(error) = attempt(client, statement) {
                    // An error without a code is about the connection.
                    if error.as_db_error().is_none() {
                        return Err(error);
                    }
                    let is_missing = error.code() == Some(&SqlState::UNDEFINED_TABLE);
                    // A missing table is reported elsewhere, and isn't about rights.
                    if !is_missing {
                        unable.push((*follows, explain(&place, &error)));
                    }
                }
            }
            Ok(unable)
        })
    }
}

/// Undone, so that not even a trigger's notification remains.
fn attempt(client: &mut Client, statement: &str) -> Result<(), postgres::Error> {
    let mut transaction = client.transaction()?;
    transaction.batch_execute(statement)?;
    transaction.rollback()
}
