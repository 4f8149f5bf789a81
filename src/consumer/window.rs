//! The messages of one consumer that the broker waits to hear of, in the order in which they came.
//!
//! With a PREFETCH_COUNT of 1 there is one, and it is acked as soon as it is settled. With more,
//! the confirms of several are waited for together, and one ack speaks for a whole run of settled
//! messages: each ack is a packet, and work for the broker.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use amiquip::{Consumer, ConsumerMessage};
use crossbeam_channel::{RecvError, select};

use super::Ended;
use crate::broker::{Confirmation, Lane};
use crate::pipeline::{Missing, Pipeline, Promises};

/// How long a settled message may wait for others to be acked with, while more keep coming: where
/// none does, all is acked at once. What is not acked when the process is killed is delivered again,
/// so this is short; but a run that it ends early costs the broker and us a packet more.
const ACK_DELAY: Duration = Duration::from_millis(100);

/// A consumer's messages that are not acked yet.
pub(super) struct Window<'a> {
    consumer: &'a Consumer<'a>,
    lane: &'a Lane,
    pipeline: &'a Pipeline,
    /// The oldest ones, all settled.
    run: Option<Run>,
    /// After them: what was done about these has yet to be confirmed, or they come after such.
    waiting: VecDeque<(amiquip::Delivery, Promises)>,
    /// So many settled messages are acked at once.
    longest_run: usize,
    in_hand: usize,
}

/// Settled messages that one ack can speak for.
struct Run {
    last: amiquip::Delivery,
    length: usize,
    since: Instant,
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
            run: None,
            waiting: VecDeque::new(),
            // The broker hands out more while we work on the other half.
            longest_run: usize::from(prefetch_count / 2).max(1),
            in_hand: 0,
        }
    }

    /// A message was taken from the consumer.
    pub(super) fn taken(&mut self) {
        self.in_hand += 1;
        self.pipeline.tally().taken();
    }

    /// A message will be settled once these promises are kept.
    pub(super) fn push(&mut self, delivery: amiquip::Delivery, promises: Promises) {
        self.waiting.push_back((delivery, promises));
    }

    /// Acks what is settled by now, if that is a run worth an ack.
    pub(super) fn advance(&mut self) -> Result<(), Ended> {
        while let Some((_, promises)) = self.waiting.front_mut() {
            match promises.poll(self.pipeline.tally()) {
                Ok(false) => break,
                Ok(true) => self.settle_first(),
                Err(_) => return Err(Ended::Missing(Missing::Confirm)),
            }
        }
        match &self.run {
            Some(run) if run.length >= self.longest_run || run.since.elapsed() >= ACK_DELAY => {
                self.ack()
            }
            _ => Ok(()),
        }
    }

    fn settle_first(&mut self) {
        let Some((last, promises)) = self.waiting.pop_front() else { return };
        self.pipeline.settled(self.lane, &promises);
        let (length, since) = match &self.run {
            Some(run) => (run.length, run.since),
            None => (0, Instant::now()),
        };
        self.run = Some(Run { last, length: length + 1, since });
    }

    /// Acks what is settled.
    pub(super) fn ack(&mut self) -> Result<(), Ended> {
        let Some(Run { last, length, .. }) = self.run.take() else { return Ok(()) };
        let acked = match length {
            1 => self.consumer.ack(last),
            _ => self.consumer.ack_multiple(last),
        };
        acked.map_err(|error| Ended::Lost(format!("cannot ack: {error}")))?;
        let tally = self.pipeline.tally();
        tally.finished(length);
        tally.let_go(length);
        self.in_hand -= length;
        Ok(())
    }

    /// The confirm to wait for, if one is missing.
    pub(super) fn first_open(&self) -> Option<&Confirmation> {
        self.waiting.front().and_then(|(_, promises)| promises.first())
    }

    /// What the confirm of [`Window::first_open`] was.
    pub(super) fn confirmed(&mut self, answer: Result<(), RecvError>) -> Result<(), Ended> {
        let Some((_, promises)) = self.waiting.front_mut() else { return Ok(()) };
        if answer.is_err() {
            return Err(Ended::Missing(Missing::Confirm));
        }
        promises.keep_first(self.pipeline.tally());
        Ok(())
    }

    /// Waits for all that is promised, and acks it. Returns what has to go back, and what came
    /// meanwhile.
    pub(super) fn finish(mut self) -> Vec<amiquip::Delivery> {
        let mut back = Vec::new();
        let mut going_on = self.advance();
        while going_on.is_ok()
            && let Some(confirmation) = self.first_open()
        {
            let step = select! {
                recv(confirmation.receiver()) -> answer => self.confirmed(answer),
                recv(self.consumer.receiver()) -> message => match message {
                    Ok(ConsumerMessage::Delivery(delivery)) => {
                        back.push(delivery);
                        Ok(())
                    }
                    // No ack would arrive any more.
                    _ => Err(Ended::Asked),
                },
                default(confirmation.patience()) => Err(Ended::Missing(Missing::Confirm)),
            };
            going_on = step.and_then(|()| self.advance());
        }
        // Fails on a lost connection, where the broker has requeued them already.
        let _ = self.ack();
        back.extend(self.waiting.drain(..).map(|(delivery, _)| delivery));
        back
    }
}

impl Drop for Window<'_> {
    fn drop(&mut self) {
        self.pipeline.tally().let_go(self.in_hand);
    }
}
