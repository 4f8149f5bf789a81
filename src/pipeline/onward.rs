//! Publishes messages and deliveries that haven't reached their receiver: to a wait queue, the retry lane, the
//! dead-letter queue, or the end of their own queue. Each is a promise until it is confirmed.

use prometheus::IntCounter;

use super::{MessageContext, Missing, Pipeline, Promise, Promises, age};
use crate::broker::{Message, NotConfirmed, Outgoing};
use crate::clock::unix_millis;
use crate::domain::delivery::{self, Delivery};
use crate::domain::delivery_log::Happened;
use crate::domain::event::Malformed;
use crate::domain::held::Held;
use crate::domain::outcome::DeadReason;
use crate::domain::time::Span;

impl Pipeline {
    pub(super) fn park(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        delay: Span,
        counter: &IntCounter,
    ) -> Result<Promise, NotConfirmed> {
        let origin = &context.lane.origin;
        let outgoing = Outgoing::park(travelling(context, delivery), delay, origin);
        let promise = self.promise(outgoing, counter, true)?;
        context.metrics.parked(age(delivery), delay.get());
        Ok(promise)
    }

    /// Sends a delivery to the retry lane, for an immediate attempt.
    pub(super) fn hand_over(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        why: Held,
    ) -> Result<Promise, NotConfirmed> {
        let happened = Happened::HandedOver { why: why.label() };
        self.log.record(&context.lane.origin, delivery, happened);
        let message = travelling(context, delivery);
        let outgoing = Outgoing::hand_over(message, &context.lane.origin);
        self.promise(outgoing, context.metrics.held(why), true)
    }

    pub(super) fn dead_letter(
        &self,
        context: MessageContext<'_>,
        delivery: &Delivery,
        reason: DeadReason,
    ) -> Result<Promise, NotConfirmed> {
        let mut message = travelling(context, delivery);
        delivery::mark_dead(&mut message.headers, reason, unix_millis());
        let outgoing = Outgoing::dead(message, &context.lane.origin);
        let promise = self.promise(outgoing, context.metrics.dead_letters(reason), false)?;
        let (headers, origin) = (&context.message.headers, &context.lane.origin);
        let death = self.notices.of_death(delivery, headers, reason, origin);
        Ok(Promise { death, ..promise })
    }

    pub(super) fn promise(
        &self,
        outgoing: Outgoing,
        counter: &IntCounter,
        is_parked: bool,
    ) -> Result<Promise, NotConfirmed> {
        let confirmation = self.publisher.publish(outgoing)?;
        let counter = Some(counter.clone());
        Ok(Promise { confirmation, counter, is_parked, death: None })
    }

    /// Publishes a dead letter whose queue didn't accept it when it died. It was counted then.
    pub(super) fn dead_letter_again(
        &self,
        context: MessageContext<'_>,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let outgoing = Outgoing::dead(context.message.clone().arrived(), &context.lane.origin);
        let confirmation = self.publisher.publish(outgoing)?;
        // Its notice was published then too.
        promises.extend([Promise { confirmation, counter: None, is_parked: false, death: None }]);
        Ok(())
    }

    /// Puts a copy of a message that is near its delivery limit at the end of its queue. This is rare, so the
    /// thread waits for the confirm.
    pub(super) fn renew(&self, context: MessageContext<'_>) -> Result<(), NotConfirmed> {
        let MessageContext { lane, message, .. } = context;
        let copy = message.clone().without_redeliveries();
        self.publisher.publish(Outgoing::to_queue(copy, &lane.queue))?.wait_unless_refused()?;
        log::info!("message replaced by a copy queue={}: it was redelivered too often", lane.queue);
        Ok(())
    }

    pub(super) fn dead_letter_malformed(
        &self,
        context: MessageContext<'_>,
        error: &Malformed,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let MessageContext { lane, metrics, message } = context;
        let (bytes, detail) = (message.body.len(), error.to_string());
        log::warn!("malformed queue={} bytes={bytes} detail={detail:?}", lane.queue);
        let mut message = message.clone();
        delivery::mark_malformed(&mut message.headers, error, &lane.origin, unix_millis());
        let counter = metrics.dead_letters(DeadReason::Malformed);
        promises.extend([self.promise(Outgoing::dead(message, &lane.origin), counter, false)?]);
        Ok(())
    }
}

pub(super) fn travelling(context: MessageContext<'_>, delivery: &Delivery) -> Message {
    context.message.carrying(delivery, &context.lane.origin)
}
