//! How bad receivers affect healthy ones on the same lane.
//!
//! Ten webhooks, each with its own event type, get equal shares of a steady load. In one case, two of them
//! accept connections and never answer, and one answers after two seconds; in the other, all are healthy.
//! The same seven are measured in both cases, from the first event on. An event that hasn't arrived in time
//! counts with the duration of the wait.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const WEBHOOKS: u32 = 10;
const HEALTHY: u32 = 7;
/// The behaviour of the other three.
const BAD: [Behaviour; 3] =
    [Behaviour::Silent, Behaviour::Silent, Behaviour::Slow(Duration::from_secs(2))];

const PER_SECOND: u32 = 120;
const SECONDS: u32 = 40;

/// How long the last healthy events may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{PER_SECOND} events/s for {SECONDS} s");
    for (setting, target) in
        [(Setting::DEFAULT, Target::AtMost(1.5)), (Setting::prefetch(64), Target::TWICE)]
    {
        let mut round = || (measure(setting, true, report), measure(setting, false, report));
        let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
        report.ratios(
            &format!("isolation, {setting}"),
            &rounds,
            &[
                ("p50 ms", Target::None, |latency| latency.p50),
                ("p99 ms", target, |latency| latency.p99),
                ("max ms", Target::None, |latency| latency.max),
            ],
        );
    }
}

/// The latencies of the healthy receivers.
fn measure(setting: Setting, with_bad: bool, report: &mut Report) -> Latency {
    let sandbox = Sandbox::new();
    let (healthy, others) = (Log::new(), Log::new());
    let kinds: Vec<_> = (0..WEBHOOKS).map(|webhook| format!("isolation.{webhook}")).collect();
    let receivers: Vec<_> = (0..WEBHOOKS)
        .map(|webhook| match webhook.checked_sub(HEALTHY) {
            Some(bad) if with_bad => Receiver::start(BAD[bad as usize], &others),
            Some(_) => Receiver::start(Behaviour::Prompt, &others),
            None => Receiver::start(Behaviour::Prompt, &healthy),
        })
        .collect();
    for (webhook, (receiver, kind)) in (0..).zip(receivers.iter().zip(&kinds)) {
        sandbox.webhook(&receiver.url(webhook), &[kind]);
    }
    let notifier = subject::notifier(&sandbox, setting).start();

    let address = |number| {
        let kind = &kinds[(number % WEBHOOKS) as usize];
        (number < SECONDS * PER_SECOND).then_some((sandbox.queue(), kind.as_str()))
    };
    let published = load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
    let expected: Vec<_> =
        (0..published.count).filter(|number| number % WEBHOOKS < HEALTHY).collect();
    healthy.wait(expected.len(), PATIENCE);
    let differences = healthy.differences(expected.iter().copied());
    // It holds messages for the bad receivers, which are deleted with their queue.
    notifier.kill();

    let case = if with_bad { "with the bad ones" } else { "without them" };
    let whose = format!("isolation, {setting}, {case}: healthy receivers");
    if with_bad {
        report.require_no_repeats(&whose, differences);
    } else {
        report.require_complete(&whose, differences);
    }
    let missing = std::iter::repeat_n(PATIENCE, differences.missing);
    let missing = missing.map(|patience| u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
    let receipts = healthy.receipts();
    let latency = Latency::of(receipts.iter().map(|receipt| receipt.latency()).chain(missing));
    println!(
        "  {setting}, {case:17}  {latency}  ({published}; {} of {} missing)",
        differences.missing,
        expected.len()
    );
    latency
}
