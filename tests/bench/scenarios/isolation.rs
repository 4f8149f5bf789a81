//! The effect of bad receivers on the healthy ones, on the same lane.
//!
//! Ten webhooks, each for its own event type, get equal shares of a steady load. With the bad ones, two
//! of them accept and never answer, and one answers after two seconds; without them, all are healthy.
//! The same seven are measured in both cases, from the first event on. An event that hasn't arrived when
//! the wait is over counts as that long.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Limit, Report},
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
    let rounds = settings.rounds(1);
    println!("{PER_SECOND} events/s for {SECONDS} s");
    for (setting, limit) in
        [(Setting::DEFAULT, Limit::AtMost(1.5)), (Setting::prefetch(64), Limit::TWICE)]
    {
        let mut round = || (measure(setting, true, report), measure(setting, false, report));
        let rounds: Vec<_> = (0..rounds).map(|_| round()).collect();
        let pairs = |of: fn(&Latency) -> f64| -> Vec<_> {
            rounds.iter().map(|(with, without)| (of(with), of(without))).collect()
        };
        let figure = |name: &str| format!("isolation, {setting}: {name} ms");
        report.ratio(&figure("p50"), Limit::None, &pairs(|latency| latency.p50));
        report.ratio(&figure("p99"), limit, &pairs(|latency| latency.p99));
        report.ratio(&figure("max"), Limit::None, &pairs(|latency| latency.max));
    }
}

/// The latencies of the healthy ones.
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
    let account = healthy.account(expected.iter().copied());
    // It holds the bad ones' messages, which are deleted with their queue.
    notifier.kill();

    let case = if with_bad { "with the bad ones" } else { "without them" };
    let is_right = if with_bad { account.may_become_right() } else { account.is_right() };
    if !is_right {
        report
            .wrong(format!("isolation, {setting}, {case}: of the healthy ones' events {account}"));
    }
    let missing = std::iter::repeat_n(PATIENCE, account.missing);
    let missing = missing.map(|patience| u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX));
    let receipts = healthy.receipts();
    let latency = Latency::of(receipts.iter().map(|receipt| receipt.latency()).chain(missing));
    println!(
        "  {setting}, {case:17}  {latency}  ({published}; {} of {} not in time)",
        account.missing,
        expected.len()
    );
    latency
}
