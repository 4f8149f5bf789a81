//! How many repeats a fault may cause, and which. This follows from the design alone, not from
//! measurements: a run that exceeds it has found a defect, in the product or in these rules.

use std::time::Duration;

use super::{
    cast::{Kind, Webhook},
    history::{History, Moment, Request, Strike},
    plan::Fault,
};
use crate::harness::cluster::NODES;

/// A run's queues, each with lanes for its events, its retries and its backlogs.
pub(super) const QUEUES: usize = 3;

/// Each queue's capacity, and so the most consumers of its lanes for events and for retries. It is small, so that slow
/// receivers and bursts reach the limit, and large enough that all webhooks that want an event can get a
/// request at the same time.
pub(super) const CAPACITY: usize = 8;

/// The messages that each consumer holds: settled but not acked yet, waiting for a confirm, or under
/// way. More than one, so that some wait behind others; not more than two, since each is a repeat that a
/// fault may cause.
pub(super) const PREFETCH_COUNT: usize = 2;

/// Longer than the second after which a receiver counts as slow, so that a hanging one does.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);

/// There is a wait queue for each.
pub(super) const RETRY_SCHEDULE: [&str; 4] = ["500ms", "1s", "2s", "4s"];

/// Short pauses: deliveries that they hold back should be made within the run.
pub(super) const CIRCUIT_BREAKER: &str = "5,500ms,1s";

/// Most deliveries to a receiver that is never there expire, since its circuit breaker lets few of them be
/// attempted. Every other delivery reaches its receiver within this time, whatever fails on the way: three
/// attempts and the waits between them take 6 s; a receiver's outage, with a pause after each of a dozen
/// failures, another 15; the longest outage of the broker, until all is ready again on a busy machine, 40;
/// and a delivery that needs a backlog while none can be created waits a minute.
pub(super) const DELIVERY_MAX_AGE: Duration = Duration::from_secs(125);

/// How many messages RabbitMQ's worker for expired messages may have moved out of a wait queue without
/// having recorded it (`dead_letter_worker_consumer_prefetch`).
pub(super) const MOVED_UNNOTED: usize = 32;

/// How long an ack may be in RabbitMQ's memory only: a classic queue writes acks every 200 ms
/// (`SYNC_INTERVAL` in rabbit_amqqueue_process), and later on a busy machine.
const UNWRITTEN: Duration = Duration::from_millis(500);

/// How long a message may be held after one of its deliveries was answered: another delivery's request
/// may wait for capacity as long as a request takes and then time out, and so may those of the messages
/// that are acked together with it. While the broker works, it confirms a parked delivery within
/// milliseconds. The ack may then be [`UNWRITTEN`].
const IN_HAND: Duration = REQUEST_TIMEOUT
    .saturating_mul(1 + PREFETCH_COUNT as u32)
    .saturating_add(UNWRITTEN)
    .saturating_add(Duration::from_millis(500));

/// The deliveries that `notifiers` notifiers hold if every lane has its maximal number of consumers: an
/// event counts for all its webhooks, a retry for one.
fn in_hand(notifiers: usize) -> usize {
    notifiers * QUEUES * CAPACITY * PREFETCH_COUNT * (Kind::MOST_WEBHOOKS + 1)
}

impl Strike {
    /// The most repeats that this fault can cause.
    ///
    /// - **A notifier is killed**: the broker redelivers what it held, and each of those deliveries may
    ///   have been made already, or wait for a retry as well.
    /// - **A notifier is terminated**: none. It finishes its requests, parks what it hasn't begun, and
    ///   acks before it exits.
    /// - **Connections are lost** (frozen, cut, the broker stops): the same for every notifier, since
    ///   their acks no longer arrive; and a delivery that was parked without a confirm yet is parked a
    ///   second time.
    /// - **The broker restarts**: additionally, what its dead-lettering workers had moved without having
    ///   recorded it.
    /// - **The broker is killed**: additionally, all acks that it had received but not written yet: those
    ///   of the requests of the last half second, and of what each consumer held for longer than that.
    /// - **A node of a cluster is lost**, in whatever way: as if the broker restarted; and additionally the
    ///   acks on their way from it to the other nodes, no more than each consumer holds. Its queues are
    ///   replicated, so it doesn't matter what it had written.
    /// - **PostgreSQL is away**: none. The notifier looks up who wants an event before the first
    ///   attempt, so an event that it hands back then wasn't attempted.
    /// - **A memory alarm**: none. The notifier waits for confirms for longer than it lasts.
    /// - **A queue refuses, or is deleted**: none. A refused message is kept, and published again; a
    ///   deleted one is gone.
    /// - **An exchange is deleted**: the channel that publishes to it is closed, and its unconfirmed
    ///   messages are published again.
    /// - **A receiver is away, a webhook paused or deleted**: none. Each delivery has one message, which
    ///   is acked when the next one is confirmed.
    pub(super) fn bound(&self, requests: &[Request]) -> usize {
        let restart = RETRY_SCHEDULE.len() * MOVED_UNNOTED;
        let lost_connections = 2 * in_hand(self.notifiers);
        let node_lost = lost_connections + restart + in_hand(self.notifiers);
        match self.fault {
            Fault::NotifierKilled | Fault::KilledInAlarm => in_hand(1),
            // One of the two is killed.
            Fault::ThreeNotifiers => in_hand(1),
            Fault::NotifierTerminated => 0,
            Fault::BrokerFrozen => lost_connections,
            Fault::Cut => self.cuts as usize * lost_connections,
            Fault::BrokerStopped => lost_connections + restart,
            Fault::BrokerKilled => {
                let unwritten = self.struck.saturating_sub(UNWRITTEN)..self.struck;
                let lately = requests.iter().filter(|request| unwritten.contains(&request.at));
                lost_connections + restart + lately.count() + in_hand(self.notifiers)
            }
            Fault::NodeKilled | Fault::NodeStopped | Fault::NodeFrozen | Fault::NodeIsolated => {
                node_lost
            }
            Fault::RollingRestart => NODES.len() * node_lost,
            Fault::PrimaryKilled => 0,
            Fault::PostgresKilled | Fault::PostgresFrozen | Fault::MemoryAlarm => 0,
            Fault::ReceiverAway | Fault::WebhookPaused | Fault::WebhookDeleted => 0,
            Fault::QueueRefuses | Fault::QueueDeleted | Fault::StrangersLeft => 0,
            Fault::ExchangeDeleted => in_hand(self.notifiers),
        }
    }

    /// Whether a request at that time may have been made for a message that this fault duplicated: the
    /// fault struck before the message was settled for certain, and wasn't over before the request.
    fn may_duplicate(&self, at: Moment) -> bool {
        self.bound(&[]) > 0 && self.struck <= at + IN_HAND && at <= self.recovered
    }

    /// Whether this fault may have duplicated a message that existed during this period.
    fn may_duplicate_between(&self, from: Moment, to: Moment) -> bool {
        self.bound(&[]) > 0 && self.struck <= to && from <= self.recovered
    }
}

impl History {
    /// Whether a fault explains a delivery's repeat, given its requests: any of them, even one that
    /// failed, may have been for a message that was duplicated.
    ///
    /// A delivery may also be held back, and its message duplicated, without a request. If its receiver
    /// fails, this may happen at any time after the event first reached a receiver, and while the message
    /// was in hand before that. If its receiver is healthy but unproven, or has used up its share of the
    /// capacity, it may only happen until its own first request; and before the event first reached a
    /// receiver, it waited for capacity no longer than a request takes.
    pub(super) fn explains(
        &self,
        webhook: Webhook,
        first_came: Moment,
        requests: &[Moment],
        again: Moment,
    ) -> bool {
        let (in_hand_before, until) = match requests.first() {
            Some(first) if webhook.is_healthy() => (REQUEST_TIMEOUT, *first),
            _ => (IN_HAND, again),
        };
        let from = first_came.saturating_sub(in_hand_before);
        self.strikes.iter().filter(|strike| strike.struck <= again).any(|strike| {
            let mut before = requests.iter().filter(|at| **at < again);
            before.any(|at| strike.may_duplicate(*at)) || strike.may_duplicate_between(from, until)
        })
    }
}
