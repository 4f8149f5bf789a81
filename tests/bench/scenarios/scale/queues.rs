//! The cost of queues: CPU time per event if the same events arrive through more and more queues, and while
//! idle.

use std::time::{Duration, Instant};

use super::{
    crowd::{self, Crowd, Size},
    fewer, in_turn,
};
use crate::{
    measure::{processor_time, resident_mib},
    readings::broker_pid,
    report::{Report, Target},
    settings::Settings,
};

const QUEUES: [usize; 3] = [1, 10, 100];
const EVENTS: u32 = 20_000;
const WARMING: u32 = 4_000;

/// Far more than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One round with events.
#[derive(Clone, Copy, Debug)]
struct Measured {
    processor: f64,
    per_second: f64,
    /// Milliseconds to ready.
    start: f64,
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS);
    println!("{events} events through one queue and through many; default configuration");
    let broker = broker_pid();
    for count in QUEUES {
        // Without webhooks: after a start, the notifier searches for the backlogs that they may have.
        idle(&Crowd::register(Size::new(0, 1), count), count, broker, report);
    }
    let mut crowds: Vec<_> = QUEUES.map(|count| Crowd::register(Size::SMALL, count)).into();
    let mut found = vec![Vec::new(); QUEUES.len()];
    for round in 0..fewer(settings.rounds(5)) {
        for number in in_turn(QUEUES.len(), round) {
            found[number].push(measure(&mut crowds[number], QUEUES[number], events, report));
        }
    }
    for (number, count) in QUEUES.into_iter().enumerate().skip(1) {
        let pairs: Vec<_> = found[number].iter().copied().zip(found[0].iter().copied()).collect();
        report.ratios(
            &format!("scale, {count} queues"),
            &pairs,
            &[
                ("CPU µs per event", Target::None, |it: &Measured| it.processor),
                ("events/s", Target::None, |it| it.per_second),
                ("ms to ready", Target::None, |it| it.start),
            ],
        );
    }
    for (crowd, count) in crowds.iter().zip(QUEUES) {
        crowd.check(&format!("{count} queues"), report);
    }
}

/// The first start, which declares all queues, and their cost while idle.
fn idle(crowd: &Crowd, count: usize, broker: u32, report: &mut Report) {
    let (notifier, start) = crowd::start(&crowd.sandbox);
    let (ours, brokers) = super::idle_percent(&notifier, broker);
    let [_, threads, files] = notifier.resources();
    let requested = Instant::now();
    let metrics = notifier.get("/metrics").body.len() as f64 / 1024.0;
    let took = requested.elapsed().as_secs_f64() * 1e3;
    let resident = resident_mib(notifier.id());
    println!(
        "  {count} queues, idle: first start {start:.0} ms; {threads} threads, {files} files, {resident:.1} MiB; CPU of the notifier {ours:.1} %, of the broker {brokers:.1} %; /metrics {metrics:.0} KiB in {took:.1} ms"
    );
    let figure = |of: &str| format!("scale, {count} queues, idle: {of}");
    for (of, value) in [
        ("ms to ready, nothing declared before", start),
        ("threads", threads as f64),
        ("MiB", resident),
        ("CPU % of a core", ours),
        ("CPU % of a core of the broker", brokers),
        ("KiB of /metrics", metrics),
    ] {
        report.figure(&figure(of), Target::None, &[value]);
    }
    crowd.end("queues", notifier, report);
}

/// The events are published when all lanes consume. A hundred lanes start one after another: the first would
/// finish their events before the last have started.
fn measure(crowd: &mut Crowd, count: usize, events: u32, report: &mut Report) -> Measured {
    let (notifier, start) = crowd::start(&crowd.sandbox);
    let warmed = crowd.publish(WARMING).end as usize;
    let mut complete = crowd.log.wait(warmed, TIMEOUT);
    let (began, cpu) = (Instant::now(), processor_time(notifier.id()));
    let end = crowd.publish(events).end as usize;
    complete &= crowd.log.wait(end, TIMEOUT);
    let (took, used) = (began.elapsed(), processor_time(notifier.id()) - cpu);
    if !complete {
        report.wrong(format!("{count} queues: some events have not arrived within {TIMEOUT:?}"));
    }
    let events = f64::from(events);
    let measured = Measured {
        processor: used.as_secs_f64() / events * 1e6,
        per_second: events / took.as_secs_f64(),
        start,
    };
    println!(
        "  {count:3} queues  {:5.1} µs of CPU per event  {:6.0} events/s  ready after {start:.0} ms",
        measured.processor, measured.per_second
    );
    crowd.end("queues", notifier, report);
    measured
}
