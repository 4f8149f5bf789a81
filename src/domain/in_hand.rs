//! How long a message may be in hand.
//!
//! RabbitMQ takes back a message that isn't acked within its `consumer_timeout`. It also closes the
//! consumer, and up to version 4.2 the whole channel, so that everything in hand on it is attempted
//! again. So each phase of a message has a limit, and the sum of all limits stays below RabbitMQ's,
//! whatever PREFETCH_COUNT and REQUEST_TIMEOUT are: a message that waits too long for its turn is handed
//! back first.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Moment;

/// RabbitMQ's `consumer_timeout`, where nobody says otherwise; it must not be less (src/manual/install.md).
pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// What to do if it is lower.
pub const RAISE_IT: &str = "raise RabbitMQ's consumer_timeout to at least 30 minutes, its default";

/// RabbitMQ checks once a minute, and so do we.
const MARGIN: Duration = Duration::from_secs(2 * 60);

/// How long a message that results from an attempt may wait until RabbitMQ confirms it. A queue may
/// refuse messages for longer; then they are handed back.
pub const CONFIRM: Duration = Duration::from_secs(5 * 60);

/// How long a message may wait in each of three phases: for its begin after the broker handed it out,
/// until all deliveries of its event have begun, and until a request finds a place.
#[must_use]
pub fn patience(request_timeout: Duration) -> Duration {
    let rest = CONSUMER_TIMEOUT - MARGIN - CONFIRM;
    rest.saturating_sub(request_timeout) / 3
}

/// How often the last tag is recorded.
const INTERVAL: Duration = Duration::from_secs(30);

/// Tells which of a channel's messages may have waited too long. Tags count up from 1, and messages are
/// begun in this order.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    /// The last tag handed out at each time.
    marks: VecDeque<(Moment, u64)>,
    old: u64,
}

impl Ages {
    /// Records that `last_tag` is the last one handed out at `now`.
    pub fn note(&mut self, last_tag: u64, now: Moment) {
        if self.marks.back().is_none_or(|(at, _)| now >= *at + INTERVAL) {
            self.marks.push_back((now, last_tag));
        }
    }

    /// The last tag that may have waited for longer than `patience`; 0 if none has.
    pub fn old(&mut self, patience: Duration, now: Moment) -> u64 {
        while let Some((at, tag)) = self.marks.front()
            && now >= *at + patience
        {
            self.old = *tag;
            self.marks.pop_front();
        }
        self.old
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATIENCE: Duration = Duration::from_secs(480);

    #[test]
    fn what_was_handed_out_and_not_begun_for_long_is_old_and_what_came_later_is_not() {
        let at = |seconds| Duration::from_secs(seconds);
        let mut ages = Ages::default();
        // Fifty are handed out, and none is begun.
        for second in 0..=480 {
            ages.note(50, at(second));
            assert_eq!(ages.old(PATIENCE, at(second)), if second < 480 { 0 } else { 50 });
        }
        ages.note(90, at(510));
        assert_eq!(ages.old(PATIENCE, at(989)), 50);
        assert_eq!(ages.old(PATIENCE, at(990)), 90);
    }

    #[test]
    fn a_channel_that_nobody_looked_at_for_long_has_nothing_old_but_what_was_there_then() {
        let mut ages = Ages::default();
        ages.note(7, Duration::ZERO);
        assert_eq!(ages.old(PATIENCE, Duration::from_secs(86_400)), 7, "these were taken long ago");
    }

    proptest! {
        #[test]
        fn rabbitmq_never_has_to_take_a_message_back(timeout in 1_u64..=600_000) {
            let request = Duration::from_millis(timeout);
            let all = 3 * patience(request) + request + CONFIRM;
            prop_assert!(all + MARGIN <= CONSUMER_TIMEOUT);
            prop_assert!(patience(request) >= Duration::from_secs(180));
        }
    }
}
