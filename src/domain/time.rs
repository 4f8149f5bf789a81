//! A time as people and programs read it: RFC 3339, in UTC.

use serde::Serializer;

use super::delivery::UnixMillis;

/// Date and time of day, to the second: `2026-11-25T02:54:28Z`. For people.
#[must_use]
pub fn rfc3339(at: UnixMillis) -> String {
    let seconds = at.div_euclid(1_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The same to the millisecond, `2026-11-25T02:54:28.123Z`: how a field of a JSON document is written
/// (`serialize_with`).
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(at: &UnixMillis, serializer: S) -> Result<S::Ok, S::Error> {
    let seconds = rfc3339(*at);
    let seconds = seconds.trim_end_matches('Z');
    serializer.collect_str(&format_args!("{seconds}.{:03}Z", at.rem_euclid(1_000)))
}

/// The same for what may be missing: null.
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

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
///
/// Years are counted from March here: then a leap day is the last of its year, and months have
/// 153 days in each five of them.
fn date(days: i64) -> (i64, i64, i64) {
    // From 0000-03-01, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let leap_days = day_of_cycle / 1_460 - day_of_cycle / 36_524 + day_of_cycle / 146_096;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let first_day = 365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100;
    let day_of_year = day_of_cycle - first_day;
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let is_next_year = month >= 10;
    let month = if is_next_year { month - 9 } else { month + 3 };
    (cycle * 400 + year_of_cycle + i64::from(is_next_year), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, SystemTime};

    #[derive(serde::Serialize)]
    struct Timed {
        #[serde(serialize_with = "serialize")]
        at: UnixMillis,
        #[serde(serialize_with = "serialize_option")]
        until: Option<UnixMillis>,
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(seconds * 1_000), expected);
        }
        let json = |at| serde_json::to_string(&Timed { at, until: None }).expect("JSON");
        assert_eq!(json(951_782_399_007), r#"{"at":"2000-02-28T23:59:59.007Z","until":null}"#);
        assert_eq!(json(-1), r#"{"at":"1969-12-31T23:59:59.999Z","until":null}"#);
    }

    proptest! {
        #[test]
        fn another_implementation_says_the_same(seconds in 0_u32..) {
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
        fn no_time_makes_it_panic(at: i64) {
            let _ = (rfc3339(at), serde_json::to_string(&Timed { at, until: Some(at) }));
        }
    }
}
