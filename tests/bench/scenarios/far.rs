//! Receivers that aren't slow, only far away: how close the notifier gets to the rate that its capacity
//! allows, and how it affects a prompt receiver.
//!
//! One receiver may use half of the capacity N, since the other half is reserved for others. With a latency
//! of L, it can get N/2 / L deliveries per second. Many receivers may use nearly all of the capacity.

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    harness::{Notifier, Sandbox},
    load::Producer,
    measure::now,
    neighbours::{self, Neighbours, OTHERS},
    raw_loop,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

/// The single distant receiver.
const ALONE: Duration = Duration::from_millis(200);
/// The many distant receivers.
const EACH: Duration = Duration::from_millis(100);
const MANY: u8 = 20;

const NEIGHBOUR_PER_SECOND: u32 = 50;

/// At least five times what it should take. Events that haven't arrived by then aren't lost, only late.
const TIMEOUT: Duration = Duration::from_secs(120);

/// A capacity, and the numbers of events for it: enough for ten seconds and more.
struct Case {
    setting: Setting,
    capacity: u16,
    for_one: u32,
    for_many: u32,
    rate_of_one: Target,
    rate_of_many: Target,
    p99: Target,
}

const BY_DEFAULT: Case = Case {
    setting: Setting::DEFAULT,
    capacity: 64,
    for_one: 4_000,
    for_many: 10_000,
    rate_of_one: Target::AtLeast(0.90),
    rate_of_many: Target::AtLeast(0.85),
    p99: Target::TWICE,
};

const WIDE: Case = Case {
    setting: Setting::capacity(512),
    capacity: 512,
    for_one: 20_000,
    for_many: 50_000,
    rate_of_one: Target::AtLeast(0.80),
    rate_of_many: Target::AtLeast(0.80),
    p99: Target::None,
};

pub(super) fn by_default(settings: &Settings, report: &mut Report) {
    run(&BY_DEFAULT, settings, report);
}

pub(super) fn wide(settings: &Settings, report: &mut Report) {
    run(&WIDE, settings, report);
}

fn run(case: &Case, settings: &Settings, report: &mut Report) {
    // With a connection for each concurrent request of the largest case.
    for (latency, requests) in [(ALONE, 15), (EACH, 30)] {
        raw_loop::measure_receiver(Behaviour::Slow(latency), 512, requests);
    }
    let rounds = settings.rounds(1);
    one(case, rounds, report);
    many(case, rounds, report);
}

fn one(case: &Case, rounds: usize, report: &mut Report) {
    let Case { setting, capacity, for_one: events, .. } = *case;
    println!("{events} events at once for a receiver that takes {ALONE:?}; {setting}");
    let (mut rates, mut p99, mut deferred) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let alone = neighbours::alone(1, NEIGHBOUR_PER_SECOND, 20, setting, report);
        let sandbox = Sandbox::new();
        let far = Far::start(&sandbox, 1, ALONE);
        let mut neighbours = Neighbours::start(&sandbox, 1);
        let notifier = subject::notifier(&sandbox, setting).start();
        neighbours.prove(&sandbox);
        let (rate, published) = neighbours.load_beside(&sandbox, NEIGHBOUR_PER_SECOND, || {
            far.publish(&sandbox, events);
            far.wait(events, report)
        });
        let beside = neighbours.observe("beside the far one", published, report).latency;
        rates.push((rate, f64::from(capacity) / 2.0 / ALONE.as_secs_f64()));
        p99.push((beside.p99, alone.p99));
        deferred.push(deferrals(&notifier));
        // Events that it hasn't delivered in time are deleted with their queue.
        notifier.kill();
    }
    let figure = |name: &str| format!("far, one, {setting}: {name}");
    report.ratio(&figure("deliveries/s"), case.rate_of_one, &rates);
    report.ratio(&figure("p99 ms of a prompt one"), case.p99, &p99);
    report.figure(&figure(&format!("deferrals of {events} events")), Target::None, &deferred);
}

fn many(case: &Case, rounds: usize, report: &mut Report) {
    let Case { setting, capacity, for_many: events, .. } = *case;
    println!("{events} events at once for {MANY} receivers that take {EACH:?} each; {setting}");
    let (mut rates, mut deferred) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let sandbox = Sandbox::new();
        let far = Far::start(&sandbox, MANY, EACH);
        // Before the start, since publishing takes CPU time that the deliveries need.
        far.publish(&sandbox, events);
        let notifier = subject::notifier(&sandbox, setting).start();
        let rate = far.wait(events, report);
        rates.push((rate, f64::from(capacity) / EACH.as_secs_f64()));
        deferred.push(deferrals(&notifier));
        notifier.kill();
    }
    let figure = |name: &str| format!("far, {MANY}, {setting}: {name}");
    report.ratio(&figure("deliveries/s"), case.rate_of_many, &rates);
    report.figure(&figure(&format!("deferrals of {events} events")), Target::None, &deferred);
}

/// How often deliveries were held before an attempt, or parked after a failed one.
fn deferrals(notifier: &Notifier) -> f64 {
    let metrics = notifier.metrics();
    metrics.sum("webhook_deliveries_held_total", &[])
        + metrics.sum("webhook_retries_scheduled_total", &[])
}

/// Distant receivers, each on its own host.
struct Far {
    latency: Duration,
    log: Arc<Log>,
    kinds: Vec<String>,
    _receivers: Vec<Receiver>,
}

impl Far {
    fn start(sandbox: &Sandbox, count: u8, latency: Duration) -> Self {
        let log = Log::new();
        let kinds: Vec<_> = (0..count).map(|number| format!("far.{number}")).collect();
        let receivers = (1..).zip(&kinds).map(|(number, kind)| {
            let host = Ipv4Addr::new(127, 0, 1, number);
            let receiver = Receiver::on(host, Behaviour::Slow(latency), &log);
            sandbox.webhook(&receiver.url(u32::from(number)), &[kind]);
            receiver
        });
        Self { latency, _receivers: receivers.collect(), kinds, log }
    }

    /// Publishes events for them in turn.
    fn publish(&self, sandbox: &Sandbox, events: u32) {
        let began = Instant::now();
        let mut producer = Producer::open(&sandbox.servers.amqp_url);
        for (number, kind) in (OTHERS..OTHERS + events).zip(self.kinds.iter().cycle()) {
            producer.publish(sandbox.queue(), number, kind);
        }
        producer.settle();
        println!("  published within {:.1} s", began.elapsed().as_secs_f64());
    }

    /// Waits for these events. Returns deliveries per second, from the first request to the end of the last
    /// one or of the wait.
    fn wait(&self, events: u32, report: &mut Report) -> f64 {
        let events = OTHERS..OTHERS + events;
        let complete = self.log.wait(events.len(), TIMEOUT);
        let ended = now();
        report.require_no_repeats("far", self.log.differences(events.clone()));
        let deliveries = self.log.deliveries();
        let (Some(first), Some(last)) = (deliveries.first(), deliveries.last()) else {
            println!("  nothing has arrived within {TIMEOUT:?}");
            return 0.0;
        };
        let end = if complete { last.at } else { ended };
        let took = Duration::from_nanos(end - first.at) + self.latency;
        let rate = deliveries.len() as f64 / took.as_secs_f64();
        println!(
            "  {} of {} delivered in {:.1} s, {rate:.1}/s",
            deliveries.len(),
            events.len(),
            took.as_secs_f64(),
        );
        rate
    }
}
