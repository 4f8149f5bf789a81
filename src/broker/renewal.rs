//! Replaces messages that were read often by copies.
//!
//! RabbitMQ counts each read of a message as a failed delivery, and a queue drops a message at its delivery
//! limit: after 20 on RabbitMQ 4, if nobody has set another limit. A copy at the end of the queue starts at
//! zero. If each message were copied just before its limit, one command would have to copy all of them. So
//! each command that reads a queue copies some: those that were read most often.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer};

use super::browse::BATCH;
use super::{Batches, BrokerError, KillSwitch, Message, Outgoing, SETUP_TIMEOUT};
use crate::config::Config;
use crate::shutdown::{self, Shutdown, Trigger};

/// A message that was read less often is not copied.
const LEAST_READS: i64 = 3;

/// At most 1/n of a queue is replaced at a time, so that n commands replace all of it.
const SHARE: usize = 8;

/// The memory for messages that wait to be copied.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// How many copies are published together. If there are more than 32 acks for a quorum queue, RabbitMQ delays
/// some, and loses them if the channel is closed first. By the time the next copies are confirmed, it has
/// processed the acks of these.
const TOGETHER: usize = 30;

/// How long copying may delay a command; on a slow broker, half of the time that reading has taken, if that is
/// longer. The remaining messages come first next time.
const TIME: Duration = Duration::from_secs(1);

/// One of the nested channels that hold the messages that were read.
pub(super) struct Frame<'f> {
    pub(super) level: usize,
    pub(super) channel: &'f Channel,
    pub(super) consumer: &'f Consumer<'f>,
    pub(super) outer: Option<&'f Frame<'f>>,
}

/// A message that may be replaced by a copy.
struct Candidate {
    /// How often it was redelivered.
    looks: i64,
    /// The nested channel that holds it.
    level: usize,
    message: Message,
    delivery: amiquip::Delivery,
}

/// By how often it was redelivered.
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.looks.cmp(&other.looks)
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.looks == other.looks
    }
}

impl Eq for Candidate {}

/// The copies that a command makes of the messages that it has read.
pub(super) struct Renewal<'a> {
    config: &'a Config,
    queue: &'a str,
    /// How many messages may be replaced.
    most: usize,
    bytes: usize,
    /// The one with the fewest redeliveries on top.
    candidates: BinaryHeap<Reverse<Candidate>>,
    /// The highest number of redeliveries of a message that is not replaced.
    left: i64,
    /// When reading began.
    since: Instant,
}

/// Publishes the copies.
struct Maker {
    batches: Batches,
    /// Never fired, so that shutdown doesn't interrupt a batch of copies: their messages would be in the queue
    /// twice.
    _never: Trigger,
}

impl Maker {
    fn open(config: &Config) -> Result<Self, BrokerError> {
        let (never, shutdown) = shutdown::channel();
        Ok(Self { batches: Batches::open(config, &shutdown)?, _never: never })
    }
}

impl<'a> Renewal<'a> {
    /// For reading a queue with that many messages. Unless `is_wanted`, nothing is copied.
    pub(super) fn new(config: &'a Config, queue: &'a str, messages: u32, is_wanted: bool) -> Self {
        let share = usize::try_from(messages).unwrap_or(usize::MAX) / SHARE;
        let most = if is_wanted { share.max(BATCH) } else { 0 };
        let since = Instant::now();
        Self { config, queue, most, bytes: 0, candidates: BinaryHeap::new(), left: 0, since }
    }

    /// Adds a kept message, which the channel of this level holds.
    pub(super) fn offer(&mut self, level: usize, message: Message, delivery: amiquip::Delivery) {
        let looks = message.redeliveries();
        if self.most == 0 || looks < LEAST_READS {
            self.left = self.left.max(looks);
            return;
        }
        self.bytes += message.size();
        self.candidates.push(Reverse(Candidate { looks, level, message, delivery }));
        while self.candidates.len() > self.most || self.bytes > MOST_BYTES {
            let Some(Reverse(least)) = self.candidates.pop() else { break };
            self.bytes -= least.message.size();
            self.left = self.left.max(least.looks);
        }
    }

    /// The highest number of redeliveries of a message that was not replaced.
    pub(super) fn left(&self) -> i64 {
        let waiting = self.candidates.iter().map(|Reverse(one)| one.looks);
        waiting.max().unwrap_or(0).max(self.left)
    }

    /// Replaces messages that these channels hold, those with the most redeliveries first. A message is acked
    /// when the broker has confirmed its copy. If copying fails, the messages stay.
    pub(super) fn replace(
        &mut self,
        innermost: &Frame<'_>,
        kill: &KillSwitch,
        shutdown: &Shutdown,
    ) -> amiquip::Result<()> {
        // The innermost comes first.
        let frames: Vec<_> = std::iter::successors(Some(innermost), |frame| frame.outer).collect();
        let channel = |level: usize| frames.iter().find(|frame| frame.level == level);
        let mut candidates =
            std::mem::take(&mut self.candidates).into_sorted_vec().into_iter().peekable();
        if candidates.peek().is_none() {
            return Ok(());
        }
        // Otherwise the consumers would receive the copies.
        kill.guard(SETUP_TIMEOUT, None, || {
            frames.iter().try_for_each(|frame| frame.consumer.cancel())
        })?;
        let (began, time) = (Instant::now(), TIME.max(self.since.elapsed() / 2));
        let mut made = 0;
        let mut maker = None;
        let mut failed = None;
        while candidates.peek().is_some() && began.elapsed() < time && !shutdown.is_requested() {
            let some: Vec<_> = candidates.by_ref().take(TOGETHER).map(|Reverse(one)| one).collect();
            let copies = some.iter().map(|one| {
                Outgoing::to_queue(one.message.clone().without_redeliveries(), self.queue)
            });
            if let Err(error) = self.publish(&mut maker, copies.collect()) {
                self.left = some.iter().map(|one| one.looks).max().unwrap_or(0).max(self.left);
                failed = Some(error);
                break;
            }
            made += some.len();
            let mut last = None;
            for Candidate { level, delivery, .. } in some {
                let Some(frame) = channel(level) else { continue };
                delivery.ack(frame.channel)?;
                last = Some(frame);
            }
            // The broker answers only after it has processed the acks.
            kill.guard(SETUP_TIMEOUT, None, || {
                last.map_or(Ok(()), |frame| frame.channel.qos(0, 1, false))
            })?;
        }
        let (queue, ms) = (self.queue, began.elapsed().as_millis());
        log::debug!("copied messages that were read often queue={queue:?} copies={made} ms={ms}");
        let stay = candidates.map(|Reverse(one)| one.looks);
        self.left = stay.max().unwrap_or(0).max(self.left);
        match (maker, failed) {
            (_, Some(error)) => {
                log::warn!(
                    "cannot replace messages of {:?} that were read often by copies: {error}",
                    self.queue
                );
            }
            (Some(Maker { batches, .. }), None) => batches.close(),
            (None, None) => {}
        }
        Ok(())
    }

    fn publish(&self, maker: &mut Option<Maker>, copies: Vec<Outgoing>) -> Result<(), BrokerError> {
        if maker.is_none() {
            *maker = Some(Maker::open(self.config)?);
        }
        maker.as_mut().map_or(Ok(()), |maker| maker.batches.publish(copies))
    }
}
