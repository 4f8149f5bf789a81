//! The Prometheus metrics.
//!
//! The series of labelled metrics are created once, at the start: a look-up by label takes a lock and a hash, and
//! alerts need series that exist from the start.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Result;
use prometheus::{
    Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
    process_collector::ProcessCollector,
};

use crate::domain::held::Dropped;
use crate::domain::receiver::Transition;
use crate::health::{Health, LaneState};

mod egress;
mod live;
mod instances;
mod lane;
mod maker;
mod notices;
mod topology;
mod waiting;

use lane::LaneFamilies;
use live::{LiveMetrics, ReadLive};
use maker::MetricMaker;

pub use egress::EgressState;
pub use instances::InstancesState;
pub use lane::{LAG_SECONDS, LaneMetrics};
pub use live::{InUse, LiveValues, Refusing};
pub use notices::{AutoDisabled, NoticesState};
pub use topology::{ObjectKind, TopologyCounts};

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    lanes: BTreeMap<String, LaneMetrics>,
    queue_messages: IntGaugeVec,
    /// The values of `queue_messages`, for [`Metrics::queue_messages`].
    depths: Mutex<BTreeMap<String, u32>>,
    backlogs: IntGaugeVec,
    backlog_deliveries: IntGaugeVec,
    backlogs_lost: IntCounter,
    topology: TopologyCounts,
    dropped_deleted: IntCounter,
    dropped_disabled: IntCounter,
    transitions: IntCounterVec,
    lookups: DirectoryLookups,
    log_rows: LogRows,
    live_metrics: LiveMetrics,
    /// Returns the live values. Called when the metrics are read.
    read_live: OnceLock<ReadLive>,
    database_up: IntGauge,
    egress: EgressState,
    notices: NoticesState,
    instances: InstancesState,
    health: Health,
}

impl Metrics {
    /// Registers all metrics. `queues` are the queues that the lanes consume.
    ///
    /// # Errors
    /// Only if two metrics have the same name.
    pub fn new(queues: impl IntoIterator<Item = String>) -> Result<Self> {
        let registry = Registry::new();
        let make = MetricMaker(&registry);
        let backlogs = make.gauge(
            "webhook_backlogs",
            "Backlogs that are not empty; each belongs to one webhook",
            &["queue"],
        )?;
        let backlog_deliveries = make.gauge(
            "webhook_backlog_deliveries",
            "Deliveries that wait in backlogs; every five seconds, twenty backlogs are counted",
            &["queue"],
        )?;
        let backlogs_lost = make.counter(
            "webhook_backlogs_lost_total",
            "Backlogs that somebody else deleted, with the deliveries in them",
            &[],
        )?;
        let topology = TopologyCounts::new(&make)?;
        let notices = NoticesState::new(&make)?;
        let instances = InstancesState::new(&make)?;
        let transitions = make.counter(
            "webhook_circuit_breaker_transitions_total",
            "State changes of circuit breakers, by the new state",
            &["state"],
        )?;
        for transition in Transition::ALL {
            transitions.with_label_values(&[transition.label()]);
        }
        let dropped = make.counter(
            "webhook_deliveries_dropped_total",
            "Waiting deliveries dropped because their webhook was deleted or disabled, by reason",
            &["reason"],
        )?;
        let queue_messages = make.gauge(
            "webhook_queue_messages",
            "Messages ready in the queue; refreshed every five seconds",
            &["queue"],
        )?;
        let lookups = make.counter(
            "webhook_directory_lookups_total",
            "Look-ups of the webhooks that want an event, by the source of the answer",
            &["answer"],
        )?;
        let lookups = DirectoryLookups {
            memory: lookups.with_label_values(&["memory"]),
            database: lookups.with_label_values(&["database"]),
            last_known: lookups.with_label_values(&["last_known"]),
        };
        let log_rows = make.counter(
            "webhook_delivery_log_rows_total",
            "Entries of the delivery log, by result",
            &["result"],
        )?;
        let log_rows = LogRows {
            written: log_rows.with_label_values(&["written"]),
            dropped: log_rows.with_label_values(&["dropped"]),
        };
        let egress_proxy_up = make.gauge(
            "webhook_egress_proxy_up",
            "0 while EGRESS_PROXY lets no request through; otherwise 1, also without a proxy",
            &[],
        )?;
        let database_up = make.gauge("webhook_database_up", "1 while PostgreSQL answers", &[])?;
        make.gauge("webhook_build_info", "Always 1; the version is a label", &["version"])?
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        registry.register(Box::new(ProcessCollector::for_self()))?;

        let families = LaneFamilies::new(&make)?;
        let lanes: BTreeMap<_, _> =
            queues.into_iter().map(|queue| (queue.clone(), families.lane(&queue))).collect();
        let health = Health::new(lanes.keys().cloned());
        Ok(Self {
            lanes,
            queue_messages,
            depths: Mutex::default(),
            backlogs,
            backlog_deliveries,
            backlogs_lost: backlogs_lost.with_label_values::<&str>(&[]),
            topology,
            dropped_deleted: dropped.with_label_values(&[Dropped::Deleted.label()]),
            dropped_disabled: dropped.with_label_values(&[Dropped::Disabled.label()]),
            transitions,
            lookups,
            log_rows,
            live_metrics: LiveMetrics::new(&make)?,
            read_live: OnceLock::new(),
            database_up: database_up.with_label_values::<&str>(&[]),
            egress: EgressState::new(egress_proxy_up.with_label_values::<&str>(&[])),
            notices,
            instances,
            health,
            registry,
        })
    }

    /// The metrics of the lane that consumes `queue`.
    ///
    /// # Panics
    /// If the queue is not one of those given to [`Metrics::new`].
    #[must_use]
    pub fn lane(&self, queue: &str) -> &LaneMetrics {
        &self.lanes[queue]
    }

    /// The counter of waiting deliveries that were dropped for this reason.
    #[must_use]
    pub fn dropped(&self, why: Dropped) -> &IntCounter {
        match why {
            Dropped::Deleted => &self.dropped_deleted,
            Dropped::Disabled => &self.dropped_disabled,
        }
    }

    /// The counter of circuit breakers' changes to this state. They are rare, so it is looked up each time.
    #[must_use]
    pub fn transition(&self, transition: Transition) -> IntCounter {
        self.transitions.with_label_values(&[transition.label()])
    }

    /// The counters of the directory's answers.
    #[must_use]
    pub fn lookups(&self) -> DirectoryLookups {
        self.lookups.clone()
    }

    /// The counters of the delivery log's entries.
    #[must_use]
    pub fn log_rows(&self) -> LogRows {
        self.log_rows.clone()
    }

    /// Sets the function that returns the live values. It is called whenever the metrics are read.
    pub fn set_live_values(&self, read: impl Fn() -> LiveValues + Send + Sync + 'static) {
        // Fails only if it is set already: that would be a harmless mistake in `app`.
        let _ = self.read_live.set(ReadLive(Box::new(read)));
    }

    /// The counters of lost and unusable topology objects.
    #[must_use]
    pub fn topology(&self) -> TopologyCounts {
        self.topology.clone()
    }

    /// Sets how many messages are ready in a queue; `None` if the queue does not exist.
    pub fn set_queue_messages(&self, queue: &str, messages: Option<u32>) {
        match messages {
            Some(messages) => {
                self.queue_messages.with_label_values(&[queue]).set(messages.into());
                self.depths().insert(queue.to_owned(), messages);
            }
            None => {
                // Fails only if the queue has no value.
                let _ = self.queue_messages.remove_label_values(&[queue]);
                self.depths().remove(queue);
            }
        }
    }

    /// Sets how many backlogs of a queue are not empty, and how many deliveries they hold in total.
    pub fn set_backlogs(&self, queue: &str, backlogs: i64, deliveries: i64) {
        self.backlogs.with_label_values(&[queue]).set(backlogs);
        self.backlog_deliveries.with_label_values(&[queue]).set(deliveries);
    }

    /// The number of deliveries in the backlogs of a queue, as last counted.
    #[must_use]
    pub fn backlog_deliveries(&self, queue: &str) -> i64 {
        self.backlog_deliveries.with_label_values(&[queue]).get()
    }

    /// The counter of backlogs that somebody else deleted.
    #[must_use]
    pub fn backlogs_lost(&self) -> &IntCounter {
        &self.backlogs_lost
    }

    /// How many messages were ready in a queue when RabbitMQ last answered; `None` before its first answer, and
    /// while the queue does not exist.
    #[must_use]
    pub fn queue_messages(&self, queue: &str) -> Option<i64> {
        self.depths().get(queue).map(|messages| i64::from(*messages))
    }

    fn depths(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.depths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of the lanes, servers and threads.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Whether EGRESS_PROXY lets requests through.
    #[must_use]
    pub fn egress(&self) -> &EgressState {
        &self.egress
    }

    /// The state of notices.
    #[must_use]
    pub fn notices(&self) -> &NoticesState {
        &self.notices
    }

    /// The instances that share the limits of webhooks.
    #[must_use]
    pub fn instances(&self) -> &InstancesState {
        &self.instances
    }

    /// The live values at this moment; `None` while the process starts.
    #[must_use]
    pub fn live_values(&self) -> Option<LiveValues> {
        self.read_live.get().map(|ReadLive(read)| read())
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// If the encoder fails, which it does only for a metric without a value.
    pub fn encode(&self) -> Result<Vec<u8>> {
        self.database_up.set(self.health.database().is_up().into());
        for (queue, lane) in &self.lanes {
            let consumes = self.health.lane(queue).0 == LaneState::Consuming;
            lane.connected.set(consumes.into());
            lane.waiting.update();
        }
        if let Some(live) = self.live_values() {
            self.live_metrics.set(&live)?;
        }
        let mut text = Vec::with_capacity(32 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// The counters of the directory's answers, by their source.
#[derive(Clone, Debug)]
pub struct DirectoryLookups {
    /// From memory, and known to be current.
    pub memory: IntCounter,
    /// From PostgreSQL.
    pub database: IntCounter,
    /// From memory while PostgreSQL is away.
    pub last_known: IntCounter,
}

/// The counters of the delivery log's entries.
#[derive(Clone, Debug)]
pub struct LogRows {
    /// Written to the table.
    pub written: IntCounter,
    /// Not written: PostgreSQL was away or slow, or the table is missing.
    pub dropped: IntCounter,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::{DeadReason, Reason};

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
    fn each_lag_is_counted_in_its_own_bucket_only() {
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
}
