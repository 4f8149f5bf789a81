//! `webhooks list` and its filters, `webhooks set` of URL and events, and warnings about twins.

use std::process::Command;

use serde_json::{Value, json as literal};
use uuid::Uuid;

use crate::backlog_commands::Waiting;
use crate::commands::{json, succeed};
use crate::harness::{
    Event, Receiver, SOON, Sandbox, notifier::binary, process::Finished, wait_until,
};

const MARK: &str = "s3cret-T0ken";

/// The paths of the listed URLs.
#[track_caller]
fn listed(sandbox: &Sandbox, options: &[&str]) -> Vec<String> {
    let text = succeed(sandbox, &[&["webhooks", "list", "--json"], options].concat());
    let list = json(&text);
    let path = |webhook: &Value| {
        let url = webhook["post_url"].as_str().expect("a URL");
        url.rsplit('/').next().expect("a path").to_owned()
    };
    list.as_array().expect("a list").iter().map(path).collect()
}

#[test]
fn webhooks_are_listed_by_state_account_event_and_url() {
    let sandbox = Sandbox::new();
    let add = |path: &str, events: &[&str], set: &str| {
        let id = sandbox.webhook(&format!("https://Example.org/{path}"), events);
        if !set.is_empty() {
            sandbox.database.execute(&format!("UPDATE webhooks SET {set} WHERE id = $1"), &[&id]);
        }
        id
    };
    add("well", &["user.*"], "account = 'acme'");
    add("paused", &["order.paid"], "paused_at = now()");
    add("disabled", &["*"], "disabled_at = now(), paused_at = now()");
    add("unusable", &["order.*"], "timeout_ms = 0, account = 'acme'");
    add("warning", &["order.paid", "*.x"], "");
    let failing = add("failing", &["user.created"], "");
    let _waiting = Waiting::new(&sandbox, failing, 3);
    let all = ["well", "paused", "disabled", "unusable", "warning", "failing"];
    assert_eq!(listed(&sandbox, &[]), all);
    for state in &all[1..] {
        assert_eq!(listed(&sandbox, &["--state", state]), [*state]);
    }
    for (options, expected) in [
        (&["--state", "enabled"][..], &["well"][..]),
        (&["--account", "acme"], &["well", "unusable"]),
        (&["--account", "acme", "--state", "unusable"], &["unusable"]),
        (&["--event", "order.paid"], &["paused", "disabled", "unusable", "warning"]),
        (&["--event", "user.created"], &["well", "disabled", "failing"]),
        (&["--event", "user"], &["disabled"]),
        (&["--url", "EXAMPLE.org/w"], &["well", "warning"]),
        (&["--url", "nowhere"], &[]),
    ] {
        assert_eq!(listed(&sandbox, options), expected, "{options:?}");
    }
    let bad = sandbox.command(&["webhooks", "list", "--state", "broken"]);
    assert_eq!(bad.code, Some(2), "{bad:?}");
    assert!(bad.stderr.contains("failing"), "{bad:?}");

    let list = json(&succeed(&sandbox, &["webhooks", "list", "--json"]));
    let of = |at: usize| {
        [&list[at]["state"], &list[at]["failing_since"], &list[at]["waiting"]].map(Value::clone)
    };
    assert_eq!(of(0), [literal!("enabled"), Value::Null, literal!(0)]);
    assert_eq!(of(5), [literal!("failing"), literal!("2026-11-25T02:54:28Z"), literal!(3)]);
    let table = succeed(&sandbox, &["webhooks", "list"]);
    let head: Vec<_> = table.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["ID", "STATE", "ACCOUNT", "WAITING", "FAILING", "SINCE", "URL", "EVENTS"]);
    let line: Vec<_> = table.lines().last().expect("a line").split_whitespace().collect();
    let expected = [
        &failing.to_string(),
        "failing",
        "-",
        "3",
        "2026-11-25T02:54:28Z",
        "https://Example.org/failing",
        "user.created",
    ];
    assert_eq!(line, expected);
    // As notifiers write it.
    sandbox.database.run_script(
        "INSERT INTO webhook_conditions (webhook_id, failing_since, failed_at, succeeded_at)
         SELECT id, '2026-11-25 01:00:00.25Z', '2026-11-25 03:00Z',
             CASE WHEN post_url LIKE '%/paused' THEN '2026-11-25 04:00Z'::timestamptz END
         FROM webhooks WHERE post_url LIKE '%/well' OR post_url LIKE '%/paused'
         ON CONFLICT (webhook_id) DO UPDATE SET failing_since = excluded.failing_since,
             failed_at = excluded.failed_at, succeeded_at = excluded.succeeded_at",
    );
    assert_eq!(listed(&sandbox, &["--state", "failing"]), ["well", "failing"]);
    let list = json(&succeed(&sandbox, &["webhooks", "list", "--json"]));
    assert_eq!(list[0]["failing_since"], "2026-11-25T01:00:00Z");
    assert_eq!(list[1]["failing_since"], Value::Null);
    let shown = succeed(&sandbox, &["webhooks", "show", &failing.to_string()]);
    assert!(shown.contains("\nfailing          since 2026-11-25T02:54:28Z"), "{shown}");
}

#[test]
fn all_times_are_shown_to_the_second_and_in_utc() {
    let sandbox = Sandbox::new();
    let id = sandbox.webhook("https://example.org/", &["*"]).to_string();
    sandbox.database.run_script(
        "UPDATE webhooks SET created_at = '2026-11-24 10:11:12.345678',
             disabled_at = '2026-11-25 01:02:03.5Z', paused_at = '2026-11-25 02:02:03.5+01',
             previous_secret = 'x', previous_secret_expires_at = '9000-01-01 00:00:00.125Z'",
    );
    let times = [
        ("created_at", "2026-11-24T10:11:12Z"),
        ("disabled_at", "2026-11-25T01:02:03Z"),
        ("paused_at", "2026-11-25T01:02:03Z"),
        ("previous_secret_expires_at", "9000-01-01T00:00:00Z"),
    ];
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    let object = json(&succeed(&sandbox, &["webhooks", "show", &id, "--json"]));
    for (name, time) in times {
        assert_eq!(object[name], time, "{name}");
    }
    for line in ["created          2026-11-24T10:11:12Z", "disabled         2026-11-25T01:02:03Z"] {
        assert!(shown.lines().any(|shown| shown.trim_end() == line), "no {line} in {shown}");
    }
}

/// Runs a command on a terminal of this size. Returns its output there.
fn on_terminal(
    sandbox: &Sandbox,
    columns: usize,
    rows: usize,
    pager: &str,
    command: &str,
) -> String {
    let output = Command::new("script")
        .args([
            "-qec",
            &format!("stty cols {columns} rows {rows}; {} {command}", binary().display()),
            "/dev/null",
        ])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").expect("there is a PATH"))
        .env("TERM", "xterm")
        .env("PAGER", pager)
        .env("DATABASE_URL", sandbox.database.url())
        .env("AMQP_URL", &sandbox.servers.amqp_url)
        .output()
        .expect("there is a `script`");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").replace('\r', "")
}

#[test]
fn on_a_terminal_the_table_fits_and_long_ones_go_through_the_pager() {
    let sandbox = Sandbox::new();
    for n in 0..30 {
        let path = "in/".repeat(40);
        let url = format!("https://customer-{n}.example.com/{path}");
        let id = sandbox
            .webhook(&url, &["user.created", "order.paid", "invoice.sent", "a.very.long.type.*"]);
        let set = "UPDATE webhooks SET account = 'customer of some length ' || $2 WHERE id = $1";
        sandbox.database.execute(set, &[&id, &n.to_string()]);
    }
    let whole = succeed(&sandbox, &["webhooks", "list"]);
    assert!(whole.lines().all(|line| !line.contains('…')), "{whole}");
    assert_eq!(whole.matches("a.very.long.type.*").count(), 30, "nothing is cut for programs");

    let widest = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let paged = on_terminal(&sandbox, 80, 24, "sed s/^/:/", "webhooks list");
    assert_eq!(paged.lines().filter(|line| line.starts_with(':')).count(), 31, "{paged}");
    assert!(widest(&paged) <= 81, "{paged}");
    assert!(paged.contains("https://customer-7.") && paged.contains("user.crea"), "{paged}");
    for (rows, pager) in [(40, "sed s/^/:/"), (24, ""), (24, "cat"), (24, "no-such-pager")] {
        let plain = on_terminal(&sandbox, 120, rows, pager, "webhooks list");
        let lines = plain.lines().filter(|line| line.contains("https://customer-")).count();
        assert_eq!(lines, 30, "{pager}: {plain}");
        assert!(!plain.lines().any(|line| line.starts_with(':')), "{pager}: {plain}");
    }
    // For programs it is unchanged, even on a terminal.
    let json = on_terminal(&sandbox, 80, 24, "sed s/^/:/", "webhooks list --json");
    assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
}

#[test]
fn possible_secrets_in_a_url_are_shown_only_on_demand() {
    let sandbox = Sandbox::new();
    let url = format!("https://example.org/in?token={MARK}#{MARK}");
    let added = sandbox.command(&["webhooks", "add", &url, "*", "--json"]);
    assert_eq!(added.code, Some(0), "{added:?}");
    let id = json(&added.stdout)["id"].as_str().expect("an id").to_owned();
    let by_sql = format!("https://user:{MARK}@example.org/");
    sandbox.webhook(&by_sql, &["*"]);
    let mut all = vec![format!("{added:?}")];
    for arguments in [
        &["webhooks", "list"][..],
        &["webhooks", "show", &id],
        &["webhooks", "set", &id, "--rate", "5"],
        &["webhooks", "pause", &id],
        &["webhooks", "resume", &id],
        &["webhooks", "disable", &id],
        &["webhooks", "enable", &id],
        &["webhooks", "rotate-secret", &id],
        &["webhooks", "export"],
        &["check"],
    ] {
        for json in [&[][..], &["--json"]] {
            all.push(format!("{:?}", sandbox.command(&[arguments, json].concat())));
        }
    }
    for text in &all {
        assert!(!text.contains(MARK), "{text}");
    }
    assert!(
        all[1].contains("https://example.org/in?***")
            && all[1].contains("https://***@example.org/"),
        "{}",
        all[1]
    );
    for arguments in
        [&["webhooks", "list"][..], &["webhooks", "show", &id], &["webhooks", "pause", &id]]
    {
        for json in [&["--reveal"][..], &["--reveal", "--json"]] {
            let text = succeed(&sandbox, &[arguments, json].concat());
            assert!(text.contains(&url), "{text}");
        }
    }
    assert!(succeed(&sandbox, &["webhooks", "list", "--reveal"]).contains(&by_sql));
    let removed = format!("{:?}", sandbox.command(&["webhooks", "remove", &id]));
    assert!(!removed.contains(MARK) && removed.contains("https://example.org/in?***"), "{removed}");
}

#[test]
fn url_and_events_are_changed_by_set_and_checked_as_by_add() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/old"), &["order.*"]).to_string();
    let set =
        |arguments: &[&str]| sandbox.command(&[&["webhooks", "set", &id], arguments].concat());
    let finished =
        set(&["--url", &receiver.url("/new"), "--event", "user.*", "--event", "invoice.sent"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let row = sandbox.database.query("SELECT post_url, events FROM webhooks", &[]).remove(0);
    assert_eq!(row.get::<_, String>(0), receiver.url("/new"));
    assert_eq!(row.get::<_, Vec<String>>(1), ["user.*", "invoice.sent"]);
    let _notifier = sandbox.notifier().start();
    let event = Event::new("user.created");
    sandbox.publish(&event);
    wait_until(SOON, "the new URL receives it", || !receiver.of("/new", &event).is_empty());

    for (arguments, reason) in [
        (&["--url", "ftp://example.org/"][..], "needs http"),
        (&["--url", "https://u:s3cret-T0ken@example.org/"], "user name or password"),
        (&["--event", "*.created"], "matches nothing"),
        (&["--event", "user.*", "--url", ""], "unusable URL"),
        (&["--url", "https://example.org/?***"], "give the complete URL"),
    ] {
        let finished = set(arguments);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(
            finished.stderr.contains(reason) && !finished.stderr.contains(MARK),
            "{finished:?}"
        );
    }
    let finished = set(&["--url", "http://10.1.2.3/", "--event", "a,b"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["warning: deliveries will be rejected", "warning: \"a,b\" matches only"] {
        assert!(finished.stderr.contains(part), "no {part} in {finished:?}");
    }
    let row = sandbox.database.query("SELECT post_url, events FROM webhooks", &[]).remove(0);
    assert_eq!(
        (row.get::<_, &str>(0), row.get::<_, Vec<String>>(1)),
        ("http://10.1.2.3/", vec!["a,b".to_owned()])
    );
}

#[test]
fn a_second_webhook_of_the_same_url_and_events_draws_a_warning() {
    let sandbox = Sandbox::new();
    let first = sandbox.webhook("http://127.0.0.1:9", &["user.*", "order.paid"]);
    let others = sandbox.webhook("http://127.0.0.1:9/", &["user.*"]);
    sandbox.database.execute("UPDATE webhooks SET account = 'acme' WHERE id = $1", &[&others]);
    let warnings = |finished: &Finished| {
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let lines = finished.stderr.lines().filter(|line| line.contains("have the same URL"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let add = |arguments: &[&str]| {
        let finished = sandbox.command(&[&["webhooks", "add"], arguments].concat());
        let warned = warnings(&finished);
        (finished.stdout.split_whitespace().nth(1).expect("an id").to_owned(), warned)
    };
    let (id, warned) = add(&["http://127.0.0.1:9/", "order.*"]);
    assert_eq!(warned.len(), 1, "{warned:?}");
    for part in [&first.to_string(), &id, "both want \"order.paid\"", "twice"] {
        assert!(warned[0].contains(part), "no {part} in {warned:?}");
    }
    let (_, warned) = add(&["http://127.0.0.1:9/", "user.created", "--account", "other"]);
    assert!(
        warned.len() == 1 && warned[0].contains(&first.to_string()),
        "not of another account: {warned:?}"
    );
    for fine in [&["http://127.0.0.1:9/other", "*"][..], &["http://127.0.0.1:9/", "invoice.*"]] {
        assert_eq!(add(fine).1, Vec::<String>::new(), "{fine:?}");
    }
    let set = |arguments: &[&str]| {
        warnings(&sandbox.command(&[&["webhooks", "set", &others.to_string()], arguments].concat()))
    };
    assert_eq!(set(&["--rate", "5"]), Vec::<String>::new(), "nothing that has to do with it");
    assert_eq!(set(&["--event", "invoice.*"]).len(), 1);
    assert_eq!(set(&["--url", "http://127.0.0.1:9/else"]), Vec::<String>::new());

    let file = tempfile::NamedTempFile::new().expect("a file");
    let entry = |id: Uuid| {
        format!(
            "[[webhooks]]\nid = \"{id}\"\npost_url = \"http://127.0.0.1:9/third\"\nevents = [\"a\", \"b\"]\n"
        )
    };
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    std::fs::write(file.path(), entry(one) + &entry(other)).expect("it can be written");
    let apply =
        || sandbox.command(&["webhooks", "apply", file.path().to_str().expect("a plain name")]);
    let warned = warnings(&apply());
    assert!(
        warned.len() == 1
            && warned[0].contains(&one.to_string())
            && warned[0].contains(&other.to_string())
    );
    assert_eq!(warnings(&apply()), Vec::<String>::new(), "the second time nothing is new");
}
