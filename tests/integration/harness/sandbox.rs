//! What belongs to one test: its queues, its schema, and the settings that direct the notifier to
//! both. Everything is deleted when the sandbox is dropped.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use amiquip::{AmqpValue, FieldTable};
use uuid::Uuid;

use super::{
    Broker, Database, Event, Message, Receiver, SOON, Servers, broker::PERSISTENT,
    notifier::Launch, process::Finished, wait_for, wait_until,
};

const LANES: [&str; 3] = ["high", "medium", "low"];

/// Shared by the sandboxes of all tests that run in parallel; a test that measures time holds it
/// alone. One sandbox per test: a second one could wait for a test that waits for the first.
///
/// If all tests run at once, each test that is alone waits for the slowest of the others, and the
/// others for it. So `make test` runs these first, by name: [`ALONE`] says that they have run
/// already.
static COMPANY: RwLock<()> = RwLock::new(());

const ALONE: &str = "TESTS_ALONE_ARE_DONE";

/// Holds [`COMPANY`] while the test runs.
enum Company {
    Shared { _place: RwLockReadGuard<'static, ()> },
    Alone { _place: RwLockWriteGuard<'static, ()> },
}

impl Company {
    fn shared() -> Self {
        // A failed test has poisoned it, which doesn't affect the next.
        Self::Shared { _place: COMPANY.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Self {
        assert!(
            std::env::var_os(ALONE).is_none(),
            "a test that has the machine alone must be named in scripts/test.sh"
        );
        Self::Alone { _place: COMPANY.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

pub(crate) struct Sandbox {
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    pub(crate) queues: Vec<String>,
    pub(crate) servers: Servers,
    /// Last, so that the others wait until the rest is cleaned up.
    _company: Company,
}

/// The headers that a dead letter of a delivery must have.
#[derive(Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) event: &'a Event,
    pub(crate) kind: &'a str,
    pub(crate) webhook: Uuid,
    pub(crate) reason: &'a str,
    pub(crate) attempts: i64,
}

impl Sandbox {
    /// One queue on the shared servers.
    pub(crate) fn new() -> Self {
        Self::with_queues(1)
    }

    pub(crate) fn with_queues(count: usize) -> Self {
        Self::on(&Servers::shared(), count)
    }

    /// For a test that measures time: no other test runs meanwhile.
    pub(crate) fn alone(count: usize) -> Self {
        Self::ready(Self::empty(&Servers::shared(), count, Company::alone()), FieldTable::new)
    }

    /// The queues and tables exist.
    pub(crate) fn on(servers: &Servers, count: usize) -> Self {
        Self::ready(Self::bare(servers, count), FieldTable::new)
    }

    /// Like [`Self::on`], with queues that survive the loss of a cluster's node.
    pub(crate) fn of_quorum_queues(servers: &Servers, count: usize) -> Self {
        let quorum = || (String::from("x-queue-type"), AmqpValue::LongString("quorum".to_owned()));
        Self::ready(Self::bare(servers, count), || FieldTable::from([quorum()]))
    }

    fn ready(sandbox: Self, arguments: impl Fn() -> FieldTable) -> Self {
        for queue in &sandbox.queues {
            sandbox.broker.declare(queue, arguments()).expect("a queue under a fresh name");
        }
        let migration = sandbox.command(&["migrate"]);
        assert_eq!(migration.code, Some(0), "migrate: {migration:?}");
        sandbox
    }

    /// Only names and an empty schema.
    pub(crate) fn bare(servers: &Servers, count: usize) -> Self {
        Self::empty(servers, count, Company::shared())
    }

    fn empty(servers: &Servers, count: usize, company: Company) -> Self {
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        Self {
            broker: Broker::new(&servers.amqp_url),
            database: Database::create(&servers.database_url, &name),
            queues: LANES[..count].iter().map(|lane| format!("{name}_{lane}")).collect(),
            servers: servers.clone(),
            _company: company,
        }
    }

    /// The only queue, or the first.
    pub(crate) fn queue(&self) -> &str {
        &self.queues[0]
    }

    pub(crate) fn retry_queue(&self) -> String {
        format!("{}.retry", self.queue())
    }

    pub(crate) fn dead_queue(&self) -> String {
        format!("{}.dead", self.queue())
    }

    /// `webhook-notifier run`, not started yet. The environment's proxies lead nowhere: a POST that
    /// used them would fail.
    pub(crate) fn notifier(&self) -> Launch {
        self.launch(&["run"])
            .env("METRICS_ADDR", "127.0.0.1:0")
            .env("ALLOW_NETWORKS", "127.0.0.0/8")
            .env("http_proxy", "http://127.0.0.1:9")
            .env("HTTP_PROXY", "http://127.0.0.1:9")
            .env("ALL_PROXY", "http://127.0.0.1:9")
    }

    pub(crate) fn launch(&self, arguments: &[&str]) -> Launch {
        Launch::new(arguments)
            .env("AMQP_URL", &self.servers.amqp_url)
            .env("DATABASE_URL", self.database.url())
            .env("QUEUES", self.queues.join(","))
    }

    /// QUEUES with a capacity of one: a lane has one consumer, and one request is under way at a
    /// time.
    pub(crate) fn one_at_a_time(&self) -> String {
        format!("{}=1", self.queues.join("=1,"))
    }

    /// Runs a command that ends by itself.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Finished {
        self.launch(arguments).spawn().finish(SOON)
    }

    #[track_caller]
    pub(crate) fn webhook(&self, url: &str, events: &[&str]) -> Uuid {
        self.database.insert_webhook(url, events)
    }

    #[track_caller]
    pub(crate) fn publish(&self, event: &Event) {
        self.broker.publish(self.queue(), std::slice::from_ref(event));
    }

    /// Waits until the broker has the acks of everything that was published before. It sends the
    /// next message to a consumer with a prefetch of 1 only then: this one, which must have a type
    /// that comes to that path. (Another consumer may get it a little earlier: wait first for what
    /// is counted when the message is settled.)
    #[track_caller]
    pub(crate) fn wait_acked(&self, receiver: &Receiver, path: &str, kind: &str) {
        let next = Event::new(kind);
        self.publish(&next);
        wait_until(SOON, "the next event arrives", || !receiver.of(path, &next).is_empty());
    }

    /// Waits until nothing is left to consume: nothing is ready, and, since the notifier that held
    /// messages has reported or ended, nothing is unacked.
    #[track_caller]
    pub(crate) fn wait_drained(&self) {
        let of = |queue: &String| [queue.clone(), format!("{queue}.retry")];
        for queue in self.queues.iter().flat_map(of) {
            wait_until(SOON, &format!("{queue} is empty"), || self.broker.ready(&queue) == Some(0));
        }
        // A row is written before its queue is created, which a shutdown may prevent.
        for queue in self.backlogs() {
            wait_until(SOON, &format!("{queue} is empty"), || {
                self.broker.ready(&queue).is_none_or(|count| count == 0)
            });
        }
    }

    /// Waits for the next dead letter.
    #[track_caller]
    pub(crate) fn take_dead(&self) -> Message {
        wait_for(SOON, "a dead letter", || self.broker.take(&self.dead_queue()))
    }

    /// Waits for the next dead letter, which must be this one, byte for byte.
    #[track_caller]
    pub(crate) fn expect_dead(&self, expected: &DeadLetter<'_>) -> Message {
        let message = self.take_dead();
        let context = format!("{message:?}");
        assert_eq!(message.text("x-dead-reason"), expected.reason, "{context}");
        assert_eq!(message.body, expected.event.body, "{context}");
        assert_eq!(message.text("x-event-id"), expected.event.id, "{context}");
        assert_eq!(message.text("x-event-type"), expected.kind, "{context}");
        assert_eq!(message.text("x-webhook-id"), expected.webhook.to_string(), "{context}");
        assert_eq!(message.number("x-attempt"), Some(expected.attempts), "{context}");
        assert_eq!(message.text("x-origin-queue"), self.queue(), "{context}");
        assert!(!message.text("x-last-error").is_empty(), "{context}");
        let received = message.number("x-first-received-at").expect("a time");
        let died = message.number("x-dead-at").expect("a time");
        assert!(received <= died, "{context}");
        let mode = *message.properties.delivery_mode();
        assert_eq!(mode, Some(PERSISTENT), "{context}");
        message
    }
}

impl Sandbox {
    /// The queues of the backlogs that were created; empty if that isn't known any more.
    pub(crate) fn backlogs(&self) -> Vec<String> {
        let asked = || -> Result<Vec<postgres::Row>, postgres::Error> {
            let mut client = postgres::Client::connect(self.database.url(), postgres::NoTls)?;
            client.query("SELECT queue || '.' || webhook_id::text FROM backlogs", &[])
        };
        let name = |row: &postgres::Row| format!("webhooks.backlog.{}", row.get::<_, &str>(0));
        asked().map(|rows| rows.iter().map(name).collect()).unwrap_or_default()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for queue in self.backlogs() {
            // As below.
            let _ = self.broker.delete(&queue);
        }
        for queue in &self.queues {
            // A server may be gone after a failed test.
            let _ = self.broker.discard_retries(queue);
            for suffix in ["", ".retry", ".dead"] {
                let _ = self.broker.delete(&format!("{queue}{suffix}"));
            }
        }
    }
}
