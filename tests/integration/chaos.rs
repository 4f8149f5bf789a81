//! While events flow, everything fails, in an order that a seed determines. At the end a ledger accounts
//! for each event.
//!
//! `make chaos` runs it for longer, with the release binary; DURATION, RATE and SEED set the details, and
//! with CLUSTER=yes the faults strike a cluster. `soak` and `drain` are other long tests: of steady load,
//! and of kills while a backlog drains.

mod settings;
mod cast;
mod plan;
mod history;
mod bound;
mod ledger;
mod ledger_tests;
mod producer;
mod receivers;
mod ground;
mod stage;
mod faults;
mod nodes;
mod report;
mod soak;
mod drain;

use std::{fs, path::Path, time::Instant};

use ledger::Ledger;
use plan::{Fault, Plan};
use settings::Settings;
use stage::{Played, Stage};

/// Printed when no more faults will follow. Then the test waits for minutes, until its receivers have
/// everything: scripts/test.sh continues meanwhile.
const QUIET: &str = "chaos: all faults have struck";

#[test]
fn nothing_promised_is_lost_and_every_repeat_has_a_cause_whatever_breaks() {
    // A slow machine needs nearly all its time for 100 events per second if the notifiers aren't optimized. After
    // a fault, new events then wait behind old ones for longer than the run allows.
    let settings = Settings::from_environment("60s", "50");
    let faults = if settings.is_cluster { &Fault::OF_CLUSTERS[..] } else { &Fault::ALL };
    eprintln!("DURATION={:?} RATE={} SEED={}", settings.duration, settings.rate, settings.seed);
    let mut stage = Stage::set(&settings);
    let end = Instant::now() + settings.duration;
    for (n, step) in Plan::of(settings.seed, faults).enumerate() {
        // At least one round, however short the run.
        if n >= faults.len() && Instant::now() >= end {
            break;
        }
        stage.strike(&step);
    }
    eprintln!("{QUIET}");
    conclude(&settings, "chaos", stage.finish());
}

/// Prints the report, and fails if the run has problems.
#[track_caller]
fn conclude(settings: &Settings, target: &str, played: Played) {
    let ledger = Ledger::of(&played.history);
    eprintln!("\n{}\n", report::report(settings, &played, &ledger));
    let mut problems = ledger.problems();
    problems.extend(played.history.too_long_gaps());
    problems.extend(played.problems);
    if problems.is_empty() {
        return;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{target}.log"));
    fs::write(&path, played.logs.join("\n")).expect("a log can be written");
    problems.extend(ledger.examples);
    let cluster = if settings.is_cluster { "CLUSTER=yes " } else { "" };
    panic!(
        "{}\nlogs of the notifiers: {}\nto run it again: make {target} {cluster}SEED={} RATE={} DURATION={}s",
        problems.join("\n"),
        path.display(),
        settings.seed,
        settings.rate,
        settings.duration.as_secs()
    );
}
