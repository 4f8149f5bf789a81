//! Decides for the whole process which requests may be under way: the [`Intake`] behind a lock, the
//! waiting threads, and the clock.

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
use crate::domain::receiver::{AttemptEnd, Breaker, Transition};
use crate::domain::time::Moment;

mod conditions;
mod line;

pub use line::{InLine, Turn};

/// The most receivers that are remembered, so that a flood of webhooks can't fill memory: two or three
/// megabytes. Receivers that are forgotten for others count as unproven again.
const MOST: usize = 10_000;

/// Moments count from this long before the start, so that what was known of a receiver earlier has a
/// time too.
const BEFORE: Duration = Duration::from_secs(365 * 86_400);

/// The receivers, the capacity of each queue, and the contents of the backlogs. Shared by all threads.
#[derive(Debug)]
pub struct Receivers {
    /// One lock for everything: it is held for less than a microsecond, twice for a POST that takes a
    /// hundred times as long.
    state: Mutex<State>,
    /// Moments count from [`BEFORE`] this.
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
    /// The threads that wait to publish to a backlog, by the number of the entry. Each is woken for its
    /// own turn: hundreds may wait, and waking all of them at each turn would cost more than the turns.
    entering: HashMap<u64, Thread>,
    /// By queue: rings when a request has ended, while somebody listens.
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

    /// Asks for an attempt of a delivery that isn't in a backlog. It begins now, or waits if only the
    /// end of another request is missing. `is_paused`: its webhook gets nothing.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn ask(&self, ask: Ask, kind: DeliveryKind, is_paused: bool) -> Result<Turn, Refusal> {
        let mut state = self.lock();
        let (answer, called) = state.intake.ask(ask, kind, is_paused, self.now());
        state.tell(called);
        answer.map(|intent| state.answer(intent))
    }

    /// Asks for an attempt of a backlog's first delivery. `is_ours`: this process put it there.
    ///
    /// # Errors
    /// Why there is none now.
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

    /// Whether no earlier entry of the same backlog is left.
    #[must_use]
    pub fn is_next_to_enter(&self, entry: EntryTicket) -> bool {
        self.lock().intake.contents.is_next(entry)
    }

    /// A delivery was published to a backlog; or, if not `is_there`, doesn't go there after all.
    pub fn entered(&self, entry: EntryTicket, is_there: bool) {
        let mut state = self.lock();
        state.intake.contents.note_entered(entry, is_there);
        let next = state.intake.contents.next_entry(entry);
        if let Some(waits) = next.and_then(|number| state.entering.get(&number)) {
            waits.unpark();
        }
    }

    /// A delivery left a backlog without an attempt.
    pub fn left_backlog(&self, queue: usize, webhook: Uuid, is_ours: bool) {
        self.lock().intake.contents.note_left((queue, webhook), is_ours);
    }

    /// A backlog exists, and its contents are unknown.
    pub fn found_backlog(&self, queue: usize, webhook: Uuid) {
        self.lock().intake.contents.note_found((queue, webhook));
    }

    /// The number of the last entry of a backlog, for [`Receivers::is_backlog_emptied`].
    #[must_use]
    pub fn last_in_backlog(&self, queue: usize, webhook: Uuid) -> u64 {
        self.lock().intake.contents.last_entry((queue, webhook))
    }

    /// The broker says that a backlog is empty. `last` is [`Receivers::last_in_backlog`] when the broker
    /// was asked. Returns false if another delivery has entered since, or is about to.
    pub fn is_backlog_emptied(&self, queue: usize, webhook: Uuid, last: u64) -> bool {
        self.lock().intake.contents.note_empty((queue, webhook), last)
    }

    /// Whether a backlog may hold something.
    #[must_use]
    pub fn is_backlog_in_use(&self, queue: usize, webhook: Uuid) -> bool {
        self.lock().intake.contents.is_in_use((queue, webhook))
    }

    /// The bell that rings when a request of any queue has ended, while [`Receivers::listen`] says so.
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
    pub fn has_backlog(&self, webhook: Uuid) {
        let mut state = self.lock();
        let now = self.now();
        state.intake.pace.add_backlog(webhook, now);
    }

    /// See [`Pace::set_backlogs`].
    pub fn have_backlogs(&self, webhooks: impl Iterator<Item = Uuid>) {
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

    /// An attempt wasn't made after all.
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

    /// Read under the lock, so that time doesn't go back between two holders.
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

    /// A request has ended: calls the waiting deliveries, and rings for the backlogs.
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
            // The channel has room for the one answer, and whoever left has removed its sender before.
            let _ = self.waiting.remove(&number).map(|waiting| waiting.try_send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::line::PATIENCE;
    use super::*;
    use std::thread;

    use crate::domain::outcome::Reason;
    use crate::domain::pace::ReceiverCounts;
    use crate::domain::receiver::{Class, Condition};
    use crate::domain::webhook::Group;
    use crate::shutdown::{self, Shutdown};

    fn receivers(capacity: u16) -> Receivers {
        Receivers::new([capacity], "5,1s,5m".parse().expect("a breaker"), || 0.5)
    }

    fn by(webhook: u128) -> Ask {
        let (webhook, group) = (Uuid::from_u128(webhook), Group::of(&webhook.to_string()));
        Ask { queue: 0, webhook, group, limits: Limits::default(), is_head: false }
    }

    fn admit(
        receivers: &Receivers,
        shutdown: &Shutdown,
        webhook: u128,
    ) -> Result<Attempt, Refusal> {
        let limit = Duration::from_secs(600);
        receivers.wait(receivers.ask(by(webhook), DeliveryKind::Fresh, false)?, limit, shutdown)
    }

    fn prove(receivers: &Receivers, shutdown: &Shutdown, webhook: u128) {
        let attempt = admit(receivers, shutdown, webhook).expect("an attempt");
        receivers.end(attempt, AttemptEnd::Delivered);
    }

    /// Two receivers that have answered; the first one has the only place.
    fn with_one_place(shutdown: &Shutdown) -> (Receivers, Attempt) {
        let receivers = receivers(1);
        prove(&receivers, shutdown, 1);
        prove(&receivers, shutdown, 2);
        let first = admit(&receivers, shutdown, 1).expect("the only place");
        (receivers, first)
    }

    #[test]
    fn whoever_waits_for_a_place_begins_when_there_is_one() {
        let (_trigger, shutdown) = shutdown::channel();
        let (receivers, first) = with_one_place(&shutdown);
        thread::scope(|scope| {
            let second = scope.spawn(|| admit(&receivers, &shutdown, 2));
            while receivers.lock().waiting.is_empty() {
                thread::yield_now();
            }
            receivers.end(first, AttemptEnd::Delivered);
            let second = second.join().expect("no panic").expect("the place");
            assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 1));
            receivers.give_back(second);
        });
        assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 0));
    }

    #[test]
    fn what_waits_too_long_for_another_request_goes_to_the_backlog_and_the_next_behind_it() {
        let (_trigger, shutdown) = shutdown::channel();
        let receivers = receivers(2);
        prove(&receivers, &shutdown, 1);
        let first = admit(&receivers, &shutdown, 1).expect("its share");
        let entry_of = |refusal: Refusal| refusal.entry.expect("a place in the backlog");
        let second = admit(&receivers, &shutdown, 1).expect_err("it has its share");
        assert_eq!(second.hold, Hold::Share);
        receivers.end(first, AttemptEnd::Delivered);
        let third = admit(&receivers, &shutdown, 1).expect_err("others come first");
        assert_eq!(third.hold, Hold::Share, "what holds up those before it");
        thread::scope(|scope| {
            let waits = scope.spawn(|| receivers.wait_to_enter(entry_of(third)));
            while receivers.lock().entering.is_empty() {
                thread::yield_now();
            }
            receivers.wait_to_enter(entry_of(second));
            receivers.entered(entry_of(second), true);
            waits.join().expect("its turn");
        });
        receivers.entered(entry_of(third), false);
        assert!(receivers.is_backlog_in_use(0, Uuid::from_u128(1)));
        let last = receivers.last_in_backlog(0, Uuid::from_u128(1));
        assert!(receivers.is_backlog_emptied(0, Uuid::from_u128(1), last));
        let again = admit(&receivers, &shutdown, 1).expect("nothing is before it");
        receivers.give_back(again);
    }

    #[test]
    fn the_bell_rings_when_a_request_has_ended_while_somebody_listens() {
        let (_trigger, shutdown) = shutdown::channel();
        let receivers = receivers(2);
        let bell = receivers.bell(0);
        prove(&receivers, &shutdown, 1);
        assert!(bell.try_recv().is_err());
        receivers.listen(0, true);
        prove(&receivers, &shutdown, 1);
        prove(&receivers, &shutdown, 1);
        assert!(bell.try_recv().is_ok() && bell.try_recv().is_err());
    }

    #[test]
    fn shutdown_ends_the_wait() {
        let (trigger, shutdown) = shutdown::channel();
        let (receivers, first) = with_one_place(&shutdown);
        thread::scope(|scope| {
            let second = scope.spawn(|| admit(&receivers, &shutdown, 2));
            while receivers.lock().waiting.is_empty() {
                thread::yield_now();
            }
            trigger.fire();
            let refusal = Refusal { hold: Hold::Full, entry: None };
            assert_eq!(second.join().expect("no panic"), Err(refusal));
        });
        receivers.end(first, AttemptEnd::Delivered);
        assert!(receivers.lock().waiting.is_empty() && !receivers.lock().intake.has_waiting());
    }

    #[test]
    fn of_several_that_wait_whichever_is_called_first_is_told_and_none_lies_about() {
        let (trigger, shutdown) = shutdown::channel();
        let receivers = receivers(1);
        for webhook in 1..=3 {
            prove(&receivers, &shutdown, webhook);
        }
        let first = admit(&receivers, &shutdown, 1).expect("the only place");
        let line = |webhook| match receivers.ask(by(webhook), DeliveryKind::Fresh, false) {
            Ok(Turn::Waits(in_line)) => (webhook, in_line),
            other => panic!("{other:?}"),
        };
        let mut lines = vec![line(2), line(3)];
        let patience = Duration::from_secs(60);
        let mut next = |limit| receivers.wait_for_any(&mut lines, limit, patience, &shutdown);
        let soon = Duration::from_secs(30);
        assert!(next(PATIENCE * 2).is_none(), "every place is taken");
        receivers.end(first, AttemptEnd::Delivered);
        // Capacity released by one goes to the other, whatever their order in the list.
        let (one, attempt) = next(soon).expect("it is called");
        receivers.give_back(attempt.expect("the place"));
        let (other, attempt) = next(soon).expect("it is called");
        assert_eq!(one + other, 2 + 3);
        let held = attempt.expect("the place");

        lines = vec![line(if other == 2 { 3 } else { 2 })];
        trigger.fire();
        let refused = receivers.wait_for_any(&mut lines, soon, patience, &shutdown);
        let (_, refused) = refused.expect("shutdown");
        assert_eq!(refused, Err(Refusal { hold: Hold::Full, entry: None }));
        assert!(lines.is_empty() && receivers.lock().waiting.is_empty());
        receivers.give_back(held);
    }

    #[test]
    fn of_those_that_ail_the_worst_are_shown_and_all_are_counted() {
        let (_trigger, shutdown) = shutdown::channel();
        let receivers = receivers(64);
        let fail = |webhook: u128, retry_after: Option<u64>| {
            let attempt = admit(&receivers, &shutdown, webhook).expect("an attempt");
            let retry_after = retry_after.map(Duration::from_secs);
            let (event, reason, is_overload) = ("e", Reason::Dns, false);
            let status = None;
            let ended = AttemptEnd::Failed { event, reason, status, is_overload, retry_after };
            receivers.end(attempt, ended);
        };
        for webhook in 1..5 {
            fail(webhook, None);
        }
        fail(7, Some(60));
        let (shown, count) = receivers.ailing(3);
        assert_eq!(count, ReceiverCounts { known: 5, ailing: 5, slow: 0, broken: 0 });
        assert_eq!(count, receivers.count());
        let conditions: Vec<_> = shown.iter().map(|(_, ailment)| ailment.condition).collect();
        assert_eq!(conditions, [Condition::StayAway, Condition::Failing, Condition::Failing]);
        assert_eq!(shown[0].0, Uuid::from_u128(7));
        assert_eq!(receivers.ailing(9).0.len(), 5);
    }
}
