//! The content of /status.json. All times are durations in seconds, so that the browser's clock doesn't matter.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::advice;
use crate::domain::depths::Depths;
use crate::domain::time::Moment;
use crate::domain::trend::Bound;

/// Counts since the start of the process, by their labels in /metrics, without zeros.
pub(super) type Counted = BTreeMap<&'static str, u64>;

/// The state at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    pub(super) version: &'static str,
    pub(super) host: String,
    pub(super) pid: u32,
    pub(super) uptime_seconds: f64,
    pub(super) is_stopping: bool,
    pub(super) state: advice::Overall,
    /// What is wrong and what to do, the worst first.
    pub(super) advice: Vec<advice::Advice>,
    pub(super) broker: Server,
    pub(super) database: Server,
    /// The error with which PostgreSQL answers, if it answers with one.
    pub(super) database_problem: Option<String>,
    pub(super) directory_age_seconds: f64,
    /// Whether RabbitMQ accepts messages; `None` while the process starts.
    pub(super) broker_accepts: Option<bool>,
    /// Why EGRESS_PROXY lets no requests through, and for how long.
    pub(super) egress_problem: Option<EgressNow>,
    /// Why notices can't be published, and for how long.
    pub(super) notices_problem: Option<NoticesNow>,
    /// The instances that share the limits of webhooks, including this one, as host and port; empty while they
    /// are unknown.
    pub(super) instances: Vec<String>,
    /// Why the instances are unknown.
    pub(super) instances_problem: Option<String>,
    /// Webhooks that were disabled within the last day because they failed for DISABLE_AFTER.
    pub(super) disabled_lately: Vec<DisabledNow>,
    /// The queues that accept none of our messages.
    pub(super) refusing: Vec<RefusingNow>,
    /// The age of the numbers of messages; `None` before the first count.
    pub(super) depths_age_seconds: Option<f64>,
    pub(super) lanes: Vec<LaneNow>,
    /// The wait queues, the shortest delay first.
    pub(super) waiting: Vec<WaitQueueNow>,
    /// The messages in `webhooks.orphaned`, from the queues of all notifiers.
    pub(super) orphaned: Option<i64>,
    /// Deliveries dropped because their webhook was deleted or disabled, by reason.
    pub(super) dropped: Counted,
    /// How often RabbitMQ didn't accept a message of ours into a queue, since the start of the process.
    pub(super) refusals: u64,
    /// Queues, exchanges and bindings that are missing, can't be used, or were lost within an hour.
    pub(super) objects: Vec<ObjectNow>,
    pub(super) backlogs: BacklogsNow,
    pub(super) receivers: ReceiversNow,
    /// The ages of the samples between which the trends' steps are: one more than there are steps.
    pub(super) sample_ages_seconds: Vec<f64>,
}

/// The state of a server that we need.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Server {
    /// Whether it answers; `None` before it was asked.
    pub(super) answers: Option<bool>,
    pub(super) lasted_seconds: f64,
}

/// EGRESS_PROXY lets no request through.
#[derive(Clone, Debug, Serialize)]
pub(super) struct EgressNow {
    pub(super) problem: String,
    pub(super) lasted_seconds: f64,
}

/// Notices can't be published.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NoticesNow {
    pub(super) problem: String,
    pub(super) lasted_seconds: f64,
}

/// A webhook that the notifier disabled by itself.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DisabledNow {
    pub(super) webhook: Uuid,
    pub(super) reason: String,
}

/// A queue that accepts none of our messages.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RefusingNow {
    pub(super) queue: String,
    /// How many messages wait for it.
    pub(super) messages: usize,
    pub(super) lasted_seconds: f64,
}

/// One lane. Counts are since the start of the process.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LaneNow {
    pub(super) queue: String,
    pub(super) origin: String,
    pub(super) kind: &'static str,
    pub(super) consumers: i64,
    pub(super) state: LaneStatus,
    pub(super) lasted_seconds: f64,
    pub(super) ready: Option<i64>,
    /// The growth of `ready` per second; `None` before two counts.
    pub(super) growth_per_second: Option<f64>,
    /// The time until none are left at the present rate; `None` unless they become fewer.
    pub(super) empty_in_seconds: Option<f64>,
    /// The queue's dead letters, including those of its retries. Only its first lane has this number.
    pub(super) dead: Option<i64>,
    pub(super) in_flight: i64,
    /// The queue's maximum number of requests in flight, including those of its retries and backlogs, and how
    /// many are. Only its first lane has these numbers.
    pub(super) capacity: Option<usize>,
    pub(super) in_use: Option<usize>,
    pub(super) received: u64,
    pub(super) delivered: u64,
    pub(super) failed: u64,
    /// Deliveries that were not attempted when they arrived, by reason.
    pub(super) held: Counted,
    /// Dead letters, by reason.
    pub(super) died: Counted,
    /// The rates of the last minute; `None` in the first seconds of the process.
    pub(super) rates: Option<Rates>,
    /// Quantiles of the lag, over the period of the trend.
    pub(super) lag_p50: Option<Quantile>,
    pub(super) lag_p99: Option<Quantile>,
    /// The same for the queue with its retries and backlogs. Only its first lane has these.
    pub(super) queue_lag_p50: Option<Quantile>,
    pub(super) queue_lag_p99: Option<Quantile>,
    pub(super) trend: Trend,
}

/// Whether a lane consumes, and if not, what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LaneStatus {
    Starting,
    Consuming,
    NoBroker,
    NoConfirms,
    NoDatabase,
}

/// Rates per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Rates {
    pub(super) received: f64,
    pub(super) delivered: f64,
    pub(super) failed: f64,
}

/// A quantile, by a bound in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Quantile {
    seconds: f64,
    /// Whether the quantile is above the bound; otherwise it is at most that.
    is_more: bool,
}

/// The counts from each sample to the next, oldest first.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Trend {
    pub(super) delivered: Vec<u64>,
    pub(super) failed: Vec<u64>,
}

/// The deliveries that wait for one delay, of all queues and all instances.
#[derive(Clone, Debug, Serialize)]
pub(super) struct WaitQueueNow {
    pub(super) delay: String,
    pub(super) queue: String,
    pub(super) messages: Option<i64>,
}

/// One of the queues, exchanges and bindings that we need.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ObjectNow {
    /// `queue`, `exchange` or `binding`.
    pub(super) kind: &'static str,
    /// For a binding, the name of its queue.
    pub(super) name: String,
    /// Whether it exists as we need it.
    pub(super) is_there: bool,
    /// Why it can't be used.
    pub(super) problem: Option<String>,
    /// How long ago it was lost; `None` if it wasn't, or over an hour ago.
    pub(super) lost_seconds: Option<f64>,
    /// How many messages a lost queue held when it was last counted.
    pub(super) messages: u32,
}

/// The backlogs that aren't empty: how many there are (`filled`), how many webhooks they belong to, and how many
/// of these webhooks match the search (without one, all). The list has the backlogs of the webhooks with the most
/// waiting deliveries, and those of the listed receivers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BacklogsNow {
    pub(super) filled: usize,
    pub(super) webhooks: usize,
    pub(super) matching: usize,
    pub(super) listed: Vec<BacklogNow>,
}

/// One of these backlogs.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BacklogNow {
    pub(super) queue: String,
    pub(super) webhook: Uuid,
    /// The webhook's account, if it is known.
    pub(super) account: Option<String>,
    /// The host and path of its URL, if they are known.
    pub(super) place: Option<String>,
    pub(super) waiting: u32,
    pub(super) lasted_seconds: f64,
    /// Why they wait: the label in /metrics.
    pub(super) cause: String,
    /// The earliest time of the next attempt; `None` if it isn't known.
    pub(super) next_in_seconds: Option<f64>,
    /// Its growth per second; `None` before two counts.
    pub(super) growth_per_second: Option<f64>,
    /// The time until it is empty at the present rate; `None` unless it shrinks.
    pub(super) empty_in_seconds: Option<f64>,
    pub(super) trend: BacklogTrend,
}

/// How many deliveries waited at each time, oldest first.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct BacklogTrend {
    pub(super) ages_seconds: Vec<f64>,
    pub(super) waiting: Vec<u32>,
}

impl BacklogTrend {
    /// The trend as of `now`.
    pub(super) fn of(depths: &Depths, now: Moment) -> Self {
        let counts = depths.counts();
        let age = |at: Moment| seconds(now.saturating_sub(at));
        let (ages_seconds, waiting) = counts.map(|(at, count)| (age(at), count)).unzip();
        Self { ages_seconds, waiting }
    }
}

/// The receivers that this process remembers: how many there are (`known`), how many fail or are slow (`ailing`),
/// how many have an open circuit breaker (`broken`), and how many match the search (without one, those that are
/// ailing). The list has the worst of the latter.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReceiversNow {
    pub(super) known: usize,
    pub(super) ailing: usize,
    pub(super) broken: usize,
    pub(super) matching: usize,
    pub(super) listed: Vec<ReceiverNow>,
}

/// One of these receivers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReceiverNow {
    pub(super) webhook: Uuid,
    /// The webhook's account, if it is known.
    pub(super) account: Option<String>,
    /// The host and path of its URL, if they are known.
    pub(super) place: Option<String>,
    /// With `well` and `unproven` (it hasn't answered yet), nothing is wrong.
    pub(super) condition: &'static str,
    /// How many attempts in a row have failed.
    pub(super) failures: u32,
    /// The last failure's label in /metrics.
    pub(super) reason: Option<&'static str>,
    /// The status of the last answer, if that was the failure.
    pub(super) status: Option<u16>,
    /// For how long something has been wrong.
    pub(super) lasted_seconds: Option<f64>,
    /// Whether a probe is in flight.
    pub(super) is_probed: bool,
    /// How long it gets no request; `None` if it gets the next delivery at once.
    pub(super) next_in_seconds: Option<f64>,
}

impl Quantile {
    /// Whether it is certainly above `seconds`, or in the bucket above it.
    pub(super) fn is_above(self, seconds: f64) -> bool {
        self.seconds > seconds || self.is_more && self.seconds >= seconds
    }
}

impl From<Bound> for Quantile {
    fn from(bound: Bound) -> Self {
        match bound {
            Bound::AtMost(seconds) => Self { seconds, is_more: false },
            Bound::Above(seconds) => Self { seconds, is_more: true },
        }
    }
}

/// A duration as a number of seconds.
pub(super) fn seconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64())
}

/// A number rounded to three decimals.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}
