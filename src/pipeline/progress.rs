//! The progress of a thread that settles messages, for other threads: whether it has a message, since when, and
//! which part of its work other threads could do.

use std::collections::HashMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::gettid;

use super::fan_out::FanOut;
use crate::domain::growth::{RESTED, STUCK};

/// After this long a thread counts as stuck even if it doesn't sleep all the time, or the processors are
/// contended: a receiver on the same busy machine is slow too.
const STUCK_AWAKE: Duration = Duration::from_millis(100);

/// A thread counts as asleep if it spent less than 1/n of the time on a processor or waiting for a processor.
const AWAKE: u32 = 4;

/// One thread's progress.
#[derive(Debug)]
pub struct Progress {
    /// The zero of all times, which are in nanoseconds.
    start: Instant,
    /// When it took its message; 0 while it waits for one.
    busy_since: AtomicU64,
    /// When it last made progress: took its message, or finished one of its deliveries.
    moved_at: AtomicU64,
    /// Since when it has been waiting, or when its last wait began.
    waiting_since: AtomicU64,
    /// When it last took a message after a wait of [`RESTED`].
    rested_at: AtomicU64,
    /// Whether it waits for PostgreSQL.
    asks: AtomicBool,
    /// The kernel's id of the thread; 0 before its first message.
    thread: AtomicI32,
    /// The last observation after it had made no progress for [`STUCK`].
    seen: Mutex<Option<Seen>>,
    /// `moved_at` when it was found to be stuck.
    stuck_at: AtomicU64,
    /// Its event, if several webhooks want it.
    event: Mutex<Option<Arc<FanOut>>>,
}

/// An observation of a thread without progress.
#[derive(Clone, Copy, Debug)]
struct Seen {
    moved_at: u64,
    at: Instant,
    awake: Duration,
}

impl Progress {
    /// For a thread that waits for its first message.
    #[must_use]
    pub fn new() -> Self {
        let [busy_since, moved_at, waiting_since, rested_at, stuck_at] = Default::default();
        Self {
            start: Instant::now(),
            busy_since,
            moved_at,
            waiting_since,
            rested_at,
            asks: AtomicBool::new(false),
            thread: AtomicI32::new(0),
            seen: Mutex::default(),
            stuck_at,
            event: Mutex::default(),
        }
    }

    /// Records that it has a message, perhaps immediately after the previous one.
    pub fn begins(&self, now: Instant) {
        if self.thread.load(Ordering::Relaxed) == 0 {
            self.thread.store(gettid().as_raw_pid(), Ordering::Relaxed);
        }
        let now = self.nanoseconds(now);
        let waited = now.saturating_sub(self.waiting_since.load(Ordering::Relaxed));
        if self.message().is_none() && Duration::from_nanos(waited) >= RESTED {
            self.rested_at.store(now, Ordering::Relaxed);
        }
        self.moved_at.store(now, Ordering::Relaxed);
        // Ordered with the watching thread's decision to stop watching.
        self.busy_since.store(now, Ordering::SeqCst);
    }

    /// Records that it has finished one of the deliveries of its message.
    pub(super) fn moves(&self) {
        self.moved_at.store(self.nanoseconds(Instant::now()), Ordering::Relaxed);
    }

    /// Records that it waits for the next message.
    pub fn ends(&self) {
        self.ends_at(Instant::now());
    }

    fn ends_at(&self, now: Instant) {
        if self.message().is_some() {
            self.waiting_since.store(self.nanoseconds(now), Ordering::Relaxed);
            self.busy_since.store(0, Ordering::SeqCst);
        }
    }

    /// Its message, identified by the time when it took it.
    #[must_use]
    pub fn message(&self) -> Option<u64> {
        Some(self.busy_since.load(Ordering::SeqCst)).filter(|since| *since > 0)
    }

    /// Whether it has made no progress for [`STUCK`], but isn't known to be stuck.
    #[must_use]
    pub fn may_be_stuck(&self, now: Instant) -> bool {
        let moved_at = self.moved_at.load(Ordering::Relaxed);
        self.stood(moved_at, now) >= STUCK
            && self.stuck_at.load(Ordering::Relaxed) != moved_at
            && self.stands()
    }

    fn stood(&self, moved_at: u64, now: Instant) -> Duration {
        Duration::from_nanos(self.nanoseconds(now).saturating_sub(moved_at))
    }

    /// Checks whether it is stuck; called every few milliseconds. It is stuck if it has made no progress for
    /// [`STUCK`] and sleeps until the next check.
    ///
    /// A thread that waits for a processor isn't stuck: more threads would only make all of them wait longer.
    /// Nor is a thread that sleeps while others wait for a processor: its receiver may be one of them.
    pub fn check_stuck(&self, is_contended: bool, now: Instant) {
        if !self.may_be_stuck(now) {
            return;
        }
        let moved_at = self.moved_at.load(Ordering::Relaxed);
        let stood = self.stood(moved_at, now);
        // If the kernel doesn't report the times, it is taken to sleep.
        let awake = Times::of(self).map_or(Duration::ZERO, Times::awake);
        let mut seen = lock(&self.seen);
        // One observation isn't enough: the observing thread itself may have been stopped.
        let is_stuck = seen.filter(|seen| seen.moved_at == moved_at).is_some_and(|seen| {
            let was_awake = awake.saturating_sub(seen.awake);
            let slept = was_awake * AWAKE < now.saturating_duration_since(seen.at);
            stood >= STUCK_AWAKE || slept && !is_contended
        });
        *seen = Some(Seen { moved_at, at: now, awake });
        if is_stuck {
            self.stuck_at.store(moved_at, Ordering::Relaxed);
        }
    }

    /// Whether it was found to be stuck at its current delivery.
    #[must_use]
    pub fn is_stuck(&self) -> bool {
        let moved_at = self.moved_at.load(Ordering::Relaxed);
        self.stands() && self.stuck_at.load(Ordering::Relaxed) == moved_at
    }

    /// Whether it has a message and doesn't wait for PostgreSQL. If it waits for PostgreSQL, more threads
    /// wouldn't help: they would only hand back more messages.
    fn stands(&self) -> bool {
        !self.asks.load(Ordering::Relaxed) && self.message().is_some()
    }

    /// Runs a call that may query PostgreSQL.
    pub(super) fn while_asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.asks.store(true, Ordering::Relaxed);
        let answer = ask();
        self.asks.store(false, Ordering::Relaxed);
        answer
    }

    /// Whether it has been idle for at least [`RESTED`] since `since`.
    #[must_use]
    pub fn has_rested(&self, since: Instant, now: Instant) -> bool {
        let waited = || {
            let since = self.waiting_since.load(Ordering::Relaxed);
            Duration::from_nanos(self.nanoseconds(now).saturating_sub(since))
        };
        self.rested_at.load(Ordering::Relaxed) > self.nanoseconds(since)
            || self.message().is_none() && waited() >= RESTED
    }

    /// The rest of its event, which another thread could do.
    #[must_use]
    pub fn rest_of_event(&self) -> Option<Arc<FanOut>> {
        // Each lock is released before the next one is taken, so there can't be a deadlock.
        let event = lock(&self.event).clone();
        event.filter(|event| event.has_more())
    }

    pub(super) fn set_event(&self, event: Option<Arc<FanOut>>) {
        *lock(&self.event) = event;
    }

    /// Never 0, which means no time.
    fn nanoseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Detects threads that wait for a processor that others use.
#[derive(Debug, Default)]
pub struct Contention {
    last: Option<(Instant, HashMap<i32, Duration>)>,
}

impl Contention {
    /// Whether, since the last check, on average at least one of these threads was waiting for a processor. Also
    /// true if there was no last check.
    pub fn update<'a>(
        &mut self,
        threads: impl Iterator<Item = &'a Progress>,
        now: Instant,
    ) -> bool {
        let waited: HashMap<i32, Duration> = threads
            .filter_map(|one| Some((one.thread.load(Ordering::Relaxed), Times::of(one)?.waited)))
            .collect();
        let is_contended = self.last.as_ref().is_none_or(|(at, before)| {
            let since = |(thread, waited): (&i32, &Duration)| {
                before.get(thread).map_or(Duration::ZERO, |before| waited.saturating_sub(*before))
            };
            waited.iter().map(since).sum::<Duration>() >= now.saturating_duration_since(*at)
        });
        self.last = Some((now, waited));
        is_contended
    }

    /// Forgets the last check, which is too long ago.
    pub fn forget(&mut self) {
        self.last = None;
    }
}

/// How long a thread of this process has run on a processor, and waited for one (`sched-stats.rst` in
/// the kernel's documentation).
#[derive(Clone, Copy, Debug)]
struct Times {
    ran: Duration,
    waited: Duration,
}

impl Times {
    /// `None` if the kernel doesn't report them.
    fn of(progress: &Progress) -> Option<Self> {
        let thread = progress.thread.load(Ordering::Relaxed);
        let times = fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let mut times = times.split_ascii_whitespace().map(str::parse::<u64>);
        let mut next = || Some(Duration::from_nanos(times.next()?.ok()?));
        Some(Self { ran: next()?, waited: next()? })
    }

    fn awake(self) -> Duration {
        self.ran + self.waited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_stuck_or_rested_depending_on_its_last_progress() {
        let progress = Progress::new();
        let at = |millis| progress.start + Duration::from_millis(millis);
        let is_stuck = |millis| {
            progress.check_stuck(false, at(millis));
            progress.is_stuck()
        };
        assert!(!is_stuck(5));
        assert!(progress.has_rested(at(0), at(5)));
        progress.begins(at(10));
        assert!(!is_stuck(19) && !is_stuck(20), "seen once");
        // Far longer than this thread can have been awake in between.
        assert!(is_stuck(100_000));
        progress.while_asking(|| assert!(!is_stuck(100_010), "more threads would not help"));
        assert!(is_stuck(100_020));
        progress.moves();
        assert!(!progress.is_stuck());
        assert!(progress.has_rested(at(9), at(15)), "before it");
        assert!(!progress.has_rested(at(11), at(15)));
        progress.ends_at(at(20));
        assert!(!progress.has_rested(at(11), at(21)));
        progress.begins(at(21));
        progress.ends_at(at(22));
        assert!(!progress.has_rested(at(11), at(23)), "a millisecond is no rest");
        assert!(progress.has_rested(at(11), at(24)));
    }

    #[test]
    fn a_thread_that_is_on_a_processor_or_waits_for_one_is_not_stuck_at_once() {
        let progress = Progress::new();
        let at = |millis| progress.start + Duration::from_millis(millis);
        let is_stuck = |millis| {
            progress.check_stuck(false, at(millis));
            progress.is_stuck()
        };
        let is_awake_for = |millis| {
            let awake = || Times::of(&progress).expect("Linux says").awake();
            let before = awake();
            while awake() - before < Duration::from_millis(millis) {
                std::hint::spin_loop();
            }
        };
        progress.begins(at(1));
        assert!(!is_stuck(11));
        is_awake_for(10);
        assert!(!is_stuck(21));
        is_awake_for(40);
        assert!(is_stuck(101), "it has stood for so long");
    }

    #[test]
    fn a_thread_that_sleeps_is_not_stuck_at_once_while_others_wait_for_a_processor() {
        let progress = Progress::new();
        let at = |millis| progress.start + Duration::from_millis(millis);
        let look = |is_contended, millis| {
            progress.check_stuck(is_contended, at(millis));
            progress.is_stuck()
        };
        progress.begins(at(1));
        assert!(!progress.may_be_stuck(at(10)) && progress.may_be_stuck(at(11)));
        // Far longer than this thread can have been awake in between.
        assert!(!look(true, 11) && !look(true, 100));
        assert!(look(true, 101));
        assert!(!progress.may_be_stuck(at(102)), "it is known");
        progress.begins(at(1_000));
        assert!(!look(true, 1_011) && look(false, 1_090));
    }

    #[test]
    fn the_processors_are_contended_if_more_threads_want_them_than_there_are() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let (done, contention) = (AtomicBool::new(false), &mut Contention::default());
        let threads: Vec<Progress> = (0..processors + 2).map(|_| Progress::new()).collect();
        std::thread::scope(|scope| {
            for progress in &threads {
                let done = &done;
                scope.spawn(move || {
                    progress.begins(Instant::now());
                    while !done.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            while threads.iter().any(|progress| progress.message().is_none()) {
                std::thread::yield_now();
            }
            let begun = Instant::now();
            assert!(contention.update(threads.iter(), begun), "nothing is known");
            // A thread's waiting time is counted when it gets a processor: each has by then.
            while threads
                .iter()
                .any(|one| Times::of(one).is_none_or(|times| times.waited.is_zero()))
                || begun.elapsed() < Duration::from_secs(1)
            {
                std::thread::yield_now();
            }
            assert!(contention.update(threads.iter(), Instant::now()));
            done.store(true, Ordering::Relaxed);
        });
        let idle = Progress::new();
        idle.begins(Instant::now());
        assert!(!contention.update([&idle].into_iter(), Instant::now() + Duration::from_secs(9)));
        contention.forget();
        assert!(contention.update([&idle].into_iter(), Instant::now()));
    }
}
