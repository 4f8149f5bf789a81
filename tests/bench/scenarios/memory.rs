//! Whether memory grows with the number of events, in one tuned process at full speed. And what hanging
//! requests use, and what remains of it afterwards, above all threads.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::Sandbox,
    load::{self, Producer},
    measure::resident_mib,
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{Side, Subject},
};

const KIND: &str = "invoice.paid";
const BATCH: u32 = 10_000;
const BATCHES: u32 = 20;

/// The number of hanging requests for each of the three queues: their default capacity.
const HANGING: u8 = 64;
/// How long they hang: less than REQUEST_TIMEOUT.
const HANG: Duration = Duration::from_secs(6);
/// How long the threads that are no longer needed may take to end.
const GONE: Duration = Duration::from_secs(75);

/// Far more than a batch takes.
const TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{BATCHES} times {BATCH} events; {}", settings.notifier);
    let mut round = || measure(settings, report);
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
    let last = BATCH * BATCHES;
    report.ratio(&format!("memory: MiB after {last}"), Target::AtMost(1.1), &rounds);
    let after: Vec<_> = rounds.iter().map(|round| round.0).collect();
    report.figure("memory: MiB", Target::AtMost(40.0), &after);
    hang(settings, report);
}

/// Resident memory after all batches, and after the first.
fn measure(settings: &Settings, report: &mut Report) -> (f64, f64) {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut subject = Subject::start(Side::Notifier(settings.notifier), &sandbox, &receiver.url(0));
    subject.wait_ready();
    let mut resident = Vec::new();
    for batch in 0..BATCHES {
        let events = batch * BATCH..(batch + 1) * BATCH;
        let end = events.end;
        load::fill(&sandbox.servers.amqp_url, sandbox.queue(), events, KIND);
        if !log.wait(end as usize, TIMEOUT) {
            break;
        }
        resident.push(resident_mib(subject.id()));
    }
    report.require_complete("memory", log.differences(0..BATCH * BATCHES));
    subject.stop(&sandbox, report);
    let (Some(&first), Some(&last)) = (resident.first(), resident.last()) else {
        panic!("the first {BATCH} events were not delivered within {TIMEOUT:?}")
    };
    let most = resident.iter().copied().fold(first, f64::max);
    println!("  {first:.1} MiB after {BATCH}, {last:.1} MiB at the end, {most:.1} MiB at most");
    (last, first)
}

fn hang(settings: &Settings, report: &mut Report) {
    println!(
        "three queues with an event each that {HANGING} hanging webhooks want; default configuration"
    );
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| measure_hanging(report)).collect();
    let hanging: Vec<_> = rounds.iter().map(|round| round.hanging).collect();
    let all = f64::from(HANGING) * 3.0;
    report.figure(&format!("memory: hanging requests, of {all}"), Target::None, &hanging);
    let resident: Vec<_> = rounds.iter().map(|round| round.resident).collect();
    report.figure("memory: MiB while they hang", Target::AtMost(40.0), &resident);
    let threads: Vec<_> = rounds.iter().map(|round| round.threads).collect();
    report.ratio("memory: threads afterwards; at the start", Target::AtMost(1.0), &threads);
}

struct Hanging {
    hanging: f64,
    /// MiB.
    resident: f64,
    /// A minute after the requests have ended, and at the start.
    threads: (f64, f64),
}

fn measure_hanging(report: &mut Report) -> Hanging {
    let sandbox = Sandbox::with_queues(3);
    let log = Log::new();
    let kinds: Vec<_> = (0..sandbox.queues.len()).map(|queue| format!("hanging.{queue}")).collect();
    let mut receivers = Vec::new();
    for (net, kind) in (5..).zip(&kinds) {
        for host in 1..=HANGING {
            let receiver = Receiver::on(Ipv4Addr::new(127, 0, net, host), Behaviour::Prompt, &log);
            sandbox.webhook(&receiver.url(u32::from(host)), &[kind]);
            receivers.push(receiver);
        }
    }
    let notifier = sandbox.notifier().start();
    let [_, at_start, _] = notifier.resources();
    let mut producer = Producer::open(&sandbox.servers.amqp_url);
    let mut publish = |first: u32| {
        for (number, (queue, kind)) in (first..).zip(sandbox.queues.iter().zip(&kinds)) {
            producer.publish(queue, number, kind);
        }
        producer.settle();
    };
    // Each has answered once before it hangs.
    publish(0);
    if !log.wait(receivers.len(), TIMEOUT) {
        report.wrong(format!("memory: some of {} receivers got no event", receivers.len()));
    }
    let answered = log.receipts().len();
    receivers.iter().for_each(Receiver::hold);
    publish(10);
    let began = Instant::now();
    let (mut hanging, mut resident, mut threads) = (0, 0.0_f64, 0);
    while began.elapsed() < HANG {
        thread::sleep(Duration::from_millis(100));
        hanging = log.receipts().len() - answered;
        resident = resident.max(resident_mib(notifier.id()));
        threads = threads.max(notifier.resources()[1]);
    }
    receivers.iter().for_each(Receiver::release);
    let released = Instant::now();
    let mut after = threads;
    while after > at_start && released.elapsed() < GONE {
        thread::sleep(Duration::from_millis(500));
        after = notifier.resources()[1];
    }
    let took = released.elapsed();
    log.wait(receivers.len() * 2, TIMEOUT);
    let expected = (0..3).chain(10..13);
    let expected =
        expected.flat_map(|event| (1..=u32::from(HANGING)).map(move |webhook| (event, webhook)));
    let differences = log.differences_by_delivery(expected);
    report.require_complete("memory, hanging requests", differences);
    notifier.terminate();
    println!(
        "  {hanging} requests hang: {resident:.1} MiB, {threads} threads; {at_start} threads at the start, {after} {:.0} s after the end",
        took.as_secs_f64()
    );
    Hanging { hanging: hanging as f64, resident, threads: (after as f64, at_start as f64) }
}
