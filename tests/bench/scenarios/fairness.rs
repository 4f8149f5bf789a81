//! What a long low_priority queue does to high_priority, with the default configuration: three
//! lanes, a consumer and a prefetch of one each.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Limit, Report},
    settings::Settings,
};

const PER_SECOND: u32 = 50;
const SECONDS: u32 = 20;
const EVENTS: u32 = PER_SECOND * SECONDS;

/// What waits at least, all the time; and that it does, what there is at first.
const BACKLOG_AT_START: u32 = 200_000;

const KIND: &str = "invoice.paid";
const BULK: &str = "report.row";

const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "{PER_SECOND} events/s on high_priority for {SECONDS} s; {BACKLOG_AT_START} events wait on low_priority, or none"
    );
    let mut round = || (measure(BACKLOG_AT_START, report), measure(0, report));
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
    let pairs = |of: fn(&Latency) -> f64| -> Vec<_> {
        rounds.iter().map(|(busy, idle)| (of(busy), of(idle))).collect()
    };
    report.ratio("fairness: p50 ms", Limit::None, &pairs(|latency| latency.p50));
    report.ratio("fairness: p99 ms", Limit::AtMost(3.0), &pairs(|latency| latency.p99));
}

/// What high_priority sees.
fn measure(backlog: u32, report: &mut Report) -> Latency {
    let sandbox = Sandbox::with_queues(3);
    let [high, _, low] = &sandbox.queues[..] else { panic!("three queues were asked for") };
    let (log, bulk_log) = (Log::new(), Log::new());
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    let bulk_receiver = Receiver::start(Behaviour::Prompt, &bulk_log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    sandbox.webhook(&bulk_receiver.url(0), &[BULK]);
    load::fill(&sandbox.servers.amqp_url, low, 0..backlog, BULK);
    let notifier = sandbox.notifier().start();
    if backlog > 0 {
        bulk_log.wait(1, LIMIT);
    }

    let address = |number| (number < EVENTS).then_some((high.as_str(), KIND));
    let published = load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
    log.wait(EVENTS as usize, LIMIT);
    let left = sandbox.broker.ready(low).unwrap_or(0);
    let account = log.account(0..EVENTS);
    if !account.is_right() {
        report.wrong(format!("fairness: {account}"));
    }
    // What still waits on low_priority ends with its queue.
    notifier.kill();
    let latency = Latency::of(log.receipts().iter().map(|receipt| receipt.latency()));
    println!("  {latency}  ({published}; {left} wait on low_priority at the end)");
    if backlog > 0 && left == 0 {
        println!("  low_priority was empty before the end: this shows less than it should");
    }
    latency
}
