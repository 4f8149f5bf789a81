//! How many requests at a time an overloaded receiver gets.
//!
//! A sign of overload is treated like a lost packet in TCP (Jacobson, *Congestion Avoidance and
//! Control*, 1988): the number is halved, then grows by one with each success that uses it up. After an
//! outage it begins at one and doubles.

use super::Moment;

/// More than any queue's capacity: from here on the ramp is over.
const UNLIMITED: u32 = 1_024;

/// Limits the requests in flight to one receiver. Unlimited by default.
#[derive(Clone, Debug, Default)]
pub(super) struct Ramp {
    /// How many requests may be in flight; `None` for no limit.
    window: Option<u32>,
    /// Whether each success doubles the window: after an outage, until the next failure.
    doubles: bool,
    /// When the window was last halved. Signs of overload from requests that began earlier have been
    /// taken into account.
    halved_at: Moment,
}

impl Ramp {
    /// Whether another request may begin while `in_flight` are.
    pub(super) fn has_room(&self, in_flight: u32) -> bool {
        self.window.is_none_or(|window| in_flight < window)
    }

    /// Records that a request that began at `began` showed overload, while `in_flight` requests
    /// (including itself) were in flight. Several requests sent together halve the window once.
    pub(super) fn overloaded(&mut self, began: Moment, in_flight: u32, now: Moment) {
        self.doubles = false;
        if self.window.is_some() && began < self.halved_at {
            return;
        }
        let window = self.window.unwrap_or(u32::MAX).min(in_flight);
        self.window = Some((window / 2).max(1));
        self.halved_at = now;
    }

    /// Records any other failure.
    pub(super) fn failed(&mut self) {
        self.doubles = false;
    }

    /// Records a success, while `in_flight` requests (including itself) were in flight.
    pub(super) fn succeeded(&mut self, in_flight: u32) {
        let Some(window) = self.window else { return };
        let window = match window {
            _ if self.doubles => window * 2,
            _ if in_flight >= window => window + 1,
            _ => window,
        };
        self.window = (window < UNLIMITED).then_some(window);
        self.doubles &= self.window.is_some();
    }

    /// Starts over from one request at a time, because the circuit breaker has closed.
    pub(super) fn restart(&mut self, now: Moment) {
        *self = Self { window: Some(1), doubles: true, halved_at: now };
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Moment {
        Duration::from_secs(seconds)
    }

    #[test]
    fn requests_sent_together_halve_the_window_once_and_it_grows_by_one() {
        let mut ramp = Ramp::default();
        assert!(ramp.has_room(1_000_000));
        for left in (1..=32).rev() {
            ramp.overloaded(at(1), left, at(2));
        }
        assert!(ramp.has_room(15) && !ramp.has_room(16));
        ramp.succeeded(8);
        assert!(!ramp.has_room(16), "it was not used up");
        ramp.succeeded(16);
        assert!(ramp.has_room(16) && !ramp.has_room(17));
        ramp.overloaded(at(2), 17, at(3));
        assert!(ramp.has_room(7) && !ramp.has_room(8));
    }

    #[test]
    fn the_window_is_never_less_than_one() {
        let mut ramp = Ramp::default();
        for second in 1..9 {
            ramp.overloaded(at(second), 1, at(second));
            assert!(ramp.has_room(0) && !ramp.has_room(1));
        }
    }

    #[test]
    fn after_an_outage_the_window_doubles_until_a_failure_or_until_there_is_no_limit() {
        let mut ramp = Ramp::default();
        ramp.restart(at(1));
        for window in [1, 2, 4, 8] {
            assert!(ramp.has_room(window - 1) && !ramp.has_room(window));
            ramp.succeeded(1);
        }
        ramp.failed();
        ramp.succeeded(1);
        assert!(ramp.has_room(15) && !ramp.has_room(16));
        ramp.restart(at(2));
        for _ in 0..10 {
            assert!(ramp.window.is_some());
            ramp.succeeded(1);
        }
        assert_eq!(ramp.window, None);
    }
}
