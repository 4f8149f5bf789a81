//! The settings of a webhook: its own headers, timeout and limits.
//!
//! They are columns that anybody with SQL access can write. If a setting can't be used, the webhook
//! can't be used, as with a bad URL: requests without their `authorization`, or more of them than the
//! receiver can take, would be worse than none.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value};

use super::account;
use super::limits::{Limits, Rate};
use super::secret::Secret;
use super::shown::quoted;
use super::statuses::Statuses;

/// The maximum number of headers of a webhook.
pub const MAX_HEADERS: usize = 32;

/// The maximum size of their names and values together, in bytes. Most servers accept 8 KiB of headers,
/// and our own headers take some hundred bytes. A token of a kilobyte or two fits.
pub const MAX_HEADER_BYTES: usize = 4 << 10;

/// The longest text of the column `headers` that is read. [`MAX_HEADER_BYTES`] fit even if most
/// characters are escaped.
pub const MAX_COLUMN_CHARS: usize = 16 << 10;

/// The allowed `timeout_ms`. The maximum is that of REQUEST_TIMEOUT, which no webhook can exceed.
const TIMEOUT_MS: RangeInclusive<u64> = 1..=600_000;

/// The largest `max_in_flight`: more than all capacity together.
const MAX_IN_FLIGHT: u32 = 1_000_000;

/// Headers that only the notifier may set: those of the connection and of the message's framing (RFC
/// 9110, sections 7 and 10.1; RFC 9112), the accepted encoding of answers, and its own name.
const RESERVED: [&str; 11] = [
    "accept-encoding",
    "connection",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Prefixes of such headers: those that describe the body, which comes from the producer; those that
/// Standard Webhooks uses or reserves; and those between a client and its proxy.
const RESERVED_PREFIXES: [&str; 3] = ["content-", "webhook-", "proxy-"];

/// A column of the table `webhooks` that holds a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names, below, say it")]
pub enum Column {
    Headers,
    TimeoutMs,
    MaxInFlight,
    RatePerSecond,
    NoRetryStatus,
    Description,
    Account,
}

impl Column {
    /// Every column.
    pub const ALL: [Self; 7] = [
        Self::Headers,
        Self::TimeoutMs,
        Self::MaxInFlight,
        Self::RatePerSecond,
        Self::NoRetryStatus,
        Self::Description,
        Self::Account,
    ];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Headers => "headers",
            Self::TimeoutMs => "timeout_ms",
            Self::MaxInFlight => "max_in_flight",
            Self::RatePerSecond => "rate_per_second",
            Self::NoRetryStatus => "no_retry_status",
            Self::Description => "description",
            Self::Account => "account",
        }
    }

    /// The option of commands that sets it. Commands take a time with its unit, and one header per
    /// option.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Headers => "header",
            Self::TimeoutMs => "timeout",
            Self::MaxInFlight => "max-in-flight",
            Self::RatePerSecond => "rate",
            Self::NoRetryStatus => "no-retry",
            Self::Description => "description",
            Self::Account => "account",
        }
    }
}

/// The settings of a row that a delivery needs. They are text, whatever the types of the columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// A JSON object, cut after one character more than [`MAX_COLUMN_CHARS`].
    pub headers: Option<Secret>,
    /// A whole number.
    pub timeout_ms: Option<String>,
    /// A whole number.
    pub max_in_flight: Option<String>,
    /// A number.
    pub rate_per_second: Option<String>,
    /// In the syntax of NO_RETRY_STATUS.
    pub no_retry_status: Option<String>,
    /// The account. It decides which events the webhook gets, and with which webhooks it shares capacity.
    pub account: Option<String>,
}

/// The parsed settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WebhookSettings {
    /// The headers that are sent with each request. Their values print as `Sensitive`.
    pub headers: Box<[(HeaderName, HeaderValue)]>,
    /// The timeout of a request, if it is shorter than REQUEST_TIMEOUT.
    pub timeout: Option<Duration>,
    /// The webhook's own limits.
    pub limits: Limits,
    /// The statuses without a retry, which replace NO_RETRY_STATUS even if they are empty.
    pub no_retry_status: Option<Statuses>,
}

impl WebhookSettings {
    /// The approximate size of headers and statuses in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let header = |(name, value): &(HeaderName, HeaderValue)| {
            size_of::<(HeaderName, HeaderValue)>() + name.as_str().len() + value.len()
        };
        let statuses = self.no_retry_status.as_ref().map_or(0, Statuses::size);
        self.headers.iter().map(header).sum::<usize>() + statuses
    }
}

/// A setting that can't be used. The text contains no value of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The column.
    pub column: Column,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "unusable {}: {}", self.column.name(), self.problem)
    }
}

impl Columns {
    /// Parses the settings; `None` if none of them is set.
    ///
    /// # Errors
    /// [`Unusable`] for the first setting that can't be used.
    pub fn read(&self) -> Result<Option<Box<WebhookSettings>>, Unusable> {
        let at = |column| move |problem| Unusable { column, problem };
        if let Some(account) = &self.account {
            account::check(account)
                .map_err(|problem| format!("it {problem}, so no event can belong to it"))
                .map_err(at(Column::Account))?;
        }
        if *self == (Self { account: self.account.clone(), ..Self::default() }) {
            return Ok(None);
        }
        let headers = self.headers.as_ref().map(Secret::expose).map(read_headers).transpose();
        let timeout = self.timeout_ms.as_deref().map(read_timeout_ms).transpose();
        let max_in_flight = self.max_in_flight.as_deref().map(read_max_in_flight).transpose();
        let rate = self.rate_per_second.as_deref().map(str::parse::<Rate>).transpose();
        let no_retry = self.no_retry_status.as_deref().map(str::parse::<Statuses>).transpose();
        Ok(Some(Box::new(WebhookSettings {
            headers: headers.map_err(at(Column::Headers))?.unwrap_or_default(),
            timeout: timeout.map_err(at(Column::TimeoutMs))?,
            limits: Limits {
                max_in_flight: max_in_flight.map_err(at(Column::MaxInFlight))?,
                rate: rate.map_err(at(Column::RatePerSecond))?,
            },
            no_retry_status: no_retry.map_err(at(Column::NoRetryStatus))?,
        })))
    }

    /// The names in `headers` as they are written there; `None` if they can't be read.
    #[must_use]
    pub fn header_names(&self) -> Option<Vec<String>> {
        let headers: Map<String, Value> =
            serde_json::from_str(self.headers.as_ref()?.expose()).ok()?;
        Some(headers.into_iter().map(|(name, _)| name).collect())
    }
}

fn read_headers(text: &str) -> Result<Box<[(HeaderName, HeaderValue)]>, String> {
    if text.chars().nth(MAX_COLUMN_CHARS).is_some() {
        return Err(too_large());
    }
    // The parser's message could quote a value.
    let json: Value = serde_json::from_str(text).map_err(|_| not_an_object())?;
    let pairs = match &json {
        Value::Null => return Ok(Box::default()),
        Value::Object(pairs) => pairs,
        _ => return Err(not_an_object()),
    };
    check_headers(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Checks names and values of headers. `None` stands for a value that isn't a string.
///
/// # Errors
/// What is wrong, in one line without any value.
pub fn check_headers<'a>(
    pairs: impl Iterator<Item = (&'a str, Option<&'a str>)>,
) -> Result<Box<[(HeaderName, HeaderValue)]>, String> {
    let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
    let mut bytes = 0;
    for (name, value) in pairs {
        let name = check_name(name)?;
        let value = value.ok_or_else(|| format!("the value of {name} is not a string"))?;
        bytes += name.as_str().len() + value.len();
        if headers.len() == MAX_HEADERS || bytes > MAX_HEADER_BYTES {
            return Err(too_large());
        }
        if headers.iter().any(|(other, _)| *other == name) {
            return Err(format!("{name} is listed twice"));
        }
        let mut value = Some(value)
            .filter(|value| is_plain(value))
            .and_then(|value| HeaderValue::from_str(value).ok())
            .ok_or_else(|| {
                format!("the value of {name} has characters other than visible ASCII and spaces")
            })?;
        value.set_sensitive(true);
        headers.push((name, value));
    }
    Ok(headers.into())
}

/// Whether a webhook may set a header of this name.
fn check_name(name: &str) -> Result<HeaderName, String> {
    let shown = quoted(name);
    let name = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("{shown} is not the name of a header"))?;
    if is_reserved(name.as_str()) {
        return Err(format!("a webhook can't set the header {shown}"));
    }
    Ok(name)
}

/// Whether only the notifier may set a header of this name, which is in lower case.
pub(super) fn is_reserved(name: &str) -> bool {
    RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a text can be the value of any header: visible ASCII, spaces and tabs.
pub(super) fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
}

fn not_an_object() -> String {
    "is not a JSON object of strings, such as {\"authorization\": \"Bearer …\"}".to_owned()
}

fn too_large() -> String {
    format!("more than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES} bytes of them")
}

fn read_timeout_ms(text: &str) -> Result<Duration, String> {
    let millis = text.parse().ok().filter(|millis| TIMEOUT_MS.contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| {
        let (shown, most) = (quoted(text), TIMEOUT_MS.end());
        format!("{shown} is not a number of milliseconds from 1 to {most}")
    })
}

fn read_max_in_flight(text: &str) -> Result<NonZeroU32, String> {
    let most: Option<NonZeroU32> = text.parse().ok();
    most.filter(|most| most.get() <= MAX_IN_FLIGHT)
        .ok_or_else(|| format!("{} is not a number from 1 to {MAX_IN_FLIGHT}", quoted(text)))
}

#[cfg(test)]
mod tests;
