//! Which of the queues, exchanges and bindings that we need are there, as far as anybody has looked.
//!
//! A queue that was there and no longer is has taken with it what it held: whoever made it again, as if
//! it had never been, would hide that. So all who look for our objects tell it here, and what is lost is
//! told and counted once for the process. (What is missing at its start was perhaps never made.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::topology::contents;
use crate::metrics::{ObjectKind as Kind, TopologyCounts};

/// How long it is told of what was lost and is there again.
const TOLD_FOR: Duration = Duration::from_secs(3_600);

/// The objects, shared by all who need them.
pub struct Objects {
    known: Mutex<BTreeMap<(Kind, String), Object>>,
    /// How many queues can't be had; whoever publishes looks at each message.
    refused: AtomicUsize,
    /// It is told of what can't be had. At first that is the error of the start.
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
    /// What it held then.
    messages: u32,
    lost: Option<Loss>,
    /// When it was made, if it was not there.
    made: Option<Instant>,
    /// When a message for it came back from its exchange.
    returned: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    There,
    Missing,
    /// It can't be had: why.
    Refused(String),
}

#[derive(Clone, Copy, Debug)]
struct Loss {
    at: Instant,
    messages: u32,
}

/// An object that is not as it should be, or was not within the last hour.
#[derive(Clone, Debug)]
pub struct Standing {
    /// What it is.
    pub kind: Kind,
    /// Its name; of a binding, its queue's.
    pub name: String,
    /// Whether it is there, and is what we need.
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
    /// Knows of none yet.
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

    /// Tells of what can't be had, now and from now on.
    pub fn tell(&self) {
        self.is_told.store(true, Ordering::Relaxed);
        for ((kind, name), object) in self.lock().iter() {
            if let State::Refused(problem) = &object.state {
                log::error!("not usable {}={name}: {problem}", kind.label());
            }
        }
    }

    /// It is there, and is what we need; a queue holds so many messages.
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

    /// Somebody who asked at that time heard that it is not there. Lost is what was there before.
    pub(super) fn missing(&self, kind: Kind, name: &str, asked: Instant) {
        let known = self.lock();
        // Meanwhile somebody else has made it.
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

    /// It could not be had, for this reason, which is told when it is a new one.
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

    /// RabbitMQ answers for this queue, or nobody needs it any more.
    pub fn forget_unanswered(&self, queue: &str) {
        if self.is_refused(queue) {
            self.found(Kind::Queue, queue, 0);
            self.lock().remove(&(Kind::Queue, queue.to_owned()));
        }
    }

    /// A message for this queue came back from the exchange that it is bound to: it is not there, or no
    /// longer bound.
    pub(super) fn returned(&self, queue: &str) {
        if let Some(object) = self.lock().get_mut(&(Kind::Queue, queue.to_owned())) {
            object.returned = Some(Instant::now());
        }
    }

    /// Somebody who asked for it at that time heard that the queue is bound, now. If a message came back
    /// after it was so the last time, its binding was lost meanwhile.
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

    /// Whether a queue is known to be none that we can use.
    pub(super) fn is_refused(&self, queue: &str) -> bool {
        self.refuses_any()
            && self
                .lock()
                .get(&(Kind::Queue, queue.to_owned()))
                .is_some_and(|object| matches!(object.state, State::Refused(_)))
    }

    /// Whether there is any such queue.
    pub(super) fn refuses_any(&self) -> bool {
        self.refused.load(Ordering::Relaxed) > 0
    }

    /// Has all objects looked at now, not when it is time.
    pub(super) fn look_soon(&self) {
        // Fails if that was said already.
        let _ = self.asks.try_send(());
    }

    /// Ready when somebody has said [`Objects::look_soon`].
    pub(super) fn asked(&self) -> &Receiver<()> {
        &self.asked
    }

    /// What is not as it should be, or was lost within the last hour.
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
        // With its queue it is gone, too.
        objects.missing(Kind::Queue, "q", Instant::now());
        objects.found(Kind::Queue, "q", 0);
        objects.returned("q");
        objects.bound("q", Instant::now());
        assert_eq!(lost(), 1);
    }
}
