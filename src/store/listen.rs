//! Hearing of changes of the tables: LISTEN, and the proof that it still works.

use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use postgres::{Client, Notification, Row};
use r2d2::ManageConnection;
use uuid::Uuid;

use super::connector::{ConnectError, Connector};
use super::{Store, StoreError, explain, is_closing};

/// What the trigger of `sql/004_notify.sql` notifies.
const CHANNEL: &str = "webhooks_changed";

/// What the trigger of `sql/008_backlogs.sql` notifies.
const BACKLOGS_CHANNEL: &str = "backlogs_changed";

/// How each table calls itself, if its trigger fires: that can be disabled (D), or fire for
/// replication only (R).
const TRIGGERS: &str = "
     (SELECT tgrelid::text FROM pg_trigger WHERE tgrelid = to_regclass('webhooks')
          AND tgname = 'webhooks_changed' AND tgenabled IN ('O', 'A')) AS webhooks,
     (SELECT tgrelid::text FROM pg_trigger WHERE tgrelid = to_regclass('backlogs')
          AND tgname = 'backlogs_changed' AND tgenabled IN ('O', 'A')) AS backlogs";

/// How often the connection has to prove itself.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From now on every change is heard; what was known before may be old.
    Listening,
    /// The table of webhooks has changed.
    Changed,
    /// There are more backlogs or fewer, or one is closing, or open again.
    Backlogs,
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
    /// Listens for changes of the tables until `hear` returns false, or the connection fails, and
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

    /// Whether the tables tell of their changes, as [`Store::listen`] needs it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn tells_of_changes(&self) -> Result<bool, StoreError> {
        let asked = format!("SELECT {TRIGGERS}");
        let rows = self.connect()?.query_typed(&asked, &[]);
        let told = rows.and_then(|rows| rows.first().map(Told::of).transpose());
        let told = told.map_err(|error| explain(&error))?;
        Ok(told.is_some_and(|told| told.silent().is_none()))
    }
}

fn lost(how: &str) -> NotListening {
    NotListening { error: StoreError::Unavailable(how.to_owned()), sign: Sign::Break }
}

fn listen_on(
    client: &mut Client,
    hear: &mut impl FnMut(Heard) -> bool,
) -> Result<(), NotListening> {
    client.batch_execute(&format!("LISTEN {CHANNEL}; LISTEN {BACKLOGS_CHANNEL}"))?;
    let proof = Uuid::new_v4().to_string();
    let told = prove(client, &proof)?;
    let mut proved = Instant::now();
    if !hear(Heard::Listening) {
        return Ok(());
    }
    loop {
        let due = PROOF_INTERVAL.saturating_sub(proved.elapsed());
        let heard = client.notifications().timeout_iter(due).next();
        let heard = match heard? {
            Some(notification) => told.heard(&notification, &proof),
            None if client.is_closed() => return Err(lost("connection lost")),
            None => None,
        };
        if heard.is_some_and(|heard| !hear(heard)) {
            return Ok(());
        }
        if proved.elapsed() >= PROOF_INTERVAL {
            proved = Instant::now();
            if prove(client, &proof)? != told {
                return Err(lost("a table was replaced"));
            }
        }
    }
}

/// How the tables call themselves that tell of their changes.
#[derive(PartialEq, Eq)]
struct Told {
    webhooks: Option<String>,
    backlogs: Option<String>,
}

impl Told {
    fn of(row: &Row) -> Result<Self, postgres::Error> {
        Ok(Self { webhooks: row.try_get("webhooks")?, backlogs: row.try_get("backlogs")? })
    }

    /// The first table that does not.
    fn silent(&self) -> Option<&'static str> {
        let tables = [("webhooks", &self.webhooks), ("backlogs", &self.backlogs)];
        tables.into_iter().find(|(_, relation)| relation.is_none()).map(|(name, _)| name)
    }

    /// Nothing where it is of another table of that name, or another notifier's proof.
    fn heard(&self, notification: &Notification, proof: &str) -> Option<Heard> {
        let payload = Some(notification.payload());
        match notification.channel() {
            CHANNEL if payload == self.webhooks.as_deref() => Some(Heard::Changed),
            CHANNEL if payload == Some(proof) => Some(Heard::Alive),
            BACKLOGS_CHANNEL if payload == self.backlogs.as_deref() => Some(Heard::Backlogs),
            _ => None,
        }
    }
}

/// Notifies ourselves, and makes sure that the tables do. Returns how they call themselves.
fn prove(client: &mut Client, proof: &str) -> Result<Told, NotListening> {
    let asked = format!("SELECT pg_notify($1, $2), {TRIGGERS}");
    let rows = client.query_typed(&asked, &[(&CHANNEL, Type::TEXT), (&proof, Type::TEXT)])?;
    let told = rows.first().ok_or_else(|| lost("no row came back"))?;
    let told = Told::of(told)?;
    match told.silent() {
        None => Ok(told),
        Some(table) => Err(NotListening {
            error: StoreError::Misconfigured(format!(
                "the table `{table}` does not tell of its changes: run `webhook-notifier migrate` \
                 on this database"
            )),
            sign: Sign::Answer,
        }),
    }
}
