//! The port for operators and their tools: the status page, /metrics, /healthz and /readyz.

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

/// How many connections the kernel queues until the door accepts them. A burst fills the standard library's 128
/// within a millisecond, and a client that finds the queue full connects again only after a second. The kernel
/// lowers this to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// The server behind the [`Door`], which is its only client.
// Never dropped: to stop, tiny_http would connect to itself by a path, and our socket's name is abstract.
pub struct Admin(ManuallyDrop<Server>);

/// Binds METRICS_ADDR. Clients are served once both results run in their threads. `names` are those of
/// METRICS_HOSTS.
///
/// # Errors
/// If the address is in use, or doesn't belong to this machine.
pub fn open(address: SocketAddr, names: &[String]) -> Result<(Door, Admin)> {
    let listener = TcpListener::bind(address).map_err(|error| {
        anyhow!("cannot listen on {address}: {error}: set METRICS_ADDR to a free address")
    })?;
    listen(&listener, BACKLOG).context("cannot set the backlog of the metrics port")?;
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

/// Creates a listener and the only connection to it, and lets nobody else connect. So tiny_http accepts once: it
/// can't run out of file descriptors later, and other processes of this machine can't keep it busy.
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
            // Once, this is an error: tiny_http stops accepting because `private_listener` has shut the
            // listener down.
            if let Ok(Some(request)) = self.0.recv_timeout(POLL) {
                let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
                let reply = match request.method() {
                    Method::Get | Method::Head => reply(path, query, metrics, status),
                    _ => Reply::text(405, "only GET and HEAD\n"),
                };
                // Fails only if the door closed the connection. It notices that itself.
                let _ = request.respond(reply.into());
            }
        }
    }
}

/// The reply to a request.
struct Reply {
    status: u16,
    content_type: &'static str,
    /// The Content-Security-Policy: what a browser may do with the reply.
    policy: &'static str,
    body: Vec<u8>,
}

impl Reply {
    /// The type of Prometheus' text format. A browser shows it as text.
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

    fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let policy = "default-src 'none'; frame-ancestors 'none'";
        Self { status, content_type, policy, body: body.into() }
    }

    fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, Self::TEXT, body)
    }

    /// Status 200 if there are no problems, otherwise 503 with a line for each problem.
    fn of_problems(problems: &[String], fine: &str) -> Self {
        match problems {
            [] => Self::text(200, format!("{fine}\n")),
            _ => Self::text(503, problems.join("\n") + "\n"),
        }
    }
}

fn reply(path: &str, query: &str, metrics: &Metrics, status: &Status) -> Reply {
    match path {
        "/" => Reply {
            policy: &PAGE.policy,
            ..Reply::new(200, "text/html; charset=utf-8", PAGE.html.as_str())
        },
        "/status.json" => match serde_json::to_vec(&status.now(&sought(query))) {
            Ok(json) => Reply::new(200, "application/json", json),
            Err(error) => Reply::text(500, format!("{error}\n")),
        },
        "/metrics" => match metrics.encode() {
            Ok(text) => Reply::text(200, text),
            Err(error) => Reply::text(500, format!("{error}\n")),
        },
        "/healthz" => {
            let ended = metrics.health().ended_threads();
            let problems = ended.iter().map(|name| format!("thread {name} ended"));
            Reply::of_problems(&problems.collect::<Vec<_>>(), "ok")
        }
        "/readyz" => Reply::of_problems(&metrics.health().not_ready(), "ready"),
        _ => Reply::text(404, "see /, /metrics, /healthz and /readyz\n"),
    }
}

/// The search words for receivers, from `receivers=WORDS`.
fn sought(query: &str) -> Cow<'_, str> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "receivers").map(|(_, words)| words).unwrap_or_default()
}

impl From<Reply> for Response<Cursor<Vec<u8>>> {
    fn from(reply: Reply) -> Self {
        // The door needs a content-length, because it doesn't parse chunks.
        let response = Self::from_data(reply.body).with_status_code(reply.status);
        let headers = [
            ("content-type", reply.content_type),
            ("content-security-policy", reply.policy),
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
