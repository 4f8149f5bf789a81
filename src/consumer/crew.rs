//! The consumers of a lane, and their number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Sender, bounded};

use super::{Context, Ended};
use crate::broker::{KillSwitch, Lane, Link, Message, SETUP_TIMEOUT};
use crate::domain::causes::Causes;
use crate::pipeline::{Pipeline, Progress, Settlement};
use crate::shutdown::{self, Shutdown, Trigger};

mod handle;
mod watch;

pub(super) use handle::ConsumerHandle;
use watch::Watch;

/// Shared by all threads that work for a lane, for the life of one connection.
pub(super) struct Crew<'a> {
    pub(super) context: &'a Context,
    pub(super) lane: &'a Arc<Lane>,
    pub(super) kill: KillSwitch,
    /// Fires as soon as one consumer ends, and ends all of them.
    pub(super) ending: Shutdown,
    end: Trigger,
    shared: Arc<Shared>,
    /// The causes that were logged since the lane last consumed. Cleared when it consumes again.
    before: Mutex<Causes>,
}

/// The part that reliefs need, which may end a moment after the crew.
pub(super) struct Shared {
    pub(super) pipeline: Arc<Pipeline>,
    lane: Arc<Lane>,
    /// The number of messages finished over this connection.
    done: AtomicU64,
    /// Whether the watching thread waits for the alarm.
    unwatched: AtomicBool,
    /// Wakes the watching thread.
    alarm: Sender<()>,
    /// Each of these ends the session.
    shutdown: Shutdown,
    ending: Shutdown,
}

impl Shared {
    /// Whether nothing new may begin: at shutdown, or after a consumer has ended.
    pub(super) fn is_ending(&self) -> bool {
        self.shutdown.is_requested() || self.ending.is_requested()
    }

    /// Settles a message in this thread.
    pub(super) fn settle(
        &self,
        delivery: &mut amiquip::Delivery,
        progress: &Progress,
    ) -> Settlement {
        let received = Instant::now();
        progress.begins(received);
        if self.unwatched.load(Ordering::SeqCst) {
            // If the channel is full, another thread has just done so.
            let _ = self.alarm.try_send(());
        }
        let message = Message::take(delivery);
        let settlement = self.pipeline.settle(&self.lane, message, received, progress);
        if matches!(&settlement, Settlement::Done(promises) if promises.is_empty()) {
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        settlement
    }
}

impl Crew<'_> {
    pub(super) fn is_ending(&self) -> bool {
        self.shared.is_ending()
    }

    /// Runs a call that starts a consumer. At shutdown, the connection is cut if this is the first consumer.
    /// With a later one it must not be cut, because the others may have messages in hand.
    pub(super) fn guard_start<T>(&self, is_first: bool, call: impl FnOnce() -> T) -> T {
        if is_first {
            self.kill.guard(SETUP_TIMEOUT, Some(&self.context.shutdown), call)
        } else {
            self.kill.guard_shared(&self.ending, call)
        }
    }

    pub(super) fn settle(
        &self,
        delivery: &mut amiquip::Delivery,
        progress: &Progress,
    ) -> Settlement {
        self.shared.settle(delivery, progress)
    }

    /// Reports that a consumer has started.
    pub(super) fn report_consuming(&self) {
        let queue = &self.lane.queue;
        self.context.metrics.health().set_consuming(queue, true);
        if let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).end() {
            log::info!("lane connected again queue={queue} after={before:?}");
        }
    }
}

/// Runs the consumers of a lane over a connection until one of them ends. Returns why.
pub(super) fn run(
    context: &Context,
    lane: &Arc<Lane>,
    link: &mut Link,
    causes: &mut Causes,
) -> Ended {
    let (end, ending) = shutdown::channel();
    let (alarm, alarmed) = bounded(1);
    let shared = Arc::new(Shared {
        pipeline: Arc::clone(&context.pipeline),
        lane: Arc::clone(lane),
        done: AtomicU64::new(0),
        unwatched: AtomicBool::new(false),
        alarm,
        shutdown: context.shutdown.clone(),
        ending: ending.clone(),
    });
    let before = Mutex::new(std::mem::take(causes));
    let kill = link.kill_switch();
    let crew = Crew { context, lane, kill, ending, end, shared, before };
    let ended = thread::scope(|scope| Watch::new(&crew, scope, link).run(&alarmed));
    context.metrics.lane(&lane.queue).set_consumers(0);
    // If the lane hasn't consumed, the causes are still there.
    *causes = crew.before.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended
}
