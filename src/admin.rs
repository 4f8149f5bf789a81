//! The port that operators watch: /metrics, /healthz, /readyz.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tiny_http::{Header, Method, Request, Response, Server};

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often the thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(100);

/// How long a client may say nothing, or not read, before its connection is closed. Each holds a
/// thread for as long, so no longer than a good one on a bad network needs.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often we ask ourselves for /healthz, and how long the answer may take. Often enough that
/// `accept`, to which [`CLIENT_TIMEOUT`] applies too, never sees it pass.
const PROBE_INTERVAL: Duration = Duration::from_secs(3);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The wait before we accept again after it failed, as it does while there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The threads that ended although nobody asked them to.
#[derive(Debug, Default)]
pub struct Casualties(Mutex<Vec<String>>);

impl Casualties {
    /// Notes a thread's unexpected end.
    pub fn add(&self, thread: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread.to_owned());
    }

    fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The listening socket. The server on it is built anew whenever it stops answering.
#[derive(Debug)]
pub struct Admin(TcpListener);

/// Why a server is no longer used.
enum Ended {
    Asked,
    /// Its accepting thread ended, as tiny_http's does at any error; in words.
    CannotAccept(String),
    /// It did not answer us.
    Deaf,
}

impl Admin {
    /// Binds METRICS_ADDR.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).map_err(|error| {
            anyhow!("cannot listen on {address}: {error}: set METRICS_ADDR to a free address")
        })?;
        // tiny_http knows no time-outs; accepted sockets inherit these (socket(7)).
        for timeout in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&listener, timeout, Some(CLIENT_TIMEOUT))
                .context("cannot set time-outs on the metrics port")?;
        }
        log::info!("metrics on http://{}/metrics", listener.local_addr()?);
        Ok(Self(listener))
    }

    /// Answers requests until `stop`.
    ///
    /// # Errors
    /// If threads can't be started.
    pub fn serve(&self, metrics: &Metrics, casualties: &Casualties, stop: &Shutdown) -> Result<()> {
        let (deaf, is_deaf) = bounded(1);
        let address = reachable(self.0.local_addr()?);
        thread::scope(|scope| {
            thread::Builder::new()
                .name("admin-probe".to_owned())
                .spawn_scoped(scope, || probe(address, &deaf, stop))
                .context("cannot start the thread `admin-probe`")?;
            // One line for the change of state, not one for each attempt.
            let mut reported = false;
            loop {
                let ended = match self.server() {
                    Ok(server) => {
                        serve(&server, &is_deaf, metrics, casualties, stop, &mut reported)
                    }
                    Err(error) => Ended::CannotAccept(error.to_string()),
                };
                let problem = match ended {
                    Ended::Asked => return Ok(()),
                    Ended::CannotAccept(problem) => problem,
                    Ended::Deaf => "it does not answer".to_owned(),
                };
                if !std::mem::replace(&mut reported, true) {
                    log::warn!("metrics port interrupted: {problem}; building its server anew");
                }
                if stop.wait(ACCEPT_PAUSE) {
                    return Ok(());
                }
            }
        })
    }

    fn server(&self) -> Result<Server> {
        Server::from_listener(self.0.try_clone()?, None).map_err(|error| anyhow!(error))
    }
}

/// Answers requests for as long as the server can.
fn serve(
    server: &Server,
    is_deaf: &Receiver<bool>,
    metrics: &Metrics,
    casualties: &Casualties,
    stop: &Shutdown,
    reported: &mut bool,
) -> Ended {
    // What the probe said of the server before this one.
    let _ = is_deaf.try_recv();
    while !stop.is_requested() {
        match server.recv_timeout(POLL) {
            Ok(Some(request)) => respond(request, metrics, casualties),
            Ok(None) => {}
            Err(error) => return Ended::CannotAccept(error.to_string()),
        }
        match is_deaf.try_recv() {
            Ok(true) => return Ended::Deaf,
            Ok(false) if std::mem::take(reported) => log::info!("metrics port answers again"),
            _ => {}
        }
    }
    Ended::Asked
}

fn respond(request: Request, metrics: &Metrics, casualties: &Casualties) {
    let path = request.url().split('?').next().unwrap_or_default();
    let (status, body) = match (request.method(), path) {
        (Method::Get | Method::Head, path) => answer(path, metrics, casualties),
        _ => (405, b"only GET and HEAD\n".to_vec()),
    };
    // The one client that hung up is the only one who would miss the answer.
    let _ = request.respond(response(status, body));
}

/// Where we reach ourselves, if we listen on `bound`.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, bound.port())
}

/// Asks for /healthz from time to time, and tells whether no answer came.
fn probe(address: SocketAddr, deaf: &Sender<bool>, stop: &Shutdown) {
    let ask = || -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&address, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n")?;
        stream.read_exact(&mut [0])
    };
    while !stop.wait(PROBE_INTERVAL) {
        let unanswered = match ask().map_err(|error| error.kind()) {
            Ok(()) => false,
            Err(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => true,
            // Such as no file left for our own side: says nothing about the server.
            Err(_) => continue,
        };
        // Full: the last answer has not been looked at yet, and says the same.
        let _ = deaf.try_send(unanswered);
    }
}

fn answer(path: &str, metrics: &Metrics, casualties: &Casualties) -> (u16, Vec<u8>) {
    let problems = |problems: Vec<String>, fine: &str| match problems.as_slice() {
        [] => (200, format!("{fine}\n").into_bytes()),
        _ => (503, (problems.join("\n") + "\n").into_bytes()),
    };
    match path {
        "/metrics" => match metrics.encode() {
            Ok(text) => (200, text),
            Err(error) => (500, format!("{error}\n").into_bytes()),
        },
        "/healthz" => {
            let dead = casualties.list();
            problems(dead.iter().map(|name| format!("thread {name} ended")).collect(), "ok")
        }
        "/readyz" => problems(metrics.not_ready(), "ready"),
        _ => (404, b"see /metrics, /healthz and /readyz\n".to_vec()),
    }
}

fn response(status: u16, body: Vec<u8>) -> Response<std::io::Cursor<Vec<u8>>> {
    let response = Response::from_data(body).with_status_code(status);
    // The version is of Prometheus' text format; a browser shows it as text all the same.
    match Header::from_bytes("content-type", "text/plain; version=0.0.4; charset=utf-8") {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}
