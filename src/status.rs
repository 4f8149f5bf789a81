//! What the status page shows: how everything is right now, and how it was in the last 15 minutes.
//!
//! The numbers are read from the same counters and gauges as /metrics, so both say the same. A
//! thread of its own samples the counters every five seconds, of which rates, plots and quantiles
//! are made ([`crate::domain::trend`]). What it comes to in words is in `advice`. Nothing here
//! names a URL, a secret or an event.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use crate::backlogs::{Backlogs, Listed};
use crate::broker::{Lane, LaneKind, ORPHANED, Objects, Standing, Topology, dead_queue};
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::account::MAX_ACCOUNT_BYTES;
use crate::domain::receiver::{Ailment, Next};
use crate::domain::shown;
use crate::domain::trend::{Counts, History, Sample, per_second, quantile};
use crate::metrics::{Answers, Glance, Interruption, LAG_SECONDS, LaneState, Metrics, Refusing};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;

mod advice;
mod snapshot;

pub use snapshot::Snapshot;
use snapshot::{
    Ailing, BacklogNow, BacklogsNow, DisabledNow, EgressNow, LaneNow, NoticesNow, ObjectNow, Rates,
    ReceiversNow, RefusingNow, Server, Trend, Waiting, rounded, seconds,
};

/// How often the counters are sampled: as often as the page asks, so that each time brings a new
/// step, and seldom enough to cost nothing.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How far back the page looks.
const SPAN: Duration = Duration::from_secs(15 * 60);

/// One more than there are steps. With six lanes all samples take 200 KB.
const MOST_SAMPLES: usize = 181;

/// What a rate is the average of: long enough to be steady, short enough to be now.
const RATE_SPAN: Duration = Duration::from_secs(60);

/// Ailing receivers that the page lists. With more of them, what is wrong is not theirs.
const MOST_LISTED: usize = 50;

/// All that is needed to say how the process is.
#[derive(Debug)]
pub struct Status {
    metrics: Arc<Metrics>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    backlogs: Arc<Backlogs>,
    objects: Arc<Objects>,
    stopping: Shutdown,
    lanes: Vec<Lane>,
    /// The delays of the wait queues, as they are written, and the queues.
    waits: Vec<(String, String)>,
    host: String,
    started: Instant,
    history: Mutex<History>,
}

impl Status {
    /// Of a process that has just started; `stopping` is its shutdown.
    #[must_use]
    pub fn new(
        config: &Config,
        metrics: Arc<Metrics>,
        directory: Arc<Directory>,
        receivers: Arc<Receivers>,
        backlogs: Arc<Backlogs>,
        objects: Arc<Objects>,
        stopping: Shutdown,
    ) -> Self {
        let topology = Topology::of(config);
        let waits = topology.wait_queues().map(|(delay, queue)| (delay.to_string(), queue));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            metrics,
            directory,
            receivers,
            backlogs,
            objects,
            stopping,
            lanes: Lane::all(config),
            waits: waits.collect(),
            host,
            started: Instant::now(),
            history: Mutex::new(History::new(SPAN, MOST_SAMPLES)),
        }
    }

    /// Samples the counters until `stop`.
    pub fn watch(&self, stop: &Shutdown) {
        loop {
            let lanes = self.lanes.iter().map(|lane| self.metrics.lane(&lane.queue).counts());
            let sample = Sample { at: self.started.elapsed(), lanes: lanes.collect() };
            self.history.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
            if stop.wait(SAMPLE_INTERVAL) {
                return;
            }
        }
    }

    /// How everything is right now.
    #[must_use]
    pub fn now(&self) -> Snapshot {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.started.elapsed();
        let glance = self.metrics.glance();
        let of = |(lasted, problem)| EgressNow { problem, lasted_seconds: seconds(lasted) };
        let egress_problem = self.metrics.egress().problem().map(of);
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION"),
            host: self.host.clone(),
            pid: std::process::id(),
            uptime_seconds: seconds(now),
            is_stopping: self.stopping.is_requested(),
            state: advice::State::Well,
            advice: Vec::new(),
            broker: server(self.metrics.broker().now()),
            database: server(self.metrics.database().now()),
            database_problem: self.metrics.database().problem(),
            directory_age_seconds: seconds(
                glance.as_ref().map(|g| g.directory_age).unwrap_or_default(),
            ),
            broker_accepts: glance.as_ref().map(|glance| glance.broker_accepts),
            egress_problem,
            notices_problem: notices_problem(&self.metrics),
            disabled_lately: disabled_lately(&self.metrics),
            refusing: glance.as_ref().map(refusing_now).unwrap_or_default(),
            depths_age_seconds: self.metrics.broker().age().map(seconds),
            lanes: self.lanes_now(glance.as_ref(), &history),
            waiting: self.waiting(),
            orphaned: self.metrics.queue_messages(ORPHANED),
            objects: self.objects_now(),
            backlogs: self.backlogs_now(),
            receivers: self.receivers_now(),
            sample_ages_seconds: history.moments().map(|at| seconds(now - at)).collect(),
        };
        drop(history);
        (snapshot.state, snapshot.advice) = advice::of(&snapshot);
        snapshot
    }

    fn lanes_now(&self, glance: Option<&Glance>, history: &History) -> Vec<LaneNow> {
        let lanes = self.lanes.iter().enumerate();
        lanes.map(|(number, lane)| self.lane_now(number, lane, glance, history)).collect()
    }

    fn lane_now(
        &self,
        number: usize,
        lane: &Lane,
        glance: Option<&Glance>,
        history: &History,
    ) -> LaneNow {
        let counted = self.metrics.lane(&lane.queue);
        let Counts { received, delivered, failed, .. } = counted.counts();
        let (state, lasted) = counted.state();
        let lag = history.growth(number, SPAN).map(|(_, counts)| counts.lag).unwrap_or_default();
        // What a lane did before it was interrupted it does no more.
        let span = if state == LaneState::Consuming { RATE_SPAN } else { lasted.min(RATE_SPAN) };
        let rates =
            history.growth(number, span.max(2 * SAMPLE_INTERVAL)).map(|(took, counts)| Rates {
                received: rounded(per_second(counts.received, took)),
                delivered: rounded(per_second(counts.delivered, took)),
                failed: rounded(per_second(counts.failed, took)),
            });
        let steps: Vec<Counts> = history.steps(number).collect();
        let is_first = lane.kind == LaneKind::Events;
        let dead = is_first.then(|| dead_queue(&lane.origin));
        let in_use = glance.filter(|_| is_first).and_then(|all| all.in_use.get(lane.number));
        LaneNow {
            queue: lane.queue.clone(),
            origin: lane.origin.clone(),
            kind: match lane.kind {
                LaneKind::Events => "events",
                LaneKind::Retries => "retries",
                LaneKind::Backlogs => "backlogs",
            },
            consumers: counted.consumers(),
            state: state.into(),
            lasted_seconds: seconds(lasted),
            ready: match lane.kind {
                LaneKind::Events | LaneKind::Retries => self.metrics.queue_messages(&lane.queue),
                LaneKind::Backlogs => Some(self.metrics.backlog_deliveries(&lane.origin)),
            },
            dead: dead.and_then(|queue| self.metrics.queue_messages(&queue)),
            in_flight: counted.in_flight.get(),
            capacity: in_use.map(|in_use| in_use.capacity),
            in_use: in_use.map(|in_use| in_use.by_class.iter().map(|(_, count)| count).sum()),
            received,
            delivered,
            failed,
            rates,
            lag_p50: quantile(0.5, &lag, &LAG_SECONDS).map(Into::into),
            lag_p99: quantile(0.99, &lag, &LAG_SECONDS).map(Into::into),
            trend: Trend {
                delivered: steps.iter().map(|step| step.delivered).collect(),
                failed: steps.iter().map(|step| step.failed).collect(),
            },
        }
    }

    fn waiting(&self) -> Vec<Waiting> {
        let of = |(delay, queue): &(String, String)| Waiting {
            delay: delay.clone(),
            queue: queue.clone(),
            messages: self.metrics.queue_messages(queue),
        };
        self.waits.iter().map(of).collect()
    }

    fn objects_now(&self) -> Vec<ObjectNow> {
        let of = |one: Standing| ObjectNow {
            kind: one.kind.label(),
            name: one.name,
            is_there: one.is_there,
            problem: one.problem,
            lost_seconds: one.lost.map(seconds),
            messages: one.messages,
        };
        self.objects.standings().into_iter().map(of).collect()
    }

    fn backlogs_now(&self) -> BacklogsNow {
        let (longest, filled) = self.backlogs.longest(MOST_LISTED);
        let now = SystemTime::now();
        let of = |one: Listed| BacklogNow {
            queue: one.queue,
            webhook: one.webhook,
            account: self.account(one.webhook),
            waiting: one.waiting,
            lasted_seconds: seconds(now.duration_since(one.since).unwrap_or_default()),
            cause: one.cause,
            next_in_seconds: one.until.and_then(|at| at.duration_since(now).ok()).map(seconds),
            empty_in_seconds: (one.growth < 0.0)
                .then(|| rounded(f64::from(one.waiting) / -one.growth)),
        };
        BacklogsNow { filled, listed: longest.into_iter().map(of).collect() }
    }

    /// Whose a webhook is, as far as that is remembered.
    fn account(&self, webhook: Uuid) -> Option<String> {
        let account = self.directory.account(webhook)?;
        Some(shown::line(&account, MAX_ACCOUNT_BYTES))
    }

    fn receivers_now(&self) -> ReceiversNow {
        let (ailing, count) = self.receivers.ailing(MOST_LISTED);
        ReceiversNow {
            known: count.known,
            ailing: count.ailing,
            broken: count.broken,
            listed: ailing
                .into_iter()
                .map(|(webhook, ailment)| ailing_receiver(webhook, self.account(webhook), ailment))
                .collect(),
        }
    }
}

fn notices_problem(metrics: &Metrics) -> Option<NoticesNow> {
    let (lasted, problem) = metrics.notices().problem()?;
    Some(NoticesNow { problem, lasted_seconds: seconds(lasted) })
}

fn disabled_lately(metrics: &Metrics) -> Vec<DisabledNow> {
    let of = |(webhook, reason): (Uuid, String)| DisabledNow {
        webhook,
        reason: shown::line(&reason, MAX_ACCOUNT_BYTES),
    };
    metrics.notices().disabled_lately().into_iter().map(of).collect()
}

fn refusing_now(glance: &Glance) -> Vec<RefusingNow> {
    let of = |refusing: &Refusing| {
        let since = refusing.since?;
        Some(RefusingNow {
            queue: refusing.queue.clone(),
            messages: refusing.messages,
            lasted_seconds: seconds(since.elapsed()),
        })
    };
    glance.refusing.iter().filter_map(of).collect()
}

fn ailing_receiver(webhook: Uuid, account: Option<String>, ailment: Ailment) -> Ailing {
    let Ailment { condition, failures, reason, lasted, next } = ailment;
    Ailing {
        webhook,
        account,
        condition: condition.label(),
        failures,
        reason: reason.map(|reason| reason.label()),
        lasted_seconds: seconds(lasted),
        is_probed: next == Next::Probing,
        next_in_seconds: match next {
            Next::After(rest) => Some(seconds(rest)),
            Next::Probing | Next::WithNextDelivery => None,
        },
    }
}

fn server((answers, lasted): (Answers, Duration)) -> Server {
    let answers = match answers {
        Answers::Unasked => None,
        Answers::Yes => Some(true),
        Answers::No => Some(false),
    };
    Server { answers, lasted_seconds: seconds(lasted) }
}

impl From<LaneState> for snapshot::LaneState {
    fn from(state: LaneState) -> Self {
        match state {
            LaneState::Starting => Self::Starting,
            LaneState::Consuming => Self::Consuming,
            LaneState::Interrupted(Interruption::Broker) => Self::NoBroker,
            LaneState::Interrupted(Interruption::Confirms) => Self::NoConfirms,
            LaneState::Interrupted(Interruption::Database) => Self::NoDatabase,
        }
    }
}
