//! Which faults strike, in which order, and for how long. Only the seed determines this, never what
//! happens, so that the same seed causes the same faults.

use std::{collections::BTreeSet, time::Duration};

use fastrand::Rng;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fault {
    NotifierKilled,
    NotifierTerminated,
    /// Two more notifiers join, one after the other, and two of the three end, as the step says.
    ThreeNotifiers,
    BrokerKilled,
    BrokerStopped,
    PostgresKilled,
    BrokerFrozen,
    PostgresFrozen,
    /// The broker is short of memory: it accepts no messages, and confirms none.
    MemoryAlarm,
    /// The same, and a notifier is killed together with everything that it couldn't publish.
    KilledInAlarm,
    /// The network is cut several times, in the middle of a message that a notifier publishes.
    Cut,
    /// A receiver answers 503.
    ReceiverAway,
    /// A webhook is paused, and resumed.
    WebhookPaused,
    /// A webhook is deleted while its receiver answers 503 and deliveries wait for it, and is registered
    /// again.
    WebhookDeleted,
    /// A policy makes one of our queues refuse messages, and is removed.
    QueueRefuses,
    /// One of our queues is deleted with its messages.
    QueueDeleted,
    /// One of our exchanges is deleted.
    ExchangeDeleted,
    /// Another notifier has ended and left deliveries behind whose retry queue is gone.
    StrangersLeft,
    /// A node of a RabbitMQ cluster crashes.
    NodeKilled,
    /// A node stops in order.
    NodeStopped,
    /// A node freezes with open sockets, until it is killed.
    NodeFrozen,
    /// A node is cut off from the others, and sees that it is in the minority.
    NodeIsolated,
    /// All nodes are restarted, one after another.
    RollingRestart,
    /// PostgreSQL's primary crashes, and its standby is promoted.
    PrimaryKilled,
}

impl Fault {
    pub(super) const ALL: [Self; 18] = [
        Self::NotifierKilled,
        Self::NotifierTerminated,
        Self::ThreeNotifiers,
        Self::BrokerKilled,
        Self::BrokerStopped,
        Self::PostgresKilled,
        Self::BrokerFrozen,
        Self::PostgresFrozen,
        Self::MemoryAlarm,
        Self::KilledInAlarm,
        Self::Cut,
        Self::ReceiverAway,
        Self::WebhookPaused,
        Self::WebhookDeleted,
        Self::QueueRefuses,
        Self::QueueDeleted,
        Self::ExchangeDeleted,
        Self::StrangersLeft,
    ];

    pub(super) const OF_CLUSTERS: [Self; 12] = [
        Self::NodeKilled,
        Self::NodeStopped,
        Self::NodeFrozen,
        Self::NodeIsolated,
        Self::RollingRestart,
        Self::PrimaryKilled,
        Self::NotifierKilled,
        Self::NotifierTerminated,
        Self::ThreeNotifiers,
        Self::ReceiverAway,
        Self::WebhookPaused,
        Self::WebhookDeleted,
    ];

    /// The longest time during which nothing may be delivered from a queue, if there is a limit: the other
    /// nodes of a cluster work meanwhile.
    pub(super) fn longest_gap(self) -> Option<Duration> {
        match self {
            Self::NodeKilled | Self::NodeStopped | Self::RollingRestart | Self::PrimaryKilled => {
                Some(Duration::from_secs(5))
            }
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::NotifierKilled => "notifier killed",
            Self::NotifierTerminated => "notifier terminated",
            Self::ThreeNotifiers => "two of three notifiers ended",
            Self::BrokerKilled => "broker killed",
            Self::BrokerStopped => "broker stopped",
            Self::PostgresKilled => "PostgreSQL killed",
            Self::BrokerFrozen => "broker's network frozen",
            Self::PostgresFrozen => "PostgreSQL's network frozen",
            Self::MemoryAlarm => "broker's memory alarm",
            Self::KilledInAlarm => "notifier killed in an alarm",
            Self::Cut => "network cut in a message",
            Self::ReceiverAway => "receiver away",
            Self::WebhookPaused => "webhook paused",
            Self::WebhookDeleted => "webhook deleted",
            Self::QueueRefuses => "queue refuses messages",
            Self::QueueDeleted => "queue deleted",
            Self::ExchangeDeleted => "exchange deleted",
            Self::StrangersLeft => "another's retry queue gone",
            Self::NodeKilled => "node killed",
            Self::NodeStopped => "node stopped",
            Self::NodeFrozen => "node frozen",
            Self::NodeIsolated => "node cut off",
            Self::RollingRestart => "nodes restarted in turn",
            Self::PrimaryKilled => "primary killed, standby promoted",
        }
    }

    /// Whether events that were in flight may arrive later than others that were published after them,
    /// because notifiers hand them back or there are several. Faults of receivers and webhooks must not
    /// change the order.
    pub(super) fn disturbs_order(self) -> bool {
        !matches!(self, Self::ReceiverAway | Self::WebhookPaused | Self::WebhookDeleted)
    }

    /// How long it stays broken, in milliseconds. A frozen network is noticed after 4 to 6 s.
    fn broken(self) -> (u64, u64) {
        match self {
            Self::NotifierKilled | Self::NotifierTerminated | Self::Cut => (0, 1),
            Self::QueueDeleted | Self::ExchangeDeleted | Self::StrangersLeft => (0, 1),
            // Longer than it takes to publish a refused message elsewhere.
            Self::QueueRefuses => (2_000, 8_000),
            Self::BrokerFrozen | Self::PostgresFrozen => (500, 6_500),
            // The other nodes notice after 5 s.
            Self::NodeFrozen | Self::NodeIsolated => (2_000, 15_000),
            Self::NodeKilled | Self::NodeStopped | Self::RollingRestart | Self::PrimaryKilled => {
                (1_000, 5_000)
            }
            // Long enough that a circuit breaker opens and deliveries wait, and shorter than the schedule,
            // whose last attempt is made after 7.5 s.
            Self::ReceiverAway | Self::WebhookPaused | Self::WebhookDeleted => (2_500, 5_000),
            Self::ThreeNotifiers
            | Self::BrokerKilled
            | Self::BrokerStopped
            | Self::PostgresKilled
            | Self::MemoryAlarm
            | Self::KilledInAlarm => (500, 2_000),
        }
    }
}

/// One fault, and the quiet time before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) fault: Fault,
    /// How long it stays broken.
    pub(super) broken: Duration,
    /// How long everything works before that. Longer than a second: RabbitMQ itself loses a quorum queue
    /// that was declared less than a second before a SIGKILL.
    pub(super) peace: Duration,
    /// The number of the notifier, modulo how many there are.
    pub(super) victim: usize,
    /// [`Fault::ThreeNotifiers`]: whether the first ends by SIGKILL and the second by SIGTERM, or vice
    /// versa.
    pub(super) kills: bool,
    /// [`Fault::Cut`]: how often.
    pub(super) cuts: u32,
    /// The number of the queue or exchange, modulo how many there are.
    pub(super) target: usize,
}

/// The steps, without end: round after round, each with every fault once, shuffled.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    random: Rng,
    faults: &'static [Fault],
    deck: Vec<Fault>,
}

impl Plan {
    pub(super) fn of(seed: u64, faults: &'static [Fault]) -> Self {
        Self { random: Rng::with_seed(seed), faults, deck: Vec::new() }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck.extend(self.faults);
            self.random.shuffle(&mut self.deck);
        }
        let fault = self.deck.pop()?;
        let (shortest, longest) = fault.broken();
        Some(Step {
            fault,
            broken: Duration::from_millis(self.random.u64(shortest..longest)),
            peace: Duration::from_millis(self.random.u64(1_200..1_600)),
            victim: self.random.usize(..2),
            kills: self.random.bool(),
            cuts: self.random.u32(3..6),
            target: self.random.usize(..60),
        })
    }
}

fn steps(seed: u64, count: usize) -> Vec<Step> {
    Plan::of(seed, &Fault::ALL).take(count).collect()
}

#[test]
fn the_same_seed_makes_the_same_plan_and_another_seed_another() {
    assert_eq!(steps(7, 50), steps(7, 50));
    assert_ne!(steps(7, 50), steps(8, 50));
}

#[test]
fn each_round_has_every_fault_once() {
    for seed in 0..100 {
        for round in steps(seed, 3 * Fault::ALL.len()).chunks(Fault::ALL.len()) {
            let faults: BTreeSet<_> = round.iter().map(|step| step.fault).collect();
            assert_eq!(faults.len(), Fault::ALL.len(), "seed {seed}");
        }
    }
}

#[test]
fn some_freezes_are_long_enough_to_be_noticed_and_others_thaw_before() {
    let frozen = |step: &Step| step.fault == Fault::BrokerFrozen;
    let lengths: Vec<_> = steps(1, 1_000).into_iter().filter(frozen).collect();
    assert!(lengths.iter().any(|step| step.broken > Duration::from_secs(6)));
    assert!(lengths.iter().any(|step| step.broken < Duration::from_secs(4)));
    assert!(steps(1, 1_000).iter().all(|step| step.peace >= Duration::from_millis(1_200)));
}
