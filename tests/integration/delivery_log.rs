//! The delivery log: what it contains, and that it never delays a delivery.

use std::process::Stdio;

use postgres::NoTls;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    Event, LATER, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, process::Process, wait_for,
    wait_until,
};

/// An entry without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    outcome: String,
    attempt: i32,
    status: Option<i32>,
    reason: Option<String>,
    detail: String,
    /// How long it waits for its next attempt, in milliseconds.
    wait_ms: Option<i64>,
    dead: Option<String>,
}

fn row(outcome: &str, attempt: i32) -> Row {
    Row {
        outcome: outcome.to_owned(),
        attempt,
        status: None,
        reason: None,
        detail: String::new(),
        wait_ms: None,
        dead: None,
    }
}

fn status_500(attempt: i32) -> Row {
    let (reason, detail) = (Some("status_5xx".to_owned()), "status 500".to_owned());
    Row { status: Some(500), reason, detail, ..row("failed", attempt) }
}

/// The table's entries of an event, with a webhook or without.
fn rows(sandbox: &Sandbox, event: &Event, webhook: Option<Uuid>) -> Vec<Row> {
    let rows = sandbox.database.query(
        "SELECT outcome, attempt, status, reason, detail, dead,
             (extract(epoch FROM next_attempt_at - at) * 1000)::bigint
         FROM delivery_attempts
         WHERE event_id = $1 AND webhook_id IS NOT DISTINCT FROM $2 ORDER BY at, id",
        &[&event.id, &webhook],
    );
    let row = |row: &postgres::Row| Row {
        outcome: row.get(0),
        attempt: row.get(1),
        status: row.get(2),
        reason: row.get(3),
        detail: row.get(4),
        dead: row.get(5),
        wait_ms: row.get(6),
    };
    rows.iter().map(row).collect()
}

fn count(sandbox: &Sandbox) -> i64 {
    sandbox.database.query("SELECT count(*) FROM delivery_attempts", &[])[0].get(0)
}

/// Waits until the table has `expected` entries.
#[track_caller]
fn wait_count(sandbox: &Sandbox, expected: i64) {
    wait_until(SOON, &format!("the log has {expected} entries"), || count(sandbox) == expected);
}

fn metric(notifier: &Notifier, result: &str) -> f64 {
    notifier.metric("webhook_delivery_log_rows_total", &[("result", result)])
}

fn gaps(notifier: &Notifier) -> usize {
    notifier.stderr().iter().filter(|line| line.contains("delivery log has gaps")).count()
}

/// `/once` fails once, `/never` always.
fn receiver() -> Receiver {
    Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/never", _) | ("/once", 1) => Reply::Status(500),
        _ => Reply::Status(200),
    })
}

#[test]
fn failures_are_logged_from_their_beginning_to_their_end_and_nothing_else() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let webhook = |path: &str| sandbox.webhook(&receiver.url(path), &[&path[1..]]);
    let (good, once, never) = (webhook("/good"), webhook("/once"), webhook("/never"));
    let forbidden = sandbox.webhook("http://10.1.2.3/?token=s3cret", &["forbidden"]);
    let away = sandbox.webhook(&format!("{}?s3cret", receiver.refusing_url()), &["away"]);
    let mut notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "300ms").env("CIRCUIT_BREAKER", "off").start();
    let publish = |kind: &str| {
        let event = Event::new(kind);
        sandbox.publish(&event);
        event
    };
    let [well, unmatched, retried, doomed, rejected, refused] =
        ["good", "nobody", "once", "never", "forbidden", "away"].map(publish);
    wait_count(&sandbox, 7);

    let waits = |row| Row { wait_ms: Some(300), ..row };
    let delivered = Row { status: Some(200), ..row("delivered", 2) };
    assert_eq!(rows(&sandbox, &retried, Some(once)), [waits(status_500(1)), delivered]);
    let dead = Row { dead: Some("exhausted".to_owned()), ..status_500(2) };
    assert_eq!(rows(&sandbox, &doomed, Some(never)), [waits(status_500(1)), dead]);
    let of_rejected = rows(&sandbox, &rejected, Some(forbidden));
    assert_eq!(of_rejected[0].dead.as_deref(), Some("rejected"), "{of_rejected:?}");
    assert!(of_rejected[0].detail.contains("ALLOW_NETWORKS"), "{of_rejected:?}");
    let of_refused = rows(&sandbox, &refused, Some(away));
    assert_eq!(of_refused.len(), 2, "{of_refused:?}");
    assert_eq!(of_refused[1].reason.as_deref(), Some("refused"), "{of_refused:?}");
    // They were published first, and would have been written first.
    assert_eq!(rows(&sandbox, &well, Some(good)), []);
    assert_eq!(rows(&sandbox, &unmatched, None), []);
    let table = sandbox.database.query(
        "SELECT string_agg(entry::text, ' '), bool_and(queue = $1 AND ms >= 0)
         FROM delivery_attempts AS entry",
        &[&sandbox.queue()],
    );
    assert!(!table[0].get::<_, String>(0).contains("s3cret"));
    assert!(table[0].get::<_, bool>(1));
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 7.0);
    assert_eq!(metric(&notifier, "dropped"), 0.0);

    // How a delivery ends that began before it was dead.
    sandbox.database.execute("UPDATE webhooks SET post_url = $1", &[&receiver.url("/good")]);
    let replay = ["dead-letters", "replay", "--webhook", &never.to_string()];
    wait_until(SOON, "the dead letter was there", || {
        let replayed = sandbox.command(&replay);
        replayed.stdout.contains("1 replayed")
    });
    wait_until(SOON, "its end is logged", || {
        let rows = rows(&sandbox, &doomed, Some(never));
        rows.last().is_some_and(|last| last.outcome == "delivered")
    });
    assert!(notifier.is_running());
}

#[test]
fn deliveries_that_are_held_back_or_dropped_are_logged() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let webhook = sandbox.webhook(&receiver.url("/never"), &["*"]);
    let launch = sandbox.notifier().env("RETRY_SCHEDULE", "3s,repeat");
    let notifier = launch.env("CIRCUIT_BREAKER", "2,2s,2s").start();
    // Once two of them have failed, the circuit breaker is open most of the time.
    let held_back = wait_for(SOON, "one is held back", || {
        sandbox.publish(&Event::new("order.paid"));
        let rows = sandbox.database.query(
            "SELECT detail, webhook_id = $1 AND next_attempt_at IS NULL AND ms IS NULL
             FROM delivery_attempts WHERE outcome = 'held_back' AND reason = 'breaker'
                 AND attempt = 0 AND dead IS NULL LIMIT 1",
            &[&webhook],
        );
        rows.into_iter().next()
    });
    assert_eq!(
        held_back.get::<_, &str>(0),
        "no attempt yet: the receiver's circuit breaker is open"
    );
    assert!(held_back.get::<_, bool>(1));

    sandbox.database.execute("DELETE FROM webhooks", &[]);
    wait_until(SOON, "those that failed are dropped when they are too old", || {
        let rows = sandbox.database.query(
            "SELECT count(*), count(*) FILTER (WHERE last = 'dropped deleted') FROM (
                 SELECT DISTINCT ON (event_id) outcome || ' ' || reason AS last,
                        next_attempt_at IS NULL AND outcome = 'held_back' AS was_in_backlog
                 FROM delivery_attempts ORDER BY event_id, at DESC, id DESC
             ) AS events WHERE NOT was_in_backlog",
            &[],
        );
        let [all, dropped] = [0, 1].map(|column| rows[0].get::<_, i64>(column));
        all > 0 && all == dropped
    });
    // Those in the backlog are dropped at once, without an entry for each.
    let dropped = notifier.metric("webhook_deliveries_dropped_total", &[("reason", "deleted")]);
    assert!(dropped >= 3.0, "{dropped} dropped");
}

#[test]
fn with_all_everything_is_logged_and_entries_queued_at_the_end_are_written() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let good = sandbox.webhook(&receiver.url("/good"), &["good"]);
    for _ in 0..2 {
        sandbox.webhook(&receiver.url("/many"), &["many"]);
    }
    let launch = || sandbox.notifier().env("DELIVERY_LOG", "all").env("FANOUT_INLINE", "1");
    let notifier = launch().start();
    let events: Vec<_> = (0..100).map(|_| Event::new("good")).collect();
    let (unmatched, split) = (Event::new("nobody"), Event::new("many"));
    sandbox.broker.publish(sandbox.queue(), &events);
    sandbox.broker.publish(sandbox.queue(), &[unmatched.clone(), split]);
    receiver.wait_at("/many", 2);
    notifier.terminate();

    assert_eq!(count(&sandbox), 100 + 1 + 4);
    let delivered = Row { status: Some(200), ..row("delivered", 1) };
    for event in &events {
        assert_eq!(rows(&sandbox, event, Some(good)), std::slice::from_ref(&delivered));
    }
    assert_eq!(rows(&sandbox, &unmatched, None), [row("unmatched", 0)]);
    let handed_over = "SELECT count(*) FROM delivery_attempts
         WHERE outcome = 'handed_over' AND reason = 'split' AND attempt = 0";
    assert_eq!(sandbox.database.query(handed_over, &[])[0].get::<_, i64>(0), 2);
}

#[test]
fn with_off_nothing_is_logged() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    sandbox.webhook(&receiver.url("/never"), &["*"]);
    // Without the table, no statement would need it.
    sandbox.database.execute("ALTER TABLE delivery_attempts RENAME TO kept", &[]);
    let notifier =
        sandbox.notifier().env("DELIVERY_LOG", "off").env("RETRY_SCHEDULE", "100ms").start();
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_dead_letters_total", &[], 1.0);
    assert_eq!((metric(&notifier, "written"), metric(&notifier, "dropped")), (0.0, 0.0));
    let exit = notifier.terminate();
    assert_eq!(exit.code, Some(0));
    assert_eq!(sandbox.database.query("SELECT FROM kept", &[]).len(), 0);
}

#[test]
fn while_postgresql_is_away_or_hangs_deliveries_continue_and_rows_wait_or_are_dropped() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(sandbox.database.url());
    let mut notifier = sandbox
        .notifier()
        .env("DATABASE_URL", proxy.url(sandbox.database.url()))
        .env("DELIVERY_LOG", "all")
        .start();
    let deliver = |number: usize| {
        let before = receiver.requests().len();
        for _ in 0..number {
            sandbox.publish(&Event::new("order.paid"));
        }
        receiver.wait_at_within(LATER, "/", before + number);
    };
    notifier.wait_listening();
    deliver(1);
    // Not only in the table: an entry whose confirmation is cut off is written once more.
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 1.0);

    // An outage of PostgreSQL: nothing is missing afterwards.
    proxy.refuse();
    deliver(20);
    assert_eq!(metric(&notifier, "dropped"), 0.0);
    proxy.thaw();
    wait_until(LATER, "what waited is written", || count(&sandbox) == 21);
    // The directory has to know its webhooks again before PostgreSQL hangs.
    notifier.wait_stderr(LATER, "directory in use again");
    deliver(1);
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 22.0);
    assert_eq!((metric(&notifier, "dropped"), gaps(&notifier)), (0.0, 0));

    // PostgreSQL hangs: entries that were being written may be lost, and are counted as such.
    proxy.freeze();
    deliver(20);
    wait_until(LATER, "rows are dropped", || metric(&notifier, "dropped") >= 1.0);
    notifier.wait_stderr(SOON, "delivery log has gaps");
    deliver(20);
    proxy.close_frozen();
    proxy.thaw();
    wait_until(LATER, "all others are written", || {
        let written = metric(&notifier, "written");
        written + metric(&notifier, "dropped") == 62.0 && written == count(&sandbox) as f64
    });
    notifier.wait_stderr(LATER, "delivery log complete again");
    assert_eq!(gaps(&notifier), 1);
    assert_eq!(receiver.requests().len(), 62);
}

#[test]
fn without_its_table_one_line_says_what_to_do_and_nothing_else_is_affected() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let webhook = sandbox.webhook(&receiver.url("/never"), &["*"]);
    sandbox.database.run_script(
        "DROP TABLE delivery_attempts;
         DELETE FROM schema_migrations WHERE name = 'delivery_attempts'",
    );
    let mut notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "1s").env("CIRCUIT_BREAKER", "off").start();
    let line = notifier.wait_stderr(SOON, "delivery log has gaps");
    assert!(line.contains("webhook-notifier migrate"), "{line}");
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_dead_letters_total", &[], 1.0);
    wait_until(SOON, "rows are dropped", || metric(&notifier, "dropped") >= 1.0);

    let migrated = sandbox.command(&["migrate"]);
    assert!(migrated.stdout.contains("applied: delivery_attempts"), "{migrated:?}");
    notifier.wait_stderr(LATER, "delivery log complete again");
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "it is logged", || rows(&sandbox, &event, Some(webhook)).len() == 2);
    // Between two migrations a column may be missing, too.
    let lines = notifier.stderr();
    let warnings = lines.iter().filter(|line| line.contains("has gaps") && line.contains("42P01"));
    assert_eq!(warnings.count(), 1, "{lines:?}");
}

/// Inserts entries of an event by SQL, with this age.
fn insert(sandbox: &Sandbox, event: &str, age: &str, number: i32) {
    sandbox.database.execute(
        &format!(
            "INSERT INTO delivery_attempts
                 (at, event_id, event_type, queue, outcome, attempt, detail)
             SELECT now() - interval '{age}', $1 || '-' || n, 'order.paid', 'q', 'unmatched', 0, ''
             FROM generate_series(1, $2) AS n"
        ),
        &[&event, &number],
    );
}

#[test]
fn entries_older_than_the_limit_are_deleted_by_whichever_instance() {
    let sandbox = Sandbox::new();
    // Two and a half chunks.
    insert(&sandbox, "old", "49 hours", 12_500);
    insert(&sandbox, "new", "47 hours", 10);
    let instances = [(); 2].map(|()| sandbox.notifier().env("DELIVERY_LOG_KEEP", "2d").start());
    wait_count(&sandbox, 10);
    for notifier in &instances {
        assert_eq!(gaps(notifier), 0);
    }
}

fn tail(sandbox: &Sandbox, arguments: &[&str]) -> Process {
    sandbox.launch(&[&["tail", "--json"], arguments].concat()).spawn()
}

fn ids(tail: &Process) -> Vec<String> {
    let id = |line: &String| -> String {
        let entry: Value = serde_json::from_str(line).expect("a line of JSON");
        entry["event_id"].as_str().expect("an id").to_owned()
    };
    tail.stdout().iter().map(id).collect()
}

#[track_caller]
fn wait_ids(tail: &Process, expected: &[&str]) {
    wait_until(SOON, &format!("it shows {expected:?}"), || ids(tail).len() >= expected.len());
    assert_eq!(ids(tail), expected);
}

#[test]
fn tail_begins_with_the_last_lines_and_misses_no_late_entry() {
    let sandbox = Sandbox::new();
    insert(&sandbox, "before", "1 minute", 5);
    let follower = tail(&sandbox, &["--lines", "2"]);
    wait_ids(&follower, &["before-4", "before-5"]);

    // It has smaller ids, and becomes visible later.
    let mut late = postgres::Client::connect(sandbox.database.url(), NoTls).expect("it answers");
    let mut transaction = late.transaction().expect("it begins");
    let insert_late = "INSERT INTO delivery_attempts
             (at, event_id, event_type, queue, outcome, attempt, detail)
         VALUES (now(), 'late', 'order.paid', 'q', 'unmatched', 0, '')";
    transaction.execute(insert_late, &[]).expect("it is inserted");
    insert(&sandbox, "early", "0 s", 1);
    wait_ids(&follower, &["before-4", "before-5", "early-1"]);
    transaction.commit().expect("it is committed");
    wait_ids(&follower, &["before-4", "before-5", "early-1", "late"]);
    insert(&sandbox, "many", "0 s", 2_500);
    wait_until(SOON, "it shows more than a page", || ids(&follower).len() >= 2_504);
    insert(&sandbox, "last", "0 s", 1);
    wait_until(SOON, "it shows the last", || ids(&follower).len() >= 2_505);
    let mut once = ids(&follower);
    assert_eq!(once.last().map(String::as_str), Some("last-1"));
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), 2_505, "each is shown once");
}

#[test]
fn tail_shows_attempts_of_all_instances_as_they_are_made_or_some_of_them() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let never = sandbox.webhook(&receiver.url("/never"), &["never"]);
    sandbox.webhook(&receiver.url("/good"), &["good"]);
    let start = || {
        let notifier = sandbox.notifier().env("DELIVERY_LOG", "all");
        notifier.env("RETRY_SCHEDULE", "1h").env("CIRCUIT_BREAKER", "off").start()
    };
    let _instances = [start(), start()];
    let proxy = Proxy::before(sandbox.database.url());
    let by_proxy = sandbox.launch(&["tail"]).env("DATABASE_URL", proxy.url(sandbox.database.url()));
    let mut everything = by_proxy.spawn();
    let failures = tail(&sandbox, &["--failures"]);
    let of_webhook = tail(&sandbox, &["--webhook", &never.to_string()]);
    let events = ["good", "never", "good", "never"].map(Event::new);
    for event in &events {
        sandbox.publish(event);
    }
    for event in &events {
        everything.wait_stdout(SOON, &event.id);
    }
    let line = everything.wait_stdout(SOON, &events[1].id);
    for part in ["failed", "status 500", "next in 1h", &never.to_string()[..8]] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    for follower in [&failures, &of_webhook] {
        for event in [&events[1], &events[3]] {
            follower.wait_stdout(SOON, &event.id);
        }
        assert!(!ids(follower).contains(&events[0].id));
    }

    proxy.refuse();
    everything.wait_stderr(LATER, "this command continues once it answers");
    let meanwhile = Event::new("good");
    sandbox.publish(&meanwhile);
    proxy.thaw();
    everything.wait_stderr(LATER, "PostgreSQL answers again");
    everything.wait_stdout(SOON, &meanwhile.id);
}

#[test]
fn tail_ends_when_nobody_reads_it_any_more() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.launch(&["tail"]).0;
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    drop(child.stdout.take());
    let status = wait_for(SOON, "it ends", || child.try_wait().expect("it is our child"));
    assert!(status.success(), "{status:?}");
}
