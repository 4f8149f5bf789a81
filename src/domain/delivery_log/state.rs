//! Where a delivery is now, according to its log entries.

use std::time::Duration;

use serde::Serialize;

use super::{LogEntry, What};
use crate::domain::dead_letter::DeathCause;
use crate::domain::held::{Dropped, Held};
use crate::domain::time::{self, UnixMillis};
use crate::domain::vocabulary::ReadWord;

/// How late a delivery may be before it counts as overdue, because its lane may be busy. In addition, the
/// broker's clock may be wrong by 5 %.
const LATE: Duration = Duration::from_secs(60);

/// Where a delivery is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is at its receiver.
    Delivered {
        /// When it got there.
        #[serde(serialize_with = "time::serialize")]
        at: UnixMillis,
    },
    /// It is in its receiver's backlog.
    InBacklog {
        /// Since when it has been there.
        #[serde(serialize_with = "time::serialize")]
        since: UnixMillis,
        /// Why it was held back.
        reason: ReadWord<Held>,
    },
    /// It waits at the broker for its next attempt.
    Waiting {
        /// The time of that attempt.
        #[serde(serialize_with = "time::serialize")]
        until: UnixMillis,
        /// Whether a newer entry should exist by now.
        overdue: bool,
    },
    /// It is in the dead-letter queue.
    Dead {
        /// When it died.
        #[serde(serialize_with = "time::serialize")]
        at: UnixMillis,
        /// Why it died.
        reason: ReadWord<DeathCause>,
    },
    /// It was dropped, because its webhook was deleted or disabled.
    Dropped {
        /// When it was dropped.
        #[serde(serialize_with = "time::serialize")]
        at: UnixMillis,
        /// Whether the webhook was deleted or disabled.
        reason: ReadWord<Dropped>,
    },
}

impl DeliveryState {
    /// Where a delivery is at the time `now`, according to its entries, oldest first. `None` if it has
    /// none.
    #[must_use]
    pub fn of(entries: &[LogEntry], now: UnixMillis) -> Option<Self> {
        let last = entries.iter().rfind(|entry| entry.what != What::Unmatched)?;
        let reason = last.reason.as_deref().unwrap_or_default();
        Some(match (last.what, &last.dead) {
            (What::Delivered, _) => Self::Delivered { at: last.at },
            (What::Dropped, _) => Self::Dropped { at: last.at, reason: reason.into() },
            (_, Some(dead)) => Self::Dead { at: last.at, reason: dead.as_str().into() },
            (What::HeldBack, None) if last.next_attempt_at.is_none() => {
                Self::InBacklog { since: last.at, reason: reason.into() }
            }
            (_, None) => {
                let until = last.next_attempt_at.unwrap_or(last.at);
                Self::Waiting { until, overdue: now > due(last, until) }
            }
        })
    }
}

/// The latest time at which the next entry should exist.
fn due(last: &LogEntry, until: UnixMillis) -> UnixMillis {
    time::later(until, LATE + time::between(last.at, until) / 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::delivery_log::Happened;
    use crate::domain::delivery_log::tests::{delivered, delivery, failed, held_back, park};
    use crate::domain::event::Event;
    use crate::domain::outcome::{DeadReason, Decision};

    #[test]
    fn the_last_entry_says_where_a_delivery_is() {
        let at = 1_000_000;
        let entry = |happened| LogEntry::of(&happened, "q", &delivery(1, "x"), at);
        let state =
            |entries: &[LogEntry], after: i64| DeliveryState::of(entries, at + after * 1_000);
        let waiting = |seconds: i64, overdue| {
            Some(DeliveryState::Waiting { until: at + seconds * 1_000, overdue })
        };
        let failed_once = entry(failed(park(10)));
        assert_eq!(state(&[], 0), None);
        assert_eq!(state(std::slice::from_ref(&failed_once), 5), waiting(10, false));
        assert_eq!(state(std::slice::from_ref(&failed_once), 69), waiting(10, false));
        assert_eq!(state(std::slice::from_ref(&failed_once), 72), waiting(10, true));
        // In a backlog it may stay for any time.
        let held = [failed_once.clone(), entry(held_back(None))];
        let in_backlog =
            DeliveryState::InBacklog { since: at, reason: ReadWord::Known(Held::Breaker) };
        assert_eq!(state(&held, 100_000), Some(in_backlog));
        let parked = [entry(held_back(Some(park(60))))];
        assert_eq!(state(&parked, 100), waiting(60, false));
        assert_eq!(state(&parked, 124), waiting(60, true));
        let handed_over = entry(Happened::HandedOver { why: "split" });
        assert_eq!(state(&[handed_over], 61), waiting(0, true));
        let ended = |happened| state(&[failed_once.clone(), entry(happened)], 0);
        assert_eq!(ended(delivered()), Some(DeliveryState::Delivered { at }));
        assert_eq!(
            ended(failed(Decision::Dead(DeadReason::Gone))),
            Some(DeliveryState::Dead { at, reason: "gone".into() })
        );
        assert_eq!(
            ended(Happened::Dropped { why: "disabled" }),
            Some(DeliveryState::Dropped { at, reason: ReadWord::Known(Dropped::Disabled) })
        );
        let event = Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None };
        assert_eq!(state(&[LogEntry::unmatched("q", &event, at)], 0), None);
    }
}
