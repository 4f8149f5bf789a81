//! What happened in a run: everything that the ledger needs.

use std::time::Duration;

use super::{
    bound::QUEUES,
    cast::{Kind, Webhook},
    plan::Fault,
};

/// A time, since the run began.
pub(super) type Moment = Duration;

/// Everything that happened.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By number.
    pub(super) events: Vec<Published>,
    /// In the order of arrival.
    pub(super) requests: Vec<Request>,
    pub(super) dead: Vec<DeadLetter>,
    pub(super) strikes: Vec<Strike>,
    pub(super) pauses: Vec<Pause>,
    pub(super) departures: Vec<Departure>,
    /// How many deliveries may have been deleted with their queue.
    pub(super) deleted: usize,
}

impl History {
    /// The longest time, between these moments, during which nothing was delivered from one of the queues.
    pub(super) fn longest_gap(&self, from: Moment, to: Moment) -> Duration {
        let gap = |queue: usize| {
            let of_queue = |request: &&Request| {
                request.webhook == Webhook::HealthyA
                    && request.accepted
                    && self.events[request.number].queue == queue
            };
            let mut requests: Vec<_> =
                self.requests.iter().filter(of_queue).map(|request| request.at).collect();
            requests.sort_unstable();
            let pairs = requests.windows(2).filter(|pair| pair[1] >= from && pair[0] <= to);
            pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        (0..QUEUES).map(gap).max().unwrap_or_default()
    }

    /// The gaps that were too long, as text.
    pub(super) fn too_long_gaps(&self) -> Vec<String> {
        let too_long = |strike: &Strike| {
            let most = strike.fault.longest_gap()?;
            let gap = self.longest_gap(strike.struck, strike.recovered);
            let (name, struck) = (strike.fault.name(), strike.struck);
            (gap > most).then(|| {
                format!("nothing was delivered from a queue for {gap:.1?} at {struck:.1?}: {name}")
            })
        };
        self.strikes.iter().filter_map(too_long).collect()
    }
}

/// An event that was published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) kind: Kind,
    /// The queue that it was published to.
    pub(super) queue: usize,
    pub(super) at: Moment,
    /// Whether the broker confirmed it. Otherwise the broker may have it or not: nothing is promised about
    /// it, and it isn't published again.
    pub(super) promised: bool,
}

/// A request that a receiver got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) number: usize,
    pub(super) webhook: Webhook,
    pub(super) at: Moment,
    /// Whether it was answered 200.
    pub(super) accepted: bool,
}

/// A dead letter that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadLetter {
    pub(super) number: usize,
    pub(super) webhook: Webhook,
}

/// A time during which [`Webhook::Paused`] was paused, and every notifier knew that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pause {
    pub(super) from: Moment,
    pub(super) to: Moment,
}

/// A webhook's deletion, after which it was registered again with another id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Departure {
    pub(super) webhook: Webhook,
    /// The number of the first event that its receiver had not accepted before.
    pub(super) from: usize,
    /// The number of the first event that goes to the new webhook for certain.
    pub(super) to: usize,
}

impl Departure {
    /// Whether the delivery may have been dropped with its webhook.
    pub(super) fn drops(&self, number: usize, webhook: Webhook) -> bool {
        self.webhook == webhook && (self.from..self.to).contains(&number)
    }
}

/// A fault that struck.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) fault: Fault,
    /// How often the connections were cut.
    pub(super) cuts: u32,
    /// How many notifiers there were.
    pub(super) notifiers: usize,
    /// When the step began: if other notifiers join, before they do.
    pub(super) began: Moment,
    /// When it struck.
    pub(super) struck: Moment,
    /// When it was repaired.
    pub(super) repaired: Moment,
    /// When every notifier was ready, and events published after the repair had arrived.
    pub(super) recovered: Moment,
}
