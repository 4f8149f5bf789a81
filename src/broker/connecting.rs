//! Opens connections: tries each address of each of the broker's hosts, including the handshake.
//!
//! That an address accepts connections proves nothing: a load balancer or a frozen node does so too. Only an
//! open AMQP connection counts, and each address has a time limit.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amiquip::{Auth, ConnectionOptions, ConnectionTuning};
use mio::Evented;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use uuid::Uuid;

use super::guard::{self, KillSwitch};
use super::repair::RepairedStream;
use super::tls::{self, TlsStream};
use super::{BrokerError, Link, SETUP_TIMEOUT};
use crate::config::{Amqp, Host};
use crate::lookup::{LookUpError, NameLookups};
use crate::shutdown::Shutdown;
use crate::threads;

/// The first version whose quorum queues support TTL and at-least-once dead-lettering, on which waiting
/// retries rely.
const OLDEST_VERSION: (u32, u32) = (3, 10);

/// How often to check for shutdown while connecting.
const SHUTDOWN_POLL: Duration = Duration::from_millis(50);

/// All connections look up the same few names, so one thread is enough, with a second one in case a look-up
/// hangs. The look-ups of receivers have other threads, because strangers run their name servers.
static LOOK_UPS: LazyLock<NameLookups> = LazyLock::new(|| NameLookups::new(2));

/// The addresses that failed when they were last tried, while another one worked, and why. They are tried
/// last, so that not every connection waits for them, and logged once.
static FAILED: Mutex<BTreeMap<String, String>> = Mutex::new(BTreeMap::new());

/// Which of several hosts this process tries first. It is random, so that the instances spread over the nodes
/// of a cluster.
static FIRST: LazyLock<usize> = LazyLock::new(|| usize::from(Uuid::new_v4().as_bytes()[0]));

/// Why an address can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    problem: String,
    /// Whether another attempt would fail too.
    is_final: bool,
}

impl From<String> for Failure {
    fn from(problem: String) -> Self {
        Self { problem, is_final: false }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        error.to_string().into()
    }
}

impl Link {
    /// Connects and logs in at the first address that works. Each address may take `connect_timeout` for the
    /// connection and [`SETUP_TIMEOUT`] for the handshakes; the look-up of each name may take
    /// [`SETUP_TIMEOUT`] too. Shutdown ends it at once.
    ///
    /// # Errors
    /// [`BrokerError`], with the problem of each address. Even after a refused login another attempt is
    /// worthwhile: a connection that is lost during the handshake can look like one.
    pub fn open(
        amqp: &Amqp,
        connect_timeout: Duration,
        shutdown: &Shutdown,
    ) -> Result<Self, BrokerError> {
        let mut steps = steps(&amqp.hosts);
        let mut failures = Vec::new();
        while let Some(step) = steps.pop_front() {
            if shutdown.is_requested() {
                break;
            }
            let place = step.place();
            let failure = match step {
                Step::Name(host) => match resolve(host, shutdown) {
                    Ok(addresses) => {
                        add_addresses(&mut steps, host, addresses);
                        continue;
                    }
                    Err(problem) => format!("cannot be resolved: {problem}: check AMQP_URL").into(),
                },
                Step::Address(host, address) => {
                    match open_one(host, address, amqp, connect_timeout, shutdown) {
                        Ok(link) => {
                            log_failures(&place, &failures);
                            return Ok(link);
                        }
                        Err(failure) => failure,
                    }
                }
            };
            failures.push((place, failure));
        }
        let is_final = !failures.is_empty() && failures.iter().all(|(_, failure)| failure.is_final);
        let problem = match failures.as_slice() {
            [] if shutdown.is_requested() => "shutting down".to_owned(),
            [] => "the name has no address: check AMQP_URL".to_owned(),
            [(_, failure)] => failure.problem.clone(),
            all => {
                let each =
                    all.iter().map(|(place, Failure { problem, .. })| format!("{place} {problem}"));
                format!("no address of it works: {}", each.collect::<Vec<_>>().join("; "))
            }
        };
        let address = amqp.to_string();
        Err(match is_final {
            true => BrokerError::Misconfigured { address, problem },
            false => BrokerError::Unavailable { address, problem },
        })
    }
}

/// What to try next.
enum Step<'a> {
    /// Look up the addresses of a name.
    Name(&'a Host),
    /// Connect to one of its addresses.
    Address(&'a Host, SocketAddr),
}

impl Step<'_> {
    /// What is tried, for people.
    fn place(&self) -> String {
        match self {
            Self::Name(host) => host.to_string(),
            Self::Address(host, address) if host.name == address.ip().to_string() => {
                address.to_string()
            }
            Self::Address(host, address) => format!("{} ({address})", host.name),
        }
    }

    fn has_failed(&self) -> bool {
        failed().contains_key(&self.place())
    }
}

/// The names in the order in which this process tries them; those that failed last time come last.
fn steps(hosts: &[Host]) -> VecDeque<Step<'_>> {
    let mut hosts: Vec<&Host> = hosts.iter().collect();
    let count = hosts.len().max(1);
    hosts.rotate_left(*FIRST % count);
    let mut steps: Vec<Step<'_>> = hosts.into_iter().map(Step::Name).collect();
    steps.sort_by_key(Step::has_failed);
    steps.into()
}

/// Adds the addresses of a name as the next steps, in the resolver's order; those that failed last time are
/// added at the end.
fn add_addresses<'a>(steps: &mut VecDeque<Step<'a>>, host: &'a Host, addresses: Vec<SocketAddr>) {
    for address in addresses.into_iter().rev() {
        let step = Step::Address(host, address);
        if step.has_failed() {
            steps.push_back(step);
        } else {
            steps.push_front(step);
        }
    }
}

/// Logs which addresses fail while another one works, once for each new cause.
fn log_failures(works: &str, failures: &[(String, Failure)]) {
    let mut failed = failed();
    if failed.remove(works).is_some() {
        log::info!("RabbitMQ at {works} works again");
    }
    for (place, Failure { problem, .. }) in failures {
        if failed.insert(place.clone(), problem.clone()).as_ref() != Some(problem) {
            log::warn!(
                "RabbitMQ at {place} {problem}; it is tried last from now on, {works} works"
            );
        }
    }
}

fn failed() -> MutexGuard<'static, BTreeMap<String, String>> {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Connects to one address, up to the open AMQP connection.
fn open_one(
    host: &Host,
    address: SocketAddr,
    amqp: &Amqp,
    connect_timeout: Duration,
    shutdown: &Shutdown,
) -> Result<Link, Failure> {
    let no_thread = |error: io::Error| format!("not tried: {error}");
    guard::start().map_err(no_thread)?;
    // amiquip starts two threads, and panics if it can't start the second.
    threads::check(2).map_err(no_thread)?;
    let mut stream = connect_to(address, connect_timeout, shutdown)
        .map_err(|error| format!("cannot connect: {error}: is it running, is AMQP_URL right?"))?;
    stream.set_nodelay(true)?;
    let kill = KillSwitch::of(&stream)?;
    let options = ConnectionOptions::default()
        .auth(Auth::Plain {
            username: amqp.user.clone(),
            password: amqp.password.expose().to_owned(),
        })
        .virtual_host(&amqp.vhost)
        .heartbeat(amqp.heartbeat)
        .information(Some("webhook-notifier".to_owned()));
    let began = Instant::now();
    let opened = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
        let secured = match &amqp.tls {
            Some(tls) => Some(tls::handshake(&mut stream, tls, &host.name)?),
            None => None,
        };
        let stream = mio::net::TcpStream::from_stream(stream)?;
        Ok(match secured {
            Some(secured) => open(TlsStream::new(stream, secured), options),
            None => open(stream, options),
        })
    });
    let is_late = began.elapsed() >= SETUP_TIMEOUT;
    let silent = || {
        format!("accepts connections and does not answer within {SETUP_TIMEOUT:?}: is it RabbitMQ?")
    };
    let opened = opened.map_err(|error: io::Error| match is_late {
        true => silent(),
        false => crate::tls::problem(&error).unwrap_or_else(|| format!("TLS: {error}")),
    })?;
    let connection = opened.map_err(|error| match error {
        amiquip::Error::ServerClosedConnection { message, .. } => format!(
            "refuses the connection ({message}): check the virtual host in AMQP_URL, {:?}",
            amqp.vhost
        ),
        _ if is_late => silent(),
        amiquip::Error::InvalidCredentials => format!(
            "refuses the login of user {:?}: check the user and password in AMQP_URL",
            amqp.user
        ),
        other => format!("handshake failed: {other}"),
    })?;
    let link = Link { connection: Some(connection), kill, address: host.to_string() };
    let version = link.version();
    if parse_version(&version).is_some_and(|version| version < OLDEST_VERSION) {
        let problem = format!("is version {version}: needs RabbitMQ 3.10 or newer");
        return Err(Failure { problem, is_final: true });
    }
    Ok(link)
}

fn open<S: Read + Write + Evented + Send + 'static>(
    stream: S,
    options: ConnectionOptions<Auth>,
) -> amiquip::Result<amiquip::Connection> {
    let stream = RepairedStream::new(stream);
    let open =
        || amiquip::Connection::insecure_open_stream(stream, options, ConnectionTuning::default());
    // Another process may have taken the last thread since the check. After a panic, nothing of this
    // connection is used.
    panic::catch_unwind(AssertUnwindSafe(open)).unwrap_or(Err(amiquip::Error::IoThreadPanic))
}

/// Like `TcpStream::connect_timeout`, but shutdown ends it too.
fn connect_to(address: SocketAddr, limit: Duration, shutdown: &Shutdown) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    let deadline = Instant::now() + limit;
    match connect(&socket, &address) {
        Ok(()) => {}
        Err(Errno::INPROGRESS | Errno::INTR) => loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if shutdown.is_requested() {
                return Err(io::Error::other("shutting down"));
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let wait = Timespec::try_from(left.min(SHUTDOWN_POLL)).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&wait)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
        },
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    match stream.take_error()? {
        Some(error) => Err(error),
        None => {
            stream.set_nonblocking(false)?;
            Ok(stream)
        }
    }
}

/// The addresses of a host's name.
fn resolve(host: &Host, shutdown: &Shutdown) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.name.parse() {
        return Ok(vec![SocketAddr::new(ip, host.port)]);
    }
    let deadline = Instant::now() + SETUP_TIMEOUT;
    let found = loop {
        // Each call joins the look-up that is already under way.
        match LOOK_UPS.find(&host.name, SHUTDOWN_POLL) {
            _ if shutdown.is_requested() => return Err("shutting down".to_owned()),
            Err(LookUpError::Silent | LookUpError::Busy) if Instant::now() < deadline => {}
            found => break found.map_err(|error| error.to_string())?,
        }
    };
    Ok(found.iter().map(|ip| SocketAddr::new(*ip, host.port)).collect())
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::shutdown;
    use std::net::TcpListener;

    fn amqp(addresses: &[SocketAddr]) -> Amqp {
        let host =
            |address: &SocketAddr| Host { name: address.ip().to_string(), port: address.port() };
        let hosts = addresses.iter().map(host).collect();
        Amqp { hosts, ..Settings::default().read().expect("the defaults").amqp }
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("3.9.29") < Some(OLDEST_VERSION));
        assert!(parse_version("3.10.8") >= Some(OLDEST_VERSION));
        assert!(parse_version("4.1.0-rc.1") >= Some(OLDEST_VERSION));
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn the_error_has_the_problem_of_each_address_if_none_works() {
        // The first never answers, the second hangs up, and nobody listens at the third.
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a free port");
        let (silent, leaving, nobody) = (listen(), listen(), listen());
        let addresses =
            [&silent, &leaving, &nobody].map(|one| one.local_addr().expect("it is bound"));
        drop(nobody);
        let (_trigger, shutdown) = shutdown::channel();
        let error = std::thread::scope(|scope| {
            scope.spawn(|| drop(leaving.accept()));
            Link::open(&amqp(&addresses), SETUP_TIMEOUT, &shutdown).expect_err("no broker")
        });
        let text = error.to_string();
        let (_, said) = text.split_once("no address of it works: ").expect("there are several");
        for (address, says) in addresses.iter().zip(["does not answer within", "failed", "refused"])
        {
            let said = said.split("; ").find(|part| part.starts_with(&address.to_string()));
            let said = said.unwrap_or_else(|| panic!("no {address} in {text}"));
            assert!(said.contains(says), "{address}: no {says:?} in {said}");
        }
        assert!(matches!(error, BrokerError::Unavailable { .. }));
    }

    #[test]
    fn shutdown_ends_the_handshake_with_an_address_that_says_nothing() {
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = silent.local_addr().expect("it is bound");
        let (trigger, shutdown) = shutdown::channel();
        std::thread::scope(|scope| {
            let began = Instant::now();
            let opening = scope.spawn(|| {
                Link::open(&amqp(&[address, address]), SETUP_TIMEOUT, &shutdown).map(drop)
            });
            let _connection = silent.accept().expect("it connects");
            trigger.fire();
            opening.join().expect("no panic").expect_err("nobody answered");
            assert!(began.elapsed() < SETUP_TIMEOUT);
        });
    }
}
