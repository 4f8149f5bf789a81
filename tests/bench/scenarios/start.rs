//! The time from exec to the line of the log that says that every lane consumes.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    harness::{SOON, Sandbox, Servers, Signal},
    report::{Report, Target},
    settings::Settings,
};

/// The resolution of the measurement.
const POLL: Duration = Duration::from_millis(1);

/// The delays of the default schedule. All notifiers of a broker share their wait queues.
const DELAYS: [&str; 11] = ["1s", "2s", "4s", "8s", "16s", "1m", "5m", "15m", "1h", "6h", "24h"];

pub(super) fn run(settings: &Settings, report: &mut Report) {
    println!("default configuration: three queues, nine lanes");
    let sandbox = Sandbox::bare(&Servers::shared(), 3);
    sandbox.command(&["migrate"]);
    for delay in DELAYS {
        sandbox.broker.delete(&format!("webhooks.wait.{delay}")).expect("the broker is there");
    }
    let nothing_declared = measure(&sandbox, report);
    let declared: Vec<_> = (0..settings.rounds(10)).map(|_| measure(&sandbox, report)).collect();
    report.figure("start: ms", Target::AtMost(300.0), &declared);
    report.figure("start: ms, nothing declared before", Target::None, &[nothing_declared]);
}

/// Milliseconds.
fn measure(sandbox: &Sandbox, report: &mut Report) -> f64 {
    let notifier = sandbox.notifier();
    let began = Instant::now();
    let mut process = notifier.spawn();
    while !process.stderr().iter().any(|line| line.contains("ready: ")) {
        assert!(began.elapsed() < SOON && process.is_running(), "{:#?}", process.stderr());
        thread::sleep(POLL);
    }
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    println!("  {milliseconds:.0} ms");
    process.signal(Signal::TERM);
    let exit = process.wait_exit(SOON);
    if exit.code != Some(0) {
        report.wrong(format!("start: the notifier ended with {:?}", exit.code));
    }
    milliseconds
}
