//! The delivery log (the table `delivery_attempts`): what is logged, what an entry contains, and where a
//! delivery is according to its entries.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::answer::Excerpt;
use super::delivery::Delivery;
use super::event::Event;
use super::outcome::{Decision, Reason};
use super::shown::{self, quoted};
use super::time::{self, UnixMillis};

mod state;
pub mod report;

pub use state::DeliveryState;

/// How many characters of an error an entry contains: as many as the header `x-last-error`.
const MOST_OF_DETAIL: usize = 300;

/// What is logged. As a setting: `off`, `failures` or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Nothing is logged.
    Off,
    /// Deliveries that don't succeed at once are logged: failed attempts, waits, deaths, drops, and
    /// the success if there is one in the end.
    Failures,
    /// Everything is logged, also immediate successes and events that no webhook wants.
    All,
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "failures" => Ok(Self::Failures),
            "all" => Ok(Self::All),
            _ => Err(format!("{} is not one of off, failures, all", quoted(text))),
        }
    }
}

/// Writes the value of the setting.
impl fmt::Display for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Off => "off",
            Self::Failures => "failures",
            Self::All => "all",
        })
    }
}

/// What happened to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    /// An attempt was made.
    Attempted {
        /// Why it failed; `None` if the receiver has the event.
        failure: Option<Reason>,
        /// The status of the answer, if there was one.
        status: Option<u16>,
        /// How long it took.
        took: Duration,
        /// What happens next.
        decision: Decision,
    },
    /// No attempt was made.
    HeldBack {
        /// The reason, as in the metrics.
        why: &'static str,
        /// What happens next; `None` if the delivery waits in its receiver's backlog.
        decision: Option<Decision>,
    },
    /// No attempt was made here, but the retry lane makes one as soon as it can.
    HandedOver {
        /// The reason, as in the metrics.
        why: &'static str,
    },
    /// The delivery was dropped because its webhook is deleted or disabled.
    Dropped {
        /// `deleted` or `disabled`.
        why: &'static str,
    },
}

impl Extent {
    /// Whether the log includes what happened to a delivery.
    #[must_use]
    pub fn includes(self, happened: &Happened, delivery: &Delivery) -> bool {
        match (self, happened) {
            (Self::Off, _) => false,
            (Self::All, _) => true,
            // The log has earlier entries of this delivery: it failed, waited, or even died and was
            // replayed.
            (Self::Failures, Happened::Attempted { failure: None, .. }) => {
                !delivery.last_error.is_empty()
            }
            (Self::Failures, Happened::HandedOver { .. }) => false,
            (Self::Failures, _) => true,
        }
    }
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "most are those of Happened")]
pub enum What {
    Delivered,
    Failed,
    HeldBack,
    HandedOver,
    Dropped,
    /// No webhook wants the event.
    Unmatched,
}

impl What {
    const ALL: [Self; 6] = [
        Self::Delivered,
        Self::Failed,
        Self::HeldBack,
        Self::HandedOver,
        Self::Dropped,
        Self::Unmatched,
    ];

    /// The label, as in the table.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::HeldBack => "held_back",
            Self::HandedOver => "handed_over",
            Self::Dropped => "dropped",
            Self::Unmatched => "unmatched",
        }
    }

    /// The kind with this label; `None` for a label of a later version.
    #[must_use]
    pub fn of_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.label() == label)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// When it happened.
    #[serde(serialize_with = "time::serialize")]
    pub at: UnixMillis,
    /// The event's id.
    pub event_id: String,
    /// The event's type.
    pub event_type: String,
    /// The event's account, if it has one.
    pub account: Option<String>,
    /// The webhook; `None` if no webhook wants the event.
    pub webhook_id: Option<Uuid>,
    /// The queue that the event was published to.
    pub queue: String,
    /// What happened.
    pub what: What,
    /// Attempts made so far, including this one.
    pub attempt: u32,
    /// The status of the answer.
    pub status: Option<u16>,
    /// The reason, as a label from a fixed set.
    pub reason: Option<String>,
    /// The reason in words; may be empty. Contains no secret.
    pub detail: String,
    /// The receiver's answer, if it was no success and answers are kept.
    pub answer: Option<Box<Excerpt>>,
    /// How long the attempt took, in milliseconds.
    pub ms: Option<u64>,
    /// The time of the next attempt.
    #[serde(serialize_with = "time::serialize_option")]
    pub next_attempt_at: Option<UnixMillis>,
    /// The reason of the dead letter, if the delivery died.
    pub dead: Option<String>,
}

impl LogEntry {
    /// Describes what happened to a delivery of an event from `queue`.
    #[must_use]
    pub fn of(happened: &Happened, queue: &str, delivery: &Delivery, at: UnixMillis) -> Self {
        let (what, reason, status, took, decision) = match *happened {
            Happened::Attempted { failure: None, status, took, .. } => {
                (What::Delivered, None, status, Some(took), None)
            }
            Happened::Attempted { failure: Some(reason), status, took, decision } => {
                (What::Failed, Some(reason.label()), status, Some(took), Some(decision))
            }
            Happened::HeldBack { why, decision } => {
                (What::HeldBack, Some(why), None, None, decision)
            }
            Happened::HandedOver { why } => (What::HandedOver, Some(why), None, None, None),
            Happened::Dropped { why } => (What::Dropped, Some(why), None, None, None),
        };
        // After a success, the delivery's last error is from an earlier attempt.
        let error = if what == What::Delivered { "" } else { &delivery.last_error };
        // Without an attempt, the delivery's last answer is from an earlier one.
        let answer = delivery.last_answer.as_ref().filter(|_| what == What::Failed);
        Self {
            webhook_id: Some(delivery.webhook_id),
            attempt: delivery.attempts,
            status,
            reason: reason.map(str::to_owned),
            detail: shown::line(error, MOST_OF_DETAIL),
            answer: answer.cloned(),
            ms: took.map(time::millis),
            next_attempt_at: match decision {
                Some(Decision::Park(wait)) => Some(time::later(at, wait.get())),
                _ => None,
            },
            dead: match decision {
                Some(Decision::Dead(reason)) => Some(reason.label().to_owned()),
                _ => None,
            },
            ..Self::bare(what, queue, &delivery.event, at)
        }
    }

    /// Describes that no webhook wants this event from `queue`.
    #[must_use]
    pub fn unmatched(queue: &str, event: &Event, at: UnixMillis) -> Self {
        Self::bare(What::Unmatched, queue, event, at)
    }

    fn bare(what: What, queue: &str, event: &Event, at: UnixMillis) -> Self {
        Self {
            at,
            event_id: event.id.clone(),
            event_type: event.event_type.clone(),
            account: event.account.as_deref().map(str::to_owned),
            webhook_id: None,
            queue: queue.to_owned(),
            what,
            attempt: 0,
            status: None,
            reason: None,
            detail: String::new(),
            answer: None,
            ms: None,
            next_attempt_at: None,
            dead: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::DeadReason;
    use crate::domain::time::Span;

    pub(super) fn delivery(attempts: u32, last_error: &str) -> Delivery {
        Delivery {
            event: Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None },
            webhook_id: Uuid::nil(),
            attempts,
            first_received_at: 0,
            last_error: last_error.to_owned(),
            last_answer: None,
            not_before: None,
        }
    }

    pub(super) fn park(seconds: u64) -> Decision {
        Decision::Park(Span::from(Duration::from_secs(seconds)))
    }

    fn attempted(failure: Option<Reason>, decision: Decision) -> Happened {
        Happened::Attempted { failure, status: None, took: Duration::from_millis(7), decision }
    }

    pub(super) fn delivered() -> Happened {
        attempted(None, Decision::Delivered)
    }

    pub(super) fn failed(decision: Decision) -> Happened {
        attempted(Some(Reason::Timeout), decision)
    }

    pub(super) fn held_back(decision: Option<Decision>) -> Happened {
        Happened::HeldBack { why: "breaker", decision }
    }

    #[test]
    fn the_extent_decides_what_is_logged() {
        let dead = Decision::Dead(DeadReason::Expired);
        let handed_over = Happened::HandedOver { why: "split" };
        let cases = [
            // What happened; the delivery; whether `failures` includes it; whether `all` does.
            (delivered(), delivery(1, ""), false, true),
            (delivered(), delivery(2, "status 500"), true, true),
            // Replayed.
            (delivered(), delivery(1, "status 500"), true, true),
            (failed(park(1)), delivery(1, "status 500"), true, true),
            (failed(dead), delivery(9, "status 500"), true, true),
            (handed_over, delivery(0, ""), false, true),
            (held_back(None), delivery(0, "x"), true, true),
            (held_back(Some(park(60))), delivery(0, "x"), true, true),
            (held_back(Some(dead)), delivery(0, "x"), true, true),
            (Happened::Dropped { why: "deleted" }, delivery(3, "x"), true, true),
        ];
        for (happened, delivery, failures, all) in cases {
            let included = |extent: Extent| extent.includes(&happened, &delivery);
            assert_eq!(included(Extent::Failures), failures, "{happened:?} {delivery:?}");
            assert_eq!(included(Extent::All), all, "{happened:?} {delivery:?}");
            assert!(!included(Extent::Off));
        }
    }

    #[test]
    fn an_entry_says_what_happened_and_what_happens_next() {
        let entry = LogEntry::of(&failed(park(2)), "q", &delivery(3, "no answer\n"), 1_000);
        assert_eq!((entry.what, entry.attempt, entry.ms), (What::Failed, 3, Some(7)));
        assert_eq!(entry.reason.as_deref(), Some("timeout"));
        assert_eq!((entry.next_attempt_at, entry.dead), (Some(3_000), None));
        assert_eq!(entry.detail, "no answer\\n");
        let answer = Some(Box::new(Excerpt::new("HTTP/1.1 500 Oh", "no", 9)));
        let answered = Delivery { last_answer: answer.clone(), ..delivery(1, "status 500") };
        assert_eq!(LogEntry::of(&failed(park(2)), "q", &answered, 0).answer, answer);
        for later in [delivered(), held_back(None)] {
            assert_eq!(LogEntry::of(&later, "q", &answered, 0).answer, None);
        }
        let dead = Decision::Dead(DeadReason::Exhausted);
        let entry = LogEntry::of(&failed(dead), "q", &delivery(3, "x"), 1_000);
        assert_eq!((entry.next_attempt_at, entry.dead.as_deref()), (None, Some("exhausted")));
        let entry = LogEntry::of(&delivered(), "q", &delivery(2, "status 500"), 1_000);
        assert_eq!((entry.what, entry.detail.as_str(), entry.reason), (What::Delivered, "", None));
        for what in What::ALL {
            assert_eq!(What::of_label(what.label()), Some(what));
        }
    }

    #[test]
    fn an_extent_is_read_and_printed_and_anything_else_is_refused() {
        for (text, extent) in [("off", Extent::Off), ("failures", Extent::Failures)] {
            assert_eq!(text.parse(), Ok(extent));
            assert_eq!(extent.to_string(), text);
        }
        assert!("ALL".parse::<Extent>().is_err_and(|error| error.contains("failures")));
    }
}
