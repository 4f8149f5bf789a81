//! An event that several webhooks want: its deliveries run side by side, or, where very many want it,
//! become messages of their own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Context, Missing, Pipeline, Promises, fresh};
use crate::broker::NotConfirmed;
use crate::domain::event::Event;
use crate::domain::webhook::Webhook;
use crate::metrics::Held;

/// How long the attempts of one event may take together. RabbitMQ takes a message back that is not
/// acked within 30 minutes (`consumer_timeout`), and would have all of them made again.
const FANOUT_LIMIT: Duration = Duration::from_secs(600);

/// How many bytes of an event that is split may be on their way to the broker at a time: enough to
/// keep it busy with small events, and little enough to hold in memory.
const SPLIT_BYTES: usize = 16 << 20;

/// How many messages of an event that is split may be on their way at a time, however small: the
/// broker confirms some thousands a second, hundreds with one stroke.
const SPLIT_MESSAGES: usize = 1_024;

impl Pipeline {
    /// Delivers an event to each of its webhooks, several at a time.
    ///
    /// Every delivery has its own end, whatever becomes of its neighbours. At shutdown, and when it
    /// takes too long, those not begun go to the retry queue: handing the whole event back would
    /// repeat the others. Only where even that is not confirmed the event has to go back.
    pub(super) fn fan_out(
        &self,
        context: Context<'_>,
        event: Event,
        webhooks: &[Webhook],
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let next = AtomicUsize::new(0);
        let unconfirmed = AtomicBool::new(false);
        let kept = Mutex::new(Vec::new());
        let begun = Instant::now();
        let work = || {
            while let Some(webhook) = webhooks.get(next.fetch_add(1, Ordering::Relaxed)) {
                if unconfirmed.load(Ordering::Relaxed) {
                    return;
                }
                let delivery = fresh(event.clone(), webhook);
                let ended = if self.shutdown.is_requested() || begun.elapsed() > FANOUT_LIMIT {
                    self.hand_over(context, &delivery, Held::Interrupted).map(Some)
                } else {
                    self.deliver(context, webhook, delivery)
                };
                match ended {
                    Ok(None) => {}
                    Ok(Some(promise)) => {
                        kept.lock().unwrap_or_else(PoisonError::into_inner).push(promise);
                    }
                    Err(NotConfirmed) => unconfirmed.store(true, Ordering::Relaxed),
                }
            }
        };
        thread::scope(|scope| {
            for n in 1..self.fanout.min(webhooks.len()) {
                let thread = thread::Builder::new().name(format!("fanout-{n}"));
                // Without more threads, this one does all the work, only later.
                let _ = thread.spawn_scoped(scope, work);
            }
            work();
        });
        promises.extend(kept.into_inner().unwrap_or_else(PoisonError::into_inner));
        if unconfirmed.into_inner() { Err(Missing::Confirm) } else { Ok(()) }
    }

    /// Makes each delivery of an event a message of its own, for all instances to share. An event
    /// that thousands want would hold its consumer for minutes, and be made again from the start if
    /// this process ended meanwhile.
    pub(super) fn split(
        &self,
        context: Context<'_>,
        event: &Event,
        webhooks: &[Webhook],
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let begun = Instant::now();
        let most = (SPLIT_BYTES / context.message.body.len().max(1)).clamp(1, SPLIT_MESSAGES);
        for webhook in webhooks {
            promises.wait_until_open(most - 1, &self.tally)?;
            let delivery = fresh(event.clone(), webhook);
            promises.extend([self.hand_over(context, &delivery, Held::Split)?]);
        }
        log::info!(
            "event split event={} webhooks={} ms={}",
            event.id,
            webhooks.len(),
            begun.elapsed().as_millis()
        );
        Ok(())
    }
}
