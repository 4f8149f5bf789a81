//! A channel in confirm mode: publishes messages, and reads the broker's answer to each.

use std::sync::atomic::Ordering;
use std::time::Instant;

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmPayload, FieldTable, Publish, Return,
};
use crossbeam_channel::{Receiver, TryRecvError};
use uuid::Uuid;

use super::{LAST_CONFIRMS, Publication, UNROUTED_FOR};
use crate::broker::outgoing::Outgoing;
use crate::broker::routes::Routes;
use crate::broker::topology::WITHOUT_BACKLOG;
use crate::broker::{CLOSE_TIMEOUT, KillSwitch, Link, Message};
use crate::domain::broker_names::{BACKLOG_EXCHANGE, read_backlog_key};
use crate::domain::delivery::Value;
use crate::domain::unconfirmed::Unconfirmed;

/// A channel in confirm mode, with the messages that are not confirmed yet.
pub(in crate::broker) struct Confirming {
    pub(super) channel: Channel,
    pub(in crate::broker) confirms: Receiver<Confirm>,
    pub(super) returns: Receiver<Return>,
    pub(in crate::broker) unconfirmed: Unconfirmed<Publication>,
    /// The queues that have accepted a message that was refused before.
    pub(super) accepted: Vec<String>,
    /// Reroutes messages that can't be routed; if `None`, such a message ends the connection.
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
        // In this order, or early confirms would be lost.
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

    pub(in crate::broker) fn publish(&mut self, mut publication: Publication) {
        if !publication.is_wanted(Instant::now()) {
            return;
        }
        if let Some(routes) = &self.routes {
            routes.avoid_refused(&mut publication.message);
        }
        publication.published_at = Instant::now();
        let (tag, publication) = self.unconfirmed.publish(publication);
        let Outgoing { exchange, routing_key, message, .. } = &publication.message;
        let publish = Publish {
            body: &message.body,
            routing_key: routing_key.clone(),
            mandatory: publication.message.is_mandatory(),
            immediate: false,
            properties: properties(message, tag),
        };
        if let Err(error) = self.channel.basic_publish(*exchange, publish) {
            self.broken = Some(error.to_string());
        }
    }

    pub(in crate::broker) fn confirmed(&mut self, confirm: Confirm) {
        // A returned message is acked too, after its return. The two arrive on different receivers, so the
        // return may still be waiting.
        while let Ok(returned) = self.returns.try_recv() {
            self.returned(&returned);
        }
        match confirm {
            Confirm::Ack(ConfirmPayload { delivery_tag, multiple }) => {
                for publication in self.unconfirmed.ack(delivery_tag, multiple) {
                    if publication.slip.is_refused.load(Ordering::Relaxed) {
                        self.accepted.push(publication.message.queue());
                    }
                    // This fails if nobody waits any more. Then the delivery counts as not parked.
                    let _ = publication.confirmed.try_send(());
                }
            }
            // The queue is full or has no leader. It may accept the message later.
            Confirm::Nack(ConfirmPayload { delivery_tag, multiple }) => {
                self.unconfirmed.nack(delivery_tag, multiple);
            }
        }
    }

    /// Reads the confirms that have arrived. Returns false if no more can arrive.
    pub(super) fn take_confirms(&mut self) -> bool {
        loop {
            match self.confirms.try_recv() {
                Ok(confirm) => self.confirmed(confirm),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Takes the returned messages, to be published again: a missing queue is created soon after it was
    /// noticed. Messages that have waited for [`UNROUTED_FOR`] are rerouted.
    pub(super) fn take_unrouted(&mut self, now: Instant) -> Vec<Publication> {
        let mut unrouted = self.unconfirmed.take_unrouted();
        if let Some(routes) = &self.routes {
            let is_late =
                |one: &&mut Publication| now.saturating_duration_since(one.since) >= UNROUTED_FOR;
            for publication in unrouted.iter_mut().filter(is_late) {
                routes.reroute(&mut publication.message);
            }
        }
        unrouted
    }

    /// Takes the messages for queues that don't answer. Then the channel has to be replaced, and closed soon:
    /// at the broker it may still hold these messages for the queues.
    pub(super) fn take_unanswered(
        &mut self,
        confirmed_at: Instant,
        now: Instant,
    ) -> Vec<Publication> {
        self.unconfirmed.take_if(|publication| publication.is_unanswered(confirmed_at, now))
    }

    /// Drops the messages that nobody waits for any more.
    pub(super) fn forget_unwanted(&mut self, now: Instant) {
        self.unconfirmed.expire(|publication| publication.is_wanted(now));
    }

    /// Reads the return of a message: its queue is gone, or not bound. The ack that follows means nothing, so
    /// the message is removed before it, and published again.
    pub(super) fn returned(&mut self, returned: &Return) {
        let tag = returned.properties.correlation_id().as_ref().and_then(|tag| tag.parse().ok());
        let publication = tag.and_then(|tag| self.unconfirmed.take_returned(tag));
        if returned.exchange == BACKLOG_EXCHANGE
            && let Some((origin, webhook)) = read_backlog_key(&returned.routing_key)
        {
            // The backlog was empty and has just been removed, or somebody has deleted it. A parked delivery
            // comes back later, and finds or creates another backlog.
            if let Some(publication) = publication {
                let message = publication.message.message;
                let message = Outgoing::park(message, WITHOUT_BACKLOG.into(), origin);
                self.publish(Publication { message, ..publication });
            }
            self.gone.push((origin.to_owned(), webhook));
            return;
        }
        let published_at = publication.as_ref().map_or_else(Instant::now, |it| it.published_at);
        self.unconfirmed.keep_unrouted(publication);
        match &self.routes {
            Some(routes) => {
                routes.returned(&returned.exchange, &returned.routing_key, published_at);
            }
            None => {
                self.broken = Some(format!(
                    "the broker returned a message for {:?}, {:?}: {}",
                    returned.exchange, returned.routing_key, returned.reply_text
                ));
            }
        }
    }

    /// Closes the channel. Returns the messages that have to be published again on another one and, if the
    /// broker closed this one, the reason.
    pub(in crate::broker) fn into_unconfirmed(
        mut self,
        kill: &KillSwitch,
    ) -> (Vec<Publication>, Option<String>) {
        // Messages that are confirmed by then need not be published twice.
        let deadline = Instant::now() + LAST_CONFIRMS;
        while !self.unconfirmed.is_empty() {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(_) => break,
            }
        }
        // Closing waits for an answer, and the connection may hang.
        let closed_by = match kill.guard(CLOSE_TIMEOUT, None, || self.channel.close()) {
            // Without the channel's number: another number would count as another cause.
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
        // A returned message has no tag. This identifies it.
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
