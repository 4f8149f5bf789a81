//! What `why` concludes about a delivery: where it is, and what to do.
//!
//! The input is the evidence that could be found, the result is typed. The command puts it into words.

mod owner;

use serde::Serialize;

use super::dead_letter::{DeadLetter, DeathCause};
use super::delivery_log::{DeliveryState, LogEntry};
use super::held::{Dropped, Held};
use super::outcome::DeadReason;
use super::time::UnixMillis;
use super::vocabulary::ReadWord;

pub use owner::Owner;

/// What is known about the delivery of one event to one webhook.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// What was logged of the delivery, oldest first.
    pub entries: &'a [LogEntry],
    /// Its dead letter, if one was found.
    pub dead_letter: Option<&'a DeadLetter>,
    /// Whether all dead letters were read among which its own may be.
    pub dead_letters: DeadLettersSeen,
    /// Whether its webhook is registered.
    pub registration: Registration,
    /// Whether its webhook wants such an event.
    pub interest: Interest,
    /// The webhook's account, if it has one.
    pub webhook_account: Option<&'a str>,
    /// The event's account, as far as it is known.
    pub owner: &'a Owner,
    /// Whether no webhook wanted the event when it came.
    pub was_unmatched: bool,
    /// The queue in which the delivery should wait but doesn't. If its webhook is enabled, a backlog is
    /// such a queue only if it doesn't exist: of an empty one, the first delivery may be in hand.
    pub missing_from: Option<&'a str>,
    /// What is known of the backlog in which the delivery waits.
    pub backlog: Option<&'a BacklogSeen>,
    /// The time of all this.
    pub now: UnixMillis,
}

/// Whether a webhook is registered, and enabled.
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
    /// The event's type is unknown.
    UnknownType,
}

/// Whether the dead letters were read among which a delivery's may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLettersSeen {
    /// All of them.
    All,
    /// Not all of them.
    NotAll,
    /// Their queue is gone, and they are lost.
    QueueGone,
}

/// What is known of a backlog in which an event waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BacklogSeen {
    /// Why it isn't sent now.
    pub cause: ReadWord<Held>,
    /// Until when.
    pub until: Option<UnixMillis>,
    /// How many deliveries wait in it, and how many of them are ahead of the event; approximate.
    pub count: Option<(u64, u64)>,
}

/// What follows from the evidence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the delivery is according to the log and its dead letter; `None` if neither exists.
    pub state: Option<DeliveryState>,
    /// Whether the webhook may not have the event, which belongs to another account or to none.
    pub is_others: bool,
    /// Where it really is, as far as that can be found out.
    pub conclusion: Conclusion,
    /// What to do about it.
    pub remedy: Remedy,
}

/// Where a delivery is, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The webhook isn't registered, and nothing was logged for it.
    NoSuchWebhook,
    /// None of its patterns matches the event's type.
    NoPatternMatches,
    /// The webhook may not have the event.
    OthersEvent,
    /// The webhook is disabled, and nothing was logged.
    WasDisabled,
    /// The webhook wants such events now, but didn't when this one came.
    WantedOnlySince,
    /// Without the event's type, nobody knows whether the webhook wants it.
    NeedsType,
    /// The webhook wants the event, and nothing was logged.
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
    /// It should wait for its next attempt, but isn't in its wait queue.
    LostWaiting {
        /// Which attempt.
        attempt: u32,
        /// When that would be due.
        due: UnixMillis,
        /// The wait queue.
        queue: String,
    },
    /// It waits in its webhook's backlog.
    InBacklog {
        /// Since when.
        since: UnixMillis,
        /// Why.
        cause: ReadWord<Held>,
        /// Its number and how many there are; approximate.
        place: Option<(u64, u64)>,
        /// When its receiver gets the next request, if that is known.
        next: Option<UnixMillis>,
    },
    /// It waited in a backlog that is gone.
    LostBacklog {
        /// The backlog's name.
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
    /// It was dropped with its webhook's backlog, of which nothing records the single deliveries.
    DroppedWithBacklog {
        /// When it entered the backlog.
        since: UnixMillis,
        /// What had become of the webhook.
        why: Dropped,
    },
    /// It is dropped with its webhook's backlog, unless that has already happened.
    DropsWithBacklog {
        /// When it entered the backlog.
        since: UnixMillis,
        /// What has become of the webhook.
        why: Dropped,
        /// Whether the backlog still holds deliveries; otherwise RabbitMQ didn't say.
        is_there: bool,
    },
    /// It was dropped with its webhook.
    Dropped {
        /// When.
        at: UnixMillis,
        /// What had become of the webhook.
        why: ReadWord<Dropped>,
    },
}

/// Where a dead letter is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterIs {
    /// In its dead-letter queue.
    There,
    /// No longer there.
    Gone,
    /// Gone with its queue.
    GoneWithQueue,
    /// Its dead-letter queue couldn't be read.
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
    /// Look up the webhook's id.
    ListWebhooks,
    /// Add a pattern to the webhook, then publish the event again.
    ChangePatterns,
    /// Move the webhook to this account, then publish the event again.
    SetAccount(String),
    /// Publish the event again, with an account.
    NameAccount,
    /// Enable the webhook, then publish the event again.
    Enable,
    /// Publish the event again.
    Publish,
    /// The same: dropped deliveries aren't kept.
    PublishDropped,
    /// The same, once the webhook is enabled.
    EnableDropped,
    /// The same, once the webhook is registered again.
    RegisterDropped,
    /// Publish the event again unless it was replayed.
    PublishUnlessReplayed,
    /// Publish the event again, if this queue was lost.
    PublishIfLost {
        /// Which queue.
        queue: String,
    },
    /// Give the event's type.
    GiveType,
    /// Look into the receiver's own log.
    AskReceiver,
    /// Check that this event queue's retries are consumed.
    CheckRetries {
        /// Which event queue.
        origin: String,
    },
    /// Enable the webhook before the attempt is due; otherwise the delivery is dropped.
    EnableBefore,
    /// Move the webhook to this account before the attempt is due; otherwise the delivery dies.
    SetAccountBefore(Option<String>),
    /// Resume the webhook.
    Resume,
    /// Nothing, or raise the webhook's limits.
    RaiseLimits,
    /// Nothing: it is sent once the receiver works again.
    AwaitReceiver,
    /// Register the webhook again, and publish the event again.
    Register,
    /// Replay it after this.
    Replay(Before),
    /// Publish it again, with an account, or purge it.
    NameAccountOrPurge,
    /// Publish the event again: a replay would fail for the same reason.
    PublishMalformed,
}

/// What has to be done before a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// The receiver has to work again.
    Recovery,
    /// The webhook has to be enabled once its receiver works again.
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
    /// The webhook has to be moved to this account.
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

    /// Where the delivery is according to the log; or to its dead letter, if it died without an entry.
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

    /// There is neither an entry nor a dead letter.
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
            next: until.filter(|until| *until > self.now),
        };
        (conclusion, remedy)
    }

    /// It was dropped, and what was dropped is not kept.
    fn after_drop(&self) -> Remedy {
        match self.registration {
            Registration::Enabled => Remedy::PublishDropped,
            Registration::Disabled => Remedy::EnableDropped,
            Registration::Deleted => Remedy::RegisterDropped,
        }
    }

    /// It waits, but its webhook may no longer have it.
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

    /// How a dead letter can be delivered.
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
