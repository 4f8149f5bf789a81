//! Counters over time: how much they grew in a period, and quantiles from the buckets of a histogram.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Moment;

/// The counters of one lane at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages received.
    pub received: u64,
    /// Attempts answered with 2xx.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Deliveries by lag: the count of each bucket of the histogram. The last bucket has no upper bound.
    pub lag: Vec<u64>,
}

impl Counts {
    /// The growth of each counter since an earlier time.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let lag = self.lag.iter().zip(&earlier.lag);
        Self {
            received: self.received.saturating_sub(earlier.received),
            delivered: self.delivered.saturating_sub(earlier.delivered),
            failed: self.failed.saturating_sub(earlier.failed),
            lag: lag.map(|(now, then)| now.saturating_sub(*then)).collect(),
        }
    }
}

/// The counters of all lanes at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When the counters were read.
    pub at: Moment,
    /// The counters of each lane.
    pub lanes: Vec<Counts>,
}

/// The latest samples, oldest first.
#[derive(Debug)]
pub struct Samples {
    span: Duration,
    most: usize,
    samples: VecDeque<Sample>,
}

impl Samples {
    /// Without any sample. At most `most` samples are kept, none older than `span`.
    #[must_use]
    pub fn new(span: Duration, most: usize) -> Self {
        Self { span, most, samples: VecDeque::with_capacity(most) }
    }

    /// Adds the latest sample and forgets those that are too old.
    pub fn push(&mut self, sample: Sample) {
        let oldest = sample.at.saturating_sub(self.span);
        self.samples.push_back(sample);
        let is_full = |samples: &VecDeque<Sample>| samples.len() > self.most;
        while is_full(&self.samples) || self.samples.front().is_some_and(|s| s.at < oldest) {
            self.samples.pop_front();
        }
    }

    /// When the samples were taken, oldest first.
    pub fn moments(&self) -> impl Iterator<Item = Moment> {
        self.samples.iter().map(|sample| sample.at)
    }

    /// How much a lane's counters grew from each sample to the next, oldest first: one item fewer than
    /// there are samples.
    pub fn steps(&self, lane: usize) -> impl Iterator<Item = Counts> {
        let pairs = self.samples.iter().zip(self.samples.iter().skip(1));
        pairs.map(move |(from, to)| to.lanes[lane].since(&from.lanes[lane]))
    }

    /// How much a lane's counters grew within `span` before the latest sample, and the time that the
    /// samples cover of it. `None` if there are no two samples within `span`.
    #[must_use]
    pub fn growth(&self, lane: usize, span: Duration) -> Option<(Duration, Counts)> {
        let latest = self.samples.back()?;
        let from = latest.at.saturating_sub(span);
        let first = self.samples.iter().find(|sample| sample.at >= from)?;
        let took = latest.at.checked_sub(first.at).filter(|took| !took.is_zero())?;
        Some((took, latest.lanes[lane].since(&first.lanes[lane])))
    }
}

/// The bound of a quantile that is known only by its bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// The quantile is at most this, the upper bound of its bucket.
    AtMost(f64),
    /// The quantile is more than this, the largest bound.
    Above(f64),
}

/// The bound of the quantile `q` (above 0, at most 1). `counts` has the count of each bucket. `bounds`
/// has the upper bounds of the buckets, ascending, except for the last bucket, which has none. `None` if
/// nothing was counted.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "nobody counts to 2^53, and the rank is from 1 to what was counted"
)]
pub fn quantile(q: f64, counts: &[u64], bounds: &[f64]) -> Option<Bound> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    // The nearest rank: that of the smallest value with at least this share of values at or below it.
    let rank = ((q * all as f64).ceil() as u64).clamp(1, all);
    let mut seen = 0;
    let within = counts.iter().zip(bounds).find(|(count, _)| {
        seen += **count;
        seen >= rank
    });
    match within {
        Some((_, bound)) => Some(Bound::AtMost(*bound)),
        None => bounds.last().map(|bound| Bound::Above(*bound)),
    }
}

/// The rate per second of `count` items in this time.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "nobody counts to 2^53")]
pub fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: [f64; 3] = [0.1, 1.0, 10.0];

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    fn counts(received: u64) -> Counts {
        Counts { received, delivered: 2 * received, failed: 3 * received, lag: vec![received; 2] }
    }

    /// One lane: pairs of a second and the number received by then.
    fn history(samples: &[(u64, u64)]) -> Samples {
        let mut history = Samples::new(at(60), 5);
        for (seconds, received) in samples {
            history.push(Sample { at: at(*seconds), lanes: vec![counts(*received)] });
        }
        history
    }

    #[test]
    fn growth_covers_the_span_or_as_much_of_it_as_there_are_samples() {
        let history = history(&[(0, 0), (10, 4), (20, 5), (40, 9)]);
        assert_eq!(history.growth(0, at(20)), Some((at(20), counts(4))));
        // The sample before that is too old.
        assert_eq!(history.growth(0, at(25)), Some((at(20), counts(4))));
        assert_eq!(history.growth(0, at(3_600)), Some((at(40), counts(9))));
        assert_eq!(per_second(9, at(40)), 0.225);
    }

    #[test]
    fn growth_needs_two_samples_within_the_span() {
        assert_eq!(history(&[]).growth(0, at(10)), None);
        assert_eq!(history(&[(5, 3)]).growth(0, at(10)), None);
        // The earlier sample is too old.
        assert_eq!(history(&[(5, 3), (50, 4)]).growth(0, at(10)), None);
    }

    #[test]
    fn steps_are_from_each_sample_to_the_next() {
        let history = history(&[(0, 1), (5, 4), (11, 4), (15, 9)]);
        let steps: Vec<_> = history.steps(0).collect();
        assert_eq!(steps, [counts(3), counts(0), counts(5)]);
        assert_eq!(history.moments().collect::<Vec<_>>(), [at(0), at(5), at(11), at(15)]);
    }

    #[test]
    fn old_and_surplus_samples_are_forgotten() {
        let moments = |samples: &[(u64, u64)]| Vec::from_iter(history(samples).moments());
        let many: Vec<_> = (0..9).map(|n| (n, n)).collect();
        assert_eq!(moments(&many), (4..9).map(at).collect::<Vec<_>>());
        assert_eq!(moments(&[(0, 0), (10, 0), (61, 0)]), [at(10), at(61)]);
        assert_eq!(moments(&[(0, 0), (10, 0), (900, 0)]), [at(900)]);
    }

    #[test]
    fn a_quantile_is_the_bound_of_its_bucket() {
        let check = |q, counts: [u64; 4], expected| {
            assert_eq!(quantile(q, &counts, &BOUNDS), expected, "{q} of {counts:?}");
        };
        check(0.5, [0, 0, 0, 0], None);
        check(0.5, [1, 0, 0, 0], Some(Bound::AtMost(0.1)));
        check(0.99, [98, 1, 1, 0], Some(Bound::AtMost(1.0)));
        check(0.99, [97, 1, 2, 0], Some(Bound::AtMost(10.0)));
        check(0.5, [1, 1, 0, 0], Some(Bound::AtMost(0.1)));
        check(0.51, [1, 1, 0, 0], Some(Bound::AtMost(1.0)));
        check(1.0, [5, 0, 0, 1], Some(Bound::Above(10.0)));
    }

    proptest! {
        #[test]
        fn the_true_quantile_lies_in_the_bucket(
            mut values in prop::collection::vec(0.0_f64..20.0, 1..60),
            percent in 1_usize..=100,
        ) {
            let mut counts = [0; 4];
            for value in &values {
                counts[BOUNDS.iter().filter(|bound| *value > **bound).count()] += 1;
            }
            values.sort_unstable_by(f64::total_cmp);
            let exact = values[(percent * values.len()).div_ceil(100).max(1) - 1];
            // Slightly less, so that a rank that is a whole number isn't rounded up.
            #[expect(clippy::cast_precision_loss, reason = "a percentage")]
            let q = percent as f64 / 100.0 - 1e-9;
            match quantile(q, &counts, &BOUNDS).expect("some were counted") {
                Bound::AtMost(bound) => {
                    let below = BOUNDS.iter().rfind(|other| **other < bound);
                    prop_assert!(exact <= bound && below.is_none_or(|below| exact > *below));
                }
                Bound::Above(bound) => prop_assert!(exact > bound),
            }
        }

        #[test]
        fn growth_is_the_sum_of_the_steps(grows in prop::collection::vec(0_u64..100, 1..5)) {
            let mut received = 0;
            let samples = std::iter::once((0, 0)).chain((1..).zip(grows).map(|(n, grown)| {
                received += grown;
                (n, received)
            }));
            let history = history(&samples.collect::<Vec<_>>());
            let sum: u64 = history.steps(0).map(|step| step.received).sum();
            let (took, counts) = history.growth(0, at(60)).expect("two samples at least");
            prop_assert_eq!(counts.received, sum);
            prop_assert_eq!(took, at(history.moments().count() as u64 - 1));
        }
    }
}
