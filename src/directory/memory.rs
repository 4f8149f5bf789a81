//! What the directory remembers, within bounds.

use std::borrow::Borrow;
use std::hash::Hash;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use uuid::Uuid;

use crate::domain::webhook::Webhook;
use crate::store::Found;

/// How many bytes the remembered answers may take, by event type and by id each. A webhook takes some
/// 250, so these are a hundred thousand of them; one with a long URL or many headers takes more.
/// Without this, a producer that thinks up new types could fill the memory with copies of those that
/// want everything.
const MOST_BYTES: usize = 24 << 20;

/// What an entry takes beside what it holds.
const OVERHEAD: usize = 128;

/// What is remembered.
pub(super) struct Known {
    by_type: Cache<Box<str>, Arc<[Webhook]>>,
    by_id: Cache<Uuid, Found>,
    /// Counts how often all was forgotten.
    pub(super) generation: u64,
}

/// What was forgotten. It takes its time to be dropped, if it was much: not under a lock.
#[must_use]
#[expect(dead_code, reason = "they are there to be dropped")]
pub(super) struct Forgotten(Cache<Box<str>, Arc<[Webhook]>>, Cache<Uuid, Found>);

impl Known {
    /// So many answers of each kind at most.
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self { by_type: Cache::new(most), by_id: Cache::new(most), generation: 0 }
    }

    pub(super) fn forget(&mut self) -> Forgotten {
        self.generation += 1;
        Forgotten(self.by_type.take(), self.by_id.take())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_type.entries.is_empty() && self.by_id.entries.is_empty()
    }

    pub(super) fn wanting(&mut self, event_type: &str) -> Option<Arc<[Webhook]>> {
        self.by_type.get(event_type).cloned()
    }

    pub(super) fn found(&mut self, id: Uuid) -> Option<Found> {
        self.by_id.get(&id).cloned()
    }

    pub(super) fn remember_wanting(&mut self, event_type: &str, found: Arc<[Webhook]>) {
        let size = event_type.len() + found.iter().map(Webhook::size).sum::<usize>();
        self.by_type.put(event_type.into(), found, size);
    }

    pub(super) fn remember_found(&mut self, id: Uuid, found: Found) {
        let size = match &found {
            Found::Enabled(webhook) => webhook.size(),
            Found::Disabled | Found::Deleted => size_of::<Found>(),
        };
        self.by_id.put(id, found, size);
    }
}

/// Bounded by number and by bytes; the least recently used goes first.
struct Cache<K, V> {
    /// With the bytes that each takes.
    entries: LruCache<K, (V, usize)>,
    most: NonZeroUsize,
    bytes: usize,
}

impl<K: Hash + Eq, V> Cache<K, V> {
    fn new(most: NonZeroUsize) -> Self {
        // Grows as it fills: a limit costs nothing.
        let mut entries = LruCache::unbounded();
        entries.resize(most);
        Self { entries, most, bytes: 0 }
    }

    fn take(&mut self) -> Self {
        let most = self.most;
        mem::replace(self, Self::new(most))
    }

    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|(value, _)| value)
    }

    fn put(&mut self, key: K, value: V, size: usize) {
        let size = size + OVERHEAD;
        self.bytes += size;
        // What had its place, or the least recently used.
        let mut displaced = self.entries.push(key, (value, size));
        loop {
            self.bytes -= displaced.map_or(0, |(_, (_, size))| size);
            // Even the largest answer is worth remembering, alone.
            if self.bytes <= MOST_BYTES || self.entries.len() == 1 {
                return;
            }
            displaced = self.entries.pop_lru();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::secret::Secret;
    use crate::domain::settings::Columns;
    use crate::domain::webhook::Secrets;

    fn webhook(url: &str) -> Webhook {
        Webhook::new(Uuid::nil(), url, &Secrets::default(), &Columns::default())
    }

    fn webhooks(count: usize) -> Arc<[Webhook]> {
        (0..count).map(|_| webhook("http://a/")).collect()
    }

    fn known(most: usize) -> Known {
        Known::new(NonZeroUsize::new(most).expect("not zero"))
    }

    fn counts(known: &Known) -> Vec<usize> {
        known.by_type.entries.iter().map(|(_, (webhooks, _))| webhooks.len()).collect()
    }

    #[test]
    fn a_webhook_counts_by_the_room_that_its_settings_take() {
        let size_of = |headers: &str| {
            let headers = Some(Secret::new(headers.to_owned()));
            let columns = Columns { headers, ..Columns::default() };
            let webhook = Webhook::new(Uuid::nil(), "http://a/", &Secrets::default(), &columns);
            assert!(webhook.target.is_ok());
            webhook.size()
        };
        assert!(size_of("{}") > webhook("http://a/").size());
        assert!(size_of(&format!("{{\"a\":\"{}\"}}", "x".repeat(4_000))) > size_of("{}") + 4_000);
    }

    #[test]
    fn however_many_webhooks_want_everything_the_memory_is_bounded() {
        let mut known = known(5);
        for n in 0..9 {
            known.remember_wanting(&format!("small.{n}"), webhooks(n));
        }
        assert_eq!(counts(&known), [8, 7, 6, 5, 4]);
        let before = known.by_type.bytes;
        known.remember_wanting("small.8", webhooks(1));
        assert_eq!(before - known.by_type.bytes, 7 * webhook("http://a/").size(), "the same again");
        let large = MOST_BYTES / webhook("http://a/").size();
        known.remember_wanting("large.1", webhooks(large - 14));
        assert_eq!(counts(&known), [large - 14, 1, 7]);
        known.remember_wanting("large.2", webhooks(large + 1));
        assert_eq!(counts(&known), [large + 1], "even the largest, alone");
        known.remember_wanting("small", webhooks(1));
        assert_eq!(counts(&known), [1]);
        drop(known.forget());
        assert_eq!((counts(&known), known.by_type.bytes), (vec![], 0));
    }

    #[test]
    fn long_urls_are_bounded_by_the_bytes_that_they_take() {
        let mut known = known(10_000);
        let url = format!("http://a/{}", "x".repeat(8_000));
        let long: Arc<[Webhook]> = (0..10).map(|_| webhook(&url)).collect();
        for n in 0..400 {
            known.remember_wanting(&format!("type.{n}"), Arc::clone(&long));
            known.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
        }
        let bytes = |webhooks: &Arc<[Webhook]>| webhooks.iter().map(Webhook::size).sum::<usize>();
        let held: usize = known.by_type.entries.iter().map(|(_, (held, _))| bytes(held)).sum();
        assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&held), "{held}");
        assert_eq!(known.by_id.entries.len(), 400);
        for n in 0..10_000 {
            known.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
        }
        assert!(known.by_id.bytes <= MOST_BYTES);
        assert!(known.found(Uuid::from_u128(9_999)).is_some());
        assert!(known.found(Uuid::from_u128(0)).is_none());
    }
}
