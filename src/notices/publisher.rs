//! The thread that publishes notices in batches, and runs the outage watch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use uuid::Uuid;

use super::watch::OutageWatch;
use super::{DeathReport, MOST_WAITING};
use crate::broker::{Announced, Announcer, NotAnnounced};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::causes::Causes;
use crate::domain::notice::{Notice, NoticeDetails, NoticeKind, cause};
use crate::domain::retry::Backoff;
use crate::metrics::NoticesState;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError, Unannounced, WebhookChange};

/// How many notices are published together.
const BATCH: usize = 100;

/// How long the first death of a batch waits for further ones.
const LINGER: Duration = Duration::from_millis(100);

/// How long RabbitMQ may take to confirm a batch. It takes milliseconds, unless RabbitMQ has an alarm.
const CONFIRM_LIMIT: Duration = Duration::from_secs(5);

/// The same for the last batch, after all deliveries have ended.
const LAST_CONFIRM_LIMIT: Duration = Duration::from_secs(1);

/// How long a batch may stay unconfirmed while RabbitMQ has no alarm. After that it is dropped: perhaps one
/// of the queues bound to the exchange has no leader, and the others already have the batch.
const UNCONFIRMED_LIMIT: Duration = Duration::from_secs(60);

/// The longest uninterrupted wait for confirms.
const CONFIRM_STEP: Duration = Duration::from_millis(100);

/// How often a batch is published at most if the connection is lost before its confirms. It may have arrived
/// each time.
const MOST_ATTEMPTS: u32 = 3;

/// How long an idle connection is kept.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The delay from the report of a change until changes are read, so that many are read together.
const CHANGE_DELAY: Duration = Duration::from_millis(200);

/// How often dropped notices are logged at most.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// How often to search for changes that weren't reported, and to delete the rows of ended conditions.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);

/// The state of the thread.
#[derive(Debug)]
pub struct NoticePublisher {
    deaths: Receiver<DeathReport>,
    config: Arc<Config>,
    store: Arc<Store>,
    directory: Arc<Directory>,
    state: NoticesState,
    jitter: fn() -> f64,
    watch: OutageWatch,
    announcer: Option<Announcer>,
    /// When the connection was last used.
    used: Instant,
    /// Deaths from the channel whose webhooks haven't been looked up yet.
    taken: Vec<DeathReport>,
    /// The notices to publish.
    batch: VecDeque<Notice>,
    /// How often the batch may have been published.
    attempts: u32,
    /// How many webhooks had changes to announce in the table at the last count.
    unannounced: usize,
    /// When the batch was published; `None` if it wasn't, or is confirmed.
    sent_at: Option<Instant>,
    /// Nothing is published before this time.
    not_before: Option<Instant>,
    backoff: Backoff,
    causes: Causes,
    /// How many notices had been dropped when that was last logged.
    dropped: u64,
    reported_at: Option<Instant>,
}

impl NoticePublisher {
    pub(super) fn new(
        deaths: Receiver<DeathReport>,
        config: Arc<Config>,
        store: Arc<Store>,
        directory: Arc<Directory>,
        state: NoticesState,
        watch: OutageWatch,
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
            unannounced: 0,
            sent_at: None,
            not_before: None,
            backoff: Backoff::default(),
            causes: Causes::default(),
            dropped: 0,
            reported_at: None,
        }
    }

    /// Watches outages and publishes notices until `stop`, which must come after the last delivery has ended.
    /// Then publishes the rest within a second or two.
    pub fn run(mut self, stop: &Shutdown) {
        let changes = self.directory.subscribe();
        let tick = self.watch.tick();
        // All are due at once, because webhooks may have changed while no notifier ran.
        let (mut reads_at, mut ticks_at, mut upkeep_at) =
            (Instant::now(), Instant::now(), Instant::now());
        // Declares the exchange, so that others can bind queues to it.
        self.connect(stop);
        while !stop.is_requested() {
            let deaths = if self.may_take() { self.deaths.clone() } else { never() };
            let now = Instant::now();
            let due = reads_at.min(ticks_at).min(upkeep_at).saturating_duration_since(now);
            select! {
                recv(deaths) -> death => {
                    if let Ok(death) = death {
                        self.taken.push(death);
                        let _ = stop.wait(LINGER);
                        self.publish_all(stop);
                    } else {
                        // No sender is left.
                        let _ = stop.wait(tick);
                    }
                }
                recv(changes) -> change => {
                    if change.is_ok() {
                        reads_at = reads_at.min(Instant::now() + CHANGE_DELAY);
                        self.watch.note_changes();
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
                self.watch.note_changes();
                (upkeep_at, reads_at) = (now + UPKEEP_INTERVAL, now);
            }
            if now >= ticks_at {
                self.watch.update();
                if !self.directory.is_listening() {
                    self.watch.note_changes();
                }
                (ticks_at, reads_at) = (Instant::now() + tick, now);
            }
            if now >= reads_at {
                reads_at = Instant::now() + UPKEEP_INTERVAL;
                self.publish_all(stop);
            }
            self.close_if_idle();
            self.report_dropped();
        }
        self.end(stop);
    }

    /// Whether to take deaths from the channel: not while they can't be published.
    fn may_take(&self) -> bool {
        let is_backing_off = self.not_before.is_some_and(|until| Instant::now() < until);
        !is_backing_off && self.taken.len() + self.batch.len() < BATCH
    }

    /// Connects if necessary; false if that failed.
    fn connect(&mut self, stop: &Shutdown) -> bool {
        // If the connection is lost while a batch is unconfirmed, the wait for its confirms reports that.
        if self.sent_at.is_some() || self.announcer.as_mut().is_some_and(Announcer::is_open) {
            return true;
        }
        self.announcer = None;
        match Announcer::open(&self.config, stop) {
            Ok(announcer) => {
                self.announcer = Some(announcer);
                self.used = Instant::now();
                // Without a batch, the declared exchange is all that was needed.
                if self.batch.is_empty() {
                    self.note_success();
                }
                true
            }
            Err(error) => {
                self.note_failure(&error.to_string(), stop);
                false
            }
        }
    }

    /// Publishes one batch after another, until nothing is left or that fails.
    fn publish_all(&mut self, stop: &Shutdown) {
        if self.not_before.is_some_and(|until| Instant::now() < until) {
            return;
        }
        while !stop.is_requested() {
            if self.batch.is_empty() && !self.fill(stop) {
                break;
            }
            let is_done = self.batch.is_empty();
            if is_done || !self.connect(stop) || !self.publish(CONFIRM_LIMIT, stop) {
                break;
            }
        }
        let in_hand = self.deaths.len() + self.taken.len() + self.batch.len();
        self.state.set_waiting(in_hand + self.unannounced);
    }

    /// Fills the batch with the notices of waiting deaths.
    fn read_deaths(&mut self) -> Result<(), StoreError> {
        let room = BATCH.saturating_sub(self.taken.len());
        self.taken.extend(self.deaths.try_iter().take(room));
        if self.taken.is_empty() {
            return Ok(());
        }
        let webhooks: Vec<Uuid> = self.taken.iter().map(|death| death.webhook).collect();
        let subjects = self.store.subjects(&webhooks)?;
        let now = unix_millis();
        self.batch.extend(self.taken.drain(..).map(|DeathReport { webhook, death }| {
            let (subject, about) = (subjects.get(&webhook), NoticeDetails::Dead(*death));
            Notice::new(new_id(), NoticeKind::Dead, now, webhook, subject, &about)
        }));
        Ok(())
    }

    /// Fills the batch if anything is to be published; false if that failed.
    fn fill(&mut self, stop: &Shutdown) -> bool {
        if let Err(error) = self.read_deaths() {
            self.note_failure(&error.to_string(), stop);
            return false;
        }
        if !self.batch.is_empty() {
            return true;
        }
        // The watch logs the reason.
        let Ok(unannounced) = self.watch.count_unannounced() else { return false };
        self.unannounced = unannounced;
        if unannounced == 0 {
            return true;
        }
        // Connects before it takes changes, because no other notifier announces these.
        if !self.connect(stop) {
            return false;
        }
        match self.store.take_unannounced(BATCH as i64) {
            Ok(unannounced) => {
                self.unannounced = self.unannounced.saturating_sub(unannounced.len());
                self.batch.extend(unannounced.into_iter().flat_map(notices_of));
                true
            }
            Err(error) => {
                self.note_failure(&error.to_string(), stop);
                false
            }
        }
    }

    /// Publishes the batch, or continues to wait for its confirms; true if all have arrived.
    fn publish(&mut self, limit: Duration, stop: &Shutdown) -> bool {
        let Some(announcer) = self.announcer.take() else {
            self.sent_at = None;
            return false;
        };
        let count = self.batch.len() as u64;
        let sent_at = self.sent_at.take();
        // In small steps, so that a shutdown is noticed soon.
        let step = if stop.is_requested() { limit } else { CONFIRM_STEP };
        let began = Instant::now();
        let mut done = match sent_at {
            None => announcer.publish(self.batch.make_contiguous(), step),
            Some(_) => announcer.wait(step),
        };
        while let Ok((announcer, Announced::NotYet)) = done {
            let gives_up = sent_at.is_some() || began.elapsed() >= limit || stop.is_requested();
            if gives_up {
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
                self.finish_batch(refused);
                self.note_success();
                true
            }
            Ok((announcer, Announced::NotYet)) => {
                let sent_at = sent_at.unwrap_or_else(Instant::now);
                let problem = match announcer.alarm() {
                    Some(reason) => format!("RabbitMQ accepts no messages now ({reason})"),
                    None => "RabbitMQ does not confirm them".to_owned(),
                };
                if announcer.alarm().is_none() && sent_at.elapsed() >= UNCONFIRMED_LIMIT {
                    announcer.close();
                    self.finish_batch(count);
                } else {
                    self.announcer = Some(announcer);
                    self.sent_at = Some(sent_at);
                }
                self.note_failure(&problem, stop);
                false
            }
            Err(NotAnnounced { error, may_have_arrived }) => {
                self.attempts += u32::from(may_have_arrived);
                if self.attempts >= MOST_ATTEMPTS {
                    self.finish_batch(count);
                }
                self.note_failure(&error.to_string(), stop);
                false
            }
        }
    }

    /// Ends the batch, of which `dropped` notices were not accepted.
    fn finish_batch(&mut self, dropped: u64) {
        self.state.dropped.inc_by(dropped);
        self.batch.clear();
        self.attempts = 0;
    }

    fn note_success(&mut self) {
        self.backoff.reset();
        self.not_before = None;
        self.state.clear_problem();
        if self.causes.end().is_some() {
            log::info!("notices published again");
        }
    }

    fn note_failure(&mut self, problem: &str, stop: &Shutdown) {
        if stop.is_requested() {
            return;
        }
        self.not_before = Some(Instant::now() + self.backoff.next_wait((self.jitter)()));
        self.state.set_problem(problem);
        if self.causes.is_news(problem) {
            log::warn!(
                "notices not published cause={problem:?}: the notices for webhooks.events wait; \
                 deliveries go on"
            );
        }
    }

    /// Closes an idle connection.
    fn close_if_idle(&mut self) {
        if self.used.elapsed() > IDLE_TIMEOUT
            && self.batch.is_empty()
            && let Some(announcer) = self.announcer.take()
        {
            announcer.close();
        }
    }

    /// Logs that notices were dropped, at most once a minute.
    fn report_dropped(&mut self) {
        let dropped = self.state.dropped.get();
        if dropped > self.dropped
            && self.reported_at.is_none_or(|reported_at| reported_at.elapsed() >= REPORT_INTERVAL)
        {
            log::warn!(
                "notices dropped count={}: more than {MOST_WAITING} were waiting, RabbitMQ did not \
                 confirm them, or a queue that is bound to webhooks.events accepts no messages",
                dropped - self.dropped
            );
            (self.dropped, self.reported_at) = (dropped, Some(Instant::now()));
        }
    }

    /// Publishes the rest, after all deliveries have ended.
    fn end(mut self, stop: &Shutdown) {
        let is_open = self.announcer.as_mut().is_some_and(Announcer::is_open);
        // If a batch is unconfirmed, no other one is added to it.
        let is_read = self.sent_at.is_some() || self.read_deaths().is_ok();
        if is_open && is_read && !self.batch.is_empty() {
            self.publish(LAST_CONFIRM_LIMIT, stop);
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
        // Records the last successes, which this process would forget.
        self.watch.update();
    }
}

/// The notices of a webhook's changes, in the order in which these happened.
fn notices_of(Unannounced { webhook, subject, changes }: Unannounced) -> Vec<Notice> {
    let now = unix_millis();
    let notice = |change| {
        let (kind, about) = match change {
            WebhookChange::Failing { since, failed_at } => {
                let about =
                    NoticeDetails::Failing { failing_since: since, last_failed_at: failed_at };
                (NoticeKind::Failing, about)
            }
            WebhookChange::Recovered { at } => {
                (NoticeKind::Recovered, NoticeDetails::Recovered { recovered_at: at })
            }
            WebhookChange::Disabled { at, reason } => {
                let cause = cause(reason.as_deref());
                (NoticeKind::Disabled, NoticeDetails::Disabled { disabled_at: at, cause })
            }
            WebhookChange::Enabled => (NoticeKind::Enabled, NoticeDetails::Nothing {}),
            WebhookChange::Paused { at } => {
                (NoticeKind::Paused, NoticeDetails::Paused { paused_at: at })
            }
            WebhookChange::Resumed => (NoticeKind::Resumed, NoticeDetails::Nothing {}),
        };
        Notice::new(new_id(), kind, now, webhook, Some(&subject), &about)
    };
    changes.into_iter().map(notice).collect()
}

fn new_id() -> String {
    Uuid::new_v4().to_string()
}
