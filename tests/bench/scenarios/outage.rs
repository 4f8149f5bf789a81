//! A receiver answers 503 for ten seconds while events for it arrive, and a healthy one next to it: how
//! soon its return is noticed, how soon it has everything, and how many requests it got meanwhile.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::now,
    neighbours::{self, Neighbours, OTHERS},
    receiver::{Answer, Behaviour, Log, Receiver},
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

const AWAY: Duration = Duration::from_secs(10);
const PER_SECOND: u32 = 200;
const NEIGHBOUR_PER_SECOND: u32 = 50;
const SECONDS: u32 = 40;
const EVENTS: u32 = PER_SECOND * SECONDS;
const KIND: &str = "invoice.late";

/// After the last event.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("503 for {AWAY:?}; {PER_SECOND} events/s for {SECONDS} s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(report)).collect();
    let all = |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(of).collect() };
    for (figure, limit, of) in [
        (
            "s from its return to the first success",
            Limit::AtMost(3.0),
            (|round| round.noticed) as fn(&Round) -> f64,
        ),
        ("s from its return until it has caught up", Limit::AtMost(8.0), |round| round.caught_up),
        ("requests answered 503", Limit::AtMost(700.0), |round| round.refused),
    ] {
        report.figure(&format!("outage: {figure}"), limit, &all(of));
    }
    let pairs: Vec<_> = rounds.iter().map(|round| round.p99).collect();
    report.ratio("outage: p99 ms of a healthy one", Limit::TWICE, &pairs);
}

struct Round {
    noticed: f64,
    caught_up: f64,
    refused: f64,
    /// With the other, and alone.
    p99: (f64, f64),
}

fn measure(report: &mut Report) -> Round {
    let setting = Setting::DEFAULT;
    let alone = neighbours::alone(1, NEIGHBOUR_PER_SECOND, 20, setting, report);
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Away(AWAY), &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut neighbours = Neighbours::start(&sandbox, 1);
    let notifier = subject::notifier(&sandbox, setting).start();
    neighbours.prove(&sandbox);

    let (_, published) = neighbours.load_beside(&sandbox, NEIGHBOUR_PER_SECOND, || {
        let address = |number| (number < OTHERS + EVENTS).then_some((sandbox.queue(), KIND));
        load::steadily_from(OTHERS, &sandbox.servers.amqp_url, PER_SECOND, address)
    });
    let beside = neighbours.notice("beside the one that was away", published, report).latency;
    let complete = log.wait(EVENTS as usize, LIMIT);
    let ended = now();
    let account = log.account(OTHERS..OTHERS + EVENTS);
    if !account.may_become_right() {
        report.wrong(format!("outage: {account}"));
    }
    notifier.kill();

    let first = receiver.first_request().expect("it gets events from the start on");
    let back = first + u64::try_from(AWAY.as_nanos()).expect("seconds");
    let since = |at: u64| Duration::from_nanos(at.saturating_sub(back)).as_secs_f64();
    let deliveries = log.deliveries();
    let noticed = since(deliveries.first().map_or(ended, |delivery| delivery.at));
    let waited: Vec<_> = deliveries.iter().filter(|delivery| delivery.sent < back).collect();
    // The other events have numbers from here on.
    let after = deliveries.iter().filter(|delivery| delivery.sent >= back);
    let expected = after.map(|delivery| delivery.event).min().unwrap_or(OTHERS + EVENTS) - OTHERS;
    let has_all = complete || waited.len() >= expected as usize;
    let last = waited.iter().map(|delivery| delivery.at).max();
    let caught_up = since(if has_all { last.unwrap_or(ended) } else { ended });
    let all = since(deliveries.last().filter(|_| complete).map_or(ended, |delivery| delivery.at));
    let unavailable = |answer| answer == Answer::Unavailable;
    let refused = log.receipts().iter().filter(|receipt| unavailable(receipt.answer)).count();
    println!(
        "  first success {noticed:.2} s after its return; of what was published before, {} are in after {caught_up:.1} s{}; of all {EVENTS}, {} after {all:.1} s; {refused} requests answered 503",
        waited.len(),
        if has_all { "" } else { " (not all)" },
        deliveries.len(),
    );
    Round { noticed, caught_up, refused: refused as f64, p99: (beside.p99, alone.p99) }
}
