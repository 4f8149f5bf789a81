//! The names of what is ours at the broker: exchanges, queues, and headers of messages.
//!
//! Operators see them, and what lies at the broker is found by them: a name that changes would lose
//! what waits under the old one.

use uuid::Uuid;

use super::time::Span;

/// How the names of our exchanges begin, and of the queues that no queue of QUEUES has for itself.
const OURS: &str = "webhooks.";

/// Where a delivery is published that has to wait, with its delay and its queue as the routing key.
pub const WAIT_EXCHANGE: &str = "webhooks.wait";

/// Where RabbitMQ publishes what has waited for long enough.
pub const RETRY_EXCHANGE: &str = "webhooks.retry";

/// Where a delivery is published that enters a backlog.
pub const BACKLOG_EXCHANGE: &str = "webhooks.backlog";

/// Where notices are published, for whoever binds a queue to it.
pub const EVENTS_EXCHANGE: &str = "webhooks.events";

/// Where what no retry queue takes lies, of all queues and all notifiers of this broker: a queue, and
/// the exchange that leads to it.
pub const ORPHANED: &str = "webhooks.orphaned";

const RETRY_SUFFIX: &str = ".retry";
const DEAD_SUFFIX: &str = ".dead";

/// Where the retries of a queue come back.
#[must_use]
pub fn retry_queue(origin: &str) -> String {
    format!("{origin}{RETRY_SUFFIX}")
}

/// Where the dead letters of a queue lie.
#[must_use]
pub fn dead_queue(origin: &str) -> String {
    format!("{origin}{DEAD_SUFFIX}")
}

/// Where deliveries of all queues wait for that long.
#[must_use]
pub fn wait_queue(delay: Span) -> String {
    format!("{WAIT_EXCHANGE}.{delay}")
}

/// Where deliveries wait that a receiver can't take now: for one webhook, those from the queue `origin`.
#[must_use]
pub fn backlog_queue(origin: &str, webhook: Uuid) -> String {
    format!("{BACKLOG_EXCHANGE}.{origin}.{webhook}")
}

/// Where the messages of a queue are while the queue is made anew.
#[must_use]
pub fn moving_queue(queue: &str) -> String {
    format!("{OURS}moving.{queue}")
}

/// An exclusive queue: the connection that has declared it is the one that may read `queue`.
#[must_use]
pub fn turn_queue(queue: &str) -> String {
    format!("{OURS}reading.{queue}")
}

/// Queues that show whether there is room for more; `number` tells those of a `check` apart.
#[must_use]
pub fn check_queue(check: Uuid, number: usize) -> String {
    format!("{OURS}check.{check}.{number}")
}

/// The routing key of a delivery that waits for that long, then comes back for the queue `origin`.
#[must_use]
pub fn wait_key(delay: Span, origin: &str) -> String {
    format!("{delay}.{origin}")
}

/// The routing key of what enters a backlog.
#[must_use]
pub fn backlog_key(origin: &str, webhook: Uuid) -> String {
    format!("{origin}.{webhook}")
}

/// Whose backlog a routing key leads to: the queue and the webhook.
#[must_use]
pub fn read_backlog_key(key: &str) -> Option<(&str, Uuid)> {
    let (origin, webhook) = key.rsplit_once('.')?;
    Some((origin, Uuid::try_parse(webhook).ok()?))
}

/// The queue to which an exchange of ours leads a message with this routing key.
#[must_use]
pub fn queue_of(exchange: &str, routing_key: &str) -> String {
    match routing_key.split_once('.') {
        Some((delay, _)) if exchange == WAIT_EXCHANGE => format!("{WAIT_EXCHANGE}.{delay}"),
        _ if exchange == BACKLOG_EXCHANGE => format!("{BACKLOG_EXCHANGE}.{routing_key}"),
        _ => routing_key.to_owned(),
    }
}

/// Whose retries a queue holds; `None` if it is no retry queue.
#[must_use]
pub fn origin_of_retries(queue: &str) -> Option<&str> {
    queue.strip_suffix(RETRY_SUFFIX)
}

/// Whether a queue is for the dead letters of another one.
#[must_use]
pub fn is_dead_queue(queue: &str) -> bool {
    queue.ends_with(DEAD_SUFFIX)
}

/// Whether deliveries wait in a queue for their next attempt.
#[must_use]
pub fn is_wait_queue(queue: &str) -> bool {
    queue.starts_with(WAIT_EXCHANGE)
}

/// Whether we make a queue of this name, with arguments that we need. Dead-letter queues may have any.
#[must_use]
pub fn is_ours(queue: &str) -> bool {
    queue.starts_with(OURS) || origin_of_retries(queue).is_some()
}

/// Whether a queue of events can't have this name: the notifier or the broker needs it.
#[must_use]
pub fn is_taken(queue: &str) -> bool {
    let of_wait = queue.strip_prefix(WAIT_EXCHANGE).is_some_and(|rest| rest.starts_with('.'));
    origin_of_retries(queue).is_some()
        || is_dead_queue(queue)
        || of_wait
        || queue.starts_with("amq.")
}

/// What a queue is called in metrics and advice, where there may be a thousand backlogs: all that are
/// of one queue have one name.
#[must_use]
pub fn label_of_queue(queue: &str) -> String {
    let of_backlog = queue.strip_prefix(BACKLOG_EXCHANGE).and_then(|key| key.rsplit_once('.'));
    of_backlog.map_or_else(|| queue.to_owned(), |(origin, _)| format!("{BACKLOG_EXCHANGE}{origin}"))
}

/// The names of headers: those that we write, and of RabbitMQ's and producers' those that we read.
pub mod header {
    /// The event's id.
    pub const EVENT_ID: &str = "x-event-id";
    /// The event's type.
    pub const EVENT_TYPE: &str = "x-event-type";
    /// The event's account; empty where it is of none. What an older version parked has no such header.
    pub const ACCOUNT: &str = "x-account";
    /// The webhook that a delivery is for.
    pub const WEBHOOK_ID: &str = "x-webhook-id";
    /// Attempts made.
    pub const ATTEMPT: &str = "x-attempt";
    /// Until when the receiver has asked us to stay away (`Retry-After`).
    pub const NOT_BEFORE: &str = "x-not-before";
    /// When the event first came.
    pub const FIRST_RECEIVED_AT: &str = "x-first-received-at";
    /// Why the last attempt failed, or what is malformed.
    pub const LAST_ERROR: &str = "x-last-error";
    /// The status line of the receiver's last answer, where answers are kept.
    pub const LAST_STATUS_LINE: &str = "x-last-status-line";
    /// How the body of that answer began.
    pub const LAST_BODY: &str = "x-last-body";
    /// The queue that the event was published to.
    pub const ORIGIN_QUEUE: &str = "x-origin-queue";
    /// Why a delivery is dead.
    pub const DEAD_REASON: &str = "x-dead-reason";
    /// When it died.
    pub const DEAD_AT: &str = "x-dead-at";
    /// The queue that a message goes to as soon as that takes it.
    pub const BOUND_FOR: &str = "x-bound-for";
    /// Which process put a delivery into its backlog.
    pub const ENTERED_BY: &str = "x-entered-by";
    /// That a message is a notice, and of which kind. It stays with each delivery of it.
    pub const NOTICE: &str = "x-notice";

    /// A producer's: whose the event is.
    pub const PRODUCERS_ACCOUNT: &str = "account";
    /// A producer's: other queues that get a copy.
    pub const CC: &str = "CC";
    /// The same, without telling the receivers of the first.
    pub const BCC: &str = "BCC";

    /// RabbitMQ's: how often a quorum queue has taken the message back.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// RabbitMQ's: how often a message was handed out (4.0 or newer).
    pub const ACQUIRED_COUNT: &str = "x-acquired-count";
    /// RabbitMQ's: where a message was dead-lettered.
    pub const DEATH: &str = "x-death";
    /// RabbitMQ's: why it was dead-lettered first.
    pub const FIRST_DEATH_REASON: &str = "x-first-death-reason";
    /// RabbitMQ's: why it was dead-lettered last.
    pub const LAST_DEATH_REASON: &str = "x-last-death-reason";

    /// All of these that are neither the producer's nor of what he publishes: a delivery has its own. `CC`
    /// and `BCC` are among them, since a copy would go to their queues once more.
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

    /// Families of such headers.
    pub const NOT_THE_PRODUCERS_PREFIXES: [&str; 2] = ["x-first-death-", "x-last-death-"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_what_they_are_since_messages_wait_under_them() {
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
    fn a_routing_key_leads_to_the_queue_that_is_named_alike() {
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
    fn a_queue_tells_by_its_name_what_it_is_for() {
        for (queue, is_retry, is_dead, ours, taken) in [
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
            assert_eq!(is_taken(queue), taken, "{queue}");
        }
        assert_eq!(origin_of_retries("a.b.retry"), Some("a.b"));
    }
}
