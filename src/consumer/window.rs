//! The unacked messages of one consumer.
//!
//! With a PREFETCH_COUNT of 1 there is one message, which is acked as soon as it is settled. With a higher
//! count, the confirms of several messages are awaited together, and one ack covers a run of settled messages,
//! because each ack costs a packet and work for the broker. Messages are settled in the order of arrival,
//! except those that another thread took over and those whose confirm takes long. The messages before and
//! behind these are acked separately.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use amiquip::{Consumer, ConsumerMessage};
use crossbeam_channel::{RecvError, select};

use super::Ended;
use crate::broker::{Confirmation, Lane};
use crate::pipeline::{Missing, Pipeline, Promises};

/// How long a settled message may wait to be acked together with others, while more arrive; if none does,
/// everything is acked at once. Unacked messages are redelivered if the process is killed, so this is short.
/// But each run that it cuts short costs us and the broker another packet.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// How often the messages behind an unconfirmed one are checked: settled ones must neither wait for it nor be
/// handed back because of it.
const CHECK_BEHIND: Duration = Duration::from_millis(100);

/// The unacked messages of a consumer.
pub(super) struct Window<'a> {
    consumer: &'a Consumer<'a>,
    lane: &'a Lane,
    pipeline: &'a Pipeline,
    /// Settled messages, ordered by tag.
    settled: VecDeque<amiquip::Delivery>,
    /// When the first of them was settled.
    since: Instant,
    /// Messages that wait for confirms, and those behind them.
    waiting: VecDeque<(amiquip::Delivery, Promises)>,
    /// When the messages behind the first of them were last checked.
    checked_at: Instant,
    /// All tags up to `acked` are acked, and beyond it those in `acked_beyond`.
    acked: u64,
    acked_beyond: BTreeSet<u64>,
    prefetch_count: usize,
    /// This many settled messages are acked at once.
    longest_run: usize,
    in_hand: usize,
}

impl<'a> Window<'a> {
    pub(super) fn new(
        consumer: &'a Consumer<'a>,
        lane: &'a Lane,
        pipeline: &'a Pipeline,
        prefetch_count: u16,
    ) -> Self {
        Self {
            consumer,
            lane,
            pipeline,
            settled: VecDeque::new(),
            since: Instant::now(),
            waiting: VecDeque::new(),
            checked_at: Instant::now(),
            acked: 0,
            acked_beyond: BTreeSet::new(),
            prefetch_count: prefetch_count.into(),
            // The broker delivers more while we work on the other half.
            longest_run: usize::from(prefetch_count / 2).max(1),
            in_hand: 0,
        }
    }

    /// Counts a message that was taken from the consumer.
    pub(super) fn count_taken(&mut self) {
        self.in_hand += 1;
        self.pipeline.tally().taken();
    }

    /// Counts a message that another thread took, counted there, and returned.
    pub(super) fn count_returned(&mut self) {
        self.in_hand += 1;
    }

    /// Hands a message back to the broker: it has waited too long to be begun.
    pub(super) fn hand_back(&mut self, delivery: amiquip::Delivery) -> Result<(), Ended> {
        let tag = delivery.delivery_tag();
        let given_back = self.consumer.nack(delivery, true);
        given_back.map_err(|error| Ended::Lost(format!("cannot hand back: {error}")))?;
        self.note_acked(tag, tag);
        self.pipeline.tally().handed_back();
        log::debug!("handed back after minutes in hand queue={}", self.lane.queue);
        Ok(())
    }

    /// Adds a message, which is settled once these promises are kept.
    pub(super) fn push(&mut self, delivery: amiquip::Delivery, promises: Promises) {
        self.waiting.push_back((delivery, promises));
    }

    /// Acks the settled messages, if they are a run that is worth an ack.
    pub(super) fn advance(&mut self) -> Result<(), Ended> {
        while let Some((_, promises)) = self.waiting.front_mut() {
            match promises.poll(self.pipeline.tally()) {
                Ok(false) => break,
                Ok(true) => self.settle_first(),
                Err(_) => return Err(Ended::Missing(Missing::Confirm)),
            }
        }
        if self.has_some_behind() && self.checked_at.elapsed() >= CHECK_BEHIND {
            self.settle_behind();
        }
        let is_due = || self.since.elapsed() >= ACK_DELAY;
        if self.settled.len() >= self.longest_run || !self.settled.is_empty() && is_due() {
            return self.ack();
        }
        Ok(())
    }

    /// Whether others wait behind the first unconfirmed message.
    fn has_some_behind(&self) -> bool {
        self.waiting.len() > 1
    }

    /// Settles all waiting messages that can be settled. Failures are noticed when they reach the front.
    fn settle_behind(&mut self) {
        self.checked_at = Instant::now();
        for (delivery, mut promises) in std::mem::take(&mut self.waiting) {
            match promises.poll(self.pipeline.tally()) {
                Ok(true) => self.settle(delivery, &promises),
                _ => self.waiting.push_back((delivery, promises)),
            }
        }
    }

    fn settle_first(&mut self) {
        if let Some((delivery, promises)) = self.waiting.pop_front() {
            self.settle(delivery, &promises);
        }
    }

    fn settle(&mut self, delivery: amiquip::Delivery, promises: &Promises) {
        self.pipeline.settled(self.lane, promises);
        if self.settled.is_empty() {
            self.since = Instant::now();
        }
        // It nearly always goes to the end.
        let later = self.settled.iter().rev();
        let later = later.take_while(|other| other.delivery_tag() > delivery.delivery_tag());
        let at = self.settled.len() - later.count();
        self.settled.insert(at, delivery);
    }

    /// Acks the settled messages.
    pub(super) fn ack(&mut self) -> Result<(), Ended> {
        while let Some(first) = self.settled.front() {
            let tag = first.delivery_tag();
            // If all earlier tags are acked, one ack covers all consecutive ones.
            let run = if tag == self.acked + 1 {
                let follows =
                    |(n, other): &(u64, &amiquip::Delivery)| other.delivery_tag() == tag + n;
                (0..).zip(&self.settled).take_while(follows).count()
            } else {
                1
            };
            let Some(last) = self.settled.drain(..run).next_back() else { return Ok(()) };
            let last_tag = last.delivery_tag();
            let acked = match run {
                1 => self.consumer.ack(last),
                _ => self.consumer.ack_multiple(last),
            };
            acked.map_err(|error| Ended::Lost(format!("cannot ack: {error}")))?;
            self.note_acked(tag, last_tag);
            let tally = self.pipeline.tally();
            tally.finished(run);
            tally.let_go(run);
            self.in_hand -= run;
        }
        Ok(())
    }

    fn note_acked(&mut self, first: u64, last: u64) {
        if first > self.acked + 1 {
            self.acked_beyond.insert(first);
            return;
        }
        self.acked = last;
        while self.acked_beyond.remove(&(self.acked + 1)) {
            self.acked += 1;
        }
    }

    /// Whether the broker delivers no more messages before a confirm arrives. Then this consumer is still busy.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.prefetch_count
    }

    /// The confirm to wait for next.
    pub(super) fn first_open(&self) -> Option<&Confirmation> {
        self.waiting.front().and_then(|(_, promises)| promises.first())
    }

    /// How long to wait for it before checking all of them.
    pub(super) fn patience(&self) -> Duration {
        let patience = self.first_open().map_or(Duration::ZERO, Confirmation::patience);
        if self.has_some_behind() { patience.min(CHECK_BEHIND) } else { patience }
    }

    /// Evaluates the answer to the confirm of [`Window::first_open`].
    pub(super) fn confirmed(&mut self, answer: Result<(), RecvError>) -> Result<(), Ended> {
        let Some((_, promises)) = self.waiting.front_mut() else { return Ok(()) };
        if answer.is_err() {
            return Err(Ended::Missing(Missing::Confirm));
        }
        promises.keep_first(self.pipeline.tally());
        Ok(())
    }

    /// Waits for all promises, but for less time than usual, and acks the confirmed messages. Returns the
    /// messages to hand back, including those that arrive meanwhile unless the consumer is already
    /// `cancelled`.
    pub(super) fn finish(mut self, cancelled: bool) -> Vec<amiquip::Delivery> {
        let nothing = crossbeam_channel::never();
        let more = if cancelled { &nothing } else { self.consumer.receiver() };
        let mut back = Vec::new();
        let begun = Instant::now();
        loop {
            let step = self.advance().and_then(|()| {
                let Some(confirmation) = self.first_open() else { return Err(Ended::Asked) };
                let patience = confirmation.patience_at_end().saturating_sub(begun.elapsed());
                select! {
                    recv(confirmation.receiver()) -> answer => self.confirmed(answer),
                    recv(more) -> message => match message {
                        Ok(ConsumerMessage::Delivery(delivery)) => {
                            back.push(delivery);
                            Ok(())
                        }
                        // No ack would arrive any more.
                        _ => Err(Ended::Asked),
                    },
                    default(patience.min(CHECK_BEHIND)) => match patience.is_zero() {
                        true => Err(Ended::Missing(Missing::Confirm)),
                        // It may have been refused meanwhile.
                        false => Ok(()),
                    },
                }
            });
            match step {
                Ok(()) => {}
                // This one is handed back; those behind it get the same time.
                Err(Ended::Missing(_)) => {
                    back.extend(self.waiting.pop_front().map(|(delivery, _)| delivery));
                }
                Err(_) => break,
            }
        }
        // Fails if the connection is lost; then the broker has requeued them already.
        let _ = self.ack();
        back.extend(self.settled.drain(..));
        back.extend(self.waiting.drain(..).map(|(delivery, _)| delivery));
        back
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.pipeline.tally().let_go(self.in_hand);
    }
}
