//! The messages in hand of one backlog, shared by its consumer and the threads that make its requests.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use uuid::Uuid;

use crate::broker::Lane;
use crate::domain::held::Dropped;
use crate::domain::intake::Refusal;
use crate::domain::pace::{Attempt, Hold};
use crate::domain::webhook::Webhook;
use crate::pipeline::{Head, Pipeline, Waiting};
use crate::receivers::InLine;
use crate::workers;

/// How long until PostgreSQL is asked again after it didn't answer.
const MISSING: Duration = Duration::from_secs(1);

/// Shared by all threads that work for the backlogs of a queue, for the life of one connection.
pub(super) struct Shared {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) lane: Arc<Lane>,
    /// To the consuming thread.
    pub(super) events: Sender<WorkerReport>,
    /// The number of threads that work on messages.
    pub(super) at_work: AtomicUsize,
}

/// What the working threads report to the consuming thread.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum WorkerReport {
    /// A message was handled. It has to be acked; or if its follow-up wasn't confirmed, the session is over.
    Done(Done),
    /// Whether more of this webhook's deliveries may begin has to be checked.
    Check(Uuid),
    /// A webhook turned out to be deleted or disabled before any notification of that.
    Unwanted(Uuid, Dropped),
    /// A thread panicked. This ends the process, as a panic of the consuming thread would.
    Panicked,
}

pub(super) struct Done {
    /// The backlog that it came from.
    pub(super) queue: Arc<Queue>,
    pub(super) delivery: amiquip::Delivery,
    /// Whether the broker has confirmed its follow-up, if there is one.
    pub(super) is_kept: bool,
}

/// A message in hand that hasn't begun.
pub(super) struct Item {
    pub(super) delivery: amiquip::Delivery,
    pub(super) waiting: Waiting,
    /// When the broker delivered it.
    pub(super) since: Instant,
}

/// A message to work on.
pub(super) struct Assignment {
    item: Item,
    /// The attempt to make; `None` if it leaves the backlog without one.
    attempt: Option<(Box<Webhook>, Attempt)>,
}

/// One backlog.
pub(super) struct Queue {
    webhook: Uuid,
    state: Mutex<State>,
}

/// Its messages in hand.
pub(super) struct State {
    /// In order.
    pub(super) ready: VecDeque<Item>,
    /// How many are being worked on.
    pub(super) in_flight: usize,
    /// Why the first one was last refused an attempt.
    pub(super) hold: Option<Hold>,
    /// Whether PostgreSQL has to be asked first.
    pub(super) is_missing: bool,
    /// Whether the first one is known to be unwanted.
    pub(super) is_unwanted: bool,
    /// Set while the first one waits for capacity.
    pub(super) in_line: Option<(Box<Webhook>, InLine)>,
    /// Whether nothing new may begin.
    pub(super) is_over: bool,
}

impl State {
    /// How long until the first one can be asked for again; zero if that depends on the end of other requests.
    pub(super) fn wait(&self) -> Duration {
        if self.is_missing {
            return MISSING;
        }
        self.hold.map_or(Duration::ZERO, Hold::remaining)
    }

    fn take_first(&mut self) -> Option<Item> {
        let first = self.ready.pop_front();
        self.hold = None;
        self.in_flight += usize::from(first.is_some());
        first
    }
}

impl Queue {
    pub(super) fn new(webhook: Uuid) -> Self {
        let state = State {
            ready: VecDeque::new(),
            in_flight: 0,
            hold: None,
            is_missing: false,
            is_unwanted: false,
            in_line: None,
            is_over: false,
        };
        Self { webhook, state: Mutex::new(state) }
    }

    /// The webhook whose deliveries it holds.
    pub(super) fn webhook(&self) -> Uuid {
        self.webhook
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The receiver on which the first delivery is called, while it waits for capacity.
    pub(super) fn in_line(&self) -> Option<Receiver<Result<Attempt, Refusal>>> {
        self.state().in_line.as_ref().map(|(_, in_line)| in_line.called().clone())
    }

    /// Takes the first one if it may begin now.
    pub(super) fn next(self: &Arc<Self>, shared: &Shared) -> Option<Assignment> {
        let mut state = self.state();
        if state.is_over || state.in_line.is_some() {
            return None;
        }
        let head = shared.pipeline.head(&shared.lane, &state.ready.front()?.waiting);
        state.is_missing = matches!(head, Head::Missing);
        let attempt = match head {
            Head::Attempt(webhook, attempt) => Some((webhook, attempt)),
            Head::Leaves => None,
            Head::Waits(webhook, in_line) => {
                state.in_line = Some((webhook, in_line));
                return None;
            }
            Head::Held(hold) => {
                state.hold = Some(hold);
                return None;
            }
            Head::Missing => return None,
            Head::Unwanted(why) => {
                if !std::mem::replace(&mut state.is_unwanted, true) {
                    let _ = shared.events.send(WorkerReport::Unwanted(self.webhook, why));
                }
                return None;
            }
        };
        let item = state.take_first()?;
        if attempt.is_none() {
            self.leaves(shared, &item);
        }
        Some(Assignment { item, attempt })
    }

    fn leaves(&self, shared: &Shared, item: &Item) {
        shared.pipeline.left_backlog(&shared.lane, self.webhook, item.waiting.is_ours);
    }

    /// Takes the first one if it waited for capacity and got it.
    pub(super) fn called(&self, shared: &Shared) -> Option<Assignment> {
        let mut state = self.state();
        let called = match state.in_line.as_ref()?.1.called().try_recv() {
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(Hold::Full),
            Ok(answer) => answer.map_err(|refusal| refusal.hold),
        };
        let (webhook, _) = state.in_line.take()?;
        match called {
            Ok(attempt) => {
                let item = state.take_first()?;
                Some(Assignment { item, attempt: Some((webhook, attempt)) })
            }
            Err(hold) => {
                state.hold = Some(hold);
                // As if the attempt had just been refused.
                let _ = shared.events.send(WorkerReport::Check(self.webhook));
                None
            }
        }
    }

    fn report_done(self: &Arc<Self>, shared: &Shared, delivery: amiquip::Delivery, is_kept: bool) {
        let queue = Arc::clone(self);
        // Fails if the session is over. Then the broker requeues the message.
        let _ = shared.events.send(WorkerReport::Done(Done { queue, delivery, is_kept }));
    }
}

/// Works on a message, and on those behind it as long as they may begin.
pub(super) fn work(shared: Arc<Shared>, queue: Arc<Queue>, first: Assignment) -> workers::Task {
    shared.at_work.fetch_add(1, Ordering::Relaxed);
    Box::new(move || {
        let at_work = AtWork { shared, webhook: queue.webhook };
        let shared = &at_work.shared;
        let mut next = Some(first);
        while let Some(Assignment { item: Item { delivery, waiting, .. }, attempt }) = next {
            let kept = match attempt {
                Some((webhook, attempt)) => {
                    shared.pipeline.attempt_head(&shared.lane, waiting, &webhook, attempt)
                }
                None => shared.pipeline.settle_unattempted(&shared.lane, waiting),
            };
            // In this order: `finish` relies on the event being sent before the count drops.
            queue.report_done(shared, delivery, kept.is_ok());
            queue.state().in_flight -= 1;
            next = queue.next(shared);
            if next.is_some() {
                shared.pipeline.tally().taken();
            }
        }
        Some(Box::new(move || drop(at_work)))
    })
}

/// A thread that works on messages. However it ends, its backlog is checked afterwards.
struct AtWork {
    shared: Arc<Shared>,
    webhook: Uuid,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.shared.at_work.fetch_sub(1, Ordering::Relaxed);
        if thread::panicking() {
            let _ = self.shared.events.send(WorkerReport::Panicked);
        }
        // Fails if the session is over.
        let _ = self.shared.events.send(WorkerReport::Check(self.webhook));
    }
}
