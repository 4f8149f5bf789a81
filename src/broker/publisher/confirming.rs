//! A channel in confirm mode: it publishes, and learns what became of each message.

use std::sync::atomic::Ordering;
use std::time::Instant;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmPayload, FieldTable, Publish, Return,
};
use crossbeam_channel::{Receiver, TryRecvError};
use uuid::Uuid;

use super::{LAST_CONFIRMS, Request, UNROUTED_FOR};
use crate::broker::outgoing::Outgoing;
use crate::broker::routes::Routes;
use crate::broker::topology::WITHOUT_BACKLOG;
use crate::broker::{CLOSE_TIMEOUT, KillSwitch, Link, Message};
use crate::domain::broker_names::{BACKLOG_EXCHANGE, read_backlog_key};
use crate::domain::delivery::Value;
use crate::domain::unconfirmed::Unconfirmed;

/// A channel in confirm mode, with what was published on it and is not confirmed yet.
pub(in crate::broker) struct Confirming {
    pub(super) channel: Channel,
    pub(in crate::broker) confirms: Receiver<Confirm>,
    pub(super) returns: Receiver<Return>,
    pub(in crate::broker) unconfirmed: Unconfirmed<Request>,
    /// The queues that have taken a message that was refused before.
    pub(super) accepted: Vec<String>,
    /// Other ways for messages that can't be routed; if `None`, such a message ends the connection.
    pub(super) routes: Option<Routes>,
    /// The queues and webhooks of backlogs that are gone.
    pub(super) gone: Vec<(String, Uuid)>,
    /// Why the connection should be given up.
    pub(in crate::broker) broken: Option<String>,
}

impl Confirming {
    pub(in crate::broker) fn open(
        link: &mut Link,
        routes: Option<Routes>,
    ) -> amiquip::Result<Self> {
        let channel = link.channel()?;
        let returns = channel.listen_for_returns()?;
        // In this order, or early confirms would be dropped.
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Self {
            channel,
            confirms,
            returns,
            unconfirmed: Unconfirmed::default(),
            accepted: Vec::new(),
            routes,
            gone: Vec::new(),
            broken: None,
        })
    }

    pub(in crate::broker) fn publish(&mut self, mut request: Request) {
        if !request.is_wanted(Instant::now()) {
            return;
        }
        if let Some(routes) = &self.routes {
            routes.avoid_refused(&mut request.message);
        }
        request.published_at = Instant::now();
        let (tag, request) = self.unconfirmed.publish(request);
        let Outgoing { exchange, routing_key, message, .. } = &request.message;
        let publish = Publish {
            body: &message.body,
            routing_key: routing_key.clone(),
            mandatory: request.message.is_mandatory(),
            immediate: false,
            properties: properties(message, tag),
        };
        if let Err(error) = self.channel.basic_publish(*exchange, publish) {
            self.broken = Some(error.to_string());
        }
    }

    pub(in crate::broker) fn confirmed(&mut self, confirm: Confirm) {
        // A returned message is acked, too, after its return. The two come by different receivers, so
        // the return may still be waiting.
        while let Ok(returned) = self.returns.try_recv() {
            self.returned(&returned);
        }
        match confirm {
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple }) => {
                for request in self.unconfirmed.ack(delivery_tag, multiple) {
                    if request.slip.is_refused.load(Ordering::Relaxed) {
                        self.accepted.push(request.message.queue());
                    }
                    // This fails if nobody waits any more; the delivery then counts as not parked.
                    let _ = request.confirmed.try_send(());
                }
            }
            // The queue is full or has no leader; it may take the message later.
            Confirm::Nack(ConfirmPayload { delivery_tag, multiple }) => {
                self.unconfirmed.nack(delivery_tag, multiple);
            }
        }
    }

    /// Takes the confirms that have come. Returns false if no more can come.
    pub(super) fn take_confirms(&mut self) -> bool {
        loop {
            match self.confirms.try_recv() {
                Ok(confirm) => self.confirmed(confirm),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Takes what was returned, to be published again: a missing queue is made as soon as somebody learns
    /// of it. What has waited for [`UNROUTED_FOR`] takes another way.
    pub(super) fn take_unrouted(&mut self, now: Instant) -> Vec<Request> {
        let mut unrouted = self.unconfirmed.take_unrouted();
        if let Some(routes) = &self.routes {
            let is_late =
                |one: &&mut Request| now.saturating_duration_since(one.since) >= UNROUTED_FOR;
            for request in unrouted.iter_mut().filter(is_late) {
                routes.go_around(&mut request.message);
            }
        }
        unrouted
    }

    /// Takes the messages for queues that don't answer. The channel then has to be replaced, and closed
    /// soon: at the broker it may still hold these messages for the queues.
    pub(super) fn take_unheard(&mut self, confirmed_at: Instant, now: Instant) -> Vec<Request> {
        self.unconfirmed.take_if(|request| request.is_unheard(confirmed_at, now))
    }

    /// Drops what nobody waits for any more.
    pub(super) fn forget_unwanted(&mut self, now: Instant) {
        self.unconfirmed.expire(|request| request.is_wanted(now));
    }

    /// A message was returned: its queue is gone, or not bound. The ack that follows means nothing, so the
    /// message is taken out before it, and published again.
    pub(super) fn returned(&mut self, returned: &Return) {
        let tag = returned.properties.correlation_id().as_ref().and_then(|tag| tag.parse().ok());
        let request = tag.and_then(|tag| self.unconfirmed.take_returned(tag));
        if returned.exchange == BACKLOG_EXCHANGE
            && let Some((origin, webhook)) = read_backlog_key(&returned.routing_key)
        {
            // The backlog was just removed, because it was empty, or somebody has deleted it. A parked
            // delivery comes back later, and finds or makes another backlog.
            if let Some(request) = request {
                let message = request.message.message;
                let message = Outgoing::park(message, WITHOUT_BACKLOG.into(), origin);
                self.publish(Request { message, ..request });
            }
            self.gone.push((origin.to_owned(), webhook));
            return;
        }
        self.unconfirmed.keep_unrouted(request);
        match &self.routes {
            Some(routes) => routes.returned(&returned.exchange, &returned.routing_key),
            None => {
                self.broken = Some(format!(
                    "the broker returned a message for {:?}, {:?}: {}",
                    returned.exchange, returned.routing_key, returned.reply_text
                ));
            }
        }
    }

    /// Closes the channel. Returns what has to be published again on another one, and if the broker has
    /// closed this one, why.
    pub(in crate::broker) fn into_unconfirmed(
        mut self,
        kill: &KillSwitch,
    ) -> (Vec<Request>, Option<String>) {
        // What is confirmed by now need not be published twice.
        let deadline = Instant::now() + LAST_CONFIRMS;
        while !self.unconfirmed.is_empty() {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(_) => break,
            }
        }
        // It waits for an answer, and the connection may hang.
        let closed_by = match kill.guard(CLOSE_TIMEOUT, None, || self.channel.close()) {
            // Without the channel's number: another number is no other cause.
            Err(amiquip::Error::ServerClosedChannel { message, .. }) => Some(message),
            _ => None,
        };
        (self.unconfirmed.into_left().collect(), closed_by)
    }
}

fn properties(message: &Message, tag: u64) -> AmqpProperties {
    let mut headers = FieldTable::new();
    for (name, value) in &message.headers {
        let value = match value {
            Value::Text(text) => AmqpValue::LongString(text.clone()),
            Value::Integer(integer) => AmqpValue::LongLongInt(*integer),
        };
        headers.insert(name.clone(), value);
    }
    const PERSISTENT: u8 = 2;
    let mut properties = AmqpProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
        // A returned message has no tag; this tells which one it was.
        .with_correlation_id(tag.to_string());
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(message_id) = &message.message_id {
        properties = properties.with_message_id(message_id.clone());
    }
    if let Some(event_type) = &message.event_type {
        properties = properties.with_type_(event_type.clone());
    }
    properties
}
