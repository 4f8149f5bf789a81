//! How a long low_priority queue affects high_priority, with the default configuration: low_priority
//! contains events for a receiver that takes two seconds, for one that never answers, and for prompt ones.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load::{self, Producer},
    measure::Latency,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
};

const PER_SECOND: u32 = 50;
const SECONDS: u32 = 20;
const EVENTS: u32 = PER_SECOND * SECONDS;

/// Enough that 100,000 wait all the time.
const BACKLOG_AT_START: u32 = 200_000;

const KIND: &str = "invoice.paid";

/// The receivers of low_priority's events, each with its own event type: of ten events, one is for the slow
/// receiver, one for the dead one, and the rest for prompt ones.
const LOW: [(Behaviour, &str); 10] = [
    (Behaviour::Slow(Duration::from_secs(2)), "report.slow"),
    (Behaviour::Silent, "report.dead"),
    (Behaviour::Prompt, "report.2"),
    (Behaviour::Prompt, "report.3"),
    (Behaviour::Prompt, "report.4"),
    (Behaviour::Prompt, "report.5"),
    (Behaviour::Prompt, "report.6"),
    (Behaviour::Prompt, "report.7"),
    (Behaviour::Prompt, "report.8"),
    (Behaviour::Prompt, "report.9"),
];

const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "{PER_SECOND} events/s on high_priority for {SECONDS} s; {BACKLOG_AT_START} events wait on low_priority, or none"
    );
    let mut round = || (measure(BACKLOG_AT_START, report), measure(0, report));
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
    report.ratios(
        "fairness",
        &rounds,
        &[
            ("p50 ms", Target::None, |latency| latency.p50),
            ("p99 ms", Target::TWICE, |latency| latency.p99),
        ],
    );
}

/// The latencies of high_priority.
fn measure(backlog: u32, report: &mut Report) -> Latency {
    let sandbox = Sandbox::with_queues(3);
    let [high, _, low] = &sandbox.queues[..] else { panic!("three queues were asked for") };
    let (log, low_log) = (Log::new(), Log::new());
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let low_receivers = LOW.map(|(behaviour, kind)| {
        let receiver = Receiver::start(behaviour, &low_log);
        sandbox.webhook(&receiver.url(0), &[kind]);
        receiver
    });
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    for number in EVENTS..EVENTS + backlog {
        let (_, kind) = LOW[number as usize % LOW.len()];
        producer.publish(low, number, kind);
    }
    producer.settle();
    let notifier = sandbox.notifier().start();
    if backlog > 0 {
        low_log.wait(1, TIMEOUT);
    }

    let address = |number| (number < EVENTS).then_some((high.as_str(), KIND));
    let published = load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
    log.wait(EVENTS as usize, TIMEOUT);
    let left = sandbox.broker.ready(low).unwrap_or(0);
    report.require_complete("fairness", log.differences(0..EVENTS));
    // Events that still wait on low_priority are deleted with their queue.
    notifier.kill();
    drop(low_receivers);
    let latency = Latency::of(log.deliveries().iter().map(|receipt| receipt.latency()));
    println!("  {latency}  ({published}; {left} wait on low_priority at the end)");
    if backlog > 0 && left < 100_000 {
        println!("  fewer than 100,000 waited at the end: this figure is too good");
    }
    latency
}
