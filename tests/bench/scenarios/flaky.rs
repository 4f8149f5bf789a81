//! A receiver that fails three of ten requests at random, and a healthy one next to it.

use std::{collections::HashMap, time::Duration};

use crate::{
    harness::Sandbox,
    load,
    neighbours::{self, Neighbours, OTHERS},
    receiver::{Behaviour, Log, Receiver},
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

const PERCENT: u64 = 30;
const PER_SECOND: u32 = 100;
const NEIGHBOUR_PER_SECOND: u32 = 30;
const SECONDS: u32 = 60;
const EVENTS: u32 = PER_SECOND * SECONDS;
const KIND: &str = "invoice.flaky";

/// How long the last retries may take: five in a row, by the default schedule.
const LIMIT: Duration = Duration::from_secs(40);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{PERCENT} % of the requests fail; {PER_SECOND} events/s for {SECONDS} s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(report)).collect();
    let all = |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(of).collect() };
    for (figure, limit, of) in [
        ("share within 1 s", Limit::AtLeast(0.68), (|round| round.within_1s) as fn(&Round) -> f64),
        ("share within 8 s", Limit::AtLeast(0.97), |round| round.within_8s),
        ("share at the end", Limit::None, |round| round.at_the_end),
        ("times its circuit breaker opened", Limit::AtMost(0.0), |round| round.opened),
    ] {
        report.figure(&format!("flaky: {figure}"), limit, &all(of));
    }
    let pairs: Vec<_> = rounds.iter().map(|round| round.p99).collect();
    report.ratio("flaky: p99 ms of a healthy one", Limit::TWICE, &pairs);
}

struct Round {
    within_1s: f64,
    within_8s: f64,
    at_the_end: f64,
    opened: f64,
    /// With the other, and alone.
    p99: (f64, f64),
}

fn measure(report: &mut Report) -> Round {
    let setting = Setting::DEFAULT;
    let alone = neighbours::alone(1, NEIGHBOUR_PER_SECOND, 30, setting, report);
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Flaky(PERCENT), &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut neighbours = Neighbours::start(&sandbox, 1);
    let notifier = subject::notifier(&sandbox, setting).start();
    neighbours.prove(&sandbox);

    let (_, published) = neighbours.load_beside(&sandbox, NEIGHBOUR_PER_SECOND, || {
        let address = |number| (number < OTHERS + EVENTS).then_some((sandbox.queue(), KIND));
        load::steadily_from(OTHERS, &sandbox.servers.amqp_url, PER_SECOND, address)
    });
    let beside = neighbours.notice("beside the flaky one", published, report).latency;
    log.wait(EVENTS as usize, LIMIT);
    let opened = notifier.metric("webhook_circuit_breaker_transitions_total", &[("state", "open")]);
    let account = log.account(OTHERS..OTHERS + EVENTS);
    if !account.may_become_right() {
        report.wrong(format!("flaky: {account}"));
    }
    // It may hold events that wait for their next attempt; they are deleted with their queue.
    notifier.kill();

    let deliveries = log.deliveries();
    let within = |limit: Duration| {
        let in_time = |latency: u64| Duration::from_nanos(latency) <= limit;
        let count = deliveries.iter().filter(|delivery| in_time(delivery.latency())).count();
        count as f64 / f64::from(EVENTS)
    };
    let mut attempts: HashMap<u32, usize> = HashMap::new();
    for receipt in log.receipts() {
        *attempts.entry(receipt.event).or_default() += 1;
    }
    let round = Round {
        within_1s: within(Duration::from_secs(1)),
        within_8s: within(Duration::from_secs(8)),
        at_the_end: deliveries.len() as f64 / f64::from(EVENTS),
        opened,
        p99: (beside.p99, alone.p99),
    };
    println!(
        "  delivered within 1 s: {:.3}, within 8 s: {:.3}, at the end: {:.3}; {} events attempted, {} requests; the circuit breaker opened {opened} times",
        round.within_1s,
        round.within_8s,
        round.at_the_end,
        attempts.len(),
        attempts.values().sum::<usize>(),
    );
    round
}
