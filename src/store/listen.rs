//! Notifications of changes of the tables: LISTEN, and proofs that it still works.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postgres::fallible_iterator::FallibleIterator;
use postgres::types::Type;
use postgres::{Client, Notification, Row};
use r2d2::ManageConnection;
use uuid::Uuid;

use super::connector::{ConnectError, Connector};
use super::instances::INSTANCES;
use super::{Store, StoreError, bounded_by_timeout, connect, explain, is_closing, no_answer};
use crate::domain::webhook::Scope;

/// The channel of the triggers of `sql/015_changes.sql`.
const CHANNEL: &str = "webhooks_changed";

/// The channel of the trigger of `sql/008_backlogs.sql`.
const BACKLOGS_CHANNEL: &str = "backlogs_changed";

/// The channel on which instances announce that they come or go.
pub(super) const INSTANCES_CHANNEL: &str = "notifier_instances_changed";

/// The identity of each table if its triggers fire: they can be disabled (D), or fire only for
/// replication (R). Those of the webhooks together have to fire for INSERT, DELETE, UPDATE and TRUNCATE
/// (4 | 8 | 16 | 32 in `tgtype`); before `sql/015_changes.sql` a single one did, with less detail.
pub(super) const TRIGGERS: &str = "
     (SELECT min(tgrelid::text) FROM pg_trigger WHERE tgrelid = to_regclass('webhooks')
          AND tgname IN ('webhooks_inserted', 'webhooks_deleted', 'webhooks_updated',
                         'webhooks_truncated', 'webhooks_changed')
          AND tgenabled IN ('O', 'A')
      HAVING (bit_or(tgtype) & 60) = 60) AS webhooks,
     (SELECT tgrelid::text FROM pg_trigger WHERE tgrelid = to_regclass('backlogs')
          AND tgname = 'backlogs_changed' AND tgenabled IN ('O', 'A')) AS backlogs";

/// How often the connection has to be proved.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// How long the first proof may take after PostgreSQL accepted it: milliseconds, or more on a busy
/// machine.
const FIRST_PROOF_PATIENCE: Duration = Duration::from_secs(2);

/// The same for later proofs. Together with their interval it is less than the silence after which the
/// caller considers the server gone.
const PROOF_PATIENCE: Duration = Duration::from_millis(900);

/// A notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// From now on every change is reported; what was known before may be outdated.
    Listening,
    /// The table of webhooks has changed; with the scope of the change.
    Changed(Scope),
    /// Backlogs were added or removed, or one is closing or open again.
    Backlogs,
    /// Instances were added or removed.
    Instances,
    /// No change has been missed so far.
    Alive,
}

/// Why listening ended.
#[derive(Clone, Debug)]
pub struct NotListening {
    /// The error that ended it, or prevented it.
    pub error: StoreError,
    /// What that says about PostgreSQL.
    pub sign: Sign,
}

/// Whether there was a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// PostgreSQL answered. It may only have no free connections.
    Answer,
    /// The connection broke, or there was none.
    Break,
    /// The connection stands, but nothing arrives.
    Silence,
}

impl NotListening {
    fn of(place: &Arc<str>, error: &postgres::Error) -> Self {
        let answered = error.as_db_error().is_some() && !is_closing(error);
        let sign = if answered { Sign::Answer } else { Sign::Break };
        Self { error: explain(place, error), sign }
    }

    fn of_connecting(place: &Arc<str>, error: &ConnectError) -> Self {
        let sign = match error.most_telling() {
            ConnectError::Postgres(error) => Self::of(place, error).sign,
            other if other.is_silence() => Sign::Silence,
            _ => Sign::Break,
        };
        Self { error: StoreError::of_connecting(place, error), sign }
    }

    /// PostgreSQL answers, but something makes listening impossible.
    fn in_vain(place: &Arc<str>, why: impl Into<String>) -> Self {
        Self { error: StoreError::misconfigured(place, why), sign: Sign::Answer }
    }
}

impl Store {
    /// Listens for changes of the tables until `hear` returns false or the connection fails, and returns
    /// how it ended. Uses its own connection, and another one for proofs.
    ///
    /// Once a second the other connection sends a notification, and [`Heard::Alive`] is reported when it
    /// has arrived: then everything committed before has arrived too. So neither a dead network nor a
    /// pooler looks like a table that never changes. (A pooler that lends sessions per transaction
    /// delivers only what we notify ourselves while we do so, and nothing from others.)
    pub fn listen(&self, hear: impl FnMut(Heard) -> bool) -> NotListening {
        let listener = self.connector.named("webhook-notifier directory");
        let prover = self.connector.named("webhook-notifier proof");
        listen_between(&listener, &prover, hear)
    }

    /// Checks that every change of the tables is reported, as [`Store::listen`] needs it; otherwise says
    /// why not.
    ///
    /// # Errors
    /// [`StoreError`] if there is no connection.
    pub fn hears_changes(&self) -> Result<Result<(), StoreError>, StoreError> {
        let connector = self.connector.named("webhook-notifier check");
        let tried = bounded_by_timeout(&self.connector, move || {
            drop(connect(&connector)?);
            let mut is_heard = false;
            let ended = listen_between(&connector, &connector, |heard| {
                is_heard = heard == Heard::Listening;
                false
            });
            Ok(if is_heard { Ok(()) } else { Err(ended.error) })
        });
        tried.unwrap_or_else(|| Err(no_answer(self.place())))
    }
}

fn listen_between(
    listener: &Connector,
    prover: &Connector,
    mut hear: impl FnMut(Heard) -> bool,
) -> NotListening {
    let place = listener.place();
    let connect = |connector: &Connector| {
        connector.connect().map_err(|error| NotListening::of_connecting(place, &error))
    };
    let listened = connect(listener).and_then(|listener| {
        let prover = connect(prover)?;
        Listening { place, listener, prover, proof: Uuid::new_v4().to_string() }.go_on(&mut hear)
    });
    listened.err().unwrap_or_else(|| lost(place, "nobody wants to hear"))
}

fn lost(place: &Arc<str>, how: &str) -> NotListening {
    NotListening { error: StoreError::unavailable(place, how), sign: Sign::Break }
}

/// Two sessions: one has to receive what the other sends.
struct Listening<'a> {
    place: &'a Arc<str>,
    listener: Client,
    prover: Client,
    /// The payload of the proofs.
    proof: String,
}

impl Listening<'_> {
    fn go_on(mut self, hear: &mut impl FnMut(Heard) -> bool) -> Result<(), NotListening> {
        let place = self.place;
        let broken = |error: postgres::Error| NotListening::of(place, &error);
        let listen =
            [CHANNEL, BACKLOGS_CHANNEL, INSTANCES_CHANNEL].map(|it| format!("LISTEN {it};"));
        self.listener.batch_execute(&listen.concat()).map_err(broken)?;
        let mut told = self.prove()?;
        let mut proved = Instant::now();
        // Whether a proof is on its way, and whether one has arrived before.
        let (mut is_open, mut is_listening) = (true, false);
        loop {
            let patience = if is_listening { PROOF_PATIENCE } else { FIRST_PROOF_PATIENCE };
            let limit = if is_open { patience } else { PROOF_INTERVAL };
            let due = limit.saturating_sub(proved.elapsed());
            let heard = self.listener.notifications().timeout_iter(due).next().map_err(broken)?;
            let heard = match heard {
                Some(notification) => told.heard(&notification, &self.proof),
                None if self.listener.is_closed() => return Err(lost(place, "connection lost")),
                None => None,
            };
            let heard = match heard {
                Some(Heard::Alive) => {
                    is_open = false;
                    let is_first = !std::mem::replace(&mut is_listening, true);
                    Some(if is_first { Heard::Listening } else { Heard::Alive })
                }
                // Nobody relies on what arrives before the first proof.
                other => other.filter(|_| is_listening),
            };
            if heard.is_some_and(|heard| !hear(heard)) {
                return Ok(());
            }
            if is_open && proved.elapsed() >= patience {
                return Err(self.end_deaf(is_listening));
            }
            if !is_open && proved.elapsed() >= PROOF_INTERVAL {
                let now = self.prove()?;
                if !now.are_those_of(&told) {
                    return Err(lost(place, "a table was replaced"));
                }
                told = now;
                (proved, is_open) = (Instant::now(), true);
            }
        }
    }

    /// Sends a proof from one session to the other, and checks that the tables notify. Returns the
    /// tables' identities.
    fn prove(&mut self) -> Result<Told, NotListening> {
        let broken = |error: postgres::Error| NotListening::of(self.place, &error);
        let asked = format!("SELECT pg_notify($1, $2), {INSTANCES} AS instances, {TRIGGERS}");
        let parameters: [super::Parameter<'_>; 2] =
            [(&CHANNEL, Type::TEXT), (&self.proof, Type::TEXT)];
        let rows = self.prover.query_typed(&asked, &parameters).map_err(broken)?;
        let told = rows.first().ok_or_else(|| lost(self.place, "no row came back"))?;
        let told = Told::of(told).map_err(broken)?;
        match told.silent() {
            None => Ok(told),
            Some(table) => Err(NotListening::in_vain(
                self.place,
                format!(
                    "the table `{table}` does not notify its changes: run `webhook-notifier \
                     migrate` on this database"
                ),
            )),
        }
    }

    /// PostgreSQL sent a proof, and it hasn't arrived.
    fn end_deaf(mut self, was_listening: bool) -> NotListening {
        // A session that a pooler lent us for LISTEN would continue to listen for its next user. A
        // session of our own may be cut off from the network, so nothing is asked of it.
        if !was_listening {
            let _ = self.listener.batch_execute("UNLISTEN *");
        }
        NotListening::in_vain(
            self.place,
            "notifications do not get from one session to another: a pooler in between lends sessions \
             for a transaction (PgBouncer: pool_mode = transaction). Let DATABASE_URL bypass it, or lead \
             to a pool with pool_mode = session",
        )
    }
}

/// The identities of the tables that notify changes, and of the instances' table, which may be missing.
struct Told {
    webhooks: Option<String>,
    backlogs: Option<String>,
    instances: Option<String>,
}

impl Told {
    fn of(row: &Row) -> Result<Self, postgres::Error> {
        let [webhooks, backlogs, instances] =
            ["webhooks", "backlogs", "instances"].map(|name| row.try_get(name));
        Ok(Self { webhooks: webhooks?, backlogs: backlogs?, instances: instances? })
    }

    /// Whether the tables are the same as before.
    fn are_those_of(&self, other: &Self) -> bool {
        self.webhooks == other.webhooks && self.backlogs == other.backlogs
    }

    /// The first table that doesn't notify.
    fn silent(&self) -> Option<&'static str> {
        let tables = [("webhooks", &self.webhooks), ("backlogs", &self.backlogs)];
        tables.into_iter().find(|(_, relation)| relation.is_none()).map(|(name, _)| name)
    }

    /// `None` for another table of the same name, or another notifier's proof.
    fn heard(&self, notification: &Notification, proof: &str) -> Option<Heard> {
        let payload = Some(notification.payload());
        match notification.channel() {
            CHANNEL if payload == Some(proof) => Some(Heard::Alive),
            CHANNEL => changed(notification.payload(), self.webhooks.as_deref()?),
            BACKLOGS_CHANNEL if payload == self.backlogs.as_deref() => Some(Heard::Backlogs),
            INSTANCES_CHANNEL if payload == self.instances.as_deref() => Some(Heard::Instances),
            _ => None,
        }
    }
}

/// What a notification says about a change of this relation; `None` for another one.
fn changed(payload: &str, relation: &str) -> Option<Heard> {
    let scope = match payload.strip_prefix(relation)? {
        "" => Scope::everything(),
        more => Scope::read(more.strip_prefix(' ')?),
    };
    Some(Heard::Changed(scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_of_the_table_that_it_names() {
        let everything = || Some(Heard::Changed(Scope::everything()));
        assert_eq!(changed("1234", "1234"), everything());
        assert_eq!(changed("12345", "1234"), None);
        let nothing = r#"1234 {"ids" : [], "patterns" : [], "accounts" : [], "everybody" : false}"#;
        assert_eq!(changed(nothing, "1234"), Some(Heard::Changed(Scope::default())));
        assert_eq!(changed(nothing, "123"), None);
        assert_eq!(changed("a proof", "1234"), None);
        assert_eq!(changed("1234 {\"ids\" : [", "1234"), everything());
    }
}
