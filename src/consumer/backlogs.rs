//! The backlogs of one event queue: consumed each at the pace of its receiver, in order.
//!
//! One thread looks after all of them, over one connection and one channel, with a consumer each; the
//! requests are made by [`crate::workers`]. While a receiver can't be asked, its consumer holds one
//! message, the *head*, and nothing moves. When it can, the worker that is done with one takes the next
//! by itself, and the consumer is given more ahead, as long as all that it was given is under way.
//!
//! Of several instances the broker lets one consume (`x-single-active-consumer`). If that one goes,
//! another is given what it had in hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime};

use amiquip::{Channel, ConnectionBlockedNotification, Consumer};
use crossbeam_channel::{Receiver, Select, TryRecvError, unbounded};
use uuid::Uuid;

use super::{Context, Ended, connect_again};
use crate::backlogs::Standing;
use crate::broker::{CLOSE_TIMEOUT, KillSwitch, Lane, Link, SETUP_TIMEOUT, cancel};
use crate::domain::causes::Causes;
use crate::metrics::Held;

mod advance;
mod elsewhere;
mod news;
mod queue;
mod supply;
mod unanswered;
mod upkeep;

use news::learn;
use queue::{Event, Item, Queue, Shared};
use unanswered::Unanswered;

/// How often it looks after what no event moves.
const TICK: Duration = Duration::from_secs(1);

/// How often those are asked for again that another request holds up, beside whenever one ends: what
/// changes with the clock (a request that becomes slow) rings no bell.
const SOON: Duration = Duration::from_millis(100);

/// How often it is written down at most what holds a backlog up.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

/// Looks after the backlogs of a queue until shutdown.
pub(super) fn run(context: &Context, lane: &Arc<Lane>) {
    let mut known: BTreeMap<Uuid, Option<Standing>> = BTreeMap::new();
    let mut unanswered = Unanswered::default();
    connect_again(context, lane, |causes| {
        while let Ok(news) = context.backlogs.news(lane.number).try_recv() {
            learn(&mut known, news);
        }
        session(context, lane, &mut known, &mut unanswered, causes)
    });
}

/// One connection's life.
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
        looked_at: None,
        known,
        unanswered,
    };
    let ended = drain.run(causes);
    drain.end();
    let spare = drain.spare.take();
    drop(drain);
    if let Ended::Lost(problem) = ended {
        let cause = link.cause_of_loss();
        return Ended::Lost(format!("{problem}: {cause}"));
    }
    kill.guard(CLOSE_TIMEOUT, None, || drop((spare, channel)));
    link.close();
    ended
}

/// A backlog, as the thread sees it that looks after all of them.
struct Backlog<'a> {
    queue: Arc<Queue>,
    /// None while nobody has to hold its head.
    consumer: Option<Consumer<'a>>,
    /// Another instance consumes it.
    is_elsewhere: bool,
    /// When its first was last refused because a limit of its webhook was reached.
    limited_at: Instant,
    /// What the consumer is given ahead.
    prefetch: u16,
    /// Messages that are not acked yet.
    in_hand: usize,
    /// It was given more ahead than it could use.
    had_too_many: bool,
    /// How many messages are done since it was last held up for long.
    done: usize,
    /// When to ask for an attempt again, where that is known; and as it stands in the list of all.
    due: Option<Instant>,
    listed_due: Option<Instant>,
    /// Since when its head has been held because its webhook is paused.
    paused_since: Option<Instant>,
    /// When the consumer is needed again.
    resume_at: Option<Instant>,
    /// It is in the list of those that another request holds up.
    is_soon: bool,
    /// Since when there has been nothing to do.
    quiet_since: Instant,
    /// Whether it is known to be empty.
    is_empty: bool,
    /// When to look next whether it is, and the time to the look after that.
    look_at: Instant,
    look_again: Duration,
    /// Since when its first delivery has waited.
    oldest: Option<Instant>,
    /// How many looks in a row found messages of which none was given to this instance.
    looks_in_vain: u32,
    /// What was last written down of it.
    noted: Option<(Held, Option<SystemTime>)>,
    noted_at: Instant,
}

struct Drain<'a, 'c> {
    context: &'a Context,
    lane: &'a Arc<Lane>,
    kill: KillSwitch,
    channel: &'c Channel,
    link: &'a mut Link,
    /// Disconnected when the connection is lost.
    loss: Receiver<ConnectionBlockedNotification>,
    /// For questions that may cost a channel.
    spare: Option<Channel>,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    bell: Receiver<()>,
    backlogs: BTreeMap<Uuid, Backlog<'c>>,
    /// Those to which something has just happened.
    touched: BTreeSet<Uuid>,
    /// Those that may be given something; the others are told nothing but bad news, which can wait.
    expecting: BTreeSet<Uuid>,
    /// Those whose first waits for a place.
    in_line: BTreeSet<Uuid>,
    /// When to ask for whom.
    due: BTreeSet<(Instant, Uuid)>,
    /// What all consumers are given ahead.
    ahead: usize,
    /// Those that another request holds up, in rotation.
    soon: VecDeque<Uuid>,
    asked_soon_at: Instant,
    /// Some webhooks have changed.
    have_changed: bool,
    /// PostgreSQL is not asked before: it did not answer.
    missing_until: Instant,
    ticked_at: Instant,
    /// How often the instances had changed when it was last looked whose the backlogs are; and the last of
    /// those that were looked at.
    instances_seen: u64,
    looked_at: Option<Uuid>,
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

    /// Until shutdown.
    fn work(&mut self, causes: &mut Causes) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.known.keys().copied().collect();
        for webhook in webhooks {
            let (number, receivers) = (self.lane.number, &self.context.receivers);
            if receivers.is_backlog_in_use(number, webhook) {
                // What the last session had begun comes once more, and would be counted twice.
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
            // Whether the broker takes messages does not matter here.
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

    /// Finishes what is under way, and acks it. What is in hand otherwise is handed back in its order:
    /// with the connection it would go back in any.
    fn finish(&mut self) -> Result<(), Ended> {
        for backlog in self.backlogs.values() {
            backlog.queue.state().is_over = true;
        }
        while self.backlogs.values().any(|backlog| backlog.queue.state().under_way > 0) {
            let Ok(event) = self.events.recv() else { break };
            self.take_event(event)?;
        }
        // Whoever is done has told us before that.
        self.take_events()?;
        // Only then: a broker that takes its time to answer costs the connection, and what is not acked by
        // then would be repeated.
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        for webhook in webhooks {
            self.release(webhook)?;
        }
        Ok(())
    }

    /// Nothing is begun any more.
    fn stop(&self) {
        for backlog in self.backlogs.values() {
            self.stop_queue(&backlog.queue);
        }
    }

    /// Nothing of that backlog is begun any more. What is under way ends by itself.
    fn stop_queue(&self, queue: &Queue) {
        queue.state().is_over = true;
        drop(self.take_ready(queue));
    }

    /// Takes away all that has not begun. The first no longer waits for a place: one that it is called
    /// to, or was just now, would be nobody's, and taken for ever.
    fn take_ready(&self, queue: &Queue) -> VecDeque<Item> {
        let (ready, in_line) = {
            // Together: a worker may ask for the first in between.
            let mut state = queue.state();
            state.is_unwanted = false;
            (std::mem::take(&mut state.ready), state.in_line.take())
        };
        if let Some((_, in_line)) = in_line {
            self.context.receivers.stop_waiting(&in_line);
        }
        ready
    }

    /// Gives up all consumers.
    fn end(&mut self) {
        self.stop();
        self.context.receivers.listen(self.lane.number, false);
        let consumers = self.backlogs.values_mut().filter_map(|backlog| backlog.consumer.take());
        let consumers: Vec<_> = consumers.collect();
        self.kill.guard(CLOSE_TIMEOUT, None, || {
            for consumer in consumers {
                // One that was dropped before it heard of its end would cost the connection.
                drop(cancel(&consumer));
            }
        });
    }

    /// Until there is something to do.
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
