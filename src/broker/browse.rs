//! Browsing a queue: reads its messages and removes some of them.

use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};
use crossbeam_channel::RecvTimeoutError;

use super::renewal::{Frame, Renewal};
use super::{BrokerError, KillSwitch, Link, Message, SETUP_TIMEOUT, cancel};
use crate::config::Config;
use crate::domain::broker_names::turn_queue;
use crate::shutdown::Shutdown;

/// How much memory the unsettled messages of one channel may take, after the first [`BATCH`]. Their size is
/// known only once some have arrived.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
const WINDOWS: RangeInclusive<usize> = 50..=10_000;

/// How many messages are read together. If we are killed while a batch is moved, at most this many are in
/// both places.
pub const BATCH: usize = 250;

/// After this many kept messages, windows grow: the wanted messages seem to be far from the head. Each window
/// is a channel and a consumer, and hundreds of them are slow.
const MANY: u64 = 5_000;

/// How long to wait for messages that the broker should have: a busy broker takes seconds. After that,
/// another reader probably holds them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the broker may take to requeue the kept messages: it takes seconds for some ten thousand.
const REQUEUE: Duration = Duration::from_secs(60);

/// How long to wait for messages that weren't counted: a broker that has just started may count none. This
/// is for all of them together; otherwise reading a queue that fills as fast as we read would never end.
const LATECOMERS: Duration = Duration::from_millis(250);

/// How often to ask whether it is our turn.
const TURN_POLL: Duration = Duration::from_millis(200);

/// How often to check whether the kept messages are back in the queue.
const POLL: Duration = Duration::from_millis(20);

/// What to do with a message that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it in the queue.
    Keep,
    /// Remove it from the queue.
    Remove,
}

/// Called with some messages of a queue at a time. It decides what to do with each; a `Break` ends the
/// browsing.
pub type Judge<'j, E> = dyn FnMut(&[Message]) -> Result<Verdicts, E> + 'j;

/// One verdict for each message.
pub type Verdicts = ControlFlow<Vec<Verdict>, Vec<Verdict>>;

/// How far a queue was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Browsed {
    /// There is no such queue.
    NoQueue,
    /// To its end, or until the caller stopped it.
    Seen,
    /// The broker counted this many more messages, and did not deliver them.
    Withheld(u64),
}

/// How to browse.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// Whether all messages will be read. If not, none is prefetched until many were read: RabbitMQ counts
    /// each redelivery of a message, whether or not the message was shown.
    pub all: bool,
    /// Whether to replace some messages that were redelivered often by copies at the end of their queue. The
    /// copies are not shown.
    pub renews: bool,
}

/// Calls `judge` with the messages of a queue until there are no more. The kept messages are back in the
/// queue afterwards; until then nobody else can get them. Also returns the highest number of redeliveries
/// of a kept message.
///
/// # Errors
/// If the broker can't be reached or the connection is lost, and the errors of `judge`. All messages that
/// were not removed by then stay in the queue.
pub fn browse<E: From<BrokerError>>(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
    Manner { all, renews }: Manner,
    judge: &mut Judge<'_, E>,
) -> Result<(Browsed, i64), E> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    if link.queue_messages(queue, shutdown)?.is_none() {
        return Ok((Browsed::NoQueue, 0));
    }
    // The turn is ours until the connection ends.
    take_turn(&mut link, queue, shutdown)?;
    let expected = link.queue_messages(queue, shutdown)?.unwrap_or(0);
    let mut reader = Reader {
        queue,
        shutdown,
        kill: link.kill_switch(),
        expected: expected.into(),
        until: None,
        enough: false,
        kept: 0,
        all,
        window: BATCH,
        renewal: Renewal::new(config, queue, expected, renews),
        judge,
    };
    reader.read_on(&mut link, None)?;
    let Reader { kept, expected, enough, renewal, .. } = reader;
    let redeliveries = renewal.left();
    // The broker requeues the kept messages a moment after the channels are closed, and a command that follows
    // should find them. (If somebody else takes them first, this waits until its deadline.)
    let deadline = Instant::now() + REQUEUE;
    while u64::from(link.queue_messages(queue, shutdown)?.unwrap_or(0)) < kept
        && Instant::now() < deadline
        && !shutdown.wait(POLL)
    {}
    link.close();
    let is_seen = enough || expected == 0;
    Ok((if is_seen { Browsed::Seen } else { Browsed::Withheld(expected) }, redeliveries))
}

/// Waits until no other command reads a queue: that command holds the messages, so we would find few. The
/// turn is an exclusive queue, which RabbitMQ deletes with its connection.
pub(super) fn take_turn(
    link: &mut Link,
    queue: &str,
    shutdown: &Shutdown,
) -> Result<(), BrokerError> {
    let turn = turn_queue(queue);
    let kill = link.kill_switch();
    let mut is_told = false;
    loop {
        let declared = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
            let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
            link.channel()?.queue_declare(turn.as_str(), options).map(drop)
        });
        match declared {
            // RESOURCE_LOCKED
            Err(amiquip::Error::ServerClosedChannel { code: 405, .. }) => {
                if !is_told {
                    log::warn!("another command reads {queue:?}: waiting until it is done");
                    is_told = true;
                }
                if shutdown.wait(TURN_POLL) {
                    let (address, problem) = (link.address.clone(), "interrupted".to_owned());
                    return Err(BrokerError::Unavailable { address, problem });
                }
            }
            // If we lack the permission to create that queue, or a limit is reached, we go on without a turn.
            Ok(()) | Err(amiquip::Error::ServerClosedChannel { .. }) => return Ok(()),
            Err(error) => return Err(link.unavailable(&error)),
        }
    }
}

/// Where a batch is read.
#[derive(Clone, Copy)]
struct At {
    /// The nested channel.
    level: usize,
    /// How many messages it holds already.
    kept: usize,
    /// How many it may hold.
    window: usize,
}

struct Reader<'a, 'j, E> {
    queue: &'a str,
    shutdown: &'a Shutdown,
    kill: KillSwitch,
    /// How many messages should still arrive.
    expected: u64,
    /// Until when to wait for more, once no more are expected.
    until: Option<Instant>,
    /// Whether `judge` has ended the browsing.
    enough: bool,
    /// Whether all messages will be read.
    all: bool,
    /// How many messages are kept.
    kept: u64,
    /// How many messages the next channel may hold.
    window: usize,
    renewal: Renewal<'a>,
    judge: &'a mut Judge<'j, E>,
}

impl<E: From<BrokerError>> Reader<'_, '_, E> {
    /// Reads on a separate channel until the queue is empty or the channel's window is full of kept messages;
    /// then it calls itself for the rest. The outer channels are closed only when the innermost one has read
    /// to the end, because closing a channel requeues the messages that it holds.
    fn read_on(&mut self, link: &mut Link, outer: Option<&Frame<'_>>) -> Result<(), E> {
        let unavailable = |link: &Link, error: &amiquip::Error| E::from(link.unavailable(error));
        let kill = self.kill.clone();
        let window = self.window;
        let opened = kill.guard(SETUP_TIMEOUT, Some(self.shutdown), || {
            let channel = link.channel()?;
            set_window(&channel, window)?;
            Ok(channel)
        });
        let channel = opened.map_err(|error| unavailable(link, &error))?;
        let read = self.read_window(&channel, window, link, outer);
        // The broker answers only after it has processed all earlier acks.
        let closed = kill.guard(REQUEUE, None, || channel.close());
        read.and_then(|()| closed.map_err(|error| unavailable(link, &error)))
    }

    fn read_window(
        &mut self,
        channel: &Channel,
        window: usize,
        link: &mut Link,
        outer: Option<&Frame<'_>>,
    ) -> Result<(), E> {
        let begun = self.kill.guard(SETUP_TIMEOUT, Some(self.shutdown), || {
            channel.basic_consume(self.queue, ConsumerOptions::default())
        });
        let consumer = begun.map_err(|error| link.unavailable(&error))?;
        let level = outer.map_or(0, |outer| outer.level + 1);
        let frame = Frame { level, channel, consumer: &consumer, outer };
        let mut kept = 0;
        let read = loop {
            if self.enough {
                break Ok(());
            }
            if kept == window {
                break self.read_on(link, Some(&frame));
            }
            match self.read_batch(channel, &consumer, link, At { level, kept, window }) {
                Ok(None) => break Ok(()),
                Ok(Some(more)) => kept += more,
                Err(error) => break Err(error),
            }
        };
        // The innermost channel replaces the messages of all channels.
        let replaced = match read {
            Ok(()) => self.renewal.replace(&frame, &self.kill, self.shutdown),
            Err(_) => Ok(()),
        };
        // Messages delivered meanwhile are requeued when the channel is closed.
        self.kill.guard(REQUEUE, None, || drop((cancel(&consumer), consumer)));
        read?;
        replaced.map_err(|error| link.unavailable(&error).into())
    }

    /// Reads a batch. Returns how many of its messages are kept; `None` if there was no batch.
    fn read_batch(
        &mut self,
        channel: &Channel,
        consumer: &Consumer<'_>,
        link: &Link,
        At { level, kept: kept_before, window }: At,
    ) -> Result<Option<usize>, E> {
        let (mut deliveries, mut messages) = (Vec::new(), Vec::new());
        while deliveries.len() < BATCH.min(window - kept_before) {
            let Some(mut delivery) = self.next(consumer, link)? else { break };
            messages.push(Message::take(&mut delivery));
            deliveries.push(delivery);
        }
        if deliveries.is_empty() {
            return Ok(None);
        }
        let largest = messages.iter().map(|message| message.body.len()).max().unwrap_or(0);
        if self.all || self.kept >= MANY {
            let most = WINDOW_BYTES / largest.max(1);
            self.window = most.clamp(*WINDOWS.start(), *WINDOWS.end());
        }
        let verdicts = match (self.judge)(&messages)? {
            ControlFlow::Continue(verdicts) => verdicts,
            ControlFlow::Break(verdicts) => {
                self.enough = true;
                verdicts
            }
        };
        let (seen, mut kept) = (deliveries.len(), 0);
        if kept_before == 0 && verdicts.iter().all(|verdict| *verdict == Verdict::Remove) {
            // One ack for all of them: if there are more than 32 acks for a quorum queue, RabbitMQ delays some,
            // and loses them if the channel is closed first.
            if let Some(last) = deliveries.pop() {
                consumer.ack_multiple(last).map_err(|error| link.unavailable(&error))?;
            }
        } else {
            let all = messages.into_iter().zip(deliveries);
            for ((message, delivery), verdict) in all.zip(verdicts) {
                match verdict {
                    Verdict::Keep => {
                        kept += 1;
                        self.renewal.offer(level, message, delivery);
                    }
                    Verdict::Remove => {
                        consumer.ack(delivery).map_err(|error| link.unavailable(&error))?;
                    }
                }
            }
        }
        if kept < seen {
            // The broker answers only after it has processed the earlier acks. Otherwise several batches could
            // be sent before we notice that this connection is dead. (The new window applies only to consumers
            // that start later.)
            let window = self.window;
            self.kill
                .guard(SETUP_TIMEOUT, None, || set_window(channel, window))
                .map_err(|error| link.unavailable(&error))?;
        }
        self.kept += kept as u64;
        Ok(Some(kept))
    }

    /// The next message; `None` if no more come.
    fn next(
        &mut self,
        consumer: &Consumer<'_>,
        link: &Link,
    ) -> Result<Option<amiquip::Delivery>, E> {
        let lost = |problem: String| {
            E::from(BrokerError::Unavailable { address: link.address.clone(), problem })
        };
        if self.shutdown.is_requested() {
            return Err(lost("interrupted".to_owned()));
        }
        let now = Instant::now();
        let deadline = match self.expected {
            0 => *self.until.get_or_insert(now + LATECOMERS),
            _ => now + PATIENCE,
        };
        match consumer.receiver().recv_deadline(deadline) {
            Ok(ConsumerMessage::Delivery(delivery)) => {
                self.expected = self.expected.saturating_sub(1);
                Ok(Some(delivery))
            }
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Ok(ConsumerMessage::ServerCancelled) => {
                Err(lost(format!("the queue {:?} was deleted", self.queue)))
            }
            Ok(
                ConsumerMessage::ServerClosedChannel(error)
                | ConsumerMessage::ServerClosedConnection(error),
            ) => Err(lost(error.to_string())),
            Ok(_) | Err(RecvTimeoutError::Disconnected) => Err(lost("connection lost".to_owned())),
        }
    }
}

fn set_window(channel: &Channel, window: usize) -> amiquip::Result<()> {
    channel.qos(0, u16::try_from(window).unwrap_or(u16::MAX), false)
}
