//! Accounts: which account an event belongs to, and which webhooks may receive it.
//!
//! An event belongs to one account or to none, and so does a webhook. A webhook with an account gets
//! only the events of that account; a webhook without one gets every event. So an event without an
//! account never reaches a webhook that has one. Names are compared byte by byte: case and spaces matter.

use super::shown::quoted;

/// The longest account name, in bytes: the same limit as for event ids and types.
pub const MAX_ACCOUNT_BYTES: usize = 255;

/// Stands for an account that is neither a string nor an integer. [`check`] refuses it.
pub const NO_NAME: &str = "\u{1a}";

/// Checks that a text can name an account: not empty, at most [`MAX_ACCOUNT_BYTES`], no control
/// characters (PostgreSQL's text can't hold NUL, and a line break would break a log line).
///
/// # Errors
/// The problem, worded to follow "the account".
pub fn check(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        NO_NAME => Err("is neither a string nor an integer"),
        long if long.len() > MAX_ACCOUNT_BYTES => Err("is longer than 255 bytes"),
        text if text.chars().any(char::is_control) => {
            Err("has a control character, or something that is not UTF-8")
        }
        _ => Ok(()),
    }
}

/// Why a valid name is probably a mistake; `None` if it looks fine.
#[must_use]
pub fn doubt(name: &str) -> Option<String> {
    let is_padded = name.trim() != name && check(name).is_ok();
    is_padded
        .then(|| format!("the spaces around the account {} are part of its name", quoted(name)))
}

/// Says in one line why a webhook of this account may not get an event. `event` is the event's account,
/// if it has one.
#[must_use]
pub fn mismatch(webhook: &str, event: Option<&str>) -> String {
    let webhook = quoted(webhook);
    match event {
        Some(event) => {
            format!("it belongs to account {webhook}, the event to account {}", quoted(event))
        }
        None => format!("it belongs to account {webhook}, the event to none"),
    }
}

/// Whether a webhook may get an event, given the accounts of both; `None` is no account.
#[must_use]
pub fn may_have(webhook: Option<&str>, event: Option<&str>) -> bool {
    webhook.is_none() || webhook == event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_some_text_without_control_characters() {
        let longest = "x".repeat(MAX_ACCOUNT_BYTES);
        for good in ["7", "acme", "Acme Inc. ", " ", "größe", "a/b:c", "-1", &longest] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
        assert!(doubt("acme ").is_some_and(|doubt| doubt.contains("\"acme \"")));
        assert_eq!((doubt("a c"), doubt(" \n")), (None, None));
        let long = "é".repeat(128);
        for (bad, says) in [
            ("", "is empty"),
            (&*long, "longer than 255"),
            ("a\nb", "control character"),
            ("a\0", "control character"),
            (NO_NAME, "neither a string nor an integer"),
        ] {
            let problem = check(bad).expect_err(bad);
            assert!(problem.contains(says), "{bad:?}: {problem}");
        }
    }

    #[test]
    fn a_webhook_without_an_account_gets_all_events_and_others_only_their_own() {
        for (webhook, event, may) in [
            (None, None, true),
            (None, Some("a"), true),
            (Some("a"), Some("a"), true),
            (Some("a"), None, false),
            (Some("a"), Some("b"), false),
            (Some("a"), Some("A"), false),
            (Some("a"), Some("a "), false),
            (Some("7"), Some("07"), false),
        ] {
            assert_eq!(may_have(webhook, event), may, "{webhook:?} {event:?}");
        }
    }
}
