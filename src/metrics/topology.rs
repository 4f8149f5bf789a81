//! Counts of lost and unusable queues, exchanges and bindings.

use anyhow::Result;
use prometheus::{IntCounter, IntGauge};

use super::maker::MetricMaker;

/// The kind of an object of the topology.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A queue. Losing it loses its messages.
    Queue,
    /// An exchange. Losing it loses its bindings.
    Exchange,
    /// The binding of a queue.
    Binding,
}

impl ObjectKind {
    const ALL: [Self; 3] = [Self::Queue, Self::Exchange, Self::Binding];

    /// The label in metrics and in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Exchange => "exchange",
            Self::Binding => "binding",
        }
    }
}

/// The counts of lost and unusable objects.
#[derive(Clone, Debug)]
pub struct TopologyCounts {
    lost: [IntCounter; 3],
    /// How many objects are missing now, or differ from what we need.
    pub unusable: IntGauge,
}

impl TopologyCounts {
    pub(super) fn new(make: &MetricMaker<'_>) -> Result<Self> {
        let lost = make.counter(
            "webhook_topology_lost_total",
            "Our queues (with their messages), exchanges and bindings that somebody else deleted",
            &["object"],
        )?;
        let unusable = make.gauge(
            "webhook_topology_unusable",
            "Queues, exchanges and bindings that we need, but that are missing or differ from what we need",
            &[],
        )?;
        Ok(Self {
            lost: ObjectKind::ALL.map(|object| lost.with_label_values(&[object.label()])),
            unusable: unusable.with_label_values::<&str>(&[]),
        })
    }

    /// The counter of lost objects of this kind.
    #[must_use]
    pub fn lost(&self, object: ObjectKind) -> &IntCounter {
        &self.lost[object as usize]
    }
}
