//! The unacked messages of one consumer.
//!
//! With a PREFETCH_COUNT of 1 there is one, acked as soon as it is settled. With more, the confirms of
//! several messages are awaited together, and one ack covers a whole run of settled messages, because
//! each ack is a packet and work for the broker. Messages are settled in the order of arrival, except
//! those that another thread took over and those whose confirm takes long: the messages before and
//! behind them are acked separately.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use amiquip::{Consumer, ConsumerMessage};
use crossbeam_channel::{RecvError, select};

use super::Ended;
use crate::broker::{Confirmation, Lane};
use crate::pipeline::{Missing, Pipeline, Promises};

/// How long a settled message may wait for others to be acked with, while more keep arriving; if none
/// does, everything is acked at once. What isn't acked when the process is killed is delivered again, so
/// this is short. But each run that it cuts short costs us and the broker another packet.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// How often the messages behind an unconfirmed one are checked: settled ones must neither wait for it
/// nor be handed back because of it.
const LOOK_BEHIND: Duration = Duration::from_millis(100);

/// The unacked messages of a consumer.
pub(super) struct Window<'a> {
    consumer: &'a Consumer<'a>,
    lane: &'a Lane,
    pipeline: &'a Pipeline,
    /// Settled messages, ordered by tag.
    settled: VecDeque<amiquip::Delivery>,
    /// When the first of them was settled.
    since: Instant,
    /// Messages whose follow-ups have to be confirmed, and those behind them.
    waiting: VecDeque<(amiquip::Delivery, Promises)>,
    /// When the messages behind the first of them were last checked.
    looked_at: Instant,
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
            looked_at: Instant::now(),
            acked: 0,
            acked_beyond: BTreeSet::new(),
            prefetch_count: prefetch_count.into(),
            // The broker delivers more while we work on the other half.
            longest_run: usize::from(prefetch_count / 2).max(1),
            in_hand: 0,
        }
    }

    /// A message was taken from the consumer.
    pub(super) fn taken(&mut self) {
        self.in_hand += 1;
        self.pipeline.tally().taken();
    }

    /// A message that another thread took, and counted, has come back.
    pub(super) fn taken_over(&mut self) {
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

    /// A message will be settled once these promises are kept.
    pub(super) fn push(&mut self, delivery: amiquip::Delivery, promises: Promises) {
        self.waiting.push_back((delivery, promises));
    }

    /// Acks what is settled by now, if it is a run worth an ack.
    pub(super) fn advance(&mut self) -> Result<(), Ended> {
        while let Some((_, promises)) = self.waiting.front_mut() {
            match promises.poll(self.pipeline.tally()) {
                Ok(false) => break,
                Ok(true) => self.settle_first(),
                Err(_) => return Err(Ended::Missing(Missing::Confirm)),
            }
        }
        if self.has_some_behind() && self.looked_at.elapsed() >= LOOK_BEHIND {
            self.look_behind();
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

    /// Settles all waiting messages that can be. Failures are noticed when they reach the front.
    fn look_behind(&mut self) {
        self.looked_at = Instant::now();
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
        // Nearly always behind all others.
        let later = self.settled.iter().rev();
        let later = later.take_while(|other| other.delivery_tag() > delivery.delivery_tag());
        let at = self.settled.len() - later.count();
        self.settled.insert(at, delivery);
    }

    /// Acks the settled messages.
    pub(super) fn ack(&mut self) -> Result<(), Ended> {
        while let Some(first) = self.settled.front() {
            let tag = first.delivery_tag();
            // If every tag before is acked, one ack covers all consecutive ones.
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

    /// Whether the broker delivers no more before a confirm arrives. Then this consumer is still busy.
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
        if self.has_some_behind() { patience.min(LOOK_BEHIND) } else { patience }
    }

    /// Takes the answer to the confirm of [`Window::first_open`].
    pub(super) fn confirmed(&mut self, answer: Result<(), RecvError>) -> Result<(), Ended> {
        let Some((_, promises)) = self.waiting.front_mut() else { return Ok(()) };
        if answer.is_err() {
            return Err(Ended::Missing(Missing::Confirm));
        }
        promises.keep_first(self.pipeline.tally());
        Ok(())
    }

    /// Waits for all promises, but for less time than usual, and acks what was confirmed. Returns the
    /// messages that have to go back, including those that arrived meanwhile unless it is `cancelled`
    /// already.
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
                    default(patience.min(LOOK_BEHIND)) => match patience.is_zero() {
                        true => Err(Ended::Missing(Missing::Confirm)),
                        // It may have been refused meanwhile.
                        false => Ok(()),
                    },
                }
            });
            match step {
                Ok(()) => {}
                // This one goes back; those behind it get the same time.
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
