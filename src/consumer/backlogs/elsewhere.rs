//! Backlogs that another instance consumes, because that instance sends all requests that their webhooks'
//! limits allow.
//!
//! RabbitMQ delivers a backlog to any one of its consumers. So an instance that may not send from it doesn't
//! consume it, and hands back in order the messages that it got.

use std::ops::Bound;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Drain;
use crate::consumer::Ended;
use crate::domain::instances::SentBy;
use crate::domain::pace::Hold;

/// How many backlogs are checked per tick for a change of ownership. Each may need a query to PostgreSQL.
const CHECKED: usize = 20;

/// Sometimes one instance is the only sender just because the backlog exists. Such a backlog is removed when it
/// has been empty, and no limit was reached, for this long. Until then all deliveries to its webhook go through
/// it, at twice the work.
const CALM: Duration = Duration::from_secs(60);

impl Drain<'_, '_> {
    /// Whether another instance should send the first delivery of a backlog. If so, this instance stops
    /// consuming it once none of its deliveries is in flight; both together would exceed the limit.
    pub(super) fn leave_to_its_sender(&mut self, webhook: Uuid) -> Result<bool, Ended> {
        let Some(backlog) = self.backlogs.get(&webhook) else { return Ok(false) };
        let (is_elsewhere, is_busy) = {
            let state = backlog.queue.state();
            let is_elsewhere = state.hold == Some(Hold::Elsewhere) && !state.ready.is_empty();
            (is_elsewhere, state.in_flight > 0)
        };
        if is_elsewhere && !is_busy {
            self.leave(webhook)?;
        }
        Ok(is_elsewhere)
    }

    fn leave(&mut self, webhook: Uuid) -> Result<(), Ended> {
        self.release(webhook)?;
        self.mark_elsewhere(webhook);
        Ok(())
    }

    /// Marks a backlog as consumed by another instance.
    pub(super) fn mark_elsewhere(&mut self, webhook: Uuid) {
        if let Some(backlog) = self.backlogs.get_mut(&webhook) {
            log::debug!("backlog left to another instance webhook={webhook}");
            backlog.queue.state().hold = None;
            (backlog.is_elsewhere, backlog.is_ours) = (true, false);
            (backlog.due, backlog.resume_at, backlog.oldest) = (None, None, None);
            self.context.receivers.set_elsewhere(self.lane.number, webhook, true);
        }
    }

    /// Starts to consume backlogs that became ours, and stops consuming those that no longer are. Checks all of
    /// them if the instances have changed, otherwise some of them, because webhooks change too.
    pub(super) fn check_owners(&mut self, now: Instant) -> Result<(), Ended> {
        let changes = self.context.receivers.changes_of_instances();
        let have_changed = changes != self.instances_seen;
        if have_changed {
            // Deliveries that a limit held up may begin now.
            self.have_changed = true;
        }
        let is_sharing = self.context.receivers.is_sharing();
        let most = if have_changed { self.backlogs.len() } else { CHECKED };
        for webhook in self.next_to_check(most) {
            let was_elsewhere = self.backlogs.get(&webhook).is_some_and(|one| one.is_elsewhere);
            if !is_sharing && !was_elsewhere {
                continue;
            }
            let Some(sent_by) = self.sent_by(webhook) else { return Ok(()) };
            self.check_owner(webhook, sent_by, now)?;
        }
        self.instances_seen = changes;
        Ok(())
    }

    fn check_owner(&mut self, webhook: Uuid, sent_by: SentBy, now: Instant) -> Result<(), Ended> {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let is_idle = backlog.in_hand == 0 && backlog.consumer.is_some();
        match sent_by {
            SentBy::Other if !backlog.is_elsewhere && is_idle => self.leave(webhook),
            SentBy::Other => Ok(()),
            SentBy::This { .. } if backlog.is_elsewhere => {
                self.context.receivers.found_backlog(self.lane.number, webhook);
                self.consume(webhook, 1)
            }
            SentBy::Each if backlog.is_elsewhere => self.consume(webhook, 1),
            SentBy::This { for_now: true }
                if is_idle && backlog.is_empty && now >= backlog.limited_at + CALM =>
            {
                // Without the backlog, each instance sends its part of the new events.
                backlog.limited_at = now;
                self.ask_for_removal(webhook);
                Ok(())
            }
            SentBy::This { .. } | SentBy::Each => Ok(()),
        }
    }

    /// Which instance sends from a backlog; `None` if PostgreSQL has to be asked and doesn't answer.
    pub(super) fn sent_by(&self, webhook: Uuid) -> Option<SentBy> {
        if !self.context.receivers.is_sharing() {
            return Some(SentBy::Each);
        }
        let database = self.context.metrics.health().database();
        if !database.is_up() {
            // Each query would time out in turn, while all other backlogs wait.
            return None;
        }
        let asked = self.context.pipeline.sent_by(webhook);
        asked.inspect_err(|error| database.failed(error.answer())).ok()
    }

    /// The next `most` backlogs, in rotation.
    fn next_to_check(&mut self, most: usize) -> Vec<Uuid> {
        let after = self.last_checked.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.backlogs.range((after, Bound::Unbounded)).map(|(webhook, _)| *webhook);
        let mut some: Vec<Uuid> = some.take(most).collect();
        let more = self.backlogs.keys().take(most - some.len()).copied();
        some.extend(more);
        // The wrapped-around part may repeat some of the first.
        some.truncate(self.backlogs.len());
        self.last_checked = some.last().copied();
        some
    }
}
