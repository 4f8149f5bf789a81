//! What is in hand of one backlog, shared by who consumes it and those who make its requests.

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

/// How long until PostgreSQL is asked again that did not answer.
const MISSING: Duration = Duration::from_secs(1);

/// What all share that work for the backlogs of a queue, for one connection's life.
pub(super) struct Shared {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) lane: Arc<Lane>,
    /// To who consumes them.
    pub(super) events: Sender<Event>,
    /// Threads that see to messages.
    pub(super) at_work: AtomicUsize,
}

/// What those who make requests tell who consumes.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub(super) enum Event {
    /// A message is to be acked; or the session is over, if what follows from it is not confirmed.
    Done(Done),
    /// Something holds a backlog up.
    Look(Uuid),
    /// A webhook was found to be gone before anybody has said so.
    Unwanted(Uuid, Dropped),
    /// A thread panicked. As if it had been the one that consumes: that ends the process.
    Panicked,
}

pub(super) struct Done {
    /// What it was given by.
    pub(super) queue: Arc<Queue>,
    pub(super) delivery: amiquip::Delivery,
    pub(super) is_kept: bool,
}

/// A message in hand that has not begun.
pub(super) struct Item {
    pub(super) delivery: amiquip::Delivery,
    pub(super) waiting: Waiting,
    /// When it was handed out.
    pub(super) since: Instant,
}

/// A message that is to be seen to.
pub(super) struct Task {
    item: Item,
    /// To whom; none: it leaves without an attempt.
    attempt: Option<(Box<Webhook>, Attempt)>,
}

/// One backlog.
pub(super) struct Queue {
    webhook: Uuid,
    state: Mutex<State>,
}

/// What is in hand of it.
pub(super) struct State {
    /// In their order.
    pub(super) ready: VecDeque<Item>,
    /// How many are being seen to.
    pub(super) under_way: usize,
    /// Why the first was refused last.
    pub(super) hold: Option<Hold>,
    /// PostgreSQL has to be asked first.
    pub(super) is_missing: bool,
    /// It is known that nobody wants the first.
    pub(super) is_unwanted: bool,
    /// The first waits for a place.
    pub(super) in_line: Option<(Box<Webhook>, InLine)>,
    /// Nothing is begun any more.
    pub(super) is_over: bool,
}

impl State {
    /// How long until the first can be asked for again; zero, if that is up to other requests.
    pub(super) fn wait(&self) -> Duration {
        if self.is_missing {
            return MISSING;
        }
        self.hold.map_or(Duration::ZERO, Hold::remaining)
    }

    fn take_first(&mut self) -> Option<Item> {
        let first = self.ready.pop_front();
        self.hold = None;
        self.under_way += usize::from(first.is_some());
        first
    }
}

impl Queue {
    pub(super) fn new(webhook: Uuid) -> Self {
        let state = State {
            ready: VecDeque::new(),
            under_way: 0,
            hold: None,
            is_missing: false,
            is_unwanted: false,
            in_line: None,
            is_over: false,
        };
        Self { webhook, state: Mutex::new(state) }
    }

    /// Whose deliveries it holds.
    pub(super) fn webhook(&self) -> Uuid {
        self.webhook
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What calls the first, where it waits for a place.
    pub(super) fn in_line(&self) -> Option<Receiver<Result<Attempt, Refusal>>> {
        self.state().in_line.as_ref().map(|(_, in_line)| in_line.called().clone())
    }

    /// Takes the first, if it may begin now.
    pub(super) fn next(self: &Arc<Self>, shared: &Shared) -> Option<Task> {
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
                    let _ = shared.events.send(Event::Unwanted(self.webhook, why));
                }
                return None;
            }
        };
        let item = state.take_first()?;
        if attempt.is_none() {
            self.leaves(shared, &item);
        }
        Some(Task { item, attempt })
    }

    fn leaves(&self, shared: &Shared, item: &Item) {
        shared.pipeline.left_backlog(&shared.lane, self.webhook, item.waiting.is_ours);
    }

    /// Whether the first, which waited for a place, has one now.
    pub(super) fn called(&self, shared: &Shared) -> Option<Task> {
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
                Some(Task { item, attempt: Some((webhook, attempt)) })
            }
            Err(hold) => {
                state.hold = Some(hold);
                // As if it had just been asked for.
                let _ = shared.events.send(Event::Look(self.webhook));
                None
            }
        }
    }

    fn is_done(self: &Arc<Self>, shared: &Shared, delivery: amiquip::Delivery, is_kept: bool) {
        let queue = Arc::clone(self);
        // Fails when the session is over, and then the broker has taken it back.
        let _ = shared.events.send(Event::Done(Done { queue, delivery, is_kept }));
    }
}

/// Sees to a message, and to those behind it as long as they may begin.
pub(super) fn work(shared: Arc<Shared>, queue: Arc<Queue>, first: Task) -> workers::Task {
    shared.at_work.fetch_add(1, Ordering::Relaxed);
    Box::new(move || {
        let at_work = AtWork { shared, webhook: queue.webhook };
        let shared = &at_work.shared;
        let mut next = Some(first);
        while let Some(Task { item: Item { delivery, waiting, .. }, attempt }) = next {
            let kept = match attempt {
                Some((webhook, attempt)) => {
                    shared.pipeline.attempt_head(&shared.lane, waiting, &webhook, attempt)
                }
                None => shared.pipeline.let_go(&shared.lane, waiting),
            };
            // In this order: at the end, what nobody has under way has to have been told.
            queue.is_done(shared, delivery, kept.is_ok());
            queue.state().under_way -= 1;
            next = queue.next(shared);
            if next.is_some() {
                shared.pipeline.tally().taken();
            }
        }
        Some(Box::new(move || drop(at_work)))
    })
}

/// A thread that sees to messages. However it ends, its backlog is looked at then.
struct AtWork {
    shared: Arc<Shared>,
    webhook: Uuid,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.shared.at_work.fetch_sub(1, Ordering::Relaxed);
        if thread::panicking() {
            let _ = self.shared.events.send(Event::Panicked);
        }
        // Fails when the session is over.
        let _ = self.shared.events.send(Event::Look(self.webhook));
    }
}
