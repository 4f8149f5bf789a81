//! Backlogs that another instance consumes, because it has all that their webhooks' limits allow.
//!
//! RabbitMQ delivers a backlog to any one of its consumers. So an instance that may not send from it
//! doesn't consume it, and hands back in order what it got.

use std::ops::Bound;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Drain;
use crate::consumer::Ended;
use crate::domain::instances::SentBy;
use crate::domain::pace::Hold;

/// How many backlogs are checked per tick for a change of ownership. Each may need a query to
/// PostgreSQL.
const LOOKED_AT: usize = 20;

/// A backlog whose existence alone makes one instance the sender is removed after it has been empty,
/// without a reached limit, for this long. Meanwhile all deliveries to its webhook go through it, at
/// twice the work.
const CALM: Duration = Duration::from_secs(60);

impl Drain<'_, '_> {
    /// Whether another instance should send the first delivery of a backlog. If so, and nothing of it is
    /// under way any more, this instance stops consuming it; both together would exceed the limit.
    pub(super) fn leave_to_its_sender(&mut self, webhook: Uuid) -> Result<bool, Ended> {
        let Some(backlog) = self.backlogs.get(&webhook) else { return Ok(false) };
        let (is_elsewhere, is_busy) = {
            let state = backlog.queue.state();
            let is_elsewhere = state.hold == Some(Hold::Elsewhere) && !state.ready.is_empty();
            (is_elsewhere, state.under_way > 0)
        };
        if is_elsewhere && !is_busy {
            self.leave(webhook)?;
        }
        Ok(is_elsewhere)
    }

    fn leave(&mut self, webhook: Uuid) -> Result<(), Ended> {
        self.release(webhook)?;
        self.is_left(webhook);
        Ok(())
    }

    /// Marks it as consumed by another instance.
    pub(super) fn is_left(&mut self, webhook: Uuid) {
        if let Some(backlog) = self.backlogs.get_mut(&webhook) {
            log::debug!("backlog left to another instance webhook={webhook}");
            backlog.queue.state().hold = None;
            (backlog.is_elsewhere, backlog.is_ours) = (true, false);
            (backlog.due, backlog.resume_at, backlog.oldest) = (None, None, None);
            self.context.receivers.set_elsewhere(self.lane.number, webhook, true);
        }
    }

    /// Starts to consume backlogs that became ours, and stops with those that no longer are: all of them
    /// if the instances have changed, otherwise some of them, because webhooks change too.
    pub(super) fn look_whose_they_are(&mut self, now: Instant) -> Result<(), Ended> {
        let changes = self.context.receivers.changes_of_instances();
        let have_changed = changes != self.instances_seen;
        if have_changed {
            // Deliveries that a limit held up may begin now.
            self.have_changed = true;
        }
        let is_sharing = self.context.receivers.is_sharing();
        let most = if have_changed { self.backlogs.len() } else { LOOKED_AT };
        for webhook in self.next_to_look_at(most) {
            let was_elsewhere = self.backlogs.get(&webhook).is_some_and(|one| one.is_elsewhere);
            if !is_sharing && !was_elsewhere {
                continue;
            }
            let Some(sent_by) = self.sent_by(webhook) else { return Ok(()) };
            self.look_whose_it_is(webhook, sent_by, now)?;
        }
        self.instances_seen = changes;
        Ok(())
    }

    fn look_whose_it_is(
        &mut self,
        webhook: Uuid,
        sent_by: SentBy,
        now: Instant,
    ) -> Result<(), Ended> {
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
            // Each query would time out in turn, and all other backlogs would wait for that.
            return None;
        }
        let asked = self.context.pipeline.sent_by(webhook);
        asked.inspect_err(|error| database.failed(error.answer())).ok()
    }

    /// The next `most` backlogs, in rotation.
    fn next_to_look_at(&mut self, most: usize) -> Vec<Uuid> {
        let after = self.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.backlogs.range((after, Bound::Unbounded)).map(|(webhook, _)| *webhook);
        let mut some: Vec<Uuid> = some.take(most).collect();
        let more = self.backlogs.keys().take(most - some.len()).copied();
        some.extend(more);
        // The wrapped-around part may repeat some of the first.
        some.truncate(self.backlogs.len());
        self.looked_at = some.last().copied();
        some
    }
}
