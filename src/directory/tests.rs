//! When a look-up uses the memory, and when it asks PostgreSQL.

use super::*;
use crate::config::Settings;
use crate::metrics::Metrics;

/// A directory whose store is never asked: each test provides PostgreSQL's answers.
fn directory() -> Directory {
    let config = Settings::default().read().expect("the defaults");
    let store = Arc::new(Store::new(&config).expect("an URL"));
    let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
    Directory::new(&config, store, metrics.lookups())
}

fn look_up(
    directory: &Directory,
    ask: impl FnOnce() -> Result<Found, StoreError>,
) -> Result<Found, StoreError> {
    directory.look_up(
        |memory| memory.found(Uuid::nil()),
        |_| ask(),
        |memory, found| memory.remember_found(Uuid::nil(), found),
    )
}

fn not_asked() -> Result<Found, StoreError> {
    panic!("it is remembered")
}

fn unavailable() -> Result<Found, StoreError> {
    Err(StoreError::unavailable(&"db:5432/x".into(), "away"))
}

#[test]
fn an_answer_is_remembered_while_listening_works() {
    let directory = directory();
    directory.extend_trust();
    assert_eq!(look_up(&directory, || Ok(Found::Disabled)).ok(), Some(Found::Disabled));
    assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
    assert_eq!(directory.age(), Duration::ZERO);
}

#[test]
fn an_answer_during_which_a_change_was_reported_is_not_remembered() {
    let directory = directory();
    directory.extend_trust();
    let outdated = look_up(&directory, || {
        directory.forget(&Scope::everything());
        Ok(Found::Disabled)
    });
    // It was valid when PostgreSQL was asked, so this look-up may use it.
    assert_eq!(outdated.ok(), Some(Found::Disabled));
    assert_eq!(look_up(&directory, || Ok(Found::Deleted)).ok(), Some(Found::Deleted));
    assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Deleted));
}

#[test]
fn an_answer_that_a_change_has_made_invalid_is_not_used_while_postgresql_is_away() {
    let directory = directory();
    assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
    let failed = look_up(&directory, || {
        directory.forget(&Scope::everything());
        unavailable()
    });
    assert!(failed.is_err());
}

#[test]
fn changes_of_a_kind_are_merged_and_subscribers_never_block_the_directory() {
    let directory = directory();
    let received = |from: &Receiver<TableChange>| from.try_iter().collect::<Vec<_>>();
    let early = directory.subscribe();
    assert_eq!(received(&early), []);
    for _ in 0..5 {
        directory.forget(&Scope::everything());
        directory.notify(TableChange::Backlogs);
    }
    let late = directory.subscribe();
    directory.forget(&Scope::everything());
    assert_eq!(received(&early), [TableChange::Backlogs, TableChange::Webhooks]);
    assert_eq!(received(&late), [TableChange::Webhooks]);
    directory.notify(TableChange::Backlogs);
    assert_eq!(
        (received(&early), received(&late)),
        (vec![TableChange::Backlogs], vec![TableChange::Backlogs])
    );
}

#[test]
fn a_change_of_backlogs_forgets_no_webhooks() {
    let directory = directory();
    assert!(!directory.is_listening());
    directory.extend_trust();
    assert!(directory.is_listening());
    assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
    directory.notify(TableChange::Backlogs);
    assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
}

#[test]
fn a_webhook_may_have_changed_if_a_change_was_reported_or_would_not_have_been() {
    let mut directory = directory();
    directory.start = Instant::now() - Duration::from_secs(1);
    let columns = crate::domain::settings::Columns::default();
    let secrets = crate::domain::webhook::Secrets::default();
    let old = Webhook::new(Uuid::nil(), "http://a/", &secrets, &columns);
    let as_of = AsOf::new(0, u64::MAX);
    let fresh = Webhook { as_of, ..old.clone() };
    let may_have = |directory: &Directory| {
        [&old, &fresh].map(|webhook| directory.may_have_changed_since(webhook))
    };
    assert_eq!(may_have(&directory), [true, false], "no change is reported");
    directory.away.store(true, Ordering::Relaxed);
    assert_eq!(may_have(&directory), [false, false], "nobody can change it");
    directory.extend_trust();
    assert_eq!(may_have(&directory), [false, false], "a change would have been reported");
    directory.forget(&Scope::everything());
    assert_eq!(may_have(&directory), [true, true]);
}

#[test]
fn without_listening_every_look_up_asks_postgresql() {
    let directory = directory();
    for found in [Found::Disabled, Found::Deleted, Found::Disabled] {
        assert_eq!(look_up(&directory, || Ok(found.clone())).ok(), Some(found));
    }
    assert!(directory.age() > Duration::ZERO);
}

#[test]
fn only_the_first_look_up_waits_for_postgresql_while_it_is_away() {
    let directory = directory();
    assert!(look_up(&directory, unavailable).is_err(), "nothing is known yet");
    assert!(look_up(&directory, || Ok(Found::Disabled)).is_ok());
    assert_eq!(look_up(&directory, unavailable).ok(), Some(Found::Disabled));
    assert_eq!(look_up(&directory, not_asked).ok(), Some(Found::Disabled));
    // Another look-up was answered.
    directory.away.store(false, Ordering::Relaxed);
    assert_eq!(look_up(&directory, || Ok(Found::Deleted)).ok(), Some(Found::Deleted));
}
