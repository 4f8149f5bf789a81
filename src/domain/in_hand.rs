//! How long a message may be in hand, that is, between its arrival from the broker and its ack.
//!
//! RabbitMQ takes back a message that isn't acked within its `consumer_timeout`. It also closes the
//! consumer, and up to version 4.2 the whole channel, so that all messages in hand on it are attempted
//! again. So each phase of a message has a time limit, and the sum of all limits is less than RabbitMQ's,
//! whatever PREFETCH_COUNT and REQUEST_TIMEOUT are. A message that would wait too long is handed back
//! before.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Moment;

/// RabbitMQ's default `consumer_timeout`. It must not be set to less (src/manual/install.md).
pub const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// The remedy if it is set to less.
pub const RAISE_IT: &str = "raise RabbitMQ's consumer_timeout to at least 30 minutes, its default";

/// The safety margin: RabbitMQ checks the time once a minute, and so do we.
const MARGIN: Duration = Duration::from_secs(2 * 60);

/// How long to wait until RabbitMQ confirms the message that results from an attempt. If a queue refuses
/// it for longer, the original message is handed back.
pub const CONFIRM: Duration = Duration::from_secs(5 * 60);

/// How long a message may stay in each of three phases: from its arrival until a consumer begins it, from
/// then until all deliveries of its event have begun, and from a request until it gets a place.
#[must_use]
pub fn patience(request_timeout: Duration) -> Duration {
    let rest = CONSUMER_TIMEOUT - MARGIN - CONFIRM;
    rest.saturating_sub(request_timeout) / 3
}

/// The minimum time between two records of the last tag.
const INTERVAL: Duration = Duration::from_secs(30);

/// Determines which of a channel's messages may have waited too long. Tags count up from 1, and messages
/// are begun in this order.
#[derive(Clone, Debug, Default)]
pub struct Ages {
    /// The recorded times, and the last tag that the broker had handed out by then.
    marks: VecDeque<(Moment, u64)>,
    /// The last tag that may have waited too long.
    old: u64,
}

impl Ages {
    /// Records that `last_tag` is the last tag that the broker has handed out by `now`.
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
    fn messages_become_old_once_they_have_waited_for_the_whole_patience() {
        let at = |seconds| Duration::from_secs(seconds);
        let mut ages = Ages::default();
        // The broker has handed out fifty messages, and none of them is begun.
        for second in 0..=480 {
            ages.note(50, at(second));
            assert_eq!(ages.old(PATIENCE, at(second)), if second < 480 { 0 } else { 50 });
        }
        ages.note(90, at(510));
        assert_eq!(ages.old(PATIENCE, at(989)), 50);
        assert_eq!(ages.old(PATIENCE, at(990)), 90);
    }

    #[test]
    fn after_a_long_time_without_a_check_only_the_recorded_messages_are_old() {
        let mut ages = Ages::default();
        ages.note(7, Duration::ZERO);
        assert_eq!(ages.old(PATIENCE, Duration::from_secs(86_400)), 7, "recorded a day before");
    }

    proptest! {
        #[test]
        fn the_sum_of_all_limits_is_less_than_the_consumer_timeout(timeout in 1_u64..=600_000) {
            let request = Duration::from_millis(timeout);
            let all = 3 * patience(request) + request + CONFIRM;
            prop_assert!(all + MARGIN <= CONSUMER_TIMEOUT);
            prop_assert!(patience(request) >= Duration::from_secs(180));
        }
    }
}
