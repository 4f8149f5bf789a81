//! A model of the rules, independent of the code under test: it counts by itself, and decides by other
//! formulas.

use std::time::Duration;

use super::scenario::Failure;
use crate::domain::pace::Hold;
use crate::domain::receiver::Class;
use crate::domain::time::Moment;

const SECOND: Duration = Duration::from_secs(1);

/// The failures in a row that open a circuit breaker, and its shortest and longest pause.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) failures: usize,
    pub(super) shortest: Duration,
    pub(super) longest: Duration,
}

/// A circuit breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerState {
    Closed,
    Open(Moment),
    Probing,
}

/// One receiver's state, as far as the rules depend on it.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) class: Class,
    prompt_since: Moment,
    relapses: u32,
    /// The times of the quick answers since the last slow request.
    quick_answers: Vec<Moment>,
    /// The events of the failed attempts since the last success.
    failures: Vec<usize>,
    failing_since: Moment,
    succeeded_at: Moment,
    breaker: BreakerState,
    /// How many requests may be in flight.
    pub(super) window: usize,
    doubles: bool,
    halved_at: Moment,
    stays_until: Moment,
    /// How often its circuit breaker opened after having been closed.
    pub(super) outages: usize,
}

/// What the circuit breaker has to do: nothing, close, or open for a time within these bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Nothing,
    Closes,
    Opens(Duration, Duration),
}

impl Default for Model {
    fn default() -> Self {
        Self {
            class: Class::Unproven,
            prompt_since: Moment::ZERO,
            relapses: 0,
            quick_answers: Vec::new(),
            failures: Vec::new(),
            failing_since: Moment::ZERO,
            succeeded_at: Moment::ZERO,
            breaker: BreakerState::Closed,
            window: usize::MAX,
            doubles: false,
            halved_at: Moment::ZERO,
            stays_until: Moment::ZERO,
            outages: 0,
        }
    }
}

impl Model {
    /// Records that a request begins. Returns whether it is a probe.
    pub(super) fn begins(&mut self) -> bool {
        let is_probe = matches!(self.breaker, BreakerState::Open(_));
        if is_probe {
            self.breaker = BreakerState::Probing;
        }
        is_probe
    }

    /// Records that a request takes over a second.
    pub(super) fn is_late(&mut self, now: Moment) {
        if self.class == Class::Prompt {
            let is_long_ago = now >= self.prompt_since + 3_600 * SECOND;
            self.relapses = if is_long_ago { 1 } else { self.relapses + 1 };
        }
        self.class = Class::Slow;
        self.quick_answers.clear();
    }

    fn answers_soon(&mut self, now: Moment) {
        let is_proven = match self.class {
            Class::Prompt => return,
            Class::Unproven => true,
            Class::Slow => {
                self.quick_answers.push(now);
                let wanted = (30 * SECOND).saturating_mul(1 << self.relapses.clamp(1, 20) >> 1);
                let lasted = now - self.quick_answers[0];
                self.quick_answers.len() >= 3 && lasted >= wanted.min(3_600 * SECOND)
            }
        };
        if is_proven {
            self.class = Class::Prompt;
            self.prompt_since = now;
            self.quick_answers.clear();
        }
    }

    /// Records that a request ends, while `in_flight` requests (including itself) are in flight.
    pub(super) fn ends(
        &mut self,
        (began, is_probe, in_flight): (Moment, bool, usize),
        (event, failure): (usize, Option<Failure>),
        bounds: Option<Bounds>,
        now: Moment,
    ) -> Expected {
        if now - began <= SECOND {
            self.answers_soon(now);
        }
        let Some(failure) = failure else {
            self.failures.clear();
            self.succeeded_at = now;
            if self.breaker != BreakerState::Closed {
                self.breaker = BreakerState::Closed;
                (self.window, self.doubles, self.halved_at) = (1, true, now);
                return Expected::Closes;
            }
            if self.doubles {
                self.window *= 2;
            } else if in_flight >= self.window {
                self.window += 1;
            }
            if self.window >= 1_024 {
                (self.window, self.doubles) = (usize::MAX, false);
            }
            return Expected::Nothing;
        };
        self.doubles = false;
        if failure.is_overload && (self.window == usize::MAX || began >= self.halved_at) {
            self.window = (self.window.min(in_flight) / 2).max(1);
            self.halved_at = now;
        }
        if let Some(wanted) = failure.retry_after {
            self.stays_until = self.stays_until.max(now + wanted.min(3_600 * SECOND));
        }
        if self.failures.is_empty() {
            self.failing_since = began.max(self.succeeded_at);
        }
        self.failures.push(event);
        let Some(bounds) = bounds else { return Expected::Nothing };
        let opens = match self.breaker {
            BreakerState::Open(_) => false,
            BreakerState::Probing => is_probe,
            BreakerState::Closed => {
                let are_several = self.failures.iter().any(|other| *other != self.failures[0]);
                let is_long = now - self.failing_since >= SECOND;
                are_several && is_long && self.failures.len() >= bounds.failures
            }
        };
        if !opens {
            return Expected::Nothing;
        }
        self.outages += usize::from(self.breaker == BreakerState::Closed);
        // A failed attempt proves the outage only up to its own begin.
        let pause = (began.saturating_sub(self.failing_since) / 4).min(bounds.longest);
        Expected::Opens((pause * 79 / 100).max(bounds.shortest), pause.max(bounds.shortest))
    }

    /// Records that the breaker opened until then, as expected.
    pub(super) fn opens(&mut self, until: Moment) {
        self.breaker = BreakerState::Open(until);
    }

    pub(super) fn is_given_back(&mut self, is_probe: bool) {
        if self.breaker == BreakerState::Probing && is_probe {
            self.breaker = BreakerState::Open(Moment::ZERO);
        }
    }
}

/// The requests that use one queue's capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) used: usize,
    pub(super) slow: usize,
    pub(super) unproven: usize,
    /// The requests of each group: all, to slow and to unproven receivers.
    groups: Vec<[usize; 3]>,
    /// The requests of each webhook.
    pub(super) webhooks: Vec<usize>,
}

impl Usage {
    pub(super) fn new(groups: usize, webhooks: usize) -> Self {
        let (groups, webhooks) = (vec![[0; 3]; groups], vec![0; webhooks]);
        Self { used: 0, slow: 0, unproven: 0, groups, webhooks }
    }

    pub(super) fn add(&mut self, class: Class, group: usize, webhook: usize) {
        let (slow, unproven) = (class == Class::Slow, class == Class::Unproven);
        self.used += 1;
        self.slow += usize::from(slow);
        self.unproven += usize::from(unproven);
        let of_group = &mut self.groups[group];
        of_group[0] += 1;
        of_group[1] += usize::from(slow);
        of_group[2] += usize::from(unproven);
        self.webhooks[webhook] += 1;
    }

    pub(super) fn remove(&mut self, class: Class, group: usize, webhook: usize) {
        let (slow, unproven) = (class == Class::Slow, class == Class::Unproven);
        self.used -= 1;
        self.slow -= usize::from(slow);
        self.unproven -= usize::from(unproven);
        let of_group = &mut self.groups[group];
        of_group[0] -= 1;
        of_group[1] -= usize::from(slow);
        of_group[2] -= usize::from(unproven);
        self.webhooks[webhook] -= 1;
    }
}

/// While this many requests to slow receivers are in flight, half of the capacity, no other begins.
pub(super) fn half(capacity: usize) -> usize {
    capacity - capacity / 2
}

/// While this many requests to slow and unproven receivers are in flight, three quarters of the
/// capacity, no other to them begins. With two places or more, the rest is for prompt receivers.
pub(super) fn three_quarters(capacity: usize) -> usize {
    (capacity * 3 / 4).max(1)
}

/// What stands against an attempt: every reason for which it may be refused or wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Obstacles {
    class: Class,
    is_full: bool,
    stays_away: bool,
    is_open: bool,
    fills_window: bool,
    has_share: bool,
    group_has_share: bool,
    class_has_share: bool,
    pub(super) is_limited: bool,
    /// Whether it may have to wait a moment for another backlog's turn.
    pub(super) may_yield: bool,
}

impl Obstacles {
    /// The obstacles for an attempt to a webhook of this group.
    pub(super) fn of(
        model: &Model,
        usage: &Usage,
        capacity: usize,
        (group, webhook, in_flight): (usize, usize, usize),
        now: Moment,
    ) -> Self {
        let free = capacity.saturating_sub(usage.used).max(1);
        let [all, slow, unproven] = usage.groups[group];
        let others = usage.slow + usage.unproven;
        let (half, three_quarters) = (half(capacity), three_quarters(capacity));
        let class_has_share = match model.class {
            Class::Prompt => false,
            Class::Slow => {
                let is_over = usage.slow >= half || others >= three_quarters;
                is_over || slow >= half.saturating_sub(usage.slow).max(1)
            }
            Class::Unproven => {
                let is_over = others >= three_quarters || usage.webhooks[webhook] > 0;
                is_over || unproven >= three_quarters.saturating_sub(others).max(1)
            }
        };
        Self {
            class: model.class,
            is_full: usage.used >= capacity,
            stays_away: now < model.stays_until,
            is_open: match model.breaker {
                BreakerState::Closed => false,
                BreakerState::Open(until) => now < until,
                BreakerState::Probing => true,
            },
            fills_window: in_flight >= model.window,
            has_share: usage.webhooks[webhook] >= free,
            group_has_share: all >= 3 * free,
            class_has_share,
            is_limited: false,
            may_yield: false,
        }
    }

    /// Whether nothing but a free place may be missing.
    fn is_clear(self) -> bool {
        let is_away = self.stays_away || self.is_open || self.fills_window;
        !is_away && !self.has_share && !self.group_has_share && !self.class_has_share
    }

    pub(super) fn begins(self) -> bool {
        self.is_clear() && !self.is_full && !self.is_limited
    }

    /// Whether it waits for a place. The webhook's limits are checked only when it is called.
    pub(super) fn waits(self) -> bool {
        self.is_clear() && self.is_full && self.class == Class::Prompt
    }

    /// Whether this is a valid reason to refuse it.
    pub(super) fn is_refused_for(self, hold: Hold) -> bool {
        match hold {
            Hold::StayAway(_) => self.stays_away,
            Hold::Breaker(_) => self.is_open,
            Hold::Ramp => self.fills_window,
            Hold::Share => self.has_share,
            Hold::Group => self.group_has_share,
            Hold::Slow => self.class == Class::Slow && self.class_has_share,
            Hold::Unproven => self.class == Class::Unproven && self.class_has_share,
            Hold::Full => self.is_full && self.class != Class::Prompt,
            Hold::Limit(..) => self.is_limited || self.may_yield,
            Hold::Elsewhere | Hold::Behind | Hold::Paused => false,
        }
    }
}
