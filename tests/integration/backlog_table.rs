//! The table of backlogs, and what the commands show of it: pauses, and how many deliveries wait where.

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

use amiquip::FieldTable;
use clap::{Args as _, FromArgMatches as _};
use crossbeam_channel::bounded;
use serde_json::{Value, json as literal};
use uuid::Uuid;
use webhook_notifier::{
    broker::backlog_queue,
    config::{Config, Settings},
    directory::{Directory, TableChange},
    metrics::Metrics,
    shutdown,
    store::{BacklogRow, RemoveError, Standing, Store, StoreError},
};

use crate::{
    commands::{json, succeed},
    harness::{Event, Receiver, SOON, Sandbox, Servers, wait_until},
};

fn config(sandbox: &Sandbox) -> Config {
    let command = Settings::augment_args(clap::Command::new("notifier"));
    let url = sandbox.database.url();
    let matches = command.get_matches_from(["notifier", "--database-url", url]);
    Settings::from_arg_matches(&matches).expect("a URL").read().expect("a URL")
}

fn store(sandbox: &Sandbox) -> Store {
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
fn a_database_of_the_version_before_keeps_its_rows() {
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
    // By hand, on top of what exists.
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
    assert_eq!(store.backlogs().expect("it answers"), [], "a note makes none");

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

    // Opened by another instance, or once more: it has still waited since then.
    store.open_backlog("low", webhook, "rate", "prompt").expect("it answers");
    assert_eq!(only(&store), BacklogRow { class: "prompt".to_owned(), ..noted.clone() });
    store.open_backlog("low", webhook, "paused", "prompt").expect("it answers");
    assert_eq!(only(&store).until, None, "that was another cause's");
    assert_eq!(only(&store).since, noted.since);
    store.restart_backlog("low", webhook).expect("it answers");
    assert!(seconds_ago(only(&store).since) < 30);

    // It is open: nobody may remove it.
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
fn whoever_opens_a_backlog_waits_while_its_queue_is_deleted() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    // Whether it is removed in the end or not, it is open for whoever opened it.
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
                assert!(is_done.load(Ordering::SeqCst), "it has not waited");
            });
            let removed = store.remove_backlog("low", webhook, || {
                begun.send(()).expect("somebody waits for it");
                let blocked = "SELECT pid FROM pg_stat_activity
                               WHERE cardinality(pg_blocking_pids(pid)) > 0
                                   AND query LIKE '%INSERT INTO backlogs%'";
                wait_until(SOON, "the other waits", || {
                    !sandbox.database.query(blocked, &[]).is_empty()
                });
                is_done.store(true, Ordering::SeqCst);
                result
            });
            assert_eq!(removed.is_ok(), result.is_ok(), "{removed:?}");
            opener.join().expect("it has opened it");
        });
        let opened = only(&store);
        assert!(!opened.is_closing && opened.cause == "rate", "{opened:?}");
        sandbox.database.execute("DELETE FROM backlogs", &[]);
    }
}

#[test]
fn a_locked_row_keeps_nobody_waiting_who_would_remove_it() {
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
fn news_of_backlogs_comes_on_a_channel_of_its_own_and_leaves_the_directory_alone() {
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

        // None of these is notified: the next notification is of the webhook's change that follows.
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
fn without_the_trigger_of_backlogs_the_remedy_is_said() {
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
fn the_standing_of_many_webhooks_is_asked_at_once() {
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
fn a_time_that_no_number_can_say_breaks_nothing() {
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

/// A webhook with waiting deliveries, as a notifier leaves it. The queue is deleted when this is
/// dropped.
pub(crate) struct Waiting<'a> {
    sandbox: &'a Sandbox,
    webhook: Uuid,
    queue: String,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, webhook: Uuid, count: usize) -> Self {
        let queue = backlog_queue(sandbox.queue(), webhook);
        sandbox.broker.declare(&queue, FieldTable::new()).expect("a queue under a fresh name");
        let events: Vec<_> = (0..count).map(|_| Event::new("order.paid")).collect();
        sandbox.broker.publish(&queue, &events);
        let waiting = Self { sandbox, webhook, queue };
        waiting.in_the_table(sandbox.queue());
        waiting
    }

    fn in_the_table(&self, queue: &str) {
        self.sandbox.database.execute(
            "INSERT INTO backlogs (queue, webhook_id, since, cause, class)
             VALUES ($1, $2, '2026-11-25 02:54:28Z', 'breaker', 'slow')",
            &[&queue, &self.webhook],
        );
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.sandbox.broker.delete(&self.queue);
    }
}

#[track_caller]
fn json_of(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    json(&succeed(sandbox, &[arguments, &["--json"]].concat()))
}

/// The words of a webhook's line in `webhooks list`.
#[track_caller]
fn listed(sandbox: &Sandbox, webhook: Uuid) -> Vec<String> {
    let table = succeed(sandbox, &["webhooks", "list"]);
    let line = table.lines().find(|line| line.starts_with(&webhook.to_string()));
    line.expect("it is listed").split_whitespace().map(str::to_owned).collect()
}

#[test]
fn webhooks_are_paused_and_resumed_as_often_as_somebody_likes() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    assert_eq!(listed(&sandbox, webhook)[1], "enabled");
    let paused = json_of(&sandbox, &["webhooks", "pause", &id]);
    let since = paused["paused_at"].as_str().expect("a time").to_owned();
    assert_eq!(json_of(&sandbox, &["webhooks", "pause", &id])["paused_at"], since);
    assert_eq!(listed(&sandbox, webhook)[1], "paused");
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    assert!(shown.contains(&format!("\npaused           since {since}")), "{shown}");
    assert_eq!(json_of(&sandbox, &["webhooks", "show", &id])["paused_at"], since);

    // `disabled` takes precedence, and neither changes the other.
    succeed(&sandbox, &["webhooks", "disable", &id]);
    assert_eq!(listed(&sandbox, webhook)[1], "disabled");
    succeed(&sandbox, &["webhooks", "enable", &id]);
    assert_eq!(listed(&sandbox, webhook)[1], "paused");
    for _ in 0..2 {
        let resumed = json_of(&sandbox, &["webhooks", "resume", &id]);
        assert_eq!(resumed["paused_at"], Value::Null);
    }
    assert_eq!(listed(&sandbox, webhook)[1], "enabled");
    assert!(!succeed(&sandbox, &["webhooks", "show", &id]).contains("\npaused "));
    for verb in ["pause", "resume"] {
        let stranger = Uuid::new_v4().to_string();
        let finished = sandbox.command(&["webhooks", verb, &stranger]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains(&stranger), "{finished:?}");
    }
}

#[test]
fn what_waits_in_backlogs_is_shown_as_far_as_it_is_known() {
    let sandbox = Sandbox::new();
    let calm = sandbox.webhook("http://127.0.0.1:9/calm", &["*"]);
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    assert!(!succeed(&sandbox, &["webhooks", "list"]).contains("WAITING"));
    assert_eq!(json_of(&sandbox, &["webhooks", "show", &id])["backlogs"], literal!([]));

    let queue = sandbox.queue();
    let waiting = Waiting::new(&sandbox, webhook, 3);
    let table = succeed(&sandbox, &["webhooks", "list"]);
    let head: Vec<_> = table.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["ID", "STATE", "WAITING", "FAILING", "SINCE", "URL", "EVENTS"]);
    assert_eq!(listed(&sandbox, webhook)[1..3], ["failing", "3"]);
    assert_eq!(listed(&sandbox, calm)[1..3], ["enabled", "-"]);
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    let line = format!("backlog          {queue}: 3 waiting since 2026-11-25T02:54:28Z, breaker");
    assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    let until = "UPDATE backlogs SET until = '9000-01-01 00:00:00Z'";
    sandbox.database.execute(until, &[]);
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    let line = format!("{line}, next attempt at 9000-01-01T00:00:00Z");
    assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    let backlog = literal!({
        "queue": queue, "waiting": 3, "since": "2026-11-25T02:54:28Z", "cause": "breaker",
        "class": "slow", "until": "9000-01-01T00:00:00Z",
    });
    let shown = json_of(&sandbox, &["webhooks", "show", &id]);
    assert_eq!(shown["backlogs"], literal!([backlog]));
    let list = json_of(&sandbox, &["webhooks", "list"]);
    assert_eq!(list[1], shown);
    assert_eq!(list[0]["backlogs"], literal!([]));

    // A queue that doesn't exist, which doesn't affect the numbers of the others.
    waiting.in_the_table("aaa");
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    for part in ["aaa: ? waiting since 2026", &format!("{queue}: 3 waiting")] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert_eq!(listed(&sandbox, webhook)[2], "?");
    let backlogs = json_of(&sandbox, &["webhooks", "show", &id])["backlogs"].take();
    assert_eq!((&backlogs[0]["waiting"], &backlogs[1]["waiting"]), (&Value::Null, &literal!(3)));

    // Without a broker.
    let command = |arguments: &[&str]| {
        let launch = sandbox.launch(arguments).env("AMQP_URL", "amqp://127.0.0.1:9");
        let finished = launch.spawn().finish(SOON);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stderr.contains("is not known: RabbitMQ at 127.0.0.1:9"), "{finished:?}");
        finished
    };
    assert!(command(&["webhooks", "list"]).stdout.contains(" ? "));
    let shown = json(&command(&["webhooks", "show", &id, "--json"]).stdout);
    assert_eq!(shown["backlogs"][1]["waiting"], Value::Null);
    let said = command(&["webhooks", "disable", &id, "--dry-run"]).stdout;
    assert!(said.starts_with("an unknown number of deliveries waits in its backlogs"), "{said}");
    let disabled = command(&["webhooks", "disable", &id]);
    assert!(disabled.stderr.contains("an unknown number"), "{disabled:?}");
}

#[test]
fn what_would_be_dropped_is_said_before_and_on_a_dry_run_nothing_is_done() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    let row = || -> String {
        let rows = sandbox.database.query("SELECT w::text FROM webhooks AS w", &[]);
        rows[0].get(0)
    };
    let before = row();
    for verb in ["disable", "remove"] {
        let said = succeed(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        assert_eq!(said, "nothing waits in its backlogs");
    }
    let waiting = Waiting::new(&sandbox, webhook, 1_234);
    for verb in ["disable", "remove"] {
        let said = succeed(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        assert_eq!(said, "1,234 deliveries wait in its backlogs, and would be dropped");
        let said = json_of(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        assert_eq!(
            (&said["id"], &said["backlogs"][0]["waiting"]),
            (&literal!(id), &literal!(1_234))
        );
        let stranger = Uuid::new_v4().to_string();
        let finished = sandbox.command(&["webhooks", verb, &stranger, "--dry-run"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
    }
    assert_eq!(row(), before);
    for verb in ["disable", "remove"] {
        let finished = sandbox.command(&["webhooks", verb, &id, "--json"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let said = "1,234 deliveries wait in its backlogs, and will be dropped";
        assert!(finished.stderr.contains(said), "{finished:?}");
        assert_eq!(json(&finished.stdout)["id"], id);
    }
    assert!(sandbox.database.query("SELECT id FROM webhooks", &[]).is_empty());
    // The rows of its backlogs remain: they say that there are queues.
    assert_eq!(store(&sandbox).backlogs().expect("it answers").len(), 1);
    drop(waiting);
}
