//! Why a delivery got no attempt.

use super::limits::Limit;
use super::pace::Hold;
use super::vocabulary::Vocabulary;

/// Why a delivery got no attempt when it came, but goes to its receiver's backlog; or to the retry
/// lane, where it was its event's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its webhook has its share of the requests under way.
    Share,
    /// Its webhook's account or host has.
    Group,
    /// Its receiver is slow, and the slow have their share.
    Slow,
    /// Its receiver has not answered yet.
    Unproven,
    /// Its receiver had too many requests, and gets fewer now.
    Ramp,
    /// As many requests are under way as may be, and its receiver is not prompt.
    Full,
    /// Its receiver's circuit breaker is open.
    Breaker,
    /// Its receiver asked us to stay away.
    RetryAfter,
    /// Its webhook's `max_in_flight` is reached.
    MaxInFlight,
    /// Its webhook's `rate_per_second` is reached.
    Rate,
    /// Another instance sends all that its webhook's limits allow.
    Elsewhere,
    /// Others wait in its receiver's backlog and come first, and nothing holds those up.
    Behind,
    /// Its webhook is paused.
    Paused,
    /// Its event was split.
    Split,
    /// Shutdown, or its event took too long.
    Interrupted,
    /// EGRESS_PROXY lets nobody through.
    Proxy,
}

impl Held {
    /// Every reason, so that each series exists from the start.
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
    /// The webhook is no longer there.
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
