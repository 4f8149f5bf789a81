//! What this process knows of each receiver: a [`Receiver`] for each webhook that it has asked.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::domain::receiver::{
    Ailment, Ask, Attempt, Breaker, Ended, Hold, Moment, Receiver, Transition,
};

/// The most receivers that are remembered, so that a flood of webhooks can't fill memory: two
/// or three megabytes. Those that are forgotten for others count as healthy again.
const MOST: usize = 10_000;

/// The receivers. Shared by all threads.
#[derive(Debug)]
pub struct Receivers {
    /// One lock for all: it is held for some tens of nanoseconds, twice for a POST that takes a
    /// thousand times as long.
    known: Mutex<HashMap<Uuid, Receiver>>,
    /// Somebody waits for the first answer of a receiver, and one has come.
    answered: Condvar,
    waiting: AtomicUsize,
    breaker: Breaker,
    /// Moments count from here.
    start: Instant,
}

/// How many receivers are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// The last attempt failed or was slow, or one is slow right now.
    pub degraded: usize,
    /// The circuit breaker is open, or waits for what its probe finds.
    pub broken: usize,
}

impl Receivers {
    /// All are healthy until they show otherwise.
    #[must_use]
    pub fn new(breaker: Breaker) -> Self {
        Self {
            known: Mutex::default(),
            answered: Condvar::new(),
            waiting: AtomicUsize::new(0),
            breaker,
            start: Instant::now(),
        }
    }

    /// Asks for an attempt, which begins now; or within a tenth of a second, where the very first
    /// ones of this receiver are under way, since an answer decides.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn admit(
        &self,
        webhook: Uuid,
        ask: impl Into<Ask>,
    ) -> Result<(Attempt, Option<Transition>), Hold> {
        let ask = ask.into();
        let mut known = self.lock();
        loop {
            let now = self.now();
            if known.len() >= MOST && !known.contains_key(&webhook) {
                make_room(&mut known, now);
            }
            match known.entry(webhook).or_default().admit(ask, now) {
                Err(Hold::Unproven(wait)) => {
                    // By a hair more, so that it is over then.
                    let wait = wait + Duration::from_millis(1);
                    self.waiting.fetch_add(1, Ordering::Relaxed);
                    let waited = self.answered.wait_timeout(known, wait);
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    known = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                answer => return answer,
            }
        }
    }

    /// Takes note of how an attempt ended.
    pub fn end(&self, webhook: Uuid, attempt: Attempt, ended: Ended<'_>) -> Option<Transition> {
        let now = self.now();
        let mut known = self.lock();
        let receiver = known.get_mut(&webhook)?;
        let transition = receiver.end(attempt, ended, self.breaker, now);
        // A call of the kernel, so not for nobody. (The lock orders this with what it guards.)
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.answered.notify_all();
        }
        transition
    }

    /// An attempt was not made after all.
    pub fn give_back(&self, webhook: Uuid, attempt: Attempt) {
        if let Some(receiver) = self.lock().get_mut(&webhook) {
            receiver.give_back(attempt);
        }
    }

    /// The webhook is deleted or disabled, or its receiver is gone: nothing will come for it any
    /// more that could say that it is well.
    pub fn forget(&self, webhook: Uuid) {
        self.lock().remove(&webhook);
    }

    /// Counts them.
    #[must_use]
    pub fn count(&self) -> Count {
        let now = self.now();
        let mut count = Count::default();
        for receiver in self.lock().values() {
            count.degraded += usize::from(receiver.is_degraded(now));
            count.broken += usize::from(receiver.is_broken());
        }
        count
    }

    /// What is wrong with those that are degraded: the worst `most` of them, and how many there are
    /// in all.
    #[must_use]
    pub fn ailing(&self, most: usize) -> (Vec<(Uuid, Ailment)>, Count) {
        let now = self.now();
        let mut count = Count::default();
        let mut ailing: Vec<(Uuid, Ailment)> = {
            let known = self.lock();
            let of = |(webhook, receiver): (&Uuid, &Receiver)| {
                count.broken += usize::from(receiver.is_broken());
                Some((*webhook, receiver.ailment(now)?))
            };
            known.iter().filter_map(of).collect()
        };
        count.degraded = ailing.len();
        let badness = |(webhook, ailment): &(Uuid, Ailment)| {
            (ailment.condition, Reverse(ailment.lasted), *webhook)
        };
        ailing.sort_unstable_by_key(badness);
        ailing.truncate(most);
        (ailing, count)
    }

    fn now(&self) -> Moment {
        self.start.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Receiver>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what may be forgotten; and if that is nothing, some receivers that are not being asked:
/// enough of them that looking for them is not needed again soon.
fn make_room(known: &mut HashMap<Uuid, Receiver>, now: Moment) {
    known.retain(|_, receiver| !receiver.is_unremarkable(now));
    let mut surplus = (known.len() + MOST / 16).saturating_sub(MOST);
    known.retain(|_, receiver| {
        let stays = surplus == 0 || receiver.is_busy();
        surplus -= usize::from(!stays);
        stays
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::outcome::Reason;
    use crate::domain::receiver::{Condition, Place};

    const FAILED: Ended<'static> =
        Ended::Failed { event: "e", reason: Reason::Timeout, retry_after: None };

    fn receivers() -> Receivers {
        Receivers::new("5,30s,10m".parse().expect("a breaker"))
    }

    fn attempt(receivers: &Receivers, webhook: u128, ended: Ended<'_>) {
        let id = Uuid::from_u128(webhook);
        let (attempt, _) = receivers.admit(id, Place::new(0, 8, false)).expect("an attempt");
        receivers.end(id, attempt, ended);
    }

    #[test]
    fn receivers_are_counted_while_there_is_something_about_them() {
        let receivers = receivers();
        attempt(&receivers, 1, Ended::Delivered);
        assert_eq!(receivers.count(), Count::default());
        attempt(&receivers, 1, FAILED);
        attempt(&receivers, 2, FAILED);
        assert_eq!(receivers.count(), Count { degraded: 2, broken: 0 });
        attempt(&receivers, 1, Ended::Delivered);
        receivers.forget(Uuid::from_u128(2));
        assert_eq!(receivers.count(), Count::default());
    }

    #[test]
    fn of_those_that_ail_the_worst_are_shown_and_all_are_counted() {
        let receivers = receivers();
        let other = Ended::Failed { event: "f", reason: Reason::Dns, retry_after: None };
        for ended in [FAILED, FAILED, FAILED, FAILED, other] {
            attempt(&receivers, 7, ended);
        }
        for webhook in 1..5 {
            attempt(&receivers, webhook, FAILED);
        }
        let (shown, count) = receivers.ailing(3);
        assert_eq!(count, Count { degraded: 5, broken: 1 });
        assert_eq!(count, receivers.count());
        let conditions: Vec<_> = shown.iter().map(|(_, ailment)| ailment.condition).collect();
        assert_eq!(conditions, [Condition::Open, Condition::Failing, Condition::Failing]);
        let (webhook, worst) = shown[0];
        assert_eq!(webhook, Uuid::from_u128(7));
        assert_eq!((worst.failures, worst.reason), (5, Some(Reason::Dns)));
        assert_eq!(receivers.ailing(9).0.len(), 5);
    }

    #[test]
    fn whoever_waits_for_the_first_answer_goes_on_when_it_comes() {
        let receivers = receivers();
        let (id, place) = (Uuid::from_u128(1), Place::new(0, 4, true));
        let (first, _) = receivers.admit(id, place).expect("an attempt");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| receivers.admit(id, place).is_ok());
            receivers.end(id, first, Ended::Delivered);
            assert!(second.join().expect("no panic"));
        });
        // And where none comes, it is the bulkhead's.
        let id = Uuid::from_u128(2);
        let _ = receivers.admit(id, place).expect("an attempt");
        assert_eq!(receivers.admit(id, place), Err(Hold::Bulkhead));
    }

    #[test]
    fn memory_is_bounded_and_those_being_asked_are_kept() {
        let receivers = receivers();
        let asked = Uuid::from_u128(u128::MAX);
        let place = Place::new(0, 8, false);
        let (under_way, _) = receivers.admit(asked, place).expect("an attempt");
        for webhook in 0..MOST as u128 + 500 {
            attempt(&receivers, webhook, FAILED);
        }
        assert!(receivers.lock().len() <= MOST);
        assert!(receivers.lock().contains_key(&asked));
        receivers.end(asked, under_way, Ended::Delivered);
    }
}
