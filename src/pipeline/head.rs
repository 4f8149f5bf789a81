//! Decides what happens to the first delivery of a backlog.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{MessageContext, Pipeline, Promises, age};
use crate::broker::{Lane, Message, NotConfirmed};
use crate::clock::unix_millis;
use crate::directory::{Found, StoreError};
use crate::domain::delivery::Delivery;
use crate::domain::event::Malformed;
use crate::domain::held::{Dropped, Held};
use crate::domain::instances::SentBy;
use crate::domain::pace::{Ask, Attempt, Hold};
use crate::domain::webhook::Webhook;
use crate::receivers::{InLine, Turn};

/// A delivery that waits in a backlog.
#[derive(Debug)]
pub struct Waiting {
    message: Message,
    delivery: Result<Delivery, Malformed>,
    /// Whether this process put it there.
    pub is_ours: bool,
}

/// What to do with the first delivery of a backlog.
#[derive(Debug)]
pub enum Head {
    /// Make an attempt, with [`Pipeline::attempt_head`].
    Attempt(Box<Webhook>, Attempt),
    /// Make an attempt when it is called.
    Waits(Box<Webhook>, InLine),
    /// Wait, for this reason.
    Held(Hold),
    /// Remove it from the backlog without an attempt, with [`Pipeline::settle_unattempted`].
    Leaves,
    /// Drop all deliveries of the backlog, because their webhook is gone or disabled.
    Unwanted(Dropped),
    /// Wait, because PostgreSQL has to be asked and doesn't answer.
    Missing,
}

impl Waiting {
    /// Its approximate memory in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.message.size()
    }
}

impl Pipeline {
    /// Reads a message of a backlog.
    #[must_use]
    pub fn read_waiting(&self, message: Message) -> Waiting {
        let delivery = Delivery::from_headers(&message.headers, &message.body, unix_millis());
        let is_ours = message.was_entered_by(self.backlogs.instance());
        Waiting { message, delivery, is_ours }
    }

    /// The time until a delivery is too old; zero if it can't be read.
    #[must_use]
    pub fn expires_in(&self, waiting: &Waiting) -> Duration {
        self.delivery_max_age.saturating_sub(self.age(waiting).unwrap_or(Duration::MAX))
    }

    /// The age of a delivery's event; `None` if it can't be read.
    #[must_use]
    pub fn age(&self, waiting: &Waiting) -> Option<Duration> {
        waiting.delivery.as_ref().ok().map(age)
    }

    /// Which instance sends to a webhook.
    ///
    /// # Errors
    /// [`StoreError`] if PostgreSQL has to be asked and doesn't answer.
    pub fn sent_by(&self, webhook: Uuid) -> Result<SentBy, StoreError> {
        Ok(match self.directory.find(webhook)? {
            Found::Enabled(webhook) => self.receivers.sent_by(webhook.id, webhook.limits()),
            Found::Disabled | Found::Deleted => SentBy::Each,
        })
    }

    /// Decides about the first delivery of a backlog of that lane.
    #[must_use]
    pub fn head(&self, lane: &Lane, waiting: &Waiting) -> Head {
        let Ok(delivery) = &waiting.delivery else { return Head::Leaves };
        let webhook = match self.directory.find(delivery.webhook_id) {
            Ok(Found::Enabled(webhook)) => webhook,
            Ok(Found::Deleted) => return Head::Unwanted(Dropped::Deleted),
            Ok(Found::Disabled) => return Head::Unwanted(Dropped::Disabled),
            Err(error) => {
                self.metrics.health().database().failed(error.answer());
                return Head::Missing;
            }
        };
        if waiting.message.is_near_backlogs_delivery_limit() || !webhook.may_have(&delivery.event) {
            return Head::Leaves;
        }
        self.apply_retry_after(delivery);
        let ask = Ask { is_head: true, ..Ask::of(&webhook, lane.number) };
        let asked = match webhook.is_paused {
            true => Err(Hold::Paused),
            false => self.receivers.ask_head(ask, waiting.is_ours),
        };
        match asked {
            Ok(Turn::Begins(attempt)) => Head::Attempt(Box::new(webhook), attempt),
            Ok(Turn::Waits(in_line)) => Head::Waits(Box::new(webhook), in_line),
            // As with retries, an attempt that is possible now is made, whatever the delivery's age.
            Err(_) if self.is_too_old(delivery) => Head::Leaves,
            Err(hold) => Head::Held(hold),
        }
    }

    /// Makes an attempt of a delivery that was the first of a backlog, and waits until the broker has confirmed
    /// its follow-up.
    ///
    /// # Errors
    /// [`NotConfirmed`]
    pub fn attempt_head(
        &self,
        lane: &Lane,
        waiting: Waiting,
        webhook: &Webhook,
        attempt: Attempt,
    ) -> Result<(), NotConfirmed> {
        self.settle_waiting(lane, waiting, |context, delivery, promises| {
            match delivery {
                Ok(delivery) => promises.extend(self.attempt(context, webhook, delivery, attempt)?),
                Err(_) => self.receivers.give_back(attempt),
            }
            Ok(())
        })
    }

    /// Settles a delivery that leaves a backlog without an attempt: it is malformed, its webhook has another
    /// account, it is too old, or it was redelivered so often that the broker might drop it. Waits for the
    /// confirm of its follow-up.
    ///
    /// # Errors
    /// [`NotConfirmed`]
    pub fn settle_unattempted(&self, lane: &Lane, waiting: Waiting) -> Result<(), NotConfirmed> {
        self.settle_waiting(lane, waiting, |context, delivery, promises| {
            match delivery {
                Err(malformed) => {
                    self.dead_letter_malformed(context, &malformed, promises)
                        .map_err(|_| NotConfirmed)?;
                }
                Ok(delivery) if let Some(webhook) = self.other_account(&delivery) => {
                    promises.extend([self.dead_letter_for_account(context, &webhook, delivery)?]);
                }
                Ok(delivery) if self.is_too_old(&delivery) => {
                    promises.extend([self.expire(context, &delivery, Held::Behind)?]);
                }
                Ok(delivery) => promises.extend([self.park_unchecked(context, &delivery)?]),
            }
            Ok(())
        })
    }

    /// Settles a delivery by `act`, and waits for the confirms of its follow-ups.
    fn settle_waiting(
        &self,
        lane: &Lane,
        waiting: Waiting,
        act: impl FnOnce(
            MessageContext<'_>,
            Result<Delivery, Malformed>,
            &mut Promises,
        ) -> Result<(), NotConfirmed>,
    ) -> Result<(), NotConfirmed> {
        let Waiting { message, delivery, .. } = waiting;
        let metrics = self.metrics.lane(&lane.queue);
        let context = MessageContext { lane, metrics, message: &message };
        let mut promises = Promises::new(Instant::now());
        metrics.received.inc();
        act(context, delivery, &mut promises)?;
        promises.wait_until_open(0, &self.tally, &self.shutdown)?;
        self.settled(lane, &promises);
        Ok(())
    }

    /// Records that a delivery left its backlog without an attempt.
    pub fn left_backlog(&self, lane: &Lane, webhook: Uuid, is_ours: bool) {
        self.receivers.left_backlog(lane.number, webhook, is_ours);
    }

    /// Counts `count` deliveries of a backlog that were dropped at once.
    pub fn dropped_from_backlog(&self, why: Dropped, count: u64) {
        self.metrics.dropped(why).inc_by(count);
    }
}
