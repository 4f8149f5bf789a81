//! How costs grow with the number of webhooks and event types, of queues, and of instances.
//!
//! On two cores this measures costs, not speed: the CPU time of an event, in the notifier and in the
//! servers. The compared cases run alternately, round after round.

mod crowd;
mod instances;
mod queues;
mod size;
mod start;

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{harness::Notifier, measure::processor_time, report::Report, settings::Settings};

/// A little more than the time in which the monitor reads twice.
const IDLE: Duration = Duration::from_secs(11);

/// Runs all parts, each with its own rounds.
pub(super) fn run(settings: &Settings, report: &mut Report) {
    for part in [size::run, start::run, queues::run, instances::run] {
        part(settings, report);
    }
}

/// The number of rounds for parts whose figures have no targets.
fn fewer(rounds: usize) -> usize {
    rounds.div_ceil(2)
}

/// The order of the cases in this round. It alternates: otherwise a machine that slows down would look like
/// a difference between them.
fn in_turn(cases: usize, round: usize) -> Vec<usize> {
    let order = 0..cases;
    if round.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// The CPU time that a notifier and its broker use while idle, in percent of a core.
fn idle_percent(notifier: &Notifier, broker: u32) -> (f64, f64) {
    thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    let used = || [notifier.id(), broker].map(processor_time);
    let before = used();
    thread::sleep(IDLE);
    let after = used();
    let percent =
        |of: usize| (after[of] - before[of]).as_secs_f64() / began.elapsed().as_secs_f64();
    (percent(0) * 100.0, percent(1) * 100.0)
}
