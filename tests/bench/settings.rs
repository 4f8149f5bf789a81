//! The options of a run, from the environment.

use std::{env, str::FromStr, time::Duration};

use crate::subject::{Channels, Setting};

/// Of one run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// ROUNDS, instead of each scenario's own number.
    rounds: Option<usize>,
    /// DURATION of the scenarios `dead` and `waiting`.
    pub(crate) duration: Duration,
    /// AWAY: the duration of the outage in the scenarios `away` and `refused`.
    pub(crate) away: Duration,
    /// EVENTS, instead of a scenario's own number.
    events: Option<u32>,
    /// RECEIVERS, instead of the hundreds of `refused`.
    receivers: Option<u32>,
    /// NOTIFIER: its prefetch and its capacity if tuned.
    pub(crate) notifier: Setting,
    /// BARE: the bare loop's channels and prefetch if tuned.
    pub(crate) bare: Channels,
}

/// The best by `make bench SCENARIO=search-notifier`.
const NOTIFIER_TUNED: Setting = Setting::prefetch(256);

/// The best by `make bench SCENARIO=search`: among the fastest settings, the one with the least CPU time.
const BARE_TUNED: Channels = Channels { count: 4, prefetch: 256 };

impl Settings {
    pub(crate) fn from_environment() -> Result<Self, String> {
        Ok(Self {
            rounds: value("ROUNDS")?,
            duration: time("DURATION", Duration::from_secs(600))?,
            away: time("AWAY", Duration::from_secs(300))?,
            events: value("EVENTS")?,
            receivers: value("RECEIVERS")?,
            notifier: value("NOTIFIER")?.unwrap_or(NOTIFIER_TUNED),
            bare: value("BARE")?.unwrap_or(BARE_TUNED),
        })
    }

    pub(crate) fn rounds(&self, default: usize) -> usize {
        self.rounds.unwrap_or(default).max(1)
    }

    pub(crate) fn events(&self, default: u32) -> u32 {
        // Fewer events would say nothing about a rate.
        self.events.unwrap_or(default).max(10)
    }

    pub(crate) fn receivers(&self, default: u32) -> u32 {
        self.receivers.unwrap_or(default).clamp(1, default)
    }
}

fn time(variable: &str, default: Duration) -> Result<Duration, String> {
    let Some(text) = value::<String>(variable)? else { return Ok(default) };
    duration(&text).ok_or_else(|| format!("{variable}={text} is not a time such as 90s or 10m"))
}

fn value<T: FromStr<Err: ToString>>(variable: &str) -> Result<Option<T>, String> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty());
    let parse = |text: String| {
        text.parse().map_err(|error: T::Err| format!("{variable}={text}: {}", error.to_string()))
    };
    text.map(parse).transpose()
}

fn duration(text: &str) -> Option<Duration> {
    let seconds = match text.char_indices().next_back()? {
        (end, 's') => text[..end].parse().ok(),
        (end, 'm') => text[..end].parse().ok().and_then(|minutes: u64| minutes.checked_mul(60)),
        _ => None,
    };
    seconds.filter(|&seconds| seconds > 0).map(Duration::from_secs)
}
