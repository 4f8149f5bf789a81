//! The conclusions about a delivery, and the remedies.

use crate::domain::dead_letter::DeathCause;
use crate::domain::held::{Dropped, Held};
use crate::domain::time::UnixMillis;
use crate::domain::vocabulary::ReadWord;

/// Where a delivery is, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The webhook isn't registered, and nothing was logged for it.
    NoSuchWebhook,
    /// None of the webhook's patterns matches the event's type.
    NoPatternMatches,
    /// The webhook may not get the event, which belongs to another account or to none.
    OthersEvent,
    /// The webhook is disabled, and nothing was logged.
    WasDisabled,
    /// The webhook wants events of this type now, but didn't when this one came.
    WantedOnlySince,
    /// The event's type is unknown, so it can't be told whether the webhook wants the event.
    NeedsType,
    /// The webhook wants the event, and nothing was logged.
    NothingLogged,
    /// The receiver has the event.
    Delivered {
        /// When the receiver got it.
        at: UnixMillis,
        /// The number of the attempt that succeeded.
        attempt: u32,
    },
    /// The delivery waits for its next attempt.
    Waits {
        /// The number of that attempt.
        attempt: u32,
        /// When that attempt is due.
        due: UnixMillis,
    },
    /// The delivery should have had its next attempt by now.
    Overdue {
        /// The number of that attempt.
        attempt: u32,
        /// When that attempt was due.
        due: UnixMillis,
    },
    /// The delivery should wait for its next attempt, but isn't in its wait queue.
    LostWaiting {
        /// The number of that attempt.
        attempt: u32,
        /// When that attempt would be due.
        due: UnixMillis,
        /// The name of the wait queue.
        queue: String,
    },
    /// The delivery waits in its webhook's backlog.
    InBacklog {
        /// Since when it has waited there.
        since: UnixMillis,
        /// Why it waits.
        cause: ReadWord<Held>,
        /// Its position (from 1), and how many deliveries there are. Approximate.
        place: Option<(u64, u64)>,
        /// When its receiver gets the next request, if that is known.
        next: Option<UnixMillis>,
    },
    /// The delivery waited in a backlog that is gone.
    LostBacklog {
        /// The name of the backlog's queue.
        queue: String,
    },
    /// The delivery is dead.
    Dead {
        /// When it died.
        at: UnixMillis,
        /// Why it died.
        cause: ReadWord<DeathCause>,
        /// The queue that its event was published to.
        origin: String,
        /// Where its dead letter is.
        letter: LetterIs,
    },
    /// The delivery entered its webhook's backlog, in which no delivery waits now: it is in a notifier's hand,
    /// or was dropped while the webhook was disabled, or was lost with the queue.
    InHandOrDropped {
        /// When it entered the backlog.
        since: UnixMillis,
        /// What holds up the backlog, if it still does.
        cause: ReadWord<Held>,
        /// When its receiver may get the next request, if that is known.
        next: Option<UnixMillis>,
    },
    /// The delivery was dropped with its webhook's backlog. The delivery log has no entry for that.
    DroppedWithBacklog {
        /// When it entered the backlog.
        since: UnixMillis,
        /// Whether the webhook was deleted or disabled.
        why: Dropped,
    },
    /// The delivery is dropped with its webhook's backlog, unless that has already happened.
    DropsWithBacklog {
        /// When it entered the backlog.
        since: UnixMillis,
        /// Whether the webhook was deleted or disabled.
        why: Dropped,
        /// Whether the backlog still holds deliveries; otherwise RabbitMQ didn't say.
        is_there: bool,
    },
    /// The delivery was dropped because of its webhook.
    Dropped {
        /// When it was dropped.
        at: UnixMillis,
        /// Whether the webhook was deleted or disabled.
        why: ReadWord<Dropped>,
    },
}

/// Where a dead letter is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetterIs {
    /// It is in its dead-letter queue.
    There,
    /// It is no longer in its dead-letter queue.
    Gone,
    /// Its dead-letter queue is gone, and so is the dead letter.
    GoneWithQueue,
    /// Its dead-letter queue couldn't be read.
    Unknown,
}

/// What operators should do about a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: all is well.
    Nothing,
    /// Nothing: the next attempt is made at this time.
    NothingUntil(UnixMillis),
    /// Nothing: the delivery is dropped when its next attempt is due.
    NothingDroppedThen,
    /// Nothing: the delivery is dropped.
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
    /// Publish the event again, because dropped deliveries aren't kept.
    PublishDropped,
    /// Enable the webhook, then publish the event again, because dropped deliveries aren't kept.
    EnableDropped,
    /// Publish the event again, unless the delivery is attempted once its receiver may get a request.
    PublishUnlessAttempted,
    /// Register the webhook again, then publish the event again, because dropped deliveries aren't kept.
    RegisterDropped,
    /// Publish the event again, unless its dead letter was replayed.
    PublishUnlessReplayed,
    /// Publish the event again if this queue was lost.
    PublishIfLost {
        /// The name of the queue.
        queue: String,
    },
    /// Give the event's type.
    GiveType,
    /// Look into the receiver's own log.
    AskReceiver,
    /// Check that this event queue's retries are consumed.
    CheckRetries {
        /// The name of the event queue.
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
    /// Nothing: the delivery is sent once the receiver works again.
    AwaitReceiver,
    /// Register the webhook again, and publish the event again.
    Register,
    /// Replay the dead letter, after this step.
    Replay(Before),
    /// Publish the event again, with an account, or purge the dead letter.
    NameAccountOrPurge,
    /// Publish the event again: a replay would fail for the same reason.
    PublishMalformed,
}

/// What has to be done before a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Wait until the receiver works again.
    Recovery,
    /// Enable the webhook, once its receiver works again.
    Enable,
    /// Start a notifier that serves this event queue: it creates the missing retry queue.
    StartNotifier {
        /// The name of the event queue.
        origin: String,
    },
    /// Ask the receiver's owner why the receiver refuses the event.
    AskOwner,
    /// Fix the cause that the error names.
    Fix,
    /// Move the webhook to this account.
    SetAccount(String),
    /// Raise the broker's delivery limit.
    RaiseDeliveryLimit,
    /// Raise the broker's limit of a queue's length.
    RaiseMaxLength,
}
