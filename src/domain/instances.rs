//! Several instances: which of them sends how much of what a webhook can take.
//!
//! A webhook's limits are what its owner has asked for, and hold for all instances together:
//!
//! - Each has an equal part, as long as there is one for each, and its own events, in whatever order they
//!   come.
//! - Otherwise one instance has all of it, the webhook's *sender*: where a limit is too small to be shared,
//!   and while the webhook has a backlog, since one instance consumes that, and would send a part only.
//!   Whatever the others get for it they put into its backlog.
//!
//! Each instance finds out by itself who that is, from who is alive: each webhook has its own order of the
//! instances, so that each is the sender of about as many, and few get another one when the instances
//! change (rendezvous hashing, Thaler & Ravishankar 1998). Where instances serve different queues, those
//! are the senders that come first and serve a queue that none before them does: nothing may wait for one
//! that does not consume it.

use std::collections::BTreeSet;
use std::time::Duration;

use uuid::Uuid;

use super::limits::Limits;

mod roll;

pub use roll::{InstanceRecord, Roll};

/// When all instances have heard that a webhook has a backlog: they are told at once, and look every second
/// where they can't hear it.
const HEARD: Duration = Duration::from_secs(3);

/// The instances that are alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instances {
    /// This one.
    me: Uuid,
    /// All of them, this one included.
    alive: Vec<Instance>,
    /// Whether all serve the same queues.
    are_alike: bool,
    /// How long a request may be under way.
    longest_request: Duration,
}

/// Who sends what a webhook can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentBy {
    /// Each instance sends a part, or all of it where there are no limits.
    Each,
    /// This one; perhaps with others that serve other queues. `for_now`: as long as it has a backlog.
    This {
        /// Whether that is the only reason.
        for_now: bool,
    },
    /// Others.
    Other,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Its own, from its start to its end.
    pub id: Uuid,
    /// The queues that it serves.
    pub queues: BTreeSet<String>,
}

impl Default for Instances {
    /// Only this one.
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
    /// Those that are alive, as `me` sees it, which is one of them.
    #[must_use]
    pub fn new(me: Uuid, alive: Vec<Instance>, longest_request: Duration) -> Self {
        let are_alike = alive.windows(2).all(|two| two[0].queues == two[1].queues);
        Self { me, alive, are_alike, longest_request }
    }

    /// Whether there are others beside this one.
    #[must_use]
    pub fn are_several(&self) -> bool {
        self.alive.len() > 1
    }

    /// What this instance may send of what a webhook can take; nothing, if others do. `in_backlog_for`: how
    /// long it has been known that the webhook has a backlog.
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
        // The others may not have heard of it yet, or still have requests under way.
        let Some(equal) = equal else { return Some(all) };
        let of = |since: Duration| if known_for >= since { all } else { equal };
        Some(Limits {
            max_in_flight: of(HEARD + self.longest_request).max_in_flight,
            rate: of(HEARD).rate,
        })
    }

    /// Who sends what a webhook can take.
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

    /// Those that come first and serve a queue that none before them does.
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

    /// Those that come before one in a webhook's order.
    fn before(&self, webhook: Uuid, id: Uuid) -> impl Iterator<Item = Uuid> {
        let own = place(webhook, id);
        self.alive.iter().map(|one| one.id).filter(move |other| place(webhook, *other) < own)
    }
}

/// Where an instance stands in a webhook's order: the same for all versions and on all machines.
fn place(webhook: Uuid, instance: Uuid) -> (u64, Uuid) {
    let ((a, b), (c, d)) = (webhook.as_u64_pair(), instance.as_u64_pair());
    let mixed = [b, c, d].into_iter().fold(mix(a), |mixed, part| mix(mixed ^ part));
    (mixed, instance)
}

/// Each bit of the result depends on each of the input (the finalizer of MurmurHash3).
fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests;
