//! Answers which webhooks want an event: from memory, as long as nothing can have changed.
//!
//! The directory remembers PostgreSQL's answers, and its thread listens for changes of the table. At
//! each change it forgets what may have become invalid. Subscribers are notified of changes of webhooks,
//! and of backlogs and instances (of which it remembers nothing). What a look-up may rely on (`Trust`)
//! follows three rules:
//!
//! - While listening works, what is remembered is valid.
//! - While it doesn't, every look-up asks PostgreSQL.
//! - While PostgreSQL is away altogether, the last known answers are used: nobody can change a table
//!   that nobody can reach. Unknown answers have to wait.

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
use crate::metrics::Lookups;
use crate::store::Store;

mod listening;
mod memory;
mod subscribers;

use memory::{Accounts, EventWebhooks, Known, MOST_ACCOUNTS};

use subscribers::Subscriber;

pub use crate::store::{Found, Label, StoreError};
pub use subscribers::Change;

/// How long one proof that listening works is valid. Proofs come every second, and one may be late on a
/// busy machine.
const TRUST: Duration = Duration::from_millis(2_500);

/// How long, in milliseconds, an answer of PostgreSQL is trusted while changes aren't reported: as long
/// as a report may take otherwise.
const FRESH: u64 = 100;

/// What a look-up may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Every change is reported: what is remembered is valid.
    Listening,
    /// Ask PostgreSQL. If it doesn't answer, use the last known answer.
    Doubt,
    /// PostgreSQL is away: use the last known answer. If there is none, ask it.
    Away,
}

/// Remembers which webhooks want which events. Shared by all threads.
pub struct Directory {
    store: Arc<Store>,
    /// One lock for everything: it is held for one look into a table.
    known: Mutex<Known>,
    /// How many changes were reported.
    changes: AtomicU32,
    start: Instant,
    /// When listening was last proved to work, in milliseconds from `start`.
    proved: AtomicU64,
    /// Until when that proof is valid.
    trusted_until: AtomicU64,
    /// Whether PostgreSQL didn't answer the last query made while listening didn't work.
    away: AtomicBool,
    /// Whether it has answered any query since the listening connection was last lost.
    answered: AtomicBool,
    lookups: Lookups,
    subscribers: Mutex<Vec<Subscriber>>,
}

impl fmt::Debug for Directory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Directory").field("trust", &self.trust()).finish_non_exhaustive()
    }
}

impl Directory {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(config: &Config, store: Arc<Store>, lookups: Lookups) -> Self {
        let most = NonZeroUsize::new(config.directory_entries).unwrap_or(NonZeroUsize::MIN);
        Self {
            store,
            known: Mutex::new(Known::new(most)),
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

    /// A channel of changes, each sent after what it affects was forgotten. When listening begins, all
    /// kinds are sent, since changes may have been missed before. Changes of a kind are merged until
    /// they are received. The channel lives as long as the directory.
    ///
    /// While listening doesn't work ([`Directory::is_listening`]), nothing is sent.
    #[must_use]
    pub fn subscribe(&self) -> Receiver<Change> {
        let subscriber = Subscriber::new();
        let receiver = subscriber.untaken.clone();
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
            |known| known.wanting(event_type, account),
            |as_of| self.ask_who_wants(event_type, account, as_of),
            |known, found| known.remember_wanting(event_type, account, found),
        );
        answer.map(|answer| answer.webhooks)
    }

    /// Also asks which accounts have webhooks for such events, once for each type, and only if the
    /// answer can be remembered: this saves queries for all other accounts.
    fn ask_who_wants(
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
            |known| known.found(id),
            |as_of| {
                Ok(match self.store.find(id)? {
                    Found::Enabled(webhook) => Found::Enabled(Webhook { as_of, ..webhook }),
                    other => other,
                })
            },
            |known, found| known.remember_found(id, found),
        )
    }

    /// Whether a change that may affect a webhook was reported since it was looked up.
    #[must_use]
    pub fn has_changed_since(&self, webhook: &Webhook) -> bool {
        self.changes.load(Ordering::Acquire) != webhook.as_of.changes()
    }

    /// Whether a webhook may have changed since it was looked up: a change was reported; or changes
    /// aren't reported, and the look-up was a while ago. While PostgreSQL is away, nothing changes.
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

    /// The URLs and accounts of those of these webhooks that exist.
    ///
    /// # Errors
    /// [`StoreError`]; PostgreSQL is asked.
    pub fn labels(&self, ids: &[Uuid]) -> Result<Vec<Label>, StoreError> {
        self.store.labels(ids)
    }

    fn look_up<T: Clone>(
        &self,
        remembered: impl Fn(&mut Known) -> Option<T>,
        ask: impl FnOnce(AsOf) -> Result<T, StoreError>,
        remember: impl FnOnce(&mut Known, T),
    ) -> Result<T, StoreError> {
        let trust = self.trust();
        let generation = {
            let mut known = self.lock();
            if trust != Trust::Doubt
                && let Some(found) = remembered(&mut known)
            {
                match trust {
                    Trust::Listening => self.lookups.memory.inc(),
                    Trust::Doubt | Trust::Away => self.lookups.last_known.inc(),
                }
                return Ok(found);
            }
            known.generation
        };
        match ask(AsOf::new(generation, self.now())) {
            Ok(found) => {
                self.lookups.database.inc();
                self.has_answered();
                let mut known = self.lock();
                // If it was asked before a change and answered after it, the answer may be outdated.
                if known.generation == generation {
                    remember(&mut known, found.clone());
                }
                Ok(found)
            }
            Err(error) if error.is_passing() => {
                // So that others don't wait as long for the same answer.
                self.away.store(trust != Trust::Listening, Ordering::Relaxed);
                let found = remembered(&mut self.lock()).ok_or(error)?;
                self.lookups.last_known.inc();
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    /// Disables a webhook, unless it was changed or disabled meanwhile. Returns whether it did.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing has changed.
    pub fn disable(&self, webhook: &Webhook, reason: &'static str) -> Result<bool, StoreError> {
        let disabled = self.store.disable(webhook, reason)?;
        // The notification would do it too, but later than the next look-up.
        self.forget(&Scope::of_webhook(webhook.id));
        Ok(disabled)
    }

    /// Checks that PostgreSQL answers queries.
    ///
    /// # Errors
    /// [`StoreError`] if it doesn't.
    pub fn ping(&self) -> Result<(), StoreError> {
        self.store.ping()?;
        self.has_answered();
        Ok(())
    }

    fn has_answered(&self) {
        self.away.store(false, Ordering::Relaxed);
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether anything is remembered.
    #[must_use]
    pub fn knows_any(&self) -> bool {
        !self.lock().is_empty()
    }

    /// How long what is remembered may have been invalid: zero while listening works.
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
            let mut known = self.lock();
            let forgotten = known.forget(scope);
            self.changes.store(known.generation, Ordering::Release);
            forgotten
        };
        drop(forgotten);
        self.tell(Change::Webhooks);
    }

    fn tell(&self, change: Change) {
        let subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.iter().for_each(|subscriber| subscriber.tell(change));
    }

    fn trust_for_now(&self) {
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

    /// In milliseconds from `start`.
    fn now(&self) -> u64 {
        millis(self.start.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::metrics::Metrics;

    /// Its store is never reached: each test provides PostgreSQL's answers.
    fn directory() -> Directory {
        let config = Settings::default().read().expect("the defaults");
        let store = Arc::new(Store::new(&config).expect("an URL"));
        let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
        Directory::new(&config, store, metrics.lookups())
    }

    fn look_up(
        directory: &Directory,
        ask: impl FnOnce() -> Result<Found, StoreError>,
    ) -> Result<Found, StoreError> {
        directory.look_up(
            |known| known.found(Uuid::nil()),
            |_| ask(),
            |known, found| known.remember_found(Uuid::nil(), found),
        )
    }

    fn not_asked() -> Result<Found, StoreError> {
        panic!("it is remembered")
    }

    fn unavailable() -> Result<Found, StoreError> {
        Err(StoreError::unavailable(&"db:5432/x".into(), "away"))
    }

    #[test]
    fn an_answer_is_remembered_while_listening_works() {
        let directory = directory();
        directory.trust_for_now();
        assert_eq!(look_up(&directory, || Ok(Found::Disabled)).ok(), Some(Found::Disabled));
        assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
        assert_eq!(directory.age(), Duration::ZERO);
    }

    #[test]
    fn an_answer_that_a_change_has_overtaken_is_not_remembered() {
        let directory = directory();
        directory.trust_for_now();
        let overtaken = look_up(&directory, || {
            directory.forget(&Scope::everything());
            Ok(Found::Disabled)
        });
        // Valid when PostgreSQL was asked, and so for this one look-up.
        assert_eq!(overtaken.ok(), Some(Found::Disabled));
        assert_eq!(look_up(&directory, || Ok(Found::Deleted)).ok(), Some(Found::Deleted));
        assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Deleted));
    }

    #[test]
    fn what_a_change_has_made_untrue_does_not_serve_while_postgresql_is_away() {
        let directory = directory();
        assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
        let failed = look_up(&directory, || {
            directory.forget(&Scope::everything());
            unavailable()
        });
        assert!(failed.is_err());
    }

    #[test]
    fn subscribers_are_told_once_of_each_kind_and_never_keep_anybody_waiting() {
        let directory = directory();
        let (early, told) =
            (directory.subscribe(), |from: &Receiver<Change>| from.try_iter().collect::<Vec<_>>());
        assert_eq!(told(&early), []);
        for _ in 0..5 {
            directory.forget(&Scope::everything());
            directory.tell(Change::Backlogs);
        }
        let late = directory.subscribe();
        directory.forget(&Scope::everything());
        assert_eq!(told(&early), [Change::Backlogs, Change::Webhooks]);
        assert_eq!(told(&late), [Change::Webhooks]);
        directory.tell(Change::Backlogs);
        assert_eq!((told(&early), told(&late)), (vec![Change::Backlogs], vec![Change::Backlogs]));
    }

    #[test]
    fn news_of_backlogs_leaves_what_is_known_of_webhooks() {
        let directory = directory();
        assert!(!directory.is_listening());
        directory.trust_for_now();
        assert!(directory.is_listening());
        assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
        directory.tell(Change::Backlogs);
        assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
    }

    #[test]
    fn a_webhook_may_have_changed_where_that_was_heard_or_would_not_have_been() {
        let mut directory = directory();
        directory.start = Instant::now() - Duration::from_secs(1);
        let columns = crate::domain::settings::Columns::default();
        let secrets = crate::domain::webhook::Secrets::default();
        let old = Webhook::new(Uuid::nil(), "http://a/", &secrets, &columns);
        let as_of = AsOf::new(0, u64::MAX);
        let fresh = Webhook { as_of, ..old.clone() };
        let may_have = |directory: &Directory| {
            [&old, &fresh].map(|webhook| directory.may_have_changed_since(webhook))
        };
        assert_eq!(may_have(&directory), [true, false], "nothing is heard");
        directory.away.store(true, Ordering::Relaxed);
        assert_eq!(may_have(&directory), [false, false], "nobody can change it");
        directory.trust_for_now();
        assert_eq!(may_have(&directory), [false, false], "it would have been heard");
        directory.forget(&Scope::everything());
        assert_eq!(may_have(&directory), [true, true]);
    }

    #[test]
    fn without_listening_every_look_up_asks() {
        let directory = directory();
        for found in [Found::Disabled, Found::Deleted, Found::Disabled] {
            assert_eq!(look_up(&directory, || Ok(found.clone())).ok(), Some(found));
        }
        assert!(directory.age() > Duration::ZERO);
    }

    #[test]
    fn while_postgresql_is_away_one_look_up_finds_out_and_the_rest_need_not_wait() {
        let directory = directory();
        assert!(look_up(&directory, unavailable).is_err(), "nothing is known yet");
        assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
        assert_eq!(look_up(&directory, unavailable).ok(), Some(Found::Disabled));
        assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
        // Another look-up was answered.
        directory.away.store(false, Ordering::Relaxed);
        assert_eq!(look_up(&directory, || Ok(Found::Deleted)).ok(), Some(Found::Deleted));
    }
}
