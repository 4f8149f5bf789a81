//! What `why` concludes about a delivery: where it is, and what to do.
//!
//! The input is the evidence that `why` could find. The result is typed, and the command puts it into
//! words.

mod conclusion;
mod owner;

use serde::Serialize;

use super::dead_letter::{DeadLetter, DeathCause};
use super::delivery_log::{DeliveryState, LogEntry};
use super::held::{Dropped, Held};
use super::outcome::DeadReason;
use super::time::UnixMillis;
use super::vocabulary::ReadWord;

pub use conclusion::{Before, Conclusion, LetterIs, Remedy};
pub use owner::Owner;

/// The evidence about the delivery of one event to one webhook.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The log entries of the delivery, oldest first.
    pub entries: &'a [LogEntry],
    /// Its dead letter, if one was found.
    pub dead_letter: Option<&'a DeadLetter>,
    /// Whether all dead letters were read that may include its own.
    pub dead_letters: DeadLettersSeen,
    /// Whether its webhook is registered.
    pub registration: Registration,
    /// Whether its webhook wants events of this type.
    pub interest: Interest,
    /// The webhook's account, if it has one.
    pub webhook_account: Option<&'a str>,
    /// The event's account, as far as it is known.
    pub owner: &'a Owner,
    /// Whether no webhook wanted the event when it came.
    pub was_unmatched: bool,
    /// The queue in which the delivery should wait but doesn't. If its webhook is enabled, an
    /// empty backlog doesn't count: its first delivery may be in hand.
    pub missing_from: Option<&'a str>,
    /// The state of the backlog in which the delivery waits, if it is known.
    pub backlog: Option<&'a BacklogSeen>,
    /// When the evidence was found.
    pub now: UnixMillis,
}

/// Whether a webhook is registered, and enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "their names say it")]
pub enum Registration {
    Enabled,
    Disabled,
    Deleted,
}

/// Whether a webhook's patterns match an event's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// One of them matches.
    Matches,
    /// None of them matches.
    MatchesNot,
    /// The event's type is unknown.
    UnknownType,
}

/// Whether the dead letters were read that may include a delivery's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLettersSeen {
    /// All of them were read.
    All,
    /// Not all of them could be read.
    NotAll,
    /// Their queue is gone, and they are lost.
    QueueGone,
}

/// The state of a backlog in which an event waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogSeen {
    /// Why its deliveries wait.
    pub cause: ReadWord<Held>,
    /// Until when they wait, if that is known.
    pub until: Option<UnixMillis>,
    /// How many deliveries wait in it, and how many of these are ahead of the event. Approximate.
    pub count: Option<(u64, u64)>,
}

/// What follows from the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the delivery is according to the log and its dead letter; `None` if neither exists.
    pub state: Option<DeliveryState>,
    /// Whether the webhook may not get the event, which belongs to another account or to none.
    pub is_others: bool,
    /// Where the delivery really is, as far as the evidence shows.
    pub conclusion: Conclusion,
    /// What to do about it.
    pub remedy: Remedy,
}

impl Diagnosis {
    /// Draws the conclusion from the evidence.
    #[must_use]
    pub fn of(evidence: Evidence<'_>) -> Self {
        let state = evidence.state();
        let is_others = evidence.owner.keeps_from(evidence.webhook_account);
        let (conclusion, remedy) = match &state {
            None => evidence.without_trace(is_others),
            Some(DeliveryState::Delivered { at }) => {
                let attempt = evidence.last().map_or(1, |entry| entry.attempt);
                (Conclusion::Delivered { at: *at, attempt }, Remedy::Nothing)
            }
            Some(DeliveryState::Waiting { until, overdue }) => {
                evidence.waiting(*until, *overdue, is_others)
            }
            Some(DeliveryState::InBacklog { since, reason }) => {
                evidence.in_backlog(*since, reason, is_others)
            }
            Some(DeliveryState::Dead { at, reason }) => evidence.dead(*at, reason),
            Some(DeliveryState::Dropped { at, reason }) => {
                (Conclusion::Dropped { at: *at, why: reason.clone() }, evidence.after_drop())
            }
        };
        Self { state, is_others, conclusion, remedy }
    }

    /// The order in which operators see the deliveries of an event: those that need action come first.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self.state {
            _ if matches!(self.conclusion, Conclusion::DroppedWithBacklog { .. }) => 2,
            Some(DeliveryState::Dead { .. }) => 0,
            Some(DeliveryState::Waiting { overdue: true, .. }) => 1,
            Some(DeliveryState::Dropped { .. }) => 2,
            Some(DeliveryState::Waiting { .. } | DeliveryState::InBacklog { .. }) => 3,
            Some(DeliveryState::Delivered { .. }) => 4,
            None if !self.is_others => 5,
            None => 6,
        }
    }
}

impl Evidence<'_> {
    fn last(&self) -> Option<&LogEntry> {
        self.entries.last()
    }

    /// Where the delivery is according to the log, or according to its dead letter if it died without a
    /// log entry.
    fn state(&self) -> Option<DeliveryState> {
        let logged = DeliveryState::of(self.entries, self.now);
        let Some(letter) = self.dead_letter else { return logged };
        let reason: ReadWord<DeathCause> = letter.reason.as_str().into();
        let dead =
            |at| DeliveryState::Dead { at: letter.dead_at.unwrap_or(at), reason: reason.clone() };
        match logged {
            None => Some(dead(self.now)),
            // It died at the broker, which writes no log entry.
            Some(DeliveryState::Waiting { until, .. })
                if reason.known() == Some(DeathCause::Orphaned) =>
            {
                Some(dead(until))
            }
            logged => logged,
        }
    }

    /// Concludes about a delivery that has neither a log entry nor a dead letter.
    fn without_trace(&self, is_others: bool) -> (Conclusion, Remedy) {
        match (self.registration, self.interest) {
            (Registration::Deleted, _) => (Conclusion::NoSuchWebhook, Remedy::ListWebhooks),
            (_, Interest::MatchesNot) => (Conclusion::NoPatternMatches, Remedy::ChangePatterns),
            _ if is_others => {
                let remedy = match self.owner.account() {
                    Some(account) => Remedy::SetAccount(account.to_owned()),
                    None => Remedy::NameAccount,
                };
                (Conclusion::OthersEvent, remedy)
            }
            (Registration::Disabled, _) => (Conclusion::WasDisabled, Remedy::Enable),
            (Registration::Enabled, _) if self.was_unmatched => {
                (Conclusion::WantedOnlySince, Remedy::Publish)
            }
            (Registration::Enabled, Interest::UnknownType) => {
                (Conclusion::NeedsType, Remedy::GiveType)
            }
            (Registration::Enabled, Interest::Matches) => {
                (Conclusion::NothingLogged, Remedy::AskReceiver)
            }
        }
    }

    fn waiting(&self, due: UnixMillis, overdue: bool, is_others: bool) -> (Conclusion, Remedy) {
        let attempt = self.last().map_or(1, |entry| entry.attempt + 1);
        if overdue {
            let origin = self.last().map(|entry| entry.queue.clone()).unwrap_or_default();
            return (Conclusion::Overdue { attempt, due }, Remedy::CheckRetries { origin });
        }
        if let Some(queue) = self.missing_from {
            let queue = queue.to_owned();
            let conclusion = Conclusion::LostWaiting { attempt, due, queue: queue.clone() };
            return (conclusion, Remedy::PublishIfLost { queue });
        }
        let remedy = match self.registration {
            Registration::Enabled if is_others => self.dies_when_due(),
            Registration::Enabled => Remedy::NothingUntil(due),
            Registration::Disabled => Remedy::EnableBefore,
            Registration::Deleted => Remedy::NothingDroppedThen,
        };
        (Conclusion::Waits { attempt, due }, remedy)
    }

    fn in_backlog(
        &self,
        since: UnixMillis,
        reason: &ReadWord<Held>,
        is_others: bool,
    ) -> (Conclusion, Remedy) {
        let unwanted = match self.registration {
            Registration::Enabled => None,
            Registration::Disabled => Some(Dropped::Disabled),
            Registration::Deleted => Some(Dropped::Deleted),
        };
        match (unwanted, self.missing_from) {
            (None, None) => {}
            (None, Some(queue)) => {
                return (Conclusion::LostBacklog { queue: queue.to_owned() }, Remedy::Publish);
            }
            (Some(why), Some(_)) => {
                return (Conclusion::DroppedWithBacklog { since, why }, self.after_drop());
            }
            (Some(why), None) => {
                let is_there = self.backlog.is_some_and(|backlog| backlog.count.is_some());
                let remedy = if is_there { Remedy::NothingDropped } else { self.after_drop() };
                return (Conclusion::DropsWithBacklog { since, why, is_there }, remedy);
            }
        }
        // The logged reason may no longer apply.
        let cause = self.backlog.map_or(reason, |backlog| &backlog.cause);
        let count = self.backlog.and_then(|backlog| backlog.count);
        let until = self.backlog.and_then(|backlog| backlog.until);
        let next = until.filter(|until| *until > self.now);
        // The first delivery of a backlog is in hand, and not counted. If none is behind it, nothing shows
        // that there is a first one.
        if !is_others && count.is_some_and(|(all, _)| all <= 1) {
            let conclusion = Conclusion::InHandOrDropped { since, cause: cause.clone(), next };
            return (conclusion, Remedy::PublishUnlessAttempted);
        }
        let remedy = match cause.known() {
            _ if is_others => self.dies_when_due(),
            Some(Held::Paused) => Remedy::Resume,
            Some(Held::Rate | Held::MaxInFlight | Held::Elsewhere) => Remedy::RaiseLimits,
            _ => Remedy::AwaitReceiver,
        };
        let conclusion = Conclusion::InBacklog {
            since,
            cause: cause.clone(),
            place: count.map(|(all, before)| (before + 1, all.max(before + 1))),
            next,
        };
        (conclusion, remedy)
    }

    /// The remedy for a dropped delivery: dropped deliveries aren't kept.
    fn after_drop(&self) -> Remedy {
        match self.registration {
            Registration::Enabled => Remedy::PublishDropped,
            Registration::Disabled => Remedy::EnableDropped,
            Registration::Deleted => Remedy::RegisterDropped,
        }
    }

    /// The remedy for a waiting delivery whose webhook may not get the event any more.
    fn dies_when_due(&self) -> Remedy {
        Remedy::SetAccountBefore(self.owner.account().map(str::to_owned))
    }

    fn dead(&self, at: UnixMillis, cause: &ReadWord<DeathCause>) -> (Conclusion, Remedy) {
        let origin = self.dead_letter.map(|letter| &letter.queue);
        let origin = origin.or(self.last().map(|entry| &entry.queue)).cloned().unwrap_or_default();
        let letter = match (self.dead_letter, self.dead_letters) {
            (Some(_), _) => LetterIs::There,
            (None, DeadLettersSeen::All) => LetterIs::Gone,
            (None, DeadLettersSeen::NotAll) => LetterIs::Unknown,
            (None, DeadLettersSeen::QueueGone) => LetterIs::GoneWithQueue,
        };
        let remedy = match letter {
            LetterIs::GoneWithQueue => Remedy::Publish,
            LetterIs::Gone => Remedy::PublishUnlessReplayed,
            LetterIs::There | LetterIs::Unknown => self.replay_remedy(&origin, cause),
        };
        (Conclusion::Dead { at, cause: cause.clone(), origin, letter }, remedy)
    }

    /// How a dead letter can still be delivered.
    fn replay_remedy(&self, origin: &str, cause: &ReadWord<DeathCause>) -> Remedy {
        match self.registration {
            Registration::Deleted => return Remedy::Register,
            Registration::Disabled => return Remedy::Replay(Before::Enable),
            Registration::Enabled => {}
        }
        let before = match cause.known() {
            Some(DeathCause::Orphaned) => Before::StartNotifier { origin: origin.to_owned() },
            Some(DeathCause::DeliveryLimit) => Before::RaiseDeliveryLimit,
            Some(DeathCause::MaxLength) => Before::RaiseMaxLength,
            Some(DeathCause::Decided(reason)) => match reason {
                DeadReason::Malformed => return Remedy::PublishMalformed,
                DeadReason::Refused => Before::AskOwner,
                DeadReason::Rejected => Before::Fix,
                DeadReason::OtherAccount => match self.owner.account() {
                    Some(account) => Before::SetAccount(account.to_owned()),
                    None => return Remedy::NameAccountOrPurge,
                },
                DeadReason::Exhausted | DeadReason::Gone | DeadReason::Expired => Before::Recovery,
            },
            Some(DeathCause::Unstated) | None => Before::Recovery,
        };
        Remedy::Replay(before)
    }
}

#[cfg(test)]
mod tests;
