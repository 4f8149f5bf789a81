//! The reasons why a receiver gets no attempt now.

use std::fmt;
use std::time::Duration;

use crate::domain::limits::Limit;

/// Why no attempt may be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The webhook has used up its share of the capacity.
    Share,
    /// Its account or host has used up its share.
    Group,
    /// The slow receivers have used up their share, or its account or host its part of that share.
    Slow,
    /// The receiver hasn't answered yet and has one request in flight, or the unproven receivers have
    /// used up their share.
    Unproven,
    /// The receiver was overloaded, and has as many requests in flight as its ramp allows now.
    Ramp,
    /// The capacity is used up, and the delivery doesn't wait for a place: its receiver isn't prompt, or
    /// the process is shutting down.
    Full,
    /// The circuit breaker stays open for this long, or waits for the result of its probe.
    Breaker(Duration),
    /// The receiver asked for no requests for this long (`Retry-After`).
    StayAway(Duration),
    /// The webhook's own limit is reached for at least this long; zero means until a request ends.
    Limit(Limit, Duration),
    /// Another instance sends all requests that the webhook's limits allow.
    Elsewhere,
    /// Earlier deliveries wait in the receiver's backlog and come first.
    Behind,
    /// The webhook is paused.
    Paused,
}

impl Hold {
    /// The minimum time until an attempt may be possible.
    #[must_use]
    pub const fn remaining(self) -> Duration {
        match self {
            Self::Share
            | Self::Group
            | Self::Slow
            | Self::Unproven
            | Self::Ramp
            | Self::Full
            | Self::Elsewhere
            | Self::Behind
            | Self::Paused => Duration::ZERO,
            Self::Breaker(remaining) | Self::StayAway(remaining) | Self::Limit(_, remaining) => {
                remaining
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Share => "the webhook has used up its share of the capacity",
            Self::Group => "its account or host has used up its share of the capacity",
            Self::Slow => {
                "the receiver is slow, and slow receivers have used up their share of the capacity"
            }
            Self::Unproven => "the receiver has not answered yet",
            Self::Ramp => "the receiver was overloaded, and gets fewer requests for a while",
            Self::Full => "the capacity is used up",
            Self::Breaker(_) => "the receiver's circuit breaker is open",
            Self::StayAway(_) => "the receiver asked us to wait (Retry-After)",
            Self::Elsewhere => {
                "another instance sends all requests that the webhook's limits allow"
            }
            Self::Behind => "earlier deliveries wait in the receiver's backlog",
            Self::Paused => "the webhook is paused",
            Self::Limit(Limit::InFlight, _) => "the webhook's max_in_flight is reached",
            Self::Limit(Limit::Rate, _) => "the webhook's rate_per_second is reached",
        })
    }
}
