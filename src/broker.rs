//! RabbitMQ: connections that can't hang, the topology, and confirmed publishing.
//!
//! [`Link`] is a connection (`broker/link.rs`), and `broker/connecting.rs` opens it. What we need at the
//! broker stands in `broker/topology.rs`; `broker/declare.rs` makes it and finds out what is lost.
//! [`Publisher`] publishes for the whole process, [`Batches`] for commands, [`Announcer`] notices. Here
//! are the errors and the time limits that all of them share.
//!
//! # amiquip
//!
//! AMQP is spoken by amiquip 0.4.2, which nobody has maintained since 2022. It is named here and in
//! [`crate::consumer`] only, so that these two modules are all that a successor would have to replace.
//!
//! What we rely on:
//!
//! - **Calls block, and have no time limit.** A broker that sends heartbeats and answers nothing holds
//!   a call for ever; so do the drops of a channel, a consumer and a connection, each of which waits for
//!   an answer. So we open each socket ourselves and keep a second handle of it: [`KillSwitch`] shuts
//!   the socket down, and every pending call fails within a millisecond. Calls and drops happen inside
//!   [`KillSwitch::guard`] or after [`KillSwitch::cut`]; consumers go before their channel, channels
//!   before their connection.
//! - **`Connection::insecure_open_stream` takes any stream of mio 0.6.** We hand it ours
//!   (`broker/connecting.rs`), with TLS below it (`broker/tls.rs`) and, on what is read, the
//!   corrections of `broker/repair.rs`. We never give it a URL, since its errors would print it.
//! - **A connection has two threads of its own.** They also send heartbeats, and give the connection up
//!   when two of the broker's are missing. One sign of a lost connection is always there: all its
//!   receivers are disconnected. [`Link::listen_for_loss`] makes one for those that have no other.
//! - **A consumer's receiver is an unbounded crossbeam channel**, filled no further than the prefetch
//!   count. Its last message says why it ended; after a loss there may be none, only the
//!   disconnection. [`cancel`] hears a consumer out: one that is dropped earlier costs the connection.
//! - **An ack names a channel and a number, both of which another connection has, too.** So a delivery
//!   must not outlive its connection: consumers run in scoped threads.
//! - **Confirms and returns come by two receivers**, which have to be asked for before the channel is
//!   put into confirm mode. A return comes before its ack, but may be read after it, so returns are
//!   taken first (`broker/publisher/confirming.rs`). A return has no tag: our correlation id is the tag.
//! - **A refusal closes the channel**, not the connection: `ServerClosedChannel`, whose code and words
//!   we match (`broker/calls.rs`, `broker/refusal.rs`, `broker/rights.rs`). The other errors that we tell
//!   apart are `ServerClosedConnection` and, while connecting, `InvalidCredentials`.
//!
//! What we work around, and where:
//!
//! - A property that is not UTF-8 ends the connection, a header that is not hides those after it, and
//!   deeply nested ones overflow the stack: `broker/repair.rs`.
//! - Headers go out in one frame, whatever their size, and in quadratic time: `broker/message.rs`.
//! - A broker with a memory or disk alarm stops reading, and a publish blocks once 16 MiB are buffered:
//!   deliveries are never published by a connection that consumes.
//! - It panics where it can't have its threads: `broker/connecting.rs` looks first and catches the rest.
//!   The release profile keeps unwinding.
//! - It reports a clean close as an error, and logs it: [`Link::close`] and the logger of `cli` leave
//!   it out.
//!
//! If a toolchain no longer compiles it, this is what has to be vendored by `[patch.crates-io]` in
//! Cargo.toml, one copied crate each (`cargo tree -i CRATE` shows what needs it):
//!
//! - **nom 4.2.3**, first of all: rustc announces that "trailing semicolon in macro used in expression
//!   position" becomes an error (rust-lang/rust#79813; `cargo report future-incompatibilities`). Remove
//!   the semicolons that it names; they are at the end of nom's own macros, in `macros.rs`, `sequence.rs`
//!   and `simple_errors.rs`. The parsers of amq-protocol 1.4 and amq-protocol-types 1.2 are made of these
//!   macros, so nothing else has to change.
//! - **mio 0.6.23**, with **mio-extras 2.0** and **net2 0.2.39**, if the standard library's sockets change
//!   below them.
//! - **amq-protocol 1.4**: a build script writes its source by handlebars 1.1. A copy can hold the
//!   written source and do without the script. It also pulls in url 1.7, for a parser of URLs that we
//!   don't use.
//! - **amiquip** itself, if any of these has to be replaced by a newer major version.

use std::time::Duration;

mod backlog;
mod batch;
mod browse;
mod calls;
mod connecting;
mod declare;
mod guard;
mod link;
mod message;
mod moving;
mod notices;
mod objects;
mod outgoing;
mod publisher;
mod refusal;
mod refusals;
mod renewal;
mod repair;
mod rights;
mod routes;
mod streams;
mod tls;
mod topology;
mod watch;

use refusal::failed;

pub use batch::Batches;
pub use browse::{BATCH, Browsed, Look, Manner, Verdict, Verdicts, browse};
pub use calls::QueueCounts;
pub use declare::{Problem, declare_lane};
pub use guard::KillSwitch;
pub use link::{Link, cancel};
pub use message::{Message, unix_millis};
pub use moving::{MoveError, Moved, Progress, QueueStanding, look_at, move_queue};
pub use notices::{Announced, Announcer, NotAnnounced};
pub use objects::{Objects, Standing};
pub use outgoing::Outgoing;
pub use publisher::{Confirmation, NotConfirmed, Publisher, PublisherThread};
pub use rights::{Flaw, look_for_flaws};
pub use streams::{consume_no_stream, why_not_consumed};
pub use topology::{Lane, LaneKind, Presence, Topology, WITHOUT_BACKLOG};
pub use watch::watch_queues;

pub use crate::domain::broker_names::header::PRODUCERS_ACCOUNT as ACCOUNT;
pub use crate::domain::broker_names::{
    ORPHANED, backlog_queue, dead_queue, moving_queue, retry_queue, wait_queue,
};

/// How long setting up a connection or a lane may take, at each address of the broker. A loaded broker
/// takes tens of milliseconds, one that is just starting a second. A set-up that begins while the
/// network is frozen never ends, and delays the next attempt by this.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take on a connection that other threads use: cutting it makes RabbitMQ redeliver
/// all that they have in hand. A broker on a loaded machine can need seconds; one that is gone is
/// detected by its missing heartbeats.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a clean close may take before the socket is cut instead. The broker requeues what was
/// not acked either way.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the broker can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no connection, or it was lost. Another attempt may succeed.
    #[error("RabbitMQ at {address}: {problem}")]
    Unavailable {
        /// Host and port.
        address: String,
        /// What happened.
        problem: String,
    },
    /// Another attempt would fail, too.
    #[error("RabbitMQ at {address}: {problem}")]
    Misconfigured {
        /// Host and port.
        address: String,
        /// What is wrong, and the remedy.
        problem: String,
    },
}

impl BrokerError {
    /// What is wrong, without the address.
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
        self.property("version").unwrap_or_else(|| "unknown".to_owned())
    }

    /// The name of the broker's cluster, which all its nodes give; one node alone has one, too.
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
        found.map_err(|error| self.unavailable(&error))
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
