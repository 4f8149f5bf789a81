//! The threads of the process, whose ends are noticed; and whether there can be more of them.
//!
//! What we start ourselves copes with a thread that can't be had. Some of the libraries panic then: so
//! they are only asked to start theirs where it has just been seen that it works.

use std::collections::HashSet;
use std::io;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use crate::shutdown::{Never, Shutdown};

/// The threads of the process. Each has a name, and each end is noticed.
#[derive(Debug)]
pub struct Threads {
    running: HashSet<String>,
    /// Those that failed while they were waited for.
    failed: Vec<End>,
    sender: Sender<End>,
    ends: Receiver<End>,
}

/// How a thread ended.
#[derive(Debug)]
pub struct End {
    /// Its name.
    pub thread: String,
    /// In words.
    pub how: String,
}

impl End {
    /// How a thread ends that has done what it was there for.
    const RETURNED: &str = "returned";
}

/// What the body of a thread may return.
pub trait Returned {
    /// Why it failed, if it did.
    fn error(self) -> Option<anyhow::Error>;
}

impl Returned for () {
    fn error(self) -> Option<anyhow::Error> {
        None
    }
}

impl Returned for Result<()> {
    fn error(self) -> Option<anyhow::Error> {
        self.err()
    }
}

/// Reports the end of its thread, even by a panic.
struct Reporter {
    end: End,
    sender: Sender<End>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let how = if thread::panicking() { "panicked".to_owned() } else { self.end.how.clone() };
        // Fails only when the process is past caring.
        let _ = self.sender.send(End { thread: self.end.thread.clone(), how });
    }
}

impl Default for Threads {
    fn default() -> Self {
        let (sender, ends) = unbounded();
        Self { running: HashSet::new(), failed: Vec::new(), sender, ends }
    }
}

impl Threads {
    /// Those that run.
    #[must_use]
    pub fn names(&self) -> HashSet<String> {
        self.running.clone()
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// If there can't be another one.
    pub fn spawn<R: Returned>(
        &mut self,
        name: impl Into<String>,
        body: impl FnOnce() -> R + Send + 'static,
    ) -> Result<()> {
        let name = name.into();
        let end = End { thread: name.clone(), how: End::RETURNED.to_owned() };
        let reporter = Reporter { end, sender: self.sender.clone() };
        let report = move || {
            let mut reporter = reporter;
            if let Some(error) = body().error() {
                reporter.end.how = format!("{error:#}");
            }
        };
        thread::Builder::new()
            .name(name.clone())
            .spawn(report)
            .with_context(|| format!("cannot start the thread {name}"))?;
        self.running.insert(name);
        Ok(())
    }

    /// The first that failed while it was waited for.
    #[must_use]
    pub fn into_failed(self) -> Option<End> {
        self.failed.into_iter().next()
    }

    /// Waits for shutdown, or for the end of a thread before it.
    pub fn wait_for_end(&mut self, shutdown: &Shutdown) -> Option<End> {
        select! {
            recv(shutdown.receiver()) -> _ => None,
            recv(self.ends) -> end => end.ok().filter(|end| {
                self.running.remove(&end.thread);
                // Both at once: the thread did what shutdown asked of it.
                !shutdown.is_requested() || end.how != End::RETURNED
            }),
        }
    }

    /// Waits until all threads but those in `spared` have ended; returns those that have not.
    pub fn join_until(&mut self, deadline: Instant, spared: &HashSet<String>) -> Vec<String> {
        while self.running.iter().any(|name| !spared.contains(name)) {
            match self.ends.recv_deadline(deadline) {
                Ok(end) => {
                    self.running.remove(&end.thread);
                    if end.how != End::RETURNED {
                        self.failed.push(end);
                    }
                }
                Err(_) => break,
            }
        }
        let mut overdue: Vec<String> = self.running.difference(spared).cloned().collect();
        overdue.sort_unstable();
        overdue
    }
}

/// Starts so many threads beside each other, which end at once.
///
/// # Errors
/// If there can't be so many: the limit of the user's processes (`ulimit -u`), of the unit's tasks
/// (`TasksMax`) or of the container's (`pids.max`), or no memory.
pub fn check(count: usize) -> io::Result<()> {
    let (all_started, end) = bounded::<Never>(0);
    let mut threads = Vec::with_capacity(count);
    let mut outcome = Ok(());
    for started in 0..count {
        let end = end.clone();
        let thread = thread::Builder::new().name("check".to_owned()).spawn(move || {
            // Ends when the sender is dropped.
            let _ = end.recv();
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                let says = format!("only {started} of {count} threads can be started: {error}");
                outcome = Err(io::Error::new(error.kind(), says));
                break;
            }
        }
    }
    drop(all_started);
    for thread in threads {
        // It does nothing that could panic.
        let _ = thread.join();
    }
    outcome
}

#[cfg(test)]
mod tests {
    #[test]
    fn some_threads_can_be_started() {
        super::check(20).expect("a machine that runs tests has room for them");
    }
}
