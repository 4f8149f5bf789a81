//! The cost of an event if several instances share a queue: the CPU time of all instances together, and that
//! of RabbitMQ.

use std::time::{Duration, Instant};

use super::{
    crowd::{Crowd, Size},
    fewer, in_turn,
};
use crate::{
    harness::Notifier,
    measure::processor_time,
    readings::broker_pid,
    report::{Report, Target},
    settings::Settings,
};

const INSTANCES: [usize; 3] = [1, 2, 3];
const EVENTS: u32 = 40_000;

/// The minimum number of deliveries before the measurement: by then, all instances consume.
const WARMING: u32 = 4_000;

/// Far more than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One round, per event.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Microseconds of CPU time, of all instances together and of RabbitMQ.
    processor: f64,
    broker: f64,
    per_second: f64,
    /// The events of the busiest instance, relative to an even share.
    busiest_share: f64,
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS).max(2 * WARMING);
    println!("{events} events of one queue; default configuration");
    let broker = broker_pid();
    let mut crowd = Crowd::register(Size::SMALL, 1);
    let mut found = vec![Vec::new(); INSTANCES.len()];
    for round in 0..fewer(settings.rounds(5)) {
        for number in in_turn(INSTANCES.len(), round) {
            found[number].push(measure(&mut crowd, INSTANCES[number], events, broker, report));
        }
    }
    crowd.check("instances", report);
    let ones: Vec<f64> = found[0].iter().map(|one: &Measured| one.broker).collect();
    report.figure("scale, 1 instance: RabbitMQ's CPU µs per event", Target::None, &ones);
    for (number, count) in INSTANCES.into_iter().enumerate().skip(1) {
        let case = format!("scale, {count} instances");
        let pairs: Vec<_> = found[number].iter().copied().zip(found[0].iter().copied()).collect();
        report.ratios(
            &case,
            &pairs,
            &[
                ("CPU µs per event", Target::None, |it: &Measured| it.processor),
                ("RabbitMQ's CPU µs per event", Target::None, |it| it.broker),
                ("events/s", Target::None, |it| it.per_second),
            ],
        );
        let shares: Vec<f64> = found[number].iter().map(|it| it.busiest_share).collect();
        report.figure(&format!("{case}: the busiest one's share"), Target::None, &shares);
    }
}

fn measure(
    crowd: &mut Crowd,
    count: usize,
    events: u32,
    broker: u32,
    report: &mut Report,
) -> Measured {
    let numbers = crowd.publish(events);
    let (before, end) = (numbers.start as usize, numbers.end as usize);
    // All at once: each call waits until its notifier is ready.
    let notifiers: Vec<Notifier> = std::thread::scope(|scope| {
        let start = || crowd.sandbox.notifier().start();
        let starting: Vec<_> = (0..count).map(|_| scope.spawn(start)).collect();
        starting.into_iter().map(|one| one.join().expect("it starts")).collect()
    });
    crowd.log.wait(before + WARMING as usize, TIMEOUT);
    let of = |notifier: &Notifier| processor_time(notifier.id());
    let used = || notifiers.iter().map(of).sum::<Duration>();
    let delivered = |notifier: &Notifier| notifier.metric("webhook_request_success_total", &[]);
    let shares: Vec<f64> = notifiers.iter().map(delivered).collect();
    let (began, came) = (Instant::now(), crowd.log.delivered());
    let (cpu, brokers) = (used(), processor_time(broker));
    if !crowd.log.wait(end, TIMEOUT) {
        report.wrong(format!("{count} instances: some events have not arrived within {TIMEOUT:?}"));
    }
    let took = began.elapsed();
    let (cpu, brokers) = (used() - cpu, processor_time(broker) - brokers);
    let shares = notifiers.iter().zip(shares).map(|(notifier, was)| delivered(notifier) - was);
    let shares: Vec<f64> = shares.collect();
    let counted = (end - came.min(end - 1)) as f64;
    let micros = |used: Duration| used.as_secs_f64() / counted * 1e6;
    let most = shares.iter().copied().fold(0.0, f64::max);
    let measured = Measured {
        processor: micros(cpu),
        broker: micros(brokers),
        per_second: counted / took.as_secs_f64(),
        busiest_share: most / shares.iter().sum::<f64>().max(1.0) * count as f64,
    };
    println!(
        "  {count} instances  {:5.1} µs of CPU per event, {:5.1} µs of RabbitMQ's  {:6.0} events/s  the busiest has {:.2} times an even share",
        measured.processor, measured.broker, measured.per_second, measured.busiest_share
    );
    for notifier in notifiers {
        crowd.end("instances", notifier, report);
    }
    measured
}
