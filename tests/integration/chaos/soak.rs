//! Steady load and failing receivers, without faults: the notifier's resources must not grow.

use std::{thread, time::Duration};

use super::{conclude, settings::Settings, stage::Stage};
use crate::harness::FaultServers;

/// The reference is what the process uses after this time, or after a tenth of a shorter run.
const WARM_UP: Duration = Duration::from_secs(60);

/// Queries and fan-outs run in threads that live for milliseconds, with files of their own. So each figure
/// is the median of readings over this time, at this interval.
const WATCHED_FOR: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(100);

/// A process's resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resources {
    resident_kib: usize,
    threads: usize,
    files: usize,
    connections: usize,
    channels: usize,
}

#[test]
#[ignore = "takes ten minutes: make soak"]
fn under_steady_load_with_failing_receivers_nothing_grows() {
    let settings = Settings::from_environment("10m", "50");
    eprintln!("DURATION={:?} RATE={} SEED={}", settings.duration, settings.rate, settings.seed);
    let mut stage = Stage::set(&settings);
    eprintln!(
        "{:>9} {:>9} {:>12} {:>8} {:>6} {:>12} {:>9}",
        "ELAPSED", "REQUESTS", "RESIDENT KiB", "THREADS", "FILES", "CONNECTIONS", "CHANNELS"
    );
    let warm_up = WARM_UP.min(settings.duration / 10);
    let first = watch(&stage, warm_up);
    let mut last = first;
    let mut until = warm_up + WARM_UP;
    while stage.now() < settings.duration {
        last = watch(&stage, until.min(settings.duration));
        until += WARM_UP;
    }
    stage.problems.extend(growth(first, last));
    conclude(&settings, "soak", stage.finish());
}

/// Waits until that time, and returns what the notifier used shortly before.
fn watch(stage: &Stage, until: Duration) -> Resources {
    let notifier = &stage.fleet[0];
    thread::sleep(until.saturating_sub(stage.now()).saturating_sub(WATCHED_FOR));
    let mut seen = Vec::new();
    while seen.is_empty() || stage.now() < until {
        seen.push(notifier.resources());
        thread::sleep(INTERVAL);
    }
    let median = |of: fn(&[usize; 3]) -> usize| {
        let mut values: Vec<usize> = seen.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let (connections, channels) = at_the_broker(&stage.ground.pair().servers);
    let used = Resources {
        resident_kib: median(|[resident, _, _]| *resident),
        threads: median(|[_, threads, _]| *threads),
        files: median(|[_, _, files]| *files),
        connections,
        channels,
    };
    eprintln!(
        "{:>7.0} s {:>9} {:>12} {:>8} {:>6} {:>12} {:>9}",
        stage.now().as_secs_f64(),
        stage.receivers.requests().len(),
        used.resident_kib,
        used.threads,
        used.files,
        used.connections,
        used.channels
    );
    used
}

/// The notifiers' connections and channels at the broker, by the connections' names.
fn at_the_broker(servers: &FaultServers) -> (usize, usize) {
    let listing =
        servers.rabbitmqctl(&["--silent", "list_connections", "channels", "client_properties"]);
    let ours: Vec<&str> =
        listing.lines().filter(|line| line.contains("\"webhook-notifier\"")).collect();
    let channels =
        ours.iter().filter_map(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    (ours.len(), channels.sum())
}

/// The figures that have grown by more than 10 %, as text. Small numbers may grow by one.
fn growth(first: Resources, last: Resources) -> Vec<String> {
    let grown = |what: &str, of: fn(&Resources) -> usize| {
        let (before, after) = (of(&first), of(&last));
        let limit = (before + before / 10).max(before + 1);
        (after > limit).then(|| format!("{what} grew from {before} to {after}"))
    };
    [
        grown("resident memory (KiB)", |used| used.resident_kib),
        grown("threads", |used| used.threads),
        grown("open files", |used| used.files),
        grown("AMQP connections", |used| used.connections),
        grown("AMQP channels", |used| used.channels),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn growth_means_more_than_a_tenth_and_more_than_one() {
    let first =
        Resources { resident_kib: 10_000, threads: 20, files: 9, connections: 8, channels: 15 };
    assert_eq!(growth(first, first), Vec::<String>::new());
    let tolerated = Resources { resident_kib: 11_000, threads: 22, files: 10, ..first };
    assert_eq!(growth(first, tolerated), Vec::<String>::new());
    let grown = Resources { resident_kib: 11_001, channels: 17, ..first };
    let expected =
        ["resident memory (KiB) grew from 10000 to 11001", "AMQP channels grew from 15 to 17"];
    assert_eq!(growth(first, grown), expected);
}
