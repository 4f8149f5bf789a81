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

/// How often the threads look whether they should stop.
const POLL: Duration = Duration::from_millis(100);

/// Connections that the kernel keeps while the door is at others. The library's 128 are full within
/// a millisecond of a rush, and who finds them full tries again after a whole second. The kernel
/// lowers this to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// The server behind the [`Door`], which is its only client.
// Never dropped: tiny_http would connect to itself then, by a path that an abstract name is not.
pub struct Admin(ManuallyDrop<Server>);

/// Binds METRICS_ADDR. Clients are let in, and answered, once both have their threads. `names` are those of
/// METRICS_HOSTS.
///
/// # Errors
/// If the address is taken or not ours.
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

/// A listener at which one connection waits, the one that is returned, and to which nobody else can
/// connect any more. So tiny_http accepts once: it can't run out of files later, nor be kept busy
/// by other processes of this machine.
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
            // An error comes once: the end of accepting, which `private_listener` has made sure of.
            if let Ok(Some(request)) = self.0.recv_timeout(POLL) {
                let (path, query) = request.url().split_once('?').unwrap_or((request.url(), ""));
                let answer = match request.method() {
                    Method::Get | Method::Head => answer(path, query, metrics, status),
                    _ => Answer::text(405, "only GET and HEAD\n"),
                };
                // The one client is the door, which notices.
                let _ = request.respond(answer.into());
            }
        }
    }
}

/// What a path answers.
struct Answer {
    status: u16,
    content_type: &'static str,
    /// What a browser may do with it.
    policy: &'static str,
    body: Vec<u8>,
}

impl Answer {
    /// The version is of Prometheus' text format; a browser shows it as text all the same.
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

    fn new(status: u16, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        let policy = "default-src 'none'; frame-ancestors 'none'";
        Self { status, content_type, policy, body: body.into() }
    }

    fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status, Self::TEXT, body)
    }

    /// 200 if there are no problems, else 503 and a line for each.
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

/// Which receivers are asked for: `receivers=WORDS`.
fn sought(query: &str) -> Cow<'_, str> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == "receivers").map(|(_, words)| words).unwrap_or_default()
}

impl From<Answer> for Response<Cursor<Vec<u8>>> {
    fn from(answer: Answer) -> Self {
        // The door reads lengths, not chunks.
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
            // Fails only for what is not ASCII.
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
