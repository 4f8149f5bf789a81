//! The types of queues that RabbitMQ has for events.

use std::fmt;
use std::str::FromStr;

use crate::domain::shown::quoted;

/// A queue's type (`x-queue-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// Replicated if RabbitMQ is a cluster.
    Quorum,
    /// On one node.
    Classic,
}

impl QueueType {
    /// The name in RabbitMQ.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

impl fmt::Display for QueueType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.label())
    }
}

impl FromStr for QueueType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Quorum, Self::Classic];
        let named = all.into_iter().find(|kind| kind.label() == text);
        named.ok_or_else(|| format!("{} is neither quorum nor classic", quoted(text)))
    }
}
