//! The age of the oldest waiting delivery, as far as one process knows.
//!
//! Hundreds of thousands of deliveries may wait at the broker, so they aren't remembered one by one. Of
//! all deliveries whose waits end at about the same time, only the oldest arrival is remembered.
//!
//! Times are [`Moment`]s passed as arguments: nothing here reads a clock.

use std::collections::BTreeMap;
use std::time::Duration;

use super::time::{self, Moment};

/// The end of a wait is rounded up by at most 1/16 of the wait. This takes up to twice this number of
/// slots per order of magnitude (power of two): some hundreds with a usual schedule.
const PARTS: u64 = 16;

/// The oldest of the deliveries that wait until a known time.
///
/// A delivery may be counted for up to a sixteenth of its wait too long, but never too short.
#[derive(Debug, Default)]
pub struct OldestWaiting {
    /// By the end of their wait: when the oldest of these deliveries was first received. Both are
    /// milliseconds of a [`Moment`]; the arrival may be before time zero, and then is negative.
    slots: BTreeMap<u64, i64>,
}

impl OldestWaiting {
    /// Adds a delivery of this age that begins to wait.
    pub fn add(&mut self, age: Duration, delay: Duration, now: Moment) {
        self.forget_ended(now);
        // The width is a power of two, so that waits of different lengths share slots.
        let width = (millis(delay) / PARTS).checked_ilog2().map_or(1, |power| 1 << power);
        let end = millis(now.saturating_add(delay)).next_multiple_of(width);
        let received = signed_millis(now) - signed_millis(age);
        let oldest = self.slots.entry(end).or_insert(received);
        *oldest = received.min(*oldest);
    }

    /// The age of the oldest waiting delivery; `None` if none waits.
    pub fn oldest(&mut self, now: Moment) -> Option<Duration> {
        self.forget_ended(now);
        let received = self.slots.values().min()?;
        let age = signed_millis(now) - received;
        Some(Duration::from_millis(age.max(0).unsigned_abs()))
    }

    fn forget_ended(&mut self, now: Moment) {
        let now = millis(now);
        while let Some(slot) = self.slots.first_entry()
            && *slot.key() <= now
        {
            slot.remove();
        }
    }
}

/// At most half of the maximum, so that the result can be rounded up.
fn millis(duration: Duration) -> u64 {
    time::millis(duration).min(u64::MAX / 2)
}

/// At most half of the maximum, so that a difference doesn't overflow.
fn signed_millis(duration: Duration) -> i64 {
    i64::try_from(time::millis(duration)).map_or(i64::MAX / 2, |millis| millis.min(i64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Adds deliveries by (age, delay, now) in seconds, and checks the oldest at some later times.
    #[track_caller]
    fn check(added: &[(u64, u64, u64)], expected: &[(u64, Option<u64>)]) {
        let mut waiting = OldestWaiting::default();
        for &(age, delay, now) in added {
            waiting.add(secs(age), secs(delay), secs(now));
        }
        for &(now, age) in expected {
            assert_eq!(waiting.oldest(secs(now)), age.map(secs), "{added:?} at {now}");
        }
    }

    #[test]
    fn the_oldest_is_known_until_its_wait_is_over() {
        check(&[], &[(0, None), (9, None)]);
        check(&[(0, 16, 5)], &[(5, Some(0)), (20, Some(15)), (22, None)]);
        // This one is older than the process.
        check(&[(7_200, 60, 1)], &[(1, Some(7_200)), (60, Some(7_259)), (65, None)]);
        // The oldest of several, whichever began to wait first.
        check(&[(10, 100, 0), (500, 10, 1)], &[(1, Some(500)), (10, Some(509)), (12, Some(22))]);
        check(&[(500, 10, 0), (10, 100, 1)], &[(1, Some(501)), (11, Some(20)), (108, None)]);
        // These two share a slot.
        check(&[(3, 6_400, 0), (4, 6_400, 0)], &[(6_399, Some(6_403)), (6_600, None)]);
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let mut waiting = OldestWaiting::default();
        waiting.add(Duration::MAX, secs(1), secs(1));
        waiting.add(secs(1), secs(1 << 40), secs(1));
        assert!(waiting.oldest(secs(1)).is_some_and(|age| age > secs(1 << 40)));
        assert_eq!(waiting.oldest(secs(1 << 40)), Some(secs(1 << 40)));
        assert_eq!(waiting.oldest(Duration::MAX / 2), None);
    }

    fn a_delay() -> impl Strategy<Value = u64> {
        prop_oneof![1_u64..100, 1_000_u64..100_000, 1_u64..30 * 24 * 3_600_000]
    }

    proptest! {
        /// Compares the result with that of a list of all deliveries.
        #[test]
        fn the_age_is_that_of_a_full_list_within_a_sixteenth(
            added in prop::collection::vec((0_u64..10_000_000, a_delay(), 0_u64..200_000), 1..60),
            later in 0_u64..4_000_000_000,
        ) {
            let mut waiting = OldestWaiting::default();
            let mut all = Vec::new();
            let mut now = 0;
            let looks = added.into_iter().map(Some).chain([None]);
            for look in looks {
                match look {
                    Some((age, delay, passed)) => {
                        now += passed;
                        let [age_is, delay_is, now_is] = [age, delay, now].map(Duration::from_millis);
                        waiting.add(age_is, delay_is, now_is);
                        all.push((i128::from(now) - i128::from(age), now + delay, delay));
                    }
                    None => now += later,
                }
                let oldest = |more: fn(u64) -> u64| {
                    let waits = all.iter().filter(|(_, end, delay)| end + more(*delay) > now);
                    waits.map(|(received, ..)| i128::from(now) - received).max()
                };
                let told = waiting.oldest(Duration::from_millis(now));
                let told = told.map(|age| i128::try_from(age.as_millis()).expect("it is small"));
                prop_assert!(told >= oldest(|_| 0), "{told:?} is too young");
                prop_assert!(told <= oldest(|delay| delay / PARTS), "{told:?} is too old");
            }
        }

        #[test]
        fn any_number_of_deliveries_takes_at_most_some_hundred_slots(
            delays in prop::collection::vec(a_delay(), 1..100), step in 1_u64..2_000_000,
        ) {
            let mut waiting = OldestWaiting::default();
            for (now, delay) in (0..).step_by(step as usize).zip(delays.iter().cycle()).take(1_500) {
                waiting.add(secs(0), Duration::from_millis(*delay), Duration::from_millis(now));
            }
            // There are 28 powers of two, each with fewer than twice sixteen slots, and an incomplete one.
            prop_assert!(waiting.slots.len() <= 28 * 33, "{} slots", waiting.slots.len());
        }
    }
}
