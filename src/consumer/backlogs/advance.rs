//! What moves backlogs on: messages from the broker, events from workers, and deliveries that may begin now.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use amiquip::ConsumerMessage;
use crossbeam_channel::TryRecvError;
use uuid::Uuid;

use super::queue::{self, Assignment, Done, Queue, WorkerReport};
use super::{Backlog, Drain, SOON, lost};
use crate::consumer::{Ended, closed};
use crate::domain::pace::Hold;
use crate::pipeline::Missing;

/// How many waiting backlogs are asked for when a request has ended. That makes room for one delivery, but some
/// may be refused for other reasons.
const ASKED: usize = 8;

impl Drain<'_, '_> {
    pub(super) fn take_messages(&mut self, of_all: bool) -> Result<(), Ended> {
        let webhooks: Vec<Uuid> = match of_all {
            true => self.backlogs.keys().copied().collect(),
            false => self.expecting.iter().copied().collect(),
        };
        for webhook in webhooks {
            let mut deliveries = Vec::new();
            let mut is_gone = false;
            if let Some(Backlog { consumer: Some(consumer), .. }) = self.backlogs.get(&webhook) {
                loop {
                    match consumer.receiver().try_recv() {
                        Ok(ConsumerMessage::Delivery(delivery)) => deliveries.push(delivery),
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
                self.remove_gone(webhook);
            } else if !deliveries.is_empty() {
                self.add_deliveries(webhook, deliveries);
                self.advance(webhook);
            }
        }
        Ok(())
    }

    /// Removes a backlog whose queue was deleted, or whose consumer RabbitMQ ended.
    pub(super) fn remove_gone(&mut self, webhook: Uuid) {
        self.forget(webhook);
        self.known.remove(&webhook);
        self.context.backlogs.report_lost(self.lane.number, webhook);
    }

    pub(super) fn take_events(&mut self) -> Result<(), Ended> {
        while let Ok(event) = self.events.try_recv() {
            self.take_event(event)?;
        }
        Ok(())
    }

    pub(super) fn take_event(&mut self, event: WorkerReport) -> Result<(), Ended> {
        match event {
            WorkerReport::Done(Done { queue, delivery, is_kept }) => {
                if !is_kept {
                    return Err(Ended::Missing(Missing::Confirm));
                }
                delivery.ack(self.channel).map_err(|error| lost(&error))?;
                let tally = self.context.pipeline.tally();
                tally.finished(1);
                tally.let_go(1);
                // Its queue may have been deleted and recreated, and then doesn't contain this message.
                let is_its = |backlog: &&mut Backlog<'_>| Arc::ptr_eq(&backlog.queue, &queue);
                if let Some(backlog) = self.backlogs.get_mut(&queue.webhook()).filter(is_its) {
                    backlog.in_hand -= 1;
                    self.touched.insert(queue.webhook());
                    backlog.done += 1;
                }
                Ok(())
            }
            WorkerReport::Check(webhook) => {
                self.advance(webhook);
                Ok(())
            }
            WorkerReport::Unwanted(webhook, why) => self.drop_all(webhook, why),
            WorkerReport::Panicked => panic!("a delivery of a backlog panicked"),
        }
    }

    /// Starts the deliveries that waited for capacity and got it, and notes the refused ones.
    pub(super) fn take_calls(&mut self) {
        let webhooks: Vec<Uuid> = self.in_line.iter().copied().collect();
        for webhook in webhooks {
            let Some(backlog) = self.backlogs.get(&webhook) else { continue };
            if let Some(task) = backlog.queue.called(&self.shared) {
                self.start(&Arc::clone(&backlog.queue), task);
                self.advance(webhook);
            }
        }
    }

    fn start(&self, queue: &Arc<Queue>, task: Assignment) {
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
    pub(super) fn advance(&mut self, webhook: Uuid) {
        self.touched.insert(webhook);
        let Some(queue) = self.backlogs.get(&webhook).map(|backlog| Arc::clone(&backlog.queue))
        else {
            return;
        };
        // A request releases its capacity before its thread has finished. On a busy machine, or while the
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
        // If it hasn't begun by the time that it is too old, it leaves the backlog then, unless PostgreSQL has
        // to be asked first.
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
    pub(super) fn ask_again(&mut self, now: Instant) -> Result<(), Ended> {
        let is_due = |(at, _): &&(Instant, Uuid)| now >= *at;
        let due: Vec<Uuid> =
            self.due.iter().take_while(is_due).map(|(_, webhook)| *webhook).collect();
        for webhook in due {
            self.advance(webhook);
        }
        let has_rung = self.bell.try_recv().is_ok();
        let most = if now >= self.asked_soon_at + SOON {
            self.asked_soon_at = now;
            // At most once per SOON, however often the table changes.
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

    /// Updates the lists of backlogs that expect messages, wait for capacity, or are due.
    pub(super) fn list(&mut self, webhook: Uuid) {
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
}

/// Adds a webhook to the set or removes it.
fn put(set: &mut BTreeSet<Uuid>, webhook: Uuid, is_in: bool) {
    if is_in {
        set.insert(webhook);
    } else {
        set.remove(&webhook);
    }
}
