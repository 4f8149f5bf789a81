//! What would keep `run` from working at a broker that answers: rights, room, and queues of a kind that
//! can't be used.
//!
//! Each thing that `run` does is tried in a way that the broker can only refuse: with an argument that
//! is wrong. It looks at the right before it looks at the arguments, and says which of the two it is.
//! So nothing is made, taken or published. (RabbitMQ logs each as a channel error.)

use std::collections::BTreeSet;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Consumer, ConsumerOptions, ExchangeDeclareOptions,
    ExchangeType, FieldTable, Publish, QueueDeclareOptions,
};
use uuid::Uuid;

use self::lacking::{Lacking, exchange_named, lack_of_rights, queue_named};
use super::backlog::backlog_key;
use super::topology::{
    BACKLOG_EXCHANGE, EVENTS_EXCHANGE, RETRY_EXCHANGE, WAIT_EXCHANGE, backlog_queue, dead_queue,
    exchange_options,
};
use super::{BrokerError, Lane, LaneKind, Link, SETUP_TIMEOUT, Topology};
use crate::config::Config;
use crate::domain::notice::Kind;
use crate::shutdown::Shutdown;

mod lacking;

/// How RabbitMQ ends what it says of an argument that the queue's type doesn't know.
const OF_A_STREAM: &str = "of queue type rabbit_stream_queue";

/// No user of RabbitMQ.
const NOBODY: &str = "nobody, says webhook-notifier check";

/// Something that keeps events from being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What it is about: `rights`, or a queue.
    pub subject: String,
    /// What is wrong, and the remedy.
    pub problem: String,
    /// Whether events are not delivered, or not all of them.
    pub is_fatal: bool,
}

impl Flaw {
    fn fatal(subject: String, problem: String) -> Self {
        Self { subject, problem, is_fatal: true }
    }
}

/// What `run` would be refused with this configuration. Bounded, each step of it.
///
/// # Errors
/// If the connection is lost or the broker doesn't answer.
pub fn look_for_flaws(
    link: &mut Link,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Vec<Flaw>, BrokerError> {
    let mut probe = Probe {
        link,
        shutdown,
        lacking: BTreeSet::new(),
        flaws: Vec::new(),
        missing: 0,
        speaks_for_others: None,
    };
    let topology = Topology::of(config);
    let lanes = Lane::all(config);
    let nobody = Uuid::nil();
    for exchange in [WAIT_EXCHANGE, RETRY_EXCHANGE, BACKLOG_EXCHANGE] {
        probe.configures_exchange(exchange)?;
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Events) {
        let origin = &lane.origin;
        probe.consumes(origin)?;
        let _ = probe.makes_if_missing(origin)?;
        let dead = dead_queue(origin);
        probe.consumes(&dead)?;
        if !probe.makes_if_missing(&dead)? {
            probe.keeps(&dead)?;
        }
        probe.publishes("", &dead)?;
        // As for a webhook's that nobody has.
        let backlog = backlog_queue(origin, nobody);
        let key = backlog_key(origin, nobody);
        probe.makes(&backlog)?;
        probe.binds(&backlog, BACKLOG_EXCHANGE, &key)?;
        probe.consumes(&backlog)?;
        probe.publishes(BACKLOG_EXCHANGE, &key)?;
        for (delay, _) in topology.wait_queues() {
            probe.publishes(WAIT_EXCHANGE, &format!("{delay}.{origin}"))?;
        }
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Retries) {
        probe.consumes(&lane.queue)?;
        probe.makes(&lane.queue)?;
        probe.counts(&lane.queue)?;
        probe.binds(&lane.queue, RETRY_EXCHANGE, &format!("*.{}", lane.origin))?;
        probe.publishes("", &lane.queue)?;
        probe.publishes(RETRY_EXCHANGE, &format!("0s.{}", lane.origin))?;
    }
    for (delay, queue) in topology.wait_queues() {
        probe.makes(&queue)?;
        probe.counts(&queue)?;
        // A queue with a dead-letter exchange is only made for who may read it.
        probe.consumes(&queue)?;
        probe.binds(&queue, WAIT_EXCHANGE, &format!("{delay}.#"))?;
    }
    probe.has_room()?;
    let needed = std::mem::take(&mut probe.lacking);
    // Without these it delivers all the same.
    probe.configures_exchange(EVENTS_EXCHANGE)?;
    for kind in Kind::ALL {
        probe.publishes(EVENTS_EXCHANGE, kind.label())?;
    }
    probe.is_topic(EVENTS_EXCHANGE)?;
    let Probe { lacking: of_notices, mut flaws, .. } = probe;
    flaws.extend(lack_of_rights(&needed, config));
    flaws.extend(lack_of_rights(&of_notices, config).map(|flaw| Flaw {
        subject: format!("exchange {EVENTS_EXCHANGE}"),
        problem: format!("nobody is told by it: {}", flaw.problem),
        is_fatal: false,
    }));
    Ok(flaws)
}

struct Probe<'a> {
    link: &'a mut Link,
    shutdown: &'a Shutdown,
    lacking: BTreeSet<Lacking>,
    flaws: Vec<Flaw>,
    /// Queues that `run` has to make.
    missing: usize,
    /// Whether what somebody else is said to have published is taken from this user, once that is known.
    speaks_for_others: Option<bool>,
}

impl Probe<'_> {
    /// Runs a call on a channel of its own; returns what the broker has against it.
    fn refusal(
        &mut self,
        call: impl FnOnce(&Channel) -> amiquip::Result<()>,
    ) -> Result<Option<(u16, String)>, BrokerError> {
        let kill = self.link.kill_switch();
        let link = &mut *self.link;
        let called = kill.guard(SETUP_TIMEOUT, Some(self.shutdown), || call(&link.channel()?));
        match called {
            Ok(()) => Ok(None),
            Err(amiquip::Error::ServerClosedChannel { code, message, .. }) => {
                Ok(Some((code, message)))
            }
            Err(error) => Err(link.unavailable(&error)),
        }
    }

    /// The right to configure an exchange.
    fn configures_exchange(&mut self, exchange: &str) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions {
            durable: true,
            // A name is no number: refused, whether the exchange is there or not.
            arguments: table([("alternate-exchange", AmqpValue::LongInt(0))]),
            ..Default::default()
        };
        let refusal = self.refusal(|channel| {
            channel.exchange_declare(ExchangeType::Topic, exchange, options).map(drop)
        })?;
        if let Some((403, _)) = refusal {
            self.lacking.insert(Lacking::Right("configure", exchange_named(exchange)));
        }
        Ok(())
    }

    /// Whether an exchange that is there is one of ours.
    fn is_topic(&mut self, exchange: &str) -> Result<(), BrokerError> {
        let is_there =
            self.refusal(|channel| channel.exchange_declare_passive(exchange).map(drop))?;
        if is_there.is_some() {
            return Ok(());
        }
        // Changes nothing where it is the same.
        let options = exchange_options(exchange);
        let refusal = self.refusal(|channel| {
            channel.exchange_declare(ExchangeType::Topic, exchange, options).map(drop)
        })?;
        if let Some((406, message)) = refusal {
            self.flaws.push(Flaw {
                subject: format!("exchange {exchange}"),
                problem: format!(
                    "nobody is told by it: it is not as `run` makes it ({message}); delete it"
                ),
                is_fatal: false,
            });
        }
        Ok(())
    }

    /// The right to make a queue that is an operator's, where it has to be made; says whether it has.
    fn makes_if_missing(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let is_missing = self.counts(queue)?;
        if is_missing {
            self.makes(queue)?;
        }
        Ok(is_missing)
    }

    /// Whether an argument of a queue has RabbitMQ delete what is to be kept there.
    fn keeps(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let refusal = self.refusal(|channel| channel.queue_declare(queue, options).map(drop))?;
        let Some((406, message)) = refusal else { return Ok(()) };
        // The first that differs is named, and these are the first that are looked at.
        for argument in ["x-expires", "x-message-ttl"] {
            if message.contains(&format!("inequivalent arg '{argument}'")) {
                self.flaws.push(Flaw {
                    subject: format!("queue {queue}"),
                    problem: format!("its {argument} has RabbitMQ delete what lies there"),
                    is_fatal: false,
                });
            }
        }
        Ok(())
    }

    /// Counts a queue that is missing; says whether it is.
    fn counts(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let is_missing =
            match self.refusal(|channel| channel.queue_declare_passive(queue).map(drop))? {
                None => false,
                // Or it is there, and its node away.
                Some((404, message)) => message.contains("no queue "),
                // In use by another connection alone.
                Some((_, message)) => {
                    let problem = format!("can't be used: {message}");
                    self.flaws.push(Flaw::fatal(format!("queue {queue}"), problem));
                    false
                }
            };
        self.missing += usize::from(is_missing);
        Ok(is_missing)
    }

    /// The right to configure a queue.
    fn makes(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions {
            durable: true,
            // A name is no number: refused, whether the queue is there or not.
            arguments: table([("x-dead-letter-exchange", AmqpValue::LongInt(0))]),
            ..Default::default()
        };
        let refusal = self.refusal(|channel| channel.queue_declare(queue, options).map(drop))?;
        if let Some((403, _)) = refusal {
            self.lacking.insert(Lacking::Right("configure", queue_named(queue)));
        }
        Ok(())
    }

    /// Room for the missing queues and for a backlog, tried by queues that end with this connection:
    /// how many there may be, RabbitMQ doesn't say.
    fn has_room(&mut self) -> Result<(), BrokerError> {
        let (missing, mut made) = (self.missing, 0);
        let name = format!("webhooks.check.{}", Uuid::new_v4());
        let refusal = self.refusal(|channel| {
            while made <= missing {
                let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
                channel.queue_declare(format!("{name}.{made}"), options)?;
                made += 1;
            }
            Ok(())
        })?;
        if let Some((_, message)) = refusal
            && message.contains("queue limit")
        {
            let is_fatal = made < missing;
            let what = match is_fatal {
                true => format!("{missing} queues are missing, {made} can be made"),
                false => {
                    "no queue can be made for a backlog: what a receiver can't take now is tried \
                          again every minute, in no order"
                        .to_owned()
                }
            };
            let problem = format!("{what}: raise the virtual host's max-queues ({message})");
            self.flaws.push(Flaw { subject: "room".to_owned(), problem, is_fatal });
        }
        Ok(())
    }

    /// The right to read a queue, and whether it is one that deliveries come from.
    fn consumes(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = ConsumerOptions {
            arguments: table([
                // Streams know this one, other queues don't.
                ("x-stream-offset", AmqpValue::LongString("next".to_owned())),
                // A number for others, unknown to streams.
                ("x-priority", AmqpValue::LongString("none".to_owned())),
            ]),
            ..ConsumerOptions::default()
        };
        let refusal = self.refusal(|channel| {
            let consumer = channel.basic_consume(queue, options)?;
            // What no version does. What it was given goes back with the channel.
            consumer.cancel()
        })?;
        match refusal {
            Some((403, _)) => {
                self.lacking.insert(Lacking::Right("read", queue_named(queue)));
            }
            Some((_, message)) if is_of_a_stream(&message) => {
                self.flaws.push(Flaw::fatal(format!("queue {queue}"), STREAM.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    /// The rights that a binding needs, tried by taking one away that is not there.
    fn binds(&mut self, queue: &str, exchange: &'static str, key: &str) -> Result<(), BrokerError> {
        let other = table([("made-by", AmqpValue::LongString("nobody".to_owned()))]);
        let refusal = self.refusal(|channel| channel.queue_unbind(queue, exchange, key, other))?;
        if let Some((403, message)) = refusal {
            self.lacking.insert(match refused_object(&message) {
                Object::Topic => Lacking::Topic(exchange, format!("read {key:?}")),
                Object::Exchange => Lacking::Right("read", exchange_named(exchange)),
                Object::Queue => Lacking::Right("write", queue_named(queue)),
            });
        }
        Ok(())
    }

    /// The right to publish by an exchange, with this routing key.
    fn publishes(&mut self, exchange: &'static str, key: &str) -> Result<(), BrokerError> {
        let properties = AmqpProperties::default();
        // RabbitMQ 4 looks at this before it looks at topic permissions, so it is left to the few users who may
        // speak for others. A time in milliseconds, by the protocol.
        let properties = match self.speaks_for_others()? {
            true => properties.with_expiration("never".to_owned()),
            false => properties.with_user_id(NOBODY.to_owned()),
        };
        let refusal = self.refusal(|channel| publish_empty(channel, exchange, key, properties))?;
        if let Some((403, message)) = refusal {
            self.lacking.insert(match refused_object(&message) {
                Object::Topic => Lacking::Topic(exchange, format!("write {key:?}")),
                Object::Exchange | Object::Queue => {
                    Lacking::Right("write", exchange_named(exchange))
                }
            });
        }
        Ok(())
    }

    /// As users with the tag `impersonator` may. Tried by a message for a queue that nobody has.
    fn speaks_for_others(&mut self) -> Result<bool, BrokerError> {
        if let Some(known) = self.speaks_for_others {
            return Ok(known);
        }
        let properties = AmqpProperties::default().with_user_id(NOBODY.to_owned());
        let key = Uuid::new_v4().to_string();
        let refusal = self.refusal(|channel| publish_empty(channel, "", &key, properties))?;
        let speaks = !matches!(refusal, Some((406, _)));
        self.speaks_for_others = Some(speaks);
        Ok(speaks)
    }
}

fn publish_empty(
    channel: &Channel,
    exchange: &str,
    key: &str,
    properties: AmqpProperties,
) -> amiquip::Result<()> {
    let publish = Publish {
        body: b"",
        routing_key: key.to_owned(),
        mandatory: false,
        immediate: false,
        properties,
    };
    channel.basic_publish(exchange, publish)?;
    // The refusal comes with the next answer.
    channel.qos(0, 1, false)
}

/// What RabbitMQ refuses somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Queue,
    Exchange,
    Topic,
}

/// Reads "access to exchange 'x' in vhost '/' refused for user 'u'", which newer versions begin with the
/// right, and which has for topics "access to topic 'k' in exchange 'x' …".
fn refused_object(message: &str) -> Object {
    let object = message.split_once("access to ").map_or(message, |(_, object)| object);
    if object.starts_with("topic") {
        Object::Topic
    } else if object.starts_with("exchange") {
        Object::Exchange
    } else {
        Object::Queue
    }
}

/// Consumes a queue, unless it is a stream: a consumer of that would be given what comes from now on, and
/// could take nothing out. May hang: call it in [`super::KillSwitch::guard`].
///
/// # Errors
/// amiquip's; [`why_not_consumed`] says what a refusal means.
pub fn consume_no_stream<'c>(channel: &'c Channel, queue: &str) -> amiquip::Result<Consumer<'c>> {
    // What others have anyway, and streams refuse.
    let arguments = table([("x-priority", AmqpValue::LongInt(0))]);
    channel.basic_consume(queue, ConsumerOptions { arguments, ..ConsumerOptions::default() })
}

/// Why a queue is not consumed, and the remedy where it is a stream.
#[must_use]
pub fn why_not_consumed(error: &amiquip::Error) -> String {
    match error {
        amiquip::Error::ServerClosedChannel { code: 406, message, .. }
            if is_of_a_stream(message) =>
        {
            format!("it {STREAM}")
        }
        other => format!("cannot consume: {other}"),
    }
}

/// What to say of a stream.
const STREAM: &str = "is a stream, from which nothing can be taken: delete it, and make a \
                                 classic or a quorum queue of that name (`run` does)";

fn is_of_a_stream(message: &str) -> bool {
    message.ends_with(OF_A_STREAM) || message.contains("prefetch count is not set for")
}

fn table<const N: usize>(arguments: [(&str, AmqpValue); N]) -> FieldTable {
    arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_broker_refuses_is_read_as_old_and_new_versions_say_it() {
        for (message, expected) in [
            (
                "ACCESS_REFUSED - access to queue 'topic' in vhost '/' refused for user 'u'",
                Object::Queue,
            ),
            (
                "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'u'",
                Object::Exchange,
            ),
            (
                "ACCESS_REFUSED - access to topic 'k' in exchange 'webhooks.wait' in vhost '/' refused",
                Object::Topic,
            ),
        ] {
            assert_eq!(refused_object(message), expected, "{message}");
        }
    }
}
