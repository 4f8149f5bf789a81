//! What /status.json has. Times are in seconds and relative, so that nobody's clock matters but
//! ours.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use super::advice;
use crate::domain::depths::Depths;
use crate::domain::time::Moment;
use crate::domain::trend::Bound;

/// What was counted since the start of the process, by the label that /metrics has; without what never was.
pub(super) type Counted = BTreeMap<&'static str, u64>;

/// How everything is at one moment.
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
    /// The error that PostgreSQL answers with, if that is what is wrong.
    pub(super) database_problem: Option<String>,
    pub(super) directory_age_seconds: f64,
    /// Whether RabbitMQ takes what has to wait or is dead; `None` while we start.
    pub(super) broker_accepts: Option<bool>,
    /// What keeps EGRESS_PROXY from letting requests through, and for how long.
    pub(super) egress_problem: Option<EgressNow>,
    /// What keeps notices from being published, and for how long.
    pub(super) notices_problem: Option<NoticesNow>,
    /// The instances that share the limits of webhooks, by host and port, this one included; none while they
    /// are not known.
    pub(super) instances: Vec<String>,
    /// Why they can't be known.
    pub(super) instances_problem: Option<String>,
    /// Webhooks that were disabled within the last day because they had failed for DISABLE_AFTER.
    pub(super) disabled_lately: Vec<DisabledNow>,
    /// The queues that take no messages of ours.
    pub(super) refusing: Vec<RefusingNow>,
    /// How old the numbers of messages in queues are; `None` before there are any.
    pub(super) depths_age_seconds: Option<f64>,
    pub(super) lanes: Vec<LaneNow>,
    /// By delay, shortest first.
    pub(super) waiting: Vec<WaitQueueNow>,
    /// What no retry queue has taken, of all queues and all notifiers.
    pub(super) orphaned: Option<i64>,
    /// Deliveries dropped because their webhook is gone, by reason.
    pub(super) dropped: Counted,
    /// How often RabbitMQ did not take a message of ours into its queue, since the start.
    pub(super) refusals: u64,
    /// Queues, exchanges and bindings that are missing, can't be used, or were lost within an hour.
    pub(super) objects: Vec<ObjectNow>,
    pub(super) backlogs: BacklogsNow,
    pub(super) receivers: ReceiversNow,
    /// When the trends' steps began and ended: one more than each has.
    pub(super) sample_ages_seconds: Vec<f64>,
}

/// A server that we need.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Server {
    /// `None` before it was asked.
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

/// A webhook that was disabled by itself.
#[derive(Clone, Debug, Serialize)]
pub(super) struct DisabledNow {
    pub(super) webhook: Uuid,
    pub(super) reason: String,
}

/// A queue that takes no messages of ours.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RefusingNow {
    pub(super) queue: String,
    /// How many wait for it in hand.
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
    pub(super) state: LaneState,
    pub(super) lasted_seconds: f64,
    pub(super) ready: Option<i64>,
    /// By how many these become more a second; `None` before they were counted twice.
    pub(super) growth_per_second: Option<f64>,
    /// How long until there are none at the present pace; `None` while they don't become fewer.
    pub(super) empty_in_seconds: Option<f64>,
    /// Dead letters; those of the queue's retries too, so only its first lane has them.
    pub(super) dead: Option<i64>,
    pub(super) in_flight: i64,
    /// Of the queue, its retries included, so only its first lane has it: the most requests that may
    /// be under way, and how many are.
    pub(super) capacity: Option<usize>,
    pub(super) in_use: Option<usize>,
    pub(super) received: u64,
    pub(super) delivered: u64,
    pub(super) failed: u64,
    /// Deliveries that got no attempt when they came, by reason.
    pub(super) held: Counted,
    /// What became a dead letter, by reason.
    pub(super) died: Counted,
    /// Over the last minute; `None` in the first seconds of the process.
    pub(super) rates: Option<Rates>,
    /// Over the time of the trend, as is the next.
    pub(super) lag_p50: Option<Quantile>,
    pub(super) lag_p99: Option<Quantile>,
    /// Of the queue with its retries and backlogs, so only its first lane has it; as is the next.
    pub(super) queue_lag_p50: Option<Quantile>,
    pub(super) queue_lag_p99: Option<Quantile>,
    pub(super) trend: Trend,
}

/// Whether a lane consumes, and if not, what it has not got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum LaneState {
    Starting,
    Consuming,
    NoBroker,
    NoConfirms,
    NoDatabase,
}

/// Per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Rates {
    pub(super) received: f64,
    pub(super) delivered: f64,
    pub(super) failed: f64,
}

/// The bound of a quantile, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Quantile {
    seconds: f64,
    /// Whether it is more than that; else it is that at most.
    is_more: bool,
}

/// What was counted from each sample to the next, oldest first.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Trend {
    pub(super) delivered: Vec<u64>,
    pub(super) failed: Vec<u64>,
}

/// Deliveries that wait for one delay, whichever queue they are from and whoever parked them.
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
    /// Of a binding, its queue's.
    pub(super) name: String,
    /// Whether it is there, and is what we need.
    pub(super) is_there: bool,
    /// Why it can't be used.
    pub(super) problem: Option<String>,
    /// How long ago it was lost; `None` if it was not, or over an hour ago.
    pub(super) lost_seconds: Option<f64>,
    /// What a lost queue held when it was last counted.
    pub(super) messages: u32,
}

/// The backlogs that hold something: how many, of how many webhooks, how many of these are sought (all, if
/// none are); and those of the webhooks for which most waits, and of the receivers that are listed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BacklogsNow {
    pub(super) filled: usize,
    pub(super) webhooks: usize,
    pub(super) matching: usize,
    pub(super) listed: Vec<BacklogNow>,
}

/// One of these.
#[derive(Clone, Debug, Serialize)]
pub(super) struct BacklogNow {
    pub(super) queue: String,
    pub(super) webhook: Uuid,
    /// Whose webhook it is, as far as that is remembered.
    pub(super) account: Option<String>,
    /// Host and path of its URL, as far as that is known.
    pub(super) place: Option<String>,
    pub(super) waiting: u32,
    pub(super) lasted_seconds: f64,
    /// By the label that /metrics has.
    pub(super) cause: String,
    /// When it can go on at the earliest; `None` if that is not known.
    pub(super) next_in_seconds: Option<f64>,
    /// By how many it grows a second; `None` before it was counted twice.
    pub(super) growth_per_second: Option<f64>,
    /// How long until it is empty at the present pace; `None` while it doesn't shrink.
    pub(super) empty_in_seconds: Option<f64>,
    pub(super) trend: BacklogTrend,
}

/// How many waited when, oldest first.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct BacklogTrend {
    pub(super) ages_seconds: Vec<f64>,
    pub(super) waiting: Vec<u32>,
}

impl BacklogTrend {
    /// As it is at `now`.
    pub(super) fn of(depths: &Depths, now: Moment) -> Self {
        let counts = depths.counts();
        let age = |at: Moment| seconds(now.saturating_sub(at));
        let (ages_seconds, waiting) = counts.map(|(at, count)| (age(at), count)).unzip();
        Self { ages_seconds, waiting }
    }
}

/// The receivers that were asked lately: how many, how many of them have an ailment; how many are sought (or
/// have an ailment, if none are), and the worst of these.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReceiversNow {
    pub(super) known: usize,
    pub(super) ailing: usize,
    pub(super) broken: usize,
    pub(super) matching: usize,
    pub(super) listed: Vec<Ailing>,
}

/// One of these receivers.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ailing {
    pub(super) webhook: Uuid,
    /// Whose webhook it is, as far as that is remembered.
    pub(super) account: Option<String>,
    /// Host and path of its URL, as far as that is known.
    pub(super) place: Option<String>,
    /// `well` and `unproven` (it has not answered yet) are none.
    pub(super) condition: &'static str,
    /// In a row.
    pub(super) failures: u32,
    /// Of the last failure, by the label that /metrics has.
    pub(super) reason: Option<&'static str>,
    /// Of the last answer, if that is what failed.
    pub(super) status: Option<u16>,
    /// For how long something has been wrong.
    pub(super) lasted_seconds: Option<f64>,
    /// Whether its probe is under way.
    pub(super) is_probed: bool,
    /// How long it is left alone; `None` if it gets the next delivery that there is.
    pub(super) next_in_seconds: Option<f64>,
}

impl Quantile {
    /// Whether it is more than that for sure, or in the bucket above it.
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

/// As a number of seconds.
pub(super) fn seconds(duration: Duration) -> f64 {
    rounded(duration.as_secs_f64())
}

/// To the thousandth: beyond it there are only more digits.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1_000.0).round() / 1_000.0
}
