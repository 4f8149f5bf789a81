//! An event as a producer published it. Only what delivery needs is read.

use serde_json::error::Category;

use super::account;
use super::delivery::Value;

mod body;

use body::{Named, deeper_than};

/// The longest event type and event id, in bytes.
///
/// Both travel in AMQP properties, which are short strings and have at most this length (AMQP 0-9-1,
/// section 4.2.5.3).
pub const MAX_NAME_BYTES: usize = 255;

/// The deepest nesting of arrays and objects that is delivered.
///
/// RFC 8259 (section 9) lets a parser set a limit. Most receivers' parsers have a similar limit, and
/// couldn't read a deeper body.
pub const MAX_DEPTH: usize = 128;

/// Some producers prepend it to UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The parts of an event that are needed to route it and to recognize its repeats. The body is passed on
/// unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Identifies this event in every attempt to every webhook. The header `webhook-id` has it as
    /// [`header_of_id`](super::encoding::header_of_id) encodes it.
    pub id: String,
    /// What happened, such as `user.created`. It decides which webhooks want the event.
    pub event_type: String,
    /// The account to which it belongs, if any. Webhooks of other accounts don't get it ([`account`]).
    pub account: Option<Box<str>>,
}

/// The AMQP properties and the header that take precedence over the body's members.
#[derive(Clone, Copy, Debug, Default)]
pub struct Properties<'a> {
    /// `message_id`
    pub message_id: Option<&'a str>,
    /// `type`
    pub event_type: Option<&'a str>,
    /// The header `account`, whatever its value.
    pub account: Option<&'a Value>,
}

/// Why a message can never be delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// More bytes than MAX_EVENT_BYTES.
    #[error("the body has {bytes} bytes, MAX_EVENT_BYTES allows {limit}")]
    TooLarge {
        /// The body's size.
        bytes: usize,
        /// The configured limit.
        limit: usize,
    },
    /// Not UTF-8, which RFC 8259 (section 8.1) requires of JSON.
    #[error("the body is not UTF-8: bad byte at offset {0}")]
    NotUtf8(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("the body nests arrays and objects deeper than {MAX_DEPTH}")]
    TooDeep,
    /// Not JSON, or not an object: the parser's message.
    #[error("the body is not a JSON object: {0}")]
    NotAnObject(String),
    /// No event type in the properties or the body.
    #[error(
        "no event type: set the AMQP property `type`, or a string `event_type`, `event` or `type` in the body"
    )]
    NoEventType,
    /// An event type, id or account that is empty, too long, or has characters that can't be sent.
    #[error("the {field} {problem}")]
    BadName {
        /// `event type`, `event id` or `account`
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// PostgreSQL can't look up the event type, for any webhook: its message.
    #[error("no webhook can want this event type: PostgreSQL says: {0}")]
    NotSearchable(String),
    /// A header of a parked delivery that the notifier can't have written.
    #[error("the header {0} is missing, or isn't what the notifier writes for a parked delivery")]
    BadHeader(&'static str),
}

impl Event {
    /// Reads a message's event. `new_id` makes an id if neither the properties nor the body have one.
    ///
    /// # Errors
    /// [`Malformed`], which names what is wrong. The message then belongs in the dead-letter queue.
    pub fn read(
        properties: Properties<'_>,
        body: &[u8],
        max_bytes: usize,
        new_id: impl FnOnce() -> String,
    ) -> Result<Self, Malformed> {
        if body.len() > max_bytes {
            return Err(Malformed::TooLarge { bytes: body.len(), limit: max_bytes });
        }
        let text =
            std::str::from_utf8(body).map_err(|error| Malformed::NotUtf8(error.valid_up_to()))?;
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        if deeper_than(text.as_bytes(), MAX_DEPTH) {
            return Err(Malformed::TooDeep);
        }
        let named: Named = serde_json::from_str(text).map_err(|error| {
            Malformed::NotAnObject(match error.classify() {
                // The parser's message would quote the body, which must not be logged.
                Category::Data => "it is JSON of another kind".to_owned(),
                _ => error.to_string(),
            })
        })?;

        // Client libraries send an unset property as an empty one.
        let given = |property: Option<&str>| property.filter(|p| !p.is_empty()).map(str::to_owned);
        let event_type = given(properties.event_type)
            .or(named.event_type)
            .or(named.event)
            .or(named.r#type)
            .ok_or(Malformed::NoEventType)?;
        check_event_type(&event_type)?;
        let id = given(properties.message_id).or(named.id).unwrap_or_else(new_id);
        check_event_id(&id)?;
        let account = match properties.account {
            None => None,
            Some(Value::Integer(number)) => Some(number.to_string()),
            Some(Value::Text(text)) => given(Some(text)),
        };
        let account = account.or(named.account).or(named.account_id);
        if let Some(account) = &account {
            account::check(account)
                .map_err(|problem| Malformed::BadName { field: "account", problem })?;
        }
        Ok(Self { id, event_type, account: account.map(String::into_boxed_str) })
    }
}

/// The account that an event's body names; `None` if it names none or can't be read.
#[must_use]
pub fn account_of(body: &[u8]) -> Option<Box<str>> {
    let Named { account, account_id, .. } =
        serde_json::from_slice(without_byte_order_mark(body)).ok()?;
    let account = account.or(account_id)?;
    account::check(&account).is_ok().then(|| account.into_boxed_str())
}

/// The body without the byte order mark that some producers prepend. Not every parser skips it, and RFC
/// 8259 (section 8.1) forbids sending it.
#[must_use]
pub fn without_byte_order_mark(body: &[u8]) -> &[u8] {
    body.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(body)
}

/// Checks that a text can be an event type: not empty, at most [`MAX_NAME_BYTES`], no control characters
/// (PostgreSQL's text can't hold NUL, and a line break would break a log line).
///
/// # Errors
/// [`Malformed::BadName`] otherwise.
pub fn check_event_type(event_type: &str) -> Result<(), Malformed> {
    check_name("event type", event_type)
}

/// Checks that a text can be an event id, by the rules for an event type.
///
/// # Errors
/// [`Malformed::BadName`] otherwise.
pub fn check_event_id(id: &str) -> Result<(), Malformed> {
    check_name("event id", id)
}

fn check_name(field: &'static str, text: &str) -> Result<(), Malformed> {
    let bad = |problem| Err(Malformed::BadName { field, problem });
    match text {
        "" => bad("is empty"),
        long if long.len() > MAX_NAME_BYTES => bad("is longer than 255 bytes"),
        text if text.chars().any(char::is_control) => {
            bad("has a control character, or something that is not UTF-8")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
