//! Listening for the table's changes, over one connection after another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{select, unbounded};

use super::{Change, Directory, StoreError};
use crate::domain::causes::Causes;
use crate::domain::retry::Backoff;
use crate::domain::time_budget::TimeBudget;
use crate::domain::webhook::Scope;
use crate::shutdown::Shutdown;
use crate::store::{Heard, NotListening, Sign};

/// How long a listening connection may be silent before PostgreSQL counts as away: the server is frozen,
/// or the network is gone. This is less than [`TRUST`](super::TRUST), so that no look-up in between waits in vain for
/// an answer.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a connection may take to start listening. Its own limits (for connecting, and for checking
/// the trigger) come first.
const BEGIN_LISTENING: Duration = Duration::from_secs(10);

/// The longest wait between attempts to reach PostgreSQL while it is away. A change made right after its
/// return is noticed at most this much later; after a silence, by the two more seconds that an answer
/// may take.
const LONGEST_ABSENCE: Duration = Duration::from_millis(250);

/// The share of time for finding out what a change affects. If very much is remembered, this takes
/// milliseconds during which nobody can look anything up. Beyond this share, however many changes there
/// are, everything is forgotten, which takes no time.
const FORGETTING: TimeBudget = TimeBudget::new(Duration::from_millis(100), 10);

/// A connection that listened for this long was good: after its end, the next one is opened at once.
const GOOD_SESSION: Duration = Duration::from_secs(1);

/// How the life of a connection ended.
struct Lost {
    why: NotListening,
    /// When it began to listen.
    since: Option<Instant>,
}

impl Directory {
    /// Listens for changes until shutdown, over one connection after another.
    pub fn listen(&self, shutdown: &Shutdown, jitter: fn() -> f64) {
        let mut backoff = Backoff::default();
        let mut causes = Causes::default();
        // How often in a row PostgreSQL didn't answer. Once may be a network that just broke.
        let mut unanswered = 0_u32;
        while !shutdown.is_requested() {
            let Some(Lost { why: NotListening { error, sign }, since }) =
                self.listen_once(shutdown, &mut causes)
            else {
                return;
            };
            // A network that breaks repeatedly but lets queries through isn't away.
            if self.answered.swap(false, Ordering::Relaxed) {
                unanswered = 0;
            }
            unanswered = match sign {
                Sign::Silence => unanswered.max(2),
                Sign::Break if since.is_none() => unanswered.saturating_add(1),
                Sign::Break | Sign::Answer => 0,
            };
            let away = unanswered > 1;
            // This comes first: otherwise a look-up that no longer trusts its memory would wait for an
            // answer.
            self.away.store(away, Ordering::Relaxed);
            self.trusted_until.store(0, Ordering::Release);
            let cause = error.to_string();
            if causes.is_news(&cause) {
                log::warn!("directory bypassed cause={cause:?}");
            }
            let was_good = since.is_some_and(|since| since.elapsed() > GOOD_SESSION);
            if was_good {
                backoff.reset();
            }
            // At once: only trying tells whether PostgreSQL is away too.
            if !away && (was_good || unanswered == 1) {
                continue;
            }
            let wait = backoff.next_wait(jitter());
            if shutdown.wait(if away { wait.min(LONGEST_ABSENCE) } else { wait }) {
                return;
            }
        }
    }

    /// The life of one connection; `None` at shutdown. The client has no time-outs, so it runs in a
    /// thread that is abandoned when it falls silent.
    fn listen_once(&self, shutdown: &Shutdown, causes: &mut Causes) -> Option<Lost> {
        let (sender, reports) = unbounded();
        let store = Arc::clone(&self.store);
        let started = thread::Builder::new().name("listen".to_owned()).spawn(move || {
            let ended = store.listen(|heard| sender.send(Ok(heard)).is_ok());
            // Fails if the thread was abandoned.
            let _ = sender.send(Err(ended));
        });
        let mut since = None;
        let everything = Scope::everything();
        let lost = |since, sign, how: String| {
            let error = StoreError::unavailable(self.store.place(), how);
            Some(Lost { why: NotListening { error, sign }, since })
        };
        if let Err(error) = started {
            let how = format!("no thread to listen: {error}");
            let error = StoreError::failing(self.store.place(), how);
            return Some(Lost { why: NotListening { error, sign: Sign::Answer }, since });
        }
        let mut patience = BEGIN_LISTENING;
        let mut budget = FORGETTING;
        loop {
            let report = select! {
                recv(reports) -> report => report,
                recv(shutdown.receiver()) -> _ => return None,
                default(patience) => {
                    return lost(since, Sign::Silence, format!("silent for {patience:?}"));
                }
            };
            match report {
                Ok(Ok(Heard::Listening)) => {
                    self.forget(&Scope::everything());
                    self.tell(Change::Backlogs);
                    self.tell(Change::Instances);
                    self.trust_for_now();
                    if causes.end().is_some() {
                        log::info!("directory in use again");
                    }
                    since = Some(Instant::now());
                    patience = SILENCE;
                }
                Ok(Ok(Heard::Changed(scope))) => {
                    let began = self.start.elapsed();
                    let may_look = budget.is_affordable(began);
                    self.forget(if may_look { &scope } else { &everything });
                    budget.spend(self.start.elapsed() - began);
                }
                Ok(Ok(Heard::Backlogs)) => self.tell(Change::Backlogs),
                Ok(Ok(Heard::Instances)) => self.tell(Change::Instances),
                Ok(Ok(Heard::Alive)) => self.trust_for_now(),
                Ok(Err(why)) => return Some(Lost { why, since }),
                Err(_) => return lost(since, Sign::Break, "listening ended".to_owned()),
            }
        }
    }
}
