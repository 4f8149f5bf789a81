//! A producer as it should be: it publishes persistent and mandatory messages at a steady rate, waits for
//! their confirms, and continues after every failure of the broker.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use amiquip::{Channel, Confirm, ConfirmPayload, Connection, Return};
use anyhow::{Result, ensure};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, select};

use super::{cast::Cast, history::Published};
use crate::harness::Event;

/// The wait before it reconnects.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long the last events may wait for their confirms.
const LAST_CONFIRMS: Duration = Duration::from_secs(10);

/// How old a channel must be before it is replaced because a message was refused.
const FRESH_CHANNEL: Duration = Duration::from_secs(1);

/// Bytes that extend the body to a usual size.
const PADDING: usize = 200;

/// What to publish, and where.
#[derive(Clone, Debug)]
pub(super) struct Output {
    /// A URL for each node; tried in turn.
    pub(super) urls: Vec<String>,
    pub(super) queues: Vec<String>,
    pub(super) cast: Cast,
    /// Events per second.
    pub(super) rate: u32,
    /// When the run began.
    pub(super) began: Instant,
}

pub(super) struct Producer {
    events: Arc<Mutex<Vec<Published>>>,
    /// Dropped to end it.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Producer {
    pub(super) fn start(output: Output) -> Self {
        let events = Arc::default();
        let (alive, ended) = crossbeam_channel::bounded(0);
        let work = Work { output, events: Arc::clone(&events), ended };
        let thread = thread::spawn(move || work.run());
        Self { events, alive: Some(alive), thread: Some(thread) }
    }

    /// The number of the next event. Numbers increase.
    pub(super) fn next_number(&self) -> usize {
        lock(&self.events).len()
    }

    /// All events so far, by number.
    pub(super) fn events(&self) -> Vec<Published> {
        lock(&self.events).clone()
    }

    /// Ends it, after the last confirms. Returns all events, by number.
    pub(super) fn finish(&mut self) -> Vec<Published> {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the producer does not panic");
        }
        lock(&self.events).clone()
    }
}

fn lock(events: &Mutex<Vec<Published>>) -> MutexGuard<'_, Vec<Published>> {
    events.lock().expect("no holder panics")
}

struct Work {
    output: Output,
    events: Arc<Mutex<Vec<Published>>>,
    ended: Receiver<()>,
}

impl Work {
    fn run(self) {
        for url in self.output.urls.iter().cycle() {
            // Events that are unconfirmed when the connection ends stay so: if they were published again,
            // they might exist twice, and no one could tell whether the producer or the notifier repeated them.
            let ended = self.session(url).is_ok();
            if ended || self.ended.recv_timeout(RECONNECT) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// One connection's life; an error if it was lost.
    fn session(&self, url: &str) -> Result<()> {
        // Without time limits, calls would hang while RabbitMQ has an alarm or is stopping.
        let mark = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{mark}heartbeat=5&connection_timeout=2000");
        let mut connection = Connection::insecure_open(&url)?;
        let channel = connection.open_channel(None)?;
        let returns = channel.listen_for_returns()?;
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        let mut confirmed = Confirmed {
            events: &self.events,
            cast: self.output.cast,
            returns,
            returned: HashSet::new(),
            first: lock(&self.events).len(),
            tags: Tags::default(),
            is_refused: false,
        };
        let interval = Duration::from_secs(1) / self.output.rate;
        let began = Instant::now();
        let mut due = began;
        // RabbitMQ may continue to refuse on a channel what it would take on another one.
        while !(confirmed.is_refused && began.elapsed() >= FRESH_CHANNEL) {
            select! {
                recv(self.ended) -> _ => break,
                recv(confirms) -> confirm => confirmed.note(confirm?),
                default(due.saturating_duration_since(Instant::now())) => {
                    self.publish(&channel)?;
                    confirmed.tags.published();
                    due += interval;
                }
            }
        }
        let deadline = Instant::now() + LAST_CONFIRMS;
        while !confirmed.tags.unsettled.is_empty() {
            confirmed.note(confirms.recv_deadline(deadline)?);
        }
        connection.close()?;
        let has_ended = self.ended.try_recv() != Err(TryRecvError::Empty);
        ensure!(has_ended, "a message was refused");
        Ok(())
    }

    fn publish(&self, channel: &Channel) -> amiquip::Result<()> {
        let Output { queues, cast, began, .. } = &self.output;
        let (number, queue) = {
            let mut events = lock(&self.events);
            let number = events.len();
            let (kind, queue) = (cast.kind(number), cast.queue(number, queues.len()));
            events.push(Published { kind, queue, at: began.elapsed(), promised: false });
            (number, queue)
        };
        let padding = "x".repeat(PADDING);
        Event::raw(format!(r#"{{"number":{number},"padding":"{padding}"}}"#))
            .kind(cast.kind(number).name())
            .id(&cast.id(number))
            .publish(channel, &queues[queue])
    }
}

/// The confirms of one channel.
struct Confirmed<'a> {
    events: &'a Mutex<Vec<Published>>,
    cast: Cast,
    /// A message without a queue is returned before it is confirmed.
    returns: Receiver<Return>,
    returned: HashSet<usize>,
    /// The number of the first event published on this channel.
    first: usize,
    tags: Tags,
    /// The broker has refused a message.
    is_refused: bool,
}

impl Confirmed<'_> {
    fn note(&mut self, confirm: Confirm) {
        let ids = self.returns.try_iter().filter_map(|one| one.properties.message_id().clone());
        self.returned.extend(ids.filter_map(|id| self.cast.number(&id)));
        let has_it = matches!(confirm, Confirm::Ack(_));
        self.is_refused |= !has_it;
        for tag in self.tags.settled_by(&confirm) {
            // Tags count from 1.
            let number = self.first + usize::try_from(tag).expect("a small number") - 1;
            lock(self.events)[number].promised = has_it && !self.returned.remove(&number);
        }
    }
}

/// The delivery tags of a channel that the broker has neither acked nor nacked. amiquip's `ConfirmSmoother`
/// can't be used: it turns a nack into an ack if a later ack covers its tag, too.
#[derive(Default)]
struct Tags {
    published: u64,
    unsettled: BTreeSet<u64>,
}

impl Tags {
    fn published(&mut self) {
        self.published += 1;
        self.unsettled.insert(self.published);
    }

    fn settled_by(&mut self, confirm: &Confirm) -> BTreeSet<u64> {
        let (Confirm::Ack(payload) | Confirm::Nack(payload)) = confirm;
        if !payload.multiple {
            return self.unsettled.take(&payload.delivery_tag).into_iter().collect();
        }
        let later = self.unsettled.split_off(&(payload.delivery_tag + 1));
        std::mem::replace(&mut self.unsettled, later)
    }
}

#[test]
fn a_nacked_message_stays_refused_when_a_later_ack_covers_its_tag() {
    let mut tags = Tags::default();
    (0..4).for_each(|_| tags.published());
    let payload = |delivery_tag, multiple| ConfirmPayload { delivery_tag, multiple };
    let refused = tags.settled_by(&Confirm::Nack(payload(2, false)));
    assert_eq!(refused, BTreeSet::from([2]));
    let taken = tags.settled_by(&Confirm::Ack(payload(3, true)));
    assert_eq!(taken, BTreeSet::from([1, 3]));
    assert_eq!(tags.unsettled, BTreeSet::from([4]));
}
