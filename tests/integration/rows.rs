//! Whatever a row of the table contains: at worst it costs that webhook its deliveries, is named, and
//! affects no other.

use serde_json::Value;
use uuid::Uuid;

use crate::{
    commands::{json, succeed},
    harness::{EncodedDatabase, Event, LATER, Receiver, SOON, Sandbox, wait_until},
};

/// What a row is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Usable,
    /// With this text.
    Unusable(&'static str),
    Warning(&'static str),
}

use Found::{Unusable, Usable, Warning};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What a row is set to, and the result.
const ROWS: [(&str, Found); 37] = [
    ("secret = $s, previous_secret = $s, previous_secret_expires_at = 'infinity'", Usable),
    ("secret = $s, previous_secret = $s, previous_secret_expires_at = '-infinity'", Usable),
    ("secret = $s, previous_secret = $s, previous_secret_expires_at = '4713-01-01 BC'", Usable),
    ("secret = $s, previous_secret = $s, previous_secret_expires_at = '294276-12-31'", Usable),
    ("created_at = 'infinity'", Usable),
    ("created_at = '-infinity'", Usable),
    ("created_at = NULL", Usable),
    ("secret = repeat('s', 30000000)", Unusable("unusable secret")),
    ("secret = E'\\x01\\u202e'", Unusable("unusable secret")),
    // A quarter of a gigabyte as text, and a few kilobytes as stored.
    (
        "headers = (SELECT jsonb_agg(1e131071) FROM generate_series(1, 2000))",
        Unusable("unusable headers"),
    ),
    (
        "headers = (SELECT jsonb_object_agg('k' || n, 1e131071) FROM generate_series(1, 2000) AS n)",
        Unusable("unusable headers"),
    ),
    ("headers = to_jsonb(1e131071)", Unusable("unusable headers")),
    ("headers = jsonb_build_object('a', repeat('x', 30000000))", Unusable("unusable headers")),
    (
        "headers = (SELECT jsonb_object_agg('k' || n, 'x') FROM generate_series(1, 200000) AS n)",
        Unusable("unusable headers"),
    ),
    ("headers = '[]'", Unusable("unusable headers")),
    ("headers = '\"text\"'", Unusable("unusable headers")),
    ("headers = '{\"a\": {\"b\": [1, null]}}'", Unusable("is not a string")),
    ("headers = 'null'", Usable),
    ("headers = '{}'", Usable),
    ("post_url = 'http://a/' || repeat('x', 200000000)", Unusable("longer than 8192")),
    ("post_url = ''", Unusable("unusable URL")),
    ("post_url = E'\\x01\\u202e\\x1b[2J'", Unusable("unusable URL")),
    ("timeout_ms = 2147483647", Unusable("unusable timeout_ms")),
    ("timeout_ms = -2147483648", Unusable("unusable timeout_ms")),
    ("max_in_flight = -2147483648", Unusable("unusable max_in_flight")),
    ("max_in_flight = 2147483647", Unusable("unusable max_in_flight")),
    ("rate_per_second = 'Infinity'", Unusable("unusable rate_per_second")),
    ("no_retry_status = repeat('400,', 10000000)", Unusable("unusable no_retry_status")),
    ("rate_per_second = 1e308", Unusable("unusable rate_per_second")),
    ("rate_per_second = 5e-324", Unusable("unusable rate_per_second")),
    ("description = repeat('x', 30000000), disabled_reason = repeat('y', 30000000)", Usable),
    ("events = ARRAY['bad', NULL]", Warning("contains NULL")),
    ("events = ARRAY[['bad', 'worse'], ['x', 'y']]", Warning("more than one dimension")),
    ("events = array_fill('bad'::text, ARRAY[3000000])", Warning("too large to be shown")),
    ("events = ARRAY['bad', '*.created', 'a,b', 'user.#', 'x ']", Warning("matches nothing")),
    ("events = ARRAY['bad', repeat('x', 2000), E'\\x01']", Warning("longer than 255")),
    ("events = ARRAY['bad', '']", Warning("is empty")),
];

fn listed(sandbox: &Sandbox) -> Vec<Value> {
    match json(&succeed(sandbox, &["webhooks", "list", "--json"])) {
        Value::Array(webhooks) => webhooks,
        other => panic!("not a list: {other}"),
    }
}

fn texts(value: &Value) -> String {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

/// A row for each of them; all want `bad`.
fn insert(sandbox: &Sandbox, url: &str) -> Vec<Uuid> {
    let insert = |(set, _): &(&str, Found)| {
        let id = sandbox.webhook(url, &["bad"]);
        let set = set.replace("$s", &format!("'{SECRET}'"));
        sandbox.database.run_script(&format!("UPDATE webhooks SET {set} WHERE id = '{id}'"));
        id
    };
    ROWS.iter().map(insert).collect()
}

#[test]
fn whatever_a_row_contains_affects_only_its_own_deliveries_and_is_named() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/healthy"), &["*"]);
    let ids = insert(&sandbox, &receiver.url("/other"));
    let notifier = sandbox.notifier().start();

    let events: Vec<_> = (0..5).map(|_| Event::new("bad")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at_within(LATER, "/healthy", events.len());
    sandbox.publish(&Event::new("good"));
    receiver.wait_at("/healthy", events.len() + 1);
    let unusable = ROWS.iter().filter(|(_, found)| matches!(found, Unusable(_))).count();
    let rejected = [("reason", "rejected")];
    let dead = (unusable * events.len()) as f64;
    notifier.wait_metric("webhook_dead_letters_total", &rejected, dead);
    let others = ROWS.len() - unusable;
    receiver.wait_at("/other", others * events.len());
    sandbox.wait_drained();
    let [resident, ..] = notifier.resources();
    assert!(resident < 150 << 10, "{resident} KiB");
    notifier.terminate();

    let webhooks = listed(&sandbox);
    assert_eq!(webhooks.len(), ROWS.len() + 1);
    let table = succeed(&sandbox, &["webhooks", "list"]);
    for ((set, found), id) in ROWS.iter().zip(&ids) {
        let id = id.to_string();
        let webhook = webhooks.iter().find(|webhook| webhook["id"] == id.as_str()).expect("it is");
        let (problem, warnings) = (&webhook["unusable"], texts(&webhook["warnings"]));
        let line = table.lines().find(|line| line.starts_with(&id)).expect("it is listed");
        let shown = succeed(&sandbox, &["webhooks", "show", &id]);
        let (state, words) = match found {
            Usable => ("enabled", ""),
            Unusable(words) => ("unusable", *words),
            Warning(words) => ("warning", *words),
        };
        assert!(line.contains(state), "{set}: {line}");
        match found {
            Usable => assert_eq!((problem, warnings.as_str()), (&Value::Null, ""), "{set}"),
            Unusable(expected) => {
                assert!(
                    problem.as_str().is_some_and(|it| it.contains(expected)),
                    "{set}: {problem}"
                );
            }
            Warning(expected) => assert!(warnings.contains(expected), "{set}: {warnings}"),
        }
        assert!(shown.contains(words), "{set}: {shown}");
        assert!(shown.len() < 40_000, "{set}: {}", shown.len());
    }
    let checked = sandbox.command(&["check"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    let line = checked.stdout.lines().find(|line| line.contains(" webhooks ")).expect("a line");
    let expected =
        format!("{} enabled of {}, {unusable} of them get nothing: ", ids.len() + 1, ids.len() + 1);
    assert!(line.starts_with("FAIL") && line.contains(&expected), "{line}");
    // What the dead letters say, and what happened to an event.
    let why = sandbox.command(&["why", &events[0].id]);
    assert_eq!(why.code, Some(0), "{why:?}");

    // The commands work on it as on any other.
    for ((set, _), id) in ROWS.iter().zip(&ids) {
        let id = id.to_string();
        for arguments in [
            &["webhooks", "disable", &id][..],
            &["webhooks", "enable", &id],
            &["webhooks", "pause", &id],
            &["webhooks", "resume", &id],
            &["webhooks", "set", &id, "--description", "x"],
            &["webhooks", "remove", &id],
        ] {
            let finished = sandbox.command(arguments);
            assert_eq!(finished.code, Some(0), "{set}: {arguments:?}: {finished:?}");
        }
    }
    assert_eq!(listed(&sandbox).len(), 1);
    succeed(&sandbox, &["check"]);
}

#[test]
fn rows_of_other_tables_break_nothing_either() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.database.run_script(&format!(
        "INSERT INTO delivery_attempts
             (at, event_id, event_type, webhook_id, queue, outcome, attempt, status, reason, detail,
              ms, next_attempt_at, dead)
         SELECT at, 'e', 't', '{id}', 'q', 'failed', 2147483647, -1, repeat('r', 1000000),
                repeat('d', 50000000), -9223372036854775808, next, NULL
         FROM (VALUES ('infinity'::timestamptz, 'infinity'::timestamptz),
                      ('-infinity', '-infinity'), ('294276-12-31', '4713-01-01 BC')) AS v (at, next);
         INSERT INTO backlogs (queue, webhook_id, since, cause, class, until)
         VALUES (repeat('q', 1000), '{id}', 'infinity', repeat('c', 50000000), 'x', 'infinity'),
                ('q', '{id}', '-infinity', '', '', '294276-12-31')"
    ));
    for arguments in [
        &["why", "e"][..],
        &["why", "e", "--json"],
        &["webhooks", "list"],
        &["webhooks", "show", &id.to_string()],
        &["check"],
    ] {
        let finished = sandbox.command(arguments);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert!(finished.stdout.len() < 100_000, "{arguments:?}");
    }
    let mut tail = sandbox.launch(&["tail", "--lines", "9"]).spawn();
    tail.wait_stdout(SOON, "2147483647");
    tail.kill();
    let notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    notifier.terminate();
}

#[test]
fn invalid_utf8_makes_only_its_own_webhook_unusable() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    // A database whose encoding checks nothing, and one with a character that UTF-8 lacks.
    for (encoding, byte) in [("SQL_ASCII", "'\\xff'::bytea"), ("WIN1252", "'\\x81'::bytea")] {
        let database = EncodedDatabase::new(&sandbox, encoding);
        let command = |arguments: &[&str]| database.command(arguments);
        let mut client =
            postgres::Client::connect(&database.url, postgres::NoTls).expect("it answers");
        let mut insert = |url: &str| -> Uuid {
            let sql = "INSERT INTO webhooks (post_url, events) VALUES ($1, '{*}') RETURNING id";
            client.query_one(sql, &[&url]).expect("it is there").get(0)
        };
        insert(&receiver.url(&format!("/{encoding}")));
        let bad = insert("x").to_string();
        client
            .batch_execute(&format!(
                "UPDATE webhooks SET post_url = convert_from({byte}, '{encoding}') WHERE id = '{bad}'"
            ))
            .expect("this encoding takes it");
        let notifier = sandbox.notifier().env("DATABASE_URL", &database.url).start();
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at(&format!("/{encoding}"), 1);
        notifier.wait_metric("webhook_dead_letters_total", &[("reason", "rejected")], 1.0);
        notifier.terminate();
        let listed = command(&["webhooks", "list", "--json"]);
        assert!(listed.stdout.contains("cannot be read"), "{listed:?}");
        assert_eq!(command(&["check"]).code, Some(1));
        assert_eq!(command(&["webhooks", "disable", &bad]).code, Some(0));
        assert_eq!(command(&["check"]).code, Some(0));
        assert_eq!(command(&["webhooks", "remove", &bad]).code, Some(0));
    }
}

#[test]
fn many_types_for_webhooks_with_long_urls_take_little_memory() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events)
         SELECT 'http://127.0.0.1:9/' || repeat('x', 60000), '{*}' FROM generate_series(1, 10)",
    );
    let notifier = sandbox.notifier().start();
    let [before, ..] = notifier.resources();
    let events: Vec<_> = (0..100).map(|n| Event::new(&format!("type.{n}"))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at_within(LATER, "/", events.len());
    sandbox.wait_drained();
    let [after, ..] = notifier.resources();
    eprintln!("resident: {before} KiB before, {after} KiB after");
    assert!(after < before + (64 << 10), "{before} KiB before, {after} KiB after");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    notifier.terminate();
}

#[test]
fn doubtful_patterns_are_refused_or_draw_a_warning() {
    let sandbox = Sandbox::new();
    let add =
        |pattern: &str| sandbox.command(&["webhooks", "add", "https://example.org/", pattern]);
    for refused in ["*.created", "us*", "**", ""] {
        let finished = add(refused);
        assert_eq!(finished.code, Some(1), "{refused:?}: {finished:?}");
    }
    for (doubtful, expected) in [
        ("user.#", "`#` is no wildcard"),
        ("a,b", "commas"),
        ("user.created ", "the spaces around it are part of it"),
        (" user.*", "the spaces around it are part of it"),
    ] {
        let finished = add(doubtful);
        assert_eq!(finished.code, Some(0), "{doubtful:?}: {finished:?}");
        assert!(finished.stderr.contains(expected), "{doubtful:?}: {finished:?}");
    }
    let fine = add("user.*");
    assert!(!fine.stderr.contains("warning: \""), "{fine:?}");
    assert_eq!(succeed(&sandbox, &["webhooks", "list"]).matches("warning").count(), 4);
    assert!(succeed(&sandbox, &["check"]).contains("4 with a warning"));

    // A webhook whose patterns can't match anything gets nothing.
    let id = sandbox.webhook("https://example.org/", &["*.created"]).to_string();
    let finished = sandbox.command(&["check"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains(&id) && finished.stdout.contains("matches nothing"));
}

#[test]
fn events_for_many_unusable_webhooks_block_nobody() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events) SELECT '', '{*}' FROM generate_series(1, 10)",
    );
    let notifier = sandbox.notifier().start();
    // Each has one request in flight at a time, so that consumers meet at ten backlogs that are created
    // now.
    let events: Vec<_> = (0..100).map(|n| Event::new(&format!("type.{n}"))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at_within(LATER, "/", events.len());
    sandbox.wait_drained();
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "rejected")], 1_000.0);
    notifier.terminate();
}
