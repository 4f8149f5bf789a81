//! Whether a server answers, and since when.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::shown;

/// How old a server's last answer may be before the server counts as away.
///
/// A failure counts at once. This is for the case that nobody could ask: the monitor asks every five seconds,
/// but a hanging broker may delay it by up to twenty.
const ANSWER_AGE: Duration = Duration::from_secs(30);

/// How much of a server's error is kept, in characters.
const MOST_OF_PROBLEM: usize = 500;

/// The last answers of a server. All threads that ask it share this.
#[derive(Debug)]
pub struct Contact(Mutex<Heard>);

#[derive(Debug)]
struct Heard {
    /// Whether the last question was answered; `None` before the first.
    last: Option<bool>,
    /// Since when `last` has been the same.
    since: Instant,
    answered: Option<Instant>,
    /// The error that it answered with, if that was the last failure.
    problem: Option<String>,
}

/// Whether a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// Nobody has asked yet.
    Unasked,
    /// It answers.
    Yes,
    /// It does not answer, or nobody could ask for 30 seconds.
    No,
}

impl Contact {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Heard { last: None, since: Instant::now(), answered: None, problem: None }))
    }

    /// Records that it has just answered.
    pub fn answered(&self) {
        let now = Instant::now();
        let mut heard = self.lock();
        heard.set(true, now);
        heard.answered = Some(now);
        heard.problem = None;
    }

    /// Records that it did not answer, or answered with `error`.
    pub fn failed(&self, error: Option<&str>) {
        let mut heard = self.lock();
        heard.set(false, Instant::now());
        heard.problem = error.map(|error| shown::line(error, MOST_OF_PROBLEM));
    }

    /// The error that it answered with, if it answered the last question with one.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// Whether it answers, and for how long it has been in this state.
    #[must_use]
    pub fn now(&self) -> (Answers, Duration) {
        let heard = self.lock();
        let lasted = heard.since.elapsed();
        let age = heard.answered.map(|at| at.elapsed());
        match (heard.last, age) {
            (None, _) => (Answers::Unasked, lasted),
            (Some(true), Some(age)) if age < ANSWER_AGE => (Answers::Yes, lasted),
            (Some(true), Some(age)) => (Answers::No, age),
            _ => (Answers::No, lasted),
        }
    }

    /// Whether it answers.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.now().0 == Answers::Yes
    }

    /// The time since its last answer; `None` before the first.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.lock().answered.map(|at| at.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn set(&mut self, answers: bool, now: Instant) {
        if self.last.replace(answers) != Some(answers) {
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_and_since_when_it_is_the_same() {
        let contact = Contact::new();
        assert_eq!(contact.now().0, Answers::Unasked);
        assert_eq!(contact.age(), None);
        contact.failed(Some("no such table"));
        assert_eq!(contact.now().0, Answers::No);
        assert_eq!(contact.problem().as_deref(), Some("no such table"));
        contact.failed(None);
        assert_eq!(contact.problem(), None);
        contact.answered();
        assert!(contact.is_up());
        let since = contact.lock().since;
        contact.answered();
        assert_eq!(contact.lock().since, since);
        contact.failed(None);
        assert!(contact.lock().since >= since);
        assert!(!contact.is_up());
        assert!(contact.age().is_some());
    }

    #[test]
    fn an_answer_of_long_ago_counts_no_more() {
        let Some(long_ago) = Instant::now().checked_sub(ANSWER_AGE) else { return };
        let heard =
            Heard { last: Some(true), since: long_ago, answered: Some(long_ago), problem: None };
        let (answers, lasted) = Contact(Mutex::new(heard)).now();
        assert_eq!(answers, Answers::No);
        assert!(lasted >= ANSWER_AGE);
    }
}
