//! A webhook's patterns: which event types it wants.

use serde_json::Value;

use super::super::event::{self, Malformed};
use super::super::shown::quoted;

/// How many problematic patterns are named in warnings.
const MOST_NAMED: usize = 5;

/// The contents of a row's `events`. The column may hold anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patterns {
    /// Its elements as text, in order, whatever the dimensions of the array.
    pub texts: Vec<String>,
    /// Warnings about elements that match nothing, or probably not what was meant.
    pub warnings: Vec<String>,
    /// Whether none of its elements can match an event.
    pub match_nothing: bool,
    /// Whether it was too large to be read completely.
    pub is_cut: bool,
}

impl Patterns {
    /// Reads `events` as JSON from PostgreSQL. Text that isn't valid JSON was cut because it was too large.
    #[must_use]
    pub fn read(json: Option<&str>) -> Self {
        let nothing = |warning: &str| Self {
            warnings: vec![warning.to_owned()],
            match_nothing: true,
            ..Self::default()
        };
        let Some(json) = json else { return nothing("`events` is NULL: it gets no events") };
        let Ok(value) = serde_json::from_str(json) else {
            let warnings = vec![
                "`events` is too large to be shown; all its patterns are in effect".to_owned(),
            ];
            return Self { warnings, is_cut: true, ..Self::default() };
        };
        let Value::Array(elements) = value else {
            return nothing("`events` is no array: it gets no events");
        };
        if elements.is_empty() {
            return nothing("`events` is empty: it gets no events");
        }
        let mut read = Self::default();
        let (mut is_deep, mut nulls) = (false, 0);
        // Visits the elements depth first, in order, without recursion.
        let mut rest: Vec<Value> = elements.into_iter().rev().collect();
        while let Some(element) = rest.pop() {
            match element {
                Value::String(text) => read.texts.push(text),
                Value::Null => nulls += 1,
                Value::Array(inner) => {
                    is_deep = true;
                    rest.extend(inner.into_iter().rev());
                }
                other => read.texts.push(other.to_string()),
            }
        }
        if is_deep {
            let warning = "`events` has more than one dimension; all its patterns are in effect";
            read.warnings.push(warning.to_owned());
        }
        if nulls > 0 {
            read.warnings.push("`events` contains NULL, which matches nothing".to_owned());
        }
        read.match_nothing = read.texts.iter().all(|text| check_pattern(text).is_err());
        let problem = |text: &String| check_pattern(text).err().or_else(|| doubt(text));
        let problems: Vec<String> = read.texts.iter().filter_map(problem).collect();
        let more = problems.len().saturating_sub(MOST_NAMED);
        read.warnings.extend(problems.into_iter().take(MOST_NAMED));
        if more > 0 {
            read.warnings.push(format!("and {more} more such patterns"));
        }
        read
    }
}

/// Why a valid pattern probably doesn't match what was meant; `None` if it looks fine.
#[must_use]
pub fn doubt(pattern: &str) -> Option<String> {
    let why = match pattern {
        text if text.trim() != text => "the spaces around it are part of it",
        text if text.contains(',') => "give several patterns one by one, not separated by commas",
        text if text.split('.').any(|part| part == "#") => {
            "`#` is no wildcard: `user.*` matches all types that begin with `user.`"
        }
        text if text.contains(char::is_whitespace) => "the space is part of it",
        _ => return None,
    };
    let shown = quoted(pattern);
    let what = if pattern.ends_with(".*") {
        "types with exactly this prefix"
    } else {
        "the type with exactly this name"
    };
    Some(format!("{shown} matches only {what}: {why}"))
}

/// Every pattern that matches an event type: the type itself, each dotted prefix with `*`, and `*`. A
/// webhook wants the event if its `events` contains one of these. PostgreSQL finds such webhooks by an
/// index (`events && $1`).
#[must_use]
pub fn matching_patterns(event_type: &str) -> Vec<String> {
    let prefixes =
        event_type.match_indices('.').map(|(dot, _)| format!("{}.*", &event_type[..dot]));
    [event_type.to_owned(), "*".to_owned()].into_iter().chain(prefixes).collect()
}

/// Every pattern that matches all types that this one matches, including itself.
#[must_use]
pub(super) fn covering_patterns(pattern: &str) -> Vec<String> {
    match pattern.strip_suffix('*') {
        Some("") => vec![pattern.to_owned()],
        // The patterns that match a type with this prefix, except that type itself.
        Some(prefix) if prefix.ends_with('.') => matching_patterns(prefix).split_off(1),
        _ => matching_patterns(pattern),
    }
}

/// Whether a pattern was probably meant to match an event type, but doesn't: they differ in case or at
/// the end, or the pattern has a star in a wrong place.
#[must_use]
pub fn nearly_matches(pattern: &str, event_type: &str) -> bool {
    if matching_patterns(event_type).iter().any(|matching| matching == pattern) {
        return false;
    }
    let [pattern, event_type] = [pattern, event_type].map(str::to_lowercase);
    let literal = pattern.trim_matches(['*', '.']);
    let first = |text: &str| text.split(['.', '*']).next().unwrap_or_default().to_owned();
    let (ours, theirs) = (first(literal), first(&event_type));
    !ours.is_empty()
        && !theirs.is_empty()
        && (ours.starts_with(&theirs) || theirs.starts_with(&ours) || event_type.ends_with(literal))
}

/// Checks that a text can be one of a webhook's `events`: an event type, `*`, or a dotted prefix that
/// ends in `.*`.
///
/// # Errors
/// What is wrong, in one line. A star elsewhere looks like a pattern but matches nothing.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    event::check_event_type(pattern).map_err(|error: Malformed| error.to_string())?;
    let literal = pattern.strip_suffix(".*").unwrap_or(pattern);
    if pattern == "*" || !literal.contains('*') && !literal.is_empty() {
        Ok(())
    } else {
        let shown = quoted(pattern);
        Err(format!("{shown} matches nothing: use `*`, a type, or a prefix such as `user.*`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Whether a pattern matches by definition: it is the type itself, `*`, or a dotted prefix with `*`.
    fn wants(pattern: &str, event_type: &str) -> bool {
        pattern == event_type
            || pattern == "*"
            || pattern
                .strip_suffix('*')
                .is_some_and(|prefix| prefix.ends_with('.') && event_type.starts_with(prefix))
    }

    #[test]
    fn a_type_is_matched_by_itself_by_its_prefixes_and_by_a_star() {
        assert_eq!(
            matching_patterns("user.profile.updated"),
            ["user.profile.updated", "*", "user.*", "user.profile.*"]
        );
        assert_eq!(matching_patterns("user"), ["user", "*"]);
    }

    #[test]
    fn covering_patterns_match_all_types_that_the_pattern_matches() {
        let sorted = |pattern| {
            let mut covering = covering_patterns(pattern);
            covering.sort();
            covering
        };
        assert_eq!(sorted("*"), ["*"]);
        assert_eq!(sorted("a.b.*"), ["*", "a.*", "a.b.*"]);
        assert_eq!(sorted("a.b"), ["*", "a.*", "a.b"]);
        assert_eq!(sorted("a"), ["*", "a"]);
    }

    #[test]
    fn patterns_that_nearly_match_are_recognized() {
        for near in ["User.*", "user.create", "users.created", "user*", "*.created", "user"] {
            assert!(nearly_matches(near, "user.created"), "{near}");
        }
        for other in ["*", "user.*", "user.created", "order.*", "", "**", "."] {
            assert!(!nearly_matches(other, "user.created"), "{other}");
        }
    }

    #[test]
    fn a_pattern_that_matches_nothing_is_refused() {
        for good in ["*", "user", "user.created", "user.*", "a.b.*"] {
            assert_eq!(check_pattern(good), Ok(()), "{good}");
        }
        for bad in ["", "**", "us*", "*.created", "user.*.x", "user*", ".*", "a\nb"] {
            assert!(check_pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patterns_that_are_probably_mistakes_are_doubted() {
        for bad in ["a,b", "user.created ", " user.*", "user.#", "#", "#.created", "user created"] {
            let doubt = doubt(bad).unwrap_or_else(|| panic!("{bad:?}"));
            assert!(doubt.starts_with(&format!("{bad:?} matches only")), "{doubt}");
            assert_eq!(check_pattern(bad), Ok(()), "it could be a type");
        }
        for good in ["*", "user", "user.*", "a.b.c", "issue#created", "größe.*", "A-b_c:d/e"] {
            assert_eq!(doubt(good), None, "{good}");
        }
    }

    #[test]
    fn events_are_read_whatever_they_contain_with_warnings() {
        let read = |json: &str| Patterns::read(Some(json));
        let fine = read(r#"["user.*","order.paid"]"#);
        assert_eq!(fine.texts, ["user.*", "order.paid"]);
        assert_eq!((fine.warnings.len(), fine.match_nothing), (0, false));
        for (json, texts, says, match_nothing) in [
            (r#"["a",null,"b"]"#, &["a", "b"][..], "NULL", false),
            (r#"[["a","b"],["c","d"]]"#, &["a", "b", "c", "d"], "dimension", false),
            (r#"[null]"#, &[], "NULL", true),
            ("[]", &[], "empty", true),
            ("{}", &[], "no array", true),
            ("[1]", &["1"], "", false),
            (r#"["*.created"]"#, &["*.created"], "matches nothing", true),
            (r#"["*.created","a"]"#, &["*.created", "a"], "matches nothing", false),
            (r#"["a,b"]"#, &["a,b"], "commas", false),
            (r#"["a\nb"]"#, &["a\nb"], "control", true),
            (r#"["a","#, &[], "too large", false),
            ("?", &[], "too large", false),
        ] {
            let read = read(json);
            assert_eq!(read.texts, texts, "{json}");
            assert_eq!(read.match_nothing, match_nothing, "{json}");
            let warnings = read.warnings.join("; ");
            assert!(warnings.contains(says) && !warnings.contains('\n'), "{json}: {warnings}");
        }
        assert!(Patterns::read(None).match_nothing);
        let many = read(&format!("[{}]", ["\"a*\""; 9].join(",")));
        assert_eq!(many.warnings.len(), MOST_NAMED + 1);
        assert!(many.warnings[MOST_NAMED].contains("4 more"));
    }

    proptest! {
        #[test]
        fn patterns_match_as_defined(
            pattern in "[ab*.]{1,6}", event_type in "[ab.]{1,6}",
        ) {
            prop_assume!(check_pattern(&pattern).is_ok());
            prop_assert_eq!(
                matching_patterns(&event_type).contains(&pattern),
                wants(&pattern, &event_type)
            );
        }

        #[test]
        fn reading_never_panics(text in any::<String>(), json in "[\\[\\]{}\",a-c1null*.]{0,30}") {
            let _ = (Patterns::read(Some(&text)), Patterns::read(Some(&json)));
            let _ = (doubt(&text), nearly_matches(&text, &text));
        }
    }
}
