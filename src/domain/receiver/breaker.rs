//! The thresholds of circuit breakers.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::domain::shown::quoted;
use crate::domain::time::Span;

/// How long a receiver has to fail before its breaker opens. If a receiver fails only now and then,
/// several failures in a row may be chance; a whole second of failures, at many requests, is not.
pub const LEAST_OUTAGE: Duration = Duration::from_secs(1);

/// Jitter shortens a pause by up to this fraction, so that several instances don't probe at the same
/// time, nor one instance many receivers.
const JITTER: f64 = 0.2;

/// When a circuit breaker opens, and for how long. As a setting: `5,1s,5m` (failures, shortest pause,
/// longest pause), or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker(pub(super) Option<Thresholds>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// The number of failures in a row, of more than one event.
    pub(super) failures: u32,
    /// The bounds of a pause.
    pub(super) shortest: Duration,
    pub(super) longest: Duration,
}

impl Thresholds {
    /// The pause before the next probe: a quarter of the outage so far. So the recovery of a receiver
    /// after an outage of D is noticed within D/4. `jitter`, from 0 to 1, only shortens the pause.
    pub(super) fn pause(self, outage: Duration, jitter: f64) -> Duration {
        let quarter = (outage / 4).min(self.longest);
        quarter.mul_f64(1.0 - JITTER * jitter.clamp(0.0, 1.0)).max(self.shortest)
    }
}

impl Breaker {
    /// Whether the breaker can open at all.
    #[must_use]
    pub const fn is_on(self) -> bool {
        self.0.is_some()
    }
}

impl FromStr for Breaker {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let shown = quoted(text);
        let usage = || {
            format!(
                "{shown} is not a circuit breaker: use `off`, or the number of failures and the shortest \
                 and longest pause, such as `5,1s,5m`"
            )
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [failures, shortest, longest] = parts[..] else { return Err(usage()) };
        let failures = failures.parse().ok().filter(|n| (1..=1_000).contains(n));
        let failures = failures.ok_or_else(usage)?;
        let shortest = shortest.parse::<Span>()?.get();
        let longest = longest.parse::<Span>()?.get();
        if shortest.is_zero() || longest < shortest || longest > Duration::from_secs(86_400) {
            return Err(format!(
                "{shown}: both pauses must be from 1ms to 24h, the shortest pause before the longest"
            ));
        }
        Ok(Self(Some(Thresholds { failures, shortest, longest })))
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => formatter.write_str("off"),
            Some(Thresholds { failures, shortest, longest }) => {
                write!(formatter, "{failures},{},{}", Span::from(shortest), Span::from(longest))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_a_quarter_of_the_outage_within_its_bounds_and_jitter_only_shortens_it() {
        let Breaker(Some(thresholds)) = "5,1s,5m".parse().expect("a breaker") else {
            panic!("it is not off")
        };
        let check = |outage: u64, jitter: f64, expected: f64| {
            let pause = thresholds.pause(Duration::from_secs(outage), jitter).as_secs_f64();
            assert!((pause - expected).abs() < 1e-6, "{outage} s, {jitter}: {pause}");
        };
        check(0, 0.0, 1.0);
        check(4, 1.0, 1.0);
        check(8, 0.0, 2.0);
        check(8, 1.0, 1.6);
        check(1_200, 0.0, 300.0);
        check(100_000, 0.0, 300.0);
        check(100_000, 1.0, 240.0);
        check(100_000, 7.0, 240.0);
    }

    #[test]
    fn an_outage_of_an_hour_gets_about_forty_probes() {
        let Breaker(Some(thresholds)) = "5,1s,5m".parse().expect("a breaker") else {
            panic!("it is not off")
        };
        let hour = Duration::from_secs(3_600);
        let probes = |jitter: f64| {
            let next = |at: &Duration| Some(*at + thresholds.pause(*at, jitter));
            std::iter::successors(Some(LEAST_OUTAGE), next).take_while(|at| *at < hour).count()
        };
        assert_eq!((probes(0.0), probes(1.0)), (37, 45));
    }

    #[test]
    fn a_malformed_breaker_setting_is_refused() {
        for good in ["off", "5,30s,10m", "5,1s,5m", "1,1ms,1ms", "1000,24h,24h"] {
            assert_eq!(good.parse::<Breaker>().map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in
            ["", "5", "5,30s", "0,30s,10m", "-1,1s,1s", "5,0s,1s", "5,10m,30s", "5,1s,25h", "5,x,y"]
        {
            assert!(bad.parse::<Breaker>().is_err(), "{bad}");
        }
    }
}
