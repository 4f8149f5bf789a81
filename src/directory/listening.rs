//! Listens for changes of the tables, over one connection after another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{select, unbounded};

use super::{Directory, StoreError, TableChange};
use crate::domain::causes::Causes;
use crate::domain::retry::Backoff;
use crate::domain::time_budget::TimeBudget;
use crate::domain::webhook::Scope;
use crate::shutdown::Shutdown;
use crate::store::{LifeSign, ListenEnd, ListenEvent};

/// How long a listening connection may be silent before PostgreSQL counts as away: the server is frozen, or
/// the network is down. This is less than [`TRUST`](super::TRUST), so that no look-up in between waits for an
/// answer that can't come.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a connection may take to start listening. The limits of its steps (connecting, and checking the
/// triggers) usually apply first.
const BEGIN_LISTENING: Duration = Duration::from_secs(10);

/// The longest wait between attempts to connect while PostgreSQL is away. A change right after its return is
/// noticed at most this much later. After a silence, add the two seconds that an answer may take.
const LONGEST_WAIT_WHILE_AWAY: Duration = Duration::from_millis(250);

/// The share of time that may be spent on finding the entries that changes affect. With a large memory this
/// takes milliseconds for each change, and blocks look-ups meanwhile. Once the share is used up, a change
/// clears the whole memory instead, which takes no time.
const SEARCH_BUDGET: TimeBudget = TimeBudget::new(Duration::from_millis(100), 10);

/// If a connection has listened for this long before it ended, the next one is opened at once.
const GOOD_CONNECTION: Duration = Duration::from_secs(1);

/// The end of a listening connection.
struct Lost {
    end: ListenEnd,
    /// When it began to listen, if it did.
    since: Option<Instant>,
}

impl Directory {
    /// Listens for changes until shutdown, over one connection after another.
    pub fn listen(&self, shutdown: &Shutdown, jitter: fn() -> f64) {
        let mut backoff = Backoff::default();
        let mut causes = Causes::default();
        // How often in a row PostgreSQL didn't answer. A single time may only mean that the network broke.
        let mut unanswered = 0_u32;
        while !shutdown.is_requested() {
            let Some(Lost { end: ListenEnd { error, sign }, since }) =
                self.listen_once(shutdown, &mut causes)
            else {
                return;
            };
            // If queries were answered meanwhile, PostgreSQL isn't away: only this connection breaks.
            if self.answered.swap(false, Ordering::Relaxed) {
                unanswered = 0;
            }
            unanswered = match sign {
                LifeSign::Silence => unanswered.max(2),
                LifeSign::Break if since.is_none() => unanswered.saturating_add(1),
                LifeSign::Break | LifeSign::Answer => 0,
            };
            let away = unanswered > 1;
            // `away` is set before the trust ends: otherwise a look-up in between would wait for an answer.
            self.away.store(away, Ordering::Relaxed);
            self.trusted_until.store(0, Ordering::Release);
            let cause = error.to_string();
            if causes.is_news(&cause) {
                log::warn!("directory bypassed cause={cause:?}");
            }
            let was_good = since.is_some_and(|since| since.elapsed() > GOOD_CONNECTION);
            if was_good {
                backoff.reset();
            }
            // Without a wait: the next attempt shows whether PostgreSQL is away.
            if !away && (was_good || unanswered == 1) {
                continue;
            }
            let wait = backoff.next_wait(jitter());
            if shutdown.wait(if away { wait.min(LONGEST_WAIT_WHILE_AWAY) } else { wait }) {
                return;
            }
        }
    }

    /// Listens over one connection, and returns how it ended; `None` at shutdown. The client has no timeouts,
    /// so it runs in a thread that is abandoned when nothing arrives.
    fn listen_once(&self, shutdown: &Shutdown, causes: &mut Causes) -> Option<Lost> {
        let (sender, reports) = unbounded();
        let store = Arc::clone(&self.store);
        let started = thread::Builder::new().name("listen".to_owned()).spawn(move || {
            let ended = store.listen(|event| sender.send(Ok(event)).is_ok());
            // Fails if this thread was abandoned.
            let _ = sender.send(Err(ended));
        });
        let mut since = None;
        let everything = Scope::everything();
        let lost = |since, sign, how: String| {
            let error = StoreError::unavailable(self.store.place(), how);
            Some(Lost { end: ListenEnd { error, sign }, since })
        };
        if let Err(error) = started {
            let how = format!("cannot start a thread to listen: {error}");
            let error = StoreError::failing(self.store.place(), how);
            return Some(Lost { end: ListenEnd { error, sign: LifeSign::Answer }, since });
        }
        let mut timeout = BEGIN_LISTENING;
        let mut budget = SEARCH_BUDGET;
        loop {
            let report = select! {
                recv(reports) -> report => report,
                recv(shutdown.receiver()) -> _ => return None,
                default(timeout) => {
                    return lost(since, LifeSign::Silence, format!("silent for {timeout:?}"));
                }
            };
            match report {
                Ok(Ok(ListenEvent::Listening)) => {
                    self.forget(&Scope::everything());
                    self.notify(TableChange::Backlogs);
                    self.notify(TableChange::Instances);
                    self.extend_trust();
                    if causes.end().is_some() {
                        log::info!("directory in use again");
                    }
                    since = Some(Instant::now());
                    timeout = SILENCE;
                }
                Ok(Ok(ListenEvent::Changed(scope))) => {
                    let began = self.start.elapsed();
                    let may_search = budget.is_affordable(began);
                    self.forget(if may_search { &scope } else { &everything });
                    budget.spend(self.start.elapsed() - began);
                }
                Ok(Ok(ListenEvent::Backlogs)) => self.notify(TableChange::Backlogs),
                Ok(Ok(ListenEvent::Instances)) => self.notify(TableChange::Instances),
                Ok(Ok(ListenEvent::Alive)) => self.extend_trust(),
                Ok(Err(end)) => return Some(Lost { end, since }),
                Err(_) => return lost(since, LifeSign::Break, "listening ended".to_owned()),
            }
        }
    }
}
