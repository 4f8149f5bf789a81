//! Deliveries that couldn't be sent because EGRESS_PROXY is down or refuses us.
//!
//! This says nothing about any receiver. So no attempt is counted, no circuit breaker opens, and no delivery
//! dies because of it before DELIVERY_MAX_AGE. Deliveries wait: the longer the failure lasts, the longer, up to
//! a minute.

use std::time::Duration;

use super::{Kept, MessageContext, Pipeline};
use crate::broker::WITHOUT_BACKLOG;
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::held::Held;
use crate::domain::outcome::Decision;
use crate::domain::pace::Attempt;
use crate::domain::shown::word;

impl Pipeline {
    /// Whether the proxy has served other receivers since this delivery was last put off. Then only this
    /// receiver can't be reached through the proxy, whatever the proxy answers, and the attempt counts as
    /// failed.
    pub(super) fn is_refused_alone(
        &self,
        delivery: &Delivery,
        problem: &str,
        lasted: Duration,
    ) -> bool {
        let waited = self.schedule.delay_after(1, None);
        delivery.last_error == problem && waited.is_some_and(|waited| lasted < waited.get() / 2)
    }

    pub(super) fn put_off(
        &self,
        context: MessageContext<'_>,
        mut delivery: Delivery,
        attempt: Attempt,
        problem: String,
        lasted: Duration,
    ) -> Kept {
        self.receivers.give_back(attempt);
        let (event, webhook) = (word(&delivery.event.id), delivery.webhook_id);
        log::warn!("not sent event={event} webhook={webhook} detail={problem:?}");
        (delivery.last_error, delivery.last_answer) = (problem, None);
        let too_old = self.is_too_old(&delivery);
        // One of the schedule's delays, because those have queues.
        let wait = self.schedule.delay_after(1, Some(lasted.min(WITHOUT_BACKLOG)));
        let (Some(wait), false) = (wait, too_old) else {
            return self.expire(context, &delivery, Held::Proxy).map(Some);
        };
        let decision = Some(Decision::Park(wait));
        let happened = Happened::HeldBack { why: Held::Proxy.label(), decision };
        self.log.record(&context.lane.origin, &delivery, happened);
        self.park(context, &delivery, wait, context.metrics.held(Held::Proxy)).map(Some)
    }
}
