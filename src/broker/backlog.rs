//! Backlogs: each is a queue for the deliveries that one receiver can't take now.

use amiquip::{Channel, ConsumerOptions, FieldTable, QueueDeleteOptions};
use uuid::Uuid;

use super::topology::backlog_options;
use super::{BrokerError, CALL_TIMEOUT, Link, SETUP_TIMEOUT, cancel, failed};
use crate::domain::broker_names::{BACKLOG_EXCHANGE, backlog_key, backlog_queue};
use crate::shutdown::Shutdown;

impl Link {
    /// Creates the backlog of a webhook for the queue `origin`, unless it exists. Returns how many messages
    /// wait in it. Takes [`SETUP_TIMEOUT`] at most.
    ///
    /// # Errors
    /// If the broker refuses it, or the connection is lost.
    pub fn open_backlog(
        &mut self,
        origin: &str,
        webhook: Uuid,
        shutdown: &Shutdown,
    ) -> Result<u32, BrokerError> {
        let (queue, key) = (backlog_queue(origin, webhook), backlog_key(origin, webhook));
        self.on_backlog(&queue, shutdown, |channel| {
            let declared = channel.queue_declare(queue.as_str(), backlog_options(origin))?;
            channel.queue_bind(queue.as_str(), BACKLOG_EXCHANGE, key, FieldTable::new())?;
            Ok(declared.declared_message_count().unwrap_or(0))
        })
    }

    /// Tests whether a queue can be consumed: if a quorum queue has no leader, the broker doesn't answer,
    /// and finally closes the connection. Takes [`SETUP_TIMEOUT`] at most.
    ///
    /// # Errors
    /// If the queue can't be consumed, or the connection is lost.
    pub fn try_to_consume(&mut self, queue: &str, shutdown: &Shutdown) -> Result<(), BrokerError> {
        self.on_backlog(queue, shutdown, |channel| {
            channel.qos(0, 1, false)?;
            let consumer = channel.basic_consume(queue, ConsumerOptions::default())?;
            // Messages that were delivered to it are requeued when the channel is closed.
            drop(cancel(&consumer));
            Ok(())
        })
    }

    /// Unbinds a backlog, so that nothing enters it any more. Takes [`SETUP_TIMEOUT`] at most.
    ///
    /// # Errors
    /// If the connection is lost or the broker refuses.
    pub fn close_backlog(
        &mut self,
        origin: &str,
        webhook: Uuid,
        shutdown: &Shutdown,
    ) -> Result<(), BrokerError> {
        let (queue, key) = (backlog_queue(origin, webhook), backlog_key(origin, webhook));
        self.on_backlog(&queue, shutdown, |channel| {
            channel.queue_unbind(queue.as_str(), BACKLOG_EXCHANGE, key, FieldTable::new())
        })
    }

    /// Runs calls on a separate channel: if the broker refuses one, it closes the channel.
    fn on_backlog<T>(
        &mut self,
        queue: &str,
        shutdown: &Shutdown,
        calls: impl FnOnce(&Channel) -> amiquip::Result<T>,
    ) -> Result<T, BrokerError> {
        let kill = self.kill_switch();
        kill.guard(SETUP_TIMEOUT, Some(shutdown), || calls(&self.channel()?))
            .map_err(|error| failed(&self.address, queue, &error))
    }

    /// Deletes a backlog if it is empty, and returns whether it was. The backlog must have been closed before,
    /// since quorum queues don't support `if-empty`. Takes [`SETUP_TIMEOUT`] and another 30 s at most.
    ///
    /// # Errors
    /// If the connection is lost or the broker refuses.
    pub fn delete_backlog(
        &mut self,
        origin: &str,
        webhook: Uuid,
        shutdown: &Shutdown,
    ) -> Result<bool, BrokerError> {
        let queue = backlog_queue(origin, webhook);
        match self.queue_messages(&queue, shutdown)? {
            None => return Ok(true),
            Some(0) => {}
            Some(_) => return Ok(false),
        }
        let kill = self.kill_switch();
        // RabbitMQ takes five seconds if one of the queue's nodes is down.
        let deleted = kill.guard(CALL_TIMEOUT, Some(shutdown), || {
            self.channel()?.queue_delete(queue.as_str(), QueueDeleteOptions::default())
        });
        deleted.map_err(|error| failed(&self.address, &queue, &error))?;
        Ok(true)
    }
}
