//! Backlogs: a queue of its own for what a receiver can't take now.

use amiquip::{Channel, ConsumerOptions, FieldTable, QueueDeleteOptions};
use uuid::Uuid;

use super::topology::backlog_options;
use super::{BrokerError, Link, SETUP_TIMEOUT, cancel, failed};
use crate::domain::broker_names::{BACKLOG_EXCHANGE, backlog_key, backlog_queue};
use crate::shutdown::Shutdown;

impl Link {
    /// Makes the backlog of a webhook for the queue `origin`, or makes sure of it; says how many messages wait
    /// in it. Bounded.
    ///
    /// # Errors
    /// [`BrokerError`]: there can be none, or the connection is lost.
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

    /// Tries whether a queue can be consumed: for a quorum queue without a leader the broker does not
    /// answer, and ends the connection. Bounded.
    ///
    /// # Errors
    /// If it can't, or the connection is lost.
    pub fn try_to_consume(&mut self, queue: &str, shutdown: &Shutdown) -> Result<(), BrokerError> {
        self.on_backlog(queue, shutdown, |channel| {
            channel.qos(0, 1, false)?;
            let consumer = channel.basic_consume(queue, ConsumerOptions::default())?;
            // What it was given goes back with the channel.
            drop(cancel(&consumer));
            Ok(())
        })
    }

    /// Sees to it that nothing comes into a backlog any more. Bounded.
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

    /// Runs calls on a channel of their own: one that the broker refuses costs the channel.
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

    /// Deletes a backlog, if it is empty; says whether it was. Bounded. Nothing may come into it any
    /// more: quorum queues don't know `if-empty`.
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
        self.on_backlog(&queue, shutdown, |channel| {
            channel.queue_delete(queue.as_str(), QueueDeleteOptions::default()).map(drop)
        })?;
        Ok(true)
    }
}
