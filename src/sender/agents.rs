//! The client, divided into parts that each keep the connections of some hosts.
//!
//! In ureq's pool all threads share a lock, and each request compares every idle connection with the hosts of
//! all others, twice. With ten hosts that takes a quarter of a request's processor time, and it grows with their
//! number. ureq closes old connections only when the pool is next used, so an unused part is replaced.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use http::Uri;
use ureq::Agent;
use ureq::unversioned::transport::Connector;

use super::egress::{Egress, Proxy};
use super::exchange::ExchangeConnector;
use super::resolver::{GuardedResolver, NameCache};
use super::tls::TlsConnector;
use super::transport::TcpConnector;
use crate::domain::address::AllowedNetworks;
use crate::lookup::NameLookups;
use crate::tls::Tls;

/// The number of parts. Two hosts in the same part still cost each other little.
const PARTS: usize = 32;

/// A part that wasn't used during this many checks has no connection worth keeping.
const QUIET: u8 = 3;

/// What is needed to create a part.
#[derive(Clone, Debug)]
pub(super) struct AgentFactory {
    pub(super) settings: ureq::config::Config,
    pub(super) max_answer_bytes: usize,
    pub(super) tls: Tls,
    pub(super) allowed: AllowedNetworks,
    pub(super) names: Arc<NameCache>,
    pub(super) look_ups: Arc<NameLookups>,
    pub(super) proxy: Option<Arc<Proxy>>,
}

impl AgentFactory {
    fn create(&self) -> Agent {
        let tcp = TcpConnector { max_answer_bytes: self.max_answer_bytes };
        let egress = Egress { tcp, proxy: self.proxy.clone() };
        let chain = ().chain(egress).chain(TlsConnector(self.tls.clone()));
        let resolver = GuardedResolver {
            allowed: self.allowed.clone(),
            names: Arc::clone(&self.names),
            look_ups: Arc::clone(&self.look_ups),
        };
        Agent::with_parts(self.settings.clone(), ExchangeConnector::new(chain), resolver)
    }
}

/// All parts.
#[derive(Debug)]
pub(super) struct Agents {
    parts: [Part; PARTS],
    factory: AgentFactory,
}

#[derive(Debug)]
struct Part {
    agent: RwLock<Agent>,
    /// The number of checks since it was last used. [`QUIET`]: it has no open connection.
    quiet: AtomicU8,
}

impl Agents {
    pub(super) fn new(factory: AgentFactory) -> Self {
        let part = |_| Part { agent: RwLock::new(factory.create()), quiet: AtomicU8::new(QUIET) };
        Self { parts: std::array::from_fn(part), factory }
    }

    /// The part that keeps the connections of this host.
    pub(super) fn of(&self, uri: &Uri) -> Agent {
        let mut hasher = DefaultHasher::new();
        (uri.host(), uri.port_u16()).hash(&mut hasher);
        let part = &self.parts[hasher.finish() as usize % PARTS];
        part.quiet.store(0, Ordering::Relaxed);
        part.agent.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the connections of parts that weren't used between the last [`QUIET`] calls.
    pub(super) fn close_idle(&self) {
        for part in &self.parts {
            let quiet = part.quiet.load(Ordering::Relaxed);
            if quiet < QUIET {
                part.quiet.store(quiet + 1, Ordering::Relaxed);
            }
            if quiet + 1 == QUIET {
                // Requests in flight share the old agent until they end.
                *part.agent.write().unwrap_or_else(PoisonError::into_inner) = self.factory.create();
            }
        }
    }
}
