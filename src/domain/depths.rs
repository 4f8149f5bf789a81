//! How many items wait, over time: whether their number grows, and when none will be left.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Moment;

/// How long counts are kept.
const SPAN: Duration = Duration::from_secs(15 * 60);

/// The minimum distance between counts that are kept, except for the latest one. So there are sixty of
/// them, as many as a plot shows.
const STEP: Duration = Duration::from_secs(15);

/// The minimum time over which growth is measured, once there are counts that old. It is longer than one
/// batch of deliveries takes, and short enough to leave out the outage before a recovery.
const PACE_SPAN: Duration = Duration::from_secs(10);

/// The latest counts, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Depths(VecDeque<(Moment, u32)>);

impl Depths {
    /// Adds the latest count and forgets those that are too old.
    pub fn push(&mut self, at: Moment, count: u32) {
        let mut latest = self.0.iter().rev();
        let is_close = |(last, before): (&(Moment, u32), &(Moment, u32))| last.0 - before.0 < STEP;
        if latest.next().zip(latest.next()).is_some_and(is_close) {
            self.0.pop_back();
        }
        self.0.push_back((at, count));
        while self.0.front().is_some_and(|(then, _)| *then + SPAN < at) {
            self.0.pop_front();
        }
    }

    /// The latest count; zero if there is none.
    #[must_use]
    pub fn now(&self) -> u32 {
        self.0.back().map_or(0, |(_, count)| *count)
    }

    /// The recent growth per second, negative if the number shrinks. `None` if there are no two counts.
    #[must_use]
    pub fn growth(&self) -> Option<f64> {
        let (latest, now) = *self.0.back()?;
        let is_old_enough = |(then, _): &&(Moment, u32)| *then + PACE_SPAN <= latest;
        let earlier = self.0.iter().rev().find(is_old_enough).or(self.0.front());
        let (then, before) = *earlier.filter(|(then, _)| *then < latest)?;
        Some((f64::from(now) - f64::from(before)) / (latest - then).as_secs_f64())
    }

    /// The seconds until none will be left at the present rate; `None` unless the number shrinks.
    #[must_use]
    pub fn empty_in(&self) -> Option<f64> {
        let growth = self.growth()?;
        (growth < 0.0).then(|| f64::from(self.now()) / -growth)
    }

    /// All counts, oldest first.
    pub fn counts(&self) -> impl Iterator<Item = (Moment, u32)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn depths(counts: &[(u64, u32)]) -> Depths {
        let mut depths = Depths::default();
        for (seconds, count) in counts {
            depths.push(at(*seconds), *count);
        }
        depths
    }

    #[test]
    fn growth_needs_two_counts_at_different_times() {
        assert_eq!((depths(&[]).growth(), depths(&[]).now()), (None, 0));
        let once = depths(&[(5, 100)]);
        assert_eq!((once.growth(), once.empty_in(), once.now()), (None, None, 100));
        // These two are of the same time.
        assert_eq!(depths(&[(5, 100), (5, 90)]).growth(), None);
    }

    #[test]
    fn only_a_shrinking_number_will_be_empty_some_time() {
        let falls = depths(&[(0, 1_000), (5, 950), (10, 900)]);
        assert_eq!((falls.growth(), falls.empty_in()), (Some(-10.0), Some(90.0)));
        let stays = depths(&[(0, 7), (5, 7)]);
        assert_eq!((stays.growth(), stays.empty_in()), (Some(0.0), None));
        let grows = depths(&[(0, 0), (5, 50)]);
        assert_eq!((grows.growth(), grows.empty_in()), (Some(10.0), None));
        let over = depths(&[(0, 50), (5, 0)]);
        assert_eq!(over.empty_in(), Some(0.0));
    }

    #[test]
    fn the_growth_during_a_recovery_does_not_include_the_outage_before() {
        let counts: Vec<_> = (0..40).map(|step| (step * 5, 1_000)).collect();
        let mut depths = depths(&counts);
        for step in 0..4_u32 {
            depths.push(at(200 + u64::from(step) * 5), 900 - step * 100);
        }
        let growth = depths.growth().expect("often counted");
        assert!((-20.0..=-10.0).contains(&growth), "{growth}");
    }

    #[test]
    fn growth_is_measured_even_if_counts_are_rare() {
        // With a thousand backlogs, each is counted as rarely as this.
        let seldom = depths(&[(0, 1_000), (250, 500)]);
        assert_eq!(seldom.growth(), Some(-2.0));
    }

    proptest! {
        #[test]
        fn counts_are_few_and_in_order_and_include_the_latest(
            steps in prop::collection::vec((0_u64..40, any::<u32>()), 1..300),
        ) {
            let mut depths = Depths::default();
            let mut now = 0;
            for (step, count) in steps {
                now += step;
                depths.push(at(now), count);
                let counts: Vec<_> = depths.counts().collect();
                prop_assert!(counts.len() <= 62, "{}", counts.len());
                prop_assert!(counts.is_sorted_by_key(|(at, _)| *at));
                prop_assert_eq!(counts.last(), Some(&(at(now), count)));
                prop_assert!(counts[0].0 + SPAN >= at(now));
                prop_assert!(depths.growth().is_none_or(f64::is_finite));
            }
        }
    }
}
