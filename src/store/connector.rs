//! Opens connections to PostgreSQL within time limits.
//!
//! The client's `connect_timeout` only covers TCP's handshake. If the server freezes or the network fails after
//! that, the client would block the connecting thread forever, and never try the next host of DATABASE_URL.
//! So each address of each host is tried separately. First a socket of our own sends a question that every
//! server answers; then the whole handshake runs in its own thread, within a time limit.

use std::fmt;
use std::io::{self, Read, Write};
use std::mem;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postgres::config::{Host, LoadBalanceHosts, SslMode, TargetSessionAttrs};
use postgres::{Client, Config};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tokio_postgres_rustls::MakeRustlsConnect;
use uuid::Uuid;

use super::StoreError;
use crate::tls::Tls;

mod errors;

pub(super) use errors::ConnectError;
use errors::{combined, more_informative, unreachable};

/// The question whether the server speaks TLS (SSLRequest, in "Message Formats" of PostgreSQL's
/// documentation): a length of 8 and a code. The answer is one byte, after which a client may disconnect.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// How long the answer may take. The server forks a process for it, which takes milliseconds, or perhaps a
/// second on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a whole handshake may take after that answer: both sides hash thousands of times for the login.
/// This is less than [`QUERY_TIMEOUT`](super::QUERY_TIMEOUT).
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(4);

/// How many handshakes may be in progress at a time. The client can't cancel one: if it hangs, it holds its
/// thread until the connection ends. Keep-alives end it if the server's machine is gone.
const MOST_HANDSHAKES: usize = 16;

/// How long a connection stays spare. Nothing has checked it since its last use.
const SPARE_FOR: Duration = Duration::from_secs(5);

/// The default of PostgreSQL's client too.
const DEFAULT_PORT: u16 = 5432;

/// Opens connections, for the pool and outside of it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector {
    /// The configuration without hosts and without our `options`.
    config: Config,
    inner: Arc<Inner>,
    /// A connection that is no longer used, for the next one who wants one. A login takes several round trips,
    /// and some commands ask PostgreSQL ten times.
    spare: Arc<Mutex<Option<Spare>>>,
}

struct Spare {
    client: Client,
    since: Instant,
}

/// The part that a connector and its clones share.
struct Inner {
    hosts: Vec<(Host, u16)>,
    /// The addresses in DATABASE_URL, if it has any: one per host.
    addresses: Vec<std::net::IpAddr>,
    tls: MakeRustlsConnect,
    /// Where PostgreSQL is, for messages.
    place: Arc<str>,
    /// The `options` of DATABASE_URL, if it has any.
    asked_options: Option<String>,
    /// The options that we add.
    options: String,
    /// Whether the server side refuses `options`, as PgBouncer does. Without our options everything works,
    /// only with the server's own `statement_timeout` and planner settings.
    refuses_options: AtomicBool,
    /// The index of the last host that was reached, which is tried first. So all connections lead to the same
    /// server, and a silent host costs time only once.
    last: AtomicUsize,
    /// How many handshakes are in progress.
    handshakes: Arc<AtomicUsize>,
    /// When and why the last attempt failed, if it did: the pool only passes its message on.
    failure: Mutex<Option<(Instant, StoreError)>>,
    manager: PostgresConnectionManager<MakeRustlsConnect>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The configuration may contain a password.
        formatter
            .debug_struct("Connector")
            .field("place", &self.inner.place)
            .finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector that adds `options` to those of the configuration.
    ///
    /// # Errors
    /// The problem of the configuration.
    pub(super) fn new(config: &Config, tls: &Tls, options: &str) -> Result<Self, &'static str> {
        let names = config.get_hosts();
        let ports = config.get_ports();
        let addresses = config.get_hostaddrs().to_vec();
        if names.is_empty() {
            return Err("names no host");
        }
        if ports.len() > 1 && ports.len() != names.len() {
            return Err("has different numbers of ports and hosts");
        }
        if !addresses.is_empty() && addresses.len() != names.len() {
            return Err("has different numbers of addresses (hostaddr) and hosts");
        }
        // As in the client: a single port applies to all hosts.
        let port = |n| ports.get(n).or(ports.last()).copied().unwrap_or(DEFAULT_PORT);
        let hosts: Vec<(Host, u16)> =
            names.iter().cloned().enumerate().map(|(n, host)| (host, port(n))).collect();
        let tls = MakeRustlsConnect::new((*tls.config()).clone());
        let mut stripped = without_hosts(config);
        if hosts.len() > 1 {
            // A standby accepts neither LISTEN nor writes.
            stripped.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        let last = match config.get_load_balance_hosts() {
            LoadBalanceHosts::Random => {
                usize::try_from(Uuid::new_v4().as_u128() % hosts.len() as u128).unwrap_or(0)
            }
            _ => 0,
        };
        let place = place(&hosts, config);
        Ok(Self {
            inner: Arc::new(Inner {
                hosts,
                addresses,
                place: place.into(),
                asked_options: config.get_options().map(str::to_owned),
                options: options.to_owned(),
                refuses_options: AtomicBool::new(false),
                last: AtomicUsize::new(last),
                handshakes: Arc::default(),
                failure: Mutex::default(),
                manager: PostgresConnectionManager::new(stripped.clone(), tls.clone()),
                tls,
            }),
            config: stripped,
            spare: Arc::default(),
        })
    }

    /// A connector whose connections have this name in `pg_stat_activity`.
    pub(super) fn named(&self, name: &str) -> Self {
        let mut config = self.config.clone();
        config.application_name(name);
        Self { config, inner: Arc::clone(&self.inner), spare: Arc::default() }
    }

    /// Keeps a connection for the next one who wants one. Its session must be as if it were new.
    pub(super) fn keep(&self, client: Client) {
        let spare = Some(Spare { client, since: Instant::now() });
        // Dropped, and thus closed, without the lock.
        let _replaced =
            mem::replace(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner), spare);
    }

    fn take_spare(&self) -> Option<Client> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let is_usable = spare.since.elapsed() < SPARE_FOR && !spare.client.is_closed();
        is_usable.then_some(spare.client)
    }

    /// Where PostgreSQL is, for messages: hosts, ports and the database.
    pub(super) fn place(&self) -> &Arc<str> {
        &self.inner.place
    }

    /// The number of hosts to try.
    pub(super) fn host_count(&self) -> usize {
        self.inner.hosts.len()
    }

    /// Why the last attempt to connect failed; `None` if it succeeded or was before `since`.
    pub(super) fn last_failure(&self, since: Instant) -> Option<StoreError> {
        let failure = self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().filter(|(at, _)| *at >= since).map(|(_, error)| error.clone())
    }

    fn try_hosts(&self) -> Result<Client, ConnectError> {
        let count = self.inner.hosts.len();
        let first = self.inner.last.load(Ordering::Relaxed);
        let mut errors: Vec<(String, ConnectError)> = Vec::new();
        for n in (0..count).map(|n| (first + n) % count) {
            match self.try_host(n) {
                Ok(client) => {
                    self.inner.last.store(n, Ordering::Relaxed);
                    return Ok(client);
                }
                Err(error) => errors.push((place_of(&self.inner.hosts[n]), error)),
            }
        }
        Err(combined(errors))
    }

    fn try_host(&self, n: usize) -> Result<Client, ConnectError> {
        let (host, port) = &self.inner.hosts[n];
        let mut config = self.config.clone();
        config.port(*port);
        let name = match host {
            Host::Tcp(name) => name,
            // A Unix socket can't be unreachable, so it needs no question.
            Host::Unix(path) => {
                config.host_path(path);
                return self.handshake(config, &path.display().to_string());
            }
        };
        let place = format!("{name}:{port}");
        let addresses: Vec<SocketAddr> = match self.inner.addresses.get(n) {
            Some(address) => vec![(*address, *port).into()],
            None => (name.as_str(), *port)
                .to_socket_addrs()
                .map_err(|cause| ConnectError::Unreachable { address: place.clone(), cause })?
                .collect(),
        };
        let mut worst: Option<ConnectError> = None;
        for address in addresses {
            // The certificate is checked for the name, so it stays beside the address.
            let mut config = config.clone();
            config.host(name).hostaddr(address.ip());
            let at = match name.parse::<std::net::IpAddr>() {
                Ok(_) => place.clone(),
                Err(_) => format!("{place} ({})", address.ip()),
            };
            let connected =
                self.probe(address, &at).and_then(|()| self.handshake(config.clone(), &at));
            match connected {
                Ok(client) => return Ok(client),
                Err(error) => worst = Some(more_informative(worst, error)),
            }
        }
        Err(worst.unwrap_or_else(|| unreachable(place, "the name has no address")))
    }

    /// Checks whether a server answers at this address. Returns only errors at which the client would hang,
    /// or which it would report without a remedy.
    fn probe(&self, address: SocketAddr, at: &str) -> Result<(), ConnectError> {
        let limit = self.config.get_connect_timeout().copied().unwrap_or(ANSWER_TIMEOUT);
        let stream = TcpStream::connect_timeout(&address, limit)
            .map_err(|cause| ConnectError::Unreachable { address: at.to_owned(), cause })?;
        let needs_tls = self.config.get_ssl_mode() == SslMode::Require;
        match offers_tls(stream).map_err(|error| error.kind()) {
            Err(io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                Err(ConnectError::Silent { address: at.to_owned(), limit: ANSWER_TIMEOUT })
            }
            Ok(b'N') if needs_tls => Err(ConnectError::NoTls { address: at.to_owned() }),
            _ => Ok(()),
        }
    }

    /// Connects to the only address of the configuration. Repeats this without our `options` if the server
    /// side refuses them.
    fn handshake(&self, config: Config, at: &str) -> Result<Client, ConnectError> {
        let refuses = &self.inner.refuses_options;
        let with_ours = !refuses.load(Ordering::Relaxed);
        let attempt = |with_ours: bool| self.handshake_with(config.clone(), with_ours, at);
        match attempt(with_ours) {
            Err(ConnectError::Postgres(error)) if with_ours && refuses_parameter(&error) => {
                if self.inner.asked_options.is_some() {
                    return Err(ConnectError::NoOptions { address: at.to_owned() });
                }
                let client = attempt(false)?;
                refuses.store(true, Ordering::Relaxed);
                Ok(client)
            }
            other => other,
        }
    }

    fn handshake_with(
        &self,
        mut config: Config,
        with_ours: bool,
        at: &str,
    ) -> Result<Client, ConnectError> {
        let asked = self.inner.asked_options.as_deref();
        let ours = Some(self.inner.options.as_str()).filter(|_| with_ours);
        let options: Vec<&str> = asked.into_iter().chain(ours).collect();
        if !options.is_empty() {
            config.options(&options.join(" "));
        }
        let handshakes = Arc::clone(&self.inner.handshakes);
        let silence = || ConnectError::Silent { address: at.to_owned(), limit: HANDSHAKE_TIMEOUT };
        if handshakes.fetch_add(1, Ordering::Relaxed) >= MOST_HANDSHAKES {
            handshakes.fetch_sub(1, Ordering::Relaxed);
            return Err(silence());
        }
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let tls = self.inner.tls.clone();
        let connect = {
            let handshakes = Arc::clone(&handshakes);
            move || {
                let connected = config.connect(tls);
                handshakes.fetch_sub(1, Ordering::Relaxed);
                // Fails if the attempt was abandoned; then the connection ends.
                let _ = sender.send(connected);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("connect".to_owned()).spawn(connect) {
            handshakes.fetch_sub(1, Ordering::Relaxed);
            return Err(ConnectError::NoThread(error));
        }
        match receiver.recv_timeout(HANDSHAKE_TIMEOUT) {
            Ok(connected) => Ok(connected?),
            Err(_) => Err(silence()),
        }
    }
}

/// The same configuration without hosts.
fn without_hosts(config: &Config) -> Config {
    let mut stripped = Config::new();
    if let Some(user) = config.get_user() {
        stripped.user(user);
    }
    if let Some(password) = config.get_password() {
        stripped.password(password);
    }
    if let Some(database) = config.get_dbname() {
        stripped.dbname(database);
    }
    if let Some(name) = config.get_application_name() {
        stripped.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        stripped.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        stripped.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        stripped.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        stripped.keepalives_retries(retries);
    }
    stripped
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding());
    stripped
}

/// `host:5432,other:5432/database`
fn place(hosts: &[(Host, u16)], config: &Config) -> String {
    let hosts = hosts.iter().map(place_of).collect::<Vec<_>>().join(",");
    // By default the database has the user's name.
    match config.get_dbname().or(config.get_user()) {
        Some(database) => format!("{hosts}/{database}"),
        None => hosts,
    }
}

fn place_of((host, port): &(Host, u16)) -> String {
    match host {
        Host::Tcp(name) => format!("{name}:{port}"),
        Host::Unix(path) => format!("{}:{port}", path.display()),
    }
}

/// Whether the server side refuses a parameter of the connection: PgBouncer accepts few.
fn refuses_parameter(error: &postgres::Error) -> bool {
    error
        .as_db_error()
        .is_some_and(|db| db.code().code() == "08P01" && db.message().contains("startup parameter"))
}

/// The server's answer to [`SSL_REQUEST`]: `S` if it offers TLS, `N` if it doesn't.
fn offers_tls(mut stream: TcpStream) -> io::Result<u8> {
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
        let connected = self.take_spare().map_or_else(|| self.try_hosts(), Ok);
        let failed = |error| (Instant::now(), StoreError::of_connecting(self.place(), error));
        let failure = connected.as_ref().err().map(failed);
        *self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        connected
    }

    fn is_valid(&self, client: &mut Client) -> Result<(), ConnectError> {
        Ok(self.inner.manager.is_valid(client)?)
    }

    fn has_broken(&self, client: &mut Client) -> bool {
        self.inner.manager.has_broken(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Check, Roots};

    fn connector(url: &str) -> Result<Connector, &'static str> {
        let tls = Tls::new(Roots::bundled(), Check::Nothing, None).expect("it is complete");
        Connector::new(&url.parse().expect("a URL"), &tls, "-c jit=off")
    }

    #[test]
    fn the_place_names_hosts_ports_and_database_and_no_password() {
        for (url, place) in [
            ("postgres://u:s3cret@a,b:7/db", None),
            ("postgres://u:s3cret@a:7,b/db", Some("a:7,b:5432/db")),
            ("postgres://u:s3cret@a", Some("a:5432/u")),
            ("host=/run/x dbname=db port=6", Some("/run/x:6/db")),
            ("host=a,b port=7 dbname=db", Some("a:7,b:7/db")),
            ("host=a,b hostaddr=::1 dbname=db", None),
            ("dbname=db", None),
        ] {
            let connector = connector(url);
            let found = connector.as_ref().ok().map(|connector| &**connector.place());
            assert!(place.is_none() || found == place, "{url}: {connector:?}");
            assert!(!format!("{connector:?}").contains("s3cret"));
        }
        assert_eq!(connector("dbname=db").err(), Some("names no host"));
        assert!(connector("host=a,b hostaddr=::1").is_err());
        assert!(connector("host=a,b,c port=1,2").is_err());
    }
}
