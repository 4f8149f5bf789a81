//! What we need at the broker: queues, exchanges and bindings, and the lanes that consume them.

use std::time::Duration;

use amiquip::{
    AmqpValue, Channel, ExchangeDeclareOptions, ExchangeType, FieldTable, QueueDeclareOptions,
};

use uuid::Uuid;

use super::{BrokerError, Link, SETUP_TIMEOUT};
use crate::config::{Config, Queue};
use crate::domain::retry::Span;
use crate::shutdown::Shutdown;

/// How long declaring everything may take: tens of milliseconds where all is there, and several
/// seconds for the quorum queues of a long schedule on a broker that is busy.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) const WAIT_EXCHANGE: &str = "webhooks.wait";
pub(super) const RETRY_EXCHANGE: &str = "webhooks.retry";
pub(super) const BACKLOG_EXCHANGE: &str = "webhooks.backlog";

/// How long a delivery waits whose backlog can't be made. There is a wait queue for it, whatever the
/// schedule says.
pub const WITHOUT_BACKLOG: Duration = Duration::from_secs(60);

/// How often the broker may take a message of a backlog back: as often as it likes. What is handed back
/// keeps its place only in a queue that has a limit; without one, RabbitMQ 3 puts it at the end.
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
            capacity: origin.capacity,
        };
        let kinds = [LaneKind::Events, LaneKind::Retries, LaneKind::Backlogs];
        let of = |(number, queue)| kinds.map(|kind| lane(number, queue, kind));
        config.queues.iter().enumerate().flat_map(of).collect()
    }
}

/// Where the retries of a queue come back.
pub(super) fn retry_queue(origin: &str) -> String {
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

pub(super) fn wait_queue(delay: Span) -> String {
    format!("{WAIT_EXCHANGE}.{delay}")
}

/// The queues and exchanges that we need, for a set of queues and delays.
#[derive(Clone, Debug)]
pub struct Topology {
    origins: Vec<String>,
    delays: Vec<Span>,
}

/// The result of looking for one object of the topology without making it.
#[derive(Clone, Debug)]
pub struct Presence {
    /// The queue's name.
    pub queue: String,
    /// Messages ready in it; `None` if it doesn't exist yet.
    pub messages: Option<u32>,
}

impl Topology {
    /// What a configuration needs.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        let mut delays = config.retry_schedule.distinct_delays();
        delays.push(Span::from(WITHOUT_BACKLOG));
        delays.sort_unstable();
        delays.dedup();
        Self { origins: config.queues.iter().map(|queue| queue.name.clone()).collect(), delays }
    }

    /// Makes what is missing. Producers' queues are looked for first, and never redeclared: they
    /// are the operator's, with arguments of their own. Bounded, ended by shutdown.
    ///
    /// # Errors
    /// [`BrokerError::Misconfigured`] if one of our own objects is there with other arguments.
    pub fn declare(&self, link: &mut Link, shutdown: &Shutdown) -> Result<(), BrokerError> {
        let kill = link.kill_switch();
        kill.guard(DECLARE_TIMEOUT, Some(shutdown), || {
            for origin in &self.origins {
                declare_origin(link, origin)
                    .map_err(|error| failed(&link.address, origin, &error))?;
            }
            for origin in &self.origins {
                declare_dead(link, origin)
                    .map_err(|error| failed(&link.address, &dead_queue(origin), &error))?;
            }
            let channel = link.channel().map_err(|error| link.unavailable(&error))?;
            self.declare_own(&channel, &link.address)
        })
    }

    fn declare_own(&self, channel: &Channel, address: &str) -> Result<(), BrokerError> {
        for (kind, exchange) in [
            (ExchangeType::Topic, WAIT_EXCHANGE),
            (ExchangeType::Topic, RETRY_EXCHANGE),
            (ExchangeType::Direct, BACKLOG_EXCHANGE),
        ] {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel
                .exchange_declare(kind, exchange, options)
                .map_err(|error| failed(address, exchange, &error))?;
        }
        for origin in &self.origins {
            declare_retry(channel, origin)
                .map_err(|error| failed(address, &retry_queue(origin), &error))?;
        }
        for delay in &self.delays {
            declare_wait(channel, *delay)
                .map_err(|error| failed(address, &wait_queue(*delay), &error))?;
        }
        Ok(())
    }

    /// The queues that /metrics shows the depth of.
    #[must_use]
    pub fn watched_queues(&self) -> Vec<String> {
        let of = |origin: &String| [origin.clone(), retry_queue(origin), dead_queue(origin)];
        let waits = self.wait_queues().map(|(_, queue)| queue);
        self.origins.iter().flat_map(of).chain(waits).collect()
    }

    /// The wait queues, shortest delay first. All queues that are consumed share them, and so do
    /// all notifiers of this broker.
    pub fn wait_queues(&self) -> impl Iterator<Item = (Span, String)> {
        self.delays.iter().map(|delay| (*delay, wait_queue(*delay)))
    }

    /// Looks for every queue without making any, and at the arguments of those that are ours.
    ///
    /// # Errors
    /// As [`Topology::declare`].
    pub fn look(&self, link: &mut Link, shutdown: &Shutdown) -> Result<Vec<Presence>, BrokerError> {
        let mut own: Vec<(String, QueueDeclareOptions)> = Vec::new();
        for origin in &self.origins {
            own.push((retry_queue(origin), retry_options(origin)));
        }
        own.extend(self.delays.iter().map(|delay| (wait_queue(*delay), wait_options(*delay))));

        let mut found = Vec::new();
        // Of these any will do, whatever their arguments.
        let dead = self.origins.iter().map(|origin| dead_queue(origin));
        for queue in self.origins.iter().cloned().chain(dead) {
            found.push(Presence { messages: link.queue_messages(&queue, shutdown)?, queue });
        }
        let kill = link.kill_switch();
        for (queue, options) in own {
            let messages = link.queue_messages(&queue, shutdown)?;
            if messages.is_some() {
                // Declaring what is there already changes nothing; with other arguments it fails.
                kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
                    link.channel()?.queue_declare(queue.as_str(), options).map(drop)
                })
                .map_err(|error| failed(&link.address, &queue, &error))?;
            }
            found.push(Presence { queue, messages });
        }
        Ok(found)
    }
}

pub(super) fn failed(address: &str, name: &str, error: &amiquip::Error) -> BrokerError {
    let address = address.to_owned();
    match error {
        amiquip::Error::ServerClosedChannel { code: 406, message, .. }
            if message.contains("queue limit") =>
        {
            let problem =
                format!("no room for {name:?} ({message}): raise the virtual host's max-queues");
            BrokerError::Misconfigured { address, problem }
        }
        amiquip::Error::ServerClosedChannel { code: 406, message, .. } => {
            let problem = format!(
                "{name:?} exists with other arguments ({message}): empty it, delete it, and start again"
            );
            BrokerError::Misconfigured { address, problem }
        }
        amiquip::Error::ServerClosedChannel { code: 403, message, .. } => {
            let problem = format!(
                "no right to {name:?} ({message}): grant the user configure, write and read rights"
            );
            BrokerError::Misconfigured { address, problem }
        }
        other => BrokerError::Unavailable { address, problem: other.to_string() },
    }
}

fn declare_origin(link: &mut Link, origin: &str) -> amiquip::Result<()> {
    if link.passive_declare(origin)?.is_none() {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        link.channel()?.queue_declare(origin, options)?;
    }
    Ok(())
}

/// Like a producer's queue, not declared where it exists: we need nothing of its arguments.
fn declare_dead(link: &mut Link, origin: &str) -> amiquip::Result<()> {
    let queue = dead_queue(origin);
    if link.passive_declare(&queue)?.is_none() {
        link.channel()?.queue_declare(queue, quorum([]))?;
    }
    Ok(())
}

fn declare_retry(channel: &Channel, origin: &str) -> amiquip::Result<()> {
    let queue = retry_queue(origin);
    channel.queue_declare(queue.as_str(), retry_options(origin))?;
    channel.queue_bind(queue, RETRY_EXCHANGE, format!("*.{origin}"), FieldTable::new())
}

fn retry_options(origin: &str) -> QueueDeclareOptions {
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

fn declare_wait(channel: &Channel, delay: Span) -> amiquip::Result<()> {
    let queue = wait_queue(delay);
    channel.queue_declare(queue.as_str(), wait_options(delay))?;
    channel.queue_bind(queue, WAIT_EXCHANGE, format!("{delay}.#"), FieldTable::new())
}

fn wait_options(delay: Span) -> QueueDeclareOptions {
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
    let kind = ("x-queue-type", AmqpValue::LongString("quorum".to_owned()));
    let arguments =
        arguments.into_iter().chain([kind]).map(|(name, value)| (name.to_owned(), value)).collect();
    QueueDeclareOptions { durable: true, arguments, ..Default::default() }
}

/// Makes sure of the one queue that a lane consumes.
///
/// # Errors
/// amiquip's. The caller guards it.
pub fn declare_lane(link: &mut Link, lane: &Lane) -> amiquip::Result<()> {
    match lane.kind {
        LaneKind::Events => declare_origin(link, &lane.origin),
        LaneKind::Retries => {
            let channel = link.channel()?;
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel.exchange_declare(ExchangeType::Topic, RETRY_EXCHANGE, options)?;
            declare_retry(&channel, &lane.origin)
        }
        // Each is declared when it is opened.
        LaneKind::Backlogs => Ok(()),
    }
}
