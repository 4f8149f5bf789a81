//! Delivers an event to several webhooks in parallel. If very many webhooks want it, their deliveries become
//! separate messages.
//!
//! Deliveries to near receivers end before another thread could begin them. They are made one after another in
//! the event's own thread. Each other delivery gets a thread of [`crate::workers`] at once. If a near receiver
//! unexpectedly blocks its thread, another thread continues with the rest ([`FanOut::help`]).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Kept, MessageContext, Missing, Pipeline, Progress, Promise, Promises, fresh};
use crate::broker::{Lane, Message, NotConfirmed};
use crate::domain::delivery::Delivery;
use crate::domain::event::Event;
use crate::domain::held::Held;
use crate::domain::intake::{EntryTicket, Refusal};
use crate::domain::pace::Attempt;
use crate::domain::shown::word;
use crate::domain::webhook::Webhook;
use crate::receivers::{InLine, Turn};

/// How often a thread that waits for capacity checks whether it may enter a backlog.
const TURN_INTERVAL: Duration = Duration::from_millis(10);

/// How many bytes of a split event may be unconfirmed at a time: enough to keep the broker busy with small
/// events, and few enough to hold in memory.
const SPLIT_BYTES: usize = 16 << 20;

/// How many messages of a split event may be unconfirmed at a time, however small. The broker confirms some
/// thousands per second, hundreds at once.
const SPLIT_MESSAGES: usize = 1_024;

/// The deliveries of an event, shared by the threads that make them.
#[derive(Debug)]
pub struct FanOut {
    pipeline: Arc<Pipeline>,
    lane: Arc<Lane>,
    message: Message,
    event: Event,
    webhooks: Arc<[Webhook]>,
    begun: Instant,
    state: Mutex<State>,
    /// Notified when no delivery is in hand any more.
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The webhooks whose deliveries no thread has begun.
    left: VecDeque<usize>,
    /// How many deliveries threads have in hand.
    in_hand: usize,
    promises: Vec<Promise>,
    unconfirmed: bool,
    panicked: bool,
}

impl FanOut {
    /// Whether there are deliveries that no thread has begun.
    #[must_use]
    pub(super) fn has_more(&self) -> bool {
        !self.lock().left.is_empty()
    }

    /// Makes the remaining deliveries, together with other threads.
    pub fn help(self: &Arc<Self>) {
        self.make_rest(|| {});
    }

    fn make_rest(self: &Arc<Self>, made_one: impl Fn()) {
        while let Some(in_hand) = self.take() {
            in_hand.make();
            made_one();
        }
    }

    fn take(self: &Arc<Self>) -> Option<InHand> {
        let mut state = self.lock();
        let webhook = state.left.pop_front()?;
        // Under the same lock: otherwise it would for a moment be neither left nor in hand, and the event's
        // thread wouldn't wait for it.
        state.in_hand += 1;
        Some(InHand { fan_out: Arc::clone(self), webhook })
    }

    /// Waits until all deliveries have ended.
    fn wait(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.in_hand > 0 {
            state = self.over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // As if the panic had happened in this thread.
        assert!(!state.panicked, "a delivery of event {:?} panicked", self.event.id);
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A delivery that a thread has in hand. Dropping it ends the wait for it, even after a panic.
struct InHand {
    fan_out: Arc<FanOut>,
    webhook: usize,
}

impl InHand {
    fn new(fan_out: &Arc<FanOut>, webhook: usize) -> Self {
        fan_out.lock().in_hand += 1;
        Self { fan_out: Arc::clone(fan_out), webhook }
    }

    /// Makes the delivery in this thread.
    fn make(self) {
        let FanOut { pipeline, .. } = &*self.fan_out;
        let (webhook, delivery) = self.delivery();
        let kept = if self.is_too_late() {
            pipeline.hand_over(self.context(), &delivery, Held::Interrupted).map(Some)
        } else {
            pipeline.deliver(self.context(), webhook, delivery)
        };
        self.ends(kept);
    }

    /// Makes the delivery in another thread if it may begin now. Otherwise it joins those that wait for capacity
    /// or to enter a backlog.
    fn send_out(self, pending: &mut Pending) {
        if self.is_too_late() {
            return self.make();
        }
        let (webhook, delivery) = self.delivery();
        match self.fan_out.pipeline.ask(&self.fan_out.lane, webhook, &delivery) {
            Ok(Turn::Waits(in_line)) => pending.waiting.push((self, in_line)),
            Ok(Turn::Begins(attempt)) => self.begin(attempt),
            Err(refusal) if self.may_enter(&refusal) => self.hold_back(refusal),
            Err(refusal) => pending.refused.push((self, refusal)),
        }
    }

    fn begin(self, attempt: Attempt) {
        let workers = self.fan_out.pipeline.workers.clone();
        let task = move || {
            let (webhook, delivery) = self.delivery();
            let pipeline = &self.fan_out.pipeline;
            let kept = pipeline.attempt(self.context(), webhook, delivery, attempt);
            self.ends(kept);
            None
        };
        // If no thread can be started, this one makes the delivery.
        if let Err(task) = workers.run(Box::new(task)) {
            task();
        }
    }

    /// Whether it may enter a backlog without waiting for others.
    fn may_enter(&self, refusal: &Refusal) -> bool {
        let receivers = &self.fan_out.pipeline.receivers;
        refusal.entry.is_none_or(|entry| receivers.is_next_to_enter(entry))
    }

    fn hold_back(self, refusal: Refusal) {
        let (webhook, delivery) = self.delivery();
        let kept = self.fan_out.pipeline.hold_back(self.context(), webhook, delivery, refusal);
        self.ends(kept);
    }

    /// Whether to send the delivery to the retry queue because of shutdown, or because the event takes too long.
    /// Handing back the whole event would repeat its other deliveries.
    fn is_too_late(&self) -> bool {
        let FanOut { pipeline, begun, .. } = &*self.fan_out;
        pipeline.shutdown.is_requested() || begun.elapsed() > pipeline.patience
    }

    fn delivery(&self) -> (&Webhook, Delivery) {
        let webhook = &self.fan_out.webhooks[self.webhook];
        (webhook, fresh(self.fan_out.event.clone(), webhook))
    }

    fn context(&self) -> MessageContext<'_> {
        let FanOut { pipeline, lane, message, .. } = &*self.fan_out;
        MessageContext { lane, metrics: pipeline.metrics.lane(&lane.queue), message }
    }

    fn ends(self, kept: Kept) {
        let mut state = self.fan_out.lock();
        match kept {
            Ok(promise) => state.promises.extend(promise),
            Err(NotConfirmed) => {
                // The event has to be handed back, and everything is repeated.
                state.unconfirmed = true;
                state.left.clear();
            }
        }
    }
}

/// The deliveries of an event that haven't begun.
///
/// Each may hold something that other threads wait for: capacity once it is called, or a turn to enter a
/// backlog. If a thread waited for one while holding another, two such threads could wait for each other
/// forever. So a thread waits for all of them at once, and enters backlogs in the order of the turns.
#[derive(Default)]
struct Pending {
    waiting: Vec<(InHand, InLine)>,
    refused: Vec<(InHand, Refusal)>,
}

impl Pending {
    /// Finishes all of them.
    fn finish(mut self, pipeline: &Pipeline) {
        let Pipeline { receivers, patience, shutdown, .. } = pipeline;
        while !self.waiting.is_empty() {
            self.enter(InHand::may_enter);
            let limit = if self.refused.is_empty() { *patience } else { TURN_INTERVAL };
            match receivers.wait_for_any(&mut self.waiting, limit, *patience, shutdown) {
                Some((in_hand, Ok(attempt))) => in_hand.begin(attempt),
                Some((in_hand, Err(refusal))) => self.refused.push((in_hand, refusal)),
                None => {}
            }
        }
        self.enter(|_, _| true);
    }

    /// Holds back the deliveries that may enter their backlogs.
    fn enter(&mut self, may_enter: impl Fn(&InHand, &Refusal) -> bool) {
        self.refused.sort_by_key(|(_, refusal)| refusal.entry.map(EntryTicket::number));
        let refused = std::mem::take(&mut self.refused);
        for (in_hand, refusal) in refused {
            if may_enter(&in_hand, &refusal) {
                in_hand.hold_back(refusal);
            } else {
                self.refused.push((in_hand, refusal));
            }
        }
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        let mut state = self.fan_out.lock();
        state.panicked |= thread::panicking();
        state.in_hand -= 1;
        if state.in_hand == 0 {
            self.fan_out.over.notify_all();
        }
    }
}

impl Pipeline {
    /// Delivers an event to each of its webhooks, independently of each other.
    pub(super) fn fan_out(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        message: Message,
        event: Event,
        webhooks: Arc<[Webhook]>,
        progress: &Progress,
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let is_near = |webhook: &usize| self.receivers.is_near(webhooks[*webhook].id);
        let (near, far): (Vec<_>, Vec<_>) = (0..webhooks.len()).partition(is_near);
        let fan_out = Arc::new(FanOut {
            pipeline: Arc::clone(self),
            lane: Arc::clone(lane),
            message,
            event,
            webhooks,
            begun: Instant::now(),
            state: Mutex::new(State { left: near.into(), ..State::default() }),
            over: Condvar::new(),
        });
        // Before anything waits: from here on other threads can help.
        progress.set_event(Some(Arc::clone(&fan_out)));
        let mut pending = Pending::default();
        for webhook in far {
            InHand::new(&fan_out, webhook).send_out(&mut pending);
        }
        pending.finish(self);
        fan_out.make_rest(|| progress.moves());
        progress.set_event(None);
        let mut state = fan_out.wait();
        promises.extend(state.promises.drain(..));
        if state.unconfirmed { Err(Missing::Confirm) } else { Ok(()) }
    }

    /// Publishes each delivery of an event as a separate message, so that all instances share the work. If
    /// thousands of webhooks want an event, it would otherwise occupy its consumer for minutes, and be repeated
    /// from the start if this process ended meanwhile.
    pub(super) fn split(
        &self,
        context: MessageContext<'_>,
        event: &Event,
        webhooks: &[Webhook],
        promises: &mut Promises,
    ) -> Result<(), Missing> {
        let begun = Instant::now();
        let most = (SPLIT_BYTES / context.message.body.len().max(1)).clamp(1, SPLIT_MESSAGES);
        for webhook in webhooks {
            promises.wait_until_open(most - 1, &self.tally, &self.shutdown)?;
            let delivery = fresh(event.clone(), webhook);
            promises.extend([self.hand_over(context, &delivery, Held::Split)?]);
        }
        log::info!(
            "event split event={} webhooks={} ms={}",
            word(&event.id),
            webhooks.len(),
            begun.elapsed().as_millis()
        );
        Ok(())
    }
}
