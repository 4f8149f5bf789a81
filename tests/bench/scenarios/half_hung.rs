//! A hundred webhooks on one event type, sixty of which never answer, and one event per second: what the
//! other forty get, on separate hosts and on the same host.

use std::{iter, net::Ipv4Addr};

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    neighbours::PATIENCE,
    receiver::{Behaviour, Log, Receipt, Receiver},
    report::{Limit, Report},
    settings::Settings,
    subject::{self, Setting},
};

const WEBHOOKS: u32 = 100;
const EVENTS: u32 = 60;
const KIND: &str = "price.changed";

/// Until then the notifier may still be learning which ones hang.
const LEARNED: u32 = 20;

/// Three of five, spread over all.
fn hangs(webhook: u32) -> bool {
    webhook % 5 < 3
}

fn is_healthy(webhook: &u32) -> bool {
    !hangs(*webhook)
}

/// The hosts of all of them, and their behaviour.
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
            &figure(&format!("deliveries of {all} to the healthy")),
            Limit::AtLeast(all),
            &figures(|round| round.delivered as f64),
        );
        report.figure(
            &figure(&format!("longest ms, from second {LEARNED} on")),
            Limit::AtMost(1_000.0),
            &figures(|round| round.learned.max),
        );
        report.ratio(
            &figure(&format!("p99 ms, from second {LEARNED} on")),
            Limit::TWICE,
            &pairs(|round| round.learned.p99),
        );
        report.ratio(&figure("p99 ms, of all"), Limit::None, &pairs(|round| round.all.p99));
    }
}

/// The results of the healthy ones.
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
    let account = log.account_of_deliveries(expected.iter().copied());
    // It holds deliveries to the hanging ones, which are deleted with their queue.
    notifier.kill();
    if !account.may_become_right() || (!some_hang && !account.is_right()) {
        report.wrong(format!("half-hung, {case}: {account}"));
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
    println!("  {case}: the healthy got {} of {due}; {}", round.delivered, round.all);
    println!("    from second {LEARNED} on: {}  ({published})", round.learned);
    round
}
