//! Connections to PostgreSQL that can't hang while they are made.
//!
//! The client's `connect_timeout` ends with TCP's handshake; a server that is frozen after that, or
//! a network that has swallowed it, would hold the connecting thread for ever, and each later
//! attempt one thread more. So each server is first asked, on a socket of ours, the one question
//! that it answers to everybody.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use postgres::Client;
use postgres::config::{Host, SslMode};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls::Tls;

/// "Do you speak TLS?" (SSLRequest, in "Message Formats" of PostgreSQL's documentation): a length
/// of 8 and a code. One byte comes back, and a client may leave then.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How long the answer may take. The postmaster forks a process for it, which takes milliseconds;
/// on a machine that is out of breath perhaps a second.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What PostgreSQL's client does by default, too.
const DEFAULT_PORT: u16 = 5432;

/// Makes connections, for the pool and beside it.
pub(super) struct Connector {
    config: postgres::Config,
    connections: PostgresConnectionManager<MakeRustlsConnect>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{address} accepts connections, and then says nothing within {ANSWER_TIMEOUT:?}")]
    Silent { address: String },
    #[error(
        "{address} speaks no TLS, which `sslmode` in DATABASE_URL demands: turn `ssl` on there, or \
         demand less"
    )]
    NoTls { address: String },
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) fn new(config: postgres::Config, tls: &Tls) -> Self {
        let tls = MakeRustlsConnect::new((*tls.config()).clone());
        let connections = PostgresConnectionManager::new(config.clone(), tls);
        Self { config, connections }
    }

    /// Asks the hosts in their order, as the client will, until one answers. An error only where
    /// the client would hang, or not say what to do.
    fn ask_hosts(&self) -> Result<(), ConnectError> {
        for (n, host) in self.config.get_hosts().iter().enumerate() {
            // A Unix socket leads to this machine, and a frozen server on it is a rare thing.
            let Host::Tcp(name) = host else { return Ok(()) };
            let ports = self.config.get_ports();
            let port = ports.get(n).or(ports.last()).copied().unwrap_or(DEFAULT_PORT);
            let address = || format!("{name}:{port}");
            let needs_tls = self.config.get_ssl_mode() == SslMode::Require;
            match ask(name, self.config.get_hostaddrs().get(n).copied(), port, self.patience()) {
                Answer::NoTls if needs_tls => {
                    return Err(ConnectError::NoTls { address: address() });
                }
                Answer::Tls | Answer::NoTls => return Ok(()),
                Answer::Silence => return Err(ConnectError::Silent { address: address() }),
                Answer::NoConnection => {}
            }
        }
        Ok(())
    }

    fn patience(&self) -> Duration {
        self.config.get_connect_timeout().copied().unwrap_or(ANSWER_TIMEOUT)
    }
}

/// What became of the question.
enum Answer {
    /// Or anything else: the client will see.
    Tls,
    NoTls,
    /// The client would hang.
    Silence,
    /// The client will go on to the next host, or say what is wrong.
    NoConnection,
}

fn ask(name: &str, address: Option<IpAddr>, port: u16, patience: Duration) -> Answer {
    let addresses: Vec<SocketAddr> = match address {
        Some(address) => vec![(address, port).into()],
        None => (name, port).to_socket_addrs().map(Iterator::collect).unwrap_or_default(),
    };
    for address in addresses {
        let Ok(stream) = TcpStream::connect_timeout(&address, patience) else { continue };
        return match ask_on(stream).map_err(|error| error.kind()) {
            Err(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Answer::Silence,
            Ok(b'N') => Answer::NoTls,
            _ => Answer::Tls,
        };
    }
    Answer::NoConnection
}

fn ask_on(mut stream: TcpStream) -> io::Result<u8> {
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.write_all(&SSL_REQUEST)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

impl ManageConnection for Connector {
    type Connection = Client;
    type Error = ConnectError;

    fn connect(&self) -> Result<Client, ConnectError> {
        self.ask_hosts()?;
        Ok(self.connections.connect()?)
    }

    fn is_valid(&self, client: &mut Client) -> Result<(), ConnectError> {
        Ok(self.connections.is_valid(client)?)
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        self.connections.has_broken(client)
    }
}
