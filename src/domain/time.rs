//! The representations of time, and conversions between them. Nothing in this folder reads a clock: times
//! are passed as arguments.
//!
//! A [`Moment`] is a time within this process. A [`UnixMillis`] is a time that other programs see: in
//! messages, tables and JSON. A [`Span`] is a duration as people write it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use jiff::civil::DateTime;
use serde::Serializer;

use super::shown::quoted;

/// A time as the duration since some fixed earlier time.
pub type Moment = Duration;

/// A time in milliseconds since the Unix epoch, as in headers.
pub type UnixMillis = i64;

/// The Unix time of `at`; 0 if it is before 1970.
#[must_use]
pub fn to_unix_millis(at: SystemTime) -> UnixMillis {
    signed_millis(since_epoch(at))
}

/// The Unix time of `at` in whole seconds; 0 if it is before 1970.
#[must_use]
pub fn to_unix_seconds(at: SystemTime) -> u64 {
    since_epoch(at).as_secs()
}

/// The inverse of [`to_unix_millis`]. A time before 1970 becomes 1970.
#[must_use]
pub fn from_unix_millis(at: UnixMillis) -> SystemTime {
    SystemTime::UNIX_EPOCH + between(0, at)
}

/// The time `by` after `at`. Saturates.
#[must_use]
pub fn later(at: UnixMillis, by: Duration) -> UnixMillis {
    at.saturating_add(signed_millis(by))
}

/// The time `by` before `at`. Saturates.
#[must_use]
pub fn earlier(at: UnixMillis, by: Duration) -> UnixMillis {
    at.saturating_sub(signed_millis(by))
}

/// The duration between two times; zero if `to` is earlier, as another machine's clock may say.
#[must_use]
pub fn between(from: UnixMillis, to: UnixMillis) -> Duration {
    Duration::from_millis(u64::try_from(to.saturating_sub(from)).unwrap_or(0))
}

/// A duration in whole milliseconds. Saturates after half a billion years.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn signed_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn since_epoch(at: SystemTime) -> Duration {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The time in UTC, to the second, in the format of RFC 3339: `2026-11-25T02:54:28Z`. For people.
#[must_use]
pub fn rfc3339(at: UnixMillis) -> String {
    format!("{:.0}Z", date_time(at))
}

/// Serializes the time to the millisecond, `2026-11-25T02:54:28.123Z`. For fields of JSON documents
/// (`serialize_with`).
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(at: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{:.3}Z", date_time(*at)))
}

/// Serializes an optional time like [`serialize`]; `None` becomes null.
///
/// # Errors
/// Those of the serializer.
pub fn serialize_option<S: Serializer>(
    at: &Option<UnixMillis>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serialize(at, serializer),
        None => serializer.serialize_none(),
    }
}

/// Date and time of day in UTC. Saturates at the end of the year 9999.
fn date_time(at: UnixMillis) -> DateTime {
    const EPOCH: DateTime = DateTime::constant(1970, 1, 1, 0, 0, 0, 0);
    EPOCH.saturating_add(SignedDuration::from_millis(at))
}

const UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// The unit that is read but never printed: the names of wait queues contain the printed form, and queues
/// for `24h` already exist.
const DAY: (&str, u64) = ("d", 86_400_000);

/// A time span in whole milliseconds, such as `500ms`, `5s`, `1m`, `24h` or `7d`. It prints in the
/// largest unit up to hours in which it is a whole number, so that equal spans print alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    /// The span as a duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }

    /// The span in milliseconds, as for AMQP's `x-message-ttl`.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        millis(self.0)
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.as_millis();
        let (name, unit) = UNITS
            .iter()
            .rev()
            .find(|(_, unit)| millis > 0 && millis.is_multiple_of(*unit))
            .unwrap_or(&UNITS[0]);
        write!(formatter, "{}{name}", millis / unit)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{} is not a time such as 500ms, 5s, 1m or 24h", quoted(text));
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(usage)?;
        let (number, name) = text.split_at(digits);
        let mut units = UNITS.iter().chain([&DAY]);
        let (_, unit) = units.find(|(unit, _)| *unit == name).ok_or_else(usage)?;
        let number: u64 = number.parse().map_err(|_| usage())?;
        number
            .checked_mul(*unit)
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Serialize)]
    struct Timed {
        #[serde(serialize_with = "serialize")]
        at: UnixMillis,
        #[serde(serialize_with = "serialize_option")]
        until: Option<UnixMillis>,
    }

    #[test]
    fn times_are_printed_as_dates_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
            (253_402_300_800, "9999-12-31T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000), expected);
        }
        assert_eq!(rfc3339(1_999), "1970-01-01T00:00:01Z", "it is never rounded up");
        let json = |at| serde_json::to_string(&Timed { at, until: None }).expect("JSON");
        assert_eq!(json(951_782_399_007), r#"{"at":"2000-02-28T23:59:59.007Z","until":null}"#);
        assert_eq!(json(-1), r#"{"at":"1969-12-31T23:59:59.999Z","until":null}"#);
        assert_eq!(json(0), r#"{"at":"1970-01-01T00:00:00.000Z","until":null}"#);
    }

    #[test]
    fn conversions_saturate() {
        let second = Duration::from_secs(1);
        assert_eq!(to_unix_millis(SystemTime::UNIX_EPOCH - second), 0);
        assert_eq!(to_unix_seconds(SystemTime::UNIX_EPOCH - second), 0);
        assert_eq!(from_unix_millis(-1), SystemTime::UNIX_EPOCH);
        assert_eq!(later(i64::MAX - 1, second), i64::MAX);
        assert_eq!(later(5, Duration::MAX), i64::MAX);
        assert_eq!(earlier(i64::MIN + 1, second), i64::MIN);
        assert_eq!(between(2_000, 1_000), Duration::ZERO);
        assert_eq!(between(i64::MIN, i64::MAX), Duration::from_millis(i64::MAX.unsigned_abs()));
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }

    #[test]
    fn a_span_prints_in_the_largest_exact_unit_and_days_are_only_read() {
        for (text, millis, printed) in [
            ("500ms", 500, "500ms"),
            ("0s", 0, "0ms"),
            ("90s", 90_000, "90s"),
            ("60s", 60_000, "1m"),
            ("1d", 86_400_000, "24h"),
        ] {
            let span: Span = text.parse().expect("a time span");
            assert_eq!((span.as_millis(), span.to_string().as_str()), (millis, printed));
        }
    }

    proptest! {
        #[test]
        fn another_implementation_prints_the_same_time(seconds in 0_u32..) {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into());
            // `Sun, 06 Nov 1994 08:49:37 GMT`
            let other = httpdate::fmt_http_date(at);
            let months =
                "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".find(&other[8..11]);
            let month = months.expect("a month") / 4 + 1;
            let expected =
                format!("{}-{month:02}-{}T{}Z", &other[12..16], &other[5..7], &other[17..25]);
            prop_assert_eq!(rfc3339(i64::from(seconds) * 1_000), expected);
        }

        #[test]
        fn printing_never_panics(at: i64) {
            let _ = (rfc3339(at), serde_json::to_string(&Timed { at, until: Some(at) }));
        }

        #[test]
        fn a_printed_span_is_read_back(millis in 0_u64..=30 * 24 * 3_600_000) {
            let span = Span::from(Duration::from_millis(millis));
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }

        #[test]
        fn a_unix_time_is_converted_to_a_system_time_and_back(at in 0..=253_402_300_799_999_i64) {
            prop_assert_eq!(to_unix_millis(from_unix_millis(at)), at);
        }

        #[test]
        fn between_later_and_earlier_agree(from: i32, by: u32) {
            let (from, by) = (i64::from(from), Duration::from_millis(by.into()));
            let to = later(from, by);
            prop_assert_eq!(between(from, to), by);
            prop_assert_eq!(earlier(to, by), from);
        }
    }
}
