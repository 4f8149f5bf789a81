//! Creates and removes backlogs, and knows which exist.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, select};
use uuid::Uuid;

use super::{Backlogs, Key, Known, MOST, News, Request};
use crate::broker::{BrokerError, Link, Publisher, backlog_queue};
use crate::clock;
use crate::config::Config;
use crate::directory::{Directory, TableChange};
use crate::domain::causes::Causes;
use crate::domain::depths::Depths;
use crate::domain::in_hand::RAISE_IT;
use crate::metrics::Metrics;
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{BacklogRow, Standing, Store, StoreError};

mod removal;
mod search;

use removal::Closing;
use search::Sought;

/// How often the keeper checks what is due.
const TICK: Duration = Duration::from_secs(1);

/// How often the table is read while its changes are reported, in case a report was lost.
const READ_INTERVAL: Duration = Duration::from_secs(60);

/// How often the broker is asked for the number of waiting messages, and for how many backlogs at a
/// time: a thousand round trips would cost more than the answers are worth.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
const COUNTED: usize = 20;

/// The pause after a backlog couldn't be created: each attempt may take seconds, in which a lane waits.
const DISTRUST: Duration = Duration::from_secs(3);

/// The keeper's ends of the channels.
#[derive(Debug)]
pub struct Inbox {
    pub(super) requests: Receiver<Request>,
    pub(super) news: Vec<Sender<News>>,
}

/// Creates, finds and removes backlogs in its own thread.
#[derive(Debug)]
pub struct Keeper {
    backlogs: Arc<Backlogs>,
    inbox: Inbox,
    config: Arc<Config>,
    store: Arc<Store>,
    directory: Arc<Directory>,
    receivers: Arc<Receivers>,
    metrics: Arc<Metrics>,
    gone: Receiver<(String, Uuid)>,
    shutdown: Shutdown,
    link: Option<Link>,
    /// The order in which backlogs are counted.
    to_count: VecDeque<Key>,
    /// The backlogs that are being removed.
    closing: HashMap<Key, Closing>,
    /// The next steps of removals wait until then.
    removals_rest_until: Instant,
    /// A row was read whose queue another instance has yet to create.
    is_one_being_made: bool,
    standings: HashMap<Uuid, Option<Standing>>,
    /// Whether a webhook may have changed without a report.
    has_to_look: bool,
    /// No backlog is created before this time.
    distrusted_until: Option<Instant>,
    /// The logged causes for failing to create backlogs, and to read the table.
    not_made: Causes,
    not_read: Causes,
    /// Backlogs whose queue is said to be gone, while the broker couldn't be asked.
    lost: Vec<Key>,
    /// Backlogs that may exist without a row; `None` until the webhooks are known.
    sought: Option<Sought>,
}

impl Keeper {
    /// Knows of no backlogs yet.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own")]
    pub fn new(
        backlogs: Arc<Backlogs>,
        inbox: Inbox,
        config: Arc<Config>,
        store: Arc<Store>,
        directory: Arc<Directory>,
        receivers: Arc<Receivers>,
        publisher: &Publisher,
        metrics: Arc<Metrics>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            backlogs,
            inbox,
            config,
            store,
            directory,
            receivers,
            metrics,
            gone: publisher.gone_backlogs().clone(),
            shutdown,
            link: None,
            to_count: VecDeque::new(),
            closing: HashMap::new(),
            removals_rest_until: Instant::now(),
            is_one_being_made: false,
            standings: HashMap::new(),
            has_to_look: false,
            distrusted_until: None,
            not_made: Causes::default(),
            not_read: Causes::default(),
            lost: Vec::new(),
            sought: None,
        }
    }

    /// Keeps the backlogs until shutdown.
    pub fn run(mut self) {
        let changes = self.directory.subscribe();
        // Read at the start, before any report.
        let mut read_at = Instant::now();
        let mut counted_at = read_at;
        let mut ticks = read_at;
        loop {
            let wait = ticks.saturating_duration_since(Instant::now());
            let requests = self.inbox.requests.clone();
            select! {
                recv(requests) -> request => match request {
                    Ok(request) => self.take(request),
                    Err(_) => return,
                },
                recv(changes) -> change => match change {
                    Ok(TableChange::Backlogs) => read_at = Instant::now(),
                    Ok(TableChange::Instances) => {}
                    Ok(TableChange::Webhooks) => {
                        self.look_at_webhooks();
                        for news in &self.inbox.news {
                            // The receiver lives as long as this.
                            let _ = news.send(News::Changed);
                        }
                    }
                    Err(_) => return,
                },
                recv(self.gone) -> gone => {
                    if let Ok((origin, webhook)) = gone {
                        self.is_gone(&origin, webhook);
                    }
                }
                recv(self.shutdown.receiver()) -> _ => break,
                default(wait) => {}
            }
            let now = Instant::now();
            if now >= read_at {
                let is_read = self.read();
                let is_complete = is_read && !std::mem::take(&mut self.is_one_being_made);
                let is_sure = is_complete && self.directory.is_listening();
                read_at = Instant::now() + if is_sure { READ_INTERVAL } else { TICK };
            }
            if now < ticks {
                continue;
            }
            let has_to_look = std::mem::take(&mut self.has_to_look);
            let is_deaf = !self.directory.is_listening() && !self.backlogs.known().is_empty();
            if has_to_look || is_deaf {
                self.look_at_webhooks();
            }
            for key in std::mem::take(&mut self.lost) {
                self.is_lost(key);
            }
            self.remove_closed(now);
            self.seek();
            if now >= counted_at {
                self.count();
                counted_at = now + COUNT_INTERVAL;
            }
            ticks = Instant::now() + TICK;
        }
        if let Some(link) = self.link.take() {
            link.close();
        }
    }

    fn take(&mut self, request: Request) {
        match request {
            Request::Open { key, cause, opened } => {
                // Fails if nobody waits for it any more.
                let _ = opened.try_send(self.make_sure(key, cause));
            }
            Request::Note { key, cause, class, until } => {
                if let Some(known) = self.backlogs.known().get_mut(&key) {
                    cause.clone_into(&mut known.cause);
                    known.until = until;
                }
                let note = |store: &Store, origin: &str| {
                    store.note_backlog(origin, key.1, cause, class, until)
                };
                self.note(key, note);
            }
            Request::Restart(key) => {
                if let Some(known) = self.backlogs.known().get_mut(&key) {
                    known.since = clock::now();
                }
                self.note(key, |store, origin| store.restart_backlog(origin, key.1));
            }
            Request::Paused(webhook) => {
                // So that its resumption is noticed even if both happened between two checks. The check
                // is later, since the directory may not know of the change yet.
                self.standings.insert(webhook, Some(Standing::Paused));
                self.has_to_look = true;
            }
            Request::Remove(key) => self.close(key),
            Request::Lost(key) => self.is_lost(key),
        }
    }

    fn is_known(&self, key: Key) -> bool {
        self.backlogs.known().contains_key(&key)
    }

    fn is_counted(&self, key: Key, count: u32) {
        let now = self.backlogs.start.elapsed();
        if let Some(known) = self.backlogs.known().get_mut(&key) {
            known.depths.push(now, count);
        }
    }

    /// Records something that nobody waits for. If PostgreSQL has just failed to answer, this would take
    /// seconds, while a lane may wait for its own request; then it is skipped.
    fn note(&mut self, key: Key, note: impl FnOnce(&Store, &str) -> Result<(), StoreError>) {
        if self.is_distrusted() {
            return;
        }
        if let Err(error) = note(&self.store, self.origin(key)) {
            log::debug!("backlog not noted webhook={}: {error}", key.1);
            self.distrusted_until = Some(Instant::now() + DISTRUST);
        }
    }

    fn is_distrusted(&self) -> bool {
        self.distrusted_until.is_some_and(|until| Instant::now() < until)
    }

    fn origin(&self, (queue, _): Key) -> &str {
        &self.backlogs.origins[queue]
    }

    fn number(&self, origin: &str) -> Option<usize> {
        self.backlogs.origins.iter().position(|name| name == origin)
    }

    /// Makes sure that a backlog exists, unless one couldn't be created just now.
    fn make_sure(&mut self, key: Key, cause: &'static str) -> bool {
        if self.backlogs.open().contains(&key) {
            return true;
        }
        if self.is_distrusted() {
            return false;
        }
        match self.open(key, cause) {
            Ok(()) => {
                if self.not_made.end().is_some() {
                    log::info!("backlogs can be made again");
                }
                true
            }
            // Shutdown ended the call.
            Err(_) if self.shutdown.is_requested() => false,
            Err(problem) => {
                self.distrusted_until = Some(Instant::now() + DISTRUST);
                if self.not_made.is_news(&problem) {
                    let queue = backlog_queue(self.origin(key), key.1);
                    log::warn!(
                        "backlog not made queue={queue} cause={problem:?}: what its receiver can't take \
                         is retried every minute, in no order"
                    );
                }
                false
            }
        }
    }

    fn open(&mut self, key: Key, cause: &'static str) -> Result<(), String> {
        {
            let known = self.backlogs.known();
            if known.len() >= MOST && !known.contains_key(&key) {
                return Err(format!("there are {MOST} already"));
            }
        }
        let origin = self.origin(key).to_owned();
        let class = self.receivers.class(key.1).unwrap_or_default().label();
        self.store.open_backlog(&origin, key.1, cause, class).map_err(|error| error.to_string())?;
        self.receivers.has_backlog(key.1);
        let waiting = self
            .ask_broker(|link, shutdown| link.open_backlog(&origin, key.1, shutdown))
            .map_err(|error| error.to_string())?;
        self.closing.remove(&key);
        self.is_there(key, cause, clock::now(), waiting > 0);
        Ok(())
    }

    /// Runs a call on our connection, which is opened on demand and dropped after a failure. If an
    /// existing connection fails, the call is repeated on a new one.
    fn ask_broker<T>(
        &mut self,
        mut call: impl FnMut(&mut Link, &Shutdown) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        // An idle connection may have died long ago.
        if let Some(link) = &mut self.link
            && let Ok(answer) = call(link, &self.shutdown)
        {
            return Ok(answer);
        }
        self.link = None;
        let timeout = self.config.connect_timeout;
        let mut link = Link::open(&self.config.amqp, timeout, &self.shutdown)?;
        let answer = call(&mut link, &self.shutdown)?;
        self.link = Some(link);
        Ok(answer)
    }

    /// A backlog exists, and deliveries may enter it. `may_hold_some`: it may contain deliveries
    /// already.
    fn is_there(&mut self, key: Key, cause: &str, since: SystemTime, may_hold_some: bool) {
        if !self.is_known(key) {
            let known =
                Known { depths: Depths::default(), since, cause: cause.to_owned(), until: None };
            self.backlogs.known().insert(key, known);
            if may_hold_some {
                // Before anything may enter it.
                self.receivers.found_backlog(key.0, key.1);
            }
            self.to_count.push_back(key);
            log::info!("backlog opened queue={}", backlog_queue(self.origin(key), key.1));
        }
        self.tell(key, News::Opened(key.1));
        self.backlogs.open().insert(key);
    }

    fn is_no_longer_there(&mut self, key: Key) {
        self.backlogs.open().remove(&key);
        self.backlogs.known().remove(&key);
        self.to_count.retain(|other| *other != key);
        self.closing.remove(&key);
        self.tell(key, News::Removed(key.1));
        let last = self.receivers.last_in_backlog(key.0, key.1);
        let _ = self.receivers.is_backlog_emptied(key.0, key.1, last);
        if !self.backlogs.known().keys().any(|(_, webhook)| *webhook == key.1) {
            self.standings.remove(&key.1);
        }
    }

    fn tell(&self, key: Key, news: News) {
        // The consumers live as long as this.
        let _ = self.inbox.news[key.0].send(news);
    }

    /// The publisher found that a backlog can no longer be reached.
    fn is_gone(&mut self, origin: &str, webhook: Uuid) {
        if let Some(queue) = self.number(origin) {
            self.backlogs.open().remove(&(queue, webhook));
        }
    }

    /// The consumer of a backlog found that its queue is gone. From 4.3 on, RabbitMQ also ends a
    /// consumer if a message wasn't acked in time, and when it is about to delete the queue.
    fn is_lost(&mut self, key: Key) {
        if !self.is_known(key) {
            return;
        }
        let origin = self.origin(key).to_owned();
        let queue = backlog_queue(&origin, key.1);
        let is_there = self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown));
        match is_there {
            Ok(None) => {}
            Ok(Some(_)) => {
                log::warn!(
                    "backlog interrupted queue={queue}: RabbitMQ cancelled its consumer; consuming it \
                     again. If somebody has deleted the queue, the deliveries in it are lost; otherwise \
                     {RAISE_IT}"
                );
                return self.tell(key, News::Opened(key.1));
            }
            // Until that is known, nobody consumes it here.
            Err(_) => return self.lost.push(key),
        }
        // Another instance deletes the row first.
        let Ok(rows) = self.store.backlogs() else { return self.lost.push(key) };
        let is_ours = |row: &BacklogRow| row.queue == origin && row.webhook == key.1;
        if rows.iter().any(|row| is_ours(row) && !row.is_closing) {
            log::error!(
                "backlog lost queue={queue}: somebody has deleted it with the deliveries in it; new \
                 deliveries create another"
            );
            self.metrics.backlogs_lost().inc();
        }
        self.is_no_longer_there(key);
    }

    /// Tells the consumers of changes of their webhooks.
    fn look_at_webhooks(&mut self) {
        let ids: HashSet<Uuid> =
            self.backlogs.known().keys().map(|(_, webhook)| *webhook).collect();
        if ids.is_empty() {
            return;
        }
        let ids: Vec<Uuid> = ids.into_iter().collect();
        let Ok(standings) = self.store.standings(&ids) else { return };
        for webhook in ids {
            let standing = standings.get(&webhook).copied();
            let before = self.standings.insert(webhook, standing);
            if before.is_some_and(|before| before == standing) {
                continue;
            }
            for queue in 0..self.backlogs.origins.len() {
                if self.is_known((queue, webhook)) {
                    self.tell((queue, webhook), News::Standing(webhook, standing));
                }
            }
        }
    }

    /// Asks how many deliveries wait in some of the backlogs.
    fn count(&mut self) {
        let some: Vec<Key> = (0..self.to_count.len().min(COUNTED))
            .filter_map(|_| self.to_count.pop_front())
            .collect();
        self.to_count.extend(&some);
        for key in some {
            let queue = backlog_queue(self.origin(key), key.1);
            match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
                Ok(Some(count)) => self.is_counted(key, count),
                Ok(None) => self.is_lost(key),
                Err(_) => return,
            }
        }
        for (queue, origin) in self.backlogs.origins.iter().enumerate() {
            let counts: Vec<u32> = {
                let known = self.backlogs.known();
                let of_queue = known.iter().filter(|((number, _), _)| *number == queue);
                of_queue.map(|(_, known)| known.depths.now()).collect()
            };
            let waiting = counts.iter().map(|count| i64::from(*count)).sum();
            let filled = counts.iter().filter(|count| **count > 0).count();
            self.metrics.set_backlogs(origin, i64::try_from(filled).unwrap_or(i64::MAX), waiting);
        }
    }
}
