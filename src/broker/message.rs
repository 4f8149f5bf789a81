//! A message: what we keep of the broker's delivery, and what we publish.

use amiquip::AmqpValue;

use crate::domain::account::{MAX_ACCOUNT_BYTES, NO_NAME};
use crate::domain::broker_names::header::{self, BOUND_FOR, DELIVERY_COUNT, ENTERED_BY};
use crate::domain::delivery::{Delivery, Headers, Value, is_producers};
use crate::domain::event::Properties;
use crate::domain::shown::word;

/// A message that was redelivered this often is replaced by a copy at the end of its queue. A quorum queue
/// drops or dead-letters a message that is redelivered more often than its delivery limit allows: 20 times on
/// RabbitMQ 4, if nobody has set a limit. The cause is never the message itself, but this process, the
/// servers, or somebody who has read the message.
const MOST_REDELIVERIES: i64 = 4;

/// The same for the head of a backlog, which is handed back with each outage while the backlog drains, and
/// whenever it was held for minutes. It is more, because a copy loses its place in the order.
const MOST_BACKLOG_REDELIVERIES: i64 = 15;

/// How much of the producer's headers is kept. amiquip sends all headers in one frame, and the broker closes
/// the connection if a frame is too large: over 128 KiB, if nobody has set less. A producer can fill such a
/// frame. Besides, the time that amiquip takes to write headers grows with the square of their number:
/// seconds for as many as fit into a frame.
const ROOM_OF_PRODUCER: Room = Room { headers: 128, bytes: 48 << 10 };

/// How much of the other headers, ours and RabbitMQ's, is kept: far more than they need. Their limit is
/// separate, or a retry would lose headers that its first attempt had.
const ROOM_OF_OURS: Room = Room { headers: 32, bytes: 16 << 10 };

/// A message as we consumed it.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The producer's bytes.
    pub body: Vec<u8>,
    /// AMQP `content-type`.
    pub content_type: Option<String>,
    /// AMQP `message-id`.
    pub message_id: Option<String>,
    /// AMQP `type`.
    pub event_type: Option<String>,
    /// The headers of the types that we write. Other headers are left out, and so are the producer's beyond
    /// 128 headers or 48 KiB.
    pub headers: Headers,
}

impl Message {
    /// The message that carries a delivery of this message's event, which came from the queue `origin`. It has
    /// the producer's body, content type and headers, and our headers.
    #[must_use]
    pub fn carrying(&self, delivery: &Delivery, origin: &str) -> Self {
        let mut headers = delivery.headers(origin);
        for (name, value) in self.headers.iter().filter(|(name, _)| is_producers(name)) {
            // Ours take precedence.
            headers.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Self {
            body: self.body.clone(),
            content_type: self.content_type.clone(),
            message_id: Some(delivery.event.id.clone()),
            event_type: Some(delivery.event.event_type.clone()),
            headers,
        }
    }

    /// Its approximate memory in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| header_bytes(name, value));
        self.body.len() + headers.sum::<usize>()
    }

    /// The properties that describe the event.
    #[must_use]
    pub fn properties(&self) -> Properties<'_> {
        Properties {
            message_id: self.message_id.as_deref(),
            event_type: self.event_type.as_deref(),
            account: self.headers.get(header::PRODUCERS_ACCOUNT),
        }
    }

    /// Reads a delivery of the broker, and moves the body out of it.
    #[must_use]
    pub fn take(delivery: &mut amiquip::Delivery) -> Self {
        let properties = &delivery.properties;
        // Trace headers come first, so that there is room for them.
        let of_trace = |is_wanted: bool| {
            let headers = properties.headers().iter().flat_map(|table| table.iter());
            headers.filter(move |(name, _)| is_of_trace(name) == is_wanted)
        };
        let headers = of_trace(true).chain(of_trace(false));
        let (mut producers, mut ours, mut left_out) = (ROOM_OF_PRODUCER, ROOM_OF_OURS, 0_u32);
        let headers = headers.filter_map(|(name, value)| {
            let value = read_value(value)?;
            let room = if is_producers(name) { &mut producers } else { &mut ours };
            let is_admitted = room.admits(name, &value);
            left_out += u32::from(!is_admitted);
            is_admitted.then(|| (name.clone(), value))
        });
        let mut headers: Headers = headers.collect();
        if left_out > 0 {
            let id = properties.message_id().as_deref().unwrap_or_default();
            log::debug!(
                "headers left out event={} count={left_out}: at most {} headers and {} bytes of a producer's \
                 are kept",
                word(id),
                ROOM_OF_PRODUCER.headers,
                ROOM_OF_PRODUCER.bytes,
            );
        }
        // This header is kept whatever its type and size: without it, an event would seem to belong to another
        // account, or to none.
        let account =
            properties.headers().as_ref().and_then(|table| table.get(header::PRODUCERS_ACCOUNT));
        if let Some(account) = account.and_then(read_account) {
            headers.insert(header::PRODUCERS_ACCOUNT.to_owned(), account);
        }
        Self {
            headers,
            content_type: properties.content_type().clone(),
            message_id: properties.message_id().clone(),
            event_type: properties.type_().clone(),
            body: std::mem::take(&mut delivery.body),
        }
    }

    /// Whether the process with this id put it into a backlog.
    #[must_use]
    pub fn was_entered_by(&self, instance: &str) -> bool {
        matches!(self.headers.get(ENTERED_BY), Some(Value::Text(by)) if by == instance)
    }

    /// How often the broker has redelivered the message, as quorum queues count it.
    #[must_use]
    pub fn redeliveries(&self) -> i64 {
        match self.headers.get(DELIVERY_COUNT) {
            Some(Value::Integer(count)) => *count,
            _ => 0,
        }
    }

    /// Whether the message was redelivered so often that its queue might drop it soon.
    #[must_use]
    pub fn is_near_delivery_limit(&self) -> bool {
        self.redeliveries() >= MOST_REDELIVERIES
    }

    /// The same for a message of a backlog, which is created with a high limit. An operator's policy may set
    /// a lower one.
    #[must_use]
    pub fn is_near_backlogs_delivery_limit(&self) -> bool {
        self.redeliveries() >= MOST_BACKLOG_REDELIVERIES
    }

    /// Whether it only waits until this queue accepts it. (Whatever others write into that header, the message
    /// goes to no other queue.)
    #[must_use]
    pub fn is_bound_for(&self, queue: &str) -> bool {
        matches!(self.headers.get(BOUND_FOR), Some(Value::Text(name)) if name == queue)
    }

    /// The message for the queue that it is bound for, as if it had gone there at once.
    #[must_use]
    pub fn arrived(mut self) -> Self {
        self.headers.remove(BOUND_FOR);
        self.without_redeliveries()
    }

    /// The message as if it had never been redelivered.
    #[must_use]
    pub fn without_redeliveries(mut self) -> Self {
        self.headers.remove(DELIVERY_COUNT);
        self
    }
}

/// Whether a header belongs to a trace, which is forwarded to receivers (`domain::forwarding`).
fn is_of_trace(name: &str) -> bool {
    ["traceparent", "tracestate", "baggage"].iter().any(|of| of.eq_ignore_ascii_case(name))
}

/// How much may still be kept.
struct Room {
    headers: usize,
    bytes: usize,
}

impl Room {
    fn admits(&mut self, name: &str, value: &Value) -> bool {
        let headers = self.headers.checked_sub(1);
        let bytes = self.bytes.checked_sub(header_bytes(name, value));
        let (Some(headers), Some(bytes)) = (headers, bytes) else { return false };
        *self = Self { headers, bytes };
        true
    }
}

/// The size of a header in a frame, in bytes (AMQP 0-9-1, section 4.2.5.5).
fn header_bytes(name: &str, value: &Value) -> usize {
    let (length, kind) = (1, 1);
    length
        + name.len()
        + kind
        + match value {
            Value::Text(text) => 4 + text.len(),
            Value::Integer(_) => 8,
        }
}

fn read_value(value: &AmqpValue) -> Option<Value> {
    Some(match value {
        AmqpValue::LongString(text) => Value::Text(text.clone()),
        AmqpValue::ShortShortInt(n) => Value::Integer((*n).into()),
        AmqpValue::ShortShortUInt(n) => Value::Integer((*n).into()),
        AmqpValue::ShortInt(n) => Value::Integer((*n).into()),
        AmqpValue::ShortUInt(n) => Value::Integer((*n).into()),
        AmqpValue::LongInt(n) => Value::Integer((*n).into()),
        AmqpValue::LongUInt(n) => Value::Integer((*n).into()),
        AmqpValue::LongLongInt(n) => Value::Integer(*n),
        _ => return None,
    })
}

/// The header [`header::PRODUCERS_ACCOUNT`]. Without a value it counts as missing. A value that can't be a
/// name is replaced by one that is refused later.
fn read_account(value: &AmqpValue) -> Option<Value> {
    match value {
        AmqpValue::Void => None,
        AmqpValue::LongString(long) if long.len() > MAX_ACCOUNT_BYTES => {
            // Cut, but still too long to be accepted.
            Some(Value::Text(long.chars().take(MAX_ACCOUNT_BYTES + 1).collect()))
        }
        other => Some(read_value(other).unwrap_or_else(|| Value::Text(NO_NAME.to_owned()))),
    }
}
