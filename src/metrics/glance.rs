//! What the metrics show that changes by the clock too: it is asked for when they are read.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec};

use super::maker::Maker;
use crate::domain::receiver::Class;

/// What changes by the clock too.
#[derive(Clone, Debug)]
pub struct Glance {
    /// Receivers whose last attempt failed, or that are slow.
    pub receivers_ailing: usize,
    /// Receivers that are slow.
    pub receivers_slow: usize,
    /// Of the capacity of each queue.
    pub in_use: Vec<InUse>,
    /// Receivers whose circuit breaker is open or half-open.
    pub breakers_open: usize,
    /// For how long what the directory knows may have been untrue.
    pub directory_age: Duration,
    /// Whether RabbitMQ takes messages of ours: it is connected to, and has no alarm.
    pub broker_accepts: bool,
    /// The queues that take none of ours now, or took none before.
    pub refusing: Vec<Refusing>,
}

/// A queue that takes no messages of ours, or took none before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusing {
    /// Its name; of backlogs, a name for all of one event queue.
    pub queue: String,
    /// Since when it takes none; none, if it does.
    pub since: Option<Instant>,
    /// How many of our messages wait for it.
    pub messages: usize,
    /// How often it has refused one since the process began.
    pub refused: u64,
}

/// What of a queue's capacity is in use.
#[derive(Clone, Debug)]
pub struct InUse {
    /// The queue that producers publish to.
    pub queue: String,
    /// The most requests that may be under way.
    pub capacity: usize,
    /// Those that are.
    pub by_class: [(Class, usize); 3],
}

pub(super) struct Look(pub(super) Box<dyn Fn() -> Glance + Send + Sync>);

impl fmt::Debug for Look {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Look")
    }
}

/// The gauges of it.
#[derive(Debug)]
pub(super) struct Glances {
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

impl Glances {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let receivers_ailing = make.gauge(
            "webhook_receivers_ailing",
            "Receivers whose last attempt failed, or that are slow",
            &[],
        )?;
        let receivers_slow = make.gauge(
            "webhook_receivers_slow",
            "Receivers of which a request took over a second, now or lately",
            &[],
        )?;
        let capacity = make.gauge(
            "webhook_capacity",
            "The most requests that may be under way at a time for a queue and its retries",
            &["queue"],
        )?;
        let in_use = make.gauge(
            "webhook_capacity_in_use",
            "Of these those that are, by how soon their receivers answer",
            &["queue", "class"],
        )?;
        let breakers_open = make.gauge(
            "webhook_circuit_breakers_open",
            "Receivers whose circuit breaker is open or half-open",
            &[],
        )?;
        let directory_age = make.register(Gauge::new(
            "webhook_directory_age_seconds",
            "For how long what is remembered of the webhooks may have been untrue; 0 in normal operation",
        )?)?;
        let broker_accepting = make.gauge(
            "webhook_broker_accepting",
            "1 while RabbitMQ takes what has to wait or is dead",
            &[],
        )?;
        let messages_refused = make.gauge(
            "webhook_messages_refused",
            "Messages of ours that RabbitMQ does not take into the queue now",
            &["queue"],
        )?;
        let refusals = make.counter(
            "webhook_refusals_total",
            "How often RabbitMQ did not take a message of ours into the queue",
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

    pub(super) fn set(&self, glance: &Glance) -> Result<()> {
        self.receivers_ailing.set(i64::try_from(glance.receivers_ailing)?);
        self.receivers_slow.set(i64::try_from(glance.receivers_slow)?);
        for InUse { queue, capacity, by_class } in &glance.in_use {
            self.capacity.with_label_values(&[queue]).set(i64::try_from(*capacity)?);
            for (class, count) in by_class {
                let gauge = self.in_use.with_label_values(&[queue.as_str(), class.label()]);
                gauge.set(i64::try_from(*count)?);
            }
        }
        self.breakers_open.set(i64::try_from(glance.breakers_open)?);
        self.directory_age.set(glance.directory_age.as_secs_f64());
        self.broker_accepting.set(glance.broker_accepts.into());
        for Refusing { queue, messages, refused, .. } in &glance.refusing {
            let gauge = self.messages_refused.with_label_values(&[queue]);
            gauge.set(i64::try_from(*messages)?);
            let counter = self.refusals.with_label_values(&[queue]);
            counter.inc_by(refused.saturating_sub(counter.get()));
        }
        Ok(())
    }
}
