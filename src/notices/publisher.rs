//! The thread that publishes notices, in batches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use uuid::Uuid;

use super::watch::Watch;
use super::{MOST_WAITING, Obituary};
use crate::broker::{Announced, Announcer, NotAnnounced};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::causes::Causes;
use crate::domain::notice::{About, Notice, NoticeKind, cause};
use crate::domain::retry::Backoff;
use crate::metrics::NoticesState;
use crate::shutdown::Shutdown;
use crate::store::{Happening, Store, StoreError, Untold};

/// How many notices are published together.
const BATCH: usize = 100;

/// How long the first death of a batch waits for others.
const LINGER: Duration = Duration::from_millis(100);

/// How long RabbitMQ may take to confirm a batch. It takes milliseconds, unless RabbitMQ has an alarm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// The same for the last batch, when everything else has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long a batch may stay unconfirmed if RabbitMQ has no alarm: perhaps a queue bound to the exchange
/// has no leader. The other queues have the batch, so it isn't published again.
const SILENCE: Duration = Duration::from_secs(60);

/// How often to check meanwhile whether RabbitMQ has confirmed it.
const LOOK: Duration = Duration::from_millis(100);

/// How often a batch is published at most if the connection is lost before the confirm: it may have
/// arrived each time.
const MOST_ATTEMPTS: u32 = 3;

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How soon after a change of webhooks the changes are read. Many changes are handled together.
const CALM: Duration = Duration::from_millis(200);

/// How often to log that notices were dropped.
const TELL_INTERVAL: Duration = Duration::from_secs(60);

/// How often to search for changes that weren't reported, and to forget conditions that have ended.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The thread's part.
#[derive(Debug)]
pub struct Teller {
    deaths: Receiver<Obituary>,
    config: Arc<Config>,
    store: Arc<Store>,
    directory: Arc<Directory>,
    state: NoticesState,
    jitter: fn() -> f64,
    watch: Watch,
    announcer: Option<Announcer>,
    used: Instant,
    /// Deaths that were taken, and whose webhooks haven't been looked up yet.
    taken: Vec<Obituary>,
    /// The notices to publish, and how often they were published.
    batch: VecDeque<Notice>,
    attempts: u32,
    /// How many changes of webhooks wait in the table, as of the last count.
    untold: usize,
    /// When the batch was published, if it isn't confirmed yet.
    sent_at: Option<Instant>,
    /// Nothing is published before this time.
    not_before: Option<Instant>,
    backoff: Backoff,
    causes: Causes,
    /// How many had been dropped when that was last logged.
    dropped: u64,
    told_at: Option<Instant>,
}

impl Teller {
    pub(super) fn new(
        deaths: Receiver<Obituary>,
        config: Arc<Config>,
        store: Arc<Store>,
        directory: Arc<Directory>,
        state: NoticesState,
        watch: Watch,
        jitter: fn() -> f64,
    ) -> Self {
        Self {
            deaths,
            config,
            store,
            directory,
            state,
            jitter,
            watch,
            announcer: None,
            used: Instant::now(),
            taken: Vec::new(),
            batch: VecDeque::new(),
            attempts: 0,
            untold: 0,
            sent_at: None,
            not_before: None,
            backoff: Backoff::default(),
            causes: Causes::default(),
            dropped: 0,
            told_at: None,
        }
    }

    /// Watches and publishes until `stop`, which must come after the last delivery has ended; then
    /// publishes the rest within a second or two.
    pub fn run(mut self, stop: &Shutdown) {
        let changes = self.directory.subscribe();
        let tick = self.watch.tick();
        // At the start: for changes made while nobody ran, and so that there is an exchange to bind to.
        let (mut looks_at, mut ticks_at, mut upkeep_at) =
            (Instant::now(), Instant::now(), Instant::now());
        self.connect(stop);
        while !stop.is_requested() {
            let deaths = if self.may_take() { self.deaths.clone() } else { never() };
            let now = Instant::now();
            let due = looks_at.min(ticks_at).min(upkeep_at).saturating_duration_since(now);
            select! {
                recv(deaths) -> death => {
                    if let Ok(death) = death {
                        self.taken.push(death);
                        let _ = stop.wait(LINGER);
                        self.tell(stop);
                    } else {
                        // No sender is left.
                        let _ = stop.wait(tick);
                    }
                }
                recv(changes) -> change => {
                    if change.is_ok() {
                        looks_at = looks_at.min(Instant::now() + CALM);
                        self.watch.has_heard();
                    } else {
                        let _ = stop.wait(tick);
                    }
                }
                recv(stop.receiver()) -> _ => break,
                default(due) => {}
            }
            let now = Instant::now();
            if now >= upkeep_at {
                self.watch.upkeep();
                self.watch.has_heard();
                (upkeep_at, looks_at) = (now + UPKEEP_INTERVAL, now);
            }
            if now >= ticks_at {
                self.watch.look();
                if !self.directory.is_listening() {
                    self.watch.has_heard();
                }
                (ticks_at, looks_at) = (Instant::now() + tick, now);
            }
            if now >= looks_at {
                looks_at = Instant::now() + UPKEEP_INTERVAL;
                self.tell(stop);
            }
            self.rest();
            self.report();
        }
        self.end(stop);
    }

    /// Whether deaths are taken from the channel: not while they can't be published.
    fn may_take(&self) -> bool {
        let is_at_rest = self.not_before.is_some_and(|until| Instant::now() < until);
        !is_at_rest && self.taken.len() + self.batch.len() < BATCH
    }

    fn connect(&mut self, stop: &Shutdown) -> bool {
        // If the connection is lost while a batch is unconfirmed, waiting for it will show that.
        if self.sent_at.is_some() || self.announcer.as_mut().is_some_and(Announcer::is_open) {
            return true;
        }
        self.announcer = None;
        match Announcer::open(&self.config, stop) {
            Ok(announcer) => {
                self.announcer = Some(announcer);
                self.used = Instant::now();
                // Declaring the exchange may be all there is to do.
                if self.batch.is_empty() {
                    self.works();
                }
                true
            }
            Err(error) => {
                self.failed(&error.to_string(), stop);
                false
            }
        }
    }

    /// Publishes as much as possible now.
    fn tell(&mut self, stop: &Shutdown) {
        if self.not_before.is_some_and(|until| Instant::now() < until) {
            return;
        }
        while !stop.is_requested() {
            if self.batch.is_empty() && !self.fill(stop) {
                break;
            }
            let is_all = self.batch.is_empty();
            if is_all || !self.connect(stop) || !self.publish(CONFIRM_LIMIT, stop) {
                break;
            }
        }
        let in_hand = self.deaths.len() + self.taken.len() + self.batch.len();
        self.state.wait(in_hand + self.untold);
    }

    /// Makes notices of the waiting deaths.
    fn read_obituaries(&mut self) -> Result<(), StoreError> {
        let room = BATCH.saturating_sub(self.taken.len());
        self.taken.extend(self.deaths.try_iter().take(room));
        if self.taken.is_empty() {
            return Ok(());
        }
        let webhooks: Vec<Uuid> = self.taken.iter().map(|death| death.webhook).collect();
        let subjects = self.store.subjects(&webhooks)?;
        let now = unix_millis();
        self.batch.extend(self.taken.drain(..).map(|Obituary { webhook, death }| {
            let (subject, about) = (subjects.get(&webhook), About::Dead(*death));
            Notice::new(new_id(), NoticeKind::Dead, now, webhook, subject, &about)
        }));
        Ok(())
    }

    /// Fills the batch; false if it isn't known what to publish.
    fn fill(&mut self, stop: &Shutdown) -> bool {
        if let Err(error) = self.read_obituaries() {
            self.failed(&error.to_string(), stop);
            return false;
        }
        if !self.batch.is_empty() {
            return true;
        }
        // The watch logs the reason.
        let Ok(untold) = self.watch.count_untold() else { return false };
        self.untold = untold;
        if untold == 0 {
            return true;
        }
        // This comes first: nobody else announces what is taken.
        if !self.connect(stop) {
            return false;
        }
        match self.store.take_untold(BATCH as i64) {
            Ok(untold) => {
                self.untold = self.untold.saturating_sub(untold.len());
                self.batch.extend(untold.into_iter().flat_map(notices_of));
                true
            }
            Err(error) => {
                self.failed(&error.to_string(), stop);
                false
            }
        }
    }

    /// Publishes the batch, or continues to wait for its confirms; false if that isn't finished.
    fn publish(&mut self, limit: Duration, stop: &Shutdown) -> bool {
        let Some(announcer) = self.announcer.take() else {
            self.sent_at = None;
            return false;
        };
        let count = self.batch.len() as u64;
        let sent_at = self.sent_at.take();
        // In small steps, so that the end of the process interrupts none of them.
        let step = if stop.is_requested() { limit } else { LOOK };
        let began = Instant::now();
        let mut done = match sent_at {
            None => announcer.publish(self.batch.make_contiguous(), step),
            Some(_) => announcer.wait(step),
        };
        while let Ok((announcer, Announced::NotYet)) = done {
            let is_over = sent_at.is_some() || began.elapsed() >= limit || stop.is_requested();
            if is_over {
                done = Ok((announcer, Announced::NotYet));
                break;
            }
            done = announcer.wait(step);
        }
        self.used = Instant::now();
        match done {
            Ok((announcer, Announced::All { refused })) => {
                self.announcer = Some(announcer);
                let refused = refused as u64;
                self.state.published.inc_by(count.saturating_sub(refused));
                self.is_done(refused);
                self.works();
                true
            }
            Ok((announcer, Announced::NotYet)) => {
                let sent_at = sent_at.unwrap_or_else(Instant::now);
                let problem = match announcer.alarm() {
                    Some(reason) => format!("RabbitMQ takes no messages now ({reason})"),
                    None => "RabbitMQ does not confirm them".to_owned(),
                };
                if announcer.alarm().is_none() && sent_at.elapsed() >= SILENCE {
                    announcer.close();
                    self.is_done(count);
                } else {
                    self.announcer = Some(announcer);
                    self.sent_at = Some(sent_at);
                }
                self.failed(&problem, stop);
                false
            }
            Err(NotAnnounced { error, may_have_arrived }) => {
                self.attempts += u32::from(may_have_arrived);
                if self.attempts >= MOST_ATTEMPTS {
                    self.is_done(count);
                }
                self.failed(&error.to_string(), stop);
                false
            }
        }
    }

    /// Finishes the batch, `dropped` of which are dropped.
    fn is_done(&mut self, dropped: u64) {
        self.state.dropped.inc_by(dropped);
        self.batch.clear();
        self.attempts = 0;
    }

    fn works(&mut self) {
        self.backoff.reset();
        self.not_before = None;
        self.state.works();
        if self.causes.end().is_some() {
            log::info!("notices published again");
        }
    }

    fn failed(&mut self, problem: &str, stop: &Shutdown) {
        if stop.is_requested() {
            return;
        }
        self.not_before = Some(Instant::now() + self.backoff.next_wait((self.jitter)()));
        self.state.failed(problem);
        if self.causes.is_news(problem) {
            log::warn!(
                "notices not published cause={problem:?}: the notices for webhooks.events wait; \
                 deliveries go on"
            );
        }
    }

    /// Closes an idle connection.
    fn rest(&mut self) {
        if self.used.elapsed() > IDLE_TIMEOUT
            && self.batch.is_empty()
            && let Some(announcer) = self.announcer.take()
        {
            announcer.close();
        }
    }

    /// Logs that notices were dropped, at most once a minute.
    fn report(&mut self) {
        let dropped = self.state.dropped.get();
        if dropped > self.dropped
            && self.told_at.is_none_or(|told_at| told_at.elapsed() >= TELL_INTERVAL)
        {
            log::warn!(
                "notices dropped count={}: more than {MOST_WAITING} were waiting, RabbitMQ did not \
                 confirm them, or a queue that is bound to webhooks.events takes no messages",
                dropped - self.dropped
            );
            (self.dropped, self.told_at) = (dropped, Some(Instant::now()));
        }
    }

    /// Everything else has ended: publishes the rest.
    fn end(mut self, stop: &Shutdown) {
        let is_open = self.announcer.as_mut().is_some_and(Announcer::is_open);
        // A second batch isn't published together with a waiting one.
        let is_read = self.sent_at.is_some() || self.read_obituaries().is_ok();
        if is_open && is_read && !self.batch.is_empty() {
            self.publish(LAST_WORDS, stop);
        }
        let left = self.batch.len() + self.taken.len() + self.deaths.len();
        if left > 0 {
            self.state.dropped.inc_by(left as u64);
            log::warn!(
                "notices dropped count={left}: they could not be published before the shutdown"
            );
        }
        if let Some(announcer) = self.announcer.take() {
            announcer.close();
        }
        // Otherwise a success of the last moment would be forgotten.
        self.watch.look();
    }
}

/// In the order of events.
fn notices_of(Untold { webhook, subject, what }: Untold) -> Vec<Notice> {
    let now = unix_millis();
    let tell = |happening| {
        let (kind, about) = match happening {
            Happening::Failing { since, failed_at } => {
                let about = About::Failing { failing_since: since, last_failed_at: failed_at };
                (NoticeKind::Failing, about)
            }
            Happening::Recovered { at } => {
                (NoticeKind::Recovered, About::Recovered { recovered_at: at })
            }
            Happening::Disabled { at, reason } => {
                let cause = cause(reason.as_deref());
                (NoticeKind::Disabled, About::Disabled { disabled_at: at, cause })
            }
            Happening::Enabled => (NoticeKind::Enabled, About::Nothing {}),
            Happening::Paused { at } => (NoticeKind::Paused, About::Paused { paused_at: at }),
            Happening::Resumed => (NoticeKind::Resumed, About::Nothing {}),
        };
        Notice::new(new_id(), kind, now, webhook, Some(&subject), &about)
    };
    what.into_iter().map(tell).collect()
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}
