//! Times in SQL expressions. Rows may contain times that no number and no calendar can express.

/// The most characters of a time as text.
const MOST_CHARS: usize = 64;

/// A column of times in RFC 3339, in the session's time zone, UTC. Anything else it contains, as text.
pub(super) fn rfc3339(column: &str) -> String {
    let bytes = 4 * MOST_CHARS;
    format!(
        "CASE WHEN pg_column_size({column}) > {bytes} THEN '?'
              ELSE regexp_replace(left(to_jsonb({column}) #>> '{{}}', {MOST_CHARS}), '[+]00:00$', 'Z')
         END"
    )
}

/// A time as milliseconds since 1970, limited to the calendar's years from 1970 to 9999; NULL stays NULL.
pub(super) fn unix_millis(time: &str) -> String {
    format!("(extract(epoch FROM {}) * 1000)::bigint", within_calendar(time))
}

/// A time as seconds since 1970, limited in the same way.
pub(super) fn unix_seconds(time: &str) -> String {
    format!("extract(epoch FROM {})::bigint", within_calendar(time))
}

/// `least` and `greatest` ignore NULL, which therefore needs its own case.
fn within_calendar(time: &str) -> String {
    format!("CASE WHEN {time} IS NOT NULL THEN least(greatest({time}, 'epoch'), '9999-12-31') END")
}
