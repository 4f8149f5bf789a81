//! How it grows: with webhooks and types of events, with queues, and with instances.
//!
//! On two cores all of this shows cost, not speed: the processor time of an event, and what each of the
//! servers has to do for it. What is compared runs in turn, round after round.

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

/// Two looks of the monitor, and a bit.
const REST: Duration = Duration::from_secs(11);

/// All parts, each with rounds of its own.
pub(super) fn run(settings: &Settings, report: &mut Report) {
    for part in [size::run, start::run, queues::run, instances::run] {
        part(settings, report);
    }
}

/// What is measured of each case in one part: fewer rounds where the figures decide nothing.
fn fewer(rounds: usize) -> usize {
    rounds.div_ceil(2)
}

/// The cases in the order of this round. Who is first takes turns, or a machine that is slowing down would
/// look like a difference.
fn in_turn(cases: usize, round: usize) -> Vec<usize> {
    let order = 0..cases;
    if round.is_multiple_of(2) { order.collect() } else { order.rev().collect() }
}

/// What a notifier and its broker use while nothing comes, in percent of a core.
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
