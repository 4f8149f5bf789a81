//! Which instances are alive, according to the rows that each of them updates every few seconds.
//!
//! No clocks are compared: an instance is alive while its row changes. An outage of PostgreSQL stops all
//! updates, so nobody is taken for dead by it.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::Instance;

/// An instance counts as dead if this many of our own updates pass without one of its. We look once per
/// update.
const MISSED: u32 = 5;

/// An instance's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// Its id, which is new at each start.
    pub id: Uuid,
    /// Where it runs, for people.
    pub name: String,
    /// The queues that it serves now, each with its broker.
    pub queues: BTreeSet<String>,
    /// How often it has updated the row.
    pub beats: i64,
}

/// The known instances, ordered by id.
#[derive(Clone, Debug, Default)]
pub struct Roll(BTreeMap<Uuid, Seen>);

#[derive(Clone, Debug)]
struct Seen {
    entry: InstanceRecord,
    /// How many of our updates in a row found its row unchanged.
    missed: u32,
}

impl Roll {
    /// Takes in the rows of all instances. An instance without a row has left. `is_beat`: we have just
    /// updated our own row; other looks don't count against silent instances.
    pub fn read(&mut self, entries: Vec<InstanceRecord>, is_beat: bool) {
        let mut before = std::mem::take(&mut self.0);
        for entry in entries {
            let silent = before.remove(&entry.id).filter(|seen| seen.entry.beats == entry.beats);
            let missed = silent.map_or(0, |seen| seen.missed.saturating_add(u32::from(is_beat)));
            self.0.insert(entry.id, Seen { entry, missed });
        }
    }

    /// Those that are alive and serve a queue; this one counts, whatever is written of it.
    #[must_use]
    pub fn alive(&self, me: &InstanceRecord) -> Vec<InstanceRecord> {
        let serves = |seen: &&Seen| seen.missed < MISSED && !seen.entry.queues.is_empty();
        let others = self.0.values().filter(serves).filter(|seen| seen.entry.id != me.id);
        let mut alive: Vec<InstanceRecord> = others.map(|seen| seen.entry.clone()).collect();
        alive.push(me.clone());
        alive.sort_unstable_by_key(|entry| entry.id);
        alive
    }

    /// The dead instances, whose rows may be deleted.
    pub fn dead(&self, me: Uuid) -> impl Iterator<Item = &InstanceRecord> {
        let is_dead = move |seen: &&Seen| seen.missed >= MISSED && seen.entry.id != me;
        self.0.values().filter(is_dead).map(|seen| &seen.entry)
    }

    /// Whether that instance has a row.
    #[must_use]
    pub fn has(&self, id: Uuid) -> bool {
        self.0.contains_key(&id)
    }
}

impl From<&InstanceRecord> for Instance {
    fn from(entry: &InstanceRecord) -> Self {
        Self { id: entry.id, queues: entry.queues.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u128, beats: i64) -> InstanceRecord {
        let id = Uuid::from_u128(id);
        InstanceRecord { id, name: String::new(), queues: ["q".to_owned()].into(), beats }
    }

    fn alive(roll: &Roll) -> Vec<u128> {
        roll.alive(&entry(1, 0)).iter().map(|entry| entry.id.as_u128()).collect()
    }

    #[test]
    fn who_writes_is_alive_and_whose_entry_is_gone_has_left() {
        let mut roll = Roll::default();
        assert_eq!(alive(&roll), [1]);
        for beats in 0..20 {
            roll.read(vec![entry(1, beats), entry(2, beats), entry(3, -beats)], true);
            assert_eq!(alive(&roll), [1, 2, 3]);
        }
        assert_eq!(roll.dead(Uuid::from_u128(1)).count(), 0);
        roll.read(vec![entry(1, 20), entry(3, -19)], false);
        assert_eq!(alive(&roll), [1, 3]);
        // Somebody deleted our row.
        roll.read(vec![], false);
        assert_eq!(alive(&roll), [1]);
        assert!(!roll.has(Uuid::from_u128(1)));
    }

    #[test]
    fn who_serves_no_queue_has_no_part_and_is_not_dead() {
        let mut roll = Roll::default();
        for beats in 0..20 {
            let idle = InstanceRecord { queues: BTreeSet::new(), ..entry(2, beats) };
            roll.read(vec![entry(1, beats), idle, entry(3, beats)], true);
            assert_eq!(alive(&roll), [1, 3]);
        }
        assert_eq!(roll.dead(Uuid::from_u128(1)).count(), 0);
        roll.read(vec![entry(1, 20), entry(2, 20), entry(3, 20)], false);
        assert_eq!(alive(&roll), [1, 2, 3]);
    }

    #[test]
    fn who_is_silent_is_dead_after_some_of_our_own_beats_and_alive_as_soon_as_it_writes() {
        let mut roll = Roll::default();
        let mut read = |beats: i64, is_beat| {
            roll.read(vec![entry(1, 0), entry(2, beats)], is_beat);
            (alive(&roll).len(), roll.dead(Uuid::from_u128(1)).count())
        };
        for _ in 0..100 {
            assert_eq!(read(7, false), (2, 0), "looks in between count for nothing");
        }
        for _ in 1..MISSED {
            assert_eq!(read(7, true), (2, 0));
        }
        // Our own row says nothing about us.
        assert_eq!(read(7, true), (1, 1));
        assert_eq!(read(8, false), (2, 0));
        assert_eq!(read(8, true), (2, 0));
    }
}
