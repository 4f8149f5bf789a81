//! Hundreds of receivers that refuse connections, with events for each: what these events cost, and how soon
//! all are delivered once the receivers listen.

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
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

/// Each on its own host.
const RECEIVERS: u32 = 500;
const EVENTS_EACH: u32 = 200;

/// The end of the outage, in which nothing is published: at most a quarter of the outage.
const QUIET: Duration = Duration::from_secs(30);

/// After the outage, all deliveries may take a quarter of its duration, plus this.
const UNTIL_ALL: Duration = Duration::from_secs(60);

/// The run waits for the deliveries as long as the outage was, plus this.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(settings, report)).collect();
    let until_all = Target::AtMost((settings.away / 4 + UNTIL_ALL).as_secs_f64());
    report.figures(
        "refused",
        &rounds,
        &[
            ("peak MiB of the notifier", Target::AtMost(60.0), |round| round.notifier_mib),
            ("deferrals per event and failed attempt", Target::AtMost(1.0), |round| {
                round.deferrals
            }),
            ("CPU % of a core of the notifier, no new events", Target::None, |round| round.cpu),
            ("CPU % of a core of the broker, no new events", Target::None, |round| {
                round.broker_cpu
            }),
            ("MiB of the broker, more than before", Target::None, |round| round.broker_mib),
            ("s from their recovery until all is delivered", until_all, |round| round.all),
            ("deliveries missing at the end", Target::AtMost(0.0), |round| round.missing),
        ],
    );
}

struct Round {
    notifier_mib: f64,
    deferrals: f64,
    cpu: f64,
    broker_cpu: f64,
    broker_mib: f64,
    all: f64,
    missing: f64,
}

/// The host of a webhook.
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
        // Without a line for each failed attempt: there are many.
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
    let complete = log.wait(events as usize, away + TIMEOUT);
    let spent = Reading::take(&notifier, broker).since(&before);
    let differences = log.differences_by_delivery((0..events).map(|event| (event, webhook(event))));
    report.require_no_repeats("refused", differences);
    let last = log.deliveries().last().map(|delivery| delivery.at).filter(|_| complete);
    let all = Duration::from_nanos(last.unwrap_or_else(now) - back).as_secs_f64();
    let notifier_mib = peak_mib(notifier.id());
    let [_, threads, files] = notifier.resources();
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();
    let calm = ended.since(&quiet_began);
    println!(
        "  {:.0} deferrals, {:.0} failed attempts; {:.0} messages received",
        spent.deferrals, spent.failures, spent.received
    );
    println!(
        "  notifier: {notifier_mib:.1} MiB at most, {threads} threads and {files} files at the end; broker: {:.1} MiB, {broker_mib:+.1}",
        broker_before + broker_mib
    );
    println!(
        "  CPU without new events: notifier {:.2} %, broker {:.1} % of a core",
        calm.notifier, calm.broker
    );
    println!("  all delivered {all:.1} s after their recovery; {} missing", differences.missing);
    Round {
        notifier_mib,
        deferrals: spent.relative_deferrals(events),
        cpu: calm.notifier,
        broker_cpu: calm.broker,
        broker_mib,
        all,
        missing: differences.missing as f64,
    }
}
