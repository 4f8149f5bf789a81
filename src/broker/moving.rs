//! A queue becomes one of another kind, and keeps its messages.
//!
//! RabbitMQ can't change the kind of a queue. So what it holds goes into `webhooks.moving.<queue>`, the queue is
//! deleted and made anew, and all comes back, in its order. A message is acked when the broker has confirmed
//! that it is in its new place, so an interruption loses nothing, and repeats one [`BATCH`] at most. How far a
//! move has come is seen by which queues there are: whoever repeats it goes on with it.

use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, Channel, Confirm, ConfirmSmoother, Consumer, ConsumerMessage, ConsumerOptions,
    Publish, QueueDeclareOptions, QueueDeleteOptions, Return,
};
use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::browse::{take_turn, turn_queue};
use super::calls::{Calls, QueueCounts, is_refusal};
use super::message::DELIVERY_COUNT;
use super::publisher::CONFIRM_TIMEOUT;
use super::topology::{QUEUE_TYPE, event_options, moving_options};
use super::{BrokerError, CLOSE_TIMEOUT, KillSwitch, Link, SETUP_TIMEOUT, cancel, failed};
use crate::config::{Config, QueueType};
use crate::domain::event::MAX_NAME_BYTES;
use crate::shutdown::Shutdown;

/// Messages that are in hand together: those that are in both places at most when we are killed. Of more than 32 a
/// quorum queue (RabbitMQ 3.10 at least) forgets the order when it takes them back.
const BATCH: u16 = 32;

/// How long we wait for the next message of a queue that should have some,
const PATIENCE: Duration = Duration::from_secs(5);

/// and for the rest of a batch.
const REST: Duration = Duration::from_millis(50);

/// How long after an interrupted move the broker may still be putting back what that had in hand: who consumes
/// before gets what comes behind it first.
const PUT_BACK: Duration = Duration::from_secs(2);

/// How long RabbitMQ may take to delete a queue: 3.10 waits 5 s for a member on a node that is away.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a queue may have got something new just when it was to be deleted.
const MOST_ROUNDS: usize = 5;

/// Why a queue can't be moved, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// The broker; nothing is lost.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// It has to be otherwise first. Nothing was changed.
    #[error("{0}")]
    Unfit(String),
    /// We were told to stop; nothing is lost.
    #[error("interrupted")]
    Interrupted,
}

/// What a move is about to do, or has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many messages of so many are in a queue of this name.
    Carried {
        /// The queue that they go to.
        to: String,
        /// How many are there.
        done: u64,
        /// How many there were when this began.
        of: u64,
    },
    /// The queue was made anew.
    Made,
}

/// What came of a move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Nothing was to be done.
    pub was_there: bool,
    /// Messages that are in the new queue because of it.
    pub messages: u64,
    /// Of these, those whose `user-id` was left out: it is another user's, for whom only he may speak.
    pub without_user: u64,
    /// Those whose header `CC` was left out: it would have led copies into other queues.
    pub without_copies: u64,
}

/// What a queue is, before it is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStanding {
    /// Which kind, and what it holds; none if there is no such queue.
    pub queue: Option<(QueueType, QueueCounts)>,
    /// What a move that was interrupted has put aside.
    pub put_aside: Option<u32>,
}

/// Where the messages of a queue are while it is made anew.
#[must_use]
pub fn moving_queue(queue: &str) -> String {
    format!("webhooks.moving.{queue}")
}

/// What a queue is, and what of it was put aside. Changes nothing.
///
/// # Errors
/// [`MoveError`].
pub fn look_at(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
) -> Result<QueueStanding, MoveError> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    let standing = standing(&mut link, queue);
    link.close();
    standing
}

/// Has a queue be of this kind, with all that it holds. `progress` hears how far it is.
///
/// # Errors
/// [`MoveError`]. Nothing is lost then, and the next one goes on where this one was.
pub fn move_queue(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
    to: QueueType,
    mut progress: impl FnMut(Progress),
) -> Result<Moved, MoveError> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    // Before its turn: that has a name of its name.
    let _ = standing(&mut link, queue)?;
    // Until the connection ends: nobody else moves it meanwhile.
    take_turn(&mut link, queue, shutdown)?;
    let mut mover = Mover { config, link, shutdown, moved: Moved::default() };
    let aside = moving_queue(queue);
    let is_repeated = mover.link.queue_messages(&aside, shutdown)?.is_some();
    if is_repeated && shutdown.wait(PUT_BACK) {
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
                "there is no queue {queue:?}: the notifier makes it, or whoever publishes to it"
            ))),
        };
    }
    mover.declare(queue, event_options(Some(to)))?;
    progress(Progress::Made);
    mover.moved.messages = mover.empty_into(&aside, QueueType::Quorum, queue, &mut progress)?;
    mover.link.close();
    Ok(mover.moved)
}

fn not_consumed(queue: &str, QueueCounts { consumers, .. }: QueueCounts) -> Result<(), MoveError> {
    match consumers {
        0 => Ok(()),
        _ => Err(MoveError::Unfit(format!(
            "{queue:?} is consumed (consumers: {consumers}): stop the notifiers, and whatever else consumes it"
        ))),
    }
}

fn standing(link: &mut Link, queue: &str) -> Result<QueueStanding, MoveError> {
    // Also for whose turn it is there is a queue of its name.
    let most = MAX_NAME_BYTES - moving_queue("").len().max(turn_queue("").len());
    if !(1..=most).contains(&queue.len()) {
        return Err(MoveError::Unfit(format!(
            "{queue:?} can't be moved: the name of a queue that can has 1 to {most} bytes"
        )));
    }
    let (kill, address) = (link.kill_switch(), link.address.clone());
    let found = kill.guard(SETUP_TIMEOUT, None, || {
        let mut calls = Calls::new(link);
        let put_aside = calls.queue(&moving_queue(queue))?.map(|counts| counts.ready);
        let Some(counts) = calls.queue(queue)? else {
            return Ok(Ok(QueueStanding { queue: None, put_aside }));
        };
        let mut others = Vec::new();
        // The one without any kind of its own is of the virtual host's default, classic where that is unset.
        let kinds = [(Some(QueueType::Quorum), QueueType::Quorum)];
        let classic = [None, Some(QueueType::Classic)].map(|kind| (kind, QueueType::Classic));
        for (declared, kind) in kinds.into_iter().chain(classic) {
            let options = event_options(declared);
            // What is there already stays as it is; with other arguments this fails.
            match calls.call(|channel| channel.queue_declare(queue, options).map(drop)) {
                Ok(()) => {
                    return Ok(Ok(QueueStanding { queue: Some((kind, counts)), put_aside }));
                }
                Err(error) if is_refusal(&error) => others.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Err(others))
    });
    let problems = match found.map_err(|error| failed(&address, queue, &error))? {
        Ok(standing) => return Ok(standing),
        Err(problems) => problems,
    };
    // One that says more than that it is of another kind.
    let of_kind = |error: &amiquip::Error| error.to_string().contains(QUEUE_TYPE);
    let telling = problems.iter().find(|error| !of_kind(error)).or(problems.first());
    match telling {
        Some(amiquip::Error::ServerClosedChannel { code: 406, message, .. }) => {
            Err(MoveError::Unfit(format!(
                "{queue:?} has arguments of its own, which a queue that is made anew would not have \
                 ({message}): let a policy say them, and make the queue by hand"
            )))
        }
        Some(error) => Err(failed(&address, queue, error).into()),
        None => Err(MoveError::Unfit(format!("{queue:?} is of no kind that is known"))),
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

    /// Carries all that a queue holds into another one, and deletes it. Returns how much it was.
    fn empty_into(
        &mut self,
        from: &str,
        kind: QueueType,
        to: &str,
        progress: &mut impl FnMut(Progress),
    ) -> Result<u64, MoveError> {
        let mut carried = 0;
        for _ in 0..MOST_ROUNDS {
            carried += self.carry(from, to, carried, progress)?;
            if self.delete(from, kind)? {
                return Ok(carried);
            }
        }
        Err(MoveError::Unfit(format!(
            "{from:?} gets new messages all the time: stop its producers; what was in it is in {to:?}"
        )))
    }

    fn carry(
        &mut self,
        from: &str,
        to: &str,
        before: u64,
        progress: &mut impl FnMut(Progress),
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
        // Nobody else gets any, so that all come in their order.
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
            progress(Progress::Carried { to: to.to_owned(), done, of: of.max(done) });
        };
        // What it was still given goes back into the queue, to its place.
        kill.guard(CLOSE_TIMEOUT, None, || drop((cancel(&consumer), consumer)));
        let closed = kill.guard(CLOSE_TIMEOUT, None, || channel.close());
        taker.close();
        // What was asked then may have been cut off.
        let carried = carried.map_err(|error| match self.shutdown.is_requested() {
            true => MoveError::Interrupted,
            false => error,
        })?;
        closed.map_err(|error| lost(&error))?;
        Ok(carried)
    }

    /// The next messages; none if the queue has no more.
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
        let messages = batch.iter_mut().map(|delivery| {
            let properties = self.carried(&delivery.properties);
            (std::mem::take(&mut delivery.body), properties)
        });
        let messages: Vec<_> = messages.collect();
        taker.publish(messages)?;
        let kill = self.link.kill_switch();
        let acked = kill.guard(SETUP_TIMEOUT, None, || {
            match batch.pop() {
                Some(last) => last.ack_multiple(channel)?,
                None => return Ok(()),
            }
            // Its answer means that the ack has arrived.
            channel.qos(0, BATCH, false)
        });
        acked.map_err(|error| self.link.unavailable(&error).into())
    }

    /// The properties of a message in its new place.
    fn carried(&mut self, properties: &AmqpProperties) -> AmqpProperties {
        let mut carried = AmqpProperties::default();
        macro_rules! keep {
            ($($property:ident $with:ident),*) => {
                $(if let Some(value) = properties.$property() {
                    carried = carried.$with(value.clone());
                })*
            };
        }
        keep!(
            content_type with_content_type,
            content_encoding with_content_encoding,
            delivery_mode with_delivery_mode,
            priority with_priority,
            correlation_id with_correlation_id,
            reply_to with_reply_to,
            expiration with_expiration,
            message_id with_message_id,
            timestamp with_timestamp,
            type_ with_type_,
            app_id with_app_id,
            cluster_id with_cluster_id
        );
        if let Some(headers) = properties.headers() {
            let mut headers = headers.clone();
            // RabbitMQ's own count, of the queue that it leaves.
            headers.remove(DELIVERY_COUNT);
            let copies = ["CC", "BCC"].map(|name| headers.remove(name));
            self.moved.without_copies += u64::from(copies.iter().any(Option::is_some));
            carried = carried.with_headers(headers);
        }
        match properties.user_id() {
            Some(user) if *user == self.config.amqp.user => carried.with_user_id(user.clone()),
            user => {
                self.moved.without_user += u64::from(user.is_some());
                carried
            }
        }
    }

    /// Deletes a queue that is empty, and says whether it was.
    fn delete(&mut self, queue: &str, kind: QueueType) -> Result<bool, MoveError> {
        let counts = self.guard(queue, |link| Calls::new(link).queue(queue))?;
        let Some(counts) = counts else { return Ok(true) };
        not_consumed(queue, counts)?;
        if counts.ready > 0 {
            return Ok(false);
        }
        // Quorum queues know no conditions.
        let only_if = kind == QueueType::Classic;
        let options = QueueDeleteOptions { if_empty: only_if, if_unused: only_if };
        let kill = self.link.kill_switch();
        let deleted = kill.guard(DELETE_TIMEOUT, None, || {
            self.link.channel()?.queue_delete(queue, options).map(drop)
        });
        match deleted {
            Ok(()) => Ok(true),
            // Something has just come.
            Err(amiquip::Error::ServerClosedChannel { code: 406, .. }) => Ok(false),
            Err(error) => Err(failed(&self.link.address, queue, &error).into()),
        }
    }
}

/// A channel on which messages are published as they are, on a connection of its own: a broker with an alarm
/// stops reading from those that publish.
struct Publishing {
    link: Link,
    queue: String,
    channel: Channel,
    confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    smoother: ConfirmSmoother,
    kill: KillSwitch,
}

impl Publishing {
    fn open(config: &Config, queue: &str, shutdown: &Shutdown) -> Result<Self, BrokerError> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
        let kill = link.kill_switch();
        let opened = kill.guard(SETUP_TIMEOUT, None, || {
            let channel = link.channel()?;
            let returns = channel.listen_for_returns()?;
            // In this order, or confirms that come early are dropped.
            let confirms = channel.listen_for_publisher_confirms()?;
            channel.enable_publisher_confirms()?;
            Ok((channel, confirms, returns))
        });
        let (channel, confirms, returns) = opened.map_err(|error| link.unavailable(&error))?;
        let smoother = ConfirmSmoother::new();
        Ok(Self { link, queue: queue.to_owned(), channel, confirms, returns, smoother, kill })
    }

    /// Publishes these, and waits until the broker has all of them.
    fn publish(&mut self, messages: Vec<(Vec<u8>, AmqpProperties)>) -> Result<(), BrokerError> {
        let limit = CONFIRM_TIMEOUT + CLOSE_TIMEOUT;
        let kill = self.kill.clone();
        // Not ended by shutdown: a batch that is cut would be in both places.
        let published = kill.guard(limit, None, || self.publish_all(messages));
        published.map_err(|problem| {
            // Or the drop of the channel would wait for an answer.
            self.kill.cut();
            BrokerError::Unavailable { address: self.link.address.clone(), problem }
        })
    }

    fn publish_all(&mut self, messages: Vec<(Vec<u8>, AmqpProperties)>) -> Result<(), String> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        let mut unconfirmed = messages.len();
        for (body, properties) in messages {
            let publish = Publish {
                body: &body,
                routing_key: self.queue.clone(),
                mandatory: true,
                immediate: false,
                properties,
            };
            self.channel.basic_publish("", publish).map_err(|error| error.to_string())?;
        }
        while unconfirmed > 0 {
            let confirm = match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => confirm,
                Err(RecvTimeoutError::Timeout) => return Err("no confirm in time".to_owned()),
                Err(RecvTimeoutError::Disconnected) => return Err("connection lost".to_owned()),
            };
            // Before the smoother has it: that makes an ack of a nack which a later ack of several covers.
            if matches!(confirm, Confirm::Nack(_)) {
                return Err(format!(
                    "the queue {} takes no messages (nack): has it a `max-length`, by a policy?",
                    self.queue
                ));
            }
            unconfirmed -= self.smoother.process(confirm).count();
            // A message that came back is acked too, after it came back.
            if let Ok(returned) = self.returns.try_recv() {
                return Err(format!("the queue {} is gone: {}", self.queue, returned.reply_text));
            }
        }
        Ok(())
    }

    fn close(self) {
        let Self { link, channel, kill, .. } = self;
        kill.guard(CLOSE_TIMEOUT, None, || channel.close()).ok();
        link.close();
    }
}
