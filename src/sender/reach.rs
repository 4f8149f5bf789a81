//! Finds which of many URLs lead to addresses that no webhook may reach.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http::Uri;
use ureq::Timeout;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::{NextTimeout, time};

use super::failure::{TimeLimits, no_answer};
use super::resolver::{GuardedResolver, MOST_THREADS, NameCache};
use crate::domain::address::AllowedNetworks;
use crate::domain::outcome::Response;
use crate::lookup::NameLookups;

/// How many names are looked up at the same time.
const AT_A_TIME: usize = 16;

/// Looks up each URL's host as a delivery would, all within the limit. Returns why deliveries will be rejected,
/// for each URL without an allowed address. Names without an answer by then are ignored.
#[must_use]
pub fn rejected(urls: &[Uri], allowed: &AllowedNetworks, limit: Duration) -> Vec<Option<String>> {
    let deadline = Instant::now() + limit;
    let resolver = GuardedResolver {
        allowed: allowed.clone(),
        names: Arc::new(NameCache::new()),
        look_ups: Arc::new(NameLookups::new(MOST_THREADS)),
    };
    let why = |url: &Uri| {
        let left = deadline.saturating_duration_since(Instant::now());
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        if left.is_zero() && host.parse::<IpAddr>().is_err() {
            return None;
        }
        let (after, reason) = (time::Duration::Exact(left), Timeout::Resolve);
        let limit = NextTimeout { after, reason, ..NextTimeout::default() };
        let error = resolver.resolve(url, &ureq::config::Config::default(), limit).err()?;
        match no_answer(error, TimeLimits { request: left, connect: left }) {
            Response::Refused { detail } => Some(format!("deliveries will be rejected: {detail}")),
            _ => None,
        }
    };
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; urls.len()]);
    let work = || {
        while let at = next.fetch_add(1, Ordering::Relaxed)
            && let Some(url) = urls.get(at)
        {
            if let Some(why) = why(url) {
                found.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(why);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..AT_A_TIME.min(urls.len()) {
            // If it can't be started, fewer threads do the work.
            let _ = thread::Builder::new().name("reach".to_owned()).spawn_scoped(scope, work);
        }
        work();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}
