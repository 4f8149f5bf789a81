//! Who makes and removes backlogs, and knows which there are.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, select};
use uuid::Uuid;

use super::{Backlogs, Key, Known, MOST, News, Request};
use crate::broker::{BrokerError, Link, Publisher, backlog_queue};
use crate::config::Config;
use crate::directory::{Change, Directory};
use crate::domain::receiver::Class;
use crate::metrics::{Held, Metrics};
use crate::receivers::Receivers;
use crate::shutdown::Shutdown;
use crate::store::{BacklogRow, RemoveError, Standing, Store, StoreError};

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(1);

/// How often the table is read where its changes are heard, in case one was not.
const READ_INTERVAL: Duration = Duration::from_secs(60);

/// How often the broker is asked how many wait in the backlogs, and of how many at a time: the round
/// trips of a thousand would cost more than they say.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);
const COUNTED: usize = 20;

/// After one could not be made, the next is tried so much later: each attempt may take seconds, in
/// which a lane waits.
const DISTRUST: Duration = Duration::from_secs(3);

/// How long a backlog is closed before it is unbound, and unbound before its queue is deleted. Publishers
/// give up after 30 s, so whatever another instance had on its way there has arrived by then.
const CLOSING: Duration = Duration::from_secs(35);

/// A row whose queue is not there is forgotten after this: it may be about to be made.
const STALE: Duration = Duration::from_secs(3_600);

/// How many queues are looked for in a tick that no row tells of. Each that is missing costs a channel.
const SOUGHT: usize = 20;

/// What was not found: nobody may have read the table since.
#[derive(Debug, thiserror::Error)]
enum NotRemoved {
    #[error("it is not empty")]
    NotEmpty,
    #[error("{0}")]
    Broker(BrokerError),
}

/// How far the removal of a backlog is.
#[derive(Clone, Copy, Debug)]
struct Closing {
    /// When the next step is due.
    due: Instant,
    /// Whether nothing comes into it any more.
    is_unbound: bool,
}

impl Closing {
    fn step(is_unbound: bool) -> Self {
        Self { due: Instant::now() + CLOSING, is_unbound }
    }
}

/// How the keeper hears, and tells.
#[derive(Debug)]
pub struct Inbox {
    pub(super) requests: Receiver<Request>,
    pub(super) news: Vec<Sender<News>>,
}

/// Makes, finds and removes backlogs, in a thread of its own.
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
    /// Which of these are counted next.
    to_count: VecDeque<Key>,
    /// Those that are being removed.
    closing: HashMap<Key, Closing>,
    standings: HashMap<Uuid, Option<Standing>>,
    /// One of these may have changed unheard.
    has_to_look: bool,
    /// None can be made before.
    distrusted_until: Option<Instant>,
    /// It was told that none can be made.
    told: bool,
    /// Those of which somebody said that their queue is gone, while the broker could not be asked.
    lost: Vec<Key>,
    /// The webhooks that may have one without a row; none before these are known.
    sought: Option<Vec<Uuid>>,
}

impl Keeper {
    /// Knows of none yet.
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
            standings: HashMap::new(),
            has_to_look: false,
            distrusted_until: None,
            told: false,
            lost: Vec::new(),
            sought: None,
        }
    }

    /// Keeps the backlogs until shutdown.
    pub fn run(mut self) {
        let changes = self.directory.subscribe();
        // At the start, before anything is heard.
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
                    Ok(Change::Backlogs) => read_at = Instant::now(),
                    Ok(Change::Webhooks) => {
                        self.look_at_webhooks();
                        for news in &self.inbox.news {
                            // Who hears it lives as long as this.
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
                let is_sure = is_read && self.directory.is_listening();
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
                    known.since = SystemTime::now();
                }
                self.note(key, |store, origin| store.restart_backlog(origin, key.1));
            }
            Request::Paused(webhook) => {
                // So that its resumption is news, also where both happened between two looks. Later:
                // the directory may not have heard of it.
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
        let now = Instant::now();
        if let Some(known) = self.backlogs.known().get_mut(&key) {
            if let Some(before) = known.counted_at {
                let took = now.saturating_duration_since(before).as_secs_f64().max(0.001);
                known.growth = (f64::from(count) - f64::from(known.waiting)) / took;
            }
            (known.waiting, known.counted_at) = (count, Some(now));
        }
    }

    /// Writes down what nobody waits for. Where PostgreSQL has just not answered, this takes seconds,
    /// and a lane may wait for what was asked after it: it is left out.
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

    /// Makes sure that there is a backlog, unless one could not be made just now.
    fn make_sure(&mut self, key: Key, cause: &'static str) -> bool {
        if self.backlogs.open().contains(&key) {
            return true;
        }
        if self.is_distrusted() {
            return false;
        }
        match self.open(key, cause) {
            Ok(()) => {
                if std::mem::take(&mut self.told) {
                    log::info!("backlogs can be made again");
                }
                true
            }
            // Shutdown has ended the call.
            Err(_) if self.shutdown.is_requested() => false,
            Err(problem) => {
                self.distrusted_until = Some(Instant::now() + DISTRUST);
                // Shutdown ends the attempt, too, and that is no problem.
                let is_problem = !self.shutdown.is_requested();
                if is_problem && !std::mem::replace(&mut self.told, true) {
                    let queue = backlog_queue(self.origin(key), key.1);
                    log::warn!(
                        "backlog not made queue={queue} cause={problem:?}: what its receiver can't take \
                         is tried again every minute, in no order"
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
        let class = self.receivers.class(key.1).map_or(Class::Unproven, |class| class).label();
        self.store.open_backlog(&origin, key.1, cause, class).map_err(|error| error.to_string())?;
        self.ask_broker(|link, shutdown| link.open_backlog(&origin, key.1, shutdown))
            .map_err(|error| error.to_string())?;
        self.closing.remove(&key);
        self.is_there(key, cause, SystemTime::now());
        Ok(())
    }

    /// Runs a call on our connection, which is made when it is needed, and given up when it fails; once
    /// more, where it was not a new one.
    fn ask_broker<T>(
        &mut self,
        mut call: impl FnMut(&mut Link, &Shutdown) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        // One that has had nothing to do may have died long ago.
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

    /// A backlog is there, and deliveries may enter it.
    fn is_there(&mut self, key: Key, cause: &str, since: SystemTime) {
        let known = Known {
            waiting: 0,
            counted_at: None,
            growth: 0.0,
            since,
            cause: cause.to_owned(),
            until: None,
        };
        let is_new = !self.is_known(key);
        if is_new {
            self.backlogs.known().insert(key, known);
            // Before anybody may enter it.
            self.receivers.found_backlog(key.0, key.1);
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
        let _ = self.receivers.is_backlog_emptied(key.0, key.1);
        if !self.backlogs.known().keys().any(|(_, webhook)| *webhook == key.1) {
            self.standings.remove(&key.1);
        }
    }

    fn tell(&self, key: Key, news: News) {
        // Who consumes them lives as long as this.
        let _ = self.inbox.news[key.0].send(news);
    }

    /// The publisher found that there is no way into a backlog any more.
    fn is_gone(&mut self, origin: &str, webhook: Uuid) {
        if let Some(queue) = self.number(origin) {
            self.backlogs.open().remove(&(queue, webhook));
        }
    }

    /// Who consumes a backlog found that its queue is gone.
    fn is_lost(&mut self, key: Key) {
        if !self.is_known(key) {
            return;
        }
        let origin = self.origin(key).to_owned();
        let queue = backlog_queue(&origin, key.1);
        let is_there = self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown));
        match is_there {
            Ok(None) => {}
            // It is consumed again.
            Ok(Some(_)) => return self.tell(key, News::Opened(key.1)),
            // Until that is known, nobody consumes it here.
            Err(_) => return self.lost.push(key),
        }
        // Another instance deletes the row first.
        let rows = self.store.backlogs().unwrap_or_default();
        let is_ours = |row: &BacklogRow| row.queue == origin && row.webhook == key.1;
        if rows.iter().any(|row| is_ours(row) && !row.is_closing) {
            log::error!(
                "backlog lost queue={queue}: somebody has deleted it, and what waited in it; new \
                 deliveries make another"
            );
            self.metrics.backlogs_lost().inc();
        }
        self.is_no_longer_there(key);
    }

    /// Reads the table: which there are beside those that we know. False if that failed.
    fn read(&mut self) -> bool {
        let rows = match self.store.backlogs() {
            Ok(rows) => rows,
            Err(error) => {
                log::debug!("backlogs not read: {error}");
                return false;
            }
        };
        let mut in_table = HashSet::new();
        for row in rows {
            let Some(queue) = self.number(&row.queue) else { continue };
            let key = (queue, row.webhook);
            in_table.insert(key);
            if row.is_closing {
                // Whoever enters it opens it again first.
                self.backlogs.open().remove(&key);
                if self.closing.contains_key(&key) {
                    continue;
                }
                if !self.is_known(key) {
                    // The one who closed it may be gone.
                    self.closing.insert(key, Closing::step(false));
                } else if self.receivers.is_backlog_in_use(queue, row.webhook) {
                    // To whoever closed it, it looks empty while this process has all of it in hand,
                    // and that would be gone with the queue.
                    let _ = self.make_sure(key, Held::Behind.label());
                }
            } else if !self.backlogs.open().contains(&key) && !self.find(key, &row) {
                return false;
            }
        }
        self.look_at_webhooks();
        self.write_missing(&in_table)
    }

    /// Another instance made it, or this one before it was restarted. False if that can't be known.
    fn find(&mut self, key: Key, row: &BacklogRow) -> bool {
        let queue = backlog_queue(&row.queue, row.webhook);
        match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
            Ok(Some(_)) => {
                let lasted = SystemTime::now().duration_since(row.since).unwrap_or_default();
                let away = (row.cause == Held::Breaker.label()).then_some(lasted);
                // Whoever made it may have been ended before it was bound.
                let opened = self.ask_broker(|link, shutdown| {
                    link.open_backlog(&row.queue, row.webhook, shutdown)
                });
                if let Err(error) = opened {
                    log::warn!("backlog not bound queue={queue}: {error}");
                }
                self.receivers.restore(key.1, row.class == Class::Slow.label(), away);
                self.is_there(key, &row.cause, row.since);
                true
            }
            // At another broker, or it was never made.
            Ok(None) => {
                let age = SystemTime::now().duration_since(row.since).unwrap_or_default();
                if age > STALE {
                    self.close(key);
                }
                true
            }
            Err(_) => false,
        }
    }

    /// Writes the rows that should be there: the table may be an older one's copy, or emptied.
    fn write_missing(&mut self, in_table: &HashSet<Key>) -> bool {
        let known: Vec<Key> = self.backlogs.known().keys().copied().collect();
        for key in known {
            if in_table.contains(&key) || self.closing.contains_key(&key) {
                continue;
            }
            let origin = self.origin(key).to_owned();
            let queue = backlog_queue(&origin, key.1);
            match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
                Ok(Some(_)) => {
                    let class = Class::Unproven.label();
                    let why = Held::Behind.label();
                    if self.store.open_backlog(&origin, key.1, why, class).is_err() {
                        return false;
                    }
                }
                // Another instance has removed it.
                Ok(None) => self.is_no_longer_there(key),
                Err(_) => return false,
            }
        }
        true
    }

    /// Tells who consumes them what has become of their webhooks.
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

    /// Begins to remove a backlog.
    fn close(&mut self, key: Key) {
        if self.closing.contains_key(&key) {
            return;
        }
        // From here on, whoever enters it asks us first, and we are busy.
        self.backlogs.open().remove(&key);
        let origin = self.origin(key).to_owned();
        if let Err(error) = self.store.close_backlog(&origin, key.1) {
            log::debug!("backlog not closed queue={origin} webhook={}: {error}", key.1);
            if self.is_known(key) {
                self.backlogs.open().insert(key);
            }
            return;
        }
        self.closing.insert(key, Closing::step(false));
    }

    /// Takes the next step of the removals for which it is time.
    fn remove_closed(&mut self, now: Instant) {
        let is_due = |(_, closing): &(&Key, &Closing)| now >= closing.due;
        let due: Vec<(Key, Closing)> =
            self.closing.iter().filter(is_due).map(|(key, closing)| (*key, *closing)).collect();
        for (key, Closing { is_unbound, .. }) in due {
            if is_unbound {
                self.remove(key);
            } else {
                self.unbind(key);
            }
        }
    }

    fn unbind(&mut self, key: Key) {
        let (origin, webhook) = (self.origin(key).to_owned(), key.1);
        let queue = backlog_queue(&origin, webhook);
        let is_unbound = self.ask_broker(|link, shutdown| {
            if link.queue_messages(&queue, shutdown)?.is_some() {
                link.close_backlog(&origin, webhook, shutdown)?;
            }
            Ok(())
        });
        self.closing.insert(key, Closing::step(is_unbound.is_ok()));
    }

    fn remove(&mut self, key: Key) {
        let (origin, webhook) = (self.origin(key).to_owned(), key.1);
        self.closing.remove(&key);
        let (store, receivers) = (Arc::clone(&self.store), Arc::clone(&self.receivers));
        let removed = store.remove_backlog(&origin, webhook, || {
            if receivers.is_backlog_in_use(key.0, webhook) {
                return Err(NotRemoved::NotEmpty);
            }
            match self.ask_broker(|link, shutdown| link.delete_backlog(&origin, webhook, shutdown))
            {
                Ok(true) => Ok(()),
                Ok(false) => Err(NotRemoved::NotEmpty),
                Err(error) => Err(NotRemoved::Broker(error)),
            }
        });
        match removed {
            Ok(true) => {
                log::info!("backlog removed queue={}", backlog_queue(&origin, webhook));
                self.is_no_longer_there(key);
            }
            // Somebody has opened it again, or removed it.
            Ok(false) => {}
            Err(RemoveError::Queue(NotRemoved::NotEmpty)) => {
                let _ = self.make_sure(key, Held::Behind.label());
            }
            Err(error) => {
                log::debug!("backlog not removed webhook={webhook}: {error}");
                self.closing.insert(key, Closing::step(true));
            }
        }
    }

    /// Looks for queues that no row tells of, a few at a time: the table may be an older one's copy.
    fn seek(&mut self) {
        let Some(sought) = &mut self.sought else {
            self.sought = self.store.webhook_ids().ok();
            return;
        };
        let queues = self.backlogs.origins.len();
        let webhooks = sought.split_off(sought.len().saturating_sub(SOUGHT / queues.max(1) + 1));
        let all = webhooks.iter().flat_map(|id| (0..queues).map(move |number| (number, *id)));
        let keys: Vec<Key> = all.filter(|key| !self.is_known(*key)).collect();
        if keys.is_empty() {
            return;
        }
        let names: Vec<String> =
            keys.iter().map(|key| backlog_queue(self.origin(*key), key.1)).collect();
        let mut found = Vec::new();
        let looked = self.ask_broker(|link, shutdown| {
            for (key, queue) in keys.iter().zip(&names) {
                if link.queue_messages(queue, shutdown)?.is_some() {
                    found.push(*key);
                }
            }
            Ok(())
        });
        if looked.is_err() {
            self.sought.get_or_insert_default().extend(webhooks);
        }
        for key in found {
            let queue = backlog_queue(self.origin(key), key.1);
            log::warn!("backlog found queue={queue}: the table `backlogs` had no row of it");
            let _ = self.make_sure(key, Held::Behind.label());
        }
    }

    /// Asks how many wait, of some of them.
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
                of_queue.map(|(_, known)| known.waiting).collect()
            };
            let waiting = counts.iter().map(|count| i64::from(*count)).sum();
            let filled = counts.iter().filter(|count| **count > 0).count();
            self.metrics.set_backlogs(origin, i64::try_from(filled).unwrap_or(i64::MAX), waiting);
        }
    }
}
