//! How many repeats a fault may cause, and which. From the design alone, not from measurements: a
//! run that exceeds it has found a defect, in the product or in what is said here.

use std::time::Duration;

use super::{
    cast::{Kind, Webhook},
    history::{History, Moment, Request, Strike},
    plan::Fault,
};
use crate::harness::cluster::NODES;

/// The queues of a run, each with two lanes: its events and its retries.
pub(super) const QUEUES: usize = 3;

/// Of each queue: the most requests under way, and so the most consumers of each of its two lanes.
/// Few, so that what is slow or comes in a burst meets the limit; enough that each webhook that wants
/// an event can be asked at the same time.
pub(super) const CAPACITY: usize = 8;

/// The messages that each consumer has in hand: settled and not acked yet, waiting for a confirm,
/// under way. More than one, so that some wait behind others; no more, because each is a repeat that
/// a fault may cause.
pub(super) const PREFETCH_COUNT: usize = 2;

/// Longer than the second after which a receiver counts as slow, so that one that hangs does.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_millis(1_500);

/// One wait queue for each.
pub(super) const RETRY_SCHEDULE: [&str; 4] = ["500ms", "1s", "2s", "4s"];

/// Short pauses: what they hold back should move on within the run. Each has one of the wait queues.
pub(super) const CIRCUIT_BREAKER: &str = "5,500ms,1s";

/// Of what goes to a receiver that is never there, its circuit breaker lets few attempts through, so
/// that most of it ends by age. Everything else finds its receiver within this, whatever breaks on
/// the way: three attempts and the waits between them take 6 s; a receiver's outage, with a pause
/// after each of a dozen failures, another 15; the longest outage of the broker, and the way back to
/// readiness on a busy machine, 40; and a minute, if what needs a backlog can't have one then.
pub(super) const DELIVERY_MAX_AGE: Duration = Duration::from_secs(125);

/// What RabbitMQ's worker that moves expired messages out of a wait queue may have moved and not
/// yet taken note of (`dead_letter_worker_consumer_prefetch`).
pub(super) const MOVED_UNNOTED: usize = 32;

/// How long an ack may be in RabbitMQ's memory only: a classic queue writes them down every 200 ms
/// (`SYNC_INTERVAL` in rabbit_amqqueue_process), give or take what a busy machine adds.
const UNWRITTEN: Duration = Duration::from_millis(500);

/// How long a message may be in hand after one of its deliveries was answered: a neighbour's request
/// may wait for room as long as a request takes, and then run into its time-out, and so may those of
/// the messages that it is acked together with; what is parked the broker confirms in milliseconds
/// while it is well; and then the ack is [`UNWRITTEN`].
const IN_HAND: Duration = REQUEST_TIMEOUT
    .saturating_mul(1 + PREFETCH_COUNT as u32)
    .saturating_add(UNWRITTEN)
    .saturating_add(Duration::from_millis(500));

/// The deliveries in hand of so many notifiers, if every lane has grown as far as it may: an event
/// stands for all its webhooks, a retry for one.
fn in_hand(notifiers: usize) -> usize {
    notifiers * QUEUES * CAPACITY * PREFETCH_COUNT * (Kind::MOST_WEBHOOKS + 1)
}

impl Strike {
    /// The most repeats that this fault can cause.
    ///
    /// - **A notifier is killed**: the broker hands out again what it had in hand, and each of those
    ///   deliveries may have been made, or be waiting for a retry as well.
    /// - **A notifier is terminated**: none. It finishes its requests, parks what it has not begun,
    ///   and acks before it leaves.
    /// - **Connections are lost** (frozen, cut, the broker stops): the same for every notifier, as
    ///   the acks of what they have in hand no longer arrive; and what they were parking, of which
    ///   the confirm did not arrive, is parked a second time.
    /// - **The broker restarts**: besides, what its dead-lettering workers had moved and not noted.
    /// - **The broker is killed**: besides, all that it had not yet written down of what it was
    ///   told: the requests of the last half second, and what each consumer had in hand for
    ///   longer than that.
    /// - **A node of a cluster goes**, in whatever way: as if the broker restarted; and the acks that were
    ///   on their way from it to the other nodes, no more than what each consumer has in hand. Its queues
    ///   are replicated: what it had written down matters to nobody.
    /// - **PostgreSQL is away**: none. Who wants an event is asked before the first attempt; what is
    ///   handed back then was not begun.
    /// - **A memory alarm**: none. Confirms are waited for, longer than it lasts.
    /// - **A queue refuses, or is deleted**: none. What is refused is kept, and published again; what is
    ///   deleted is gone.
    /// - **An exchange is deleted**: the channel that publishes to it ends, and what it had not confirmed is
    ///   published again.
    /// - **A receiver is away, a webhook paused or deleted**: none. Each delivery has one message, and
    ///   that is acked when the next one is confirmed.
    pub(super) fn bound(&self, requests: &[Request]) -> usize {
        let restart = RETRY_SCHEDULE.len() * MOVED_UNNOTED;
        let lost_connections = 2 * in_hand(self.notifiers);
        let node_lost = lost_connections + restart + in_hand(self.notifiers);
        match self.fault {
            Fault::NotifierKilled | Fault::KilledInAlarm => in_hand(1),
            // One of the two.
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

    /// Whether a request at that time may have been made for a message that this fault doubled: the
    /// fault struck before the message was surely settled, and was not over before.
    fn may_double(&self, at: Moment) -> bool {
        self.bound(&[]) > 0 && self.struck <= at + IN_HAND && at <= self.recovered
    }

    /// Whether this fault may have doubled a message that was there from that time to that.
    fn may_double_between(&self, from: Moment, to: Moment) -> bool {
        self.bound(&[]) > 0 && self.struck <= to && from <= self.recovered
    }
}

impl History {
    /// Whether a fault explains why a delivery came again, for which these requests were made: any
    /// of them, also one that failed, may have been for a message that is there twice since.
    ///
    /// A delivery may be held back, and its message be doubled without a request. To a receiver that
    /// fails this may happen at any time since its event first came to anybody, and while it was in
    /// hand before that. To a healthy one, of which nothing is known yet or which has its share of the
    /// capacity, only until its own first request; and before the event came to anybody it waited for
    /// room, as long as a request takes.
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
            before.any(|at| strike.may_double(*at)) || strike.may_double_between(from, until)
        })
    }
}
