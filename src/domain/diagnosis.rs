//! What `why` concludes of a delivery: where it is, and what to do about it.
//!
//! Evidence goes in, whatever could be found of it; conclusions come out, as types. What they are called in
//! front of people is the command's.

mod owner;

use serde::Serialize;

use super::dead_letter::{DeadLetter, DeathCause};
use super::delivery_log::{DeliveryState, LogEntry};
use super::held::{Dropped, Held};
use super::outcome::DeadReason;
use super::time::UnixMillis;
use super::vocabulary::ReadWord;

pub use owner::Owner;

/// What was found out about one event and one webhook.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was logged of the delivery, oldest first.
    pub entries: &'a [LogEntry],
    /// Its dead letter, if one was found.
    pub dead_letter: Option<&'a DeadLetter>,
    /// Whether all dead letters were seen that could be its own.
    pub dead_letters: DeadLettersSeen,
    /// Whether its webhook is there.
    pub registration: Registration,
    /// Whether its webhook wants such an event.
    pub interest: Interest,
    /// Whose its webhook is, if it is anybody's.
    pub webhook_account: Option<&'a str>,
    /// Whose the event is.
    pub owner: &'a Owner,
    /// Whether no webhook wanted the event when it came.
    pub was_unmatched: bool,
    /// The queue in which the delivery should wait, and does not.
    pub missing_from: Option<&'a str>,
    /// What is known of the backlog in which the delivery waits.
    pub backlog: Option<&'a BacklogSeen>,
    /// When all this was found out.
    pub now: UnixMillis,
}

/// Whether a webhook is there today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "they say it")]
pub enum Registration {
    Enabled,
    Disabled,
    Deleted,
}

/// Whether a webhook's patterns match an event's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// One of them does.
    Matches,
    /// None of them does.
    MatchesNot,
    /// Nobody knows the event's type.
    UnknownType,
}

/// How far the dead letters were seen that a delivery could be among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLettersSeen {
    /// All of them.
    All,
    /// Not all of them.
    NotAll,
    /// They are lost: their queue is gone.
    QueueGone,
}

/// What is known of a backlog in which an event waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogSeen {
    /// What holds it up now.
    pub cause: ReadWord<Held>,
    /// Until when it does.
    pub until: Option<UnixMillis>,
    /// How many wait in it, and how many before the event, about.
    pub count: Option<(u64, u64)>,
}

/// What follows from the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the delivery is, by the log and its dead letter; none if nothing is known of it.
    pub state: Option<DeliveryState>,
    /// Whether the event is of another account than the webhook, or of none: it may not have it.
    pub is_others: bool,
    /// Where it really is, as far as can be told.
    pub conclusion: Conclusion,
    /// What to do about it.
    pub remedy: Remedy,
}

/// Where a delivery is, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// There is no such webhook, and nothing was logged for it.
    NoSuchWebhook,
    /// None of its patterns matches the event's type.
    NoPatternMatches,
    /// It may not have the event.
    OthersEvent,
    /// It is disabled, and got nothing.
    WasDisabled,
    /// It wants such an event, and did not when this one came.
    WantedOnlySince,
    /// Whether it wants the event can't be told without the event's type.
    NeedsType,
    /// It wants the event, and the log says no more.
    NothingLogged,
    /// The receiver has it.
    Delivered {
        /// Since when.
        at: UnixMillis,
        /// By which attempt.
        attempt: u32,
    },
    /// It waits for its next attempt.
    Waits {
        /// Which one that is.
        attempt: u32,
        /// When that is due.
        due: UnixMillis,
    },
    /// It should have had its next attempt.
    Overdue {
        /// Which one that is.
        attempt: u32,
        /// When that was due.
        due: UnixMillis,
    },
    /// It should wait for its next attempt, and is not where it should be.
    LostWaiting {
        /// Which attempt.
        attempt: u32,
        /// When that would be due.
        due: UnixMillis,
        /// Where it should be.
        queue: String,
    },
    /// It waits in its webhook's backlog.
    InBacklog {
        /// Since when.
        since: UnixMillis,
        /// Why.
        cause: ReadWord<Held>,
        /// About which one it is, and of how many.
        place: Option<(u64, u64)>,
        /// When its receiver is asked next, if that is known.
        next: Option<UnixMillis>,
    },
    /// It waited in a backlog that is gone.
    LostBacklog {
        /// What was called so.
        queue: String,
    },
    /// It is dead.
    Dead {
        /// Since when.
        at: UnixMillis,
        /// Why.
        cause: ReadWord<DeathCause>,
        /// The queue that its event was published to.
        origin: String,
        /// Where its dead letter is.
        letter: LetterIs,
    },
    /// It was dropped with its webhook.
    Dropped {
        /// When.
        at: UnixMillis,
        /// What had become of the webhook.
        why: ReadWord<Dropped>,
    },
}

/// Where a dead letter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterIs {
    /// Where dead letters lie.
    There,
    /// Not there any more.
    Gone,
    /// Gone with its queue.
    GoneWithQueue,
    /// That could not be found out.
    Unknown,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: all is well.
    Nothing,
    /// Nothing: it is attempted then.
    NothingUntil(UnixMillis),
    /// Nothing: it is dropped when it is due.
    NothingDroppedThen,
    /// Nothing: it is dropped.
    NothingDropped,
    /// Look for the webhook's id.
    ListWebhooks,
    /// Have the webhook want such events; then publish the event again.
    ChangePatterns,
    /// Make the webhook one of this account; then publish the event again.
    SetAccount(String),
    /// Publish the event again, with an account.
    NameAccount,
    /// Enable the webhook, then publish the event again.
    Enable,
    /// Publish the event again.
    Publish,
    /// The same, for what is dropped is not kept.
    PublishDropped,
    /// The same, once the webhook is enabled.
    EnableDropped,
    /// Publish the event again, unless a replay delivers what is no longer dead.
    PublishUnlessReplayed,
    /// Publish the event again, if this queue was lost.
    PublishIfLost {
        /// Which queue.
        queue: String,
    },
    /// Say which type the event has.
    GiveType,
    /// Look into the receiver's own log.
    AskReceiver,
    /// See whether this event queue's retries are consumed.
    CheckRetries {
        /// Which event queue.
        origin: String,
    },
    /// Enable the webhook before it is due: else it is dropped then.
    EnableBefore,
    /// Make the webhook one of this account before it is due, if it is to have the event: else it dies then.
    SetAccountBefore(Option<String>),
    /// Resume the webhook.
    Resume,
    /// Nothing, or raise the webhook's limits.
    RaiseLimits,
    /// Nothing, once the receiver is well.
    AwaitReceiver,
    /// Register the webhook again, and publish the event again.
    Register,
    /// Replay it, after that.
    Replay(Before),
    /// Publish it again, with an account, or purge it.
    NameAccountOrPurge,
    /// Publish the event again: a replay would find it as malformed as it is.
    PublishMalformed,
}

/// What has to be done before a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// The receiver has to be well.
    Recovery,
    /// The webhook has to be enabled, once its receiver is there again.
    Enable,
    /// A notifier has to make the retry queue of this event queue again.
    StartNotifier {
        /// Which event queue.
        origin: String,
    },
    /// The receiver's owner has to say why it refuses the event.
    AskOwner,
    /// What the error says has to be fixed.
    Fix,
    /// The webhook has to become one of this account, if it is to have the event.
    SetAccount(String),
    /// The broker's limit of deliveries has to be raised.
    RaiseDeliveryLimit,
    /// The broker's limit of a queue's length has to be raised.
    RaiseMaxLength,
}

impl Diagnosis {
    /// What follows from the evidence.
    #[must_use]
    pub fn of(evidence: Evidence<'_>) -> Self {
        let state = evidence.state();
        let is_others = evidence.owner.keeps_from(evidence.webhook_account);
        let (conclusion, remedy) = match &state {
            None => evidence.unheard_of(is_others),
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
                let remedy = match evidence.registration {
                    Registration::Disabled => Remedy::EnableDropped,
                    Registration::Enabled | Registration::Deleted => Remedy::PublishDropped,
                };
                (Conclusion::Dropped { at: *at, why: reason.clone() }, remedy)
            }
        };
        Self { state, is_others, conclusion, remedy }
    }

    /// In this order operators want to see the deliveries of an event: what needs somebody comes first.
    #[must_use]
    pub fn rank(&self) -> u8 {
        match self.state {
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

    /// Where the delivery is, by the log; and by its dead letter, where the log has nothing of its death.
    fn state(&self) -> Option<DeliveryState> {
        let logged = DeliveryState::of(self.entries, self.now);
        let Some(letter) = self.dead_letter else { return logged };
        let reason: ReadWord<DeathCause> = letter.reason.as_str().into();
        let dead =
            |at| DeliveryState::Dead { at: letter.dead_at.unwrap_or(at), reason: reason.clone() };
        match logged {
            None => Some(dead(self.now)),
            // It died at the broker.
            Some(DeliveryState::Waiting { until, .. })
                if reason.known() == Some(DeathCause::Orphaned) =>
            {
                Some(dead(until))
            }
            logged => logged,
        }
    }

    /// Nothing is known of a delivery.
    fn unheard_of(&self, is_others: bool) -> (Conclusion, Remedy) {
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
        if let Some(queue) = self.missing_from {
            return (Conclusion::LostBacklog { queue: queue.to_owned() }, Remedy::Publish);
        }
        // What held it up then need not be what does now.
        let cause = self.backlog.map_or(reason, |backlog| &backlog.cause);
        let count = self.backlog.and_then(|backlog| backlog.count);
        let until = self.backlog.and_then(|backlog| backlog.until);
        let remedy = match (self.registration, cause.known()) {
            (Registration::Deleted | Registration::Disabled, _) => Remedy::NothingDropped,
            (Registration::Enabled, _) if is_others => self.dies_when_due(),
            (Registration::Enabled, Some(Held::Paused)) => Remedy::Resume,
            (Registration::Enabled, Some(Held::Rate | Held::MaxInFlight | Held::Elsewhere)) => {
                Remedy::RaiseLimits
            }
            (Registration::Enabled, _) => Remedy::AwaitReceiver,
        };
        let conclusion = Conclusion::InBacklog {
            since,
            cause: cause.clone(),
            place: count.map(|(all, before)| (before + 1, all.max(before + 1))),
            next: until.filter(|until| *until > self.now),
        };
        (conclusion, remedy)
    }

    /// It waits, and its webhook may not have it any more.
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
            LetterIs::There | LetterIs::Unknown => self.revival(&origin, cause),
        };
        (Conclusion::Dead { at, cause: cause.clone(), origin, letter }, remedy)
    }

    /// How a dead letter comes to its receiver.
    fn revival(&self, origin: &str, cause: &ReadWord<DeathCause>) -> Remedy {
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
