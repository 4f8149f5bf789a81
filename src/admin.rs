//! The port that operators watch: /metrics, /healthz, /readyz.

mod door;
mod head;

use std::mem::ManuallyDrop;
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::net::{Shutdown as Direction, listen, shutdown};
use tiny_http::{Header, Method, Request, Response, Server};
use uuid::Uuid;

pub use self::door::Door;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often the threads look whether they should stop.
const POLL: Duration = Duration::from_millis(100);

/// Connections that the kernel keeps while the door is at others. The library's 128 are full within
/// a millisecond of a rush, and who finds them full tries again after a whole second. The kernel
/// lowers this to its own limit (`net.core.somaxconn`).
const BACKLOG: i32 = 4_096;

/// The threads that ended although nobody asked them to.
#[derive(Debug, Default)]
pub struct Casualties(Mutex<Vec<String>>);

impl Casualties {
    /// Notes a thread's unexpected end.
    pub fn add(&self, thread: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread.to_owned());
    }

    /// Their names.
    #[must_use]
    pub fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The server behind the [`Door`], which is its only client.
// Never dropped: tiny_http would connect to itself then, by a path that an abstract name is not.
pub struct Admin(ManuallyDrop<Server>);

/// Binds METRICS_ADDR. Clients are let in, and answered, once both have their threads.
///
/// # Errors
/// If the address is taken or not ours.
pub fn open(address: SocketAddr) -> Result<(Door, Admin)> {
    let listener = TcpListener::bind(address).map_err(|error| {
        anyhow!("cannot listen on {address}: {error}: set METRICS_ADDR to a free address")
    })?;
    listen(&listener, BACKLOG).context("cannot lengthen the backlog of the metrics port")?;
    let address = listener.local_addr()?;
    let (private, server) = private_listener().context("cannot connect to ourselves")?;
    let door = Door::new(listener, server).context("cannot prepare the metrics port")?;
    let server = Server::from_listener(private, None).map_err(|error| anyhow!(error))?;
    log::info!("metrics on http://{address}/metrics");
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
    pub fn serve(&self, metrics: &Metrics, casualties: &Casualties, stop: &Shutdown) {
        while !stop.is_requested() {
            // An error comes once: the end of accepting, which `private_listener` has made sure of.
            if let Ok(Some(request)) = self.0.recv_timeout(POLL) {
                respond(request, metrics, casualties);
            }
        }
    }
}

fn respond(request: Request, metrics: &Metrics, casualties: &Casualties) {
    let path = request.url().split('?').next().unwrap_or_default();
    let (status, body) = match (request.method(), path) {
        (Method::Get | Method::Head, path) => answer(path, metrics, casualties),
        _ => (405, b"only GET and HEAD\n".to_vec()),
    };
    // The one client is the door, which notices.
    let _ = request.respond(response(status, body));
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
    // The door reads lengths, not chunks.
    let response = Response::from_data(body).with_status_code(status);
    let response = response.with_chunked_threshold(usize::MAX);
    // The version is of Prometheus' text format; a browser shows it as text all the same.
    match Header::from_bytes("content-type", "text/plain; version=0.0.4; charset=utf-8") {
        Ok(header) => response.with_header(header),
        Err(()) => response,
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
