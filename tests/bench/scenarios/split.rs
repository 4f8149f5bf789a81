//! One event for so many webhooks that it is split into a message for each, and another event behind it;
//! with the default configuration.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load::Producer,
    receiver::{Behaviour, Log, Receipt, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const WEBHOOKS: u32 = 50_000;
const KIND: &str = "price.changed";
const NEXT: &str = "invoice.paid";

/// Twenty times the duration of sequential deliveries.
const TIMEOUT: Duration = Duration::from_secs(300);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("one event that {WEBHOOKS} webhooks want, and one behind it; default configuration");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(report)).collect();
    report.figures(
        "split",
        &rounds,
        &[
            ("s until the next event has arrived", Target::None, |round| round.0),
            (&format!("s until all {WEBHOOKS} have the event"), Target::None, |round| round.1),
        ],
    );
}

/// Seconds until the event behind it has arrived, and until all webhooks have the event.
fn measure(report: &mut Report) -> (f64, f64) {
    let sandbox = Sandbox::new();
    let (log, next_log) = (Log::new(), Log::new());
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    let next_receiver = Receiver::start(Behaviour::Prompt, &next_log);
    let count = i32::try_from(WEBHOOKS).expect("not that many");
    sandbox.database.execute(
        "INSERT INTO webhooks (post_url, events)
         SELECT $1 || n, ARRAY[$2] FROM generate_series(0, $3 - 1) AS n",
        &[&receiver.url(0).trim_end_matches('0'), &KIND, &count],
    );
    sandbox.webhook(&next_receiver.url(0), &[NEXT]);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    producer.publish(sandbox.queue(), 0, KIND);
    producer.publish(sandbox.queue(), 1, NEXT);
    producer.settle();

    if !next_log.wait(1, TIMEOUT) {
        report.wrong(format!("split: the next event has not arrived within {TIMEOUT:?}"));
    }
    log.wait(WEBHOOKS as usize, TIMEOUT);
    let (next, all) = (latest(&next_log.receipts()), latest(&log.receipts()));
    report.require_complete("split", log.differences_by_webhook(0..WEBHOOKS));
    notifier.terminate();
    println!(
        "  the next event arrived after {next:.2} s, all deliveries after {all:.2} s, {:.0}/s",
        f64::from(WEBHOOKS) / all
    );
    (next, all)
}

/// Seconds from publishing to the last receipt.
fn latest(receipts: &[Receipt]) -> f64 {
    let latest = receipts.iter().map(Receipt::latency).max().unwrap_or(u64::MAX);
    Duration::from_nanos(latest).as_secs_f64()
}
