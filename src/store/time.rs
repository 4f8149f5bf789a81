//! Times in SQL expressions. Rows may contain times that no number and no calendar can express.

/// The most characters of a time as text.
const MOST_CHARS: usize = 64;

/// The present time for `created_at`, a column without a time zone. Its default, `now()`, would be in the time zone of
/// the session, which isn't always UTC.
pub(super) const NOW_IN_UTC: &str = "(now() AT TIME ZONE 'UTC')";

/// A column of times, or an expression on such columns, as text: RFC 3339 in UTC, whatever the session's
/// time zone is. (A pooler may refuse the option that sets it.) A time without a time zone counts as UTC.
/// `infinity`, times before our era, and values of other types remain as PostgreSQL writes them.
pub(super) fn rfc3339(column: &str) -> String {
    let bytes = 4 * MOST_CHARS;
    // As JSON, times don't depend on the session's DateStyle.
    let text = format!("(to_jsonb({column}) #>> '{{}}')");
    let with_z = |time: &str| format!("regexp_replace({time}, '[0-9]$', '\\&Z')");
    format!(
        "CASE WHEN pg_column_size({column}) > {bytes} THEN '?'
              WHEN pg_typeof({column}) = 'timestamptz'::regtype THEN {}
              WHEN pg_typeof({column}) = 'timestamp'::regtype THEN {}
              ELSE left({text}, {MOST_CHARS})
         END",
        with_z(&format!("(to_jsonb({text}::timestamptz AT TIME ZONE 'UTC') #>> '{{}}')")),
        with_z(&text),
    )
}

/// The same without fractions of a second, as commands print times.
pub(super) fn rfc3339_seconds(column: &str) -> String {
    let seconds = r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)([.]\d+)?Z$";
    format!(r"regexp_replace({}, '{seconds}', '\1Z')", rfc3339(column))
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
