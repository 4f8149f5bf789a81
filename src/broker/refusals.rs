//! Queues that refuse our messages, and what happens to these messages.
//!
//! The broker refuses a message (nack) if its queue doesn't work, or has reached a `max-length` with
//! `reject-publish`. Other queues must not suffer from that. The messages of the queue stay here, in order,
//! and one at a time is retried on a fresh channel: once RabbitMQ has refused a channel, it keeps refusing
//! that channel long after the queue has recovered.
//!
//! A thread that waits for a confirm occupies a consumer. So only some messages of each queue are kept here,
//! and only for seconds. Then they are rerouted through a healthy queue: a delivery waits a little longer, and
//! a dead letter goes to the dead-letter queue later, without another attempt. If all queues refuse, messages
//! stay here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::outgoing::Instead;
use super::publisher::Publication;
use crate::domain::broker_names::{label_of_queue, wait_queue};
use crate::domain::time::Span;
use crate::metrics::Refusing;

mod other_way;

use other_way::other_way;

/// How long a message waits for its queue before it is rerouted: long enough for the queue to elect a leader.
const IN_HAND: Duration = Duration::from_secs(5);

/// The same for a backlog: a delivery that enters one holds up those behind it.
const IN_HAND_FOR_BACKLOG: Duration = Duration::from_secs(2);

/// How many messages of a queue may wait that long. More would occupy all consumers of a lane.
const MOST_IN_HAND: usize = 16;

/// How often a refused message is retried: at first, and once the queue has been refusing for [`LASTS`].
const SOON: Duration = Duration::from_millis(400);
const LATER: Duration = Duration::from_millis(1_900);
const LASTS: Duration = Duration::from_secs(30);

/// How long to wait for the answer to a probe. It takes milliseconds.
const PROBE: Duration = Duration::from_secs(5);

/// How long a queue that confirms nothing is left alone: its messages are rerouted at once. Then one message
/// probes it, and the thread that published that message waits for some seconds.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// A silent queue that got no message for this long counts as healthy again.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// A queue that has refused nothing for this long counts as healthy again.
const CALM: Duration = Duration::from_secs(5);

/// The queues that refuse messages now.
pub(super) struct Refusals {
    queues: BTreeMap<String, Refused>,
    /// Queues whose confirms are overdue: since when, and how many.
    late: BTreeMap<String, (Instant, usize)>,
    /// How often each queue has refused a message.
    counts: BTreeMap<String, u64>,
    /// The delays of the wait queues, shortest first.
    delays: Vec<Span>,
    tried_at: Instant,
    board: Arc<Mutex<Vec<Refusing>>>,
}

/// A queue that refuses messages, or confirms none.
struct Refused {
    since: Instant,
    /// If it confirms none: until when its messages are rerouted at once.
    left_alone_until: Option<Instant>,
    /// When it last refused a message, or was found silent.
    last: Instant,
    /// In the order in which the publisher got them.
    waiting: VecDeque<Publication>,
    /// Since when one of them has been tried on a fresh channel.
    probed_at: Option<Instant>,
}

impl Refusals {
    /// `delays` are those of the wait queues. `queues` are shown from the start.
    pub(super) fn new(delays: Vec<Span>, queues: Vec<String>) -> Self {
        let refusals = Self {
            queues: BTreeMap::new(),
            late: BTreeMap::new(),
            counts: queues.into_iter().map(|queue| (queue, 0)).collect(),
            delays,
            tried_at: Instant::now(),
            board: Arc::default(),
        };
        refusals.show();
        refusals
    }

    /// The list of these queues, for other threads.
    pub(super) fn board(&self) -> Arc<Mutex<Vec<Refusing>>> {
        Arc::clone(&self.board)
    }

    /// Keeps a message if its queue refuses messages now; otherwise returns it.
    pub(super) fn put_aside(&mut self, publication: Publication) -> Option<Publication> {
        if self.queues.is_empty() {
            return Some(publication);
        }
        match self.queues.get_mut(&publication.message.queue()) {
            Some(refused)
                if !refused.waiting.is_empty()
                    || refused.is_probed()
                    || refused.is_left_alone(Instant::now()) =>
            {
                refused.put(publication);
                None
            }
            Some(refused) if refused.left_alone_until.is_some() => {
                refused.probed_at = Some(Instant::now());
                // So that its confirm is noticed, which means that the queue works again.
                publication.slip.is_refused.store(true, Ordering::Relaxed);
                Some(publication)
            }
            _ => Some(publication),
        }
    }

    /// Leaves the queues of these messages alone for a while, because they confirm nothing.
    pub(super) fn silence(&mut self, publications: Vec<Publication>, now: Instant) {
        for publication in publications {
            let queue = publication.message.queue();
            let refused = self.queues.entry(queue).or_insert_with_key(|queue| {
                *self.counts.entry(label_of_queue(queue)).or_default() += 1;
                log::warn!(
                    "queue confirms no messages queue={queue}: does it have a leader (`rabbitmq-queues \
                     quorum_status`)? Its messages wait in other queues, and are not lost"
                );
                Refused::new(now)
            });
            refused.last = now;
            refused.probed_at = None;
            refused.left_alone_until = Some(now + LEFT_ALONE);
            refused.put(publication);
        }
    }

    /// Keeps messages that were refused.
    pub(super) fn refuse(&mut self, publications: Vec<Publication>) {
        for publication in publications {
            let queue = publication.message.queue();
            let now = Instant::now();
            *self.counts.entry(label_of_queue(&queue)).or_default() += 1;
            let refused = self.queues.entry(queue).or_insert_with_key(|queue| {
                log::warn!(
                    "queue accepts no messages queue={queue}: does a policy set a `max-length` (`rabbitmqctl \
                     list_policies`), or does it have no leader (`rabbitmq-queues quorum_status`)? Its \
                     messages wait, and are not lost"
                );
                Refused::new(now)
            });
            refused.last = now;
            refused.probed_at = None;
            refused.put(publication);
        }
    }

    /// Records that a queue accepted a message that it had refused. Returns the other messages that wait for
    /// it.
    pub(super) fn accept(&mut self, queue: &str) -> VecDeque<Publication> {
        let Some(refused) = self.queues.get_mut(queue) else { return VecDeque::new() };
        refused.probed_at = None;
        if refused.left_alone_until.take().is_some() {
            log::info!("queue confirms messages again queue={queue}");
        }
        std::mem::take(&mut refused.waiting)
    }

    /// Records that a message for a queue was returned: the queue is gone, or not bound, so it no longer
    /// refuses messages.
    pub(super) fn returned(&mut self, queue: &str) {
        if let Some(refused) = self.queues.get_mut(queue) {
            refused.probed_at = None;
        }
    }

    pub(super) fn is_trial_due(&self, now: Instant) -> bool {
        let waits = |refused: &&Refused| {
            !refused.waiting.is_empty() && !refused.is_probed() && !refused.is_left_alone(now)
        };
        let mut waiting = self.queues.values().filter(waits).peekable();
        let is_new = |refused: &Refused| now.saturating_duration_since(refused.since) < LASTS;
        waiting.peek().is_some() && {
            let interval = if waiting.any(is_new) { SOON } else { LATER };
            now.saturating_duration_since(self.tried_at) >= interval
        }
    }

    /// Takes one message of each queue, to probe the queue.
    pub(super) fn take_probes(&mut self) -> Vec<Publication> {
        self.tried_at = Instant::now();
        let of = |refused: &mut Refused| {
            if refused.is_probed() || refused.is_left_alone(self.tried_at) {
                return None;
            }
            let probe = refused.waiting.pop_front();
            refused.probed_at = probe.as_ref().map(|_| Instant::now());
            probe
        };
        self.queues.values_mut().filter_map(of).collect()
    }

    /// Takes the messages that have waited long enough, and reroutes them.
    pub(super) fn take_rerouted(&mut self, now: Instant) -> Vec<Publication> {
        let takes: Vec<Span> = self.delays.iter().copied().filter(|d| self.takes(*d)).collect();
        let refusing: Vec<String> = self.queues.keys().cloned().collect();
        let mut elsewhere = Vec::new();
        for refused in self.queues.values_mut() {
            let mut kept = VecDeque::new();
            let is_left_alone = refused.is_left_alone(now);
            for publication in refused.waiting.drain(..) {
                let waited = now.saturating_duration_since(publication.since);
                let is_crowded = kept.len() >= MOST_IN_HAND;
                let patience = match publication.message.instead {
                    _ if is_left_alone => Duration::ZERO,
                    Instead::NoBacklog(_) => IN_HAND_FOR_BACKLOG,
                    _ => IN_HAND,
                };
                let other = (is_crowded || waited >= patience).then(|| {
                    other_way(&publication.message, &takes, &refusing, waited, is_crowded)
                });
                match other.flatten() {
                    Some(message) => elsewhere.push(Publication { message, ..publication }),
                    None => kept.push_back(publication),
                }
            }
            refused.waiting = kept;
        }
        elsewhere
    }

    /// Whether the wait queue of this delay accepts messages, as far as is known.
    fn takes(&self, delay: Span) -> bool {
        let queue = wait_queue(delay);
        !self.queues.contains_key(&queue) && !self.late.contains_key(&queue)
    }

    /// Records which messages have overdue confirms.
    pub(super) fn note_late<'a>(&mut self, publications: impl Iterator<Item = &'a Publication>) {
        let mut late: BTreeMap<String, (Instant, usize)> = BTreeMap::new();
        for publication in publications {
            let found = late.entry(publication.message.queue()).or_insert((publication.since, 0));
            *found = (found.0.min(publication.since), found.1 + 1);
        }
        for queue in late.keys().filter(|queue| !self.late.contains_key(*queue)) {
            *self.counts.entry(label_of_queue(queue)).or_default() += 1;
            log::warn!(
                "queue confirms no messages queue={queue}: does it have a leader (`rabbitmq-queues \
                 quorum_status`)? Its messages wait, and are not lost"
            );
        }
        for queue in self.late.keys().filter(|queue| !late.contains_key(*queue)) {
            log::info!("queue confirms messages again queue={queue}");
        }
        self.late = late;
    }

    /// Drops messages that nobody waits for, forgets queues that have recovered, and shows the rest.
    pub(super) fn forget_recovered(&mut self, now: Instant) {
        self.queues.retain(|queue, refused| {
            refused.waiting.retain(|publication| publication.is_wanted(now));
            let calm = now.saturating_duration_since(refused.last);
            let is_silent = refused.left_alone_until.is_some();
            let is_over = refused.waiting.is_empty()
                && !refused.is_probed()
                && calm >= if is_silent { FORGOTTEN } else { CALM };
            if is_over && !is_silent {
                let lasted = refused.last.saturating_duration_since(refused.since).as_secs();
                log::info!("queue accepts messages again queue={queue} after={lasted}s");
            }
            !is_over
        });
        self.show();
    }

    fn show(&self) {
        let mut board: BTreeMap<String, Refusing> = BTreeMap::new();
        for (queue, refused) in &self.counts {
            let (queue, refused) = (queue.clone(), *refused);
            let entry = Refusing { queue: queue.clone(), since: None, messages: 0, refused };
            board.insert(queue, entry);
        }
        let refused = self.queues.iter().map(|(queue, refused)| {
            (queue, refused.since, refused.waiting.len() + usize::from(refused.is_probed()))
        });
        let late = self.late.iter().map(|(queue, (since, count))| (queue, *since, *count));
        for (queue, since, messages) in refused.chain(late) {
            if let Some(entry) = board.get_mut(&label_of_queue(queue)) {
                entry.since = Some(entry.since.map_or(since, |other| other.min(since)));
                entry.messages += messages;
            }
        }
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = board.into_values().collect();
    }

    /// Takes all messages that wait, for another connection.
    pub(super) fn take_all(&mut self) -> Vec<Publication> {
        let of = |refused: &mut Refused| {
            refused.probed_at = None;
            std::mem::take(&mut refused.waiting)
        };
        self.queues.values_mut().flat_map(of).collect()
    }
}

impl Refused {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            left_alone_until: None,
            last: now,
            waiting: VecDeque::new(),
            probed_at: None,
        }
    }

    fn is_left_alone(&self, now: Instant) -> bool {
        self.left_alone_until.is_some_and(|until| now < until)
    }

    /// Whether a probe is in flight. One that got no answer within [`PROBE`] may have been given up or
    /// rerouted.
    fn is_probed(&self) -> bool {
        self.probed_at.is_some_and(|at| at.elapsed() < PROBE)
    }

    fn put(&mut self, publication: Publication) {
        publication.slip.is_refused.store(true, Ordering::Relaxed);
        let at = self.waiting.partition_point(|other| other.since <= publication.since);
        self.waiting.insert(at, publication);
    }
}

#[cfg(test)]
mod tests;
