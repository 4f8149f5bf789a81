//! How several instances share the limits of a webhook.
//!
//! The limits are set by the webhook's owner, and hold for all instances together:
//!
//! - If the limits are large enough, each instance has an equal part and sends its own events, in any
//!   order.
//! - Otherwise one instance, the webhook's *sender*, has all of the limits. This applies if a limit is
//!   too small to be shared, and while the webhook has a backlog: only one instance consumes a backlog,
//!   and with part of the limits it would be too slow. The other instances put their events for this
//!   webhook into its backlog.
//!
//! Each instance computes the sender by itself from the instances that are alive. Each webhook has its
//! own order of the instances. So each instance is the sender of about equally many webhooks, and when
//! the instances change, few webhooks get another sender (rendezvous hashing, Thaler & Ravishankar
//! 1998). If instances serve different queues, a webhook has several senders: each instance in its order
//! that serves a queue which no earlier one serves. So no queue waits for an instance that doesn't
//! consume it.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::limits::Limits;

mod roll;

pub use roll::{InstanceRecord, Roll};

/// After this time all instances know that a webhook has a backlog: PostgreSQL notifies them at once, and
/// they check every second if notifications don't arrive.
const HEARD: Duration = Duration::from_secs(3);

/// The instances that are alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instances {
    /// The id of this instance.
    me: Uuid,
    /// All instances, including this one.
    alive: Vec<Instance>,
    /// Whether all instances serve the same queues.
    are_alike: bool,
    /// How long a request may be in flight.
    longest_request: Duration,
}

/// Who sends to a webhook that has limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentBy {
    /// Each instance sends, within its part of the limits if there are any.
    Each,
    /// This instance sends, perhaps with others that serve other queues.
    This {
        /// Whether it is the sender only while the webhook has a backlog.
        for_now: bool,
    },
    /// Only other instances send.
    Other,
}

/// An instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The id of the instance, which is new at each start.
    pub id: Uuid,
    /// The queues that it serves, each with its broker.
    pub queues: BTreeSet<String>,
}

impl Default for Instances {
    /// This instance alone.
    fn default() -> Self {
        Self {
            me: Uuid::nil(),
            alive: Vec::new(),
            are_alike: true,
            longest_request: Duration::ZERO,
        }
    }
}

impl Instances {
    /// The instances that are alive, including `me`.
    #[must_use]
    pub fn new(me: Uuid, alive: Vec<Instance>, longest_request: Duration) -> Self {
        let are_alike = alive.windows(2).all(|two| two[0].queues == two[1].queues);
        Self { me, alive, are_alike, longest_request }
    }

    /// Whether there are other instances.
    #[must_use]
    pub fn are_several(&self) -> bool {
        self.alive.len() > 1
    }

    /// This instance's part of a webhook's limits; `None` if only other instances send to the webhook.
    /// `in_backlog_for` is for how long this instance has known that the webhook has a backlog.
    #[must_use]
    pub fn share(
        &self,
        webhook: Uuid,
        limits: Limits,
        in_backlog_for: Option<Duration>,
    ) -> Option<Limits> {
        if !self.are_several() || limits.is_none() {
            return Some(limits);
        }
        let count = self.alive.len();
        let equal = limits
            .suffice_for(count)
            .then(|| limits.part(self.before(webhook, self.me).count(), count));
        let Some(known_for) = in_backlog_for else {
            return equal.or_else(|| self.share_of_sender(webhook, limits));
        };
        let all = self.share_of_sender(webhook, limits)?;
        // Other instances may not know of the backlog yet, or still have requests in flight.
        let Some(equal) = equal else { return Some(all) };
        let of = |since: Duration| if known_for >= since { all } else { equal };
        Some(Limits {
            max_in_flight: of(HEARD + self.longest_request).max_in_flight,
            rate: of(HEARD).rate,
        })
    }

    /// Which instances send to a webhook with these limits.
    #[must_use]
    pub fn sent_by(&self, webhook: Uuid, limits: Limits, has_backlog: bool) -> SentBy {
        let is_alone = !self.are_several() || limits.is_none();
        let can_be_shared = limits.suffice_for(self.alive.len());
        if is_alone || can_be_shared && !has_backlog {
            SentBy::Each
        } else if self.share_of_sender(webhook, limits).is_some() {
            SentBy::This { for_now: can_be_shared }
        } else {
            SentBy::Other
        }
    }

    fn share_of_sender(&self, webhook: Uuid, limits: Limits) -> Option<Limits> {
        if self.are_alike {
            return self.before(webhook, self.me).next().is_none().then_some(limits);
        }
        let senders = self.senders(webhook);
        let number = senders.iter().position(|id| *id == self.me)?;
        Some(limits.part(number, senders.len()))
    }

    /// The instances that serve a queue which no earlier instance in the webhook's order serves.
    fn senders(&self, webhook: Uuid) -> Vec<Uuid> {
        let mut ordered: Vec<&Instance> = self.alive.iter().collect();
        ordered.sort_unstable_by_key(|one| place(webhook, one.id));
        let mut served: BTreeSet<&String> = BTreeSet::new();
        let mut senders = Vec::new();
        for one in ordered {
            let before = served.len();
            served.extend(&one.queues);
            if served.len() > before {
                senders.push(one.id);
            }
        }
        senders
    }

    /// The instances before `id` in a webhook's order.
    fn before(&self, webhook: Uuid, id: Uuid) -> impl Iterator<Item = Uuid> {
        let own = place(webhook, id);
        self.alive.iter().map(|one| one.id).filter(move |other| place(webhook, *other) < own)
    }
}

/// An instance's place in a webhook's order. It is the same in all versions and on all machines.
fn place(webhook: Uuid, instance: Uuid) -> (u64, Uuid) {
    let ((a, b), (c, d)) = (webhook.as_u64_pair(), instance.as_u64_pair());
    let mixed = [b, c, d].into_iter().fold(mix(a), |mixed, part| mix(mixed ^ part));
    (mixed, instance)
}

/// Mixes the bits, so that each bit of the result depends on each bit of the input (the finalizer of
/// MurmurHash3).
fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests;
