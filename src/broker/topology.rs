//! What we need at the broker: queues, exchanges and bindings, and the lanes that consume them.

use std::time::Duration;

use amiquip::{AmqpValue, Channel, ExchangeDeclareOptions, QueueDeclareOptions};
use uuid::Uuid;

use super::calls::{Calls, is_forbidden, is_refusal};
use super::{BrokerError, Link, SETUP_TIMEOUT, failed};
use crate::config::{Config, Queue, QueueType};
use crate::domain::retry::Span;
use crate::shutdown::Shutdown;

pub(super) const WAIT_EXCHANGE: &str = "webhooks.wait";
pub(super) const RETRY_EXCHANGE: &str = "webhooks.retry";
pub(super) const BACKLOG_EXCHANGE: &str = "webhooks.backlog";

/// Where notices are published, for whoever binds a queue to it.
pub(super) const EVENTS_EXCHANGE: &str = "webhooks.events";

/// Where what no retry queue takes lies, of all queues and all notifiers of this broker: a queue, and
/// the exchange by which it comes there.
pub const ORPHANED: &str = "webhooks.orphaned";

/// The argument of a queue that says of which kind it is.
pub(super) const QUEUE_TYPE: &str = "x-queue-type";

/// How long a delivery waits whose backlog can't be made. There is a wait queue for it, whatever the
/// schedule says.
pub const WITHOUT_BACKLOG: Duration = Duration::from_secs(60);

/// How often the broker may take a message of a backlog back, or of what a move puts aside: as often as it likes.
/// What is handed back keeps its place only in a queue that has a limit; without one, RabbitMQ 3 puts it at the
/// end.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// One lane: a queue to consume, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The number of the queue that producers publish to, in the order of QUEUES.
    pub number: usize,
    /// Its name.
    pub origin: String,
    /// The queue that this lane consumes; of backlogs, a name for all of that queue.
    pub queue: String,
    /// What it consumes of that queue.
    pub kind: LaneKind,
    /// What the queue for events is made as.
    pub queue_type: Option<QueueType>,
    /// The most requests under way for that queue, its retries and backlogs included; and the most
    /// consumers that this lane may have.
    pub capacity: u16,
}

/// What a lane consumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneKind {
    /// A queue that producers publish to.
    Events,
    /// Its retries.
    Retries,
    /// The backlogs of its receivers.
    Backlogs,
}

impl Lane {
    /// The lanes of each configured queue.
    #[must_use]
    pub fn all(config: &Config) -> Vec<Self> {
        let lane = |number, origin: &Queue, kind| Self {
            number,
            queue: match kind {
                LaneKind::Events => origin.name.clone(),
                LaneKind::Retries => retry_queue(&origin.name),
                LaneKind::Backlogs => format!("{}.backlog", origin.name),
            },
            origin: origin.name.clone(),
            kind,
            queue_type: config.queue_type,
            capacity: origin.capacity,
        };
        let kinds = [LaneKind::Events, LaneKind::Retries, LaneKind::Backlogs];
        let of = |(number, queue)| kinds.map(|kind| lane(number, queue, kind));
        config.queues.iter().enumerate().flat_map(of).collect()
    }
}

/// Where the retries of a queue come back.
#[must_use]
pub fn retry_queue(origin: &str) -> String {
    format!("{origin}.retry")
}

/// Where the dead letters of a queue lie.
#[must_use]
pub fn dead_queue(origin: &str) -> String {
    format!("{origin}.dead")
}

/// Where what a receiver can't take now waits: for one webhook, what came from the queue `origin`.
#[must_use]
pub fn backlog_queue(origin: &str, webhook: Uuid) -> String {
    format!("{BACKLOG_EXCHANGE}.{origin}.{webhook}")
}

/// Where deliveries of all queues wait for that long.
#[must_use]
pub fn wait_queue(delay: Span) -> String {
    format!("{WAIT_EXCHANGE}.{delay}")
}

/// The queues and exchanges that we need, for a set of queues and delays.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(super) origins: Vec<String>,
    pub(super) queue_type: Option<QueueType>,
    pub(super) delays: Vec<Span>,
}

/// The result of looking for one object of the topology without making it.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The queue's name.
    pub queue: String,
    /// Messages ready in it, `None` if it doesn't exist yet; or why it can't be had.
    pub messages: Result<Option<u32>, BrokerError>,
}

impl Topology {
    /// What a configuration needs.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut delays = config.retry_schedule.distinct_delays();
        delays.push(Span::from(WITHOUT_BACKLOG));
        delays.sort_unstable();
        delays.dedup();
        Self {
            origins: config.queues.iter().map(|queue| queue.name.clone()).collect(),
            queue_type: config.queue_type,
            delays,
        }
    }

    /// The queues that /metrics shows the depth of.
    #[must_use]
    pub fn watched_queues(&self) -> Vec<String> {
        let of = |origin: &String| [origin.clone(), retry_queue(origin), dead_queue(origin)];
        let waits = self.wait_queues().map(|(_, queue)| queue);
        self.origins.iter().flat_map(of).chain(waits).chain([ORPHANED.to_owned()]).collect()
    }

    /// The wait queues, shortest delay first. All queues that are consumed share them, and so do
    /// all notifiers of this broker.
    pub fn wait_queues(&self) -> impl Iterator<Item = (Span, String)> {
        self.delays.iter().map(|delay| (*delay, wait_queue(*delay)))
    }

    /// Looks for every queue without making any, and at the arguments of those that are ours.
    ///
    /// # Errors
    /// If the connection is lost or the broker doesn't answer.
    pub fn look(&self, link: &mut Link, shutdown: &Shutdown) -> Result<Vec<Presence>, BrokerError> {
        let mut own: Vec<(String, QueueDeclareOptions)> = Vec::new();
        for origin in &self.origins {
            own.push((retry_queue(origin), retry_options(origin)));
        }
        own.extend(self.delays.iter().map(|delay| (wait_queue(*delay), wait_options(*delay))));
        own.push((ORPHANED.to_owned(), plain_options()));

        // Of these any will do, whatever their arguments.
        let dead = self.origins.iter().map(|origin| dead_queue(origin));
        let others = self.origins.iter().cloned().chain(dead).map(|queue| (queue, None));
        let own = own.into_iter().map(|(queue, options)| (queue, Some(options)));
        let (kill, address) = (link.kill_switch(), link.address.clone());
        let mut found = Vec::new();
        for (queue, options) in others.chain(own) {
            let looked = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
                let mut calls = Calls::new(link);
                let counts = calls.queue(&queue)?;
                if let Some(options) = options.filter(|_| counts.is_some()) {
                    // Declaring what is there already changes nothing; with other arguments it fails.
                    let declare = |channel: &Channel| {
                        channel.queue_declare(queue.as_str(), options).map(drop)
                    };
                    match calls.call(declare) {
                        // Who may not make it can't compare its arguments either.
                        Err(error) if !is_forbidden(&error) => return Err(error),
                        _ => {}
                    }
                }
                Ok(counts.map(|counts| counts.ready))
            });
            let messages = match looked {
                Err(error) if !is_refusal(&error) => return Err(link.unavailable(&error)),
                looked => looked.map_err(|error| failed(&address, &queue, &error)),
            };
            found.push(Presence { queue, messages });
        }
        Ok(found)
    }
}

/// What a queue holds, for who is told that it is lost.
pub(super) fn contents(queue: &str) -> &'static str {
    match queue {
        ORPHANED => "orphaned deliveries",
        _ if queue.starts_with(WAIT_EXCHANGE) => "deliveries that waited in it",
        _ if queue.ends_with(".retry") => "retries that were due",
        _ if queue.ends_with(".dead") => "dead letters",
        _ => "events",
    }
}

/// How our exchanges are made. What `webhooks.retry` can't route must not stay in its wait queue: it
/// would hold up what others wait for there.
pub(super) fn exchange_options(exchange: &str) -> ExchangeDeclareOptions {
    let mut options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    if exchange == RETRY_EXCHANGE {
        let to = AmqpValue::LongString(ORPHANED.to_owned());
        options.arguments.insert("alternate-exchange".to_owned(), to);
    }
    options
}

/// A queue that producers publish to, where nobody has made it: of this kind, or of the virtual host's default.
/// All others of ours are quorum queues, whatever this is: they count how often a message came back, and expire
/// into the next queue without losing any.
pub(super) fn event_options(kind: Option<QueueType>) -> QueueDeclareOptions {
    let kind = kind.map(|kind| AmqpValue::LongString(kind.label().to_owned()));
    let arguments = kind.map(|kind| (QUEUE_TYPE.to_owned(), kind)).into_iter().collect();
    QueueDeclareOptions { durable: true, arguments, ..Default::default() }
}

/// A queue for what is put aside while its queue is made anew.
pub(super) fn moving_options() -> QueueDeclareOptions {
    quorum([("x-delivery-limit", AmqpValue::LongLongInt(DELIVERY_LIMIT))])
}

/// A queue in which things lie until somebody comes for them.
pub(super) fn plain_options() -> QueueDeclareOptions {
    quorum([])
}

pub(super) fn retry_options(origin: &str) -> QueueDeclareOptions {
    quorum(dead_lettering(origin))
}

pub(super) fn backlog_options(origin: &str) -> QueueDeclareOptions {
    let [exchange, key] = dead_lettering(origin);
    quorum([
        exchange,
        key,
        // One instance at a time, so that deliveries keep their order, and one receiver is probed once.
        ("x-single-active-consumer", AmqpValue::Boolean(true)),
        ("x-delivery-limit", AmqpValue::LongLongInt(DELIVERY_LIMIT)),
    ])
}

/// A broker's own delivery limit then moves a message to where an operator sees it, instead of dropping
/// it.
fn dead_lettering(origin: &str) -> [(&'static str, AmqpValue); 2] {
    [
        ("x-dead-letter-exchange", AmqpValue::LongString(String::new())),
        ("x-dead-letter-routing-key", AmqpValue::LongString(dead_queue(origin))),
    ]
}

pub(super) fn wait_options(delay: Span) -> QueueDeclareOptions {
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let ttl = i64::try_from(delay.as_millis()).unwrap_or(i64::MAX);
    quorum([
        ("x-message-ttl", AmqpValue::LongLongInt(ttl)),
        ("x-dead-letter-exchange", text(RETRY_EXCHANGE)),
        // Without these two a message can be lost between the wait queue and the retry queue.
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ])
}

fn quorum<const N: usize>(arguments: [(&str, AmqpValue); N]) -> QueueDeclareOptions {
    let kind = (QUEUE_TYPE, AmqpValue::LongString("quorum".to_owned()));
    let arguments =
        arguments.into_iter().chain([kind]).map(|(name, value)| (name.to_owned(), value)).collect();
    QueueDeclareOptions { durable: true, arguments, ..Default::default() }
}
