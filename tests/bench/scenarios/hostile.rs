//! Webhooks whose receivers hang for nearly REQUEST_TIMEOUT, answer one request quickly, and hang again, as
//! if to look healthy; and a healthy one next to them.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    harness::Sandbox,
    load,
    measure::Latency,
    neighbours::{self, Neighbours, OTHERS},
    receiver::{Behaviour, Log, Receiver},
    report::{Report, Target},
    settings::Settings,
    subject::{self, Setting},
};

const RHYTHM: Behaviour = Behaviour::Alternating(Duration::from_millis(9_800));
/// For all of them together.
const PER_SECOND: u32 = 15;
const NEIGHBOUR_PER_SECOND: u32 = 30;
const SECONDS: u32 = 60;

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!(
        "{PER_SECOND} events/s for the hostile receivers, {NEIGHBOUR_PER_SECOND} for a healthy one, {SECONDS} s"
    );
    let cases = [
        ("four on one host", 1, 4, Target::TWICE),
        ("forty hosts", 40, 40, Target::within_ratio(3.0)),
    ];
    let mut found = cases.map(|_| Vec::new());
    for _ in 0..settings.rounds(1) {
        let alone = neighbours::alone(1, NEIGHBOUR_PER_SECOND, 30, Setting::DEFAULT, report);
        for ((name, hosts, webhooks, _), found) in cases.into_iter().zip(&mut found) {
            found.push((measure(name, hosts, webhooks, report), alone));
        }
    }
    for ((name, _, _, target), rounds) in cases.into_iter().zip(&found) {
        report.ratios(
            &format!("hostile, {name}"),
            rounds,
            &[
                ("p50 ms of a healthy one", Target::None, |latency| latency.p50),
                ("p99 ms of a healthy one", target, |latency| latency.p99),
            ],
        );
    }
}

/// The latencies of the healthy receiver.
fn measure(case: &str, hosts: u8, webhooks: u8, report: &mut Report) -> Latency {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receivers: Vec<_> = (1..=hosts)
        .map(|host| Receiver::on(Ipv4Addr::new(127, 0, 2, host), RHYTHM, &log))
        .collect();
    let kinds: Vec<_> = (0..webhooks).map(|webhook| format!("hostile.{webhook}")).collect();
    for ((webhook, kind), receiver) in (0..).zip(&kinds).zip(receivers.iter().cycle()) {
        sandbox.webhook(&receiver.url(webhook), &[kind]);
    }
    let mut neighbours = Neighbours::start(&sandbox, 1);
    let notifier = subject::notifier(&sandbox, Setting::DEFAULT).start();
    neighbours.prove(&sandbox);
    let (_, published) = neighbours.load_beside(&sandbox, NEIGHBOUR_PER_SECOND, || {
        let address = |number| {
            let kind = &kinds[(number - OTHERS) as usize % kinds.len()];
            (number - OTHERS < PER_SECOND * SECONDS).then_some((sandbox.queue(), kind.as_str()))
        };
        load::steadily_from(OTHERS, &sandbox.servers.amqp_url, PER_SECOND, address)
    });
    let beside = neighbours.observe(&format!("beside {case}"), published, report).latency;
    println!("  the hostile receivers got {} requests", log.receipts().len());
    notifier.kill();
    beside
}
