//! Which of the queues, exchanges and bindings that we need exist, as of the last check.
//!
//! If a queue existed and is gone, its messages are gone too. To recreate it silently would hide that. So every
//! thread that checks our objects reports here, and each loss is logged and counted once per process. (An
//! object that is missing when the process starts may never have existed.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::topology::contents;
use crate::metrics::{ObjectKind as Kind, TopologyCounts};

/// How long a loss is shown after it was detected.
const SHOWN_FOR: Duration = Duration::from_secs(3_600);

/// How often the arguments of an object that exists are compared with ours.
const COMPARED_EVERY: Duration = Duration::from_secs(60);

/// The objects, shared by all threads that need them.
pub struct Objects {
    known: Mutex<BTreeMap<(Kind, String), Object>>,
    /// How many queues are unusable: a cheap check for each message that is published.
    refused: AtomicUsize,
    /// Whether to log unusable objects. While the process starts, they are its error instead.
    is_logging: AtomicBool,
    counts: TopologyCounts,
    asks: Sender<()>,
    asked: Receiver<()>,
}

#[derive(Debug)]
struct Object {
    state: State,
    /// When it was last seen, created or bound.
    seen: Instant,
    /// How many messages it held then.
    messages: u32,
    lost: Option<Loss>,
    /// When it was created, if it was missing before.
    created: Option<Instant>,
    /// When its exchange last returned a message for it.
    returned: Option<Instant>,
    /// When its arguments were last compared with ours.
    compared: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    There,
    Missing,
    /// It is unusable, for this reason.
    Refused(String),
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    at: Instant,
    messages: u32,
}

/// An object that is not as it should be, or was lost within the last hour.
#[derive(Clone, Debug)]
pub struct ObjectStanding {
    /// What it is.
    pub kind: Kind,
    /// Its name; for a binding, that of its queue.
    pub name: String,
    /// Whether it exists and is usable.
    pub is_there: bool,
    /// Why it is unusable.
    pub problem: Option<String>,
    /// How long ago it was lost.
    pub lost: Option<Duration>,
    /// How many messages a lost queue held when they were last counted.
    pub messages: u32,
}

impl fmt::Debug for Objects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Objects").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Objects {
    /// Knows of no object yet.
    #[must_use]
    pub fn new(counts: TopologyCounts) -> Self {
        let (asks, asked) = bounded(1);
        Self {
            known: Mutex::default(),
            refused: AtomicUsize::new(0),
            is_logging: AtomicBool::new(false),
            counts,
            asks,
            asked,
        }
    }

    /// Logs unusable objects from now on, including those that are known already.
    pub fn start_logging(&self) {
        self.is_logging.store(true, Ordering::Relaxed);
        for ((kind, name), object) in self.lock().iter() {
            if let State::Refused(problem) = &object.state {
                log::error!("not usable {}={name}: {problem}", kind.label());
            }
        }
    }

    /// Records that an object exists and is usable. If it is a queue, it holds that many messages.
    pub(super) fn found(&self, kind: Kind, name: &str, messages: u32) {
        self.set(kind, name, State::There, |object, before| {
            object.messages = messages;
            object.seen = Instant::now();
            if before == Some(State::Missing) {
                object.created = Some(object.seen);
            }
            match before {
                Some(State::Refused(_)) => log::info!("usable again {}={name}", kind.label()),
                Some(State::Missing) if object.lost.is_some() => {
                    log::info!("recreated {}={name}", kind.label());
                }
                _ => {}
            }
        });
    }

    /// Records that an object was declared: it exists, with our arguments.
    pub(super) fn declared(&self, kind: Kind, name: &str, messages: u32) {
        self.found(kind, name, messages);
        if let Some(object) = self.lock().get_mut(&(kind, name.to_owned())) {
            object.compared = Some(object.seen);
        }
    }

    /// Whether an object that was just seen has to be declared, which compares its arguments with ours. A
    /// declaration creates the object if somebody has deleted it a moment ago, and doesn't say so: that loss
    /// would go unnoticed. So this is rare, unless the object was missing or unusable.
    pub(super) fn is_to_be_compared(&self, kind: Kind, name: &str) -> bool {
        let known = self.lock();
        let object = known.get(&(kind, name.to_owned()));
        let there = object.filter(|object| object.state == State::There);
        let compared = there.and_then(|object| object.compared);
        compared.is_none_or(|at| at.elapsed() >= COMPARED_EVERY)
    }

    /// Records that an object didn't exist at the time `asked`. If it existed before, it was lost.
    pub(super) fn missing(&self, kind: Kind, name: &str, asked: Instant) {
        let known = self.lock();
        // Another thread has seen or created it meanwhile.
        if known.get(&(kind, name.to_owned())).is_some_and(|object| object.seen > asked) {
            return;
        }
        drop(known);
        self.set(kind, name, State::Missing, |object, before| {
            object.returned = None;
            if before == Some(State::There) {
                self.lose(kind, name, object);
            }
        });
    }

    fn lose(&self, kind: Kind, name: &str, object: &mut Object) {
        let messages = object.messages;
        object.lost = Some(Loss { at: Instant::now(), messages });
        self.counts.lost(kind).inc();
        match kind {
            Kind::Queue => log::error!(
                "queue lost queue={name} messages={messages}: it was deleted, or expired by a policy, \
                 with the {} (counted {} s ago, without messages in hand); publish their events again",
                contents(name),
                object.seen.elapsed().as_secs()
            ),
            Kind::Exchange | Kind::Binding => log::error!(
                "{kind} lost {kind}={name}: somebody has deleted it; it will be recreated",
                kind = kind.label()
            ),
        }
    }

    /// Shows for a while that a backlog was lost, with that many messages.
    pub fn backlog_lost(&self, queue: &str, messages: u32) {
        self.set(Kind::Queue, queue, State::There, |object, _| {
            object.lost = Some(Loss { at: Instant::now(), messages });
        });
    }

    /// Records that an object has other arguments than ours. If it had ours, which can't be changed, somebody
    /// has deleted it and created another.
    pub(super) fn replaced(&self, kind: Kind, name: &str) {
        if let Some(object) = self.lock().get_mut(&(kind, name.to_owned()))
            && object.state == State::There
            && object.compared.take().is_some()
        {
            self.lose(kind, name, object);
        }
    }

    /// Records that an object is unusable, and logs the reason if it is new.
    pub(super) fn refused(&self, kind: Kind, name: &str, problem: &str) {
        let state = State::Refused(problem.to_owned());
        self.set(kind, name, state, |_, before| {
            let is_new = before != Some(State::Refused(problem.to_owned()));
            if is_new && self.is_logging.load(Ordering::Relaxed) {
                log::error!("not usable {}={name}: {problem}", kind.label());
            }
        });
    }

    /// Records that RabbitMQ doesn't answer for this queue, although it answers for others.
    pub fn unanswered(&self, queue: &str) {
        let problem = "RabbitMQ does not answer for it: does it have a leader (`rabbitmq-queues \
                       quorum_status`)? A restart of RabbitMQ may help; it is tried again every few \
                       minutes";
        self.refused(Kind::Queue, queue, problem);
    }

    /// Records that RabbitMQ answers for this queue again, or that the queue is no longer needed.
    pub fn forget_unanswered(&self, queue: &str) {
        if self.is_refused(queue) {
            self.found(Kind::Queue, queue, 0);
            self.lock().remove(&(Kind::Queue, queue.to_owned()));
        }
    }

    /// Records that the exchange returned a message for this queue: the queue is gone, or no longer bound. A
    /// message that was published before the last loss of the binding was noticed is no sign of another one.
    pub(super) fn returned(&self, queue: &str, published_at: Instant) {
        let mut known = self.lock();
        let binding = known.get(&(Kind::Binding, queue.to_owned()));
        let lost = binding.and_then(|binding| binding.lost);
        if lost.is_some_and(|loss| published_at <= loss.at) {
            return;
        }
        if let Some(object) = known.get_mut(&(Kind::Queue, queue.to_owned())) {
            object.returned = Some(Instant::now());
        }
    }

    /// Records that the queue is bound, by a call that began at the time `asked`. If a message was returned
    /// since the queue was last known to be bound, its binding was lost in between.
    pub(super) fn bound(&self, queue: &str, asked: Instant) {
        let mut known = self.lock();
        let last = known.get(&(Kind::Binding, queue.to_owned())).map(|binding| binding.seen);
        let was_lost = known.get_mut(&(Kind::Queue, queue.to_owned())).is_some_and(|object| {
            let returned = object.returned.take();
            let since_created = |last: &Instant| object.created.is_none_or(|at| *last > at);
            returned.zip(last.filter(since_created)).is_some_and(|(returned, last)| returned > last)
        });
        drop(known);
        if was_lost {
            self.missing(Kind::Binding, queue, asked);
        }
        self.found(Kind::Binding, queue, 0);
    }

    /// Whether a queue is known to be unusable.
    pub(super) fn is_refused(&self, queue: &str) -> bool {
        self.refuses_any()
            && self
                .lock()
                .get(&(Kind::Queue, queue.to_owned()))
                .is_some_and(|object| matches!(object.state, State::Refused(_)))
    }

    /// Whether any queue is known to be unusable.
    pub(super) fn refuses_any(&self) -> bool {
        self.refused.load(Ordering::Relaxed) > 0
    }

    /// Asks for a check of all objects now, before the next one is due.
    pub(super) fn check_soon(&self) {
        // This fails if a check was asked for already.
        let _ = self.asks.try_send(());
    }

    /// Becomes ready after [`Objects::check_soon`].
    pub(super) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// The objects that are missing or unusable, or were lost within the last hour.
    #[must_use]
    pub fn standings(&self) -> Vec<ObjectStanding> {
        let standing = |((kind, name), object): (&(Kind, String), &Object)| {
            let lost = object.lost.filter(|loss| loss.at.elapsed() < SHOWN_FOR);
            let problem = match &object.state {
                State::Refused(problem) => Some(problem.clone()),
                State::There | State::Missing => None,
            };
            let is_there = object.state == State::There;
            (!is_there || lost.is_some()).then(|| ObjectStanding {
                kind: *kind,
                name: name.clone(),
                is_there,
                problem,
                lost: lost.map(|loss| loss.at.elapsed()),
                messages: lost.map_or(0, |loss| loss.messages),
            })
        };
        self.lock().iter().filter_map(standing).collect()
    }

    fn set(
        &self,
        kind: Kind,
        name: &str,
        state: State,
        then: impl FnOnce(&mut Object, Option<State>),
    ) {
        let mut known = self.lock();
        let key = (kind, name.to_owned());
        let is_new = !known.contains_key(&key);
        let object = known.entry(key).or_insert_with(|| Object {
            state: State::Missing,
            seen: Instant::now(),
            messages: 0,
            lost: None,
            created: None,
            returned: None,
            compared: None,
        });
        let before = std::mem::replace(&mut object.state, state);
        then(object, (!is_new).then_some(before));
        let refused = known.iter().filter(|((kind, _), object)| {
            *kind == Kind::Queue && matches!(object.state, State::Refused(_))
        });
        self.refused.store(refused.count(), Ordering::Relaxed);
        let unusable = known.values().filter(|object| object.state != State::There).count();
        self.counts.unusable.set(i64::try_from(unusable).unwrap_or(i64::MAX));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Kind, String), Object>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects() -> Objects {
        let metrics = crate::metrics::Metrics::new(["q".to_owned()]).expect("fresh names");
        Objects::new(metrics.topology())
    }

    #[test]
    fn an_object_that_existed_is_lost_once() {
        let objects = objects();
        let lost = || objects.counts.lost(Kind::Queue).get();
        objects.missing(Kind::Queue, "q", Instant::now());
        assert_eq!(lost(), 0, "at a first start");
        objects.found(Kind::Queue, "q", 7);
        let asked = Instant::now();
        objects.missing(Kind::Queue, "q", asked);
        objects.missing(Kind::Queue, "q", Instant::now());
        assert_eq!(lost(), 1);
        assert!(!objects.standings()[0].is_there);
        objects.found(Kind::Queue, "q", 0);
        objects.missing(Kind::Queue, "q", asked);
        assert_eq!(lost(), 1, "it was created since");
        let standing = &objects.standings()[0];
        assert!(standing.is_there && standing.lost.is_some());
        assert_eq!(standing.messages, 7);
    }

    #[test]
    fn a_queue_that_is_refused_is_shown_until_it_is_usable() {
        let objects = objects();
        objects.refused(Kind::Queue, "q", "classic");
        assert!(objects.is_refused("q") && !objects.is_refused("p"));
        assert_eq!(objects.standings()[0].problem.as_deref(), Some("classic"));
        objects.found(Kind::Queue, "q", 0);
        assert!(!objects.is_refused("q") && objects.standings().is_empty());
    }

    #[test]
    fn arguments_are_compared_when_an_object_is_first_seen_and_after_each_trouble() {
        let objects = objects();
        let is_due = || objects.is_to_be_compared(Kind::Queue, "q");
        objects.found(Kind::Queue, "q", 0);
        assert!(is_due());
        objects.declared(Kind::Queue, "q", 0);
        assert!(!is_due());
        objects.refused(Kind::Queue, "q", "classic");
        assert!(is_due());
        objects.declared(Kind::Queue, "q", 0);
        objects.missing(Kind::Queue, "q", Instant::now());
        assert!(is_due());
    }

    #[test]
    fn an_object_that_had_our_arguments_and_has_others_was_replaced() {
        let objects = objects();
        let lost = || objects.counts.lost(Kind::Queue).get();
        objects.replaced(Kind::Queue, "q");
        objects.found(Kind::Queue, "q", 7);
        objects.replaced(Kind::Queue, "q");
        assert_eq!(lost(), 0, "its arguments were not known");
        objects.declared(Kind::Queue, "q", 7);
        for _ in 0..2 {
            objects.replaced(Kind::Queue, "q");
            objects.refused(Kind::Queue, "q", "classic");
        }
        assert_eq!(lost(), 1);
        assert_eq!(objects.standings()[0].messages, 7);
    }

    #[test]
    fn a_lost_backlog_is_shown_and_not_unusable() {
        let objects = objects();
        objects.backlog_lost("b", 7);
        let standing = &objects.standings()[0];
        assert!(standing.is_there && standing.lost.is_some() && standing.messages == 7);
        assert_eq!((objects.counts.unusable.get(), objects.counts.lost(Kind::Queue).get()), (0, 0));
    }

    #[test]
    fn a_binding_is_lost_if_a_message_for_an_existing_queue_is_returned() {
        let objects = objects();
        let lost = || objects.counts.lost(Kind::Binding).get();
        objects.found(Kind::Queue, "q", 0);
        objects.bound("q", Instant::now());
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 0);
        let published_at = Instant::now();
        objects.returned("q", published_at);
        objects.bound("q", Instant::now());
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1);
        objects.returned("q", published_at);
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1, "it was published before the loss was noticed");
        // If the queue itself was lost, its binding doesn't count.
        objects.missing(Kind::Queue, "q", Instant::now());
        objects.found(Kind::Queue, "q", 0);
        objects.returned("q", Instant::now());
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1);
    }
}
