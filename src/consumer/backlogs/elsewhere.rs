//! Backlogs that are another instance's to consume: it has all that their webhooks' limits allow.
//!
//! RabbitMQ gives a backlog to one of those that want to consume it, whichever that is. So whoever may send
//! nothing from it doesn't want to, and what it was given goes back, in order.

use std::ops::Bound;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Drain;
use crate::consumer::Ended;
use crate::domain::instances::SentBy;
use crate::domain::pace::Hold;

/// How many backlogs are looked at in a tick whether that has changed; each may be a question to PostgreSQL.
const LOOKED_AT: usize = 20;

/// A backlog that is one instance's only because it is there is removed when it has been empty, and no limit
/// was reached, for so long. All that comes for its webhook goes through it meanwhile, at twice the work.
const CALM: Duration = Duration::from_secs(60);

impl Drain<'_, '_> {
    /// Whether the first of a backlog is another instance's to send; which leaves it then, once nothing of
    /// it is under way: together they would be more than the limit.
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

    /// Another instance consumes it.
    pub(super) fn is_left(&mut self, webhook: Uuid) {
        if let Some(backlog) = self.backlogs.get_mut(&webhook) {
            log::debug!("backlog left to another instance webhook={webhook}");
            backlog.queue.state().hold = None;
            backlog.is_elsewhere = true;
            (backlog.due, backlog.resume_at, backlog.oldest) = (None, None, None);
            self.context.receivers.set_elsewhere(self.lane.number, webhook, true);
        }
    }

    /// Consumes what has become ours, and leaves what is ours no more: all at once when the instances have
    /// changed, and else some of them, since webhooks change, too.
    pub(super) fn look_whose_they_are(&mut self, now: Instant) -> Result<(), Ended> {
        let changes = self.context.receivers.changes_of_instances();
        let have_changed = changes != self.instances_seen;
        if have_changed {
            // What a limit held up may begin now.
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
                // Without it, each sends its part of what comes.
                backlog.limited_at = now;
                self.ask_for_removal(webhook);
                Ok(())
            }
            SentBy::This { .. } | SentBy::Each => Ok(()),
        }
    }

    /// Which instance sends what is in a backlog; nothing, where PostgreSQL has to be asked and does not
    /// answer.
    pub(super) fn sent_by(&self, webhook: Uuid) -> Option<SentBy> {
        if !self.context.receivers.is_sharing() {
            return Some(SentBy::Each);
        }
        let database = self.context.metrics.health().database();
        if !database.is_up() {
            // Each would have to wait for the same answer, and all others meanwhile.
            return None;
        }
        let asked = self.context.pipeline.sent_by(webhook);
        asked.inspect_err(|error| database.failed(error.answer())).ok()
    }

    /// Some of them, in rotation.
    fn next_to_look_at(&mut self, most: usize) -> Vec<Uuid> {
        let after = self.looked_at.map_or(Bound::Unbounded, Bound::Excluded);
        let some = self.backlogs.range((after, Bound::Unbounded)).map(|(webhook, _)| *webhook);
        let mut some: Vec<Uuid> = some.take(most).collect();
        let more = self.backlogs.keys().take(most - some.len()).copied();
        some.extend(more);
        // The first of the rest are some of those before.
        some.truncate(self.backlogs.len());
        self.looked_at = some.last().copied();
        some
    }
}
