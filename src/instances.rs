//! Several instances: each records every few seconds that it is alive, and reads which others are.
//!
//! This lets them share the limits of webhooks ([`crate::domain::instances`]). It has its own thread, which
//! waits for nothing else: if an instance is late, the others consider it dead, and use its share.
//!
//! If an instance has lost its connection to RabbitMQ for long, it serves no queue, and records that too; then
//! the others send its deliveries. While it serves no queue, it keeps the last known set of instances: all may
//! have lost the same RabbitMQ, and come back together.
//!
//! While PostgreSQL is away, the last known set stays in force. If the table can't be used at all, this
//! instance counts as the only one: no delivery may wait for an instance that perhaps doesn't exist.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use uuid::Uuid;

use crate::config::Config;
use crate::directory::{Directory, TableChange};
use crate::domain::causes::Causes;
use crate::domain::instances::{Instance, InstanceRecord, Instances, Roll};
use crate::domain::shown;
use crate::health::LaneState;
use crate::metrics::{InstancesState, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError, UNSHARED_LIMITS};

/// How often an instance records that it is alive. It counts as dead after five missed records in a row, which
/// take a quarter of a minute. Deliveries that depend on it wait that long.
const BEAT: Duration = Duration::from_secs(3);

/// The interval until the first record is written, while this instance and the others don't know each other.
const FIRST_BEAT: Duration = Duration::from_millis(250);

/// How often to check which queues this instance serves.
const SERVED_CHECK: Duration = Duration::from_secs(1);

/// How long a lane may be interrupted before its queue counts as not served: longer than a reconnection takes,
/// and shorter than the time after which an instance counts as dead.
const GRACE: Duration = Duration::from_secs(10);

/// How many characters of the instances' names are logged.
const MOST_SHOWN: usize = 400;

/// Records that this instance is alive, and knows the others.
#[derive(Debug)]
pub struct Heartbeat {
    store: Arc<Store>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    metrics: Arc<Metrics>,
    state: InstancesState,
    queues: Vec<ServedQueue>,
    me: InstanceRecord,
    longest_request: Duration,
    roll: Roll,
    /// The instances that share the limits now; empty while they are unknown.
    alive: Vec<InstanceRecord>,
    has_written: bool,
    causes: Causes,
}

/// A queue that this instance has to serve.
#[derive(Debug)]
pub struct ServedQueue {
    /// Its name together with its broker's: two brokers may each have a queue of this name.
    pub name: String,
    /// The name of its backlogs' lane in [`crate::health`].
    pub lane: String,
}

impl Heartbeat {
    /// The heartbeat of this process. `port` is that of its metrics, which distinguishes the processes of a
    /// machine.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Arc<Store>,
        directory: Arc<Directory>,
        receivers: Arc<Receivers>,
        metrics: Arc<Metrics>,
        queues: Vec<ServedQueue>,
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

    /// Records that this instance is alive, and reads which others are. It has to be called once before
    /// anything is sent.
    pub fn beat(&mut self) {
        let queues = self.served();
        let is_change = self.me.queues != queues;
        self.me.queues = queues;
        let written = self.store.beat(&self.me, !self.has_written, is_change);
        self.has_written |= written.is_ok();
        self.update(written, true);
    }

    /// Beats until `stop`, which must come after the last request has ended: from then on the others use this
    /// instance's share.
    pub fn run(mut self, stop: &Shutdown) {
        let changes = self.directory.subscribe();
        let mut beats_at = Instant::now() + self.interval();
        while !stop.is_requested() {
            let wait = beats_at.saturating_duration_since(Instant::now()).min(SERVED_CHECK);
            select! {
                recv(changes) -> change => match change {
                    Ok(TableChange::Instances) => {
                        self.read();
                        if self.has_written && !self.roll.has(self.me.id) {
                            // Somebody deleted our row.
                            beats_at = Instant::now();
                        }
                    }
                    Ok(TableChange::Webhooks | TableChange::Backlogs) => {}
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
            // If this fails, the others notice the missing beats.
            let _ = self.store.forget_instances(&[(self.me.id, None)]);
        }
    }

    /// The queues whose backlogs this instance consumes, or did within [`GRACE`].
    fn served(&self) -> BTreeSet<String> {
        let health = self.metrics.health();
        let is_served = |queue: &&ServedQueue| match health.lane(&queue.lane) {
            (LaneState::Consuming, _) => true,
            (LaneState::Starting | LaneState::Interrupted(_), lasted) => lasted < GRACE,
        };
        self.queues.iter().filter(is_served).map(|queue| queue.name.clone()).collect()
    }

    fn interval(&self) -> Duration {
        if self.has_written || self.causes.are_told() { BEAT } else { FIRST_BEAT }
    }

    /// Reads which instances are alive.
    fn read(&mut self) {
        if self.has_written {
            let entries = self.store.instances();
            self.update(entries, false);
        }
    }

    /// Applies the rows that were read.
    fn update(&mut self, entries: Result<Vec<InstanceRecord>, StoreError>, is_beat: bool) {
        match entries {
            Ok(entries) => {
                if self.causes.end().is_some() {
                    log::info!("instances share the limits of webhooks again");
                }
                self.roll.read(entries, is_beat);
                self.delete_dead();
                if self.me.queues.is_empty() {
                    return;
                }
                let alive = self.roll.alive(&self.me);
                self.share_among(alive);
            }
            // An outage of PostgreSQL is logged elsewhere.
            Err(error) if error.is_temporary() => log::debug!("instances not known: {error}"),
            Err(error) => {
                let cause = error.to_string();
                if self.causes.is_news(&cause) {
                    log::warn!("instances not known cause={cause:?}: until then {UNSHARED_LIMITS}");
                }
                self.roll = Roll::default();
                self.alive.clear();
                self.receivers.share_among(Instances::default());
                self.state.set_unknown(&cause);
            }
        }
    }

    fn delete_dead(&self) {
        let dead: Vec<_> =
            self.roll.dead(self.me.id).map(|entry| (entry.id, Some(entry.beats))).collect();
        if !dead.is_empty() {
            // If this fails, a later beat or another instance does it.
            let _ = self.store.forget_instances(&dead);
        }
    }

    /// Shares the limits among these instances, if they have changed.
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
        self.state.set(names);
        self.alive = alive;
    }
}
