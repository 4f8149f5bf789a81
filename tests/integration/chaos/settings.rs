//! DURATION, RATE, SEED and CLUSTER: how long a run takes, how many events it publishes, what it does, and
//! on which servers.

use std::{env, time::Duration};

/// A run's options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The run's duration, without the last repair and the drain.
    pub(super) duration: Duration,
    /// Events per second, over all queues.
    pub(super) rate: u32,
    /// The seed of all random decisions.
    pub(super) seed: u64,
    /// Whether it runs on a cluster instead of one RabbitMQ and one PostgreSQL.
    pub(super) is_cluster: bool,
}

/// Far more than a broker on a small machine can take.
const MOST_EVENTS: u32 = 10_000;

impl Settings {
    /// From the environment, or these defaults.
    pub(super) fn from_environment(duration: &str, rate: &str) -> Self {
        let of = |variable: &str| env::var(variable).ok().filter(|text| !text.is_empty());
        Self::read(
            of("DURATION").as_deref().unwrap_or(duration),
            of("RATE").as_deref().unwrap_or(rate),
            of("SEED").as_deref(),
            of("CLUSTER").as_deref(),
        )
        .unwrap_or_else(|problem| panic!("{problem}"))
    }

    fn read(
        duration: &str,
        rate: &str,
        seed: Option<&str>,
        cluster: Option<&str>,
    ) -> Result<Self, String> {
        let duration = parse_duration(duration)
            .ok_or_else(|| format!("DURATION={duration} is not a time such as 90s or 3m"))?;
        let rate = rate
            .parse()
            .ok()
            .filter(|rate| (1..=MOST_EVENTS).contains(rate))
            .ok_or_else(|| format!("RATE={rate} is not a number from 1 to {MOST_EVENTS}"))?;
        let seed = match seed {
            // Short enough to type.
            None => u64::from(fastrand::u32(..)),
            Some(seed) => seed.parse().map_err(|_| format!("SEED={seed} is not a number"))?,
        };
        let is_cluster = match cluster {
            None | Some("no") => false,
            Some("yes") => true,
            Some(other) => return Err(format!("CLUSTER={other} is neither yes nor no")),
        };
        Ok(Self { duration, rate, seed, is_cluster })
    }
}

/// Whole seconds, minutes or hours, from one second to a day.
fn parse_duration(text: &str) -> Option<Duration> {
    let unit = text.char_indices().next_back()?;
    let seconds = match unit.1 {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        _ => return None,
    };
    let seconds = text[..unit.0].parse::<u64>().ok()?.checked_mul(seconds)?;
    (1..=86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[test]
fn durations_are_whole_seconds_minutes_or_hours() {
    for (text, seconds) in [("90s", 90), ("3m", 180), ("1h", 3_600)] {
        assert_eq!(parse_duration(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    for text in ["", "s", "90", "0s", "-1s", "1.5m", "25h", "3µ", "99999999999999999999h"] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

#[test]
fn an_unusable_value_is_refused_by_the_name_of_its_variable() {
    for (values, variable) in [
        (("soon", "100", None, None), "DURATION=soon"),
        (("1m", "0", None, None), "RATE=0"),
        (("1m", "many", None, None), "RATE=many"),
        (("1m", "100", Some("0x1"), None), "SEED=0x1"),
        (("1m", "100", None, Some("3")), "CLUSTER=3"),
    ] {
        let (duration, rate, seed, cluster) = values;
        let problem = Settings::read(duration, rate, seed, cluster).expect_err(variable);
        assert!(problem.starts_with(variable), "{problem}");
    }
    let settings =
        Settings { duration: Duration::from_secs(60), rate: 5, seed: 7, is_cluster: true };
    assert_eq!(Settings::read("1m", "5", Some("7"), Some("yes")), Ok(settings));
}
