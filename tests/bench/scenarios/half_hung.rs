//! A hundred webhooks want one event type, sixty of them never answer, and there is one event per second:
//! what the other forty get, if each has its own host, and if all are on one host.

use std::{iter, net::Ipv4Addr};

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    neighbours::PATIENCE,
    receiver::{Behaviour, Log, Receipt, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const WEBHOOKS: u32 = 100;
const EVENTS: u32 = 60;
const KIND: &str = "price.changed";

/// Until this second the notifier may still be learning which ones hang.
const LEARNED: u32 = 20;

/// Three of five, spread over all webhooks.
fn hangs(webhook: u32) -> bool {
    webhook % 5 < 3
}

fn is_healthy(webhook: &u32) -> bool {
    !hangs(*webhook)
}

/// A name, the number of hosts, and the behaviour of the receivers.
type Case = (&'static str, u32, Behaviour);
const APART: Case = ("hosts apart", WEBHOOKS, Behaviour::SilentTo(hangs));
const TOGETHER: Case = ("one host", 1, Behaviour::SilentTo(hangs));
const NONE_HANGS: Case = ("none hangs", WEBHOOKS, Behaviour::Prompt);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    let healthy = (0..WEBHOOKS).filter(is_healthy).count();
    println!("{WEBHOOKS} webhooks, {healthy} of them healthy; an event a second, {EVENTS} of them");
    let mut round = || [APART, TOGETHER, NONE_HANGS].map(|case| measure(case, report));
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
    let all = f64::from(EVENTS) * healthy as f64;
    for (case, (name, ..)) in [APART, TOGETHER].into_iter().enumerate() {
        let figures =
            |of: fn(&Round) -> f64| -> Vec<_> { rounds.iter().map(|all| of(&all[case])).collect() };
        let pairs = |of: fn(&Round) -> f64| -> Vec<_> {
            rounds.iter().map(|all| (of(&all[case]), of(&all[2]))).collect()
        };
        let figure = |figure: &str| format!("half-hung, {name}: {figure}");
        report.figure(
            &figure(&format!("deliveries to healthy ones, of {all}")),
            Target::AtLeast(all),
            &figures(|round| round.delivered as f64),
        );
        report.figure(
            &figure(&format!("max ms, from second {LEARNED} on")),
            Target::AtMost(1_000.0),
            &figures(|round| round.learned.max),
        );
        report.ratio(
            &figure(&format!("p99 ms, from second {LEARNED} on")),
            Target::TWICE,
            &pairs(|round| round.learned.p99),
        );
        report.ratio(&figure("p99 ms"), Target::None, &pairs(|round| round.all.p99));
    }
}

/// The results of the healthy webhooks.
struct Round {
    delivered: usize,
    all: Latency,
    /// For the events from [`LEARNED`] on.
    learned: Latency,
}

fn measure((case, hosts, behaviour): Case, report: &mut Report) -> Round {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receivers = (1..)
        .take(hosts as usize)
        .map(|host| Receiver::on(Ipv4Addr::new(127, 0, 4, host), behaviour, &log));
    let receivers: Vec<_> = receivers.collect();
    for (webhook, receiver) in (0..WEBHOOKS).zip(receivers.iter().cycle()) {
        sandbox.webhook(&receiver.url(webhook), &[KIND]);
    }
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    let address = |number| (number < EVENTS).then_some((sandbox.queue(), KIND));
    let published = load::steadily(&sandbox.servers.amqp_url, 1, address);
    let some_hang = matches!(behaviour, Behaviour::SilentTo(_));
    let answering = || (0..WEBHOOKS).filter(|webhook| !some_hang || is_healthy(webhook));
    let expected: Vec<_> =
        (0..EVENTS).flat_map(|event| answering().map(move |webhook| (event, webhook))).collect();
    log.wait(expected.len(), PATIENCE);
    let differences = log.differences_by_delivery(expected.iter().copied());
    // It holds deliveries to the hanging webhooks, which are deleted with their queue.
    notifier.kill();
    if some_hang {
        report.require_no_repeats(&format!("half-hung, {case}"), differences);
    } else {
        report.require_complete(&format!("half-hung, {case}"), differences);
    }
    let mut deliveries = log.deliveries();
    deliveries.retain(|delivery| is_healthy(&delivery.webhook));
    let healthy = (0..WEBHOOKS).filter(is_healthy).count();
    let latency = |first: u32| {
        let came = deliveries.iter().filter(|delivery| delivery.event >= first);
        let due = (EVENTS - first) as usize * healthy;
        let late = due.saturating_sub(came.clone().count());
        let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        Latency::of(came.map(Receipt::latency).chain(iter::repeat_n(patience, late)))
    };
    let round = Round { delivered: deliveries.len(), all: latency(0), learned: latency(LEARNED) };
    let due = EVENTS as usize * healthy;
    println!("  {case}: {} of {due} deliveries to healthy ones; {}", round.delivered, round.all);
    println!("    from second {LEARNED} on: {}  ({published})", round.learned);
    round
}
