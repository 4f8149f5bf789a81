//! The POST: one attempt at one receiver, with the shared ureq client. (Only this module uses ureq.)

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
use crate::lookup::LookUps;

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

use agents::{Agents, Making};
use egress::Proxy;
use failure::{TimeLimits, no_answer};
use resolver::{GuardedResolver, MOST_THREADS, NameCache};

pub use egress::try_proxy;
pub use reach::rejected;
pub use request::Request;
pub use trial::{ShownAnswer, Trial};

/// The size of ureq's buffers, of which it keeps four per TLS connection. Its default of 128 KiB is
/// meant for downloads.
const BUFFER_BYTES: usize = 16 << 10;

/// The most a receiver may send before the body, far above what a status and its headers need. It has to
/// fit in the buffer.
const MAX_RESPONSE_HEADER_BYTES: usize = BUFFER_BYTES;

/// Our name, and the answers we accept.
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
        // A webhook has at most half of a queue's capacity. Idle connections beyond that could never be
        // reused and would only hold sockets open.
        let capacities = config.queues.iter().map(|queue| usize::from(queue.capacity));
        let most_of_one = capacities.max().unwrap_or(1).div_ceil(2).max(8);
        let settings = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would evade every check of the registered URL.
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
        let look_ups = Arc::new(LookUps::new(MOST_THREADS));
        let proxy = Proxy::of(config, &names, &look_ups);
        let making = Making {
            settings,
            max_answer_bytes,
            tls: config.tls.clone(),
            allowed: config.allow_networks.clone(),
            names: Arc::clone(&names),
            look_ups,
            proxy,
        };
        Self {
            agents: Agents::new(making),
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
                // The status has decided. Reading on, within the deadline, only serves the next request:
                // a connection can be reused once its response was read completely.
                let mut body = response.body_mut().as_reader().take(self.max_response_bytes);
                if !is_success && self.excerpt_bytes > 0 {
                    answered = excerpt::added(answered, target, &mut body, self.excerpt_bytes);
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

/// Looks up a URL's host as a delivery would, and says what would prevent one at present: none of its
/// addresses is allowed, or it has none.
#[must_use]
pub fn obstacle(url: &Uri, allowed: &AllowedNetworks, limit: Duration) -> Option<String> {
    let resolver = GuardedResolver {
        allowed: allowed.clone(),
        names: Arc::new(NameCache::new()),
        look_ups: Arc::new(LookUps::new(1)),
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

/// Reads the rest and ignores it. ureq handles the effects of a failure.
fn read_to_end(mut body: impl Read) {
    // Most answers have no body: clearing a large buffer each time would cost more than they do.
    let mut room = [0; 1 << 10];
    while matches!(body.read(&mut room), Ok(read) if read > 0) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{Shutdown, TcpListener};
    use std::thread;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use uuid::Uuid;

    use crate::config::Settings;
    use crate::domain::delivery::Headers;
    use crate::domain::event::{Event, Properties};
    use crate::domain::outcome::Reason;
    use crate::domain::settings::Columns;
    use crate::domain::webhook::{Secrets, Webhook};

    /// Makes attempts at a receiver that answers each with the given bytes, repeated if necessary, as
    /// long as somebody reads, and then closes.
    struct Bench {
        sender: Sender,
        webhook: Webhook,
        event: Event,
        answers: crossbeam_channel::Sender<(Vec<u8>, usize)>,
    }

    impl Bench {
        fn new() -> Self {
            let mut config = Settings::default().read().expect("the defaults");
            config.allow_networks = AllowedNetworks::parse("127.0.0.1").expect("a network");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
            let (answers, next) = crossbeam_channel::unbounded::<(Vec<u8>, usize)>();
            thread::spawn(move || {
                for (answer, times) in next {
                    let (mut stream, _) = listener.accept().expect("an attempt");
                    // The whole small request arrives at once, or nearly.
                    let mut request = Vec::new();
                    while !request.ends_with(b"{}") {
                        let mut room = [0; 1_024];
                        let read = stream.read(&mut room).expect("a request");
                        request.extend(&room[..read]);
                    }
                    let sent = (0..times).try_for_each(|_| stream.write_all(&answer));
                    // The client has read enough.
                    let _ = sent.and_then(|()| stream.shutdown(Shutdown::Both));
                }
            });
            let properties = Properties {
                message_id: Some("1"),
                event_type: Some("a"),
                ..Properties::default()
            };
            let event = Event::read(properties, b"{}", 2, String::new).expect("an event");
            let columns = Columns::default();
            let webhook = Webhook::new(Uuid::nil(), &url, &Secrets::default(), &columns);
            Self { sender: Sender::new(&config), webhook, event, answers }
        }

        fn answered(&self, answer: impl Into<Vec<u8>>, times: usize) -> Response {
            self.answers.send((answer.into(), times)).expect("the receiver lives");
            self.sender.post(Request {
                webhook: &self.webhook,
                event: &self.event,
                attempt: 1,
                headers: &Headers::new(),
                content_type: None,
                body: b"{}",
                at: SystemTime::UNIX_EPOCH,
            })
        }
    }

    #[test]
    fn connections_that_nobody_uses_are_closed_and_those_in_use_kept() {
        let mut config = Settings::default().read().expect("the defaults");
        config.allow_networks = AllowedNetworks::parse("127.0.0.1").expect("a network");
        let sender = Sender::new(&config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/", listener.local_addr().expect("it is bound"));
        let webhook = Webhook::new(Uuid::nil(), &url, &Secrets::default(), &Columns::default());
        let properties =
            Properties { message_id: Some("1"), event_type: Some("a"), ..Properties::default() };
        let event = Event::read(properties, b"{}", 2, String::new).expect("an event");
        let post = || {
            sender.post(Request {
                webhook: &webhook,
                event: &event,
                attempt: 1,
                headers: &Headers::new(),
                content_type: None,
                body: b"{}",
                at: SystemTime::UNIX_EPOCH,
            })
        };
        let served = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut requests = 0;
            let mut room = [0; 1_024];
            // For such a small request one or two reads are enough.
            let mut request = Vec::new();
            while let Ok(read) = stream.read(&mut room)
                && read > 0
            {
                request.extend(&room[..read]);
                if request.ends_with(b"{}") {
                    requests += 1;
                    request.clear();
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(answer).expect("somebody reads");
                }
            }
            requests
        });
        for _ in 0..4 {
            assert_eq!(post(), Response::Status { code: 200, retry_after: None, excerpt: None });
            sender.close_idle();
        }
        assert!(!served.is_finished());
        for _ in 0..3 {
            sender.close_idle();
        }
        assert_eq!(served.join().expect("no panic"), 4, "all over one connection, which has ended");
    }

    #[test]
    fn an_answer_without_end_is_left_long_before_the_deadline() {
        let bench = Bench::new();
        let head = "HTTP/1.1 200 OK\r\n";
        for interim in ["100 Continue", "103 Early Hints"] {
            let flood = format!("HTTP/1.1 {interim}\r\n\r\n");
            let response = bench.answered(flood, usize::MAX);
            let Response::NoAnswer { reason: Reason::Protocol, detail } = response else {
                panic!("{response:?}");
            };
            assert!(detail.contains("81920"), "{detail}");
        }
        for endless in ["", "a: b\r\n", "transfer-encoding: chunked\r\n\r\n0\r\n"] {
            let answer = format!("{head}{endless}{}", "a: b\r\n".repeat(99_999));
            match bench.answered(answer, 1) {
                Response::NoAnswer { reason: Reason::Protocol, .. } if endless.len() < 9 => {}
                Response::Status { code: 200, .. } if endless.len() > 9 => {}
                other => panic!("{endless:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_head_up_to_the_bound_is_read_and_one_above_it_is_an_error_that_says_so() {
        let bench = Bench::new();
        let head = |filler: usize| {
            let filler = "a".repeat(filler);
            format!(
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\nx: {filler}\r\n\r\n"
            )
        };
        let most = MAX_RESPONSE_HEADER_BYTES - head(0).len();
        assert_eq!(
            bench.answered(head(most), 1),
            Response::Status { code: 200, retry_after: None, excerpt: None }
        );
        let response = bench.answered(head(most + 1), 1);
        let Response::NoAnswer { reason: Reason::Protocol, detail } = response else {
            panic!("{response:?}");
        };
        assert!(detail.contains("16384"), "{detail}");
    }

    proptest! {
        /// A panic would end the process.
        #[test]
        fn whatever_is_answered_is_a_response(
            pieces in prop::collection::vec(
                prop_oneof![
                    "HTTP/[0-3]\\.[0-3] [0-9]{2,4}( [a-z]{0,3})?\r\n",
                    "(content-length|transfer-encoding|connection|location|expect|Retry-After): ?[-+a-f0-9, ]{0,4}(chunked|close|/)?\r\n",
                    "[a-fA-F0-9]{0,17}(;[a-z]*)?\r\n.{0,9}\r\n",
                    "[a-z]{0,3}:? ?.{0,5}\r?\n",
                    Just(String::from("\r\n")),
                    Just(String::from("0\r\n\r\n")),
                    Just(String::from("HTTP/1.1 103 E\r\n\r\n")),
                    Just(String::from("HTTP/1.1 200 OK\r\n")),
                ],
                0..9,
            ),
            garbage in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 0..3),
        ) {
            thread_local!(static BENCH: Bench = Bench::new());
            let mut answer = [pieces.concat().as_bytes(), b"\r\n"].concat();
            for (at, byte) in garbage {
                let at = at.index(answer.len());
                answer[at] = byte;
            }
            // On a new connection each time: the answer ends this one.
            let response = BENCH.with(|bench| bench.answered(answer, 1));
            if let Response::NoAnswer { reason, .. } = response {
                let fair = [Reason::Protocol, Reason::Reset];
                prop_assert!(fair.contains(&reason), "{:?}", reason);
            }
        }
    }
}
