//! Looking at what lies in a queue, and taking some of it out.

use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions};
use crossbeam_channel::RecvTimeoutError;

use super::{BrokerError, CLOSE_TIMEOUT, KillSwitch, Link, Message, SETUP_TIMEOUT, cancel};
use crate::config::Config;
use crate::shutdown::Shutdown;

/// Messages that may be unsettled on one channel. They are in our memory, and as large as their
/// producers made them.
const WINDOW: u16 = 1_000;

/// Messages that are looked at together. If we are killed while a batch is moved, so many at most
/// are in both places.
pub const BATCH: usize = 250;

/// How long the broker may be silent although it should have more: another reader may hold them.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long we listen for what was not counted: a broker that has just started may say that there
/// is nothing.
const LATECOMERS: Duration = Duration::from_millis(250);

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

/// What is shown the messages of a queue, some at a time, and says what becomes of each.
pub type Look<'l, E> = dyn FnMut(&[Message]) -> Result<Vec<Verdict>, E> + 'l;

/// Shows every message of a queue to `look`, some at a time, until it has no more; what is kept is
/// in the queue again afterwards. Meanwhile nobody else can get at it.
///
/// Returns whether there is such a queue.
///
/// # Errors
/// If the broker can't be reached or is lost, and those of `look`. Everything that was not yet
/// removed then stays in the queue.
pub fn browse<E: From<BrokerError>>(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
    look: &mut Look<'_, E>,
) -> Result<bool, E> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    let Some(expected) = link.queue_messages(queue, shutdown)? else { return Ok(false) };
    let kill = link.kill_switch();
    let mut reader = Reader { queue, shutdown, kill, expected: expected.into(), kept: 0, look };
    reader.read_on(&mut link)?;
    let kept = reader.kept;
    // The broker puts back what was kept a moment after the channels are closed, and whoever looks
    // again should find it. (If somebody else takes it meanwhile, there is nothing to wait for.)
    let deadline = Instant::now() + PATIENCE;
    while u64::from(link.queue_messages(queue, shutdown)?.unwrap_or(0)) < kept
        && Instant::now() < deadline
        && !shutdown.wait(POLL)
    {}
    link.close();
    Ok(true)
}

struct Reader<'a, 'l, E> {
    queue: &'a str,
    shutdown: &'a Shutdown,
    kill: KillSwitch,
    /// Messages that should still come.
    expected: u64,
    /// Messages that stay.
    kept: u64,
    look: &'a mut Look<'l, E>,
}

impl<E: From<BrokerError>> Reader<'_, '_, E> {
    /// Reads on a channel of its own until the queue is empty or the channel's window is full of
    /// what is kept; then it calls itself for the rest. Only when the last one has read to the end
    /// may the first close its channel: that puts what it kept back into the queue.
    fn read_on(&mut self, link: &mut Link) -> Result<(), E> {
        let unavailable = |link: &Link, error: &amiquip::Error| E::from(link.unavailable(error));
        let kill = self.kill.clone();
        let opened = kill.guard(SETUP_TIMEOUT, Some(self.shutdown), || {
            let channel = link.channel()?;
            channel.qos(0, WINDOW, false)?;
            Ok(channel)
        });
        let channel = opened.map_err(|error| unavailable(link, &error))?;
        let read = self.read_window(&channel, link);
        // The acks before it have arrived when this is answered.
        let closed = kill.guard(CLOSE_TIMEOUT, None, || channel.close());
        read.and_then(|()| closed.map_err(|error| unavailable(link, &error)))
    }

    fn read_window(&mut self, channel: &Channel, link: &mut Link) -> Result<(), E> {
        let begun = self.kill.guard(SETUP_TIMEOUT, Some(self.shutdown), || {
            channel.basic_consume(self.queue, ConsumerOptions::default())
        });
        let consumer = begun.map_err(|error| link.unavailable(&error))?;
        let mut kept = 0;
        let read = loop {
            if kept == usize::from(WINDOW) {
                break self.read_on(link);
            }
            match self.read_batch(&consumer, link, usize::from(WINDOW) - kept) {
                Ok(None) => break Ok(()),
                Ok(Some(more)) => kept += more,
                Err(error) => break Err(error),
            }
        };
        // What it was still given goes back into the queue with the channel.
        self.kill.guard(CLOSE_TIMEOUT, None, || drop((cancel(&consumer), consumer)));
        read
    }

    /// Returns how many of a batch are kept; nothing if there was none.
    fn read_batch(
        &mut self,
        consumer: &Consumer<'_>,
        link: &Link,
        most: usize,
    ) -> Result<Option<usize>, E> {
        let lost = |problem: String| {
            E::from(BrokerError::Unavailable { address: link.address.clone(), problem })
        };
        let (mut deliveries, mut messages) = (Vec::new(), Vec::new());
        while deliveries.len() < most.min(BATCH) {
            let patience = if self.expected > 0 { PATIENCE } else { LATECOMERS };
            match consumer.receiver().recv_timeout(patience) {
                Ok(ConsumerMessage::Delivery(mut delivery)) => {
                    messages.push(Message::take(&mut delivery));
                    deliveries.push(delivery);
                    self.expected = self.expected.saturating_sub(1);
                }
                Err(RecvTimeoutError::Timeout) => break,
                Ok(ConsumerMessage::ServerCancelled) => {
                    return Err(lost(format!("the queue {:?} was deleted", self.queue)));
                }
                Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(lost("connection lost".to_owned()));
                }
            }
        }
        if deliveries.is_empty() {
            return Ok(None);
        }
        let verdicts = (self.look)(&messages)?;
        let mut kept = 0;
        for (delivery, verdict) in deliveries.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Keep => kept += 1,
                Verdict::Remove => {
                    consumer.ack(delivery).map_err(|error| link.unavailable(&error))?
                }
            }
        }
        self.kept += kept as u64;
        Ok(Some(kept))
    }
}
