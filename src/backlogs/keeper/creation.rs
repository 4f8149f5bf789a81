//! The creation of a backlog: its row first, so that other instances learn of it, then its queue.

use std::time::{Duration, Instant};

use super::{Keeper, Key};
use crate::backlogs::MOST;
use crate::broker::backlog_queue;
use crate::clock;

/// The pause after a backlog couldn't be created: each attempt may take seconds, while a lane waits.
const CREATION_PAUSE: Duration = Duration::from_secs(3);

impl Keeper {
    /// Makes sure that a backlog exists. Returns false if it can't be created, or another one has just failed.
    pub(super) fn ensure_open(&mut self, key: Key, cause: &'static str) -> bool {
        if self.backlogs.open().contains(&key) {
            return true;
        }
        if self.is_creation_paused() {
            return false;
        }
        match self.open(key, cause) {
            Ok(()) => {
                if self.not_created.end().is_some() {
                    log::info!("backlogs can be created again");
                }
                true
            }
            // Shutdown ended the call.
            Err(_) if self.shutdown.is_requested() => false,
            Err(problem) => {
                self.pause_creation();
                if self.not_created.is_news(&problem) {
                    let queue = backlog_queue(self.origin(key), key.1);
                    log::warn!(
                        "backlog not created queue={queue} cause={problem:?}: deliveries that its receiver \
                         can't take are retried every minute, in no order"
                    );
                }
                false
            }
        }
    }

    fn open(&mut self, key: Key, cause: &'static str) -> Result<(), String> {
        {
            let known = self.backlogs.known();
            if known.len() >= MOST && !known.contains_key(&key) {
                return Err(format!(
                    "there are {MOST} backlogs already, the most that are allowed"
                ));
            }
        }
        // A known backlog is opened again if a message for it was returned. If its queue is gone, the declaration
        // below would create it, and nobody would know that its deliveries are lost.
        self.note_if_lost(key)?;
        let origin = self.origin(key).to_owned();
        let class = self.receivers.class(key.1).unwrap_or_default().label();
        self.store.open_backlog(&origin, key.1, cause, class).map_err(|error| error.to_string())?;
        self.receivers.add_backlog(key.1);
        let waiting = self
            .ask_broker(|link, shutdown| link.open_backlog(&origin, key.1, shutdown))
            .map_err(|error| error.to_string())?;
        self.closing.remove(&key);
        self.add_known(key, cause, clock::now(), waiting > 0);
        Ok(())
    }

    /// Whether no backlog is created now, because PostgreSQL or RabbitMQ has just failed.
    pub(super) fn is_creation_paused(&self) -> bool {
        self.no_creation_before.is_some_and(|until| Instant::now() < until)
    }

    /// Pauses the creation of backlogs, because PostgreSQL or RabbitMQ has just failed.
    pub(super) fn pause_creation(&mut self) {
        self.no_creation_before = Some(Instant::now() + CREATION_PAUSE);
    }
}
