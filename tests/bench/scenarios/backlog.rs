//! A receiver is away while 100,000 events are published, a tenth of them for it, and then recovers: how
//! long it takes until it has all, and a healthy receiver's latencies before, meanwhile and after.

use std::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::{
    harness::{Sandbox, wait_until},
    load,
    measure::{Latency, now},
    receiver::{Behaviour, Log, Receiver, free_port},
    report::{Report, Target},
    settings::Settings,
    subject,
};

const KIND: &str = "invoice.paid";
const FOR_THE_DEAD: &str = "invoice.lost";

/// Fast enough that the receiver recovers before its first deliveries have waited for 91 s. After that,
/// the default schedule's next delay is five minutes, which is too long for a benchmark.
const PER_SECOND: u32 = 1_250;
/// Without events for the dead receiver: the baseline.
const BEFORE: Range<u32> = 0..20_000;
/// Every tenth of these is for the dead receiver.
const DEAD: Range<u32> = 20_000..120_000;

/// The delays of the default schedule that can have begun by then add up to a minute and a half. A
/// circuit breaker may delay deliveries further.
const TIMEOUT: Duration = Duration::from_secs(300);

fn is_for_the_dead(number: u32) -> bool {
    DEAD.contains(&number) && number.is_multiple_of(10)
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "{PER_SECOND} events/s; every tenth of {} for a receiver that is away; {}",
        DEAD.len(),
        settings.notifier
    );
    let sandbox = Sandbox::new();
    let (log, dead_log) = (Log::new(), Log::new());
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let port = free_port();
    sandbox.webhook(&format!("http://127.0.0.1:{port}/webhooks/1"), &[FOR_THE_DEAD]);
    let notifier = subject::notifier(&sandbox, settings.notifier).start();

    let (all_dead_published, end) = (AtomicBool::new(false), AtomicBool::new(false));
    let address = |number| {
        all_dead_published.store(number >= DEAD.end, Ordering::Release);
        let kind = if is_for_the_dead(number) { FOR_THE_DEAD } else { KIND };
        (!end.load(Ordering::Acquire)).then_some((sandbox.queue(), kind))
    };
    let waiting = DEAD.filter(|&number| is_for_the_dead(number)).count();
    let (published, seconds) = thread::scope(|scope| {
        let load = || load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
        let load = scope.spawn(load);
        wait_until(TIMEOUT, "the events for the dead receiver are published", || {
            all_dead_published.load(Ordering::Acquire) || load.is_finished()
        });
        let back = now();
        let recovered = Receiver::start_at(port, Behaviour::Prompt, &dead_log);
        let complete = dead_log.wait(waiting, TIMEOUT);
        end.store(true, Ordering::Release);
        let published = load.join().expect("publishing does not fail");
        drop(recovered);
        let last = dead_log.receipts().last().map_or(back, |receipt| receipt.at);
        (published, complete.then(|| Duration::from_nanos(last - back).as_secs_f64()))
    });

    let healthy = (0..published.count).filter(|&number| !is_for_the_dead(number));
    log.wait(healthy.clone().count(), TIMEOUT);
    report.require_complete("backlog, the healthy receiver", log.differences(healthy));
    let late = dead_log.differences(DEAD.filter(|&number| is_for_the_dead(number)));
    report.require_complete("backlog, the recovered receiver", late);
    notifier.terminate();

    let receipts = log.receipts();
    let latency = |events: Range<u32>| {
        let receipts = receipts.iter().filter(|receipt| events.contains(&receipt.event));
        Latency::of(receipts.map(|receipt| receipt.latency()))
    };
    let before = latency(BEFORE);
    println!("  before     {before}  ({published})");
    for (figure, phase, events) in [
        ("backlog: p99 ms of a healthy one, outage", "meanwhile", DEAD),
        (
            "backlog: p99 ms of a healthy one, catching up",
            "after",
            DEAD.end..published.count.max(DEAD.end + 1),
        ),
    ] {
        let latency = latency(events);
        println!("  {phase:9}  {latency}");
        report.ratio(figure, Target::None, &[(latency.p99, before.p99)]);
    }
    if let Some(seconds) = seconds {
        println!("  all {waiting} waiting deliveries arrived {seconds:.1} s after its recovery");
        report.figure("backlog: s from its recovery until it has all", Target::None, &[seconds]);
    }
}
