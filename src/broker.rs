//! RabbitMQ: connections that can't hang, the topology, and confirmed publishing.
//!
//! amiquip is named here and in [`crate::consumer`] only. Its calls have no time-outs: a broker
//! that sends heartbeats but answers nothing would hold them for ever. So we open each socket
//! ourselves and keep a second handle of it; shutting that down ends every call at once.

use std::fmt;
use std::io::{Read, Write};
use std::net::{Shutdown as Half, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use amiquip::{
    AmqpValue, Auth, Channel, ConnectionBlockedNotification, ConnectionOptions, ConnectionTuning,
    Consumer, ConsumerMessage,
};
use crossbeam_channel::{bounded, select};
use mio::Evented;

use crate::config::Amqp;
use crate::shutdown::{Never, Shutdown};

mod backlog;
mod batch;
mod browse;
mod calls;
mod declare;
mod mending;
mod message;
mod objects;
mod publisher;
mod refusal;
mod routes;
mod tls;
mod topology;
mod watch;

use calls::is_absent;
use mending::MendedStream;
use refusal::failed;
use tls::TlsStream;

pub use batch::Batches;
pub use browse::{BATCH, Browsed, Look, Verdict, Verdicts, browse};
pub use declare::{Problem, declare_lane};
pub use message::{Message, unix_millis};
pub use objects::{Objects, Standing};
pub use publisher::{Confirmation, NotConfirmed, Outgoing, Publisher, PublisherThread};
pub use topology::{
    Lane, LaneKind, ORPHANED, Presence, Topology, WITHOUT_BACKLOG, backlog_queue, dead_queue,
    retry_queue, wait_queue,
};
pub use watch::watch_queues;

/// How long setting up a connection or a lane may take. On a loaded broker it takes tens of
/// milliseconds, on one that is just starting a second. One that begins while the network is frozen
/// never ends, and delays the next attempt by this.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a clean close may take before the socket is cut instead. The broker requeues what was
/// not acked either way.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// At least-once dead-lettering with a TTL in quorum queues, on which waiting retries rely.
const OLDEST_VERSION: (u32, u32) = (3, 10);

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

/// Ends a connection from outside, whatever its owner is waiting for.
#[derive(Clone, Debug)]
pub struct KillSwitch(Arc<TcpStream>);

impl KillSwitch {
    /// Shuts the socket down: every call on the connection fails within a millisecond.
    pub fn cut(&self) {
        // Fails only if the socket is closed already.
        let _ = self.0.shutdown(Half::Both);
    }

    /// Runs a call that may hang, and cuts the connection when it takes too long or at shutdown.
    ///
    /// Costs a thread, so it is for the rare calls: opening, setting up, closing.
    pub fn guard<T>(
        &self,
        limit: Duration,
        shutdown: Option<&Shutdown>,
        call: impl FnOnce() -> T,
    ) -> T {
        let (running, ended) = bounded::<Never>(0);
        let never = crossbeam_channel::never();
        let shutdown = shutdown.map_or(&never, Shutdown::receiver);
        thread::scope(|scope| {
            scope.spawn(move || {
                select! {
                    recv(ended) -> _ => {}
                    recv(shutdown) -> _ => self.cut(),
                    default(limit) => self.cut(),
                }
            });
            let result = call();
            drop(running);
            result
        })
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
    /// Connects and logs in. Bounded by `connect_timeout` per address, and by [`SETUP_TIMEOUT`] for
    /// the name and for the handshake, which shutdown ends at once.
    ///
    /// # Errors
    /// [`BrokerError`]. A network loss in the handshake can look like a refused login, so even that
    /// is worth another attempt.
    pub fn open(
        amqp: &Amqp,
        connect_timeout: Duration,
        shutdown: &Shutdown,
    ) -> Result<Self, BrokerError> {
        let address = amqp.to_string();
        let unavailable =
            |problem: String| BrokerError::Unavailable { address: address.clone(), problem };
        let mut stream = connect(amqp, connect_timeout, shutdown).map_err(&unavailable)?;
        let io = |error: std::io::Error| unavailable(error.to_string());
        stream.set_nodelay(true).map_err(io)?;
        let kill = KillSwitch(Arc::new(stream.try_clone().map_err(io)?));
        let options = ConnectionOptions::default()
            .auth(Auth::Plain {
                username: amqp.user.clone(),
                password: amqp.password.expose().to_owned(),
            })
            .virtual_host(&amqp.vhost)
            .heartbeat(amqp.heartbeat)
            .information(Some("webhook-notifier".to_owned()));
        let opened = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
            let secured = match &amqp.tls {
                Some(tls) => Some(tls::handshake(&mut stream, tls, &amqp.host)?),
                None => None,
            };
            let stream = mio::net::TcpStream::from_stream(stream)?;
            Ok(match secured {
                Some(secured) => open(TlsStream::new(stream, secured), options),
                None => open(stream, options),
            })
        });
        let opened = opened.map_err(|error: std::io::Error| {
            unavailable(crate::tls::problem(&error).unwrap_or_else(|| format!("TLS: {error}")))
        })?;
        let connection = opened.map_err(|error| {
            unavailable(match error {
                amiquip::Error::InvalidCredentials => format!(
                    "refuses the login of user {:?}: check the user and password in AMQP_URL",
                    amqp.user
                ),
                amiquip::Error::ServerClosedConnection { message, .. } => format!(
                    "refuses the connection ({message}): check the virtual host in AMQP_URL, {:?}",
                    amqp.vhost
                ),
                other => format!("handshake failed: {other}"),
            })
        })?;
        let link = Self { connection: Some(connection), kill, address };
        link.check_version()?;
        Ok(link)
    }

    fn check_version(&self) -> Result<(), BrokerError> {
        let properties = self.connection.as_ref().map(amiquip::Connection::server_properties);
        let version = match properties.and_then(|properties| properties.get("version")) {
            Some(AmqpValue::LongString(version)) => version.as_str(),
            _ => "",
        };
        if parse_version(version).is_some_and(|version| version < OLDEST_VERSION) {
            let problem = format!("is version {version}: needs RabbitMQ 3.10 or newer");
            return Err(BrokerError::Misconfigured { address: self.address.clone(), problem });
        }
        Ok(())
    }

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

fn open<S: Read + Write + Evented + Send + 'static>(
    stream: S,
    options: ConnectionOptions<Auth>,
) -> amiquip::Result<amiquip::Connection> {
    let stream = MendedStream::new(stream);
    amiquip::Connection::insecure_open_stream(stream, options, ConnectionTuning::default())
}

fn connect(amqp: &Amqp, timeout: Duration, shutdown: &Shutdown) -> Result<TcpStream, String> {
    let addresses = resolve(amqp, shutdown)
        .map_err(|problem| format!("cannot resolve {:?}: {problem}: check AMQP_URL", amqp.host))?;
    let mut problem = "the name has no address: check AMQP_URL".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                problem = format!("cannot connect: {error}: is it running, is AMQP_URL right?");
            }
        }
    }
    Err(problem)
}

/// Looks the host up in a thread of its own: the system's resolver knows no limit but its own.
fn resolve(amqp: &Amqp, shutdown: &Shutdown) -> Result<Vec<SocketAddr>, String> {
    let (sender, found) = bounded(1);
    let (host, port) = (amqp.host.clone(), amqp.port);
    thread::Builder::new()
        .name("resolve".to_owned())
        .spawn(move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
            // Fails when nobody waits for it any more.
            let _ = sender.send(found);
        })
        .map_err(|error| error.to_string())?;
    select! {
        recv(found) -> found => match found {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err("the look-up failed".to_owned()),
        },
        recv(shutdown.receiver()) -> _ => Err("shutting down".to_owned()),
        default(SETUP_TIMEOUT) => Err("no answer from the resolver".to_owned()),
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

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("3.9.29") < Some(OLDEST_VERSION));
        assert!(parse_version("3.10.8") >= Some(OLDEST_VERSION));
        assert!(parse_version("4.1.0-rc.1") >= Some(OLDEST_VERSION));
        assert_eq!(parse_version("unknown"), None);
    }
}
