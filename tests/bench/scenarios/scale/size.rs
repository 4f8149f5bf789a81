//! CPU time per event, with few webhooks and with very many.
//!
//! The first event of each type queries PostgreSQL. These cold events are counted separately: the
//! measurement begins when each webhook has had two events, and the consumers that waited for PostgreSQL
//! have ended.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    crowd::{Crowd, Size},
    fewer, in_turn,
};
use crate::{
    harness::{Notifier, Sandbox},
    measure::{Spread, children_processor_time, parent, processor_time, resident_mib},
    report::{Report, Target},
    settings::Settings,
    subject,
};

const EVENTS: u32 = 20_000;

/// The minimum number of deliveries before the measurement.
const WARMING: u32 = 2_000;

/// Far more than any of it takes.
const TIMEOUT: Duration = Duration::from_secs(240);

struct Case {
    size: Size,
    /// Changes per second to one webhook, which gets no events.
    changes: u32,
    target: Target,
    /// Whether it is part of each round; otherwise of half of them.
    always: bool,
}

const fn case(size: Size) -> Case {
    Case { size, changes: 0, target: Target::None, always: false }
}

/// The first is the baseline of the others.
const CASES: [Case; 7] = [
    Case { always: true, ..case(Size::SMALL) },
    Case { always: true, target: Target::AtMost(1.15), ..case(Size::new(100_000, 10_000)) },
    case(Size::new(1_000, 10)),
    case(Size::new(100_000, 10)),
    case(Size::new(100_000, 1_000)),
    case(Size::of_accounts(100_000, 10)),
    Case { changes: 2, ..case(Size::new(100_000, 10_000)) },
];

impl Case {
    fn name(&self) -> String {
        match self.changes {
            0 => self.size.to_string(),
            changes => format!("{}, {changes} changes/s", self.size),
        }
    }
}

/// One round of one case.
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Microseconds of the notifier's CPU time per event.
    processor: f64,
    per_second: f64,
    /// Per event whose webhooks aren't cached yet: the notifier's CPU time, PostgreSQL's, and the time until
    /// its delivery, all in microseconds.
    cold: (f64, f64, f64),
    /// The percentage of lookups that queried PostgreSQL.
    queried: f64,
    resident: f64,
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let events = settings.events(EVENTS);
    let rounds = settings.rounds(5);
    println!("{events} events, each wanted by one webhook; default configuration, one queue");
    let mut crowds: Vec<_> = CASES.iter().map(|case| Crowd::register(case.size, 1)).collect();
    let mut found: Vec<Vec<Option<Measured>>> = vec![Vec::new(); CASES.len()];
    for round in 0..rounds {
        for number in in_turn(CASES.len(), round) {
            let case = &CASES[number];
            let is_due = case.always || round < fewer(rounds);
            let measured = is_due.then(|| measure(case, &mut crowds[number], events, report));
            found[number].push(measured);
        }
    }
    for (case, crowd) in CASES.iter().zip(&crowds) {
        crowd.check(&case.name(), report);
    }
    let base = found[0].clone();
    for (case, found) in CASES.iter().zip(&found).skip(1) {
        let pairs: Vec<_> =
            found.iter().zip(&base).filter_map(|(one, base)| one.zip(*base)).collect();
        report.ratios(
            &format!("scale, {}", case.name()),
            &pairs,
            &[
                ("CPU µs per event", case.target, |it| it.processor),
                ("events/s", Target::None, |it| it.per_second),
            ],
        );
    }
    for (case, found) in CASES.iter().zip(&found) {
        let median = |of: fn(&Measured) -> f64| Spread::of(found.iter().flatten().map(of)).median;
        println!(
            "  {}: {:.1} µs of CPU per event, {:.0} events/s, {:.1} % of lookups queried PostgreSQL; the first event of a type: {:.0} µs of CPU, {:.0} µs of PostgreSQL's, {:.0} µs until it has arrived; {:.1} MiB (medians)",
            case.name(),
            median(|it| it.processor),
            median(|it| it.per_second),
            median(|it| it.queried),
            median(|it| it.cold.0),
            median(|it| it.cold.1),
            median(|it| it.cold.2),
            median(|it| it.resident),
        );
    }
}

fn measure(case: &Case, crowd: &mut Crowd, events: u32, report: &mut Report) -> Measured {
    let active = crowd.size.active();
    let warming = (2 * active).max(WARMING);
    let numbers = crowd.publish(warming);
    let before = numbers.start as usize;
    let until = |count: u32| before + count as usize;
    let database = database_server(&crowd.sandbox);

    let notifier = subject::notifier(&crowd.sandbox, subject::Setting::DEFAULT).start();
    let (cpu, of_database) = (processor_time(notifier.id()), children_processor_time(database));
    let began = crowd.log.delivered() as f64;
    let mut complete = crowd.log.wait(until(active), TIMEOUT);
    let (cold, of_database) = (
        processor_time(notifier.id()) - cpu,
        children_processor_time(database).saturating_sub(of_database),
    );
    complete &= crowd.log.wait(until(warming), TIMEOUT);

    complete &= has_ended_consumers(&notifier, crowd.sandbox.queue());
    let lookups = Lookups::of(&notifier);
    let cpu = processor_time(notifier.id());
    crowd.publish(events);
    while_changing(case, &crowd.sandbox, || {
        complete &= crowd.log.wait(until(warming + events), TIMEOUT)
    });
    let used = processor_time(notifier.id()) - cpu;
    let queried = Lookups::of(&notifier).queried_percent_since(&lookups);
    let resident = resident_mib(notifier.id());
    if !complete {
        report.wrong(format!(
            "scale, {}: some events have not arrived within {TIMEOUT:?}",
            case.name()
        ));
    }
    crowd.end(&case.name(), notifier, report);

    let receipts = crowd.log.deliveries();
    let at = |count: u32| receipts.get(until(count) - 1).map_or(0, |receipt| receipt.at);
    let seconds = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from)).as_secs_f64();
    let micros = |used: Duration, events: f64| used.as_secs_f64() / events.max(1.0) * 1e6;
    let colds = (until(active) as f64 - began).max(1.0);
    let measured = Measured {
        processor: micros(used, f64::from(events)),
        per_second: f64::from(events) / seconds(at(warming + 1), at(warming + events)).max(1e-6),
        cold: (
            micros(cold, colds),
            micros(of_database, colds),
            seconds(at(1), at(active)) / f64::from(active) * 1e6,
        ),
        queried,
        resident,
    };
    println!(
        "  {:55}  {:5.1} µs of CPU per event  {:6.0} events/s  {:5.1} % queried  {:.1} MiB; cold: {:.2} s for {active}",
        case.name(),
        measured.processor,
        measured.per_second,
        measured.queried,
        measured.resident,
        seconds(at(1), at(active)),
    );
    measured
}

/// Waits until an empty queue's lane has only one consumer left; false if that takes too long.
fn has_ended_consumers(notifier: &Notifier, queue: &str) -> bool {
    let began = Instant::now();
    while notifier.metric("webhook_lane_consumers", &[("queue", queue)]) > 1.0 {
        if began.elapsed() > TIMEOUT {
            return false;
        }
        thread::sleep(Duration::from_millis(500));
    }
    true
}

/// Changes a webhook that gets no events, at the case's rate, until `other` returns.
fn while_changing(case: &Case, sandbox: &Sandbox, other: impl FnOnce()) {
    if case.changes == 0 {
        return other();
    }
    let last = i32::try_from(case.size.webhooks - 1).expect("not that many");
    let rows = sandbox.database.query(
        "SELECT id FROM webhooks WHERE post_url LIKE '%/' || $1::int ORDER BY post_url LIMIT 1",
        &[&last],
    );
    let webhook: uuid::Uuid = rows[0].get(0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Acquire) {
                sandbox.database.execute(
                    "UPDATE webhooks SET description = now()::text WHERE id = $1",
                    &[&webhook],
                );
                thread::sleep(Duration::from_secs(1) / case.changes);
            }
        });
        other();
        is_over.store(true, Ordering::Release);
    });
}

/// The lookups so far, by where the answer came from.
struct Lookups {
    memory: f64,
    database: f64,
}

impl Lookups {
    fn of(notifier: &Notifier) -> Self {
        let metrics = notifier.metrics();
        let sum = |answer| metrics.sum("webhook_directory_lookups_total", &[("answer", answer)]);
        Self { memory: sum("memory"), database: sum("database") }
    }

    fn queried_percent_since(&self, earlier: &Self) -> f64 {
        let (memory, database) = (self.memory - earlier.memory, self.database - earlier.database);
        database / (memory + database).max(1.0) * 100.0
    }
}

/// The parent process of PostgreSQL's sessions.
fn database_server(sandbox: &Sandbox) -> u32 {
    let session: i32 = sandbox.database.query("SELECT pg_backend_pid()", &[])[0].get(0);
    parent(u32::try_from(session).expect("a process"))
}
