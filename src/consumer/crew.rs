//! The consumers of a lane, and how many there are.

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

mod post;
mod watch;

pub(super) use post::Post;
use watch::Watch;

/// What all threads share that work for a lane, for one connection's life.
pub(super) struct Crew<'a> {
    pub(super) context: &'a Context,
    pub(super) lane: &'a Arc<Lane>,
    pub(super) kill: KillSwitch,
    /// Ends all consumers as soon as one of them ends.
    pub(super) ending: Shutdown,
    end: Trigger,
    shared: Arc<Shared>,
    /// Why there was no session before this one; told about when this one consumes.
    before: Mutex<Causes>,
}

/// What reliefs need of it, who may live a moment longer.
pub(super) struct Shared {
    pub(super) pipeline: Arc<Pipeline>,
    lane: Arc<Lane>,
    /// Messages that were done with here.
    done: AtomicU64,
    /// Nobody looks at the lane.
    unwatched: AtomicBool,
    /// Wakes who does.
    alarm: Sender<()>,
    /// End the session.
    shutdown: Shutdown,
    ending: Shutdown,
}

impl Shared {
    /// Whether nothing new should be begun: at shutdown, or when a consumer has ended.
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
            // It may be full: then somebody else has just rung.
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

    /// Runs a call that starts a consumer. Shutdown cuts the connection of the first one; later it must
    /// not, since others may have messages in hand.
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

    /// A consumer consumes.
    pub(super) fn consumes(&self) {
        let queue = &self.lane.queue;
        self.context.metrics.health().set_consuming(queue, true);
        if let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).end() {
            log::info!("lane connected again queue={queue} after={before:?}");
        }
    }
}

/// Runs the consumers of a lane over a connection until one of them ends; returns why.
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
    // Still there if it never got as far as consuming.
    *causes = crew.before.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended
}
