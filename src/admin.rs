//! The port that operators watch: /metrics, /healthz, /readyz.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use tiny_http::{Header, Method, Response, Server};

use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often the thread looks whether it should stop.
const POLL: Duration = Duration::from_millis(100);

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

/// The listening server.
pub struct Admin(Server);

impl fmt::Debug for Admin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Admin").field(&self.0.server_addr().to_ip()).finish()
    }
}

impl Admin {
    /// Binds METRICS_ADDR.
    ///
    /// # Errors
    /// If the address is taken or not ours.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let server = Server::http(address).map_err(|error| {
            anyhow!("cannot listen on {address}: {error}: set METRICS_ADDR to a free address")
        })?;
        if let Some(address) = server.server_addr().to_ip() {
            log::info!("metrics on http://{address}/metrics");
        }
        Ok(Self(server))
    }

    /// Answers requests until `stop`.
    ///
    /// # Errors
    /// If the server can no longer accept.
    pub fn serve(&self, metrics: &Metrics, casualties: &Casualties, stop: &Shutdown) -> Result<()> {
        while !stop.is_requested() {
            let Some(request) = self.0.recv_timeout(POLL)? else { continue };
            let path = request.url().split('?').next().unwrap_or_default();
            let (status, body) = match (request.method(), path) {
                (Method::Get | Method::Head, path) => answer(path, metrics, casualties),
                _ => (405, b"only GET and HEAD\n".to_vec()),
            };
            // The one client that hung up is the only one who would miss the answer.
            let _ = request.respond(response(status, body));
        }
        Ok(())
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
