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
pub use message::Message;
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
