//! Deliveries whose webhook has moved to another account.
//!
//! A delivery carries its event's account, as of the look-up of the event's webhooks. A webhook's account may
//! change while deliveries wait for it; those of other accounts must not reach it. They become dead letters,
//! so that they still exist if the change was a mistake.

use super::{MessageContext, Pipeline, Promise};
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

/// Whether a webhook's present account allows a delivery.
#[expect(clippy::large_enum_variant, reason = "it is evaluated at once, and never kept")]
pub(super) enum AccountNow {
    /// The webhook may have the delivery; or it is gone or disabled, which its next delivery will find out.
    Own,
    /// The webhook may not have the delivery.
    Other(Webhook),
    /// The webhook was changed, and PostgreSQL doesn't answer how.
    Unknown,
}

impl Pipeline {
    /// Checks again whether a webhook may have a delivery.
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
                    // The last known state is used.
                    false => AccountNow::Own,
                }
            }
        }
    }

    /// The webhook of a delivery, if it may not have the delivery.
    pub(super) fn other_account(&self, delivery: &Delivery) -> Option<Webhook> {
        match self.directory.find(delivery.webhook_id) {
            Ok(Found::Enabled(webhook)) if !webhook.may_have(&delivery.event) => Some(webhook),
            // If PostgreSQL doesn't answer, the webhook is looked up again before an attempt.
            _ => None,
        }
    }

    /// Parks a delivery that its webhook may no longer be allowed to have. That is checked when it comes back.
    pub(super) fn park_unchecked(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
    ) -> Result<Promise, NotConfirmed> {
        log::debug!(
            "held back event={} webhook={} because=its webhook was changed, and PostgreSQL doesn't answer how",
            word(&delivery.event.id),
            delivery.webhook_id,
        );
        let wait = Span::from(WITHOUT_BACKLOG);
        let decision = Some(Decision::Park(wait));
        let happened = Happened::HeldBack { why: Held::Interrupted.label(), decision };
        self.log.record(&context.lane.origin, delivery, happened);
        self.park(context, delivery, wait, context.metrics.held(Held::Interrupted))
    }

    /// Turns a delivery into a dead letter because its webhook belongs to another account.
    pub(super) fn dead_letter_for_account(
        &self,
        context: MessageContext<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
    ) -> Result<Promise, NotConfirmed> {
        let of_webhook = webhook.account.as_deref().unwrap_or_default();
        let why = account::mismatch(of_webhook, delivery.event.account.as_deref());
        delivery.last_error = format!("not for its webhook any more: {why}");
        delivery.last_answer = None;
        let reason = DeadReason::OtherAccount;
        self.dead_letter_unattempted(context, &delivery, reason, reason.label())
    }
}
