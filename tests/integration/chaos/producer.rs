//! A producer as it should be: persistent and mandatory messages, publisher confirms, a steady rate, and
//! no end at any failure of the broker.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use amiquip::{Channel, Confirm, ConfirmSmoother, Connection, Return};
use anyhow::Result;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select};

use super::{cast::Cast, history::Published};
use crate::harness::Event;

/// The wait before it reconnects.
const RECONNECT: Duration = Duration::from_millis(100);

/// How long the last events may wait for their confirms.
const LAST_CONFIRMS: Duration = Duration::from_secs(10);

/// Extends the body to a usual size.
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

    /// The next event's number; each later one gets a higher one.
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
            // What is unconfirmed when the connection ends stays so: if it were published again, it
            // might exist twice, and nobody could tell who repeated it.
            let ended = self.session(url).is_ok();
            if ended || self.ended.recv_timeout(RECONNECT) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// One connection's life; an error if it was lost.
    fn session(&self, url: &str) -> Result<()> {
        // While RabbitMQ has an alarm, or is stopping, every call may take a while.
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
            smoother: ConfirmSmoother::new(),
            outstanding: 0,
        };
        let interval = Duration::from_secs(1) / self.output.rate;
        let mut due = Instant::now();
        loop {
            select! {
                recv(self.ended) -> _ => break,
                recv(confirms) -> confirm => confirmed.note(confirm?),
                default(due.saturating_duration_since(Instant::now())) => {
                    self.publish(&channel)?;
                    confirmed.outstanding += 1;
                    due += interval;
                }
            }
        }
        let deadline = Instant::now() + LAST_CONFIRMS;
        while confirmed.outstanding > 0 {
            confirmed.note(confirms.recv_deadline(deadline)?);
        }
        connection.close()?;
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
    smoother: ConfirmSmoother,
    outstanding: usize,
}

impl Confirmed<'_> {
    fn note(&mut self, confirm: Confirm) {
        let ids = self.returns.try_iter().filter_map(|one| one.properties.message_id().clone());
        self.returned.extend(ids.filter_map(|id| self.cast.number(&id)));
        for confirm in self.smoother.process(confirm) {
            let (Confirm::Ack(payload) | Confirm::Nack(payload)) = confirm;
            let tag = usize::try_from(payload.delivery_tag).expect("a small number");
            // Tags count from 1. What the broker refused it doesn't have.
            let number = self.first + tag - 1;
            let has_it = matches!(confirm, Confirm::Ack(_)) && !self.returned.remove(&number);
            lock(self.events)[number].promised = has_it;
            self.outstanding -= 1;
        }
    }
}
