//! Connects to receivers through a proxy (EGRESS_PROXY), by CONNECT, for http and https alike.
//!
//! ureq's proxy support would neither look up the target's name with our resolver nor exempt the proxy's address:
//! the address guard would be bypassed, and would refuse the proxy. So ureq doesn't know about the proxy. It
//! resolves and checks the target's name as always, and when it asks for a connection to one of the addresses,
//! it gets a tunnel. Everything after that (TLS, `Host`, reuse) is the same as without a proxy.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::transport::{ConnectionDetails, Connector, NextTimeout, Transport, time};
use ureq::{Error, Timeout};

use super::resolver::{MOST_ADDRESSES, NameCache};
use super::transport::TcpConnector;
use crate::config::{Config, EgressProxy};
use crate::domain::outcome::{Reason, Response};
use crate::lookup::NameLookups;

mod answer;

use answer::{ConnectHead, ProxyVerdict};

/// An attempt with less time for connecting than this doesn't prove that the proxy is away.
const FAIR: Duration = Duration::from_secs(1);

/// The most bytes to read of the proxy's answer when it is tested.
const MOST_OF_ANSWER: usize = 16 << 10;

/// Connects to receivers: directly, or through the proxy.
#[derive(Debug)]
pub(super) struct Egress {
    pub(super) tcp: TcpConnector,
    pub(super) proxy: Option<Arc<Proxy>>,
}

/// The proxy, and how its name is looked up.
#[derive(Debug)]
pub(super) struct Proxy {
    setting: EgressProxy,
    fair: Duration,
    names: Arc<NameCache>,
    look_ups: Arc<NameLookups>,
}

/// What failed at the proxy on the way to a receiver.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    /// The proxy can't be used at all, so this says nothing about the receiver.
    #[error("the proxy {proxy} (EGRESS_PROXY) {problem}")]
    Away { proxy: String, problem: String },
    /// The proxy answers, but can't or mustn't connect to that receiver.
    #[error(
        "the proxy {proxy} (EGRESS_PROXY) answered CONNECT to {target} with status {status}{hint}"
    )]
    Status { proxy: String, target: SocketAddr, status: u16, hint: &'static str },
    /// The proxy didn't answer in time, perhaps because the receiver doesn't.
    #[error("the proxy {proxy} (EGRESS_PROXY) did not connect to {target} in time")]
    Silent { proxy: String, target: SocketAddr },
}

/// The result of a request that failed at the proxy; `None` for other errors.
pub(super) fn response(error: &Error) -> Option<Response> {
    let Error::Other(inner) = error else { return None };
    let obstacle: &Obstacle = inner.downcast_ref()?;
    let detail = obstacle.to_string();
    Some(match obstacle {
        Obstacle::Away { .. } => Response::NotSent { detail },
        Obstacle::Status { .. } => Response::NoAnswer { reason: Reason::Proxy, detail },
        Obstacle::Silent { .. } => Response::NoAnswer { reason: Reason::Timeout, detail },
    })
}

impl<In: Transport> Connector<In> for Egress {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let proxy = match &self.proxy {
            Some(proxy) if chained.is_none() => proxy,
            _ => return self.tcp.connect(details, chained),
        };
        let deadline = Instant::now().checked_add(*details.timeout.after);
        let mut last = Error::ConnectionFailed;
        for (n, target) in details.addrs.iter().enumerate() {
            // As without a proxy, a dead address must not use up the time of another.
            let left = left(deadline)?;
            let is_last = n + 1 == details.addrs.len();
            let limit = if is_last { left } else { left / 2 };
            match proxy.tunnel(&self.tcp, *target, details, limit) {
                Ok(tunnel) => return Ok(Some(tunnel)),
                Err(Error::Other(obstacle)) if !is_away(&*obstacle) => {
                    last = Error::Other(obstacle);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }
}

fn is_away(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref(), Some(Obstacle::Away { .. }))
}

impl Proxy {
    /// `None` if no proxy is configured.
    pub(super) fn of(
        config: &Config,
        names: &Arc<NameCache>,
        look_ups: &Arc<NameLookups>,
    ) -> Option<Arc<Self>> {
        let setting = config.egress_proxy.clone()?;
        let fair = (config.connect_timeout / 4).min(FAIR);
        let (names, look_ups) = (Arc::clone(names), Arc::clone(look_ups));
        Some(Arc::new(Self { setting, fair, names, look_ups }))
    }

    /// Opens a connection through the proxy to an address that the guard has allowed.
    fn tunnel<In: Transport, C: Connector<In>>(
        &self,
        tcp: &C,
        target: SocketAddr,
        details: &ConnectionDetails<'_>,
        limit: Duration,
    ) -> Result<C::Out, Error> {
        let deadline = Instant::now().checked_add(limit);
        let mut transport = self.reach(tcp, details, limit)?;
        let silent = || self.failed(|proxy| Obstacle::Silent { proxy, target });
        // A lost connection is the proxy's fault, a timeout perhaps the receiver's.
        let lost = |error: Error| match error {
            Error::Timeout(_) => silent(),
            error => self.away(format!("ended the connection: {error}")),
        };
        let timeout = || match left(deadline) {
            Ok(left) => Ok(within(left, details)),
            Err(_) => Err(silent()),
        };

        let request = self.setting.request(target);
        let output = transport.buffers().output();
        let room = output.get_mut(..request.len());
        let room = room.ok_or_else(|| Error::Other("no room for CONNECT".into()))?;
        room.copy_from_slice(request.as_bytes());
        transport.transmit_output(request.len(), timeout()?).map_err(lost)?;
        let head = loop {
            if let Some(head) = ConnectHead::read(transport.buffers().input()) {
                break head;
            }
            if !transport.await_input(timeout()?).map_err(lost)? {
                let problem = "ended the connection without an answer to CONNECT";
                return Err(self.away(problem.to_owned()));
            }
        };
        transport.buffers().input_consume(head.length);
        match head.verdict() {
            ProxyVerdict::Through => Ok(transport),
            ProxyVerdict::Away(problem) => Err(self.away(problem)),
            ProxyVerdict::Refused(status, hint) => {
                Err(self.failed(|proxy| Obstacle::Status { proxy, target, status, hint }))
            }
        }
    }

    /// Opens a connection to the proxy itself. The operator chose its address, so the guard doesn't apply.
    fn reach<In: Transport, C: Connector<In>>(
        &self,
        tcp: &C,
        details: &ConnectionDetails<'_>,
        limit: Duration,
    ) -> Result<C::Out, Error> {
        let deadline = Instant::now().checked_add(limit);
        let mut addrs: ResolvedSocketAddrs = details.resolver.empty();
        for address in self.addresses(limit).map_err(|problem| self.away(problem))? {
            addrs.push(address);
        }
        let details = ConnectionDetails {
            addrs,
            timeout: within(left(deadline)?, details),
            uri: details.uri,
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        match tcp.connect(&details, None) {
            Ok(Some(transport)) => Ok(transport),
            Ok(None) => Err(Error::ConnectionFailed),
            // The request's own deadline was too short for any proxy.
            Err(error @ Error::Timeout(_)) if limit < self.fair => Err(error),
            Err(error) => {
                self.names.forget(&self.setting.host);
                Err(self.away(format!("cannot be reached: {}", words(&error))))
            }
        }
    }

    fn addresses(&self, limit: Duration) -> Result<Vec<SocketAddr>, String> {
        let EgressProxy { host, port, .. } = &self.setting;
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![(literal, *port).into()]);
        }
        let found = match self.names.get(host) {
            Some(found) => found,
            None => {
                let found = self.look_ups.find(host, limit);
                let found = found.map_err(|error| format!("has no address: {error}"))?;
                self.names.put(host, Arc::clone(&found));
                found
            }
        };
        Ok(found.iter().take(MOST_ADDRESSES).map(|ip| (*ip, *port).into()).collect())
    }

    fn away(&self, problem: String) -> Error {
        self.failed(|proxy| Obstacle::Away { proxy, problem })
    }

    fn failed(&self, obstacle: impl FnOnce(String) -> Obstacle) -> Error {
        Error::Other(Box::new(obstacle(self.setting.to_string())))
    }
}

fn words(error: &Error) -> String {
    match error {
        Error::Timeout(_) => "no answer in time".to_owned(),
        Error::Io(error) => error.to_string(),
        error => error.to_string(),
    }
}

/// The time left until then; an error if there is none.
fn left(deadline: Option<Instant>) -> Result<Duration, Error> {
    let Some(deadline) = deadline else { return Ok(Duration::MAX) };
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(Error::Timeout(Timeout::Connect)),
        left => Ok(left),
    }
}

fn within(left: Duration, details: &ConnectionDetails<'_>) -> NextTimeout {
    match left {
        Duration::MAX => details.timeout,
        left => NextTimeout { after: time::Duration::Exact(left), ..details.timeout },
    }
}

impl EgressProxy {
    /// The request for a tunnel to that address (RFC 9110, section 9.3.6).
    fn request(&self, target: SocketAddr) -> String {
        let authorization = self.authorization.as_ref().map_or_else(String::new, |secret| {
            format!("proxy-authorization: {}\r\n", secret.expose())
        });
        let user_agent = super::USER_AGENT;
        format!(
            "CONNECT {target} HTTP/1.1\r\nhost: {target}\r\nuser-agent: {user_agent}\r\n\
             {authorization}\r\n"
        )
    }
}

/// Tests whether the proxy of EGRESS_PROXY answers; `None` if none is configured. The proxy is asked for a tunnel
/// to itself, which it may refuse.
///
/// # Errors
/// What is wrong, with the proxy's name.
#[must_use]
pub fn try_proxy(config: &Config) -> Option<Result<String, String>> {
    let names = Arc::new(NameCache::new());
    let look_ups = Arc::new(NameLookups::new(1));
    let proxy = Proxy::of(config, &names, &look_ups)?;
    let limit = config.connect_timeout;
    let tried = proxy.addresses(limit).and_then(|addresses| {
        let mut last = Err("has no address".to_owned());
        for address in addresses {
            last = proxy.setting.try_at(address, limit);
            if last.is_ok() {
                break;
            }
        }
        last
    });
    let name = &proxy.setting;
    Some(tried.map(|()| format!("{name} answers")).map_err(|problem| format!("{name} {problem}")))
}

impl EgressProxy {
    fn try_at(&self, address: SocketAddr, limit: Duration) -> Result<(), String> {
        let asked = || -> io::Result<ConnectHead> {
            let mut stream = TcpStream::connect_timeout(&address, limit)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            stream.write_all(self.request(address).as_bytes())?;
            let mut answer = Vec::new();
            loop {
                let mut room = [0; 1_024];
                let read = stream.read(&mut room)?;
                answer.extend(&room[..read]);
                if let Some(head) = ConnectHead::read(&answer) {
                    return Ok(head);
                }
                if read == 0 || answer.len() > MOST_OF_ANSWER {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let head = asked().map_err(|error| match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => "does not answer in time".to_owned(),
            ErrorKind::UnexpectedEof => "ends the connection without an answer".to_owned(),
            _ => format!("cannot be reached: {error}"),
        })?;
        match head.verdict() {
            ProxyVerdict::Away(problem) => Err(problem),
            ProxyVerdict::Through | ProxyVerdict::Refused(..) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_is_asked_for_by_address_and_with_the_credentials() {
        let mut proxy =
            EgressProxy { host: "proxy.test".to_owned(), port: 3_128, authorization: None };
        let target = "[2606:4700::1]:443".parse().expect("an address");
        let asked = proxy.request(target);
        assert!(
            asked
                .starts_with("CONNECT [2606:4700::1]:443 HTTP/1.1\r\nhost: [2606:4700::1]:443\r\n")
        );
        assert!(!asked.contains("authorization") && asked.ends_with("\r\n\r\n"));
        proxy.authorization = Some(crate::domain::secret::Secret::new("Basic eDp5".to_owned()));
        assert!(proxy.request(target).contains("\r\nproxy-authorization: Basic eDp5\r\n"));
    }
}
