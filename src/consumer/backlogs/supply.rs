//! The consumers of backlogs, and their prefetch counts: as many messages as their receivers take.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use amiquip::ConsumerOptions;
use uuid::Uuid;

use super::queue::Item;
use super::unanswered::NO_LEADER;
use super::{Backlog, Drain, TICK, lost};
use crate::broker::{Message, backlog_queue, cancel};
use crate::consumer::Ended;
use crate::domain::held::Dropped;
use crate::domain::pace::Hold;

/// The factor by which a consumer's prefetch count grows.
const GROWTH: u16 = 8;

/// The most that all consumers together may prefetch, as a multiple of the queue's capacity: twice the number
/// of requests that may be in flight.
const AHEAD: usize = 2;

/// If a receiver may not get a request for longer than this, nobody needs to hold its backlog's head.
const LONG: Duration = Duration::from_secs(330);

/// How long the head of a paused webhook's backlog is held in case the webhook is resumed soon: handing it back
/// counts as a redelivery, and after too many redeliveries it loses its place in the order.
const PAUSED: Duration = Duration::from_secs(5);

/// How often a head that nobody holds is checked for its age. Each check counts as a redelivery.
const AGE_INTERVAL: Duration = Duration::from_secs(60);

/// How many bytes of messages may be held whose receivers may not get a request now. Heads are usually small,
/// but a thousand of a megabyte each are not.
const MOST_HELD_BYTES: usize = 64 << 20;

/// Beyond [`MOST_HELD_BYTES`], messages are handed back if their receivers may not get a request for at least this long.
const WORTH_HANDING_BACK: Duration = Duration::from_secs(5);

impl Drain<'_, '_> {
    /// Drops all deliveries that wait in a backlog, because its webhook is deleted or disabled.
    pub(super) fn purge(&mut self, webhook: Uuid, why: Dropped) -> Result<(), Ended> {
        self.cancel(webhook)?;
        let Some(backlog) = self.backlogs.get(&webhook) else { return Ok(()) };
        let ready = self.take_ready(&backlog.queue);
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let mut dropped = ready.len() as u64;
        backlog.in_hand -= ready.len();
        let name = backlog_queue(&self.lane.origin, webhook);
        let channel = self.channel;
        let (number, receivers) = (self.lane.number, &self.context.receivers);
        let last = receivers.last_in_backlog(number, webhook);
        let purged = self.kill.guard_shared(&self.context.shutdown, || {
            for item in ready {
                item.delivery.ack(channel)?;
            }
            channel.queue_purge(name.as_str())
        });
        dropped += u64::from(purged.map_err(|error| self.suspect(webhook, &error))?);
        if dropped > 0 {
            let reason = why.label();
            log::info!("deliveries dropped webhook={webhook} reason={reason} count={dropped}");
            self.context.pipeline.dropped_from_backlog(why, dropped);
        }
        // If more deliveries have entered meanwhile, the next check finds out whether they were purged too.
        let _ = self.context.receivers.note_backlog_empty(number, webhook, last);
        self.consume(webhook, 1)
    }

    /// Starts the consumer of a backlog, or restarts it, with this prefetch count.
    pub(super) fn consume(&mut self, webhook: Uuid, prefetch: u16) -> Result<(), Ended> {
        let name = backlog_queue(&self.lane.origin, webhook);
        let mut unanswered = self.is_unanswered_until(webhook)?;
        let is_consumed = |backlog: &Backlog<'_>| backlog.consumer.is_some();
        if unanswered.is_none() && !self.backlogs.get(&webhook).is_some_and(is_consumed) {
            let asked_at = Instant::now();
            if self.count(&name)?.is_none() {
                // Consuming it would cost the channel, and all messages in flight would be repeated.
                self.remove_gone(webhook);
                return Ok(());
            }
            if asked_at.elapsed() >= NO_LEADER {
                self.add_suspect(webhook);
                unanswered = self.is_unanswered_until(webhook)?;
            }
        }
        if let Some(until) = unanswered {
            self.cancel(webhook)?;
            if let Some(backlog) = self.backlogs.get_mut(&webhook) {
                backlog.resume_at = Some(until);
            }
            self.advance(webhook);
            return Ok(());
        }
        self.cancel(webhook)?;
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let channel = self.channel;
        // Shutdown must not cut the connection, because messages in flight have to be acked.
        let begun = self.kill.guard_shared(&self.context.shutdown, || {
            channel.qos(0, prefetch, false)?;
            channel.basic_consume(name.as_str(), ConsumerOptions::default())
        });
        match begun {
            Ok(consumer) => {
                backlog.consumer = Some(consumer);
                backlog.is_elsewhere = false;
                // The mark may stem from an earlier connection.
                self.context.receivers.set_elsewhere(self.lane.number, webhook, false);
                backlog.prefetch = prefetch;
                self.ahead += usize::from(prefetch - 1);
                self.touched.insert(webhook);
                backlog.resume_at = None;
                // The previous consumer may have got messages just when it was cancelled.
                self.advance(webhook);
                Ok(())
            }
            Err(error) => {
                if let amiquip::Error::ServerClosedChannel { code: 404, .. } = error {
                    // Forget it, or it would cost the next connection as well.
                    self.known.remove(&webhook);
                    self.context.backlogs.report_lost(self.lane.number, webhook);
                    return Err(lost(&error));
                }
                Err(self.suspect(webhook, &error))
            }
        }
    }

    /// Ends a consumer. The messages that it got stay in hand.
    pub(super) fn cancel(&mut self, webhook: Uuid) -> Result<(), Ended> {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let Some(consumer) = backlog.consumer.take() else { return Ok(()) };
        self.ahead -= usize::from(backlog.prefetch - 1);
        backlog.prefetch = 0;
        self.touched.insert(webhook);
        let left = self.kill.guard_shared(&self.context.shutdown, || cancel(&consumer));
        drop(consumer);
        self.add_deliveries(webhook, left);
        Ok(())
    }

    /// Ends a consumer and hands back the messages that haven't begun, because nobody needs to hold them.
    pub(super) fn release(&mut self, webhook: Uuid) -> Result<(), Ended> {
        self.cancel(webhook)?;
        let Some(backlog) = self.backlogs.get(&webhook) else { return Ok(()) };
        let ready = self.take_ready(&backlog.queue);
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        backlog.in_hand -= ready.len();
        for item in ready {
            // In order, so that they keep their places in the queue.
            item.delivery.nack(self.channel, true).map_err(|error| lost(&error))?;
        }
        Ok(())
    }

    /// Adds deliveries that this instance got from a backlog.
    pub(super) fn add_deliveries(&mut self, webhook: Uuid, deliveries: Vec<amiquip::Delivery>) {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return };
        if deliveries.is_empty() {
            return;
        }
        let (number, receivers) = (self.lane.number, &self.context.receivers);
        // After only one futile check, the messages may just have been on their way.
        if std::mem::take(&mut backlog.futile_checks) > 1 {
            // Until now another instance consumed the backlog, and knew more about the receiver.
            receivers.probe_now(webhook);
        }
        if std::mem::take(&mut backlog.is_empty) {
            self.context.backlogs.report_refilled(number, webhook);
        }
        backlog.is_ours = true;
        backlog.in_hand += deliveries.len();
        let since = Instant::now();
        let items: Vec<Item> = deliveries
            .into_iter()
            .map(|mut delivery| {
                let message = Message::take(&mut delivery);
                let waiting = self.context.pipeline.read_waiting(message);
                Item { delivery, waiting, since }
            })
            .collect();
        // Another instance put some of them there, or the backlog was wrongly taken to be empty.
        if items.iter().any(|item| !item.waiting.is_ours)
            || !receivers.is_backlog_in_use(number, webhook)
        {
            receivers.found_backlog(number, webhook);
        }
        backlog.queue.state().ready.extend(items);
    }

    /// Increases the prefetch count of a consumer that uses all of it, and reduces one that can't be used.
    pub(super) fn adjust(&mut self, webhook: Uuid) -> Result<(), Ended> {
        let capacity = self.lane.capacity;
        if self.leave_to_its_sender(webhook)? {
            return Ok(());
        }
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let (is_idle, hold) = {
            let state = backlog.queue.state();
            (state.ready.is_empty() && state.in_line.is_none(), state.hold)
        };
        let prefetch = backlog.prefetch;
        let is_paused = hold == Some(Hold::Paused) && !is_idle;
        backlog.paused_since = backlog.paused_since.filter(|_| is_paused);
        if is_paused {
            // Until then the head keeps asking for an attempt, so a resume is noticed at once.
            if backlog.paused_since.get_or_insert_with(Instant::now).elapsed() >= PAUSED {
                self.suspend(webhook, Duration::ZERO)?;
                self.context.backlogs.report_paused(webhook);
            }
            return Ok(());
        }
        if let Some(hold) = hold.filter(|_| !is_idle) {
            let wait = hold.remaining();
            if wait > TICK {
                backlog.done = 0;
                backlog.had_too_many |= prefetch > 1;
            }
            if wait > LONG {
                self.suspend(webhook, wait)?;
            } else if prefetch > 1 && wait > TICK {
                self.release(webhook)?;
                self.consume(webhook, 1)?;
            }
            return Ok(());
        }
        let uses_all = is_idle
            && (1..capacity).contains(&prefetch)
            && backlog.in_hand >= usize::from(prefetch);
        let more = prefetch.saturating_mul(GROWTH).min(capacity);
        // Messages that are handed back count as redelivered. So a backlog that is held up repeatedly gets at
        // most twice as many messages as were settled in between.
        if backlog.had_too_many && backlog.done < usize::from(more / 2) {
            return Ok(());
        }
        let all_then = self.ahead + usize::from(more.saturating_sub(prefetch));
        if uses_all
            && all_then <= AHEAD * usize::from(capacity)
            && !self.context.receivers.is_broken(webhook)
        {
            self.consume(webhook, more)?;
        }
        Ok(())
    }

    /// Releases the head, and consumes again once it may begin or is too old.
    pub(super) fn suspend(&mut self, webhook: Uuid, wait: Duration) -> Result<(), Ended> {
        let Some(backlog) = self.backlogs.get_mut(&webhook) else { return Ok(()) };
        let expires_in = {
            let state = backlog.queue.state();
            state.ready.front().map(|head| self.context.pipeline.expires_in(&head.waiting))
        };
        let wait = Some(wait).filter(|wait| !wait.is_zero());
        let wait = wait.into_iter().chain(expires_in.map(|left| left.max(AGE_INTERVAL))).min();
        self.release(webhook)?;
        if let Some(backlog) = self.backlogs.get_mut(&webhook) {
            backlog.paused_since = None;
            backlog.resume_at = wait.and_then(|wait| Instant::now().checked_add(wait));
            backlog.due = None;
        }
        Ok(())
    }

    /// If too many bytes are held, hands back the messages that would be held longest.
    pub(super) fn bound_held(&mut self) -> Result<(), Ended> {
        let size = |backlog: &Backlog<'_>| -> usize {
            backlog.queue.state().ready.iter().map(|item| item.waiting.size()).sum()
        };
        let mut sizes: BTreeMap<Uuid, usize> =
            self.backlogs.iter().map(|(webhook, backlog)| (*webhook, size(backlog))).collect();
        let mut all: usize = sizes.values().sum();
        let due: Vec<(Instant, Uuid)> = self.due.iter().rev().copied().collect();
        for (at, webhook) in due {
            let wait = at.saturating_duration_since(Instant::now());
            if all <= MOST_HELD_BYTES || wait < WORTH_HANDING_BACK {
                break;
            }
            all -= sizes.remove(&webhook).unwrap_or_default();
            self.suspend(webhook, wait)?;
        }
        Ok(())
    }

    /// How many messages of a queue are ready; `None` if the queue is gone.
    pub(super) fn count(&mut self, queue: &str) -> Result<Option<u32>, Ended> {
        let Self { spare, link, kill, context, .. } = self;
        let count = || {
            let channel = spare.take().map_or_else(|| link.channel(), Ok)?;
            let count = match channel.queue_declare_passive(queue) {
                Ok(found) => found.declared_message_count().unwrap_or(0),
                Err(amiquip::Error::ServerClosedChannel { code: 404, .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
            *spare = Some(channel);
            Ok(Some(count))
        };
        kill.guard_shared(&context.shutdown, count).map_err(|error| lost(&error))
    }
}
