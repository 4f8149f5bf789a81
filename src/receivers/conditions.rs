//! The conditions of receivers, for metrics, the status page and notices.

use std::cmp::Reverse;
use std::time::Duration;

use uuid::Uuid;

use super::Receivers;
use crate::domain::pace::ReceiverCounts;
use crate::domain::receiver::{Ailment, Class, Outage};
use crate::domain::time::Moment;

impl Receivers {
    /// Whether an attempt usually ends before another thread could begin it.
    #[must_use]
    pub fn is_near(&self, webhook: Uuid) -> bool {
        self.lock().intake.pace.receiver(webhook).is_some_and(|receiver| receiver.is_near())
    }

    /// Its class, if it is known.
    #[must_use]
    pub fn class(&self, webhook: Uuid) -> Option<Class> {
        self.lock().intake.pace.receiver(webhook).map(|receiver| receiver.class())
    }

    /// Whether its circuit breaker is open or half-open.
    #[must_use]
    pub fn is_broken(&self, webhook: Uuid) -> bool {
        self.lock().intake.pace.receiver(webhook).is_some_and(|receiver| receiver.is_broken())
    }

    /// The number of receivers in each state.
    #[must_use]
    pub fn count(&self) -> ReceiverCounts {
        self.lock().intake.pace.count(self.now())
    }

    /// How many requests in flight use the capacity of this queue, by class of their receivers.
    #[must_use]
    pub fn in_use(&self, queue: usize) -> [(Class, usize); 3] {
        self.lock().intake.pace.in_use(queue, self.now())
    }

    /// The worst `most` ailments, and the number of receivers in each state.
    #[must_use]
    pub fn ailing(&self, most: usize) -> (Vec<(Uuid, Ailment)>, ReceiverCounts) {
        let (mut ailing, count) = {
            let mut state = self.lock();
            let now = self.now();
            (state.intake.pace.ailments(now).collect::<Vec<_>>(), state.intake.pace.count(now))
        };
        let badness = |(webhook, ailment): &(Uuid, Ailment)| {
            (ailment.condition, Reverse(ailment.lasted), *webhook)
        };
        ailing.sort_unstable_by_key(badness);
        ailing.truncate(most);
        (ailing, count)
    }

    /// The outage of each receiver that is failing, and the time of this answer.
    #[must_use]
    pub fn outages(&self) -> (Vec<(Uuid, Outage)>, Moment) {
        let state = self.lock();
        (state.intake.pace.outages().collect(), self.now())
    }

    /// How long ago the last success of each of these webhooks was, if this process knows of one.
    #[must_use]
    pub fn successes(&self, webhooks: impl Iterator<Item = Uuid>) -> Vec<(Uuid, Duration)> {
        let state = self.lock();
        let now = self.now();
        let success = |webhook| {
            let at = state.intake.pace.receiver(webhook)?.succeeded_at()?;
            Some((webhook, now.saturating_sub(at)))
        };
        webhooks.filter_map(success).collect()
    }

    /// The receivers that are remembered.
    #[must_use]
    pub fn known(&self) -> Vec<Uuid> {
        self.lock().intake.pace.known().collect()
    }

    /// The class of each of these receivers, and its ailment if it has one; the worst come first.
    #[must_use]
    pub fn condition_of(&self, webhooks: &[Uuid]) -> Vec<(Uuid, Class, Option<Ailment>)> {
        let mut found: Vec<_> = {
            let state = self.lock();
            let (pace, now) = (&state.intake.pace, self.now());
            let of = |webhook: &Uuid| {
                let receiver = pace.receiver(*webhook)?;
                Some((*webhook, receiver.class(), receiver.ailment(now)))
            };
            webhooks.iter().filter_map(of).collect()
        };
        found.sort_unstable_by_key(|(webhook, _, ailment)| {
            let badness = ailment.map(|it| (it.condition, Reverse(it.lasted)));
            (badness.is_none(), badness, *webhook)
        });
        found
    }
}
