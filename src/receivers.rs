//! Decides for the whole process which requests may be in flight. Adds a lock, waiting threads and the clock to
//! [`Intake`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use uuid::Uuid;

use crate::domain::instances::{Instances, SentBy};
use crate::domain::intake::{
    Called, DeliveryKind, EntryTicket, Intake, Intent, Refusal, WaiterNumber,
};
use crate::domain::limits::Limits;
use crate::domain::pace::{Ask, Attempt, Hold, Pace};
use crate::domain::receiver::{AttemptEnd, Breaker, Class, Condition, Transition};
use crate::domain::time::Moment;

mod conditions;
mod line;

pub use line::{InLine, Turn};

/// The most receivers that are remembered, so that a flood of webhooks can't fill memory: two or three
/// megabytes. Receivers that were forgotten because of this limit count as unproven again.
const MOST: usize = 10_000;

/// The zero of moments is this long before the start, so that moments before the start can be expressed.
const BEFORE: Duration = Duration::from_secs(365 * 86_400);

/// The receivers, the capacity of each queue, and the contents of the backlogs. Shared by all threads.
#[derive(Debug)]
pub struct Receivers {
    /// One lock for everything: it is held for less than a microsecond, twice for a POST that takes a hundred
    /// times as long.
    state: Mutex<State>,
    /// The zero of moments is [`BEFORE`] this.
    start: Instant,
    /// Random numbers from 0 to 1, for the pauses of circuit breakers.
    jitter: fn() -> f64,
    /// How often the instances have changed.
    changes: AtomicU64,
}

#[derive(Debug)]
struct State {
    intake: Intake,
    /// The channels by which waiting deliveries are called.
    waiting: HashMap<WaiterNumber, Sender<Result<Attempt, Refusal>>>,
    /// The threads that wait to publish to a backlog, by the number of the entry. Each is woken for its own
    /// turn: hundreds may wait, and waking all of them at each turn would cost more than the turns.
    entering: HashMap<u64, Thread>,
    /// By queue: each rings when a request has ended, while [`Receivers::listen`] has switched it on.
    bells: Vec<Bell>,
}

#[derive(Debug)]
struct Bell {
    sender: Sender<()>,
    receiver: Receiver<()>,
    is_on: bool,
}

impl Receivers {
    /// With the capacity of each queue, and all receivers unproven.
    #[must_use]
    pub fn new(
        capacities: impl IntoIterator<Item = u16>,
        breaker: Breaker,
        jitter: fn() -> f64,
    ) -> Self {
        let capacities: Vec<_> = capacities.into_iter().map(usize::from).collect();
        let bell = |_| {
            let (sender, receiver) = bounded(1);
            Bell { sender, receiver, is_on: false }
        };
        let bells = (0..capacities.len()).map(bell).collect();
        let pace = Pace::new(capacities.iter().copied(), breaker, MOST);
        let intake = Intake::new(pace, capacities);
        let state =
            Mutex::new(State { intake, waiting: HashMap::new(), entering: HashMap::new(), bells });
        Self { state, start: Instant::now(), jitter, changes: AtomicU64::new(0) }
    }

    /// Asks for an attempt of a delivery that isn't in a backlog. The attempt begins now, or waits if it needs
    /// only the end of another request. `is_paused`: its webhook is paused.
    ///
    /// # Errors
    /// Why there is no attempt now.
    pub fn ask(&self, ask: Ask, kind: DeliveryKind, is_paused: bool) -> Result<Turn, Refusal> {
        let mut state = self.lock();
        let (answer, called) = state.intake.ask(ask, kind, is_paused, self.now());
        state.tell(called);
        answer.map(|intent| state.answer(intent))
    }

    /// Asks for an attempt of a backlog's first delivery. `is_ours`: this process put it there.
    ///
    /// # Errors
    /// Why there is no attempt now.
    pub fn ask_head(&self, ask: Ask, is_ours: bool) -> Result<Turn, Hold> {
        let mut state = self.lock();
        let intent = state.intake.ask_head(ask, is_ours, self.now())?;
        Ok(state.answer(intent))
    }

    /// Waits until all earlier entries of the same backlog are published.
    pub fn wait_to_enter(&self, entry: EntryTicket) {
        let mut state = self.lock();
        while !state.intake.contents.is_next(entry) {
            state.entering.insert(entry.number(), thread::current());
            drop(state);
            thread::park();
            state = self.lock();
        }
        state.entering.remove(&entry.number());
    }

    /// Whether all earlier entries of the same backlog are published.
    #[must_use]
    pub fn is_next_to_enter(&self, entry: EntryTicket) -> bool {
        self.lock().intake.contents.is_next(entry)
    }

    /// Records that a delivery was published to a backlog or, if not `is_there`, that it won't be.
    pub fn entered(&self, entry: EntryTicket, is_there: bool) {
        let mut state = self.lock();
        state.intake.contents.note_entered(entry, is_there);
        let next = state.intake.contents.next_entry(entry);
        if let Some(waits) = next.and_then(|number| state.entering.get(&number)) {
            waits.unpark();
        }
    }

    /// Records that a delivery left a backlog without an attempt.
    pub fn left_backlog(&self, queue: usize, webhook: Uuid, is_ours: bool) {
        self.lock().intake.contents.note_left((queue, webhook), is_ours);
    }

    /// Records that a backlog exists, with unknown contents.
    pub fn found_backlog(&self, queue: usize, webhook: Uuid) {
        self.lock().intake.contents.note_found((queue, webhook));
    }

    /// The number of the last entry of a backlog, for [`Receivers::note_backlog_empty`].
    #[must_use]
    pub fn last_in_backlog(&self, queue: usize, webhook: Uuid) -> u64 {
        self.lock().intake.contents.last_entry((queue, webhook))
    }

    /// Records that a backlog is empty, according to the broker. `last` is [`Receivers::last_in_backlog`] when
    /// the broker was asked. Returns false if another delivery has entered since then, or is about to.
    pub fn note_backlog_empty(&self, queue: usize, webhook: Uuid, last: u64) -> bool {
        let mut state = self.lock();
        let is_emptied = state.intake.contents.note_empty((queue, webhook), last);
        if is_emptied {
            state.forget_restored(webhook, self.now());
        }
        is_emptied
    }

    /// Whether a backlog may hold deliveries.
    #[must_use]
    pub fn is_backlog_in_use(&self, queue: usize, webhook: Uuid) -> bool {
        self.lock().intake.contents.is_in_use((queue, webhook))
    }

    /// The bell of a queue, which rings when a request of any queue has ended, while
    /// [`Receivers::listen`] has switched it on.
    #[must_use]
    pub fn bell(&self, queue: usize) -> Receiver<()> {
        self.lock().bells[queue].receiver.clone()
    }

    /// Sets whether the bell of a queue rings. That costs a wake-up per request.
    pub fn listen(&self, queue: usize, is_on: bool) {
        self.lock().bells[queue].is_on = is_on;
    }

    /// See [`Pace::probe_now`].
    pub fn probe_now(&self, webhook: Uuid) {
        self.lock().intake.pace.probe_now(webhook);
    }

    /// See [`Pace::restore`].
    pub fn restore(&self, webhook: Uuid, is_slow: bool, away_for: Option<Duration>) {
        let mut state = self.lock();
        let now = self.now();
        state.intake.pace.restore(webhook, is_slow, away_for, now);
    }

    /// See [`Pace::stay_away`].
    pub fn stay_away(&self, webhook: Uuid, wanted: Duration) {
        let mut state = self.lock();
        let now = self.now();
        state.intake.pace.stay_away(webhook, wanted, now);
    }

    /// Sets the instances that share the limits of webhooks.
    pub fn share_among(&self, instances: Instances) {
        let mut state = self.lock();
        state.intake.pace.share_among(instances);
        state.call(self.now());
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// How often [`Receivers::share_among`] was called.
    #[must_use]
    pub fn changes_of_instances(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// See [`Pace::is_sharing`].
    #[must_use]
    pub fn is_sharing(&self) -> bool {
        self.lock().intake.pace.is_sharing()
    }

    /// See [`Pace::sent_by`].
    #[must_use]
    pub fn sent_by(&self, webhook: Uuid, limits: Limits) -> SentBy {
        self.lock().intake.pace.sent_by(webhook, limits)
    }

    /// Sets whether another instance consumes a backlog.
    pub fn set_elsewhere(&self, queue: usize, webhook: Uuid, is_elsewhere: bool) {
        self.lock().intake.contents.set_elsewhere((queue, webhook), is_elsewhere);
    }

    /// See [`Pace::add_backlog`].
    pub fn add_backlog(&self, webhook: Uuid) {
        let mut state = self.lock();
        let now = self.now();
        state.intake.pace.add_backlog(webhook, now);
    }

    /// See [`Pace::set_backlogs`].
    pub fn set_backlogs(&self, webhooks: impl Iterator<Item = Uuid>) {
        let mut state = self.lock();
        let now = self.now();
        state.intake.pace.set_backlogs(webhooks, now);
    }

    /// Records how an attempt ended.
    pub fn end(&self, attempt: Attempt, ended: AttemptEnd<'_>) -> Option<Transition> {
        let jitter = match ended {
            AttemptEnd::Delivered => 0.0,
            AttemptEnd::Failed { .. } => (self.jitter)(),
        };
        let mut state = self.lock();
        let now = self.now();
        let transition = state.intake.pace.end(attempt, ended, jitter, now);
        state.call(now);
        transition
    }

    /// Gives back an attempt that wasn't made.
    pub fn give_back(&self, attempt: Attempt) {
        let mut state = self.lock();
        state.intake.pace.give_back(attempt);
        state.call(self.now());
    }

    /// Forgets a webhook that is deleted or disabled, or whose receiver is gone: no further answer will
    /// show that the receiver recovered.
    pub fn forget(&self, webhook: Uuid) {
        self.lock().intake.pace.forget(webhook);
    }

    /// The present; read it under the lock, so that time doesn't go back between two holders.
    fn now(&self) -> Moment {
        self.start.elapsed() + BEFORE
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn answer(&mut self, intent: Intent) -> Turn {
        match intent {
            Intent::Begins(attempt) => Turn::Begins(attempt),
            Intent::Waits(number) => {
                let (sender, called) = bounded(1);
                self.waiting.insert(number, sender);
                let (since, spent) = (Instant::now(), Duration::ZERO);
                Turn::Waits(InLine { number, since, spent, has_given_up: false, called })
            }
        }
    }

    /// Closes a receiver's circuit breaker if it was opened only because of the table of backlogs, and all its
    /// backlogs are empty now: another instance has delivered their contents, or they have expired. Otherwise
    /// the receiver would count as down until its next event, which may take days.
    fn forget_restored(&mut self, webhook: Uuid, now: Moment) {
        let Some(receiver) = self.intake.pace.receiver(webhook) else { return };
        let is_slow = receiver.class() == Class::Slow;
        let is_restored = receiver.ailment(now).is_some_and(|ailment| {
            ailment.condition == Condition::Open && ailment.reason.is_none()
        });
        let has_more =
            || (0..self.bells.len()).any(|queue| self.intake.contents.is_in_use((queue, webhook)));
        if is_restored && !has_more() {
            self.intake.pace.forget(webhook);
            self.intake.pace.restore(webhook, is_slow, None, now);
        }
    }

    /// After the end of a request: calls the waiting deliveries that may begin now, and rings the bells.
    fn call(&mut self, now: Moment) {
        if self.intake.has_waiting() {
            let called = self.intake.call(now);
            self.tell(called);
        }
        for bell in self.bells.iter().filter(|bell| bell.is_on) {
            // If the channel is full, it is ringing already.
            let _ = bell.sender.try_send(());
        }
    }

    fn tell(&mut self, called: Called) {
        for (number, answer) in called {
            // The channel has room for the one answer. A delivery that stopped waiting has no sender any more.
            let _ = self.waiting.remove(&number).map(|waiting| waiting.try_send(answer));
        }
    }
}

#[cfg(test)]
mod tests;
