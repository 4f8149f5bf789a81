//! What the backlogs hold, as far as this process knows, and in which order deliveries enter them.

use std::collections::{HashMap, HashSet, VecDeque};

use uuid::Uuid;

use crate::domain::pace::Hold;

/// A backlog: the number of its event queue, and its webhook.
pub type BacklogKey = (usize, Uuid);

/// A delivery's place in the line of deliveries that enter a backlog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTicket {
    key: BacklogKey,
    number: u64,
}

impl EntryTicket {
    /// The number of the place. Numbers increase over all backlogs. A thread that holds several places
    /// uses them in this order; otherwise two threads could wait for each other forever.
    #[must_use]
    pub fn number(self) -> u64 {
        self.number
    }
}

/// What one backlog holds.
#[derive(Clone, Debug, Default)]
struct Content {
    /// How many deliveries in it are from this process.
    ours: u64,
    /// Whether it may hold other deliveries.
    others: bool,
    /// The entry numbers of the deliveries that have not been published to it yet.
    entering: VecDeque<u64>,
    /// The entry number of the last delivery.
    last: u64,
    /// Why its first delivery was last refused; `None` while it is consumed.
    hold: Option<Hold>,
}

/// What the backlogs hold.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The backlogs that may hold something.
    in_use: HashMap<BacklogKey, Content>,
    /// The backlogs that another instance consumes. This one doesn't track what they hold.
    elsewhere: HashSet<BacklogKey>,
}

impl Contents {
    /// Gives a delivery that was refused for this reason the last place in the line of those that enter
    /// the backlog.
    pub(super) fn enter(&mut self, key: BacklogKey, hold: Hold, number: u64) -> EntryTicket {
        let content = self.in_use.entry(key).or_default();
        content.ours += 1;
        content.entering.push_back(number);
        content.last = number;
        if content.ours == 1 && !content.others {
            content.hold = Some(hold);
        }
        EntryTicket { key, number }
    }

    /// Records whether the first delivery of a backlog was refused, and why.
    pub(super) fn set_hold(&mut self, key: BacklogKey, hold: Option<Hold>) {
        if let Some(content) = self.in_use.get_mut(&key) {
            content.hold = hold;
        }
    }

    /// Why the first delivery of a backlog was last refused.
    pub(super) fn hold(&self, key: BacklogKey) -> Option<Hold> {
        self.in_use.get(&key)?.hold
    }

    /// Whether a backlog holds only deliveries of this process, `most` at most.
    pub(super) fn are_few(&self, key: BacklogKey, most: u64) -> bool {
        self.in_use.get(&key).is_some_and(|content| !content.others && content.ours <= most)
    }

    /// Whether this delivery is the next to be published to its backlog.
    #[must_use]
    pub fn is_next(&self, entry: EntryTicket) -> bool {
        self.next_entry(entry) == Some(entry.number)
    }

    /// The number of the next delivery to be published to the backlog of `entry`.
    #[must_use]
    pub fn next_entry(&self, entry: EntryTicket) -> Option<u64> {
        self.in_use.get(&entry.key)?.entering.front().copied()
    }

    /// Records that a delivery was published to its backlog (`is_there`), or that it doesn't go there
    /// after all.
    pub fn note_entered(&mut self, entry: EntryTicket, is_there: bool) {
        if let Some(content) = self.in_use.get_mut(&entry.key) {
            content.entering.retain(|number| *number != entry.number);
        }
        if !is_there || self.elsewhere.contains(&entry.key) {
            self.note_left(entry.key, true);
        }
    }

    /// Records that a delivery left its backlog without an attempt: it was dropped, or is dead. `is_ours`:
    /// this process had put it there. For a delivery that begins, [`super::Intake`] does this.
    pub fn note_left(&mut self, key: BacklogKey, is_ours: bool) {
        if let Some(content) = self.in_use.get_mut(&key) {
            content.ours = content.ours.saturating_sub(u64::from(is_ours));
            if content.ours == 0 && !content.others && content.entering.is_empty() {
                self.in_use.remove(&key);
            }
        }
    }

    /// Records that a backlog was found whose contents are unknown.
    pub fn note_found(&mut self, key: BacklogKey) {
        self.in_use.entry(key).or_default().others = true;
    }

    /// Records whether another instance consumes a backlog.
    pub fn set_elsewhere(&mut self, key: BacklogKey, is_elsewhere: bool) {
        if !is_elsewhere {
            self.elsewhere.remove(&key);
            return;
        }
        self.elsewhere.insert(key);
        if let Some(content) = self.in_use.get_mut(&key) {
            (content.others, content.hold) = (false, None);
            content.ours = content.entering.len() as u64;
            if content.entering.is_empty() {
                self.in_use.remove(&key);
            }
        }
    }

    /// The entry number of the last delivery of a backlog that may hold something; otherwise 0.
    #[must_use]
    pub fn last_entry(&self, key: BacklogKey) -> u64 {
        self.in_use.get(&key).map_or(0, |content| content.last)
    }

    /// Records that the broker says that a backlog is empty. `last` is what [`Self::last_entry`] was when
    /// the broker was asked. Returns false if another delivery has entered since, or is about to.
    pub fn note_empty(&mut self, key: BacklogKey, last: u64) -> bool {
        let has_more = |content: &Content| content.last != last || !content.entering.is_empty();
        if self.in_use.get(&key).is_some_and(has_more) {
            return false;
        }
        self.in_use.remove(&key);
        true
    }

    /// Whether a backlog may hold something.
    #[must_use]
    pub fn is_in_use(&self, key: BacklogKey) -> bool {
        !self.in_use.is_empty() && self.in_use.contains_key(&key)
    }
}
