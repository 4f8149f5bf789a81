//! Notifications of changes of the tables: LISTEN, and regular proofs that notifications arrive.

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

/// The identity of each table if its triggers fire. (Triggers can be disabled (D), or fire only for
/// replication (R).) The triggers of `webhooks` together have to fire for INSERT, DELETE, UPDATE and
/// TRUNCATE (4 | 8 | 16 | 32 in `tgtype`); before `sql/015_changes.sql` a single one did, with less detail.
pub(super) const TRIGGERS: &str = "
     (SELECT min(tgrelid::text) FROM pg_trigger WHERE tgrelid = to_regclass('webhooks')
          AND tgname IN ('webhooks_inserted', 'webhooks_deleted', 'webhooks_updated',
                         'webhooks_truncated', 'webhooks_changed')
          AND tgenabled IN ('O', 'A')
      HAVING (bit_or(tgtype) & 60) = 60) AS webhooks,
     (SELECT tgrelid::text FROM pg_trigger WHERE tgrelid = to_regclass('backlogs')
          AND tgname = 'backlogs_changed' AND tgenabled IN ('O', 'A')) AS backlogs";

/// How often a proof is sent.
const PROOF_INTERVAL: Duration = Duration::from_secs(1);

/// How long the first proof may take to arrive after PostgreSQL accepted it. It takes milliseconds, or more
/// on a busy machine.
const FIRST_PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// The same for later proofs. Together with [`PROOF_INTERVAL`] it is less than the silence after which the
/// caller considers the server gone.
const PROOF_TIMEOUT: Duration = Duration::from_millis(900);

/// An event that a listener receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenEvent {
    /// From now on every change is reported. Earlier answers may be outdated.
    Listening,
    /// The table of webhooks has changed, within this scope.
    Changed(Scope),
    /// A backlog was added or removed, is closing, or was reopened.
    Backlogs,
    /// Instances were added or removed.
    Instances,
    /// A proof has arrived: no change has been missed so far.
    Alive,
}

/// Why listening ended, or could not begin.
#[derive(Clone, Debug)]
pub struct ListenEnd {
    /// The error that ended or prevented it.
    pub error: StoreError,
    /// Whether PostgreSQL is alive, by this error.
    pub sign: LifeSign,
}

/// What an error says about PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeSign {
    /// PostgreSQL answered. Perhaps it only lacks free connections.
    Answer,
    /// The connection broke, or could not be opened.
    Break,
    /// The connection is open, but nothing arrives.
    Silence,
}

impl ListenEnd {
    fn of(place: &Arc<str>, error: &postgres::Error) -> Self {
        let answered = error.as_db_error().is_some() && !is_closing(error);
        let sign = if answered { LifeSign::Answer } else { LifeSign::Break };
        Self { error: explain(place, error), sign }
    }

    fn of_connecting(place: &Arc<str>, error: &ConnectError) -> Self {
        let sign = match error.most_informative() {
            ConnectError::Postgres(error) => Self::of(place, error).sign,
            other if other.is_silence() => LifeSign::Silence,
            _ => LifeSign::Break,
        };
        Self { error: StoreError::of_connecting(place, error), sign }
    }

    /// PostgreSQL answers, but listening can't work.
    fn impossible(place: &Arc<str>, why: impl Into<String>) -> Self {
        Self { error: StoreError::misconfigured(place, why), sign: LifeSign::Answer }
    }
}

impl Store {
    /// Listens for changes of the tables until `on_event` returns false or the connection fails, and returns
    /// how it ended. Uses its own connection, and another one for proofs.
    ///
    /// Once a second the other connection sends a notification as a proof. When it has arrived,
    /// [`ListenEvent::Alive`] is reported: everything committed before it has arrived too. This way, a dead
    /// network or a pooler can't be mistaken for a table that never changes. (A pooler that assigns
    /// sessions per transaction delivers a notification only to the session that sends it.)
    pub fn listen(&self, on_event: impl FnMut(ListenEvent) -> bool) -> ListenEnd {
        let listener = self.connector.named("webhook-notifier directory");
        let prover = self.connector.named("webhook-notifier proof");
        listen_between(&listener, &prover, on_event)
    }

    /// Checks that [`Store::listen`] reports every change of the tables; the inner error says why not.
    ///
    /// # Errors
    /// [`StoreError`] if there is no connection.
    pub fn check_notifications(&self) -> Result<Result<(), StoreError>, StoreError> {
        let connector = self.connector.named("webhook-notifier check");
        let tried = bounded_by_timeout(&self.connector, move || {
            drop(connect(&connector)?);
            let mut listens = false;
            let ended = listen_between(&connector, &connector, |event| {
                listens = event == ListenEvent::Listening;
                false
            });
            Ok(if listens { Ok(()) } else { Err(ended.error) })
        });
        tried.unwrap_or_else(|| Err(no_answer(self.place())))
    }
}

fn listen_between(
    listener: &Connector,
    prover: &Connector,
    mut on_event: impl FnMut(ListenEvent) -> bool,
) -> ListenEnd {
    let place = listener.place();
    let connect = |connector: &Connector| {
        connector.connect().map_err(|error| ListenEnd::of_connecting(place, &error))
    };
    let listened = connect(listener).and_then(|listener| {
        let prover = connect(prover)?;
        Listening { place, listener, prover, proof: Uuid::new_v4().to_string() }.run(&mut on_event)
    });
    listened.err().unwrap_or_else(|| lost(place, "the listener was stopped"))
}

fn lost(place: &Arc<str>, how: &str) -> ListenEnd {
    ListenEnd { error: StoreError::unavailable(place, how), sign: LifeSign::Break }
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
    fn run(mut self, on_event: &mut impl FnMut(ListenEvent) -> bool) -> Result<(), ListenEnd> {
        let place = self.place;
        let broken = |error: postgres::Error| ListenEnd::of(place, &error);
        let listen =
            [CHANNEL, BACKLOGS_CHANNEL, INSTANCES_CHANNEL].map(|it| format!("LISTEN {it};"));
        self.listener.batch_execute(&listen.concat()).map_err(broken)?;
        let mut tables = self.send_proof()?;
        let mut proved = Instant::now();
        // Whether a proof is on its way, and whether an earlier one has arrived.
        let (mut is_pending, mut is_listening) = (true, false);
        loop {
            let timeout = if is_listening { PROOF_TIMEOUT } else { FIRST_PROOF_TIMEOUT };
            let limit = if is_pending { timeout } else { PROOF_INTERVAL };
            let due = limit.saturating_sub(proved.elapsed());
            let received =
                self.listener.notifications().timeout_iter(due).next().map_err(broken)?;
            let event = match received {
                Some(notification) => tables.event(&notification, &self.proof),
                None if self.listener.is_closed() => return Err(lost(place, "connection lost")),
                None => None,
            };
            let event = match event {
                Some(ListenEvent::Alive) => {
                    is_pending = false;
                    let is_first = !std::mem::replace(&mut is_listening, true);
                    Some(if is_first { ListenEvent::Listening } else { ListenEvent::Alive })
                }
                // Before the first proof nobody relies on notifications.
                other => other.filter(|_| is_listening),
            };
            if event.is_some_and(|event| !on_event(event)) {
                return Ok(());
            }
            if is_pending && proved.elapsed() >= timeout {
                return Err(self.proof_missing(is_listening));
            }
            if !is_pending && proved.elapsed() >= PROOF_INTERVAL {
                let now = self.send_proof()?;
                if !now.has_same_tables(&tables) {
                    return Err(lost(place, "a table was replaced"));
                }
                tables = now;
                (proved, is_pending) = (Instant::now(), true);
            }
        }
    }

    /// Sends a proof from one session to the other, and checks that the tables notify. Returns the
    /// tables' identities.
    fn send_proof(&mut self) -> Result<TableIds, ListenEnd> {
        let broken = |error: postgres::Error| ListenEnd::of(self.place, &error);
        let asked = format!("SELECT pg_notify($1, $2), {INSTANCES} AS instances, {TRIGGERS}");
        let parameters: [super::Parameter<'_>; 2] =
            [(&CHANNEL, Type::TEXT), (&self.proof, Type::TEXT)];
        let rows = self.prover.query_typed(&asked, &parameters).map_err(broken)?;
        let row = rows.first().ok_or_else(|| lost(self.place, "the query returned no row"))?;
        let tables = TableIds::of(row).map_err(broken)?;
        match tables.without_notifications() {
            None => Ok(tables),
            Some(table) => Err(ListenEnd::impossible(
                self.place,
                format!(
                    "changes of the table `{table}` are not notified: run `webhook-notifier migrate` \
                     on this database"
                ),
            )),
        }
    }

    /// The error that PostgreSQL accepted a proof, and it hasn't arrived.
    fn proof_missing(mut self, was_listening: bool) -> ListenEnd {
        // If a pooler lent us the session for LISTEN, it would continue to listen for its next user. If
        // the session was ours, it may be cut off from the network, and a statement could hang.
        if !was_listening {
            let _ = self.listener.batch_execute("UNLISTEN *");
        }
        ListenEnd::impossible(
            self.place,
            "notifications of one session do not reach another: a pooler in between assigns sessions per \
             transaction (PgBouncer: pool_mode = transaction). Let DATABASE_URL bypass it, or use a pool \
             with pool_mode = session",
        )
    }
}

/// The identities of the tables whose changes are notified; `None` for a table without notifications. The
/// table of instances may be missing.
struct TableIds {
    webhooks: Option<String>,
    backlogs: Option<String>,
    instances: Option<String>,
}

impl TableIds {
    fn of(row: &Row) -> Result<Self, postgres::Error> {
        let [webhooks, backlogs, instances] =
            ["webhooks", "backlogs", "instances"].map(|name| row.try_get(name));
        Ok(Self { webhooks: webhooks?, backlogs: backlogs?, instances: instances? })
    }

    /// Whether webhooks and backlogs are still in the same tables.
    fn has_same_tables(&self, other: &Self) -> bool {
        self.webhooks == other.webhooks && self.backlogs == other.backlogs
    }

    /// The first table that sends no notifications.
    fn without_notifications(&self) -> Option<&'static str> {
        let tables = [("webhooks", &self.webhooks), ("backlogs", &self.backlogs)];
        tables.into_iter().find(|(_, relation)| relation.is_none()).map(|(name, _)| name)
    }

    /// What a notification says; `None` if it is about another table of the same name, or another
    /// notifier's proof.
    fn event(&self, notification: &Notification, proof: &str) -> Option<ListenEvent> {
        let payload = Some(notification.payload());
        match notification.channel() {
            CHANNEL if payload == Some(proof) => Some(ListenEvent::Alive),
            CHANNEL => changed(notification.payload(), self.webhooks.as_deref()?),
            BACKLOGS_CHANNEL if payload == self.backlogs.as_deref() => Some(ListenEvent::Backlogs),
            INSTANCES_CHANNEL if payload == self.instances.as_deref() => {
                Some(ListenEvent::Instances)
            }
            _ => None,
        }
    }
}

/// The change of this relation that a notification reports; `None` if it is about another one.
fn changed(payload: &str, relation: &str) -> Option<ListenEvent> {
    let scope = match payload.strip_prefix(relation)? {
        "" => Scope::everything(),
        more => Scope::read(more.strip_prefix(' ')?),
    };
    Some(ListenEvent::Changed(scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_counts_only_for_the_table_that_it_names() {
        let everything = || Some(ListenEvent::Changed(Scope::everything()));
        assert_eq!(changed("1234", "1234"), everything());
        assert_eq!(changed("12345", "1234"), None);
        let nothing = r#"1234 {"ids" : [], "patterns" : [], "accounts" : [], "everybody" : false}"#;
        assert_eq!(changed(nothing, "1234"), Some(ListenEvent::Changed(Scope::default())));
        assert_eq!(changed(nothing, "123"), None);
        assert_eq!(changed("a proof", "1234"), None);
        assert_eq!(changed("1234 {\"ids\" : [", "1234"), everything());
    }
}
