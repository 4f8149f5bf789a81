//! Whether a server answers, and for how long it has done so.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::shown;

/// How old a server's last answer may be before the server counts as away.
///
/// A failure counts at once. This limit is for the case that the server isn't asked: the monitor asks every five
/// seconds, but a hanging broker can delay it by up to twenty.
const ANSWER_AGE: Duration = Duration::from_secs(30);

/// How many characters of a server's error are kept.
const MOST_OF_PROBLEM: usize = 500;

/// The last answers of a server. All threads that ask it share this.
#[derive(Debug)]
pub struct Contact(Mutex<LastAnswers>);

#[derive(Debug)]
struct LastAnswers {
    /// Whether the last question was answered; `None` before the first.
    last: Option<bool>,
    /// Since when `last` has had its value.
    since: Instant,
    /// When it last answered.
    answered: Option<Instant>,
    /// The error that it answered with, if it did at the last question.
    problem: Option<String>,
}

/// Whether a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// It wasn't asked yet.
    Unasked,
    /// It answers.
    Yes,
    /// It doesn't answer, or couldn't be asked for 30 seconds.
    No,
}

impl Contact {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LastAnswers {
            last: None,
            since: Instant::now(),
            answered: None,
            problem: None,
        }))
    }

    /// Records that it has just answered.
    pub fn answered(&self) {
        let now = Instant::now();
        let mut heard = self.lock();
        heard.set(true, now);
        heard.answered = Some(now);
        heard.problem = None;
    }

    /// Records that it didn't answer, or answered with `error`.
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

    fn lock(&self) -> MutexGuard<'_, LastAnswers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LastAnswers {
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
    fn a_contact_has_the_state_of_its_last_answer_since_that_changed() {
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
    fn a_server_whose_last_answer_is_too_old_is_away() {
        let Some(long_ago) = Instant::now().checked_sub(ANSWER_AGE) else { return };
        let heard = LastAnswers {
            last: Some(true),
            since: long_ago,
            answered: Some(long_ago),
            problem: None,
        };
        let (answers, lasted) = Contact(Mutex::new(heard)).now();
        assert_eq!(answers, Answers::No);
        assert!(lasted >= ANSWER_AGE);
    }
}
