//! The names of receivers on the page (account, host and path), and the search for them.
//!
//! The thread that samples the counters looks the names up in advance, so that a request for the page never waits
//! for PostgreSQL. While PostgreSQL is away, the known names are kept.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use uuid::Uuid;

use crate::directory::{Directory, Label, TableChange};
use crate::domain::account::MAX_ACCOUNT_BYTES;
use crate::domain::shown;
use crate::domain::webhook::place;

/// How long the names of all receivers are kept after the last request for the page. An open page asks every five
/// seconds.
const WATCHED: Duration = Duration::from_secs(60);

/// How old a name may be while changes of the table aren't reported.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How many names one query asks for.
const CHUNK: usize = 1_000;

/// How many characters of a search are used.
const MOST_OF_SEARCH: usize = 200;

/// The name of a receiver: its webhook's account, host and path. All of it is printable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReceiverName {
    /// The account.
    pub(super) account: Option<String>,
    /// Host and path; `None` if the webhook is no longer in the table.
    pub(super) place: Option<String>,
}

impl From<Label> for ReceiverName {
    fn from(label: Label) -> Self {
        let account = label.account.map(|it| shown::line(&it, MAX_ACCOUNT_BYTES));
        Self { account, place: Some(place(&label.url)) }
    }
}

/// A search: each of its words has to occur in a receiver's name or id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReceiverSearch(Vec<String>);

impl ReceiverSearch {
    /// A search for the words of this text, which is cut after [`MOST_OF_SEARCH`] characters.
    pub(super) fn new(text: &str) -> Self {
        let text: String = text.chars().take(MOST_OF_SEARCH).collect();
        Self(text.split_whitespace().map(str::to_lowercase).collect())
    }

    /// Whether the search has no words, and matches everything.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn matches(&self, id: Uuid, name: Option<&ReceiverName>) -> bool {
        let account = name.and_then(|name| name.account.as_deref()).unwrap_or_default();
        let place = name.and_then(|name| name.place.as_deref()).unwrap_or_default();
        let all = format!("{id}\n{account}\n{place}").to_lowercase();
        self.0.iter().all(|word| all.contains(word))
    }
}

/// The known names.
#[derive(Debug)]
pub(super) struct Names {
    known: Mutex<HashMap<Uuid, ReceiverName>>,
    /// When all names were last looked up again.
    asked_at: Mutex<Instant>,
    changes: Receiver<TableChange>,
    /// When somebody last requested the page.
    watched_at: Mutex<Option<Instant>>,
    wake: Sender<()>,
    /// Becomes ready when somebody opens the page.
    pub(super) woken: Receiver<()>,
}

impl Names {
    /// No names yet; `changes` are those of the table.
    pub(super) fn new(changes: Receiver<TableChange>) -> Self {
        let (wake, woken) = bounded(1);
        Self {
            known: Mutex::default(),
            asked_at: Mutex::new(Instant::now()),
            changes,
            watched_at: Mutex::default(),
            wake,
            woken,
        }
    }

    /// Records that somebody requested the page.
    pub(super) fn note_request(&self) {
        let before = lock(&self.watched_at).replace(Instant::now());
        if before.is_none_or(|at| at.elapsed() > WATCHED) {
            // If the channel is full, the thread is already awake.
            let _ = self.wake.try_send(());
        }
    }

    /// Whether somebody requested the page recently.
    pub(super) fn is_watched(&self) -> bool {
        lock(&self.watched_at).is_some_and(|at| at.elapsed() <= WATCHED)
    }

    /// Looks up the names of these receivers that are missing or may have changed, and forgets all
    /// others.
    pub(super) fn refresh(&self, wanted: &HashSet<Uuid>, directory: &Directory) {
        let has_changed = self.changes.try_iter().any(|change| change == TableChange::Webhooks);
        let is_old = !directory.is_listening() && lock(&self.asked_at).elapsed() > MAX_AGE;
        let missing: Vec<Uuid> = {
            let mut known = self.lock();
            known.retain(|id, _| wanted.contains(id));
            let is_missing = |id: &&Uuid| has_changed || is_old || !known.contains_key(*id);
            wanted.iter().filter(is_missing).copied().collect()
        };
        if has_changed || is_old {
            *lock(&self.asked_at) = Instant::now();
        }
        for some in missing.chunks(CHUNK) {
            let labels = match directory.labels(some) {
                Ok(labels) => labels,
                Err(error) => {
                    log::debug!("names of receivers not known: {error}");
                    return;
                }
            };
            let mut found: HashMap<Uuid, ReceiverName> =
                labels.into_iter().map(|label| (label.id, label.into())).collect();
            let mut known = self.lock();
            for id in some {
                // A deleted webhook keeps its account, so that people can recognize it.
                let deleted =
                    || ReceiverName { place: None, ..known.get(id).cloned().unwrap_or_default() };
                let name = found.remove(id).unwrap_or_else(deleted);
                known.insert(*id, name);
            }
        }
    }

    /// A receiver's name, if it is known.
    pub(super) fn of(&self, id: Uuid, directory: &Directory) -> Option<ReceiverName> {
        let remembered = directory.remembered_label(id).map(ReceiverName::from);
        remembered.or_else(|| self.lock().get(&id).cloned())
    }

    /// The receivers among these that match the search.
    pub(super) fn matching(
        &self,
        sought: &ReceiverSearch,
        ids: impl IntoIterator<Item = Uuid>,
    ) -> Vec<Uuid> {
        let known = self.lock();
        ids.into_iter().filter(|id| sought.matches(*id, known.get(id))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, ReceiverName>> {
        lock(&self.known)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_of_a_search_has_to_occur_in_the_name_or_the_id() {
        let id = Uuid::from_u128(0xABCD);
        let account = Some("Acme Ünited".to_owned());
        let name = ReceiverName { account, place: Some("hooks.example.com/in".to_owned()) };
        for (text, is_found) in [
            ("", true),
            ("acme", true),
            ("  ACME  ünited ", true),
            ("hooks acme", true),
            ("example.com/in", true),
            ("abcd", true),
            ("united", false),
            ("acme other", false),
            ("acme.*", false),
        ] {
            assert_eq!(ReceiverSearch::new(text).matches(id, Some(&name)), is_found, "{text:?}");
        }
        assert!(
            ReceiverSearch::new("abcd").matches(id, None)
                && !ReceiverSearch::new("acme").matches(id, None)
        );
        assert!(ReceiverSearch::new(" \t").is_empty() && !ReceiverSearch::new("a").is_empty());
        let long = ReceiverSearch::new(&"é".repeat(9_999));
        assert_eq!(long.0[0].chars().count(), MOST_OF_SEARCH);
    }

    #[test]
    fn a_name_contains_no_secret_and_only_printable_characters() {
        let label = Label {
            id: Uuid::nil(),
            url: "https://a.example/in?token=s3cret".into(),
            account: Some("a\u{202e}\n<b>".into()),
        };
        let name = ReceiverName::from(label);
        assert_eq!(name.account.as_deref(), Some("a\\u{202e}\\n<b>"));
        assert_eq!(name.place.as_deref(), Some("a.example/in"));
    }
}
