//! A receiver that fails three of ten requests at random, and a healthy one next to it.

use std::{collections::HashMap, time::Duration};

use super::one_receiver::Case;
use crate::{
    receiver::Behaviour,
    report::{Report, Target},
    settings::Settings,
};

const PERCENT: u64 = 30;

const CASE: Case = Case {
    name: "flaky",
    behaviour: Behaviour::Flaky(PERCENT),
    kind: "invoice.flaky",
    per_second: 100,
    seconds: 60,
    neighbour_per_second: 30,
    alone_seconds: 30,
    // For five retries in a row, by the default schedule.
    timeout: Duration::from_secs(40),
};

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let Case { per_second, seconds, .. } = CASE;
    println!("{PERCENT} % of the requests fail; {per_second} events/s for {seconds} s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(report)).collect();
    report.figures(
        "flaky",
        &rounds,
        &[
            ("share within 1 s", Target::AtLeast(0.68), |round| round.within_1s),
            ("share within 8 s", Target::AtLeast(0.97), |round| round.within_8s),
            ("share at the end", Target::None, |round| round.at_the_end),
            ("times its circuit breaker opened", Target::AtMost(0.0), |round| round.opened),
        ],
    );
    let pairs: Vec<_> = rounds.iter().map(|round| round.p99).collect();
    report.ratio("flaky: p99 ms of a healthy one", Target::TWICE, &pairs);
}

struct Round {
    within_1s: f64,
    within_8s: f64,
    at_the_end: f64,
    opened: f64,
    /// The healthy receiver's, next to the flaky one and alone.
    p99: (f64, f64),
}

fn measure(report: &mut Report) -> Round {
    let results = CASE.measure(report);
    let (opened, p99) = (results.breaker_openings, results.healthy_p99);
    let deliveries = results.log.deliveries();
    let events = f64::from(CASE.events());
    let within = |time: Duration| {
        let in_time = |latency: u64| Duration::from_nanos(latency) <= time;
        let count = deliveries.iter().filter(|delivery| in_time(delivery.latency())).count();
        count as f64 / events
    };
    let mut attempts: HashMap<u32, usize> = HashMap::new();
    for receipt in results.log.receipts() {
        *attempts.entry(receipt.event).or_default() += 1;
    }
    let round = Round {
        within_1s: within(Duration::from_secs(1)),
        within_8s: within(Duration::from_secs(8)),
        at_the_end: deliveries.len() as f64 / events,
        opened,
        p99,
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
