//! What the directory remembers, within bounds.

use std::hash::Hash;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use uuid::Uuid;

use crate::domain::webhook::Webhook;
use crate::store::Found;

/// How many webhooks the remembered answers may hold together, about 20 MB; one with settings counts
/// as many as take its place. Without this, a producer that thinks up new types could fill the memory
/// with copies of those that want everything.
const MOST_WEBHOOKS: usize = 100_000;

type ByType = LruCache<Box<str>, Arc<[Webhook]>>;
type ById = LruCache<Uuid, Found>;

/// What is remembered; the least recently used goes first.
pub(super) struct Known {
    pub(super) by_type: ByType,
    pub(super) by_id: ById,
    most: NonZeroUsize,
    /// In all of `by_type`, by their [`weight`].
    webhooks: usize,
    /// Counts how often all was forgotten.
    pub(super) generation: u64,
}

impl Known {
    pub(super) fn new(most: NonZeroUsize) -> Self {
        let (by_type, by_id) = (bounded(most), bounded(most));
        Self { by_type, by_id, most, webhooks: 0, generation: 0 }
    }

    /// What it returns takes its time to be dropped, if there was much to forget: not under the lock.
    #[must_use]
    pub(super) fn forget(&mut self) -> (ByType, ById) {
        self.generation += 1;
        self.webhooks = 0;
        let (by_type, by_id) = (bounded(self.most), bounded(self.most));
        (mem::replace(&mut self.by_type, by_type), mem::replace(&mut self.by_id, by_id))
    }

    pub(super) fn remember_wanting(&mut self, event_type: &str, found: Arc<[Webhook]>) {
        self.webhooks += weight(&found);
        // What had its place, or the least recently used.
        let mut displaced = self.by_type.push(event_type.into(), found);
        loop {
            self.webhooks -= displaced.map_or(0, |(_, webhooks)| weight(&webhooks));
            if self.webhooks <= MOST_WEBHOOKS || self.by_type.len() == 1 {
                return;
            }
            displaced = self.by_type.pop_lru();
        }
    }
}

/// As how many webhooks without settings these count: each has some 200 bytes.
fn weight(webhooks: &[Webhook]) -> usize {
    let settings = webhooks.iter().filter_map(Webhook::settings);
    webhooks.len() + settings.map(|settings| 1 + settings.size() / 200).sum::<usize>()
}

/// Grows as it fills: a limit costs nothing.
fn bounded<K: Hash + Eq, V>(most: NonZeroUsize) -> LruCache<K, V> {
    let mut empty = LruCache::unbounded();
    empty.resize(most);
    empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::Secret;
    use crate::domain::settings::Columns;
    use crate::domain::webhook::Secrets;

    fn webhooks(count: usize) -> Arc<[Webhook]> {
        let columns = Columns::default();
        let webhook = Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
        (0..count).map(|_| webhook.clone()).collect()
    }

    #[test]
    fn a_webhook_counts_by_the_room_that_its_settings_take() {
        let weight_of = |headers: &str| {
            let headers = Some(Secret::new(headers.to_owned()));
            let columns = Columns { headers, ..Columns::default() };
            let webhook = Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
            assert!(webhook.target.is_ok());
            weight(&[webhook])
        };
        assert_eq!(weight(&webhooks(3)), 3);
        assert_eq!(weight_of("{}"), 2);
        assert!(weight_of(&format!("{{\"a\":\"{}\"}}", "x".repeat(4_000))) > 20);
    }

    #[test]
    fn however_many_webhooks_want_everything_the_memory_is_bounded() {
        let mut known = Known::new(NonZeroUsize::new(5).expect("not zero"));
        let types = |known: &Known| known.by_type.iter().map(|(_, w)| w.len()).collect::<Vec<_>>();
        for n in 0..9 {
            known.remember_wanting(&format!("small.{n}"), webhooks(n));
        }
        assert_eq!((types(&known), known.webhooks), (vec![8, 7, 6, 5, 4], 30));
        known.remember_wanting("small.8", webhooks(1));
        assert_eq!(known.webhooks, 23, "the same type again");
        known.remember_wanting("large.1", webhooks(MOST_WEBHOOKS - 10));
        assert_eq!(types(&known), [MOST_WEBHOOKS - 10, 1, 7]);
        // Even the largest answer is worth remembering, alone.
        known.remember_wanting("large.2", webhooks(MOST_WEBHOOKS + 1));
        assert_eq!(types(&known), [MOST_WEBHOOKS + 1]);
        known.remember_wanting("small", webhooks(1));
        assert_eq!((types(&known), known.webhooks), (vec![1], 1));
        drop(known.forget());
        assert_eq!((types(&known), known.webhooks), (vec![], 0));
    }
}
