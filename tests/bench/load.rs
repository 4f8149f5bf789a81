//! Publishing, as good producers do: durable queues, persistent messages, publisher confirms.

use std::{
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use amiquip::{AmqpProperties, Channel, Confirm, ConfirmSmoother, Connection, Publish};
use crossbeam_channel::Receiver;

use crate::{
    event::{Stamp, body},
    harness::broker::PERSISTENT,
    measure::now,
};

/// Confirms that may be outstanding: enough that the broker is never waited for, few enough that
/// it never has to slow us down.
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
        let mut connection = Connection::insecure_open(url).expect("the broker lets us in");
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

    /// Publishes an event; it bears the time of now.
    pub(crate) fn publish(&mut self, queue: &str, number: u32, kind: &str) {
        let body = body(Stamp { number, sent: now() }, kind);
        let mut publish = Publish::new(&body, queue);
        publish.properties = self.properties.clone();
        self.channel.basic_publish("", publish).expect("the broker takes an event");
        self.outstanding += 1;
        while let Ok(confirm) = self.confirms.try_recv() {
            self.note(confirm);
        }
        while self.outstanding > OUTSTANDING {
            self.wait();
        }
    }

    /// Waits until the broker has all.
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
        for confirm in self.smoother.process(confirm) {
            assert!(matches!(confirm, Confirm::Ack(_)), "the broker refused an event");
            self.outstanding -= 1;
        }
    }
}

/// Publishes these events as fast as the broker takes them, and waits until it has them.
pub(crate) fn fill(url: &str, queue: &str, events: Range<u32>, kind: &str) {
    let mut producer = Producer::open(url);
    for number in events {
        producer.publish(queue, number, kind);
    }
    producer.settle();
}

/// Publishes these events at a steady rate, however long anybody takes for them. Returns by how
/// much the worst of them was late.
pub(crate) fn steadily<'a>(
    url: &str,
    per_second: u32,
    events: Range<u32>,
    mut address: impl FnMut(u32) -> (&'a str, &'a str),
) -> Duration {
    let mut producer = Producer::open(url);
    let began = Instant::now();
    let mut worst = Duration::ZERO;
    for (nth, number) in (0..).zip(events) {
        let due = began + Duration::from_secs(1) * nth / per_second;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        worst = worst.max(due.elapsed());
        let (queue, kind) = address(number);
        producer.publish(queue, number, kind);
    }
    producer.settle();
    worst
}
