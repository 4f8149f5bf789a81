//! A receiver answers 503 for AWAY while events for it arrive, next to healthy ones: what its events cost
//! meanwhile, how soon its recovery is noticed, and how fast and in which order it gets them then.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{Notifier, Sandbox},
    load::{self, Producer, Published},
    measure::Latency,
    neighbours::{self, Neighbours, OTHERS, PATIENCE},
    order::Order,
    queued,
    readings::{Reading, broker_pid},
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

/// The number of events for the receiver that is away.
const EVENTS: u32 = 20_000;
const KIND: &str = "invoice.late";
/// Its response time while it is healthy.
const LATENCY: Duration = Duration::from_millis(10);

const NEIGHBOURS: u32 = 4;
const NEIGHBOURS_PER_SECOND: u32 = 100;
const ALONE_SECONDS: u32 = 30;

/// The end of the outage, in which nothing is published: at most a quarter of the outage.
const QUIET: Duration = Duration::from_secs(30);

/// A recovery may remain unnoticed for a quarter of the outage, plus this.
const UNTIL_NOTICED: Duration = Duration::from_secs(1);

/// The run waits for the deliveries as long as the outage was, plus this.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let (away, events) = (settings.away, settings.events(EVENTS));
    println!("503 for {away:?}, {events} events meanwhile; then it answers in {LATENCY:?}");
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure(settings, report)).collect();
    let noticed = Target::AtMost((away / 4 + UNTIL_NOTICED).as_secs_f64());
    report.figures(
        "away",
        &rounds,
        &[
            ("deferrals per event and failed attempt", Target::AtMost(1.0), |round| {
                round.deferrals
            }),
            ("CPU % of a core without new events, above idle", Target::AtMost(1.0), |round| {
                round.cpu
            }),
            ("s from its recovery to the first success", noticed, |round| round.noticed),
            ("% of events out of order", Target::AtMost(0.1), |round| round.overtaken),
            ("events missing at the end", Target::AtMost(0.0), |round| round.missing),
        ],
    );
    let pairs = |of: fn(&Round) -> (f64, f64)| -> Vec<_> { rounds.iter().map(of).collect() };
    report.ratio(
        "away: deliveries/s then; queued for a healthy one",
        Target::AtLeast(0.8),
        &pairs(|round| round.drain),
    );
    report.ratio("away: p99 ms of healthy ones", Target::TWICE, &pairs(|round| round.p99));
}

struct Round {
    deferrals: f64,
    cpu: f64,
    noticed: f64,
    overtaken: f64,
    missing: f64,
    drain: (f64, f64),
    /// The healthy receivers', next to the other one and alone.
    p99: (f64, f64),
}

fn measure(settings: &Settings, report: &mut Report) -> Round {
    let (away, events) = (settings.away, settings.events(EVENTS));
    let quiet = QUIET.min(away / 4);
    let queued = queued::measure(events, LATENCY, report);
    let (alone, idle) = alone(quiet, report);

    let broker = broker_pid();
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Slow(LATENCY), &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut neighbours = Neighbours::start(&sandbox, NEIGHBOURS);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    neighbours.prove(&sandbox);
    // The receiver must be known as healthy.
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    producer.publish(sandbox.queue(), OTHERS, KIND);
    producer.settle();
    if !log.wait(1, PATIENCE) {
        report.wrong("away: the event before the outage is missing");
    }

    receiver.fail();
    let began = Instant::now();
    let before = Reading::take(&notifier, broker);
    let numbers = OTHERS + 1..OTHERS + 1 + events;
    let per_second = events.div_ceil(seconds(away - quiet));
    let (_, one) = neighbours.load_beside(&sandbox, NEIGHBOURS_PER_SECOND, || {
        let address = |number| (number < numbers.end).then_some((sandbox.queue(), KIND));
        load::steadily_from(numbers.start, &sandbox.servers.amqp_url, per_second, address)
    });
    thread::sleep((away - quiet).saturating_sub(began.elapsed()));
    let quiet_began = Reading::take(&notifier, broker);
    thread::sleep(away.saturating_sub(began.elapsed()));
    let ended = Reading::take(&notifier, broker);

    let back = receiver.recover();
    let (_, other) = neighbours.load_beside(&sandbox, NEIGHBOURS_PER_SECOND, || {
        log.wait(events as usize + 1, away + TIMEOUT)
    });
    let after = Reading::take(&notifier, broker);
    let published =
        Published { count: one.count + other.count, latest: one.latest.max(other.latest) };
    let beside = neighbours.observe("beside the one that was away", published, report).latency;
    let differences = log.differences(OTHERS..numbers.end);
    report.require_no_repeats("away", differences);
    // It may hold waiting events, which are deleted with their queue.
    notifier.kill();

    let mut deliveries = log.deliveries();
    deliveries.retain(|delivery| delivery.at >= back);
    let since = |at: u64| Duration::from_nanos(at.saturating_sub(back)).as_secs_f64();
    let at_the_end = (away + TIMEOUT).as_secs_f64();
    let noticed = deliveries.first().map_or(at_the_end, |delivery| since(delivery.at));
    let last = deliveries.last().map_or(at_the_end, |delivery| since(delivery.at));
    let order = Order::of(&log.receipts(), LATENCY);
    let (outage, calm, all) =
        (ended.since(&before), ended.since(&quiet_began), after.since(&before));
    println!(
        "  {:.0} deferrals, {:.0} failed attempts; {:.0} messages received in {:.0} s of outage",
        all.deferrals, all.failures, outage.received, outage.seconds
    );
    println!(
        "  CPU of the notifier {:.2} % of a core, of the broker {:.1} %; without new events: {:.2} % (idle {idle:.2} %), {:.1} %",
        outage.notifier, outage.broker, calm.notifier, calm.broker
    );
    println!(
        "  first success {noticed:.2} s after its recovery, the last of {} after {last:.1} s; {} missing; {order}",
        deliveries.len(),
        differences.missing
    );
    Round {
        deferrals: all.relative_deferrals(events),
        cpu: calm.notifier - idle,
        noticed,
        overtaken: order.overtaken_percent(),
        missing: differences.missing as f64,
        drain: (queued::per_second(&deliveries), queued),
        p99: (beside.p99, alone.p99),
    }
}

/// The healthy receivers' latencies without the other; and the notifier's CPU time while idle, in percent of
/// a core.
fn alone(quiet: Duration, report: &mut Report) -> (Latency, f64) {
    let broker = broker_pid();
    let idle = |notifier: &Notifier| {
        let before = Reading::take(notifier, broker);
        thread::sleep(quiet);
        Reading::take(notifier, broker).since(&before).notifier
    };
    let (rate, setting) = (NEIGHBOURS_PER_SECOND, Setting::DEFAULT);
    neighbours::alone_and_idle(NEIGHBOURS, rate, ALONE_SECONDS, setting, report, idle)
}

fn seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs()).expect("an outage is no longer than a day").max(1)
}
