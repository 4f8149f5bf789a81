//! What this process knows of each receiver: a [`Receiver`] for each webhook that is being asked or
//! has something about it worth remembering.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::domain::receiver::{Attempt, Breaker, Ended, Hold, Moment, Place, Receiver, Transition};

/// The most receivers that are remembered, so that a flood of failing webhooks can't fill memory:
/// some megabytes. Of more than that, those that fit count as healthy each time.
const MOST: usize = 10_000;

/// The receivers. Shared by all threads.
#[derive(Debug)]
pub struct Receivers {
    /// One lock for all: it is held for some tens of nanoseconds, twice for a POST that takes a
    /// thousand times as long.
    known: Mutex<HashMap<Uuid, Receiver>>,
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
        Self { known: Mutex::default(), breaker, start: Instant::now() }
    }

    /// Asks for an attempt, which begins now.
    ///
    /// # Errors
    /// Why there is none now.
    pub fn admit(
        &self,
        webhook: Uuid,
        place: Place,
    ) -> Result<(Attempt, Option<Transition>), Hold> {
        let now = self.now();
        let mut known = self.lock();
        if known.len() >= MOST && !known.contains_key(&webhook) {
            make_room(&mut known, now);
        }
        known.entry(webhook).or_default().admit(place, now)
    }

    /// Takes note of how an attempt ended.
    pub fn end(&self, webhook: Uuid, attempt: Attempt, ended: Ended<'_>) -> Option<Transition> {
        let now = self.now();
        let mut known = self.lock();
        let receiver = known.get_mut(&webhook)?;
        let transition = receiver.end(attempt, ended, self.breaker, now);
        if receiver.is_unremarkable(now) {
            known.remove(&webhook);
        }
        transition
    }

    /// An attempt was not made after all.
    pub fn give_back(&self, webhook: Uuid, attempt: Attempt) {
        let now = self.now();
        let mut known = self.lock();
        if let Some(receiver) = known.get_mut(&webhook) {
            receiver.give_back(attempt);
            if receiver.is_unremarkable(now) {
                known.remove(&webhook);
            }
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

    const FAILED: Ended<'static> = Ended::Failed { event: "e", retry_after: None };

    fn receivers() -> Receivers {
        Receivers::new("5,30s,10m".parse().expect("a breaker"))
    }

    fn attempt(receivers: &Receivers, webhook: u128, ended: Ended<'_>) {
        let id = Uuid::from_u128(webhook);
        let (attempt, _) = receivers.admit(id, Place::new(0, 8, false)).expect("an attempt");
        receivers.end(id, attempt, ended);
    }

    #[test]
    fn a_receiver_is_remembered_while_there_is_something_about_it() {
        let receivers = receivers();
        attempt(&receivers, 1, Ended::Delivered);
        assert!(receivers.lock().is_empty());
        attempt(&receivers, 1, FAILED);
        attempt(&receivers, 2, FAILED);
        assert_eq!(receivers.count(), Count { degraded: 2, broken: 0 });
        attempt(&receivers, 1, Ended::Delivered);
        receivers.forget(Uuid::from_u128(2));
        assert_eq!(receivers.count(), Count::default());
        assert!(receivers.lock().is_empty());
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
        assert!(!receivers.lock().contains_key(&asked));
    }
}
