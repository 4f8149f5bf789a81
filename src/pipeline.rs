//! Makes the deliveries of a message, and decides how the message is settled.
//!
//! A message may be acked once each of its deliveries is delivered, or the broker has confirmed the parked
//! message or dead letter that replaces it. Otherwise the message is handed back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::backlogs::Backlogs;
use crate::broker::{Lane, LaneKind, Message, NotConfirmed, Publisher, dead_queue};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::delivery_log::DeliveryLog;
use crate::directory::{Directory, Found, StoreError};
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::event::{Event, Malformed};
use crate::domain::held::Dropped;
use crate::domain::in_hand;
use crate::domain::intake::{DeliveryKind, Refusal};
use crate::domain::pace::Ask;
use crate::domain::retry::Schedule;
use crate::domain::shown::word;
use crate::domain::statuses::Statuses;
use crate::domain::time::{UnixMillis, between, later};
use crate::domain::webhook::Webhook;
use crate::metrics::{self, Metrics};
use crate::notices::Notices;
use crate::receivers::{Receivers, Turn};
use crate::sender::Sender;
use crate::shutdown::Shutdown;
use crate::workers::Workers;

mod accounts;
mod attempt;
mod entry;
mod fan_out;
mod head;
mod onward;
mod progress;
mod promises;
mod tally;
mod unsent;

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
    /// Ack it once these promises are kept.
    Done(Promises),
    /// Hand it back, and consume nothing until the missing thing is available again. No receiver caused this.
    HandBack(Missing),
}

/// What was missing to settle a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// An answer of PostgreSQL; its error.
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
struct MessageContext<'a> {
    lane: &'a Lane,
    metrics: &'a metrics::LaneMetrics,
    message: &'a Message,
}

/// The result of a delivery: `None` if nothing more has to be done, or a message that the broker has yet to
/// confirm.
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

    /// Makes all deliveries of a message that was received at `received`. Blocks until each attempt has ended;
    /// the caller waits for the confirms. `progress` shows this thread's progress to other threads.
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
        let context = MessageContext { lane, metrics, message: &message };
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

    /// Records that all promises of a message are kept.
    pub fn settled(&self, lane: &Lane, promises: &Promises) {
        let took = promises.received.elapsed();
        self.metrics.lane(&lane.queue).processing.observe(took.as_secs_f64());
    }

    /// Counts of messages since the beginning of shutdown.
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

    /// What is missing now to settle messages, as far as that can be checked without one. While PostgreSQL is
    /// away, remembered webhooks are used, unless an event has just needed others (`before`).
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
        let context = MessageContext { lane, metrics, message: &message };
        let new_id = || Uuid::new_v4().to_string();
        let limit = self.max_event_bytes;
        let event = match Event::read(message.properties(), &message.body, limit, new_id) {
            Ok(event) => event,
            Err(malformed) => return self.dead_letter_malformed(context, &malformed, promises),
        };
        let found = progress
            .while_asking(|| self.directory.wanting(&event.event_type, event.account.as_deref()));
        let webhooks = match found {
            Err(error @ StoreError::InvalidValue(_)) => {
                let words = error.answer().unwrap_or_default().to_owned();
                let malformed = Malformed::NotSearchable(words);
                return self.dead_letter_malformed(context, &malformed, promises);
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
        context: MessageContext<'_>,
        progress: &Progress,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        if context.message.is_bound_for(&dead_queue(&context.lane.origin)) {
            return self.dead_letter_again(context, promises);
        }
        let Message { headers, body, .. } = context.message;
        let delivery = match Delivery::from_headers(headers, body, unix_millis()) {
            Ok(delivery) => delivery,
            Err(malformed) => return self.dead_letter_malformed(context, &malformed, promises),
        };
        // A delivery that was never attempted, such as one of a split event, isn't a retry.
        let metrics = match delivery.attempts {
            0 => self.metrics.lane(&context.lane.origin),
            _ => context.metrics,
        };
        let context = MessageContext { metrics, ..context };
        let found = progress.while_asking(|| self.directory.find(delivery.webhook_id));
        let dropped = match self.answered(found)? {
            Found::Enabled(webhook) if !webhook.may_have(&delivery.event) => {
                promises.extend([self.dead_letter_for_account(context, &webhook, delivery)?]);
                return Ok(());
            }
            Found::Enabled(webhook) => {
                self.apply_retry_after(&delivery);
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
            "delivery dropped event={} webhook={} reason={}",
            word(&delivery.event.id),
            delivery.webhook_id,
            dropped.label()
        );
        Ok(())
    }

    /// Makes an attempt if the receiver may have one now; otherwise arranges a later one.
    fn deliver(&self, context: MessageContext<'_>, webhook: &Webhook, delivery: Delivery) -> Kept {
        let answer = self.ask(context.lane, webhook, &delivery);
        let wait = |answer| self.receivers.wait(answer, self.patience, &self.shutdown);
        match answer.and_then(wait) {
            Ok(attempt) => self.attempt(context, webhook, delivery, attempt),
            Err(refusal) => self.hold_back(context, webhook, delivery, refusal),
        }
    }

    /// Applies the receiver's `Retry-After`, which another process may have got, or this one before a restart.
    fn apply_retry_after(&self, delivery: &Delivery) {
        if let Some(wanted) = delivery.stay_away_for(unix_millis()) {
            self.receivers.stay_away(delivery.webhook_id, wanted);
        }
    }

    /// Asks for an attempt.
    fn ask(&self, lane: &Lane, webhook: &Webhook, delivery: &Delivery) -> Result<Turn, Refusal> {
        let kind = if delivery.attempts == 0 { DeliveryKind::Fresh } else { DeliveryKind::Retry };
        self.receivers.ask(Ask::of(webhook, lane.number), kind, webhook.is_paused)
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

/// A delivery before its first attempt.
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

/// The present plus `time`.
fn from_now(time: Duration) -> UnixMillis {
    later(unix_millis(), time)
}

/// The age of the event. Zero if another instance's clock is ahead of ours.
fn age(delivery: &Delivery) -> Duration {
    between(delivery.first_received_at, unix_millis())
}
