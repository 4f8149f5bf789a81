//! The results of a run: the table, and what went wrong.

use std::fmt;

use crate::measure::Spread;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
    /// At most this ratio, or at most so many milliseconds more: on a quiet machine one more scheduler
    /// slice doubles a latency, which nobody notices.
    AtMostOr {
        ratio: f64,
        slack: f64,
    },
    /// Only reported.
    None,
}

impl Limit {
    /// What "at most twice the latency" means here.
    pub(crate) const TWICE: Self = Self::within_ratio(2.0);

    pub(crate) const fn within_ratio(ratio: f64) -> Self {
        Self::AtMostOr { ratio, slack: 5.0 }
    }

    /// The verdict on a figure, or on a ratio and the difference of its two figures.
    fn verdict(self, value: f64, difference: f64) -> &'static str {
        let reached = match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
            Self::AtMostOr { ratio, slack } => value <= ratio || difference <= slack,
            Self::None => return "",
        };
        if reached { "reached" } else { "missed" }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&match self {
            Self::AtLeast(limit) => format!(">= {}", number(*limit)),
            Self::AtMost(limit) => format!("<= {}", number(*limit)),
            Self::AtMostOr { ratio, slack } => format!("<= {} or +{slack} ms", number(*ratio)),
            Self::None => String::new(),
        })
    }
}

const NOTE: &str = "\
MIN, MEDIAN and MAX are over the rounds: of the ratio of the two figures, or of the figure where
there is nothing to compare it with. The median decides. A figure that is missed does not fail the
run: another load on the machine can cause that. What is lost, repeated or left behind does.";

/// One line of the table. The median decides whether the limit was met.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) figure: String,
    pub(crate) limit: Limit,
    /// The ratio if there is something to compare with, otherwise the figure itself.
    pub(crate) spread: Spread,
    /// The median of the difference to the figure that it is compared with.
    pub(crate) difference: f64,
    pub(crate) ours: String,
    pub(crate) against: String,
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

    /// Adds a figure's ratio, round by round, with the medians of both sides.
    pub(crate) fn ratio(&mut self, figure: &str, limit: Limit, pairs: &[(f64, f64)]) {
        let ours = Spread::of(pairs.iter().map(|pair| pair.0)).median;
        let against = Spread::of(pairs.iter().map(|pair| pair.1)).median;
        self.row(Row {
            figure: figure.to_owned(),
            limit,
            spread: Spread::of(pairs.iter().map(|(ours, against)| ours / against)),
            difference: Spread::of(pairs.iter().map(|(ours, against)| ours - against)).median,
            ours: number(ours),
            against: number(against),
        });
    }

    /// Adds a figure without a comparison.
    pub(crate) fn figure(&mut self, figure: &str, limit: Limit, values: &[f64]) {
        let spread = Spread::of(values.iter().copied());
        let figure = figure.to_owned();
        self.row(Row {
            figure,
            limit,
            spread,
            difference: f64::INFINITY,
            ours: number(spread.median),
            against: String::new(),
        });
    }

    /// Records something lost or wrong: the run fails.
    pub(crate) fn wrong(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        println!("  WRONG: {problem}");
        self.wrong.push(problem);
    }

    /// Whether nothing was lost or wrong.
    pub(crate) fn is_right(&self) -> bool {
        self.wrong.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.figure.chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "{:width$}  {:>9}  {:>9}  {:>7} {:>7} {:>7}  {:>15}",
            "FIGURE", "NOTIFIER", "AGAINST", "MIN", "MEDIAN", "MAX", "LIMIT"
        )?;
        for row in &self.rows {
            let Spread { min, median, max } = row.spread;
            let (min, median, max) = (number(min), number(median), number(max));
            let verdict = row.limit.verdict(row.spread.median, row.difference);
            writeln!(
                f,
                "{:width$}  {:>9}  {:>9}  {min:>7} {median:>7} {max:>7}  {:>15}  {verdict}",
                row.figure, row.ours, row.against, row.limit
            )?;
        }
        writeln!(f, "\n{NOTE}\n")?;
        match self.wrong.len() {
            0 => write!(f, "nothing lost, nothing twice, nothing left behind"),
            count => write!(f, "{count} THINGS WRONG, the first: {}", self.wrong[0]),
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
