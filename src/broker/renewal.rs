//! Copies of messages that were looked at often.
//!
//! RabbitMQ takes each look at a message for a failed delivery, and its queue may drop it after some: after
//! 20 on RabbitMQ 4, where nobody set another limit. A copy, at the end of its queue, begins anew. If each
//! message had its copy just when it is due, one look of many would make them all: so each look makes some,
//! of those that were looked at most often, while it has all in hand anyway.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer};

use super::browse::BATCH;
use super::{Batches, BrokerError, KillSwitch, Message, Outgoing, SETUP_TIMEOUT};
use crate::config::Config;
use crate::shutdown::{self, Shutdown, Trigger};

/// What was looked at less often has no copy made of it.
const SOME_LOOKS: i64 = 3;

/// Which part of a queue is replaced by copies with one look, at most: all of it within eight looks.
const SHARE: usize = 8;

/// The memory for what waits for its copy.
const MOST_BYTES: usize = 32 * 1024 * 1024;

/// Copies that are made together. RabbitMQ keeps back what is more than 32 acks for a quorum queue, and forgets
/// it if the channel is closed before; the confirms of the next ones mean that these were carried out.
const TOGETHER: usize = 30;

/// How long a look may be kept from its end by its copies, at least; where the broker is slow, for half of the
/// time that it took until then. What is left over is first the next time.
const TIME: Duration = Duration::from_secs(1);

/// One of the nested channels that hold what was read.
pub(super) struct Frame<'f> {
    pub(super) level: usize,
    pub(super) channel: &'f Channel,
    pub(super) consumer: &'f Consumer<'f>,
    pub(super) outer: Option<&'f Frame<'f>>,
}

/// A message that may be replaced by a copy.
struct Weary {
    looks: i64,
    /// Which of the nested channels holds it.
    level: usize,
    message: Message,
    delivery: amiquip::Delivery,
}

/// By how often it was looked at.
impl Ord for Weary {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.looks.cmp(&other.looks)
    }
}

impl PartialOrd for Weary {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Weary {
    fn eq(&self, other: &Self) -> bool {
        self.looks == other.looks
    }
}

impl Eq for Weary {}

/// The copies that one look makes.
pub(super) struct Renewal<'a> {
    config: &'a Config,
    queue: &'a str,
    /// Messages that may be replaced.
    most: usize,
    bytes: usize,
    /// The least looked-at on top.
    weary: BinaryHeap<Reverse<Weary>>,
    /// How often what is not replaced was looked at, at most.
    left: i64,
    /// When the look began.
    since: Instant,
}

/// Who makes the copies.
struct Maker {
    batches: Batches,
    /// While it is there, nothing cuts copies that are under way: these would be in the queue twice.
    _never: Trigger,
}

impl Maker {
    fn open(config: &Config) -> Result<Self, BrokerError> {
        let (never, shutdown) = shutdown::channel();
        Ok(Self { batches: Batches::open(config, &shutdown)?, _never: never })
    }
}

impl<'a> Renewal<'a> {
    /// For a look at a queue with so many messages; `is_wanted`: or none at all.
    pub(super) fn new(config: &'a Config, queue: &'a str, messages: u32, is_wanted: bool) -> Self {
        let share = usize::try_from(messages).unwrap_or(usize::MAX) / SHARE;
        let most = if is_wanted { share.max(BATCH) } else { 0 };
        let since = Instant::now();
        Self { config, queue, most, bytes: 0, weary: BinaryHeap::new(), left: 0, since }
    }

    /// Takes note of a message that stays, on the channel of this level.
    pub(super) fn offer(&mut self, level: usize, message: Message, delivery: amiquip::Delivery) {
        let looks = message.redeliveries();
        if self.most == 0 || looks < SOME_LOOKS {
            self.left = self.left.max(looks);
            return;
        }
        self.bytes += message.size();
        self.weary.push(Reverse(Weary { looks, level, message, delivery }));
        while self.weary.len() > self.most || self.bytes > MOST_BYTES {
            let Some(Reverse(least)) = self.weary.pop() else { break };
            self.bytes -= least.message.size();
            self.left = self.left.max(least.looks);
        }
    }

    /// How often what was not replaced was looked at, at most.
    pub(super) fn left(&self) -> i64 {
        let waiting = self.weary.iter().map(|Reverse(weary)| weary.looks);
        waiting.max().unwrap_or(0).max(self.left)
    }

    /// Replaces what these channels hold, the most looked-at first. A message is acked when the broker has
    /// confirmed its copy; if the copies can't be made, the messages stay as they are.
    pub(super) fn replace(
        &mut self,
        innermost: &Frame<'_>,
        kill: &KillSwitch,
        shutdown: &Shutdown,
    ) -> amiquip::Result<()> {
        // By their levels, the innermost first.
        let frames: Vec<_> = std::iter::successors(Some(innermost), |frame| frame.outer).collect();
        let channel = |level: usize| frames.iter().find(|frame| frame.level == level);
        let mut weary = std::mem::take(&mut self.weary).into_sorted_vec().into_iter().peekable();
        if weary.peek().is_none() {
            return Ok(());
        }
        // Or they would be handed the copies.
        kill.guard(SETUP_TIMEOUT, None, || {
            frames.iter().try_for_each(|frame| frame.consumer.cancel())
        })?;
        let (began, time) = (Instant::now(), TIME.max(self.since.elapsed() / 2));
        let mut made = 0;
        let mut maker = None;
        let mut failed = None;
        while weary.peek().is_some() && began.elapsed() < time && !shutdown.is_requested() {
            let some: Vec<_> = weary.by_ref().take(TOGETHER).map(|Reverse(weary)| weary).collect();
            let copies = some
                .iter()
                .map(|weary| Outgoing::to_queue(weary.message.clone().rested(), self.queue));
            if let Err(error) = self.publish(&mut maker, copies.collect()) {
                self.left = some.iter().map(|weary| weary.looks).max().unwrap_or(0).max(self.left);
                failed = Some(error);
                break;
            }
            made += some.len();
            let mut last = None;
            for Weary { level, delivery, .. } in some {
                let Some(frame) = channel(level) else { continue };
                delivery.ack(frame.channel)?;
                last = Some(frame);
            }
            // Its answer means that the acks have arrived.
            kill.guard(SETUP_TIMEOUT, None, || {
                last.map_or(Ok(()), |frame| frame.channel.qos(0, 1, false))
            })?;
        }
        let (queue, ms) = (self.queue, began.elapsed().as_millis());
        log::debug!("copied what was looked at often queue={queue:?} copies={made} ms={ms}");
        let stay = weary.map(|Reverse(weary)| weary.looks);
        self.left = stay.max().unwrap_or(0).max(self.left);
        match (maker, failed) {
            (_, Some(error)) => {
                log::warn!("no copies of what was looked at often in {:?}: {error}", self.queue);
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
