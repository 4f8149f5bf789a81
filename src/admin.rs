//! The port that operators watch: the status page, /metrics, /healthz, /readyz.

mod door;
mod head;
mod hosts;
mod page;

use std::borrow::Cow;
use std::io::Cursor;
use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::net::{Shutdown as Direction, listen, shutdown};
use rustix::system::uname;
use tiny_http::{Header, Method, Response, Server};
use url::form_urlencoded;
use uuid::Uuid;

pub use self::door::Door;
use self::hosts::Hosts;
use self::page::PAGE;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;
use crate::status::Status;

/// How often the threads check whether they should stop.
const POLL: Duration = Duration::from_millis(100);

/// Connections that the kernel queues until the door accepts them. The standard library's 128 are full within
/// a millisecond of a rush, and a client that finds the queue full tries again only after a whole second. The
/// kernel lowers this to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// The server behind the [`Door`], which is its only client.
// Never dropped: to stop, tiny_http would connect to itself by a path, but our socket's name is abstract.
pub struct Admin(ManuallyDrop<Server>);

/// Binds METRICS_ADDR. Clients are accepted and answered once both results run in their threads. `names` are
/// those of METRICS_HOSTS.
///
/// # Errors
/// If the address is in use, or not one of this machine.
pub fn open(address: SocketAddr, names: &[String]) -> Result<(Door, Admin)> {
    let listener = TcpListener::bind(address).map_err(|error| {
        anyhow!("cannot listen on {address}: {error}: set METRICS_ADDR to a free address")
    })?;
    listen(&listener, BACKLOG).context("cannot lengthen the backlog of the metrics port")?;
    let address = listener.local_addr()?;
    let (private, server) = private_listener().context("cannot connect to ourselves")?;
    let machine = uname().nodename().to_string_lossy().into_owned();
    let hosts = Hosts::new(names, &machine);
    let door = Door::new(listener, server, hosts).context("cannot prepare the metrics port")?;
    let server = Server::from_listener(private, None).map_err(|error| anyhow!(error))?;
    log::info!("metrics on http://{address}/metrics");
    log::info!("status page on http://{address}/");
    Ok((door, Admin(ManuallyDrop::new(server))))
}

/// Makes a listener and the only connection to it: nobody else can connect any more. So tiny_http accepts
/// once. It can't run out of file descriptors later, and other processes of this machine can't keep it busy.
fn private_listener() -> std::io::Result<(UnixListener, UnixStream)> {
    let name = format!("webhook-notifier-{}", Uuid::new_v4());
    let name = unix::SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&name)?;
    let stream = UnixStream::connect_addr(&name)?;
    shutdown(&listener, Direction::Both)?;
    Ok((listener, stream))
}

impl Admin {
    /// Answers requests until `stop`.
    pub fn serve(&self, metrics: &Metrics, status: &Status, stop: &Shutdown) {
        while !stop.is_requested() {
            // There is one error: tiny_http stops accepting, because `private_listener` shut the listener
            // down.
            if let Ok(Some(request)) = self.0.recv_timeout(POLL) {
                let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
                let answer = match request.method() {
                    Method::Get | Method::Head => answer(path, query, metrics, status),
                    _ => Answer::text(405, "only GET and HEAD\n"),
                };
                // Fails only if the door closed the connection. It notices that itself.
                let _ = request.respond(answer.into());
            }
        }
    }
}

/// The answer to a request.
struct Answer {
    status: u16,
    content_type: &'static str,
    /// The Content-Security-Policy: what a browser may do with it.
    policy: &'static str,
    body: Vec<u8>,
}

impl Answer {
    /// The version of Prometheus' text format. A browser shows this type as text all the same.
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

    fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let policy = "default-src 'none'; frame-ancestors 'none'";
        Self { status, content_type, policy, body: body.into() }
    }

    fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, Self::TEXT, body)
    }

    /// 200 without problems, otherwise 503 and a line for each problem.
    fn of_problems(problems: &[String], fine: &str) -> Self {
        match problems {
            [] => Self::text(200, format!("{fine}\n")),
            _ => Self::text(503, problems.join("\n") + "\n"),
        }
    }
}

fn answer(path: &str, query: &str, metrics: &Metrics, status: &Status) -> Answer {
    match path {
        "/" => Answer {
            policy: &PAGE.policy,
            ..Answer::new(200, "text/html; charset=utf-8", PAGE.html.as_str())
        },
        "/status.json" => match serde_json::to_vec(&status.now(&sought(query))) {
            Ok(json) => Answer::new(200, "application/json", json),
            Err(error) => Answer::text(500, format!("{error}\n")),
        },
        "/metrics" => match metrics.encode() {
            Ok(text) => Answer::text(200, text),
            Err(error) => Answer::text(500, format!("{error}\n")),
        },
        "/healthz" => {
            let ended = metrics.health().ended_threads();
            let problems = ended.iter().map(|name| format!("thread {name} ended"));
            Answer::of_problems(&problems.collect::<Vec<_>>(), "ok")
        }
        "/readyz" => Answer::of_problems(&metrics.health().not_ready(), "ready"),
        _ => Answer::text(404, "see /, /metrics, /healthz and /readyz\n"),
    }
}

/// The search words for receivers, from `receivers=WORDS`.
fn sought(query: &str) -> Cow<'_, str> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "receivers").map(|(_, words)| words).unwrap_or_default()
}

impl From<Answer> for Response<Cursor<Vec<u8>>> {
    fn from(answer: Answer) -> Self {
        // The door needs a content-length: it does not parse chunks.
        let response = Self::from_data(answer.body).with_status_code(answer.status);
        let headers = [
            ("content-type", answer.content_type),
            ("content-security-policy", answer.policy),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ];
        let headers = headers.into_iter().filter_map(|(name, value)| {
            // Fails only for text that is not ASCII.
            Header::from_bytes(name, value).ok()
        });
        headers.fold(response.with_chunked_threshold(usize::MAX), Self::with_header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_private_listener_accepts_our_own_connection_and_no_other() {
        let (listener, stream) = private_listener().expect("Linux has abstract names");
        let name = stream.peer_addr().expect("it is connected");
        let refused = UnixStream::connect_addr(&name).expect_err("nobody else gets in");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        listener.accept().expect("the one that was waiting");
        let ended = listener.accept().expect_err("there is no other");
        assert_eq!(ended.kind(), std::io::ErrorKind::InvalidInput);
    }
}
