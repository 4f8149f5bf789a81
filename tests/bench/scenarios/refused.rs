//! Hundreds of receivers where nothing listens, with events for each: what they cost, and how soon all
//! are delivered once something listens.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::Sandbox,
    load,
    measure::{now, peak_mib, resident_mib},
    raw_loop,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receiver, free_port},
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

/// Each on its own host.
const RECEIVERS: u32 = 500;
const EVENTS_EACH: u32 = 200;

/// The last part of the outage, in which nothing is published; a quarter of a short one.
const QUIET: Duration = Duration::from_secs(30);

/// In addition to a quarter of the outage.
const UNTIL_ALL: Duration = Duration::from_secs(60);

/// The run waits as long as the outage was, plus this.
const LIMIT: Duration = Duration::from_secs(120);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(settings, report)).collect();
    let all = |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(of).collect() };
    let until_all = (settings.away / 4 + UNTIL_ALL).as_secs_f64();
    for (figure, limit, of) in [
        (
            "MiB of the notifier, at most",
            Limit::AtMost(60.0),
            (|round| round.notifier_mib) as fn(&Round) -> f64,
        ),
        ("times put aside, per event and failed attempt", Limit::AtMost(1.0), |round| round.moves),
        ("CPU % of a core of the notifier while nothing comes", Limit::None, |round| round.cpu),
        ("CPU % of a core of the broker while nothing comes", Limit::None, |round| {
            round.broker_cpu
        }),
        ("MiB of the broker, above what it had", Limit::None, |round| round.broker_mib),
        ("s from their return until all have theirs", Limit::AtMost(until_all), |round| round.all),
        ("deliveries missing at the end", Limit::AtMost(0.0), |round| round.missing),
    ] {
        report.figure(&format!("refused: {figure}"), limit, &all(of));
    }
}

struct Round {
    notifier_mib: f64,
    moves: f64,
    cpu: f64,
    broker_cpu: f64,
    broker_mib: f64,
    all: f64,
    missing: f64,
}

/// By the webhook's number.
fn host(webhook: u32) -> String {
    format!("127.8.{}.{}", webhook / 250, 1 + webhook % 250)
}

fn measure(settings: &Settings, report: &mut Report) -> Round {
    let (receivers, away) = (settings.receivers(RECEIVERS), settings.away);
    let events = settings.events(receivers * EVENTS_EACH);
    println!("{receivers} receivers refuse connections for {away:?}; {events} events meanwhile");
    raw_loop::measure_receiver(Behaviour::Prompt, 64, 500);
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    let log = Log::new();
    let port = free_port();
    let kinds: Vec<_> = (0..receivers).map(|number| format!("refused.{number}")).collect();
    for (number, kind) in (0..).zip(&kinds) {
        sandbox.webhook(&format!("http://{}:{port}/webhooks/{number}", host(number)), &[kind]);
    }
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT)
        // Without a line for each failed attempt, of which there are many.
        .env("RUST_LOG", "info,webhook_notifier::pipeline=error")
        .start();
    let broker_before = resident_mib(broker);

    let began = Instant::now();
    let before = Reading::take(&notifier, broker);
    let quiet = QUIET.min(away / 4);
    let publishing = u32::try_from((away - quiet).as_secs()).expect("less than a day").max(1);
    let webhook = |event: u32| event % receivers;
    let address = |event| {
        (event < events).then(|| (sandbox.queue(), kinds[webhook(event) as usize].as_str()))
    };
    load::steadily(&sandbox.servers.amqp_url, events.div_ceil(publishing), address);
    thread::sleep((away - quiet).saturating_sub(began.elapsed()));
    let quiet_began = Reading::take(&notifier, broker);
    thread::sleep(away.saturating_sub(began.elapsed()));
    let ended = Reading::take(&notifier, broker);
    let broker_mib = resident_mib(broker) - broker_before;

    let back = now();
    let _receiver = Receiver::on_every_host(port, Behaviour::Prompt, &log);
    let complete = log.wait(events as usize, away + LIMIT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let account = log.account_of_deliveries((0..events).map(|event| (event, webhook(event))));
    if !account.may_become_right() {
        report.wrong(format!("refused: {account}"));
    }
    let last = log.deliveries().last().map(|delivery| delivery.at).filter(|_| complete);
    let all = Duration::from_nanos(last.unwrap_or_else(now) - back).as_secs_f64();
    let notifier_mib = peak_mib(notifier.id());
    let [_, threads, files] = notifier.resources();
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let calm = ended.since(&quiet_began);
    println!(
        "  put aside {:.0} times, {:.0} attempts failed; {:.0} messages received",
        spent.entries, spent.failures, spent.received
    );
    println!(
        "  notifier: {notifier_mib:.1} MiB at most, {threads} threads and {files} files at the end; broker: {:.1} MiB, {broker_mib:+.1}",
        broker_before + broker_mib
    );
    println!(
        "  CPU while nothing comes: notifier {:.2} %, broker {:.1} % of a core",
        calm.notifier, calm.broker
    );
    println!("  all in {all:.1} s after their return; {} missing", account.missing);
    Round {
        notifier_mib,
        moves: spent.moves(events),
        cpu: calm.notifier,
        broker_cpu: calm.broker,
        broker_mib,
        all,
        missing: account.missing as f64,
    }
}
