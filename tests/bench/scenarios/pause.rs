//! A webhook is paused while events for it arrive, and resumed: nothing is sent meanwhile, and
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
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

const EVENTS: u32 = 3_000;
const PER_SECOND: u32 = 50;
const KIND: &str = "invoice.paused";
const LATENCY: Duration = Duration::from_millis(10);

/// Until every notifier knows of a change to the table: it is notified at once.
const TOLD: Duration = Duration::from_secs(2);

/// After the end of the pause.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS);
    println!("{events} events for a paused webhook, {PER_SECOND}/s; it is resumed then");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(events, report)).collect();
    let all = |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(of).collect() };
    for (figure, limit, of) in [
        (
            "requests while it is paused",
            Limit::AtMost(0.0),
            (|round| round.meanwhile) as fn(&Round) -> f64,
        ),
        ("% of events out of order", Limit::AtMost(0.1), |round| round.overtaken),
        ("times put aside, per event and failed attempt", Limit::AtMost(1.0), |round| round.moves),
        ("s from its resumption to the last delivery", Limit::None, |round| round.all),
        ("events missing at the end", Limit::AtMost(0.0), |round| round.missing),
    ] {
        report.figure(&format!("pause: {figure}"), limit, &all(of));
    }
    let pairs: Vec<_> = rounds.iter().map(|round| round.drain).collect();
    report.ratio("pause: deliveries/s then; queued for a healthy one", Limit::None, &pairs);
}

struct Round {
    meanwhile: f64,
    overtaken: f64,
    moves: f64,
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
    // It has worked before.
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    producer.publish(sandbox.queue(), 0, KIND);
    producer.settle();
    if !log.wait(1, PATIENCE) {
        report.wrong("pause: it gets nothing even before");
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
    let complete = log.wait(end as usize, LIMIT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let account = log.account(0..end);
    if !account.may_become_right() {
        report.wrong(format!("pause: {account}"));
    }
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let mut deliveries = log.deliveries();
    deliveries.retain(|delivery| delivery.at >= resumed);
    let last = deliveries.last().map(|delivery| delivery.at).filter(|_| complete);
    let all = Duration::from_nanos(last.unwrap_or_else(now) - resumed).as_secs_f64();
    let order = Order::of(&log.receipts(), LATENCY);
    println!(
        "  {meanwhile} requests while it was paused; {} after that, all in {all:.1} s; put aside {:.0} times; {} missing; {order}",
        deliveries.len(),
        spent.entries,
        account.missing
    );
    Round {
        meanwhile: meanwhile as f64,
        overtaken: order.overtaken_percent(),
        moves: spent.moves(events),
        all,
        missing: account.missing as f64,
        drain: (queued::per_second(&deliveries), queued),
    }
}
