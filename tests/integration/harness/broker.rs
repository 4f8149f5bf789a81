//! The test's own view of RabbitMQ: publishes with confirms, and reads queues.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmSmoother, Connection, ConsumerMessage,
    ConsumerOptions, ExchangeDeclareOptions, ExchangeType, FieldTable, Publish,
    QueueDeclareOptions, QueueDeleteOptions,
};
use anyhow::{Context as _, Result, bail, ensure};
use uuid::Uuid;

/// Gets the messages that still wait for a retry when their test ends. Otherwise they would be
/// orphaned, and other tests would find them.
const SINK: &str = "integration-tests.sink";

pub(crate) const PERSISTENT: u8 = 2;

/// A connection that is opened on first use, and again after every error.
pub(crate) struct Broker {
    urls: Vec<String>,
    connection: Mutex<Option<Connection>>,
}

impl Broker {
    pub(crate) fn new(url: &str) -> Self {
        Self { urls: urls(url), connection: Mutex::new(None) }
    }

    /// Publishes all and waits until the broker has confirmed each.
    #[track_caller]
    pub(crate) fn publish(&self, queue: &str, events: &[Event]) {
        self.publish_to("", queue, events);
    }

    /// Publishes to an exchange.
    #[track_caller]
    pub(crate) fn publish_to(&self, exchange: &str, routing_key: &str, events: &[Event]) {
        self.on_channel(|channel| {
            let confirms = channel.listen_for_publisher_confirms()?;
            channel.enable_publisher_confirms()?;
            for event in events {
                event.publish_to(channel, exchange, routing_key)?;
            }
            let mut smoother = ConfirmSmoother::new();
            let mut confirmed = 0;
            while confirmed < events.len() {
                let confirm = confirms.recv_timeout(Duration::from_secs(30))?;
                // Checked before the smoother: it turns a nack into an ack if a later ack covers its tag, too.
                ensure!(matches!(confirm, Confirm::Ack(_)), "the broker refused a message");
                confirmed += smoother.process(confirm).count();
            }
            Ok(())
        })
        .expect("the broker takes what a test publishes");
    }

    /// How many messages are ready in the queue; `None` if there is no such queue, or no broker.
    pub(crate) fn ready(&self, queue: &str) -> Option<u32> {
        self.on_channel(|channel| {
            Ok(channel.queue_declare_passive(queue)?.declared_message_count())
        })
        .ok()?
    }

    pub(crate) fn consumers(&self, queue: &str) -> Option<u32> {
        self.on_channel(|channel| {
            Ok(channel.queue_declare_passive(queue)?.declared_consumer_count())
        })
        .ok()?
    }

    /// Takes the queue's first message.
    pub(crate) fn take(&self, queue: &str) -> Option<Message> {
        let get = self.on_channel(|channel| Ok(channel.basic_get(queue, true)?)).ok()??;
        Some(Message { body: get.delivery.body, properties: get.delivery.properties })
    }

    /// Takes a queue's first message and returns it by `basic.reject`, this many times. RabbitMQ
    /// 4.3 doesn't count a `basic.nack` as a failure.
    pub(crate) fn bounce(&self, queue: &str, times: usize) {
        for _ in 0..times {
            let bounced = self.on_channel(|channel| {
                let get = channel.basic_get(queue, false)?.context("the queue is empty")?;
                Ok(get.reject(channel, true)?)
            });
            bounced.expect("there is a message");
        }
    }

    /// Like [`Self::bounce`], but by a consumer: a queue with a single active consumer allows nothing else.
    /// It must have no other consumer.
    pub(crate) fn bounce_by_consumer(&self, queue: &str, times: usize) {
        for _ in 0..times {
            let bounced = self.on_channel(|channel| {
                channel.qos(0, 1, false)?;
                let consumer = channel.basic_consume(queue, ConsumerOptions::default())?;
                let patience = Duration::from_secs(30);
                let ConsumerMessage::Delivery(first) =
                    consumer.receiver().recv_timeout(patience)?
                else {
                    bail!("the consumer has ended");
                };
                // Otherwise it would get the message again at once. Dropping a consumer before its
                // cancellation is confirmed would lose the connection.
                consumer.cancel()?;
                while !matches!(
                    consumer.receiver().recv_timeout(patience)?,
                    ConsumerMessage::ClientCancelled
                ) {}
                Ok(first.reject(channel, true)?)
            });
            bounced.expect("there is a message");
        }
    }

    /// Calls `meanwhile` while another consumer holds this many of the queue's messages unacked.
    pub(crate) fn while_held(&self, queue: &str, count: usize, meanwhile: impl Fn()) {
        let held = self.on_channel(|channel| {
            let consumer = channel.basic_consume(queue, ConsumerOptions::default())?;
            for _ in 0..count {
                let message = consumer.receiver().recv_timeout(Duration::from_secs(30))?;
                ensure!(matches!(message, ConsumerMessage::Delivery(_)), "the consumer has ended");
            }
            meanwhile();
            // As above.
            consumer.cancel()?;
            while !matches!(consumer.receiver().recv()?, ConsumerMessage::ClientCancelled) {}
            Ok(())
        });
        held.expect("the queue has that many");
    }

    /// Deletes a binding.
    pub(crate) fn unbind(&self, queue: &str, exchange: &str, routing_key: &str) {
        self.on_channel(|channel| {
            Ok(channel.queue_unbind(queue, exchange, routing_key, FieldTable::new())?)
        })
        .expect("there is a queue");
    }

    pub(crate) fn bind(&self, queue: &str, exchange: &str, routing_key: &str) {
        self.on_channel(|channel| {
            Ok(channel.queue_bind(queue, exchange, routing_key, FieldTable::new())?)
        })
        .expect("there are a queue and an exchange");
    }

    /// Declares a durable topic exchange.
    pub(crate) fn declare_exchange(&self, exchange: &str, arguments: FieldTable) -> Result<()> {
        self.on_channel(|channel| {
            let options = ExchangeDeclareOptions {
                durable: true,
                arguments: arguments.clone(),
                ..ExchangeDeclareOptions::default()
            };
            channel.exchange_declare(ExchangeType::Topic, exchange, options)?;
            Ok(())
        })
    }

    pub(crate) fn delete_exchange(&self, exchange: &str) {
        self.on_channel(|channel| Ok(channel.exchange_delete(exchange, false)?))
            .expect("there is an exchange");
    }

    /// Takes all messages of a queue. If this fails midway, those already taken are lost.
    pub(crate) fn take_all(&self, queue: &str) -> Result<Vec<Message>> {
        self.on_channel(|channel| {
            let mut messages = Vec::new();
            while let Some(get) = channel.basic_get(queue, true)? {
                let amiquip::Delivery { body, properties, .. } = get.delivery;
                messages.push(Message { body, properties });
            }
            Ok(messages)
        })
    }

    /// Declares a durable queue, as an operator would.
    pub(crate) fn declare(&self, queue: &str, arguments: FieldTable) -> Result<()> {
        self.on_channel(|channel| {
            let options = QueueDeclareOptions {
                durable: true,
                arguments: arguments.clone(),
                ..QueueDeclareOptions::default()
            };
            channel.queue_declare(queue, options)?;
            Ok(())
        })
    }

    /// Deletes a queue. Returns how many messages were ready in it.
    pub(crate) fn delete(&self, queue: &str) -> Result<u32> {
        self.on_channel(|channel| Ok(channel.queue_delete(queue, QueueDeleteOptions::default())?))
    }

    /// Discards the messages that still wait for a retry of this queue. Fails if no notifier has created
    /// the exchange yet.
    pub(crate) fn discard_retries(&self, queue: &str) -> Result<()> {
        self.on_channel(|channel| {
            let arguments =
                FieldTable::from([(String::from("x-max-length"), AmqpValue::LongInt(1))]);
            let options =
                QueueDeclareOptions { durable: true, arguments, ..QueueDeclareOptions::default() };
            channel.queue_declare(SINK, options)?;
            let every_delay = format!("*.{queue}");
            channel.queue_bind(SINK, "webhooks.retry", every_delay, FieldTable::new())?;
            Ok(())
        })
    }

    fn on_channel<T>(&self, operation: impl Fn(&Channel) -> Result<T>) -> Result<T> {
        let mut slot = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that was idle may have been lost: then the same URL is tried again with a new one.
        let reused = slot.is_some();
        let mut done = Self::attempt(&mut slot, &self.urls[0], &operation);
        let again = self.urls.iter().skip(usize::from(!reused));
        for url in again {
            if done.is_ok() {
                break;
            }
            done = Self::attempt(&mut slot, url, &operation);
        }
        done
    }

    fn attempt<T>(
        slot: &mut Option<Connection>,
        url: &str,
        operation: impl Fn(&Channel) -> Result<T>,
    ) -> Result<T> {
        let mut connection = match slot.take() {
            Some(connection) => connection,
            None => Connection::insecure_open(url).context("connecting to the broker")?,
        };
        let channel = connection.open_channel(None)?;
        let result = operation(&channel)?;
        channel.close()?;
        *slot = Some(connection);
        Ok(result)
    }
}

/// A URL for each host of an AMQP_URL; with time limits if there are several, since one may be frozen.
pub(crate) fn urls(url: &str) -> Vec<String> {
    if !url.contains(',') {
        return vec![url.to_owned()];
    }
    let (before, rest) = url.rsplit_once('@').expect("it has a user");
    let (hosts, after) = rest.split_once('/').expect("it has a virtual host");
    let with = |host| format!("{before}@{host}/{after}?heartbeat=5&connection_timeout=2000");
    hosts.split(',').map(with).collect()
}

/// A message to publish.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) body: Vec<u8>,
    properties: AmqpProperties,
}

impl Event {
    /// An event as a good producer publishes it: with a type, its own id and a unique body.
    pub(crate) fn new(kind: &str) -> Self {
        let id = Uuid::new_v4().to_string();
        let body = format!(r#"{{"data":{{"number":"{}"}}}}"#, Uuid::new_v4());
        Self::raw(body).kind(kind).id(&id)
    }

    /// Only a body: persistent, but without a type or an id.
    pub(crate) fn raw(body: impl Into<Vec<u8>>) -> Self {
        Self {
            id: String::new(),
            body: body.into(),
            properties: AmqpProperties::default().with_delivery_mode(PERSISTENT),
        }
    }

    /// Publishes it as mandatory: if there is no such queue, RabbitMQ returns it, and confirms it all
    /// the same. The confirm arrives on the channel.
    pub(crate) fn publish(&self, channel: &Channel, queue: &str) -> amiquip::Result<()> {
        let mut publish = Publish::new(&self.body, queue);
        publish.properties = self.properties.clone();
        publish.mandatory = true;
        channel.basic_publish("", publish)
    }

    fn publish_to(&self, channel: &Channel, exchange: &str, key: &str) -> amiquip::Result<()> {
        let mut publish = Publish::new(&self.body, key);
        publish.properties = self.properties.clone();
        channel.basic_publish(exchange, publish)
    }

    /// Replaces all properties.
    pub(crate) fn properties(mut self, properties: AmqpProperties) -> Self {
        self.properties = properties;
        self
    }

    pub(crate) fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self.properties = self.properties.with_message_id(self.id.clone());
        self
    }

    pub(crate) fn kind(mut self, kind: &str) -> Self {
        self.properties = self.properties.with_type_(kind.to_owned());
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn content_type(mut self, content_type: &str) -> Self {
        self.properties = self.properties.with_content_type(content_type.to_owned());
        self
    }

    pub(crate) fn headers(mut self, headers: FieldTable) -> Self {
        self.properties = self.properties.with_headers(headers);
        self
    }

    /// With the headers of a delivery that has failed once and waits for its retry in that queue.
    pub(crate) fn parked(self, queue: &str, webhook: Uuid) -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
        let text = |text: &str| AmqpValue::LongString(text.to_owned());
        let headers = [
            ("x-event-id", text(&self.id)),
            ("x-event-type", text("order.paid")),
            ("x-webhook-id", text(&webhook.to_string())),
            ("x-attempt", AmqpValue::LongLongInt(1)),
            ("x-first-received-at", AmqpValue::LongLongInt(now.try_into().expect("small"))),
            ("x-last-error", text("status 500")),
            ("x-origin-queue", text(queue)),
        ];
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.headers(headers.collect())
    }
}

/// A message that was taken from a queue.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) body: Vec<u8>,
    pub(crate) properties: AmqpProperties,
}

impl Message {
    /// A string header; "" if it is missing or has another type.
    pub(crate) fn text(&self, header: &str) -> &str {
        match self.header(header) {
            Some(AmqpValue::LongString(text)) => text,
            _ => "",
        }
    }

    /// A 64-bit integer header.
    pub(crate) fn number(&self, header: &str) -> Option<i64> {
        match self.header(header) {
            Some(AmqpValue::LongLongInt(number)) => Some(*number),
            _ => None,
        }
    }

    fn header(&self, header: &str) -> Option<&AmqpValue> {
        self.properties.headers().as_ref()?.get(header)
    }
}
