//! What became of an event at one webhook, and what to do about it.

use serde::Serialize;
use uuid::Uuid;

use crate::broker::{self, dead_queue, retry_queue};
use crate::domain::account;
use crate::domain::calendar::rfc3339;
use crate::domain::dead_letter::{DeadLetter, ORPHANED};
use crate::domain::delivery::UnixMillis;
use crate::domain::encoding::header_of_name;
use crate::domain::history::{Entry, State};
use crate::domain::outcome::DeadReason;
use crate::domain::shown;
use crate::domain::webhook::{matching_patterns, without_secrets};
use crate::store::Registered;

use super::super::dead_letters::age;

/// How much is shown of what somebody registered or another program said, in characters.
pub(super) const MOST_SHOWN: usize = 300;

const OTHER_ACCOUNT: &str = DeadReason::OtherAccount.label();

/// An event and a webhook.
#[derive(Debug, Serialize)]
pub(super) struct Case {
    pub(super) webhook_id: Uuid,
    /// Without what may be secret; none if it is no longer registered.
    pub(super) url: Option<String>,
    pub(super) registration: Registration,
    /// Why it is disabled.
    pub(super) disabled_reason: Option<String>,
    /// Its patterns that match the event's type.
    pub(super) patterns: Vec<String>,
    /// Whose webhook it is: it gets the events of that account only.
    pub(super) account: Option<String>,
    /// Why it may not have the event, in words: that is of another account, or of none.
    pub(super) not_its_own: Option<String>,
    /// All of its patterns.
    #[serde(skip)]
    pub(super) events: Vec<String>,
    /// Where the delivery is; none if nothing is known of it.
    #[serde(flatten)]
    pub(super) state: Option<State>,
    /// Where it is, in words.
    pub(super) now: String,
    /// What to do about it, in words.
    pub(super) to_do: String,
    /// The dead letter, if it was found.
    pub(super) dead_letter: Option<DeadLetter>,
    /// What was logged.
    pub(super) entries: Vec<Entry>,
}

/// What is known beside the webhook and its story.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) event_type: Option<&'a str>,
    pub(super) owner: &'a Owner,
    /// No webhook wanted the event when it came.
    pub(super) is_unmatched: bool,
    /// Why not all dead letters were seen.
    pub(super) dead_letters_unknown: Option<&'a str>,
    /// The queues whose dead letters are lost.
    pub(super) lost_dead_letters: &'a [String],
    /// The webhooks whose delivery is not in the queue where it should wait.
    pub(super) not_waiting: &'a [(Uuid, String)],
    /// The backlogs in which the event waits.
    pub(super) backlogs: &'a [Backlog],
    pub(super) now: UnixMillis,
}

/// Whose an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Account(String),
    Nobody,
    /// Nothing is known of the event, or nothing since it is logged whose events are.
    Unknown,
}

impl Owner {
    /// Whose an event is by what was logged of it, and by a dead letter. `since` is when it began to be
    /// logged.
    pub(super) fn of(
        entries: &[Entry],
        letter: Option<&DeadLetter>,
        since: Option<UnixMillis>,
    ) -> Self {
        let logged = entries.iter().rev().find_map(|entry| entry.account.as_ref());
        let told = logged.or(letter.and_then(|letter| letter.account.as_ref()));
        let is_known = |entry: &Entry| since.is_none_or(|since| entry.at >= since);
        match told {
            Some(account) => Self::Account(account.clone()),
            None if letter.is_some() || entries.last().is_some_and(is_known) => Self::Nobody,
            None => Self::Unknown,
        }
    }

    pub(super) fn account(&self) -> Option<&str> {
        match self {
            Self::Account(account) => Some(account),
            Self::Nobody | Self::Unknown => None,
        }
    }

    /// Why a webhook of that account may not have the event; none if it may, or that is not known.
    fn mismatch(&self, webhook: Option<&str>) -> Option<String> {
        if *self == Self::Unknown {
            return None;
        }
        let event = self.account();
        let webhook = webhook.filter(|_| !account::may_have(webhook, event))?;
        // As the log has it where the database's encoding lacks a character.
        let is_own = event.is_some_and(|event| header_of_name(webhook) == event);
        (!is_own).then(|| account::mismatch(webhook, event))
    }
}

/// A backlog in which the event waits.
#[derive(Debug)]
pub(super) struct Backlog {
    pub(super) webhook_id: Uuid,
    /// What holds it up now, and until when.
    pub(super) cause: String,
    pub(super) until: Option<UnixMillis>,
    /// How many wait in it, and how many before the event, about.
    pub(super) count: Option<(u64, u64)>,
}

/// Whether a webhook is there today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Registration {
    Enabled,
    Disabled,
    Deleted,
}

impl Registration {
    pub(super) fn of(webhook: Option<&Registered>) -> Self {
        match webhook {
            None => Self::Deleted,
            Some(webhook) if webhook.disabled_at.is_some() => Self::Disabled,
            Some(_) => Self::Enabled,
        }
    }

    /// In words, for people.
    pub(super) fn words(self, disabled_reason: Option<&str>) -> String {
        match self {
            Self::Enabled => "enabled".to_owned(),
            Self::Disabled => {
                let reason = disabled_reason.unwrap_or("no reason given");
                format!("disabled ({})", shown::line(reason, MOST_SHOWN))
            }
            Self::Deleted => "not registered (any more)".to_owned(),
        }
    }
}

/// Whether that is the story of a dead letter.
pub(super) fn is_dead(entries: &[Entry], now: UnixMillis) -> bool {
    matches!(State::of(entries, now), Some(State::Dead { .. }))
}

/// A producer's text as an argument, to be pasted into a shell.
fn flag_of_account(account: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/@+-".contains(&byte);
    let shown = shown::line(account, MOST_SHOWN);
    match account.bytes().all(is_plain) && !account.starts_with('-') {
        true => format!("--account {shown}"),
        false => format!("--account='{}'", shown.replace('\'', r"'\''")),
    }
}

impl Case {
    pub(super) fn new(
        webhook_id: Uuid,
        registered: Option<Registered>,
        entries: Vec<Entry>,
        dead_letter: Option<DeadLetter>,
        facts: Facts<'_>,
    ) -> Self {
        let events = registered.as_ref().map(|webhook| webhook.events.clone()).unwrap_or_default();
        let matching = facts.event_type.map(matching_patterns).unwrap_or_default();
        let patterns = events.iter().filter(|pattern| matching.contains(pattern)).cloned();
        let account = registered.as_ref().and_then(|webhook| webhook.account.clone());
        let registration = Registration::of(registered.as_ref());
        let died = |letter: &DeadLetter, at| State::Dead {
            at: letter.dead_at.unwrap_or(at),
            reason: letter.reason.clone(),
        };
        let state = match (State::of(&entries, facts.now), &dead_letter) {
            (None, Some(letter)) => Some(died(letter, facts.now)),
            // The log has nothing of it.
            (Some(State::Waiting { until, .. }), Some(letter)) if letter.reason == ORPHANED => {
                Some(died(letter, until))
            }
            (state, _) => state,
        };
        let mut case = Self {
            webhook_id,
            url: registered
                .as_ref()
                .map(|webhook| shown::line(&without_secrets(&webhook.post_url), MOST_SHOWN)),
            registration,
            disabled_reason: registered.and_then(|webhook| webhook.disabled_reason),
            patterns: patterns.collect(),
            not_its_own: facts.owner.mismatch(account.as_deref()),
            account,
            events,
            state,
            now: String::new(),
            to_do: String::new(),
            dead_letter,
            entries,
        };
        (case.now, case.to_do) = case.judged(facts);
        case
    }

    /// What needs somebody comes first.
    pub(super) fn rank(&self) -> u8 {
        match self.state {
            Some(State::Dead { .. }) => 0,
            Some(State::Waiting { overdue: true, .. }) => 1,
            Some(State::Dropped { .. }) => 2,
            Some(State::Waiting { .. } | State::InBacklog { .. }) => 3,
            Some(State::Delivered { .. }) => 4,
            None if self.not_its_own.is_none() => 5,
            None => 6,
        }
    }

    /// Where it is, and what to do.
    fn judged(&self, facts: Facts<'_>) -> (String, String) {
        let id = self.webhook_id;
        match &self.state {
            None => self.unheard_of(facts),
            Some(State::Delivered { at }) => {
                let attempt = self.entries.last().map_or(1, |entry| entry.attempt);
                let said = format!("delivered at {}, by attempt {attempt}", rfc3339(*at));
                (said, "nothing: the receiver has answered 2xx".to_owned())
            }
            Some(State::Waiting { until, overdue }) => self.waiting(*until, *overdue, facts),
            Some(State::InBacklog { since, reason }) => self.in_backlog(*since, reason, facts),
            Some(State::Dead { at, reason }) => self.dead(*at, reason, facts),
            Some(State::Dropped { at, reason }) => {
                let said = format!("dropped at {}: its webhook was {reason} then", rfc3339(*at));
                let first = match self.registration {
                    Registration::Disabled => format!("`webhooks enable {id}`, then "),
                    Registration::Enabled | Registration::Deleted => String::new(),
                };
                (said, format!("{first}publish the event again: what was dropped is not kept"))
            }
        }
    }

    fn waiting(&self, until: UnixMillis, overdue: bool, facts: Facts<'_>) -> (String, String) {
        let (id, now) = (self.webhook_id, facts.now);
        let next = self.entries.last().map_or(1, |entry| entry.attempt + 1);
        let queue = self.entries.last().map(|entry| entry.queue.as_str()).unwrap_or_default();
        let at = rfc3339(until);
        if overdue {
            return (
                format!(
                    "overdue: attempt {next} was due at {at}, {} ago, and nothing was logged \
                     of it",
                    age(Some(until), now)
                ),
                format!(
                    "is a notifier running, and does it consume {queue}.retry? See its /readyz, \
                     and `webhook-notifier check`. If it is well, that lane has a backlog, or the \
                     log has a gap; or its log says `queue lost` of a wait queue or of {queue}.retry: \
                     then publish the event again"
                ),
            );
        }
        if let Some((_, queue)) = facts.not_waiting.iter().find(|(webhook, _)| *webhook == id) {
            return (
                format!(
                    "lost, most likely: it should wait for attempt {next} at {at} in {queue}, which is \
                     not there or empty: somebody has deleted or purged it"
                ),
                format!(
                    "if a notifier's log says `queue lost queue={queue}`, publish the event again; if it \
                     says `not usable queue={queue}`, it waits in another one"
                ),
            );
        }
        let wait = if until > now { age(Some(now), until) } else { "0s".to_owned() };
        let said = format!("waits for attempt {next} at {at} (in {wait})");
        if let Some(to_do) = self.will_be_held(facts) {
            return (said, to_do);
        }
        let to_do = match self.registration {
            Registration::Enabled => format!("nothing: next attempt at {at}"),
            Registration::Disabled => {
                format!("`webhooks enable {id}` before that, or it is dropped then")
            }
            Registration::Deleted => "nothing: it is dropped then".to_owned(),
        };
        (said, to_do)
    }

    /// What to do about a delivery that waits, and that its webhook may not have any more.
    fn will_be_held(&self, facts: Facts<'_>) -> Option<String> {
        let why =
            self.not_its_own.as_ref().filter(|_| self.registration == Registration::Enabled)?;
        let end = format!("it will be dead then, {OTHER_ACCOUNT}: {why}");
        Some(match facts.owner.account() {
            Some(account) => format!(
                "{end}. If that is a mistake, before then: `webhooks set {} {}`",
                self.webhook_id,
                flag_of_account(account)
            ),
            None => end,
        })
    }

    fn in_backlog(&self, since: UnixMillis, reason: &str, facts: Facts<'_>) -> (String, String) {
        let id = self.webhook_id;
        if let Some((_, queue)) = facts.not_waiting.iter().find(|(webhook, _)| *webhook == id) {
            return (
                format!("lost: it waited in {queue}, which is gone: somebody has deleted it"),
                "publish the event again".to_owned(),
            );
        }
        let backlog = facts.backlogs.iter().find(|backlog| backlog.webhook_id == id);
        let place = match backlog.and_then(|backlog| backlog.count) {
            Some((all, before)) => {
                format!("about number {} of {} in", before + 1, all.max(before + 1))
            }
            None => "in".to_owned(),
        };
        let cause = backlog.map_or(reason, |backlog| backlog.cause.as_str());
        let until = backlog.and_then(|backlog| backlog.until).filter(|until| *until > facts.now);
        let next = match until {
            Some(until) => {
                let verb = if cause == "breaker" { "probed" } else { "asked again" };
                let wait = age(Some(facts.now), until);
                format!("; its receiver is {verb} at {} (in {wait})", rfc3339(until))
            }
            None => String::new(),
        };
        let cause = shown::line(cause, 40);
        let ago = age(Some(since), facts.now);
        let said = format!(
            "{place} the backlog of its webhook, since {}, {ago} ago: {cause}{next}",
            rfc3339(since)
        );
        if let Some(to_do) = self.will_be_held(facts) {
            return (said, to_do);
        }
        let to_do = match (self.registration, cause.as_str()) {
            (Registration::Deleted, _) => "nothing: it is dropped".to_owned(),
            (Registration::Disabled, _) => {
                "nothing: what waits for a disabled webhook is dropped".to_owned()
            }
            (_, "paused") => format!("`webhooks resume {id}`: all comes then, in order"),
            (_, "rate" | "max_in_flight" | "elsewhere") => format!(
                "nothing, or raise the limit: `webhooks show {id}`, `webhooks set {id} --rate N` or \
                 `--max-in-flight N`"
            ),
            _ => format!(
                "nothing, once the receiver is well: it is asked again by itself, and then all comes in \
                 order. What it got last is in `webhook-notifier tail --webhook {id}`"
            ),
        };
        (said, to_do)
    }

    fn dead(&self, at: UnixMillis, reason: &str, facts: Facts<'_>) -> (String, String) {
        let id = self.webhook_id;
        let reason = shown::line(reason, 40);
        let meaning = match reason.as_str() {
            "exhausted" => ": every attempt of the schedule failed",
            "gone" => ": the receiver answered 410",
            "refused" => ": its answer is one of NO_RETRY_STATUS, or of its webhook's own",
            "rejected" => ": its URL can't be used, or leads where it may not",
            "expired" => ": older than DELIVERY_MAX_AGE",
            OTHER_ACCOUNT => ": when it was due, its webhook was one of another account",
            ORPHANED => ": its retry queue was gone when it was due",
            _ => "",
        };
        let letter = self.dead_letter.as_ref();
        let queue = letter.map(|letter| letter.queue.as_str());
        let queue = queue.or(self.entries.last().map(|entry| entry.queue.as_str()));
        let origin = queue.unwrap_or_default().to_owned();
        let is_lost = letter.is_none() && facts.lost_dead_letters.contains(&origin);
        let queue = match reason.as_str() {
            ORPHANED => broker::ORPHANED.to_owned(),
            _ => shown::line(&dead_queue(&origin), MOST_SHOWN),
        };
        let place = match (letter, facts.dead_letters_unknown) {
            (None, _) if is_lost => {
                format!(
                    "it lay in {queue}, which is gone: somebody has deleted that, with what was in it"
                )
            }
            (Some(_), _) => format!("it lies in {queue}"),
            (None, Some(problem)) => {
                let problem = shown::line(problem, MOST_SHOWN);
                format!("whether it still lies in {queue} is not known ({problem})")
            }
            (None, None) => format!(
                "it is no longer in {queue}: replayed, purged, or deleted with that queue (`queue lost` in \
                 the notifier's log)"
            ),
        };
        let ago = age(Some(at), facts.now);
        let said = format!("dead since {}, {ago} ago, {reason}{meaning}; {place}", rfc3339(at));
        if is_lost {
            return (said, "publish the event again".to_owned());
        }
        if letter.is_none() && facts.dead_letters_unknown.is_none() {
            return (
                said,
                "if it was replayed, its end will stand here; else publish the event again"
                    .to_owned(),
            );
        }
        let replay = format!("`webhook-notifier dead-letters replay --webhook {id}`");
        let to_do = match (self.registration, reason.as_str()) {
            (Registration::Deleted, _) => {
                "its webhook is no longer registered: a replay would be dropped. Register it again \
                 and publish the event again"
                    .to_owned()
            }
            (Registration::Disabled, _) => {
                format!("if the receiver is there again: `webhooks enable {id}`, then {replay}")
            }
            (_, ORPHANED) => {
                let (origin, retry) = (shown::line(&origin, MOST_SHOWN), retry_queue(&origin));
                let retry = shown::line(&retry, MOST_SHOWN);
                format!(
                    "start a notifier with {origin} in QUEUES, which makes {retry} again, then {replay}"
                )
            }
            (_, "refused") => format!(
                "ask the receiver's owner why it refuses the event (`webhooks show {id}` has what is not \
                 tried again); then {replay}"
            ),
            (_, "rejected") => format!("mend what the error says, then {replay}"),
            (_, OTHER_ACCOUNT) => {
                let back = match facts.owner.account() {
                    Some(account) => format!(
                        "if it is its webhook's all the same: `webhooks set {id} {}`, then {replay}",
                        flag_of_account(account)
                    ),
                    None => {
                        "nobody has said whose it is (an older version did not keep the AMQP header \
                         `account` of what it parked): if it is its webhook's, publish it again with \
                         that header"
                            .to_owned()
                    }
                };
                format!(
                    "{back}; else `webhook-notifier dead-letters purge --webhook {id} --reason \
                     {OTHER_ACCOUNT}`"
                )
            }
            (_, "delivery_limit") => {
                format!("raise the delivery limit of the broker's policy, then {replay}")
            }
            _ => format!("once the receiver is well: {replay}"),
        };
        (said, to_do)
    }

    /// What to do where it should have had the event of somebody else.
    fn to_own(&self, facts: Facts<'_>) -> String {
        let id = self.webhook_id;
        match facts.owner.account() {
            Some(account) => format!(
                "if it should: `webhooks set {id} {}`, and publish the event again",
                flag_of_account(account)
            ),
            None => {
                "if it should: the producer says whose event it is by the AMQP header `account`, or \
                 `account` or `account_id` in the body; publish it again so"
                    .to_owned()
            }
        }
    }

    /// The log has nothing of it.
    fn unheard_of(&self, facts: Facts<'_>) -> (String, String) {
        let id = self.webhook_id;
        let said = |text: &str| text.to_owned();
        match (self.registration, facts.event_type) {
            (Registration::Deleted, _) => (
                said("no webhook has this id, and nothing is logged for it"),
                said("see `webhooks list`"),
            ),
            (_, Some(event_type)) if self.patterns.is_empty() => {
                let event_type = shown::line(event_type, MOST_SHOWN);
                let said = format!("not for it: none of its patterns matches {event_type}");
                (said, "if it should: change its `events`, and publish the event again".to_owned())
            }
            _ if let Some(why) = &self.not_its_own => {
                (format!("not for it: {why}"), self.to_own(facts))
            }
            (Registration::Disabled, _) => (
                said("nothing is logged for it: disabled, it gets no events"),
                format!("`webhooks enable {id}`, then publish the event again"),
            ),
            (Registration::Enabled, _) if facts.is_unmatched => (
                said("wants such an event today, and did not when this one came"),
                said("publish the event again"),
            ),
            (Registration::Enabled, None) => (
                said("nothing is logged for it, and the event's type is not known"),
                said("give the type: `--type TYPE`"),
            ),
            (Registration::Enabled, Some(_)) => (
                said(
                    "nothing is logged for it: delivered at its first attempt \
                     (DELIVERY_LOG=failures logs no such one), or not yet wanted when it came, or \
                     not yet attempted",
                ),
                said(
                    "see the receiver's own log: the header `webhook-id` is the event's id, \
                     percent-encoded",
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_to_be_pasted_into_a_shell_is_one_argument_whatever_is_in_it() {
        for (account, shown) in [
            ("acme", "--account acme"),
            ("Acme Inc; touch x", "--account='Acme Inc; touch x'"),
            ("$(id)`id`", "--account='$(id)`id`'"),
            ("it's", r"--account='it'\''s'"),
            ("-x", "--account='-x'"),
            ("größe", "--account='größe'"),
        ] {
            assert_eq!(flag_of_account(account), shown);
        }
    }
}
