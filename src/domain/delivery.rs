//! A delivery: one event for one webhook. Between its attempts, its state travels in AMQP headers.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::account;
use super::answer::Excerpt;
use super::broker_names::header;
use super::event::{self, Event, Malformed};
use super::outcome::{DeadReason, LONGEST_STAY};
use super::shown;
use super::time::{self, UnixMillis};

/// The longest `x-last-error`, in characters: enough to understand the error, and cheap to store.
const MAX_ERROR_CHARS: usize = 300;

/// By how much the clock of the instance that wrote [`Delivery::not_before`] may be ahead of ours.
const MAX_SKEW: Duration = Duration::from_secs(60);

/// The value of an AMQP header, of one of the two types that we write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A long string.
    Text(String),
    /// A signed 64-bit integer.
    Integer(i64),
}

/// AMQP headers by name. Values of types that we don't write are left out.
pub type Headers = BTreeMap<String, Value>;

/// Whether a header belongs to the producer. If so, each delivery of the event keeps it.
#[must_use]
pub fn is_producers(name: &str) -> bool {
    !header::NOT_THE_PRODUCERS.contains(&name)
        && !header::NOT_THE_PRODUCERS_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// One event on its way to one webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The event without its body, which travels separately.
    pub event: Event,
    /// The webhook's id. The webhook's URL is looked up for every attempt, since it may change.
    pub webhook_id: Uuid,
    /// Attempts made so far.
    pub attempts: u32,
    /// When we first received the event.
    pub first_received_at: UnixMillis,
    /// Why the last attempt failed; empty before the first.
    pub last_error: String,
    /// The receiver's answer to the last attempt, if answers are kept. The delivery carries it, so that a
    /// dead letter shows it, even much later and without PostgreSQL.
    pub last_answer: Option<Box<Excerpt>>,
    /// The receiver asked for no requests before this time (`Retry-After`). The delivery carries it, so
    /// that other processes know it too.
    pub not_before: Option<UnixMillis>,
}

impl Delivery {
    /// Our headers for parking this delivery. `origin` is the queue that its event was published to.
    #[must_use]
    pub fn headers(&self, origin: &str) -> Headers {
        let account = self.event.account.as_deref().unwrap_or_default();
        let mut headers = Headers::from([
            (header::ACCOUNT.to_owned(), Value::Text(account.to_owned())),
            (header::EVENT_ID.to_owned(), Value::Text(self.event.id.clone())),
            (header::EVENT_TYPE.to_owned(), Value::Text(self.event.event_type.clone())),
            (header::WEBHOOK_ID.to_owned(), Value::Text(self.webhook_id.to_string())),
            (header::ATTEMPT.to_owned(), Value::Integer(self.attempts.into())),
            (header::FIRST_RECEIVED_AT.to_owned(), Value::Integer(self.first_received_at)),
            (header::LAST_ERROR.to_owned(), Value::Text(shortened(&self.last_error))),
            (header::ORIGIN_QUEUE.to_owned(), Value::Text(origin.to_owned())),
        ]);
        if let Some(at) = self.not_before {
            headers.insert(header::NOT_BEFORE.to_owned(), Value::Integer(at));
        }
        if let Some(Excerpt { status_line, body }) = self.last_answer.as_deref() {
            headers.insert(header::LAST_STATUS_LINE.to_owned(), Value::Text(status_line.clone()));
            if !body.is_empty() {
                headers.insert(header::LAST_BODY.to_owned(), Value::Text(body.clone()));
            }
        }
        headers
    }

    /// For how long, from `now` on, the receiver wants no requests. A time too far in the future is
    /// ignored, since a wrong clock must not delay a delivery.
    #[must_use]
    pub fn stay_away_for(&self, now: UnixMillis) -> Option<Duration> {
        let left = time::between(now, self.not_before?);
        (!left.is_zero() && left <= LONGEST_STAY + MAX_SKEW).then_some(left)
    }

    /// Reads what [`Delivery::headers`] wrote, at the time `now`. The account was determined when the
    /// event's webhooks were looked up, and is in a header. Only if an older version parked the delivery
    /// is it read from the body.
    ///
    /// If the headers say that the event was first received in the future, it counts as received now:
    /// either a clock is wrong, or somebody tries to evade the age limit.
    ///
    /// # Errors
    /// [`Malformed::BadHeader`] or [`Malformed::BadName`]: somebody else wrote this message, and must not
    /// be able to choose where it goes.
    pub fn from_headers(
        headers: &Headers,
        body: &[u8],
        now: UnixMillis,
    ) -> Result<Self, Malformed> {
        let text = |name: &'static str| match headers.get(name) {
            Some(Value::Text(text)) => Ok(text.as_str()),
            _ => Err(Malformed::BadHeader(name)),
        };
        let integer = |name: &'static str| match headers.get(name) {
            Some(Value::Integer(integer)) => Ok(*integer),
            _ => Err(Malformed::BadHeader(name)),
        };
        // A number near the type's maximum would overflow at the next attempt.
        let count = |name: &'static str| {
            let count = u32::try_from(integer(name)?).ok().filter(|count| *count < u32::MAX / 2);
            count.ok_or(Malformed::BadHeader(name))
        };
        let account = match headers.get(header::ACCOUNT) {
            None => event::account_of(body),
            Some(Value::Text(account)) if account.is_empty() => None,
            Some(Value::Text(account)) if account::check(account).is_ok() => {
                Some(account.as_str().into())
            }
            Some(_) => return Err(Malformed::BadHeader(header::ACCOUNT)),
        };
        let event = Event {
            id: text(header::EVENT_ID)?.to_owned(),
            event_type: text(header::EVENT_TYPE)?.to_owned(),
            account,
        };
        event::check_event_id(&event.id)?;
        event::check_event_type(&event.event_type)?;
        Ok(Self {
            event,
            webhook_id: Uuid::try_parse(text(header::WEBHOOK_ID)?)
                .map_err(|_| Malformed::BadHeader(header::WEBHOOK_ID))?,
            attempts: count(header::ATTEMPT)?,
            first_received_at: integer(header::FIRST_RECEIVED_AT)
                .ok()
                .filter(|millis| *millis >= 0)
                .ok_or(Malformed::BadHeader(header::FIRST_RECEIVED_AT))?
                .min(now),
            last_error: shortened(text(header::LAST_ERROR)?),
            last_answer: last_answer(headers).map(Box::new),
            not_before: integer(header::NOT_BEFORE).ok(),
        })
    }
}

/// The receiver's last answer, as [`Delivery::headers`] wrote it.
#[must_use]
pub fn last_answer(headers: &Headers) -> Option<Excerpt> {
    let text = |name: &str| match headers.get(name) {
        Some(Value::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    Some(Excerpt::read(
        text(header::LAST_STATUS_LINE)?,
        text(header::LAST_BODY).unwrap_or_default(),
    ))
}

/// Adds the headers that make a message a dead letter.
pub fn mark_dead(headers: &mut Headers, reason: DeadReason, at: UnixMillis) {
    headers.insert(header::DEAD_REASON.to_owned(), Value::Text(reason.label().to_owned()));
    headers.insert(header::DEAD_AT.to_owned(), Value::Integer(at));
}

/// Adds the headers that make a malformed message from the queue `origin` a dead letter. Its own headers
/// stay, because nothing else shows what it was meant to be.
pub fn mark_malformed(headers: &mut Headers, error: &Malformed, origin: &str, at: UnixMillis) {
    headers.insert(header::ORIGIN_QUEUE.to_owned(), Value::Text(origin.to_owned()));
    headers.insert(header::LAST_ERROR.to_owned(), Value::Text(shortened(&error.to_string())));
    headers.entry(header::FIRST_RECEIVED_AT.to_owned()).or_insert(Value::Integer(at));
    mark_dead(headers, DeadReason::Malformed, at);
}

/// Removes the headers that [`mark_malformed`] added.
pub fn unmark_dead(headers: &mut Headers) {
    for name in [
        header::ORIGIN_QUEUE,
        header::LAST_ERROR,
        header::FIRST_RECEIVED_AT,
        header::DEAD_REASON,
        header::DEAD_AT,
    ] {
        headers.remove(name);
    }
}

/// Shortens an error, which may quote long messages of other programs.
fn shortened(error: &str) -> String {
    shown::line(error, MAX_ERROR_CHARS)
}

#[cfg(test)]
mod tests;
