//! What Prometheus sees, and what /readyz answers from.
//!
//! Every child of a labelled metric is resolved once, when the lanes are known: a look-up by label
//! takes a lock and a hash, and a series that exists from the start can be alerted on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder, core::Metric, process_collector::ProcessCollector,
};

use crate::domain::outcome::{DeadReason, Reason};
use crate::domain::receiver::{Class, Transition};
use crate::domain::trend::Counts;

mod contact;
mod egress;
mod instances;
mod labels;
mod lane_state;
mod maker;
mod notices;
mod topology;
mod waiting;

use lane_state::Standing;
use maker::Maker;
use waiting::Waiting;

pub use contact::{Answers, Contact};
pub use egress::EgressState;
pub use instances::InstancesState;
pub use labels::{Dropped, Held};
pub use lane_state::{Interruption, LaneState};
pub use notices::{AutoDisabled, NoticesState};
pub use topology::{ObjectKind, TopologyCounts};

/// Processing and requests: from a local receiver's millisecond to the longest time-outs.
const SECONDS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Lag: from milliseconds to beyond the default schedule's last attempt (31 h).
pub const LAG_SECONDS: [f64; 14] = [
    0.005, 0.025, 0.1, 0.5, 1.0, 4.0, 16.0, 60.0, 300.0, 1_800.0, 7_200.0, 21_600.0, 86_400.0,
    172_800.0,
];

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    lanes: BTreeMap<String, Lane>,
    queue_messages: IntGaugeVec,
    /// The same, for who reads one of them.
    depths: Mutex<BTreeMap<String, u32>>,
    backlogs: IntGaugeVec,
    backlog_deliveries: IntGaugeVec,
    backlogs_lost: IntCounter,
    topology: TopologyCounts,
    dropped_deleted: IntCounter,
    dropped_disabled: IntCounter,
    receivers_ailing: IntGauge,
    receivers_slow: IntGauge,
    capacity: IntGaugeVec,
    in_use: IntGaugeVec,
    breakers_open: IntGauge,
    transitions: IntCounterVec,
    directory_age: Gauge,
    lookups: Lookups,
    log_rows: LogRows,
    /// Asked for what changes by the clock, when the metrics are read.
    look: OnceLock<Look>,
    database_up: IntGauge,
    egress: EgressState,
    notices: NoticesState,
    instances: InstancesState,
    broker_accepting: IntGauge,
    messages_refused: IntGaugeVec,
    refusals: IntCounterVec,
    broker: Contact,
    database: Contact,
    announced: AtomicBool,
}

/// The metrics of one lane, labelled with the queue that it consumes.
#[derive(Debug)]
pub struct Lane {
    /// From receiving a message to settling it.
    pub processing: Histogram,
    /// Attempts answered with 2xx.
    pub success: IntCounter,
    failure: Vec<IntCounter>,
    /// One POST.
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
    /// POSTs under way.
    pub in_flight: IntGauge,
    consumers: IntGauge,
    waiting: Waiting,
    connected: IntGauge,
    standing: Standing,
}

impl Lane {
    /// Attempts that failed for this reason.
    #[must_use]
    pub fn failure(&self, reason: Reason) -> &IntCounter {
        &self.failure[reason as usize]
    }

    /// Messages dead-lettered for this reason.
    #[must_use]
    pub fn dead_letters(&self, reason: DeadReason) -> &IntCounter {
        &self.dead_letters[reason as usize]
    }

    /// Deliveries that got no attempt when they came, for this reason.
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

    /// Whether it consumes, and for how long that has been so.
    #[must_use]
    pub fn state(&self) -> (LaneState, Duration) {
        self.standing.now()
    }

    /// What is counted so far, of what the status page compares over time.
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

    /// A delivery whose event came so long ago begins to wait for so long.
    pub fn parked(&self, age: Duration, delay: Duration) {
        self.waiting.add(age, delay);
    }

    /// The oldest delivery of its backlogs has waited since then; none, if they hold none.
    pub fn oldest_in_backlog(&self, since: Option<Instant>) {
        self.waiting.has_in_hand(since);
    }
}

impl Metrics {
    /// Registers everything; `queues` are the queues that the lanes consume.
    ///
    /// # Errors
    /// Only if two metrics had the same name.
    pub fn new(queues: impl IntoIterator<Item = String>) -> Result<Self> {
        let registry = Registry::new();
        let make = Maker(&registry);
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
            make.gauge("webhook_requests_in_flight", "Requests under way", &["queue"])?;
        let oldest_waiting = make.register(GaugeVec::new(
            Opts::new(
                "webhook_oldest_waiting_seconds",
                "Age of the oldest delivery that this process has parked, or consumes from a backlog, and that still waits",
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
            "Deliveries that got no attempt when they came, but go to a backlog or the retry lane, by reason",
            &["queue", "reason"],
        )?;
        let backlogs = make.gauge(
            "webhook_backlogs",
            "Backlogs that hold something, of one webhook each",
            &["queue"],
        )?;
        let backlog_deliveries = make.gauge(
            "webhook_backlog_deliveries",
            "Deliveries that wait in backlogs, asked every five seconds, twenty backlogs at a time",
            &["queue"],
        )?;
        let backlogs_lost = make.counter(
            "webhook_backlogs_lost_total",
            "Backlogs that somebody else deleted, with what waited in them",
            &[],
        )?;
        let topology = TopologyCounts::new(&make)?;
        let notices = NoticesState::new(&make)?;
        let instances = InstancesState::new(&make)?;
        let transitions = make.counter(
            "webhook_circuit_breaker_transitions_total",
            "Changes of a receiver's circuit breaker, by the state that follows",
            &["state"],
        )?;
        for transition in Transition::ALL {
            transitions.with_label_values(&[transition.label()]);
        }
        let breakers_open = make.gauge(
            "webhook_circuit_breakers_open",
            "Receivers whose circuit breaker is open or half-open",
            &[],
        )?;
        let dropped = make.counter(
            "webhook_deliveries_dropped_total",
            "Waiting deliveries dropped because their webhook is gone, by reason",
            &["reason"],
        )?;
        let queue_messages = make.gauge(
            "webhook_queue_messages",
            "Messages ready in the queue, asked every five seconds",
            &["queue"],
        )?;
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
        let consumers = make.gauge(
            "webhook_lane_consumers",
            "Consumers of the queue: more while messages wait for slow receivers",
            &["queue"],
        )?;
        let directory_age = make.register(Gauge::new(
            "webhook_directory_age_seconds",
            "For how long what is remembered of the webhooks may have been untrue; 0 in normal operation",
        )?)?;
        let lookups = make.counter(
            "webhook_directory_lookups_total",
            "Answers to who wants an event, by where they came from",
            &["answer"],
        )?;
        let lookups = Lookups {
            memory: lookups.with_label_values(&["memory"]),
            database: lookups.with_label_values(&["database"]),
            last_known: lookups.with_label_values(&["last_known"]),
        };
        let log_rows = make.counter(
            "webhook_delivery_log_rows_total",
            "Entries of the delivery log, by what became of them",
            &["result"],
        )?;
        let log_rows = LogRows {
            written: log_rows.with_label_values(&["written"]),
            dropped: log_rows.with_label_values(&["dropped"]),
        };
        let egress_proxy_up = make.gauge(
            "webhook_egress_proxy_up",
            "0 while EGRESS_PROXY lets no request through; 1 also where there is none",
            &[],
        )?;
        let database_up = make.gauge("webhook_database_up", "1 while PostgreSQL answers", &[])?;
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
        make.gauge("webhook_build_info", "Always 1; the version is a label", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;

        let lane = |queue: &str| Lane {
            processing: processing.with_label_values(&[queue]),
            success: success.with_label_values(&[queue]),
            failure: Reason::ALL
                .map(|reason| failure.with_label_values(&[queue, reason.label()]))
                .into(),
            request_duration: duration.with_label_values(&[queue]),
            lag: lag.with_label_values(&[queue]),
            received: received.with_label_values(&[queue]),
            unmatched: unmatched.with_label_values(&[queue]),
            retries_scheduled: retries.with_label_values(&[queue]),
            dead_letters: DeadReason::ALL
                .map(|reason| dead.with_label_values(&[queue, reason.label()]))
                .into(),
            held: Held::ALL.map(|why| held.with_label_values(&[queue, why.label()])).into(),
            in_flight: in_flight.with_label_values(&[queue]),
            consumers: consumers.with_label_values(&[queue]),
            waiting: Waiting::new(oldest_waiting.with_label_values(&[queue])),
            connected: connected.with_label_values(&[queue]),
            standing: Standing::new(),
        };
        Ok(Self {
            lanes: queues.into_iter().map(|queue| (queue.clone(), lane(&queue))).collect(),
            queue_messages,
            depths: Mutex::default(),
            backlogs,
            backlog_deliveries,
            backlogs_lost: backlogs_lost.with_label_values::<&str>(&[]),
            topology,
            dropped_deleted: dropped.with_label_values(&[Dropped::Deleted.label()]),
            dropped_disabled: dropped.with_label_values(&[Dropped::Disabled.label()]),
            receivers_ailing: receivers_ailing.with_label_values::<&str>(&[]),
            receivers_slow: receivers_slow.with_label_values::<&str>(&[]),
            capacity,
            in_use,
            breakers_open: breakers_open.with_label_values::<&str>(&[]),
            transitions,
            directory_age,
            lookups,
            log_rows,
            look: OnceLock::new(),
            database_up: database_up.with_label_values::<&str>(&[]),
            egress: EgressState::new(egress_proxy_up.with_label_values::<&str>(&[])),
            notices,
            instances,
            broker_accepting: broker_accepting.with_label_values::<&str>(&[]),
            messages_refused,
            refusals,
            broker: Contact::new(),
            database: Contact::new(),
            announced: AtomicBool::new(false),
            registry,
        })
    }

    /// The metrics of the lane that consumes `queue`.
    ///
    /// # Panics
    /// If the queue is not one of those given to [`Metrics::new`].
    #[must_use]
    pub fn lane(&self, queue: &str) -> &Lane {
        &self.lanes[queue]
    }

    /// Parked deliveries dropped for this reason.
    #[must_use]
    pub fn dropped(&self, why: Dropped) -> &IntCounter {
        match why {
            Dropped::Deleted => &self.dropped_deleted,
            Dropped::Disabled => &self.dropped_disabled,
        }
    }

    /// Changes of a circuit breaker to this state. Rare, so it is looked up each time.
    #[must_use]
    pub fn transition(&self, transition: Transition) -> IntCounter {
        self.transitions.with_label_values(&[transition.label()])
    }

    /// Where the directory counts its answers.
    #[must_use]
    pub fn lookups(&self) -> Lookups {
        self.lookups.clone()
    }

    /// Where the delivery log counts its entries.
    #[must_use]
    pub fn log_rows(&self) -> LogRows {
        self.log_rows.clone()
    }

    /// Says who knows what changes by the clock too: it is asked when somebody reads the metrics.
    pub fn look_by(&self, look: impl Fn() -> Glance + Send + Sync + 'static) {
        // A second one would be a mistake of the wiring, without consequence.
        let _ = self.look.set(Look(Box::new(look)));
    }

    /// Where it is counted what of the topology is lost.
    #[must_use]
    pub fn topology(&self) -> TopologyCounts {
        self.topology.clone()
    }

    /// Sets how many messages are ready in a queue; `None`, if it is not there to be asked.
    pub fn set_queue_messages(&self, queue: &str, messages: Option<u32>) {
        match messages {
            Some(messages) => {
                self.queue_messages.with_label_values(&[queue]).set(messages.into());
                self.depths().insert(queue.to_owned(), messages);
            }
            None => {
                // Fails if it has no value already.
                let _ = self.queue_messages.remove_label_values(&[queue]);
                self.depths().remove(queue);
            }
        }
    }

    /// Sets how many backlogs of a queue hold something, and how many deliveries all of them.
    pub fn set_backlogs(&self, queue: &str, backlogs: i64, deliveries: i64) {
        self.backlogs.with_label_values(&[queue]).set(backlogs);
        self.backlog_deliveries.with_label_values(&[queue]).set(deliveries);
    }

    /// How many deliveries waited in the backlogs of a queue when they were last counted.
    #[must_use]
    pub fn backlog_deliveries(&self, queue: &str) -> i64 {
        self.backlog_deliveries.with_label_values(&[queue]).get()
    }

    /// Backlogs that somebody else deleted.
    #[must_use]
    pub fn backlogs_lost(&self) -> &IntCounter {
        &self.backlogs_lost
    }

    /// How many messages were ready in one of the watched queues when RabbitMQ last answered;
    /// `None` before it has, and while there is no such queue.
    #[must_use]
    pub fn queue_messages(&self, queue: &str) -> Option<i64> {
        self.depths().get(queue).map(|messages| i64::from(*messages))
    }

    fn depths(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.depths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether a lane consumes its queue. The first time that all of them do is worth a line.
    pub fn set_consuming(&self, queue: &str, consuming: bool) {
        let lane = self.lane(queue);
        lane.connected.set(consuming.into());
        if consuming {
            lane.standing.begin();
        } else {
            lane.standing.end();
        }
        let all = self.lanes.values().all(|lane| lane.connected.get() == 1);
        if all && !self.announced.swap(true, Ordering::Relaxed) {
            let queues: Vec<&str> = self.lanes.keys().map(String::as_str).collect();
            log::info!("ready: consuming {}", queues.join(", "));
        }
    }

    /// Says why a lane does not consume its queue.
    pub fn set_interruption(&self, queue: &str, why: Interruption) {
        self.lane(queue).standing.explain(why);
    }

    /// Whether RabbitMQ answers the monitor, on a connection of its own.
    #[must_use]
    pub fn broker(&self) -> &Contact {
        &self.broker
    }

    /// Whether requests get out to receivers.
    #[must_use]
    pub fn egress(&self) -> &EgressState {
        &self.egress
    }

    /// What becomes of notices.
    #[must_use]
    pub fn notices(&self) -> &NoticesState {
        &self.notices
    }

    /// Which instances share the limits of webhooks.
    #[must_use]
    pub fn instances(&self) -> &InstancesState {
        &self.instances
    }

    /// Whether PostgreSQL answers.
    #[must_use]
    pub fn database(&self) -> &Contact {
        &self.database
    }

    /// What is not ready, a line each; empty when everything is.
    #[must_use]
    pub fn not_ready(&self) -> Vec<String> {
        let lanes = self.lanes.iter().filter(|(_, lane)| lane.connected.get() == 0);
        let mut problems: Vec<String> =
            lanes.map(|(queue, _)| format!("lane {queue} is not consuming")).collect();
        if !self.database.is_up() {
            problems.push(match self.database.problem() {
                None => "PostgreSQL does not answer".to_owned(),
                Some(problem) => format!("PostgreSQL answers with an error: {problem}"),
            });
        }
        problems
    }

    /// What changes by the clock too, right now; `None` while the process starts.
    #[must_use]
    pub fn glance(&self) -> Option<Glance> {
        self.look.get().map(|Look(look)| look())
    }

    /// Everything in Prometheus' text format.
    ///
    /// # Errors
    /// If the encoder fails, which it does only on a metric without a value.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.database_up.set(self.database.is_up().into());
        self.lanes.values().for_each(|lane| lane.waiting.look());
        if let Some(glance) = self.glance() {
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
        }
        let mut text = Vec::with_capacity(32 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

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

struct Look(Box<dyn Fn() -> Glance + Send + Sync>);

impl std::fmt::Debug for Look {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Look")
    }
}

/// The directory's answers, by where they came from.
#[derive(Clone, Debug)]
pub struct Lookups {
    /// From memory, which is certain.
    pub memory: IntCounter,
    /// From PostgreSQL.
    pub database: IntCounter,
    /// From memory, while PostgreSQL is away.
    pub last_known: IntCounter,
}

/// The entries of the delivery log.
#[derive(Clone, Debug)]
pub struct LogRows {
    /// They are in the table.
    pub written: IntCounter,
    /// They are not, because PostgreSQL was away or slow, or has no table for them.
    pub dropped: IntCounter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_counts_under_its_own_label() {
        let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
        for (n, reason) in (1..).zip(Reason::ALL) {
            metrics.lane("q").failure(reason).inc_by(n);
        }
        for (n, reason) in (1..).zip(DeadReason::ALL) {
            metrics.lane("q").dead_letters(reason).inc_by(n);
        }
        let text = String::from_utf8(metrics.encode().expect("metrics")).expect("UTF-8");
        for (n, reason) in (1..).zip(Reason::ALL.map(Reason::label)) {
            let line =
                format!("webhook_request_failure_total{{queue=\"q\",reason=\"{reason}\"}} {n}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        for (n, reason) in (1..).zip(DeadReason::ALL.map(DeadReason::label)) {
            let line =
                format!("webhook_dead_letters_total{{queue=\"q\",reason=\"{reason}\"}} {n}\n");
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn counts_have_each_lag_in_the_bucket_that_it_fell_into() {
        let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
        let lane = metrics.lane("q");
        for lag in [0.004, 0.005, 0.006, 172_800.0, 172_801.0] {
            lane.lag.observe(lag);
        }
        lane.received.inc_by(4);
        lane.failure(Reason::Dns).inc();
        lane.failure(Reason::Io).inc();
        let counts = lane.counts();
        assert_eq!((counts.received, counts.delivered, counts.failed), (4, 0, 2));
        assert_eq!(counts.lag.len(), LAG_SECONDS.len() + 1);
        assert_eq!(counts.lag[..3], [2, 1, 0]);
        assert_eq!(counts.lag[12..], [0, 1, 1]);
    }

    #[test]
    fn not_ready_names_what_is_missing() {
        let metrics = Metrics::new(["a".to_owned(), "b".to_owned()]).expect("distinct names");
        metrics.set_consuming("b", true);
        assert_eq!(metrics.not_ready(), ["lane a is not consuming", "PostgreSQL does not answer"]);
        metrics.set_consuming("a", true);
        metrics.database().answered();
        assert!(metrics.not_ready().is_empty());
    }
}
