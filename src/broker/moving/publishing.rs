//! Publishes moved messages.

use std::time::Instant;

use amiquip::{AmqpProperties, Channel, Confirm, ConfirmPayload, Publish, Return};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::broker::publisher::CONFIRM_TIMEOUT;
use crate::broker::{BrokerError, CLOSE_TIMEOUT, KillSwitch, Link, SETUP_TIMEOUT};
use crate::config::Config;
use crate::domain::unconfirmed::Unconfirmed;
use crate::shutdown::Shutdown;

/// A channel that publishes messages unchanged, on a separate connection: during an alarm the broker stops
/// reading from connections that publish, and acks have to get through.
pub(super) struct Publishing {
    link: Link,
    queue: String,
    channel: Channel,
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    unconfirmed: Unconfirmed<()>,
    kill: KillSwitch,
}

impl Publishing {
    pub(super) fn open(
        config: &Config,
        queue: &str,
        shutdown: &Shutdown,
    ) -> Result<Self, BrokerError> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
        let kill = link.kill_switch();
        let opened = kill.guard(SETUP_TIMEOUT, None, || {
            let channel = link.channel()?;
            let returns = channel.listen_for_returns()?;
            // In this order, or early confirms would be lost.
            let confirms = channel.listen_for_publisher_confirms()?;
            channel.enable_publisher_confirms()?;
            Ok((channel, confirms, returns))
        });
        let (channel, confirms, returns) = opened.map_err(|error| link.unavailable(&error))?;
        let (queue, unconfirmed) = (queue.to_owned(), Unconfirmed::default());
        Ok(Self { link, queue, channel, confirms, returns, unconfirmed, kill })
    }

    /// Publishes messages, and waits until the broker has confirmed all of them.
    pub(super) fn publish(
        &mut self,
        messages: Vec<(Vec<u8>, AmqpProperties)>,
    ) -> Result<(), BrokerError> {
        let limit = CONFIRM_TIMEOUT + CLOSE_TIMEOUT;
        let kill = self.kill.clone();
        // Shutdown doesn't end this: the messages of an interrupted batch would be in both queues.
        let published = kill.guard(limit, None, || self.publish_all(messages));
        published.map_err(|problem| {
            // Otherwise dropping the channel would wait for an answer.
            self.kill.cut();
            BrokerError::Unavailable { address: self.link.address.clone(), problem }
        })
    }

    fn publish_all(&mut self, messages: Vec<(Vec<u8>, AmqpProperties)>) -> Result<(), String> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        for (body, properties) in messages {
            let publish = Publish {
                body: &body,
                routing_key: self.queue.clone(),
                mandatory: true,
                immediate: false,
                properties,
            };
            let _ = self.unconfirmed.publish(());
            self.channel.basic_publish("", publish).map_err(|error| error.to_string())?;
        }
        while !self.unconfirmed.is_empty() {
            match self.confirms.recv_deadline(deadline) {
                Ok(Confirm::Ack(ConfirmPayload { delivery_tag, multiple })) => {
                    self.unconfirmed.ack(delivery_tag, multiple).for_each(drop);
                }
                Ok(Confirm::Nack(_)) => {
                    return Err(format!(
                        "the queue {} accepts no messages (nack): does a policy set a `max-length`?",
                        self.queue
                    ));
                }
                Err(RecvTimeoutError::Timeout) => return Err("no confirm in time".to_owned()),
                Err(RecvTimeoutError::Disconnected) => return Err("connection lost".to_owned()),
            }
            // A returned message is acked too, after its return.
            if let Ok(returned) = self.returns.try_recv() {
                return Err(format!("the queue {} is gone: {}", self.queue, returned.reply_text));
            }
        }
        Ok(())
    }

    pub(super) fn close(self) {
        let Self { link, channel, kill, .. } = self;
        kill.guard(CLOSE_TIMEOUT, None, || channel.close()).ok();
        link.close();
    }
}
