//! Live values: metrics that are read from other modules whenever somebody reads the metrics.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec};

use super::maker::MetricMaker;
use crate::domain::receiver::Class;

/// Values that change without an event that could count them.
#[derive(Clone, Debug)]
pub struct LiveValues {
    /// How many receivers are slow or failed at their last attempt.
    pub receivers_ailing: usize,
    /// How many receivers are slow.
    pub receivers_slow: usize,
    /// How much of each queue's capacity is in use.
    pub in_use: Vec<InUse>,
    /// How many receivers have an open or half-open circuit breaker.
    pub breakers_open: usize,
    /// For how long the webhooks in the directory's memory may have been outdated.
    pub directory_age: Duration,
    /// Whether RabbitMQ accepts our messages: the publisher is connected, and RabbitMQ has no alarm.
    pub broker_accepts: bool,
    /// The queues that refuse our messages now, or have refused some before.
    pub refusing: Vec<Refusing>,
}

/// A queue that refuses our messages now, or has refused some before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusing {
    /// Its name. All backlogs of one event queue share a name.
    pub queue: String,
    /// Since when it has refused them; `None` if it accepts them.
    pub since: Option<Instant>,
    /// How many of our messages wait until it accepts them.
    pub messages: usize,
    /// How many it has refused since the process began.
    pub refused: u64,
}

/// How much of a queue's capacity is in use.
#[derive(Clone, Debug)]
pub struct InUse {
    /// The queue that producers publish to.
    pub queue: String,
    /// The most requests that may be in flight.
    pub capacity: usize,
    /// The requests in flight, by the class of their receivers.
    pub by_class: [(Class, usize); 3],
}

/// The function that returns the live values.
pub(super) struct ReadLive(pub(super) Box<dyn Fn() -> LiveValues + Send + Sync>);

impl fmt::Debug for ReadLive {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ReadLive")
    }
}

/// The metrics that show the [`LiveValues`].
#[derive(Debug)]
pub(super) struct LiveMetrics {
    receivers_ailing: IntGauge,
    receivers_slow: IntGauge,
    capacity: IntGaugeVec,
    in_use: IntGaugeVec,
    breakers_open: IntGauge,
    directory_age: Gauge,
    broker_accepting: IntGauge,
    messages_refused: IntGaugeVec,
    refusals: IntCounterVec,
}

impl LiveMetrics {
    pub(super) fn new(make: &MetricMaker<'_>) -> Result<Self> {
        let receivers_ailing = make.gauge(
            "webhook_receivers_ailing",
            "Receivers whose last attempt failed, or that are slow",
            &[],
        )?;
        let receivers_slow = make.gauge(
            "webhook_receivers_slow",
            "Receivers with a request that took over a second, now or recently",
            &[],
        )?;
        let capacity = make.gauge(
            "webhook_capacity",
            "The maximum number of requests in flight for a queue, its retries and its backlogs",
            &["queue"],
        )?;
        let in_use = make.gauge(
            "webhook_capacity_in_use",
            "Requests in flight within the capacity, by the class of their receivers",
            &["queue", "class"],
        )?;
        let breakers_open = make.gauge(
            "webhook_circuit_breakers_open",
            "Receivers whose circuit breaker is open or half-open",
            &[],
        )?;
        let directory_age = make.register(Gauge::new(
            "webhook_directory_age_seconds",
            "For how long the cached webhooks may have been out of date; 0 in normal operation",
        )?)?;
        let broker_accepting = make.gauge(
            "webhook_broker_accepting",
            "1 while RabbitMQ accepts deliveries that have to wait or are dead",
            &[],
        )?;
        let messages_refused = make.gauge(
            "webhook_messages_refused",
            "Our messages that wait because the queue refuses them",
            &["queue"],
        )?;
        let refusals = make.counter(
            "webhook_refusals_total",
            "Our messages that the queue refused",
            &["queue"],
        )?;
        Ok(Self {
            receivers_ailing: receivers_ailing.with_label_values::<&str>(&[]),
            receivers_slow: receivers_slow.with_label_values::<&str>(&[]),
            capacity,
            in_use,
            breakers_open: breakers_open.with_label_values::<&str>(&[]),
            directory_age,
            broker_accepting: broker_accepting.with_label_values::<&str>(&[]),
            messages_refused,
            refusals,
        })
    }

    pub(super) fn set(&self, live: &LiveValues) -> Result<()> {
        self.receivers_ailing.set(i64::try_from(live.receivers_ailing)?);
        self.receivers_slow.set(i64::try_from(live.receivers_slow)?);
        for InUse { queue, capacity, by_class } in &live.in_use {
            self.capacity.with_label_values(&[queue]).set(i64::try_from(*capacity)?);
            for (class, count) in by_class {
                let gauge = self.in_use.with_label_values(&[queue.as_str(), class.label()]);
                gauge.set(i64::try_from(*count)?);
            }
        }
        self.breakers_open.set(i64::try_from(live.breakers_open)?);
        self.directory_age.set(live.directory_age.as_secs_f64());
        self.broker_accepting.set(live.broker_accepts.into());
        for Refusing { queue, messages, refused, .. } in &live.refusing {
            let gauge = self.messages_refused.with_label_values(&[queue]);
            gauge.set(i64::try_from(*messages)?);
            let counter = self.refusals.with_label_values(&[queue]);
            counter.inc_by(refused.saturating_sub(counter.get()));
        }
        Ok(())
    }
}
