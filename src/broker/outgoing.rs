//! A message to publish: where it goes, and where it can go instead.

use uuid::Uuid;

use super::Message;
use super::backlog::backlog_key;
use super::routes::queue_of;
use super::topology::{BACKLOG_EXCHANGE, EVENTS_EXCHANGE, WAIT_EXCHANGE, dead_queue, retry_queue};
use crate::domain::delivery::Value;
use crate::domain::time::Span;

/// The header that says which process put a delivery into a backlog.
pub(super) const ENTERED_BY: &str = "x-entered-by";

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(super) exchange: &'static str,
    pub(super) routing_key: String,
    pub(super) message: Message,
    /// Where it can go instead, if its queue takes nothing.
    pub(super) instead: Instead,
}

/// Where a message can go whose queue takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// It waits in another wait queue than that of this delay, for the retries of a queue.
    OtherWait(Span, String),
    /// It waits for a minute, as where there is no backlog.
    NoBacklog(String),
    /// It waits, and goes on from the retry lane of this queue to its dead-letter queue, without an
    /// attempt.
    DeadLater(String),
    /// Nowhere.
    Nowhere,
}

impl Outgoing {
    /// To wait for `delay`, then come back in the retry queue of `origin`.
    #[must_use]
    pub fn park(message: Message, delay: Span, origin: &str) -> Self {
        let instead = Instead::OtherWait(delay, origin.to_owned());
        let routing_key = format!("{delay}.{origin}");
        Self { exchange: WAIT_EXCHANGE, routing_key, message, instead }
    }

    /// Into the retry queue of `origin` at once. By its name: the exchange has an alternate one, and
    /// would confirm what no retry queue has taken.
    #[must_use]
    pub fn hand_over(message: Message, origin: &str) -> Self {
        Self::to_queue(message, &retry_queue(origin))
    }

    /// Into a webhook's backlog. It says which process has put it there.
    #[must_use]
    pub fn backlog(mut message: Message, origin: &str, webhook: Uuid, instance: &str) -> Self {
        let by = Value::Text(instance.to_owned());
        message.headers.insert(ENTERED_BY.to_owned(), by);
        let routing_key = backlog_key(origin, webhook);
        let instead = Instead::NoBacklog(origin.to_owned());
        Self { exchange: BACKLOG_EXCHANGE, routing_key, message, instead }
    }

    /// Into the dead-letter queue of `origin`.
    #[must_use]
    pub fn dead(message: Message, origin: &str) -> Self {
        let instead = Instead::DeadLater(origin.to_owned());
        Self { instead, ..Self::to_queue(message, &dead_queue(origin)) }
    }

    /// Into any queue, by its name.
    #[must_use]
    pub fn to_queue(message: Message, queue: &str) -> Self {
        let routing_key = queue.to_owned();
        Self { exchange: "", routing_key, message, instead: Instead::Nowhere }
    }

    /// To whoever wants notices of this type; perhaps nobody does.
    pub(super) fn notice(message: Message, event_type: &str) -> Self {
        let routing_key = event_type.to_owned();
        Self { exchange: EVENTS_EXCHANGE, routing_key, message, instead: Instead::Nowhere }
    }

    /// Whether it has to reach a queue.
    pub(super) fn is_mandatory(&self) -> bool {
        self.exchange != EVENTS_EXCHANGE
    }

    /// The queue that it is for.
    pub(super) fn queue(&self) -> String {
        queue_of(self.exchange, &self.routing_key)
    }

    /// By what it finds its way: the name of the queue, of what is for one.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }
}
