//! The check that runs once a second, for changes that trigger no event.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Drain, NOTE_INTERVAL, TICK};
use crate::broker::backlog_queue;
use crate::clock;
use crate::consumer::Ended;
use crate::domain::held::Held;
use crate::domain::in_hand;
use crate::domain::pace::Hold;

/// How long a backlog has to be empty before it is removed. Recreating it would delay its receiver's first
/// deliveries by some tens of milliseconds.
const IDLE: Duration = Duration::from_secs(3_600);

/// The longest time between two checks whether a backlog that another instance consumes is empty.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// How many backlogs are checked per tick for being empty.
const CHECKED: usize = 20;

impl Drain<'_, '_> {
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        let mut checks = CHECKED;
        let patience = in_hand::patience(self.context.config.request_timeout);
        for webhook in webhooks {
            self.note(webhook, now);
            let Some(backlog) = self.backlogs.get_mut(&webhook) else { continue };
            let held_for = {
                let state = backlog.queue.state();
                let head = state.ready.front();
                if let Some(age) = head.and_then(|head| self.context.pipeline.age(&head.waiting)) {
                    backlog.oldest = now.checked_sub(age);
                } else if backlog.consumer.is_some() {
                    backlog.oldest = None;
                }
                head.map(|head| now.saturating_duration_since(head.since))
            };
            if backlog.resume_at.is_some_and(|at| now >= at) {
                self.consume(webhook, 1)?;
            } else if held_for.is_some_and(|held_for| held_for > patience) {
                self.release(webhook)?;
                self.consume(webhook, 1)?;
            } else if backlog.in_hand == 0 && backlog.consumer.is_some() {
                self.check_empty(webhook, now, &mut checks)?;
            }
        }
        self.check_owners(now)?;
        self.bound_held()?;
        let oldest = self.backlogs.values().filter_map(|backlog| backlog.oldest).min();
        self.context.metrics.lane(&self.lane.queue).oldest_in_backlog(oldest);
        Ok(())
    }

    /// Records what holds up a backlog.
    fn note(&mut self, webhook: Uuid, now: Instant) {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return };
        let hold = backlog.queue.state().hold;
        // The recorded cause must not outlast the deliveries that waited because of it: readers of the table
        // would take a healthy receiver to be away.
        let is_drained = backlog.is_empty && backlog.is_ours;
        if hold.is_none() && !is_drained && (backlog.in_hand == 0 || backlog.noted.is_none()) {
            return;
        }
        if hold == Some(Hold::Elsewhere) {
            // The instance that sends from it records it.
            return;
        }
        let waits = hold.is_some_and(|hold| !hold.remaining().is_zero());
        let due = backlog.due.or(backlog.resume_at).filter(|_| waits);
        let until = due.map(|due| clock::now() + due.saturating_duration_since(now));
        let why = hold.map_or(Held::Behind, Held::from);
        let is_news = backlog.noted.is_none_or(|(noted, at)| {
            let moved = match (at, until) {
                (Some(at), Some(until)) => {
                    let apart = until.duration_since(at).or_else(|_| at.duration_since(until));
                    apart.is_ok_and(|apart| apart > TICK)
                }
                (at, until) => at.is_some() != until.is_some(),
            };
            noted != why || moved
        });
        if is_news && now >= backlog.noted_at + NOTE_INTERVAL {
            (backlog.noted, backlog.noted_at) = (Some((why, until)), now);
            let class = self.context.receivers.class(webhook).unwrap_or_default().label();
            self.context.backlogs.note(self.lane.number, webhook, why, class, until);
        }
    }

    /// Checks whether the queue of a backlog is empty. No message of the backlog is in hand.
    fn check_empty(
        &mut self,
        webhook: Uuid,
        now: Instant,
        checks: &mut usize,
    ) -> Result<(), Ended> {
        let number = self.lane.number;
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        if backlog.is_empty && !self.context.receivers.is_backlog_in_use(number, webhook) {
            if now >= backlog.quiet_since + IDLE {
                self.ask_for_removal(webhook);
            }
            return Ok(());
        }
        if now < backlog.check_at || *checks == 0 {
            return Ok(());
        }
        *checks -= 1;
        let name = backlog_queue(&self.lane.origin, webhook);
        let last = self.context.receivers.last_in_backlog(number, webhook);
        let count = self.count(&name)?.unwrap_or(0);
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let has_more = backlog.consumer.as_ref().is_some_and(|one| !one.receiver().is_empty());
        if count > 0 || has_more {
            backlog.futile_checks = if has_more { 0 } else { backlog.futile_checks + 1 };
            backlog.check_interval = (backlog.check_interval * 2).min(LONGEST_INTERVAL);
        } else if self.context.receivers.note_backlog_empty(number, webhook, last) {
            backlog.is_empty = true;
            backlog.futile_checks = 0;
            backlog.check_interval = TICK;
            backlog.quiet_since = now;
            backlog.queue.state().hold = None;
            if backlog.prefetch > 1 {
                self.consume(webhook, 1)?;
            }
        }
        if let Some(backlog) = self.backlogs.get_mut(&webhook) {
            backlog.check_at = now + backlog.check_interval;
        }
        Ok(())
    }

    pub(super) fn ask_for_removal(&mut self, webhook: Uuid) {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return };
        // If it can't be removed now, the next request comes after the same time.
        backlog.quiet_since = Instant::now();
        self.context.backlogs.remove(self.lane.number, webhook);
    }
}
