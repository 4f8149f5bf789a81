//! Who wants an event? Answered from memory, as long as it is certain that nothing has changed.
//!
//! The directory remembers PostgreSQL's answers, and its thread listens for the table's changes: at
//! each, everything is forgotten. Three rules say what a look-up may rely on (`Trust`):
//!
//! - While listening works, what is remembered is true.
//! - While it doesn't, every look-up asks PostgreSQL.
//! - While PostgreSQL is away altogether, what was known last serves: nobody can change what nobody
//!   can reach. What is not known has to wait.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{select, unbounded};
use lru::LruCache;
use uuid::Uuid;

use crate::config::Config;
use crate::domain::retry::Backoff;
use crate::domain::webhook::Webhook;
use crate::metrics::Lookups;
use crate::shutdown::Shutdown;
use crate::store::{Heard, Store};

pub use crate::store::{Found, StoreError};

/// How long one proof that listening works is good for. They come every second; a server that is
/// frozen, or a network that is gone, is noticed after this.
const TRUST: Duration = Duration::from_millis(2_500);

/// How long a connection may take until it listens: its own limits come first (connecting, and the
/// look at the trigger).
const BEGIN_LISTENING: Duration = Duration::from_secs(10);

/// The longest wait before PostgreSQL is looked for again. What was changed right after it came back
/// is honoured this much later at most.
const LONGEST_ABSENCE: Duration = Duration::from_millis(250);

/// What a look-up may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// Every change is heard: what is remembered is true.
    Listening,
    /// Ask PostgreSQL. If it doesn't answer, what was known last.
    Doubt,
    /// PostgreSQL is away: what was known last. If that is nothing, ask it.
    Away,
}

/// Remembers who wants what. Shared by all threads.
pub struct Directory {
    store: Arc<Store>,
    /// One lock for all: it is held for one look into a table.
    known: Mutex<Known>,
    start: Instant,
    /// Until when listening is known to work, in milliseconds from `start`.
    trusted_until: AtomicU64,
    /// Whether PostgreSQL did not answer when it was last asked while nothing was heard of it.
    away: AtomicBool,
    lookups: Lookups,
}

impl fmt::Debug for Directory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Directory").field("trust", &self.trust()).finish_non_exhaustive()
    }
}

/// What is remembered; the least recently used goes first.
struct Known {
    by_type: LruCache<Box<str>, Arc<[Webhook]>>,
    by_id: LruCache<Uuid, Found>,
    /// Counts how often all was forgotten.
    generation: u64,
}

impl Known {
    fn forget(&mut self) {
        self.by_type.clear();
        self.by_id.clear();
        self.generation += 1;
    }
}

impl Directory {
    /// Knows nothing yet.
    #[must_use]
    pub fn new(config: &Config, store: Arc<Store>, lookups: Lookups) -> Self {
        let most = NonZeroUsize::new(config.directory_entries).unwrap_or(NonZeroUsize::MIN);
        let known = Known {
            // They grow as they fill: a limit costs nothing.
            by_type: LruCache::unbounded(),
            by_id: LruCache::unbounded(),
            generation: 0,
        };
        let mut this = Self {
            store,
            known: Mutex::new(known),
            start: Instant::now(),
            trusted_until: AtomicU64::new(0),
            away: AtomicBool::new(false),
            lookups,
        };
        let known = this.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        known.by_type.resize(most);
        known.by_id.resize(most);
        this
    }

    /// The enabled webhooks that want an event type.
    ///
    /// # Errors
    /// [`StoreError`], where PostgreSQL has to be asked and doesn't answer.
    pub fn wanting(&self, event_type: &str) -> Result<Arc<[Webhook]>, StoreError> {
        self.look_up(
            |known| known.by_type.get(event_type).cloned(),
            || self.store.webhooks_wanting(event_type).map(Arc::from),
            |known, found| drop(known.by_type.put(event_type.into(), found)),
        )
    }

    /// The webhook of a parked delivery.
    ///
    /// # Errors
    /// [`StoreError`], where PostgreSQL has to be asked and doesn't answer.
    pub fn find(&self, id: Uuid) -> Result<Found, StoreError> {
        self.look_up(
            |known| known.by_id.get(&id).cloned(),
            || self.store.find(id),
            |known, found| drop(known.by_id.put(id, found)),
        )
    }

    fn look_up<T: Clone>(
        &self,
        remembered: impl Fn(&mut Known) -> Option<T>,
        ask: impl FnOnce() -> Result<T, StoreError>,
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
        match ask() {
            Ok(found) => {
                self.lookups.database.inc();
                let mut known = self.lock();
                // Asked before a change, and answered after it: true no longer.
                if known.generation == generation {
                    remember(&mut known, found.clone());
                }
                Ok(found)
            }
            Err(error @ StoreError::Unavailable(_)) => {
                // The others need not wait as long for the same answer.
                self.away.store(trust != Trust::Listening, Ordering::Relaxed);
                let found = remembered(&mut self.lock()).ok_or(error)?;
                self.lookups.last_known.inc();
                Ok(found)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether PostgreSQL answers.
    ///
    /// # Errors
    /// [`StoreError`] if it doesn't.
    pub fn ping(&self) -> Result<(), StoreError> {
        self.store.ping()
    }

    /// Whether anything is remembered.
    #[must_use]
    pub fn knows_any(&self) -> bool {
        let known = self.lock();
        !known.by_type.is_empty() || !known.by_id.is_empty()
    }

    /// For how long what is remembered may have been untrue: zero while listening works.
    #[must_use]
    pub fn age(&self) -> Duration {
        let until = self.trusted_until.load(Ordering::Relaxed);
        let heard = Duration::from_millis(until).saturating_sub(TRUST);
        match self.trust() {
            Trust::Listening => Duration::ZERO,
            Trust::Doubt | Trust::Away => self.start.elapsed().saturating_sub(heard),
        }
    }

    /// Listens for changes until shutdown, over one connection after another.
    pub fn listen(&self, shutdown: &Shutdown, jitter: fn() -> f64) {
        let mut backoff = Backoff::default();
        let mut reported = false;
        while !shutdown.is_requested() {
            let Some(error) = self.listen_once(shutdown, &mut reported, &mut backoff) else {
                return;
            };
            self.trusted_until.fetch_min(self.now(), Ordering::Relaxed);
            if !reported {
                log::warn!("directory bypassed cause={:?}", error.to_string());
                reported = true;
            }
            // It may only have no place for one more connection.
            let away = matches!(error, StoreError::Unavailable(_)) && self.store.ping().is_err();
            self.away.store(away, Ordering::Relaxed);
            let wait = backoff.next_wait(jitter());
            if shutdown.wait(if away { wait.min(LONGEST_ABSENCE) } else { wait }) {
                return;
            }
        }
    }

    /// One connection's life; `None` at shutdown. The client has no time-outs, so it lives in a
    /// thread that is given up when it says nothing any more.
    fn listen_once(
        &self,
        shutdown: &Shutdown,
        reported: &mut bool,
        backoff: &mut Backoff,
    ) -> Option<StoreError> {
        let (sender, reports) = unbounded();
        let store = Arc::clone(&self.store);
        let started = thread::Builder::new().name("listen".to_owned()).spawn(move || {
            let error = store.listen(|heard| sender.send(Ok(heard)).is_ok());
            // Fails when it was given up.
            let _ = sender.send(Err(error));
        });
        if let Err(error) = started {
            return Some(StoreError::Unavailable(format!("no thread to listen: {error}")));
        }
        let mut patience = BEGIN_LISTENING;
        loop {
            let report = select! {
                recv(reports) -> report => report,
                recv(shutdown.receiver()) -> _ => return None,
                default(patience) => {
                    return Some(StoreError::Unavailable(format!("silent for {patience:?}")));
                }
            };
            match report {
                Ok(Ok(Heard::Listening)) => {
                    self.lock().forget();
                    self.trust_for_now();
                    if std::mem::take(reported) {
                        log::info!("directory in use again");
                    }
                    backoff.reset();
                    patience = TRUST;
                }
                Ok(Ok(Heard::Changed)) => self.lock().forget(),
                Ok(Ok(Heard::Alive)) => self.trust_for_now(),
                Ok(Err(error)) => return Some(error),
                Err(_) => return Some(StoreError::Unavailable("listening ended".to_owned())),
            }
        }
    }

    fn trust_for_now(&self) {
        let until = self.start.elapsed() + TRUST;
        let until = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        self.trusted_until.store(until, Ordering::Release);
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
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
