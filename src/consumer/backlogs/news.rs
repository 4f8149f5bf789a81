//! Changes of backlogs and of their webhooks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use super::queue::Queue;
use super::{Backlog, Drain, NOTE_INTERVAL, TICK};
use crate::backlogs::{News, Standing};
use crate::consumer::Ended;
use crate::domain::held::Dropped;
use crate::domain::instances::SentBy;
use crate::domain::pace::Hold;

pub(super) fn learn(known: &mut BTreeMap<Uuid, Option<Standing>>, news: News) {
    match news {
        News::Opened(webhook) => drop(known.entry(webhook).or_insert(Some(Standing::Enabled))),
        News::Removed(webhook) => drop(known.remove(&webhook)),
        News::Standing(webhook, standing) => {
            if let Some(known) = known.get_mut(&webhook) {
                *known = standing;
            }
        }
        News::Changed => {}
    }
}

impl Drain<'_, '_> {
    pub(super) fn take_news(&mut self) -> Result<(), Ended> {
        while let Ok(news) = self.context.backlogs.news(self.lane.number).try_recv() {
            learn(self.known, news);
            match news {
                News::Opened(webhook) => self.add(webhook)?,
                News::Removed(webhook) => self.remove(webhook)?,
                News::Standing(webhook, standing) => self.apply_standing(webhook, standing)?,
                News::Changed => self.have_changed = true,
            }
        }
        Ok(())
    }

    /// Begins to consume a backlog.
    pub(super) fn add(&mut self, webhook: Uuid) -> Result<(), Ended> {
        if self.backlogs.contains_key(&webhook) {
            return Ok(());
        }
        let now = Instant::now();
        let backlog = Backlog {
            queue: Arc::new(Queue::new(webhook)),
            consumer: None,
            is_elsewhere: false,
            is_ours: false,
            limited_at: now,
            prefetch: 0,
            in_hand: 0,
            had_too_many: false,
            done: 0,
            due: None,
            listed_due: None,
            paused_since: None,
            resume_at: None,
            is_soon: false,
            quiet_since: now,
            is_empty: false,
            check_at: now,
            check_interval: TICK,
            oldest: None,
            futile_checks: 0,
            noted: None,
            noted_at: now.checked_sub(NOTE_INTERVAL).unwrap_or(now),
        };
        self.backlogs.insert(webhook, backlog);
        if self.sent_by(webhook) == Some(SentBy::Other) {
            self.mark_elsewhere(webhook);
        } else {
            self.consume(webhook, 1)?;
        }
        match self.known.get(&webhook) {
            Some(standing) => self.apply_standing(webhook, *standing),
            None => Ok(()),
        }
    }

    fn remove(&mut self, webhook: Uuid) -> Result<(), Ended> {
        self.release(webhook)?;
        self.forget(webhook);
        Ok(())
    }

    /// Forgets a backlog. Deliveries in flight are still acked. It leaves all lists at once, because another
    /// backlog may be created before they are read again.
    pub(super) fn forget(&mut self, webhook: Uuid) {
        let Some(backlog) = self.backlogs.remove(&webhook) else { return };
        self.forget_unanswered(webhook);
        self.context.receivers.set_elsewhere(self.lane.number, webhook, false);
        self.ahead -= usize::from(backlog.prefetch.saturating_sub(1));
        self.expecting.remove(&webhook);
        self.in_line.remove(&webhook);
        if let Some(due) = backlog.listed_due {
            self.due.remove(&(due, webhook));
        }
        self.stop_queue(&backlog.queue);
    }

    /// Reacts to a webhook that was paused, resumed, disabled or deleted.
    fn apply_standing(&mut self, webhook: Uuid, standing: Option<Standing>) -> Result<(), Ended> {
        match standing {
            Some(Standing::Enabled) => {
                let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
                let is_paused = matches!(backlog.queue.state().hold, Some(Hold::Paused));
                if is_paused {
                    backlog.queue.state().hold = None;
                    (backlog.resume_at, backlog.due) = (None, None);
                    if backlog.consumer.is_none() {
                        self.consume(webhook, 1)?;
                    } else {
                        self.advance(webhook);
                    }
                }
                Ok(())
            }
            // The next request for an attempt is refused.
            Some(Standing::Paused) => Ok(()),
            Some(Standing::Disabled) => self.drop_all(webhook, Dropped::Disabled),
            None => self.drop_all(webhook, Dropped::Deleted),
        }
    }

    pub(super) fn drop_all(&mut self, webhook: Uuid, why: Dropped) -> Result<(), Ended> {
        self.purge(webhook, why)?;
        if matches!(why, Dropped::Deleted) {
            self.ask_for_removal(webhook);
        }
        Ok(())
    }

    /// Asks again for deliveries that were refused because of their webhook's former settings.
    pub(super) fn ask_for_all(&mut self) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        for webhook in webhooks {
            let Some(backlog) = self.backlogs.get(&webhook) else { continue };
            // Limits are the only settings that hold up a delivery.
            if !matches!(backlog.queue.state().hold, Some(Hold::Limit(..))) {
                continue;
            }
            if backlog.consumer.is_none() {
                self.consume(webhook, 1)?;
            } else {
                self.advance(webhook);
            }
        }
        Ok(())
    }
}
