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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn delivery() -> impl Strategy<Value = Delivery> {
        let account = prop::option::of("[ -~é日]{1,60}");
        let event = ("[!-~]{1,255}|\\PC{1,60}", "[a-z.]{1,255}", account).prop_map(
            |(id, event_type, account)| Event {
                id,
                event_type,
                account: account.map(String::into_boxed_str),
            },
        );
        let not_before = prop::option::of(any::<i64>());
        let last_error = "[ -~é日]{0,300}";
        let last_answer = prop::option::of(("\\PC{0,60}", "\\PC{0,600}"));
        let error = (last_error, last_answer, not_before);
        (event, any::<u128>(), 0_u32..1_000, 0_i64..i64::MAX, error).prop_map(
            |(event, webhook, attempts, first_received_at, error)| {
                let (last_error, last_answer, not_before) = error;
                Delivery {
                    event,
                    webhook_id: Uuid::from_u128(webhook),
                    attempts,
                    first_received_at,
                    last_error,
                    last_answer: last_answer
                        .map(|(line, body)| Box::new(Excerpt::new(&line, &body, 512))),
                    not_before,
                }
            },
        )
    }

    #[test]
    fn headers_that_we_write_are_not_taken_for_the_producers() {
        let mut headers = sample();
        mark_dead(&mut headers, DeadReason::Exhausted, 7);
        for name in
            headers.keys().map(String::as_str).chain([header::LAST_STATUS_LINE, header::LAST_BODY])
        {
            assert!(!is_producers(name), "{name} would be copied to other deliveries");
        }
        for name in ["traceparent", "account", "x-tenant", "x-deaths"] {
            assert!(is_producers(name), "{name}");
        }
    }

    fn sample() -> Headers {
        Delivery {
            event: Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None },
            webhook_id: Uuid::nil(),
            attempts: 1,
            first_received_at: 1,
            last_error: String::new(),
            last_answer: None,
            not_before: None,
        }
        .headers("q")
    }

    #[test]
    fn headers_that_we_did_not_write_are_malformed() {
        let crafted = [
            ("x-event-id", Value::Text("two\nlines".to_owned())),
            ("x-event-id", Value::Integer(7)),
            ("x-event-type", Value::Text(String::new())),
            ("x-webhook-id", Value::Text("http://169.254.169.254/".to_owned())),
            ("x-attempt", Value::Integer(-1)),
            ("x-attempt", Value::Integer(1_000_000_000_000_000_000)),
            ("x-attempt", Value::Text("1".to_owned())),
            ("x-first-received-at", Value::Integer(-5)),
            ("x-last-error", Value::Integer(0)),
            ("x-account", Value::Integer(7)),
            ("x-account", Value::Text("two\nlines".to_owned())),
            ("x-account", Value::Text("x".repeat(256))),
        ];
        for (name, value) in crafted {
            let mut headers = sample();
            headers.insert(name.to_owned(), value.clone());
            assert!(Delivery::from_headers(&headers, b"", 9).is_err(), "{name}={value:?}");
        }
        let optional = |name: &String| name == "x-origin-queue" || name == header::ACCOUNT;
        for name in sample().into_keys().filter(|name| !optional(name)) {
            let mut headers = sample();
            headers.remove(&name);
            assert!(Delivery::from_headers(&headers, b"", 9).is_err(), "without {name}");
        }
    }

    #[test]
    fn a_time_beyond_an_hour_and_the_clock_skew_is_ignored() {
        let hour = 3_600_000;
        for (not_before, expected) in [
            (None, None),
            (Some(1_000), None),
            (Some(999), None),
            (Some(i64::MIN), None),
            (Some(1_001), Some(1)),
            (Some(1_000 + hour), Some(3_600_000)),
            (Some(1_000 + hour + 60_000), Some(3_660_000)),
            (Some(1_001 + hour + 60_000), None),
            (Some(i64::MAX), None),
        ] {
            let delivery = Delivery::from_headers(&sample(), b"", 9).expect("a delivery");
            let stay = Delivery { not_before, ..delivery }.stay_away_for(1_000);
            assert_eq!(stay, expected.map(Duration::from_millis), "{not_before:?}");
        }
    }

    #[test]
    fn a_malformed_message_keeps_its_headers_and_gets_a_short_reason() {
        let mut headers = sample();
        headers.insert("x-attempt".to_owned(), Value::Integer(-1));
        let error = Malformed::NotAnObject("x".repeat(100_000));
        mark_malformed(&mut headers, &error, "q", 7);
        assert_eq!(headers["x-webhook-id"], sample()["x-webhook-id"]);
        assert_eq!(headers["x-attempt"], Value::Integer(-1));
        assert_eq!(headers["x-dead-reason"], Value::Text("malformed".to_owned()));
        let Value::Text(reason) = &headers["x-last-error"] else { panic!("a text") };
        assert_eq!(reason.chars().count(), MAX_ERROR_CHARS + 1);
    }

    #[test]
    fn a_delivery_parked_by_an_older_version_is_read() {
        let mut headers = sample();
        headers.insert("x-deferrals".to_owned(), Value::Integer(7));
        headers.insert("x-turn-at".to_owned(), Value::Integer(1));
        let read = |headers: &Headers, body: &[u8]| Delivery::from_headers(headers, body, 9);
        assert_eq!(read(&headers, b""), read(&sample(), b""));
        // Without the header, the body names the account.
        let account = |headers: &Headers, body: &[u8]| {
            read(headers, body).expect("a delivery").event.account.map(String::from)
        };
        let body = br#"{"account":"acme"}"#;
        assert_eq!(account(&headers, body), None, "the header says that it has none");
        headers.remove(header::ACCOUNT);
        assert_eq!(account(&headers, body).as_deref(), Some("acme"));
        assert_eq!(account(&headers, b"{}"), None);
        assert_eq!(account(&headers, b"no JSON"), None);
        headers.insert(header::ACCOUNT.to_owned(), Value::Text("other".to_owned()));
        assert_eq!(account(&headers, body).as_deref(), Some("other"));
    }

    proptest! {
        #[test]
        fn headers_are_read_back_as_the_same_delivery(delivery in delivery()) {
            let read = Delivery::from_headers(&delivery.headers("q"), b"", i64::MAX);
            prop_assert_eq!(read, Ok(delivery));
        }
    }
}
