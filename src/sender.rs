//! Sends the POST of an attempt, with the shared ureq client. (Only this module uses ureq.)

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::{NextTimeout, time};
use ureq::{Agent, Timeout};

use crate::config::Config;
use crate::domain::address::AllowedNetworks;
use crate::domain::delivery_log::Extent;
use crate::domain::forwarding::Forwarding;
use crate::domain::outcome::Response;
use crate::lookup::NameLookups;

mod agents;
mod attempt;
mod egress;
mod excerpt;
mod exchange;
mod failure;
mod head;
mod hosts;
mod reach;
mod request;
mod resolver;
mod tls;
mod transport;
mod trial;

use agents::{AgentFactory, Agents};
use egress::Proxy;
use failure::{TimeLimits, no_answer};
use resolver::{GuardedResolver, MOST_THREADS, NameCache};

pub use egress::try_proxy;
pub use reach::rejected;
pub use request::Request;
pub use trial::{ShownAnswer, Trial};

/// The size of ureq's buffers, of which it keeps four per TLS connection. Its default of 128 KiB is meant for
/// downloads.
const BUFFER_BYTES: usize = 16 << 10;

/// The most that a receiver may send before the body, far more than a status and its headers need. It has to fit
/// in the buffer.
const MAX_RESPONSE_HEADER_BYTES: usize = BUFFER_BYTES;

/// Our name, and the content types that we accept.
const USER_AGENT: &str = concat!("webhook-notifier/", env!("CARGO_PKG_VERSION"));
const ACCEPT: &str = "*/*";

/// Sends events to receivers and keeps connections alive between requests. Shared by all threads.
#[derive(Debug)]
pub struct Sender {
    agents: Agents,
    names: Arc<NameCache>,
    request_timeout: Duration,
    connect_timeout: Duration,
    max_response_bytes: u64,
    /// How many bytes of a failed answer's body are kept; 0 for none.
    excerpt_bytes: usize,
    forwarding: Forwarding,
}

impl Sender {
    /// Creates the client. Opens no connection.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        // A webhook has at most half of a queue's capacity. Idle connections beyond that could never be reused,
        // and would only hold sockets open.
        let capacities = config.queues.iter().map(|queue| usize::from(queue.capacity));
        let most_of_one = capacities.max().unwrap_or(1).div_ceil(2).max(8);
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would bypass all checks of the registered URL.
            .max_redirects(0)
            // A proxy from the environment would bypass the resolver, and with it the address guard.
            .proxy(None)
            .timeout_global(Some(config.request_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .max_response_header_size(MAX_RESPONSE_HEADER_BYTES)
            .input_buffer_size(BUFFER_BYTES)
            .output_buffer_size(BUFFER_BYTES)
            .max_idle_connections(most_of_one)
            .max_idle_connections_per_host(most_of_one)
            .max_idle_age(Duration::from_secs(15))
            .user_agent(USER_AGENT)
            .accept(ACCEPT)
            .accept_encoding("")
            .build();
        let names = Arc::new(NameCache::new());
        let max_answer_bytes = usize::try_from(config.max_response_bytes)
            .unwrap_or(usize::MAX)
            .saturating_add(MAX_RESPONSE_HEADER_BYTES);
        let look_ups = Arc::new(NameLookups::new(MOST_THREADS));
        let proxy = Proxy::of(config, &names, &look_ups);
        let factory = AgentFactory {
            settings,
            max_answer_bytes,
            tls: config.tls.clone(),
            allowed: config.allow_networks.clone(),
            names: Arc::clone(&names),
            look_ups,
            proxy,
        };
        Self {
            agents: Agents::new(factory),
            names,
            request_timeout: config.request_timeout,
            connect_timeout: config.connect_timeout,
            max_response_bytes: config.max_response_bytes,
            excerpt_bytes: match config.delivery_log {
                Extent::Off => 0,
                Extent::Failures | Extent::All => config.delivery_log_body,
            },
            forwarding: config.forward_headers.clone(),
        }
    }

    /// Makes one attempt. Failures are a [`Response`] too.
    #[must_use]
    pub fn post(&self, request: Request<'_>) -> Response {
        let request = request.as_sent();
        let target = match &request.webhook.target {
            Ok(target) => target,
            Err(detail) => return Response::Refused { detail: detail.clone() },
        };
        match self.send(target, request) {
            Ok(mut response) => {
                let is_success = response.status().is_success();
                let mut answered = answered(&response);
                // The status has decided. The rest is read, within the deadline, only so that the connection
                // can be reused.
                let mut body = response.body_mut().as_reader().take(self.max_response_bytes);
                if !is_success && self.excerpt_bytes > 0 {
                    answered =
                        excerpt::with_excerpt(answered, target, &mut body, self.excerpt_bytes);
                }
                read_to_end(body);
                answered
            }
            Err(error) => {
                self.names.forget(target.uri.host().unwrap_or_default());
                no_answer(error, self.limits(target))
            }
        }
    }

    /// Closes connections to hosts that nobody has used for some time; called every few seconds.
    /// Connections to other hosts are closed when they have been idle for 15 s.
    pub fn close_idle(&self) {
        self.agents.close_idle();
    }
}

/// The part of an answer that a delivery needs.
fn answered(response: &http::Response<ureq::Body>) -> Response {
    let retry_after = response.headers().get("retry-after");
    let retry_after = retry_after.and_then(|value| value.to_str().ok()).map(str::to_owned);
    Response::Status { code: response.status().as_u16(), retry_after, excerpt: None }
}

/// Which setting counts for deliveries: a command that warns may have been given others.
pub const SETTING_OF_RUN: &str = "What counts are the ALLOW_NETWORKS and DENY_NETWORKS of `run`: change \
                                  them there, and restart it";

/// Looks up a URL's host as a delivery would. Returns what would prevent a delivery now: the host has no
/// address, or no allowed one.
#[must_use]
pub fn obstacle(url: &Uri, allowed: &AllowedNetworks, limit: Duration) -> Option<String> {
    let resolver = GuardedResolver {
        allowed: allowed.clone(),
        names: Arc::new(NameCache::new()),
        look_ups: Arc::new(NameLookups::new(1)),
    };
    let within = NextTimeout {
        after: time::Duration::Exact(limit),
        reason: Timeout::Resolve,
        ..NextTimeout::default()
    };
    let error = resolver.resolve(url, &ureq::config::Config::default(), within).err()?;
    match no_answer(error, TimeLimits { request: limit, connect: limit }) {
        Response::Refused { detail } => {
            Some(format!("deliveries will be rejected: {detail}. {SETTING_OF_RUN}"))
        }
        Response::NoAnswer { detail, .. } => {
            let host = url.host().unwrap_or_default();
            Some(format!("deliveries will fail until {host:?} can be resolved: {detail}"))
        }
        Response::Status { .. } | Response::NotSent { .. } => None,
    }
}

/// Reads the rest and ignores it. If that fails, ureq closes the connection.
fn read_to_end(mut body: impl Read) {
    // Small, because most answers have no body: clearing a large buffer each time would cost more.
    let mut room = [0; 1 << 10];
    while matches!(body.read(&mut room), Ok(read) if read > 0) {}
}

#[cfg(test)]
mod tests;
