//! Who begins, who waits a moment, and who goes to its receiver's backlog: in order.
//!
//! [`super::pace`] says whether an attempt may begin. This says what becomes of a delivery that may not:
//!
//! - If that may be over at any moment, because all that is missing is the end of another request, it
//!   waits where it is, for a moment: few of them do, unless requests of that receiver end one after the
//!   other.
//! - Otherwise it *enters* its receiver's backlog: a queue of the broker's, one for each event queue and
//!   webhook.
//!
//! A delivery that has never been attempted keeps its place in the order of its queue: while the backlog
//! holds something, or somebody waits for the same receiver, it goes behind them. Retries don't.
//!
//! To go through a backlog costs twice the work, and while one holds something, all that comes has to. What
//! comes faster than that takes would fill it for as long as it comes, once a receiver or the machine has stood
//! still for a moment. So whoever would go behind what a brisk receiver will have had soon waits for that, too,
//! and is one of few that enter meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use uuid::Uuid;

use super::limits::Limit;
use super::pace::{Admission, Ask, Attempt, Hold, Pace, Ticket};
use super::time::Moment;

/// The most deliveries of one webhook that wait a moment at a time, for each queue, unless its receiver is
/// brisk. Each holds a consumer, and others need those.
const MOST_EACH: usize = 4;

/// The part of a queue's capacity that may wait a moment at a time, for receivers that are not brisk.
const MOST_PART: usize = 4;

/// The backlog of a brisk receiver is short up to this multiple of the queue's capacity. It has that much in
/// less than half a second.
const SHORT: usize = 64;

/// What asks for an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A delivery that has never been attempted: it keeps its place in the order of its queue.
    Fresh,
    /// One that has.
    Retry,
}

/// A delivery's place among those that enter a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTicket {
    key: Key,
    number: u64,
}

impl EntryTicket {
    /// In the order in which all places were given, of whichever backlog: who has several of them takes
    /// them in this order, or two of those could wait for each other for ever.
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
    /// Its place among those that enter the backlog; none, if it is there already, or left the line by
    /// itself.
    pub entry: Option<EntryTicket>,
}

/// What came of a question that was not refused.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Intent {
    /// It begins now.
    Begins(Attempt),
    /// It begins when it is called. Only for a moment, unless every place is taken.
    Waits(Number),
}

/// Who waits; in the order in which they came.
pub type Number = u64;

/// Those who are called, and what came of it.
pub type Called = Vec<(Number, Result<Attempt, Refusal>)>;

/// The number of an event queue, and a webhook.
type Key = (usize, Uuid);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fresh,
    Retry,
    /// The first of a backlog, and whether this process has put it there.
    Head(bool),
}

/// Somebody who waits.
#[derive(Clone, Copy, Debug)]
struct Waiter {
    ask: Ask,
    kind: Kind,
    /// Its place in the line for a place; none, if it waits for something else.
    ticket: Option<Ticket>,
    hold: Hold,
}

impl Waiter {
    fn key(&self) -> Key {
        (self.ask.queue, self.ask.webhook)
    }
}

/// What a backlog may hold, as far as this process knows.
#[derive(Clone, Debug, Default)]
struct Contents {
    /// Deliveries that this process has sent there, and that have not left it.
    ours: u64,
    /// It may hold others.
    others: bool,
    /// Those on their way there.
    entering: VecDeque<u64>,
    /// The number of the last that went there.
    last: u64,
    /// Why its first was refused last; none while it is consumed.
    hold: Option<Hold>,
}

/// The [`Pace`], those who wait, and what the backlogs hold.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Who may begin.
    pub pace: Pace,
    /// By queue.
    capacities: Vec<usize>,
    line: BTreeMap<Number, Waiter>,
    /// How many of these wait for something else than a place.
    brief: usize,
    /// Those that may hold something.
    backlogs: HashMap<Key, Contents>,
    /// Those that another instance consumes: this one doesn't know what they hold, and needn't.
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

    /// Asks for an attempt of a delivery that is in no backlog. `is_paused`: its webhook gets nothing.
    ///
    /// # Errors
    /// Why there is none, and the delivery's place in the backlog; those who are called have gone there
    /// before it.
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
            // What holds up the first holds up those behind it.
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

    /// Asks for an attempt of the first of a backlog, which leaves it when it begins. `is_ours`: this
    /// process has put it there. It waits for a place, and for nothing else.
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

    /// Whether one more may wait a moment.
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

    /// Whether all that a backlog holds will have left it soon.
    fn is_empty_soon(&self, key: Key, now: Moment) -> bool {
        let is_short = |contents: &Contents| {
            let most = (SHORT * self.capacities[key.0]) as u64;
            !contents.others && contents.ours <= most && contents.hold.is_none_or(is_shared)
        };
        self.backlogs.get(&key).is_some_and(is_short) && self.is_brisk(key, now)
    }

    /// The deliveries of that queue and webhook that wait in its order.
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

    /// Those who wait in the order of that queue go to the backlog, in this order.
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

    /// Whether somebody waits.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        !self.line.is_empty()
    }

    /// Calls those who wait, as far as they may begin now, or have to go to their backlogs. To be asked
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
        // Behind these nobody may begin.
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

    /// Whoever has this number has waited for long enough, unless it waits for a place: it goes to the
    /// backlog, and those behind it do.
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

    /// Whoever has this number no longer waits.
    pub fn leave(&mut self, number: Number) {
        self.take(number);
    }

    /// Whether a delivery that enters a backlog is the next to be published there.
    #[must_use]
    pub fn is_next(&self, entry: EntryTicket) -> bool {
        self.next_of_backlog(entry) == Some(entry.number)
    }

    /// The number of the entry that is the next of its backlog.
    #[must_use]
    pub fn next_of_backlog(&self, entry: EntryTicket) -> Option<u64> {
        self.backlogs.get(&entry.key)?.entering.front().copied()
    }

    /// A delivery was published to its backlog; or, if not `is_there`, is not going there after all.
    pub fn entered(&mut self, entry: EntryTicket, is_there: bool) {
        if let Some(contents) = self.backlogs.get_mut(&entry.key) {
            contents.entering.retain(|number| *number != entry.number);
        }
        if !is_there || self.elsewhere.contains(&entry.key) {
            self.left(entry.key, true);
        }
    }

    /// Whether another instance consumes a backlog.
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

    /// A delivery has left its backlog without an attempt: it was dropped, or is dead. [`Self::ask_head`]
    /// does it for those that begin.
    pub fn left(&mut self, key: Key, is_ours: bool) {
        if let Some(contents) = self.backlogs.get_mut(&key) {
            contents.ours = contents.ours.saturating_sub(u64::from(is_ours));
            if contents.ours == 0 && !contents.others && contents.entering.is_empty() {
                self.backlogs.remove(&key);
            }
        }
    }

    /// There is a backlog, and nobody knows what it holds.
    pub fn found(&mut self, key: Key) {
        self.backlogs.entry(key).or_default().others = true;
    }

    /// The number of the last that entered a backlog, as far as it may hold something.
    #[must_use]
    pub fn last(&self, key: Key) -> u64 {
        self.backlogs.get(&key).map_or(0, |contents| contents.last)
    }

    /// The broker says that a backlog is empty; when it was asked, this one was the [`Self::last`]. False:
    /// another has come since, or is on its way there.
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

/// Whether it has as much as it gets of what it shares with others.
fn is_shared(hold: Hold) -> bool {
    matches!(hold, Hold::Share | Hold::Group)
}

/// Whether it may be over as soon as another request ends.
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
