//! A message: what we take over from the broker, and what we hand to it.

use amiquip::AmqpValue;

use super::outgoing::ENTERED_BY;
use crate::domain::account::{MAX_ACCOUNT_BYTES, NO_NAME};
use crate::domain::delivery::{Delivery, Headers, Value, is_producers};
use crate::domain::event::Properties;
use crate::domain::shown::word;

/// The header in which quorum queues count how often they took a message back.
pub(super) const DELIVERY_COUNT: &str = "x-delivery-count";

/// The header of what is to go to a queue that did not take it: by its name.
pub(super) const BOUND_FOR: &str = "x-bound-for";

/// A message that came back that often is weary: it gets a new life, as a copy at the end of its
/// queue. A quorum queue drops or dead-letters a message that came back more often than its delivery
/// limit says, 20 times on RabbitMQ 4 where nobody set one; and it came back because of us, of the
/// servers, or of somebody who looked at it, not of what is in it.
const MOST_REDELIVERIES: i64 = 4;

/// The first of a backlog is handed back with each outage that comes while it drains, and whenever it is
/// held for minutes: it loses its place in the order when it is replaced by a copy.
const MOST_REDELIVERIES_OF_BACKLOG: i64 = 15;

/// The header by which a producer says whose an event is.
pub const ACCOUNT: &str = "account";

/// How much of the producer's headers is taken over. amiquip sends all headers in one frame, and the
/// broker closes the connection over one that is too large: 128 KiB, where nobody set less. A producer
/// can fill such a frame to the brim. To write a table takes amiquip a time that grows with the square
/// of their number: seconds for as many as a frame has room for.
const ROOM_OF_PRODUCER: Room = Room { headers: 128, bytes: 48 << 10 };

/// How much of the others, ours and RabbitMQ's: far more than these are, whatever somebody has crafted.
/// They have a room of their own, or a retry would lose what its first attempt had.
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
    /// The headers of the types that we write; others are left out, and so is what goes beyond 128
    /// headers or 48 KiB of the producer's.
    pub headers: Headers,
}

impl Message {
    /// The message in which a delivery of an event from the queue `origin` travels that came in this
    /// one, or in part: the producer's body, content type and headers, and headers of ours.
    #[must_use]
    pub fn carrying(&self, delivery: &Delivery, origin: &str) -> Self {
        let mut headers = delivery.headers(origin);
        for (name, value) in self.headers.iter().filter(|(name, _)| is_producers(name)) {
            // Ours counts, whatever somebody has written.
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

    /// How many bytes it takes in memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers = self.headers.iter().map(|(name, value)| header_bytes(name, value));
        self.body.len() + headers.sum::<usize>()
    }

    /// The properties that say more about the event than its body.
    #[must_use]
    pub fn properties(&self) -> Properties<'_> {
        Properties {
            message_id: self.message_id.as_deref(),
            event_type: self.event_type.as_deref(),
            account: self.headers.get(ACCOUNT),
        }
    }

    /// Takes over what the broker delivered, body included.
    #[must_use]
    pub fn take(delivery: &mut amiquip::Delivery) -> Self {
        let properties = &delivery.properties;
        // The trace comes first, however its names sort.
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
                "headers left out event={} count={left_out}: of a producer's, {} and {} bytes are taken over",
                word(id),
                ROOM_OF_PRODUCER.headers,
                ROOM_OF_PRODUCER.bytes,
            );
        }
        // However many others there are, and whatever it is: an event must not seem to be of another
        // account, or of none, because its header was left out.
        let account = properties.headers().as_ref().and_then(|table| table.get(ACCOUNT));
        if let Some(account) = account.and_then(read_account) {
            headers.insert(ACCOUNT.to_owned(), account);
        }
        Self {
            headers,
            content_type: properties.content_type().clone(),
            message_id: properties.message_id().clone(),
            event_type: properties.type_().clone(),
            body: std::mem::take(&mut delivery.body),
        }
    }

    /// Whether the process with this name has put it into its backlog.
    #[must_use]
    pub fn was_entered_by(&self, instance: &str) -> bool {
        matches!(self.headers.get(ENTERED_BY), Some(Value::Text(by)) if by == instance)
    }

    /// How often the broker has taken the message back.
    #[must_use]
    pub fn redeliveries(&self) -> i64 {
        match self.headers.get(DELIVERY_COUNT) {
            Some(Value::Integer(count)) => *count,
            _ => 0,
        }
    }

    /// Whether the broker has taken the message back so often that its queue might drop it soon.
    #[must_use]
    pub fn is_weary(&self) -> bool {
        self.redeliveries() >= MOST_REDELIVERIES
    }

    /// The same for a message of a backlog, whose queue has a limit of its own. An operator's policy, or
    /// another limit, may be lower.
    #[must_use]
    pub fn is_weary_of_backlog(&self) -> bool {
        self.redeliveries() >= MOST_REDELIVERIES_OF_BACKLOG
    }

    /// Whether it only waited until that queue takes it. (What others write into that header leads
    /// nowhere else.)
    #[must_use]
    pub fn is_bound_for(&self, queue: &str) -> bool {
        matches!(self.headers.get(BOUND_FOR), Some(Value::Text(name)) if name == queue)
    }

    /// The message as it would have come to that queue.
    #[must_use]
    pub fn arrived(mut self) -> Self {
        self.headers.remove(BOUND_FOR);
        self.rested()
    }

    /// The message as if the broker had never taken it back.
    #[must_use]
    pub fn rested(mut self) -> Self {
        self.headers.remove(DELIVERY_COUNT);
        self
    }
}

/// Whether a header belongs to a trace, and goes on to receivers (`domain::forwarding`).
fn is_of_trace(name: &str) -> bool {
    ["traceparent", "tracestate", "baggage"].iter().any(|of| of.eq_ignore_ascii_case(name))
}

/// How many headers may still be taken over.
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

/// What a header takes in a frame (AMQP 0-9-1, section 4.2.5.5).
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

/// The header [`ACCOUNT`]: no value is none, and what can't be a name is one that is refused.
fn read_account(value: &AmqpValue) -> Option<Value> {
    match value {
        AmqpValue::Void => None,
        AmqpValue::LongString(long) if long.len() > MAX_ACCOUNT_BYTES => {
            // Its beginning is too long as well.
            Some(Value::Text(long.chars().take(MAX_ACCOUNT_BYTES + 1).collect()))
        }
        other => Some(read_value(other).unwrap_or_else(|| Value::Text(NO_NAME.to_owned()))),
    }
}
