//! One lane: connects, consumes, settles messages and reconnects, until shutdown.
//!
//! (Only this module and [`crate::broker`] use amiquip.) A lane owns its connection; each of its consumers
//! has a channel of the connection and a thread. A lane has one consumer as long as that is enough, and more
//! while messages wait for slow receivers: the lane's own thread starts and ends them
//! ([`crate::domain::growth`]). The consumers run in scoped threads that end before the connection does. So
//! an ack can't reach a later connection, where the same tag means another message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{Channel, Consumer, ConsumerMessage};
use crossbeam_channel::{Receiver, select};

use crate::backlogs::Backlogs;
use crate::broker::{
    Lane, LaneKind, Link, Objects, cancel, consume_no_stream, declare_lane, why_not_consumed,
};
use crate::config::Config;
use crate::domain::causes::Causes;
use crate::domain::in_hand::RAISE_IT;
use crate::domain::retry::Backoff;
use crate::health::Interruption;
use crate::metrics::Metrics;
use crate::pipeline::{Missing, Pipeline, Settlement};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::workers::Workers;

mod backlogs;
mod crew;
mod interruptions;
mod relief;
mod window;

use crew::{ConsumerHandle, Crew};
use interruptions::GATHERING;
use relief::Returned;
use window::Window;

pub use interruptions::Interruptions;

/// After a connection that lasted this long, the backoff starts anew.
const GOOD_SESSION: Duration = Duration::from_secs(10);

/// What a lane needs.
#[derive(Clone, Debug)]
pub struct Context {
    /// Addresses, prefetch count and time limits.
    pub config: Arc<Config>,
    /// Settles messages.
    pub pipeline: Arc<Pipeline>,
    /// Shows whether the lane consumes.
    pub metrics: Arc<Metrics>,
    /// Take over messages of stuck consumers, and make the requests of backlogs.
    pub workers: Workers,
    /// Decides when a backlog's first message may be sent.
    pub receivers: Arc<Receivers>,
    /// The backlogs that exist.
    pub backlogs: Arc<Backlogs>,
    /// The state of the queues.
    pub objects: Arc<Objects>,
    /// Logs why lanes are interrupted.
    pub interruptions: Arc<Interruptions>,
    /// Ends the lane.
    pub shutdown: Shutdown,
    /// Random numbers from 0 to 1, for the backoff.
    pub jitter: fn() -> f64,
}

/// Why a session (the life of one connection), or a consumer in it, ended.
#[derive(Debug)]
enum Ended {
    /// Shutdown, or another consumer of the lane has ended.
    Asked,
    /// The lane has more consumers than it needs.
    Surplus,
    /// A message had to be handed back, because this was missing.
    Missing(Missing),
    /// RabbitMQ ended the consumer. The connection and the channel still work.
    Cancelled,
    /// The connection, the channel or the consumer was lost, with this error.
    Lost(String),
}

/// Runs a lane until shutdown.
pub fn run(context: &Context, lane: &Arc<Lane>) {
    match lane.kind {
        LaneKind::Events | LaneKind::Retries => {
            run_sessions(context, lane, |causes| session(context, lane, causes));
        }
        LaneKind::Backlogs => backlogs::run(context, lane),
    }
}

/// Runs one session after another until shutdown. Each gets the causes that were logged since the lane last
/// consumed, and clears them when it consumes.
fn run_sessions(context: &Context, lane: &Lane, mut session: impl FnMut(&mut Causes) -> Ended) {
    let mut backoff = Backoff::default();
    let mut missing = None;
    // Each cause is logged once, not once per attempt.
    let mut causes = Causes::default();
    while !context.shutdown.is_requested() {
        let started = Instant::now();
        // While messages can't be settled, none is consumed: they would only go back and forth. (Whether
        // confirms arrive can be tested only by publishing, so that is checked only after a failure.)
        missing = context.pipeline.missing(missing.as_ref());
        let (ended, lasted) = match &missing {
            Some(missing) => (Ended::Missing(missing.clone()), Duration::ZERO),
            None => {
                context.backlogs.wait_until_restored(&context.shutdown);
                (session(&mut causes), started.elapsed())
            }
        };
        context.metrics.health().set_consuming(&lane.queue, false);
        let (why, problem) = match ended {
            Ended::Asked | Ended::Surplus => continue,
            Ended::Missing(Missing::Database(problem)) => {
                missing = Some(Missing::Database(problem.clone()));
                (Interruption::Database, problem)
            }
            Ended::Missing(Missing::Confirm) => {
                missing = Some(Missing::Confirm);
                (Interruption::Confirms, "RabbitMQ confirms no message".to_owned())
            }
            Ended::Cancelled => (
                Interruption::Broker,
                format!(
                    "RabbitMQ cancelled the consumer. If its queue was not deleted and recreated, a message \
                     was not acked in time: {RAISE_IT}"
                ),
            ),
            Ended::Lost(problem) => (Interruption::Broker, problem),
        };
        context.metrics.health().set_interruption(&lane.queue, why);
        if context.shutdown.is_requested() {
            return;
        }
        let mut wait = backoff.wait_after(lasted, GOOD_SESSION, (context.jitter)());
        if causes.is_news(&problem) && context.interruptions.add(&lane.queue, &problem) {
            let gathering = GATHERING.min(wait);
            let _ = context.shutdown.wait(gathering);
            context.interruptions.log(&problem);
            wait -= gathering;
        }
        let _ = context.shutdown.wait(wait);
    }
}

/// The life of one connection.
fn session(context: &Context, lane: &Arc<Lane>, causes: &mut Causes) -> Ended {
    let Context { config, shutdown, .. } = context;
    let opened = Link::open(&config.amqp, config.connect_timeout, shutdown);
    let mut link = match opened {
        Ok(link) => link,
        Err(error) => return Ended::Lost(error.to_string()),
    };
    if let Err(error) = declare_lane(&mut link, lane, &context.objects, shutdown) {
        return Ended::Lost(error.to_string());
    }
    match crew::run(context, lane, &mut link, causes) {
        // The queue was deleted; or it exists, and RabbitMQ 4.3 or newer cancelled the consumer.
        Ended::Cancelled => match link.queue_messages(&lane.queue, shutdown) {
            Ok(Some(_)) => {
                link.close();
                Ended::Cancelled
            }
            Ok(None) => Ended::Lost("the queue was deleted".to_owned()),
            Err(error) => Ended::Lost(error.to_string()),
        },
        Ended::Lost(problem) => Ended::Lost(link.explain_loss(problem)),
        asked_or_missing => {
            link.close();
            asked_or_missing
        }
    }
}

/// One consumer: settles messages one by one until it is asked to end or loses its channel.
fn consume(
    crew: &Crew<'_>,
    channel: &Channel,
    handle: &ConsumerHandle,
    returned: &Receiver<Returned>,
    surplus: &Shutdown,
    is_first: bool,
) -> Ended {
    let Crew { context, lane, kill, ending, .. } = crew;
    let prefetch_count = context.config.prefetch_count;
    let begun = crew.guard_start(is_first, || {
        channel.qos(0, prefetch_count, false)?;
        consume_no_stream(channel, &lane.queue)
    });
    let consumer = match begun {
        Ok(consumer) => consumer,
        Err(error) => return Ended::Lost(why_not_consumed(&error)),
    };
    handle.set_messages(consumer.receiver());
    crew.report_consuming();
    let window = Window::new(&consumer, lane, &context.pipeline, prefetch_count);
    let (ended, back) = Consuming {
        crew,
        handle,
        consumer: &consumer,
        window,
        returned,
        surplus,
        back: Vec::new(),
    }
    .run();
    // Cancel first: otherwise messages that are handed back would be delivered to us again.
    kill.guard_shared(ending, || {
        let waiting = cancel(&consumer);
        for delivery in back.into_iter().chain(waiting) {
            // Fails if the connection is lost; then the broker has requeued it already.
            let _ = consumer.nack(delivery, true);
            context.pipeline.tally().handed_back();
        }
        drop(consumer);
    });
    ended
}

/// A running consumer.
struct Consuming<'a> {
    crew: &'a Crew<'a>,
    handle: &'a ConsumerHandle,
    consumer: &'a Consumer<'a>,
    window: Window<'a>,
    /// Messages of this consumer that other threads have settled.
    returned: &'a Receiver<Returned>,
    /// Requested if this consumer is surplus.
    surplus: &'a Shutdown,
    /// Messages to hand back, because they couldn't be settled.
    back: Vec<amiquip::Delivery>,
}

impl Consuming<'_> {
    /// Consumes until the end. Returns why it ended, and the messages to hand back.
    fn run(mut self) -> (Ended, Vec<amiquip::Delivery>) {
        let mut cancelled = false;
        let mut ended = self.take_messages();
        if let Ended::Surplus = ended {
            cancelled = true;
            ended = self.leave();
        }
        // Threads that took over messages finish first: a message must not outlive its connection.
        self.wait_for_reliefs();
        let Self { window, mut back, .. } = self;
        match ended {
            // The broker has requeued everything already, or does so when the channel closes.
            Ended::Lost(_) | Ended::Cancelled => back.clear(),
            Ended::Asked | Ended::Surplus | Ended::Missing(_) => {
                back.extend(window.finish(cancelled));
            }
        }
        (ended, back)
    }

    /// Settles message after message. Returns why it stopped.
    fn take_messages(&mut self) -> Ended {
        loop {
            let settled = self.next_message().and_then(|message| self.settle(message));
            if let Err(ended) = settled {
                return ended;
            }
        }
    }

    fn settle(&mut self, message: ConsumerMessage) -> Result<(), Ended> {
        let mut delivery = delivery(message)?;
        if self.handle.take(delivery.delivery_tag()) {
            return self.window.hand_back(delivery);
        }
        self.window.count_taken();
        let settlement = self.crew.settle(&mut delivery, self.handle.progress());
        self.keep_settled(delivery, settlement)
    }

    fn keep_settled(
        &mut self,
        delivery: amiquip::Delivery,
        settlement: Settlement,
    ) -> Result<(), Ended> {
        match settlement {
            Settlement::Done(promises) => {
                self.window.push(delivery, promises);
                Ok(())
            }
            Settlement::HandBack(missing) => {
                self.back.push(delivery);
                Err(Ended::Missing(missing))
            }
        }
    }

    /// Acks all messages that can be acked, and returns the next message.
    fn next_message(&mut self) -> Result<ConsumerMessage, Ended> {
        let Crew { context: Context { shutdown, .. }, ending, .. } = self.crew;
        loop {
            self.take_returned()?;
            self.window.advance()?;
            if self.crew.is_ending() {
                return Err(Ended::Asked);
            }
            if let Ok(message) = self.consumer.receiver().try_recv() {
                return Ok(message);
            }
            // No other message is there to be acked together with these, so waiting gains nothing.
            self.window.ack()?;
            if !self.window.is_full() {
                self.handle.progress().ends();
            }
            // If the queue holds more, the next message arrives within microseconds after the ack.
            // `recv_timeout` spins that long before the thread sleeps, but `select!` doesn't, and waking a
            // thread costs as much as receiving a message.
            if let Ok(message) = self.consumer.receiver().recv_timeout(Duration::ZERO) {
                return Ok(message);
            }
            if self.surplus.is_requested() {
                return Err(Ended::Surplus);
            }
            let lost = |_| Ended::Lost("connection lost".to_owned());
            let Some(confirmation) = self.window.first_open() else {
                select! {
                    recv(shutdown.receiver()) -> _ => {}
                    recv(ending.receiver()) -> _ => {}
                    recv(self.surplus.receiver()) -> _ => {}
                    recv(self.returned) -> returned => self.take(returned.ok())?,
                    recv(self.consumer.receiver()) -> message => return message.map_err(lost),
                }
                continue;
            };
            select! {
                recv(shutdown.receiver()) -> _ => {}
                recv(ending.receiver()) -> _ => {}
                recv(self.returned) -> returned => self.take(returned.ok())?,
                recv(self.consumer.receiver()) -> message => return message.map_err(lost),
                recv(confirmation.receiver()) -> answer => self.window.confirmed(answer)?,
                default(self.window.patience()) => {}
            }
        }
    }

    /// Takes back messages that other threads have settled.
    fn take_returned(&mut self) -> Result<(), Ended> {
        while let Ok(returned) = self.returned.try_recv() {
            self.take(Some(returned))?;
        }
        Ok(())
    }

    fn take(&mut self, returned: Option<Returned>) -> Result<(), Ended> {
        match returned {
            Some(Returned::Settled(delivery, settlement)) => {
                self.window.count_returned();
                self.keep_settled(delivery, settlement)
            }
            Some(Returned::Old(delivery)) => self.window.hand_back(delivery),
            Some(Returned::Other(message)) => {
                self.back.push(delivery(message)?);
                Ok(())
            }
            Some(Returned::Over) => {
                self.handle.remove_relief();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Ends a surplus consumer: it accepts no more messages and settles those it has, because handing them back
    /// would count as redeliveries. At shutdown, or if a message can't be settled, the rest is handed back.
    fn leave(&mut self) -> Ended {
        let mut ended = Ended::Surplus;
        let Crew { kill, ending, .. } = self.crew;
        for delivery in kill.guard_shared(ending, || cancel(self.consumer)) {
            if !matches!(ended, Ended::Surplus) {
                self.back.push(delivery);
            } else if self.crew.is_ending() {
                ended = Ended::Asked;
                self.back.push(delivery);
            } else if let Err(problem) = self.settle(ConsumerMessage::Delivery(delivery)) {
                ended = problem;
            }
        }
        ended
    }

    fn wait_for_reliefs(&mut self) {
        self.handle.close();
        // Each relief ends once it has settled its current message.
        while self.handle.has_reliefs() {
            // The consumer ends anyway, so an error doesn't matter.
            let _ = self.take(self.returned.recv().ok());
        }
    }
}

/// RabbitMQ closed a channel or connection. Up to version 4.2 it closes the channel if a message isn't acked
/// in time; newer versions cancel the consumer.
fn closed(error: &amiquip::Error) -> Ended {
    let error = error.to_string();
    match error.contains("delivery acknowledgement") {
        true => Ended::Lost(format!("{error}: {RAISE_IT}")),
        false => Ended::Lost(error),
    }
}

fn delivery(message: ConsumerMessage) -> Result<amiquip::Delivery, Ended> {
    match message {
        ConsumerMessage::Delivery(delivery) => Ok(delivery),
        ConsumerMessage::ServerCancelled => Err(Ended::Cancelled),
        ConsumerMessage::ServerClosedChannel(error)
        | ConsumerMessage::ServerClosedConnection(error) => Err(closed(&error)),
        _ => Err(Ended::Lost("connection lost".to_owned())),
    }
}
