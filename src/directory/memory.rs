//! The directory's memory, within bounds.

use std::borrow::Borrow;
use std::hash::Hash;
use std::mem;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use uuid::Uuid;

use crate::domain::webhook::{Scope, Webhook};
use crate::store::{Found, Label};

/// The most bytes that the remembered answers may take together. An answer with one webhook takes some
/// 600, so this is enough for a hundred and twenty thousand; a webhook with a long URL or many headers
/// takes more. Without this limit, a producer that invents new types could fill the memory with copies
/// of the webhooks that want everything.
const MOST_BYTES: usize = 72 << 20;

/// The overhead of an entry: its places in the table and in the order of use, and what the allocator
/// adds to each part of it.
const OVERHEAD: usize = 256;

/// The most accounts that are remembered for an event type, each up to a KiB. If there are more, it is
/// remembered separately for each account that occurs whether it has any webhooks.
pub(super) const MOST_ACCOUNTS: usize = 1_000;

/// The webhooks that want an event.
#[derive(Clone)]
pub(super) struct EventWebhooks {
    /// The webhooks that may have it.
    pub(super) webhooks: Arc<[Webhook]>,
    /// The accounts whose webhooks want such an event; `None` if there are too many, or if nobody has
    /// asked.
    pub(super) accounts: Option<Accounts>,
}

/// Some accounts, sorted.
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

/// What is remembered of an event type.
struct OfType {
    /// The webhooks without an account that want it.
    everybodys: Arc<[Webhook]>,
    accounts: Option<Accounts>,
}

/// Everything that is remembered.
pub(super) struct Known {
    by_type: Cache<Box<str>, OfType>,
    /// By [`key`]: the webhooks that want events of one account, including those without an account.
    /// Only for accounts that may have some of their own.
    by_account: Cache<Box<str>, Arc<[Webhook]>>,
    by_id: Cache<Uuid, Found>,
    /// How many changes there were; wraps around.
    pub(super) generation: u32,
}

/// What was forgotten. Dropping much of it takes time, so it isn't done under a lock.
#[must_use]
#[expect(dead_code, reason = "they are there to be dropped")]
pub(super) struct Forgotten(
    Cache<Box<str>, OfType>,
    Cache<Box<str>, Arc<[Webhook]>>,
    Cache<Uuid, Found>,
);

impl Known {
    /// With at most `most` answers of each kind.
    pub(super) fn new(most: NonZeroUsize) -> Self {
        Self {
            by_type: Cache::new(most),
            by_account: Cache::new(most),
            by_id: Cache::new(most),
            generation: 0,
        }
    }

    /// Forgets what a change may have made invalid. Everything else is marked as still valid.
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
        self.by_type.retain(|event_type, OfType { everybodys, accounts }| {
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

    /// Forgets the least recently used entries of the kind that takes most, until the total is within
    /// its bound.
    fn bound(&mut self) {
        while self.by_type.bytes + self.by_account.bytes + self.by_id.bytes > MOST_BYTES {
            let (types, accounts, ids) =
                (self.by_type.spare(), self.by_account.spare(), self.by_id.spare());
            match types.max(accounts).max(ids) {
                // Even the largest answer is kept if it is alone of its kind.
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
            Some(account) if of_type.may_have_some(account) => {
                Arc::clone(self.by_account.get(&*key(event_type, account))?)
            }
            _ => Arc::clone(&of_type.everybodys),
        };
        Some(EventWebhooks { webhooks, accounts: None })
    }

    /// Whether anything is remembered of this type.
    pub(super) fn knows_type(&self, event_type: &str) -> bool {
        self.by_type.entries.contains(event_type)
    }

    pub(super) fn found(&mut self, id: Uuid) -> Option<Found> {
        self.by_id.get(&id).cloned()
    }

    /// The URL and the account of a webhook. This doesn't count as a use.
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
            self.by_type.put(event_type.into(), OfType { everybodys, accounts }, size);
            self.bound();
        }
        let (Some(account), Some(of_type)) = (account, self.by_type.get(event_type)) else {
            return;
        };
        if of_type.may_have_some(account) {
            let (webhooks, size) = match own {
                // The same as for all accounts without webhooks.
                0 => (Arc::clone(&of_type.everybodys), 0),
                _ => (Arc::clone(&webhooks), size(&webhooks)),
            };
            let key = key(event_type, account);
            let size = key.len() + size;
            self.by_account.put(key, webhooks, size);
            self.bound();
        }
    }

    pub(super) fn remember_found(&mut self, id: Uuid, found: Found) {
        let size = match &found {
            Found::Enabled(webhook) => webhook.size(),
            Found::Disabled | Found::Deleted => size_of::<Found>(),
        };
        self.by_id.put(id, found, size);
        self.bound();
    }
}

impl OfType {
    /// Whether this account may have webhooks that want such an event.
    fn may_have_some(&self, account: &str) -> bool {
        self.accounts.as_ref().is_none_or(|accounts| accounts.include(account))
    }
}

/// Joins a type and an account: neither contains control characters.
fn key(event_type: &str, account: &str) -> Box<str> {
    [event_type, "\0", account].concat().into()
}

/// The type and the account of such a key.
fn parts(key: &str) -> (&str, &str) {
    key.split_once('\0').unwrap_or((key, ""))
}

/// Limits the number of entries and counts their bytes. The least recently used entry goes first.
struct Cache<K, V> {
    /// Each entry with its bytes.
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

    /// The bytes it takes, if it has entries to spare.
    fn spare(&self) -> usize {
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
mod tests {
    use super::*;
    use crate::domain::secret::Secret;
    use crate::domain::settings::Columns;
    use crate::domain::webhook::{AsOf, Secrets};

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
        known.by_type.entries.iter().map(|(_, (of_type, _))| of_type.everybodys.len()).collect()
    }

    fn of_accounts(accounts: &[Option<&str>]) -> Arc<[Webhook]> {
        let webhook = |account: &Option<&str>| Webhook {
            account: account.map(Box::from),
            ..webhook("http://a/")
        };
        accounts.iter().map(webhook).collect()
    }

    fn remember(known: &mut Known, event_type: &str, found: Arc<[Webhook]>) {
        known.remember_wanting(event_type, None, EventWebhooks { webhooks: found, accounts: None });
    }

    fn answer(found: &[Option<&str>], accounts: Option<&[&str]>) -> EventWebhooks {
        let owned = |accounts: &[&str]| accounts.iter().map(ToString::to_string).collect();
        let accounts = accounts.map(owned).map(Accounts::new);
        EventWebhooks { webhooks: of_accounts(found), accounts }
    }

    fn wanting(known: &mut Known, account: Option<&str>) -> Option<Vec<Option<String>>> {
        let webhooks = known.wanting("t", account)?.webhooks;
        Some(webhooks.iter().map(|it| it.account.clone().map(String::from)).collect())
    }

    #[test]
    fn who_wants_a_type_is_remembered_for_all_accounts_without_a_webhook_together() {
        let mut known = known(9);
        let none = || Some(vec![None]);
        known.remember_wanting("t", Some("x"), answer(&[None], Some(&[])));
        for account in [None, Some("x"), Some("y"), Some("")] {
            assert_eq!(wanting(&mut known, account), none(), "{account:?}");
        }
        assert_eq!(known.by_account.entries.len(), 0);
        assert!(known.knows_type("t") && !known.knows_type("u"));

        // Some accounts have webhooks of their own.
        drop(known.forget(&Scope::everything()));
        known.remember_wanting("t", Some("x"), answer(&[None], Some(&["b", "a"])));
        assert_eq!(wanting(&mut known, Some("x")), none());
        assert_eq!(wanting(&mut known, None), none());
        assert_eq!(wanting(&mut known, Some("a")), None, "it has to be asked for");
        known.remember_wanting("t", Some("a"), answer(&[None, Some("a")], None));
        let with_own = |own: &str| Some(vec![None, Some(own.to_owned())]);
        assert_eq!(wanting(&mut known, Some("a")), with_own("a"));
        assert_eq!(wanting(&mut known, Some("b")), None);
        assert_eq!(wanting(&mut known, Some("y")), none());
        assert_eq!(wanting(&mut known, None), none());

        // The first one to ask is one of them.
        drop(known.forget(&Scope::everything()));
        known.remember_wanting("t", Some("a"), answer(&[None, Some("a")], Some(&["a"])));
        assert_eq!(wanting(&mut known, Some("a")), with_own("a"));
        assert_eq!(wanting(&mut known, Some("b")), none());
        assert_eq!(wanting(&mut known, None), none());
    }

    #[test]
    fn where_it_is_not_known_which_accounts_have_webhooks_each_is_asked_for_once() {
        let mut known = known(9);
        known.remember_wanting("t", None, answer(&[None], None));
        assert_eq!(wanting(&mut known, None), Some(vec![None]));
        for account in ["a", "b"] {
            assert_eq!(wanting(&mut known, Some(account)), None);
            known.remember_wanting("t", Some(account), answer(&[None], None));
            assert_eq!(wanting(&mut known, Some(account)), Some(vec![None]));
        }
        // They share the webhooks without an account.
        assert!(known.by_account.bytes < 2 * (OVERHEAD + 10));
    }

    #[test]
    fn however_many_accounts_there_are_the_memory_is_bounded() {
        let mut known = known(5);
        for n in 0..9 {
            let own = format!("account.{n}");
            known.remember_wanting("t", Some(&own), answer(&[None, Some(&own)], None));
        }
        assert_eq!((known.by_type.entries.len(), known.by_account.entries.len()), (1, 5));
        let many = MOST_BYTES / (webhook("http://a/").size() + 9) - 9;
        let own = vec![Some("account.0"); many];
        known.remember_wanting("t", Some("account.0"), answer(&own, None));
        assert!(known.by_account.bytes <= MOST_BYTES && known.by_account.entries.len() < 5);
        assert_eq!(wanting(&mut known, Some("account.0")).map(|found| found.len()), Some(many));
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
            remember(&mut known, &format!("small.{n}"), webhooks(n));
        }
        assert_eq!(counts(&known), [8, 7, 6, 5, 4]);
        let before = known.by_type.bytes;
        remember(&mut known, "small.8", webhooks(1));
        assert_eq!(before - known.by_type.bytes, 7 * webhook("http://a/").size(), "the same again");
        let large = MOST_BYTES / webhook("http://a/").size();
        remember(&mut known, "large.1", webhooks(large - 14));
        assert_eq!(counts(&known), [large - 14, 1, 7]);
        remember(&mut known, "large.2", webhooks(large + 1));
        assert_eq!(counts(&known), [large + 1], "even the largest, alone");
        remember(&mut known, "small", webhooks(1));
        assert_eq!(counts(&known), [1]);
        drop(known.forget(&Scope::everything()));
        assert_eq!((counts(&known), known.by_type.bytes), (vec![], 0));
    }

    #[test]
    fn long_urls_are_bounded_by_the_bytes_that_they_take() {
        let mut known = known(10_000);
        let url = format!("http://a/{}", "x".repeat(8_000));
        let long: Arc<[Webhook]> = (0..10).map(|_| webhook(&url)).collect();
        // As many entries of the first kind alone would take more.
        const COUNT: u128 = 1_000;
        for n in 0..COUNT {
            remember(&mut known, &format!("type.{n}"), Arc::clone(&long));
            known.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
        }
        let bytes = |webhooks: &Arc<[Webhook]>| webhooks.iter().map(Webhook::size).sum::<usize>();
        let held: usize =
            known.by_type.entries.iter().map(|(_, (held, _))| bytes(&held.everybodys)).sum();
        assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&held), "{held}");
        assert_eq!(known.by_id.entries.len(), COUNT as usize);
        for n in 0..10_000 {
            known.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
        }
        // Both kinds have lost some entries.
        assert!(known.by_type.bytes + known.by_id.bytes <= MOST_BYTES);
        assert!(known.by_type.bytes.abs_diff(known.by_id.bytes) < MOST_BYTES / 50);
        assert!(known.found(Uuid::from_u128(9_999)).is_some());
        assert!(known.found(Uuid::from_u128(0)).is_none());
    }

    /// The webhooks with these numbers.
    fn numbered(numbers: &[u128]) -> Arc<[Webhook]> {
        let as_of = AsOf::new(0, 0);
        let of = |number: &u128| Webhook {
            id: Uuid::from_u128(*number),
            as_of: as_of.clone(),
            ..webhook("http://a/")
        };
        numbers.iter().map(of).collect()
    }

    #[test]
    fn a_change_forgets_what_it_may_have_made_untrue_and_nothing_else() {
        let mut known = known(99);
        for (event_type, numbers) in
            [("a.b", &[1, 2][..]), ("a.c", &[2]), ("d", &[3]), ("e.f", &[]), ("e", &[])]
        {
            remember(&mut known, event_type, numbered(numbers));
        }
        let own = Webhook { account: Some("x".into()), ..numbered(&[4])[0].clone() };
        let of_account = EventWebhooks { webhooks: Arc::new([own]), accounts: None };
        known.remember_wanting("d", Some("x"), of_account);
        let by_id = numbered(&[1, 2]);
        for webhook in by_id.iter().map(|it| Webhook { as_of: AsOf::new(0, 0), ..it.clone() }) {
            known.remember_found(webhook.id, Found::Enabled(webhook));
        }
        for number in 3..=5 {
            known.remember_found(Uuid::from_u128(number), Found::Deleted);
        }
        let retried = [1, 2].map(|it| match known.found(Uuid::from_u128(it)) {
            Some(Found::Enabled(webhook)) => webhook,
            other => panic!("{other:?}"),
        });
        let outlived = || retried.each_ref().map(|webhook| webhook.as_of.changes());
        let in_hand = known.wanting("a.c", None).expect("it is remembered").webhooks;
        let of_two = known.wanting("a.b", None).expect("it is remembered").webhooks;
        let is_known = |known: &mut Known| {
            let types = ["a.b", "a.c", "d", "e.f", "e"];
            let types = types.map(|event_type| known.wanting(event_type, None).is_some());
            let of_account = known.wanting("d", Some("x")).is_some();
            let ids = (1..=5).filter(|it| known.found(Uuid::from_u128(*it)).is_some());
            (types, of_account, ids.collect::<Vec<_>>())
        };
        let all = vec![1, 2, 3, 4, 5];
        assert_eq!(is_known(&mut known), ([true; 5], true, all));

        // From now on the first one wants something else: types that begin with `e.`.
        let id = Uuid::from_u128(1);
        let change = |id: &str, pattern: &str, account: &str| {
            Scope::read(&format!(
                r#"{{"ids":[{id}],"patterns":["{pattern}"],"accounts":[{account}],"everybody":{}}}"#,
                account.is_empty()
            ))
        };
        assert!(known.forget(&change(&format!("\"{id}\""), "e.*", "")).is_none());
        let rest = vec![2, 3, 4, 5];
        assert_eq!(is_known(&mut known), ([false, true, true, false, true], true, rest));
        assert_eq!((in_hand[0].as_of.changes(), of_two[0].as_of.changes()), (1, 0));
        assert_eq!(outlived(), [0, 1]);

        // A webhook of an account is gone.
        assert!(known.forget(&Scope::of_webhook(Uuid::from_u128(4))).is_none());
        let rest = vec![2, 3, 5];
        assert_eq!(is_known(&mut known), ([false, true, true, false, true], false, rest));
        assert_eq!((in_hand[0].as_of.changes(), of_two[0].as_of.changes()), (2, 0));

        // Somebody wants these.
        assert!(known.forget(&change("", "d", "")).is_none());
        assert_eq!(is_known(&mut known).0, [false, true, false, false, true]);
        assert_eq!(known.by_account.bytes, 0);

        assert!(known.forget(&Scope::everything()).is_some());
        assert_eq!(is_known(&mut known), ([false; 5], false, vec![]));
        assert_eq!((known.generation, in_hand[0].as_of.changes()), (4, 3));
    }

    #[test]
    fn what_an_account_wants_makes_nothing_of_others_untrue() {
        let mut known = known(99);
        let own = |own: &str| Some(vec![None, Some(own.to_owned())]);
        known.remember_wanting("t", Some("a"), answer(&[None, Some("a")], Some(&["a", "b"])));
        known.remember_wanting("t", Some("b"), answer(&[None, Some("b")], None));
        let change = |account: &str| {
            let id = Uuid::from_u128(9);
            Scope::read(&format!(
                r#"{{"ids":["{id}"],"patterns":["*"],"accounts":["{account}"],"everybody":false}}"#
            ))
        };
        assert!(known.forget(&change("b")).is_none());
        let all = [None, Some("a"), Some("b"), Some("c")];
        let found = all.map(|account| wanting(&mut known, account));
        assert_eq!(found, [Some(vec![None]), own("a"), None, Some(vec![None])]);
        // Until now it wasn't among those that may have some.
        assert!(known.forget(&change("c")).is_none());
        assert_eq!(all.map(|account| wanting(&mut known, account)), [None, None, None, None]);
        known.remember_wanting("t", Some("c"), answer(&[None, Some("c")], None));
        let found = all.map(|account| wanting(&mut known, account));
        assert_eq!(found, [Some(vec![None]), own("a"), None, own("c")]);
    }
}
