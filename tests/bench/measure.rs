//! Measures time, CPU time and memory, and computes statistics of many samples.

use std::{
    fmt, fs,
    sync::LazyLock,
    time::{Duration, Instant, SystemTime},
};

/// Since 2.6, Linux counts the times in /proc in hundredths of a second, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// Nanoseconds since 1970, by a monotonic clock.
pub(crate) fn now() -> u64 {
    static START: LazyLock<(Instant, Duration)> = LazyLock::new(|| {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        (Instant::now(), since_1970.expect("it is later than 1970"))
    });
    let (start, since_1970) = &*START;
    let now = *since_1970 + start.elapsed();
    u64::try_from(now.as_nanos()).expect("it is earlier than 2554")
}

/// A process's CPU time so far, including ended threads. Its resolution is a tick, so a measurement should
/// span a second of CPU time.
pub(crate) fn processor_time(pid: u32) -> Duration {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    // The name, in parentheses, may contain anything. After it utime and stime are the 12th and 13th
    // fields.
    let (_, fields) = stat.rsplit_once(')').expect("pid (name) state …");
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| TICK * ticks.parse::<u32>().expect("a number of ticks")).sum()
}

/// The pid of a process's parent.
pub(crate) fn parent(pid: u32) -> u32 {
    parent_and_ticks(pid).expect("it runs").0
}

/// The CPU time of a process's children, including those that have ended and been waited for. Zero if it
/// can't be read.
pub(crate) fn children_processor_time(parent: u32) -> Duration {
    let ended = parent_and_ticks(parent).map_or(0, |(_, ticks)| ticks[2] + ticks[3]);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let children = pids.filter_map(parent_and_ticks).filter(|(of, _)| *of == parent);
    TICK * (ended + children.map(|(_, ticks)| ticks.iter().sum::<u32>()).sum::<u32>())
}

/// A process's parent, its own times and those of its ended children.
fn parent_and_ticks(pid: u32) -> Option<(u32, [u32; 4])> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some((number(1)?, [number(11)?, number(12)?, number(13)?, number(14)?]))
}

/// A process's resident memory, in MiB.
pub(crate) fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

/// Its peak resident memory, in MiB.
pub(crate) fn peak_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, name: &str) -> f64 {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
    let kib = line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number of kB");
    kib / 1024.0
}

/// Percentiles of a set of durations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Latency {
    /// In milliseconds, by nearest rank.
    pub(crate) fn of(nanoseconds: impl IntoIterator<Item = u64>) -> Self {
        let mut sorted: Vec<_> = nanoseconds.into_iter().collect();
        assert!(!sorted.is_empty(), "no samples");
        sorted.sort_unstable();
        let rank = |per_mille: usize| {
            let rank = (sorted.len() * per_mille).div_ceil(1000).max(1);
            Duration::from_nanos(sorted[rank - 1]).as_secs_f64() * 1e3
        };
        Self { p50: rank(500), p99: rank(990), p999: rank(999), max: rank(1000) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, p999, max } = self;
        write!(f, "p50 {p50:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.2} ms")
    }
}

/// The results of several rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = values.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
            panic!("no rounds");
        };
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Self { min, median, max }
    }
}
