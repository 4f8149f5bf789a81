//! Who may have a request under way: capacity that grows with slowness, and is shared fairly.
//!
//! Each queue has a *capacity*: the most requests that may be under way at a time for its events and
//! their retries. A slow receiver holds a place of it for longer, and so must not hold many:
//!
//! - **Fair share**: a webhook gets one more while it has fewer than are free; a *group* (its account,
//!   else the host and port of its URL) up to three times as many.
//! - **Classes**: the *slow* together have half of the capacity at most, with the *unproven* three
//!   quarters. Whatever they do, the rest is there for the prompt. An unproven receiver has one
//!   request under way.
//! - A prompt receiver that only finds every place taken **waits** for one. Whoever is refused for
//!   another reason goes elsewhere, and holds nobody up.
//!
//! Where several instances run, [`super::instances`] says what of a webhook's limits is this one's.
//!
//! What is counted is counted for each queue; what is known of a receiver ([`super::receiver`]) holds
//! for all of them.

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

/// What is asked for: an attempt of one delivery.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The number of the queue whose capacity it would use.
    pub queue: usize,
    /// Whom it is for.
    pub webhook: Uuid,
    /// Whom that belongs to.
    pub group: Group,
    /// What the webhook says that it can take.
    pub limits: Limits,
    /// It is the first of a backlog.
    pub is_head: bool,
}

impl Ask {
    /// By a delivery that comes for the first time.
    #[must_use]
    pub fn of(webhook: &Webhook, queue: usize) -> Self {
        let (limits, group) = (webhook.limits(), webhook.group);
        Self { queue, webhook: webhook.id, group, limits, is_head: false }
    }
}

/// An attempt that may be made, and is under way until [`Pace::end`] or [`Pace::give_back`].
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Attempt {
    number: u64,
    /// Whether it probes a receiver whose circuit breaker was open, which is half-open now.
    pub is_probe: bool,
}

/// Who waits for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(u64);

/// What an [`Ask`] comes to, if it is not refused.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Admission {
    /// It begins now.
    Begins(Attempt),
    /// Every place is taken: [`Pace::call_next`] says when it begins.
    Waits(Ticket),
}

/// Why no attempt may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The webhook has its share of the capacity.
    Share,
    /// Its account or host has.
    Group,
    /// The slow have theirs, or of these its account or host has.
    Slow,
    /// It has not answered yet, and one request to it is under way; or the unproven have their share.
    Unproven,
    /// The receiver showed that it had too many requests, and has as many as it gets now.
    Ramp,
    /// As many requests are under way as may be, and it does not wait for a place: its receiver is not
    /// prompt, or shutdown has come.
    Full,
    /// The circuit breaker is open for so long, or waits for what its probe finds.
    Breaker(Duration),
    /// The receiver asked us to stay away for so long (`Retry-After`).
    StayAway(Duration),
    /// It gets as much as its webhook says already, for so long at least; zero, if until a request
    /// ends.
    Limit(Limit, Duration),
    /// Another instance sends all that its webhook's limits allow.
    Elsewhere,
    /// Others wait in its receiver's backlog, and come first.
    Behind,
    /// Its webhook is paused.
    Paused,
}

impl Hold {
    /// How long an attempt would be in vain at least.
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
            Self::Slow => "the receiver is slow, and so are as many requests as may be",
            Self::Unproven => "the receiver has not answered yet",
            Self::Ramp => "the receiver had too many requests, and gets fewer now",
            Self::Full => "as many requests are under way as may be",
            Self::Breaker(_) => "the receiver's circuit breaker is open",
            Self::StayAway(_) => "the receiver asked us to stay away",
            Self::Elsewhere => "another instance sends all that the webhook's limits allow",
            Self::Behind => "others wait in the receiver's backlog, and come first",
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
    /// What it counts with.
    class: Class,
    began: Moment,
    is_probe: bool,
}

/// How many receivers are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// It was asked, not too long ago.
    pub known: usize,
    /// The last attempt failed, or it is slow.
    pub ailing: usize,
    /// A request took over a second, now or lately.
    pub slow: usize,
    /// The circuit breaker is open, or waits for what its probe finds.
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
    /// In the order in which they began.
    under_way: BTreeMap<u64, UnderWay>,
    /// The number of the next request.
    next: u64,
    /// Of the requests before this one all that are under way are known to take long.
    watched: u64,
    /// Who waits for a place, by queue: the first first.
    waiting: Vec<VecDeque<(Ticket, Ask)>>,
    next_ticket: u64,
    /// Those that share the limits of webhooks.
    instances: Instances,
    /// The webhooks that have a backlog, of whichever queue, and since when that has been known.
    in_backlog: HashMap<Uuid, Moment>,
}

impl Pace {
    /// With the capacity of each queue. Of receivers that have nothing remarkable about them no more
    /// than `most_receivers` are remembered.
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

    /// The limits of webhooks are shared by these from now on.
    pub fn share_among(&mut self, instances: Instances) {
        self.instances = instances;
    }

    /// Whether the limits of webhooks are shared with others.
    #[must_use]
    pub fn is_sharing(&self) -> bool {
        self.instances.are_several()
    }

    /// A webhook has a backlog.
    pub fn has_backlog(&mut self, webhook: Uuid, now: Moment) {
        self.in_backlog.entry(webhook).or_insert(now);
    }

    /// These have one, and no others.
    pub fn have_backlogs(&mut self, webhooks: impl Iterator<Item = Uuid>, now: Moment) {
        let mut before = std::mem::take(&mut self.in_backlog);
        let since = |webhook| (webhook, before.remove(&webhook).unwrap_or(now));
        self.in_backlog = webhooks.collect::<HashSet<_>>().into_iter().map(since).collect();
    }

    /// What this instance may send of what a webhook can take; nothing, if others do.
    #[must_use]
    pub fn share(&self, webhook: Uuid, limits: Limits, now: Moment) -> Option<Limits> {
        if limits.is_none() || !self.instances.are_several() {
            return Some(limits);
        }
        let since = self.in_backlog.get(&webhook);
        self.instances.share(webhook, limits, since.map(|since| now.saturating_sub(*since)))
    }

    /// Who sends what a webhook can take.
    #[must_use]
    pub fn sent_by(&self, webhook: Uuid, limits: Limits) -> SentBy {
        self.instances.sent_by(webhook, limits, self.in_backlog.contains_key(&webhook))
    }

    /// Asks for an attempt at `now`.
    ///
    /// # Errors
    /// Why there is none now, nor as soon as there is a place.
    pub fn ask(&mut self, ask: Ask, now: Moment) -> Result<Admission, Hold> {
        self.note_slow(now);
        // First this: who may send knows more of its receiver.
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
        // It may have waited for a place meanwhile.
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

    /// An attempt was not made after all, and says nothing about its receiver.
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

    /// Somebody waits for a place.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_empty())
    }

    /// Calls the next of those who wait, if there is a place for it: it begins at `now`, or something
    /// else has come in its way meanwhile. Ask again until nobody is called.
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

    /// Whoever has this ticket no longer waits; false if it has been called already.
    pub fn leave(&mut self, ticket: Ticket) -> bool {
        self.waiting.iter_mut().any(|waiting| {
            let at = waiting.iter().position(|(other, _)| *other == ticket);
            at.and_then(|at| waiting.remove(at)).is_some()
        })
    }

    /// Takes note of requests that have been under way for longer than [`SLOW`]: they count with the
    /// slow from then on.
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

    /// The webhook is deleted or disabled, or its receiver is gone: nothing will come for it any
    /// more that could say that it is well.
    pub fn forget(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            if receiver.is_busy() {
                receiver.forget();
            } else {
                self.receivers.remove(&webhook);
            }
        }
    }

    /// Forgets some receivers that nothing is wrong with; or, if that is not enough, some that are
    /// not being asked: so many that looking for them is not needed again soon.
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

    /// Somebody else, who knew more of a receiver, has left it to us: if its circuit breaker is open, it
    /// is probed at once.
    pub fn probe_now(&mut self, webhook: Uuid) {
        if let Some(receiver) = self.receivers.get_mut(&webhook) {
            receiver.probe_now();
        }
    }

    /// What was known of a receiver when its backlog was last written down: whether it is slow, and
    /// for how long it had been away by then, if its circuit breaker was open.
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

    /// A receiver asked us to stay away for so long, or another process.
    pub fn stay_away(&mut self, webhook: Uuid, wanted: Duration, now: Moment) {
        self.receivers.entry(webhook).or_default().stay_away(wanted, now);
    }

    /// The receivers that were asked, not too long ago.
    pub fn known(&self) -> impl Iterator<Item = Uuid> {
        self.receivers.keys().copied()
    }

    /// What is known of a receiver.
    #[must_use]
    pub fn receiver(&self, webhook: Uuid) -> Option<&Receiver> {
        self.receivers.get(&webhook)
    }

    /// How many requests are under way that use this queue's capacity: to prompt receivers, to
    /// unproven ones, and to slow ones or for over a second.
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

    /// Since when each receiver fails that does.
    pub fn outages(&self) -> impl Iterator<Item = (Uuid, Outage)> {
        self.receivers.iter().filter_map(|(webhook, it)| Some((*webhook, it.outage()?)))
    }

    /// What is wrong with each receiver that has an ailment.
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
