//! A receiver answers 503 for ten seconds while events for it arrive, and a healthy one next to it: how
//! soon its recovery is noticed, how soon it has everything, and how many requests it got meanwhile.

use std::time::Duration;

use super::one_receiver::Case;
use crate::{
    neighbours::OTHERS,
    receiver::{Answer, Behaviour},
    report::{Report, Target},
    settings::Settings,
};

const AWAY: Duration = Duration::from_secs(10);

const CASE: Case = Case {
    name: "outage",
    behaviour: Behaviour::Away(AWAY),
    kind: "invoice.late",
    per_second: 200,
    seconds: 40,
    neighbour_per_second: 50,
    alone_seconds: 20,
    timeout: Duration::from_secs(60),
};

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let Case { per_second, seconds, .. } = CASE;
    println!("503 for {AWAY:?}; {per_second} events/s for {seconds} s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(report)).collect();
    report.figures(
        "outage",
        &rounds,
        &[
            ("s from its recovery to the first success", Target::AtMost(3.0), |round| {
                round.noticed
            }),
            ("s from its recovery until it has caught up", Target::AtMost(8.0), |round| {
                round.caught_up
            }),
            ("requests answered 503", Target::AtMost(700.0), |round| round.refused),
        ],
    );
    let pairs: Vec<_> = rounds.iter().map(|round| round.p99).collect();
    report.ratio("outage: p99 ms of a healthy one", Target::TWICE, &pairs);
}

struct Round {
    noticed: f64,
    caught_up: f64,
    refused: f64,
    /// The healthy receiver's, next to the other one and alone.
    p99: (f64, f64),
}

fn measure(report: &mut Report) -> Round {
    let results = CASE.measure(report);
    let (log, complete, ended) = (results.log, results.complete, results.ended);
    let events = CASE.events();
    let first = results.receiver.first_request().expect("it gets events from the start");
    let back = first + u64::try_from(AWAY.as_nanos()).expect("seconds");
    let since = |at: u64| Duration::from_nanos(at.saturating_sub(back)).as_secs_f64();
    let deliveries = log.deliveries();
    let noticed = since(deliveries.first().map_or(ended, |delivery| delivery.at));
    let waited: Vec<_> = deliveries.iter().filter(|delivery| delivery.sent < back).collect();
    // The events that were published during the outage have the numbers below those.
    let after = deliveries.iter().filter(|delivery| delivery.sent >= back);
    let expected = after.map(|delivery| delivery.event).min().unwrap_or(OTHERS + events) - OTHERS;
    let has_all = complete || waited.len() >= expected as usize;
    let last = waited.iter().map(|delivery| delivery.at).max();
    let caught_up = since(if has_all { last.unwrap_or(ended) } else { ended });
    let all = since(deliveries.last().filter(|_| complete).map_or(ended, |delivery| delivery.at));
    let unavailable = |answer| answer == Answer::Unavailable;
    let refused = log.receipts().iter().filter(|receipt| unavailable(receipt.answer)).count();
    println!(
        "  first success {noticed:.2} s after its recovery; of the events published before, {} are delivered after {caught_up:.1} s{}; of all {events}, {} after {all:.1} s; {refused} requests answered 503",
        waited.len(),
        if has_all { "" } else { " (not all)" },
        deliveries.len(),
    );
    Round { noticed, caught_up, refused: refused as f64, p99: results.healthy_p99 }
}
