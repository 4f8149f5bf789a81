//! The backlogs of one event queue: each is consumed in order, at the pace of its receiver.
//!
//! One thread looks after all of them, with one connection, one channel and a consumer for each backlog;
//! [`crate::workers`] make the requests. While a receiver can't be asked, its consumer holds one
//! message, the *head*, and nothing moves. When it can, the worker that has finished a message takes the
//! next by itself, and the consumer gets a larger prefetch as long as it uses all of it.
//!
//! Of several instances, the broker lets one consume (`x-single-active-consumer`). If that one goes,
//! another gets the messages it had in hand.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use amiquip::{Channel, ConnectionBlockedNotification, Consumer, ConsumerMessage};
use crossbeam_channel::{Receiver, Select, TryRecvError, unbounded};
use uuid::Uuid;

use super::{Context, Ended, closed, connect_again};
use crate::backlogs::{News, Standing};
use crate::broker::{CLOSE_TIMEOUT, KillSwitch, Lane, Link, SETUP_TIMEOUT, cancel};
use crate::domain::causes::Causes;
use crate::domain::held::{Dropped, Held};
use crate::domain::instances::SentBy;
use crate::domain::pace::Hold;
use crate::pipeline::Missing;

mod elsewhere;
mod queue;
mod supply;
mod unanswered;
mod upkeep;

use queue::{Done, Event, Item, Queue, Shared, Task};
use unanswered::Unanswered;

/// How often to check what only the clock changes.
const TICK: Duration = Duration::from_secs(1);

/// How often to ask again for backlogs that wait for another request, besides whenever one ends: changes
/// over time, such as a request that becomes slow, trigger no event.
const SOON: Duration = Duration::from_millis(100);

/// How many of these are asked for when a request has ended. It makes room for one; others may be
/// refused for reasons of their own.
const ASKED: usize = 8;

/// The shortest time between two records of what holds up a backlog.
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

fn learn(known: &mut BTreeMap<Uuid, Option<Standing>>, news: News) {
    match news {
        News::Opened(webhook) => drop(known.entry(webhook).or_insert(Some(Standing::Enabled))),
        News::Removed(webhook) => drop(known.remove(&webhook)),
        News::Standing(webhook, standing) => {
            if let Some(known) = known.get_mut(&webhook) {
                *known = standing;
            }
        }
        News::Changed => {}
    }
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

/// A backlog as the thread that looks after all of them knows it.
struct Backlog<'a> {
    queue: Arc<Queue>,
    /// `None` while nobody has to hold its head.
    consumer: Option<Consumer<'a>>,
    /// Another instance consumes it.
    is_elsewhere: bool,
    /// When its first delivery was last refused because of its webhook's limits.
    limited_at: Instant,
    /// The consumer's prefetch count.
    prefetch: u16,
    /// Messages that are not acked yet.
    in_hand: usize,
    /// Whether it had a larger prefetch than it could use.
    had_too_many: bool,
    /// The number of messages settled since it was last held up for long.
    done: usize,
    /// When to ask for an attempt again, if that is known; below, as listed in `Drain::due`.
    due: Option<Instant>,
    listed_due: Option<Instant>,
    /// Since when its head is held because its webhook is paused.
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
    look_at: Instant,
    look_again: Duration,
    /// When its first delivery was received.
    oldest: Option<Instant>,
    /// How many checks in a row found messages without any being delivered to this instance.
    looks_in_vain: u32,
    /// The last record of what holds it up.
    noted: Option<(Held, Option<SystemTime>)>,
    noted_at: Instant,
}

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
    events: Receiver<Event>,
    bell: Receiver<()>,
    backlogs: BTreeMap<Uuid, Backlog<'c>>,
    /// Backlogs that something has just happened to.
    touched: BTreeSet<Uuid>,
    /// Backlogs that may get messages. The others can only get bad news, which can wait.
    expecting: BTreeSet<Uuid>,
    /// Backlogs whose first delivery waits for capacity.
    in_line: BTreeSet<Uuid>,
    /// When to ask for which backlog again.
    due: BTreeSet<(Instant, Uuid)>,
    /// The prefetch of all consumers beyond one each.
    ahead: usize,
    /// Backlogs that wait for another request, in rotation.
    soon: VecDeque<Uuid>,
    asked_soon_at: Instant,
    /// Whether some webhooks have changed.
    have_changed: bool,
    /// PostgreSQL isn't asked before this time, because it didn't answer.
    missing_until: Instant,
    ticked_at: Instant,
    /// The number of changes of the instances when ownership was last checked, and the last backlog that
    /// was checked.
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

    /// Works until shutdown.
    fn work(&mut self, causes: &mut Causes) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.known.keys().copied().collect();
        for webhook in webhooks {
            let (number, receivers) = (self.lane.number, &self.context.receivers);
            if receivers.is_backlog_in_use(number, webhook) {
                // Deliveries begun by the last session come again and would be counted twice.
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

    /// Finishes and acks what is under way. Everything else in hand is handed back in order; closing the
    /// connection would return it in any order.
    fn finish(&mut self) -> Result<(), Ended> {
        for backlog in self.backlogs.values() {
            backlog.queue.state().is_over = true;
        }
        while self.backlogs.values().any(|backlog| backlog.queue.state().under_way > 0) {
            let Ok(event) = self.events.recv() else { break };
            self.take_event(event)?;
        }
        // Finished workers have sent their event before that.
        self.take_events()?;
        // This comes last: if the broker answers too slowly, the connection is lost, and what isn't
        // acked by then would be repeated.
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        for webhook in webhooks {
            self.release(webhook)?;
        }
        Ok(())
    }

    /// Nothing new begins.
    fn stop(&self) {
        for backlog in self.backlogs.values() {
            self.stop_queue(&backlog.queue);
        }
    }

    /// Nothing new begins from that backlog. What is under way ends by itself.
    fn stop_queue(&self, queue: &Queue) {
        queue.state().is_over = true;
        drop(self.take_ready(queue));
    }

    /// Takes all deliveries that haven't begun. The first one stops waiting for capacity: an attempt
    /// granted to it, now or a moment ago, would belong to nobody and be held forever.
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
                // A consumer dropped before its end is confirmed would cost the connection.
                drop(cancel(&consumer));
            }
        });
    }

    fn take_news(&mut self) -> Result<(), Ended> {
        while let Ok(news) = self.context.backlogs.news(self.lane.number).try_recv() {
            learn(self.known, news);
            match news {
                News::Opened(webhook) => self.add(webhook)?,
                News::Removed(webhook) => self.remove(webhook)?,
                News::Standing(webhook, standing) => self.has_changed(webhook, standing)?,
                News::Changed => self.have_changed = true,
            }
        }
        Ok(())
    }

    /// Begins to consume a backlog.
    fn add(&mut self, webhook: Uuid) -> Result<(), Ended> {
        if self.backlogs.contains_key(&webhook) {
            return Ok(());
        }
        let now = Instant::now();
        let backlog = Backlog {
            queue: Arc::new(Queue::new(webhook)),
            consumer: None,
            is_elsewhere: false,
            limited_at: now,
            prefetch: 0,
            in_hand: 0,
            had_too_many: false,
            done: 0,
            due: None,
            listed_due: None,
            paused_since: None,
            resume_at: None,
            is_soon: false,
            quiet_since: now,
            is_empty: false,
            look_at: now,
            look_again: TICK,
            oldest: None,
            looks_in_vain: 0,
            noted: None,
            noted_at: now.checked_sub(NOTE_INTERVAL).unwrap_or(now),
        };
        self.backlogs.insert(webhook, backlog);
        if self.sent_by(webhook) == Some(SentBy::Other) {
            self.is_left(webhook);
        } else {
            self.consume(webhook, 1)?;
        }
        match self.known.get(&webhook) {
            Some(standing) => self.has_changed(webhook, *standing),
            None => Ok(()),
        }
    }

    fn remove(&mut self, webhook: Uuid) -> Result<(), Ended> {
        self.release(webhook)?;
        self.forget(webhook);
        Ok(())
    }

    /// Forgets a backlog except for what is under way, whose acks will find no queue. It leaves all
    /// lists at once, because another backlog may be created before they are read again.
    fn forget(&mut self, webhook: Uuid) {
        let Some(backlog) = self.backlogs.remove(&webhook) else { return };
        self.forget_unanswered(webhook);
        self.context.receivers.set_elsewhere(self.lane.number, webhook, false);
        self.ahead -= usize::from(backlog.prefetch.saturating_sub(1));
        self.expecting.remove(&webhook);
        self.in_line.remove(&webhook);
        if let Some(due) = backlog.listed_due {
            self.due.remove(&(due, webhook));
        }
        self.stop_queue(&backlog.queue);
    }

    /// Its webhook was paused, resumed, disabled or deleted.
    fn has_changed(&mut self, webhook: Uuid, standing: Option<Standing>) -> Result<(), Ended> {
        match standing {
            Some(Standing::Enabled) => {
                let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
                let is_paused = matches!(backlog.queue.state().hold, Some(Hold::Paused));
                if is_paused {
                    backlog.queue.state().hold = None;
                    (backlog.resume_at, backlog.due) = (None, None);
                    if backlog.consumer.is_none() {
                        self.consume(webhook, 1)?;
                    }
                    self.advance(webhook);
                }
                Ok(())
            }
            // The next request for an attempt notices it.
            Some(Standing::Paused) => Ok(()),
            Some(Standing::Disabled) => self.drop_all(webhook, Dropped::Disabled),
            None => self.drop_all(webhook, Dropped::Deleted),
        }
    }

    fn drop_all(&mut self, webhook: Uuid, why: Dropped) -> Result<(), Ended> {
        self.purge(webhook, why)?;
        if matches!(why, Dropped::Deleted) {
            self.ask_for_removal(webhook);
        }
        Ok(())
    }

    /// Deliveries that were refused because of their webhook's former settings may begin now.
    fn ask_for_all(&mut self) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = self.backlogs.keys().copied().collect();
        for webhook in webhooks {
            let Some(backlog) = self.backlogs.get(&webhook) else { continue };
            // A limit is the only reason that is a setting.
            if !matches!(backlog.queue.state().hold, Some(Hold::Limit(..))) {
                continue;
            }
            if backlog.consumer.is_none() {
                self.consume(webhook, 1)?;
            }
            self.advance(webhook);
        }
        Ok(())
    }

    fn take_messages(&mut self, of_all: bool) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = match of_all {
            true => self.backlogs.keys().copied().collect(),
            false => self.expecting.iter().copied().collect(),
        };
        for webhook in webhooks {
            let mut given = Vec::new();
            let mut is_gone = false;
            if let Some(Backlog { consumer: Some(consumer), .. }) = self.backlogs.get(&webhook) {
                loop {
                    match consumer.receiver().try_recv() {
                        Ok(ConsumerMessage::Delivery(delivery)) => given.push(delivery),
                        Ok(ConsumerMessage::ServerCancelled) => {
                            is_gone = true;
                            break;
                        }
                        Ok(
                            ConsumerMessage::ServerClosedChannel(error)
                            | ConsumerMessage::ServerClosedConnection(error),
                        ) => return Err(closed(&error)),
                        Ok(_) | Err(TryRecvError::Disconnected) => {
                            return Err(Ended::Lost("connection lost".to_owned()));
                        }
                        Err(TryRecvError::Empty) => break,
                    }
                }
            }
            if is_gone {
                self.is_gone(webhook);
            } else if !given.is_empty() {
                self.are_given(webhook, given);
                self.advance(webhook);
            }
        }
        Ok(())
    }

    /// The queue was deleted, or RabbitMQ ended its consumer.
    fn is_gone(&mut self, webhook: Uuid) {
        self.forget(webhook);
        self.known.remove(&webhook);
        self.context.backlogs.lost(self.lane.number, webhook);
    }

    fn take_events(&mut self) -> Result<(), Ended> {
        while let Ok(event) = self.events.try_recv() {
            self.take_event(event)?;
        }
        Ok(())
    }

    fn take_event(&mut self, event: Event) -> Result<(), Ended> {
        match event {
            Event::Done(Done { queue, delivery, is_kept }) => {
                if !is_kept {
                    return Err(Ended::Missing(Missing::Confirm));
                }
                delivery.ack(self.channel).map_err(|error| lost(&error))?;
                let tally = self.context.pipeline.tally();
                tally.finished(1);
                tally.let_go(1);
                // Its queue may have been deleted and replaced by another, which doesn't know this
                // message.
                let is_its = |backlog: &&mut Backlog<'_>| Arc::ptr_eq(&backlog.queue, &queue);
                if let Some(backlog) = self.backlogs.get_mut(&queue.webhook()).filter(is_its) {
                    backlog.in_hand -= 1;
                    self.touched.insert(queue.webhook());
                    backlog.done += 1;
                }
                Ok(())
            }
            Event::Look(webhook) => {
                self.advance(webhook);
                Ok(())
            }
            Event::Unwanted(webhook, why) => self.drop_all(webhook, why),
            Event::Panicked => panic!("a delivery of a backlog panicked"),
        }
    }

    /// Starts the deliveries that waited for capacity and got it, and notes the refused ones.
    fn take_calls(&mut self) {
        let webhooks: Vec<Uuid> = self.in_line.iter().copied().collect();
        for webhook in webhooks {
            let Some(backlog) = self.backlogs.get(&webhook) else { continue };
            if let Some(task) = backlog.queue.called(&self.shared) {
                self.start(&Arc::clone(&backlog.queue), task);
                self.advance(webhook);
            }
        }
    }

    fn start(&self, queue: &Arc<Queue>, task: Task) {
        self.context.pipeline.tally().taken();
        let work = queue::work(Arc::clone(&self.shared), Arc::clone(queue), task);
        // If no thread can be started, this one does the work, and all other backlogs wait.
        if let Err(work) = self.context.workers.run(work)
            && let Some(farewell) = work()
        {
            farewell();
        }
    }

    /// Begins as many deliveries of a backlog as may begin, and notes what holds up the rest.
    fn advance(&mut self, webhook: Uuid) {
        self.touched.insert(webhook);
        let Some(queue) = self.backlogs.get(&webhook).map(|backlog| Arc::clone(&backlog.queue))
        else {
            return;
        };
        // A request releases its capacity before its thread is done. On a busy machine, or while the
        // broker confirms slowly, threads would pile up.
        let has_thread =
            || self.shared.at_work.load(Ordering::Relaxed) < usize::from(self.lane.capacity);
        if Instant::now() >= self.missing_until {
            while has_thread()
                && let Some(task) = queue.next(&self.shared)
            {
                self.start(&queue, task);
            }
        }
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return };
        let state = queue.state();
        let now = Instant::now();
        if state.is_missing && now >= self.missing_until {
            // The other backlogs would wait as long for the same answer.
            self.missing_until = now + state.wait();
        }
        if matches!(state.hold, Some(Hold::Limit(..))) {
            backlog.limited_at = now;
        }
        backlog.due = None;
        if state.ready.is_empty() || state.in_line.is_some() {
            return;
        }
        let wait = state.wait();
        // If it hasn't begun before it is too old, it leaves the backlog then, unless PostgreSQL has to
        // be asked first.
        let head = state.ready.front().filter(|_| !state.is_missing);
        let expires_in = head.map(|head| self.context.pipeline.expires_in(&head.waiting));
        backlog.due = expires_in.and_then(|left| now.checked_add(left));
        if !wait.is_zero() {
            let due = now + wait;
            backlog.due = Some(backlog.due.map_or(due, |expires| expires.min(due)));
        } else if !std::mem::replace(&mut backlog.is_soon, true) {
            self.soon.push_back(webhook);
        }
    }

    /// Asks for the backlogs that are due, and for some of those that wait for another request.
    fn ask_again(&mut self, now: Instant) -> Result<(), Ended> {
        let is_due = |(at, _): &&(Instant, Uuid)| now >= *at;
        let due: Vec<Uuid> =
            self.due.iter().take_while(is_due).map(|(_, webhook)| *webhook).collect();
        for webhook in due {
            self.advance(webhook);
        }
        let has_rung = self.bell.try_recv().is_ok();
        let most = if now >= self.asked_soon_at + SOON {
            self.asked_soon_at = now;
            // Limited to this rate, however often the table changes.
            if std::mem::take(&mut self.have_changed) {
                self.ask_for_all()?;
            }
            self.soon.len()
        } else if has_rung {
            ASKED
        } else {
            0
        };
        for _ in 0..most.min(self.soon.len()) {
            let Some(webhook) = self.soon.pop_front() else { break };
            if let Some(backlog) = self.backlogs.get_mut(&webhook) {
                backlog.is_soon = false;
                self.advance(webhook);
            }
        }
        self.context.receivers.listen(self.lane.number, !self.soon.is_empty());
        Ok(())
    }

    /// Enters a backlog in the lists of what it waits for.
    fn list(&mut self, webhook: Uuid) {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return };
        put(&mut self.expecting, webhook, backlog.in_hand < usize::from(backlog.prefetch));
        put(&mut self.in_line, webhook, backlog.queue.in_line().is_some());
        if backlog.listed_due != backlog.due {
            if let Some(before) = backlog.listed_due.take() {
                self.due.remove(&(before, webhook));
            }
            self.due.extend(backlog.due.map(|due| (due, webhook)));
            backlog.listed_due = backlog.due;
        }
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

/// Adds a webhook to the set or removes it.
fn put(set: &mut BTreeSet<Uuid>, webhook: Uuid, is_in: bool) {
    if is_in {
        set.insert(webhook);
    } else {
        set.remove(&webhook);
    }
}

fn lost(error: &amiquip::Error) -> Ended {
    Ended::Lost(error.to_string())
}
