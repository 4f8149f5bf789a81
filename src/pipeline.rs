//! One message → its deliveries → how it is settled.
//!
//! A message may be acked once every delivery that it stands for is delivered, or parked or
//! dead-lettered with the broker's confirm. Everything else hands it back.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use crate::broker::{Lane, Message, NotConfirmed, Outgoing, Publisher};
use crate::config::Config;
use crate::domain::delivery::{self, Delivery, UnixMillis};
use crate::domain::event::{Event, Malformed};
use crate::domain::outcome::{DeadReason, Decision, Outcome, decide};
use crate::domain::retry::{Schedule, Span};
use crate::domain::webhook::Webhook;
use crate::metrics::{self, Dropped, Metrics};
use crate::receivers::Receivers;
use crate::sender::{Request, Sender};
use crate::shutdown::Shutdown;
use crate::store::{Found, Store, StoreError};

/// How long the attempts of one event may take together. RabbitMQ takes a message back that is not
/// acked within 30 minutes (`consumer_timeout`), and would have all of them made again.
const FANOUT_LIMIT: Duration = Duration::from_secs(600);

/// How often the broker may have taken a message back before it gets a new life, as a copy at the
/// end of its queue. A quorum queue drops a message, or dead-letters it, that came back more often
/// than its delivery limit says, which is 20 on RabbitMQ 4 where nobody set one; and it came back
/// because of us or the servers, not of what is in it.
const MOST_REDELIVERIES: i64 = 3;

/// How a message is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// It is taken care of: ack.
    Done,
    /// It is not, and not by any receiver's fault: back into the queue, and consume nothing before
    /// what is missing is there again.
    HandBack(Missing),
}

/// What was missing to settle a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// PostgreSQL's answer, in its words.
    Database(String),
    /// A publisher confirm.
    Confirm,
}

/// What was done after shutdown was asked for; displays as the process' last line. Before that, it
/// counts nothing but what is in hand.
#[derive(Debug)]
pub struct Tally {
    shutdown: Shutdown,
    finished: AtomicU64,
    parked: AtomicU64,
    handed_back: AtomicU64,
    in_hand: AtomicU64,
}

impl Tally {
    /// Counts from that shutdown on.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        let [finished, parked, handed_back, in_hand] = Default::default();
        Self { shutdown, finished, parked, handed_back, in_hand }
    }

    /// A message was acked.
    pub fn finished(&self) {
        self.count(&self.finished);
    }

    /// A message went back to the broker.
    pub fn handed_back(&self) {
        self.count(&self.handed_back);
    }

    /// A delivery waits for its next attempt.
    fn parked(&self) {
        self.count(&self.parked);
    }

    fn count(&self, counter: &AtomicU64) {
        if self.shutdown.is_requested() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [finished, parked, handed_back, in_hand] =
            [&self.finished, &self.parked, &self.handed_back, &self.in_hand]
                .map(|counter| counter.load(Ordering::Relaxed));
        // What a lane still holds when the process ends, the broker takes back by itself.
        let handed_back = handed_back + in_hand;
        write!(formatter, "{finished} finished, {parked} parked, {handed_back} handed back")
    }
}

/// Settles messages. Shared by all consumers.
#[derive(Debug)]
pub struct Pipeline {
    store: Arc<Store>,
    sender: Sender,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    receivers: Receivers,
    schedule: Schedule,
    fanout: usize,
    max_event_bytes: usize,
    tally: Tally,
    shutdown: Shutdown,
}

/// What the deliveries of one message share.
#[derive(Clone, Copy)]
struct Context<'a> {
    lane: &'a Lane,
    metrics: &'a metrics::Lane,
    message: &'a Message,
}

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Arc<Store>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            store,
            sender: Sender::new(config),
            publisher,
            receivers: Receivers::new(metrics.receivers_degraded.clone()),
            metrics,
            schedule: config.retry_schedule.clone(),
            fanout: config.fanout,
            max_event_bytes: config.max_event_bytes,
            tally: Tally::new(shutdown.clone()),
            shutdown,
        }
    }

    /// Makes all the deliveries that a message stands for. Blocks until each has an end.
    #[must_use]
    pub fn settle(&self, lane: &Lane, message: &Message) -> Settlement {
        let metrics = self.metrics.lane(&lane.queue);
        let received = Instant::now();
        metrics.received.inc();
        let context = Context { lane, metrics, message };
        self.tally.in_hand.fetch_add(1, Ordering::Relaxed);
        let settled = if message.redeliveries() > MOST_REDELIVERIES {
            self.renew(context)
        } else if lane.is_retry {
            self.retry(context)
        } else {
            self.event(context)
        };
        self.tally.in_hand.fetch_sub(1, Ordering::Relaxed);
        match settled {
            Ok(()) => {
                metrics.processing.observe(received.elapsed().as_secs_f64());
                Settlement::Done
            }
            Err(missing) => Settlement::HandBack(missing),
        }
    }

    /// What was done since shutdown was asked for.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// What is missing right now to settle a message, as far as can be told without one.
    #[must_use]
    pub fn missing(&self, lately: Option<&Missing>) -> Option<Missing> {
        if let Err(error) = self.store.ping() {
            self.metrics.database_failed();
            return Some(Missing::Database(error.to_string()));
        }
        self.metrics.database_answered();
        (lately == Some(&Missing::Confirm) && !self.publisher.is_able()).then_some(Missing::Confirm)
    }

    fn event(&self, context: Context<'_>) -> Result<(), Missing> {
        let Context { metrics, message, .. } = context;
        let new_id = || Uuid::new_v4().to_string();
        let limit = self.max_event_bytes;
        let event = match Event::read(message.properties(), &message.body, limit, new_id) {
            Ok(event) => event,
            Err(malformed) => return self.bury_malformed(context, &malformed),
        };
        let webhooks = match self.store.webhooks_wanting(&event.event_type) {
            Err(StoreError::Refused(words)) => {
                return self.bury_malformed(context, &Malformed::NotSearchable(words));
            }
            answer => self.answered(answer)?,
        };
        if webhooks.is_empty() {
            metrics.unmatched.inc();
            log::debug!("unmatched event={} type={:?}", event.id, event.event_type);
            return Ok(());
        }
        self.fan_out(context, event, &webhooks)
    }

    fn retry(&self, context: Context<'_>) -> Result<(), Missing> {
        let delivery = match Delivery::from_headers(&context.message.headers) {
            Ok(delivery) => delivery,
            Err(malformed) => return self.bury_malformed(context, &malformed),
        };
        let dropped = match self.answered(self.store.find(delivery.webhook_id))? {
            Found::Enabled(webhook) => return Ok(self.attempt(context, &webhook, delivery)?),
            Found::Deleted => Dropped::Deleted,
            Found::Disabled => Dropped::Disabled,
        };
        self.metrics.dropped(dropped).inc();
        self.receivers.forget(delivery.webhook_id);
        log::info!(
            "delivery dropped event={} webhook={} reason={dropped:?}",
            delivery.event.id,
            delivery.webhook_id
        );
        Ok(())
    }

    /// Delivers an event to each of its webhooks, several at a time.
    ///
    /// Every delivery has its own end, whatever becomes of its neighbours. At shutdown, and when it
    /// takes too long, those not begun go to the retry queue: handing the whole event back would
    /// repeat the others. Only where even that is not confirmed the event has to go back.
    fn fan_out(
        &self,
        context: Context<'_>,
        event: Event,
        webhooks: &[Webhook],
    ) -> Result<(), Missing> {
        let fresh = |webhook: &Webhook| Delivery {
            event: event.clone(),
            webhook_id: webhook.id,
            attempts: 0,
            first_received_at: unix_millis(),
            last_error: String::new(),
        };
        if let [webhook] = webhooks {
            return Ok(self.attempt(context, webhook, fresh(webhook))?);
        }
        let next = AtomicUsize::new(0);
        let unconfirmed = AtomicBool::new(false);
        let begun = Instant::now();
        let work = || {
            while let Some(webhook) = webhooks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if unconfirmed.load(Ordering::Relaxed) {
                    return;
                }
                let delivery = fresh(webhook);
                let ended = if self.shutdown.is_requested() || begun.elapsed() > FANOUT_LIMIT {
                    self.hand_over(context, &delivery)
                } else {
                    self.attempt(context, webhook, delivery)
                };
                if ended.is_err() {
                    unconfirmed.store(true, Ordering::Relaxed);
                }
            }
        };
        thread::scope(|scope| {
            for n in 1..self.fanout.min(webhooks.len()) {
                let thread = thread::Builder::new().name(format!("fanout-{n}"));
                // Without more threads, this one does all the work, only later.
                let _ = thread.spawn_scoped(scope, work);
            }
            work();
        });
        if unconfirmed.into_inner() { Err(Missing::Confirm) } else { Ok(()) }
    }

    /// Makes one attempt and sees to what follows from it.
    fn attempt(
        &self,
        context: Context<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
    ) -> Result<(), NotConfirmed> {
        let Context { metrics, message, .. } = context;
        let started = Instant::now();
        metrics.in_flight.inc();
        let response = self.sender.post(Request {
            url: &webhook.post_url,
            event: &delivery.event,
            content_type: message.content_type.as_deref(),
            body: &message.body,
            at: SystemTime::now(),
        });
        metrics.in_flight.dec();
        let took = started.elapsed();
        metrics.request_duration.observe(took.as_secs_f64());
        let outcome = Outcome::of(response, SystemTime::now());
        delivery.attempts += 1;
        self.receivers.note(webhook.id, outcome == Outcome::Delivered, took);
        let decision = decide(&outcome, delivery.attempts, &self.schedule);
        if let Outcome::Failed { reason, detail, .. } | Outcome::Hopeless { reason, detail, .. } =
            outcome
        {
            metrics.failure(reason).inc();
            log::warn!(
                "attempt failed event={} webhook={} attempt={} reason={} ms={} next={} detail={detail:?}",
                delivery.event.id,
                webhook.id,
                delivery.attempts,
                reason.label(),
                took.as_millis(),
                match decision {
                    Decision::Park(delay) => delay.to_string(),
                    Decision::Dead(reason) => format!("dead:{}", reason.label()),
                    Decision::Delivered => "none".to_owned(),
                },
            );
            delivery.last_error = detail;
        }
        match decision {
            Decision::Delivered => {
                metrics.success.inc();
                let lag = unix_millis().saturating_sub(delivery.first_received_at).max(0);
                metrics.lag.observe(Duration::from_millis(lag.unsigned_abs()).as_secs_f64());
                log::debug!(
                    "delivered event={} webhook={} attempt={} ms={}",
                    delivery.event.id,
                    webhook.id,
                    delivery.attempts,
                    took.as_millis()
                );
                Ok(())
            }
            Decision::Park(delay) => self.park(context, &delivery, delay),
            Decision::Dead(reason) => self.bury(context, &delivery, reason),
        }
    }

    fn park(
        &self,
        context: Context<'_>,
        delivery: &Delivery,
        delay: Span,
    ) -> Result<(), NotConfirmed> {
        let origin = &context.lane.origin;
        self.publisher.publish(Outgoing::park(travelling(context, delivery), delay, origin))?;
        context.metrics.retries_scheduled.inc();
        self.tally.parked();
        Ok(())
    }

    fn hand_over(&self, context: Context<'_>, delivery: &Delivery) -> Result<(), NotConfirmed> {
        let message = travelling(context, delivery);
        self.publisher.publish(Outgoing::hand_over(message, &context.lane.origin))?;
        self.tally.parked();
        Ok(())
    }

    fn bury(
        &self,
        context: Context<'_>,
        delivery: &Delivery,
        reason: DeadReason,
    ) -> Result<(), NotConfirmed> {
        let mut message = travelling(context, delivery);
        delivery::mark_dead(&mut message.headers, reason, unix_millis());
        self.publisher.publish(Outgoing::dead(message, &context.lane.origin))?;
        context.metrics.dead_letters(reason).inc();
        // Nothing may come for it any more that would say it is well.
        self.receivers.forget(delivery.webhook_id);
        Ok(())
    }

    /// Puts a copy of the message at the end of its queue, of which no redelivery was counted yet.
    fn renew(&self, context: Context<'_>) -> Result<(), Missing> {
        let Context { lane, message, .. } = context;
        log::info!("renewed queue={} redeliveries={}", lane.queue, message.redeliveries());
        let copy = message.clone().without_redeliveries();
        Ok(self.publisher.publish(Outgoing::to_queue(copy, &lane.queue))?)
    }

    fn bury_malformed(&self, context: Context<'_>, error: &Malformed) -> Result<(), Missing> {
        let Context { lane, metrics, message } = context;
        log::warn!("malformed queue={} bytes={} detail={error}", lane.queue, message.body.len());
        let mut message = message.clone();
        delivery::mark_malformed(&mut message.headers, error, &lane.origin, unix_millis());
        self.publisher.publish(Outgoing::dead(message, &lane.origin))?;
        metrics.dead_letters(DeadReason::Malformed).inc();
        Ok(())
    }

    fn answered<T>(&self, answer: Result<T, StoreError>) -> Result<T, Missing> {
        answer.map_err(|error| {
            self.metrics.database_failed();
            Missing::Database(error.to_string())
        })
    }
}

impl From<NotConfirmed> for Missing {
    fn from(_: NotConfirmed) -> Self {
        Self::Confirm
    }
}

fn travelling(context: Context<'_>, delivery: &Delivery) -> Message {
    let Message { body, content_type, .. } = context.message;
    Message::carrying(delivery, &context.lane.origin, body.clone(), content_type.clone())
}

fn unix_millis() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}
