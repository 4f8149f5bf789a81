//! Changes the type of a queue, and keeps its messages.
//!
//! RabbitMQ can't change the type of a queue. So its messages move to `webhooks.moving.<queue>`, the queue is
//! deleted and recreated, and the messages move back, in their order. A message is acked when the broker has
//! confirmed its copy, so an interruption loses nothing, and repeats one [`BATCH`] at most. Which of the two
//! queues exist shows how far a move has come, so another one continues it.

use std::time::{Duration, Instant};

use amiquip::{
    Channel, Consumer, ConsumerMessage, ConsumerOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use crossbeam_channel::RecvTimeoutError;

use super::browse::take_turn;
use super::calls::{Calls, QueueCounts};
use super::topology::{event_options, moving_options};
use super::{BrokerError, CLOSE_TIMEOUT, Link, SETUP_TIMEOUT, cancel, failed};
use crate::config::{Config, QueueType};
use crate::domain::broker_names::moving_queue;
use crate::shutdown::Shutdown;

mod properties;
mod publishing;
mod standing;

use properties::carried;
use publishing::Publishing;
use standing::standing;

pub use standing::{QueueStanding, inspect_queue};

/// How many messages are in hand together: at most this many are in both queues if we are killed. If more
/// than 32 messages of a quorum queue are handed back, it loses their order (RabbitMQ 3.10 at least).
const BATCH: u16 = 32;

/// How long to wait for the next message of a queue that should have more.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long to wait for the rest of a batch.
const REST: Duration = Duration::from_millis(50);

/// How long the broker may take to requeue the messages that an interrupted move had in hand. A consumer that
/// starts earlier gets later messages first.
const REQUEUE: Duration = Duration::from_secs(2);

/// How long RabbitMQ may take to delete a queue: 3.10 waits 5 s for a member on a node that is down.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a new message may arrive just before a queue is deleted.
const MOST_ROUNDS: usize = 5;

/// Why a queue can't be moved, or a move ended early.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The broker failed. Nothing is lost.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The queue can't be moved now: why, and what to do.
    #[error("{0}")]
    Unfit(String),
    /// Shutdown was requested. Nothing is lost.
    #[error("interrupted")]
    Interrupted,
}

/// How far a move has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MoveProgress {
    /// Some messages were moved.
    Carried {
        /// The queue that they go to.
        to: String,
        /// How many were moved.
        done: u64,
        /// How many have to be moved in total.
        of: u64,
    },
    /// The queue was recreated.
    Recreated,
}

/// The result of a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Whether the queue had this type already.
    pub was_there: bool,
    /// How many messages were moved into the new queue.
    pub messages: u64,
    /// How many of them have lost their `user-id`: RabbitMQ accepts it only from the user of that name.
    pub without_user: u64,
    /// How many of them have lost their header `CC` or `BCC`: it would have sent copies to other queues again.
    pub without_copies: u64,
}

/// Changes the type of a queue to `to`, and keeps its messages. Calls `progress` after each step.
///
/// # Errors
/// [`MoveError`]. Then nothing is lost, and the next move continues this one.
pub fn move_queue(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
    to: QueueType,
    mut progress: impl FnMut(MoveProgress),
) -> Result<Moved, MoveError> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    // First, because it checks the length of the queue's name, which is a part of the turn's name.
    let _ = standing(&mut link, queue)?;
    // Until the connection ends, nobody else moves the queue.
    take_turn(&mut link, queue, shutdown)?;
    let mut mover = Mover { config, link, shutdown, moved: Moved::default() };
    let aside = moving_queue(queue);
    let is_repeated = mover.link.queue_messages(&aside, shutdown)?.is_some();
    if is_repeated && shutdown.wait(REQUEUE) {
        return Err(MoveError::Interrupted);
    }
    let before = standing(&mut mover.link, queue)?;
    if let Some((kind, counts)) = before.queue
        && kind != to
    {
        not_consumed(queue, counts)?;
        mover.declare(&aside, moving_options())?;
        mover.empty_into(queue, kind, &aside, &mut progress)?;
    } else if before.put_aside.is_none() {
        let moved = Moved { was_there: true, ..mover.moved };
        mover.link.close();
        return match before.queue {
            Some(_) => Ok(moved),
            None => Err(MoveError::Unfit(format!(
                "there is no queue {queue:?}: start the notifier, which creates the queues of QUEUES"
            ))),
        };
    }
    mover.declare(queue, event_options(Some(to)))?;
    progress(MoveProgress::Recreated);
    mover.moved.messages = mover.empty_into(&aside, QueueType::Quorum, queue, &mut progress)?;
    mover.link.close();
    Ok(mover.moved)
}

fn not_consumed(queue: &str, QueueCounts { consumers, .. }: QueueCounts) -> Result<(), MoveError> {
    match consumers {
        0 => Ok(()),
        _ => Err(MoveError::Unfit(format!(
            "{queue:?} is consumed (consumers: {consumers}): stop the notifiers and all other consumers"
        ))),
    }
}

struct Mover<'a> {
    config: &'a Config,
    link: Link,
    shutdown: &'a Shutdown,
    moved: Moved,
}

impl Mover<'_> {
    fn guard<T>(
        &mut self,
        name: &str,
        call: impl FnOnce(&mut Link) -> amiquip::Result<T>,
    ) -> Result<T, MoveError> {
        let kill = self.link.kill_switch();
        let answer = kill.guard(SETUP_TIMEOUT, None, || call(&mut self.link));
        Ok(answer.map_err(|error| failed(&self.link.address, name, &error))?)
    }

    fn declare(&mut self, queue: &str, options: QueueDeclareOptions) -> Result<(), MoveError> {
        self.guard(queue, |link| link.channel()?.queue_declare(queue, options).map(drop))
    }

    /// Moves all messages of a queue into another one, and deletes the queue. Returns how many were moved.
    fn empty_into(
        &mut self,
        from: &str,
        kind: QueueType,
        to: &str,
        progress: &mut impl FnMut(MoveProgress),
    ) -> Result<u64, MoveError> {
        let mut carried = 0;
        for _ in 0..MOST_ROUNDS {
            carried += self.carry(from, to, carried, progress)?;
            if self.delete(from, kind)? {
                return Ok(carried);
            }
        }
        Err(MoveError::Unfit(format!(
            "{from:?} gets new messages all the time: stop its producers; its earlier messages are in {to:?}"
        )))
    }

    fn carry(
        &mut self,
        from: &str,
        to: &str,
        before: u64,
        progress: &mut impl FnMut(MoveProgress),
    ) -> Result<u64, MoveError> {
        let ready = self.link.queue_messages(from, self.shutdown)?.unwrap_or(0);
        let of = before + u64::from(ready);
        let mut taker = Publishing::open(self.config, to, self.shutdown)?;
        let kill = self.link.kill_switch();
        let opened = kill.guard(SETUP_TIMEOUT, None, || {
            let channel = self.link.channel()?;
            channel.qos(0, BATCH, false)?;
            Ok(channel)
        });
        let address = self.link.address.clone();
        let lost = |error: &amiquip::Error| MoveError::from(failed(&address, from, error));
        let channel = opened.map_err(|error| lost(&error))?;
        // Exclusive, so that all messages keep their order.
        let options = ConsumerOptions { exclusive: true, ..Default::default() };
        let begun = kill.guard(SETUP_TIMEOUT, None, || channel.basic_consume(from, options));
        let consumer = begun.map_err(|error| lost(&error))?;
        let mut carried = 0;
        let carried = loop {
            if self.shutdown.is_requested() {
                break Err(MoveError::Interrupted);
            }
            let batch = match self.take(&consumer, from, carried < u64::from(ready)) {
                Ok(batch) if batch.is_empty() => break Ok(carried),
                Ok(batch) => batch,
                Err(error) => break Err(error),
            };
            let count = batch.len() as u64;
            match self.hand_over(batch, &mut taker, &channel) {
                Ok(()) => {}
                Err(error) => break Err(error),
            }
            carried += count;
            let done = before + carried;
            progress(MoveProgress::Carried { to: to.to_owned(), done, of: of.max(done) });
        };
        // Messages delivered meanwhile go back to their places in the queue.
        kill.guard(CLOSE_TIMEOUT, None, || drop((cancel(&consumer), consumer)));
        let closed = kill.guard(CLOSE_TIMEOUT, None, || channel.close());
        taker.close();
        // If shutdown cut off a call, its error isn't the cause.
        let carried = carried.map_err(|error| match self.shutdown.is_requested() {
            true => MoveError::Interrupted,
            false => error,
        })?;
        closed.map_err(|error| lost(&error))?;
        Ok(carried)
    }

    /// The next batch, which is empty if the queue has no more messages.
    fn take(
        &mut self,
        consumer: &Consumer<'_>,
        from: &str,
        has_more: bool,
    ) -> Result<Vec<amiquip::Delivery>, MoveError> {
        let lost = |link: &Link, problem: String| {
            MoveError::from(BrokerError::Unavailable { address: link.address.clone(), problem })
        };
        let mut batch = Vec::new();
        let mut deadline = Instant::now() + if has_more { PATIENCE } else { REST };
        while batch.len() < usize::from(BATCH) {
            match consumer.receiver().recv_deadline(deadline) {
                Ok(ConsumerMessage::Delivery(delivery)) => batch.push(delivery),
                Err(RecvTimeoutError::Timeout) => {
                    let is_empty = self.link.queue_messages(from, self.shutdown)? == Some(0);
                    if !batch.is_empty() || is_empty {
                        break;
                    }
                    if self.shutdown.is_requested() {
                        return Err(MoveError::Interrupted);
                    }
                    deadline = Instant::now() + PATIENCE;
                    continue;
                }
                Ok(
                    ConsumerMessage::ServerClosedChannel(error)
                    | ConsumerMessage::ServerClosedConnection(error),
                ) => return Err(lost(&self.link, error.to_string())),
                Ok(_) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(lost(&self.link, format!("{from:?} is not consumed any more")));
                }
            }
            deadline = Instant::now() + REST;
        }
        Ok(batch)
    }

    fn hand_over(
        &mut self,
        mut batch: Vec<amiquip::Delivery>,
        taker: &mut Publishing,
        channel: &Channel,
    ) -> Result<(), MoveError> {
        let mut messages = Vec::with_capacity(batch.len());
        for delivery in &mut batch {
            let (properties, left_out) = carried(&delivery.properties, &self.config.amqp.user);
            self.moved.without_user += u64::from(left_out.user);
            self.moved.without_copies += u64::from(left_out.copies);
            messages.push((std::mem::take(&mut delivery.body), properties));
        }
        taker.publish(messages)?;
        let kill = self.link.kill_switch();
        let acked = kill.guard(SETUP_TIMEOUT, None, || {
            match batch.pop() {
                Some(last) => last.ack_multiple(channel)?,
                None => return Ok(()),
            }
            // The broker answers only after it has processed the ack.
            channel.qos(0, BATCH, false)
        });
        acked.map_err(|error| self.link.unavailable(&error).into())
    }

    /// Deletes a queue if it is empty. Returns whether it was.
    fn delete(&mut self, queue: &str, kind: QueueType) -> Result<bool, MoveError> {
        let counts = self.guard(queue, |link| Calls::new(link).queue(queue))?;
        let Some(counts) = counts else { return Ok(true) };
        not_consumed(queue, counts)?;
        if counts.ready > 0 {
            return Ok(false);
        }
        // Quorum queues don't support these conditions.
        let only_if = kind == QueueType::Classic;
        let options = QueueDeleteOptions { if_empty: only_if, if_unused: only_if };
        let kill = self.link.kill_switch();
        let deleted = kill.guard(DELETE_TIMEOUT, None, || {
            self.link.channel()?.queue_delete(queue, options).map(drop)
        });
        match deleted {
            Ok(()) => Ok(true),
            // A message has just arrived.
            Err(amiquip::Error::ServerClosedChannel { code: 406, .. }) => Ok(false),
            Err(error) => Err(failed(&self.link.address, queue, &error).into()),
        }
    }
}
