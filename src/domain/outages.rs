//! Decides which outages of receivers are written to the table, and how often. So they survive this
//! process and are known to other instances, at little cost.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use uuid::Uuid;

use super::receiver::Outage;
use super::time::Moment;

/// The coarsest grain: an outage that is shorter isn't written, and one that continues is written at most
/// this often.
const MOST_GRAIN: Duration = Duration::from_secs(60);

/// The longest time between two checks for changes.
const MOST_TICK: Duration = Duration::from_secs(5);

/// The finest grain, for a DISABLE_AFTER of less than half a second.
const LEAST_GRAIN: Duration = Duration::from_millis(100);

/// How precisely outages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grain {
    /// The shortest outage that is written, and the shortest time between two writes of one.
    pub grain: Duration,
    /// The time between two checks.
    pub tick: Duration,
    /// How long before its first write an outage may have begun. If an outage in a row began earlier,
    /// another process has seen that outage end.
    pub most_before: Duration,
}

impl Grain {
    /// Precise enough to disable a webhook after `disable_after`, if that is set.
    #[must_use]
    pub fn of(disable_after: Option<Duration>) -> Self {
        let wanted = disable_after.map_or(MOST_GRAIN, |after| after / 4);
        let grain = wanted.clamp(LEAST_GRAIN, MOST_GRAIN);
        let tick = grain.min(MOST_TICK);
        Self { grain, tick, most_before: grain + 2 * tick }
    }
}

/// The outages that continue, as they were last written.
#[derive(Debug)]
pub struct Outages {
    grain: Duration,
    written: HashMap<Uuid, Written>,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    failed_at: Moment,
    /// When it was written.
    at: Moment,
    /// Whether the circuit breaker was open.
    is_open: bool,
}

impl Outages {
    /// Without any outage.
    #[must_use]
    pub fn new(grain: Duration) -> Self {
        Self { grain, written: HashMap::new() }
    }

    /// Which of all current outages have to be written at `now`: new ones that have lasted long enough,
    /// and those whose receiver has failed again since they were written.
    pub fn due(&mut self, all: Vec<(Uuid, Outage)>, now: Moment) -> Vec<(Uuid, Outage)> {
        let continuing: HashSet<Uuid> = all.iter().map(|(webhook, _)| *webhook).collect();
        self.written.retain(|webhook, _| continuing.contains(webhook));
        let is_due = |(webhook, outage): &(Uuid, Outage)| match self.written.get(webhook) {
            None => now.saturating_sub(outage.since) >= self.grain,
            Some(written) => {
                let has_failed = outage.failed_at > written.failed_at;
                let has_opened = outage.opened_at.is_some() && !written.is_open;
                has_opened || has_failed && now.saturating_sub(written.at) >= self.grain
            }
        };
        all.into_iter().filter(is_due).collect()
    }

    /// Records that these outages were written at `now`.
    pub fn note_written(&mut self, outages: &[(Uuid, Outage)], now: Moment) {
        self.written.extend(outages.iter().map(
            |(webhook, Outage { failed_at, opened_at, .. })| {
                let is_open = opened_at.is_some();
                (*webhook, Written { failed_at: *failed_at, at: now, is_open })
            },
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Duration::from_secs(1_000 + seconds)
    }

    fn outage(since: u64, failed_at: u64, opened_at: Option<u64>) -> Outage {
        Outage { since: at(since), failed_at: at(failed_at), opened_at: opened_at.map(at) }
    }

    #[test]
    fn an_outage_is_written_once_it_has_lasted_and_then_at_most_once_per_grain() {
        let webhook = Uuid::from_u128(1);
        let mut outages = Outages::new(Duration::from_secs(60));
        let mut look = |outage: Option<Outage>, now: u64| {
            let all = outage.map(|outage| (webhook, outage)).into_iter().collect();
            let due = outages.due(all, at(now));
            outages.note_written(&due, at(now));
            due.len()
        };
        assert_eq!(look(Some(outage(0, 30, None)), 59), 0, "it is too short");
        assert_eq!(look(Some(outage(0, 30, None)), 60), 1);
        assert_eq!(look(Some(outage(0, 30, None)), 200), 0, "nothing has happened since");
        assert_eq!(look(Some(outage(0, 201, None)), 201), 1);
        assert_eq!(look(Some(outage(0, 202, None)), 202), 0, "it was written just now");
        assert_eq!(look(Some(outage(0, 203, Some(203))), 203), 1, "its breaker has opened");
        assert_eq!(look(None, 204), 0);
        assert_eq!(look(Some(outage(205, 206, None)), 206), 0, "this is another outage");
    }

    #[test]
    fn an_outage_that_could_not_be_written_is_due_again() {
        let mut outages = Outages::new(Duration::from_secs(1));
        let all = || vec![(Uuid::nil(), outage(0, 5, None))];
        assert_eq!(outages.due(all(), at(5)).len(), 1);
        let due = outages.due(all(), at(6));
        assert_eq!(due.len(), 1);
        outages.note_written(&due, at(6));
        assert_eq!(outages.due(all(), at(7)).len(), 0);
    }

    #[test]
    fn the_grain_is_fine_enough_for_disable_after() {
        let seconds = Duration::from_secs;
        let Grain { grain, tick, most_before } = Grain::of(None);
        assert_eq!((grain, tick, most_before), (seconds(60), seconds(5), seconds(70)));
        assert_eq!(Grain::of(Some(seconds(432_000))), Grain::of(None));
        for after in [1, 2, 10, 60, 400, 86_400].map(seconds) {
            let Grain { grain, tick, most_before } = Grain::of(Some(after));
            assert!(most_before < after && grain <= after / 4 && tick <= grain, "{after:?}");
        }
    }
}
