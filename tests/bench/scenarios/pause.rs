//! A webhook is paused while events for it arrive, and then resumed: nothing is sent to it meanwhile, and
//! everything afterwards, in order.

use std::{thread, time::Duration};

use crate::{
    harness::Sandbox,
    load::{self, Producer},
    measure::now,
    neighbours::PATIENCE,
    order::Order,
    queued,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const EVENTS: u32 = 3_000;
const PER_SECOND: u32 = 50;
const KIND: &str = "invoice.paused";
const LATENCY: Duration = Duration::from_millis(10);

/// More than it takes until the notifier knows of a change to the table.
const TOLD: Duration = Duration::from_secs(2);

/// After the end of the pause.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS);
    println!("{events} events, {PER_SECOND}/s, for a paused webhook, which is resumed afterwards");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(events, report)).collect();
    report.figures(
        "pause",
        &rounds,
        &[
            ("requests while it is paused", Target::AtMost(0.0), |round| round.meanwhile),
            ("% of events out of order", Target::AtMost(0.1), |round| round.overtaken),
            ("deferrals per event and failed attempt", Target::AtMost(1.0), |round| {
                round.deferrals
            }),
            ("s from resuming it to the last delivery", Target::None, |round| round.all),
            ("events missing at the end", Target::AtMost(0.0), |round| round.missing),
        ],
    );
    let pairs: Vec<_> = rounds.iter().map(|round| round.drain).collect();
    report.ratio("pause: deliveries/s then; queued for a healthy one", Target::None, &pairs);
}

struct Round {
    meanwhile: f64,
    overtaken: f64,
    deferrals: f64,
    all: f64,
    missing: f64,
    drain: (f64, f64),
}

fn measure(events: u32, report: &mut Report) -> Round {
    let queued = queued::measure(events, LATENCY, report);
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    // If the table doesn't support pauses yet, a pause has no effect, and the figures show that.
    sandbox
        .database
        .run_script("ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS paused_at TIMESTAMPTZ");
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Slow(LATENCY), &log);
    let id = sandbox.webhook(&receiver.url(0), &[KIND]);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    // The receiver must be known as healthy.
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    producer.publish(sandbox.queue(), 0, KIND);
    producer.settle();
    if !log.wait(1, PATIENCE) {
        report.wrong("pause: the event before the pause is missing");
    }

    sandbox.database.execute("UPDATE webhooks SET paused_at = now() WHERE id = $1", &[&id]);
    thread::sleep(TOLD);
    let before = Reading::take(&notifier, broker);
    let (first, end) = (1, 1 + events);
    let address = |number| (number < end).then_some((sandbox.queue(), KIND));
    load::steadily_from(first, &sandbox.servers.amqp_url, PER_SECOND, address);
    let meanwhile = log.receipts().len() - 1;
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL WHERE id = $1", &[&id]);
    let resumed = now();
    let complete = log.wait(end as usize, TIMEOUT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let differences = log.differences(0..end);
    report.require_no_repeats("pause", differences);
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let mut deliveries = log.deliveries();
    deliveries.retain(|delivery| delivery.at >= resumed);
    let last = deliveries.last().map(|delivery| delivery.at).filter(|_| complete);
    let all = Duration::from_nanos(last.unwrap_or_else(now) - resumed).as_secs_f64();
    let order = Order::of(&log.receipts(), LATENCY);
    println!(
        "  {meanwhile} requests while it was paused; {} deliveries after that, in {all:.1} s; {:.0} deferrals; {} missing; {order}",
        deliveries.len(),
        spent.deferrals,
        differences.missing
    );
    Round {
        meanwhile: meanwhile as f64,
        overtaken: order.overtaken_percent(),
        deferrals: spent.relative_deferrals(events),
        all,
        missing: differences.missing as f64,
        drain: (queued::per_second(&deliveries), queued),
    }
}
