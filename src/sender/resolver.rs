//! Resolves names to addresses that a webhook may reach.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;
use ureq::Error;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::domain::address::AllowedNetworks;
use crate::lookup::NameLookups;

/// How long an answer of the system's resolver is used. It is long enough that a busy receiver's name isn't looked
/// up for each request, and short enough to follow a receiver that moves as soon as any other client does.
const FRESH: Duration = Duration::from_secs(5);

/// How many threads may look up names at the same time. An answer takes some milliseconds, so nearly all of them
/// are for names that get no answer.
pub(super) const MOST_THREADS: usize = 32;

/// How many addresses of a name are tried: as many as ureq has room for.
pub(super) const MOST_ADDRESSES: usize = 16;

/// How many names are remembered.
const MOST: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is not zero");

/// Resolves names, and refuses addresses that a webhook may not reach.
///
/// ureq connects only to addresses that this returns, so a name can't change its address between the check and
/// the connection (DNS rebinding).
///
/// The address of an idle connection was checked when it was opened, and the allowed networks don't change while
/// the process runs. So it may be reused as long as its name has any allowed address.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    pub(super) allowed: AllowedNetworks,
    pub(super) names: Arc<NameCache>,
    pub(super) look_ups: Arc<NameLookups>,
}

impl Resolver for GuardedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let mut found = self.empty();
        if let Some(address) = literal_address(uri) {
            found.push(address);
        } else {
            let host = uri.host().unwrap_or_default();
            let addresses = match self.names.get(host) {
                Some(addresses) => addresses,
                None => {
                    let looked_up = self.look_ups.find(host, *timeout.after);
                    let addresses = looked_up.map_err(|error| Error::Other(Box::new(error)))?;
                    self.names.put(host, Arc::clone(&addresses));
                    addresses
                }
            };
            let port = port(uri);
            for ip in addresses.iter().take(MOST_ADDRESSES) {
                found.push((*ip, port).into());
            }
        }
        let mut allowed = self.empty();
        let mut forbidden = None;
        for address in found.iter() {
            match self.allowed.check(address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(error) => forbidden = Some(error),
            }
        }
        match forbidden {
            Some(error) if allowed.is_empty() => Err(Error::Other(Box::new(error))),
            _ => Ok(allowed),
        }
    }
}

/// The socket address of a URL whose host is an IP address.
fn literal_address(uri: &Uri) -> Option<SocketAddr> {
    let host = uri.host()?.trim_matches(['[', ']']);
    Some((host.parse::<IpAddr>().ok()?, port(uri)).into())
}

fn port(uri: &Uri) -> u16 {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    uri.port_u16().unwrap_or(default)
}

/// The recent addresses of names.
#[derive(Debug)]
pub(super) struct NameCache(Mutex<LruCache<Box<str>, Name>>);

#[derive(Debug)]
struct Name {
    addresses: Arc<[IpAddr]>,
    since: Instant,
}

impl NameCache {
    pub(super) fn new() -> Self {
        let mut names = LruCache::unbounded();
        // It grows as it fills.
        names.resize(MOST);
        Self(Mutex::new(names))
    }

    pub(super) fn get(&self, host: &str) -> Option<Arc<[IpAddr]>> {
        let mut names = self.lock();
        let name = names.get(host).filter(|name| name.since.elapsed() < FRESH)?;
        Some(Arc::clone(&name.addresses))
    }

    pub(super) fn put(&self, host: &str, addresses: Arc<[IpAddr]>) {
        self.lock().put(host.into(), Name { addresses, since: Instant::now() });
    }

    /// Forgets a name whose receiver didn't answer, because it may have moved.
    pub(super) fn forget(&self, host: &str) {
        self.lock().pop(host);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Box<str>, Name>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("a URL")
    }

    #[test]
    fn an_ip_address_is_not_looked_up() {
        let literal = |text: &str| literal_address(&uri(text)).map(|a| a.to_string());
        assert_eq!(literal("http://127.0.0.1/x").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(literal("https://[::1]/").as_deref(), Some("[::1]:443"));
        assert_eq!(literal("http://10.0.0.1:8080").as_deref(), Some("10.0.0.1:8080"));
        assert_eq!(literal("http://localhost/"), None);
    }

    /// A name server for the test: it gives its answers one after the other, and repeats the last one.
    fn resolver(answers: &[&'static [&'static str]]) -> GuardedResolver {
        let answers = Mutex::new(answers.to_vec());
        let look_ups = NameLookups::with_resolver(1, move |_| {
            let mut answers = answers.lock().expect("no holder panics");
            let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0] };
            Ok(answer.iter().map(|address| address.parse().expect("an address")).collect())
        });
        GuardedResolver {
            allowed: AllowedNetworks::default(),
            names: Arc::new(NameCache::new()),
            look_ups: Arc::new(look_ups),
        }
    }

    fn resolve(resolver: &GuardedResolver, url: &str) -> Result<Vec<String>, Error> {
        let config = ureq::config::Config::default();
        let after = ureq::unversioned::transport::time::Duration::from_secs(30);
        let limit = NextTimeout { after, ..NextTimeout::default() };
        let found = resolver.resolve(&uri(url), &config, limit)?;
        Ok(found.iter().map(SocketAddr::to_string).collect())
    }

    #[test]
    fn a_name_that_was_resolved_is_remembered_with_each_urls_port_and_guarded_each_time() {
        let resolver = resolver(&[&["93.184.215.14", "10.0.0.1", "::1"], &["10.0.0.1"]]);
        for (url, expected) in [
            ("http://receiver.test/", "93.184.215.14:80"),
            ("https://receiver.test/", "93.184.215.14:443"),
            ("http://receiver.test:8080/", "93.184.215.14:8080"),
        ] {
            assert_eq!(resolve(&resolver, url).expect("one is allowed"), [expected]);
        }
        for _ in 0..2 {
            let refused = resolve(&resolver, "http://inside.test/").expect_err("none is allowed");
            assert!(refused.to_string().contains("(private, 10.0.0.0/8)"), "{refused}");
        }
        resolver.names.forget("receiver.test");
        assert!(resolver.names.get("receiver.test").is_none());
    }

    #[test]
    fn a_name_that_moves_to_a_forbidden_address_is_refused_at_its_next_look_up() {
        let resolver = resolver(&[&["93.184.215.14"], &["127.0.0.1"], &["93.184.215.15"]]);
        let url = "http://rebinding.test/";
        // The connection uses what was checked: nothing is looked up in between.
        assert_eq!(resolve(&resolver, url).expect("public"), ["93.184.215.14:80"]);
        assert_eq!(resolve(&resolver, url).expect("remembered"), ["93.184.215.14:80"]);
        resolver.names.forget("rebinding.test");
        assert!(matches!(resolve(&resolver, url), Err(Error::Other(_))));
        resolver.names.forget("rebinding.test");
        assert_eq!(resolve(&resolver, url).expect("public again"), ["93.184.215.15:80"]);
    }

    #[test]
    fn a_name_without_an_address_is_not_remembered() {
        let resolver = resolver(&[&[], &["93.184.215.14"]]);
        let unknown = resolve(&resolver, "http://new.test/").expect_err("it has none");
        assert!(unknown.to_string().contains("no address"), "{unknown}");
        assert_eq!(resolve(&resolver, "http://new.test/").expect("by now").len(), 1);
    }

    #[test]
    fn what_was_resolved_long_ago_is_not_used() {
        let names = NameCache::new();
        names.put("receiver.test", Arc::from([]));
        let long_ago = Instant::now().checked_sub(FRESH).expect("a machine that runs for long");
        names.lock().get_mut("receiver.test").expect("it is there").since = long_ago;
        assert!(names.get("receiver.test").is_none());
    }
}
