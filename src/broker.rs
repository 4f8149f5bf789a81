//! RabbitMQ: connections that can't hang, the topology, and confirmed publishing.
//!
//! [`Link`] is a connection (`broker/link.rs`), and `broker/connecting.rs` opens it.
//! `broker/topology.rs` lists the queues and exchanges that we need; `broker/declare.rs` creates them and
//! detects which were lost. [`Publisher`] publishes for the whole process, [`Batches`] for commands, and
//! [`Announcer`] publishes notices. This file has the errors and time limits that all of them share.
//!
//! # amiquip
//!
//! Our AMQP client is amiquip 0.4.2, unmaintained since 2022. Only this module and [`crate::consumer`] use
//! it, so only these two would change if another client replaced it.
//!
//! What we rely on:
//!
//! - **Calls block, and have no time limit.** If a broker sends heartbeats but answers nothing, a call
//!   blocks forever. So does the drop of a channel, a consumer or a connection, since each waits for an
//!   answer. So we open each socket ourselves and keep a second handle of it: [`KillSwitch`] shuts the
//!   socket down, and every pending call fails within a millisecond. Calls and drops happen inside
//!   [`KillSwitch::guard`] or after [`KillSwitch::cut`]; consumers are dropped before their channel, and
//!   channels before their connection.
//! - **`Connection::insecure_open_stream` takes any stream of mio 0.6.** We pass our own stream
//!   (`broker/connecting.rs`), with TLS below it (`broker/tls.rs`). `broker/repair.rs` corrects what is
//!   read from it. We never pass a URL, because errors would print it.
//! - **A connection has two threads of its own.** They also send heartbeats, and give the connection up
//!   when two of the broker's are missing. A lost connection always disconnects all its receivers.
//!   [`Link::listen_for_loss`] creates such a receiver for code that has no other.
//! - **A consumer's receiver is an unbounded crossbeam channel**, filled no further than the prefetch
//!   count. Its last message says why the consumer ended; after a lost connection there may be no such
//!   message, only the disconnection. A consumer that is dropped before its last message arrives costs the
//!   connection, so [`cancel`] reads all of them.
//! - **An ack consists of a channel's number and a delivery tag, which are unique per connection only.** So
//!   a delivery must not outlive its connection: consumers run in scoped threads.
//! - **Confirms and returns arrive on two receivers**, which have to be requested before the channel is put
//!   into confirm mode. A return arrives before its ack, but may be read after it, so returns are read
//!   first (`broker/publisher/confirming.rs`). A return has no tag, so we send the tag as correlation id.
//! - **A refusal closes the channel**, not the connection: `ServerClosedChannel`, whose code and text we
//!   match (`broker/calls.rs`, `broker/refusal.rs`, `broker/rights.rs`). We distinguish two other errors:
//!   `ServerClosedConnection` and, while connecting, `InvalidCredentials`.
//!
//! What we work around, and where:
//!
//! - A property that isn't UTF-8 ends the connection, a header that isn't UTF-8 hides all headers after it,
//!   and deeply nested headers overflow the stack: `broker/repair.rs`.
//! - All headers of a message are sent in one frame, whatever their size, and in quadratic time:
//!   `broker/message.rs`.
//! - A broker with a memory or disk alarm stops reading, and a publish blocks once 16 MiB are buffered. So
//!   a connection that consumes never publishes deliveries.
//! - It panics if it can't start its threads: `broker/connecting.rs` checks for room first and catches the
//!   panic otherwise. So the release profile keeps unwinding.
//! - It reports and logs a clean close as an error: [`Link::close`] and the logger of `cli` ignore it.
//!
//! If a toolchain no longer compiles amiquip, these crates have to be vendored by `[patch.crates-io]` in
//! Cargo.toml (`cargo tree -i CRATE` shows what needs a crate):
//!
//! - **nom 4.2.3**, first of all: rustc announces that "trailing semicolon in macro used in expression
//!   position" becomes an error (rust-lang/rust#79813; `cargo report future-incompatibilities`). Remove
//!   the semicolons that it names; they are at the end of nom's own macros, in `macros.rs`, `sequence.rs`
//!   and `simple_errors.rs`. The parsers of amq-protocol 1.4 and amq-protocol-types 1.2 are built from
//!   these macros, so nothing else has to change.
//! - **mio 0.6.23**, with **mio-extras 2.0** and **net2 0.2.39**, if the standard library's sockets change
//!   below them.
//! - **amq-protocol 1.4**: its build script generates source code with handlebars 1.1. A copy can contain
//!   the generated code and omit the script. The crate also depends on url 1.7, whose URL parser we don't
//!   use.
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
pub use browse::{BATCH, Browsed, Judge, Manner, Verdict, Verdicts, browse};
pub use calls::QueueCounts;
pub use declare::{Problem, declare_lane};
pub use guard::KillSwitch;
pub use link::{Link, cancel};
pub use message::Message;
pub use moving::{MoveError, MoveProgress, Moved, QueueStanding, inspect_queue, move_queue};
pub use notices::{Announced, Announcer, NotAnnounced};
pub use objects::{ObjectStanding, Objects};
pub use outgoing::Outgoing;
pub use publisher::{Confirmation, NotConfirmed, Publisher, PublisherThread};
pub use rights::{Flaw, find_flaws};
pub use streams::{consume_no_stream, why_not_consumed};
pub use topology::{Lane, LaneKind, QueuePresence, Topology, WITHOUT_BACKLOG};
pub use watch::watch_queues;

pub use crate::domain::broker_names::header::PRODUCERS_ACCOUNT as ACCOUNT;
pub use crate::domain::broker_names::{
    ORPHANED, backlog_queue, dead_queue, moving_queue, retry_queue, wait_queue,
};

/// How long setting up a connection or a lane may take, for each address of the broker. A loaded broker
/// takes tens of milliseconds, and one that is just starting a second. If the network is frozen, the set-up
/// never ends, and the next attempt begins this much later.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a call may take on a connection that other threads use: if it is cut, RabbitMQ redelivers all
/// messages that they have in hand. A broker on a loaded machine can need seconds; missing heartbeats
/// reveal one that is gone.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a clean close may take before the socket is cut instead. Either way the broker requeues all
/// unacked messages.
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
    /// Another attempt would fail too.
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
