//! Whether there can be more threads.
//!
//! What we start ourselves copes with a thread that can't be had. Some of the libraries panic then: so
//! they are only asked to start theirs where it has just been seen that it works.

use std::io;
use std::thread;

use crossbeam_channel::bounded;

use crate::shutdown::Never;

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
