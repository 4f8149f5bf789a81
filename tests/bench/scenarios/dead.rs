//! What 100,000 deliveries that wait for one dead receiver cost: how often they move, and what
//! notifier and broker spend on that, after DURATION.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{Notifier, Sandbox},
    load,
    measure::{processor_time, resident_mib},
    receiver::free_port,
    report::{Limit, Report},
    settings::Settings,
    subject,
};

const EVENTS: u32 = 100_000;
const KIND: &str = "invoice.lost";

/// What is looked at, at the end of every such time.
const WINDOW: Duration = Duration::from_secs(60);

/// What was so far.
struct Reading {
    at: Instant,
    moves: f64,
    attempts: f64,
    notifier: Duration,
    broker: Duration,
}

impl Reading {
    fn take(notifier: &Notifier, broker: u32) -> Self {
        let metrics = notifier.metrics();
        let sum = |name| metrics.sum(name, &[]);
        Self {
            at: Instant::now(),
            moves: sum("webhook_events_received_total"),
            attempts: sum("webhook_request_failure_total"),
            notifier: processor_time(notifier.id()),
            broker: processor_time(broker),
        }
    }
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{EVENTS} events for a dead receiver; {}", settings.notifier);
    let broker = broker_pid();
    let sandbox = Sandbox::new();
    sandbox.webhook(&format!("http://127.0.0.1:{}/webhooks/0", free_port()), &[KIND]);
    let notifier = subject::notifier(&sandbox, settings.notifier)
        // Without a line for each failed attempt, of which there are many.
        .env("RUST_LOG", "info,webhook_notifier::pipeline=error")
        .start();
    load::fill(&sandbox.servers.amqp_url, sandbox.queue(), 0..EVENTS, KIND);

    let began = Instant::now();
    let mut before = Reading::take(&notifier, broker);
    let mut last = None;
    while began.elapsed() < settings.duration {
        thread::sleep(WINDOW.min(settings.duration));
        let after = Reading::take(&notifier, broker);
        let seconds = (after.at - before.at).as_secs_f64();
        let figures = [
            (after.moves - before.moves) / seconds,
            (after.attempts - before.attempts) / seconds,
            (after.notifier - before.notifier).as_secs_f64() / seconds * 100.0,
            (after.broker - before.broker).as_secs_f64() / seconds * 100.0,
        ];
        println!(
            "  after {:4.0} s: {:.1} moves/s, {:.1} attempts/s, CPU: notifier {:.1} %, broker {:.1} %; {:.1} MiB, {} ready on the primary queue",
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
    let Some([moves, attempts, ours, brokers]) = last else { return };
    report.figure("dead: moves/s through the lanes", Limit::None, &[moves]);
    report.figure("dead: attempts/s", Limit::None, &[attempts]);
    report.figure("dead: CPU of the notifier, % of a core", Limit::None, &[ours]);
    report.figure("dead: CPU of the broker, % of a core", Limit::None, &[brokers]);
    notifier.kill();
}

/// The private broker's process, as it says itself.
fn broker_pid() -> u32 {
    let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/services.sh"))
        .args(["rabbitmqctl", "eval", "os:getpid()."])
        .output()
        .expect("scripts/services.sh can be run");
    let text = String::from_utf8_lossy(&output.stdout);
    let pid = text.trim().trim_matches('"').parse().unwrap_or_else(|_| panic!("{output:?}"));
    assert!(fs::exists(format!("/proc/{pid}")).unwrap_or(false), "no process {pid}");
    pid
}
