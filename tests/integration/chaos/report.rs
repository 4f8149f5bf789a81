//! The table at the end of a run, for people.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use super::{
    cast::Webhook,
    history::History,
    ledger::{Ledger, Row},
    plan::Fault,
    settings::Settings,
    stage::Played,
};

/// The whole report.
pub(super) fn report(settings: &Settings, played: &Played, ledger: &Ledger) -> String {
    let seconds = played.produced_for.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = (ledger.promised + ledger.unconfirmed) as f64 / seconds;
    let mut lines = vec![
        format!("seed           {}", settings.seed),
        format!(
            "duration       {seconds:.0} s with events, then {:.1} s until all had arrived",
            played.drained_in.as_secs_f64()
        ),
        format!(
            "rate           {rate:.0} events per second ({} while the broker takes them)",
            settings.rate
        ),
        format!(
            "events         {} promised, {} unconfirmed (these may be missing)",
            ledger.promised, ledger.unconfirmed
        ),
        format!("requests       {} at the receivers", ledger.requests),
        String::new(),
    ];
    lines.extend(webhooks(ledger));
    lines.push(String::new());
    if !played.history.strikes.is_empty() {
        lines.extend(faults(&played.history));
        lines.push(String::new());
    }
    lines.extend([
        format!(
            "lost           {} (at most {}: those that were deleted with their queue)",
            ledger.total(|row| row.lost),
            ledger.deleted
        ),
        format!(
            "repeats        {} (at most {}: those that the faults can cause)",
            ledger.total(|row| row.repeats),
            ledger.bound
        ),
        format!("  unexplained  {} (must be 0)", ledger.total(|row| row.unexplained)),
        format!(
            "  at a healthy receiver, because its neighbour failed: {} (must be 0)",
            ledger.because_of_a_neighbour()
        ),
        format!("dropped        {}, deleted with their webhook", ledger.total(|row| row.dropped)),
        format!("while paused   {} requests (must be 0)", ledger.while_paused),
        format!(
            "out of order   {} of {} first requests, {:.3} % (at most 0.1 %)",
            ledger.total(|row| row.overtaken),
            ledger.total(|row| row.ordered),
            percent(ledger.total(|row| row.overtaken), ledger.total(|row| row.ordered))
        ),
    ]);
    lines.join("\n")
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn percent(part: usize, of: usize) -> f64 {
    part as f64 / of.max(1) as f64 * 100.0
}

fn webhooks(ledger: &Ledger) -> Vec<String> {
    let line = |name: &str, row: &Row| {
        format!(
            "{name:30} {:>9} {:>10} {:>6} {:>8} {:>5} {:>8} {:>8} {:>10}",
            row.promised,
            row.delivered,
            row.dead,
            row.dropped,
            row.lost,
            row.repeats,
            row.ordered,
            row.overtaken
        )
    };
    let mut lines = vec![format!(
        "{:30} {:>9} {:>10} {:>6} {:>8} {:>5} {:>8} {:>8} {:>10}",
        "WEBHOOK",
        "PROMISED",
        "DELIVERED",
        "DEAD",
        "DROPPED",
        "LOST",
        "REPEATS",
        "ORDERED",
        "OVERTAKEN"
    )];
    for webhook in Webhook::ALL {
        let row = ledger.rows.get(&webhook).copied().unwrap_or_default();
        lines.push(line(webhook.name(), &row));
    }
    let total = Row {
        promised: ledger.total(|row| row.promised),
        delivered: ledger.total(|row| row.delivered),
        dead: ledger.total(|row| row.dead),
        dropped: ledger.total(|row| row.dropped),
        lost: ledger.total(|row| row.lost),
        repeats: ledger.total(|row| row.repeats),
        ordered: ledger.total(|row| row.ordered),
        overtaken: ledger.total(|row| row.overtaken),
        ..Row::default()
    };
    lines.push(line("all", &total));
    lines
}

fn faults(history: &History) -> Vec<String> {
    struct Of {
        count: usize,
        bound: usize,
        longest: Duration,
        gap: Duration,
    }
    let History { strikes, requests, .. } = history;
    let mut of: BTreeMap<Fault, Of> = BTreeMap::new();
    for strike in strikes {
        let row = of.entry(strike.fault).or_insert(Of {
            count: 0,
            bound: 0,
            longest: Duration::ZERO,
            gap: Duration::ZERO,
        });
        row.count += 1;
        row.bound += strike.bound(requests);
        row.longest = row.longest.max(strike.recovered - strike.repaired);
        row.gap = row.gap.max(history.longest_gap(strike.struck, strike.recovered));
    }
    let mut lines = vec![format!(
        "{:32} {:>9} {:>10} {:>20} {:>14}",
        "FAULT", "STRUCK", "REPEATS<=", "LONGEST RECOVERY", "LONGEST GAP"
    )];
    for (fault, Of { count, bound, longest, gap }) in of {
        let (longest, gap) = (longest.as_secs_f64(), gap.as_secs_f64());
        lines.push(format!(
            "{:32} {count:>9} {bound:>10} {longest:>18.1} s {gap:>12.1} s",
            fault.name()
        ));
    }
    let mut order = String::from("order of faults: ");
    for (n, strike) in strikes.iter().enumerate() {
        let _ = write!(order, "{}{}", if n > 0 { ", " } else { "" }, strike.fault.name());
    }
    lines.push(order);
    lines
}
