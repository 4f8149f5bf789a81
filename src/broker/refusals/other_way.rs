//! Decides how a message is rerouted if its queue refuses it.

use std::time::Duration;

use crate::broker::outgoing::{Instead, Outgoing};
use crate::broker::topology::WITHOUT_BACKLOG;
use crate::domain::broker_names::{dead_queue, header, retry_queue};
use crate::domain::delivery::Value;
use crate::domain::time::Span;

/// If no wait queue has accepted a delivery for this long, it goes to the retry lane, where it is attempted at
/// once: at most one attempt in this time.
const LAST_RESORT: Duration = Duration::from_secs(60);

/// Reroutes a message whose queue refuses it, through one of the working wait queues (of the delays `takes`,
/// shortest first); `None` if it has to stay, at least for now. `waited` is how long it has waited for its
/// queue, and `is_crowded` is whether many others do.
pub(super) fn other_way(
    message: &Outgoing,
    takes: &[Span],
    refusing: &[String],
    waited: Duration,
    is_crowded: bool,
) -> Option<Outgoing> {
    let a_minute = Span::from(WITHOUT_BACKLOG);
    let (origin, from) = match &message.instead {
        Instead::Nowhere => return None,
        Instead::OtherWait(delay, origin) => (origin, *delay),
        Instead::NoBacklog(origin) => (origin, a_minute),
        // The shortest delay, so that it arrives soon after its queue has recovered. If there are many, they
        // would only go round in circles.
        Instead::DeadLater(origin) if is_crowded => (origin, a_minute),
        Instead::DeadLater(origin) => (origin, Duration::ZERO.into()),
    };
    let mut carried = message.message.clone();
    if let Instead::DeadLater(origin) = &message.instead {
        carried.headers.insert(header::BOUND_FOR.to_owned(), Value::Text(dead_queue(origin)));
    }
    let longer = takes.iter().find(|delay| **delay >= from);
    let shorter = || takes.iter().rev().find(|delay| **delay < from);
    if let Some(delay) = longer.or_else(shorter) {
        return Some(Outgoing::park(carried, *delay, origin));
    }
    let last = waited >= LAST_RESORT && !refusing.contains(&retry_queue(origin));
    last.then(|| Outgoing::hand_over(carried, origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;

    fn span(text: &str) -> Span {
        text.parse().expect("a span")
    }

    fn dead() -> Outgoing {
        Outgoing::dead(Message::default(), "q")
    }

    fn park(delay: &str) -> Outgoing {
        Outgoing::park(Message::default(), span(delay), "q")
    }

    #[track_caller]
    fn check_other_way(message: &Outgoing, takes: &[&str], waited: u64, expected: Option<&str>) {
        let takes: Vec<Span> = takes.iter().map(|delay| span(delay)).collect();
        let waited = Duration::from_secs(waited);
        let other = other_way(message, &takes, &[], waited, false);
        assert_eq!(other.map(|other| other.queue()).as_deref(), expected);
    }

    #[test]
    fn a_waiting_delivery_waits_longer_or_else_shorter_and_finally_is_attempted_at_once() {
        check_other_way(&park("4s"), &["1s", "1m", "5m"], 5, Some("webhooks.wait.1m"));
        check_other_way(&park("5m"), &["1s", "4s"], 5, Some("webhooks.wait.4s"));
        check_other_way(&park("4s"), &[], 59, None);
        check_other_way(&park("4s"), &[], 60, Some("q.retry"));
        let refusing = ["q.retry".to_owned()];
        let none = other_way(&park("4s"), &[], &refusing, LAST_RESORT, false);
        assert!(none.is_none());
    }

    #[test]
    fn a_dead_letter_comes_back_soon_and_says_where_it_belongs() {
        check_other_way(&dead(), &["1s", "4s"], 5, Some("webhooks.wait.1s"));
        let takes = ["1s", "4s", "1m", "5m"].map(span);
        let waited = Duration::from_secs(5);
        let other = other_way(&dead(), &takes, &[], waited, true).expect("they take it");
        assert_eq!(other.queue(), "webhooks.wait.1m");
        assert!(other.message.is_bound_for("q.dead"));
        assert!(!park("1s").message.is_bound_for("q.dead"));
    }

    #[test]
    fn any_other_message_is_not_rerouted() {
        check_other_way(&Outgoing::to_queue(Message::default(), "q"), &["1s"], 99, None);
        check_other_way(&Outgoing::hand_over(Message::default(), "q"), &["1s"], 99, None);
    }
}
