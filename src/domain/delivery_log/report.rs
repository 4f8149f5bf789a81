//! A report of a webhook's deliveries over a period, made from the log.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::What;
use crate::domain::time::{self, UnixMillis};

/// The part of an entry that a report counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedEntry {
    /// The entry's id.
    pub id: i64,
    /// When it happened.
    pub at: UnixMillis,
    /// The event's id.
    pub event_id: String,
    /// What happened.
    pub what: What,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The reason, as a label from a fixed set.
    pub reason: Option<String>,
    /// How long the attempt took, in milliseconds.
    pub ms: Option<u64>,
    /// The reason of the dead letter, if the delivery died.
    pub dead: Option<String>,
}

/// A report of a webhook's deliveries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WebhookReport {
    /// How many events have entries.
    pub events: u64,
    /// How many attempts succeeded.
    pub delivered: u64,
    /// How many attempts failed.
    pub failed: u64,
    /// How often a delivery was held back instead of being attempted.
    pub held_back: u64,
    /// How many deliveries were dropped because of their webhook.
    pub dropped: u64,
    /// How many deliveries died, by reason.
    pub dead: BTreeMap<String, u64>,
    /// The failed attempts by their reason, the most frequent first.
    #[serde(skip)]
    pub failures: Vec<Failures>,
    /// The longest time between two successive attempts.
    pub longest_gap: Option<Gap>,
    /// The id of the first entry.
    #[serde(skip)]
    pub first: Option<i64>,
    /// The id of the last entry.
    #[serde(skip)]
    pub last: Option<i64>,
    /// The id of the slowest attempt's entry.
    #[serde(skip)]
    pub slowest: Option<i64>,
}

/// Failed attempts of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// The reason, as a label from a fixed set.
    pub reason: String,
    /// The status of the answers.
    pub status: Option<u16>,
    /// How many attempts failed like this.
    pub count: u64,
    /// The time of the first.
    #[serde(serialize_with = "time::serialize")]
    pub first_at: UnixMillis,
    /// The time of the last.
    #[serde(serialize_with = "time::serialize")]
    pub last_at: UnixMillis,
    /// The id of the last attempt's entry.
    #[serde(skip)]
    pub last: i64,
}

/// A period without attempts between two attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The time of the attempt before.
    #[serde(serialize_with = "time::serialize")]
    pub from: UnixMillis,
    /// The time of the attempt after.
    #[serde(serialize_with = "time::serialize")]
    pub to: UnixMillis,
}

impl Gap {
    /// Its length in milliseconds.
    #[must_use]
    pub const fn millis(self) -> i64 {
        self.to - self.from
    }
}

impl WebhookReport {
    /// Makes the report of these entries, oldest first.
    #[must_use]
    pub fn of(marks: impl IntoIterator<Item = CountedEntry>) -> Self {
        let mut report = Self::default();
        let mut events: HashSet<String> = HashSet::new();
        let mut failures: BTreeMap<(String, Option<u16>), Failures> = BTreeMap::new();
        let (mut slowest, mut attempted): (Option<u64>, Option<UnixMillis>) = (None, None);
        for mark in marks {
            let CountedEntry { id, at, event_id, what, status, reason, ms, dead } = mark;
            events.insert(event_id);
            report.first.get_or_insert(id);
            report.last = Some(id);
            match what {
                What::Delivered => report.delivered += 1,
                What::Failed => {
                    report.failed += 1;
                    let reason = reason.unwrap_or_default();
                    let key = (reason.clone(), status);
                    let new =
                        Failures { reason, status, count: 0, first_at: at, last_at: at, last: id };
                    let failures = failures.entry(key).or_insert(new);
                    failures.count += 1;
                    (failures.last_at, failures.last) = (at, id);
                }
                What::HeldBack => report.held_back += 1,
                What::Dropped => report.dropped += 1,
                What::HandedOver | What::Unmatched => {}
            }
            if let Some(reason) = dead {
                *report.dead.entry(reason).or_default() += 1;
            }
            if matches!(what, What::Delivered | What::Failed) {
                let gap = attempted.map(|from| Gap { from, to: at });
                let longest = report.longest_gap.map_or(0, Gap::millis);
                if let Some(gap) = gap.filter(|gap| gap.millis() > longest) {
                    report.longest_gap = Some(gap);
                }
                attempted = Some(at);
                if ms.is_some() && ms > slowest {
                    (slowest, report.slowest) = (ms, Some(id));
                }
            }
        }
        report.events = events.len() as u64;
        report.failures = failures.into_values().collect();
        // The sort is stable: equal counts stay ordered by reason.
        report.failures.sort_by_key(|failures| std::cmp::Reverse(failures.count));
        report
    }

    /// The number of attempts.
    #[must_use]
    pub const fn attempts(&self) -> u64 {
        self.delivered + self.failed
    }

    /// The ids of the entries that the report refers to.
    pub fn entries(&self) -> impl Iterator<Item = i64> {
        let named = [self.first, self.last, self.slowest].into_iter().flatten();
        named.chain(self.failures.iter().map(|failures| failures.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(id: i64, at: i64, event: &str, what: What) -> CountedEntry {
        let (event_id, status, reason) = (event.to_owned(), None, None);
        CountedEntry { id, at, event_id, what, status, reason, ms: None, dead: None }
    }

    fn failed(
        id: i64,
        at: i64,
        event: &str,
        reason: &str,
        status: Option<u16>,
        ms: u64,
    ) -> CountedEntry {
        let reason = Some(reason.to_owned());
        CountedEntry { status, reason, ms: Some(ms), ..mark(id, at, event, What::Failed) }
    }

    #[test]
    fn a_report_counts_and_finds_the_slowest_attempt_and_the_longest_gap() {
        let report = WebhookReport::of([
            mark(1, 1_000, "a", What::HeldBack),
            failed(2, 2_000, "a", "status_5xx", Some(503), 7),
            failed(3, 3_000, "b", "timeout", None, 10_000),
            failed(4, 9_000, "a", "status_5xx", Some(503), 3),
            failed(5, 9_500, "c", "status_5xx", Some(500), 10_000),
            CountedEntry {
                dead: Some("exhausted".to_owned()),
                ..failed(6, 9_600, "b", "timeout", None, 9)
            },
            CountedEntry { ms: Some(1), ..mark(7, 9_700, "a", What::Delivered) },
            mark(8, 99_700, "d", What::HandedOver),
        ]);
        assert_eq!((report.events, report.attempts()), (4, 6));
        assert_eq!((report.delivered, report.failed), (1, 5));
        assert_eq!((report.held_back, report.dropped), (1, 0));
        assert_eq!(report.dead, BTreeMap::from([("exhausted".to_owned(), 1)]));
        let failures: Vec<_> =
            report.failures.iter().map(|it| (&*it.reason, it.status, it.count, it.last)).collect();
        let expected = [
            ("status_5xx", Some(503), 2, 4),
            ("timeout", None, 2, 6),
            ("status_5xx", Some(500), 1, 5),
        ];
        assert_eq!(failures, expected);
        assert_eq!((report.failures[0].first_at, report.failures[0].last_at), (2_000, 9_000));
        assert_eq!((report.first, report.last), (Some(1), Some(8)));
        assert_eq!(report.slowest, Some(3), "the first of the equally slow ones");
        assert_eq!(report.longest_gap, Some(Gap { from: 3_000, to: 9_000 }));
        assert_eq!(report.entries().count(), 6);
    }

    #[test]
    fn a_report_of_nothing_is_empty_and_one_attempt_has_no_gap() {
        assert_eq!(WebhookReport::of([]), WebhookReport::default());
        let once = WebhookReport::of([mark(1, 5, "a", What::Delivered)]);
        assert_eq!((once.longest_gap, once.slowest), (None, None));
    }
}
