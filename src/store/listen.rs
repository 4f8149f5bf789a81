//! Hearing of changes of the table: LISTEN, and the proof that it still works.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use uuid::Uuid;

use super::{Store, StoreError, connect, explain};
use crate::store::connector::Connector;

/// What the trigger of `sql/004_notify.sql` notifies.
const CHANNEL: &str = "webhooks_changed";

/// How often the connection has to prove itself.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From now on every change is heard; what was known before may be old.
    Listening,
    /// The table has changed.
    Changed,
    /// No change was missed so far.
    Alive,
}

impl Store {
    /// Listens for changes of the table until `hear` returns false, or the connection fails, and
    /// says how. On a connection of its own.
    ///
    /// Once a second it notifies itself, and says [`Heard::Alive`] when it has heard that: whatever
    /// came before it on the way was heard too. So neither a dead network nor a pooler that forgets
    /// what we listen to looks like a table that never changes.
    pub fn listen(&self, mut hear: impl FnMut(Heard) -> bool) -> StoreError {
        let mut config = self.config.clone();
        config.application_name("webhook-notifier directory");
        let listened = connect(&Connector::new(config))
            .and_then(|mut client| listen_on(&mut client, &mut hear));
        listened.err().unwrap_or_else(|| StoreError::Unavailable("nobody listens".to_owned()))
    }
}

fn listen_on(client: &mut Client, hear: &mut impl FnMut(Heard) -> bool) -> Result<(), StoreError> {
    client.batch_execute(&format!("LISTEN {CHANNEL}")).map_err(|error| explain(&error))?;
    let proof = Uuid::new_v4().to_string();
    let table = prove(client, &proof)?;
    let mut proved = Instant::now();
    if !hear(Heard::Listening) {
        return Ok(());
    }
    loop {
        let due = PROOF_INTERVAL.saturating_sub(proved.elapsed());
        let heard = client.notifications().timeout_iter(due).next();
        let heard = match heard.map_err(|error| explain(&error))? {
            Some(notification) if notification.payload() == table => Some(Heard::Changed),
            Some(notification) if notification.payload() == proof => Some(Heard::Alive),
            // Another table of that name, or another notifier's proof.
            Some(_) => None,
            None if client.is_closed() => {
                return Err(StoreError::Unavailable("connection lost".to_owned()));
            }
            None => None,
        };
        if heard.is_some_and(|heard| !hear(heard)) {
            return Ok(());
        }
        if proved.elapsed() >= PROOF_INTERVAL {
            proved = Instant::now();
            if prove(client, &proof)? != table {
                return Err(StoreError::Unavailable("the table was replaced".to_owned()));
            }
        }
    }
}

/// Notifies ourselves, and makes sure that the table does. Returns how the table calls itself.
fn prove(client: &mut Client, proof: &str) -> Result<String, StoreError> {
    // A trigger can be disabled (D), or fire for replication only (R).
    let asked = client.query_typed(
        "SELECT pg_notify($1, $2), tgrelid::text AS relation FROM pg_trigger
         WHERE tgrelid = to_regclass('webhooks') AND tgname = $1 AND tgenabled IN ('O', 'A')",
        &[(&CHANNEL, Type::TEXT), (&proof, Type::TEXT)],
    );
    let rows = asked.map_err(|error| explain(&error))?;
    let row = rows.first().ok_or_else(|| {
        StoreError::Misconfigured(
            "the table `webhooks` does not tell of its changes: run `webhook-notifier migrate` on \
             this database"
                .to_owned(),
        )
    })?;
    row.try_get("relation").map_err(|error| explain(&error))
}
