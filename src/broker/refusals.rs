//! Queues that take no messages of ours, and what is to become of the messages.
//!
//! A broker refuses a message (nack) whose queue is full by a `max-length` that rejects, or can't work.
//! Only what is for that queue may suffer from it. Its messages stay here, in their order, and one of
//! them is tried again and again, on a fresh channel: RabbitMQ remembers of a channel that it was
//! refused, and goes on refusing it when the queue has long been well.
//!
//! Whoever waits for a confirm holds a consumer, so a message is kept here for seconds only, and only
//! some of each queue. Then it takes another way, by a queue that is well: what was to wait waits a
//! little longer, and a dead letter goes to the dead-letter queue later, without a further attempt.
//! Where all queues refuse, it stays.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::message::BOUND_FOR;
use super::outgoing::{Instead, Outgoing};
use super::publisher::Request;
use super::topology::{BACKLOG_EXCHANGE, WITHOUT_BACKLOG, dead_queue, retry_queue, wait_queue};
use crate::domain::delivery::Value;
use crate::domain::time::Span;
use crate::metrics::Refusing;

/// How long a message waits for its queue before it takes another way: long enough for a queue to have
/// a new leader.
const IN_HAND: Duration = Duration::from_secs(5);

/// The same for a backlog: who enters it keeps others waiting.
const IN_HAND_FOR_BACKLOG: Duration = Duration::from_secs(2);

/// So many messages of a queue may wait that long. More would be a lane's consumers.
const MOST_IN_HAND: usize = 16;

/// A message that no wait queue has taken by then goes to the retry lane. It counts its attempts there,
/// one in as long at most.
const LAST_RESORT: Duration = Duration::from_secs(60);

/// How often refused messages are tried again: at first, and where that has lasted for [`LASTS`].
const SOON: Duration = Duration::from_millis(400);
const LATER: Duration = Duration::from_millis(1_900);
const LASTS: Duration = Duration::from_secs(30);

/// How long a probe is waited for. Its answer takes milliseconds.
const PROBE: Duration = Duration::from_secs(5);

/// For how long a queue that has confirmed nothing is left alone: its messages take another way at once.
/// Then one message tries it again, which takes whoever sent it some seconds.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// One that nobody has sent anything to for this long since is as good as any other.
const FORGOTTEN: Duration = Duration::from_secs(300);

/// A queue that has refused nothing for this long takes messages again.
const CALM: Duration = Duration::from_secs(5);

/// The queues that take nothing now.
pub(super) struct Refusals {
    queues: BTreeMap<String, Refused>,
    /// Queues of which a confirm should have come long ago: since when, and how many.
    late: BTreeMap<String, (Instant, usize)>,
    /// How often each has refused a message.
    counts: BTreeMap<String, u64>,
    /// The delays for which there are wait queues, shortest first.
    delays: Vec<Span>,
    tried_at: Instant,
    board: Arc<Mutex<Vec<Refusing>>>,
}

/// A queue that refuses messages, or confirms none.
struct Refused {
    since: Instant,
    /// It confirms none: its messages go another way before this.
    left_alone_until: Option<Instant>,
    /// When it did so last.
    last: Instant,
    /// In the order in which they were asked for.
    waiting: VecDeque<Request>,
    /// Since when one of them has been under way on a fresh channel.
    probed_at: Option<Instant>,
}

impl Refusals {
    /// There are wait queues of these delays; `queues` are shown from the start.
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

    /// Where others see which queues these are.
    pub(super) fn board(&self) -> Arc<Mutex<Vec<Refusing>>> {
        Arc::clone(&self.board)
    }

    /// Keeps a message whose queue takes nothing now; returns any other.
    pub(super) fn put_aside(&mut self, request: Request) -> Option<Request> {
        if self.queues.is_empty() {
            return Some(request);
        }
        match self.queues.get_mut(&request.message.queue()) {
            Some(refused)
                if !refused.waiting.is_empty()
                    || refused.is_probed()
                    || refused.is_left_alone(Instant::now()) =>
            {
                refused.put(request);
                None
            }
            Some(refused) if refused.left_alone_until.is_some() => {
                refused.probed_at = Some(Instant::now());
                // Its confirm says that the queue works again.
                request.slip.is_refused.store(true, Ordering::Relaxed);
                Some(request)
            }
            _ => Some(request),
        }
    }

    /// The queues of these confirm nothing, and are left alone for a while.
    pub(super) fn silence(&mut self, requests: Vec<Request>, now: Instant) {
        for request in requests {
            let queue = request.message.queue();
            let refused = self.queues.entry(queue).or_insert_with_key(|queue| {
                *self.counts.entry(label(queue)).or_default() += 1;
                log::warn!(
                    "queue confirms no messages queue={queue}: has it a leader (`rabbitmq-queues \
                     quorum_status`)? What is for it waits elsewhere, and is not lost"
                );
                Refused::new(now)
            });
            refused.last = now;
            refused.probed_at = None;
            refused.left_alone_until = Some(now + LEFT_ALONE);
            refused.put(request);
        }
    }

    /// These were refused.
    pub(super) fn refuse(&mut self, requests: impl Iterator<Item = Request>) {
        for request in requests {
            let queue = request.message.queue();
            let now = Instant::now();
            *self.counts.entry(label(&queue)).or_default() += 1;
            let refused = self.queues.entry(queue).or_insert_with_key(|queue| {
                log::warn!(
                    "queue takes no messages queue={queue}: has it a `max-length` by a policy \
                     (`rabbitmqctl list_policies`), or no leader (`rabbitmq-queues quorum_status`)? \
                     What is for it waits, and is not lost"
                );
                Refused::new(now)
            });
            refused.last = now;
            refused.probed_at = None;
            refused.put(request);
        }
    }

    /// A queue has taken what it refused before. Returns what else waits for it.
    pub(super) fn accept(&mut self, queue: &str) -> VecDeque<Request> {
        let Some(refused) = self.queues.get_mut(queue) else { return VecDeque::new() };
        refused.probed_at = None;
        if refused.left_alone_until.take().is_some() {
            log::info!("queue confirms messages again queue={queue}");
        }
        std::mem::take(&mut refused.waiting)
    }

    /// A message for a queue came back: that is gone, or not bound, and does not refuse any more.
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

    /// One message for each of the queues, to be tried.
    pub(super) fn probes(&mut self) -> Vec<Request> {
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

    /// The messages that have waited for long enough, for other queues.
    pub(super) fn send_elsewhere(&mut self, now: Instant) -> Vec<Request> {
        let takes: Vec<Span> = self.delays.iter().copied().filter(|d| self.takes(*d)).collect();
        let refusing: Vec<String> = self.queues.keys().cloned().collect();
        let mut elsewhere = Vec::new();
        for refused in self.queues.values_mut() {
            let mut kept = VecDeque::new();
            let is_left_alone = refused.is_left_alone(now);
            for request in refused.waiting.drain(..) {
                let waited = now.saturating_duration_since(request.since);
                let is_crowded = kept.len() >= MOST_IN_HAND;
                let patience = match request.message.instead {
                    _ if is_left_alone => Duration::ZERO,
                    Instead::NoBacklog(_) => IN_HAND_FOR_BACKLOG,
                    _ => IN_HAND,
                };
                let other = (is_crowded || waited >= patience)
                    .then(|| other_way(&request.message, &takes, &refusing, waited, is_crowded));
                match other.flatten() {
                    Some(message) => elsewhere.push(Request { message, ..request }),
                    None => kept.push_back(request),
                }
            }
            refused.waiting = kept;
        }
        elsewhere
    }

    fn takes(&self, delay: Span) -> bool {
        let queue = wait_queue(delay);
        !self.queues.contains_key(&queue) && !self.late.contains_key(&queue)
    }

    /// These have had no answer for long.
    pub(super) fn note_late<'a>(&mut self, requests: impl Iterator<Item = &'a Request>) {
        let mut late: BTreeMap<String, (Instant, usize)> = BTreeMap::new();
        for request in requests {
            let found = late.entry(request.message.queue()).or_insert((request.since, 0));
            *found = (found.0.min(request.since), found.1 + 1);
        }
        for queue in late.keys().filter(|queue| !self.late.contains_key(*queue)) {
            *self.counts.entry(label(queue)).or_default() += 1;
            log::warn!(
                "queue confirms no messages queue={queue}: has it a leader (`rabbitmq-queues \
                 quorum_status`)? What is for it waits, and is not lost"
            );
        }
        for queue in self.late.keys().filter(|queue| !late.contains_key(*queue)) {
            log::info!("queue confirms messages again queue={queue}");
        }
        self.late = late;
    }

    /// Drops what nobody waits for, forgets what is over, and shows the rest.
    pub(super) fn look_around(&mut self, now: Instant) {
        self.queues.retain(|queue, refused| {
            refused.waiting.retain(|request| request.is_wanted(now));
            let calm = now.saturating_duration_since(refused.last);
            let is_silent = refused.left_alone_until.is_some();
            let is_over = refused.waiting.is_empty()
                && !refused.is_probed()
                && calm >= if is_silent { FORGOTTEN } else { CALM };
            if is_over && !is_silent {
                let lasted = refused.last.saturating_duration_since(refused.since).as_secs();
                log::info!("queue refuses no messages any more queue={queue} after={lasted}s");
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
            if let Some(entry) = board.get_mut(&label(queue)) {
                entry.since = Some(entry.since.map_or(since, |other| other.min(since)));
                entry.messages += messages;
            }
        }
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = board.into_values().collect();
    }

    /// All that waits, for another connection.
    pub(super) fn take_all(&mut self) -> Vec<Request> {
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

    /// A probe that has had no answer for long may have been given up, or have gone another way.
    fn is_probed(&self) -> bool {
        self.probed_at.is_some_and(|at| at.elapsed() < PROBE)
    }

    fn put(&mut self, request: Request) {
        request.slip.is_refused.store(true, Ordering::Relaxed);
        let at = self.waiting.partition_point(|other| other.since <= request.since);
        self.waiting.insert(at, request);
    }
}

/// What a queue is called in the metrics: there may be a thousand backlogs.
fn label(queue: &str) -> String {
    let of_backlog = queue.strip_prefix(BACKLOG_EXCHANGE).and_then(|key| key.rsplit_once('.'));
    of_backlog.map_or_else(|| queue.to_owned(), |(origin, _)| format!("{BACKLOG_EXCHANGE}{origin}"))
}

/// Another way for a message whose queue takes nothing, by a wait queue that does (`takes`); none, if
/// there is none.
fn other_way(
    message: &Outgoing,
    takes: &[Span],
    refusing: &[String],
    waited: Duration,
    is_crowded: bool,
) -> Option<Outgoing> {
    let a_minute = Span::from(WITHOUT_BACKLOG);
    let (origin, from) = match &message.instead {
        Instead::Nowhere => return None,
        Instead::OtherWait(delay, origin) => (origin, *delay),
        Instead::NoBacklog(origin) => (origin, a_minute),
        // Soon: it is to be there as soon as the queue takes it. Many of them would only go round.
        Instead::DeadLater(origin) if is_crowded => (origin, a_minute),
        Instead::DeadLater(origin) => (origin, Duration::ZERO.into()),
    };
    let mut carried = message.message.clone();
    if let Instead::DeadLater(origin) = &message.instead {
        carried.headers.insert(BOUND_FOR.to_owned(), Value::Text(dead_queue(origin)));
    }
    let longer = takes.iter().find(|delay| **delay >= from);
    let shorter = || takes.iter().rev().find(|delay| **delay < from);
    if let Some(delay) = longer.or_else(shorter) {
        return Some(Outgoing::park(carried, *delay, origin));
    }
    let last = waited >= LAST_RESORT && !refusing.contains(&retry_queue(origin));
    last.then(|| Outgoing::hand_over(carried, origin))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;
    use crate::broker::publisher::Slip;
    use crossbeam_channel::bounded;

    fn span(text: &str) -> Span {
        text.parse().expect("a span")
    }

    fn delays() -> Vec<Span> {
        ["1s", "4s", "1m", "5m"].map(span).into()
    }

    /// A request that was made so long ago, and whoever waits for it.
    fn request(message: Outgoing, ago: Duration) -> (Request, Arc<Slip>) {
        let slip: Arc<Slip> = Arc::default();
        let now = Instant::now();
        let since = now.checked_sub(ago).expect("the machine is up for longer");
        let deadline = now + Duration::from_secs(60);
        let (confirmed, _) = bounded(1);
        let published_at = since;
        let request =
            Request { message, since, published_at, deadline, confirmed, slip: Arc::clone(&slip) };
        (request, slip)
    }

    fn dead() -> Outgoing {
        Outgoing::dead(Message::default(), "q")
    }

    fn park(delay: &str) -> Outgoing {
        Outgoing::park(Message::default(), span(delay), "q")
    }

    #[track_caller]
    fn check_other_way(message: &Outgoing, takes: &[&str], waited: u64, expected: Option<&str>) {
        let takes: Vec<Span> = takes.iter().map(|delay| span(delay)).collect();
        let waited = Duration::from_secs(waited);
        let other = other_way(message, &takes, &[], waited, false);
        assert_eq!(other.map(|other| other.queue()).as_deref(), expected);
    }

    #[test]
    fn every_message_is_for_a_queue() {
        let webhook = uuid::Uuid::nil();
        for (message, queue) in [
            (park("1500ms"), "webhooks.wait.1500ms"),
            (Outgoing::park(Message::default(), span("1s"), "a.b"), "webhooks.wait.1s"),
            (Outgoing::hand_over(Message::default(), "a.b"), "a.b.retry"),
            (dead(), "q.dead"),
            (Outgoing::to_queue(Message::default(), "a.b"), "a.b"),
        ] {
            assert_eq!(message.queue(), queue);
        }
        let backlog = Outgoing::backlog(Message::default(), "a.b", webhook, "me");
        assert_eq!(backlog.queue(), format!("webhooks.backlog.a.b.{webhook}"));
        assert_eq!(label(&backlog.queue()), "webhooks.backlog.a.b");
        assert_eq!(label("a.b.retry"), "a.b.retry");
    }

    #[test]
    fn what_was_to_wait_waits_longer_or_else_shorter_and_in_the_end_is_tried_at_once() {
        check_other_way(&park("4s"), &["1s", "1m", "5m"], 5, Some("webhooks.wait.1m"));
        check_other_way(&park("5m"), &["1s", "4s"], 5, Some("webhooks.wait.4s"));
        check_other_way(&park("4s"), &[], 59, None);
        check_other_way(&park("4s"), &[], 60, Some("q.retry"));
        let refusing = ["q.retry".to_owned()];
        let none = other_way(&park("4s"), &[], &refusing, LAST_RESORT, false);
        assert!(none.is_none());
    }

    #[test]
    fn a_dead_letter_comes_back_soon_and_says_where_it_belongs() {
        check_other_way(&dead(), &["1s", "4s"], 5, Some("webhooks.wait.1s"));
        let other = other_way(&dead(), &delays(), &[], IN_HAND, true).expect("they take it");
        assert_eq!(other.queue(), "webhooks.wait.1m");
        assert!(other.message.is_bound_for("q.dead"));
        assert!(!park("1s").message.is_bound_for("q.dead"));
    }

    #[test]
    fn where_it_came_from_is_the_only_place_for_anything_else() {
        check_other_way(&Outgoing::to_queue(Message::default(), "q"), &["1s"], 99, None);
        check_other_way(&Outgoing::hand_over(Message::default(), "q"), &["1s"], 99, None);
    }

    #[test]
    fn a_queue_that_refuses_is_shown_until_it_has_been_calm_and_its_messages_are_kept_in_order() {
        let mut refusals = Refusals::new(delays(), Vec::new());
        let board = refusals.board();
        let shown = || board.lock().expect("nobody panicked").clone();
        let (old, _old) = request(dead(), Duration::from_secs(4));
        let (new, slip) = request(dead(), Duration::from_secs(2));
        let (other, _other) = request(park("1s"), Duration::ZERO);
        assert!(refusals.put_aside(old).is_some(), "nothing is known yet");
        let (old, _old) = request(dead(), Duration::from_secs(4));
        refusals.refuse([new].into_iter());
        assert!(slip.is_refused.load(Ordering::Relaxed));
        assert!(refusals.put_aside(other).is_some(), "another queue");
        assert!(refusals.put_aside(old).is_none());
        let now = Instant::now();
        refusals.look_around(now);
        let Refusing { queue, since, messages, refused } = shown().remove(0);
        assert_eq!((queue.as_str(), messages, refused), ("q.dead", 2, 1));
        assert!(since.is_some());

        let probes = refusals.probes();
        assert_eq!(probes.len(), 1);
        assert!(now.saturating_duration_since(probes[0].since) >= Duration::from_secs(4));
        assert!(!refusals.is_trial_due(now + LATER), "its answer is to come");
        refusals.refuse(probes.into_iter());
        assert!(refusals.is_trial_due(Instant::now() + SOON));
        assert_eq!(refusals.accept("q.dead").len(), 2);
        refusals.look_around(Instant::now());
        assert!(shown()[0].since.is_some());
        refusals.look_around(Instant::now() + CALM);
        assert_eq!((shown()[0].since, shown()[0].refused), (None, 2));
    }

    #[test]
    fn what_nobody_waits_for_is_dropped() {
        let mut refusals = Refusals::new(delays(), vec!["q".to_owned()]);
        let (kept, _slip) = request(dead(), Duration::ZERO);
        refusals.refuse([kept, request(dead(), Duration::ZERO).0].into_iter());
        refusals.look_around(Instant::now());
        assert_eq!(refusals.take_all().len(), 1);
    }

    #[test]
    fn some_are_kept_for_seconds_and_the_others_go_another_way_at_once() {
        let mut refusals = Refusals::new(delays(), Vec::new());
        let (requests, _slips): (Vec<_>, Vec<_>) =
            (0..20).map(|_| request(dead(), Duration::ZERO)).unzip();
        refusals.refuse(requests.into_iter());
        let now = Instant::now();
        assert_eq!(refusals.send_elsewhere(now).len(), 20 - MOST_IN_HAND);
        assert!(refusals.send_elsewhere(now).is_empty());
        assert_eq!(refusals.send_elsewhere(now + IN_HAND).len(), MOST_IN_HAND);
    }
}
