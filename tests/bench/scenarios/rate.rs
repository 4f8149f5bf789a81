//! A webhook with a limit of ten requests per second gets the events of a hundred seconds at once: how
//! evenly, in which order, and at which cost they are delivered.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    order::Order,
    queued,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receipt, Receiver, nanoseconds},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const RATE: u32 = 10;
const EVENTS: u32 = 1_000;
const KIND: &str = "invoice.paced";
const LATENCY: Duration = Duration::from_millis(10);
const WINDOW: Duration = Duration::from_secs(5);

/// For four windows: the first and the last don't count, and without others there would be no rates.
const LEAST_EVENTS: u32 = 4 * RATE * WINDOW.as_secs() as u32;

/// The run waits as long as the deliveries take at this rate, plus this.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS).max(LEAST_EVENTS);
    println!("{events} events at once for a webhook with a limit of {RATE}/s");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(events, report)).collect();
    report.figures(
        "rate",
        &rounds,
        &[
            ("deliveries/s in the slowest 5 s", Target::AtLeast(9.5), |round| round.slowest),
            ("deliveries/s in the fastest 5 s", Target::AtMost(10.5), |round| round.fastest),
            ("% of events out of order", Target::AtMost(0.1), |round| round.overtaken),
            ("deferrals per event and failed attempt", Target::AtMost(1.0), |round| {
                round.deferrals
            }),
            ("events missing at the end", Target::AtMost(0.0), |round| round.missing),
        ],
    );
}

struct Round {
    slowest: f64,
    fastest: f64,
    overtaken: f64,
    deferrals: f64,
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
    log.wait(events as usize, Duration::from_secs(1) * events / RATE + TIMEOUT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let differences = log.differences(0..events);
    report.require_no_repeats("rate", differences);
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let deliveries = log.deliveries();
    let (slowest, fastest) = extreme_rates(&deliveries);
    let order = Order::of(&log.receipts(), LATENCY);
    println!(
        "  {slowest:.1} to {fastest:.1} deliveries/s; {:.0} deferrals; {} missing; {order}",
        spent.deferrals, differences.missing
    );
    let missing = differences.missing as f64;
    Round {
        slowest,
        fastest,
        overtaken: order.overtaken_percent(),
        deferrals: spent.relative_deferrals(events),
        missing,
    }
}

/// The lowest and the highest rate of deliveries per second in consecutive windows of [`WINDOW`], without the
/// first window and the last, which is incomplete.
fn extreme_rates(deliveries: &[Receipt]) -> (f64, f64) {
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
