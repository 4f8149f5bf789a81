//! State that is shared by the connections to a host: whether idle ones may still be used.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use http::Uri;
use http::uri::Authority;

/// The hosts that we have connections to.
#[derive(Debug, Default)]
pub(super) struct HostGenerations(Mutex<HashMap<Authority, Weak<HostGeneration>>>);

/// The generation of a host and port. Connections that are known to work belong to it. If one fails
/// unexpectedly, the next generation begins, to which no idle connection belongs. Connections that work after
/// that belong to the new generation.
#[derive(Debug, Default)]
pub(super) struct HostGeneration(AtomicU32);

impl HostGenerations {
    /// The generation of this URL's host. Called for each new connection.
    pub(super) fn of(&self, uri: &Uri) -> Arc<HostGeneration> {
        let Some(authority) = uri.authority() else { return Arc::default() };
        let mut hosts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(authority).and_then(Weak::upgrade) {
            return host;
        }
        // Forgets hosts without a connection. There are few: each part of the client has its own.
        hosts.retain(|_, host| host.strong_count() > 0);
        let host = Arc::default();
        hosts.insert(authority.clone(), Arc::downgrade(&host));
        host
    }
}

impl HostGeneration {
    pub(super) fn generation(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether a connection that last worked in this generation must not be used any more.
    pub(super) fn is_after(&self, generation: u32) -> bool {
        self.generation() != generation
    }

    /// Ends this generation, in which a failed connection last worked. If several connections of one generation
    /// fail, only one new generation begins.
    pub(super) fn end(&self, generation: u32) {
        let (next, order) = (generation.wrapping_add(1), Ordering::Relaxed);
        let _ = self.0.compare_exchange(generation, next, order, order);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_ends_the_generation_of_the_connection_that_failed_and_no_later_one() {
        let hosts = HostGenerations::default();
        let [a, b] = ["http://a:1/x", "http://b:1/"].map(|url| url.parse().expect("a URL"));
        let host = hosts.of(&a);
        let old = host.generation();
        assert!(!host.is_after(old));
        hosts.of(&"http://a:1/y".parse().expect("a URL")).end(old);
        assert!(host.is_after(old));
        let new = host.generation();
        // Another connection was under way when the first one failed.
        host.end(old);
        assert!(!host.is_after(new));
        assert!(!hosts.of(&b).is_after(old), "another host");
    }

    #[test]
    fn a_host_without_a_connection_is_forgotten() {
        let hosts = HostGenerations::default();
        for n in 0..100 {
            drop(hosts.of(&format!("http://host-{n}/").parse().expect("a URL")));
        }
        assert_eq!(hosts.0.lock().expect("no holder panics").len(), 1);
    }
}
