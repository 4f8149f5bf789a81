//! Hearing of changes of the table: LISTEN, and the proof that it still works.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use r2d2::ManageConnection;
use uuid::Uuid;

use super::connector::{ConnectError, Connector};
use super::{Store, StoreError, explain, is_closing};

/// What the trigger of `sql/004_notify.sql` notifies.
const CHANNEL: &str = "webhooks_changed";

/// The trigger, if it fires: it can be disabled (D), or fire for replication only (R).
const TRIGGER: &str = "tgrelid::text AS relation FROM pg_trigger
     WHERE tgrelid = to_regclass('webhooks') AND tgname = $1 AND tgenabled IN ('O', 'A')";

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

/// Why nothing is heard any more.
#[derive(Clone, Debug)]
pub struct NotListening {
    /// What ended it, or kept it from beginning.
    pub error: StoreError,
    /// What that says about PostgreSQL.
    pub sign: Sign,
}

/// A sign of life, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// PostgreSQL said so itself. It may only have no place for one more connection.
    Answer,
    /// The connection broke, or there was none.
    Break,
    /// The connection stands, and nothing comes.
    Silence,
}

impl From<postgres::Error> for NotListening {
    fn from(error: postgres::Error) -> Self {
        let answered = error.as_db_error().is_some() && !is_closing(&error);
        let sign = if answered { Sign::Answer } else { Sign::Break };
        Self { error: explain(&error), sign }
    }
}

impl From<ConnectError> for NotListening {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Postgres(error) => error.into(),
            other => {
                let is_silent = matches!(other, ConnectError::Silent { .. });
                let sign = if is_silent { Sign::Silence } else { Sign::Break };
                Self { error: other.into(), sign }
            }
        }
    }
}

impl Store {
    /// Listens for changes of the table until `hear` returns false, or the connection fails, and
    /// says how. On a connection of its own.
    ///
    /// Once a second it notifies itself, and says [`Heard::Alive`] when it has heard that: whatever
    /// came before it on the way was heard too. So neither a dead network nor a pooler that forgets
    /// what we listen to looks like a table that never changes.
    pub fn listen(&self, mut hear: impl FnMut(Heard) -> bool) -> NotListening {
        let mut config = self.config.clone();
        config.application_name("webhook-notifier directory");
        let connected = Connector::new(config, &self.tls).connect().map_err(NotListening::from);
        match connected.and_then(|mut client| listen_on(&mut client, &mut hear)) {
            Ok(()) => lost("nobody wants to hear"),
            Err(ended) => ended,
        }
    }

    /// Whether the table tells of its changes, as [`Store::listen`] needs it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tells_of_changes(&self) -> Result<bool, StoreError> {
        let asked = format!("SELECT {TRIGGER}");
        let rows = self.connect()?.query_typed(&asked, &[(&CHANNEL, Type::TEXT)]);
        rows.map(|rows| !rows.is_empty()).map_err(|error| explain(&error))
    }
}

fn lost(how: &str) -> NotListening {
    NotListening { error: StoreError::Unavailable(how.to_owned()), sign: Sign::Break }
}

fn listen_on(
    client: &mut Client,
    hear: &mut impl FnMut(Heard) -> bool,
) -> Result<(), NotListening> {
    client.batch_execute(&format!("LISTEN {CHANNEL}"))?;
    let proof = Uuid::new_v4().to_string();
    let table = prove(client, &proof)?;
    let mut proved = Instant::now();
    if !hear(Heard::Listening) {
        return Ok(());
    }
    loop {
        let due = PROOF_INTERVAL.saturating_sub(proved.elapsed());
        let heard = client.notifications().timeout_iter(due).next();
        let heard = match heard? {
            Some(notification) if notification.payload() == table => Some(Heard::Changed),
            Some(notification) if notification.payload() == proof => Some(Heard::Alive),
            // Another table of that name, or another notifier's proof.
            Some(_) => None,
            None if client.is_closed() => return Err(lost("connection lost")),
            None => None,
        };
        if heard.is_some_and(|heard| !hear(heard)) {
            return Ok(());
        }
        if proved.elapsed() >= PROOF_INTERVAL {
            proved = Instant::now();
            if prove(client, &proof)? != table {
                return Err(lost("the table was replaced"));
            }
        }
    }
}

/// Notifies ourselves, and makes sure that the table does. Returns how the table calls itself.
fn prove(client: &mut Client, proof: &str) -> Result<String, NotListening> {
    let asked = format!("SELECT pg_notify($1, $2), {TRIGGER}");
    let rows = client.query_typed(&asked, &[(&CHANNEL, Type::TEXT), (&proof, Type::TEXT)])?;
    let row = rows.first().ok_or_else(|| NotListening {
        error: StoreError::Misconfigured(
            "the table `webhooks` does not tell of its changes: run `webhook-notifier migrate` on \
             this database"
                .to_owned(),
        ),
        sign: Sign::Answer,
    })?;
    Ok(row.try_get("relation")?)
}
