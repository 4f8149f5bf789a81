//! How soon a notifier is ready, its memory then, its CPU time while idle, and how long it takes to list all
//! webhooks.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::{
    crowd::{self, Crowd, Size, thousands},
    in_turn,
};
use crate::{
    measure::resident_mib,
    readings::broker_pid,
    report::{Report, Target},
    settings::Settings,
};

const SIZES: [Size; 2] = [Size::new(100_000, 10), Size::SMALL];

/// Far more than it takes.
const TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("from exec until /readyz answers 200; default configuration, one queue");
    let crowds = SIZES.map(|size| Crowd::register(size, 1));
    let mut found = [Vec::new(), Vec::new()];
    for round in 0..settings.rounds(5) {
        for number in in_turn(crowds.len(), round) {
            let crowd = &crowds[number];
            let (notifier, took) = crowd::start(&crowd.sandbox);
            let resident = resident_mib(notifier.id());
            println!("  {:30}  {took:4.0} ms, {resident:.1} MiB", crowd.size.to_string());
            crowd.end("start", notifier, report);
            found[number].push((took, resident));
        }
    }
    let [many, few] = found;
    let pairs: Vec<_> = many.into_iter().zip(few).collect();
    let many = thousands(SIZES[0].webhooks);
    report.ratios(
        &format!("scale, {many} webhooks"),
        &pairs,
        &[("ms to ready", Target::None, |it| it.0), ("MiB when ready", Target::None, |it| it.1)],
    );
    let broker = broker_pid();
    for crowd in &crowds {
        let (notifier, _) = crowd::start(&crowd.sandbox);
        let (ours, brokers) = super::idle_percent(&notifier, broker);
        println!(
            "  {}, idle: CPU of the notifier {ours:.1} %, of the broker {brokers:.1} %",
            crowd.size
        );
        let figure =
            |of: &str| format!("scale, {} webhooks, idle: {of}", thousands(crowd.size.webhooks));
        report.figure(&figure("CPU % of a core"), Target::None, &[ours]);
        report.figure(&figure("CPU % of a core of the broker"), Target::None, &[brokers]);
        crowd.end("start", notifier, report);
    }
    let (took, peak, lines) = list(&crowds[0], report);
    println!("  `webhooks list`: {lines} lines in {took:.1} s, {peak:.0} MiB at most");
    report.figure(&format!("scale, {many} webhooks: s to list them"), Target::None, &[took]);
    report.figure(&format!("scale, {many} webhooks: MiB to list them"), Target::None, &[peak]);
}

/// Seconds, peak MiB, and lines.
fn list(crowd: &Crowd, report: &mut Report) -> (f64, f64, usize) {
    let began = Instant::now();
    let mut process = crowd.sandbox.launch(&["webhooks", "list"]).spawn();
    let status = format!("/proc/{}/status", process.id());
    let mut peak = 0.0_f64;
    while process.is_running() && began.elapsed() < TIMEOUT {
        // The file is gone once the process has ended.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        peak = peak.max(kib.unwrap_or(0.0) / 1024.0);
        thread::sleep(Duration::from_millis(5));
    }
    let finished = process.finish(TIMEOUT);
    let lines = finished.stdout.lines().count();
    if finished.code != Some(0) || lines < crowd.size.webhooks as usize {
        report.wrong(format!("`webhooks list` ended with {:?} after {lines} lines", finished.code));
    }
    (began.elapsed().as_secs_f64(), peak, lines)
}
