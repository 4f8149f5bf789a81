//! Which instances are alive, according to the rows that each of them updates every few seconds.
//!
//! Clocks aren't compared: an instance is alive while its row changes. An outage of PostgreSQL stops the
//! updates of all instances alike, so it makes none of them look dead.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::Instance;

/// An instance counts as dead if this instance has updated its own row this many times and each time
/// found the other's row unchanged.
const MISSED: u32 = 5;

/// An instance's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceRecord {
    /// The id of the instance, which is new at each start.
    pub id: Uuid,
    /// Where it runs, for people.
    pub name: String,
    /// The queues that it serves now, each with its broker.
    pub queues: BTreeSet<String>,
    /// How often the instance has updated the row.
    pub beats: i64,
}

/// The instances that have a row, ordered by id.
#[derive(Clone, Debug, Default)]
pub struct Roll(BTreeMap<Uuid, SeenInstance>);

#[derive(Clone, Debug)]
struct SeenInstance {
    record: InstanceRecord,
    /// How many updates of our own row have passed since its row last changed.
    missed: u32,
}

impl Roll {
    /// Takes over the rows of all instances. An instance without a row has left. `is_beat` says whether
    /// this instance has just updated its own row; other reads don't count against silent instances.
    pub fn read(&mut self, records: Vec<InstanceRecord>, is_beat: bool) {
        let mut before = std::mem::take(&mut self.0);
        for record in records {
            let silent = before.remove(&record.id).filter(|seen| seen.record.beats == record.beats);
            let missed = silent.map_or(0, |seen| seen.missed.saturating_add(u32::from(is_beat)));
            self.0.insert(record.id, SeenInstance { record, missed });
        }
    }

    /// The instances that are alive and serve a queue. This instance (`me`) is always among them.
    #[must_use]
    pub fn alive(&self, me: &InstanceRecord) -> Vec<InstanceRecord> {
        let serves = |seen: &&SeenInstance| seen.missed < MISSED && !seen.record.queues.is_empty();
        let others = self.0.values().filter(serves).filter(|seen| seen.record.id != me.id);
        let mut alive: Vec<InstanceRecord> = others.map(|seen| seen.record.clone()).collect();
        alive.push(me.clone());
        alive.sort_unstable_by_key(|record| record.id);
        alive
    }

    /// The dead instances, whose rows may be deleted.
    pub fn dead(&self, me: Uuid) -> impl Iterator<Item = &InstanceRecord> {
        let is_dead = move |seen: &&SeenInstance| seen.missed >= MISSED && seen.record.id != me;
        self.0.values().filter(is_dead).map(|seen| &seen.record)
    }

    /// Whether an instance has a row.
    #[must_use]
    pub fn has(&self, id: Uuid) -> bool {
        self.0.contains_key(&id)
    }
}

impl From<&InstanceRecord> for Instance {
    fn from(record: &InstanceRecord) -> Self {
        Self { id: record.id, queues: record.queues.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: u128, beats: i64) -> InstanceRecord {
        let id = Uuid::from_u128(id);
        InstanceRecord { id, name: String::new(), queues: ["q".to_owned()].into(), beats }
    }

    fn alive(roll: &Roll) -> Vec<u128> {
        roll.alive(&record(1, 0)).iter().map(|record| record.id.as_u128()).collect()
    }

    #[test]
    fn an_instance_that_updates_its_row_is_alive_and_one_without_a_row_has_left() {
        let mut roll = Roll::default();
        assert_eq!(alive(&roll), [1]);
        for beats in 0..20 {
            roll.read(vec![record(1, beats), record(2, beats), record(3, -beats)], true);
            assert_eq!(alive(&roll), [1, 2, 3]);
        }
        assert_eq!(roll.dead(Uuid::from_u128(1)).count(), 0);
        roll.read(vec![record(1, 20), record(3, -19)], false);
        assert_eq!(alive(&roll), [1, 3]);
        // Our own row was deleted.
        roll.read(vec![], false);
        assert_eq!(alive(&roll), [1]);
        assert!(!roll.has(Uuid::from_u128(1)));
    }

    #[test]
    fn an_instance_that_serves_no_queue_has_no_part_and_is_not_dead() {
        let mut roll = Roll::default();
        for beats in 0..20 {
            let idle = InstanceRecord { queues: BTreeSet::new(), ..record(2, beats) };
            roll.read(vec![record(1, beats), idle, record(3, beats)], true);
            assert_eq!(alive(&roll), [1, 3]);
        }
        assert_eq!(roll.dead(Uuid::from_u128(1)).count(), 0);
        roll.read(vec![record(1, 20), record(2, 20), record(3, 20)], false);
        assert_eq!(alive(&roll), [1, 2, 3]);
    }

    #[test]
    fn a_silent_instance_is_dead_after_five_of_our_updates_and_alive_once_it_writes_again() {
        let mut roll = Roll::default();
        let mut read = |beats: i64, is_beat| {
            roll.read(vec![record(1, 0), record(2, beats)], is_beat);
            (alive(&roll).len(), roll.dead(Uuid::from_u128(1)).count())
        };
        for _ in 0..100 {
            assert_eq!(read(7, false), (2, 0), "reads between updates don't count");
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
