//! Which of the queues, exchanges and bindings that we need exist, as far as anybody has looked.
//!
//! If a queue existed and is gone, what it held is gone, too. To make it again without a word would hide
//! that. So everybody who looks for our objects reports here, and each loss is logged and counted once for
//! the process. (What is missing when the process starts was perhaps never made.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::topology::contents;
use crate::metrics::{ObjectKind as Kind, TopologyCounts};

/// How long a loss is shown after the object was made again.
const TOLD_FOR: Duration = Duration::from_secs(3_600);

/// The objects, shared by all that need them.
pub struct Objects {
    known: Mutex<BTreeMap<(Kind, String), Object>>,
    /// How many queues can't be had: a quick check for each message that is published.
    refused: AtomicUsize,
    /// Whether to log what can't be had. While the process starts, that is its error.
    is_told: AtomicBool,
    counts: TopologyCounts,
    asks: Sender<()>,
    asked: Receiver<()>,
}

#[derive(Debug)]
struct Object {
    state: State,
    /// When it was last seen, made or bound.
    seen: Instant,
    /// How many messages it held then.
    messages: u32,
    lost: Option<Loss>,
    /// When it was made, if it was missing before.
    made: Option<Instant>,
    /// When its exchange last returned a message for it.
    returned: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    There,
    Missing,
    /// It can't be had, for this reason.
    Refused(String),
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    at: Instant,
    messages: u32,
}

/// An object that is not as it should be, or was lost within the last hour.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What it is.
    pub kind: Kind,
    /// Its name; for a binding, that of its queue.
    pub name: String,
    /// Whether it exists, and is what we need.
    pub is_there: bool,
    /// Why it can't be had.
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
            is_told: AtomicBool::new(false),
            counts,
            asks,
            asked,
        }
    }

    /// Logs what can't be had, now and from now on.
    pub fn tell(&self) {
        self.is_told.store(true, Ordering::Relaxed);
        for ((kind, name), object) in self.lock().iter() {
            if let State::Refused(problem) = &object.state {
                log::error!("not usable {}={name}: {problem}", kind.label());
            }
        }
    }

    /// It exists, and is what we need. If it is a queue, it holds that many messages.
    pub(super) fn found(&self, kind: Kind, name: &str, messages: u32) {
        self.set(kind, name, State::There, |object, before| {
            object.messages = messages;
            object.seen = Instant::now();
            if before == Some(State::Missing) {
                object.made = Some(object.seen);
            }
            match before {
                Some(State::Refused(_)) => log::info!("usable again {}={name}", kind.label()),
                Some(State::Missing) if object.lost.is_some() => {
                    log::info!("made again {}={name}", kind.label());
                }
                _ => {}
            }
        });
    }

    /// It doesn't exist, as somebody learned who asked at that time. If it existed before, it is lost.
    pub(super) fn missing(&self, kind: Kind, name: &str, asked: Instant) {
        let known = self.lock();
        // Somebody else has made it meanwhile.
        if known.get(&(kind, name.to_owned())).is_some_and(|object| object.seen > asked) {
            return;
        }
        drop(known);
        self.set(kind, name, State::Missing, |object, before| {
            object.returned = None;
            if before != Some(State::There) {
                return;
            }
            let messages = object.messages;
            object.lost = Some(Loss { at: Instant::now(), messages });
            self.counts.lost(kind).inc();
            match kind {
                Kind::Queue => log::error!(
                    "queue lost queue={name} messages={messages}: it is gone, deleted or expired by a \
                     policy, with the {} (messages: when last counted, {} s ago; what was being moved out \
                     of it does not count); publish their events again",
                    contents(name),
                    object.seen.elapsed().as_secs()
                ),
                Kind::Exchange | Kind::Binding => log::error!(
                    "{kind} lost {kind}={name}: somebody has deleted it; it is made again",
                    kind = kind.label()
                ),
            }
        });
    }

    /// It could not be had, for this reason, which is logged if it is a new one.
    pub(super) fn refused(&self, kind: Kind, name: &str, problem: &str) {
        let state = State::Refused(problem.to_owned());
        self.set(kind, name, state, |_, before| {
            let is_new = before != Some(State::Refused(problem.to_owned()));
            if is_new && self.is_told.load(Ordering::Relaxed) {
                log::error!("not usable {}={name}: {problem}", kind.label());
            }
        });
    }

    /// RabbitMQ does not answer for this queue, though it answers for others.
    pub fn unanswered(&self, queue: &str) {
        let problem = "RabbitMQ does not answer for it: has it a leader (`rabbitmq-queues \
                       quorum_status`)? A restart of RabbitMQ may help; it is tried again every few \
                       minutes";
        self.refused(Kind::Queue, queue, problem);
    }

    /// RabbitMQ answers for this queue again, or nobody needs the queue any more.
    pub fn forget_unanswered(&self, queue: &str) {
        if self.is_refused(queue) {
            self.found(Kind::Queue, queue, 0);
            self.lock().remove(&(Kind::Queue, queue.to_owned()));
        }
    }

    /// The exchange that this queue is bound to has returned a message: the queue is gone, or no longer
    /// bound.
    pub(super) fn returned(&self, queue: &str) {
        if let Some(object) = self.lock().get_mut(&(Kind::Queue, queue.to_owned())) {
            object.returned = Some(Instant::now());
        }
    }

    /// The queue is bound now, by somebody who asked for that at that time. If a message was returned after
    /// it was last known to be bound, the binding was lost in between.
    pub(super) fn bound(&self, queue: &str, asked: Instant) {
        let mut known = self.lock();
        let last = known.get(&(Kind::Binding, queue.to_owned())).map(|binding| binding.seen);
        let was_lost = known.get_mut(&(Kind::Queue, queue.to_owned())).is_some_and(|object| {
            let returned = object.returned.take();
            let since_made = |last: &Instant| object.made.is_none_or(|made| *last > made);
            returned.zip(last.filter(since_made)).is_some_and(|(returned, last)| returned > last)
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

    /// Asks for a check of all objects now, not when the next is due.
    pub(super) fn check_soon(&self) {
        // This fails if somebody has asked already.
        let _ = self.asks.try_send(());
    }

    /// Becomes ready when somebody has called [`Objects::check_soon`].
    pub(super) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// The objects that are not as they should be, or were lost within the last hour.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let standing = |((kind, name), object): (&(Kind, String), &Object)| {
            let lost = object.lost.filter(|loss| loss.at.elapsed() < TOLD_FOR);
            let problem = match &object.state {
                State::Refused(problem) => Some(problem.clone()),
                State::There | State::Missing => None,
            };
            let is_there = object.state == State::There;
            (!is_there || lost.is_some()).then(|| Standing {
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
            made: None,
            returned: None,
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
    fn lost_is_what_was_there_and_once() {
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
        assert_eq!(lost(), 1, "somebody has made it since");
        let standing = &objects.standings()[0];
        assert!(standing.is_there && standing.lost.is_some());
        assert_eq!(standing.messages, 7);
    }

    #[test]
    fn a_queue_that_is_refused_is_told_until_it_is_usable() {
        let objects = objects();
        objects.refused(Kind::Queue, "q", "classic");
        assert!(objects.is_refused("q") && !objects.is_refused("p"));
        assert_eq!(objects.standings()[0].problem.as_deref(), Some("classic"));
        objects.found(Kind::Queue, "q", 0);
        assert!(!objects.is_refused("q") && objects.standings().is_empty());
    }

    #[test]
    fn a_binding_is_lost_when_a_message_came_back_from_a_queue_that_is_there() {
        let objects = objects();
        let lost = || objects.counts.lost(Kind::Binding).get();
        objects.found(Kind::Queue, "q", 0);
        objects.bound("q", Instant::now());
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 0);
        objects.returned("q");
        objects.bound("q", Instant::now());
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1);
        // Where the queue itself was lost, its binding doesn't count.
        objects.missing(Kind::Queue, "q", Instant::now());
        objects.found(Kind::Queue, "q", 0);
        objects.returned("q");
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1);
    }
}
