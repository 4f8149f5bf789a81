//! What happened in a run: all that the ledger is drawn up from.

use std::time::Duration;

use super::{
    cast::{Kind, Webhook},
    plan::Fault,
};

/// A time, since the run began.
pub(super) type Moment = Duration;

/// Everything that happened.
#[derive(Debug, Default)]
pub(super) struct History {
    /// By number.
    pub(super) events: Vec<Published>,
    /// In the order in which they came.
    pub(super) requests: Vec<Request>,
    pub(super) dead: Vec<DeadLetter>,
    pub(super) strikes: Vec<Strike>,
}

/// An event that was published.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    pub(super) kind: Kind,
    /// The broker confirmed it. Where it did not, it may have the event or not: nothing is promised
    /// about it, and it is not published again.
    pub(super) promised: bool,
}

/// What a receiver got.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) number: usize,
    pub(super) webhook: Webhook,
    pub(super) at: Moment,
    /// It was answered 200.
    pub(super) accepted: bool,
}

/// What lay in a dead-letter queue at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeadLetter {
    pub(super) number: usize,
    pub(super) webhook: Webhook,
}

/// A fault that struck.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strike {
    pub(super) fault: Fault,
    /// A notifier was killed.
    pub(super) kills: bool,
    /// How often the connections were cut.
    pub(super) cuts: u32,
    /// How many notifiers there were.
    pub(super) notifiers: usize,
    /// When it began.
    pub(super) struck: Moment,
    /// When what was broken worked again.
    pub(super) healed: Moment,
    /// When every notifier was ready, and events that were published after the healing came through.
    pub(super) recovered: Moment,
}
