//! Tries operations of `run` in a way that the broker refuses, to learn why it would refuse them.

use std::collections::BTreeSet;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, ConsumerOptions, ExchangeDeclareOptions, ExchangeType,
    FieldTable, Publish, QueueDeclareOptions,
};
use uuid::Uuid;

use super::Flaw;
use super::lacking::{Lacking, exchange_named, queue_named};
use crate::broker::streams::{STREAM, is_of_a_stream};
use crate::broker::topology::exchange_options;
use crate::broker::{BrokerError, Link, SETUP_TIMEOUT};
use crate::domain::broker_names::check_queue;
use crate::shutdown::Shutdown;

/// A name that no user of RabbitMQ has.
const NOBODY: &str = "nobody, says webhook-notifier check";

/// Collects what the broker refuses.
pub(super) struct Probe<'a> {
    link: &'a mut Link,
    shutdown: &'a Shutdown,
    pub(super) lacking: BTreeSet<Lacking>,
    pub(super) flaws: Vec<Flaw>,
    /// How many queues `run` has to create.
    missing: usize,
    /// Whether this user may publish in the name of another one, once that is known.
    may_impersonate: Option<bool>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(link: &'a mut Link, shutdown: &'a Shutdown) -> Self {
        let (lacking, flaws) = (BTreeSet::new(), Vec::new());
        Self { link, shutdown, lacking, flaws, missing: 0, may_impersonate: None }
    }
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
    pub(super) fn check_configure_exchange(&mut self, exchange: &str) -> Result<(), BrokerError> {
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
    pub(super) fn check_topic_exchange(&mut self, exchange: &str) -> Result<(), BrokerError> {
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
    pub(super) fn check_configure_if_missing(&mut self, queue: &str) -> Result<bool, BrokerError> {
        let is_missing = self.count_if_missing(queue)?;
        if is_missing {
            self.check_configure_queue(queue)?;
        }
        Ok(is_missing)
    }

    /// Checks whether RabbitMQ deletes messages of a queue because of the queue's arguments.
    pub(super) fn check_expiry(&mut self, queue: &str) -> Result<(), BrokerError> {
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
    pub(super) fn count_if_missing(&mut self, queue: &str) -> Result<bool, BrokerError> {
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
    pub(super) fn check_configure_queue(&mut self, queue: &str) -> Result<(), BrokerError> {
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
    pub(super) fn check_queue_limit(&mut self) -> Result<(), BrokerError> {
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
    pub(super) fn check_consume(&mut self, queue: &str) -> Result<(), BrokerError> {
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
    pub(super) fn check_bind(
        &mut self,
        queue: &str,
        exchange: &'static str,
        key: &str,
    ) -> Result<(), BrokerError> {
        let other = table([("made-by", AmqpValue::LongString("nobody".to_owned()))]);
        let refusal = self.refusal(|channel| channel.queue_unbind(queue, exchange, key, other))?;
        if let Some((403, message)) = refusal {
            self.lacking.insert(match refused_object(&message) {
                RefusedObject::Topic => Lacking::Topic(exchange, format!("read {key:?}")),
                RefusedObject::Exchange => Lacking::Right("read", exchange_named(exchange)),
                RefusedObject::Queue => Lacking::Right("write", queue_named(queue)),
            });
        }
        Ok(())
    }

    /// Checks the permission to publish to an exchange with this routing key.
    pub(super) fn check_publish(
        &mut self,
        exchange: &'static str,
        key: &str,
    ) -> Result<(), BrokerError> {
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
                RefusedObject::Topic => Lacking::Topic(exchange, format!("write {key:?}")),
                RefusedObject::Exchange | RefusedObject::Queue => {
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
enum RefusedObject {
    Queue,
    Exchange,
    Topic,
}

/// Reads "access to exchange 'x' in vhost '/' refused for user 'u'". Newer versions name the right before
/// it, and for topics it is "access to topic 'k' in exchange 'x' …".
fn refused_object(message: &str) -> RefusedObject {
    let object = message.split_once("access to ").map_or(message, |(_, object)| object);
    if object.starts_with("topic") {
        RefusedObject::Topic
    } else if object.starts_with("exchange") {
        RefusedObject::Exchange
    } else {
        RefusedObject::Queue
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
                RefusedObject::Queue,
            ),
            (
                "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost '/' refused for user 'u'",
                RefusedObject::Exchange,
            ),
            (
                "ACCESS_REFUSED - access to topic 'k' in exchange 'webhooks.wait' in vhost '/' refused",
                RefusedObject::Topic,
            ),
        ] {
            assert_eq!(refused_object(message), expected, "{message}");
        }
    }
}
