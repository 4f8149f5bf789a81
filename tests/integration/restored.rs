//! Whatever an operator drops from the tables, `migrate` restores it, and changes no row.

use std::collections::BTreeSet;

use postgres::{Client, NoTls};
use uuid::Uuid;

use crate::{
    commands::succeed,
    harness::{Event, LATER, Receiver, Reply, SOON, Sandbox, wait_until},
};

/// All that can be dropped: what it is, the statement, and its table.
const OBJECTS: &str = "
    WITH tables AS (
        SELECT oid, relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
    ), ours AS (
        SELECT * FROM tables WHERE relname <> 'schema_migrations'
    )
    SELECT 'table ' || relname, 'DROP TABLE ' || relname || ' CASCADE', relname::text FROM tables
    UNION ALL
    SELECT 'column ' || relname || '.' || attname,
           'ALTER TABLE ' || relname || ' DROP COLUMN ' || attname || ' CASCADE', ''
    FROM ours JOIN pg_attribute ON attrelid = ours.oid WHERE attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'constraint ' || conname,
           'ALTER TABLE ' || relname || ' DROP CONSTRAINT ' || conname || ' CASCADE', ''
    FROM ours JOIN pg_constraint ON conrelid = ours.oid
    WHERE contype <> 'n' -- a NOT NULL, which is of the column, and is listed here from PostgreSQL 18 on
    UNION ALL
    SELECT 'index ' || indexrelid::regclass, 'DROP INDEX ' || indexrelid::regclass, ''
    FROM ours JOIN pg_index ON indrelid = ours.oid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
    UNION ALL
    SELECT 'trigger ' || tgname, 'DROP TRIGGER ' || tgname || ' ON ' || relname, ''
    FROM ours JOIN pg_trigger ON tgrelid = ours.oid WHERE NOT tgisinternal
    UNION ALL
    SELECT 'trigger off ' || tgname, 'ALTER TABLE ' || relname || ' DISABLE TRIGGER ' || tgname, ''
    FROM ours JOIN pg_trigger ON tgrelid = ours.oid WHERE NOT tgisinternal
    UNION ALL
    SELECT 'default ' || relname || '.' || attname,
           'ALTER TABLE ' || relname || ' ALTER COLUMN ' || attname || ' DROP DEFAULT', ''
    FROM ours JOIN pg_attrdef ON adrelid = ours.oid
    JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum
    UNION ALL
    SELECT 'identity ' || relname || '.' || attname,
           'ALTER TABLE ' || relname || ' ALTER COLUMN ' || attname || ' DROP IDENTITY', ''
    FROM ours JOIN pg_attribute ON attrelid = ours.oid WHERE attidentity <> ''
    UNION ALL
    SELECT 'function ' || proname, 'DROP FUNCTION ' || proname || ' CASCADE', ''
    FROM pg_proc WHERE pronamespace = current_schema()::regnamespace";

/// The tables' definitions, in a form that doesn't depend on the order of creation.
const SHAPE: &str = "
    SELECT attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod)
           || ' ' || attnotnull || ' ' || attidentity::text || ' '
           || coalesce(pg_get_expr(adbin, adrelid), '-')
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'
        AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT pg_get_indexdef(indexrelid) FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE relnamespace = current_schema()::regnamespace
    UNION ALL
    SELECT pg_get_triggerdef(pg_trigger.oid) || tgenabled::text FROM pg_trigger
    JOIN pg_class ON pg_class.oid = tgrelid
    WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
    UNION ALL
    SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = current_schema()::regnamespace";

fn shape(sandbox: &Sandbox) -> BTreeSet<String> {
    sandbox.database.query(SHAPE, &[]).iter().map(|row| row.get(0)).collect()
}

fn ids(sandbox: &Sandbox) -> BTreeSet<Uuid> {
    let rows = sandbox.database.query("SELECT id FROM webhooks", &[]);
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn migrate_restores_whatever_was_dropped_and_keeps_the_rows() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let fill = || {
        sandbox.webhook(&receiver.url("/"), &["order.*"]);
        sandbox.database.run_script(&format!(
            "INSERT INTO backlogs (queue, webhook_id, cause, class)
             SELECT 'elsewhere', id, 'paused', 'prompt' FROM webhooks ON CONFLICT DO NOTHING;
             INSERT INTO delivery_attempts
                 (at, event_id, event_type, queue, outcome, attempt, detail)
             VALUES (now(), 'e', 't', '{}', 'failed', 1, '')",
            sandbox.queue()
        ));
    };
    fill();
    let whole = shape(&sandbox);
    let objects = sandbox.database.query(OBJECTS, &[]);
    assert!(objects.len() > 50, "{} objects", objects.len());
    for row in objects {
        let (what, drop, table): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let before = ids(&sandbox);
        sandbox.database.run_script(&drop);
        assert_ne!(shape(&sandbox), whole, "{what} was there");
        let migrated = succeed(&sandbox, &["migrate"]);
        assert!(!migrated.contains("nothing to do"), "{what}: {migrated}");
        let (now, missing) = (shape(&sandbox), |it: &BTreeSet<String>| it - &shape(&sandbox));
        assert_eq!(now, whole, "{what}: {migrated} Missing: {:?}", missing(&whole));
        let again = succeed(&sandbox, &["migrate"]);
        assert!(again.contains("nothing to do"), "{what}: {again}");
        if what == "column webhooks.id" || table == "webhooks" {
            fill();
        } else {
            assert_eq!(ids(&sandbox), before, "{what}");
        }
        // What a row has lost with a column is written again, as when a dump is restored.
        sandbox.database.run_script(&format!(
            "UPDATE webhooks SET post_url = '{}', events = '{{order.*}}'",
            receiver.url("/")
        ));
        let checked = sandbox.command(&["check"]);
        assert_eq!(checked.code, Some(0), "{what}: {checked:?}");
        for part in ["missing", "FAIL", "every event asks"] {
            assert!(!checked.stdout.contains(part), "{what}: {checked:?}");
        }
    }
    // A dropped identity continues where it was.
    let rows = sandbox.database.query("SELECT id FROM delivery_attempts", &[]);
    let distinct: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(distinct.len(), rows.len());
    let mut notifier = sandbox.notifier().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "it is delivered", || !receiver.of("/", &event).is_empty());
    assert!(notifier.is_running());
    notifier.terminate();
}

#[test]
fn check_names_missing_objects_and_a_running_notifier_uses_restored_ones() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        Reply::Status(if request.path == "/failing" { 500 } else { 200 })
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);

    sandbox.database.run_script(
        "DROP TABLE delivery_attempts; DROP INDEX webhooks_events_idx;
         DROP TRIGGER webhooks_updated ON webhooks",
    );
    let checked = succeed(&sandbox, &["check"]);
    for part in [
        "missing: index webhooks_events_idx, triggers of webhooks, table delivery_attempts",
        "run `webhook-notifier migrate`",
    ] {
        assert!(checked.contains(part), "no {part:?} in {checked}");
    }
    notifier.wait_stderr(SOON, "directory bypassed");
    succeed(&sandbox, &["migrate"]);
    notifier.wait_stderr(SOON, "directory in use again");
    let failing = sandbox.webhook(&receiver.url("/failing"), &["order.failing"]);
    let event = Event::new("order.failing");
    sandbox.publish(&event);
    wait_until(SOON, "the failure is logged", || {
        let sql = "SELECT FROM delivery_attempts WHERE event_id = $1";
        !sandbox.database.query(sql, &[&event.id]).is_empty()
    });
    sandbox.database.execute("DELETE FROM webhooks WHERE id = $1", &[&failing]);

    // The table itself, with its rows: events that arrive meanwhile wait.
    sandbox.database.run_script("DROP TABLE webhooks");
    notifier.wait_stderr(SOON, "run `webhook-notifier migrate`");
    wait_until(SOON, "it reports the problem", || {
        let answer = notifier.get("/readyz");
        answer.status == 503 && answer.body.contains("does not exist")
    });
    let body = notifier.get("/readyz").body;
    assert!(!body.contains("does not answer"), "{body}");
    assert!(body.contains("run `webhook-notifier migrate`"), "{body}");
    let event = Event::new("order.waiting");
    sandbox.publish(&event);
    // Connected beforehand, so that no look at the table finds it without the webhook.
    let mut client = Client::connect(sandbox.database.url(), NoTls).expect("it answers");
    let migrated = succeed(&sandbox, &["migrate"]);
    assert!(migrated.contains("restored what was missing: table webhooks"), "{migrated}");
    client
        .execute(
            "INSERT INTO webhooks (post_url, events) VALUES ($1, '{*}')",
            &[&receiver.url("/back")],
        )
        .expect("the table is there");
    wait_until(LATER, "it is ready", || notifier.is_ready());
    let event = Event::new("order.after");
    sandbox.publish(&event);
    wait_until(LATER, "it is delivered", || !receiver.of("/back", &event).is_empty());
    notifier.terminate();
}
