//! The POST: one attempt to one receiver, by the shared ureq client. (ureq is named here only.)

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::Connector;
use ureq::{Agent, Error};

use crate::config::Config;
use crate::domain::address::Forbidden;
use crate::domain::event::Event;
use crate::domain::outcome::{Reason, Response};
use crate::domain::webhook::Webhook;

mod resolver;
mod tls;
mod transport;

use resolver::{GuardedResolver, Names};
use tls::TlsConnector;
use transport::TcpConnector;

/// ureq keeps four buffers of this size per TLS connection; its default of 128 KiB is made for
/// downloads.
const BUFFER_BYTES: usize = 16 << 10;

/// The most a receiver may send before the body; far above what a status and its headers need. They
/// have to fit in the buffer that they are read into.
const MAX_RESPONSE_HEADER_BYTES: usize = BUFFER_BYTES;

/// Sends events to receivers. Shared by all threads; keeps connections alive between requests.
#[derive(Debug)]
pub struct Sender {
    agent: Agent,
    names: Arc<Names>,
    max_response_bytes: u64,
}

/// What a request carries.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Whom it is for.
    pub webhook: &'a Webhook,
    /// Becomes `webhook-id`.
    pub event: &'a Event,
    /// The producer's content type; JSON where it gave none.
    pub content_type: Option<&'a str>,
    /// The producer's bytes.
    pub body: &'a [u8],
    /// Becomes `webhook-timestamp`: the time of this attempt.
    pub at: SystemTime,
}

impl Sender {
    /// Makes the client. Opens nothing.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let lanes: usize = config.queues.iter().map(|q| 2 * usize::from(q.consumers)).sum();
        // Idle connections that no thread could use again would only hold sockets open.
        let threads = lanes * config.fanout;
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would lead around every check of the registered URL.
            .max_redirects(0)
            // A proxy from the environment would bypass the resolver, and with it the guard.
            .proxy(None)
            .timeout_global(Some(config.request_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .max_response_header_size(MAX_RESPONSE_HEADER_BYTES)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(threads.clamp(16, 1_000))
            .max_idle_connections_per_host(threads.clamp(8, 64))
            .max_idle_age(Duration::from_secs(15))
            .user_agent(concat!("webhook-notifier/", env!("CARGO_PKG_VERSION")))
            .accept("*/*")
            .accept_encoding("")
            .build();
        let names = Arc::new(Names::new());
        let resolver = GuardedResolver {
            allowed: config.allow_networks.clone(),
            names: Arc::clone(&names),
            dns: DefaultResolver::default(),
        };
        let max_answer_bytes = usize::try_from(config.max_response_bytes)
            .unwrap_or(usize::MAX)
            .saturating_add(MAX_RESPONSE_HEADER_BYTES);
        let connector =
            ().chain(TcpConnector { max_answer_bytes }).chain(TlsConnector(config.tls.clone()));
        Self {
            agent: Agent::with_parts(settings, connector, resolver),
            names,
            max_response_bytes: config.max_response_bytes,
        }
    }

    /// Makes one attempt. Whatever goes wrong is a [`Response`] too.
    #[must_use]
    pub fn post(&self, request: Request<'_>) -> Response {
        let target = match &request.webhook.target {
            Ok(target) => target,
            Err(detail) => return Response::Refused { detail: detail.clone() },
        };
        let at = request.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = &request.event.id;
        // A producer's content type that no header can hold says nothing.
        let content_type = request
            .content_type
            .filter(|text| !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~')))
            .unwrap_or("application/json");
        let mut post = self
            .agent
            .post(&target.uri)
            .header("content-type", content_type)
            .header("webhook-id", id)
            .header("webhook-timestamp", at);
        if let Some(signature) = target.keys.sign(id, at, request.body) {
            post = post.header("webhook-signature", signature);
        }
        match post.send(request.body) {
            Ok(mut response) => {
                let retry_after = response.headers().get("retry-after");
                let retry_after =
                    retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
                let code = response.status().as_u16();
                // The status has decided. Reading on, within the deadline, only serves the next
                // request: a connection can be used again once its response was read to the end.
                let body = response.body_mut().as_reader();
                read_to_end(body.take(self.max_response_bytes));
                Response::Status { code, retry_after }
            }
            Err(error) => {
                self.names.forget(target.uri.host().unwrap_or_default());
                no_answer(error)
            }
        }
    }
}

/// What is read is of no use; a failure has no consequence that ureq doesn't see to.
fn read_to_end(mut body: impl Read) {
    // Most answers have no body: a large buffer, cleared each time, would cost more than they do.
    let mut room = [0; 1 << 10];
    while matches!(body.read(&mut room), Ok(read) if read > 0) {}
}

fn no_answer(error: Error) -> Response {
    if let Some(detail) = crate::tls::problem(&error) {
        return Response::NoAnswer { reason: Reason::Tls, detail };
    }
    let reason = match &error {
        Error::Timeout(_) => Reason::Timeout,
        Error::HostNotFound => Reason::Dns,
        Error::Tls(_) => Reason::Tls,
        Error::Protocol(_) | Error::LargeResponseHeader(..) | Error::BodyStalled => {
            Reason::Protocol
        }
        Error::ConnectionFailed => Reason::Refused,
        Error::Io(io) => io_reason(io),
        Error::BadUri(_) | Error::Http(_) => {
            return Response::Refused { detail: format!("unusable URL: {error}") };
        }
        Error::Other(inner) if inner.is::<Forbidden>() => {
            return Response::Refused { detail: inner.to_string() };
        }
        _ => Reason::Io,
    };
    Response::NoAnswer { reason, detail: error.to_string() }
}

fn io_reason(error: &io::Error) -> Reason {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::ConnectionRefused | Kind::HostUnreachable | Kind::NetworkUnreachable => {
            Reason::Refused
        }
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::UnexpectedEof
        | Kind::NotConnected => Reason::Reset,
        Kind::TimedOut | Kind::WouldBlock => Reason::Timeout,
        // getaddrinfo's failures have no kind of their own.
        _ if error.to_string().starts_with("failed to lookup address") => Reason::Dns,
        _ => Reason::Io,
    }
}
