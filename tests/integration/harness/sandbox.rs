//! What belongs to one test: its queues, its schema, and the settings that direct the notifier to
//! both. Everything is deleted when the sandbox is dropped.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use amiquip::{AmqpValue, FieldTable};
use uuid::Uuid;

use super::{
    Broker, Database, Event, LATER, Message, Receiver, SOON, Servers,
    broker::PERSISTENT,
    notifier::{Launch, Notifier},
    process::Finished,
    wait_for, wait_until,
};

const LANES: [&str; 3] = ["high", "medium", "low"];

/// Locked shared by the sandboxes of tests that run in parallel, and exclusively by that of a test that
/// measures time. Each test has one sandbox: a second one could wait for a test that waits for the first.
///
/// If all tests ran together, each exclusive one would wait for the slowest of the others, and the others
/// for it. So `make test` runs the exclusive ones first, by name: [`ALONE`] says that it has done so.
static MACHINE: RwLock<()> = RwLock::new(());

const ALONE: &str = "TESTS_ALONE_ARE_DONE";

/// Holds [`MACHINE`] while the test runs.
enum MachineLock {
    Shared { _guard: RwLockReadGuard<'static, ()> },
    Exclusive { _guard: RwLockWriteGuard<'static, ()> },
}

impl MachineLock {
    fn shared() -> Self {
        // A failed test has poisoned it, which doesn't affect the next.
        Self::Shared { _guard: MACHINE.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn exclusive() -> Self {
        assert!(
            std::env::var_os(ALONE).is_none(),
            "a test that has the machine alone must be named in scripts/test.sh"
        );
        Self::Exclusive { _guard: MACHINE.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

pub(crate) struct Sandbox {
    pub(crate) broker: Broker,
    pub(crate) database: Database,
    pub(crate) queues: Vec<String>,
    pub(crate) servers: Servers,
    /// Dropped last, so that other tests wait until the rest is cleaned up.
    _machine: MachineLock,
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
        Self::ready(
            Self::empty(&Servers::shared(), count, MachineLock::exclusive()),
            FieldTable::new,
        )
    }

    /// The queues and tables exist.
    pub(crate) fn on(servers: &Servers, count: usize) -> Self {
        Self::ready(Self::bare(servers, count), FieldTable::new)
    }

    /// Like [`Self::on`], with queues that survive the loss of a cluster's node.
    pub(crate) fn with_quorum_queues(servers: &Servers, count: usize) -> Self {
        let quorum = || (String::from("x-queue-type"), AmqpValue::LongString("quorum".to_owned()));
        Self::ready(Self::bare(servers, count), || FieldTable::from([quorum()]))
    }

    fn ready(sandbox: Self, arguments: impl Fn() -> FieldTable) -> Self {
        for queue in &sandbox.queues {
            sandbox.broker.declare(queue, arguments()).expect("a queue under a fresh name");
        }
        sandbox.migrated()
    }

    fn migrated(self) -> Self {
        let migration = self.command(&["migrate"]);
        assert_eq!(migration.code, Some(0), "migrate: {migration:?}");
        self
    }

    /// The tables exist, and no queues.
    pub(crate) fn without_queues(servers: &Servers, count: usize) -> Self {
        Self::bare(servers, count).migrated()
    }

    /// Only names and an empty schema.
    pub(crate) fn bare(servers: &Servers, count: usize) -> Self {
        Self::empty(servers, count, MachineLock::shared())
    }

    fn empty(servers: &Servers, count: usize, machine: MachineLock) -> Self {
        let name = format!("t{}", &Uuid::new_v4().simple().to_string()[..12]);
        Self {
            broker: Broker::new(&servers.amqp_url),
            database: Database::create(&servers.database_url, &name),
            queues: LANES[..count].iter().map(|lane| format!("{name}_{lane}")).collect(),
            servers: servers.clone(),
            _machine: machine,
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

    /// QUEUES with a capacity of one: a lane has one consumer, and one request is in flight at a
    /// time.
    pub(crate) fn one_at_a_time(&self) -> String {
        format!("{}=1", self.queues.join("=1,"))
    }

    /// Runs a command that ends by itself.
    #[track_caller]
    pub(crate) fn command(&self, arguments: &[&str]) -> Finished {
        self.launch(arguments).spawn().finish(LATER)
    }

    #[track_caller]
    pub(crate) fn webhook(&self, url: &str, events: &[&str]) -> Uuid {
        self.database.insert_webhook(url, events)
    }

    #[track_caller]
    pub(crate) fn publish(&self, event: &Event) {
        self.broker.publish(self.queue(), std::slice::from_ref(event));
    }

    /// Waits until the broker has the acks of all earlier messages. To a consumer with a prefetch of 1
    /// it sends the next message only then: this publishes one of a type that is delivered to that path,
    /// and waits for it. (A second consumer may get it a little earlier: first wait for something that is
    /// counted when a message is settled.)
    #[track_caller]
    pub(crate) fn wait_acked(&self, receiver: &Receiver, path: &str, kind: &str) {
        let next = Event::new(kind);
        self.publish(&next);
        wait_until(SOON, "the next event arrives", || !receiver.of(path, &next).is_empty());
    }

    /// Waits until no message is ready any more. None is unacked either if the notifier has ended
    /// before, or has counted all deliveries.
    #[track_caller]
    pub(crate) fn wait_drained(&self) {
        let wait_empty = |queue: String| {
            wait_until(SOON, &format!("{queue} is empty"), || self.is_empty(&queue));
        };
        self.queues_with_retries().into_iter().for_each(wait_empty);
        // Read only now: what left the other queues may have opened one.
        self.backlogs().into_iter().for_each(wait_empty);
    }

    /// Ends these notifiers, and lets others deliver what they handed back: after a kill, repeats may come
    /// after everything else.
    #[track_caller]
    pub(crate) fn drain(&self, notifiers: Vec<Notifier>, launch: impl Fn() -> Launch) {
        for notifier in notifiers {
            notifier.terminate();
        }
        wait_until(LATER, "all queues are empty", || {
            let mut queues = self.queues_with_retries().into_iter().chain(self.backlogs());
            let is_drained = queues.all(|queue| self.is_empty(&queue));
            if !is_drained {
                let notifier = launch().start();
                self.wait_drained();
                notifier.terminate();
            }
            is_drained
        });
    }

    fn queues_with_retries(&self) -> Vec<String> {
        let of = |queue: &String| [queue.clone(), format!("{queue}.retry")];
        self.queues.iter().flat_map(of).collect()
    }

    /// A backlog's queue may be missing: its row is written before, and a shutdown may come between.
    fn is_empty(&self, queue: &str) -> bool {
        let is_backlog = queue.starts_with("webhooks.backlog.");
        self.broker.ready(queue).map_or(is_backlog, |count| count == 0)
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
    /// The queues of the backlogs that were created; empty if PostgreSQL doesn't answer any more.
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
