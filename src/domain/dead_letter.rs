//! Dead letters: what operators see of them, how they select them, and how they are replayed.

use std::collections::BTreeMap;

use serde::Serialize;
use uuid::Uuid;

use super::account;
use super::answer::Excerpt;
use super::broker_names::header;
use super::delivery::{self, Delivery, Headers, Value};
use super::encoding::header_of_id;
use super::event::{Event, Malformed, Properties};
use super::outcome::DeadReason;
use super::time::{self, UnixMillis};
use super::vocabulary::Vocabulary;
use super::webhook::matching_patterns;

/// A dead letter. Most fields may be missing, because somebody else, or RabbitMQ itself, may have put the
/// message into the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetter {
    /// The queue that the event was published to.
    pub queue: String,
    /// Why it is dead: `x-dead-reason`, or RabbitMQ's own reason, such as `delivery_limit`.
    pub reason: String,
    /// The event's id.
    pub event_id: Option<String>,
    /// The event's type.
    pub event_type: Option<String>,
    /// The event's account, if it belongs to one.
    pub account: Option<String>,
    /// The webhook of the delivery; `None` if the event itself was malformed.
    pub webhook_id: Option<Uuid>,
    /// Attempts made.
    pub attempts: Option<i64>,
    /// When the event was first received.
    #[serde(serialize_with = "time::serialize_option")]
    pub first_received_at: Option<UnixMillis>,
    /// When it died.
    #[serde(serialize_with = "time::serialize_option")]
    pub dead_at: Option<UnixMillis>,
    /// How the last attempt failed, or why the event is malformed.
    pub last_error: Option<String>,
    /// The receiver's answer to the last attempt, if answers are kept.
    pub last_answer: Option<Excerpt>,
}

impl DeadLetter {
    /// Reads a message of the dead-letter queue of `queue`.
    #[must_use]
    pub fn read(queue: &str, properties: Properties<'_>, headers: &Headers) -> Self {
        let text = |name: &str| match headers.get(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let integer = |name: &str| match headers.get(name) {
            Some(Value::Integer(integer)) => Some(*integer),
            _ => None,
        };
        let reason = [header::DEAD_REASON, header::LAST_DEATH_REASON, header::FIRST_DEATH_REASON];
        let given = match properties.account {
            Some(Value::Integer(number)) => Some(number.to_string()),
            Some(Value::Text(text)) => Some(text.clone()),
            None => None,
        };
        Self {
            queue: queue.to_owned(),
            reason: reason.into_iter().find_map(text).unwrap_or_else(|| UNKNOWN.to_owned()),
            event_id: text(header::EVENT_ID).or(properties.message_id.map(str::to_owned)),
            event_type: text(header::EVENT_TYPE).or(properties.event_type.map(str::to_owned)),
            // A malformed event may have an invalid account.
            account: text(header::ACCOUNT).or(given).filter(|it| account::check(it).is_ok()),
            webhook_id: text(header::WEBHOOK_ID).and_then(|id| Uuid::try_parse(&id).ok()),
            attempts: integer(header::ATTEMPT),
            first_received_at: integer(header::FIRST_RECEIVED_AT),
            dead_at: integer(header::DEAD_AT),
            last_error: text(header::LAST_ERROR),
            last_answer: delivery::last_answer(headers),
        }
    }
}

/// The reason of a delivery whose retry queue was gone when its delay expired.
const ORPHANED: &str = "orphaned";

/// The reason of a message that states none.
const UNKNOWN: &str = "unknown";

/// The known reasons why a dead letter is dead. Other programs may write others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathCause {
    /// The notifier decided it. RabbitMQ's own reason `expired` is the same word.
    Decided(DeadReason),
    /// Its retry queue was gone.
    Orphaned,
    /// RabbitMQ's own reason: it was redelivered too often (<https://www.rabbitmq.com/docs/dlx>).
    DeliveryLimit,
    /// RabbitMQ's own reason: its queue held more than a policy allows.
    MaxLength,
    /// The message states no reason.
    Unstated,
}

impl Vocabulary for DeathCause {
    const WORDS: &'static [Self] = &[
        Self::Decided(DeadReason::Malformed),
        Self::Decided(DeadReason::Exhausted),
        Self::Decided(DeadReason::Gone),
        Self::Decided(DeadReason::Refused),
        Self::Decided(DeadReason::Rejected),
        Self::Decided(DeadReason::Expired),
        Self::Decided(DeadReason::OtherAccount),
        Self::Orphaned,
        Self::DeliveryLimit,
        Self::MaxLength,
        Self::Unstated,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Decided(reason) => reason.label(),
            Self::Orphaned => ORPHANED,
            Self::DeliveryLimit => "delivery_limit",
            Self::MaxLength => "maxlen",
            Self::Unstated => UNKNOWN,
        }
    }
}

/// The words for all known reasons.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    DeathCause::WORDS.iter().map(|cause| cause.word())
}

impl DeadLetter {
    /// Reads a message of the queue for orphaned messages, which had no retry queue or dead-letter queue to
    /// go to. Its headers say from which queue it came; RabbitMQ's only say that its delay has expired.
    #[must_use]
    pub fn read_orphaned(properties: Properties<'_>, headers: &Headers) -> Self {
        let text = |name: &str| match headers.get(name) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let queue = text(header::ORIGIN_QUEUE).unwrap_or_else(|| UNKNOWN.to_owned());
        let reason = text(header::DEAD_REASON).unwrap_or_else(|| ORPHANED.to_owned());
        Self { reason, ..Self::read(&queue, properties, headers) }
    }
}

/// Selects dead letters that meet all the given conditions.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The event's id, or the `webhook-id` by which receivers know it.
    pub event_id: Option<String>,
    /// Whether `event_id` is only the beginning of the id.
    pub by_beginning: bool,
    /// A pattern as in a webhook's `events`: a type, a prefix such as `user.*`, or `*`.
    pub event_type: Option<String>,
    /// The event's account.
    pub account: Option<String>,
    /// The webhook.
    pub webhook_id: Option<Uuid>,
    /// The reason.
    pub reason: Option<String>,
    /// The latest time of death.
    pub dead_until: Option<UnixMillis>,
    /// The earliest time of death.
    pub dead_since: Option<UnixMillis>,
}

impl Selection {
    /// Whether a dead letter is selected. A value that the letter lacks meets no condition.
    #[must_use]
    pub fn includes(&self, letter: &DeadLetter) -> bool {
        let pattern_fits = |pattern: &String| {
            letter.event_type.as_ref().is_some_and(|t| matching_patterns(t).contains(pattern))
        };
        let is_named = |of: &String, id: &String| match self.by_beginning {
            true => of.starts_with(id.as_str()) || header_of_id(of).starts_with(id.as_str()),
            false => of == id || header_of_id(of) == id.as_str(),
        };
        self.event_id
            .as_ref()
            .is_none_or(|id| letter.event_id.as_ref().is_some_and(|of| is_named(of, id)))
            && self.event_type.as_ref().is_none_or(pattern_fits)
            && self.account.as_ref().is_none_or(|account| letter.account.as_ref() == Some(account))
            && self.webhook_id.is_none_or(|id| letter.webhook_id == Some(id))
            && self.reason.as_ref().is_none_or(|reason| letter.reason == *reason)
            && self.dead_until.is_none_or(|until| letter.dead_at.is_some_and(|at| at <= until))
            && self.dead_since.is_none_or(|since| letter.dead_at.is_some_and(|at| at >= since))
    }
}

/// Dead letters of the same queue, reason and webhook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeadLetterGroup {
    /// The queue that their events were published to.
    pub queue: String,
    /// Why they are dead.
    pub reason: String,
    /// The webhook of their deliveries.
    pub webhook_id: Option<Uuid>,
    /// How many there are.
    pub count: u64,
    /// When the first died.
    #[serde(serialize_with = "time::serialize_option")]
    pub oldest: Option<UnixMillis>,
    /// When the last died.
    #[serde(serialize_with = "time::serialize_option")]
    pub newest: Option<UnixMillis>,
    /// The error of the newest.
    pub last_error: Option<String>,
}

/// Counts dead letters by queue, reason and webhook.
#[derive(Clone, Debug, Default)]
pub struct DeadLetterGroups(BTreeMap<(String, String, Option<Uuid>), DeadLetterGroup>);

impl DeadLetterGroups {
    /// Adds a dead letter to its group.
    pub fn add(&mut self, letter: DeadLetter) {
        let DeadLetter { queue, reason, webhook_id, dead_at, last_error, .. } = letter;
        let key = (queue.clone(), reason.clone(), webhook_id);
        let group = self.0.entry(key).or_insert(DeadLetterGroup {
            queue,
            reason,
            webhook_id,
            count: 0,
            oldest: dead_at,
            newest: dead_at,
            last_error: None,
        });
        group.count += 1;
        group.oldest = [group.oldest, dead_at].into_iter().flatten().min();
        if dead_at >= group.newest {
            (group.newest, group.last_error) = (dead_at, last_error);
        }
    }

    /// The groups, the largest first.
    #[must_use]
    pub fn largest_first(self) -> Vec<DeadLetterGroup> {
        let mut groups: Vec<DeadLetterGroup> = self.0.into_values().collect();
        // The sort is stable: equal counts stay ordered by queue, reason and webhook.
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        groups
    }
}

/// How a dead letter is replayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It goes to its webhook, with its retry schedule from the start.
    Delivery(Delivery),
    /// It was malformed, and is published as the original event with these headers.
    Event(Headers),
}

/// Decides how to replay a dead letter at the time `now`.
///
/// The age of a delivery counts from now on, so that it isn't too old at once.
///
/// # Errors
/// What is wrong with the message, if it is malformed and would only die again.
pub fn replay(
    properties: Properties<'_>,
    headers: &Headers,
    body: &[u8],
    max_event_bytes: usize,
    now: UnixMillis,
) -> Result<Replay, Malformed> {
    if headers.contains_key(header::WEBHOOK_ID) {
        let delivery = Delivery::from_headers(headers, body, now)?;
        let anew = Delivery { attempts: 0, first_received_at: now, ..delivery };
        return Ok(Replay::Delivery(anew));
    }
    // What was wrong may be right now: MAX_EVENT_BYTES may have been raised. The id doesn't matter here.
    Event::read(properties, body, max_event_bytes, || "any".to_owned())?;
    let mut headers = headers.clone();
    delivery::unmark_dead(&mut headers);
    Ok(Replay::Event(headers))
}

#[cfg(test)]
mod tests;
