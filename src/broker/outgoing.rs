//! A message to publish: its destination, and the alternative if that refuses it.

use uuid::Uuid;

use super::Message;
use crate::domain::broker_names::{
    BACKLOG_EXCHANGE, EVENTS_EXCHANGE, WAIT_EXCHANGE, backlog_key, dead_queue, header, queue_of,
    retry_queue, wait_key,
};
use crate::domain::delivery::Value;
use crate::domain::time::Span;

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(super) exchange: &'static str,
    pub(super) routing_key: String,
    pub(super) message: Message,
    /// Where it may go if its queue refuses it.
    pub(super) instead: Instead,
}

/// Where a message may go if its queue refuses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// Into the wait queue of another delay than this one, for the retries of this queue.
    OtherWait(Span, String),
    /// Into the wait queue of a minute, as if there were no backlog.
    NoBacklog(String),
    /// Into a wait queue. Then the retry lane of this queue moves it to the dead-letter queue, without an
    /// attempt.
    DeadLater(String),
    /// Nowhere.
    Nowhere,
}

impl Outgoing {
    /// Waits for `delay`, then comes back in the retry queue of `origin`.
    #[must_use]
    pub fn park(message: Message, delay: Span, origin: &str) -> Self {
        let instead = Instead::OtherWait(delay, origin.to_owned());
        let routing_key = wait_key(delay, origin);
        Self { exchange: WAIT_EXCHANGE, routing_key, message, instead }
    }

    /// Goes into the retry queue of `origin` at once. It is addressed to the queue itself, because the exchange
    /// has an alternate exchange, and so would confirm a message that reaches no retry queue.
    #[must_use]
    pub fn hand_over(message: Message, origin: &str) -> Self {
        Self::to_queue(message, &retry_queue(origin))
    }

    /// Goes into a webhook's backlog. It names the process that put it there.
    #[must_use]
    pub fn backlog(mut message: Message, origin: &str, webhook: Uuid, instance: &str) -> Self {
        let by = Value::Text(instance.to_owned());
        message.headers.insert(header::ENTERED_BY.to_owned(), by);
        let routing_key = backlog_key(origin, webhook);
        let instead = Instead::NoBacklog(origin.to_owned());
        Self { exchange: BACKLOG_EXCHANGE, routing_key, message, instead }
    }

    /// Goes into the dead-letter queue of `origin`.
    #[must_use]
    pub fn dead(message: Message, origin: &str) -> Self {
        let instead = Instead::DeadLater(origin.to_owned());
        Self { instead, ..Self::to_queue(message, &dead_queue(origin)) }
    }

    /// Goes into any queue, by its name.
    #[must_use]
    pub fn to_queue(message: Message, queue: &str) -> Self {
        let routing_key = queue.to_owned();
        Self { exchange: "", routing_key, message, instead: Instead::Nowhere }
    }

    /// Goes to all queues that are bound for notices of this type; there may be none.
    pub(super) fn notice(message: Message, event_type: &str) -> Self {
        let routing_key = event_type.to_owned();
        Self { exchange: EVENTS_EXCHANGE, routing_key, message, instead: Instead::Nowhere }
    }

    /// Whether the broker has to return the message if it reaches no queue.
    pub(super) fn is_mandatory(&self) -> bool {
        self.exchange != EVENTS_EXCHANGE
    }

    /// Its queue.
    pub(super) fn queue(&self) -> String {
        queue_of(self.exchange, &self.routing_key)
    }

    /// Its routing key, which is the name of its queue if there is no exchange.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }
}
