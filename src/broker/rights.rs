//! Checks what would keep `run` from working at a broker that answers: missing permissions, queue limits, and
//! queues of an unusable type.
//!
//! Each operation of `run` is tried with an invalid argument, so that the broker has to refuse it. The broker
//! checks the permission before the arguments, and says which of them is wrong. So nothing is created, consumed
//! or published. (RabbitMQ logs each attempt as a channel error.)

use std::collections::BTreeSet;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, ConsumerOptions, ExchangeDeclareOptions, ExchangeType,
    FieldTable, Publish, QueueDeclareOptions,
};
use uuid::Uuid;

use self::lacking::{Lacking, exchange_named, lack_of_rights, queue_named};
use super::streams::{STREAM, is_of_a_stream};
use super::topology::exchange_options;
use super::{BrokerError, Lane, LaneKind, Link, SETUP_TIMEOUT, Topology};
use crate::config::Config;
use crate::domain::broker_names::{
    BACKLOG_EXCHANGE, EVENTS_EXCHANGE, RETRY_EXCHANGE, WAIT_EXCHANGE, backlog_key, backlog_queue,
    check_queue, dead_queue, wait_key,
};
use crate::domain::notice::NoticeKind;
use crate::shutdown::Shutdown;

mod lacking;

/// A name that no user of RabbitMQ has.
const NOBODY: &str = "nobody, says webhook-notifier check";

/// Something that keeps events from being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong: `rights`, `room`, a queue or an exchange.
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

/// Finds what the broker would refuse to `run` with this configuration. Each step takes [`SETUP_TIMEOUT`] at
/// most.
///
/// # Errors
/// If the connection is lost or the broker doesn't answer.
pub fn find_flaws(
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
        may_impersonate: None,
    };
    let topology = Topology::of(config);
    let lanes = Lane::all(config);
    let nobody = Uuid::nil();
    for exchange in [WAIT_EXCHANGE, RETRY_EXCHANGE, BACKLOG_EXCHANGE] {
        probe.check_configure_exchange(exchange)?;
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Events) {
        let origin = &lane.origin;
        probe.check_consume(origin)?;
        let _ = probe.check_configure_if_missing(origin)?;
        let dead = dead_queue(origin);
        probe.check_consume(&dead)?;
        if !probe.check_configure_if_missing(&dead)? {
            probe.check_expiry(&dead)?;
        }
        probe.check_publish("", &dead)?;
        // The backlog of a webhook that doesn't exist represents all backlogs.
        let backlog = backlog_queue(origin, nobody);
        let key = backlog_key(origin, nobody);
        probe.check_configure_queue(&backlog)?;
        probe.check_bind(&backlog, BACKLOG_EXCHANGE, &key)?;
        probe.check_consume(&backlog)?;
        probe.check_publish(BACKLOG_EXCHANGE, &key)?;
        for (delay, _) in topology.wait_queues() {
            probe.check_publish(WAIT_EXCHANGE, &wait_key(delay, origin))?;
        }
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Retries) {
        probe.check_consume(&lane.queue)?;
        probe.check_configure_queue(&lane.queue)?;
        probe.count_if_missing(&lane.queue)?;
        probe.check_bind(&lane.queue, RETRY_EXCHANGE, &format!("*.{}", lane.origin))?;
        probe.check_publish("", &lane.queue)?;
        probe.check_publish(RETRY_EXCHANGE, &format!("0s.{}", lane.origin))?;
    }
    for (delay, queue) in topology.wait_queues() {
        probe.check_configure_queue(&queue)?;
        probe.count_if_missing(&queue)?;
        // To create a queue with a dead-letter exchange, the user needs the permission to read the queue.
        probe.check_consume(&queue)?;
        probe.check_bind(&queue, WAIT_EXCHANGE, &format!("{delay}.#"))?;
    }
    probe.check_queue_limit()?;
    let needed = std::mem::take(&mut probe.lacking);
    // Without the following permissions `run` delivers nevertheless.
    probe.check_configure_exchange(EVENTS_EXCHANGE)?;
    for kind in NoticeKind::ALL {
        probe.check_publish(EVENTS_EXCHANGE, kind.label())?;
    }
    probe.check_topic_exchange(EVENTS_EXCHANGE)?;
    let Probe { lacking: of_notices, mut flaws, .. } = probe;
    flaws.extend(lack_of_rights(&needed, config));
    flaws.extend(lack_of_rights(&of_notices, config).map(|flaw| Flaw {
        subject: format!("exchange {EVENTS_EXCHANGE}"),
        problem: format!("no notices are published: {}", flaw.problem),
        is_fatal: false,
    }));
    Ok(flaws)
}

struct Probe<'a> {
    link: &'a mut Link,
    shutdown: &'a Shutdown,
    lacking: BTreeSet<Lacking>,
    flaws: Vec<Flaw>,
    /// How many queues `run` has to create.
    missing: usize,
    /// Whether this user may publish in the name of another one, once that is known.
    may_impersonate: Option<bool>,
}

impl Probe<'_> {
    /// Runs a call on a separate channel. Returns the code and text if the broker refuses it.
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

    /// Checks the permission to configure an exchange.
    fn check_configure_exchange(&mut self, exchange: &str) -> Result<(), BrokerError> {
        let options = ExchangeDeclareOptions {
            durable: true,
            // A number isn't a name: this is refused, whether the exchange exists or not.
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

    /// Checks whether an existing exchange is as `run` creates it.
    fn check_topic_exchange(&mut self, exchange: &str) -> Result<(), BrokerError> {
        let is_there =
            self.refusal(|channel| channel.exchange_declare_passive(exchange).map(drop))?;
        if is_there.is_some() {
            return Ok(());
        }
        // This changes nothing if the exchange is the same.
        let options = exchange_options(exchange);
        let refusal = self.refusal(|channel| {
            channel.exchange_declare(ExchangeType::Topic, exchange, options).map(drop)
        })?;
        if let Some((406, message)) = refusal {
            self.flaws.push(Flaw {
                subject: format!("exchange {exchange}"),
                problem: format!(
                    "no notices are published: it is not as `run` creates it ({message}); delete it"
                ),
                is_fatal: false,
            });
        }
        Ok(())
    }

    /// Checks the permission to create an operator's queue, if it is missing. Returns whether it is.
    fn check_configure_if_missing(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let is_missing = self.count_if_missing(queue)?;
        if is_missing {
            self.check_configure_queue(queue)?;
        }
        Ok(is_missing)
    }

    /// Checks whether RabbitMQ deletes messages of a queue because of the queue's arguments.
    fn check_expiry(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        let refusal = self.refusal(|channel| channel.queue_declare(queue, options).map(drop))?;
        let Some((406, message)) = refusal else { return Ok(()) };
        // The broker names the first argument that differs, and checks these first.
        for argument in ["x-expires", "x-message-ttl"] {
            if message.contains(&format!("inequivalent arg '{argument}'")) {
                self.flaws.push(Flaw {
                    subject: format!("queue {queue}"),
                    problem: format!("RabbitMQ deletes its messages: it has {argument}"),
                    is_fatal: false,
                });
            }
        }
        Ok(())
    }

    /// Counts a queue if it is missing. Returns whether it is.
    fn count_if_missing(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let is_missing =
            match self.refusal(|channel| channel.queue_declare_passive(queue).map(drop))? {
                None => false,
                // Otherwise it exists, but its node is down.
                Some((404, message)) => message.contains("no queue "),
                // It is exclusive to another connection.
                Some((_, message)) => {
                    let problem = format!("can't be used: {message}");
                    self.flaws.push(Flaw::fatal(format!("queue {queue}"), problem));
                    false
                }
            };
        self.missing += usize::from(is_missing);
        Ok(is_missing)
    }

    /// Checks the permission to configure a queue.
    fn check_configure_queue(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = QueueDeclareOptions {
            durable: true,
            // A number isn't a name: this is refused, whether the queue exists or not.
            arguments: table([("x-dead-letter-exchange", AmqpValue::LongInt(0))]),
            ..Default::default()
        };
        let refusal = self.refusal(|channel| channel.queue_declare(queue, options).map(drop))?;
        if let Some((403, _)) = refusal {
            self.lacking.insert(Lacking::Right("configure", queue_named(queue)));
        }
        Ok(())
    }

    /// Checks whether a limit prevents the missing queues or a backlog, by creating queues that end with this
    /// connection: RabbitMQ doesn't report its limits.
    fn check_queue_limit(&mut self) -> Result<(), BrokerError> {
        let (missing, mut made) = (self.missing, 0);
        let check = Uuid::new_v4();
        let refusal = self.refusal(|channel| {
            while made <= missing {
                let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
                channel.queue_declare(check_queue(check, made), options)?;
                made += 1;
            }
            Ok(())
        })?;
        if let Some((_, message)) = refusal
            && message.contains("queue limit")
        {
            let is_fatal = made < missing;
            let what = match is_fatal {
                true => format!("{missing} queues are missing, {made} can be created"),
                false => {
                    "no queue can be created for a backlog: deliveries that a receiver can't take now are \
                     retried every minute, in no order"
                        .to_owned()
                }
            };
            let problem = format!("{what}: raise the virtual host's max-queues ({message})");
            self.flaws.push(Flaw { subject: "room".to_owned(), problem, is_fatal });
        }
        Ok(())
    }

    /// Checks the permission to read a queue, and whether the queue is a stream.
    fn check_consume(&mut self, queue: &str) -> Result<(), BrokerError> {
        let options = ConsumerOptions {
            arguments: table([
                // Only streams support this argument.
                ("x-stream-offset", AmqpValue::LongString("next".to_owned())),
                // Streams don't support this argument, and other queues accept only a number.
                ("x-priority", AmqpValue::LongString("none".to_owned())),
            ]),
            ..ConsumerOptions::default()
        };
        let refusal = self.refusal(|channel| {
            let consumer = channel.basic_consume(queue, options)?;
            // No version gets here. If one did, its messages would be requeued with the channel.
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

    /// Checks the permissions that a binding needs, by removing a binding that doesn't exist.
    fn check_bind(
        &mut self,
        queue: &str,
        exchange: &'static str,
        key: &str,
    ) -> Result<(), BrokerError> {
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

    /// Checks the permission to publish to an exchange with this routing key.
    fn check_publish(&mut self, exchange: &'static str, key: &str) -> Result<(), BrokerError> {
        let properties = AmqpProperties::default();
        // An expiration has to be a number of milliseconds. RabbitMQ 4 checks it before topic permissions, so it
        // is used only for the few users that may publish in another's name.
        let properties = match self.may_impersonate()? {
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

    /// Whether this user may publish in the name of another one, as users with the tag `impersonator` may. It
    /// is tried with a message for a queue that doesn't exist.
    fn may_impersonate(&mut self) -> Result<bool, BrokerError> {
        if let Some(known) = self.may_impersonate {
            return Ok(known);
        }
        let properties = AmqpProperties::default().with_user_id(NOBODY.to_owned());
        let key = Uuid::new_v4().to_string();
        let refusal = self.refusal(|channel| publish_empty(channel, "", &key, properties))?;
        let may_impersonate = !matches!(refusal, Some((406, _)));
        self.may_impersonate = Some(may_impersonate);
        Ok(may_impersonate)
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
    // A refusal arrives as the answer to the next call.
    channel.qos(0, 1, false)
}

/// The kind of object that RabbitMQ refuses access to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Queue,
    Exchange,
    Topic,
}

/// Reads "access to exchange 'x' in vhost '/' refused for user 'u'". Newer versions name the right before
/// it, and for topics it is "access to topic 'k' in exchange 'x' …".
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

fn table<const N: usize>(arguments: [(&str, AmqpValue); N]) -> FieldTable {
    arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refused_object_is_read_from_the_text_of_old_and_new_versions() {
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
