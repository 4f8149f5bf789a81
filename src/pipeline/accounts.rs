//! What waited for a webhook that is one of another account by now.
//!
//! Whose an event is was decided when its webhooks were looked up, and the delivery carries it. The
//! account of a webhook may change while deliveries wait for it: those of others than its new account
//! must not reach it. They are dead letters, so that they are there should the change have been a mistake.

use super::{Context, Pipeline, Promise};
use crate::broker::{NotConfirmed, WITHOUT_BACKLOG};
use crate::directory::Found;
use crate::domain::account;
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::held::Held;
use crate::domain::outcome::{DeadReason, Decision};
use crate::domain::shown::word;
use crate::domain::time::Span;
use crate::domain::webhook::Webhook;

/// Whose the webhook of a delivery is by now.
#[expect(clippy::large_enum_variant, reason = "it is looked at once, and never kept")]
pub(super) enum AccountNow {
    /// It may have the delivery; or it is gone or disabled, which the next delivery to it will find.
    Own,
    /// It may not.
    Other(Webhook),
    /// It was changed, and PostgreSQL does not say how.
    Unknown,
}

impl Pipeline {
    /// Looks up once more whether a webhook may have a delivery.
    pub(super) fn account_now(&self, webhook: &Webhook, delivery: &Delivery) -> AccountNow {
        match self.directory.find(delivery.webhook_id) {
            Ok(Found::Enabled(webhook)) if !webhook.may_have(&delivery.event) => {
                AccountNow::Other(webhook)
            }
            Ok(_) => AccountNow::Own,
            Err(error) => {
                self.metrics.health().database().failed(error.answer());
                match self.directory.has_changed_since(webhook) {
                    true => AccountNow::Unknown,
                    // Then what was known last serves.
                    false => AccountNow::Own,
                }
            }
        }
    }

    /// The webhook of a delivery that it may not have.
    pub(super) fn other_account(&self, delivery: &Delivery) -> Option<Webhook> {
        match self.directory.find(delivery.webhook_id) {
            Ok(Found::Enabled(webhook)) if !webhook.may_have(&delivery.event) => Some(webhook),
            // If it can't be told, it is looked up once more before it is attempted.
            _ => None,
        }
    }

    /// Parks a delivery that can't be told from those that its webhook may not have. It is looked up when
    /// it comes back.
    pub(super) fn put_aside(
        &self,
        context: Context<'_>,
        delivery: &Delivery,
    ) -> Result<Promise, NotConfirmed> {
        log::debug!(
            "held back event={} webhook={} because=its webhook was changed, and PostgreSQL does not say how",
            word(&delivery.event.id),
            delivery.webhook_id,
        );
        let wait = Span::from(WITHOUT_BACKLOG);
        let decision = Some(Decision::Park(wait));
        let happened = Happened::HeldBack { why: Held::Interrupted.label(), decision };
        self.log.record(&context.lane.origin, delivery, happened);
        self.park(context, delivery, wait, context.metrics.held(Held::Interrupted))
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
        delivery.last_answer = None;
        let reason = DeadReason::OtherAccount;
        self.bury_unattempted(context, &delivery, reason, reason.label())
    }
}
