//! A receiver that takes ten requests per second, by its webhook's limit, and gets a hundred seconds'
//! events at once: how evenly, in which order, and at which cost they are delivered.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    order::Order,
    queued,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receipt, Receiver, nanoseconds},
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

const RATE: u32 = 10;
const EVENTS: u32 = 1_000;
const KIND: &str = "invoice.paced";
const LATENCY: Duration = Duration::from_millis(10);
const WINDOW: Duration = Duration::from_secs(5);

/// In addition to the time that the rate needs.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS);
    println!("{events} events at once for a receiver that takes {RATE}/s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(events, report)).collect();
    let all = |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(of).collect() };
    for (figure, limit, of) in [
        (
            "deliveries/s in the emptiest 5 s",
            Limit::AtLeast(9.5),
            (|round| round.fewest) as fn(&Round) -> f64,
        ),
        ("deliveries/s in the fullest 5 s", Limit::AtMost(10.5), |round| round.most),
        ("% of events out of order", Limit::AtMost(0.1), |round| round.overtaken),
        ("times put aside, per event and failed attempt", Limit::AtMost(1.0), |round| round.moves),
        ("events missing at the end", Limit::AtMost(0.0), |round| round.missing),
    ] {
        report.figure(&format!("rate: {figure}"), limit, &all(of));
    }
}

struct Round {
    fewest: f64,
    most: f64,
    overtaken: f64,
    moves: f64,
    missing: f64,
}

fn measure(events: u32, report: &mut Report) -> Round {
    queued::measure(events, LATENCY, report);
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Slow(LATENCY), &log);
    let id = sandbox.webhook(&receiver.url(0), &[KIND]);
    let limit = "UPDATE webhooks SET rate_per_second = $2 WHERE id = $1";
    sandbox.database.execute(limit, &[&id, &f64::from(RATE)]);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    let before = Reading::take(&notifier, broker);
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..events, KIND);
    log.wait(events as usize, Duration::from_secs(1) * events / RATE + LIMIT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let account = log.account(0..events);
    if !account.may_become_right() {
        report.wrong(format!("rate: {account}"));
    }
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let deliveries = log.deliveries();
    let (fewest, most) = windows(&deliveries);
    let order = Order::of(&log.receipts(), LATENCY);
    println!(
        "  {fewest:.1} to {most:.1} deliveries/s; put aside {:.0} times; {} missing; {order}",
        spent.entries, account.missing
    );
    let missing = account.missing as f64;
    Round {
        fewest,
        most,
        overtaken: order.overtaken_percent(),
        moves: spent.moves(events),
        missing,
    }
}

/// The least and the most deliveries per second in any [`WINDOW`]; windows follow one another, and the
/// first and the last, which is incomplete, don't count.
fn windows(deliveries: &[Receipt]) -> (f64, f64) {
    let (Some(first), Some(last)) = (deliveries.first(), deliveries.last()) else {
        return (0.0, 0.0);
    };
    let window = |at: u64| ((at - first.at) / nanoseconds(WINDOW)) as usize;
    let mut counts = vec![0_u32; window(last.at) + 1];
    for delivery in deliveries {
        counts[window(delivery.at.max(first.at))] += 1;
    }
    counts.pop();
    let per_second = |count: &u32| f64::from(*count) / WINDOW.as_secs_f64();
    let rates = || counts.iter().skip(1).map(per_second);
    (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max))
}
