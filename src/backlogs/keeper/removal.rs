//! The removal of a backlog: it is closed, then unbound, then deleted with its row.
//!
//! Opening it again undoes this: its row is locked while the queue is deleted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Keeper, Key};
use crate::broker::{BrokerError, backlog_queue};
use crate::domain::held::Held;
use crate::store::RemoveError;

/// How long a backlog is closed before it is unbound, and unbound before its queue is deleted.
/// Publishers give up after 30 s, so all messages of other instances have arrived by then.
const CLOSING: Duration = Duration::from_secs(35);

/// If a step takes longer than this, the next one has to wait: RabbitMQ needs five seconds to delete a queue
/// if one of its nodes is down, and a delivery that needs a new backlog would wait for all of them.
const LONG: Duration = Duration::from_millis(500);

/// How long the next step waits then, as a multiple of the time that the step took.
const PAUSE_FACTOR: u32 = 10;

/// Why a queue wasn't deleted.
#[derive(Debug, thiserror::Error)]
enum NotRemoved {
    #[error("it is not empty")]
    NotEmpty,
    #[error("{0}")]
    Broker(BrokerError),
}

/// The state of a removal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    /// When the next step is due.
    due: Instant,
    /// Whether no more messages can reach it.
    is_unbound: bool,
}

impl Closing {
    pub(super) fn step(is_unbound: bool) -> Self {
        Self { due: Instant::now() + CLOSING, is_unbound }
    }
}

impl Keeper {
    /// Begins to remove a backlog.
    pub(super) fn close(&mut self, key: Key) {
        if self.closing.contains_key(&key) {
            return;
        }
        // From here on, deliveries can enter it only after a request to this thread, which is busy.
        self.backlogs.open().remove(&key);
        let origin = self.origin(key).to_owned();
        if let Err(error) = self.store.close_backlog(&origin, key.1) {
            log::debug!("backlog not closed queue={origin} webhook={}: {error}", key.1);
            if self.is_known(key) {
                self.backlogs.open().insert(key);
            }
            return;
        }
        self.closing.insert(key, Closing::step(false));
    }

    /// Takes the next step of the removals that are due.
    pub(super) fn remove_closed(&mut self, now: Instant) {
        let is_due = |(_, closing): &(&Key, &Closing)| now >= closing.due;
        let due: Vec<(Key, Closing)> =
            self.closing.iter().filter(is_due).map(|(key, closing)| (*key, *closing)).collect();
        if now < self.next_removal_at {
            return;
        }
        for (key, Closing { is_unbound, .. }) in due {
            let began = Instant::now();
            if is_unbound {
                self.remove(key);
            } else {
                self.unbind(key);
            }
            let took = began.elapsed();
            if took > LONG {
                self.next_removal_at = began + took + took * PAUSE_FACTOR;
                break;
            }
        }
    }

    fn unbind(&mut self, key: Key) {
        let (origin, webhook) = (self.origin(key).to_owned(), key.1);
        let queue = backlog_queue(&origin, webhook);
        let is_unbound = self.ask_broker(|link, shutdown| {
            if link.queue_messages(&queue, shutdown)?.is_some() {
                link.close_backlog(&origin, webhook, shutdown)?;
            }
            Ok(())
        });
        self.closing.insert(key, Closing::step(is_unbound.is_ok()));
    }

    fn remove(&mut self, key: Key) {
        let (origin, webhook) = (self.origin(key).to_owned(), key.1);
        self.closing.remove(&key);
        let (store, receivers) = (Arc::clone(&self.store), Arc::clone(&self.receivers));
        let removed = store.remove_backlog(&origin, webhook, || {
            if receivers.is_backlog_in_use(key.0, webhook) {
                return Err(NotRemoved::NotEmpty);
            }
            match self.ask_broker(|link, shutdown| link.delete_backlog(&origin, webhook, shutdown))
            {
                Ok(true) => Ok(()),
                Ok(false) => Err(NotRemoved::NotEmpty),
                Err(error) => Err(NotRemoved::Broker(error)),
            }
        });
        match removed {
            Ok(true) => {
                log::info!("backlog removed queue={}", backlog_queue(&origin, webhook));
                self.remove_known(key);
            }
            // Another instance has opened it again, or removed it.
            Ok(false) => {}
            Err(RemoveError::Queue(NotRemoved::NotEmpty)) => {
                let _ = self.ensure_open(key, Held::Behind.label());
            }
            Err(error) => {
                log::debug!("backlog not removed webhook={webhook}: {error}");
                self.closing.insert(key, Closing::step(true));
            }
        }
    }
}
