//! Moves deliveries that can't begin now to their receiver's backlog, in order.

use super::onward::travelling;
use super::{Kept, MessageContext, Pipeline, Promise, age, from_now};
use crate::broker::{Lane, NotConfirmed, Outgoing, WITHOUT_BACKLOG};
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::held::Held;
use crate::domain::intake::{EntryTicket, Refusal};
use crate::domain::outcome::{DeadReason, Decision};
use crate::domain::pace::Hold;
use crate::domain::shown::word;
use crate::domain::time::Span;
use crate::domain::webhook::Webhook;
use crate::receivers::Receivers;

impl Pipeline {
    /// Arranges a later attempt for a delivery that gets none now, through its receiver's backlog.
    pub(super) fn hold_back(
        &self,
        context: MessageContext<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
        refusal: Refusal,
    ) -> Kept {
        let Refusal { hold, entry } = refusal;
        let event = word(&delivery.event.id);
        log::debug!("held back event={event} webhook={} because={hold}", webhook.id);
        let Some(entry) = entry else {
            // At shutdown: it will be attempted soon after the next start.
            return self.hand_over(context, &delivery, Held::Interrupted).map(Some);
        };
        let place = Place { receivers: &self.receivers, entry, is_there: false };
        if delivery.last_error.is_empty() {
            delivery.last_error = format!("no attempt yet: {hold}");
        }
        if self.is_too_old(&delivery) {
            return self.expire(context, &delivery, hold.into()).map(Some);
        }
        if let Hold::StayAway(remaining) = hold {
            delivery.not_before = Some(from_now(remaining));
        }
        let Lane { number, .. } = *context.lane;
        if self.backlogs.ensure_open(number, webhook.id, hold.into(), &self.shutdown) {
            self.receivers.wait_to_enter(entry);
            let promise = self.enter(context, &delivery, hold.into())?;
            place.take();
            return Ok(Some(promise));
        }
        if self.shutdown.is_requested() {
            return self.hand_over(context, &delivery, Held::Interrupted).map(Some);
        }
        let wait = Span::from(WITHOUT_BACKLOG);
        let decision = Some(Decision::Park(wait));
        let happened = Happened::HeldBack { why: Held::from(hold).label(), decision };
        self.log.record(&context.lane.origin, &delivery, happened);
        self.park(context, &delivery, wait, context.metrics.held(hold.into())).map(Some)
    }

    /// Whether a delivery is too old to wait.
    pub(super) fn is_too_old(&self, delivery: &Delivery) -> bool {
        age(delivery) > self.delivery_max_age
    }

    /// Turns a delivery into a dead letter because it became too old without an attempt.
    pub(super) fn expire(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        why: Held,
    ) -> Result<Promise, NotConfirmed> {
        self.dead_letter_unattempted(context, delivery, DeadReason::Expired, why.label())
    }

    /// Turns a delivery into a dead letter for a reason other than the result of an attempt.
    pub(super) fn dead_letter_unattempted(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        reason: DeadReason,
        why: &'static str,
    ) -> Result<Promise, NotConfirmed> {
        let decision = Some(Decision::Dead(reason));
        let happened = Happened::HeldBack { why, decision };
        self.log.record(&context.lane.origin, delivery, happened);
        log::warn!(
            "delivery dead event={} webhook={} attempt={} reason={} detail={:?}",
            word(&delivery.event.id),
            delivery.webhook_id,
            delivery.attempts,
            reason.label(),
            delivery.last_error,
        );
        self.dead_letter(context, delivery, reason)
    }

    /// Publishes a delivery to its receiver's backlog.
    fn enter(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        why: Held,
    ) -> Result<Promise, NotConfirmed> {
        let happened = Happened::HeldBack { why: why.label(), decision: None };
        self.log.record(&context.lane.origin, delivery, happened);
        let message = travelling(context, delivery);
        let (origin, instance) = (&context.lane.origin, self.backlogs.instance());
        let outgoing = Outgoing::backlog(message, origin, delivery.webhook_id, instance);
        self.promise(outgoing, context.metrics.held(why), true)
    }
}

/// A delivery's place in the line of those that enter a backlog. Those behind it wait until it has been
/// published, or has been dropped.
struct Place<'a> {
    receivers: &'a Receivers,
    entry: EntryTicket,
    is_there: bool,
}

impl Place<'_> {
    fn take(mut self) {
        self.is_there = true;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.receivers.entered(self.entry, self.is_there);
    }
}
