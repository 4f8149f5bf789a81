//! The parts of the tests: the binary under test as a process, receivers that record what they get,
//! and a queue and a schema for each test.

pub(crate) mod administration;
pub(crate) mod broker;
pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod connect_proxy;
pub(crate) mod database;
pub(crate) mod exposition;
pub(crate) mod notifier;
pub(crate) mod pooler;
pub(crate) mod process;
pub(crate) mod prometheus;
pub(crate) mod proxy;
pub(crate) mod receiver;
pub(crate) mod sandbox;
pub(crate) mod servers;
pub(crate) mod service;
mod streams;
pub(crate) mod text;
pub(crate) mod tls;
pub(crate) mod wire;

pub(crate) use administration::{MemoryAlarm, Vhost};
pub(crate) use broker::{Broker, Event, Message};
pub(crate) use browser::rendered;
pub(crate) use cluster::Cluster;
pub(crate) use connect_proxy::{ConnectProxy, Way};
pub(crate) use database::{Database, EncodedDatabase};
pub(crate) use notifier::{Launch, Notifier};
pub(crate) use pooler::Pooler;
pub(crate) use process::Process;
pub(crate) use prometheus::Prometheus;
pub(crate) use proxy::Proxy;
pub(crate) use receiver::{Receiver, Reply, Then};
pub(crate) use sandbox::{DeadLetter, Sandbox};
pub(crate) use servers::{FaultServers, Servers};
pub(crate) use text::{TextFile, unwrapped};
pub(crate) use tls::{Authority, Terminator};
pub(crate) use wire::Wire;

pub(crate) use rustix::process::Signal;

use std::{
    thread,
    time::{Duration, Instant},
};

/// The limit for what should happen at once. It is far above the usual time: tests run a dozen at a
/// time on small machines, and only a defect should fail one.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// The limit for what includes a server's start or expired heartbeats.
pub(crate) const LATER: Duration = Duration::from_secs(120);

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const LONGEST_POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Waits until the condition holds; panics with the caller's line if it doesn't within the limit.
#[track_caller]
pub(crate) fn wait_until(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        let waited = begun.elapsed();
        assert!(waited < limit, "not within {limit:?}: {what}");
        // Polls less often the longer it takes. Each poll costs CPU time, and a dozen tests that wait could use
        // up all of it.
        thread::sleep((waited / 10).clamp(POLL_INTERVAL, LONGEST_POLL_INTERVAL));
    }
}

/// Like [`wait_until`], for a condition that returns a value.
#[track_caller]
pub(crate) fn wait_for<T>(limit: Duration, what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    wait_until(limit, what, || {
        found = find();
        found.is_some()
    });
    found.expect("wait_until returned, so the condition held")
}

/// Panics if the condition stops holding within the period. Only for what no later event can prove,
/// such as the absence of a request that must never arrive.
#[track_caller]
pub(crate) fn holds_for(period: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + period;
    while Instant::now() < end {
        assert!(holds(), "ceased to hold: {what}");
        thread::sleep(LONGEST_POLL_INTERVAL);
    }
}
