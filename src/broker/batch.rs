//! Publishing for commands: a batch of messages at a time, which fails as a whole.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::outgoing::Outgoing;
use super::publisher::{CONFIRM_TIMEOUT, Confirming, Publication, Slip};
use super::{BrokerError, CLOSE_TIMEOUT, Link, SETUP_TIMEOUT};
use crate::config::Config;
use crate::shutdown::Shutdown;

/// A connection that publishes batches with confirms.
pub struct Batches {
    link: Link,
    channel: Confirming,
    shutdown: Shutdown,
}

impl fmt::Debug for Batches {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Batches").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Batches {
    /// Connects.
    ///
    /// # Errors
    /// If the broker can't be reached.
    pub fn open(config: &Config, shutdown: &Shutdown) -> Result<Self, BrokerError> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
        let kill = link.kill_switch();
        let opened =
            kill.guard(SETUP_TIMEOUT, Some(shutdown), || Confirming::open(&mut link, None));
        let channel = opened.map_err(|error| link.unavailable(&error))?;
        Ok(Self { link, channel, shutdown: shutdown.clone() })
    }

    /// Publishes a batch, and waits until the broker has confirmed all of it, for 30 s at most.
    ///
    /// # Errors
    /// If the connection is lost, or the broker returns a message (there is no such queue), refuses one, or
    /// doesn't confirm all in time. Then any message of the batch may have been published.
    pub fn publish(&mut self, batch: Vec<Outgoing>) -> Result<(), BrokerError> {
        let kill = self.link.kill_switch();
        // In case a publish blocks; waiting for the confirms has a shorter limit.
        let limit = CONFIRM_TIMEOUT + CLOSE_TIMEOUT;
        kill.guard(limit, Some(&self.shutdown), || self.channel.publish_batch(batch)).map_err(
            |problem| {
                // Otherwise dropping the channel would wait for an answer.
                kill.cut();
                BrokerError::Unavailable { address: self.link.address.clone(), problem }
            },
        )
    }

    /// Whether this queue exists. Takes [`SETUP_TIMEOUT`] at most.
    ///
    /// # Errors
    /// If the connection is lost or the broker doesn't answer.
    pub fn has_queue(&mut self, queue: &str) -> Result<bool, BrokerError> {
        Ok(self.link.queue_messages(queue, &self.shutdown)?.is_some())
    }

    /// Closes cleanly.
    pub fn close(self) {
        let _ = self.channel.into_unconfirmed(&self.link.kill_switch());
        self.link.close();
    }
}

impl Confirming {
    fn publish_batch(&mut self, batch: Vec<Outgoing>) -> Result<(), String> {
        let since = Instant::now();
        let deadline = since + CONFIRM_TIMEOUT;
        let count = batch.len();
        let (confirmed, confirms) = bounded(count);
        // Kept until the end: as long as it exists, the messages are wanted.
        let slip: Arc<Slip> = Arc::default();
        for message in batch {
            let (confirmed, slip) = (confirmed.clone(), Arc::clone(&slip));
            self.publish(Publication {
                message,
                since,
                published_at: since,
                deadline,
                confirmed,
                slip,
            });
        }
        while !self.unconfirmed.is_empty()
            && self.broken.is_none()
            && self.unconfirmed.refused().is_empty()
        {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(RecvTimeoutError::Timeout) => return Err("no confirm in time".to_owned()),
                Err(RecvTimeoutError::Disconnected) => return Err("connection lost".to_owned()),
            }
        }
        match self.broken.take() {
            Some(problem) => Err(problem),
            // A message whose deadline passed before it was published is in no list.
            None if confirms.len() == count => Ok(()),
            None => Err(match self.unconfirmed.refused().first() {
                None => "no confirm in time".to_owned(),
                Some(publication) => format!(
                    "the queue {} accepts no messages (nack): does a policy set a `max-length` \
                     (`rabbitmqctl list_policies`), or does it have no leader?",
                    publication.message.queue()
                ),
            }),
        }
    }
}
