//! A receiver is away while 100,000 events are published, a tenth of them for it, and then returns: how
//! long until it has all, and a healthy receiver's latencies before, meanwhile and after.

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
    report::{Limit, Report},
    settings::Settings,
    subject,
};

const KIND: &str = "invoice.paid";
const FOR_THE_DEAD: &str = "invoice.lost";

/// So that the first deliveries to the dead receiver haven't yet waited so long (91 s) that the
/// schedule's step of five minutes is next, which is too long for a benchmark.
/// the schedule's step of five minutes, which a benchmark has no time for.
const PER_SECOND: u32 = 1_250;
/// While nothing is for the dead receiver: for comparison.
const BEFORE: Range<u32> = 0..20_000;
/// While every tenth event is.
const DEAD: Range<u32> = 20_000..120_000;

/// The waits of the default schedule that can have begun by then add up to a minute and a half, and to
/// more with a circuit breaker, which may delay further.
const LIMIT: Duration = Duration::from_secs(300);

fn is_for_the_dead(number: u32) -> bool {
    DEAD.contains(&number) && number.is_multiple_of(10)
}

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "{PER_SECOND} events/s; of {} every tenth for a receiver that is away; {}",
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
    let parked = DEAD.filter(|&number| is_for_the_dead(number)).count();
    let (published, seconds) = thread::scope(|scope| {
        let load = || load::steadily(&sandbox.servers.amqp_url, PER_SECOND, address);
        let load = scope.spawn(load);
        wait_until(LIMIT, "the events for the dead one are published", || {
            all_dead_published.load(Ordering::Acquire) || load.is_finished()
        });
        let back = now();
        let revenant = Receiver::start_at(port, Behaviour::Prompt, &dead_log);
        let complete = dead_log.wait(parked, LIMIT);
        end.store(true, Ordering::Release);
        let published = load.join().expect("publishing does not fail");
        drop(revenant);
        let last = dead_log.receipts().last().map_or(back, |receipt| receipt.at);
        (published, complete.then(|| Duration::from_nanos(last - back).as_secs_f64()))
    });

    let healthy = (0..published.count).filter(|&number| !is_for_the_dead(number));
    log.wait(healthy.clone().count(), LIMIT);
    for (who, account) in [
        ("the healthy one", log.account(healthy)),
        ("the one that came back", dead_log.account(DEAD.filter(|&n| is_for_the_dead(n)))),
    ] {
        if !account.is_right() {
            report.wrong(format!("backlog: {who} has {account}"));
        }
    }
    notifier.terminate();

    let receipts = log.receipts();
    let latency = |events: Range<u32>| {
        let receipts = receipts.iter().filter(|receipt| events.contains(&receipt.event));
        Latency::of(receipts.map(|receipt| receipt.latency()))
    };
    let before = latency(BEFORE);
    println!("  before     {before}  ({published})");
    for (figure, phase, events) in [
        ("backlog: p99 ms while one is away", "meanwhile", DEAD),
        (
            "backlog: p99 ms while it catches up",
            "after",
            DEAD.end..published.count.max(DEAD.end + 1),
        ),
    ] {
        let latency = latency(events);
        println!("  {phase:9}  {latency}");
        report.ratio(figure, Limit::None, &[(latency.p99, before.p99)]);
    }
    if let Some(seconds) = seconds {
        println!("  {parked} parked deliveries all in {seconds:.1} s after it came back");
        report.figure("backlog: s until all parked are in", Limit::None, &[seconds]);
    }
}
