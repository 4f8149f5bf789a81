//! Several instances: this one records every few seconds that it is alive, and learns which others are.
//!
//! This lets them share the limits of webhooks ([`crate::domain::instances`]). It has its own thread
//! that waits for nothing else: a late instance would be taken for dead, and others would use its share.
//!
//! An instance whose connection to RabbitMQ is lost for long serves no queue, which it writes down, too: then
//! the others send what was its to send. While it serves none itself, it keeps to what it knew last, for all
//! may have lost the same RabbitMQ, and come back together.
//!
//! While PostgreSQL is away, what was known last holds. Where the table can't be used at all, this
//! instance counts as the only one: nothing may wait for one that perhaps isn't there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use uuid::Uuid;

use crate::config::Config;
use crate::directory::{Change, Directory};
use crate::domain::causes::Causes;
use crate::domain::instances::{Instance, InstanceRecord, Instances, Roll};
use crate::domain::shown;
use crate::health::LaneState;
use crate::metrics::{InstancesState, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{EACH_BY_ITSELF, Store, StoreError};

/// How often an instance records that it is alive. After five missed records in a row it counts as dead.
/// Deliveries that depend on it wait that long: a quarter of a minute.
const BEAT: Duration = Duration::from_secs(3);

/// The interval before the first record, while this instance and the others don't know each other.
const FIRST: Duration = Duration::from_millis(250);

/// How often it is looked which queues this one serves.
const LOOK: Duration = Duration::from_secs(1);

/// How long a lane may be interrupted before its queue counts as not served: longer than it takes to connect
/// again, and shorter than until an instance counts as dead.
const GRACE: Duration = Duration::from_secs(10);

/// How many characters of the instances' names are logged.
const MOST_SHOWN: usize = 400;

/// This instance among the others.
#[derive(Debug)]
pub struct Presence {
    store: Arc<Store>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    metrics: Arc<Metrics>,
    state: InstancesState,
    queues: Vec<Queue>,
    me: InstanceRecord,
    longest_request: Duration,
    roll: Roll,
    /// The instances that share the limits now; empty until that is known.
    alive: Vec<InstanceRecord>,
    has_written: bool,
    causes: Causes,
}

/// A queue that this one is to serve.
#[derive(Debug)]
pub struct Queue {
    /// Its name and that of its broker: two brokers may each have one of that name.
    pub name: String,
    /// The lane of its backlogs, by the name that its health is known by.
    pub lane: String,
}

impl Presence {
    /// For a process with its metrics at this port, which no other process of its machine has.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Arc<Store>,
        directory: Arc<Directory>,
        receivers: Arc<Receivers>,
        metrics: Arc<Metrics>,
        queues: Vec<Queue>,
        port: u16,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let name = format!("{host}:{port}");
        let me = InstanceRecord { id: Uuid::new_v4(), name, queues: BTreeSet::new(), beats: 0 };
        Self {
            store,
            directory,
            receivers,
            state: metrics.instances().clone(),
            metrics,
            queues,
            me,
            longest_request: config.request_timeout,
            roll: Roll::default(),
            alive: Vec::new(),
            has_written: false,
            causes: Causes::default(),
        }
    }

    /// Records that this instance is alive, and learns which others are. Also to be called before
    /// anything is sent.
    pub fn beat(&mut self) {
        let queues = self.served();
        let is_change = self.me.queues != queues;
        self.me.queues = queues;
        let written = self.store.beat(&self.me, !self.has_written, is_change);
        self.has_written |= written.is_ok();
        self.learn(written, true);
    }

    /// Repeats this until `stop`, which must come after the last request has ended: from then on the
    /// others have its share.
    pub fn run(mut self, stop: &Shutdown) {
        let changes = self.directory.subscribe();
        let mut beats_at = Instant::now() + self.interval();
        while !stop.is_requested() {
            let wait = beats_at.saturating_duration_since(Instant::now()).min(LOOK);
            select! {
                recv(changes) -> change => match change {
                    Ok(Change::Instances) => {
                        self.look();
                        if self.has_written && !self.roll.has(self.me.id) {
                            // Somebody deleted our row.
                            beats_at = Instant::now();
                        }
                    }
                    Ok(Change::Webhooks | Change::Backlogs) => {}
                    Err(_) => {
                        let _ = stop.wait(wait);
                    }
                },
                recv(stop.receiver()) -> _ => break,
                default(wait) => {}
            }
            if Instant::now() >= beats_at || self.served() != self.me.queues {
                self.beat();
                beats_at = Instant::now() + self.interval();
            }
        }
        if self.has_written {
            // If this fails, the others find out.
            let _ = self.store.forget_instances(&[(self.me.id, None)]);
        }
    }

    /// The queues whose backlogs this one consumes, or did a moment ago.
    fn served(&self) -> BTreeSet<String> {
        let health = self.metrics.health();
        let is_served = |queue: &&Queue| match health.lane(&queue.lane) {
            (LaneState::Consuming, _) => true,
            (LaneState::Starting | LaneState::Interrupted(_), lasted) => lasted < GRACE,
        };
        self.queues.iter().filter(is_served).map(|queue| queue.name.clone()).collect()
    }

    fn interval(&self) -> Duration {
        if self.has_written || self.causes.are_told() { BEAT } else { FIRST }
    }

    /// Some instance has come or gone.
    fn look(&mut self) {
        if self.has_written {
            let entries = self.store.instances();
            self.learn(entries, false);
        }
    }

    fn learn(&mut self, entries: Result<Vec<InstanceRecord>, StoreError>, is_beat: bool) {
        match entries {
            Ok(entries) => {
                if self.causes.end().is_some() {
                    log::info!("limits of webhooks are kept by all instances together again");
                }
                self.roll.read(entries, is_beat);
                self.bury_the_dead();
                if self.me.queues.is_empty() {
                    return;
                }
                let alive = self.roll.alive(&self.me);
                self.share_among(alive);
            }
            // Reported elsewhere.
            Err(error) if error.is_passing() => log::debug!("instances not known: {error}"),
            Err(error) => {
                let cause = error.to_string();
                if self.causes.is_news(&cause) {
                    log::warn!("instances not known cause={cause:?}: until then {EACH_BY_ITSELF}");
                }
                self.roll = Roll::default();
                self.alive.clear();
                self.receivers.share_among(Instances::default());
                self.state.unknown(&cause);
            }
        }
    }

    fn bury_the_dead(&self) {
        let dead: Vec<_> =
            self.roll.dead(self.me.id).map(|entry| (entry.id, Some(entry.beats))).collect();
        if !dead.is_empty() {
            // If this fails, another time or another instance will do it.
            let _ = self.store.forget_instances(&dead);
        }
    }

    fn share_among(&mut self, alive: Vec<InstanceRecord>) {
        let of =
            |entries: &[InstanceRecord]| entries.iter().map(Instance::from).collect::<Vec<_>>();
        if of(&alive) == of(&self.alive) {
            return;
        }
        let mut names: Vec<String> = alive.iter().map(|entry| entry.name.clone()).collect();
        names.sort_unstable();
        if alive.len() != self.alive.len() && (alive.len() > 1 || self.alive.len() > 1) {
            let shown = shown::line(&names.join(", "), MOST_SHOWN);
            log::info!("instances alive={}: {shown}", alive.len());
        }
        let instances = Instances::new(self.me.id, of(&alive), self.longest_request);
        self.receivers.share_among(instances);
        self.state.are(names);
        self.alive = alive;
    }
}
