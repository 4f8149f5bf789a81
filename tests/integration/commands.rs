//! The operators' commands: tables for people and JSON for programs.

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use crate::harness::{
    Proxy, Receiver, SOON, Sandbox, Servers, process::Finished, wait_for, wait_until,
};

#[track_caller]
pub(crate) fn succeed(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let finished = sandbox.command(arguments);
    assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
    finished.stdout
}

#[track_caller]
pub(crate) fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// The webhooks of `webhooks list --json`, in either format.
fn listed(sandbox: &Sandbox) -> Vec<Value> {
    let text = succeed(sandbox, &["webhooks", "list", "--json"]);
    match json(&text) {
        Value::Array(webhooks) => webhooks,
        other => panic!("not a list: {other}"),
    }
}

/// With a distant PostgreSQL, logins are what takes time.
#[test]
fn a_command_uses_few_connections_for_many_queries() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("https://example.org/hook", &["order.paid"]).to_string();
    for arguments in [
        &["webhooks", "list"][..],
        &["webhooks", "show", &webhook],
        &["why", "0c8e5b0e-7e0f-4d7f-9a51-3f1c2d6a7b10"],
    ] {
        let proxy = Proxy::before(&sandbox.servers.database_url);
        let command = sandbox.launch(arguments);
        let finished =
            command.env("DATABASE_URL", proxy.url(sandbox.database.url())).spawn().finish(SOON);
        assert!(!finished.stdout.is_empty(), "{arguments:?}: {finished:?}");
        // Before each login, another connection asks whether there is a server.
        let accepted = proxy.accepted();
        assert!((2..=4).contains(&accepted), "{arguments:?}: {accepted} connections");
    }
}

#[test]
fn webhooks_are_added_listed_shown_disabled_and_removed() {
    let sandbox = Sandbox::new();
    let url = "https://example.org/hook?x=1";
    assert_eq!(listed(&sandbox), Vec::<Value>::new());

    let added = succeed(&sandbox, &["webhooks", "add", url, "user.*", "order.paid"]);
    let id = added.split_whitespace().nth(1).expect("id, and the id").to_owned();
    let parsed = Uuid::parse_str(&id).unwrap_or_else(|_| panic!("not an id: {id}"));
    let rows = sandbox.database.query("SELECT id, post_url, events FROM webhooks", &[]);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].get::<_, Uuid>(0), parsed);
    assert_eq!(rows[0].get::<_, &str>(1), url);
    assert_eq!(rows[0].get::<_, Vec<String>>(2), ["user.*", "order.paid"]);

    let shown = json(&succeed(&sandbox, &["webhooks", "show", &id, "--json"]));
    assert_eq!(listed(&sandbox), std::slice::from_ref(&shown));
    assert_eq!(shown["id"], id.as_str());
    assert_eq!(shown["post_url"], "https://example.org/hook?***");
    assert_eq!(shown["events"], serde_json::json!(["user.*", "order.paid"]));
    for arguments in [&["webhooks", "list"][..], &["webhooks", "show", &id]] {
        let table = succeed(&sandbox, arguments);
        for part in [id.as_str(), "https://example.org/hook?***", "user.*", "order.paid"] {
            assert!(table.contains(part), "no {part} in {table}");
        }
    }

    let disabled = || {
        let rows = sandbox.database.query("SELECT disabled_at IS NOT NULL FROM webhooks", &[]);
        rows[0].get::<_, bool>(0)
    };
    succeed(&sandbox, &["webhooks", "disable", &id]);
    assert!(disabled());
    succeed(&sandbox, &["webhooks", "enable", &id]);
    assert!(!disabled());

    succeed(&sandbox, &["webhooks", "remove", &id]);
    assert_eq!(listed(&sandbox), Vec::<Value>::new());
    let added = json(&succeed(&sandbox, &["webhooks", "add", url, "*", "--json"]));
    assert_eq!(listed(&sandbox)[0]["id"], added["id"]);
}

#[test]
fn an_unknown_or_invalid_webhook_is_an_error() {
    let sandbox = Sandbox::new();
    let unknown = Uuid::new_v4().to_string();
    for verb in ["show", "enable", "disable", "remove"] {
        let finished = sandbox.command(&["webhooks", verb, &unknown]);
        assert_eq!(finished.code, Some(1), "{verb}: {finished:?}");
        assert!(finished.stderr.contains(&unknown), "{verb}: {finished:?}");
        let finished = sandbox.command(&["webhooks", verb, "not-an-id"]);
        assert_eq!(finished.code, Some(2), "{verb}: {finished:?}");
    }
    for arguments in [
        &["webhooks", "add", "https://example.org/"][..],
        &["webhooks", "add", "ftp://example.org/", "*"],
        &["webhooks", "add", "not a url", "*"],
        &["webhooks", "add", "https://example.org/", ""],
    ] {
        let finished = sandbox.command(arguments);
        assert_ne!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(listed(&sandbox), Vec::<Value>::new());
}

#[test]
fn an_event_sent_by_publish_reaches_listen_through_the_notifier() {
    let sandbox = Sandbox::new();
    let listen =
        ["listen", "--addr", "127.0.0.1:0", "--fail-first", "2", "--status", "418", "--json"];
    let mut listener = sandbox.launch(&listen).spawn();
    let address = wait_for(SOON, "listen prints its address", || {
        let lines = [listener.stdout(), listener.stderr()].concat();
        let text = lines.join(" ");
        let at = text.find("127.0.0.1:")?;
        let address = text[at..].split(|c: char| !(c.is_ascii_digit() || ".:".contains(c)));
        Some(address.into_iter().next()?.trim_end_matches([':', '.']).to_owned())
    });
    sandbox.webhook(&format!("http://{address}/hook"), &["order.*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,100ms").start();
    let body = "{\"n\" : 1,  \"s\":\"\\u00e9 é\"}";

    let queue = sandbox.queue();
    let publish = ["publish", queue, body, "--type", "order.paid", "--id", "my-id"];
    let ids = succeed(&sandbox, &publish);

    assert_eq!(ids.trim(), "my-id");
    let requests = || -> Vec<Value> {
        let lines = listener.stdout();
        let requests = lines.iter().filter(|line| line.starts_with('{'));
        let requests = requests.filter_map(|line| serde_json::from_str(line).ok());
        requests.filter(|request: &Value| request.get("path").is_some()).collect()
    };
    wait_until(SOON, "three attempts are printed", || requests().len() == 3);
    for (request, status) in requests().iter().zip([418, 418, 200]) {
        assert_eq!(request["status"], status, "{request}");
        assert_eq!(request["path"], "/hook", "{request}");
        assert_eq!(request["webhook_id"], "my-id", "{request}");
        assert_eq!(request["content_type"], "application/json", "{request}");
        assert_eq!(request["body"], body, "{request}");
        assert!(request["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{request}");
    }
    assert!(listener.is_running());
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn publish_makes_sample_events_and_waits_for_their_confirms() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let text = succeed(&sandbox, &["publish", sandbox.queue(), "--count", "3"]);
    let ids: Vec<_> = text.lines().collect();
    assert_eq!(ids.len(), 3, "{text}");
    assert_eq!(sandbox.broker.ready(sandbox.queue()), Some(3));

    let notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    let requests = receiver.wait_at("/", 3);
    for (request, id) in requests.iter().zip(ids) {
        assert_eq!(request.id(), id);
        let body = std::str::from_utf8(&request.body).expect("a sample is text");
        assert!(json(body).is_object(), "{body}");
    }
    notifier.terminate();

    let nowhere = format!("{}_nowhere", sandbox.queue());
    let finished = sandbox.command(&["publish", &nowhere, "{}", "--type", "t"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains(&nowhere), "{finished:?}");
    assert!(finished.stderr.contains("there is no such queue"), "{finished:?}");

    // One that exists is not reported as missing.
    let full = format!("{}_full", sandbox.queue());
    let arguments = FieldTable::from([
        ("x-max-length".to_owned(), AmqpValue::LongInt(0)),
        ("x-overflow".to_owned(), AmqpValue::LongString("reject-publish".to_owned())),
    ]);
    sandbox.broker.declare(&full, arguments).expect("a new queue");
    let finished = sandbox.command(&["publish", &full, "{}", "--type", "t"]);
    sandbox.broker.delete(&full).expect("it is there");
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("accepts no messages"), "{finished:?}");
    assert!(!finished.stderr.contains("first starts"), "{finished:?}");
}

#[track_caller]
fn assert_failed_check(finished: &Finished, expected: &str) {
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let text = format!("{}\n{}", finished.stdout, finished.stderr);
    assert!(text.contains(expected), "no {expected:?} in {text}");
}

#[test]
fn check_succeeds_where_nothing_is_wrong() {
    let sandbox = Sandbox::new();
    sandbox.webhook("https://93.184.215.14/", &["*"]);
    let text = succeed(&sandbox, &["check"]);
    for line in text.lines() {
        assert!(line.starts_with("ok    "), "{line}");
    }
    let told = json(&succeed(&sandbox, &["check", "--json"]));
    for check in told["checks"].as_array().expect("a list") {
        assert_eq!((&check["ok"], &check["level"]), (&true.into(), &"ok".into()), "{check}");
    }
}

#[test]
fn a_warning_of_check_begins_with_a_word_of_its_own_and_is_no_failure() {
    let sandbox = Sandbox::new();
    let text = succeed(&sandbox, &["check"]);
    let line = text.lines().find(|line| line.contains("none enabled"));
    assert!(line.is_some_and(|line| line.starts_with("warn  webhooks ")), "{text}");
    let told = json(&succeed(&sandbox, &["check", "--json"]));
    assert_eq!(told["ok"], true, "{told}");
    let checks = told["checks"].as_array().expect("a list");
    let webhooks = checks.iter().find(|check| check["name"] == "webhooks").expect("a finding");
    assert_eq!((&webhooks["ok"], &webhooks["level"]), (&true.into(), &"warn".into()), "{told}");
}

#[test]
fn check_says_why_a_queue_is_unusable_and_continues_with_the_others() {
    let sandbox = Sandbox::new();
    let bad = format!("{}.retry", sandbox.queue());
    sandbox.broker.declare(&bad, FieldTable::new()).expect("a new queue");
    let finished = sandbox.command(&["check", "--json"]);
    sandbox.broker.delete(&bad).expect("it is there");
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let output = json(&finished.stdout);
    let checks = output["checks"].as_array().expect("a list");
    let of = |queue: &str| {
        let name = format!("queue {queue}");
        let mut found = checks.iter().filter(|check| check["name"] == name.as_str());
        found.next().unwrap_or_else(|| panic!("no {name} in {output}"))
    };
    assert_eq!(of(&bad)["ok"], false, "{output}");
    let detail = of(&bad)["detail"].as_str().expect("text");
    assert!(detail.contains("exists with other arguments"), "{output}");
    for other in [sandbox.queue(), "webhooks.orphaned"] {
        assert_eq!(of(other)["ok"], true, "{output}");
    }
}

#[test]
fn check_says_that_the_tables_are_missing() {
    let unmigrated = Sandbox::bare(&Servers::shared(), 1);
    assert_failed_check(&unmigrated.command(&["check"]), "migrate");
}

#[test]
fn check_says_what_is_wrong_and_what_to_do() {
    let sandbox = Sandbox::new();
    let refusing = Receiver::new();
    let no_broker = sandbox
        .launch(&["check"])
        .env("AMQP_URL", refusing.refusing_url().replace("http:", "amqp:"))
        .env("AMQP_RETRY_DELAY", "100ms");
    assert_failed_check(&no_broker.spawn().finish(SOON), "AMQP_URL");

    let mut url = Url::parse(sandbox.database.url()).expect("a URL");
    url.set_path("/no_such_database");
    let no_database = sandbox.launch(&["check"]).env("DATABASE_URL", url.as_str());
    assert_failed_check(&no_database.spawn().finish(SOON), "no_such_database");

    let proxy = Proxy::before(sandbox.database.url());
    proxy.refuse();
    let away =
        sandbox.launch(&["check", "--json"]).env("DATABASE_URL", proxy.url(sandbox.database.url()));
    let finished = away.spawn().finish(SOON);
    assert_failed_check(&finished, "DATABASE_URL");
    json(&finished.stdout);
}
