//! Who may have a request under way, for the whole process: the [`Pace`] behind a lock, the threads
//! that wait for a place, and the clock.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use uuid::Uuid;

use crate::domain::pace::{Admission, Ask, Attempt, Count, Hold, Pace, Ticket};
use crate::domain::receiver::{Ailment, Breaker, Class, Ended, Moment, Transition};
use crate::shutdown::Shutdown;

/// The most receivers that are remembered, so that a flood of webhooks can't fill memory: two
/// or three megabytes. Those that are forgotten for others count as unproven again.
const MOST: usize = 10_000;

/// How long a delivery of the retry lane waits in its consumer for what is under way. New events wait
/// in no such way: it would be their neighbours' time.
const PATIENCE: Duration = Duration::from_millis(100);

/// The receivers, and the capacity of each queue. Shared by all threads.
#[derive(Debug)]
pub struct Receivers {
    /// One lock for all: it is held for less than a microsecond, twice for a POST that takes a
    /// hundred times as long.
    state: Mutex<State>,
    /// A request has ended, and somebody waits to ask again.
    ended: Condvar,
    /// Moments count from here.
    start: Instant,
    /// Random numbers from 0 to 1, for the pauses of circuit breakers.
    jitter: fn() -> f64,
}

/// What came of a question that was not refused.
#[derive(Debug)]
#[must_use]
pub enum Answer {
    /// It begins now.
    Begins(Attempt),
    /// It begins when it is called.
    Waits(InLine),
}

/// Who waits for a place.
#[derive(Debug)]
pub struct InLine {
    ticket: Ticket,
    called: Receiver<Result<Attempt, Hold>>,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Where those who wait for a place hear of it.
    waiting: HashMap<Ticket, Sender<Result<Attempt, Hold>>>,
    /// How many wait to ask again.
    patient: usize,
}

impl Receivers {
    /// With the capacity of each queue, and all receivers unproven.
    #[must_use]
    pub fn new(
        capacities: impl IntoIterator<Item = u16>,
        breaker: Breaker,
        jitter: fn() -> f64,
    ) -> Self {
        let pace = Pace::new(capacities.into_iter().map(usize::from), breaker, MOST);
        let state = Mutex::new(State { pace, waiting: HashMap::new(), patient: 0 });
        Self { state, ended: Condvar::new(), start: Instant::now(), jitter }
    }

    /// Asks for an attempt, which begins now; or as soon as there is a place, where that is all that
    /// is missing.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn ask(&self, ask: Ask) -> Result<Answer, Hold> {
        self.lock().ask(ask, self.now())
    }

    /// Asks again, for a moment, where it is only what is under way that keeps it from beginning: the
    /// way round by a wait queue takes a second at least.
    ///
    /// # Errors
    /// Why there is none even then.
    pub fn ask_patiently(&self, ask: Ask) -> Result<Answer, Hold> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.lock();
        loop {
            let hold = match state.ask(ask, self.now()) {
                Err(hold) if hold.may_end_soon() => hold,
                answer => return answer,
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(hold);
            }
            state.patient += 1;
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.patient -= 1;
        }
    }

    /// Waits for a place, if that is what it takes: for one REQUEST_TIMEOUT at most, since none is
    /// held for longer.
    ///
    /// # Errors
    /// What has come in its way meanwhile; [`Hold::Full`], if it was shutdown.
    pub fn wait(&self, answer: Answer, shutdown: &Shutdown) -> Result<Attempt, Hold> {
        let InLine { ticket, called } = match answer {
            Answer::Begins(attempt) => return Ok(attempt),
            Answer::Waits(in_line) => in_line,
        };
        select! {
            recv(called) -> answer => answer.unwrap_or(Err(Hold::Full)),
            recv(shutdown.receiver()) -> _ => {
                let mut state = self.lock();
                state.waiting.remove(&ticket);
                state.pace.leave(ticket);
                drop(state);
                // Perhaps it was called just now.
                called.try_recv().unwrap_or(Err(Hold::Full))
            }
        }
    }

    /// Takes note of how an attempt ended.
    pub fn end(&self, attempt: Attempt, ended: Ended<'_>) -> Option<Transition> {
        let jitter = match ended {
            Ended::Delivered => 0.0,
            Ended::Failed { .. } => (self.jitter)(),
        };
        let mut state = self.lock();
        let now = self.now();
        let transition = state.pace.end(attempt, ended, jitter, now);
        state.call(now);
        self.tell_patient(&state);
        transition
    }

    /// An attempt was not made after all.
    pub fn give_back(&self, attempt: Attempt) {
        let mut state = self.lock();
        state.pace.give_back(attempt);
        state.call(self.now());
        self.tell_patient(&state);
    }

    /// A call of the kernel, so not for nobody.
    fn tell_patient(&self, state: &State) {
        if state.patient > 0 {
            self.ended.notify_all();
        }
    }

    /// The webhook is deleted or disabled, or its receiver is gone: nothing will come for it any
    /// more that could say that it is well.
    pub fn forget(&self, webhook: Uuid) {
        self.lock().pace.forget(webhook);
    }

    /// Whether an attempt at it is usually over before another thread could have begun it.
    #[must_use]
    pub fn is_near(&self, webhook: Uuid) -> bool {
        self.lock().pace.receiver(webhook).is_some_and(|receiver| receiver.is_near())
    }

    /// Counts them.
    #[must_use]
    pub fn count(&self) -> Count {
        self.lock().pace.count(self.now())
    }

    /// How many requests are under way that use the capacity of the queue with this number.
    #[must_use]
    pub fn in_use(&self, queue: usize) -> [(Class, usize); 3] {
        self.lock().pace.in_use(queue, self.now())
    }

    /// What is wrong with those that have an ailment: the worst `most` of them, and how many there
    /// are in all.
    #[must_use]
    pub fn ailing(&self, most: usize) -> (Vec<(Uuid, Ailment)>, Count) {
        let (mut ailing, count) = {
            let mut state = self.lock();
            let now = self.now();
            (state.pace.ailing(now).collect::<Vec<_>>(), state.pace.count(now))
        };
        let badness = |(webhook, ailment): &(Uuid, Ailment)| {
            (ailment.condition, Reverse(ailment.lasted), *webhook)
        };
        ailing.sort_unstable_by_key(badness);
        ailing.truncate(most);
        (ailing, count)
    }

    /// Asked for under the lock, so that time does not go back between two who have it.
    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn ask(&mut self, ask: Ask, now: Moment) -> Result<Answer, Hold> {
        match self.pace.ask(ask, now)? {
            Admission::Begins(attempt) => Ok(Answer::Begins(attempt)),
            Admission::Waits(ticket) => {
                let (sender, called) = bounded(1);
                self.waiting.insert(ticket, sender);
                Ok(Answer::Waits(InLine { ticket, called }))
            }
        }
    }

    /// Calls those who wait, as far as there are places.
    fn call(&mut self, now: Moment) {
        if !self.pace.has_waiting() {
            return;
        }
        while let Some((ticket, answer)) = self.pace.call_next(now) {
            let waiting = self.waiting.remove(&ticket);
            // It has room for the one answer, and whoever left has taken its sender away before.
            let _ = waiting.map(|waiting| waiting.try_send(answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    use crate::domain::limits::Limits;
    use crate::domain::outcome::Reason;
    use crate::domain::receiver::Condition;
    use crate::domain::webhook::Group;
    use crate::shutdown;

    fn receivers(capacity: u16) -> Receivers {
        Receivers::new([capacity], "5,1s,5m".parse().expect("a breaker"), || 0.5)
    }

    fn by(webhook: u128) -> Ask {
        let (webhook, group) = (Uuid::from_u128(webhook), Group::of(&webhook.to_string()));
        Ask { queue: 0, webhook, group, limits: Limits::default(), turn: None }
    }

    fn admit(receivers: &Receivers, shutdown: &Shutdown, webhook: u128) -> Result<Attempt, Hold> {
        receivers.wait(receivers.ask(by(webhook))?, shutdown)
    }

    fn prove(receivers: &Receivers, shutdown: &Shutdown, webhook: u128) {
        let attempt = admit(receivers, shutdown, webhook).expect("an attempt");
        receivers.end(attempt, Ended::Delivered);
    }

    /// Two receivers that have answered, and the first of them has the only place.
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
            receivers.end(first, Ended::Delivered);
            let second = second.join().expect("no panic").expect("the place");
            assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 1));
            receivers.give_back(second);
        });
        assert_eq!(receivers.in_use(0)[0], (Class::Prompt, 0));
    }

    #[test]
    fn whoever_is_patient_begins_when_another_request_ends_and_not_after_its_patience() {
        let (_trigger, shutdown) = shutdown::channel();
        let receivers = receivers(2);
        prove(&receivers, &shutdown, 1);
        let first = admit(&receivers, &shutdown, 1).expect("its share");
        assert!(matches!(receivers.ask_patiently(by(1)), Err(Hold::Share)));
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                // Long enough for the other to see it wait, however busy the machine is.
                std::iter::repeat_with(|| receivers.ask_patiently(by(1))).find_map(Result::ok)
            });
            while receivers.lock().patient == 0 {
                thread::yield_now();
            }
            receivers.end(first, Ended::Delivered);
            let second = second.join().expect("no panic").expect("it begins");
            receivers.give_back(receivers.wait(second, &shutdown).expect("it has begun"));
        });
        assert_eq!(receivers.lock().patient, 0);
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
            assert_eq!(second.join().expect("no panic"), Err(Hold::Full));
        });
        receivers.end(first, Ended::Delivered);
        assert!(receivers.lock().waiting.is_empty() && !receivers.lock().pace.has_waiting());
    }

    #[test]
    fn of_those_that_ail_the_worst_are_shown_and_all_are_counted() {
        let (_trigger, shutdown) = shutdown::channel();
        let receivers = receivers(64);
        let fail = |webhook: u128, retry_after: Option<u64>| {
            let attempt = admit(&receivers, &shutdown, webhook).expect("an attempt");
            let retry_after = retry_after.map(Duration::from_secs);
            let (event, reason, is_overload) = ("e", Reason::Dns, false);
            receivers.end(attempt, Ended::Failed { event, reason, is_overload, retry_after });
        };
        for webhook in 1..5 {
            fail(webhook, None);
        }
        fail(7, Some(60));
        let (shown, count) = receivers.ailing(3);
        assert_eq!(count, Count { ailing: 5, slow: 0, broken: 0 });
        assert_eq!(count, receivers.count());
        let conditions: Vec<_> = shown.iter().map(|(_, ailment)| ailment.condition).collect();
        assert_eq!(conditions, [Condition::StayAway, Condition::Failing, Condition::Failing]);
        assert_eq!(shown[0].0, Uuid::from_u128(7));
        assert_eq!(receivers.ailing(9).0.len(), 5);
    }
}
