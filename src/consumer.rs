//! One lane: connect, consume, settle, reconnect; for ever, until shutdown.
//!
//! (amiquip is named here and in [`crate::broker`] only.) A lane owns its connection, and each
//! consumer of the lane a channel of it. The consumers run in scoped threads that end before the
//! connection does, so an ack can't reach a later connection, where the same number means another
//! message.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions};
use crossbeam_channel::select;

use crate::broker::{
    CLOSE_TIMEOUT, KillSwitch, Lane, Link, Message, SETUP_TIMEOUT, cancel, declare_lane,
};
use crate::config::Config;
use crate::domain::retry::Backoff;
use crate::metrics::{Interruption, Metrics};
use crate::pipeline::{Missing, Pipeline, Settlement};
use crate::shutdown::{self, Shutdown, Trigger};

mod window;

use window::Window;

/// A connection that lived this long was a good one: the next failure starts a new backoff.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// What a lane needs.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Addresses, prefetch and time-outs.
    pub config: &'a Config,
    /// Settles the messages.
    pub pipeline: &'a Pipeline,
    /// Says when the lane consumes.
    pub metrics: &'a Metrics,
    /// Ends the lane.
    pub shutdown: &'a Shutdown,
    /// Random numbers from 0 to 1, for the backoff.
    pub jitter: fn() -> f64,
}

/// Why a session (one connection's life) ended.
#[derive(Debug)]
enum Ended {
    /// Shutdown, or another consumer of the lane ended.
    Asked,
    /// A message had to be handed back.
    Missing(Missing),
    /// The connection, the channel or the consumer was lost; in words.
    Lost(String),
}

/// Runs a lane until shutdown.
pub fn run(context: Context<'_>, lane: &Lane) {
    let mut backoff = Backoff::default();
    let mut missing = None;
    // One line for each change of state, not one for each attempt.
    let mut reported: Option<String> = None;
    while !context.shutdown.is_requested() {
        let started = Instant::now();
        // What can't be settled is not consumed: it would only go back and forth. (Whether confirms
        // come is known only by publishing, so that is looked at after they failed to.)
        missing = context.pipeline.missing(missing.as_ref());
        let ended = match &missing {
            Some(missing) => Ended::Missing(missing.clone()),
            None => session(context, lane, &mut reported),
        };
        context.metrics.set_consuming(&lane.queue, false);
        let (why, problem) = match ended {
            Ended::Asked => continue,
            Ended::Missing(Missing::Database(problem)) => {
                missing = Some(Missing::Database(problem.clone()));
                (Interruption::Database, problem)
            }
            Ended::Missing(Missing::Confirm) => {
                missing = Some(Missing::Confirm);
                (Interruption::Confirms, "RabbitMQ confirms no message".to_owned())
            }
            Ended::Lost(problem) => (Interruption::Broker, problem),
        };
        context.metrics.set_interruption(&lane.queue, why);
        if context.shutdown.is_requested() {
            return;
        }
        if reported.is_none() {
            log::warn!("lane interrupted queue={} cause={problem:?}", lane.queue);
            reported = Some(problem);
        }
        if started.elapsed() > GOOD_SESSION && missing.is_none() {
            backoff.reset();
        }
        let _ = context.shutdown.wait(backoff.next_wait((context.jitter)()));
    }
}

/// One connection's life.
fn session(context: Context<'_>, lane: &Lane, reported: &mut Option<String>) -> Ended {
    let Context { config, shutdown, .. } = context;
    let opened = Link::open(&config.amqp, config.connect_timeout, shutdown);
    let mut link = match opened {
        Ok(link) => link,
        Err(error) => return Ended::Lost(error.to_string()),
    };
    let kill = link.kill_switch();
    let channels = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
        declare_lane(&mut link, lane)?;
        (0..lane.consumers).map(|_| link.channel()).collect::<amiquip::Result<Vec<_>>>()
    });
    let channels = match channels {
        Ok(channels) => channels,
        Err(error) => return Ended::Lost(link.unavailable(&error).to_string()),
    };
    // Ends all consumers of this connection as soon as one of them ends.
    let (end, ending) = shutdown::channel();
    let consuming = AtomicU16::new(0);
    let before = Mutex::new(reported.take());
    let started = || {
        if consuming.fetch_add(1, Ordering::Relaxed) + 1 == lane.consumers {
            context.metrics.set_consuming(&lane.queue, true);
            if let Some(before) = before.lock().unwrap_or_else(PoisonError::into_inner).take() {
                log::info!("lane connected again queue={} after={before:?}", lane.queue);
            }
        }
    };
    let consumer = |channel| {
        // Even by a panic: the lane can only end with all of its consumers.
        let _end_all = FireOnDrop(&end);
        let ended = consume(context, lane, &kill, &channel, &ending, &started);
        // A drop waits for the broker's answer.
        kill.guard(CLOSE_TIMEOUT, None, || drop(channel));
        context.metrics.set_consuming(&lane.queue, false);
        ended
    };
    let ended = run_all(&consumer, channels);
    // Still there if it never got as far as consuming.
    *reported = before.into_inner().unwrap_or_else(PoisonError::into_inner);
    match ended {
        Ended::Lost(problem) => {
            let cause = link.cause_of_loss();
            Ended::Lost(format!("{problem}: {cause}"))
        }
        asked_or_missing => {
            link.close();
            asked_or_missing
        }
    }
}

struct FireOnDrop<'a>(&'a Trigger);

impl Drop for FireOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fire();
    }
}

/// Runs a consumer on each channel, the first in this thread, and waits for all of them.
fn run_all(consumer: &(impl Fn(Channel) -> Ended + Sync), channels: Vec<Channel>) -> Ended {
    thread::scope(|scope| {
        let mut channels = channels.into_iter();
        let own = channels.next();
        let others: Vec<_> =
            channels.map(|channel| scope.spawn(move || consumer(channel))).collect();
        let mut ended = own.map_or(Ended::Asked, consumer);
        for other in others {
            // A panic in one consumer is the lane's, and ends the process.
            let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if matches!(ended, Ended::Asked) {
                ended = other;
            }
        }
        ended
    })
}

/// One consumer: takes messages one by one, until it is asked to end or loses its channel.
fn consume(
    context: Context<'_>,
    lane: &Lane,
    kill: &KillSwitch,
    channel: &Channel,
    ending: &Shutdown,
    started: &dyn Fn(),
) -> Ended {
    let begun = kill.guard(SETUP_TIMEOUT, Some(context.shutdown), || {
        channel.qos(0, context.config.prefetch_count, false)?;
        channel.basic_consume(lane.queue.as_str(), ConsumerOptions::default())
    });
    let consumer = match begun {
        Ok(consumer) => consumer,
        Err(error) => return Ended::Lost(format!("cannot consume: {error}")),
    };
    started();
    let mut window = Window::new(&consumer, lane, context.pipeline, context.config.prefetch_count);
    let (ended, unsettled) = take_messages(context, lane, &consumer, &mut window, ending);
    let back = match ended {
        // The broker has taken everything back already.
        Ended::Lost(_) => {
            drop(window);
            Vec::new()
        }
        Ended::Asked | Ended::Missing(_) => window.finish(),
    };
    // Cancel first: what is handed back while we consume would come straight to us again.
    kill.guard(CLOSE_TIMEOUT, None, || {
        let waiting = cancel(&consumer);
        for delivery in unsettled.into_iter().chain(back).chain(waiting) {
            // Fails on a lost connection, where the broker has requeued it already.
            let _ = consumer.nack(delivery, true);
            context.pipeline.tally().handed_back();
        }
        drop(consumer);
    });
    ended
}

/// Settles message after message. Returns why it stopped, and the message that it could not settle.
fn take_messages(
    context: Context<'_>,
    lane: &Lane,
    consumer: &Consumer<'_>,
    window: &mut Window<'_>,
    ending: &Shutdown,
) -> (Ended, Option<amiquip::Delivery>) {
    loop {
        let message = match next_message(context.shutdown, consumer, window, ending) {
            Ok(message) => message,
            Err(ended) => return (ended, None),
        };
        let mut delivery = match message {
            ConsumerMessage::Delivery(delivery) => delivery,
            ConsumerMessage::ServerCancelled => {
                return (Ended::Lost("the queue was deleted".to_owned()), None);
            }
            ConsumerMessage::ServerClosedChannel(error)
            | ConsumerMessage::ServerClosedConnection(error) => {
                return (Ended::Lost(error.to_string()), None);
            }
            _ => return (Ended::Lost("connection lost".to_owned()), None),
        };
        window.taken();
        match context.pipeline.settle(lane, &Message::take(&mut delivery)) {
            Settlement::Done(promises) => window.push(delivery, promises),
            Settlement::HandBack(missing) => return (Ended::Missing(missing), Some(delivery)),
        }
    }
}

/// The next message; before it, whatever can be acked is.
fn next_message(
    shutdown: &Shutdown,
    consumer: &Consumer<'_>,
    window: &mut Window<'_>,
    ending: &Shutdown,
) -> Result<ConsumerMessage, Ended> {
    loop {
        window.advance()?;
        if shutdown.is_requested() || ending.is_requested() {
            return Err(Ended::Asked);
        }
        if let Ok(message) = consumer.receiver().try_recv() {
            return Ok(message);
        }
        // Nothing to do but wait, and nothing to wait for with the acks.
        window.ack()?;
        // A queue that holds more hands out the next message within microseconds of the ack. A
        // receiver on its own looks out for it that long before its thread sleeps, and `select!`
        // doesn't: to be woken costs as much again as to receive.
        if let Ok(message) = consumer.receiver().recv_timeout(Duration::ZERO) {
            return Ok(message);
        }
        let lost = |_| Ended::Lost("connection lost".to_owned());
        let Some(confirmation) = window.first_open() else {
            select! {
                recv(shutdown.receiver()) -> _ => continue,
                recv(ending.receiver()) -> _ => continue,
                recv(consumer.receiver()) -> message => return message.map_err(lost),
            }
        };
        select! {
            recv(shutdown.receiver()) -> _ => {}
            recv(ending.receiver()) -> _ => {}
            recv(consumer.receiver()) -> message => return message.map_err(lost),
            recv(confirmation.receiver()) -> answer => window.confirmed(answer)?,
            default(confirmation.patience()) => {}
        }
    }
}
