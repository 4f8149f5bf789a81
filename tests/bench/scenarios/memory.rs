//! Whether memory grows with the number of events: one process, tuned, at full speed.

use std::time::Duration;

use crate::{
    harness::Sandbox,
    load,
    measure::resident_mib,
    receiver::{Behaviour, Log, Receiver},
    report::{Limit, Report},
    settings::Settings,
    subject::{Side, Subject},
};

const KIND: &str = "invoice.paid";
const BATCH: u32 = 10_000;
const BATCHES: u32 = 20;

/// Far above what a batch takes.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("{BATCHES} times {BATCH} events; {}", settings.notifier);
    let mut round = || measure(settings, report);
    let rounds: Vec<_> = (0..settings.rounds(1)).map(|_| round()).collect();
    let last = BATCH * BATCHES;
    report.ratio(&format!("memory: MiB after {last}"), Limit::AtMost(1.1), &rounds);
    let after: Vec<_> = rounds.iter().map(|round| round.0).collect();
    report.figure("memory: MiB", Limit::AtMost(40.0), &after);
}

/// Resident memory after all batches, and after the first.
fn measure(settings: &Settings, report: &mut Report) -> (f64, f64) {
    let sandbox = Sandbox::new();
    let log = Log::new();
    let receiver = Receiver::start(Behaviour::Prompt, &log);
    sandbox.webhook(&receiver.url(0), &[KIND]);
    let mut subject = Subject::start(Side::Notifier, &sandbox, settings.notifier, &receiver.url(0));
    subject.wait_ready();
    let mut resident = Vec::new();
    for batch in 0..BATCHES {
        let events = batch * BATCH..(batch + 1) * BATCH;
        let end = events.end;
        load::fill(&sandbox.servers.amqp_url, sandbox.queue(), events, KIND);
        if !log.wait(end as usize, LIMIT) {
            break;
        }
        resident.push(resident_mib(subject.id()));
    }
    let account = log.account(0..BATCH * BATCHES);
    if !account.is_right() {
        report.wrong(format!("memory: {account}"));
    }
    for problem in subject.stop(&sandbox) {
        report.wrong(problem);
    }
    let (Some(&first), Some(&last)) = (resident.first(), resident.last()) else {
        panic!("the first {BATCH} events were not delivered within {LIMIT:?}")
    };
    let most = resident.iter().copied().fold(first, f64::max);
    println!("  {first:.1} MiB after {BATCH}, {last:.1} MiB at the end, {most:.1} MiB at most");
    (last, first)
}
