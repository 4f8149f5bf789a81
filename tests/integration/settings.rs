//! A webhook's settings: headers, a deadline, and limits.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json as literal};
use uuid::Uuid;

use crate::{
    commands::{json, succeed},
    harness::{
        Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Servers, Signal, process::Finished,
        wait_for, wait_until,
    },
    receivers::counting,
};

/// Stands for a header's value.
const MARK: &str = "Bearer s3cret-T0ken";

#[track_caller]
fn json_of(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    json(&succeed(sandbox, &[arguments, &["--json"]].concat()))
}

/// Changes a webhook's settings by the command.
#[track_caller]
fn set(sandbox: &Sandbox, webhook: Uuid, settings: &[&str]) -> Value {
    json_of(sandbox, &[&["webhooks", "set", &webhook.to_string()], settings].concat())
}

fn held(notifier: &Notifier, reason: &str) -> f64 {
    notifier.metrics().sum("webhook_deliveries_held_total", &[("reason", reason)])
}

#[test]
fn a_webhooks_own_headers_come_with_each_request_and_changes_take_effect() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let url = receiver.url("/");
    let authorization = format!("Authorization: {MARK}");
    let add = ["webhooks", "add", &url, "*", "--header", &authorization, "--header", "x-Team:a b"];
    let added = json_of(&sandbox, &add);
    let id: Uuid = added["id"].as_str().expect("an id").parse().expect("an id");
    let mut notifier = sandbox.notifier().env("RUST_LOG", "debug").start();
    let expect = |what: &str, authorization: &str, team: &str| {
        wait_until(SOON, what, || {
            // A change takes effect within a tenth of a second, not immediately.
            let event = Event::new("order.paid");
            sandbox.publish(&event);
            let request = wait_for(SOON, "it arrives", || receiver.of("/", &event).pop());
            // In addition to those of every request.
            assert_eq!(request.header("content-type"), "application/json");
            assert!(!request.header("webhook-signature").is_empty());
            let has = (request.header("authorization"), request.header("x-team"));
            has == (authorization, team)
        });
    };
    expect("both arrive", MARK, "a b");
    set(&sandbox, id, &["--header", "x-team: b"]);
    expect("those that are given replace all", "", "b");
    set(&sandbox, id, &["--unset", "header"]);
    expect("there are none", "", "");
    notifier.signal(Signal::TERM);
    notifier.wait_exit(SOON);
    let log = notifier.stderr().join("\n");
    assert!(log.contains("delivered") && !log.contains(MARK), "{log}");
}

#[test]
fn a_webhooks_own_deadline_shortens_the_general_one_and_never_lengthens_it() {
    let receiver = Receiver::answering(|_| Reply::Hang);
    for (request_timeout, timeout_ms, at_least) in [("9s", 300, 290), ("400ms", 600_000, 390)] {
        let sandbox = Sandbox::new();
        let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
        let update = "UPDATE webhooks SET timeout_ms = $2 WHERE id = $1";
        sandbox.database.execute(update, &[&webhook, &timeout_ms]);
        let mut notifier = sandbox.notifier().env("REQUEST_TIMEOUT", request_timeout).start();
        sandbox.publish(&Event::new("order.paid"));
        let line = notifier.wait_stderr(SOON, "attempt failed");
        assert!(line.contains("reason=timeout"), "{line}");
        let (_, ms) = line.split_once(" ms=").expect("how long it took");
        let ms: u64 = ms.split(' ').next().expect("a word").parse().expect("a number");
        // The longer of the two would be 9 s or ten minutes.
        assert!((at_least..9_000).contains(&ms), "{line}");
    }
}

#[test]
fn max_in_flight_is_never_exceeded_and_all_events_arrive_once() {
    let sandbox = Sandbox::new();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let is_first = AtomicBool::new(true);
    let (receiver, most) = counting(move || {
        if !is_first.swap(false, Ordering::SeqCst) {
            let _ = released.recv_timeout(SOON);
            thread::sleep(Duration::from_millis(30));
        }
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    set(&sandbox, webhook, &["--max-in-flight", "2"]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=8", sandbox.queue()))
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("REQUEST_TIMEOUT", "1m")
        .env("SHUTDOWN_TIMEOUT", "1m")
        .start();
    // Until its first answer it gets one request at a time.
    let first = Event::new("order.paid");
    sandbox.publish(&first);
    notifier.wait_metric("webhook_request_success_total", &[], 1.0);
    let events: Vec<_> = (0..40).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at("/", 3);
    wait_until(SOON, "the others wait", || held(&notifier, "max_in_flight") >= 1.0);
    drop(release);

    receiver.wait_at_within(LATER, "/", events.len() + 1);
    notifier.wait_metric("webhook_request_success_total", &[], 41.0);
    assert_eq!(most.load(Ordering::SeqCst), 2, "at once");
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0, "nothing failed");
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), events.len() + 1, "each once");
}

#[test]
fn the_rate_is_never_exceeded_and_all_events_arrive_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/limited"), &["*"]);
    sandbox.webhook(&receiver.url("/free"), &["*"]);
    set(&sandbox, webhook, &["--rate", "5"]);
    let notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "100ms,200ms,400ms,800ms,1600ms").start();
    let events: Vec<_> = (0..20).map(|_| Event::new("order.paid")).collect();
    let published = Instant::now();
    sandbox.broker.publish(sandbox.queue(), &events);

    receiver.wait_at("/free", events.len());
    let requests = receiver.wait_at_within(LATER, "/limited", events.len());
    notifier.wait_metric("webhook_request_success_total", &[], 40.0);
    // A second's worth had been saved up.
    let took = requests[19].at - published;
    assert!(took >= Duration::from_secs(3), "20 requests within {took:?}");
    let held = held(&notifier, "rate") + self::held(&notifier, "behind");
    // And some that a busy machine got to later.
    assert!(
        (1.0..=15.0).contains(&held),
        "{held}: one move each, but for those that were saved up"
    );
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0, "nothing failed");
    notifier.terminate();
    sandbox.wait_drained();
    for event in &events {
        assert_eq!(receiver.of("/limited", event).len(), 1);
    }
}

#[test]
fn a_raised_rate_takes_effect_and_a_delivery_that_waits_too_long_expires() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    set(&sandbox, webhook, &["--rate", "0.001"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "500ms")
        .env("CIRCUIT_BREAKER", "off")
        .env("DELIVERY_MAX_AGE", "1h")
        .start();
    let events = [Event::new("order.paid"), Event::new("order.paid")];
    sandbox.broker.publish(sandbox.queue(), &events);
    wait_until(SOON, "the second one waits", || held(&notifier, "rate") >= 1.0);
    set(&sandbox, webhook, &["--rate", "1000"]);
    wait_until(SOON, "it arrives, a quarter of an hour before its turn", || {
        !receiver.of("/", &events[1]).is_empty()
    });
    notifier.terminate();
    sandbox.wait_drained();

    set(&sandbox, webhook, &["--rate", "0.01"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "500ms")
        .env("CIRCUIT_BREAKER", "off")
        .env("DELIVERY_MAX_AGE", "300ms")
        .start();
    let events = [Event::new("order.paid"), Event::new("order.paid")];
    sandbox.broker.publish(sandbox.queue(), &events);
    let letter = sandbox.take_dead();
    assert_eq!(letter.text("x-dead-reason"), "expired");
    assert_eq!(letter.text("x-event-id"), events[1].id);
    assert_eq!(letter.number("x-attempt"), Some(0));
    let error = letter.text("x-last-error");
    assert!(error.starts_with("no attempt yet: "), "{error}");
    notifier.terminate();
}

/// What an operator may write by SQL, and the message about it.
const UNUSABLE: [(&str, &str, &str); 17] = [
    ("headers", "'[]'", "JSON object"),
    ("headers", "'\"s3cret-T0ken\"'", "JSON object"),
    ("headers", r#"'{"Host": "s3cret-T0ken"}'"#, "a webhook can't set"),
    ("headers", r#"'{"webhook-id": "s3cret-T0ken"}'"#, "a webhook can't set"),
    ("headers", r#"'{"a b": "s3cret-T0ken"}'"#, "not the name of a header"),
    ("headers", r#"'{"a": "s3cret-T0ken\r\nx-evil: 1"}'"#, "visible ASCII"),
    ("headers", r#"'{"a": {"b": "s3cret-T0ken"}}'"#, "not a string"),
    ("headers", "jsonb_build_object('a', repeat('s3cret-T0ken', 400000))", "4096 bytes"),
    ("timeout_ms", "0", "from 1 to 600000"),
    ("timeout_ms", "-1", "from 1 to 600000"),
    ("timeout_ms", "600001", "from 1 to 600000"),
    ("max_in_flight", "0", "from 1 to 1000000"),
    ("rate_per_second", "'NaN'", "from 0.001 to 100000"),
    ("rate_per_second", "'-Infinity'", "from 0.001 to 100000"),
    ("rate_per_second", "0", "from 0.001 to 100000"),
    ("no_retry_status", "'4x'", "is not a status such as 404"),
    ("no_retry_status", "'200'", "2xx is never retried"),
];

#[test]
fn an_invalid_setting_affects_only_its_own_deliveries_and_says_what_to_do() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/healthy"), &["*"]);
    // A column that existed before may have another type.
    sandbox.database.run_script(
        "ALTER TABLE webhooks ALTER COLUMN max_in_flight TYPE TEXT;
         ALTER TABLE webhooks ALTER COLUMN rate_per_second TYPE NUMERIC USING NULL;
         ALTER TABLE webhooks ALTER COLUMN rate_per_second TYPE TEXT;",
    );
    let kinds: Vec<_> = (0..=UNUSABLE.len()).map(|n| format!("bad.{n}")).collect();
    let others = ("max_in_flight", "'as many as you like'", "from 1 to 1000000");
    let unusable: Vec<_> = UNUSABLE.into_iter().chain([others]).collect();
    let mut ids = Vec::new();
    for ((column, value, _), kind) in unusable.iter().zip(&kinds) {
        let id = sandbox.webhook(&receiver.url("/repaired"), &[kind]);
        let update = format!("UPDATE webhooks SET {column} = {value} WHERE id = '{id}'");
        sandbox.database.run_script(&update);
        ids.push(id.to_string());
    }
    let mut notifier = sandbox.notifier().start();
    for kind in &kinds {
        sandbox.publish(&Event::new(kind));
    }
    receiver.wait_at("/healthy", kinds.len());
    let rejected = [("reason", "rejected")];
    notifier.wait_metric("webhook_dead_letters_total", &rejected, kinds.len() as f64);
    let listed = json_of(&sandbox, &["webhooks", "list"]);
    let listed = listed.as_array().expect("a list");
    for ((column, _, expected), id) in unusable.iter().zip(&ids) {
        let line = notifier.wait_stderr(SOON, &format!("webhook={id} "));
        let start = format!("unusable {column}: ");
        for part in [start.as_str(), expected, &format!("webhooks set {id}"), "--unset "] {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
        let shown =
            listed.iter().find(|webhook| webhook["id"] == id.as_str()).expect("it is listed");
        let problem = shown["unusable"].as_str().expect("a problem");
        assert!(problem.contains(&start) && problem.contains(expected), "{problem}");
    }
    let letters = succeed(&sandbox, &["dead-letters", "show", "--limit", "99"]);
    let listed = succeed(&sandbox, &["webhooks", "list"]);
    assert_eq!(listed.matches("unusable").count(), unusable.len(), "{listed}");
    for text in [letters, listed, notifier.stderr().join("\n")] {
        assert!(!text.contains("s3cret"), "{text}");
    }
    assert!(receiver.at("/repaired").is_empty());

    let unset = ["--unset", "header", "--unset", "timeout", "--unset", "rate"];
    succeed(
        &sandbox,
        &[&["webhooks", "set", &ids[0], "--unset", "max-in-flight"], &unset[..]].concat(),
    );
    sandbox.database.run_script(
        "UPDATE webhooks SET headers = NULL, timeout_ms = NULL, max_in_flight = '9',
             rate_per_second = '1e3', no_retry_status = NULL",
    );
    wait_until(SOON, "all that was dead arrives", || {
        // A change takes effect within a tenth of a second, not immediately.
        succeed(&sandbox, &["dead-letters", "replay"]);
        receiver.at("/repaired").len() >= kinds.len()
    });
    notifier.terminate();
}

#[test]
fn settings_are_set_shown_and_unset_by_commands() {
    let sandbox = Sandbox::new();
    let url = "https://example.org/in";
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("headers");
    fs::write(&file, format!("\nAuthorization: {MARK}:x\r\nX-Empty:\n"))
        .expect("it can be written");
    let file = file.to_str().expect("a plain path");

    let plain = json_of(&sandbox, &["webhooks", "add", url, "*"]);
    for name in ["description", "account", "headers", "timeout_ms", "max_in_flight", "unusable"] {
        assert_eq!(plain[name], Value::Null, "{name}: {plain}");
    }
    let settings = [
        "--headers-from",
        file,
        "--header",
        "x-team: a",
        "--timeout",
        "1500ms",
        "--max-in-flight",
        "3",
        "--rate",
        "0.5",
        "--description",
        "the \u{1b}[2Jtest",
        "--account",
        "acme",
    ];
    let added = json_of(&sandbox, &[&["webhooks", "add", url, "*"], &settings[..]].concat());
    let id = added["id"].as_str().expect("an id");
    let stored = "SELECT headers::text, timeout_ms, max_in_flight, rate_per_second FROM webhooks
                  WHERE account = 'acme'";
    let row = sandbox.database.query(stored, &[]).remove(0);
    let headers: Value = serde_json::from_str(row.get(0)).expect("JSON");
    let authorization = format!("{MARK}:x");
    assert_eq!(headers, literal!({"authorization": authorization, "x-empty": "", "x-team": "a"}));
    assert_eq!((row.get(1), row.get(2), row.get(3)), (1_500, 3, 0.5));

    let shown = json_of(&sandbox, &["webhooks", "show", id]);
    assert_eq!(
        shown["headers"],
        literal!({"authorization": "***", "x-empty": "***", "x-team": "***"})
    );
    assert_eq!(shown["timeout_ms"], 1_500);
    assert_eq!(
        (&shown["max_in_flight"], &shown["rate_per_second"]),
        (&literal!(3), &literal!(0.5))
    );
    assert_eq!((&shown["account"], &shown["unusable"]), (&literal!("acme"), &Value::Null));
    let text = succeed(&sandbox, &["webhooks", "show", id]);
    for part in ["authorization: ***", "1500", "0.5", "acme", "the \\u{1b}[2Jtest"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let of_acme = json_of(&sandbox, &["webhooks", "list", "--account", "acme"]);
    assert_eq!(of_acme, literal!([shown]));
    assert_eq!(json_of(&sandbox, &["webhooks", "list", "--account", "other"]), literal!([]));

    let unset = ["--unset", "timeout", "--unset", "account", "--rate", "7"];
    let changed = json_of(&sandbox, &[&["webhooks", "set", id], &unset[..]].concat());
    assert_eq!((&changed["timeout_ms"], &changed["account"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&changed["rate_per_second"], &changed["max_in_flight"]),
        (&literal!(7), &literal!(3))
    );
    for flag in ["header", "max-in-flight", "rate", "description"] {
        succeed(&sandbox, &["webhooks", "set", id, "--unset", flag]);
    }
    let last = json_of(&sandbox, &["webhooks", "show", id]);
    for name in ["headers", "max_in_flight", "rate_per_second", "description"] {
        assert_eq!(last[name], Value::Null, "{name}: {last}");
    }

    for (arguments, expected) in [
        (&["--header", "s3cret"][..], "Name: value"),
        (&["--header", "Host: s3cret"], "a webhook can't set"),
        (&["--header", "a: s3cret", "--header", "A: s3cret"], "a is listed twice"),
        (&["--header", "a: s3cret\r\nb: c"], "visible ASCII"),
        (&["--timeout", "0s"], "from 1 to 600000"),
        (&["--timeout", "11m"], "from 1 to 600000"),
        (&["--max-in-flight", "0"], "from 1 to 1000000"),
        (&["--rate", "NaN"], "from 0.001"),
        (&["--unset", "url"], "it is one of header"),
        (&["--rate", "1", "--unset", "rate"], "can't be given and unset"),
        (&[], "nothing to change"),
    ] {
        let finished = sandbox.command(&[&["webhooks", "set", id], arguments].concat());
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains(expected), "{arguments:?}: {finished:?}");
        assert!(!finished.stderr.contains("s3cret"), "{finished:?}");
    }
    assert_eq!(json_of(&sandbox, &["webhooks", "show", id]), last, "nothing of it was done");
    let unknown = Uuid::new_v4().to_string();
    let finished = sandbox.command(&["webhooks", "set", &unknown, "--rate", "1"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
}

#[test]
fn without_the_columns_all_commands_say_to_migrate() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("sql").map(|file| file.expect("a file").path()).collect();
    files.sort();
    for file in files.iter().filter(|file| !file.ends_with("006_settings.sql")).take(5) {
        sandbox.database.run_script(&fs::read_to_string(file).expect("SQL"));
    }
    for arguments in [&["check"][..], &["webhooks", "list"], &["run"]] {
        let launch = sandbox.launch(arguments).env("METRICS_ADDR", "127.0.0.1:0");
        let finished: Finished = launch.spawn().finish(SOON);
        let output = [finished.stdout, finished.stderr].concat();
        assert_eq!(finished.code, Some(1), "{arguments:?}: {output}");
        assert!(output.contains("run `webhook-notifier migrate`"), "{arguments:?}: {output}");
    }
    succeed(&sandbox, &["migrate"]);
    succeed(&sandbox, &["check"]);
}
