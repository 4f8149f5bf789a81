//! Decides which deliveries begin, which wait a moment, and which go to their receiver's backlog, in
//! order.
//!
//! [`super::pace`] says whether an attempt may begin. If it may not, this module decides what happens to
//! the delivery:
//!
//! - If it may begin as soon as another request ends, it waits where it is for a moment. Only a few
//!   deliveries wait like this, unless the receiver is *brisk*.
//! - Otherwise it *enters* its receiver's backlog: a queue at the broker, one for each event queue and
//!   webhook.
//!
//! A delivery that was never attempted keeps its place in the order of its queue: if the backlog holds
//! something, or another delivery waits for the same receiver, it queues behind. Retries don't.
//!
//! A delivery through a backlog costs twice the work, and while a backlog holds something, all new
//! deliveries have to go through it. So after a short stall of a receiver or the machine, a busy backlog
//! might never become empty. Therefore a delivery that would queue behind a short backlog of a *brisk*
//! receiver ([`Receiver::is_brisk`](super::receiver::Receiver::is_brisk)) waits until that backlog is
//! empty, and only few deliveries enter it meanwhile.

use std::collections::BTreeMap;

use super::limits::Limit;
use super::pace::{Admission, Ask, Attempt, Hold, Pace, Ticket};
use super::time::Moment;

mod contents;

pub use contents::{BacklogKey, Contents, EntryTicket};

/// How many deliveries of one webhook and one queue may wait a moment at a time, unless the receiver is
/// brisk. Each of them occupies a consumer that other deliveries need.
const MOST_EACH: usize = 4;

/// Of a queue's capacity, one in this many places is the number of deliveries that may wait a moment for
/// receivers that aren't brisk.
const MOST_PART: usize = 4;

/// The backlog of a brisk receiver is short up to this multiple of the queue's capacity. The receiver
/// takes as many deliveries in less than half a second.
const SHORT: usize = 64;

/// The kind of delivery that asks for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryKind {
    /// It was never attempted, so it keeps its place in the order of its queue.
    Fresh,
    /// It was attempted before.
    Retry,
}

/// Why there is no attempt now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub hold: Hold,
    /// The delivery's place in the line of those that enter the backlog. `None` if it is in the backlog
    /// already, or stopped waiting by itself.
    pub entry: Option<EntryTicket>,
}

/// The answer to a request for an attempt that wasn't refused.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Intent {
    /// The attempt begins now.
    Begins(Attempt),
    /// The attempt begins when the delivery is called, within a moment unless the capacity is used up.
    Waits(WaiterNumber),
}

/// Identifies a waiting delivery. Numbers increase in the order of arrival.
pub type WaiterNumber = u64;

/// The deliveries that stop waiting, and what was decided about each: it begins, or is refused.
pub type Called = Vec<(WaiterNumber, Result<Attempt, Refusal>)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaiterKind {
    Fresh,
    Retry,
    /// It is the first of a backlog. The value says whether this process put it there.
    Head(bool),
}

/// A waiting delivery.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    ask: Ask,
    kind: WaiterKind,
    /// Its place in the line for capacity; `None` if it waits for something else.
    ticket: Option<Ticket>,
    /// Why it couldn't begin when it last asked.
    hold: Hold,
}

impl Waiter {
    fn key(&self) -> BacklogKey {
        (self.ask.queue, self.ask.webhook)
    }
}

/// The [`Pace`], the waiting deliveries, and what the backlogs hold.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Decides which attempts may begin.
    pub pace: Pace,
    /// What the backlogs hold.
    pub contents: Contents,
    /// The capacity of each queue.
    capacities: Vec<usize>,
    /// The waiting deliveries, in the order of arrival.
    line: BTreeMap<WaiterNumber, Waiter>,
    /// How many of them wait a moment: for something other than capacity.
    brief_waits: usize,
    /// The last number of a waiting delivery or an entry.
    last_number: u64,
}

impl Intake {
    /// Without any waiting delivery. `capacities` has the capacity of each queue.
    #[must_use]
    pub fn new(pace: Pace, capacities: impl IntoIterator<Item = usize>) -> Self {
        let capacities = capacities.into_iter().collect();
        let (line, contents) = (BTreeMap::new(), Contents::default());
        Self { pace, contents, capacities, line, brief_waits: 0, last_number: 0 }
    }

    /// Asks for an attempt for a delivery that isn't in a backlog. `is_paused` says whether its webhook is
    /// paused.
    ///
    /// # Errors
    /// Why there is no attempt, and the delivery's place in the backlog. The [`Called`] deliveries enter
    /// the backlog before it.
    pub fn ask(
        &mut self,
        ask: Ask,
        kind: DeliveryKind,
        is_paused: bool,
        now: Moment,
    ) -> (Result<Intent, Refusal>, Called) {
        let key = (ask.queue, ask.webhook);
        let is_fresh = kind == DeliveryKind::Fresh;
        if is_paused {
            return self.refuse(key, is_fresh, Hold::Paused);
        }
        if is_fresh && self.contents.is_in_use(key) {
            if self.is_empty_soon(key, now) {
                let waiting =
                    Waiter { ask, kind: WaiterKind::Fresh, ticket: None, hold: Hold::Share };
                return (Ok(self.wait(waiting)), Vec::new());
            }
            // The reason that delays the first delivery delays those behind it, too.
            let hold = self.contents.hold(key);
            return self.refuse(key, is_fresh, hold.unwrap_or(Hold::Behind));
        }
        let before = self.fresh_waiters(key).next().map(|(_, waiting)| waiting.hold);
        let asked = match before {
            Some(hold) if is_fresh => Err(hold),
            _ => self.pace.ask(ask, now),
        };
        let (ticket, hold) = match asked {
            Ok(Admission::Begins(attempt)) => return (Ok(Intent::Begins(attempt)), Vec::new()),
            Ok(Admission::Waits(ticket)) => (Some(ticket), Hold::Full),
            Err(hold) if is_over_soon(hold) && self.has_room(key, hold, now) => (None, hold),
            Err(hold) => return self.refuse(key, is_fresh, hold),
        };
        let kind = if is_fresh { WaiterKind::Fresh } else { WaiterKind::Retry };
        (Ok(self.wait(Waiter { ask, kind, ticket, hold })), Vec::new())
    }

    /// Asks for an attempt for the first delivery of a backlog, which leaves the backlog when it begins.
    /// It waits for capacity only. `is_ours` says whether this process put it there.
    ///
    /// # Errors
    /// Why there is no attempt.
    pub fn ask_head(&mut self, ask: Ask, is_ours: bool, now: Moment) -> Result<Intent, Hold> {
        let key = (ask.queue, ask.webhook);
        let asked = self.pace.ask(ask, now);
        self.contents.set_hold(key, asked.as_ref().err().copied());
        match asked? {
            Admission::Begins(attempt) => {
                self.contents.note_left(key, is_ours);
                Ok(Intent::Begins(attempt))
            }
            Admission::Waits(ticket) => {
                let kind = WaiterKind::Head(is_ours);
                Ok(self.wait(Waiter { ask, kind, ticket: Some(ticket), hold: Hold::Full }))
            }
        }
    }

    fn wait(&mut self, waiting: Waiter) -> Intent {
        self.brief_waits += usize::from(waiting.ticket.is_none());
        let number = self.next_number();
        self.line.insert(number, waiting);
        Intent::Waits(number)
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Whether one more delivery may wait a moment for this reason.
    fn has_room(&self, key: BacklogKey, hold: Hold, now: Moment) -> bool {
        if self.brief_waits == 0 || is_share(hold) && self.is_brisk(key, now) {
            return true;
        }
        let brief = || self.line.values().filter(|waiting| waiting.ticket.is_none());
        brief().filter(|waiting| waiting.key() == key).count() < MOST_EACH
            && brief().filter(|waiting| waiting.ask.queue == key.0).count()
                < (self.capacities[key.0] / MOST_PART).max(1)
    }

    fn is_brisk(&self, (_, webhook): BacklogKey, now: Moment) -> bool {
        self.pace.receiver(webhook).is_some_and(|receiver| receiver.is_brisk(now))
    }

    /// Whether a backlog will soon be empty.
    fn is_empty_soon(&self, key: BacklogKey, now: Moment) -> bool {
        let most = (SHORT * self.capacities[key.0]) as u64;
        self.contents.are_few(key, most)
            && self.contents.hold(key).is_none_or(is_share)
            && self.is_brisk(key, now)
    }

    /// The waiting deliveries of this queue and webhook that keep the order of the queue.
    fn fresh_waiters(&self, key: BacklogKey) -> impl Iterator<Item = (WaiterNumber, &Waiter)> {
        let is_one =
            move |waiting: &&Waiter| waiting.kind == WaiterKind::Fresh && waiting.key() == key;
        let numbered = self.line.iter().map(|(number, waiting)| (*number, waiting));
        numbered.filter(move |(_, waiting)| is_one(waiting))
    }

    fn refuse(
        &mut self,
        key: BacklogKey,
        is_fresh: bool,
        hold: Hold,
    ) -> (Result<Intent, Refusal>, Called) {
        let mut called = Vec::new();
        if is_fresh {
            self.enter_all(key, &mut called);
        }
        (Err(self.enter(key, hold)), called)
    }

    fn enter(&mut self, key: BacklogKey, hold: Hold) -> Refusal {
        let number = self.next_number();
        Refusal { hold, entry: Some(self.contents.enter(key, hold, number)) }
    }

    /// Moves the waiting deliveries that keep the order of their queue to the backlog, in this order.
    fn enter_all(&mut self, key: BacklogKey, called: &mut Called) {
        let numbers: Vec<WaiterNumber> =
            self.fresh_waiters(key).map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(waiting) = self.remove(number) {
                called.push((number, Err(self.enter(key, waiting.hold))));
            }
        }
    }

    fn remove(&mut self, number: WaiterNumber) -> Option<Waiter> {
        let waiting = self.line.remove(&number)?;
        match waiting.ticket {
            // Returns false if the delivery has just been called.
            Some(ticket) => drop(self.pace.stop_waiting(ticket)),
            None => self.brief_waits -= 1,
        }
        Some(waiting)
    }

    /// Whether any delivery waits.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.line.is_empty()
    }

    /// Calls the waiting deliveries that may begin now or have to enter their backlogs. This has to be
    /// done whenever a request has ended.
    #[must_use]
    pub fn call(&mut self, now: Moment) -> Called {
        let mut called = Vec::new();
        while let Some((ticket, answer)) = self.pace.call_next(now) {
            let at = self.line.iter().find(|(_, waiting)| waiting.ticket == Some(ticket));
            let Some(number) = at.map(|(number, _)| *number) else { continue };
            match answer {
                Ok(attempt) => self.begin(number, attempt, &mut called),
                Err(hold) => self.refuse_waiter(number, hold, &mut called),
            }
        }
        if self.brief_waits > 0 {
            self.call_brief_waits(now, &mut called);
        }
        called
    }

    fn begin(&mut self, number: WaiterNumber, attempt: Attempt, called: &mut Called) {
        let Some(waiting) = self.remove(number) else { return };
        if let WaiterKind::Head(is_ours) = waiting.kind {
            self.contents.note_left(waiting.key(), is_ours);
        }
        called.push((number, Ok(attempt)));
    }

    fn refuse_waiter(&mut self, number: WaiterNumber, hold: Hold, called: &mut Called) {
        let Some(waiting) = self.line.get_mut(&number) else { return };
        waiting.hold = hold;
        let key = waiting.key();
        match waiting.kind {
            WaiterKind::Fresh => self.enter_all(key, called),
            WaiterKind::Retry => {
                self.remove(number);
                called.push((number, Err(self.enter(key, hold))));
            }
            WaiterKind::Head(_) => {
                self.remove(number);
                called.push((number, Err(Refusal { hold, entry: None })));
            }
        }
    }

    fn call_brief_waits(&mut self, now: Moment, called: &mut Called) {
        let numbers: Vec<WaiterNumber> = self.line.keys().copied().collect();
        // A delivery behind one of these may not begin.
        let mut blocked: Vec<BacklogKey> = Vec::new();
        for number in numbers {
            let Some(waiting) = self.line.get(&number).copied() else { continue };
            let (key, is_fresh) = (waiting.key(), waiting.kind == WaiterKind::Fresh);
            let is_behind = is_fresh && (blocked.contains(&key) || self.contents.is_in_use(key));
            if waiting.ticket.is_none() && !is_behind {
                match self.pace.ask(waiting.ask, now) {
                    Ok(Admission::Begins(attempt)) => {
                        self.begin(number, attempt, called);
                        continue;
                    }
                    Ok(Admission::Waits(ticket)) => {
                        let in_line = Waiter { ticket: Some(ticket), hold: Hold::Full, ..waiting };
                        self.line.insert(number, in_line);
                        self.brief_waits -= 1;
                    }
                    Err(hold) if is_over_soon(hold) => {
                        self.line.insert(number, Waiter { hold, ..waiting });
                    }
                    Err(hold) => self.refuse_waiter(number, hold, called),
                }
            }
            if is_fresh {
                blocked.push(key);
            }
        }
    }

    /// Ends the waiting of a delivery that has waited long enough. Unless it waits for capacity, it enters
    /// its backlog, together with all waiting deliveries that must not overtake it.
    #[must_use]
    pub fn give_up(&mut self, number: WaiterNumber, now: Moment) -> Called {
        let mut called = self.call(now);
        if let Some(waiting) = self.line.get(&number)
            && waiting.ticket.is_none()
        {
            self.refuse_waiter(number, waiting.hold, &mut called);
        }
        called
    }

    /// Removes a delivery that no longer waits.
    pub fn stop_waiting(&mut self, number: WaiterNumber) {
        self.remove(number);
    }
}

/// Whether the reason is a share that is used up.
fn is_share(hold: Hold) -> bool {
    matches!(hold, Hold::Share | Hold::Group)
}

/// Whether the reason may be gone as soon as another request ends.
fn is_over_soon(hold: Hold) -> bool {
    match hold {
        Hold::Share | Hold::Group | Hold::Unproven | Hold::Ramp | Hold::Full => true,
        Hold::Limit(limit, wait) => limit == Limit::InFlight && wait.is_zero(),
        Hold::Slow
        | Hold::Breaker(_)
        | Hold::StayAway(_)
        | Hold::Elsewhere
        | Hold::Behind
        | Hold::Paused => false,
    }
}

#[cfg(test)]
mod tests;
