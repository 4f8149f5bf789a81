//! The backlogs that there are: each is a queue of the broker's for what one receiver can't take now.
//!
//! A delivery enters a backlog through here, which sees to it that there is one. The keeper's thread
//! makes them, tells the threads that consume them ([`crate::consumer`]), and removes those that have
//! been empty for long. Which there are stands in PostgreSQL, so that a restarted process and other
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

/// How long a delivery waits for its backlog to be made: as long as PostgreSQL and RabbitMQ may take
/// together. Where several receivers fail at once, they wait for one another.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// The most backlogs. Each costs the broker some hundred kilobytes, and a thousand of them a twentieth
/// of a core while nothing happens.
const MOST: usize = 1_000;

/// The number of an event queue, and a webhook.
type Key = (usize, Uuid);

/// The backlogs, as everybody uses them. Shared by all threads.
#[derive(Debug)]
pub struct Backlogs {
    /// The names of the queues that events are published to.
    origins: Vec<String>,
    /// The name of this process.
    instance: String,
    /// Those that deliveries can enter.
    open: Mutex<HashSet<Key>>,
    /// Those that there are.
    known: Mutex<HashMap<Key, Known>>,
    /// Moments count from here.
    start: Instant,
    requests: Sender<Request>,
    /// For who consumes them, by queue.
    news: Vec<Receiver<News>>,
}

/// What is known of a backlog.
#[derive(Clone, Debug)]
struct Known {
    /// How many waited when they were counted.
    depths: Depths,
    since: SystemTime,
    cause: String,
    until: Option<SystemTime>,
}

/// The backlogs that hold something, for people.
#[derive(Clone, Debug)]
pub struct Longest {
    /// How many these are.
    pub filled: usize,
    /// Of how many webhooks.
    pub webhooks: usize,
    /// How many of these are meant.
    pub matching: usize,
    /// The first of them, those for which most waits first; each webhook's in the order of the queues.
    pub listed: Vec<Listed>,
}

/// A backlog that holds something.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The queue that its events were published to.
    pub queue: String,
    /// Whose deliveries wait.
    pub webhook: Uuid,
    /// How many did when they were counted.
    pub depths: Depths,
    /// When now is, as the moments of `depths` count.
    pub at: Moment,
    /// Since when.
    pub since: SystemTime,
    /// Why, as in the metrics.
    pub cause: String,
    /// Until when at least, where that is known.
    pub until: Option<SystemTime>,
}

/// What who consumes backlogs is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// There is one.
    Opened(Uuid),
    /// It is gone.
    Removed(Uuid),
    /// Whether its webhook gets its events now; none: it is deleted.
    Standing(Uuid, Option<Standing>),
    /// Some webhook has changed: its limits, perhaps.
    Changed,
}

/// What the keeper is asked for.
#[derive(Debug)]
enum Request {
    Open { key: Key, cause: &'static str, opened: Sender<bool> },
    Note { key: Key, cause: &'static str, class: &'static str, until: Option<SystemTime> },
    Restart(Key),
    Paused(Uuid),
    Remove(Key),
    Lost(Key),
}

impl Backlogs {
    /// None yet, and what its keeper needs of it.
    #[must_use]
    pub fn new(config: &Config) -> (Self, keeper::Inbox) {
        let origins: Vec<String> = config.queues.iter().map(|queue| queue.name.clone()).collect();
        let (requests, inbox) = unbounded();
        let (tell, news) = origins.iter().map(|_| unbounded()).unzip();
        let backlogs = Self {
            origins,
            instance: Uuid::new_v4().to_string(),
            open: Mutex::default(),
            known: Mutex::default(),
            start: Instant::now(),
            requests,
            news,
        };
        (backlogs, keeper::Inbox { requests: inbox, news: tell })
    }

    /// The name by which this process marks what it puts into backlogs.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What has happened to the backlogs of a queue.
    #[must_use]
    pub fn news(&self, queue: usize) -> &Receiver<News> {
        &self.news[queue]
    }

    /// Makes sure that a webhook has a backlog, to which deliveries can be published that are held back
    /// for that reason. Waits for it. False: there can be none now, which is told in the log.
    #[must_use]
    pub fn make_sure(&self, queue: usize, webhook: Uuid, why: Held, shutdown: &Shutdown) -> bool {
        let key = (queue, webhook);
        if self.open().contains(&key) {
            return true;
        }
        let (opened, answer) = bounded(1);
        if self.requests.send(Request::Open { key, cause: why.label(), opened }).is_err() {
            return false;
        }
        select! {
            recv(answer) -> answer => answer.unwrap_or(false),
            recv(shutdown.receiver()) -> _ => false,
            default(OPEN_TIMEOUT) => false,
        }
    }

    /// Writes down why a backlog waits, and until when.
    pub fn note(
        &self,
        queue: usize,
        webhook: Uuid,
        why: Held,
        class: &'static str,
        until: Option<SystemTime>,
    ) {
        let cause = why.label();
        self.ask(Request::Note { key: (queue, webhook), cause, class, until });
    }

    /// A backlog is not consumed before its webhook is resumed; which may have happened by now.
    pub fn is_paused(&self, webhook: Uuid) {
        self.ask(Request::Paused(webhook));
    }

    /// A backlog was empty, and is not any more.
    pub fn restart(&self, queue: usize, webhook: Uuid) {
        self.ask(Request::Restart((queue, webhook)));
    }

    /// A backlog has been empty for long, or its webhook is deleted: it is to be removed.
    pub fn remove(&self, queue: usize, webhook: Uuid) {
        self.ask(Request::Remove((queue, webhook)));
    }

    /// A backlog's queue is no longer there.
    pub fn lost(&self, queue: usize, webhook: Uuid) {
        self.ask(Request::Lost((queue, webhook)));
    }

    /// The backlogs that hold something, of those webhooks that `are_meant`: all of the `most` for which most
    /// waits, and of those in `also`.
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

    /// By how many all backlogs of a queue together become more a second (fewer, below zero); and in how many
    /// seconds the last of them is empty, at the pace of each. `None` while one does not shrink.
    #[must_use]
    pub fn pace(&self, queue: usize) -> (f64, Option<f64>) {
        let known = self.known();
        let of_queue = || known.iter().filter(|((number, _), _)| *number == queue);
        let growth = of_queue().filter_map(|(_, known)| known.depths.growth()).sum();
        let filled = of_queue().filter(|(_, known)| known.depths.now() > 0);
        let ends: Option<Vec<f64>> = filled.map(|(_, known)| known.depths.empty_in()).collect();
        (growth, ends.and_then(|ends| ends.into_iter().reduce(f64::max)))
    }

    /// The webhooks for which something waits.
    #[must_use]
    pub fn webhooks(&self) -> HashSet<Uuid> {
        let known = self.known();
        let filled = known.iter().filter(|(_, known)| known.depths.now() > 0);
        filled.map(|((_, webhook), _)| *webhook).collect()
    }

    fn ask(&self, request: Request) {
        // Nobody hears it at shutdown, and then the next start finds out.
        let _ = self.requests.send(request);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Key, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> MutexGuard<'_, HashSet<Key>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
