//! What waited for a webhook that is one of another account by now.
//!
//! Whose an event is was decided when its webhooks were looked up, and the delivery carries it. The
//! account of a webhook may change while deliveries wait for it: those of others than its new account
//! must not reach it. They are dead letters, so that they are there should the change have been a mistake.

use super::{Context, Pipeline, Promise};
use crate::broker::NotConfirmed;
use crate::directory::Found;
use crate::domain::account;
use crate::domain::delivery::Delivery;
use crate::domain::history::Happened;
use crate::domain::outcome::{DeadReason, Decision};
use crate::domain::webhook::Webhook;

impl Pipeline {
    /// The webhook of a delivery that it may not have.
    pub(super) fn other_account(&self, delivery: &Delivery) -> Option<Webhook> {
        match self.directory.find(delivery.webhook_id) {
            Ok(Found::Enabled(webhook)) if !webhook.may_have(&delivery.event) => Some(webhook),
            // If it can't be told, it is looked up once more before it is attempted.
            _ => None,
        }
    }

    /// Makes a delivery that its webhook may not have a dead letter.
    pub(super) fn keep_from(
        &self,
        context: Context<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
    ) -> Result<Promise, NotConfirmed> {
        let of_webhook = webhook.account.as_deref().unwrap_or_default();
        let why = account::mismatch(of_webhook, delivery.event.account.as_deref());
        delivery.last_error = format!("not for its webhook any more: {why}");
        let reason = DeadReason::OtherAccount;
        let decision = Some(Decision::Dead(reason));
        let happened = Happened::HeldBack { why: reason.label(), decision };
        self.log.record(&context.lane.origin, &delivery, happened);
        log::warn!(
            "delivery dead event={} webhook={} attempt={} reason={} detail={:?}",
            delivery.event.id,
            delivery.webhook_id,
            delivery.attempts,
            reason.label(),
            delivery.last_error,
        );
        self.bury(context, &delivery, reason)
    }
}
