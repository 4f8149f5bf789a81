//! The names of our exchanges and queues at the broker, and of message headers.
//!
//! Operators see these names, and messages wait in queues that are found by them. So a name must never
//! change: messages under the old name would be lost.

use uuid::Uuid;

use super::time::Span;

/// The prefix of our exchanges, and of all our queues except the retry and dead-letter queues.
const OURS: &str = "webhooks.";

/// The exchange for deliveries that have to wait. The routing key has the delay and the event queue.
pub const WAIT_EXCHANGE: &str = "webhooks.wait";

/// The exchange to which RabbitMQ publishes deliveries whose delay has expired.
pub const RETRY_EXCHANGE: &str = "webhooks.retry";

/// The exchange for deliveries that enter a backlog.
pub const BACKLOG_EXCHANGE: &str = "webhooks.backlog";

/// The exchange for notices, to which operators bind their own queues.
pub const EVENTS_EXCHANGE: &str = "webhooks.events";

/// The queue for messages that no retry queue takes, and the exchange that leads to it. All notifiers of
/// a broker share it.
pub const ORPHANED: &str = "webhooks.orphaned";

const RETRY_SUFFIX: &str = ".retry";
const DEAD_SUFFIX: &str = ".dead";

/// The queue to which the retries of an event queue return.
#[must_use]
pub fn retry_queue(origin: &str) -> String {
    format!("{origin}{RETRY_SUFFIX}")
}

/// The queue for the dead letters of an event queue.
#[must_use]
pub fn dead_queue(origin: &str) -> String {
    format!("{origin}{DEAD_SUFFIX}")
}

/// The queue in which deliveries from all event queues wait for this delay.
#[must_use]
pub fn wait_queue(delay: Span) -> String {
    format!("{WAIT_EXCHANGE}.{delay}")
}

/// The queue for deliveries from the event queue `origin` that a webhook's receiver can't take now.
#[must_use]
pub fn backlog_queue(origin: &str, webhook: Uuid) -> String {
    format!("{BACKLOG_EXCHANGE}.{origin}.{webhook}")
}

/// The queue that holds the messages of another queue while that is deleted and created again.
#[must_use]
pub fn moving_queue(queue: &str) -> String {
    format!("{OURS}moving.{queue}")
}

/// An exclusive queue that serves as a lock: only the connection that has declared it may read `queue`.
#[must_use]
pub fn turn_queue(queue: &str) -> String {
    format!("{OURS}reading.{queue}")
}

/// A queue by which `check` tests whether the broker allows more queues. `number` distinguishes the queues
/// of one check.
#[must_use]
pub fn check_queue(check: Uuid, number: usize) -> String {
    format!("{OURS}check.{check}.{number}")
}

/// The routing key of a delivery from the event queue `origin` that waits for this delay.
#[must_use]
pub fn wait_key(delay: Span, origin: &str) -> String {
    format!("{delay}.{origin}")
}

/// The routing key of a delivery that enters a backlog.
#[must_use]
pub fn backlog_key(origin: &str, webhook: Uuid) -> String {
    format!("{origin}.{webhook}")
}

/// The event queue and the webhook of the backlog to which a routing key leads.
#[must_use]
pub fn read_backlog_key(key: &str) -> Option<(&str, Uuid)> {
    let (origin, webhook) = key.rsplit_once('.')?;
    Some((origin, Uuid::try_parse(webhook).ok()?))
}

/// The queue to which one of our exchanges routes a message with this routing key.
#[must_use]
pub fn queue_of(exchange: &str, routing_key: &str) -> String {
    match routing_key.split_once('.') {
        Some((delay, _)) if exchange == WAIT_EXCHANGE => format!("{WAIT_EXCHANGE}.{delay}"),
        _ if exchange == BACKLOG_EXCHANGE => format!("{BACKLOG_EXCHANGE}.{routing_key}"),
        _ => routing_key.to_owned(),
    }
}

/// The event queue whose retries a queue contains; `None` if it is no retry queue.
#[must_use]
pub fn origin_of_retries(queue: &str) -> Option<&str> {
    queue.strip_suffix(RETRY_SUFFIX)
}

/// Whether a queue is a dead-letter queue.
#[must_use]
pub fn is_dead_queue(queue: &str) -> bool {
    queue.ends_with(DEAD_SUFFIX)
}

/// Whether a queue is a wait queue, in which deliveries wait for their next attempt.
#[must_use]
pub fn is_wait_queue(queue: &str) -> bool {
    queue.starts_with(WAIT_EXCHANGE)
}

/// Whether a queue is one that we create and whose arguments matter to us. Those of dead-letter queues
/// don't matter.
#[must_use]
pub fn is_ours(queue: &str) -> bool {
    queue.starts_with(OURS) || origin_of_retries(queue).is_some()
}

/// Whether the notifier or the broker needs this name, so that no event queue can have it.
#[must_use]
pub fn is_reserved(queue: &str) -> bool {
    let of_wait = queue.strip_prefix(WAIT_EXCHANGE).is_some_and(|rest| rest.starts_with('.'));
    origin_of_retries(queue).is_some()
        || is_dead_queue(queue)
        || of_wait
        || queue.starts_with("amq.")
}

/// The name of a queue in metrics and advice. There may be a thousand backlogs, so all backlogs of one
/// event queue share a name.
#[must_use]
pub fn label_of_queue(queue: &str) -> String {
    let of_backlog = queue.strip_prefix(BACKLOG_EXCHANGE).and_then(|key| key.rsplit_once('.'));
    of_backlog.map_or_else(|| queue.to_owned(), |(origin, _)| format!("{BACKLOG_EXCHANGE}{origin}"))
}

/// The names of message headers: those that we write, and those of RabbitMQ and of producers that we read.
pub mod header {
    /// The event's id.
    pub const EVENT_ID: &str = "x-event-id";
    /// The event's type.
    pub const EVENT_TYPE: &str = "x-event-type";
    /// The event's account; empty if it has none. Deliveries parked by an older version lack this header.
    pub const ACCOUNT: &str = "x-account";
    /// The webhook of a delivery.
    pub const WEBHOOK_ID: &str = "x-webhook-id";
    /// The number of attempts made.
    pub const ATTEMPT: &str = "x-attempt";
    /// The time before which the receiver wants no requests (`Retry-After`).
    pub const NOT_BEFORE: &str = "x-not-before";
    /// When the event was first received.
    pub const FIRST_RECEIVED_AT: &str = "x-first-received-at";
    /// Why the last attempt failed, or why the message is malformed.
    pub const LAST_ERROR: &str = "x-last-error";
    /// The status line of the receiver's last answer, if answers are kept.
    pub const LAST_STATUS_LINE: &str = "x-last-status-line";
    /// The beginning of the body of that answer.
    pub const LAST_BODY: &str = "x-last-body";
    /// The queue that the event was published to.
    pub const ORIGIN_QUEUE: &str = "x-origin-queue";
    /// Why a delivery is dead.
    pub const DEAD_REASON: &str = "x-dead-reason";
    /// When the delivery died.
    pub const DEAD_AT: &str = "x-dead-at";
    /// The queue to which a message goes as soon as that queue takes it.
    pub const BOUND_FOR: &str = "x-bound-for";
    /// The process that put a delivery into its backlog.
    pub const ENTERED_BY: &str = "x-entered-by";
    /// Marks a notice, and says which kind. All deliveries of the notice keep it.
    pub const NOTICE: &str = "x-notice";

    /// Written by producers: the event's account.
    pub const PRODUCERS_ACCOUNT: &str = "account";
    /// Written by producers: other queues that get a copy.
    pub const CC: &str = "CC";
    /// Written by producers: other queues that get a copy, not visible to consumers.
    pub const BCC: &str = "BCC";

    /// Written by RabbitMQ: how often a message was returned to its quorum queue.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// Written by RabbitMQ 4.0 or newer: how often a message was handed out.
    pub const ACQUIRED_COUNT: &str = "x-acquired-count";
    /// Written by RabbitMQ: where a message was dead-lettered.
    pub const DEATH: &str = "x-death";
    /// Written by RabbitMQ: why a message was dead-lettered for the first time.
    pub const FIRST_DEATH_REASON: &str = "x-first-death-reason";
    /// Written by RabbitMQ: why a message was dead-lettered for the last time.
    pub const LAST_DEATH_REASON: &str = "x-last-death-reason";

    /// The headers that a delivery doesn't take over from the event's message, because it has its own. `CC`
    /// and `BCC` are among them, since a copy of the delivery would go to their queues, too.
    pub const NOT_THE_PRODUCERS: [&str; 20] = [
        EVENT_ID,
        EVENT_TYPE,
        ACCOUNT,
        WEBHOOK_ID,
        ATTEMPT,
        NOT_BEFORE,
        FIRST_RECEIVED_AT,
        LAST_ERROR,
        LAST_STATUS_LINE,
        LAST_BODY,
        ORIGIN_QUEUE,
        DEAD_REASON,
        DEAD_AT,
        BOUND_FOR,
        ENTERED_BY,
        DELIVERY_COUNT,
        ACQUIRED_COUNT,
        DEATH,
        CC,
        BCC,
    ];

    /// Prefixes of other such headers.
    pub const NOT_THE_PRODUCERS_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_never_change() {
        let (webhook, delay) = (Uuid::nil(), "90s".parse().expect("a span"));
        let id = "00000000-0000-0000-0000-000000000000";
        for (name, expected) in [
            (retry_queue("a.b"), "a.b.retry".to_owned()),
            (dead_queue("a.b"), "a.b.dead".to_owned()),
            (wait_queue(delay), "webhooks.wait.90s".to_owned()),
            (backlog_queue("a.b", webhook), format!("webhooks.backlog.a.b.{id}")),
            (moving_queue("a.b"), "webhooks.moving.a.b".to_owned()),
            (turn_queue("a.b"), "webhooks.reading.a.b".to_owned()),
            (check_queue(webhook, 3), format!("webhooks.check.{id}.3")),
        ] {
            assert_eq!(name, expected);
        }
        let headers = "x-event-id x-event-type x-account x-webhook-id x-attempt x-not-before \
                       x-first-received-at x-last-error x-last-status-line x-last-body \
                       x-origin-queue x-dead-reason x-dead-at x-bound-for x-entered-by \
                       x-delivery-count x-acquired-count x-death CC BCC";
        assert_eq!(header::NOT_THE_PRODUCERS.join(" "), headers);
        assert_eq!((header::NOTICE, header::PRODUCERS_ACCOUNT), ("x-notice", "account"));
    }

    #[test]
    fn a_routing_key_leads_to_its_queue() {
        let delay: Span = "1500ms".parse().expect("a span");
        let webhook = Uuid::from_u128(7);
        assert_eq!(queue_of(WAIT_EXCHANGE, &wait_key(delay, "a.b")), wait_queue(delay));
        let key = backlog_key("a.b", webhook);
        assert_eq!(queue_of(BACKLOG_EXCHANGE, &key), backlog_queue("a.b", webhook));
        assert_eq!(read_backlog_key(&key), Some(("a.b", webhook)));
        assert_eq!(read_backlog_key("a.b"), None);
        assert_eq!(queue_of("", "a.b"), "a.b");
        assert_eq!(label_of_queue(&backlog_queue("a.b", webhook)), "webhooks.backlog.a.b");
        assert_eq!(label_of_queue("a.b.retry"), "a.b.retry");
    }

    #[test]
    fn the_name_of_a_queue_shows_its_purpose() {
        for (queue, is_retry, is_dead, ours, reserved) in [
            ("a", false, false, false, false),
            ("a.retry", true, false, true, true),
            ("a.dead", false, true, false, true),
            ("retry", false, false, false, false),
            ("webhooks.wait.1s", false, false, true, true),
            ("webhooks.waiting", false, false, true, false),
            (ORPHANED, false, false, true, false),
            ("amq.gen-1", false, false, false, true),
        ] {
            assert_eq!(origin_of_retries(queue).is_some(), is_retry, "{queue}");
            assert_eq!(is_dead_queue(queue), is_dead, "{queue}");
            assert_eq!(is_ours(queue), ours, "{queue}");
            assert_eq!(is_reserved(queue), reserved, "{queue}");
        }
        assert_eq!(origin_of_retries("a.b.retry"), Some("a.b"));
    }
}
