//! The data of the status page: the present state, and the last 15 minutes.
//!
//! The numbers are read from the same counters and gauges as /metrics, so both agree. A separate thread
//! samples the counters every five seconds; rates, plots and quantiles are computed from the samples
//! ([`crate::domain::trend`]). `advice` puts the state into words, and `names` provides the names of receivers.
//! The page shows no secret and no event, and only the host and path of a URL.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{select, tick};
use uuid::Uuid;

use crate::backlogs::{Backlogs, Listed, Longest};
use crate::broker::{Lane, LaneKind, ORPHANED, ObjectStanding, Objects, Topology, dead_queue};
use crate::clock;
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::depths::Depths;
use crate::domain::held::{Dropped, Held};
use crate::domain::outcome::DeadReason;
use crate::domain::receiver::{Ailment, Class};
use crate::domain::trend::{Counts, Sample, Samples, per_second, quantile};
use crate::health::LaneState;
use crate::metrics::{LAG_SECONDS, LiveValues, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;

mod advice;
mod convert;
mod names;
mod snapshot;

use convert::{
    counted, disabled_lately, notices_problem, receiver_now, refusing_now, server, summed,
};
use names::{Names, ReceiverName, ReceiverSearch};
pub use snapshot::Snapshot;
use snapshot::{
    BacklogNow, BacklogTrend, BacklogsNow, EgressNow, LaneNow, ObjectNow, Rates, ReceiversNow,
    Trend, WaitQueueNow, rounded, seconds,
};

/// How often the counters are sampled: as often as the page asks, so that each answer has a new step. The cost
/// is negligible.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(5);

/// The period that the page shows.
const SPAN: Duration = Duration::from_secs(15 * 60);

/// The number of samples within [`SPAN`], one more than there are steps. With six lanes they take 200 KB.
const MOST_SAMPLES: usize = 181;

/// The period that rates are averaged over: long enough to be steady, short enough to be current.
const RATE_SPAN: Duration = Duration::from_secs(60);

/// The most receivers that the page lists. If more fail or are slow, the cause is rarely the receivers.
const MOST_LISTED: usize = 50;

/// The sources of the status.
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
    /// The recent numbers of waiting messages, for each lane.
    depths: Mutex<Vec<Depths>>,
    names: Names,
}

impl Status {
    /// The status of a process that has just started; `stopping` is its shutdown.
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
            // This comes after the sample, since it may take as long as a query. It is skipped while
            // PostgreSQL is away.
            if self.metrics.health().database().is_up() {
                self.names.refresh(&self.needed_names(), &self.directory);
            }
        }
    }

    fn sample(&self) {
        let lanes = self.lanes.iter().map(|lane| self.metrics.lane(&lane.queue).counts());
        let at = self.started.elapsed();
        lock(&self.history).push(Sample { at, lanes: lanes.collect() });
        // While RabbitMQ is away, messages aren't counted.
        if !self.metrics.health().broker().is_up() {
            return;
        }
        for (lane, depths) in self.lanes.iter().zip(&mut *lock(&self.depths)) {
            if let Some(ready) = self.ready(lane) {
                depths.push(at, u32::try_from(ready).unwrap_or(u32::MAX));
            }
        }
    }

    /// The receivers whose names are needed: those that the page shows and, while somebody watches it, those that
    /// can be searched for.
    fn needed_names(&self) -> HashSet<Uuid> {
        let mut wanted = self.backlogs.webhooks();
        if self.names.is_watched() {
            wanted.extend(self.receivers.known());
        } else {
            let (ailing, _) = self.receivers.ailing(MOST_LISTED);
            wanted.extend(ailing.into_iter().map(|(webhook, _)| webhook));
        }
        wanted
    }

    /// The present state. It lists the receivers whose names match `sought`; if that is empty, those that fail or
    /// are slow.
    #[must_use]
    pub fn now(&self, sought: &str) -> Snapshot {
        self.names.note_request();
        let sought = ReceiverSearch::new(sought);
        let found = (!sought.is_empty()).then(|| self.matching(&sought));
        let receivers = self.receivers_now(found.as_ref());
        let history = lock(&self.history);
        let now = self.started.elapsed();
        let live = self.metrics.live_values();
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
                live.as_ref().map(|g| g.directory_age).unwrap_or_default(),
            ),
            broker_accepts: live.as_ref().map(|live| live.broker_accepts),
            egress_problem,
            notices_problem: notices_problem(&self.metrics),
            instances: self.metrics.instances().names(),
            instances_problem: self.metrics.instances().problem(),
            disabled_lately: disabled_lately(&self.metrics),
            refusing: live.as_ref().map(refusing_now).unwrap_or_default(),
            depths_age_seconds: self.metrics.health().broker().age().map(seconds),
            lanes: self.lanes_now(live.as_ref(), &history),
            waiting: self.waiting(),
            orphaned: self.metrics.queue_messages(ORPHANED),
            dropped: counted(
                [Dropped::Deleted, Dropped::Disabled]
                    .map(|why| (why.label(), self.metrics.dropped(why).get())),
            ),
            refusals: live.iter().flat_map(|all| &all.refusing).map(|one| one.refused).sum(),
            objects: self.objects_now(),
            backlogs: self.backlogs_now(found.as_ref(), &receivers),
            receivers,
            sample_ages_seconds: history.moments().map(|at| seconds(now - at)).collect(),
        };
        drop(history);
        (snapshot.state, snapshot.advice) = advice::of(&snapshot);
        snapshot
    }

    fn lanes_now(&self, live: Option<&LiveValues>, history: &Samples) -> Vec<LaneNow> {
        let lanes = self.lanes.iter().enumerate();
        lanes.map(|(number, lane)| self.lane_now(number, lane, live, history)).collect()
    }

    fn lane_now(
        &self,
        number: usize,
        lane: &Lane,
        live: Option<&LiveValues>,
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
            // Backlogs aren't counted all at once, so their growth is the sum of each one's.
            LaneKind::Backlogs => {
                let (growth, empty_in) = self.backlogs.pace(lane.number);
                (Some(growth), empty_in)
            }
        };
        let lag_of =
            |number| history.growth(number, SPAN).map(|(_, counts)| counts.lag).unwrap_or_default();
        let lag = lag_of(number);
        let same_queue = self.lanes.iter().enumerate().filter(|(_, it)| it.origin == lane.origin);
        let of_queue = summed(same_queue.map(|(number, _)| lag_of(number)));
        // After an interruption, older samples don't count for the rates.
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
        let in_use = live.filter(|_| is_first).and_then(|all| all.in_use.get(lane.number));
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
            growth_per_second: self.if_counted(growth),
            empty_in_seconds: self.if_counted(empty_in),
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

    /// How many messages wait in a lane, if that is known.
    fn ready(&self, lane: &Lane) -> Option<i64> {
        match lane.kind {
            LaneKind::Events | LaneKind::Retries => self.metrics.queue_messages(&lane.queue),
            LaneKind::Backlogs => Some(self.metrics.backlog_deliveries(&lane.origin)),
        }
    }

    /// A number that was derived from counts of messages; `None` while RabbitMQ is away and nothing is counted.
    fn if_counted(&self, number: Option<f64>) -> Option<f64> {
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

    /// The longest backlogs, of all webhooks or of those that the search found, and the backlogs of the listed
    /// receivers.
    fn backlogs_now(&self, found: Option<&HashSet<Uuid>>, receivers: &ReceiversNow) -> BacklogsNow {
        let matches = |webhook: Uuid| found.is_none_or(|found| found.contains(&webhook));
        let also = receivers.listed.iter().map(|one| one.webhook).collect();
        let Longest { filled, webhooks, matching, listed } =
            self.backlogs.longest(MOST_LISTED, matches, &also);
        let now = clock::now();
        let of = |one: Listed| {
            let ReceiverName { account, place } = self.name(one.webhook);
            BacklogNow {
                queue: one.queue,
                webhook: one.webhook,
                account,
                place,
                waiting: one.depths.now(),
                lasted_seconds: seconds(now.duration_since(one.since).unwrap_or_default()),
                cause: one.cause,
                next_in_seconds: one.until.and_then(|at| at.duration_since(now).ok()).map(seconds),
                growth_per_second: self.if_counted(one.depths.growth()),
                empty_in_seconds: self.if_counted(one.depths.empty_in()),
                trend: BacklogTrend::of(&one.depths, one.at),
            }
        };
        BacklogsNow { filled, webhooks, matching, listed: listed.into_iter().map(of).collect() }
    }

    /// A receiver's name; empty if it isn't known.
    fn name(&self, webhook: Uuid) -> ReceiverName {
        self.names.of(webhook, &self.directory).unwrap_or_default()
    }

    /// All receivers that match the search.
    fn matching(&self, sought: &ReceiverSearch) -> HashSet<Uuid> {
        let mut all = self.backlogs.webhooks();
        all.extend(self.receivers.known());
        self.names.matching(sought, all).into_iter().collect()
    }

    /// The worst receivers that fail or are slow, or those that the search found; the worst first.
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
