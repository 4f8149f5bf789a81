//! The queues and exchanges that we need at the broker, with their arguments, and the lanes that consume them.

use std::time::Duration;

use amiquip::{AmqpValue, Channel, ExchangeDeclareOptions, QueueDeclareOptions};

use super::calls::{Calls, is_forbidden, is_refusal};
use super::{BrokerError, Link, SETUP_TIMEOUT, failed};
use crate::config::{Config, EventQueue, QueueType};
use crate::domain::broker_names::{
    ORPHANED, RETRY_EXCHANGE, dead_queue, is_dead_queue, is_wait_queue, origin_of_retries,
    retry_queue, wait_queue,
};
use crate::domain::time::Span;
use crate::shutdown::Shutdown;

/// The argument for a queue's type.
pub(super) const QUEUE_TYPE: &str = "x-queue-type";

/// How long a delivery waits if its backlog can't be created. There is a wait queue for this delay, whatever
/// the schedule.
pub const WITHOUT_BACKLOG: Duration = Duration::from_secs(60);

/// How often a message of a backlog, or one that a move has put aside, may be redelivered: practically
/// without limit. But there has to be a limit: if a queue has none, RabbitMQ 3 requeues messages at the end.
const DELIVERY_LIMIT: i64 = 1_000_000;

/// One lane: a queue to consume, and its purpose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The number of the queue that producers publish to, in the order of QUEUES.
    pub number: usize,
    /// Its name.
    pub origin: String,
    /// The queue that this lane consumes; for backlogs, a name that represents all of the queue's backlogs.
    pub queue: String,
    /// What it consumes.
    pub kind: LaneKind,
    /// The type with which the queue for events is created.
    pub queue_type: Option<QueueType>,
    /// The most requests in flight for the queue with its retries and backlogs, and the most consumers of this
    /// lane.
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
        let lane = |number, origin: &EventQueue, kind| Self {
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

/// The queues and exchanges that we need for a set of event queues and delays.
#[derive(Clone, Debug)]
pub struct Topology {
    pub(super) origins: Vec<String>,
    pub(super) queue_type: Option<QueueType>,
    pub(super) delays: Vec<Span>,
}

/// The result of checking a queue without creating it.
#[derive(Clone, Debug)]
pub struct QueuePresence {
    /// The queue's name.
    pub queue: String,
    /// The number of messages ready in it, `None` if it doesn't exist yet; or why it is unusable.
    pub messages: Result<Option<u32>, BrokerError>,
}

impl Topology {
    /// The queues and exchanges that a configuration needs.
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

    /// The queues whose depths are metrics.
    #[must_use]
    pub fn watched_queues(&self) -> Vec<String> {
        let of = |origin: &String| [origin.clone(), retry_queue(origin), dead_queue(origin)];
        let waits = self.wait_queues().map(|(_, queue)| queue);
        self.origins.iter().flat_map(of).chain(waits).chain([ORPHANED.to_owned()]).collect()
    }

    /// The wait queues, shortest delay first. All event queues share them, and so do all notifiers of this
    /// broker.
    pub fn wait_queues(&self) -> impl Iterator<Item = (Span, String)> {
        self.delays.iter().map(|delay| (*delay, wait_queue(*delay)))
    }

    /// Checks every queue without creating any, including the arguments of our own queues.
    ///
    /// # Errors
    /// If the connection is lost or the broker doesn't answer.
    pub fn check(
        &self,
        link: &mut Link,
        shutdown: &Shutdown,
    ) -> Result<Vec<QueuePresence>, BrokerError> {
        let mut own: Vec<(String, QueueDeclareOptions)> = Vec::new();
        for origin in &self.origins {
            own.push((retry_queue(origin), retry_options(origin)));
        }
        own.extend(self.delays.iter().map(|delay| (wait_queue(*delay), wait_options(*delay))));
        own.push((ORPHANED.to_owned(), plain_options()));

        // These may have any arguments.
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
                    // Declaring an existing queue changes nothing, and fails if it has other arguments.
                    let declare = |channel: &Channel| {
                        channel.queue_declare(queue.as_str(), options).map(drop)
                    };
                    match calls.call(declare) {
                        // Without the permission to create it, its arguments can't be compared either.
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
            found.push(QueuePresence { queue, messages });
        }
        Ok(found)
    }
}

/// What a queue contains, for the log line about its loss.
pub(super) fn contents(queue: &str) -> &'static str {
    match queue {
        ORPHANED => "orphaned deliveries",
        _ if is_wait_queue(queue) => "deliveries that waited in it",
        _ if origin_of_retries(queue).is_some() => "retries that were due",
        _ if is_dead_queue(queue) => "dead letters",
        _ => "events",
    }
}

/// The options of our exchanges. `webhooks.retry` has an alternate exchange: without it, a message that can't
/// be routed would stay in its wait queue, and block all messages behind it.
pub(super) fn exchange_options(exchange: &str) -> ExchangeDeclareOptions {
    let mut options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    if exchange == RETRY_EXCHANGE {
        let to = AmqpValue::LongString(ORPHANED.to_owned());
        options.arguments.insert("alternate-exchange".to_owned(), to);
    }
    options
}

/// The options of a queue for events, if the operator hasn't created it: of this type, or of the virtual host's
/// default type. All our other queues are quorum queues, which count redeliveries, and dead-letter expired
/// messages without losing any.
pub(super) fn event_options(kind: Option<QueueType>) -> QueueDeclareOptions {
    let kind = kind.map(|kind| AmqpValue::LongString(kind.label().to_owned()));
    let arguments = kind.map(|kind| (QUEUE_TYPE.to_owned(), kind)).into_iter().collect();
    QueueDeclareOptions { durable: true, arguments, ..Default::default() }
}

/// A queue that holds messages while their own queue is recreated.
pub(super) fn moving_options() -> QueueDeclareOptions {
    quorum([("x-delivery-limit", AmqpValue::LongLongInt(DELIVERY_LIMIT))])
}

/// A queue whose messages stay until an operator removes them.
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
        // One instance at a time, so that deliveries keep their order and only one instance probes the receiver.
        ("x-single-active-consumer", AmqpValue::Boolean(true)),
        ("x-delivery-limit", AmqpValue::LongLongInt(DELIVERY_LIMIT)),
    ])
}

/// If a message exceeds the broker's delivery limit, it isn't dropped, but moves to the dead-letter queue,
/// where an operator sees it.
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
        // Without these two arguments, messages could be lost between the wait queue and the retry queue.
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
