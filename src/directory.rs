//! Answers which webhooks want an event: from memory, as long as the table can't have changed.
//!
//! The directory remembers PostgreSQL's answers. A thread listens for changes of the table, and forgets the
//! answers that a change may have made invalid. It notifies subscribers of changes of webhooks, and also of
//! backlogs and instances, which it doesn't remember. Whether a look-up may use the memory (`Trust`) follows
//! three rules:
//!
//! - While listening works, remembered answers are valid.
//! - While it doesn't, every look-up asks PostgreSQL.
//! - While PostgreSQL is away altogether, the last known answers are used: nobody can change a table that
//!   nobody can reach. A look-up without a remembered answer has to wait.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use uuid::Uuid;

use crate::config::Config;
use crate::domain::time::millis;
use crate::domain::webhook::{AsOf, Scope, Webhook};
use crate::metrics::DirectoryLookups;
use crate::store::Store;

mod listening;
mod memory;
mod subscribers;

use memory::{Accounts, EventWebhooks, MOST_ACCOUNTS, Memory};
use subscribers::Subscriber;

pub use crate::store::{Found, Label, StoreError};
pub use subscribers::TableChange;

/// How long a proof that listening works is valid. Proofs arrive every second, and one may be late on a busy
/// machine.
const TRUST: Duration = Duration::from_millis(2_500);

/// How long, in milliseconds, an answer of PostgreSQL counts as current while changes aren't reported:
/// about as long as a reported change takes to arrive.
const FRESH: u64 = 100;

/// Whether a look-up may use remembered answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Every change is reported: remembered answers are valid.
    Listening,
    /// Ask PostgreSQL. If it doesn't answer, use the last known answer.
    Doubt,
    /// PostgreSQL is away: use the last known answer. If there is none, ask PostgreSQL.
    Away,
}

/// Remembers which webhooks want which events. Shared by all threads.
pub struct Directory {
    store: Arc<Store>,
    /// One lock for all answers: it is held only for a look-up in a hash table.
    memory: Mutex<Memory>,
    /// The number of changes that were reported; wraps around.
    changes: AtomicU32,
    start: Instant,
    /// When listening was last proved to work, in milliseconds from `start`.
    proved: AtomicU64,
    /// Until when that proof is valid, in milliseconds from `start`.
    trusted_until: AtomicU64,
    /// Whether the last query failed for lack of an answer while listening was down.
    away: AtomicBool,
    /// Whether PostgreSQL has answered a query since the listening connection was last lost.
    answered: AtomicBool,
    lookups: DirectoryLookups,
    subscribers: Mutex<Vec<Subscriber>>,
}

impl fmt::Debug for Directory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Directory").field("trust", &self.trust()).finish_non_exhaustive()
    }
}

impl Directory {
    /// A directory with an empty memory.
    #[must_use]
    pub fn new(config: &Config, store: Arc<Store>, lookups: DirectoryLookups) -> Self {
        let most = NonZeroUsize::new(config.directory_entries).unwrap_or(NonZeroUsize::MIN);
        Self {
            store,
            memory: Mutex::new(Memory::new(most)),
            changes: AtomicU32::new(0),
            start: Instant::now(),
            proved: AtomicU64::new(0),
            trusted_until: AtomicU64::new(0),
            away: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            lookups,
            subscribers: Mutex::default(),
        }
    }

    /// A channel of changes. Each is sent after the answers that it affects were forgotten. When listening
    /// begins, all kinds are sent, since changes may have been missed before. Changes of a kind are merged
    /// until they are received. The channel lives as long as the directory.
    ///
    /// While listening doesn't work ([`Directory::is_listening`]), nothing is sent.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<TableChange> {
        let subscriber = Subscriber::new();
        let receiver = subscriber.pending.clone();
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(subscriber);
        receiver
    }

    /// Whether every change is reported, and so sent to subscribers.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.trust() == Trust::Listening
    }

    /// The enabled webhooks that want an event of this type and may have it: those without an account,
    /// and those of the event's account.
    ///
    /// # Errors
    /// [`StoreError`] if PostgreSQL has to be asked and doesn't answer.
    pub fn wanting(
        &self,
        event_type: &str,
        account: Option<&str>,
    ) -> Result<Arc<[Webhook]>, StoreError> {
        let answer = self.look_up(
            |memory| memory.wanting(event_type, account),
            |as_of| self.query_wanting(event_type, account, as_of),
            |memory, found| memory.remember_wanting(event_type, account, found),
        );
        answer.map(|answer| answer.webhooks)
    }

    /// Asks PostgreSQL. For a type that isn't remembered yet, also asks which accounts have webhooks for it, if
    /// that answer can be remembered: this saves the queries for all other accounts.
    fn query_wanting(
        &self,
        event_type: &str,
        account: Option<&str>,
        as_of: AsOf,
    ) -> Result<EventWebhooks, StoreError> {
        let is_worth_it = self.is_listening() && !self.lock().knows_type(event_type);
        let webhooks = self.store.webhooks_wanting(event_type, account)?.into_iter();
        let webhooks =
            webhooks.map(|webhook| Webhook { as_of: as_of.clone(), ..webhook }).collect();
        let accounts = match is_worth_it {
            true => self.store.accounts_wanting(event_type, MOST_ACCOUNTS).unwrap_or(None),
            false => None,
        };
        Ok(EventWebhooks { webhooks, accounts: accounts.map(Accounts::new) })
    }

    /// The webhook of a parked delivery.
    ///
    /// # Errors
    /// [`StoreError`] if PostgreSQL has to be asked and doesn't answer.
    pub fn find(&self, id: Uuid) -> Result<Found, StoreError> {
        self.look_up(
            |memory| memory.found(id),
            |as_of| {
                Ok(match self.store.find(id)? {
                    Found::Enabled(webhook) => Found::Enabled(Webhook { as_of, ..webhook }),
                    other => other,
                })
            },
            |memory, found| memory.remember_found(id, found),
        )
    }

    /// Whether a change that may affect a webhook was reported since it was looked up.
    #[must_use]
    pub fn has_changed_since(&self, webhook: &Webhook) -> bool {
        self.changes.load(Ordering::Acquire) != webhook.as_of.changes()
    }

    /// Whether a webhook may have changed since it was looked up: either a change was reported, or changes
    /// aren't reported and the look-up was a while ago. While PostgreSQL is away, nothing changes.
    #[must_use]
    pub fn may_have_changed_since(&self, webhook: &Webhook) -> bool {
        let is_old = || self.now().saturating_sub(webhook.as_of.millis) > FRESH;
        self.has_changed_since(webhook) || (self.trust() == Trust::Doubt && is_old())
    }

    /// The URL and account of a webhook, if they are remembered.
    #[must_use]
    pub fn remembered_label(&self, id: Uuid) -> Option<Label> {
        self.lock().label(id)
    }

    /// The URLs and accounts of these webhooks, from PostgreSQL. Deleted ones are missing in the result.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn labels(&self, ids: &[Uuid]) -> Result<Vec<Label>, StoreError> {
        self.store.labels(ids)
    }

    fn look_up<T: Clone>(
        &self,
        remembered: impl Fn(&mut Memory) -> Option<T>,
        ask: impl FnOnce(AsOf) -> Result<T, StoreError>,
        remember: impl FnOnce(&mut Memory, T),
    ) -> Result<T, StoreError> {
        let trust = self.trust();
        let generation = {
            let mut memory = self.lock();
            if trust != Trust::Doubt
                && let Some(found) = remembered(&mut memory)
            {
                match trust {
                    Trust::Listening => self.lookups.memory.inc(),
                    Trust::Doubt | Trust::Away => self.lookups.last_known.inc(),
                }
                return Ok(found);
            }
            memory.generation
        };
        match ask(AsOf::new(generation, self.now())) {
            Ok(found) => {
                self.lookups.database.inc();
                self.note_answer();
                let mut memory = self.lock();
                // If a change was reported between question and answer, the answer may be outdated.
                if memory.generation == generation {
                    remember(&mut memory, found.clone());
                }
                Ok(found)
            }
            Err(error) if error.is_temporary() => {
                // So that other look-ups don't wait for the same timeout.
                self.away.store(trust != Trust::Listening, Ordering::Relaxed);
                let found = remembered(&mut self.lock()).ok_or(error)?;
                self.lookups.last_known.inc();
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    /// Disables a webhook, unless its URL was changed or it was disabled meanwhile. Returns whether it was
    /// disabled.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub fn disable(&self, webhook: &Webhook, reason: &'static str) -> Result<bool, StoreError> {
        let disabled = self.store.disable(webhook, reason)?;
        // The notification does this too, but perhaps after the next look-up.
        self.forget(&Scope::of_webhook(webhook.id));
        Ok(disabled)
    }

    /// Checks that PostgreSQL answers queries.
    ///
    /// # Errors
    /// [`StoreError`] if it doesn't.
    pub fn ping(&self) -> Result<(), StoreError> {
        self.store.ping()?;
        self.note_answer();
        Ok(())
    }

    fn note_answer(&self) {
        self.away.store(false, Ordering::Relaxed);
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether any answer is remembered.
    #[must_use]
    pub fn knows_any(&self) -> bool {
        !self.lock().is_empty()
    }

    /// For how long remembered answers may have been outdated: zero while listening works.
    #[must_use]
    pub fn age(&self) -> Duration {
        match self.trust() {
            Trust::Listening => Duration::ZERO,
            Trust::Doubt | Trust::Away => {
                let proved = self.proved.load(Ordering::Relaxed);
                self.start.elapsed().saturating_sub(Duration::from_millis(proved))
            }
        }
    }

    fn forget(&self, scope: &Scope) {
        let forgotten = {
            let mut memory = self.lock();
            let forgotten = memory.forget(scope);
            self.changes.store(memory.generation, Ordering::Release);
            forgotten
        };
        drop(forgotten);
        self.notify(TableChange::Webhooks);
    }

    fn notify(&self, change: TableChange) {
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.iter().for_each(|subscriber| subscriber.notify(change));
    }

    fn extend_trust(&self) {
        let proved = self.start.elapsed();
        self.proved.store(millis(proved), Ordering::Relaxed);
        self.trusted_until.store(millis(proved + TRUST), Ordering::Release);
        self.away.store(false, Ordering::Relaxed);
    }

    fn trust(&self) -> Trust {
        if self.now() < self.trusted_until.load(Ordering::Acquire) {
            Trust::Listening
        } else if self.away.load(Ordering::Relaxed) {
            Trust::Away
        } else {
            Trust::Doubt
        }
    }

    /// The present time in milliseconds from `start`.
    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
