//! The metrics of a lane.

use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::core::Metric;
use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
};

use super::maker::MetricMaker;
use super::waiting::OldestOfQueue;
use crate::domain::held::Held;
use crate::domain::outcome::{DeadReason, Reason};
use crate::domain::trend::Counts;

/// Buckets for processing and requests: from a local receiver's millisecond to the longest timeouts.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Buckets for the lag: from milliseconds to beyond the default schedule's last attempt (31 h).
pub const LAG_SECONDS: [f64; 14] = [
    0.005, 0.025, 0.1, 0.5, 1.0, 4.0, 16.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0, 86_400.0,
    172_800.0,
];

/// The metrics of one lane, labelled with the queue that it consumes.
#[derive(Debug)]
pub struct LaneMetrics {
    /// From receiving a message to settling it.
    pub processing: Histogram,
    /// Attempts answered with 2xx.
    pub success: IntCounter,
    failure: Vec<IntCounter>,
    /// The duration of one POST.
    pub request_duration: Histogram,
    /// From first receiving the event to its delivery.
    pub lag: Histogram,
    /// Messages received from the queue.
    pub received: IntCounter,
    /// Events that no webhook wants.
    pub unmatched: IntCounter,
    /// Deliveries parked until their next attempt.
    pub retries_scheduled: IntCounter,
    dead_letters: Vec<IntCounter>,
    held: Vec<IntCounter>,
    /// Requests in flight.
    pub in_flight: IntGauge,
    consumers: IntGauge,
    pub(super) waiting: OldestOfQueue,
    pub(super) connected: IntGauge,
}

impl LaneMetrics {
    /// The counter of attempts that failed for this reason.
    #[must_use]
    pub fn failure(&self, reason: Reason) -> &IntCounter {
        &self.failure[reason as usize]
    }

    /// The counter of messages dead-lettered for this reason.
    #[must_use]
    pub fn dead_letters(&self, reason: DeadReason) -> &IntCounter {
        &self.dead_letters[reason as usize]
    }

    /// The counter of deliveries that were not attempted when they arrived, for this reason.
    #[must_use]
    pub fn held(&self, why: Held) -> &IntCounter {
        &self.held[why as usize]
    }

    /// Sets how many consumers the lane has.
    pub fn set_consumers(&self, count: usize) {
        self.consumers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many consumers the lane has.
    #[must_use]
    pub fn consumers(&self) -> i64 {
        self.consumers.get()
    }

    /// The present counts, of which the status page computes rates and quantiles.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let lag = self.lag.metric();
        let lag = lag.get_histogram();
        let mut below = 0;
        let mut fell = |up_to: u64| up_to.saturating_sub(std::mem::replace(&mut below, up_to));
        let up_to = lag.get_bucket().iter().map(|bucket| bucket.cumulative_count());
        Counts {
            received: self.received.get(),
            delivered: self.success.get(),
            failed: self.failure.iter().map(IntCounter::get).sum(),
            lag: up_to.chain([lag.get_sample_count()]).map(&mut fell).collect(),
        }
    }

    /// Records that a delivery begins to wait for `delay`. Its event arrived `age` ago.
    pub fn parked(&self, age: Duration, delay: Duration) {
        self.waiting.add(age, delay);
    }

    /// Sets since when the oldest delivery of the lane's backlogs has waited; `None` if they are empty.
    pub fn oldest_in_backlog(&self, since: Option<Instant>) {
        self.waiting.set_in_backlog(since);
    }
}

/// The metrics of all lanes, labelled with the queue that each consumes.
pub(super) struct LaneFamilies {
    processing: HistogramVec,
    success: IntCounterVec,
    failure: IntCounterVec,
    duration: HistogramVec,
    lag: HistogramVec,
    received: IntCounterVec,
    unmatched: IntCounterVec,
    retries: IntCounterVec,
    dead: IntCounterVec,
    in_flight: IntGaugeVec,
    oldest_waiting: GaugeVec,
    connected: IntGaugeVec,
    held: IntCounterVec,
    consumers: IntGaugeVec,
}

impl LaneFamilies {
    pub(super) fn new(make: &MetricMaker<'_>) -> Result<Self> {
        let histogram = |name, help, buckets: &[f64]| make.histogram(name, help, buckets);
        let processing = histogram(
            "webhook_event_processing_seconds",
            "From receiving a message to settling it",
            &SECONDS,
        )?;
        let success = make.counter(
            "webhook_request_success_total",
            "Requests that the receiver answered with 2xx",
            &["queue"],
        )?;
        let failure = make.counter(
            "webhook_request_failure_total",
            "Requests that failed, by reason",
            &["queue", "reason"],
        )?;
        let duration =
            histogram("webhook_request_duration_seconds", "One request, DNS to body", &SECONDS)?;
        let lag = histogram(
            "webhook_delivery_lag_seconds",
            "From first receiving an event to its delivery",
            &LAG_SECONDS,
        )?;
        let received = make.counter(
            "webhook_events_received_total",
            "Messages received from the queue, redelivered ones included",
            &["queue"],
        )?;
        let unmatched = make.counter(
            "webhook_events_unmatched_total",
            "Events that no webhook wants",
            &["queue"],
        )?;
        let retries = make.counter(
            "webhook_retries_scheduled_total",
            "Deliveries parked until their next attempt",
            &["queue"],
        )?;
        let dead = make.counter(
            "webhook_dead_letters_total",
            "Messages put into the dead-letter queue, by reason",
            &["queue", "reason"],
        )?;
        let in_flight =
            make.gauge("webhook_requests_in_flight", "Requests in flight", &["queue"])?;
        let oldest_waiting = make.register(GaugeVec::new(
            Opts::new(
                "webhook_oldest_waiting_seconds",
                "Age of the oldest waiting delivery that this process has parked, or consumes from a backlog",
            ),
            &["queue"],
        )?)?;
        let connected = make.gauge(
            "webhook_broker_connected",
            "1 while the queue is being consumed",
            &["queue"],
        )?;
        let held = make.counter(
            "webhook_deliveries_held_total",
            "Deliveries that were not attempted when they arrived, but went to a backlog or the retry lane, by reason",
            &["queue", "reason"],
        )?;
        let consumers = make.gauge(
            "webhook_lane_consumers",
            "Consumers of the queue; there are more while messages wait for slow receivers",
            &["queue"],
        )?;
        Ok(Self {
            processing,
            success,
            failure,
            duration,
            lag,
            received,
            unmatched,
            retries,
            dead,
            in_flight,
            oldest_waiting,
            connected,
            held,
            consumers,
        })
    }

    /// The metrics of the lane that consumes `queue`.
    pub(super) fn lane(&self, queue: &str) -> LaneMetrics {
        LaneMetrics {
            processing: self.processing.with_label_values(&[queue]),
            success: self.success.with_label_values(&[queue]),
            failure: Reason::ALL
                .map(|reason| self.failure.with_label_values(&[queue, reason.label()]))
                .into(),
            request_duration: self.duration.with_label_values(&[queue]),
            lag: self.lag.with_label_values(&[queue]),
            received: self.received.with_label_values(&[queue]),
            unmatched: self.unmatched.with_label_values(&[queue]),
            retries_scheduled: self.retries.with_label_values(&[queue]),
            dead_letters: DeadReason::ALL
                .map(|reason| self.dead.with_label_values(&[queue, reason.label()]))
                .into(),
            held: Held::ALL.map(|why| self.held.with_label_values(&[queue, why.label()])).into(),
            in_flight: self.in_flight.with_label_values(&[queue]),
            consumers: self.consumers.with_label_values(&[queue]),
            waiting: OldestOfQueue::new(self.oldest_waiting.with_label_values(&[queue])),
            connected: self.connected.with_label_values(&[queue]),
        }
    }
}
