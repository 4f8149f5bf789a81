//! Several instances: this one writes down every few seconds that it is alive, and learns who else is.
//!
//! So they can share the limits of webhooks ([`crate::domain::instances`]). A thread of its own does it,
//! which waits for nothing else: who is late would be taken for dead, and its share be used by others.
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
use crate::domain::instances::{InstanceRecord, Instances, Roll};
use crate::domain::shown;
use crate::metrics::{InstancesState, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{EACH_BY_ITSELF, Store, StoreError};

/// How often it is written that this one is alive. One that has not done it five times in a row counts as
/// dead, and whoever it was waits for that long: a quarter of a minute.
const BEAT: Duration = Duration::from_secs(3);

/// The same before the first time, while this one does not know the others nor they it.
const FIRST: Duration = Duration::from_millis(250);

/// How much of the instances' names is logged, in characters.
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
    /// Those that share the limits now; none before that is known.
    alive: Vec<InstanceRecord>,
    has_written: bool,
    causes: Causes,
}

impl Presence {
    /// Of a process whose metrics are at this port, which no other process of its machine has.
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

    /// Writes that this one is alive, and learns who else is. To be called before anything is sent, too.
    pub fn beat(&mut self) {
        let written = self.store.beat(&self.me, !self.has_written);
        self.has_written |= written.is_ok();
        self.learn(written, true);
    }

    /// Does it until `stop`, which has to come after the last request has ended: from then on the others
    /// have its share.
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
                            // Somebody has deleted our entry.
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
            // Else the others find out.
            let _ = self.store.forget_instances(&[(self.me.id, None)]);
        }
    }

    fn interval(&self) -> Duration {
        if self.has_written || self.causes.are_told() { BEAT } else { FIRST }
    }

    /// Somebody has come or gone.
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
            // Others say so.
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
            // Another time, or another instance.
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
