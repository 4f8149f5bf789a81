//! A reliable producer: durable queues, persistent messages, publisher confirms.

use std::{
    fmt,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConfirmSmoother, Connection, FieldTable, Publish,
};
use crossbeam_channel::Receiver;

use crate::{
    bare_loop::connect,
    event::{Stamp, body},
    harness::broker::PERSISTENT,
    measure::now,
};

/// The maximum number of outstanding confirms: enough that publishing never waits for the broker, and few
/// enough that the broker never throttles it.
const OUTSTANDING: usize = 2_000;

/// How long the broker may take for a confirm.
const CONFIRMED: Duration = Duration::from_secs(60);

pub(crate) struct Producer {
    confirms: Receiver<Confirm>,
    smoother: ConfirmSmoother,
    outstanding: usize,
    properties: AmqpProperties,
    // In this order: a channel is dropped before its connection.
    channel: Channel,
    _connection: Connection,
}

impl Producer {
    pub(crate) fn open(url: &str) -> Self {
        let mut connection = connect(url);
        let channel = connection.open_channel(None).expect("a channel");
        let confirms = channel.listen_for_publisher_confirms().expect("the channel is open");
        channel.enable_publisher_confirms().expect("the broker confirms");
        let properties = AmqpProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type(String::from("application/json"));
        Self {
            confirms,
            smoother: ConfirmSmoother::new(),
            outstanding: 0,
            properties,
            channel,
            _connection: connection,
        }
    }

    /// Publishes an event with the current time.
    pub(crate) fn publish(&mut self, queue: &str, number: u32, kind: &str) {
        self.publish_for(None, queue, number, kind);
    }

    /// Publishes an event of an account.
    pub(crate) fn publish_for(
        &mut self,
        account: Option<String>,
        queue: &str,
        number: u32,
        kind: &str,
    ) {
        let body = body(Stamp { number, sent: now() }, kind);
        let mut publish = Publish::new(&body, queue);
        publish.properties = self.properties.clone();
        if let Some(account) = account {
            let header = (String::from("account"), AmqpValue::LongString(account));
            publish.properties = publish.properties.with_headers(FieldTable::from([header]));
        }
        self.channel.basic_publish("", publish).expect("the broker takes an event");
        self.outstanding += 1;
        while let Ok(confirm) = self.confirms.try_recv() {
            self.note(confirm);
        }
        while self.outstanding > OUTSTANDING {
            self.wait();
        }
    }

    /// Waits until the broker has confirmed all events.
    pub(crate) fn settle(&mut self) {
        while self.outstanding > 0 {
            self.wait();
        }
    }

    fn wait(&mut self) {
        let confirm = self.confirms.recv_timeout(CONFIRMED).expect("the broker confirms");
        self.note(confirm);
    }

    fn note(&mut self, confirm: Confirm) {
        // Checked before the smoother gets it, which turns a nack into an ack if a later ack of several
        // messages covers it.
        assert!(matches!(confirm, Confirm::Ack(_)), "the broker refused an event");
        self.outstanding -= self.smoother.process(confirm).count();
    }
}

/// Publishes these events as fast as the broker takes them, and waits for the confirms.
pub(crate) fn fill(url: &str, queue: &str, events: Range<u32>, kind: &str) {
    let mut producer = Producer::open(url);
    for number in events {
        producer.publish(queue, number, kind);
    }
    producer.settle();
}

/// Publishes events at a steady rate, even if the notifier is slower, until `address` returns no queue and
/// type for the next event.
pub(crate) fn steadily<'a>(
    url: &str,
    per_second: u32,
    address: impl FnMut(u32) -> Option<(&'a str, &'a str)>,
) -> Published {
    steadily_from(0, url, per_second, address)
}

/// The same, with event numbers from `first`.
pub(crate) fn steadily_from<'a>(
    first: u32,
    url: &str,
    per_second: u32,
    mut address: impl FnMut(u32) -> Option<(&'a str, &'a str)>,
) -> Published {
    let mut producer = Producer::open(url);
    let began = Instant::now();
    let mut published = Published { count: 0, latest: Duration::ZERO };
    while let Some((queue, kind)) = address(first + published.count) {
        let due = began + Duration::from_secs(1) * published.count / per_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        published.latest = published.latest.max(due.elapsed());
        producer.publish(queue, first + published.count, kind);
        published.count += 1;
    }
    producer.settle();
    published
}

/// How publishing at a steady rate went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    pub(crate) count: u32,
    /// The largest delay of a publish.
    pub(crate) latest: Duration,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "published at most {:.1} ms late", self.latest.as_secs_f64() * 1e3)
    }
}
