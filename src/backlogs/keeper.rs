//! Creates and removes backlogs, and knows which exist.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, select};
use uuid::Uuid;

use super::{Backlogs, KeeperRequest, Key, Known, News};
use crate::broker::{BrokerError, Link, Objects, Publisher, backlog_queue};
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

mod creation;
mod removal;
mod search;

use removal::Closing;
use search::Unsearched;

/// How often the keeper checks what is due.
const TICK: Duration = Duration::from_secs(1);

/// How often the table is read while its changes are reported, in case a report was lost.
const READ_INTERVAL: Duration = Duration::from_secs(60);

/// How often the broker is asked for the number of waiting messages, and for how many backlogs at a
/// time: a thousand round trips would cost more than the answers are worth.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
const COUNTED: usize = 20;

/// How long after a loss its consumer may still report it.
const REPORTED_WITHIN: Duration = Duration::from_secs(60);

/// The keeper's ends of the channels.
#[derive(Debug)]
pub struct Inbox {
    pub(super) requests: Receiver<KeeperRequest>,
    pub(super) news: Vec<Sender<News>>,
    /// Dropped once the state of receivers was restored from the table.
    pub(super) until_restored: Option<Sender<()>>,
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
    objects: Arc<Objects>,
    gone: Receiver<(String, Uuid)>,
    shutdown: Shutdown,
    link: Option<Link>,
    /// The order in which backlogs are counted.
    to_count: VecDeque<Key>,
    /// The backlogs that are being removed.
    closing: HashMap<Key, Closing>,
    /// When the next steps of removals may be taken.
    next_removal_at: Instant,
    /// Whether a row was read whose queue another instance may still be creating.
    is_one_being_created: bool,
    standings: HashMap<Uuid, Option<Standing>>,
    /// Whether a webhook may have changed without a report.
    standings_are_due: bool,
    /// No backlog is created before this time.
    no_creation_before: Option<Instant>,
    /// The logged causes for failing to create backlogs, and to read the table.
    not_created: Causes,
    not_read: Causes,
    /// Backlogs whose queue seems to be gone, to be checked once the broker answers.
    suspects: Vec<Key>,
    /// When backlogs were last found to be lost.
    lost: HashMap<Key, Instant>,
    /// Backlogs that may exist without a row; `None` until the webhooks are known.
    unsearched: Option<Unsearched>,
}

impl Keeper {
    /// Creates the keeper, which knows no backlogs yet.
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
        objects: Arc<Objects>,
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
            objects,
            gone: publisher.gone_backlogs().clone(),
            shutdown,
            link: None,
            to_count: VecDeque::new(),
            closing: HashMap::new(),
            next_removal_at: Instant::now(),
            is_one_being_created: false,
            standings: HashMap::new(),
            standings_are_due: false,
            no_creation_before: None,
            not_created: Causes::default(),
            not_read: Causes::default(),
            suspects: Vec::new(),
            lost: HashMap::new(),
            unsearched: None,
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
                        self.report_standings();
                        for news in &self.inbox.news {
                            // Its receiver lives as long as this thread.
                            let _ = news.send(News::Changed);
                        }
                    }
                    Err(_) => return,
                },
                recv(self.gone) -> gone => {
                    if let Ok((origin, webhook)) = gone {
                        self.remove_from_open(&origin, webhook);
                    }
                }
                recv(self.shutdown.receiver()) -> _ => break,
                default(wait) => {}
            }
            let now = Instant::now();
            if now >= read_at {
                let is_read = self.read();
                let is_complete = is_read && !std::mem::take(&mut self.is_one_being_created);
                let is_sure = is_complete && self.directory.is_listening();
                read_at = Instant::now() + if is_sure { READ_INTERVAL } else { TICK };
            }
            if now < ticks {
                continue;
            }
            let is_due = std::mem::take(&mut self.standings_are_due);
            if is_due || !self.directory.is_listening() {
                self.report_standings();
            }
            for key in std::mem::take(&mut self.suspects) {
                self.check_lost(key);
            }
            self.lost.retain(|_, at| at.elapsed() < REPORTED_WITHIN);
            self.remove_closed(now);
            self.search();
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

    fn take(&mut self, request: KeeperRequest) {
        match request {
            KeeperRequest::Open { key, cause, opened } => {
                // Fails if nobody waits for it any more.
                let _ = opened.try_send(self.ensure_open(key, cause));
            }
            KeeperRequest::Note { key, cause, class, until } => {
                if let Some(known) = self.backlogs.known().get_mut(&key) {
                    cause.clone_into(&mut known.cause);
                    known.until = until;
                }
                let note = |store: &Store, origin: &str| {
                    store.note_backlog(origin, key.1, cause, class, until)
                };
                self.note(key, note);
            }
            KeeperRequest::Refilled(key) => {
                if let Some(known) = self.backlogs.known().get_mut(&key) {
                    known.since = clock::now();
                }
                self.note(key, |store, origin| store.restart_backlog(origin, key.1));
            }
            KeeperRequest::Paused(webhook) => {
                // So that its resumption is noticed even if both happened between two checks. The check is at
                // the next tick, because the directory may not know of the change yet.
                self.standings.insert(webhook, Some(Standing::Paused));
                self.standings_are_due = true;
            }
            KeeperRequest::Remove(key) => self.close(key),
            KeeperRequest::Lost(key) => self.check_lost(key),
        }
    }

    fn is_known(&self, key: Key) -> bool {
        self.backlogs.known().contains_key(&key)
    }

    fn add_count(&self, key: Key, count: u32) {
        let now = self.backlogs.start.elapsed();
        if let Some(known) = self.backlogs.known().get_mut(&key) {
            known.depths.push(now, count);
        }
    }

    /// Records something that nobody waits for. Skipped if PostgreSQL has just failed to answer: it would take
    /// seconds, while a lane may wait for its own request.
    fn note(&mut self, key: Key, note: impl FnOnce(&Store, &str) -> Result<(), StoreError>) {
        if self.is_creation_paused() {
            return;
        }
        if let Err(error) = note(&self.store, self.origin(key)) {
            log::debug!("backlog not noted webhook={}: {error}", key.1);
            self.pause_creation();
        }
    }

    fn origin(&self, (queue, _): Key) -> &str {
        &self.backlogs.origins[queue]
    }

    fn number(&self, origin: &str) -> Option<usize> {
        self.backlogs.origins.iter().position(|name| name == origin)
    }

    /// Runs a call on the keeper's connection, which is opened on demand and dropped after a failure. If an
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

    /// Adds an existing backlog, which deliveries may enter from now on. `may_hold_some`: it may contain
    /// deliveries already.
    fn add_known(&mut self, key: Key, cause: &str, since: SystemTime, may_hold_some: bool) {
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
        self.send_news(key, News::Opened(key.1));
        self.backlogs.open().insert(key);
    }

    /// Removes a backlog that no longer exists.
    fn remove_known(&mut self, key: Key) {
        self.backlogs.open().remove(&key);
        self.backlogs.known().remove(&key);
        self.to_count.retain(|other| *other != key);
        self.closing.remove(&key);
        self.send_news(key, News::Removed(key.1));
        let last = self.receivers.last_in_backlog(key.0, key.1);
        let _ = self.receivers.note_backlog_empty(key.0, key.1, last);
        if !self.backlogs.known().keys().any(|(_, webhook)| *webhook == key.1) {
            self.standings.remove(&key.1);
        }
    }

    fn send_news(&self, key: Key, news: News) {
        // The consumers live as long as this thread.
        let _ = self.inbox.news[key.0].send(news);
    }

    /// The publisher couldn't reach a backlog: it has to be opened again before deliveries may enter it.
    fn remove_from_open(&mut self, origin: &str, webhook: Uuid) {
        if let Some(queue) = self.number(origin) {
            self.backlogs.open().remove(&(queue, webhook));
        }
    }

    /// Checks whether a backlog's queue is gone, because its consumer ended. From 4.3 on, RabbitMQ also ends a
    /// consumer if a message wasn't acked in time, and when it is about to delete the queue.
    fn check_lost(&mut self, key: Key) {
        match self.note_if_lost(key) {
            // If it was lost, a new delivery has created it again before its consumer reported the loss.
            Ok(true) => {
                let queue = backlog_queue(self.origin(key), key.1);
                if self.lost.remove(&key).is_none() {
                    log::warn!(
                        "backlog interrupted queue={queue}: RabbitMQ cancelled its consumer; consuming it \
                         again. If somebody has deleted the queue, its deliveries are lost; otherwise {RAISE_IT}"
                    );
                }
                self.send_news(key, News::Opened(key.1));
            }
            Ok(false) => {}
            // Until the broker answers, this process doesn't consume it.
            Err(_) => self.suspects.push(key),
        }
    }

    /// If the queue of a known backlog is gone, forgets the backlog, and reports that its deliveries are lost,
    /// unless an instance has removed it. Returns whether the backlog exists, or why that is unknown.
    fn note_if_lost(&mut self, key: Key) -> Result<bool, String> {
        let Some(last_count) = self.backlogs.known().get(&key).map(|known| known.depths.now())
        else {
            return Ok(false);
        };
        let origin = self.origin(key).to_owned();
        let queue = backlog_queue(&origin, key.1);
        let is_there = self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown));
        if is_there.map_err(|error| error.to_string())?.is_some() {
            return Ok(true);
        }
        // An instance that removes a backlog deletes the row first.
        let rows = self.store.backlogs().map_err(|error| error.to_string())?;
        let is_ours = |row: &BacklogRow| row.queue == origin && row.webhook == key.1;
        if rows.iter().any(|row| is_ours(row) && !row.is_closing) {
            log::error!(
                "backlog lost queue={queue} messages={last_count}: somebody has deleted it with its \
                 deliveries (as of the last count); new deliveries create another"
            );
            self.metrics.backlogs_lost().inc();
            self.objects.backlog_lost(&queue, last_count);
            self.lost.insert(key, Instant::now());
        }
        self.remove_known(key);
        Ok(false)
    }

    /// Notifies the consumers if webhooks with a backlog were paused, resumed, disabled or deleted.
    fn report_standings(&mut self) {
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
                    self.send_news((queue, webhook), News::Standing(webhook, standing));
                }
            }
        }
    }

    /// Counts the waiting deliveries of some backlogs.
    fn count(&mut self) {
        let some: Vec<Key> = (0..self.to_count.len().min(COUNTED))
            .filter_map(|_| self.to_count.pop_front())
            .collect();
        self.to_count.extend(&some);
        for key in some {
            let queue = backlog_queue(self.origin(key), key.1);
            match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
                Ok(Some(count)) => self.add_count(key, count),
                Ok(None) => self.check_lost(key),
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
