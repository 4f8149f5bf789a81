//! A webhook: a URL that somebody registered, and the patterns of event types that it wants.

use uuid::Uuid;

use super::event::{self, Malformed};

/// A registered webhook, as far as a delivery needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// The primary key; stable across changes of the URL.
    pub id: Uuid,
    /// Where events go; other people's input, not yet checked.
    pub post_url: String,
}

/// Every pattern that matches an event type: the type itself, each dotted prefix with `*`, and
/// `*` alone. A webhook wants the event if its `events` and these have a member in common, which
/// PostgreSQL answers by an index (`events && $1`).
#[must_use]
pub fn matching_patterns(event_type: &str) -> Vec<String> {
    let prefixes =
        event_type.match_indices('.').map(|(dot, _)| format!("{}.*", &event_type[..dot]));
    [event_type.to_owned(), "*".to_owned()].into_iter().chain(prefixes).collect()
}

/// Says whether a text can stand in a webhook's `events`: an event type, `*`, or a dotted prefix
/// that ends in `.*`.
///
/// # Errors
/// One line that says what is wrong. A star elsewhere would look like a pattern and match nothing.
pub fn check_pattern(pattern: &str) -> Result<(), String> {
    event::check_event_type(pattern).map_err(|error: Malformed| error.to_string())?;
    let literal = pattern.strip_suffix(".*").unwrap_or(pattern);
    if pattern == "*" || !literal.contains('*') && !literal.is_empty() {
        Ok(())
    } else {
        Err(format!("{pattern:?} matches nothing: use `*`, a type, or a prefix such as `user.*`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition in words, as the oracle: the type itself, everything, or a dotted prefix.
    fn wants(pattern: &str, event_type: &str) -> bool {
        pattern == event_type
            || pattern == "*"
            || pattern
                .strip_suffix('*')
                .is_some_and(|prefix| prefix.ends_with('.') && event_type.starts_with(prefix))
    }

    #[test]
    fn a_type_is_wanted_by_itself_its_prefixes_and_everything() {
        assert_eq!(
            matching_patterns("user.profile.updated"),
            ["user.profile.updated", "*", "user.*", "user.profile.*"]
        );
        assert_eq!(matching_patterns("user"), ["user", "*"]);
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

    proptest! {
        #[test]
        fn patterns_match_as_the_definition_says(
            pattern in "[ab*.]{1,6}", event_type in "[ab.]{1,6}",
        ) {
            prop_assume!(check_pattern(&pattern).is_ok());
            prop_assert_eq!(
                matching_patterns(&event_type).contains(&pattern),
                wants(&pattern, &event_type)
            );
        }
    }
}
