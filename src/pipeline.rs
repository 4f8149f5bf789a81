//! Turns a message into its deliveries, and decides how it is settled.
//!
//! A message may be acked once each of its deliveries is delivered, or the broker has confirmed its
//! parked message or dead letter. Otherwise it is handed back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::backlogs::Backlogs;
use crate::broker::{Lane, LaneKind, Message, NotConfirmed, Publisher, dead_queue};
use crate::clock::{self, unix_millis};
use crate::config::Config;
use crate::delivery_log::DeliveryLog;
use crate::directory::{Directory, Found, StoreError};
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::event::{Event, Malformed};
use crate::domain::held::Dropped;
use crate::domain::in_hand;
use crate::domain::intake::{Refusal, Who};
use crate::domain::notice::GONE;
use crate::domain::outcome::{Decision, Outcome, Reason, Response, decide};
use crate::domain::pace::{Ask, Attempt};
use crate::domain::receiver::{AttemptEnd, Transition};
use crate::domain::retry::Schedule;
use crate::domain::shown::word;
use crate::domain::statuses::Statuses;
use crate::domain::time::{Span, UnixMillis, between, later};
use crate::domain::webhook::Webhook;
use crate::metrics::{self, AutoDisabled, Metrics};
use crate::notices::Notices;
use crate::receivers::{Receivers, Turn};
use crate::sender::{Request, Sender};
use crate::shutdown::Shutdown;
use crate::workers::Workers;

mod accounts;
mod entry;
mod fan_out;
mod head;
mod onward;
mod progress;
mod promises;
mod tally;
mod unsent;

use accounts::AccountNow;
use promises::Promise;

pub use fan_out::FanOut;
pub use head::{Head, Waiting};
pub use progress::{Contention, Progress};
pub use promises::Promises;
pub use tally::Tally;

/// How a message is settled.
#[derive(Debug)]
#[must_use]
pub enum Settlement {
    /// Handled once these promises are kept: ack it then.
    Done(Promises),
    /// Not handled, through no receiver's fault: hand it back, and consume nothing until what is missing
    /// is available again.
    HandBack(Missing),
}

/// What was missing to settle a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// PostgreSQL's answer: its error.
    Database(String),
    /// A publisher confirm.
    Confirm,
}

/// Settles messages. Shared by all consumers.
#[derive(Debug)]
pub struct Pipeline {
    directory: Arc<Directory>,
    sender: Sender,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    receivers: Arc<Receivers>,
    backlogs: Arc<Backlogs>,
    workers: Workers,
    log: DeliveryLog,
    notices: Notices,
    schedule: Schedule,
    no_retry_status: Statuses,
    delivery_max_age: Duration,
    fanout_inline: usize,
    max_event_bytes: usize,
    /// How long an event may take to begin all its deliveries, and how long a delivery may wait for
    /// capacity.
    patience: Duration,
    tally: Tally,
    shutdown: Shutdown,
}

/// Shared by the deliveries of one message.
#[derive(Clone, Copy)]
struct Context<'a> {
    lane: &'a Lane,
    metrics: &'a metrics::LaneMetrics,
    message: &'a Message,
}

/// The result of a delivery: nothing more to do, or a message that the broker has yet to confirm.
type Kept = Result<Option<Promise>, NotConfirmed>;

impl Pipeline {
    /// Puts the parts together.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own")]
    pub fn new(
        config: &Config,
        directory: Arc<Directory>,
        publisher: Publisher,
        receivers: Arc<Receivers>,
        backlogs: Arc<Backlogs>,
        workers: Workers,
        log: DeliveryLog,
        notices: Notices,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            directory,
            sender: Sender::new(config),
            publisher,
            receivers,
            backlogs,
            workers,
            log,
            notices,
            metrics,
            schedule: config.retry_schedule.clone(),
            no_retry_status: config.no_retry_status.clone(),
            delivery_max_age: config.delivery_max_age,
            fanout_inline: config.fanout_inline,
            max_event_bytes: config.max_event_bytes,
            patience: in_hand::patience(config.request_timeout),
            tally: Tally::new(shutdown.clone()),
            shutdown,
        }
    }

    /// Makes all deliveries of a message that was received at `received`. Blocks until each attempt has
    /// ended; confirms are left to be awaited. `progress` shows other threads how this one gets on.
    pub fn settle(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        message: Message,
        received: Instant,
        progress: &Progress,
    ) -> Settlement {
        let metrics = self.metrics.lane(&lane.queue);
        let mut promises = Promises::new(received);
        metrics.received.inc();
        let context = Context { lane, metrics, message: &message };
        let settled = if message.is_near_delivery_limit() && self.renew(context).is_ok() {
            Ok(())
        } else if lane.kind == LaneKind::Retries {
            self.retry(context, progress, &mut promises)
        } else {
            self.event(lane, message, progress, &mut promises)
        };
        match settled {
            Ok(()) => Settlement::Done(promises),
            Err(missing) => Settlement::HandBack(missing),
        }
    }

    /// All promises of a message are kept.
    pub fn settled(&self, lane: &Lane, promises: &Promises) {
        let took = promises.received.elapsed();
        self.metrics.lane(&lane.queue).processing.observe(took.as_secs_f64());
    }

    /// What was done since the beginning of shutdown.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Closes idle connections. To be called every few seconds.
    pub fn close_idle(&self) {
        self.sender.close_idle();
    }

    /// Whether RabbitMQ accepts messages that have to wait. If not, more consumers would only hold more
    /// messages.
    #[must_use]
    pub fn can_park(&self) -> bool {
        self.publisher.is_able()
    }

    /// What is missing to settle messages at present, as far as that is known without one. While
    /// PostgreSQL is away, remembered webhooks are used, unless an event just needed others
    /// (`before`).
    #[must_use]
    pub fn missing(&self, before: Option<&Missing>) -> Option<Missing> {
        match self.directory.ping() {
            Ok(()) => self.metrics.health().database().answered(),
            Err(error) => {
                self.metrics.health().database().failed(error.answer());
                let did_not_suffice = matches!(before, Some(Missing::Database(_)));
                if did_not_suffice || !self.directory.knows_any() {
                    return Some(Missing::Database(error.to_string()));
                }
            }
        }
        (before == Some(&Missing::Confirm) && !self.publisher.is_able()).then_some(Missing::Confirm)
    }

    fn event(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        message: Message,
        progress: &Progress,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let metrics = self.metrics.lane(&lane.queue);
        let context = Context { lane, metrics, message: &message };
        let new_id = || Uuid::new_v4().to_string();
        let limit = self.max_event_bytes;
        let event = match Event::read(message.properties(), &message.body, limit, new_id) {
            Ok(event) => event,
            Err(malformed) => return self.bury_malformed(context, &malformed, promises),
        };
        let found = progress
            .while_asking(|| self.directory.wanting(&event.event_type, event.account.as_deref()));
        let webhooks = match found {
            Err(error @ StoreError::InvalidValue(_)) => {
                let words = error.answer().unwrap_or_default().to_owned();
                let malformed = Malformed::NotSearchable(words);
                return self.bury_malformed(context, &malformed, promises);
            }
            answer => self.answered(answer)?,
        };
        match &webhooks[..] {
            [] => {
                metrics.unmatched.inc();
                self.log.record_unmatched(&context.lane.origin, &event);
                log::debug!("unmatched event={} type={:?}", word(&event.id), event.event_type);
            }
            [webhook] => {
                promises.extend(self.deliver(context, webhook, fresh(event, webhook))?);
            }
            few if few.len() <= self.fanout_inline => {
                return self.fan_out(lane, message, event, webhooks, progress, promises);
            }
            many => self.split(context, &event, many, promises)?,
        }
        Ok(())
    }

    fn retry(
        &self,
        context: Context<'_>,
        progress: &Progress,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        if context.message.is_bound_for(&dead_queue(&context.lane.origin)) {
            return self.bury_at_last(context, promises);
        }
        let Message { headers, body, .. } = context.message;
        let delivery = match Delivery::from_headers(headers, body, unix_millis()) {
            Ok(delivery) => delivery,
            Err(malformed) => return self.bury_malformed(context, &malformed, promises),
        };
        // A delivery that hasn't been attempted, such as one of a split event, isn't a retry.
        let metrics = match delivery.attempts {
            0 => self.metrics.lane(&context.lane.origin),
            _ => context.metrics,
        };
        let context = Context { metrics, ..context };
        let found = progress.while_asking(|| self.directory.find(delivery.webhook_id));
        let dropped = match self.answered(found)? {
            Found::Enabled(webhook) if !webhook.may_have(&delivery.event) => {
                promises.extend([self.keep_from(context, &webhook, delivery)?]);
                return Ok(());
            }
            Found::Enabled(webhook) => {
                self.heed(&delivery);
                promises.extend(self.deliver(context, &webhook, delivery)?);
                return Ok(());
            }
            Found::Deleted => Dropped::Deleted,
            Found::Disabled => Dropped::Disabled,
        };
        self.metrics.dropped(dropped).inc();
        let happened = Happened::Dropped { why: dropped.label() };
        self.log.record(&context.lane.origin, &delivery, happened);
        self.receivers.forget(delivery.webhook_id);
        log::info!(
            "delivery dropped event={} webhook={} reason={dropped:?}",
            word(&delivery.event.id),
            delivery.webhook_id
        );
        Ok(())
    }

    /// Makes an attempt if the receiver may have one now; otherwise arranges a later one.
    fn deliver(&self, context: Context<'_>, webhook: &Webhook, delivery: Delivery) -> Kept {
        let answer = self.ask(context.lane, webhook, &delivery);
        let wait = |answer| self.receivers.wait(answer, self.patience, &self.shutdown);
        match answer.and_then(wait) {
            Ok(attempt) => self.attempt(context, webhook, delivery, attempt),
            Err(refusal) => self.hold_back(context, webhook, delivery, refusal),
        }
    }

    /// Its receiver may have sent `Retry-After` to another process, or to this one before a restart.
    fn heed(&self, delivery: &Delivery) {
        if let Some(wanted) = delivery.stay(unix_millis()) {
            self.receivers.stay_away(delivery.webhook_id, wanted);
        }
    }

    /// Asks for an attempt.
    fn ask(&self, lane: &Lane, webhook: &Webhook, delivery: &Delivery) -> Result<Turn, Refusal> {
        let who = if delivery.attempts == 0 { Who::Fresh } else { Who::Retry };
        self.receivers.ask(Ask::of(webhook, lane.number), who, webhook.is_paused)
    }

    /// Makes one attempt and handles its result.
    fn attempt(
        &self,
        context: Context<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
        attempt: Attempt,
    ) -> Kept {
        let Context { metrics, message, .. } = context;
        // It may have waited for capacity for a while.
        if self.directory.may_have_changed_since(webhook) {
            match self.account_now(webhook, &delivery) {
                AccountNow::Own => {}
                AccountNow::Other(webhook) => {
                    self.receivers.give_back(attempt);
                    return self.keep_from(context, &webhook, delivery).map(Some);
                }
                AccountNow::Unknown => {
                    self.receivers.give_back(attempt);
                    return self.put_aside(context, &delivery).map(Some);
                }
            }
        }
        if attempt.is_probe {
            self.report(webhook, Some(Transition::HalfOpen));
        }
        let started = Instant::now();
        metrics.in_flight.inc();
        let response = self.sender.post(Request {
            webhook,
            event: &delivery.event,
            attempt: delivery.attempts.saturating_add(1),
            headers: &message.headers,
            content_type: message.content_type.as_deref(),
            body: &message.body,
            at: clock::now(),
        });
        metrics.in_flight.dec();
        let mut response = match response {
            Response::NotSent { detail } => {
                let lasted = self.metrics.egress().failed(&detail);
                if !self.is_refused_alone(&delivery, &detail, lasted) {
                    return self.put_off(context, delivery, attempt, detail, lasted);
                }
                Response::NoAnswer { reason: Reason::Proxy, detail }
            }
            response => response,
        };
        let answer = response.take_excerpt();
        let took = started.elapsed();
        metrics.request_duration.observe(took.as_secs_f64());
        let status = response.status();
        if status.is_some() {
            self.metrics.egress().answered();
        }
        let outcome = Outcome::of(response, clock::now());
        delivery.attempts += 1;
        let stay = outcome.retry_after();
        delivery.not_before = stay.map(from_now);
        self.note(webhook, &delivery.event, attempt, &outcome, status);
        let no_retry = webhook.no_retry_status().unwrap_or(&self.no_retry_status);
        let decision = decide(&outcome, delivery.attempts, &self.schedule)
            .unless_refused(status, no_retry)
            .at_age(age(&delivery), self.delivery_max_age);
        // What logs and people are told.
        let next = decision.not_before(stay);
        if let Outcome::Failed { reason, detail, .. } | Outcome::Hopeless { reason, detail, .. } =
            outcome
        {
            metrics.failure(reason).inc();
            log::warn!(
                "attempt failed event={} webhook={} attempt={} reason={} ms={} next={} detail={detail:?}",
                word(&delivery.event.id),
                webhook.id,
                delivery.attempts,
                reason.label(),
                took.as_millis(),
                match next {
                    Decision::Park(delay) => delay.to_string(),
                    Decision::Dead(reason) => format!("dead:{}", reason.label()),
                    Decision::Delivered => "none".to_owned(),
                },
            );
            (delivery.last_error, delivery.last_answer) = (detail, answer);
            if reason == Reason::Gone {
                self.disable(webhook);
            }
            let happened =
                Happened::Attempted { failure: Some(reason), status, took, decision: next };
            self.log.record(&context.lane.origin, &delivery, happened);
        }
        match decision {
            Decision::Delivered => {
                metrics.success.inc();
                metrics.lag.observe(self.lag(&delivery).as_secs_f64());
                let happened = Happened::Attempted { failure: None, status, took, decision };
                self.log.record(&context.lane.origin, &delivery, happened);
                log::debug!(
                    "delivered event={} webhook={} attempt={} ms={}",
                    word(&delivery.event.id),
                    webhook.id,
                    delivery.attempts,
                    took.as_millis()
                );
                Ok(None)
            }
            Decision::Park(delay) => {
                self.park(context, &delivery, delay, &metrics.retries_scheduled).map(Some)
            }
            Decision::Dead(reason) => self.bury(context, &delivery, reason).map(Some),
        }
    }

    /// The lag of a delivery, limited to what our delays can add up to: a foreign header or a wrong
    /// clock would otherwise drown all others in the sum.
    fn lag(&self, delivery: &Delivery) -> Duration {
        age(delivery).min(self.delivery_max_age + self.schedule.longest().get())
    }

    /// Disables a webhook whose receiver says that it is gone for good. If PostgreSQL can't record that
    /// now, the receiver will say so again.
    fn disable(&self, webhook: &Webhook) {
        let id = webhook.id;
        match self.directory.disable(webhook, GONE) {
            Ok(true) => {
                self.metrics.notices().count_disabled(AutoDisabled::Gone);
                log::warn!(
                    "webhook disabled webhook={id} reason={GONE:?}: `webhooks enable {id}` enables it again"
                );
            }
            // Somebody else was first.
            Ok(false) => {}
            Err(error) => {
                log::warn!("webhook not disabled webhook={id} cause={:?}", error.to_string())
            }
        }
    }

    /// Records what an attempt says about its receiver.
    fn note(
        &self,
        webhook: &Webhook,
        event: &Event,
        attempt: Attempt,
        outcome: &Outcome,
        status: Option<u16>,
    ) {
        let ended = match outcome {
            Outcome::Delivered => AttemptEnd::Delivered,
            Outcome::Failed { reason, is_overload, .. } => AttemptEnd::Failed {
                event: &event.id,
                reason: *reason,
                status,
                is_overload: *is_overload,
                retry_after: outcome.retry_after(),
            },
            Outcome::Hopeless { reason: Reason::Gone, .. } => {
                self.receivers.end(attempt, AttemptEnd::Delivered);
                return self.receivers.forget(webhook.id);
            }
            // It wasn't asked.
            Outcome::Hopeless { .. } => return self.receivers.give_back(attempt),
        };
        self.report(webhook, self.receivers.end(attempt, ended));
    }

    fn report(&self, webhook: &Webhook, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        self.metrics.transition(transition).inc();
        let id = webhook.id;
        match transition {
            Transition::Open(pause) => {
                log::warn!("circuit breaker open webhook={id} for={}", Span::from(pause));
            }
            Transition::HalfOpen => log::info!("circuit breaker half-open webhook={id}"),
            Transition::Closed => log::info!("circuit breaker closed webhook={id}"),
        }
    }

    fn answered<T>(&self, answer: Result<T, StoreError>) -> Result<T, Missing> {
        answer.map_err(|error| {
            self.metrics.health().database().failed(error.answer());
            Missing::Database(error.to_string())
        })
    }
}

impl From<NotConfirmed> for Missing {
    fn from(_: NotConfirmed) -> Self {
        Self::Confirm
    }
}

/// A delivery that hasn't been attempted.
fn fresh(event: Event, webhook: &Webhook) -> Delivery {
    Delivery {
        event,
        webhook_id: webhook.id,
        attempts: 0,
        first_received_at: unix_millis(),
        last_error: String::new(),
        last_answer: None,
        not_before: None,
    }
}

/// The time when `time` has passed.
fn from_now(time: Duration) -> UnixMillis {
    later(unix_millis(), time)
}

/// The age of the event. Zero if another instance's clock is ahead of ours.
fn age(delivery: &Delivery) -> Duration {
    between(delivery.first_received_at, unix_millis())
}
