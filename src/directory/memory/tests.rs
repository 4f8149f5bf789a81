//! The directory's memory: what it keeps, shares and forgets.

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

fn memory(most: usize) -> Memory {
    Memory::new(NonZeroUsize::new(most).expect("not zero"))
}

fn counts(memory: &Memory) -> Vec<usize> {
    memory.by_type.entries.iter().map(|(_, (of_type, _))| of_type.everybodys.len()).collect()
}

fn of_accounts(accounts: &[Option<&str>]) -> Arc<[Webhook]> {
    let webhook = |account: &Option<&str>| Webhook {
        account: account.map(Box::from),
        ..webhook("http://a/")
    };
    accounts.iter().map(webhook).collect()
}

fn remember(memory: &mut Memory, event_type: &str, found: Arc<[Webhook]>) {
    memory.remember_wanting(event_type, None, EventWebhooks { webhooks: found, accounts: None });
}

fn answer(found: &[Option<&str>], accounts: Option<&[&str]>) -> EventWebhooks {
    let owned = |accounts: &[&str]| accounts.iter().map(ToString::to_string).collect();
    let accounts = accounts.map(owned).map(Accounts::new);
    EventWebhooks { webhooks: of_accounts(found), accounts }
}

fn wanting(memory: &mut Memory, account: Option<&str>) -> Option<Vec<Option<String>>> {
    let webhooks = memory.wanting("t", account)?.webhooks;
    Some(webhooks.iter().map(|it| it.account.clone().map(String::from)).collect())
}

#[test]
fn accounts_without_webhooks_share_the_answer_for_their_event_type() {
    let mut memory = memory(9);
    let none = || Some(vec![None]);
    memory.remember_wanting("t", Some("x"), answer(&[None], Some(&[])));
    for account in [None, Some("x"), Some("y"), Some("")] {
        assert_eq!(wanting(&mut memory, account), none(), "{account:?}");
    }
    assert_eq!(memory.by_account.entries.len(), 0);
    assert!(memory.knows_type("t") && !memory.knows_type("u"));

    // Some accounts have webhooks of their own.
    drop(memory.forget(&Scope::everything()));
    memory.remember_wanting("t", Some("x"), answer(&[None], Some(&["b", "a"])));
    assert_eq!(wanting(&mut memory, Some("x")), none());
    assert_eq!(wanting(&mut memory, None), none());
    assert_eq!(wanting(&mut memory, Some("a")), None, "it has to be looked up");
    memory.remember_wanting("t", Some("a"), answer(&[None, Some("a")], None));
    let with_own = |own: &str| Some(vec![None, Some(own.to_owned())]);
    assert_eq!(wanting(&mut memory, Some("a")), with_own("a"));
    assert_eq!(wanting(&mut memory, Some("b")), None);
    assert_eq!(wanting(&mut memory, Some("y")), none());
    assert_eq!(wanting(&mut memory, None), none());

    // The first account that is looked up has webhooks.
    drop(memory.forget(&Scope::everything()));
    memory.remember_wanting("t", Some("a"), answer(&[None, Some("a")], Some(&["a"])));
    assert_eq!(wanting(&mut memory, Some("a")), with_own("a"));
    assert_eq!(wanting(&mut memory, Some("b")), none());
    assert_eq!(wanting(&mut memory, None), none());
}

#[test]
fn if_the_accounts_with_webhooks_are_unknown_each_account_is_looked_up_once() {
    let mut memory = memory(9);
    memory.remember_wanting("t", None, answer(&[None], None));
    assert_eq!(wanting(&mut memory, None), Some(vec![None]));
    for account in ["a", "b"] {
        assert_eq!(wanting(&mut memory, Some(account)), None);
        memory.remember_wanting("t", Some(account), answer(&[None], None));
        assert_eq!(wanting(&mut memory, Some(account)), Some(vec![None]));
    }
    // They share the webhooks without an account.
    assert!(memory.by_account.bytes < 2 * (OVERHEAD + 10));
}

#[test]
fn the_memory_is_limited_with_any_number_of_accounts() {
    let mut memory = memory(5);
    for n in 0..9 {
        let own = format!("account.{n}");
        memory.remember_wanting("t", Some(&own), answer(&[None, Some(&own)], None));
    }
    assert_eq!((memory.by_type.entries.len(), memory.by_account.entries.len()), (1, 5));
    let many = MOST_BYTES / (webhook("http://a/").size() + 9) - 9;
    let own = vec![Some("account.0"); many];
    memory.remember_wanting("t", Some("account.0"), answer(&own, None));
    assert!(memory.by_account.bytes <= MOST_BYTES && memory.by_account.entries.len() < 5);
    assert_eq!(wanting(&mut memory, Some("account.0")).map(|found| found.len()), Some(many));
}

#[test]
fn the_size_of_a_webhook_includes_its_settings() {
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
fn the_memory_is_limited_with_any_number_of_webhooks_that_want_everything() {
    let mut memory = memory(5);
    for n in 0..9 {
        remember(&mut memory, &format!("small.{n}"), webhooks(n));
    }
    assert_eq!(counts(&memory), [8, 7, 6, 5, 4]);
    let before = memory.by_type.bytes;
    remember(&mut memory, "small.8", webhooks(1));
    assert_eq!(before - memory.by_type.bytes, 7 * webhook("http://a/").size(), "the same again");
    let large = MOST_BYTES / webhook("http://a/").size();
    remember(&mut memory, "large.1", webhooks(large - 14));
    assert_eq!(counts(&memory), [large - 14, 1, 7]);
    remember(&mut memory, "large.2", webhooks(large + 1));
    assert_eq!(counts(&memory), [large + 1], "even the largest, alone");
    remember(&mut memory, "small", webhooks(1));
    assert_eq!(counts(&memory), [1]);
    drop(memory.forget(&Scope::everything()));
    assert_eq!((counts(&memory), memory.by_type.bytes), (vec![], 0));
}

#[test]
fn long_urls_count_by_their_bytes() {
    let mut memory = memory(10_000);
    let url = format!("http://a/{}", "x".repeat(8_000));
    let long: Arc<[Webhook]> = (0..10).map(|_| webhook(&url)).collect();
    // So many entries of the first kind exceed the limit by themselves.
    const COUNT: u128 = 1_000;
    for n in 0..COUNT {
        remember(&mut memory, &format!("type.{n}"), Arc::clone(&long));
        memory.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
    }
    let bytes = |webhooks: &Arc<[Webhook]>| webhooks.iter().map(Webhook::size).sum::<usize>();
    let held: usize =
        memory.by_type.entries.iter().map(|(_, (held, _))| bytes(&held.everybodys)).sum();
    assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&held), "{held}");
    assert_eq!(memory.by_id.entries.len(), COUNT as usize);
    for n in 0..10_000 {
        memory.remember_found(Uuid::from_u128(n), Found::Enabled(webhook(&url)));
    }
    // Both kinds have lost some entries.
    assert!(memory.by_type.bytes + memory.by_id.bytes <= MOST_BYTES);
    assert!(memory.by_type.bytes.abs_diff(memory.by_id.bytes) < MOST_BYTES / 50);
    assert!(memory.found(Uuid::from_u128(9_999)).is_some());
    assert!(memory.found(Uuid::from_u128(0)).is_none());
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
fn a_change_forgets_only_the_answers_that_it_may_have_made_invalid() {
    let mut memory = memory(99);
    for (event_type, numbers) in
        [("a.b", &[1, 2][..]), ("a.c", &[2]), ("d", &[3]), ("e.f", &[]), ("e", &[])]
    {
        remember(&mut memory, event_type, numbered(numbers));
    }
    let own = Webhook { account: Some("x".into()), ..numbered(&[4])[0].clone() };
    let of_account = EventWebhooks { webhooks: Arc::new([own]), accounts: None };
    memory.remember_wanting("d", Some("x"), of_account);
    let by_id = numbered(&[1, 2]);
    for webhook in by_id.iter().map(|it| Webhook { as_of: AsOf::new(0, 0), ..it.clone() }) {
        memory.remember_found(webhook.id, Found::Enabled(webhook));
    }
    for number in 3..=5 {
        memory.remember_found(Uuid::from_u128(number), Found::Deleted);
    }
    let retried = [1, 2].map(|it| match memory.found(Uuid::from_u128(it)) {
        Some(Found::Enabled(webhook)) => webhook,
        other => panic!("{other:?}"),
    });
    let outlived = || retried.each_ref().map(|webhook| webhook.as_of.changes());
    let in_hand = memory.wanting("a.c", None).expect("it is remembered").webhooks;
    let of_two = memory.wanting("a.b", None).expect("it is remembered").webhooks;
    let is_known = |memory: &mut Memory| {
        let types = ["a.b", "a.c", "d", "e.f", "e"];
        let types = types.map(|event_type| memory.wanting(event_type, None).is_some());
        let of_account = memory.wanting("d", Some("x")).is_some();
        let ids = (1..=5).filter(|it| memory.found(Uuid::from_u128(*it)).is_some());
        (types, of_account, ids.collect::<Vec<_>>())
    };
    let all = vec![1, 2, 3, 4, 5];
    assert_eq!(is_known(&mut memory), ([true; 5], true, all));

    // The first webhook now wants other types: those that begin with `e.`.
    let id = Uuid::from_u128(1);
    let change = |id: &str, pattern: &str, account: &str| {
        Scope::read(&format!(
            r#"{{"ids":[{id}],"patterns":["{pattern}"],"accounts":[{account}],"everybody":{}}}"#,
            account.is_empty()
        ))
    };
    assert!(memory.forget(&change(&format!("\"{id}\""), "e.*", "")).is_none());
    let rest = vec![2, 3, 4, 5];
    assert_eq!(is_known(&mut memory), ([false, true, true, false, true], true, rest));
    assert_eq!((in_hand[0].as_of.changes(), of_two[0].as_of.changes()), (1, 0));
    assert_eq!(outlived(), [0, 1]);

    // A webhook of an account is removed.
    assert!(memory.forget(&Scope::of_webhook(Uuid::from_u128(4))).is_none());
    let rest = vec![2, 3, 5];
    assert_eq!(is_known(&mut memory), ([false, true, true, false, true], false, rest));
    assert_eq!((in_hand[0].as_of.changes(), of_two[0].as_of.changes()), (2, 0));

    // A webhook now wants these.
    assert!(memory.forget(&change("", "d", "")).is_none());
    assert_eq!(is_known(&mut memory).0, [false, true, false, false, true]);
    assert_eq!(memory.by_account.bytes, 0);

    assert!(memory.forget(&Scope::everything()).is_some());
    assert_eq!(is_known(&mut memory), ([false; 5], false, vec![]));
    assert_eq!((memory.generation, in_hand[0].as_of.changes()), (4, 3));
}

#[test]
fn a_change_of_an_accounts_webhooks_leaves_the_answers_for_other_accounts() {
    let mut memory = memory(99);
    let own = |own: &str| Some(vec![None, Some(own.to_owned())]);
    memory.remember_wanting("t", Some("a"), answer(&[None, Some("a")], Some(&["a", "b"])));
    memory.remember_wanting("t", Some("b"), answer(&[None, Some("b")], None));
    let change = |account: &str| {
        let id = Uuid::from_u128(9);
        Scope::read(&format!(
            r#"{{"ids":["{id}"],"patterns":["*"],"accounts":["{account}"],"everybody":false}}"#
        ))
    };
    assert!(memory.forget(&change("b")).is_none());
    let all = [None, Some("a"), Some("b"), Some("c")];
    let found = all.map(|account| wanting(&mut memory, account));
    assert_eq!(found, [Some(vec![None]), own("a"), None, Some(vec![None])]);
    // This account had no webhooks until now.
    assert!(memory.forget(&change("c")).is_none());
    assert_eq!(all.map(|account| wanting(&mut memory, account)), [None, None, None, None]);
    memory.remember_wanting("t", Some("c"), answer(&[None, Some("c")], None));
    let found = all.map(|account| wanting(&mut memory, account));
    assert_eq!(found, [Some(vec![None]), own("a"), None, own("c")]);
}
