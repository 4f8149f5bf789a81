//! One attempt of a delivery: the request, what its result says about the receiver, and what follows.

use std::time::{Duration, Instant};

use super::{Kept, MessageContext, Pipeline, age, from_now};
use crate::clock;
use crate::domain::delivery::Delivery;
use crate::domain::delivery_log::Happened;
use crate::domain::event::Event;
use crate::domain::notice::GONE;
use crate::domain::outcome::{Decision, Outcome, Reason, Response, decide};
use crate::domain::pace::Attempt;
use crate::domain::receiver::{AttemptEnd, Transition};
use crate::domain::shown::word;
use crate::domain::time::Span;
use crate::domain::webhook::Webhook;
use crate::metrics::AutoDisabled;
use crate::pipeline::accounts::AccountNow;
use crate::sender::Request;

impl Pipeline {
    /// Makes one attempt, and does what follows from its result.
    pub(super) fn attempt(
        &self,
        context: MessageContext<'_>,
        webhook: &Webhook,
        mut delivery: Delivery,
        attempt: Attempt,
    ) -> Kept {
        let MessageContext { metrics, message, .. } = context;
        // It may have waited for capacity for a while.
        if self.directory.may_have_changed_since(webhook) {
            match self.account_now(webhook, &delivery) {
                AccountNow::Own => {}
                AccountNow::Other(webhook) => {
                    self.receivers.give_back(attempt);
                    return self.dead_letter_for_account(context, &webhook, delivery).map(Some);
                }
                AccountNow::Unknown => {
                    self.receivers.give_back(attempt);
                    return self.park_unchecked(context, &delivery).map(Some);
                }
            }
        }
        if attempt.is_probe {
            self.report(webhook, Some(Transition::HalfOpen));
        }
        let started = Instant::now();
        metrics.in_flight.inc();
        let response = self.sender.post(Request {
            webhook,
            event: &delivery.event,
            attempt: delivery.attempts.saturating_add(1),
            headers: &message.headers,
            content_type: message.content_type.as_deref(),
            body: &message.body,
            at: clock::now(),
        });
        metrics.in_flight.dec();
        let mut response = match response {
            Response::NotSent { detail } => {
                let lasted = self.metrics.egress().failed(&detail);
                if !self.is_refused_alone(&delivery, &detail, lasted) {
                    return self.put_off(context, delivery, attempt, detail, lasted);
                }
                Response::NoAnswer { reason: Reason::Proxy, detail }
            }
            response => response,
        };
        let answer = response.take_excerpt();
        let took = started.elapsed();
        metrics.request_duration.observe(took.as_secs_f64());
        let status = response.status();
        if status.is_some() {
            self.metrics.egress().answered();
        }
        let outcome = Outcome::of(response, clock::now());
        delivery.attempts += 1;
        let retry_after = outcome.retry_after();
        delivery.not_before = retry_after.map(from_now);
        self.record_outcome(webhook, &delivery.event, attempt, &outcome, status);
        let no_retry = webhook.no_retry_status().unwrap_or(&self.no_retry_status);
        let decision = decide(&outcome, delivery.attempts, &self.schedule)
            .unless_refused(status, no_retry)
            .unless_expired(age(&delivery), self.delivery_max_age);
        // For the logs: with Retry-After applied.
        let next = decision.not_before(retry_after);
        if let Outcome::Failed { reason, detail, .. } | Outcome::Hopeless { reason, detail, .. } =
            outcome
        {
            metrics.failure(reason).inc();
            log::warn!(
                "attempt failed event={} webhook={} attempt={} reason={} ms={} next={} detail={detail:?}",
                word(&delivery.event.id),
                webhook.id,
                delivery.attempts,
                reason.label(),
                took.as_millis(),
                match next {
                    Decision::Park(delay) => delay.to_string(),
                    Decision::Dead(reason) => format!("dead:{}", reason.label()),
                    Decision::Delivered => "none".to_owned(),
                },
            );
            (delivery.last_error, delivery.last_answer) = (detail, answer);
            if reason == Reason::Gone {
                self.disable(webhook);
            }
            let happened =
                Happened::Attempted { failure: Some(reason), status, took, decision: next };
            self.log.record(&context.lane.origin, &delivery, happened);
        }
        match decision {
            Decision::Delivered => {
                metrics.success.inc();
                metrics.lag.observe(self.lag(&delivery).as_secs_f64());
                let happened = Happened::Attempted { failure: None, status, took, decision };
                self.log.record(&context.lane.origin, &delivery, happened);
                log::debug!(
                    "delivered event={} webhook={} attempt={} ms={}",
                    word(&delivery.event.id),
                    webhook.id,
                    delivery.attempts,
                    took.as_millis()
                );
                Ok(None)
            }
            Decision::Park(delay) => {
                self.park(context, &delivery, delay, &metrics.retries_scheduled).map(Some)
            }
            Decision::Dead(reason) => self.dead_letter(context, &delivery, reason).map(Some),
        }
    }

    /// The lag of a delivery, limited to the longest that our delays can cause. Otherwise one foreign header or
    /// wrong clock would dominate the sum.
    fn lag(&self, delivery: &Delivery) -> Duration {
        age(delivery).min(self.delivery_max_age + self.schedule.longest().get())
    }

    /// Disables a webhook whose receiver says that it is gone for good. If PostgreSQL can't record that
    /// now, the receiver will say so again.
    fn disable(&self, webhook: &Webhook) {
        let id = webhook.id;
        match self.directory.disable(webhook, GONE) {
            Ok(true) => {
                self.metrics.notices().count_disabled(AutoDisabled::Gone);
                log::warn!(
                    "webhook disabled webhook={id} reason={GONE:?}: `webhooks enable {id}` enables it again"
                );
            }
            // It was already disabled.
            Ok(false) => {}
            Err(error) => {
                log::warn!(
                    "webhook not disabled webhook={id} cause={:?}: its receiver answered 410, and the next \
                     such answer disables it",
                    error.to_string()
                );
            }
        }
    }

    /// Records what an attempt says about its receiver.
    fn record_outcome(
        &self,
        webhook: &Webhook,
        event: &Event,
        attempt: Attempt,
        outcome: &Outcome,
        status: Option<u16>,
    ) {
        let ended = match outcome {
            Outcome::Delivered => AttemptEnd::Delivered,
            Outcome::Failed { reason, is_overload, .. } => AttemptEnd::Failed {
                event: &event.id,
                reason: *reason,
                status,
                is_overload: *is_overload,
                retry_after: outcome.retry_after(),
            },
            Outcome::Hopeless { reason: Reason::Gone, .. } => {
                // It answered, so this is no failure of the receiver; and it gets nothing more.
                self.receivers.end(attempt, AttemptEnd::Delivered);
                return self.receivers.forget(webhook.id);
            }
            // No request was made.
            Outcome::Hopeless { .. } => return self.receivers.give_back(attempt),
        };
        self.report(webhook, self.receivers.end(attempt, ended));
    }

    fn report(&self, webhook: &Webhook, transition: Option<Transition>) {
        let Some(transition) = transition else { return };
        self.metrics.transition(transition).inc();
        let id = webhook.id;
        match transition {
            Transition::Open(pause) => {
                log::warn!("circuit breaker open webhook={id} for={}", Span::from(pause));
            }
            Transition::HalfOpen => log::info!("circuit breaker half-open webhook={id}"),
            Transition::Closed => log::info!("circuit breaker closed webhook={id}"),
        }
    }
}
