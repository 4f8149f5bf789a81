//! What the rules allow a receiver and a queue, computed independently: counted anew, and decided by
//! other formulas than those under test.

use std::time::Duration;

use super::cast::Failure;
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
enum Gate {
    Closed,
    Open(Moment),
    Probing,
}

/// One receiver's history, as far as the rules look back.
#[derive(Clone, Debug)]
pub(super) struct Book {
    pub(super) class: Class,
    prompt_since: Moment,
    relapses: u32,
    /// When quick answers came since the last slow request.
    quick_answers: Vec<Moment>,
    /// The events that failed since the last success.
    failures: Vec<usize>,
    failing_since: Moment,
    succeeded_at: Moment,
    gate: Gate,
    /// The most that may be under way.
    pub(super) window: usize,
    doubles: bool,
    halved_at: Moment,
    stays_until: Moment,
    /// How often its breaker opened after having been closed.
    pub(super) outages: usize,
}

/// What the circuit breaker does: nothing, close, or open for a time within these bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Nothing,
    Closes,
    Opens(Duration, Duration),
}

impl Default for Book {
    fn default() -> Self {
        Self {
            class: Class::Unproven,
            prompt_since: Moment::ZERO,
            relapses: 0,
            quick_answers: Vec::new(),
            failures: Vec::new(),
            failing_since: Moment::ZERO,
            succeeded_at: Moment::ZERO,
            gate: Gate::Closed,
            window: usize::MAX,
            doubles: false,
            halved_at: Moment::ZERO,
            stays_until: Moment::ZERO,
            outages: 0,
        }
    }
}

impl Book {
    /// Returns whether it is a probe.
    pub(super) fn begins(&mut self) -> bool {
        let is_probe = matches!(self.gate, Gate::Open(_));
        if is_probe {
            self.gate = Gate::Probing;
        }
        is_probe
    }

    /// A request takes over a second.
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

    /// A request ends, while this many are under way.
    pub(super) fn ends(
        &mut self,
        (began, is_probe, under_way): (Moment, bool, usize),
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
            if self.gate != Gate::Closed {
                self.gate = Gate::Closed;
                (self.window, self.doubles, self.halved_at) = (1, true, now);
                return Expected::Closes;
            }
            if self.doubles {
                self.window *= 2;
            } else if under_way >= self.window {
                self.window += 1;
            }
            if self.window >= 1_024 {
                (self.window, self.doubles) = (usize::MAX, false);
            }
            return Expected::Nothing;
        };
        self.doubles = false;
        if failure.is_overload && (self.window == usize::MAX || began >= self.halved_at) {
            self.window = (self.window.min(under_way) / 2).max(1);
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
        let opens = match self.gate {
            Gate::Open(_) => false,
            Gate::Probing => is_probe,
            Gate::Closed => {
                let are_several = self.failures.iter().any(|other| *other != self.failures[0]);
                let is_long = now - self.failing_since >= SECOND;
                are_several && is_long && self.failures.len() >= bounds.failures
            }
        };
        if !opens {
            return Expected::Nothing;
        }
        self.outages += usize::from(self.gate == Gate::Closed);
        // An attempt shows how long the outage had lasted when the attempt began.
        let pause = (began.saturating_sub(self.failing_since) / 4).min(bounds.longest);
        Expected::Opens((pause * 79 / 100).max(bounds.shortest), pause.max(bounds.shortest))
    }

    /// The breaker opened until then, as expected.
    pub(super) fn opens(&mut self, until: Moment) {
        self.gate = Gate::Open(until);
    }

    pub(super) fn is_given_back(&mut self, is_probe: bool) {
        if self.gate == Gate::Probing && is_probe {
            self.gate = Gate::Open(Moment::ZERO);
        }
    }
}

/// The requests that use one queue's capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) used: usize,
    pub(super) slow: usize,
    pub(super) unproven: usize,
    /// Each group's requests: all, slow, and unproven.
    groups: Vec<[usize; 3]>,
    /// Of each webhook.
    pub(super) webhooks: Vec<usize>,
}

impl Tally {
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

/// The slow begin no request while this many to them are under way: half of the capacity.
pub(super) fn half(capacity: usize) -> usize {
    capacity - capacity / 2
}

/// The slow and unproven together begin none while this many are under way: three quarters. If there are
/// two places or more, a quarter is for the prompt.
pub(super) fn three_quarters(capacity: usize) -> usize {
    (capacity * 3 / 4).max(1)
}

/// Every possible reason against an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    class: Class,
    is_full: bool,
    stays_away: bool,
    is_open: bool,
    fills_window: bool,
    has_share: bool,
    group_has_share: bool,
    class_has_share: bool,
    pub(super) is_limited: bool,
    /// Whether it may be another backlog's turn for a moment.
    pub(super) may_yield: bool,
}

impl Verdict {
    /// Judges an attempt for a webhook of this group.
    pub(super) fn on(
        book: &Book,
        tally: &Tally,
        capacity: usize,
        (group, webhook, under_way): (usize, usize, usize),
        now: Moment,
    ) -> Self {
        let free = capacity.saturating_sub(tally.used).max(1);
        let [all, slow, unproven] = tally.groups[group];
        let others = tally.slow + tally.unproven;
        let (half, three_quarters) = (half(capacity), three_quarters(capacity));
        let class_has_share = match book.class {
            Class::Prompt => false,
            Class::Slow => {
                let is_over = tally.slow >= half || others >= three_quarters;
                is_over || slow >= half.saturating_sub(tally.slow).max(1)
            }
            Class::Unproven => {
                let is_over = others >= three_quarters || tally.webhooks[webhook] > 0;
                is_over || unproven >= three_quarters.saturating_sub(others).max(1)
            }
        };
        Self {
            class: book.class,
            is_full: tally.used >= capacity,
            stays_away: now < book.stays_until,
            is_open: match book.gate {
                Gate::Closed => false,
                Gate::Open(until) => now < until,
                Gate::Probing => true,
            },
            fills_window: under_way >= book.window,
            has_share: tally.webhooks[webhook] >= free,
            group_has_share: all >= 3 * free,
            class_has_share,
            is_limited: false,
            may_yield: false,
        }
    }

    /// Whether at most a place is missing.
    fn is_clear(self) -> bool {
        let is_away = self.stays_away || self.is_open || self.fills_window;
        !is_away && !self.has_share && !self.group_has_share && !self.class_has_share
    }

    pub(super) fn begins(self) -> bool {
        self.is_clear() && !self.is_full && !self.is_limited
    }

    /// Whether it waits for a place. Its webhook's limits are checked only afterwards.
    pub(super) fn waits(self) -> bool {
        self.is_clear() && self.is_full && self.class == Class::Prompt
    }

    /// Whether it may be refused for this reason.
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
