//! The directory's memory: answers of PostgreSQL, within a limit of bytes and entries.

use std::borrow::Borrow;
use std::hash::Hash;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use uuid::Uuid;

use crate::domain::webhook::{Scope, Webhook};
use crate::store::{Found, Label};

/// The most bytes that the remembered answers may take together. An answer with one webhook takes some 600
/// bytes, more with a long URL or many headers, so this is enough for 120,000 of them. Without this limit, a
/// producer that invents new types could fill the memory with copies of the webhooks that want everything.
const MOST_BYTES: usize = 72 << 20;

/// The overhead of an entry in bytes: its places in the hash table and in the order of use, and what the
/// allocator adds to each allocation.
const OVERHEAD: usize = 256;

/// The most accounts that are remembered for an event type, each up to a KiB. If there are more, each account
/// that occurs gets an entry of its own, whether it has webhooks or not.
pub(super) const MOST_ACCOUNTS: usize = 1_000;

/// The webhooks that want an event.
#[derive(Clone)]
pub(super) struct EventWebhooks {
    /// These webhooks.
    pub(super) webhooks: Arc<[Webhook]>,
    /// All accounts with webhooks that want such an event; `None` if there are too many, or if PostgreSQL wasn't
    /// asked.
    pub(super) accounts: Option<Accounts>,
}

/// A sorted set of accounts.
#[derive(Clone)]
pub(super) struct Accounts(Arc<[Box<str>]>);

impl Accounts {
    pub(super) fn new(accounts: Vec<String>) -> Self {
        let mut accounts: Vec<_> = accounts.into_iter().map(String::into_boxed_str).collect();
        accounts.sort_unstable();
        Self(accounts.into())
    }

    fn include(&self, account: &str) -> bool {
        self.0.binary_search_by(|known| (**known).cmp(account)).is_ok()
    }

    fn size(&self) -> usize {
        self.0.iter().map(|account| size_of::<Box<str>>() + account.len()).sum()
    }
}

/// The remembered answer for an event type.
struct TypeEntry {
    /// The webhooks without an account that want it.
    everybodys: Arc<[Webhook]>,
    accounts: Option<Accounts>,
}

/// All remembered answers.
pub(super) struct Memory {
    by_type: Cache<Box<str>, TypeEntry>,
    /// By [`key`]: the webhooks that want events of a type and account, including those without an account. Only
    /// for accounts that may have webhooks of their own.
    by_account: Cache<Box<str>, Arc<[Webhook]>>,
    by_id: Cache<Uuid, Found>,
    /// The number of changes so far; wraps around.
    pub(super) generation: u32,
}

/// Forgotten answers. To drop many takes time, so the caller does it without the lock.
#[must_use]
#[expect(dead_code, reason = "the fields are only dropped")]
pub(super) struct Forgotten(
    Cache<Box<str>, TypeEntry>,
    Cache<Box<str>, Arc<[Webhook]>>,
    Cache<Uuid, Found>,
);

impl Memory {
    /// An empty memory for at most `most` answers of each kind.
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self {
            by_type: Cache::new(most),
            by_account: Cache::new(most),
            by_id: Cache::new(most),
            generation: 0,
        }
    }

    /// Forgets the answers that a change may have made invalid, and marks all others as still valid.
    pub(super) fn forget(&mut self, scope: &Scope) -> Option<Forgotten> {
        self.generation = self.generation.wrapping_add(1);
        if scope.is_everything() {
            let forgotten =
                Forgotten(self.by_type.take(), self.by_account.take(), self.by_id.take());
            return Some(forgotten);
        }
        let changes = self.generation;
        let outlives = |webhooks: &[Webhook]| {
            // The webhooks of an answer share their `as_of`.
            webhooks.first().into_iter().for_each(|webhook| webhook.as_of.outlives(changes));
        };
        let holds_one = |webhooks: &[Webhook]| {
            webhooks.iter().any(|webhook| scope.concerns_webhook(webhook.id))
        };
        self.by_type.retain(|event_type, TypeEntry { everybodys, accounts }| {
            let is_new =
                |known: &Accounts| scope.concerns_others(event_type, |it| known.include(it));
            let goes = holds_one(everybodys)
                || scope.concerns_events(event_type, None)
                || accounts.as_ref().is_some_and(is_new);
            if !goes {
                outlives(everybodys);
            }
            !goes
        });
        self.by_account.retain(|key, webhooks| {
            let (event_type, account) = parts(key);
            let goes = holds_one(webhooks) || scope.concerns_events(event_type, Some(account));
            if !goes {
                outlives(webhooks);
            }
            !goes
        });
        self.by_id.retain(|id, found| {
            let goes = scope.concerns_webhook(*id);
            if let Found::Enabled(webhook) = found
                && !goes
            {
                webhook.as_of.outlives(changes);
            }
            !goes
        });
        None
    }

    /// Forgets the least recently used entries of the kind that takes most bytes, until the total is within
    /// [`MOST_BYTES`].
    fn enforce_limit(&mut self) {
        while self.by_type.bytes + self.by_account.bytes + self.by_id.bytes > MOST_BYTES {
            let (types, accounts, ids) = (
                self.by_type.removable_bytes(),
                self.by_account.removable_bytes(),
                self.by_id.removable_bytes(),
            );
            match types.max(accounts).max(ids) {
                // The only answer of a kind is kept, however large it is.
                0 => return,
                most if most == types => self.by_type.pop_oldest(),
                most if most == accounts => self.by_account.pop_oldest(),
                _ => self.by_id.pop_oldest(),
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_type.entries.is_empty() && self.by_id.entries.is_empty()
    }

    /// The webhooks that want an event of this type and account.
    pub(super) fn wanting(
        &mut self,
        event_type: &str,
        account: Option<&str>,
    ) -> Option<EventWebhooks> {
        let of_type = self.by_type.get(event_type)?;
        let webhooks = match account {
            Some(account) if of_type.may_have_webhooks(account) => {
                Arc::clone(self.by_account.get(&*key(event_type, account))?)
            }
            _ => Arc::clone(&of_type.everybodys),
        };
        Some(EventWebhooks { webhooks, accounts: None })
    }

    /// Whether anything is remembered about this event type.
    pub(super) fn knows_type(&self, event_type: &str) -> bool {
        self.by_type.entries.contains(event_type)
    }

    pub(super) fn found(&mut self, id: Uuid) -> Option<Found> {
        self.by_id.get(&id).cloned()
    }

    /// The URL and the account of a webhook. This doesn't count as a use of the entry.
    pub(super) fn label(&self, id: Uuid) -> Option<Label> {
        match self.by_id.entries.peek(&id) {
            Some((Found::Enabled(webhook), _)) => {
                let (url, account) = (webhook.post_url.clone(), webhook.account.clone());
                Some(Label { id, url, account })
            }
            _ => None,
        }
    }

    pub(super) fn remember_wanting(
        &mut self,
        event_type: &str,
        account: Option<&str>,
        found: EventWebhooks,
    ) {
        let size = |webhooks: &[Webhook]| webhooks.iter().map(Webhook::size).sum::<usize>();
        let EventWebhooks { webhooks, accounts } = found;
        let has_account = |webhook: &&Webhook| webhook.account.is_some();
        let own = webhooks.iter().filter(has_account).count();
        if account.is_none() || !self.knows_type(event_type) {
            let everybodys = match own {
                0 => Arc::clone(&webhooks),
                _ => webhooks.iter().filter(|it| !has_account(it)).cloned().collect(),
            };
            let of_accounts = accounts.as_ref().map_or(0, Accounts::size);
            let size = event_type.len() + size(&everybodys) + of_accounts;
            self.by_type.put(event_type.into(), TypeEntry { everybodys, accounts }, size);
            self.enforce_limit();
        }
        let (Some(account), Some(of_type)) = (account, self.by_type.get(event_type)) else {
            return;
        };
        if of_type.may_have_webhooks(account) {
            let (webhooks, size) = match own {
                // The account has no webhooks of its own: the entry shares the list of the type.
                0 => (Arc::clone(&of_type.everybodys), 0),
                _ => (Arc::clone(&webhooks), size(&webhooks)),
            };
            let key = key(event_type, account);
            let size = key.len() + size;
            self.by_account.put(key, webhooks, size);
            self.enforce_limit();
        }
    }

    pub(super) fn remember_found(&mut self, id: Uuid, found: Found) {
        let size = match &found {
            Found::Enabled(webhook) => webhook.size(),
            Found::Disabled | Found::Deleted => size_of::<Found>(),
        };
        self.by_id.put(id, found, size);
        self.enforce_limit();
    }
}

impl TypeEntry {
    /// Whether this account may have webhooks that want such an event.
    fn may_have_webhooks(&self, account: &str) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.include(account))
    }
}

/// Joins a type and an account by a control character, which neither contains.
fn key(event_type: &str, account: &str) -> Box<str> {
    [event_type, "\0", account].concat().into()
}

/// The type and the account that [`key`] joined.
fn parts(key: &str) -> (&str, &str) {
    key.split_once('\0').unwrap_or((key, ""))
}

/// A cache with a limited number of entries that counts their bytes. The least recently used entry is removed first.
struct Cache<K, V> {
    /// Each value with its size in bytes.
    entries: LruCache<K, (V, usize)>,
    most: NonZeroUsize,
    bytes: usize,
}

impl<K: Clone + Hash + Eq, V> Cache<K, V> {
    fn new(most: NonZeroUsize) -> Self {
        // Grows as it fills, so a large limit costs nothing.
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
        // The previous entry of this key, or the least recently used one.
        let displaced = self.entries.push(key, (value, size));
        self.bytes -= displaced.map_or(0, |(_, (_, size))| size);
    }

    /// The bytes of all entries; 0 if there is only one, which can't be removed.
    fn removable_bytes(&self) -> usize {
        if self.entries.len() > 1 { self.bytes } else { 0 }
    }

    fn pop_oldest(&mut self) {
        self.bytes -= self.entries.pop_lru().map_or(0, |(_, (_, size))| size);
    }

    fn retain(&mut self, stays: impl Fn(&K, &V) -> bool) {
        let goes = self.entries.iter().filter(|(key, (value, _))| !stays(key, value));
        let gone: Vec<K> = goes.map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.bytes -= self.entries.pop(&key).map_or(0, |(_, size)| size);
        }
    }
}

#[cfg(test)]
mod tests;
