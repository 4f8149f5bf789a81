//! Decides which headers of a message are forwarded to receivers.
//!
//! Trace headers are always forwarded (<https://www.w3.org/TR/trace-context/>,
//! <https://www.w3.org/TR/baggage/>), so that a trace shows where the event went. Other headers are
//! forwarded only if the operator names them, since producers don't write them for strangers.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue};

use super::delivery::{self, Headers, Value};
use super::settings::{MAX_HEADER_BYTES, MAX_HEADERS, is_plain, is_reserved};
use super::shown::quoted;

static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Headers with credentials for one server. A message goes to many receivers, and these must not share
/// credentials.
const CREDENTIALS: [&str; 3] = ["authorization", "cookie", "set-cookie"];

/// The maximum number of members of `tracestate`.
const MAX_TRACESTATE_MEMBERS: usize = 32;

/// The headers to forward in addition to those of a trace. As a setting: their names, separated by
/// commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarding(Box<[HeaderName]>);

/// The headers of one message that are forwarded. Allocates nothing if there are none.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// Each name at most once.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that should be forwarded but can't be, each with the reason.
    pub left_out: Vec<(HeaderName, &'static str)>,
}

impl Forwarding {
    /// Reads the setting.
    ///
    /// # Errors
    /// One line that says which name can't be forwarded, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut names = Vec::new();
        for name in text.split(',').map(str::trim).filter(|_| !text.is_empty()) {
            let shown = quoted(name);
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| format!("{shown} is not the name of a header"))?;
            let lower = header.as_str();
            if [&TRACEPARENT, &TRACESTATE, &BAGGAGE].contains(&&header) {
                return Err(format!("{shown} is always forwarded: leave it out"));
            }
            if CREDENTIALS.contains(&lower) {
                return Err(format!(
                    "{shown} would disclose one receiver's credentials to the others: use `webhooks set \
                     ID --headers-from FILE`"
                ));
            }
            if is_reserved(lower) {
                return Err(format!(
                    "{shown} can't be forwarded: it belongs to the notifier, to the body or to the \
                     connection"
                ));
            }
            if !delivery::is_producers(lower) {
                return Err(format!(
                    "{shown} can't be forwarded: the notifier or RabbitMQ writes it"
                ));
            }
            if names.contains(&header) {
                return Err(format!("{shown} is listed twice"));
            }
            if names.len() == MAX_HEADERS {
                return Err(format!("more than {MAX_HEADERS} names"));
            }
            names.push(header);
        }
        Ok(Self(names.into()))
    }

    /// The headers to forward. Names are compared like HTTP's, ignoring case.
    #[must_use]
    pub fn of(&self, headers: &Headers) -> Forwarded {
        let mut forwarded = Forwarded::default();
        if headers.is_empty() {
            return forwarded;
        }
        let find = |name: &HeaderName| {
            let same = |(other, _): &(&String, &Value)| name.as_str().eq_ignore_ascii_case(other);
            let text = text_of(headers.iter().find(same)?.1);
            // An empty text counts as unset.
            (!text.is_empty()).then_some(text)
        };
        let mut room = MAX_HEADER_BYTES;
        let mut add = |name: &HeaderName, text: Cow<'_, str>, is_well_formed: bool| {
            let value = match is_well_formed {
                true => value_of(name, &text, &mut room),
                false => Err("it is malformed"),
            };
            match value {
                Ok(value) => forwarded.headers.push((name.clone(), value)),
                Err(why) => forwarded.left_out.push((name.clone(), why)),
            }
        };
        if let Some(parent) = find(&TRACEPARENT) {
            let is_valid = is_traceparent(&parent);
            add(&TRACEPARENT, parent, is_valid);
            // `tracestate` means nothing without `traceparent`.
            if let Some(state) = find(&TRACESTATE).filter(|_| is_valid) {
                let is_valid = is_tracestate(&state);
                add(&TRACESTATE, state, is_valid);
            }
        }
        for name in [&BAGGAGE].into_iter().chain(&self.0) {
            if let Some(text) = find(name) {
                add(name, text, true);
            }
        }
        forwarded
    }
}

/// The text of a value. White space around it isn't part of it (RFC 9110, section 5.5).
fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Text(text) => text.trim_matches([' ', '\t']).into(),
        Value::Integer(integer) => integer.to_string().into(),
    }
}

fn value_of(name: &HeaderName, text: &str, room: &mut usize) -> Result<HeaderValue, &'static str> {
    if !is_plain(text) {
        return Err("its value has characters other than visible ASCII and spaces");
    }
    let left = room.checked_sub(name.as_str().len() + text.len());
    *room = left.ok_or("the forwarded headers would be too large")?;
    HeaderValue::from_str(text).map_err(|_| "its value is not valid in a header")
}

/// Whether a text has the form of a `traceparent`. A later version of the format may append fields (Trace
/// Context, section 3.2).
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, digits: usize| {
        part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_some_id = |part: &str, digits| hex(part, digits) && part.bytes().any(|b| b != b'0');
    let mut parts = text.splitn(5, '-');
    let mut next = || parts.next().unwrap_or_default();
    let (version, trace, parent, flags) = (next(), next(), next(), next());
    hex(version, 2)
        && version != "ff"
        && is_some_id(trace, 32)
        && is_some_id(parent, 16)
        && hex(flags, 2)
        && (version != "00" || parts.next().is_none())
}

/// Whether a text has the form of a `tracestate`: members `key=value`, separated by commas (Trace
/// Context, section 3.3).
fn is_tracestate(text: &str) -> bool {
    let members = || text.split(',').map(|member| member.trim_matches([' ', '\t']));
    let is_member = |member: &str| {
        let key_and_value = member.split_once('=');
        member.is_empty()
            || key_and_value.is_some_and(|(key, value)| {
                !key.is_empty() && !key.contains(' ') && !value.is_empty() && !value.contains('=')
            })
    };
    members().count() <= MAX_TRACESTATE_MEMBERS && members().all(is_member)
}

#[cfg(test)]
mod tests;
