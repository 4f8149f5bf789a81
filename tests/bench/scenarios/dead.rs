//! The cost of 100,000 deliveries that wait for one dead receiver: how often they are received and attempted,
//! and the CPU time of notifier and broker, after DURATION.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::Sandbox,
    load,
    measure::resident_mib,
    readings::{Reading, broker_pid},
    receiver::free_port,
    report::{Report, Target},
    settings::Settings,
    subject,
};

const EVENTS: u32 = 100_000;
const KIND: &str = "invoice.lost";

/// The time between two readings.
const WINDOW: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{EVENTS} events for a dead receiver; {}", settings.notifier);
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    sandbox.webhook(&format!("http://127.0.0.1:{}/webhooks/0", free_port()), &[KIND]);
    let notifier = subject::notifier(&sandbox, settings.notifier)
        // Without a line for each failed attempt: there are many.
        .env("RUST_LOG", "info,webhook_notifier::pipeline=error")
        .start();
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..EVENTS, KIND);

    let began = Instant::now();
    let mut before = Reading::take(&notifier, broker);
    let mut last = None;
    while began.elapsed() < settings.duration {
        thread::sleep(WINDOW.min(settings.duration));
        let after = Reading::take(&notifier, broker);
        let spent = after.since(&before);
        let per_second = |count: f64| count / spent.seconds;
        let figures =
            [per_second(spent.received), per_second(spent.failures), spent.notifier, spent.broker];
        println!(
            "  after {:4.0} s: {:.1} messages/s received, {:.1} attempts/s, CPU: notifier {:.1} %, broker {:.1} %; {:.1} MiB, {} ready on the primary queue",
            began.elapsed().as_secs_f64(),
            figures[0],
            figures[1],
            figures[2],
            figures[3],
            resident_mib(notifier.id()),
            sandbox.broker.ready(sandbox.queue()).unwrap_or(0),
        );
        (before, last) = (after, Some(figures));
    }
    let Some([received, attempts, ours, brokers]) = last else { return };
    report.figure("dead: messages/s received", Target::None, &[received]);
    report.figure("dead: attempts/s", Target::None, &[attempts]);
    report.figure("dead: CPU of the notifier, % of a core", Target::None, &[ours]);
    report.figure("dead: CPU of the broker, % of a core", Target::None, &[brokers]);
    notifier.kill();
}
