//! The backlogs of webhooks, as the commands show them.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use serde::Serialize;
use uuid::Uuid;

use super::MOST_SHOWN;
use crate::broker::{BrokerError, Link, backlog_queue};
use crate::cli::print_stderr;
use crate::clock;
use crate::config::Config;
use crate::domain::shown;
use crate::domain::time::{rfc3339, to_unix_millis};
use crate::shutdown;
use crate::store::{BacklogRow, Store};

/// How long the broker may take to report all depths: a thousand queues take a second or two. An operator
/// waits for this, so depths that aren't known by then stay unknown.
const DEPTHS_TIMEOUT: Duration = Duration::from_secs(5);

/// The cause of a backlog whose receiver is failing: its circuit breaker is open.
const FAILING: &str = "breaker";

/// The deliveries of one queue that wait for one webhook.
#[derive(Debug, Serialize)]
pub(super) struct ShownBacklog {
    #[serde(skip)]
    pub(super) webhook: Uuid,
    queue: String,
    /// Deliveries; `None` if the broker didn't say, or the queue doesn't exist.
    waiting: Option<u32>,
    since: String,
    cause: String,
    class: String,
    until: Option<String>,
    /// The same time, to compare it with now.
    #[serde(skip)]
    not_before: Option<SystemTime>,
}

/// The backlogs of the webhooks for which `is_meant` is true. If there are any, the broker is asked for their
/// depths. If it doesn't answer, a warning is printed, and the depths are missing.
pub(super) fn find(
    config: &Config,
    store: &Store,
    is_meant: impl Fn(Uuid) -> bool,
) -> Result<Vec<ShownBacklog>> {
    let mut rows = store.backlogs()?;
    rows.retain(|row| is_meant(row.webhook));
    let depths = depths(config, &rows);
    let found = rows.into_iter().zip(depths);
    Ok(found.map(|(row, waiting)| ShownBacklog::of(row, waiting)).collect())
}

/// How many messages are ready in the queue of each row.
fn depths(config: &Config, rows: &[BacklogRow]) -> Vec<Option<u32>> {
    let mut depths = vec![None; rows.len()];
    if rows.is_empty() {
        return depths;
    }
    let asked = ask(config, rows.iter().zip(&mut depths));
    if let Err(problem) = asked {
        print_stderr(&format!("warning: how many deliveries wait is not known: {problem}"));
    }
    depths
}

fn ask<'a>(
    config: &Config,
    rows: impl Iterator<Item = (&'a BacklogRow, &'a mut Option<u32>)>,
) -> Result<(), String> {
    let text = |error: BrokerError| error.to_string();
    let (_trigger, shutdown) = shutdown::channel();
    let mut link = Link::open(&config.amqp, config.connect_timeout, &shutdown).map_err(text)?;
    let began = Instant::now();
    for (row, depth) in rows {
        if began.elapsed() > DEPTHS_TIMEOUT {
            link.close();
            return Err(format!("RabbitMQ has not answered everything within {DEPTHS_TIMEOUT:?}"));
        }
        let queue = backlog_queue(&row.queue, row.webhook);
        *depth = link.queue_messages(&queue, &shutdown).map_err(text)?;
    }
    link.close();
    Ok(())
}

impl ShownBacklog {
    fn of(row: BacklogRow, waiting: Option<u32>) -> Self {
        let time = |at| rfc3339(to_unix_millis(at));
        Self {
            webhook: row.webhook,
            queue: row.queue,
            waiting,
            since: time(row.since),
            cause: row.cause,
            class: row.class,
            until: row.until.map(time),
            not_before: row.until,
        }
    }

    /// Since when deliveries wait because the receiver is failing; `None` if none do.
    pub(super) fn failing_since(&self) -> Option<&str> {
        (self.cause == FAILING && self.waiting != Some(0)).then_some(self.since.as_str())
    }

    /// `low_priority: 429 waiting since 2026-11-25T02:54:28Z, breaker, next attempt at …`
    pub(super) fn line(&self) -> String {
        let name = |text: &str| shown::line(text, MOST_SHOWN);
        let (queue, since, cause) = (name(&self.queue), &self.since, name(&self.cause));
        let waiting = match self.waiting {
            // Time and cause are those of deliveries that have left.
            Some(0) => return format!("{queue}: nothing waits"),
            Some(waiting) => grouped(waiting.into()),
            None => "?".to_owned(),
        };
        let is_ahead = self.not_before.is_some_and(|at| at > clock::now());
        let next = self.until.as_ref().filter(|_| is_ahead);
        let next = next.map_or_else(String::new, |at| format!(", next attempt at {at}"));
        format!("{queue}: {waiting} waiting since {since}, {cause}{next}")
    }
}

/// How many deliveries wait in several backlogs together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    known: u64,
    is_all: bool,
}

impl Sum {
    /// `None` if there is no backlog.
    pub(super) fn of<'a>(backlogs: impl Iterator<Item = &'a ShownBacklog>) -> Option<Self> {
        backlogs.fold(None, |sum: Option<Self>, backlog| {
            let sum = sum.unwrap_or(Self { known: 0, is_all: true });
            Some(Self {
                known: sum.known + u64::from(backlog.waiting.unwrap_or(0)),
                is_all: sum.is_all && backlog.waiting.is_some(),
            })
        })
    }

    /// The sum; `None` if a part isn't known.
    pub(super) fn known(self) -> Option<u64> {
        self.is_all.then_some(self.known)
    }

    /// For a column of numbers.
    pub(super) fn figure(self) -> String {
        if self.is_all { grouped(self.known) } else { "?".to_owned() }
    }

    /// A sentence about what is dropped with the webhook; `None` if nothing is.
    pub(super) fn loss(self, will: &str) -> Option<String> {
        self.loss_of("its", will)
    }

    /// The same for several webhooks.
    pub(super) fn loss_of(self, whose: &str, will: &str) -> Option<String> {
        let known = match self.known {
            1 => "1 delivery waits".to_owned(),
            known => format!("{} deliveries wait", grouped(known)),
        };
        let waiting = match self {
            Self { known: 0, is_all: true } => return None,
            Self { is_all: true, .. } => known,
            Self { known: 0, is_all: false } => "an unknown number of deliveries waits".to_owned(),
            Self { is_all: false, .. } => format!("at least {known}"),
        };
        Some(format!("{waiting} in {whose} backlogs, and {will} be dropped"))
    }
}

/// A sentence about the deliveries that wait for their next attempt when their webhook is disabled or
/// removed. `count` is how many the delivery log knows.
pub(super) fn loss_of_retries(count: Option<u64>, is_removed: bool) -> String {
    let end = if is_removed { "" } else { ", unless the webhook is enabled by then" };
    let (known, each) = match count {
        None => ("deliveries that wait for their next attempt are not counted".to_owned(), "each"),
        Some(0) => (
            "the delivery log knows none that waits for its next attempt".to_owned(),
            "such a delivery",
        ),
        Some(1) => ("1 delivery waits for its next attempt, by the delivery log".to_owned(), "it"),
        Some(count) => {
            let count = grouped(count);
            (format!("{count} deliveries wait for their next attempt, by the delivery log"), "each")
        }
    };
    format!("{known}: {each} is dropped when it is due{end}")
}

/// `12,345`
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
impl ShownBacklog {
    /// For a failing receiver.
    pub(super) fn example(since: &str, waiting: Option<u32>) -> Self {
        Self {
            webhook: Uuid::nil(),
            queue: "low_priority".to_owned(),
            waiting,
            since: since.to_owned(),
            cause: FAILING.to_owned(),
            class: "slow".to_owned(),
            until: None,
            not_before: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backlog(waiting: Option<u32>, until: Option<SystemTime>) -> ShownBacklog {
        let row = BacklogRow {
            queue: "low\u{1b}".to_owned(),
            webhook: Uuid::nil(),
            since: SystemTime::UNIX_EPOCH,
            cause: "breaker".to_owned(),
            class: "slow".to_owned(),
            until,
            is_closing: false,
        };
        ShownBacklog::of(row, waiting)
    }

    fn sum(waiting: &[Option<u32>]) -> Option<Sum> {
        let backlogs: Vec<_> = waiting.iter().map(|waiting| backlog(*waiting, None)).collect();
        Sum::of(backlogs.iter())
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        for (number, expected) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (12_345, "12,345"), (1_234_567, "1,234,567")]
        {
            assert_eq!(grouped(number), expected);
        }
    }

    #[test]
    fn a_line_says_what_is_known_and_no_more() {
        let since = "waiting since 1970-01-01T00:00:00Z, breaker";
        let line = |waiting, until| backlog(waiting, until).line();
        let check = |line: String, expected: &str| {
            let told = line.split_once(": ").map(|(_, told)| told);
            assert_eq!(told, Some(expected));
        };
        check(line(Some(1_429), None), &format!("1,429 {since}"));
        check(line(None, None), &format!("? {since}"));
        check(line(Some(0), None), "nothing waits");
        // A time in the past says nothing about the next attempt.
        check(line(Some(1), Some(SystemTime::UNIX_EPOCH)), &format!("1 {since}"));
        let later = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
        let next = format!("1 {since}, next attempt at 9999-12-31T23:59:59Z");
        check(line(Some(1), Some(later)), &next);
        assert!(!line(None, None).contains('\u{1b}'));
    }

    #[test]
    fn deliveries_that_wait_for_their_next_attempt_are_dropped_later() {
        let end = "is dropped when it is due, unless the webhook is enabled by then";
        let check = |count, begin: &str| {
            assert_eq!(loss_of_retries(count, false), format!("{begin} {end}"));
        };
        check(Some(1), "1 delivery waits for its next attempt, by the delivery log: it");
        check(
            Some(1_234),
            "1,234 deliveries wait for their next attempt, by the delivery log: each",
        );
        check(
            Some(0),
            "the delivery log knows none that waits for its next attempt: such a delivery",
        );
        check(None, "deliveries that wait for their next attempt are not counted: each");
        assert!(loss_of_retries(None, true).ends_with(": each is dropped when it is due"));
    }

    #[test]
    fn what_is_lost_is_told_as_far_as_it_is_known() {
        let loss = |waiting: &[Option<u32>]| sum(waiting).and_then(|sum| sum.loss("will"));
        assert!(sum(&[]).is_none());
        assert_eq!(loss(&[Some(0)]), None);
        let check = |waiting: &[Option<u32>], figure: &str, count: &str| {
            assert_eq!(sum(waiting).map(Sum::figure).as_deref(), Some(figure));
            let said = format!("{count} in its backlogs, and will be dropped");
            assert_eq!(loss(waiting), Some(said));
        };
        check(&[Some(12_000), Some(345)], "12,345", "12,345 deliveries wait");
        check(&[Some(1), Some(0)], "1", "1 delivery waits");
        check(&[Some(7), None], "?", "at least 7 deliveries wait");
        check(&[Some(1), None], "?", "at least 1 delivery waits");
        check(&[None], "?", "an unknown number of deliveries waits");
    }
}
