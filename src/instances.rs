//! Several instances: this one records every few seconds that it is alive, and learns which others are.
//!
//! This lets them share the limits of webhooks ([`crate::domain::instances`]). It has its own thread
//! that waits for nothing else: a late instance would be taken for dead, and others would use its share.
//!
//! While PostgreSQL is away, the last known state applies. If the table can't be used at all, this
//! instance counts as the only one: nothing may wait for an instance that perhaps doesn't exist.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::select;
use uuid::Uuid;

use crate::config::Config;
use crate::directory::{Change, Directory};
use crate::domain::causes::Causes;
use crate::domain::instances::{InstanceRecord, Instances, Roll};
use crate::domain::shown;
use crate::metrics::{InstancesState, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{EACH_BY_ITSELF, Store, StoreError};

/// How often an instance records that it is alive. After five missed records in a row it counts as dead.
/// Deliveries that depend on it wait that long: a quarter of a minute.
const BEAT: Duration = Duration::from_secs(3);

/// The interval before the first record, while this instance and the others don't know each other.
const FIRST: Duration = Duration::from_millis(250);

/// How many characters of the instances' names are logged.
const MOST_SHOWN: usize = 400;

/// This instance among the others.
#[derive(Debug)]
pub struct Presence {
    store: Arc<Store>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    state: InstancesState,
    me: InstanceRecord,
    longest_request: Duration,
    roll: Roll,
    /// The instances that share the limits now; empty until that is known.
    alive: Vec<InstanceRecord>,
    has_written: bool,
    causes: Causes,
}

impl Presence {
    /// For a process with its metrics at this port, which no other process of its machine has.
    #[must_use]
    pub fn new(
        config: &Config,
        store: Arc<Store>,
        directory: Arc<Directory>,
        receivers: Arc<Receivers>,
        metrics: &Metrics,
        port: u16,
    ) -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let queues: BTreeSet<String> =
            config.queues.iter().map(|queue| queue.name.clone()).collect();
        let name = format!("{host}:{port}");
        Self {
            store,
            directory,
            receivers,
            state: metrics.instances().clone(),
            me: InstanceRecord { id: Uuid::new_v4(), name, queues, beats: 0 },
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
        let written = self.store.beat(&self.me, !self.has_written);
        self.has_written |= written.is_ok();
        self.learn(written, true);
    }

    /// Repeats this until `stop`, which must come after the last request has ended: from then on the
    /// others have its share.
    pub fn run(mut self, stop: &Shutdown) {
        let changes = self.directory.subscribe();
        let mut beats_at = Instant::now() + self.interval();
        while !stop.is_requested() {
            let wait = beats_at.saturating_duration_since(Instant::now());
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
            if Instant::now() >= beats_at {
                self.beat();
                beats_at = Instant::now() + self.interval();
            }
        }
        if self.has_written {
            // If this fails, the others find out.
            let _ = self.store.forget_instances(&[(self.me.id, None)]);
        }
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
        let ids =
            |entries: &[InstanceRecord]| entries.iter().map(|entry| entry.id).collect::<Vec<_>>();
        if ids(&alive) == ids(&self.alive) {
            return;
        }
        let mut names: Vec<String> = alive.iter().map(|entry| entry.name.clone()).collect();
        names.sort_unstable();
        if alive.len() > 1 || self.alive.len() > 1 {
            let shown = shown::line(&names.join(", "), MOST_SHOWN);
            log::info!("instances alive={}: {shown}", alive.len());
        }
        let instances = alive.iter().map(Into::into).collect();
        self.receivers.share_among(Instances::new(self.me.id, instances, self.longest_request));
        self.state.are(names);
        self.alive = alive;
    }
}
