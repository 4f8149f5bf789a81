//! Whose an event is, by what is known of it.

use crate::domain::account;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::delivery_log::LogEntry;
use crate::domain::encoding::header_of_name;
use crate::domain::time::UnixMillis;

/// Whose an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// This account's.
    Account(String),
    /// Nobody's.
    Nobody,
    /// Nothing is known of the event, or nothing since it is logged whose events are.
    Unknown,
}

impl Owner {
    /// Whose an event is by what was logged of it, and by a dead letter. `since` is when it began to be
    /// logged.
    #[must_use]
    pub fn of(
        entries: &[LogEntry],
        letter: Option<&DeadLetter>,
        since: Option<UnixMillis>,
    ) -> Self {
        let logged = entries.iter().rev().find_map(|entry| entry.account.as_ref());
        let told = logged.or(letter.and_then(|letter| letter.account.as_ref()));
        let is_known = |entry: &LogEntry| since.is_none_or(|since| entry.at >= since);
        match told {
            Some(account) => Self::Account(account.clone()),
            None if letter.is_some() || entries.last().is_some_and(is_known) => Self::Nobody,
            None => Self::Unknown,
        }
    }

    /// The account, if it is one's.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Account(account) => Some(account),
            Self::Nobody | Self::Unknown => None,
        }
    }

    /// Whether a webhook of that account may not have the event; false where that is not known.
    #[must_use]
    pub fn keeps_from(&self, webhook: Option<&str>) -> bool {
        let event = self.account();
        let Some(webhook) = webhook.filter(|_| *self != Self::Unknown) else { return false };
        // As the log has it where the database's encoding lacks a character.
        let is_own = event.is_some_and(|event| header_of_name(webhook) == event);
        !is_own && !account::may_have(Some(webhook), event)
    }
}
