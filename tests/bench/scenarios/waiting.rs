//! 100,000 events wait for one receiver that never answers, for DURATION: whether they take memory, and
//! what their waiting costs.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::Sandbox,
    load,
    measure::resident_mib,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const EVENTS: u32 = 100_000;
const KIND: &str = "invoice.lost";

/// Events for a healthy receiver before that, many of them in flight at once. Afterwards the process has
/// allocated what it needs for any events, including threads.
const WARMING: u32 = 10_000;
const WARMING_LATENCY: Duration = Duration::from_millis(10);
const WARMING_KIND: &str = "invoice.paid";
const TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two readings.
const WINDOW: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let (events, duration) = (settings.events(EVENTS), settings.duration);
    println!("{events} events for a receiver that never answers; for {duration:?}");
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    let (log, silent_log) = (Log::new(), Log::new());
    let healthy = Receiver::start(Behaviour::Slow(WARMING_LATENCY), &log);
    sandbox.webhook(&healthy.url(0), &[WARMING_KIND]);
    let silent = Receiver::start(Behaviour::Silent, &silent_log);
    sandbox.webhook(&silent.url(1), &[KIND]);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..WARMING, WARMING_KIND);
    if !log.wait(WARMING as usize, TIMEOUT) {
        report.wrong("waiting: events of the healthy receiver are missing");
    }
    let resident = resident_mib(notifier.id());

    let began = Instant::now();
    let start = Reading::take(&notifier, broker);
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), WARMING..WARMING + events, KIND);
    let (mut grown, mut last) = (f64::NEG_INFINITY, None);
    let mut before = Reading::take(&notifier, broker);
    while began.elapsed() < duration {
        thread::sleep(WINDOW.min(duration.saturating_sub(began.elapsed())));
        let after = Reading::take(&notifier, broker);
        let spent = after.since(&before);
        let now = resident_mib(notifier.id());
        grown = grown.max(now - resident);
        println!(
            "  after {:4.0} s: {:.1} messages/s received, {:.2} attempts/s, CPU: notifier {:.2} %, broker {:.1} %; {now:.1} MiB, {resident:.1} before; {} ready on the primary queue",
            began.elapsed().as_secs_f64(),
            spent.received / spent.seconds,
            spent.failures / spent.seconds,
            spent.notifier,
            spent.broker,
            sandbox.broker.ready(sandbox.queue()).unwrap_or(0),
        );
        (before, last) = (after, Some(spent));
    }
    let Some(last) = last else { return };
    let all = before.since(&start);
    println!("  {:.0} deferrals, {:.0} failed attempts", all.deferrals, all.failures);
    let deferrals = all.relative_deferrals(events);
    for (figure, target, value) in [
        ("MiB more than before", Target::AtMost(2.0), grown),
        ("deferrals per event and failed attempt", Target::AtMost(1.0), deferrals),
        ("messages/s received in the last minute", Target::None, last.received / last.seconds),
        ("CPU % of a core of the notifier then", Target::AtMost(1.0), last.notifier),
        ("CPU % of a core of the broker then", Target::None, last.broker),
    ] {
        report.figure(&format!("waiting: {figure}"), target, &[value]);
    }
    // It holds the waiting events, which are deleted with their queue.
    notifier.kill();
}
