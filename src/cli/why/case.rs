//! The delivery of an event to one webhook, as `why` reports it.

use serde::Serialize;
use uuid::Uuid;

use super::words;
use crate::domain::account;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::delivery_log::{DeliveryState, LogEntry};
use crate::domain::diagnosis::{
    BacklogSeen, DeadLettersSeen, Diagnosis, Evidence, Interest, Owner, Registration,
};
use crate::domain::shown;
use crate::domain::time::UnixMillis;
use crate::domain::webhook::{matching_patterns, without_secrets};
use crate::store::Registered;

/// How many characters are printed of a text that somebody registered or another program wrote.
pub(super) const MOST_SHOWN: usize = 300;

/// What `why` reports about the delivery of an event to one webhook.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) webhook_id: Uuid,
    /// Without parts that may be secret; `None` if it is no longer registered.
    pub(super) url: Option<String>,
    pub(super) registration: Registration,
    /// Why it is disabled.
    pub(super) disabled_reason: Option<String>,
    /// Its patterns that match the event's type.
    pub(super) patterns: Vec<String>,
    /// Its account: it gets the events of that account only.
    pub(super) account: Option<String>,
    /// Why it may not get the event, in words: the event is of another account, or of none.
    pub(super) not_its_own: Option<String>,
    /// All of its patterns.
    #[serde(skip)]
    pub(super) events: Vec<String>,
    /// Where the delivery is according to the log; none if nothing is known of it.
    #[serde(flatten)]
    pub(super) state: Option<DeliveryState>,
    /// Where it is, in words.
    pub(super) now: String,
    /// What to do about it, in words.
    pub(super) to_do: String,
    /// The dead letter, if it was found.
    pub(super) dead_letter: Option<DeadLetter>,
    /// What was logged.
    pub(super) entries: Vec<LogEntry>,
    /// Its position among the event's webhooks: the smallest comes first.
    #[serde(skip)]
    pub(super) rank: u8,
}

/// What is known about the event as a whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) event_type: Option<&'a str>,
    pub(super) owner: &'a Owner,
    /// No webhook wanted the event when it came.
    pub(super) is_unmatched: bool,
    /// Why not all dead letters were read.
    pub(super) dead_letters_unknown: Option<&'a str>,
    /// The queues whose dead letters are lost.
    pub(super) lost_dead_letters: &'a [String],
    /// The webhooks whose delivery is not in the queue where it should wait.
    pub(super) not_waiting: &'a [(Uuid, String)],
    /// The backlogs in which the event waits, by their webhooks.
    pub(super) backlogs: &'a [(Uuid, BacklogSeen)],
    pub(super) now: UnixMillis,
}

/// Whether a webhook is registered, and enabled, now.
pub(super) fn registration(webhook: Option<&Registered>) -> Registration {
    match webhook {
        None => Registration::Deleted,
        Some(webhook) if webhook.disabled_at.is_some() => Registration::Disabled,
        Some(_) => Registration::Enabled,
    }
}

/// Whether the entries end with a dead letter.
pub(super) fn is_dead(entries: &[LogEntry], now: UnixMillis) -> bool {
    matches!(DeliveryState::of(entries, now), Some(DeliveryState::Dead { .. }))
}

impl Case {
    pub(super) fn new(
        webhook_id: Uuid,
        registered: Option<Registered>,
        entries: Vec<LogEntry>,
        dead_letter: Option<DeadLetter>,
        facts: Facts<'_>,
    ) -> Self {
        let events = registered.as_ref().map(|webhook| webhook.events.clone()).unwrap_or_default();
        let matching = facts.event_type.map(matching_patterns).unwrap_or_default();
        let patterns = events.iter().filter(|pattern| matching.contains(pattern)).cloned();
        let patterns: Vec<String> = patterns.collect();
        let account = registered.as_ref().and_then(|webhook| webhook.account.clone());
        let registration = registration(registered.as_ref());
        let is_lost = |entry: &LogEntry| facts.lost_dead_letters.contains(&entry.queue);
        let evidence = Evidence {
            entries: &entries,
            dead_letter: dead_letter.as_ref(),
            dead_letters: match facts.dead_letters_unknown {
                _ if entries.last().is_some_and(is_lost) => DeadLettersSeen::QueueGone,
                Some(_) => DeadLettersSeen::NotAll,
                None => DeadLettersSeen::All,
            },
            registration,
            interest: match facts.event_type {
                None => Interest::UnknownType,
                Some(_) if patterns.is_empty() => Interest::MatchesNot,
                Some(_) => Interest::Matches,
            },
            webhook_account: account.as_deref(),
            owner: facts.owner,
            was_unmatched: facts.is_unmatched,
            missing_from: of(facts.not_waiting, webhook_id).map(String::as_str),
            backlog: of(facts.backlogs, webhook_id),
            now: facts.now,
        };
        let diagnosis = Diagnosis::of(evidence);
        let not_its_own = account
            .as_deref()
            .filter(|_| diagnosis.is_others)
            .map(|account| account::mismatch(account, facts.owner.account()));
        let about = words::Wording {
            webhook: webhook_id,
            event_type: facts.event_type.unwrap_or_default(),
            not_its_own: not_its_own.as_deref().unwrap_or_default(),
            dead_letters_unknown: facts.dead_letters_unknown.unwrap_or_default(),
            disabled_at: registered.as_ref().and_then(|webhook| webhook.disabled_at.as_deref()),
            now: facts.now,
        };
        let (now, to_do) =
            (about.conclusion(&diagnosis.conclusion), about.remedy(&diagnosis.remedy));
        Self {
            webhook_id,
            url: registered
                .as_ref()
                .map(|webhook| shown::line(&without_secrets(&webhook.post_url), MOST_SHOWN)),
            registration,
            disabled_reason: registered.and_then(|webhook| webhook.disabled_reason),
            patterns,
            not_its_own,
            account,
            events,
            rank: diagnosis.rank(),
            state: diagnosis.state,
            now,
            to_do,
            dead_letter,
            entries,
        }
    }
}

/// The value for this webhook.
fn of<T>(all: &[(Uuid, T)], webhook: Uuid) -> Option<&T> {
    all.iter().find(|(id, _)| *id == webhook).map(|(_, one)| one)
}
