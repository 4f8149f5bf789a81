//! The retry schedule of deliveries, and the backoff of our own reconnects.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::time::Span;

/// The longest delay of a schedule. RabbitMQ limits a TTL to 2³² ms (49 days).
const MAX_DELAY: Duration = Duration::from_secs(30 * 24 * 3600);

/// The maximum number of delays. Each distinct delay needs a queue at the broker, so more are a mistake.
const MAX_STEPS: usize = 64;

/// The delays between the attempts of one delivery.
///
/// `1s,2s,4s` means up to four attempts: one at once, and one after each of the delays. A final `repeat`
/// repeats the delays forever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    delays: Vec<Span>,
    repeats: bool,
}

impl Schedule {
    /// The delay before the next attempt, after `attempts` (at least one) have failed; `None` if the
    /// schedule is used up.
    ///
    /// If the receiver sent a `retry_after` that is longer than the next delay of the schedule, the result
    /// is the longest delay that isn't longer than `retry_after`. The delivery waits for the rest of that
    /// time in its receiver's backlog. So a receiver can delay its retries, but not hasten them.
    #[must_use]
    pub fn delay_after(&self, attempts: u32, retry_after: Option<Duration>) -> Option<Span> {
        let step = attempts.saturating_sub(1) as usize;
        let step = if self.repeats { step % self.delays.len() } else { step };
        let due = *self.delays.get(step)?;
        let Some(wanted) = retry_after.filter(|wanted| *wanted > due.get()) else {
            return Some(due);
        };
        self.delays.iter().copied().filter(|delay| delay.get() <= wanted).max()
    }

    /// How many attempts a delivery gets until it is older than `age`, and how many the schedule has; `None` if it
    /// gets all of them, or if the schedule repeats.
    #[must_use]
    pub fn attempts_until(&self, age: Duration) -> Option<(usize, usize)> {
        let mut waited = Duration::ZERO;
        let within = self.delays.iter().take_while(|delay| {
            let is_within = waited <= age;
            waited = waited.saturating_add(delay.get());
            is_within
        });
        let (gets, all) = (within.count() + 1, self.delays.len() + 1);
        (gets < all && !self.repeats).then_some((gets, all))
    }

    /// The longest delay.
    #[must_use]
    pub fn longest(&self) -> Span {
        self.delays.iter().copied().max().unwrap_or_else(|| Duration::ZERO.into())
    }

    /// Each distinct delay, the shortest first. The schedule needs a wait queue for each.
    #[must_use]
    pub fn distinct_delays(&self) -> Vec<Span> {
        let mut delays = self.delays.clone();
        delays.sort_unstable();
        delays.dedup();
        delays
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps: Vec<String> = self.delays.iter().map(Span::to_string).collect();
        steps.extend(self.repeats.then(|| "repeat".to_owned()));
        formatter.write_str(&steps.join(","))
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut steps: Vec<&str> = text.split(',').map(str::trim).collect();
        let repeats = steps.last() == Some(&"repeat");
        if repeats {
            steps.pop();
        }
        if steps.is_empty() || steps.len() > MAX_STEPS {
            return Err(format!("a schedule needs 1 to {MAX_STEPS} delays, such as 1s,2s,4s"));
        }
        let delays =
            steps.into_iter().map(|step| step.parse()).collect::<Result<Vec<Span>, String>>()?;
        match delays.iter().find(|delay| delay.get().is_zero() || delay.get() > MAX_DELAY) {
            Some(delay) => Err(format!("the delay {delay} is not between 1ms and 720h")),
            None => Ok(Self { delays, repeats }),
        }
    }
}

/// The backoff before we reconnect: half a second at first, doubled after each failure, up to 5 s.
///
/// Half of each wait is random, so that many instances don't reconnect to a restarted broker at the same
/// time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next wait; `jitter` is a random number from 0 to 1.
    pub fn next_wait(&mut self, jitter: f64) -> Duration {
        let full = Self::FIRST.saturating_mul(1 << self.failures.min(16)).min(Self::LONGEST);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// The next wait after a connection has ended that worked for `lasted`. If it worked for longer than
    /// `good`, the backoff starts over.
    pub fn wait_after(&mut self, lasted: Duration, good: Duration, jitter: f64) -> Duration {
        if lasted > good {
            self.reset();
        }
        self.next_wait(jitter)
    }

    /// Starts over, because the connection works again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(text: &str) -> Schedule {
        text.parse().expect("a schedule")
    }

    #[track_caller]
    fn check(text: &str, attempts: u32, retry_after: Option<u64>, expected: Option<&str>) {
        let delay = schedule(text).delay_after(attempts, retry_after.map(Duration::from_secs));
        assert_eq!(delay.map(|d| d.to_string()).as_deref(), expected);
    }

    #[test]
    fn a_schedule_may_have_more_attempts_than_fit_into_an_age() {
        for (text, age, expected) in [
            ("1s,2s,4s", 0, Some((2, 4))),
            ("1s,2s,4s", 1, Some((3, 4))),
            ("1s,2s,4s", 2, Some((3, 4))),
            ("1s,2s,4s", 3, None),
            ("1s,2s,4s,repeat", 0, None),
        ] {
            let found = schedule(text).attempts_until(Duration::from_secs(age));
            assert_eq!(found, expected, "{text} until {age} s");
        }
    }

    #[test]
    fn each_failure_takes_the_next_delay_until_none_is_left() {
        check("1s,2s,4s", 1, None, Some("1s"));
        check("1s,2s,4s", 3, None, Some("4s"));
        check("1s,2s,4s", 4, None, None);
        check("1s,2s,4s", u32::MAX, None, None);
    }

    #[test]
    fn a_repeating_schedule_never_ends() {
        check("1s,2s,repeat", 2, None, Some("2s"));
        check("1s,2s,repeat", 3, None, Some("1s"));
        check("1s,2s,repeat", u32::MAX, None, Some("1s"));
    }

    #[test]
    fn retry_after_chooses_the_longest_delay_that_does_not_exceed_it() {
        check("1s,2s,4s,1m", 1, Some(0), Some("1s"));
        check("1s,2s,4s,1m", 1, Some(3), Some("2s"));
        check("1s,2s,4s,1m", 1, Some(4), Some("4s"));
        check("1s,2s,4s,1m", 3, Some(1), Some("4s"));
        check("1s,2s,4s,1m", 2, Some(9_999), Some("1m"));
        check("1m,1s,repeat", 2, Some(30), Some("1s"));
        check("1m,1s,repeat", 2, Some(90), Some("1m"));
        check("1m,1s", 2, Some(90), Some("1m"));
        check("1s,6h,24h", 1, Some(3_600), Some("1s"));
        check("1s,6h,24h", 2, Some(3_600), Some("6h"));
        check("1s,2s", 3, Some(1), None);
    }

    #[test]
    fn a_malformed_schedule_is_refused_with_the_reason() {
        for (text, expected) in [
            ("", "is not a time"),
            ("repeat", "needs 1 to 64"),
            ("1s,,2s", "is not a time"),
            ("1s,repeat,2s", "\"repeat\" is not a time"),
            ("1", "is not a time"),
            ("s", "is not a time"),
            ("0s", "between 1ms and 720h"),
            ("721h", "between 1ms and 720h"),
            ("99999999999999999999s", "is not a time"),
            ("18446744073709551615h", "is not a time"),
        ] {
            let error = text.parse::<Schedule>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!("1s,".repeat(65).parse::<Schedule>().is_err());
    }

    #[test]
    fn equal_delays_share_a_wait_queue() {
        let delays = schedule("60s,1s,1m,1000ms,repeat").distinct_delays();
        assert_eq!(delays.iter().map(Span::to_string).collect::<Vec<_>>(), ["1s", "1m"]);
    }

    #[test]
    fn backoff_doubles_to_its_limit_and_starts_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.next_wait(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000, 5_000]);
        backoff.reset();
        assert_eq!(backoff.next_wait(0.0), Duration::from_millis(250));
    }

    #[test]
    fn backoff_starts_over_after_a_connection_that_worked_for_long() {
        let (mut backoff, good) = (Backoff::default(), Duration::from_secs(10));
        let mut wait =
            |lasted| backoff.wait_after(Duration::from_secs(lasted), good, 1.0).as_millis();
        assert_eq!([0, 0, 0, 10].map(&mut wait), [500, 1_000, 2_000, 4_000]);
        assert_eq!([11, 0, 11].map(&mut wait), [500, 1_000, 500]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<Schedule>();
        }

        #[test]
        fn retry_after_never_shortens_a_wait(
            steps in prop::collection::vec(1_u64..5_000, 1..8), repeats: bool,
            attempts in 1_u32..20, wanted in 0_u64..10_000,
        ) {
            let delays = steps.into_iter().map(|ms| Duration::from_millis(ms).into()).collect();
            let schedule = Schedule { delays, repeats };
            let plain = schedule.delay_after(attempts, None);
            let asked = schedule.delay_after(attempts, Some(Duration::from_millis(wanted)));
            prop_assert_eq!(plain.is_some(), asked.is_some());
            prop_assert!(plain <= asked);
            // The delay exceeds the requested time only if the scheduled delay does.
            let wanted = Duration::from_millis(wanted);
            prop_assert!(asked.is_none_or(|asked| asked.get() <= wanted) || asked == plain);
        }
    }
}
