//! From publishing to receipt, at a steady rate that keeps nobody busy.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Limit, Report},
    settings::Settings,
    subject::{Setting, Side, Subject, in_turns},
};

const KIND: &str = "invoice.paid";
const PER_SECOND: u32 = 100;
/// Twenty seconds of them.
const EVENTS: u32 = 20 * PER_SECOND;

/// Far above what the last of them takes.
const LIMIT: Duration = Duration::from_secs(30);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    compare(settings.rounds(5), Side::BareLoop, Limit::AtMost(1.3), report);
}

pub(super) fn compare(rounds: usize, other: Side, p99: Limit, report: &mut Report) {
    println!("{PER_SECOND} events/s, {EVENTS} of them; default configuration");
    let rounds = in_turns(rounds, other, |side| measure(side, report));
    let pairs = |of: fn(&Latency) -> f64| -> Vec<_> {
        rounds.iter().map(|(ours, other)| (of(ours), of(other))).collect()
    };
    report.ratio("latency: p50 ms", Limit::None, &pairs(|latency| latency.p50));
    report.ratio("latency: p99 ms", p99, &pairs(|latency| latency.p99));
    report.ratio("latency: p99.9 ms", Limit::None, &pairs(|latency| latency.p999));
}

fn measure(side: Side, report: &mut Report) -> Latency {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut subject = Subject::start(side, &sandbox, Setting::DEFAULT, &receiver.url(0));
    subject.wait_ready();
    let address = |number| (number < EVENTS).then_some((sandbox.queue(), KIND));
    let published = load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
    log.wait(EVENTS as usize, LIMIT);
    let account = log.account(0..EVENTS);
    if !account.is_right() {
        report.wrong(format!("{side}: {account}"));
    }
    for problem in subject.stop(&sandbox) {
        report.wrong(problem);
    }
    let latency = Latency::of(log.receipts().iter().map(|receipt| receipt.latency()));
    println!("  {side:9}  {latency}  ({published})");
    latency
}
