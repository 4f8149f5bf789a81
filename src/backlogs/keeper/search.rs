//! Finds the existing backlogs: in the table, and at the broker in case the table is wrong.

use std::collections::HashSet;
use std::time::Duration;

use uuid::Uuid;

use super::removal::Closing;
use super::{Keeper, Key};
use crate::broker::backlog_queue;
use crate::clock;
use crate::domain::held::Held;
use crate::domain::receiver::Class;
use crate::store::BacklogRow;

/// A row without a queue is removed after this time. Before that, another instance may still create the queue.
const STALE: Duration = Duration::from_secs(3_600);

/// How long after its row a backlog's queue may be created. The row is written first, so that other instances
/// learn of the backlog.
const NEW: Duration = Duration::from_secs(30);

/// How many queues without a row are searched for per tick. Each missing one costs a channel.
const SEARCHED: usize = 20;

/// Backlogs that may exist without a row: one of each webhook for each queue.
#[derive(Debug)]
pub(super) struct Unsearched {
    webhooks: Vec<Uuid>,
    /// The next queue for the last webhook.
    queue: usize,
    /// Backlogs whose search failed.
    again: Vec<Key>,
}

impl Unsearched {
    fn new(webhooks: Vec<Uuid>) -> Self {
        Self { webhooks, queue: 0, again: Vec::new() }
    }

    /// Takes at most `most` of them; there are `queues` queues.
    fn take(&mut self, most: usize, queues: usize) -> Vec<Key> {
        let mut taken = std::mem::take(&mut self.again);
        while taken.len() < most
            && let Some(webhook) = self.webhooks.last()
        {
            taken.push((self.queue, *webhook));
            self.queue += 1;
            if self.queue >= queues {
                self.queue = 0;
                self.webhooks.pop();
            }
        }
        taken
    }
}

impl Keeper {
    /// Reads from the table which backlogs exist. Returns false if that failed.
    pub(super) fn read(&mut self) -> bool {
        let rows = match self.store.backlogs() {
            Ok(rows) => {
                if self.not_read.end().is_some() {
                    log::info!("backlogs read again");
                }
                rows
            }
            Err(error) => {
                let cause = error.to_string();
                if self.not_read.is_news(&cause) {
                    log::warn!(
                        "backlogs not read cause={cause:?}: new backlogs of other instances are unknown \
                         until then"
                    );
                }
                return false;
            }
        };
        let open = rows.iter().filter(|row| !row.is_closing);
        self.receivers.set_backlogs(open.map(|row| row.webhook));
        if let Some(until_restored) = self.inbox.until_restored.take() {
            self.restore(&rows);
            drop(until_restored);
        }
        let mut in_table = HashSet::new();
        for row in rows {
            let Some(queue) = self.number(&row.queue) else { continue };
            let key = (queue, row.webhook);
            in_table.insert(key);
            if row.is_closing {
                // Entering it requires opening it again first.
                self.backlogs.open().remove(&key);
                if self.closing.contains_key(&key) {
                    continue;
                }
                if !self.is_known(key) {
                    // The instance that closed it may be gone.
                    self.closing.insert(key, Closing::step(false));
                } else if self.receivers.is_backlog_in_use(queue, row.webhook) {
                    // It looks empty to the instance that closed it while this process has all its deliveries
                    // in hand. They would be lost with the queue.
                    let _ = self.ensure_open(key, Held::Behind.label());
                }
            } else if !self.backlogs.open().contains(&key) && !self.adopt(key, &row) {
                return false;
            }
        }
        self.report_standings();
        self.write_missing(&in_table)
    }

    /// Restores the state of receivers from the rows alone, before the lanes begin: asking the broker about each
    /// backlog takes longer. If a row is wrong, [`Self::adopt`] corrects it.
    fn restore(&self, rows: &[BacklogRow]) {
        for row in rows.iter().filter(|row| !row.is_closing) {
            if let Some(queue) = self.number(&row.queue) {
                self.receivers.found_backlog(queue, row.webhook);
                let lasted = clock::now().duration_since(row.since).unwrap_or_default();
                let away = (row.cause == Held::Breaker.label()).then_some(lasted);
                self.receivers.restore(row.webhook, row.class == Class::Slow.label(), away);
            }
        }
    }

    /// Records that nothing waits in a backlog that was restored from its row.
    fn note_empty(&self, key: Key) {
        if self.is_known(key) {
            return;
        }
        let last = self.receivers.last_in_backlog(key.0, key.1);
        // If a delivery has entered meanwhile, it isn't empty.
        let _ = self.receivers.note_backlog_empty(key.0, key.1, last);
    }

    /// Adopts a backlog that another instance created, or this one before a restart, if its queue exists.
    /// Returns false if the broker didn't answer.
    fn adopt(&mut self, key: Key, row: &BacklogRow) -> bool {
        let queue = backlog_queue(&row.queue, row.webhook);
        match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
            Ok(Some(waiting)) => {
                let lasted = clock::now().duration_since(row.since).unwrap_or_default();
                // The cause in the row is that of the deliveries that waited last. If none waits any more,
                // it says nothing about the receiver.
                let is_away = row.cause == Held::Breaker.label() && waiting > 0;
                let away = is_away.then_some(lasted);
                if waiting == 0 {
                    self.note_empty(key);
                }
                // The process that created the queue may have ended before binding it.
                let opened = self.ask_broker(|link, shutdown| {
                    link.open_backlog(&row.queue, row.webhook, shutdown)
                });
                if let Err(error) = opened {
                    log::warn!(
                        "backlog not bound queue={queue}: {error}; until it is bound, its deliveries wait a \
                         minute each time"
                    );
                }
                self.receivers.restore(key.1, row.class == Class::Slow.label(), away);
                self.add_known(key, &row.cause, row.since, true);
                true
            }
            // The queue is at another broker, or was never created.
            Ok(None) => {
                self.note_empty(key);
                let age = clock::now().duration_since(row.since).unwrap_or_default();
                self.is_one_being_created |= age < NEW;
                if age > STALE {
                    self.close(key);
                }
                true
            }
            Err(_) => false,
        }
    }

    /// Writes missing rows: the table may have been emptied, or restored from an older copy.
    fn write_missing(&mut self, in_table: &HashSet<Key>) -> bool {
        let known: Vec<Key> = self.backlogs.known().keys().copied().collect();
        for key in known {
            if in_table.contains(&key) || self.closing.contains_key(&key) {
                continue;
            }
            let origin = self.origin(key).to_owned();
            let queue = backlog_queue(&origin, key.1);
            match self.ask_broker(|link, shutdown| link.queue_messages(&queue, shutdown)) {
                Ok(Some(_)) => {
                    let class = Class::Unproven.label();
                    let why = Held::Behind.label();
                    if self.store.open_backlog(&origin, key.1, why, class).is_err() {
                        return false;
                    }
                }
                // Another instance removed it.
                Ok(None) => self.remove_known(key),
                Err(_) => return false,
            }
        }
        true
    }

    /// Searches for queues without a row, a few at a time: the table may have been restored from an older copy.
    pub(super) fn search(&mut self) {
        let Some(unsearched) = &mut self.unsearched else {
            self.unsearched = self.store.webhook_ids().ok().map(Unsearched::new);
            return;
        };
        let mut keys = unsearched.take(SEARCHED, self.backlogs.origins.len());
        // A closing backlog has a row.
        keys.retain(|key| !self.is_known(*key) && !self.closing.contains_key(key));
        if keys.is_empty() {
            return;
        }
        let names: Vec<String> =
            keys.iter().map(|key| backlog_queue(self.origin(*key), key.1)).collect();
        let mut found = Vec::new();
        let searched = self.ask_broker(|link, shutdown| {
            for (key, queue) in keys.iter().zip(&names) {
                if link.queue_messages(queue, shutdown)?.is_some() {
                    found.push(*key);
                }
            }
            Ok(())
        });
        if searched.is_err()
            && let Some(unsearched) = &mut self.unsearched
        {
            unsearched.again = keys;
        }
        for key in found {
            let queue = backlog_queue(self.origin(key), key.1);
            log::warn!("backlog found queue={queue}: the table `backlogs` had no row for it");
            let _ = self.ensure_open(key, Held::Behind.label());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_backlogs_at_a_time_are_searched_for_and_each_once() {
        for (webhooks, queues) in [(0, 3), (1, 1), (7, 3), (3, 50)] {
            let ids: Vec<_> = (0..webhooks).map(Uuid::from_u128).collect();
            let mut unsearched = Unsearched::new(ids.clone());
            let mut all = HashSet::new();
            let mut count = 0;
            loop {
                let some = unsearched.take(SEARCHED, queues);
                assert!(some.len() <= SEARCHED);
                if some.is_empty() {
                    break;
                }
                // The broker is away once.
                if count == 0 {
                    unsearched.again = some;
                    assert!(unsearched.again.len() <= SEARCHED);
                    let again = unsearched.take(SEARCHED, queues);
                    count += again.len();
                    all.extend(again);
                    continue;
                }
                count += some.len();
                all.extend(some);
            }
            assert_eq!((count, all.len()), (ids.len() * queues, ids.len() * queues));
        }
    }
}
