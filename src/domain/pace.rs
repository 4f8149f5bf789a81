//! Decides which requests may be under way: capacity grows with slowness and is shared fairly.
//!
//! Each queue has a *capacity*: the most requests that may be under way at a time for its events and
//! their retries. A slow receiver holds a place for longer, and so must not hold many:
//!
//! - **Fair share**: a webhook gets another place while it has fewer than are free. A *group* (its
//!   account, or else the host and port of its URL) may have up to three times as many.
//! - **Classes**: the *slow* together have at most half of the capacity, the slow and the *unproven*
//!   together three quarters. Whatever they do, the rest is free for the prompt. An unproven receiver
//!   has one request under way.
//! - A prompt receiver **waits** if only a free place is missing. A delivery refused for another reason
//!   goes elsewhere and holds up nobody.
//!
//! If several instances run, [`super::instances`] gives this instance its part of a webhook's limits.
//!
//! Requests are counted for each queue; what is known of a receiver ([`super::receiver`]) applies to all
//! queues.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use super::instances::{Instances, SentBy};
use super::limits::{Limit, Limits};
use super::receiver::{
    Ailment, AttemptEnd, Breaker, Class, Outage, Over, Receiver, SLOW, Transition,
};
use super::time::Moment;
use super::webhook::{Group, Webhook};

mod capacity;

use capacity::Capacity;

/// A request for an attempt of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The number of the queue whose capacity it uses.
    pub queue: usize,
    /// The webhook to send to.
    pub webhook: Uuid,
    /// The webhook's group.
    pub group: Group,
    /// The webhook's own limits.
    pub limits: Limits,
    /// Whether it is the first of a backlog.
    pub is_head: bool,
}

impl Ask {
    /// For a delivery that isn't at the head of a backlog.
    #[must_use]
    pub fn of(webhook: &Webhook, queue: usize) -> Self {
        let (limits, group) = (webhook.limits(), webhook.group);
        Self { queue, webhook: webhook.id, group, limits, is_head: false }
    }
}

/// An attempt that may be made. It is under way until [`Pace::end`] or [`Pace::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Attempt {
    number: u64,
    /// Whether it probes a receiver whose circuit breaker was open and is now half-open.
    pub is_probe: bool,
}

/// Identifies a delivery that waits for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// The answer to an [`Ask`] that wasn't refused.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It begins now.
    Begins(Attempt),
    /// Every place is taken: [`Pace::call_next`] tells when it begins.
    Waits(Ticket),
}

/// Why no attempt may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The webhook has its share of the capacity.
    Share,
    /// Its account or host has its share.
    Group,
    /// The slow receivers have their share, or its account or host has its share of that.
    Slow,
    /// It hasn't answered yet and has one request under way, or the unproven have their share.
    Unproven,
    /// The receiver was overloaded, and has as many requests as it currently gets.
    Ramp,
    /// The capacity is used up and it doesn't wait for a place: its receiver isn't prompt, or the
    /// process is shutting down.
    Full,
    /// The circuit breaker is open for this long, or waits for its probe's result.
    Breaker(Duration),
    /// The receiver asked for no requests for this long (`Retry-After`).
    StayAway(Duration),
    /// The webhook's own limit is reached, for at least this long; zero if until a request ends.
    Limit(Limit, Duration),
    /// Another instance sends all that the webhook's limits allow.
    Elsewhere,
    /// Others wait in its receiver's backlog and come first.
    Behind,
    /// Its webhook is paused.
    Paused,
}

impl Hold {
    /// The shortest time until an attempt may be possible.
    #[must_use]
    pub const fn remaining(self) -> Duration {
        match self {
            Self::Share
            | Self::Group
            | Self::Slow
            | Self::Unproven
            | Self::Ramp
            | Self::Full
            | Self::Elsewhere
            | Self::Behind
            | Self::Paused => Duration::ZERO,
            Self::Breaker(remaining) | Self::StayAway(remaining) | Self::Limit(_, remaining) => {
                remaining
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Share => "the webhook has its share of the requests under way",
            Self::Group => "its account or host has its share of the requests under way",
            Self::Slow => {
                "the receiver is slow, and slow receivers have their share of the requests"
            }
            Self::Unproven => "the receiver has not answered yet",
            Self::Ramp => "the receiver was overloaded, and gets fewer requests now",
            Self::Full => "the capacity is used up",
            Self::Breaker(_) => "the receiver's circuit breaker is open",
            Self::StayAway(_) => "the receiver asked us to wait (Retry-After)",
            Self::Elsewhere => "another instance sends all that the webhook's limits allow",
            Self::Behind => "earlier deliveries wait in the receiver's backlog",
            Self::Paused => "the webhook is paused",
            Self::Limit(Limit::InFlight, _) => "the webhook's max_in_flight is reached",
            Self::Limit(Limit::Rate, _) => "the webhook's rate_per_second is reached",
        })
    }
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    queue: usize,
    webhook: Uuid,
    group: Group,
    /// The class that it counts with.
    class: Class,
    began: Moment,
    is_probe: bool,
}

/// The number of receivers in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Asked recently enough to be remembered.
    pub known: usize,
    /// The last attempt failed, or the receiver is slow.
    pub ailing: usize,
    /// A request took over a second, now or recently.
    pub slow: usize,
    /// The circuit breaker is open, or waits for its probe's result.
    pub broken: usize,
}

/// The receivers that were asked, and the capacity of each queue.
#[derive(Clone, Debug)]
pub struct Pace {
    queues: Vec<Capacity>,
    receivers: HashMap<Uuid, Receiver>,
    /// The most receivers that are remembered.
    most_receivers: usize,
    breaker: Breaker,
    /// In the order of their begin.
    under_way: BTreeMap<u64, UnderWay>,
    /// The number of the next request.
    next: u64,
    /// All requests under way before this number are known to be slow.
    watched: u64,
    /// The deliveries that wait for a place, by queue, the earliest first.
    waiting: Vec<VecDeque<(Ticket, Ask)>>,
    next_ticket: u64,
    /// The instances that share the limits of webhooks.
    instances: Instances,
    /// The webhooks that have a backlog of any queue, and since when that is known.
    in_backlog: HashMap<Uuid, Moment>,
}

impl Pace {
    /// With the capacity of each queue. At most `most_receivers` are remembered of those that have
    /// nothing wrong.
    #[must_use]
    pub fn new(
        capacities: impl IntoIterator<Item = usize>,
        breaker: Breaker,
        most_receivers: usize,
    ) -> Self {
        let queues: Vec<_> = capacities.into_iter().map(Capacity::new).collect();
        let waiting = vec![VecDeque::new(); queues.len()];
        let (receivers, under_way) = (HashMap::new(), BTreeMap::new());
        let (next, watched, next_ticket) = (0, 0, 0);
        Self {
            queues,
            receivers,
            most_receivers,
            breaker,
            under_way,
            next,
            watched,
            waiting,
            next_ticket,
            instances: Instances::default(),
            in_backlog: HashMap::new(),
        }
    }

    /// Sets the instances that share the limits of webhooks.
    pub fn share_among(&mut self, instances: Instances) {
        self.instances = instances;
    }

    /// Whether other instances share the limits of webhooks.
    #[must_use]
    pub fn is_sharing(&self) -> bool {
        self.instances.are_several()
    }

    /// A webhook has a backlog.
    pub fn has_backlog(&mut self, webhook: Uuid, now: Moment) {
        self.in_backlog.entry(webhook).or_insert(now);
    }

    /// These webhooks have a backlog, and no others do.
    pub fn have_backlogs(&mut self, webhooks: impl Iterator<Item = Uuid>, now: Moment) {
        let mut before = std::mem::take(&mut self.in_backlog);
        let since = |webhook| (webhook, before.remove(&webhook).unwrap_or(now));
        self.in_backlog = webhooks.collect::<HashSet<_>>().into_iter().map(since).collect();
    }

    /// The part of a webhook's limits that this instance has; `None` if only others send.
    #[must_use]
    pub fn share(&self, webhook: Uuid, limits: Limits, now: Moment) -> Option<Limits> {
        if limits.is_none() || !self.instances.are_several() {
            return Some(limits);
        }
        let since = self.in_backlog.get(&webhook);
        self.instances.share(webhook, limits, since.map(|since| now.saturating_sub(*since)))
    }

    /// Who sends to a webhook with these limits.
    #[must_use]
    pub fn sent_by(&self, webhook: Uuid, limits: Limits) -> SentBy {
        self.instances.sent_by(webhook, limits, self.in_backlog.contains_key(&webhook))
    }

    /// Asks for an attempt at `now`.
    ///
    /// # Errors
    /// Why there is none now, and won't be as soon as a place is free.
    pub fn ask(&mut self, ask: Ask, now: Moment) -> Result<Admission, Hold> {
        self.note_slow(now);
        // This comes first: the instance that may send knows more of the receiver.
        self.share(ask.webhook, ask.limits, now).ok_or(Hold::Elsewhere)?;
        if self.receivers.len() >= self.most_receivers && !self.receivers.contains_key(&ask.webhook)
        {
            self.make_room(now);
        }
        let receiver = self.receivers.entry(ask.webhook).or_default();
        receiver.check(now)?;
        let queue = &self.queues[ask.queue];
        queue.check(receiver.class(), ask.group, receiver.under_way(ask.queue))?;
        if !queue.is_full() {
            return self.begin(ask, now).map(Admission::Begins);
        }
        if receiver.class() != Class::Prompt {
            return Err(Hold::Full);
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting[ask.queue].push_back((ticket, ask));
        Ok(Admission::Waits(ticket))
    }

    fn begin(&mut self, ask: Ask, now: Moment) -> Result<Attempt, Hold> {
        let Ask { queue, webhook, group, limits, is_head } = ask;
        // The instances may have changed while it waited for a place.
        let limits = self.share(webhook, limits, now).ok_or(Hold::Elsewhere)?;
        let receiver = self.receivers.entry(webhook).or_default();
        let class = receiver.class();
        let is_probe = receiver.begin(queue, limits, is_head, now)?;
        self.queues[queue].take(class, group);
        let number = self.next;
        self.next += 1;
        let began = UnderWay { queue, webhook, group, class, began: now, is_probe };
        self.under_way.insert(number, began);
        Ok(Attempt { number, is_probe })
    }

    /// An attempt ended at `now`. `jitter` is a random number from 0 to 1.
    pub fn end(
        &mut self,
        attempt: Attempt,
        ended: AttemptEnd<'_>,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        self.note_slow(now);
        let breaker = self.breaker;
        let (receiver, over) = self.let_go(attempt)?;
        receiver.end(over, ended, breaker, jitter, now)
    }

    /// An attempt wasn't made after all. This says nothing about its receiver.
    pub fn give_back(&mut self, attempt: Attempt) {
        if let Some((receiver, over)) = self.let_go(attempt) {
            receiver.give_back(over);
        }
    }

    fn let_go(&mut self, attempt: Attempt) -> Option<(&mut Receiver, Over)> {
        let request = self.under_way.remove(&attempt.number)?;
        let UnderWay { queue, webhook, group, class, began, is_probe } = request;
        self.queues[queue].give(class, group);
        let receiver = self.receivers.get_mut(&webhook)?;
        Some((receiver, Over { queue, began, is_probe }))
    }

    /// Whether any delivery waits for a place.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// Calls the next waiting delivery if there is a place for it. It begins at `now`, unless something
    /// else holds it up meanwhile. Call this again until it returns `None`.
    pub fn call_next(&mut self, now: Moment) -> Option<(Ticket, Result<Attempt, Hold>)> {
        let has_place = |queue: &usize| !self.queues[*queue].is_full();
        let waits = |queue: &usize| !self.waiting[*queue].is_empty();
        let queue = (0..self.queues.len()).find(|queue| waits(queue) && has_place(queue))?;
        let (ticket, ask) = self.waiting[queue].pop_front()?;
        self.note_slow(now);
        let receiver = self.receivers.entry(ask.webhook).or_default();
        let checked = receiver.check(now).and_then(|()| {
            self.queues[queue].check(receiver.class(), ask.group, receiver.under_way(queue))
        });
        Some((ticket, checked.and_then(|()| self.begin(ask, now))))
    }

    /// This delivery no longer waits. Returns false if it has been called already.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.waiting.iter_mut().any(|waiting| {
            let at = waiting.iter().position(|(other, _)| *other == ticket);
            at.and_then(|at| waiting.remove(at)).is_some()
        })
    }

    /// Reclassifies requests that have been under way for longer than [`SLOW`]: they count with the slow
    /// from then on.
    fn note_slow(&mut self, now: Moment) {
        while let Some((number, request)) = self.under_way.range_mut(self.watched..).next()
            && now > request.began + SLOW
        {
            self.watched = number + 1;
            let was = std::mem::replace(&mut request.class, Class::Slow);
            self.queues[request.queue].give(was, request.group);
            self.queues[request.queue].take(Class::Slow, request.group);
            if let Some(receiver) = self.receivers.get_mut(&request.webhook) {
                receiver.took_long(request.began + SLOW);
            }
        }
    }

    /// Forgets a webhook that is deleted or disabled, or whose receiver is gone: no further answer will
    /// show that the receiver recovered.
    pub fn forget(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            if receiver.is_busy() {
                receiver.forget();
            } else {
                self.receivers.remove(&webhook);
            }
        }
    }

    /// Forgets some receivers that have nothing wrong, and if that isn't enough, some that have no
    /// request under way. It forgets enough of them that this isn't needed again soon.
    fn make_room(&mut self, now: Moment) {
        let most = self.most_receivers;
        let mut surplus = (self.receivers.len() + most / 16 + 1).saturating_sub(most);
        let mut forget = |may_go: &dyn Fn(&Receiver) -> bool| {
            self.receivers.retain(|_, receiver| {
                let goes = surplus > 0 && may_go(receiver);
                surplus -= usize::from(goes);
                !goes
            });
        };
        forget(&|receiver| receiver.is_unremarkable(now));
        forget(&|receiver| !receiver.is_busy());
    }

    /// Another instance, which knew more of a receiver, left it to us. If its circuit breaker is open,
    /// it is probed at once.
    pub fn probe_now(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            receiver.probe_now();
        }
    }

    /// Restores what was known of a receiver when its backlog was last written to the table: whether it
    /// is slow, and if its circuit breaker was open, how long it had been away by then.
    pub fn restore(
        &mut self,
        webhook: Uuid,
        is_slow: bool,
        away_for: Option<Duration>,
        now: Moment,
    ) {
        let away_for = away_for.filter(|_| self.breaker.is_on());
        self.receivers.entry(webhook).or_default().restore(is_slow, away_for, now);
    }

    /// A receiver asked us or another process for no requests for `wanted`.
    pub fn stay_away(&mut self, webhook: Uuid, wanted: Duration, now: Moment) {
        self.receivers.entry(webhook).or_default().stay_away(wanted, now);
    }

    /// The receivers that are remembered.
    pub fn known(&self) -> impl Iterator<Item = Uuid> {
        self.receivers.keys().copied()
    }

    /// What is known of a receiver.
    #[must_use]
    pub fn receiver(&self, webhook: Uuid) -> Option<&Receiver> {
        self.receivers.get(&webhook)
    }

    /// How many requests under way use this queue's capacity, by class. Requests that have taken over a
    /// second count as slow.
    pub fn in_use(&mut self, queue: usize, now: Moment) -> [(Class, usize); 3] {
        self.note_slow(now);
        let counts = self.queues[queue].total();
        let prompt = counts.all - counts.slow - counts.unproven;
        [(Class::Prompt, prompt), (Class::Unproven, counts.unproven), (Class::Slow, counts.slow)]
    }

    /// Counts the receivers.
    pub fn count(&mut self, now: Moment) -> Count {
        self.note_slow(now);
        let mut count = Count { known: self.receivers.len(), ..Count::default() };
        for receiver in self.receivers.values() {
            let is_slow = receiver.class() == Class::Slow;
            count.ailing += usize::from(is_slow || receiver.is_failing());
            count.slow += usize::from(is_slow);
            count.broken += usize::from(receiver.is_broken());
        }
        count
    }

    /// The outage of each receiver that is failing.
    pub fn outages(&self) -> impl Iterator<Item = (Uuid, Outage)> {
        self.receivers.iter().filter_map(|(webhook, it)| Some((*webhook, it.outage()?)))
    }

    /// The ailment of each receiver that has one.
    pub fn ailing(&mut self, now: Moment) -> impl Iterator<Item = (Uuid, Ailment)> {
        self.note_slow(now);
        let of =
            move |(webhook, receiver): (&Uuid, &Receiver)| Some((*webhook, receiver.ailment(now)?));
        self.receivers.iter().filter_map(of)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
