//! The table of webhooks: who created it, who changes it, and how soon a change takes effect.

use std::{collections::BTreeSet, fs, path::Path, thread, time::Duration};

use url::Url;
use uuid::Uuid;

use crate::harness::{Event, Receiver, SOON, Sandbox, Servers, process::Finished, wait_until};

/// The table of the system that this one succeeds.
const ORIGINAL_TABLE: &str = "CREATE TABLE webhooks (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    post_url TEXT NOT NULL,
    events TEXT[] NOT NULL,
    created_at TIMESTAMP DEFAULT NOW()
)";

const ORIGINAL_COLUMNS: [(&str, &str, &str, &str); 4] = [
    ("id", "uuid", "NO", "gen_random_uuid()"),
    ("post_url", "text", "NO", ""),
    ("events", "ARRAY", "NO", ""),
    ("created_at", "timestamp without time zone", "YES", "now()"),
];

/// A notification needs a moment from one process to another, but no more.
const A_MOMENT: Duration = Duration::from_secs(5);

fn migrations() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut names: Vec<_> = fs::read_dir(directory)
        .expect("sql/ is there")
        .map(|entry| entry.expect("it can be read").file_name())
        .map(|name| name.into_string().expect("a plain name"))
        .filter(|name| name.ends_with(".sql"))
        .collect();
    names.sort();
    names
}

fn columns(sandbox: &Sandbox) -> Vec<(String, String, String, String)> {
    let rows = sandbox.database.query(
        "SELECT column_name::text, data_type::text, is_nullable::text, coalesce(column_default, '')::text
         FROM information_schema.columns
         WHERE table_schema = current_schema() AND table_name = 'webhooks'
         ORDER BY ordinal_position",
        &[],
    );
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect()
}

#[track_caller]
fn assert_original_columns_first(sandbox: &Sandbox) {
    let columns = columns(sandbox);
    for (column, (name, kind, nullable, default)) in columns.iter().zip(ORIGINAL_COLUMNS) {
        let (own_name, own_kind, own_nullable, own_default) = column;
        assert_eq!(
            (name, kind, nullable, default),
            (own_name.as_str(), own_kind.as_str(), own_nullable.as_str(), own_default.as_str())
        );
    }
    assert!(columns.len() >= ORIGINAL_COLUMNS.len(), "{columns:?}");
}

#[test]
fn the_first_migration_is_the_original_table() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/001_webhooks.sql");
    let sql = fs::read_to_string(path).expect("sql/001_webhooks.sql");
    sandbox.database.run_script(&sql);
    assert_original_columns_first(&sandbox);
    assert_eq!(columns(&sandbox).len(), ORIGINAL_COLUMNS.len());
    // Again, with the table in place.
    sandbox.database.run_script(&sql);
}

fn migrate(sandbox: &Sandbox) -> Finished {
    let finished = sandbox.command(&["migrate"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished
}

#[test]
fn migrations_keep_the_rows_of_the_original_table_and_can_be_repeated() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let receiver = Receiver::new();
    sandbox.database.execute(ORIGINAL_TABLE, &[]);
    let id = sandbox.database.insert_webhook(&receiver.url("/"), &["order.paid"]);
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, created_at)
         SELECT 'https://example.org/' || n, ARRAY['type.' || n], NULL
         FROM generate_series(1, 5000) AS n",
    );
    let rows = || -> Vec<(Uuid, String, Vec<String>)> {
        let rows =
            sandbox.database.query("SELECT id, post_url, events FROM webhooks ORDER BY id", &[]);
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
    };
    let before = rows();

    migrate(&sandbox);
    let recorded = || {
        let rows =
            sandbox.database.query("SELECT m::text FROM schema_migrations AS m ORDER BY 1", &[]);
        rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let first = recorded();
    let columns_once = columns(&sandbox);
    migrate(&sandbox);

    assert!(rows() == before, "rows have changed");
    assert!(before.iter().any(|(own, ..)| *own == id));
    assert_original_columns_first(&sandbox);
    assert_eq!(columns(&sandbox), columns_once);
    assert_eq!(recorded(), first, "the second time changed what is recorded");
    assert_eq!(first.len(), migrations().len(), "{first:?}");

    // The rows are used, too.
    let notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    notifier.terminate();
}

#[test]
fn migrations_at_the_same_time_do_not_disturb_each_other() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| migrate(&sandbox));
        }
    });
    assert_original_columns_first(&sandbox);
}

#[test]
fn webhooks_added_changed_or_deleted_by_sql_take_effect() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/always"), &["*"]);
    let _notifier = sandbox.notifier().start();
    let deliver = |kind: &str| {
        let event = Event::new(kind);
        sandbox.publish(&event);
        wait_until(SOON, "it arrives", || {
            receiver.at("/always").iter().any(|request| request.id() == event.id)
        });
        event
    };
    // Which paths receive an event of that type at present.
    let paths_of = |kind: &str| -> BTreeSet<String> {
        let event = deliver(kind);
        // One at a time: when the next one arrives, the first has been settled.
        deliver("next");
        let requests = receiver.requests();
        let own = requests.into_iter().filter(|request| request.id() == event.id);
        own.map(|request| request.path).collect()
    };
    let becomes = |kind: &str, paths: &[&str]| {
        let paths: BTreeSet<_> = paths.iter().map(|path| String::from(*path)).collect();
        wait_until(A_MOMENT, &format!("{paths:?} receive {kind}"), || paths_of(kind) == paths);
    };
    becomes("order.paid", &["/always"]);

    let id = sandbox.webhook(&receiver.url("/one"), &["order.paid"]);
    becomes("order.paid", &["/always", "/one"]);

    let change = |sql: &str| assert_eq!(sandbox.database.execute(sql, &[&id]), 1);
    let other = receiver.url("/other");
    change(&format!("UPDATE webhooks SET post_url = '{other}' WHERE id = $1"));
    becomes("order.paid", &["/always", "/other"]);

    change("UPDATE webhooks SET events = ARRAY['user.*'] WHERE id = $1");
    becomes("order.paid", &["/always"]);
    becomes("user.created", &["/always", "/other"]);

    change("UPDATE webhooks SET disabled_at = now() WHERE id = $1");
    becomes("user.created", &["/always"]);
    change("UPDATE webhooks SET disabled_at = NULL WHERE id = $1");
    becomes("user.created", &["/always", "/other"]);

    change("DELETE FROM webhooks WHERE id = $1");
    becomes("user.created", &["/always"]);
}

#[test]
fn without_its_table_the_start_fails_and_says_what_to_do() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let finished = sandbox.notifier().spawn().finish(SOON);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{finished:?}");
    assert!(errors[0].contains("migrate"), "{errors:?}");
}

#[test]
fn a_login_or_a_database_that_postgresql_refuses_fails_the_start() {
    let sandbox = Sandbox::new();
    let changed = |change: fn(&mut Url)| {
        let mut url = Url::parse(sandbox.database.url()).expect("a URL");
        change(&mut url);
        String::from(url)
    };
    let wrong = [
        changed(|url| url.set_password(Some("s3cret-Pa55word")).expect("it has a host")),
        changed(|url| url.set_path("/no_such_database")),
    ];
    for url in wrong {
        let finished = sandbox.notifier().env("DATABASE_URL", &url).spawn().finish(SOON);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains("ERROR"), "{finished:?}");
        let password = Url::parse(&url).expect("a URL");
        let password = password.password().expect("it has one");
        assert!(!finished.stderr.contains(password), "{finished:?}");
    }
}
