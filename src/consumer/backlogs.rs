//! The backlogs of one event queue: each is consumed in order, as fast as its receiver may get requests.
//!
//! One thread manages all of them, with one connection, one channel and a consumer for each backlog;
//! [`crate::workers`] make the requests. While a receiver may not get a request, its consumer holds one
//! message, the *head*, and nothing moves. Otherwise, a worker that has finished a message takes the next one
//! by itself, and the prefetch count of the consumer grows as long as it uses all of it.
//!
//! If there are several instances, the broker delivers a backlog to one of them (`x-single-active-consumer`).
//! If that instance ends, another one gets the messages that it had in hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime};

use amiquip::{Channel, ConnectionBlockedNotification, Consumer};
use crossbeam_channel::{Receiver, Select, TryRecvError, unbounded};
use uuid::Uuid;

use super::{Context, Ended, run_sessions};
use crate::backlogs::Standing;
use crate::broker::{CLOSE_TIMEOUT, KillSwitch, Lane, Link, SETUP_TIMEOUT, cancel};
use crate::domain::causes::Causes;
use crate::domain::held::Held;

mod advance;
mod elsewhere;
mod news;
mod queue;
mod supply;
mod unanswered;
mod upkeep;

use news::learn;
use queue::{Item, Queue, Shared, WorkerReport};
use unanswered::Unanswered;

/// How often to check what only the clock changes.
const TICK: Duration = Duration::from_secs(1);

/// How often to ask again for backlogs that wait for another request, besides whenever a request ends: some
/// changes trigger no event, such as a request that becomes slow.
const SOON: Duration = Duration::from_millis(100);

/// The shortest time between two records of what holds up a backlog.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// Consumes the backlogs of a queue until shutdown.
pub(super) fn run(context: &Context, lane: &Arc<Lane>) {
    let mut known: BTreeMap<Uuid, Option<Standing>> = BTreeMap::new();
    let mut unanswered = Unanswered::default();
    run_sessions(context, lane, |causes| {
        while let Ok(news) = context.backlogs.news(lane.number).try_recv() {
            learn(&mut known, news);
        }
        session(context, lane, &mut known, &mut unanswered, causes)
    });
}

/// The life of one connection.
fn session(
    context: &Context,
    lane: &Arc<Lane>,
    known: &mut BTreeMap<Uuid, Option<Standing>>,
    unanswered: &mut Unanswered,
    causes: &mut Causes,
) -> Ended {
    let opened =
        Link::open(&context.config.amqp, context.config.connect_timeout, &context.shutdown);
    let mut link = match opened {
        Ok(link) => link,
        Err(error) => return Ended::Lost(error.to_string()),
    };
    let kill = link.kill_switch();
    let opened = kill.guard(SETUP_TIMEOUT, Some(&context.shutdown), || {
        Ok((link.listen_for_loss()?, link.channel()?))
    });
    let (loss, channel) = match opened {
        Ok(opened) => opened,
        Err(error) => return Ended::Lost(link.unavailable(&error).to_string()),
    };
    let (sender, events) = unbounded();
    let shared = Arc::new(Shared {
        pipeline: Arc::clone(&context.pipeline),
        lane: Arc::clone(lane),
        events: sender,
        at_work: AtomicUsize::new(0),
    });
    let now = Instant::now();
    let mut drain = Drain {
        context,
        lane,
        kill: kill.clone(),
        channel: &channel,
        link: &mut link,
        loss,
        spare: None,
        shared,
        events,
        bell: context.receivers.bell(lane.number),
        backlogs: BTreeMap::new(),
        touched: BTreeSet::new(),
        expecting: BTreeSet::new(),
        in_line: BTreeSet::new(),
        due: BTreeSet::new(),
        ahead: 0,
        soon: VecDeque::new(),
        asked_soon_at: now,
        have_changed: false,
        missing_until: now,
        ticked_at: now,
        instances_seen: 0,
        last_checked: None,
        known,
        unanswered,
    };
    let ended = drain.run(causes);
    drain.end();
    let spare = drain.spare.take();
    drop(drain);
    if let Ended::Lost(problem) = ended {
        return Ended::Lost(link.explain_loss(problem));
    }
    kill.guard(CLOSE_TIMEOUT, None, || drop((spare, channel)));
    link.close();
    ended
}

/// A backlog as the managing thread knows it.
struct Backlog<'a> {
    queue: Arc<Queue>,
    /// `None` while nobody has to hold its head.
    consumer: Option<Consumer<'a>>,
    /// Whether another instance consumes it.
    is_elsewhere: bool,
    /// Whether this instance, as far as it knows, was the last to get deliveries from it. Then this instance
    /// keeps its row in the table up to date.
    is_ours: bool,
    /// When its first delivery was last refused because of its webhook's limits.
    limited_at: Instant,
    /// The consumer's prefetch count.
    prefetch: u16,
    /// The number of unacked messages.
    in_hand: usize,
    /// Whether its prefetch count was larger than it could use.
    had_too_many: bool,
    /// The number of messages settled since it was last held up for long.
    done: usize,
    /// When to ask for an attempt again, if that is known; below, as listed in `Drain::due`.
    due: Option<Instant>,
    listed_due: Option<Instant>,
    /// Since when its head has been held because its webhook is paused.
    paused_since: Option<Instant>,
    /// When to start the consumer again.
    resume_at: Option<Instant>,
    /// Whether it is in the list of those that wait for another request.
    is_soon: bool,
    /// Since when it has been idle.
    quiet_since: Instant,
    /// Whether it is known to be empty.
    is_empty: bool,
    /// When to check again whether it is empty, and the time between checks.
    check_at: Instant,
    check_interval: Duration,
    /// When its first delivery was received.
    oldest: Option<Instant>,
    /// How many checks in a row found messages, while none was delivered to this instance.
    futile_checks: u32,
    /// The last record of what holds it up.
    noted: Option<(Held, Option<SystemTime>)>,
    noted_at: Instant,
}

/// Manages the backlogs of a queue, for the life of one connection.
struct Drain<'a, 'c> {
    context: &'a Context,
    lane: &'a Arc<Lane>,
    kill: KillSwitch,
    channel: &'c Channel,
    link: &'a mut Link,
    /// Disconnected if the connection is lost.
    loss: Receiver<ConnectionBlockedNotification>,
    /// A channel for calls that may close it.
    spare: Option<Channel>,
    shared: Arc<Shared>,
    events: Receiver<WorkerReport>,
    bell: Receiver<()>,
    backlogs: BTreeMap<Uuid, Backlog<'c>>,
    /// Backlogs whose state has just changed.
    touched: BTreeSet<Uuid>,
    /// Backlogs whose consumers may get messages. The others can only learn that they ended, which can wait.
    expecting: BTreeSet<Uuid>,
    /// Backlogs whose first delivery waits for capacity.
    in_line: BTreeSet<Uuid>,
    /// The backlogs to ask for again, and when.
    due: BTreeSet<(Instant, Uuid)>,
    /// The prefetch counts of all consumers together, beyond one each.
    ahead: usize,
    /// Backlogs that wait for another request, in rotation.
    soon: VecDeque<Uuid>,
    asked_soon_at: Instant,
    /// Whether some webhooks have changed.
    have_changed: bool,
    /// PostgreSQL isn't asked before this time, because it didn't answer.
    missing_until: Instant,
    ticked_at: Instant,
    /// The number of changes of the instances when ownership was last checked, and the last backlog that was
    /// checked.
    instances_seen: u64,
    last_checked: Option<Uuid>,
    known: &'a mut BTreeMap<Uuid, Option<Standing>>,
    unanswered: &'a mut Unanswered,
}

impl Drain<'_, '_> {
    fn run(&mut self, causes: &mut Causes) -> Ended {
        match self.work(causes).and_then(|()| self.finish()) {
            Ok(()) => Ended::Asked,
            Err(ended) => ended,
        }
    }

    /// Works until shutdown.
    fn work(&mut self, causes: &mut Causes) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.known.keys().copied().collect();
        for webhook in webhooks {
            let (number, receivers) = (self.lane.number, &self.context.receivers);
            if receivers.is_backlog_in_use(number, webhook) {
                // Deliveries that the last session began are redelivered, and would be counted twice.
                receivers.found_backlog(number, webhook);
            }
            self.add(webhook)?;
        }
        self.context.metrics.health().set_consuming(&self.lane.queue, true);
        if let Some(before) = causes.end() {
            log::info!("lane connected again queue={} after={before:?}", self.lane.queue);
        }
        while !self.context.shutdown.is_requested() {
            self.take_news()?;
            // Whether the broker accepts messages doesn't matter here.
            if let Err(TryRecvError::Disconnected) = self.loss.try_recv() {
                return Err(Ended::Lost("connection lost".to_owned()));
            }
            self.take_events()?;
            let now = Instant::now();
            let is_tick = now >= self.ticked_at + TICK;
            self.take_messages(is_tick)?;
            self.take_calls();
            self.ask_again(now)?;
            if is_tick {
                self.tick(now)?;
                self.ticked_at = now;
            }
            while let Some(webhook) = self.touched.pop_first() {
                self.adjust(webhook)?;
                self.list(webhook);
            }
            self.wait();
        }
        Ok(())
    }

    /// Finishes and acks the messages in flight. All others in hand are handed back in order; closing the
    /// connection would requeue them in any order.
    fn finish(&mut self) -> Result<(), Ended> {
        for backlog in self.backlogs.values() {
            backlog.queue.state().is_over = true;
        }
        while self.backlogs.values().any(|backlog| backlog.queue.state().in_flight > 0) {
            let Ok(event) = self.events.recv() else { break };
            self.take_event(event)?;
        }
        // Workers send their last event before they end.
        self.take_events()?;
        // This comes last: if the broker answers too slowly, the connection is lost, and unacked messages are
        // repeated.
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        for webhook in webhooks {
            self.release(webhook)?;
        }
        Ok(())
    }

    /// From now on no delivery begins.
    fn stop(&self) {
        for backlog in self.backlogs.values() {
            self.stop_queue(&backlog.queue);
        }
    }

    /// From now on no delivery of that backlog begins. Those in flight end by themselves.
    fn stop_queue(&self, queue: &Queue) {
        queue.state().is_over = true;
        drop(self.take_ready(queue));
    }

    /// Takes all deliveries that haven't begun. The first one stops waiting for capacity: otherwise an attempt
    /// that it is granted, now or a moment ago, would hold its capacity forever.
    fn take_ready(&self, queue: &Queue) -> VecDeque<Item> {
        let (ready, in_line) = {
            // Both under one lock: a worker may ask for the first one in between.
            let mut state = queue.state();
            state.is_unwanted = false;
            (std::mem::take(&mut state.ready), state.in_line.take())
        };
        if let Some((_, in_line)) = in_line {
            self.context.receivers.stop_waiting(&in_line);
        }
        ready
    }

    /// Ends all consumers.
    fn end(&mut self) {
        self.stop();
        self.context.receivers.listen(self.lane.number, false);
        let consumers = self.backlogs.values_mut().filter_map(|backlog| backlog.consumer.take());
        let consumers: Vec<_> = consumers.collect();
        self.kill.guard(CLOSE_TIMEOUT, None, || {
            for consumer in consumers {
                // Dropping a consumer before it was cancelled would cost the connection.
                drop(cancel(&consumer));
            }
        });
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let now = Instant::now();
        let mut deadline = self.ticked_at + TICK;
        if !self.soon.is_empty() || self.have_changed {
            deadline = deadline.min(self.asked_soon_at + SOON);
        }
        let mut select = Select::new();
        select.recv(self.context.shutdown.receiver());
        select.recv(self.context.backlogs.news(self.lane.number));
        select.recv(&self.events);
        select.recv(&self.loss);
        if !self.soon.is_empty() {
            select.recv(&self.bell);
        }
        let of = |webhook: &Uuid| self.backlogs.get(webhook);
        let in_lines: Vec<_> =
            self.in_line.iter().filter_map(of).filter_map(|one| one.queue.in_line()).collect();
        for called in &in_lines {
            select.recv(called);
        }
        for consumer in self.expecting.iter().filter_map(of).filter_map(|one| one.consumer.as_ref())
        {
            select.recv(consumer.receiver());
        }
        if let Some((due, _)) = self.due.first() {
            deadline = deadline.min(*due);
        }
        let _ = select.ready_timeout(deadline.saturating_duration_since(now));
    }
}

fn lost(error: &amiquip::Error) -> Ended {
    Ended::Lost(error.to_string())
}
