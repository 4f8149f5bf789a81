//! Logs each cause of a lasting failure once.
//!
//! A server that is down answers every attempt with the same error, so one line is enough. But the cause
//! may change meanwhile (the server is up again, and now the password is wrong), and whoever reads only
//! the first cause looks in the wrong place.

/// How many causes of one failure are logged. Some contain a number that differs each time.
const MOST: usize = 8;

/// Parts of messages that say only that a connection ended. Which of them appears is a race, so they
/// count as one cause.
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
    /// Records a cause while the failure lasts, and says whether to log it: only if neither it nor a
    /// similar one has been.
    pub fn is_news(&mut self, cause: &str) -> bool {
        let only_ends = |cause: &str| ENDED.iter().any(|end| cause.contains(end));
        let is_like = |told: &String| told == cause || only_ends(told) && only_ends(cause);
        let is_news = self.0.len() < MOST && !self.0.iter().any(is_like);
        if is_news {
            self.0.push(cause.to_owned());
        }
        is_news
    }

    /// Whether a failure has been logged and not ended.
    #[must_use]
    pub fn are_told(&self) -> bool {
        !self.0.is_empty()
    }

    /// Ends the failure. Returns its first cause, if it was logged.
    pub fn end(&mut self) -> Option<String> {
        std::mem::take(&mut self.0).into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_cause_is_told_once_and_again_after_the_trouble_was_over() {
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
    fn the_ways_in_which_a_connection_ends_are_one_cause() {
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
    fn a_cause_with_a_number_that_never_repeats_does_not_fill_the_log() {
        let mut causes = Causes::default();
        let told = (0..100).filter(|n| causes.is_news(&format!("channel {n} closed"))).count();
        assert_eq!(told, MOST);
    }
}
