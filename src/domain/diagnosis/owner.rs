//! The account of an event, as far as it is known.

use crate::domain::account;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::delivery_log::LogEntry;
use crate::domain::encoding::header_of_name;
use crate::domain::time::UnixMillis;

/// The account of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The event belongs to this account.
    Account(String),
    /// The event belongs to no account.
    Nobody,
    /// Nothing was logged for the event since the log began to record accounts.
    Unknown,
}

impl Owner {
    /// The account according to the log and a dead letter. `since` is the time from which on the log
    /// records accounts.
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

    /// The account, if the event belongs to one.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Account(account) => Some(account),
            Self::Nobody | Self::Unknown => None,
        }
    }

    /// Whether a webhook of this account may not get the event. False if the event's account is unknown.
    #[must_use]
    pub fn keeps_from(&self, webhook: Option<&str>) -> bool {
        let event = self.account();
        let Some(webhook) = webhook.filter(|_| *self != Self::Unknown) else { return false };
        // The log has the encoded form if the database's encoding lacks a character.
        let is_own = event.is_some_and(|event| header_of_name(webhook) == event);
        !is_own && !account::may_have(Some(webhook), event)
    }
}
