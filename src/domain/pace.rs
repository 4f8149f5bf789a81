//! Decides which requests may be in flight, and shares each queue's capacity fairly.
//!
//! Each queue has a *capacity*: the maximum number of requests in flight for its events, their retries and
//! its backlogs. Each request takes one place. A slow receiver holds its places for longer, so it must not
//! hold many:
//!
//! - **Fair share**: a webhook gets another place while it has fewer places than are free. A *group*
//!   (an account, or for webhooks without an account the host and port of the URL) may have up to three
//!   times as many.
//! - **Classes**: the *slow* receivers together have at most half of the capacity, the slow and the
//!   *unproven* together three quarters. The rest is always free for the prompt ones. An unproven
//!   receiver has one request in flight.
//! - **Waiting**: a delivery to a prompt receiver waits if nothing but a free place is missing. A
//!   delivery that is refused for another reason goes elsewhere, so it delays no other delivery.
//!
//! If several instances run, [`super::instances`] gives this instance its part of a webhook's limits.
//!
//! Requests are counted per queue. The state of a receiver ([`super::receiver`]) applies to all queues.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use uuid::Uuid;

use super::instances::{Instances, SentBy};
use super::limits::Limits;
use super::receiver::{
    Ailment, AttemptEnd, Breaker, Class, EndedAttempt, Outage, Receiver, SLOW, Transition,
};
use super::time::Moment;
use super::webhook::{Group, Webhook};

mod capacity;
mod hold;

use capacity::Capacity;

pub use hold::Hold;

/// A request for an attempt of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The number of the queue whose capacity the attempt uses.
    pub queue: usize,
    /// The webhook to send to.
    pub webhook: Uuid,
    /// The webhook's group.
    pub group: Group,
    /// The webhook's own limits.
    pub limits: Limits,
    /// Whether the delivery is the first of a backlog.
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

/// An attempt that may be made. It is in flight until [`Pace::end`] or [`Pace::give_back`].
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
    /// The attempt begins now.
    Begins(Attempt),
    /// Every place is taken: [`Pace::call_next`] tells when the attempt begins.
    Waits(Ticket),
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    queue: usize,
    webhook: Uuid,
    group: Group,
    /// The class with which it is counted.
    class: Class,
    began: Moment,
    is_probe: bool,
}

/// The number of receivers in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiverCounts {
    /// This process remembers the receiver.
    pub known: usize,
    /// The last attempt failed, or the receiver is slow.
    pub ailing: usize,
    /// A request took over a second, now or recently.
    pub slow: usize,
    /// The circuit breaker is open, or waits for the result of its probe.
    pub broken: usize,
}

/// The known receivers, and the capacity of each queue.
#[derive(Clone, Debug)]
pub struct Pace {
    queues: Vec<Capacity>,
    receivers: HashMap<Uuid, Receiver>,
    /// How many receivers are remembered.
    max_receivers: usize,
    breaker: Breaker,
    /// The requests in flight by their number, which increases in the order in which they begin.
    in_flight: BTreeMap<u64, InFlight>,
    /// The number of the next request.
    next: u64,
    /// All requests in flight with a lower number already count as slow.
    slow_before: u64,
    /// The deliveries that wait for a place, by queue, the earliest first.
    waiting: Vec<VecDeque<(Ticket, Ask)>>,
    next_ticket: u64,
    /// The instances that share the limits of webhooks.
    instances: Instances,
    /// The webhooks that have a backlog of any queue, and since when this process has known it.
    in_backlog: HashMap<Uuid, Moment>,
}

impl Pace {
    /// Without any request in flight. `capacities` has the capacity of each queue. If more than
    /// `max_receivers` are known, receivers without trouble are forgotten.
    #[must_use]
    pub fn new(
        capacities: impl IntoIterator<Item = usize>,
        breaker: Breaker,
        max_receivers: usize,
    ) -> Self {
        let queues: Vec<_> = capacities.into_iter().map(Capacity::new).collect();
        let waiting = vec![VecDeque::new(); queues.len()];
        let (receivers, in_flight) = (HashMap::new(), BTreeMap::new());
        let (next, slow_before, next_ticket) = (0, 0, 0);
        Self {
            queues,
            receivers,
            max_receivers,
            breaker,
            in_flight,
            next,
            slow_before,
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

    /// Records that a webhook has a backlog.
    pub fn add_backlog(&mut self, webhook: Uuid, now: Moment) {
        self.in_backlog.entry(webhook).or_insert(now);
    }

    /// Records that these webhooks have a backlog, and no others.
    pub fn set_backlogs(&mut self, webhooks: impl Iterator<Item = Uuid>, now: Moment) {
        let mut before = std::mem::take(&mut self.in_backlog);
        let since = |webhook| (webhook, before.remove(&webhook).unwrap_or(now));
        self.in_backlog = webhooks.collect::<HashSet<_>>().into_iter().map(since).collect();
    }

    /// This instance's part of a webhook's limits; `None` if only other instances send to the webhook.
    #[must_use]
    pub fn share(&self, webhook: Uuid, limits: Limits, now: Moment) -> Option<Limits> {
        if limits.is_none() || !self.instances.are_several() {
            return Some(limits);
        }
        let since = self.in_backlog.get(&webhook);
        self.instances.share(webhook, limits, since.map(|since| now.saturating_sub(*since)))
    }

    /// Which instances send to a webhook with these limits.
    #[must_use]
    pub fn sent_by(&self, webhook: Uuid, limits: Limits) -> SentBy {
        self.instances.sent_by(webhook, limits, self.in_backlog.contains_key(&webhook))
    }

    /// Asks for an attempt at `now`.
    ///
    /// # Errors
    /// The reason why there is no attempt now, other than that a prompt receiver needs a free place.
    pub fn ask(&mut self, ask: Ask, now: Moment) -> Result<Admission, Hold> {
        self.reclassify_slow(now);
        // Checked first: if another instance sends, it knows the receiver's state better.
        self.share(ask.webhook, ask.limits, now).ok_or(Hold::Elsewhere)?;
        if self.receivers.len() >= self.max_receivers && !self.receivers.contains_key(&ask.webhook)
        {
            self.make_room(now);
        }
        let receiver = self.receivers.entry(ask.webhook).or_default();
        receiver.check(now)?;
        let queue = &self.queues[ask.queue];
        queue.check(receiver.class(), ask.group, receiver.in_flight(ask.queue))?;
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
        // The instances may have changed while the delivery waited for a place.
        let limits = self.share(webhook, limits, now).ok_or(Hold::Elsewhere)?;
        let receiver = self.receivers.entry(webhook).or_default();
        let class = receiver.class();
        let is_probe = receiver.begin(queue, limits, is_head, now)?;
        self.queues[queue].take(class, group);
        let number = self.next;
        self.next += 1;
        let began = InFlight { queue, webhook, group, class, began: now, is_probe };
        self.in_flight.insert(number, began);
        Ok(Attempt { number, is_probe })
    }

    /// Records that an attempt ended at `now`. `jitter` is a random number from 0 to 1.
    pub fn end(
        &mut self,
        attempt: Attempt,
        ended: AttemptEnd<'_>,
        jitter: f64,
        now: Moment,
    ) -> Option<Transition> {
        self.reclassify_slow(now);
        let breaker = self.breaker;
        let (receiver, attempt) = self.release(attempt)?;
        receiver.end(attempt, ended, breaker, jitter, now)
    }

    /// Cancels an attempt that wasn't made. This says nothing about its receiver.
    pub fn give_back(&mut self, attempt: Attempt) {
        if let Some((receiver, attempt)) = self.release(attempt) {
            receiver.give_back(attempt);
        }
    }

    fn release(&mut self, attempt: Attempt) -> Option<(&mut Receiver, EndedAttempt)> {
        let request = self.in_flight.remove(&attempt.number)?;
        let InFlight { queue, webhook, group, class, began, is_probe } = request;
        self.queues[queue].free(class, group);
        let receiver = self.receivers.get_mut(&webhook)?;
        Some((receiver, EndedAttempt { queue, began, is_probe }))
    }

    /// Whether any delivery waits for a place.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// Calls the next waiting delivery if there is a place for it. Its attempt begins at `now`, unless
    /// there is another reason against it by now. Repeat this until it returns `None`.
    pub fn call_next(&mut self, now: Moment) -> Option<(Ticket, Result<Attempt, Hold>)> {
        let has_place = |queue: &usize| !self.queues[*queue].is_full();
        let waits = |queue: &usize| !self.waiting[*queue].is_empty();
        let queue = (0..self.queues.len()).find(|queue| waits(queue) && has_place(queue))?;
        let (ticket, ask) = self.waiting[queue].pop_front()?;
        self.reclassify_slow(now);
        let receiver = self.receivers.entry(ask.webhook).or_default();
        let checked = receiver.check(now).and_then(|()| {
            self.queues[queue].check(receiver.class(), ask.group, receiver.in_flight(queue))
        });
        Some((ticket, checked.and_then(|()| self.begin(ask, now))))
    }

    /// Removes a delivery that no longer waits. Returns false if it has been called already.
    pub fn stop_waiting(&mut self, ticket: Ticket) -> bool {
        self.waiting.iter_mut().any(|waiting| {
            let at = waiting.iter().position(|(other, _)| *other == ticket);
            at.and_then(|at| waiting.remove(at)).is_some()
        })
    }

    /// Counts requests that have been in flight for longer than [`SLOW`] as slow from then on.
    fn reclassify_slow(&mut self, now: Moment) {
        while let Some((number, request)) = self.in_flight.range_mut(self.slow_before..).next()
            && now > request.began + SLOW
        {
            self.slow_before = number + 1;
            let was = std::mem::replace(&mut request.class, Class::Slow);
            self.queues[request.queue].free(was, request.group);
            self.queues[request.queue].take(Class::Slow, request.group);
            if let Some(receiver) = self.receivers.get_mut(&request.webhook) {
                receiver.took_long(request.began + SLOW);
            }
        }
    }

    /// Forgets a webhook that is deleted or disabled, or whose receiver is gone: no further answer could
    /// show that the receiver has recovered.
    pub fn forget(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            if receiver.is_busy() {
                receiver.forget();
            } else {
                self.receivers.remove(&webhook);
            }
        }
    }

    /// Forgets some receivers without trouble, and if that isn't enough, some others that have no request
    /// in flight. It forgets more than necessary, so that the next call isn't needed soon.
    fn make_room(&mut self, now: Moment) {
        let most = self.max_receivers;
        let mut surplus = (self.receivers.len() + most / 16 + 1).saturating_sub(most);
        let mut forget = |may_be_forgotten: &dyn Fn(&Receiver) -> bool| {
            self.receivers.retain(|_, receiver| {
                let goes = surplus > 0 && may_be_forgotten(receiver);
                surplus -= usize::from(goes);
                !goes
            });
        };
        forget(&|receiver| receiver.is_unremarkable(now));
        forget(&|receiver| !receiver.is_busy());
    }

    /// Lets the next attempt probe a receiver at once if its circuit breaker is open. Called when another
    /// instance, which knew the receiver's state better, leaves the receiver to this one.
    pub fn probe_now(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            receiver.probe_now();
        }
    }

    /// Restores a receiver's state as it was last written to the table with its backlog: whether the
    /// receiver is slow and, if its circuit breaker was open, how long its outage had lasted.
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

    /// Records that a receiver asked this or another process for no requests during `wanted`.
    pub fn stay_away(&mut self, webhook: Uuid, wanted: Duration, now: Moment) {
        self.receivers.entry(webhook).or_default().stay_away(wanted, now);
    }

    /// The receivers that are remembered.
    pub fn known(&self) -> impl Iterator<Item = Uuid> {
        self.receivers.keys().copied()
    }

    /// A receiver's state; `None` if this process doesn't know the receiver.
    #[must_use]
    pub fn receiver(&self, webhook: Uuid) -> Option<&Receiver> {
        self.receivers.get(&webhook)
    }

    /// How many requests use this queue's capacity, by class. Requests that have taken over a second
    /// count as slow.
    pub fn in_use(&mut self, queue: usize, now: Moment) -> [(Class, usize); 3] {
        self.reclassify_slow(now);
        let counts = self.queues[queue].total();
        let prompt = counts.all - counts.slow - counts.unproven;
        [(Class::Prompt, prompt), (Class::Unproven, counts.unproven), (Class::Slow, counts.slow)]
    }

    /// Counts the receivers.
    pub fn count(&mut self, now: Moment) -> ReceiverCounts {
        self.reclassify_slow(now);
        let mut count = ReceiverCounts { known: self.receivers.len(), ..ReceiverCounts::default() };
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
    pub fn ailments(&mut self, now: Moment) -> impl Iterator<Item = (Uuid, Ailment)> {
        self.reclassify_slow(now);
        let of =
            move |(webhook, receiver): (&Uuid, &Receiver)| Some((*webhook, receiver.ailment(now)?));
        self.receivers.iter().filter_map(of)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
