//! The results of a run: the table, and what went wrong.

use std::fmt;

use crate::{measure::Spread, receiver::Differences};

/// What a figure should be. The median of the rounds decides whether it is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// At most this ratio, or at most this many milliseconds more: on a quiet machine a single further
    /// scheduler slice doubles a latency, which nobody notices.
    AtMostOr {
        ratio: f64,
        slack: f64,
    },
    /// None: the figure is only reported.
    None,
}

impl Target {
    /// What "at most twice the latency" means here.
    pub(crate) const TWICE: Self = Self::within_ratio(2.0);

    pub(crate) const fn within_ratio(ratio: f64) -> Self {
        Self::AtMostOr { ratio, slack: 5.0 }
    }

    /// The verdict on a figure, or on a ratio and the difference of its two figures.
    fn verdict(self, value: f64, difference: f64) -> &'static str {
        let reached = match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::AtMostOr { ratio, slack } => value <= ratio || difference <= slack,
            Self::None => return "",
        };
        if reached { "reached" } else { "missed" }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::AtLeast(least) => format!(">= {}", number(*least)),
            Self::AtMost(most) => format!("<= {}", number(*most)),
            Self::AtMostOr { ratio, slack } => format!("<= {} or +{slack} ms", number(*ratio)),
            Self::None => String::new(),
        })
    }
}

const NOTE: &str = "\
NOTIFIER and BASELINE are medians of the rounds. MIN, MEDIAN and MAX are those of the ratio of the
two, or of the figure itself if it has no baseline; this median must meet the target. A missed target
does not fail the run, since other load on the machine can cause it. Lost, repeated or leftover
events do.";

/// A figure of a round: its name, its target, and how to get it from the round.
pub(crate) type Figure<'a, R> = (&'a str, Target, fn(&R) -> f64);

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) target: Target,
    /// Of the ratio to the baseline; without a baseline, of the figure itself.
    pub(crate) spread: Spread,
    /// The median of the difference to the baseline.
    pub(crate) difference: f64,
    pub(crate) ours: String,
    pub(crate) baseline: String,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
    wrong: Vec<String>,
}

impl Report {
    pub(crate) fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Adds a figure's ratio to its baseline, round by round.
    pub(crate) fn ratio(&mut self, figure: &str, target: Target, pairs: &[(f64, f64)]) {
        let ours = Spread::of(pairs.iter().map(|pair| pair.0)).median;
        let baseline = Spread::of(pairs.iter().map(|pair| pair.1)).median;
        self.row(Row {
            figure: figure.to_owned(),
            target,
            spread: Spread::of(pairs.iter().map(|(ours, baseline)| ours / baseline)),
            difference: Spread::of(pairs.iter().map(|(ours, baseline)| ours - baseline)).median,
            ours: number(ours),
            baseline: number(baseline),
        });
    }

    /// Adds figures of pairs of rounds, of which the second is the baseline.
    pub(crate) fn ratios<R>(&mut self, case: &str, pairs: &[(R, R)], figures: &[Figure<'_, R>]) {
        for (figure, target, of) in figures {
            let pairs: Vec<_> = pairs.iter().map(|(ours, other)| (of(ours), of(other))).collect();
            self.ratio(&format!("{case}: {figure}"), *target, &pairs);
        }
    }

    /// Adds a figure without a baseline.
    pub(crate) fn figure(&mut self, figure: &str, target: Target, values: &[f64]) {
        let spread = Spread::of(values.iter().copied());
        let figure = figure.to_owned();
        self.row(Row {
            figure,
            target,
            spread,
            difference: f64::INFINITY,
            ours: number(spread.median),
            baseline: String::new(),
        });
    }

    /// Adds figures of rounds.
    pub(crate) fn figures<R>(&mut self, case: &str, rounds: &[R], figures: &[Figure<'_, R>]) {
        for (figure, target, of) in figures {
            let values: Vec<_> = rounds.iter().map(of).collect();
            self.figure(&format!("{case}: {figure}"), *target, &values);
        }
    }

    /// Records that something is lost, repeated or otherwise wrong: the run fails.
    pub(crate) fn wrong(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        println!("  WRONG: {problem}");
        self.wrong.push(problem);
    }

    /// Requires that everything has arrived, once.
    pub(crate) fn require_complete(&mut self, case: &str, differences: Differences) {
        if !differences.are_none() {
            self.wrong(format!("{case}: {differences}"));
        }
    }

    /// Requires that what has arrived did so once. Some may still be on its way.
    pub(crate) fn require_no_repeats(&mut self, case: &str, differences: Differences) {
        if !differences.are_only_missing() {
            self.wrong(format!("{case}: {differences}"));
        }
    }

    /// Whether nothing is wrong.
    pub(crate) fn has_passed(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.figure.chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "{:width$}  {:>9}  {:>9}  {:>7} {:>7} {:>7}  {:>15}",
            "FIGURE", "NOTIFIER", "BASELINE", "MIN", "MEDIAN", "MAX", "TARGET"
        )?;
        for row in &self.rows {
            let Spread { min, median, max } = row.spread;
            let (min, median, max) = (number(min), number(median), number(max));
            let verdict = row.target.verdict(row.spread.median, row.difference);
            writeln!(
                f,
                "{:width$}  {:>9}  {:>9}  {min:>7} {median:>7} {max:>7}  {:>15}  {verdict}",
                row.figure, row.ours, row.baseline, row.target
            )?;
        }
        writeln!(f, "\n{NOTE}\n")?;
        match self.wrong.len() {
            0 => write!(f, "nothing lost, nothing repeated, nothing left behind"),
            count => write!(f, "{count} PROBLEMS, the first: {}", self.wrong[0]),
        }
    }
}

/// Prints about three digits.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        ..10.0 => 2,
        ..100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}
