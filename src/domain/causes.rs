//! Decides which causes of a lasting failure are logged: each one once.
//!
//! While a server is down every attempt fails with the same error, so one line is enough. But the cause
//! may change: the server is up again, and now the password is wrong. With only the first cause in the
//! log, operators would look in the wrong place.

/// How many causes of one failure are logged at most. Some contain a number that differs each time.
const MOST: usize = 8;

/// Parts of messages that say only that a connection ended. Which of them appears is a matter of chance,
/// so they count as one cause.
const ENDED: [&str; 5] = [
    "socket closed unexpectedly",
    "Connection reset by peer",
    "Broken pipe",
    "early eof",
    "close_notify",
];

/// The causes of one failure that have been logged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causes(Vec<String>);

impl Causes {
    /// Records a cause while the failure lasts. Returns whether to log it: whether neither this cause nor
    /// a similar one has been logged.
    pub fn is_news(&mut self, cause: &str) -> bool {
        let only_ends = |cause: &str| ENDED.iter().any(|end| cause.contains(end));
        let is_like = |told: &String| told == cause || only_ends(told) && only_ends(cause);
        let is_news = self.0.len() < MOST && !self.0.iter().any(is_like);
        if is_news {
            self.0.push(cause.to_owned());
        }
        is_news
    }

    /// Whether a failure has been logged and lasts.
    #[must_use]
    pub fn are_told(&self) -> bool {
        !self.0.is_empty()
    }

    /// Records the end of the failure. Returns its first cause, if one was logged.
    pub fn end(&mut self) -> Option<String> {
        std::mem::take(&mut self.0).into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_logged_once_and_again_after_the_failure_has_ended() {
        let mut causes = Causes::default();
        let told = ["away", "away", "wrong password", "away", "wrong password"]
            .map(|cause| causes.is_news(cause));
        assert_eq!(told, [true, false, true, false, false]);
        assert!(causes.are_told());
        assert_eq!(causes.end().as_deref(), Some("away"));
        assert!(!causes.are_told());
        assert_eq!(causes.end(), None);
        assert!(causes.is_news("away"));
    }

    #[test]
    fn all_messages_that_a_connection_ended_count_as_one_cause() {
        let mut causes = Causes::default();
        let told = [
            "connection lost: underlying socket closed unexpectedly",
            "handshake failed: Connection reset by peer (os error 104)",
            "cannot connect: Connection refused (os error 111)",
            "handshake failed: underlying socket closed unexpectedly",
            "refuses the login",
        ]
        .map(|cause| causes.is_news(cause));
        assert_eq!(told, [true, false, true, false, true]);
    }

    #[test]
    fn causes_that_differ_each_time_do_not_fill_the_log() {
        let mut causes = Causes::default();
        let told = (0..100).filter(|n| causes.is_news(&format!("channel {n} closed"))).count();
        assert_eq!(told, MOST);
    }
}
