//! What people call the receivers on the page (account, host and path), and the search for them.
//!
//! The thread that samples the counters looks the names up in advance, so a request for the page never
//! waits for PostgreSQL. While PostgreSQL is away the known names stay.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use uuid::Uuid;

use crate::directory::{Change, Directory, Label};
use crate::domain::account::MAX_ACCOUNT_BYTES;
use crate::domain::shown;
use crate::domain::webhook::place;

/// How long after the last request for the page the names of all receivers are kept. A page asks every
/// five seconds.
const WATCHED: Duration = Duration::from_secs(60);

/// How old a name may be while changes of the table aren't reported.
const MOST_AGE: Duration = Duration::from_secs(60);

/// How many names one query asks for.
const CHUNK: usize = 1_000;

/// How many characters of a search are used.
const MOST_SOUGHT: usize = 200;

/// What people know a webhook by. All of it is printable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// The account.
    pub(super) account: Option<String>,
    /// Host and path; `None` if it is no longer in the table.
    pub(super) place: Option<String>,
}

impl From<Label> for Name {
    fn from(label: Label) -> Self {
        let account = label.account.map(|it| shown::line(&it, MAX_ACCOUNT_BYTES));
        Self { account, place: Some(place(&label.url)) }
    }
}

/// A search: words, each of which has to be somewhere in a receiver's name or id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SoughtWords(Vec<String>);

impl SoughtWords {
    /// The words of a text, limited to what people type.
    pub(super) fn new(text: &str) -> Self {
        let text: String = text.chars().take(MOST_SOUGHT).collect();
        Self(text.split_whitespace().map(str::to_lowercase).collect())
    }

    /// Whether the search is empty, which matches everything.
    pub(super) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    fn is(&self, id: Uuid, name: Option<&Name>) -> bool {
        let account = name.and_then(|name| name.account.as_deref()).unwrap_or_default();
        let place = name.and_then(|name| name.place.as_deref()).unwrap_or_default();
        let all = format!("{id}\n{account}\n{place}").to_lowercase();
        self.0.iter().all(|word| all.contains(word))
    }
}

/// The known names.
#[derive(Debug)]
pub(super) struct Names {
    known: Mutex<HashMap<Uuid, Name>>,
    /// When all of them were last looked up anew.
    asked_at: Mutex<Instant>,
    changes: Receiver<Change>,
    /// When somebody last requested the page.
    watched_at: Mutex<Option<Instant>>,
    wake: Sender<()>,
    /// Somebody has begun to watch the page.
    pub(super) woken: Receiver<()>,
}

impl Names {
    /// No names yet; `changes` are those of the table.
    pub(super) fn new(changes: Receiver<Change>) -> Self {
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

    /// Somebody requested the page.
    pub(super) fn are_wanted(&self) {
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
        let has_changed = self.changes.try_iter().any(|change| change == Change::Webhooks);
        let is_old = !directory.is_listening() && lock(&self.asked_at).elapsed() > MOST_AGE;
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
            let mut found: HashMap<Uuid, Name> =
                labels.into_iter().map(|label| (label.id, label.into())).collect();
            let mut known = self.lock();
            for id in some {
                // A deleted webhook keeps its account, for people.
                let gone = || Name { place: None, ..known.get(id).cloned().unwrap_or_default() };
                let name = found.remove(id).unwrap_or_else(gone);
                known.insert(*id, name);
            }
        }
    }

    /// A receiver's name, if it is known.
    pub(super) fn of(&self, id: Uuid, directory: &Directory) -> Option<Name> {
        let remembered = directory.remembered_label(id).map(Name::from);
        remembered.or_else(|| self.lock().get(&id).cloned())
    }

    /// Those of these receivers that match the search.
    pub(super) fn matching(
        &self,
        sought: &SoughtWords,
        ids: impl IntoIterator<Item = Uuid>,
    ) -> Vec<Uuid> {
        let known = self.lock();
        ids.into_iter().filter(|id| sought.is(*id, known.get(id))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Name>> {
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
    fn each_word_is_to_be_somewhere_in_the_name_or_the_id() {
        let id = Uuid::from_u128(0xABCD);
        let account = Some("Acme Ünited".to_owned());
        let name = Name { account, place: Some("hooks.example.com/in".to_owned()) };
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
            assert_eq!(SoughtWords::new(text).is(id, Some(&name)), is_found, "{text:?}");
        }
        assert!(SoughtWords::new("abcd").is(id, None) && !SoughtWords::new("acme").is(id, None));
        assert!(SoughtWords::new(" \t").is_nothing() && !SoughtWords::new("a").is_nothing());
        let long = SoughtWords::new(&"é".repeat(9_999));
        assert_eq!(long.0[0].chars().count(), MOST_SOUGHT);
    }

    #[test]
    fn a_name_holds_nothing_that_deceives_and_no_secret() {
        let label = Label {
            id: Uuid::nil(),
            url: "https://a.example/in?token=s3cret".into(),
            account: Some("a\u{202e}\n<b>".into()),
        };
        let name = Name::from(label);
        assert_eq!(name.account.as_deref(), Some("a\\u{202e}\\n<b>"));
        assert_eq!(name.place.as_deref(), Some("a.example/in"));
    }
}
