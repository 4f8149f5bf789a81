//! The data of the status page: the present state, and the last 15 minutes.
//!
//! The numbers are read from the same counters and gauges as /metrics, so both agree. A separate thread
//! samples the counters every five seconds; rates, plots and quantiles are computed from the samples
//! ([`crate::domain::trend`]). `advice` puts the state into words, and `names` knows what people call
//! the receivers. Nothing here shows a secret or an event, and of a URL only host and path.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{select, tick};
use uuid::Uuid;

use crate::backlogs::{Backlogs, Listed, Longest};
use crate::broker::{Lane, LaneKind, ORPHANED, ObjectStanding, Objects, Topology, dead_queue};
use crate::clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::account::MAX_ACCOUNT_BYTES;
use crate::domain::depths::Depths;
use crate::domain::held::{Dropped, Held};
use crate::domain::outcome::DeadReason;
use crate::domain::receiver::{Ailment, Class, Next};
use crate::domain::shown;
use crate::domain::trend::{Counts, Sample, Samples, per_second, quantile};
use crate::health::{Answers, Interruption, LaneState};
use crate::metrics::{Glance, LAG_SECONDS, Metrics, Refusing};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;

mod advice;
mod names;
mod snapshot;

use names::{Name, Names, SoughtWords};
pub use snapshot::Snapshot;
use snapshot::{
    Ailing, BacklogNow, BacklogTrend, BacklogsNow, Counted, DisabledNow, EgressNow, LaneNow,
    NoticesNow, ObjectNow, Rates, ReceiversNow, RefusingNow, Server, Trend, WaitQueueNow, rounded,
    seconds,
};

/// How often the counters are sampled: as often as the page asks, so that each answer has a new step,
/// and rarely enough to cost nothing.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// How far back the page shows.
const SPAN: Duration = Duration::from_secs(15 * 60);

/// One more than there are steps. With six lanes all samples take 200 KB.
const MOST_SAMPLES: usize = 181;

/// The period that rates are averaged over: long enough to be steady, short enough to be current.
const RATE_SPAN: Duration = Duration::from_secs(60);

/// The most receivers that the page lists. If more have an ailment, the cause isn't the receivers.
const MOST_LISTED: usize = 50;

/// Everything that the status is made of.
#[derive(Debug)]
pub struct Status {
    metrics: Arc<Metrics>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    backlogs: Arc<Backlogs>,
    objects: Arc<Objects>,
    stopping: Shutdown,
    lanes: Vec<Lane>,
    /// The wait queues, with their delays as text.
    waits: Vec<(String, String)>,
    host: String,
    started: Instant,
    history: Mutex<Samples>,
    /// How many messages wait in each lane.
    depths: Mutex<Vec<Depths>>,
    names: Names,
}

impl Status {
    /// For a process that has just started; `stopping` is its shutdown.
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
        let names = Names::new(directory.subscribe());
        let lanes = Lane::all(config);
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            metrics,
            directory,
            receivers,
            backlogs,
            objects,
            stopping,
            depths: Mutex::new(vec![Depths::default(); lanes.len()]),
            lanes,
            names,
            waits: waits.collect(),
            host,
            started: Instant::now(),
            history: Mutex::new(Samples::new(SPAN, MOST_SAMPLES)),
        }
    }

    /// Samples the counters until `stop`, and keeps the receivers' names up to date.
    pub fn watch(&self, stop: &Shutdown) {
        self.sample();
        let ticks = tick(SAMPLE_INTERVAL);
        loop {
            select! {
                recv(ticks) -> _ => self.sample(),
                recv(self.names.woken) -> _ => {}
                recv(stop.receiver()) -> _ => return,
            }
            // After the sample, since this may take as long as a query. While PostgreSQL is away it is
            // skipped.
            if self.metrics.health().database().is_up() {
                self.names.refresh(&self.to_be_named(), &self.directory);
            }
        }
    }

    fn sample(&self) {
        let lanes = self.lanes.iter().map(|lane| self.metrics.lane(&lane.queue).counts());
        let at = self.started.elapsed();
        lock(&self.history).push(Sample { at, lanes: lanes.collect() });
        // While RabbitMQ is away nobody counts.
        if !self.metrics.health().broker().is_up() {
            return;
        }
        for (lane, depths) in self.lanes.iter().zip(&mut *lock(&self.depths)) {
            if let Some(ready) = self.ready(lane) {
                depths.push(at, u32::try_from(ready).unwrap_or(u32::MAX));
            }
        }
    }

    /// The receivers that the page shows, or that may be searched for.
    fn to_be_named(&self) -> HashSet<Uuid> {
        let mut wanted = self.backlogs.webhooks();
        if self.names.is_watched() {
            wanted.extend(self.receivers.known());
        } else {
            let (ailing, _) = self.receivers.ailing(MOST_LISTED);
            wanted.extend(ailing.into_iter().map(|(webhook, _)| webhook));
        }
        wanted
    }

    /// The present state. Of the receivers it has those whose names match `sought`, or if that is empty,
    /// those with an ailment.
    #[must_use]
    pub fn now(&self, sought: &str) -> Snapshot {
        self.names.are_wanted();
        let sought = SoughtWords::new(sought);
        let found = (!sought.is_nothing()).then(|| self.matching(&sought));
        let receivers = self.receivers_now(found.as_ref());
        let history = lock(&self.history);
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
            state: advice::Overall::Well,
            advice: Vec::new(),
            broker: server(self.metrics.health().broker().now()),
            database: server(self.metrics.health().database().now()),
            database_problem: self.metrics.health().database().problem(),
            directory_age_seconds: seconds(
                glance.as_ref().map(|g| g.directory_age).unwrap_or_default(),
            ),
            broker_accepts: glance.as_ref().map(|glance| glance.broker_accepts),
            egress_problem,
            notices_problem: notices_problem(&self.metrics),
            instances: self.metrics.instances().names(),
            instances_problem: self.metrics.instances().problem(),
            disabled_lately: disabled_lately(&self.metrics),
            refusing: glance.as_ref().map(refusing_now).unwrap_or_default(),
            depths_age_seconds: self.metrics.health().broker().age().map(seconds),
            lanes: self.lanes_now(glance.as_ref(), &history),
            waiting: self.waiting(),
            orphaned: self.metrics.queue_messages(ORPHANED),
            dropped: counted(
                [Dropped::Deleted, Dropped::Disabled]
                    .map(|why| (why.label(), self.metrics.dropped(why).get())),
            ),
            refusals: glance.iter().flat_map(|all| &all.refusing).map(|one| one.refused).sum(),
            objects: self.objects_now(),
            backlogs: self.backlogs_now(found.as_ref(), &receivers),
            receivers,
            sample_ages_seconds: history.moments().map(|at| seconds(now - at)).collect(),
        };
        drop(history);
        (snapshot.state, snapshot.advice) = advice::of(&snapshot);
        snapshot
    }

    fn lanes_now(&self, glance: Option<&Glance>, history: &Samples) -> Vec<LaneNow> {
        let lanes = self.lanes.iter().enumerate();
        lanes.map(|(number, lane)| self.lane_now(number, lane, glance, history)).collect()
    }

    fn lane_now(
        &self,
        number: usize,
        lane: &Lane,
        glance: Option<&Glance>,
        history: &Samples,
    ) -> LaneNow {
        let counted_lane = self.metrics.lane(&lane.queue);
        let Counts { received, delivered, failed, .. } = counted_lane.counts();
        let (state, lasted) = self.metrics.health().lane(&lane.queue);
        let ready = self.ready(lane);
        let (growth, empty_in) = match lane.kind {
            LaneKind::Events | LaneKind::Retries => {
                let depths = &lock(&self.depths)[number];
                (depths.growth(), depths.empty_in())
            }
            // Not all backlogs are counted at the same time, so the growth of each is added up.
            LaneKind::Backlogs => {
                let (growth, empty_in) = self.backlogs.pace(lane.number);
                (Some(growth), empty_in)
            }
        };
        let lag_of =
            |number| history.growth(number, SPAN).map(|(_, counts)| counts.lag).unwrap_or_default();
        let lag = lag_of(number);
        let same_queue = self.lanes.iter().enumerate().filter(|(_, it)| it.origin == lane.origin);
        let of_queue = together(same_queue.map(|(number, _)| lag_of(number)));
        // The rate from before an interruption no longer applies.
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
            consumers: counted_lane.consumers(),
            state: state.into(),
            lasted_seconds: seconds(lasted),
            ready,
            growth_per_second: self.pace(growth),
            empty_in_seconds: self.pace(empty_in),
            dead: dead.and_then(|queue| self.metrics.queue_messages(&queue)),
            in_flight: counted_lane.in_flight.get(),
            capacity: in_use.map(|in_use| in_use.capacity),
            in_use: in_use.map(|in_use| in_use.by_class.iter().map(|(_, count)| count).sum()),
            received,
            delivered,
            failed,
            rates,
            held: counted(Held::ALL.map(|why| (why.label(), counted_lane.held(why).get()))),
            died: counted(
                DeadReason::ALL.map(|why| (why.label(), counted_lane.dead_letters(why).get())),
            ),
            lag_p50: quantile(0.5, &lag, &LAG_SECONDS).map(Into::into),
            lag_p99: quantile(0.99, &lag, &LAG_SECONDS).map(Into::into),
            queue_lag_p50: is_first
                .then(|| quantile(0.5, &of_queue, &LAG_SECONDS))
                .flatten()
                .map(Into::into),
            queue_lag_p99: is_first
                .then(|| quantile(0.99, &of_queue, &LAG_SECONDS))
                .flatten()
                .map(Into::into),
            trend: Trend {
                delivered: steps.iter().map(|step| step.delivered).collect(),
                failed: steps.iter().map(|step| step.failed).collect(),
            },
        }
    }

    /// How many messages wait in a lane.
    fn ready(&self, lane: &Lane) -> Option<i64> {
        match lane.kind {
            LaneKind::Events | LaneKind::Retries => self.metrics.queue_messages(&lane.queue),
            LaneKind::Backlogs => Some(self.metrics.backlog_deliveries(&lane.origin)),
        }
    }

    /// The growth of a queue; `None` while RabbitMQ is away and nobody counts.
    fn pace(&self, number: Option<f64>) -> Option<f64> {
        number.filter(|_| self.metrics.health().broker().is_up()).map(rounded)
    }

    fn waiting(&self) -> Vec<WaitQueueNow> {
        let of = |(delay, queue): &(String, String)| WaitQueueNow {
            delay: delay.clone(),
            queue: queue.clone(),
            messages: self.metrics.queue_messages(queue),
        };
        self.waits.iter().map(of).collect()
    }

    fn objects_now(&self) -> Vec<ObjectNow> {
        let of = |one: ObjectStanding| ObjectNow {
            kind: one.kind.label(),
            name: one.name,
            is_there: one.is_there,
            problem: one.problem,
            lost_seconds: one.lost.map(seconds),
            messages: one.messages,
        };
        self.objects.standings().into_iter().map(of).collect()
    }

    /// The longest backlogs of all webhooks or of those found, and those of the listed receivers.
    fn backlogs_now(&self, found: Option<&HashSet<Uuid>>, receivers: &ReceiversNow) -> BacklogsNow {
        let are_meant = |webhook: Uuid| found.is_none_or(|found| found.contains(&webhook));
        let also = receivers.listed.iter().map(|one| one.webhook).collect();
        let Longest { filled, webhooks, matching, listed } =
            self.backlogs.longest(MOST_LISTED, are_meant, &also);
        let now = clock::now();
        let of = |one: Listed| {
            let Name { account, place } = self.name(one.webhook);
            BacklogNow {
                queue: one.queue,
                webhook: one.webhook,
                account,
                place,
                waiting: one.depths.now(),
                lasted_seconds: seconds(now.duration_since(one.since).unwrap_or_default()),
                cause: one.cause,
                next_in_seconds: one.until.and_then(|at| at.duration_since(now).ok()).map(seconds),
                growth_per_second: self.pace(one.depths.growth()),
                empty_in_seconds: self.pace(one.depths.empty_in()),
                trend: BacklogTrend::of(&one.depths, one.at),
            }
        };
        BacklogsNow { filled, webhooks, matching, listed: listed.into_iter().map(of).collect() }
    }

    /// A webhook's name, if it is known.
    fn name(&self, webhook: Uuid) -> Name {
        self.names.of(webhook, &self.directory).unwrap_or_default()
    }

    /// All receivers that match the search.
    fn matching(&self, sought: &SoughtWords) -> HashSet<Uuid> {
        let mut all = self.backlogs.webhooks();
        all.extend(self.receivers.known());
        self.names.matching(sought, all).into_iter().collect()
    }

    /// The receivers with the worst ailments; or all that were found, the worst first.
    fn receivers_now(&self, found: Option<&HashSet<Uuid>>) -> ReceiversNow {
        let (ailing, count) = self.receivers.ailing(MOST_LISTED);
        let (matching, listed) = match found {
            None => {
                let with_class =
                    |(webhook, it): (Uuid, Ailment)| (webhook, Class::Prompt, Some(it));
                (count.ailing, ailing.into_iter().map(with_class).collect())
            }
            Some(found) => {
                let found: Vec<Uuid> = found.iter().copied().collect();
                let mut listed = self.receivers.condition_of(&found);
                let matching = listed.len();
                listed.truncate(MOST_LISTED);
                (matching, listed)
            }
        };
        ReceiversNow {
            known: count.known,
            ailing: count.ailing,
            broken: count.broken,
            matching,
            listed: listed
                .into_iter()
                .map(|(webhook, class, ailment)| {
                    receiver_now(webhook, self.name(webhook), class, ailment)
                })
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds up counts of the same buckets.
fn together(counts: impl Iterator<Item = Vec<u64>>) -> Vec<u64> {
    counts.fold(Vec::new(), |mut all, some| {
        all.resize(all.len().max(some.len()), 0);
        all.iter_mut().zip(some).for_each(|(all, count)| *all += count);
        all
    })
}

/// The counts that aren't zero, by label.
fn counted(counts: impl IntoIterator<Item = (&'static str, u64)>) -> Counted {
    counts.into_iter().filter(|(_, count)| *count > 0).collect::<BTreeMap<_, _>>()
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

fn receiver_now(webhook: Uuid, name: Name, class: Class, ailment: Option<Ailment>) -> Ailing {
    let Name { account, place } = name;
    let well = Ailing {
        webhook,
        account,
        place,
        condition: if class == Class::Unproven { "unproven" } else { "well" },
        failures: 0,
        reason: None,
        status: None,
        lasted_seconds: None,
        is_probed: false,
        next_in_seconds: None,
    };
    let Some(ailment) = ailment else { return well };
    let Ailment { condition, failures, reason, status, lasted, next } = ailment;
    Ailing {
        condition: condition.label(),
        failures,
        reason: reason.map(|reason| reason.label()),
        status,
        lasted_seconds: Some(seconds(lasted)),
        is_probed: next == Next::Probing,
        next_in_seconds: match next {
            Next::After(rest) => Some(seconds(rest)),
            Next::Probing | Next::WithNextDelivery => None,
        },
        ..well
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
