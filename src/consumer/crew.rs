//! The consumers of a lane, and their number.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use amiquip::{Channel, ConsumerMessage};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, unbounded};

use super::relief::{self, Relief, Returned};
use super::{Context, Ended, consume};
use crate::broker::{KillSwitch, Lane, Link, Message, SETUP_TIMEOUT};
use crate::domain::causes::Causes;
use crate::domain::growth::{Growth, INTERVAL, Look, Step};
use crate::domain::in_hand::{self, Ages};
use crate::pipeline::{Contention, Pipeline, Progress, Settlement};
use crate::shutdown::{self, Shutdown, Trigger};

/// A lane that has been idle for this long isn't watched until it has work again.
const QUIET: Duration = Duration::from_secs(1);

/// How often an idle lane with surplus consumers is checked.
const QUIET_INTERVAL: Duration = Duration::from_secs(1);

/// Shared by all threads that work for a lane, for the life of one connection.
pub(super) struct Crew<'a> {
    pub(super) context: &'a Context,
    pub(super) lane: &'a Arc<Lane>,
    pub(super) kill: KillSwitch,
    /// Fires as soon as one consumer ends, and ends all of them.
    pub(super) ending: Shutdown,
    end: Trigger,
    shared: Arc<Shared>,
    /// The logged causes for having no session before this one. Ended when this one consumes.
    before: Mutex<Causes>,
}

/// The part that reliefs need. They may live a moment longer.
pub(super) struct Shared {
    pub(super) pipeline: Arc<Pipeline>,
    lane: Arc<Lane>,
    /// The number of messages finished here.
    done: AtomicU64,
    /// Whether nobody watches the lane.
    unwatched: AtomicBool,
    /// Wakes the watching thread.
    alarm: Sender<()>,
    /// End the session.
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
            // If the channel is full, somebody else has just rung.
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

    /// Runs a call that starts a consumer. At shutdown the first consumer's connection is cut; later
    /// ones' must not be, since others may have messages in hand.
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

    /// A consumer has started.
    pub(super) fn consumes(&self) {
        let queue = &self.lane.queue;
        self.context.metrics.health().set_consuming(queue, true);
        if let Some(before) = self.before.lock().unwrap_or_else(PoisonError::into_inner).end() {
            log::info!("lane connected again queue={queue} after={before:?}");
        }
    }
}

/// A consumer as other threads see it.
pub(super) struct Post {
    progress: Progress,
    /// Its messages, once it consumes.
    messages: OnceLock<Receiver<ConsumerMessage>>,
    returned: Sender<Returned>,
    /// The last tag that was taken, and the last tag that has waited too long to be begun.
    taken: AtomicU64,
    old: AtomicU64,
    gate: Mutex<Gate>,
}

/// Whether others may take over from a consumer.
#[derive(Debug, Default)]
struct Gate {
    closed: bool,
    reliefs: usize,
    failed: bool,
}

impl Post {
    fn new(returned: Sender<Returned>) -> Self {
        let (taken, old, gate) = Default::default();
        let messages = OnceLock::new();
        Self { progress: Progress::new(), messages, returned, taken, old, gate }
    }

    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Sets where the consumer gets its messages from.
    pub(super) fn opens(&self, messages: &Receiver<ConsumerMessage>) {
        // It is set only once.
        let _ = self.messages.set(messages.clone());
    }

    /// From now on nobody may take over.
    pub(super) fn closes(&self) {
        self.gate().closed = true;
    }

    /// Takes the message with this tag. Returns whether it has waited too long to be begun.
    pub(super) fn takes(&self, tag: u64) -> bool {
        self.taken.fetch_max(tag, Ordering::Relaxed);
        tag <= self.old.load(Ordering::Relaxed)
    }

    /// Records how long messages have waited.
    fn look_at_ages(&self, ages: &mut Ages, patience: Duration, now: Duration) {
        let waiting = self.messages.get().map_or(0, |messages| messages.len() as u64);
        ages.note(self.taken.load(Ordering::Relaxed) + waiting, now);
        self.old.store(ages.old(patience, now), Ordering::Relaxed);
    }

    fn has_messages(&self) -> bool {
        self.messages.get().is_some_and(|messages| !messages.is_empty())
    }

    /// Takes one of the consumer's messages for a relief, which waits for at most `limit`.
    pub(super) fn take_message(
        &self,
        limit: Duration,
    ) -> Result<ConsumerMessage, RecvTimeoutError> {
        match self.messages.get() {
            Some(messages) if !self.gate().closed => messages.recv_timeout(limit),
            _ => Err(RecvTimeoutError::Disconnected),
        }
    }

    /// From a relief to the consumer.
    pub(super) fn give_back(&self, returned: Returned) {
        // The consumer waits for each.
        let _ = self.returned.send(returned);
    }

    pub(super) fn has_reliefs(&self) -> bool {
        let gate = self.gate();
        // As if it had happened in this thread.
        assert!(!gate.failed, "a message that was taken over panicked");
        gate.reliefs > 0
    }

    /// Registers one more relief, if that is allowed.
    fn relief_begins(&self) -> bool {
        let mut gate = self.gate();
        gate.reliefs += usize::from(!gate.closed);
        !gate.closed
    }

    pub(super) fn relief_is_over(&self) {
        self.gate().reliefs -= 1;
        let _ = self.has_reliefs();
    }

    pub(super) fn fails(&self) {
        self.gate().failed = true;
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A consumer as the lane's thread sees it.
struct Hand<'scope> {
    post: Arc<Post>,
    reliefs: Vec<Arc<Relief>>,
    ages: Ages,
    surplus: Trigger,
    thread: ScopedJoinHandle<'scope, Ended>,
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
    let ended = thread::scope(|scope| {
        let now = Instant::now();
        let growth = Growth::new(usize::from(lane.capacity), Duration::ZERO);
        let mut watch = Watch {
            crew: &crew,
            scope,
            link,
            growth,
            contention: Contention::default(),
            limited_by: None,
            hands: Vec::new(),
            leaving: Vec::new(),
            ended: Ended::Asked,
            begun: now,
            patience: in_hand::patience(context.config.request_timeout),
        };
        watch.run(&alarmed)
    });
    context.metrics.lane(&lane.queue).set_consumers(0);
    // They are still there if the lane never consumed.
    *causes = crew.before.into_inner().unwrap_or_else(PoisonError::into_inner);
    ended
}

/// The lane's own thread, which starts and ends consumers.
struct Watch<'scope, 'env> {
    crew: &'env Crew<'env>,
    scope: &'scope Scope<'scope, 'env>,
    link: &'env mut Link,
    growth: Growth,
    contention: Contention,
    /// The logged reason why there are no more consumers.
    limited_by: Option<String>,
    hands: Vec<Hand<'scope>>,
    /// Consumers that are about to end.
    leaving: Vec<Hand<'scope>>,
    /// Why the first consumer ended that wasn't asked to.
    ended: Ended,
    begun: Instant,
    /// How long a message may wait to be begun.
    patience: Duration,
}

impl Watch<'_, '_> {
    fn run(&mut self, alarmed: &Receiver<()>) -> Ended {
        if let Err(problem) = self.start() {
            return Ended::Lost(problem);
        }
        let mut last = self.begun;
        // When it last had work.
        let mut active = self.begun;
        while !self.crew.shared.is_ending() {
            let now = Instant::now();
            let look = self.look(last, now);
            if look.busy > 0 {
                active = now;
            }
            self.take_over();
            match self.growth.look(look, now.saturating_duration_since(self.begun)) {
                Step::Stay => {}
                Step::Start(more) => self.start_more(more),
                Step::End(fewer) => self.end_some(fewer),
            }
            self.crew.context.metrics.lane(&self.crew.lane.queue).set_consumers(self.hands.len());
            last = now;
            self.wait(now.saturating_duration_since(active) > QUIET, alarmed);
        }
        self.join()
    }

    /// Waits until the next check.
    fn wait(&self, is_quiet: bool, alarmed: &Receiver<()>) {
        let ending = &self.crew.ending;
        let shared = &self.crew.shared;
        if !is_quiet {
            let _ = ending.wait(INTERVAL);
            return;
        }
        shared.unwatched.store(true, Ordering::SeqCst);
        // A thread that took a message just before that didn't ring.
        if self.hands.iter().any(|hand| hand.post.progress().message().is_some()) {
            shared.unwatched.store(false, Ordering::Relaxed);
            let _ = ending.wait(INTERVAL);
            return;
        }
        let never = self.hands.len() == 1 && self.leaving.is_empty();
        let limit = if never { Duration::MAX } else { QUIET_INTERVAL };
        let limit = crossbeam_channel::after(limit.min(Duration::from_secs(3_600)));
        select! {
            recv(ending.receiver()) -> _ => {}
            recv(alarmed) -> _ => {}
            recv(limit) -> _ => {}
        }
        shared.unwatched.store(false, Ordering::Relaxed);
    }

    fn look(&mut self, last: Instant, now: Instant) -> Look {
        let age = now.saturating_duration_since(self.begun);
        for hand in &mut self.hands {
            hand.reliefs.retain(|relief| !relief.is_over());
            hand.post.look_at_ages(&mut hand.ages, self.patience, age);
        }
        while let Some(at) = self.leaving.iter().position(|hand| hand.thread.is_finished()) {
            let hand = self.leaving.swap_remove(at);
            self.note_end(hand);
        }
        let posts = || self.hands.iter().map(|hand| hand.post.progress());
        let reliefs = || self.hands.iter().flat_map(|hand| &hand.reliefs);
        let all = || posts().chain(reliefs().map(|relief| &relief.progress));
        if all().any(|one| one.is_in_question(now)) {
            let is_contended = self.contention.look(all(), now);
            all().for_each(|one| one.look(is_contended, now));
        } else {
            self.contention.forget();
        }
        let stuck = posts().filter(|progress| progress.is_stuck()).count();
        Look {
            busy: posts().filter(|progress| progress.message().is_some()).count(),
            // While nothing can be parked, more consumers would only hold more messages.
            stuck: if self.crew.context.pipeline.can_park() { stuck } else { 0 },
            rested: posts().any(|progress| progress.has_rested(last, now)),
            done: self.crew.shared.done.load(Ordering::Relaxed),
        }
    }

    /// Makes sure that nothing waits for a stuck consumer: neither the rest of its event nor its
    /// prefetched messages.
    fn take_over(&mut self) {
        let workers = &self.crew.context.workers;
        let reliefs: usize = self.hands.iter().map(|hand| hand.reliefs.len()).sum();
        let mut places = usize::from(self.crew.lane.capacity).saturating_sub(reliefs);
        for hand in &mut self.hands {
            let Some(message) = hand.post.progress().message() else { continue };
            let reliefs = hand.reliefs.iter().map(|relief| &relief.progress);
            for progress in [hand.post.progress()].into_iter().chain(reliefs.clone()) {
                if let Some(event) = progress.rest_of_event()
                    && progress.is_stuck()
                {
                    // If no thread can be started, it goes on when the consumer does.
                    let _ = workers.run(Box::new(move || {
                        event.help();
                        None
                    }));
                }
            }
            let all_stuck =
                hand.post.progress().is_stuck() && reliefs.clone().all(Progress::is_stuck);
            if all_stuck && places > 0 && hand.post.has_messages() && hand.post.relief_begins() {
                let relief = Arc::new(Relief::default());
                hand.reliefs.push(Arc::clone(&relief));
                places -= 1;
                let shared = Arc::clone(&self.crew.shared);
                let task = relief::task(relief, shared, Arc::clone(&hand.post), message);
                if workers.run(task).is_err() {
                    // As above.
                    hand.reliefs.pop();
                    hand.post.give_back(Returned::Over);
                }
            }
        }
    }

    fn start_more(&mut self, more: usize) {
        for _ in 0..more {
            if let Err(problem) = self.start() {
                // If the connection is lost, the consumers notice. Otherwise there can't be more of them
                // for now.
                let count = self.hands.len();
                let queue = &self.crew.lane.queue;
                if self.limited_by.as_ref() != Some(&problem) {
                    log::warn!("lane stays at {count} consumers queue={queue} cause={problem:?}");
                    self.limited_by = Some(problem);
                }
                self.growth.is_limited_to(count, self.begun.elapsed());
                return;
            }
            self.limited_by = None;
        }
    }

    /// Starts a consumer.
    fn start(&mut self) -> Result<(), String> {
        let crew = self.crew;
        let is_first = self.hands.is_empty();
        let opened = crew.guard_start(is_first, || self.link.channel());
        let channel: Channel = opened.map_err(|error| self.link.unavailable(&error).to_string())?;
        let (returned, returns) = unbounded();
        let (trigger, surplus) = shutdown::channel();
        let post = Arc::new(Post::new(returned));
        let name = format!("{}-{}", crew.lane.queue, self.hands.len() + 1);
        let body = {
            let post = Arc::clone(&post);
            move || {
                // Even if it panics: the lane can only end with all of its consumers.
                let mut end_all = EndAll(Some(&crew.end));
                let ended = consume(crew, &channel, &post, &returns, &surplus, is_first);
                // Dropping it waits for the broker's answer.
                crew.kill.guard_shared(&crew.ending, || drop(channel));
                if let Ended::Surplus = ended {
                    end_all.0 = None;
                } else {
                    crew.context.metrics.health().set_consuming(&crew.lane.queue, false);
                }
                ended
            }
        };
        // If the thread can't be started, the channel is dropped here, which waits for the broker's
        // answer.
        let thread = crew.kill.guard_shared(&crew.ending, || {
            thread::Builder::new().name(name).spawn_scoped(self.scope, body)
        });
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        self.hands.push(Hand {
            post,
            reliefs: Vec::new(),
            ages: Ages::default(),
            surplus: trigger,
            thread,
        });
        Ok(())
    }

    /// Ends some consumers, idle ones first.
    fn end_some(&mut self, fewer: usize) {
        self.hands.sort_by_key(|hand| hand.post.progress().message().is_none());
        for _ in 0..fewer.min(self.hands.len().saturating_sub(1)) {
            let Some(hand) = self.hands.pop() else { return };
            hand.surplus.fire();
            self.leaving.push(hand);
        }
    }

    /// Waits for all consumers, and returns why they ended.
    fn join(&mut self) -> Ended {
        for hand in
            std::mem::take(&mut self.hands).into_iter().chain(std::mem::take(&mut self.leaving))
        {
            self.note_end(hand);
        }
        std::mem::replace(&mut self.ended, Ended::Asked)
    }

    fn note_end(&mut self, hand: Hand<'_>) {
        // A panic in one consumer is the lane's, and ends the process.
        let ended = hand.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if matches!(self.ended, Ended::Asked) && !matches!(ended, Ended::Surplus) {
            self.ended = ended;
        }
    }
}

struct EndAll<'a>(Option<&'a Trigger>);

impl Drop for EndAll<'_> {
    fn drop(&mut self) {
        if let Some(end) = self.0 {
            end.fire();
        }
    }
}
