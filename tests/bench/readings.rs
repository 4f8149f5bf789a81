//! Readings of what a notifier and its broker have done so far, and of their CPU time.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use crate::{harness::Notifier, measure::processor_time};

pub(crate) struct Reading {
    at: Instant,
    received: f64,
    deferrals: f64,
    failures: f64,
    notifier: Duration,
    broker: Duration,
}

/// The difference of two readings.
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    /// Messages that the lanes received.
    pub(crate) received: f64,
    /// How often deliveries were deferred: held before an attempt, or parked after one that failed.
    pub(crate) deferrals: f64,
    pub(crate) failures: f64,
    /// CPU time, in percent of a core.
    pub(crate) notifier: f64,
    pub(crate) broker: f64,
}

impl Reading {
    pub(crate) fn take(notifier: &Notifier, broker: u32) -> Self {
        let metrics = notifier.metrics();
        let sum = |name| metrics.sum(name, &[]);
        Self {
            at: Instant::now(),
            received: sum("webhook_events_received_total"),
            deferrals: sum("webhook_deliveries_held_total")
                + sum("webhook_retries_scheduled_total"),
            failures: sum("webhook_request_failure_total"),
            notifier: processor_time(notifier.id()),
            broker: processor_time(broker),
        }
    }

    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let percent = |used: Duration| used.as_secs_f64() / seconds * 100.0;
        Spent {
            seconds,
            received: self.received - earlier.received,
            deferrals: self.deferrals - earlier.deferrals,
            failures: self.failures - earlier.failures,
            notifier: percent(self.notifier - earlier.notifier),
            broker: percent(self.broker - earlier.broker),
        }
    }
}

impl Spent {
    /// The deferrals, relative to the maximum that these events need: one each, and one more after each
    /// failed attempt.
    pub(crate) fn relative_deferrals(&self, events: u32) -> f64 {
        self.deferrals / (f64::from(events) + self.failures)
    }
}

/// The private broker's process, as reported by services.sh.
pub(crate) fn broker_pid() -> u32 {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh"))
        .args(["rabbitmqctl", "eval", "os:getpid()."])
        .output()
        .expect("scripts/services.sh can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let pid = text.trim().trim_matches('"').parse().unwrap_or_else(|_| panic!("{output:?}"));
    assert!(fs::exists(format!("/proc/{pid}")).unwrap_or(false), "no process {pid}");
    pid
}
