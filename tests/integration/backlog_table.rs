//! The table of backlogs: its rows, their locks, and the notifications of their changes.

use std::{
    convert::Infallible,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use clap::{Args as _, FromArgMatches as _};
use crossbeam_channel::bounded;
use uuid::Uuid;
use webhook_notifier::{
    config::{Config, Settings},
    directory::{Directory, TableChange},
    metrics::Metrics,
    shutdown,
    store::{BacklogRow, RemoveError, Standing, Store, StoreError},
};

use crate::{
    commands::succeed,
    harness::{Event, Receiver, SOON, Sandbox, Servers, wait_until},
};

fn config(sandbox: &Sandbox) -> Config {
    let command = Settings::augment_args(clap::Command::new("notifier"));
    let url = sandbox.database.url();
    let matches = command.get_matches_from(["notifier", "--database-url", url]);
    Settings::from_arg_matches(&matches).expect("a URL").read().expect("a URL")
}

pub(crate) fn store(sandbox: &Sandbox) -> Store {
    Store::new(&config(sandbox)).expect("a URL")
}

/// The only backlog.
#[track_caller]
fn only(store: &Store) -> BacklogRow {
    let mut rows = store.backlogs().expect("it answers");
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

fn never() -> Result<(), Infallible> {
    panic!("its queue must not be deleted")
}

fn seconds_ago(time: SystemTime) -> u64 {
    time.elapsed().unwrap_or_default().as_secs()
}

#[test]
fn migrating_an_older_database_keeps_its_rows() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut names: Vec<_> = fs::read_dir(&root)
        .expect("sql/ is there")
        .map(|entry| entry.expect("it can be read").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    sandbox.database.run_script(
        "CREATE TABLE schema_migrations (version INTEGER PRIMARY KEY, name TEXT NOT NULL,
             applied_at TIMESTAMPTZ NOT NULL DEFAULT now())",
    );
    for (name, version) in names.iter().take(7).zip(1_i32..) {
        let sql = fs::read_to_string(root.join(name)).expect("it can be read");
        sandbox.database.run_script(&sql);
        let insert = "INSERT INTO schema_migrations (version, name) VALUES ($1, $2)";
        sandbox.database.execute(insert, &[&version, name]);
    }
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, secret, account, disabled_at)
             SELECT 'https://example.org/' || n, ARRAY['type.' || n], 's' || n, 'a' || n, now()
             FROM generate_series(1, 1000) AS n;
         INSERT INTO delivery_attempts
             (at, event_id, event_type, queue, outcome, attempt, detail)
             VALUES (now(), 'e', 't', 'q', 'delivered', 1, '')",
    );
    let rows = || -> Vec<String> {
        let all = "SELECT md5(string_agg(row_to_json(w)::jsonb::text, '' ORDER BY id))
                   FROM (SELECT id, post_url, events, created_at, secret, account, disabled_at
                         FROM webhooks) AS w
                   UNION ALL SELECT md5(string_agg((at, event_id, queue, outcome, attempt)::text, ''))
                   FROM delivery_attempts";
        sandbox.database.query(all, &[]).iter().map(|row| row.get(0)).collect()
    };
    let before = rows();

    let migrated = succeed(&sandbox, &["migrate"]);
    let applied = "applied: backlogs, deferrals, accounts";
    assert!(migrated.starts_with(applied), "{migrated}");
    assert!(migrated.contains("1000 webhooks have an account"), "{migrated}");
    assert_eq!(rows(), before);
    let paused = "SELECT id FROM webhooks WHERE paused_at IS NOT NULL";
    assert!(sandbox.database.query(paused, &[]).is_empty());
    assert!(succeed(&sandbox, &["migrate"]).contains("nothing to do"));
    // A file can also be run by hand, although its objects exist.
    let sql = fs::read_to_string(root.join("008_backlogs.sql")).expect("it can be read");
    sandbox.database.run_script(&sql);
}

#[test]
fn a_backlog_is_opened_noted_closed_and_removed_with_its_queue() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let webhook = Uuid::new_v4();
    let age = |interval: &str| {
        let sql = format!("UPDATE backlogs SET since = now() - interval '{interval}'");
        sandbox.database.execute(&sql, &[]);
    };
    assert_eq!(store.backlogs().expect("it answers"), []);
    assert!(!store.close_backlog("low", webhook).expect("it answers"), "there is none");
    assert!(!store.remove_backlog("low", webhook, never).expect("it answers"), "there is none");
    store.note_backlog("low", webhook, "breaker", "slow", None).expect("it answers");
    assert_eq!(store.backlogs().expect("it answers"), [], "a note creates none");

    store.open_backlog("low", webhook, "breaker", "prompt").expect("it answers");
    let opened = only(&store);
    assert_eq!((opened.queue.as_str(), opened.webhook), ("low", webhook));
    assert_eq!((opened.cause.as_str(), opened.class.as_str()), ("breaker", "prompt"));
    assert_eq!((opened.until, opened.is_closing), (None, false));
    assert!(seconds_ago(opened.since) < 30, "{opened:?}");

    age("1 hour");
    let until = SystemTime::UNIX_EPOCH + Duration::from_millis(4_000_000_000_123);
    store.note_backlog("low", webhook, "rate", "slow", Some(until)).expect("it answers");
    let noted = only(&store);
    assert_eq!((noted.cause.as_str(), noted.class.as_str()), ("rate", "slow"));
    assert_eq!(noted.until, Some(until));
    assert!(seconds_ago(noted.since) >= 3_600, "{noted:?}");

    // If it is opened again, by whichever instance, it keeps the time since which it has waited.
    store.open_backlog("low", webhook, "rate", "prompt").expect("it answers");
    assert_eq!(only(&store), BacklogRow { class: "prompt".to_owned(), ..noted.clone() });
    store.open_backlog("low", webhook, "paused", "prompt").expect("it answers");
    assert_eq!(only(&store).until, None, "the time belonged to another cause");
    assert_eq!(only(&store).since, noted.since);
    store.restart_backlog("low", webhook).expect("it answers");
    assert!(seconds_ago(only(&store).since) < 30);

    // While it is open, nobody may remove it.
    assert!(!store.remove_backlog("low", webhook, never).expect("it answers"));
    assert!(store.close_backlog("low", webhook).expect("it answers"));
    assert!(store.close_backlog("low", webhook).expect("it answers"), "twice is once");
    assert!(only(&store).is_closing);
    let failed = store.remove_backlog("low", webhook, || Err("the broker is away"));
    assert!(matches!(failed, Err(RemoveError::Queue("the broker is away"))), "{failed:?}");
    assert!(only(&store).is_closing, "the row is as it was");
    let mut deleted = false;
    let removed = store.remove_backlog("low", webhook, || {
        deleted = true;
        Ok::<_, Infallible>(())
    });
    assert!(removed.expect("both are there") && deleted);
    assert_eq!(store.backlogs().expect("it answers"), []);
}

#[test]
fn a_backlog_that_is_opened_again_is_not_removed() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let webhook = Uuid::new_v4();
    store.open_backlog("low", webhook, "breaker", "slow").expect("it answers");
    let until = SystemTime::now() + Duration::from_secs(60);
    store.note_backlog("low", webhook, "breaker", "slow", Some(until)).expect("it answers");
    let old = "UPDATE backlogs SET since = now() - interval '1 day'";
    sandbox.database.execute(old, &[]);
    assert!(store.close_backlog("low", webhook).expect("it answers"));
    store.open_backlog("low", webhook, "breaker", "slow").expect("it answers");
    let opened = only(&store);
    assert!(!opened.is_closing);
    assert_eq!(opened.until, None, "what waited before is gone");
    assert!(seconds_ago(opened.since) < 30, "{opened:?}");
    assert!(!store.remove_backlog("low", webhook, never).expect("it answers"));
    assert_eq!(only(&store), opened, "nothing was done");
}

#[test]
fn opening_a_backlog_waits_while_its_queue_is_deleted() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    // It is open in the end, whether it was removed before or not.
    for result in [Ok(()), Err("the broker is away")] {
        let webhook = Uuid::new_v4();
        store.open_backlog("low", webhook, "breaker", "slow").expect("it answers");
        assert!(store.close_backlog("low", webhook).expect("it answers"));
        let is_done = AtomicBool::new(false);
        let (begun, deleting) = bounded(1);
        thread::scope(|scope| {
            let opener = scope.spawn(|| {
                deleting.recv_timeout(SOON).expect("it is being deleted");
                store.open_backlog("low", webhook, "rate", "prompt").expect("it answers");
                assert!(is_done.load(Ordering::SeqCst), "opening did not wait");
            });
            let removed = store.remove_backlog("low", webhook, || {
                begun.send(()).expect("the opener waits for it");
                let blocked = "SELECT pid FROM pg_stat_activity
                               WHERE cardinality(pg_blocking_pids(pid)) > 0
                                   AND query LIKE '%INSERT INTO backlogs%'";
                wait_until(SOON, "the opener waits", || {
                    !sandbox.database.query(blocked, &[]).is_empty()
                });
                is_done.store(true, Ordering::SeqCst);
                result
            });
            assert_eq!(removed.is_ok(), result.is_ok(), "{removed:?}");
            opener.join().expect("it opens the backlog");
        });
        let opened = only(&store);
        assert!(!opened.is_closing && opened.cause == "rate", "{opened:?}");
        sandbox.database.execute("DELETE FROM backlogs", &[]);
    }
}

#[test]
fn removing_a_backlog_gives_up_while_its_row_is_locked() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let webhook = Uuid::new_v4();
    store.open_backlog("low", webhook, "breaker", "slow").expect("it answers");
    assert!(store.close_backlog("low", webhook).expect("it answers"));
    let mut other =
        postgres::Client::connect(sandbox.database.url(), postgres::NoTls).expect("it answers");
    let mut transaction = other.transaction().expect("it answers");
    transaction.execute("UPDATE backlogs SET cause = 'x'", &[]).expect("it answers");
    let began = Instant::now();
    let removed = store.remove_backlog("low", webhook, never);
    let Err(RemoveError::Store(problem @ StoreError::Failing(_))) = removed else {
        panic!("{removed:?}");
    };
    assert!(problem.to_string().contains("lock timeout"), "{problem}");
    assert!(began.elapsed() >= Duration::from_secs(3) && began.elapsed() < SOON);
    transaction.rollback().expect("it answers");
    assert!(only(&store).is_closing);
}

#[test]
fn changes_of_backlogs_have_a_channel_of_their_own_and_leave_the_directory_alone() {
    let sandbox = Sandbox::new();
    sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let config = config(&sandbox);
    let store = Arc::new(store(&sandbox));
    let metrics = Metrics::new(["q".to_owned()]).expect("one name");
    let directory = Directory::new(&config, Arc::clone(&store), metrics.lookups());
    let told = directory.subscribe();
    let next = |what: &str| told.recv_timeout(SOON).unwrap_or_else(|_| panic!("{what}"));
    let remember = || assert_eq!(directory.wanting("a", None).expect("it answers").len(), 1);
    let (trigger, shutdown) = shutdown::channel();
    thread::scope(|scope| {
        scope.spawn(|| directory.listen(&shutdown, || 0.5));
        // Ends the listener, even if the test fails.
        let _trigger = trigger;
        let began = ["webhooks", "backlogs", "instances"].map(next);
        assert_eq!(began, [TableChange::Webhooks, TableChange::Backlogs, TableChange::Instances]);
        wait_until(SOON, "it listens", || directory.is_listening());
        remember();

        let (low, webhook) = ("low", Uuid::new_v4());
        let other = Uuid::new_v4();
        let told_of = |what: &str, change: &dyn Fn()| {
            change();
            assert_eq!(next(what), TableChange::Backlogs, "{what}");
            assert!(directory.knows_any(), "{what}: it has forgotten the webhooks");
        };
        let open = |webhook| store.open_backlog(low, webhook, "rate", "slow").expect("it answers");
        let close = |webhook| assert!(store.close_backlog(low, webhook).expect("it answers"));
        told_of("opened", &|| open(webhook));
        told_of("closing", &|| close(webhook));
        told_of("opened again", &|| open(webhook));
        told_of("another", &|| open(other));
        told_of("closing, too", &|| close(other));
        told_of("removed", &|| {
            let removed = store.remove_backlog(low, other, || Ok::<_, Infallible>(()));
            assert!(removed.expect("it answers"));
        });

        // None of these is notified: the next notification is that of the webhook's pause below.
        open(webhook);
        store.note_backlog(low, webhook, "breaker", "prompt", None).expect("it answers");
        store.restart_backlog(low, webhook).expect("it answers");
        let in_another_schema = "SELECT pg_notify('backlogs_changed', '1')";
        sandbox.database.query(in_another_schema, &[]);
        assert!(directory.knows_any());
        let id = store.list(None).expect("it answers")[0].id;
        store.set_paused(id, true).expect("it answers");
        assert_eq!(next("paused"), TableChange::Webhooks);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), []);
        let paused = &directory.wanting("a", None).expect("it answers")[0];
        assert!(paused.is_paused, "{paused:?}");

        told_of("all gone", &|| {
            sandbox.database.execute("TRUNCATE backlogs", &[]);
        });
    });
    assert_eq!(told.try_iter().collect::<Vec<_>>(), []);
}

#[test]
fn a_missing_trigger_of_backlogs_is_reported_with_the_remedy() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    assert!(store.check_notifications().expect("it answers").is_ok());
    let mut notifier = sandbox.notifier().start();
    sandbox.database.execute("ALTER TABLE backlogs DISABLE TRIGGER backlogs_changed", &[]);
    let line = notifier.wait_stderr(SOON, "directory bypassed");
    for part in ["`backlogs`", "run `webhook-notifier migrate`"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(store.check_notifications().expect("it answers").is_err());
    let checked = sandbox.command(&["check"]);
    assert!(checked.stdout.contains("run `webhook-notifier migrate`"), "{checked:?}");
    sandbox.database.execute("ALTER TABLE backlogs ENABLE TRIGGER backlogs_changed", &[]);
    notifier.wait_stderr(SOON, "directory in use again");
    notifier.terminate();

    sandbox.database.execute("DROP TABLE backlogs", &[]);
    let missing = store.check().expect_err("the table is needed");
    assert!(missing.to_string().contains("`webhook-notifier migrate`"), "{missing}");
    let checked = sandbox.command(&["check"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
}

#[test]
fn the_standings_of_several_webhooks_are_read_together() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let ids: Vec<_> = (0..5).map(|_| sandbox.webhook("http://127.0.0.1:9/", &["*"])).collect();
    let set = |column: &str, id: &Uuid| {
        let sql = format!("UPDATE webhooks SET {column} = now() WHERE id = $1");
        sandbox.database.execute(&sql, &[id]);
    };
    set("paused_at", &ids[1]);
    set("disabled_at", &ids[2]);
    set("paused_at", &ids[3]);
    set("disabled_at", &ids[3]);
    sandbox.database.execute("DELETE FROM webhooks WHERE id = $1", &[&ids[4]]);
    let standings = store.standings(&ids).expect("it answers");
    let of = ids.iter().map(|id| standings.get(id).copied()).collect::<Vec<_>>();
    let (enabled, paused, disabled) = (Standing::Enabled, Standing::Paused, Standing::Disabled);
    assert_eq!(of, [Some(enabled), Some(paused), Some(disabled), Some(disabled), None]);
    assert!(store.standings(&[]).expect("it answers").is_empty());
}

#[test]
fn a_time_beyond_the_usual_range_breaks_nothing() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let id = webhook.to_string();
    store.open_backlog("low", webhook, "breaker", "slow").expect("it answers");
    for time in ["infinity", "-infinity", "294276-12-31", "4713-01-01 BC", "1960-01-01"] {
        sandbox.database.run_script(&format!(
            "UPDATE backlogs SET since = '{time}', until = '{time}', cause = repeat('x', 100000);
             UPDATE webhooks SET created_at = '{time}', paused_at = '{time}',
                 previous_secret = 'x', previous_secret_expires_at = '{time}'"
        ));
        let row = only(&store);
        assert!(row.since <= SystemTime::now() && row.since >= SystemTime::UNIX_EPOCH, "{row:?}");
        assert_eq!(row.until.is_none(), time.ends_with("infinity"), "{row:?}");
        assert_eq!(row.cause.len(), 255);
        assert!(store.webhooks_wanting("a", None).expect(time)[0].is_paused);
        succeed(&sandbox, &["webhooks", "list"]);
        let shown = succeed(&sandbox, &["webhooks", "show", &id]);
        assert!(shown.contains("paused           since "), "{shown}");
        succeed(&sandbox, &["webhooks", "show", &id, "--json"]);
    }
    let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50);
    let ancient = SystemTime::UNIX_EPOCH - Duration::from_secs(1 << 40);
    for until in [far, ancient] {
        store.note_backlog("low", webhook, "breaker", "slow", Some(until)).expect("it answers");
        assert!(only(&store).until.is_some());
    }
    succeed(&sandbox, &["webhooks", "resume", &id]);
    // The previous secret is invalid, which makes the webhook unusable.
    sandbox.database.run_script("UPDATE webhooks SET previous_secret = NULL");
    let _notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
}
