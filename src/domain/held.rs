//! Why a delivery got no attempt, as words of metrics, tables and the delivery log.

use super::limits::Limit;
use super::pace::Hold;
use super::vocabulary::Vocabulary;

/// Why a delivery got no attempt when it came, and went to its receiver's backlog instead; or, if the
/// reason lies in its event or in ourselves, to the retry lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "most are those of Hold")]
pub enum Held {
    Share,
    Group,
    Slow,
    Unproven,
    Ramp,
    Full,
    Breaker,
    RetryAfter,
    MaxInFlight,
    Rate,
    Elsewhere,
    Behind,
    Paused,
    /// Its event was split: so many webhooks want the event that each delivery is a message of its own.
    Split,
    /// The process was shutting down, the deliveries of its event took too long, or PostgreSQL couldn't
    /// say whether its webhook may still get it.
    Interrupted,
    /// The proxy of EGRESS_PROXY let no request through.
    Proxy,
}

impl Held {
    /// Every reason, so that each metric series exists from the start.
    pub const ALL: [Self; 16] = [
        Self::Share,
        Self::Group,
        Self::Slow,
        Self::Unproven,
        Self::Ramp,
        Self::Full,
        Self::Breaker,
        Self::RetryAfter,
        Self::MaxInFlight,
        Self::Rate,
        Self::Elsewhere,
        Self::Behind,
        Self::Paused,
        Self::Split,
        Self::Interrupted,
        Self::Proxy,
    ];

    /// The word in labels and tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Share => "share",
            Self::Group => "group",
            Self::Slow => "slow",
            Self::Unproven => "unproven",
            Self::Ramp => "ramp",
            Self::Full => "full",
            Self::Breaker => "breaker",
            Self::RetryAfter => "retry_after",
            Self::MaxInFlight => Limit::InFlight.label(),
            Self::Rate => Limit::Rate.label(),
            Self::Elsewhere => "elsewhere",
            Self::Behind => "behind",
            Self::Paused => "paused",
            Self::Split => "split",
            Self::Interrupted => "interrupted",
            Self::Proxy => "proxy",
        }
    }
}

impl Vocabulary for Held {
    const WORDS: &'static [Self] = &Self::ALL;

    fn word(self) -> &'static str {
        self.label()
    }
}

impl From<Hold> for Held {
    fn from(hold: Hold) -> Self {
        match hold {
            Hold::Share => Self::Share,
            Hold::Group => Self::Group,
            Hold::Slow => Self::Slow,
            Hold::Unproven => Self::Unproven,
            Hold::Ramp => Self::Ramp,
            Hold::Full => Self::Full,
            Hold::Breaker(_) => Self::Breaker,
            Hold::StayAway(_) => Self::RetryAfter,
            Hold::Limit(Limit::InFlight, _) => Self::MaxInFlight,
            Hold::Limit(Limit::Rate, _) => Self::Rate,
            Hold::Elsewhere => Self::Elsewhere,
            Hold::Behind => Self::Behind,
            Hold::Paused => Self::Paused,
        }
    }
}

/// Why a parked delivery was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// The webhook was deleted.
    Deleted,
    /// The webhook was disabled.
    Disabled,
}

impl Dropped {
    /// The word in labels and tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Disabled => "disabled",
        }
    }
}

impl Vocabulary for Dropped {
    const WORDS: &'static [Self] = &[Self::Deleted, Self::Disabled];

    fn word(self) -> &'static str {
        self.label()
    }
}
