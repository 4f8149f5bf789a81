//! Looking at what lies in a queue, and taking some of it out.

use std::ops::{ControlFlow, RangeInclusive};
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};
use crossbeam_channel::RecvTimeoutError;

use super::renewal::{Frame, Renewal};
use super::{BrokerError, KillSwitch, Link, Message, SETUP_TIMEOUT, cancel};
use crate::config::Config;
use crate::domain::broker_names::turn_queue;
use crate::shutdown::Shutdown;

/// Messages that may be unsettled on one channel, after the first [`BATCH`]. They are in our memory, and as
/// large as their producers made them: how large is known only then.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;
const WINDOWS: RangeInclusive<usize> = 50..=10_000;

/// Messages that are looked at together. If we are killed while a batch is moved, so many at most
/// are in both places.
pub const BATCH: usize = 250;

/// Who has kept so many looks for something far behind. Each window is a channel and a consumer, and hundreds
/// of them are slow.
const MANY: u64 = 5_000;

/// How long the broker may be silent although it should have more: another reader may hold them. A busy one takes
/// seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the broker may take to put back what was kept: seconds for some ten thousand.
const GIVE_BACK: Duration = Duration::from_secs(60);

/// How long we listen for what was not counted: a broker that has just started may say that there
/// is nothing. In all, not for each message, or a queue that fills as fast as we read has no end.
const LATECOMERS: Duration = Duration::from_millis(250);

/// How often we ask whether it is our turn.
const TURN_POLL: Duration = Duration::from_millis(200);

/// How often we look whether what was kept is back.
const POLL: Duration = Duration::from_millis(20);

/// What becomes of a message that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays in the queue.
    Keep,
    /// It is taken out.
    Remove,
}

/// What is shown the messages of a queue, some at a time, and says what becomes of each; a `Break`
/// says that it has seen enough.
pub type Look<'l, E> = dyn FnMut(&[Message]) -> Result<Verdicts, E> + 'l;

/// One for each message.
pub type Verdicts = ControlFlow<Vec<Verdict>, Vec<Verdict>>;

/// How far a queue was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Browsed {
    /// There is no such queue.
    NoQueue,
    /// To its end, or until it was enough.
    Seen,
    /// The broker counted so many more that it did not give us.
    Withheld(u64),
}

/// How to look.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// All are to be seen. Otherwise, unless many have been, none is taken ahead: RabbitMQ counts how often it
    /// takes a message back, shown or not.
    pub all: bool,
    /// Some that were looked at often are replaced by copies at the end of their queue, which nobody is shown.
    pub renews: bool,
}

/// Shows the messages of a queue to `look` until it has no more; what is kept is in the queue again
/// afterwards. Meanwhile nobody else can get at what was shown. Returns also how often what is still there was
/// looked at before, at most.
///
/// # Errors
/// If the broker can't be reached or is lost, and those of `look`. Everything that was not yet
/// removed then stays in the queue.
pub fn browse<E: From<BrokerError>>(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
    Manner { all, renews }: Manner,
    look: &mut Look<'_, E>,
) -> Result<(Browsed, i64), E> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    if link.queue_messages(queue, shutdown)?.is_none() {
        return Ok((Browsed::NoQueue, 0));
    }
    // Until the connection ends.
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
        look,
    };
    reader.read_on(&mut link, None)?;
    let Reader { kept, expected, enough, renewal, .. } = reader;
    let looks = renewal.left();
    // The broker puts back what was kept a moment after the channels are closed, and whoever looks
    // again should find it. (If somebody else takes it meanwhile, there is nothing to wait for.)
    let deadline = Instant::now() + GIVE_BACK;
    while u64::from(link.queue_messages(queue, shutdown)?.unwrap_or(0)) < kept
        && Instant::now() < deadline
        && !shutdown.wait(POLL)
    {}
    link.close();
    let is_seen = enough || expected == 0;
    Ok((if is_seen { Browsed::Seen } else { Browsed::Withheld(expected) }, looks))
}

/// Waits until no other command looks at a queue: it would find little there, and not know why. Who has an
/// exclusive queue of this name has the turn, and RabbitMQ deletes it with its connection.
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
                    log::warn!("another command looks at {queue:?}: waiting until it is done");
                    is_told = true;
                }
                if shutdown.wait(TURN_POLL) {
                    let (address, problem) = (link.address.clone(), "interrupted".to_owned());
                    return Err(BrokerError::Unavailable { address, problem });
                }
            }
            // Without the right to make it, or where a limit leaves no room, at its own risk.
            Ok(()) | Err(amiquip::Error::ServerClosedChannel { .. }) => return Ok(()),
            Err(error) => return Err(link.unavailable(&error)),
        }
    }
}

/// Where a batch is read.
#[derive(Clone, Copy)]
struct At {
    /// On which of the nested channels.
    level: usize,
    /// How much that holds already,
    kept: usize,
    /// and how much it may hold.
    window: usize,
}

struct Reader<'a, 'l, E> {
    queue: &'a str,
    shutdown: &'a Shutdown,
    kill: KillSwitch,
    /// Messages that should still come.
    expected: u64,
    /// Once none is expected any more: how long we listen for others.
    until: Option<Instant>,
    /// `look` wants no more.
    enough: bool,
    /// All are to be seen.
    all: bool,
    /// Messages that stay.
    kept: u64,
    /// Messages that the next channel may hold.
    window: usize,
    renewal: Renewal<'a>,
    look: &'a mut Look<'l, E>,
}

impl<E: From<BrokerError>> Reader<'_, '_, E> {
    /// Reads on a channel of its own until the queue is empty or the channel's window is full of
    /// what is kept; then it calls itself for the rest. Only when the last one has read to the end
    /// may the first close its channel: that puts what it kept back into the queue.
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
        // The acks before it have arrived when this is answered.
        let closed = kill.guard(GIVE_BACK, None, || channel.close());
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
        // The innermost has them all in hand, and leaves none to the others.
        let replaced = match read {
            Ok(()) => self.renewal.replace(&frame, &self.kill, self.shutdown),
            Err(_) => Ok(()),
        };
        // What it was still given goes back into the queue with the channel.
        self.kill.guard(GIVE_BACK, None, || drop((cancel(&consumer), consumer)));
        read?;
        replaced.map_err(|error| link.unavailable(&error).into())
    }

    /// Returns how many of a batch are kept; nothing if there was none.
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
        let verdicts = match (self.look)(&messages)? {
            ControlFlow::Continue(verdicts) => verdicts,
            ControlFlow::Break(verdicts) => {
                self.enough = true;
                verdicts
            }
        };
        let (seen, mut kept) = (deliveries.len(), 0);
        if kept_before == 0 && verdicts.iter().all(|verdict| *verdict == Verdict::Remove) {
            // One command to the queue. RabbitMQ keeps back what is more than 32, and forgets it where the channel
            // is closed before.
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
            // Its answer means that the acks before it have arrived: otherwise several batches could
            // be on their way before we notice that this connection is dead. (What it sets is for consumers to come.)
            let window = self.window;
            self.kill
                .guard(SETUP_TIMEOUT, None, || set_window(channel, window))
                .map_err(|error| link.unavailable(&error))?;
        }
        self.kept += kept as u64;
        Ok(Some(kept))
    }

    /// The next message; nothing if no more come.
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
