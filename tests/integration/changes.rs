//! A change to some webhooks takes effect, and keeps what is known of all others.

use postgres::types::ToSql;
use uuid::Uuid;

use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, wait_until};

/// Nobody wants these two. Once END has been settled, so has every event before it.
const END: &str = "nobody.wants.this";
const BEACON: &str = "nobody.wants.that";

/// A notifier that listens, with one consumer, which settles one event after another.
fn start(sandbox: &Sandbox) -> Notifier {
    let notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    notifier.wait_listening();
    publish(sandbox, &notifier, &[]);
    notifier
}

fn answers(notifier: &Notifier, from: &str) -> f64 {
    notifier.metric("webhook_directory_lookups_total", &[("answer", from)])
}

/// Publishes events, and waits until all are settled. Returns how many of them needed a query to PostgreSQL.
#[track_caller]
fn settle(sandbox: &Sandbox, notifier: &Notifier, events: &[Event]) -> f64 {
    let queried = answers(notifier, "database");
    let settled = queried + answers(notifier, "memory") + events.len() as f64 + 1.0;
    sandbox.broker.publish(sandbox.queue(), events);
    sandbox.publish(&Event::new(END));
    wait_until(SOON, "all are looked up", || {
        answers(notifier, "database") + answers(notifier, "memory") >= settled
    });
    answers(notifier, "database") - queried
}

/// Publishes an event of each type. Returns them, and how many of them needed a query to PostgreSQL.
#[track_caller]
fn publish(sandbox: &Sandbox, notifier: &Notifier, types: &[&str]) -> (Vec<Event>, f64) {
    let events: Vec<_> = types.iter().map(|kind| Event::new(kind)).collect();
    let queried = settle(sandbox, notifier, &events);
    (events, queried)
}

#[track_caller]
fn queried(sandbox: &Sandbox, notifier: &Notifier, types: &[&str]) -> f64 {
    publish(sandbox, notifier, types).1
}

/// Makes a change, and waits until the notifier has been notified of it: notifications arrive in order, and
/// after that of a webhook for the beacon PostgreSQL is queried for the webhooks that want it.
#[track_caller]
fn change(sandbox: &Sandbox, notifier: &Notifier, sql: &str, parameters: &[&(dyn ToSql + Sync)]) {
    publish(sandbox, notifier, &[BEACON]);
    sandbox.database.execute(sql, parameters);
    sandbox.database.execute(
        "INSERT INTO webhooks (post_url, events, disabled_at)
         VALUES ('http://127.0.0.1:9/', ARRAY[$1], now())",
        &[&BEACON],
    );
    wait_until(SOON, "the notification of the change arrives", || {
        queried(sandbox, notifier, &[BEACON]) > 0.0
    });
}

#[test]
fn a_change_of_one_webhook_costs_one_query_however_many_types_are_known() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let first = sandbox.webhook(&receiver.url("/first"), &["order.paid"]);
    sandbox.webhook(&receiver.url("/second"), &["user.created"]);
    sandbox.webhook(&receiver.url("/third"), &["shop.*"]);
    let notifier = start(&sandbox);
    let types = ["order.paid", "user.created", "shop.opened", "shop.closed", "unknown"];
    assert_eq!(queried(&sandbox, &notifier, &types), 5.0);
    assert_eq!(queried(&sandbox, &notifier, &types), 0.0);

    let moved = "UPDATE webhooks SET post_url = post_url || '/moved' WHERE id = $1";
    change(&sandbox, &notifier, moved, &[&first]);
    assert_eq!(queried(&sandbox, &notifier, &types), 1.0, "of the one type that it wants");
    receiver.wait_at("/first/moved", 1);
    assert_eq!(queried(&sandbox, &notifier, &types), 0.0);

    // This changes no row.
    change(&sandbox, &notifier, moved, &[&Uuid::nil()]);
    assert_eq!(queried(&sandbox, &notifier, &types), 0.0);

    // So many rows that the notification doesn't name them.
    sandbox.database.execute(
        "INSERT INTO webhooks (post_url, events)
         SELECT 'http://127.0.0.1:9/', '{never}' FROM generate_series(1, 60)",
        &[],
    );
    change(&sandbox, &notifier, "UPDATE webhooks SET description = 'y'", &[]);
    assert_eq!(queried(&sandbox, &notifier, &types), 5.0);
    notifier.terminate();
}

#[test]
fn a_change_of_an_accounts_webhook_keeps_what_is_known_of_other_accounts() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    for account in ["a", "b"] {
        let id = sandbox.webhook(&receiver.url(&format!("/{account}")), &["order.paid"]);
        sandbox
            .database
            .execute("UPDATE webhooks SET account = $1 WHERE id = $2", &[&account, &id]);
    }
    let notifier = start(&sandbox);
    let accounts = ["a", "b", "c"];
    // An event of each account; returns the number of queries to PostgreSQL, and who received them.
    let of_each = || {
        let of = |account: &&str| {
            let body = format!(r#"{{"event_type":"order.paid","account":"{account}"}}"#);
            Event::new("order.paid").body(body)
        };
        let events: Vec<_> = accounts.iter().map(of).collect();
        let queried = settle(&sandbox, &notifier, &events);
        let counts = |event: &Event| ["/a", "/b", "/c"].map(|path| receiver.of(path, event).len());
        (queried, events.iter().map(counts).collect::<Vec<_>>())
    };
    let to = |last: [usize; 3]| vec![[1, 0, 0], [0, 1, 0], last];
    assert_eq!(of_each(), (2.0, to([0; 3])), "the third has none, which is known");
    assert_eq!(of_each(), (0.0, to([0; 3])));
    let touched = "UPDATE webhooks SET description = 'x' WHERE account = 'b'";
    change(&sandbox, &notifier, touched, &[]);
    assert_eq!(of_each(), (1.0, to([0; 3])));
    let inserted = "INSERT INTO webhooks (post_url, events, account) VALUES ($1, '{*}', 'c')";
    change(&sandbox, &notifier, inserted, &[&receiver.url("/c")]);
    // The type is looked up too: it has one more account now.
    assert_eq!(of_each().1, to([0, 0, 1]));
    assert_eq!(of_each(), (0.0, to([0, 0, 1])));
    notifier.terminate();
}

#[test]
fn every_kind_of_change_to_a_webhook_is_honoured() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/it"), &["a.b"]);
    let notifier = start(&sandbox);
    let types = ["a.b", "a.c", "d", "größe.neu"];
    // How often it receives an event of each type after the change.
    let arrive = |sql: &str, parameters: &[&(dyn ToSql + Sync)], expected: [usize; 4]| {
        // So that there is something to forget.
        publish(&sandbox, &notifier, &types);
        change(&sandbox, &notifier, sql, parameters);
        let (events, _) = publish(&sandbox, &notifier, &types);
        let counts: Vec<_> = events.iter().map(|event| receiver.of("/it", event).len()).collect();
        assert_eq!(counts, expected, "{sql}");
    };
    arrive("UPDATE webhooks SET events = '{d}' WHERE id = $1", &[&id], [0, 0, 1, 0]);
    arrive("UPDATE webhooks SET events = '{a.*}' WHERE id = $1", &[&id], [1, 1, 0, 0]);
    arrive("UPDATE webhooks SET events = '{größe.neu}' WHERE id = $1", &[&id], [0, 0, 0, 1]);
    arrive("UPDATE webhooks SET events = '{{*,x},{y,NULL}}' WHERE id = $1", &[&id], [1; 4]);
    arrive("UPDATE webhooks SET disabled_at = now() WHERE id = $1", &[&id], [0; 4]);
    let other = Uuid::new_v4();
    let renamed = "UPDATE webhooks SET disabled_at = NULL, id = $2, events = '{d}' WHERE id = $1";
    arrive(renamed, &[&id, &other], [0, 0, 1, 0]);
    arrive("UPDATE webhooks SET account = 'x' WHERE id = $1", &[&other], [0; 4]);
    arrive("UPDATE webhooks SET account = NULL WHERE id = $1", &[&other], [0, 0, 1, 0]);
    // More than fits into a notification.
    let many = "UPDATE webhooks SET events = '{a.b}' || ARRAY(
                    SELECT 'a.' || n FROM generate_series(1, 900) AS n) WHERE id = $1";
    arrive(many, &[&other], [1, 0, 0, 0]);
    arrive("DELETE FROM webhooks WHERE id = $1", &[&other], [0; 4]);
    let url = receiver.url("/it");
    let inserted = "INSERT INTO webhooks (post_url, events)
                    SELECT $1, ARRAY[CASE n WHEN 60 THEN 'd' ELSE 'never' END]
                    FROM generate_series(1, 60) AS n";
    arrive(inserted, &[&url], [0, 0, 1, 0]);
    arrive("DELETE FROM webhooks WHERE post_url = $1", &[&url], [0; 4]);
    let upserted = "INSERT INTO webhooks (id, post_url, events) VALUES ($1, $2, '{a.c}')
                    ON CONFLICT (id) DO UPDATE SET events = '{d}'";
    arrive(upserted, &[&other, &url], [0, 1, 0, 0]);
    arrive(upserted, &[&other, &url], [0, 0, 1, 0]);
    arrive("TRUNCATE webhooks", &[], [0; 4]);
    notifier.terminate();
}

#[test]
fn changes_are_honoured_in_a_table_whose_collation_ignores_case() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.database.run_script(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         ALTER TABLE webhooks ALTER COLUMN events TYPE TEXT[] COLLATE any_case",
    );
    let notifier = start(&sandbox);
    let types = ["order.paid"];
    assert_eq!(queried(&sandbox, &notifier, &types), 1.0);
    assert_eq!(queried(&sandbox, &notifier, &types), 0.0);
    let inserted = "INSERT INTO webhooks (post_url, events) VALUES ($1, '{Order.Paid}')";
    change(&sandbox, &notifier, inserted, &[&receiver.url("/it")]);
    let (events, _) = publish(&sandbox, &notifier, &types);
    assert_eq!(receiver.of("/it", &events[0]).len(), 1);
    notifier.terminate();
}

#[test]
fn a_change_of_a_row_without_an_id_is_honoured_and_fails_no_statement() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/it"), &["never"]);
    // Without a key, ids may be missing; and the column may have another type.
    sandbox.database.run_script(
        "ALTER TABLE webhooks DROP CONSTRAINT webhooks_pkey;
         ALTER TABLE webhooks ALTER COLUMN id DROP NOT NULL",
    );
    let notifier = start(&sandbox);
    let types = ["order.paid"];
    assert_eq!(queried(&sandbox, &notifier, &types), 1.0);
    let nameless = "INSERT INTO webhooks (id, post_url, events) VALUES (NULL, 'x', '{other}')";
    change(&sandbox, &notifier, nameless, &[]);
    assert_eq!(queried(&sandbox, &notifier, &types), 1.0, "anything may have changed");
    let wanted = "UPDATE webhooks SET events = '{order.paid}' WHERE id = $1";
    change(&sandbox, &notifier, wanted, &[&id]);
    let (events, _) = publish(&sandbox, &notifier, &types);
    assert_eq!(receiver.of("/it", &events[0]).len(), 1);
    notifier.terminate();
}
