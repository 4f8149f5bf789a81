//! One event for 64 webhooks whose receivers accept connections and never answer: how it affects healthy
//! receivers that have answered before, and healthy ones that haven't.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    harness::Sandbox,
    load::Producer,
    measure::Latency,
    neighbours::{self, Neighbours, OTHERS},
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const HANGING: u8 = 64;
const HEALTHY: u32 = 8;
const PER_SECOND: u32 = 50;
const SECONDS: u32 = 30;
const KIND: &str = "price.changed";

/// Milliseconds: the default REQUEST_TIMEOUT and a second more.
const MAX_IF_UNPROVEN: f64 = 11_000.0;

/// How soon all hanging receivers have got the event, if they get it at once.
const SOON: Duration = Duration::from_secs(1);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "one event for {HANGING} receivers that never answer, then {PER_SECOND} events/s for {HEALTHY} healthy ones, {SECONDS} s"
    );
    let round = |_| {
        let alone = neighbours::alone(HEALTHY, PER_SECOND, SECONDS, Setting::DEFAULT, report);
        [alone, measure(true, report), measure(false, report)]
    };
    let rounds: Vec<_> = (0..settings.rounds(1)).map(round).collect();
    let pairs: Vec<_> = rounds.iter().map(|[alone, proven, _]| (proven.p99, alone.p99)).collect();
    report.ratio("hung-event: p99 ms of healthy receivers", Target::TWICE, &pairs);
    report.figures(
        "hung-event",
        &rounds,
        &[
            ("max ms of healthy receivers", Target::AtMost(500.0), |[_, proven, _]| proven.max),
            ("max ms if none has answered before", Target::AtMost(MAX_IF_UNPROVEN), |round| {
                round[2].max
            }),
        ],
    );
}

/// The latencies of the healthy receivers.
fn measure(proven: bool, report: &mut Report) -> Latency {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let hanging = (1..=HANGING).map(|number| {
        let receiver = Receiver::on(Ipv4Addr::new(127, 0, 3, number), Behaviour::Silent, &log);
        sandbox.webhook(&receiver.url(u32::from(number)), &[KIND]);
        receiver
    });
    let hanging: Vec<_> = hanging.collect();
    let mut neighbours = Neighbours::start(&sandbox, HEALTHY);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    if proven {
        neighbours.prove(&sandbox);
    }
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    producer.publish(sandbox.queue(), OTHERS, KIND);
    producer.settle();
    log.wait_requests(hanging.len(), SOON);
    let at_once = log.receipts().len();
    let published = neighbours.load(&sandbox, PER_SECOND, |sent| sent < PER_SECOND * SECONDS);
    let case = if proven { "have answered before" } else { "none has answered before" };
    let latency = neighbours.observe(case, published, report).latency;
    println!("  the {HANGING} got {at_once} requests at once, {} in all", log.receipts().len());
    notifier.kill();
    latency
}
