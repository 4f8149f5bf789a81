//! The existing backlogs: each is a queue at the broker for deliveries that one receiver can't take now.
//!
//! Before a delivery enters a backlog, this module makes sure that the backlog exists. The keeper's thread
//! creates backlogs, notifies the threads that consume them ([`crate::consumer`]), and removes those that
//! have been empty for long. PostgreSQL stores the list of backlogs, so that a restarted process and other
//! instances find them.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use uuid::Uuid;

use crate::config::Config;
use crate::domain::depths::Depths;
use crate::domain::held::Held;
use crate::domain::time::Moment;
use crate::shutdown::Shutdown;

mod keeper;

pub use crate::store::Standing;
pub use keeper::{Inbox, Keeper};

/// How long a delivery waits for the creation of its backlog: as long as PostgreSQL and RabbitMQ together may
/// take. If several receivers fail at the same time, their backlogs are created one after another.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// The most backlogs. Each costs the broker some hundred kilobytes; a thousand idle ones cost a twentieth of a
/// core.
const MOST: usize = 1_000;

/// How long a lane waits at its start until the table was read. This takes milliseconds if PostgreSQL answers.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of an event queue, and a webhook.
type Key = (usize, Uuid);

/// The backlogs, shared by all threads.
#[derive(Debug)]
pub struct Backlogs {
    /// The names of the queues that events are published to.
    origins: Vec<String>,
    /// The id of this process.
    instance: String,
    /// The backlogs that deliveries may enter.
    open: Mutex<HashSet<Key>>,
    /// The backlogs that exist.
    known: Mutex<HashMap<Key, Known>>,
    /// The zero of all moments.
    start: Instant,
    requests: Sender<KeeperRequest>,
    /// For the consuming threads, by queue.
    news: Vec<Receiver<News>>,
    /// Disconnected once the state of receivers was restored from the table.
    restored: Receiver<()>,
}

/// What this process knows about a backlog.
#[derive(Clone, Debug)]
struct Known {
    /// The recent numbers of waiting deliveries.
    depths: Depths,
    since: SystemTime,
    cause: String,
    until: Option<SystemTime>,
}

/// The backlogs that aren't empty, for people.
#[derive(Clone, Debug)]
pub struct Longest {
    /// How many backlogs aren't empty.
    pub filled: usize,
    /// How many webhooks these belong to.
    pub webhooks: usize,
    /// How many of these webhooks match the search.
    pub matching: usize,
    /// The selected backlogs. The webhooks with the most waiting deliveries come first; the backlogs of a
    /// webhook are in the order of the queues.
    pub listed: Vec<Listed>,
}

/// A backlog that isn't empty.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The queue that its events were published to.
    pub queue: String,
    /// The webhook whose deliveries wait.
    pub webhook: Uuid,
    /// The recent numbers of waiting deliveries.
    pub depths: Depths,
    /// The present, on the time scale of `depths`.
    pub at: Moment,
    /// Since when it isn't empty.
    pub since: SystemTime,
    /// Why it waits, as in the metrics.
    pub cause: String,
    /// Until when it waits at least, if that is known.
    pub until: Option<SystemTime>,
}

/// News for the threads that consume backlogs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The webhook has a backlog.
    Opened(Uuid),
    /// Its backlog is gone.
    Removed(Uuid),
    /// Whether the webhook gets its events; `None` if it is deleted.
    Standing(Uuid, Option<Standing>),
    /// Some webhook has changed, perhaps its limits.
    Changed,
}

/// A request to the keeper.
#[derive(Debug)]
enum KeeperRequest {
    Open { key: Key, cause: &'static str, opened: Sender<bool> },
    Note { key: Key, cause: &'static str, class: &'static str, until: Option<SystemTime> },
    Refilled(Key),
    Paused(Uuid),
    Remove(Key),
    Lost(Key),
}

impl Backlogs {
    /// Returns an empty list, and the keeper's ends of the channels.
    #[must_use]
    pub fn new(config: &Config) -> (Self, keeper::Inbox) {
        let origins: Vec<String> = config.queues.iter().map(|queue| queue.name.clone()).collect();
        let (requests, inbox) = unbounded();
        let (tell, news) = origins.iter().map(|_| unbounded()).unzip();
        let (until_restored, restored) = bounded(0);
        let backlogs = Self {
            origins,
            instance: Uuid::new_v4().to_string(),
            open: Mutex::default(),
            known: Mutex::default(),
            start: Instant::now(),
            requests,
            news,
            restored,
        };
        let until_restored = Some(until_restored);
        (backlogs, keeper::Inbox { requests: inbox, news: tell, until_restored })
    }

    /// Waits until the table has said which receivers were down, and which have a backlog. A lane that
    /// consumed before would send a receiver that is down a request for each delivery, and new events past
    /// older ones. Gives up after `RESTORE_TIMEOUT`, so that no lane depends on it.
    pub fn wait_until_restored(&self, shutdown: &Shutdown) {
        select! {
            recv(self.restored) -> _ => {}
            recv(shutdown.receiver()) -> _ => {}
            default(RESTORE_TIMEOUT) => {}
        }
    }

    /// The id with which this process marks the deliveries that it puts into backlogs.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The news about the backlogs of a queue.
    #[must_use]
    pub fn news(&self, queue: usize) -> &Receiver<News> {
        &self.news[queue]
    }

    /// Makes sure that a webhook has a backlog for deliveries held back for this reason, and waits for that.
    /// False if none can be created now; the cause is in the log.
    #[must_use]
    pub fn ensure_open(&self, queue: usize, webhook: Uuid, why: Held, shutdown: &Shutdown) -> bool {
        let key = (queue, webhook);
        if self.open().contains(&key) {
            return true;
        }
        let (opened, answer) = bounded(1);
        if self.requests.send(KeeperRequest::Open { key, cause: why.label(), opened }).is_err() {
            return false;
        }
        select! {
            recv(answer) -> answer => answer.unwrap_or(false),
            recv(shutdown.receiver()) -> _ => false,
            default(OPEN_TIMEOUT) => false,
        }
    }

    /// Records why a backlog waits, and until when.
    pub fn note(
        &self,
        queue: usize,
        webhook: Uuid,
        why: Held,
        class: &'static str,
        until: Option<SystemTime>,
    ) {
        let cause = why.label();
        self.ask(KeeperRequest::Note { key: (queue, webhook), cause, class, until });
    }

    /// Reports that a backlog isn't consumed until its webhook is resumed, which may already have happened.
    pub fn report_paused(&self, webhook: Uuid) {
        self.ask(KeeperRequest::Paused(webhook));
    }

    /// Reports that a backlog was empty and no longer is.
    pub fn report_refilled(&self, queue: usize, webhook: Uuid) {
        self.ask(KeeperRequest::Refilled((queue, webhook)));
    }

    /// Asks for the removal of a backlog: it has been empty for long, or its webhook is deleted.
    pub fn remove(&self, queue: usize, webhook: Uuid) {
        self.ask(KeeperRequest::Remove((queue, webhook)));
    }

    /// Reports that a backlog's queue no longer exists.
    pub fn report_lost(&self, queue: usize, webhook: Uuid) {
        self.ask(KeeperRequest::Lost((queue, webhook)));
    }

    /// The backlogs that aren't empty, of the webhooks that `are_meant`: of the `most` webhooks with the most
    /// waiting deliveries, and of those in `also`.
    #[must_use]
    pub fn longest(
        &self,
        most: usize,
        are_meant: impl Fn(Uuid) -> bool,
        also: &HashSet<Uuid>,
    ) -> Longest {
        let known = self.known();
        let is_filled = |(_, known): &(&Key, &Known)| known.depths.now() > 0;
        let mut waiting: HashMap<Uuid, u64> = HashMap::new();
        let mut filled = 0;
        for ((_, webhook), known) in known.iter().filter(is_filled) {
            *waiting.entry(*webhook).or_default() += u64::from(known.depths.now());
            filled += 1;
        }
        let webhooks = waiting.len();
        waiting.retain(|webhook, _| are_meant(*webhook));
        let matching = waiting.len();
        let mut longest: Vec<_> = waiting.into_iter().map(|(id, all)| (Reverse(all), id)).collect();
        longest.sort_unstable();
        let longest = longest.into_iter().take(most).map(|(_, webhook)| webhook);
        let shown: Vec<Uuid> = longest.chain(also.iter().copied()).collect();
        let place: HashMap<Uuid, usize> = shown.iter().rev().copied().zip(1..).collect();
        let at = self.start.elapsed();
        let is_shown = |(key, _): &(&Key, &Known)| place.contains_key(&key.1);
        let mut listed: Vec<_> = known.iter().filter(is_filled).filter(is_shown).collect();
        listed.sort_unstable_by_key(|((queue, webhook), _)| (Reverse(place[webhook]), *queue));
        let listed = listed.into_iter().map(|((queue, webhook), known)| Listed {
            queue: self.origins[*queue].clone(),
            webhook: *webhook,
            depths: known.depths.clone(),
            at,
            since: known.since,
            cause: known.cause.clone(),
            until: known.until,
        });
        let listed = listed.collect();
        Longest { filled, webhooks, matching, listed }
    }

    /// The growth of all backlogs of a queue together, per second (negative if they shrink), and the seconds
    /// until the last of them is empty; `None` if one doesn't shrink.
    #[must_use]
    pub fn pace(&self, queue: usize) -> (f64, Option<f64>) {
        let known = self.known();
        let of_queue = || known.iter().filter(|((number, _), _)| *number == queue);
        let growth = of_queue().filter_map(|(_, known)| known.depths.growth()).sum();
        let filled = of_queue().filter(|(_, known)| known.depths.now() > 0);
        let ends: Option<Vec<f64>> = filled.map(|(_, known)| known.depths.empty_in()).collect();
        (growth, ends.and_then(|ends| ends.into_iter().reduce(f64::max)))
    }

    /// The webhooks that have waiting deliveries.
    #[must_use]
    pub fn webhooks(&self) -> HashSet<Uuid> {
        let known = self.known();
        let filled = known.iter().filter(|(_, known)| known.depths.now() > 0);
        filled.map(|((_, webhook), _)| *webhook).collect()
    }

    fn ask(&self, request: KeeperRequest) {
        // At shutdown nobody receives it. Then the next start finds out.
        let _ = self.requests.send(request);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
