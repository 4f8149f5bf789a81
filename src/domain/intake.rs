//! Decides which deliveries begin, which wait a moment, and which go to their receiver's backlog, in
//! order.
//!
//! [`super::pace`] says whether an attempt may begin. This module decides about a delivery that may not:
//!
//! - If only the end of another request is missing, so that it may begin at any moment, it waits where
//!   it is for a moment. Few deliveries do, unless requests of that receiver end one after the other.
//! - Otherwise it *enters* its receiver's backlog: a queue at the broker, one for each event queue and
//!   webhook.
//!
//! A delivery that was never attempted keeps its place in the order of its queue: if the backlog holds
//! something, or another delivery waits for the same receiver, it queues behind. Retries don't.
//!
//! A delivery through a backlog costs twice the work, and while a backlog holds something, all new
//! deliveries have to go through it. After a short stall of a receiver or the machine, a busy backlog
//! might therefore never empty. So a delivery that would queue behind a short backlog of a brisk
//! receiver waits until that is empty, and only few enter meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use uuid::Uuid;

use super::limits::Limit;
use super::pace::{Admission, Ask, Attempt, Hold, Pace, Ticket};
use super::time::Moment;

/// The most deliveries of one webhook that may wait a moment at a time, for each queue, unless its
/// receiver is brisk. Each of them holds a consumer that others need.
const MOST_EACH: usize = 4;

/// At most 1/n of a queue's capacity may wait a moment for receivers that aren't brisk.
const MOST_PART: usize = 4;

/// A brisk receiver's backlog is short up to this multiple of the queue's capacity. The receiver takes
/// that much in less than half a second.
const SHORT: usize = 64;

/// The kind of delivery that asks for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Never attempted: it keeps its place in the order of its queue.
    Fresh,
    /// Attempted before.
    Retry,
}

/// A delivery's place in the line that enters a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTicket {
    key: Key,
    number: u64,
}

impl EntryTicket {
    /// Numbers increase over all backlogs. A thread that holds several places takes them in this order;
    /// otherwise two threads could wait for each other forever.
    #[must_use]
    pub fn number(self) -> u64 {
        self.number
    }
}

/// Why there is no attempt now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The reason.
    pub hold: Hold,
    /// Its place in the line that enters the backlog. `None` if it is there already, or stopped waiting
    /// by itself.
    pub entry: Option<EntryTicket>,
}

/// The answer to a request for an attempt that wasn't refused.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Intent {
    /// It begins now.
    Begins(Attempt),
    /// It begins when it is called, within a moment unless the capacity is used up.
    Waits(Number),
}

/// Identifies a waiting delivery; in the order of arrival.
pub type Number = u64;

/// The deliveries that are called, and how each request was decided.
pub type Called = Vec<(Number, Result<Attempt, Refusal>)>;

/// The number of an event queue, and a webhook.
type Key = (usize, Uuid);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fresh,
    Retry,
    /// The first of a backlog, and whether this process put it there.
    Head(bool),
}

/// A waiting delivery.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    ask: Ask,
    kind: Kind,
    /// Its place in the line for capacity; `None` if it waits for something else.
    ticket: Option<Ticket>,
    hold: Hold,
}

impl Waiter {
    fn key(&self) -> Key {
        (self.ask.queue, self.ask.webhook)
    }
}

/// What a backlog holds, as far as this process knows.
#[derive(Clone, Debug, Default)]
struct Contents {
    /// Deliveries that this process sent there and that haven't left it.
    ours: u64,
    /// Whether it may hold others.
    others: bool,
    /// Those that are about to enter.
    entering: VecDeque<u64>,
    /// The number of the last one that entered.
    last: u64,
    /// Why its first delivery was refused last; `None` while it is consumed.
    hold: Option<Hold>,
}

/// The [`Pace`], the waiting deliveries, and what the backlogs hold.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Decides who may begin.
    pub pace: Pace,
    /// By queue.
    capacities: Vec<usize>,
    line: BTreeMap<Number, Waiter>,
    /// How many of them wait for something other than capacity.
    brief: usize,
    /// The backlogs that may hold something.
    backlogs: HashMap<Key, Contents>,
    /// The backlogs that another instance consumes. This one doesn't know what they hold, and needn't.
    elsewhere: HashSet<Key>,
    /// The next number.
    next: u64,
}

impl Intake {
    /// With the capacity of each queue.
    #[must_use]
    pub fn new(pace: Pace, capacities: impl IntoIterator<Item = usize>) -> Self {
        let capacities = capacities.into_iter().collect();
        let (line, backlogs, elsewhere) = (BTreeMap::new(), HashMap::new(), HashSet::new());
        Self { pace, capacities, line, brief: 0, backlogs, elsewhere, next: 0 }
    }

    /// Asks for an attempt of a delivery that isn't in a backlog. `is_paused`: its webhook gets nothing.
    ///
    /// # Errors
    /// Why there is no attempt, and the delivery's place in the backlog. The called deliveries have
    /// entered before it.
    pub fn ask(
        &mut self,
        ask: Ask,
        who: Who,
        is_paused: bool,
        now: Moment,
    ) -> (Result<Intent, Refusal>, Called) {
        let key = (ask.queue, ask.webhook);
        let is_fresh = who == Who::Fresh;
        if is_paused {
            return self.refuse(key, is_fresh, Hold::Paused);
        }
        if is_fresh && self.is_in_use(key) {
            if self.is_empty_soon(key, now) {
                let waiting = Waiter { ask, kind: Kind::Fresh, ticket: None, hold: Hold::Share };
                return (Ok(self.wait(waiting)), Vec::new());
            }
            // What holds up the first delivery holds up those behind it.
            let hold = self.backlogs.get(&key).and_then(|contents| contents.hold);
            return self.refuse(key, is_fresh, hold.unwrap_or(Hold::Behind));
        }
        let before = self.fresh(key).next().map(|(_, waiting)| waiting.hold);
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
        let kind = if is_fresh { Kind::Fresh } else { Kind::Retry };
        (Ok(self.wait(Waiter { ask, kind, ticket, hold })), Vec::new())
    }

    /// Asks for an attempt of a backlog's first delivery, which leaves the backlog when it begins.
    /// `is_ours`: this process put it there. It waits for capacity only.
    ///
    /// # Errors
    /// Why there is none.
    pub fn ask_head(&mut self, ask: Ask, is_ours: bool, now: Moment) -> Result<Intent, Hold> {
        let key = (ask.queue, ask.webhook);
        let asked = self.pace.ask(ask, now);
        if let Some(contents) = self.backlogs.get_mut(&key) {
            contents.hold = asked.as_ref().err().copied();
        }
        match asked? {
            Admission::Begins(attempt) => {
                self.left(key, is_ours);
                Ok(Intent::Begins(attempt))
            }
            Admission::Waits(ticket) => {
                let kind = Kind::Head(is_ours);
                Ok(self.wait(Waiter { ask, kind, ticket: Some(ticket), hold: Hold::Full }))
            }
        }
    }

    fn wait(&mut self, waiting: Waiter) -> Intent {
        self.brief += usize::from(waiting.ticket.is_none());
        let number = self.number();
        self.line.insert(number, waiting);
        Intent::Waits(number)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether one more delivery may wait a moment.
    fn has_room(&self, key: Key, hold: Hold, now: Moment) -> bool {
        if self.brief == 0 || is_shared(hold) && self.is_brisk(key, now) {
            return true;
        }
        let brief = || self.line.values().filter(|waiting| waiting.ticket.is_none());
        brief().filter(|waiting| waiting.key() == key).count() < MOST_EACH
            && brief().filter(|waiting| waiting.ask.queue == key.0).count()
                < (self.capacities[key.0] / MOST_PART).max(1)
    }

    fn is_brisk(&self, (_, webhook): Key, now: Moment) -> bool {
        self.pace.receiver(webhook).is_some_and(|receiver| receiver.is_brisk(now))
    }

    /// Whether a backlog will soon be empty.
    fn is_empty_soon(&self, key: Key, now: Moment) -> bool {
        let is_short = |contents: &Contents| {
            let most = (SHORT * self.capacities[key.0]) as u64;
            !contents.others && contents.ours <= most && contents.hold.is_none_or(is_shared)
        };
        self.backlogs.get(&key).is_some_and(is_short) && self.is_brisk(key, now)
    }

    /// The waiting deliveries of that queue and webhook that keep its order.
    fn fresh(&self, key: Key) -> impl Iterator<Item = (Number, &Waiter)> {
        let is_one = move |waiting: &&Waiter| waiting.kind == Kind::Fresh && waiting.key() == key;
        let numbered = self.line.iter().map(|(number, waiting)| (*number, waiting));
        numbered.filter(move |(_, waiting)| is_one(waiting))
    }

    fn refuse(
        &mut self,
        key: Key,
        is_fresh: bool,
        hold: Hold,
    ) -> (Result<Intent, Refusal>, Called) {
        let mut called = Vec::new();
        if is_fresh {
            self.enter_all(key, &mut called);
        }
        (Err(self.enter(key, hold)), called)
    }

    fn enter(&mut self, key: Key, hold: Hold) -> Refusal {
        let number = self.number();
        let contents = self.backlogs.entry(key).or_default();
        contents.ours += 1;
        contents.entering.push_back(number);
        contents.last = number;
        if contents.ours == 1 && !contents.others {
            contents.hold = Some(hold);
        }
        Refusal { hold, entry: Some(EntryTicket { key, number }) }
    }

    /// Moves the waiting deliveries of that queue's order to the backlog, in this order.
    fn enter_all(&mut self, key: Key, called: &mut Called) {
        let numbers: Vec<Number> = self.fresh(key).map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(waiting) = self.take(number) {
                called.push((number, Err(self.enter(key, waiting.hold))));
            }
        }
    }

    fn take(&mut self, number: Number) -> Option<Waiter> {
        let waiting = self.line.remove(&number)?;
        match waiting.ticket {
            // False if it has just been called.
            Some(ticket) => drop(self.pace.leave(ticket)),
            None => self.brief -= 1,
        }
        Some(waiting)
    }

    /// Whether any delivery waits.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.line.is_empty()
    }

    /// Calls the waiting deliveries that may begin now or have to enter their backlogs. Must be called
    /// whenever a request has ended.
    #[must_use]
    pub fn call(&mut self, now: Moment) -> Called {
        let mut called = Vec::new();
        while let Some((ticket, answer)) = self.pace.call_next(now) {
            let at = self.line.iter().find(|(_, waiting)| waiting.ticket == Some(ticket));
            let Some(number) = at.map(|(number, _)| *number) else { continue };
            match answer {
                Ok(attempt) => self.begins(number, attempt, &mut called),
                Err(hold) => self.is_refused(number, hold, &mut called),
            }
        }
        if self.brief > 0 {
            self.call_brief(now, &mut called);
        }
        called
    }

    fn begins(&mut self, number: Number, attempt: Attempt, called: &mut Called) {
        let Some(waiting) = self.take(number) else { return };
        if let Kind::Head(is_ours) = waiting.kind {
            self.left(waiting.key(), is_ours);
        }
        called.push((number, Ok(attempt)));
    }

    fn is_refused(&mut self, number: Number, hold: Hold, called: &mut Called) {
        let Some(waiting) = self.line.get_mut(&number) else { return };
        waiting.hold = hold;
        let key = waiting.key();
        match waiting.kind {
            Kind::Fresh => self.enter_all(key, called),
            Kind::Retry => {
                self.take(number);
                called.push((number, Err(self.enter(key, hold))));
            }
            Kind::Head(_) => {
                self.take(number);
                called.push((number, Err(Refusal { hold, entry: None })));
            }
        }
    }

    fn call_brief(&mut self, now: Moment, called: &mut Called) {
        let numbers: Vec<Number> = self.line.keys().copied().collect();
        // Deliveries behind these may not begin.
        let mut standing: Vec<Key> = Vec::new();
        for number in numbers {
            let Some(waiting) = self.line.get(&number).copied() else { continue };
            let (key, is_fresh) = (waiting.key(), waiting.kind == Kind::Fresh);
            let is_behind = is_fresh && (standing.contains(&key) || self.is_in_use(key));
            if waiting.ticket.is_none() && !is_behind {
                match self.pace.ask(waiting.ask, now) {
                    Ok(Admission::Begins(attempt)) => {
                        self.begins(number, attempt, called);
                        continue;
                    }
                    Ok(Admission::Waits(ticket)) => {
                        let in_line = Waiter { ticket: Some(ticket), hold: Hold::Full, ..waiting };
                        self.line.insert(number, in_line);
                        self.brief -= 1;
                    }
                    Err(hold) if is_over_soon(hold) => {
                        self.line.insert(number, Waiter { hold, ..waiting });
                    }
                    Err(hold) => self.is_refused(number, hold, called),
                }
            }
            if is_fresh {
                standing.push(key);
            }
        }
    }

    /// This delivery has waited long enough. Unless it waits for capacity, it enters the backlog, and so
    /// do those behind it.
    #[must_use]
    pub fn give_up(&mut self, number: Number, now: Moment) -> Called {
        let mut called = self.call(now);
        if let Some(waiting) = self.line.get(&number)
            && waiting.ticket.is_none()
        {
            self.is_refused(number, waiting.hold, &mut called);
        }
        called
    }

    /// This delivery no longer waits.
    pub fn leave(&mut self, number: Number) {
        self.take(number);
    }

    /// Whether this delivery is the next to be published to its backlog.
    #[must_use]
    pub fn is_next(&self, entry: EntryTicket) -> bool {
        self.next_of_backlog(entry) == Some(entry.number)
    }

    /// The number of the next delivery to be published to the entry's backlog.
    #[must_use]
    pub fn next_of_backlog(&self, entry: EntryTicket) -> Option<u64> {
        self.backlogs.get(&entry.key)?.entering.front().copied()
    }

    /// The delivery was published to its backlog; or, if not `is_there`, doesn't go there after all.
    pub fn entered(&mut self, entry: EntryTicket, is_there: bool) {
        if let Some(contents) = self.backlogs.get_mut(&entry.key) {
            contents.entering.retain(|number| *number != entry.number);
        }
        if !is_there || self.elsewhere.contains(&entry.key) {
            self.left(entry.key, true);
        }
    }

    /// Sets whether another instance consumes a backlog.
    pub fn set_elsewhere(&mut self, key: Key, is_elsewhere: bool) {
        if !is_elsewhere {
            self.elsewhere.remove(&key);
            return;
        }
        self.elsewhere.insert(key);
        if let Some(contents) = self.backlogs.get_mut(&key) {
            (contents.others, contents.hold) = (false, None);
            contents.ours = contents.entering.len() as u64;
            if contents.entering.is_empty() {
                self.backlogs.remove(&key);
            }
        }
    }

    /// A delivery left its backlog without an attempt: it was dropped, or is dead. For those that begin,
    /// [`Self::ask_head`] does this.
    pub fn left(&mut self, key: Key, is_ours: bool) {
        if let Some(contents) = self.backlogs.get_mut(&key) {
            contents.ours = contents.ours.saturating_sub(u64::from(is_ours));
            if contents.ours == 0 && !contents.others && contents.entering.is_empty() {
                self.backlogs.remove(&key);
            }
        }
    }

    /// A backlog exists, and its contents are unknown.
    pub fn found(&mut self, key: Key) {
        self.backlogs.entry(key).or_default().others = true;
    }

    /// The number of the last delivery that entered a backlog, while the backlog may hold something.
    #[must_use]
    pub fn last(&self, key: Key) -> u64 {
        self.backlogs.get(&key).map_or(0, |contents| contents.last)
    }

    /// The broker says that a backlog is empty. `last` is what [`Self::last`] was when the broker was
    /// asked. Returns false if another delivery has entered since, or is about to.
    pub fn is_emptied(&mut self, key: Key, last: u64) -> bool {
        let has_more = |contents: &Contents| contents.last != last || !contents.entering.is_empty();
        if self.backlogs.get(&key).is_some_and(has_more) {
            return false;
        }
        self.backlogs.remove(&key);
        true
    }

    /// Whether a backlog may hold something.
    #[must_use]
    pub fn is_in_use(&self, key: Key) -> bool {
        !self.backlogs.is_empty() && self.backlogs.contains_key(&key)
    }
}

/// Whether it has its full share of something.
fn is_shared(hold: Hold) -> bool {
    matches!(hold, Hold::Share | Hold::Group)
}

/// Whether it may end as soon as another request does.
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
