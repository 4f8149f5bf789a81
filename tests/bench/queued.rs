//! The throughput to a healthy receiver whose events are queued: a baseline for one that recovers while
//! its events wait.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load, raw_loop,
    receiver::{Behaviour, Log, Receipt, Receiver},
    report::Report,
    subject::{self, Setting},
};

const KIND: &str = "invoice.queued";

/// Far more than it takes.
const TIMEOUT: Duration = Duration::from_secs(300);

/// More connections than the notifier has to one receiver with its default capacity.
const CONNECTIONS: u32 = 64;

/// Deliveries per second to a receiver that takes `latency` for each answer.
pub(crate) fn measure(events: u32, latency: Duration, report: &mut Report) -> f64 {
    raw_loop::measure_receiver(Behaviour::Slow(latency), CONNECTIONS, 100);
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Slow(latency), &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..events, KIND);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    log.wait(events as usize, TIMEOUT);
    report.require_complete("queued for a healthy receiver", log.differences(0..events));
    notifier.terminate();
    let per_second = per_second(&log.deliveries());
    println!("  {events} events queued for a healthy receiver: {per_second:.0} deliveries/s");
    per_second
}

/// Deliveries per second, from the first delivery to the last.
pub(crate) fn per_second(deliveries: &[Receipt]) -> f64 {
    let times = || deliveries.iter().map(|delivery| delivery.at);
    let (Some(first), Some(last)) = (times().min(), times().max()) else { return 0.0 };
    let took = Duration::from_nanos(last - first).as_secs_f64();
    (deliveries.len() - 1) as f64 / took.max(1e-3)
}
