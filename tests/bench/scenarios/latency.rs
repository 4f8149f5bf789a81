//! The latency from publishing to receipt, at a steady rate, compared with the bare loop.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{Channels, Setting, Side, Subject, in_turns},
};

const KIND: &str = "invoice.paid";
/// A rate, the number of events, and the target of the 99th percentile.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    per_second: u32,
    events: u32,
    p99: Target,
}

/// Twelve seconds of low load, and five of high load.
pub(super) const CALM: Pace = Pace { per_second: 100, events: 1_200, p99: Target::None };
const BUSY: Pace = Pace { per_second: 1_000, events: 5_000, p99: Target::AtMost(1.3) };

/// Far more than the last event takes.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    for pace in [Pace { p99: Target::AtMost(1.2), ..CALM }, BUSY] {
        compare(settings.rounds(5), Side::BareLoop(Channels::ONE), pace, report);
    }
}

pub(super) fn compare(rounds: usize, other: Side, pace: Pace, report: &mut Report) {
    let Pace { per_second, events, p99 } = pace;
    println!("{per_second} events/s, {events} of them; default configuration");
    let ours = Side::Notifier(Setting::DEFAULT);
    let rounds = in_turns(rounds, ours, other, |side| measure(side, pace, report));
    report.ratios(
        &format!("latency at {per_second}/s"),
        &rounds,
        &[
            ("p50 ms", Target::None, |latency| latency.p50),
            ("p99 ms", p99, |latency| latency.p99),
            ("p99.9 ms", Target::None, |latency| latency.p999),
        ],
    );
}

fn measure(side: Side, pace: Pace, report: &mut Report) -> Latency {
    let Pace { per_second, events, .. } = pace;
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut subject = Subject::start(side, &sandbox, &receiver.url(0));
    subject.wait_ready();
    let address = |number| (number < events).then_some((sandbox.queue(), KIND));
    let published = load::steadily(&sandbox.servers.amqp_url, per_second, address);
    log.wait(events as usize, TIMEOUT);
    report.require_complete(&side.to_string(), log.differences(0..events));
    subject.stop(&sandbox, report);
    let latency = Latency::of(log.deliveries().iter().map(|receipt| receipt.latency()));
    println!("  {side:9}  {latency}  ({published})");
    latency
}
