//! The cost of queues: CPU time per event if the same events arrive through ever more queues, and while
//! idle.

use std::time::{Duration, Instant};

use super::{
    crowd::{self, Crowd, Size},
    fewer, in_turn,
};
use crate::{
    measure::{processor_time, resident_mib},
    readings::broker_pid,
    report::{Limit, Report},
    settings::Settings,
};

const QUEUES: [usize; 3] = [1, 10, 100];
const EVENTS: u32 = 20_000;
const WARMING: u32 = 4_000;

/// Far more than any of it takes.
const LIMIT: Duration = Duration::from_secs(120);

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
    println!("{events} events by one queue and by many; default configuration");
    let broker = broker_pid();
    for count in QUEUES {
        // Without webhooks: each might have a backlog, which is searched for after a start.
        at_rest(&Crowd::register(Size::new(0, 1), count), count, broker, report);
    }
    let mut crowds: Vec<_> = QUEUES.map(|count| Crowd::register(Size::SMALL, count)).into();
    let mut found = vec![Vec::new(); QUEUES.len()];
    for round in 0..fewer(settings.rounds(5)) {
        for number in in_turn(QUEUES.len(), round) {
            found[number].push(measure(&mut crowds[number], QUEUES[number], events, report));
        }
    }
    for (number, count) in QUEUES.into_iter().enumerate().skip(1) {
        let pairs = |of: fn(&Measured) -> f64| -> Vec<_> {
            found[number].iter().zip(&found[0]).map(|(many, one)| (of(many), of(one))).collect()
        };
        let figure = |of: &str| format!("scale, {count} queues: {of}");
        report.ratio(&figure("CPU µs per event"), Limit::None, &pairs(|it| it.processor));
        report.ratio(&figure("events/s"), Limit::None, &pairs(|it| it.per_second));
        report.ratio(&figure("ms to ready"), Limit::None, &pairs(|it| it.start));
    }
    for (crowd, count) in crowds.iter().zip(QUEUES) {
        crowd.check(&format!("{count} queues"), report);
    }
}

/// The first start, which declares what is missing; and the queues' cost while idle.
fn at_rest(crowd: &Crowd, count: usize, broker: u32, report: &mut Report) {
    let (notifier, start) = crowd::start(&crowd.sandbox);
    let (ours, brokers) = super::rest(&notifier, broker);
    let [_, threads, files] = notifier.resources();
    let asked = Instant::now();
    let metrics = notifier.get("/metrics").body.len() as f64 / 1024.0;
    let took = asked.elapsed().as_secs_f64() * 1e3;
    let resident = resident_mib(notifier.id());
    println!(
        "  {count} queues at rest: first start {start:.0} ms; {threads} threads, {files} files, {resident:.1} MiB; CPU {ours:.1} %, of the broker {brokers:.1} %; /metrics {metrics:.0} KiB in {took:.1} ms"
    );
    let figure = |of: &str| format!("scale, {count} queues at rest: {of}");
    for (of, value) in [
        ("ms to ready, nothing declared before", start),
        ("threads", threads as f64),
        ("MiB", resident),
        ("CPU % of a core", ours),
        ("CPU % of a core of the broker", brokers),
        ("KiB of /metrics", metrics),
    ] {
        report.figure(&figure(of), Limit::None, &[value]);
    }
    crowd.end("queues", notifier, report);
}

/// The events are published when all lanes consume: a hundred start one after another, and if all events
/// were there before, the first lanes would have finished theirs by then.
fn measure(crowd: &mut Crowd, count: usize, events: u32, report: &mut Report) -> Measured {
    let (notifier, start) = crowd::start(&crowd.sandbox);
    let warmed = crowd.publish(WARMING).end as usize;
    let mut complete = crowd.log.wait(warmed, LIMIT);
    let (began, cpu) = (Instant::now(), processor_time(notifier.id()));
    let end = crowd.publish(events).end as usize;
    complete &= crowd.log.wait(end, LIMIT);
    let (took, used) = (began.elapsed(), processor_time(notifier.id()) - cpu);
    if !complete {
        report.wrong(format!("{count} queues: not all came within {LIMIT:?}"));
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
