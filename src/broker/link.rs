//! A connection to the broker, and how a connection and its consumers end.

use std::fmt;

use amiquip::{AmqpValue, Channel, ConnectionBlockedNotification, Consumer, ConsumerMessage};

use super::calls::is_absent;
use super::refusal::{failed, is_away};
use super::{BrokerError, CLOSE_TIMEOUT, KillSwitch, SETUP_TIMEOUT};
use crate::shutdown::Shutdown;

/// A connection to the broker. Dropping it cuts the socket; [`Link::close`] closes it cleanly.
pub struct Link {
    pub(super) connection: Option<amiquip::Connection>,
    pub(super) kill: KillSwitch,
    pub(super) address: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    /// The version that the broker reports.
    #[must_use]
    pub fn version(&self) -> String {
        self.property("version").unwrap_or_else(|| "unknown".to_owned())
    }

    /// The name of the broker's cluster, which is the same at all its nodes. A single node has one too.
    #[must_use]
    pub fn cluster(&self) -> String {
        self.property("cluster_name").unwrap_or_default()
    }

    fn property(&self, name: &str) -> Option<String> {
        match self.connection.as_ref()?.server_properties().get(name)? {
            AmqpValue::LongString(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// The switch that ends this connection from another thread.
    #[must_use]
    pub fn kill_switch(&self) -> KillSwitch {
        self.kill.clone()
    }

    /// Opens a channel. It may hang: call it in [`KillSwitch::guard`].
    ///
    /// # Errors
    /// If the connection is lost or has no channel left.
    pub fn channel(&mut self) -> amiquip::Result<Channel> {
        self.connection.as_mut().ok_or(amiquip::Error::ClientClosedConnection)?.open_channel(None)
    }

    /// A receiver that is disconnected when the connection is lost, for threads that have no consumer, which
    /// would be disconnected too.
    ///
    /// # Errors
    /// If the connection is already lost.
    pub fn listen_for_loss(
        &mut self,
    ) -> amiquip::Result<crossbeam_channel::Receiver<ConnectionBlockedNotification>> {
        let connection = self.connection.as_mut().ok_or(amiquip::Error::ClientClosedConnection)?;
        connection.listen_for_connection_blocked()
    }

    /// The error for a call that failed on this connection.
    #[must_use]
    pub fn unavailable(&self, error: &amiquip::Error) -> BrokerError {
        BrokerError::Unavailable { address: self.address.clone(), problem: error.to_string() }
    }

    /// How many messages are ready in a queue; `None` if there is no such queue. Takes [`SETUP_TIMEOUT`]
    /// at most.
    ///
    /// # Errors
    /// If the connection is lost or the broker doesn't answer.
    pub fn queue_messages(
        &mut self,
        queue: &str,
        shutdown: &Shutdown,
    ) -> Result<Option<u32>, BrokerError> {
        let kill = self.kill_switch();
        let found = kill.guard(SETUP_TIMEOUT, Some(shutdown), || self.passive_declare(queue));
        found.map_err(|error| match is_away(&error) {
            true => failed(&self.address, queue, &error),
            false => self.unavailable(&error),
        })
    }

    /// Looks for a queue on a separate channel: if the queue is missing, RabbitMQ closes the channel.
    fn passive_declare(&mut self, queue: &str) -> amiquip::Result<Option<u32>> {
        match self.channel()?.queue_declare_passive(queue) {
            Ok(found) => Ok(Some(found.declared_message_count().unwrap_or(0))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives up a connection that no longer works. Returns why it was lost.
    #[must_use]
    pub fn cause_of_loss(mut self) -> String {
        let connection = self.connection.take();
        let closed = self.kill.guard(CLOSE_TIMEOUT, None, || connection.map(|c| c.close()));
        closed.and_then(Result::err).map_or_else(|| "closed".to_owned(), |error| error.to_string())
    }

    /// Gives up a connection after this problem. Returns the problem, with why the connection was lost if that
    /// says more.
    #[must_use]
    pub fn explain_loss(self, problem: String) -> String {
        let cause = self.cause_of_loss();
        if problem.contains(&cause) { problem } else { format!("{problem}: {cause}") }
    }

    /// Closes the connection cleanly, or cuts it after [`CLOSE_TIMEOUT`].
    pub fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            // amiquip reports an error even after a clean close.
            let _ = self.kill.guard(CLOSE_TIMEOUT, None, || connection.close());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Otherwise the drop of an open connection would wait for the broker's answer.
        self.kill.cut();
    }
}

/// Cancels a consumer. Returns the messages that were delivered to it and not yet read. It may hang: call it
/// in [`KillSwitch::guard`].
///
/// The last message that amiquip sends to a consumer says that it was cancelled. If the consumer is
/// dropped before that, amiquip gives up the whole connection.
#[must_use]
pub fn cancel(consumer: &Consumer<'_>) -> Vec<amiquip::Delivery> {
    // This fails if the connection is lost, which ends the loop too.
    let _ = consumer.cancel();
    let mut left = Vec::new();
    while let Ok(ConsumerMessage::Delivery(delivery)) = consumer.receiver().recv() {
        left.push(delivery);
    }
    left
}
