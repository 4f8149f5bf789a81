//! Named threads whose end is reported, and a check whether more threads can be started.
//!
//! Our own code handles the error if a thread can't be started. Some libraries panic instead, so they may start
//! threads only right after [`check`] has succeeded.

use std::collections::HashSet;
use std::io;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use crate::shutdown::{Never, Shutdown};

/// The threads of the process. Each has a name, and its end is noticed.
#[derive(Debug)]
pub struct Threads {
    running: HashSet<String>,
    /// The threads that failed while we waited for their end.
    failed: Vec<End>,
    sender: Sender<End>,
    ends: Receiver<End>,
}

/// How a thread ended.
#[derive(Debug)]
pub struct End {
    /// Its name.
    pub thread: String,
    /// How it ended, in words.
    pub how: String,
}

impl End {
    /// The `how` of a thread that ended without an error.
    const RETURNED: &str = "returned";
}

/// A result that the body of a thread may have.
pub trait ThreadResult {
    /// The error, if it failed.
    fn error(self) -> Option<anyhow::Error>;
}

impl ThreadResult for () {
    fn error(self) -> Option<anyhow::Error> {
        None
    }
}

impl ThreadResult for Result<()> {
    fn error(self) -> Option<anyhow::Error> {
        self.err()
    }
}

/// Reports the end of its thread, also if it panics.
struct Reporter {
    end: End,
    sender: Sender<End>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let how = if thread::panicking() { "panicked".to_owned() } else { self.end.how.clone() };
        // Fails only if `Threads` was dropped, and then the process ends anyway.
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
    /// The names of the running threads.
    #[must_use]
    pub fn names(&self) -> HashSet<String> {
        self.running.clone()
    }

    /// Starts a thread.
    ///
    /// # Errors
    /// If the system can't start another thread.
    pub fn spawn<R: ThreadResult>(
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

    /// The first thread that failed while we waited for its end.
    #[must_use]
    pub fn into_failed(self) -> Option<End> {
        self.failed.into_iter().next()
    }

    /// Waits for shutdown, or for a thread to end before it. Returns that thread's end.
    pub fn wait_for_end(&mut self, shutdown: &Shutdown) -> Option<End> {
        select! {
            recv(shutdown.receiver()) -> _ => None,
            recv(self.ends) -> end => end.ok().filter(|end| {
                self.running.remove(&end.thread);
                // If the shutdown was requested too, the thread returned because of it.
                !shutdown.is_requested() || end.how != End::RETURNED
            }),
        }
    }

    /// Waits until all threads but those in `spared` have ended. Returns those still running at the deadline.
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

/// Checks that `count` threads can run at once: starts them, and ends them again.
///
/// # Errors
/// If they can't: because of the limit of the user's processes (`ulimit -u`), of the unit's tasks
/// (`TasksMax`) or of the container's (`pids.max`), or for lack of memory.
pub fn check(count: usize) -> io::Result<()> {
    let (all_started, end) = bounded::<Never>(0);
    let mut threads = Vec::with_capacity(count);
    let mut outcome = Ok(());
    for started in 0..count {
        let end = end.clone();
        let thread = thread::Builder::new().name("check".to_owned()).spawn(move || {
            // Returns when the sender is dropped.
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
        // The thread does nothing that could panic.
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
