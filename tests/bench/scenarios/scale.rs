//! Scalability: with the number of webhooks and event types, of queues, and of instances.
//!
//! On two cores all of this shows cost, not speed: an event's CPU time, and what each server has to do
//! for it. The compared cases run alternately, round after round.

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

/// Two readings of the monitor, and a bit more.
const REST: Duration = Duration::from_secs(11);

/// All parts, each with its own rounds.
pub(super) fn run(settings: &Settings, report: &mut Report) {
    for part in [size::run, start::run, queues::run, instances::run] {
        part(settings, report);
    }
}

/// The rounds of a part whose figures decide nothing.
fn fewer(rounds: usize) -> usize {
    rounds.div_ceil(2)
}

/// The order of the cases in this round. It rotates, or a machine that is slowing down would look like a
/// difference.
fn in_turn(cases: usize, round: usize) -> Vec<usize> {
    let order = 0..cases;
    if round.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// What a notifier and its broker use while idle, in percent of a core.
fn rest(notifier: &Notifier, broker: u32) -> (f64, f64) {
    thread::sleep(Duration::from_secs(1));
    let began = Instant::now();
    let used = || [notifier.id(), broker].map(processor_time);
    let before = used();
    thread::sleep(REST);
    let after = used();
    let percent =
        |of: usize| (after[of] - before[of]).as_secs_f64() / began.elapsed().as_secs_f64();
    (percent(0) * 100.0, percent(1) * 100.0)
}
