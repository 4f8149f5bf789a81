//! Reads the body of an event: checks that it is valid JSON, and takes the members that name the event.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Whether arrays and objects are nested deeper than `limit`. It counts brackets outside strings. If the
/// text isn't JSON, the result means nothing, and the parser reports the error afterwards.
pub(super) fn deeper_than(text: &[u8], limit: usize) -> bool {
    // Most events have fewer opening brackets in total, and counting those is ten times faster.
    if text.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() <= limit {
        return false;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > limit {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// The members of the body that may name the event. All others are only checked to be JSON.
#[derive(Default)]
pub(super) struct Named {
    pub(super) id: Option<String>,
    pub(super) event_type: Option<String>,
    pub(super) event: Option<String>,
    pub(super) r#type: Option<String>,
    pub(super) account: Option<String>,
    pub(super) account_id: Option<String>,
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor)
    }
}

struct NamedVisitor;

impl<'de> Visitor<'de> for NamedVisitor {
    type Value = Named;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named, A::Error> {
        let mut named = Named::default();
        // If a member is repeated, the last one counts, as in most parsers (RFC 8259, section 4).
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match &*key {
                "id" => named.id = map.next_value::<Scalar>()?.text_or_integer(),
                "event_type" => named.event_type = map.next_value::<Scalar>()?.text(),
                "event" => named.event = map.next_value::<Scalar>()?.text(),
                "type" => named.r#type = map.next_value::<Scalar>()?.text(),
                "account" => named.account = map.next_value::<Scalar>()?.text_or_integer(),
                "account_id" => named.account_id = map.next_value::<Scalar>()?.text_or_integer(),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(named)
    }
}

/// A member's value. Only strings and integers matter: `{"event": {…}}` names no type.
enum Scalar {
    Text(String),
    Integer(String),
    Other,
}

impl Scalar {
    fn text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn text_or_integer(self) -> Option<String> {
        match self {
            // An empty id or account counts as unset; an empty type is a mistake to report.
            Self::Text(text) | Self::Integer(text) => Some(text).filter(|t| !t.is_empty()),
            Self::Other => None,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The raw text keeps every digit of integers beyond 64 bits.
        let raw = <&serde_json::value::RawValue>::deserialize(deserializer)?.get();
        Ok(match raw.as_bytes() {
            // Half of a surrogate pair is valid JSON but not valid text. The body may contain one, but a
            // name may not: it becomes this character, which is refused.
            [b'"', ..] => Self::Text(serde_json::from_str(raw).unwrap_or_else(|_| "\u{1a}".into())),
            [b'-' | b'0'..=b'9', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
                Self::Integer(raw.to_owned())
            }
            _ => Self::Other,
        })
    }
}
