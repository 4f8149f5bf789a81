//! Shutdown: a crossbeam channel on which nothing is ever sent.
//!
//! Dropping the sender *is* the signal. A value would wake one of many receivers; the drop wakes all of them,
//! permanently. Every wait for an event, and every backoff, includes this channel, so that no thread sleeps through
//! a shutdown.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use signal_hook::consts::{SIGINT, SIGTERM};

/// A type without values, for the shutdown channel.
#[derive(Debug)]
pub enum Never {}

/// Says whether the process, or a part of it, has to stop.
#[derive(Clone, Debug)]
pub struct Shutdown(Receiver<Never>);

/// Requests the shutdown.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<Mutex<Option<Sender<Never>>>>);

/// Creates a trigger and the shutdown that it fires.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, receiver) = crossbeam_channel::bounded(0);
    (Trigger(Arc::new(Mutex::new(Some(sender)))), Shutdown(receiver))
}

impl Trigger {
    /// Requests that all holders of the [`Shutdown`] stop. A second call does nothing.
    pub fn fire(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Shutdown {
    /// Whether the shutdown was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits for `duration` or until the shutdown; true if the shutdown ended the wait.
    #[must_use]
    pub fn wait(&self, duration: Duration) -> bool {
        self.0.recv_timeout(duration) == Err(RecvTimeoutError::Disconnected)
    }

    /// For `select!`: becomes ready, with an error, at the shutdown.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<Never> {
        &self.0
    }
}

impl PartialEq for Never {
    fn eq(&self, _: &Self) -> bool {
        match *self {}
    }
}

/// The first SIGTERM or SIGINT fires the shutdown. The second one exits at once, with the shell's exit
/// code for it (128 + the signal's number).
///
/// # Errors
/// If the signals can't be caught or the thread can't be started.
pub fn watch_signals(trigger: Trigger) -> Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT])
        .context("cannot catch SIGTERM and SIGINT")?;
    let watch = move || {
        for (count, signal) in signals.forever().enumerate() {
            let name = if signal == SIGTERM { "SIGTERM" } else { "SIGINT" };
            if count > 0 {
                log::warn!(
                    "second signal ({name}): exiting at once; RabbitMQ requeues unacked messages"
                );
                std::process::exit(128 + signal);
            }
            log::info!("{name}: finishing the requests in flight; a second signal exits at once");
            trigger.fire();
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(watch)
        .context("cannot start the thread `signals`")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firing_wakes_every_waiter_and_stays() {
        let (trigger, shutdown) = channel();
        assert!(!shutdown.is_requested());
        assert!(!shutdown.wait(Duration::from_millis(1)));
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let shutdown = shutdown.clone();
                std::thread::spawn(move || shutdown.wait(Duration::from_secs(60)))
            })
            .collect();
        trigger.fire();
        trigger.fire();
        assert!(waiters.into_iter().all(|waiter| waiter.join().expect("no panic")));
        assert!(shutdown.is_requested());
    }
}
