//! What of the queues, exchanges and bindings is lost or can't be had.

use anyhow::Result;
use prometheus::{IntCounter, IntGauge};

use super::maker::Maker;

/// What an object of the topology is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A queue; with it goes what it holds.
    Queue,
    /// An exchange; with it go its bindings.
    Exchange,
    /// The binding of a queue.
    Binding,
}

impl ObjectKind {
    const ALL: [Self; 3] = [Self::Queue, Self::Exchange, Self::Binding];

    /// The word for it, in metrics and in the log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Exchange => "exchange",
            Self::Binding => "binding",
        }
    }
}

/// Where that is counted.
#[derive(Clone, Debug)]
pub struct TopologyCounts {
    lost: [IntCounter; 3],
    /// How many of our objects are not there now, or are not what we need.
    pub unusable: IntGauge,
}

impl TopologyCounts {
    pub(super) fn new(make: &Maker<'_>) -> Result<Self> {
        let lost = make.counter(
            "webhook_topology_lost_total",
            "Queues (with what they held), exchanges and bindings of ours that somebody else deleted",
            &["object"],
        )?;
        let unusable = make.gauge(
            "webhook_topology_unusable",
            "Queues, exchanges and bindings that are needed, and missing or not what is needed",
            &[],
        )?;
        Ok(Self {
            lost: ObjectKind::ALL.map(|object| lost.with_label_values(&[object.label()])),
            unusable: unusable.with_label_values::<&str>(&[]),
        })
    }

    /// How many of these were lost.
    #[must_use]
    pub fn lost(&self, object: ObjectKind) -> &IntCounter {
        &self.lost[object as usize]
    }
}
