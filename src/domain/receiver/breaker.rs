//! When a circuit breaker opens, and for how long: a setting.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::domain::retry::Span;
use crate::domain::shown::quoted;

/// When the circuit breaker opens, and for how long. As a setting: `5,30s,10m`, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker(pub(super) Option<Thresholds>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// In a row, of more than one event.
    pub(super) failures: u32,
    /// The first.
    pub(super) pause: Duration,
    /// What doubling it comes to at most.
    pub(super) longest: Duration,
}

impl Breaker {
    /// The pauses that it makes, shortest first: each is worth a wait queue, so that what is held
    /// back returns when the pause is over.
    #[must_use]
    pub fn pauses(self) -> Vec<Span> {
        let Some(Thresholds { pause, longest, .. }) = self.0 else { return Vec::new() };
        let doubled = std::iter::successors(Some(pause), |pause| pause.checked_mul(2));
        let mut pauses: Vec<Duration> = doubled.take_while(|pause| *pause < longest).collect();
        pauses.push(longest);
        pauses.into_iter().map(Span::from).collect()
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
            format!("{shown} is neither `off` nor failures, first and longest pause: `5,30s,10m`")
        };
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [failures, pause, longest] = parts[..] else { return Err(usage()) };
        let failures = failures.parse().ok().filter(|n| (1..=1_000).contains(n));
        let failures = failures.ok_or_else(usage)?;
        let pause = pause.parse::<Span>()?.get();
        let longest = longest.parse::<Span>()?.get();
        if pause.is_zero() || longest < pause || longest > Duration::from_secs(86_400) {
            return Err(format!("{shown}: the pauses must be from 1ms to 24h, the longest last"));
        }
        // Each doubling is a wait queue.
        if longest.as_millis() > pause.as_millis() << 10 {
            return Err(format!("{shown}: the longest pause is over 1024 times the first"));
        }
        Ok(Self(Some(Thresholds { failures, pause, longest })))
    }
}

impl fmt::Display for Breaker {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => formatter.write_str("off"),
            Some(Thresholds { failures, pause, longest }) => {
                write!(formatter, "{failures},{},{}", Span::from(pause), Span::from(longest))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_double_up_to_the_longest() {
        let check = |text: &str, expected: &[&str]| {
            let pauses = text.parse::<Breaker>().expect("a breaker").pauses();
            assert_eq!(pauses.iter().map(Span::to_string).collect::<Vec<_>>(), expected);
        };
        check("5,30s,10m", &["30s", "1m", "2m", "4m", "8m", "10m"]);
        check("5,1s,4s", &["1s", "2s", "4s"]);
        check("5,1s,1s", &["1s"]);
        check("off", &[]);
    }

    #[test]
    fn what_is_no_breaker_is_refused() {
        for good in ["off", "5,30s,10m", "1,1ms,1ms", "1000,24h,24h"] {
            assert_eq!(good.parse::<Breaker>().map(|b| b.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "",
            "5",
            "5,30s",
            "0,30s,10m",
            "-1,1s,1s",
            "5,0s,1s",
            "5,10m,30s",
            "5,1s,25h",
            "5,1ms,2s",
            "5,x,y",
        ] {
            assert!(bad.parse::<Breaker>().is_err(), "{bad}");
        }
    }
}
