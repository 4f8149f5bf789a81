//! The backlogs that there are: each is a queue of the broker's for what one receiver can't take now.
//!
//! A delivery enters a backlog through here, which sees to it that there is one. The keeper's thread
//! makes them, tells the threads that consume them ([`crate::consumer`]), and removes those that have
//! been empty for long. Which there are stands in PostgreSQL, so that a restarted process and other
//! instances find them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use uuid::Uuid;

use crate::config::Config;
use crate::metrics::Held;
use crate::shutdown::Shutdown;

mod keeper;

pub use crate::store::Standing;
pub use keeper::Keeper;

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
    requests: Sender<Request>,
    /// For who consumes them, by queue.
    news: Vec<Receiver<News>>,
}

/// What is known of a backlog.
#[derive(Clone, Debug)]
struct Known {
    /// How many waited when they were last counted.
    waiting: u32,
    counted_at: Option<Instant>,
    /// By how many it grew a second before that.
    growth: f64,
    since: SystemTime,
    cause: String,
    until: Option<SystemTime>,
}

/// A backlog that holds something, for people.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The queue that its events were published to.
    pub queue: String,
    /// Whose deliveries wait.
    pub webhook: Uuid,
    /// How many did when they were last counted.
    pub waiting: u32,
    /// Since when.
    pub since: SystemTime,
    /// Why, as in the metrics.
    pub cause: String,
    /// Until when at least, where that is known.
    pub until: Option<SystemTime>,
    /// By how many it grows a second; shrinks, below zero.
    pub growth: f64,
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

    /// The longest backlogs, at most so many; and how many hold something.
    #[must_use]
    pub fn longest(&self, most: usize) -> (Vec<Listed>, usize) {
        let known = self.known();
        let filled = known.iter().filter(|(_, known)| known.waiting > 0);
        let mut listed: Vec<Listed> = filled
            .map(|((queue, webhook), known)| Listed {
                queue: self.origins[*queue].clone(),
                webhook: *webhook,
                waiting: known.waiting,
                since: known.since,
                cause: known.cause.clone(),
                until: known.until,
                growth: known.growth,
            })
            .collect();
        let all = listed.len();
        listed.sort_unstable_by_key(|one| (std::cmp::Reverse(one.waiting), one.webhook));
        listed.truncate(most);
        (listed, all)
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
