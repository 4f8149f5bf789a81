//! RabbitMQ: connections that can't hang, the topology, and confirmed publishing.
//!
//! amiquip is named here and in [`crate::consumer`] only. Its calls have no time-outs: a broker
//! that sends heartbeats but answers nothing would hold them for ever. So we open each socket
//! ourselves and keep a second handle of it; shutting that down ends every call at once.

use std::fmt;
use std::time::Duration;

use amiquip::{AmqpValue, Channel, ConnectionBlockedNotification, Consumer, ConsumerMessage};

use crate::shutdown::Shutdown;

mod backlog;
mod batch;
mod browse;
mod calls;
mod connecting;
mod declare;
mod guard;
mod mending;
mod message;
mod moving;
mod notices;
mod objects;
mod outgoing;
mod publisher;
mod refusal;
mod refusals;
mod renewal;
mod rights;
mod routes;
mod tls;
mod topology;
mod watch;

use calls::is_absent;
use refusal::{failed, is_away};

pub use batch::Batches;
pub use browse::{BATCH, Browsed, Look, Manner, Verdict, Verdicts, browse};
pub use calls::QueueCounts;
pub use declare::{Problem, declare_lane};
pub use guard::KillSwitch;
pub use message::{ACCOUNT, Message, unix_millis};
pub use moving::{MoveError, Moved, Progress, QueueStanding, look_at, move_queue, moving_queue};
pub use notices::{Announced, Announcer, NotAnnounced};
pub use objects::{Objects, Standing};
pub use outgoing::Outgoing;
pub use publisher::{Confirmation, NotConfirmed, Publisher, PublisherThread};
pub use rights::{Flaw, consume_no_stream, look_for_flaws, why_not_consumed};
pub use topology::{
    Lane, LaneKind, ORPHANED, Presence, Topology, WITHOUT_BACKLOG, backlog_queue, dead_queue,
    retry_queue, wait_queue,
};
pub use watch::watch_queues;

/// How long setting up a connection or a lane may take, at each address of the broker. On a loaded
/// broker it takes tens of milliseconds, on one that is just starting a second. One that begins while
/// the network is frozen never ends, and delays the next attempt by this.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take on a connection that others use meanwhile: cutting it has all that they have
/// in hand delivered again. A broker on a loaded machine can need seconds; one that is gone is noticed
/// by its missing heartbeats.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a clean close may take before the socket is cut instead. The broker requeues what was
/// not acked either way.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the broker can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// No connection, or it was lost. It may work another time.
    #[error("RabbitMQ at {address}: {problem}")]
    Unavailable {
        /// Host and port.
        address: String,
        /// What happened.
        problem: String,
    },
    /// Trying again won't help. Says the remedy.
    #[error("RabbitMQ at {address}: {problem}")]
    Misconfigured {
        /// Host and port.
        address: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

impl BrokerError {
    /// What is wrong, without where.
    #[must_use]
    pub fn problem(&self) -> &str {
        match self {
            Self::Unavailable { problem, .. } | Self::Misconfigured { problem, .. } => problem,
        }
    }
}

/// A connection to the broker. Dropping it cuts it; [`Link::close`] says goodbye first.
pub struct Link {
    connection: Option<amiquip::Connection>,
    kill: KillSwitch,
    address: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    /// The broker's version, as it says.
    #[must_use]
    pub fn version(&self) -> String {
        let properties = self.connection.as_ref().map(amiquip::Connection::server_properties);
        match properties.and_then(|properties| properties.get("version")) {
            Some(AmqpValue::LongString(version)) => version.clone(),
            _ => "unknown".to_owned(),
        }
    }

    /// The switch that ends this connection from another thread.
    #[must_use]
    pub fn kill_switch(&self) -> KillSwitch {
        self.kill.clone()
    }

    /// Opens a channel. May hang: call it in [`KillSwitch::guard`].
    ///
    /// # Errors
    /// If the connection is lost or has no channel left.
    pub fn channel(&mut self) -> amiquip::Result<Channel> {
        self.connection.as_mut().ok_or(amiquip::Error::ClientClosedConnection)?.open_channel(None)
    }

    /// What is disconnected when the connection is lost, for who consumes nothing by it.
    ///
    /// # Errors
    /// If it is lost already.
    pub fn listen_for_loss(
        &mut self,
    ) -> amiquip::Result<crossbeam_channel::Receiver<ConnectionBlockedNotification>> {
        let connection = self.connection.as_mut().ok_or(amiquip::Error::ClientClosedConnection)?;
        connection.listen_for_connection_blocked()
    }

    /// An error of a call on this connection, in our words.
    #[must_use]
    pub fn unavailable(&self, error: &amiquip::Error) -> BrokerError {
        BrokerError::Unavailable { address: self.address.clone(), problem: error.to_string() }
    }

    /// How many messages are ready in a queue; `None` if there is no such queue. Bounded.
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

    /// Looks for a queue, on a channel of its own: a missing queue costs the channel.
    fn passive_declare(&mut self, queue: &str) -> amiquip::Result<Option<u32>> {
        match self.channel()?.queue_declare_passive(queue) {
            Ok(found) => Ok(Some(found.declared_message_count().unwrap_or(0))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a connection up that no longer works, and says what became of it.
    #[must_use]
    pub fn cause_of_loss(mut self) -> String {
        let connection = self.connection.take();
        let closed = self.kill.guard(CLOSE_TIMEOUT, None, || connection.map(|c| c.close()));
        closed.and_then(Result::err).map_or_else(|| "closed".to_owned(), |error| error.to_string())
    }

    /// Closes cleanly, within two seconds.
    pub fn close(mut self) {
        if let Some(connection) = self.connection.take() {
            // amiquip reports an error here even after a clean close, and it no longer matters.
            let _ = self.kill.guard(CLOSE_TIMEOUT, None, || connection.close());
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The drop of an open connection waits for the broker's answer; not after this.
        self.kill.cut();
    }
}

/// Cancels a consumer, and returns what it was given and had not taken. May hang: call it in
/// [`KillSwitch::guard`].
///
/// The last thing that amiquip tells a consumer is that it was cancelled, and it gives the whole
/// connection up if nobody is there any more to hear it.
#[must_use]
pub fn cancel(consumer: &Consumer<'_>) -> Vec<amiquip::Delivery> {
    // Fails on a lost connection, which ends the loop too.
    let _ = consumer.cancel();
    let mut left = Vec::new();
    while let Ok(ConsumerMessage::Delivery(delivery)) = consumer.receiver().recv() {
        left.push(delivery);
    }
    left
}
