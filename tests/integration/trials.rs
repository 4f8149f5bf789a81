//! `webhooks test`: the request of a delivery, which changes nothing, and its result.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    commands,
    harness::{Receiver, Reply, SOON, Sandbox, process::Finished, receiver::Then},
    signatures::verify,
};

/// Stands for a secret.
const MARK: &str = "s3cret-T0ken";

#[track_caller]
fn test(sandbox: &Sandbox, webhook: &str, arguments: &[&str]) -> Finished {
    let arguments = [&["webhooks", "test", webhook], arguments].concat();
    let launch = sandbox.launch(&arguments).env("ALLOW_NETWORKS", "127.0.0.0/8");
    let finished = launch.env("REQUEST_TIMEOUT", "3s").spawn().finish(SOON);
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains(MARK), "{arguments:?}: {text}");
    }
    finished
}

fn table(sandbox: &Sandbox) -> Vec<String> {
    let rows = sandbox.database.query("SELECT w::text FROM webhooks AS w ORDER BY id", &[]);
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn the_request_is_that_of_a_delivery_and_is_shown_as_sent_except_for_secrets() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        // It returns what it received.
        let body = format!("{:?}\u{1b}[2J{}", request.header("authorization"), "x".repeat(5_000));
        let head = format!("HTTP/1.1 202 Accepted\r\ncontent-length: {}\r\n", body.len());
        let more = format!("set-cookie: a={MARK}\r\nserver: test {MARK}\r\n\r\n");
        Reply::Raw([head, more, body].concat().into_bytes(), Then::Stay)
    });
    let url = receiver.url(&format!("/in?token={MARK}"));
    let header = format!("authorization: {MARK}");
    let add = ["webhooks", "add", &url, "*", "--json", "--header", &header];
    let added = commands::json(&commands::succeed(&sandbox, &add));
    let (id, secret) = (added["id"].as_str().expect("an id"), added["secret"].as_str());
    let before = table(&sandbox);

    let finished = test(&sandbox, id, &["--json"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let seen = commands::json(&finished.stdout);
    let request = receiver.requests().remove(0);
    verify(secret.expect("a secret"), &request).expect("it is signed");
    assert_eq!(request.header("authorization"), MARK);
    let mut sent: BTreeMap<String, String> = request.headers.clone();
    sent.insert("authorization".to_owned(), "***".to_owned());
    assert_eq!(seen["request"]["headers"], json!(sent));
    assert_eq!(seen["request"]["url"], receiver.url("/in?***"));
    let body: Value = serde_json::from_slice(&request.body).expect("JSON");
    assert_eq!((&body["event_type"], &body["test"]), (&json!("webhook.test"), &json!(true)));
    assert!(Uuid::parse_str(request.id()).is_ok());
    assert_eq!(seen["response"]["status"], 202);
    assert_eq!(seen["response"]["headers"]["server"], "test ***");
    assert_eq!(seen["response"]["headers"]["set-cookie"], Value::Null);
    let shown = seen["response"]["body"].as_str().expect("a text");
    assert!(shown.starts_with("\"***\"") && shown.len() <= 2_000, "{shown}");
    assert_eq!((&seen["response"]["is_cut"], &seen["ok"]), (&json!(true), &json!(true)));

    let finished = test(&sandbox, id, &["--type", "order.paid"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    for part in ["POST http://127.0.0.1:", "authorization: ***", "webhook-signature: v1,"] {
        assert!(finished.stdout.contains(part), "no {part:?} in {}", finished.stdout);
    }
    assert!(finished.stdout.contains("\n202 in "), "{}", finished.stdout);
    assert!(!finished.stdout.contains('\u{1b}'), "{}", finished.stdout);
    let requests = receiver.requests();
    assert!(String::from_utf8_lossy(&requests[1].body).contains("order.paid"));
    assert_ne!(requests[0].id(), requests[1].id());
    assert_eq!(table(&sandbox), before);
}

#[test]
fn a_failure_is_reported_with_its_reason_and_a_remedy_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/hang" => Reply::Hang,
        "/302" => Reply::WithHeaders(302, vec![("location", format!("/else?token={MARK}"))]),
        status => Reply::Status(status[1..].parse().expect("a status")),
    });
    for (url, reason, expected) in [
        (receiver.url("/500"), "status_5xx", "would be tried again"),
        (receiver.url("/401"), "status_4xx", "headers and secret"),
        (receiver.url("/429"), "status_4xx", "wants fewer requests"),
        (receiver.url("/302"), "status_3xx", "redirects are not followed"),
        (receiver.url("/410"), "gone", "would be dead, and the webhook disabled"),
        (receiver.url("/hang"), "timeout", "--timeout"),
        (receiver.refusing_url(), "refused", "does the receiver run"),
        (String::from("http://10.1.2.3/"), "rejected", "ALLOW_NETWORKS"),
        (String::from("ftp://example.org/"), "rejected", "needs http"),
    ] {
        let webhook = sandbox.webhook(&url, &["*"]);
        let hang = "UPDATE webhooks SET timeout_ms = 300 WHERE id = $1 AND post_url LIKE '%hang'";
        sandbox.database.execute(hang, &[&webhook]);
        let before = table(&sandbox);
        let finished = test(&sandbox, &webhook.to_string(), &[]);
        assert_eq!(finished.code, Some(1), "{url}: {finished:?}");
        assert!(finished.stderr.contains(&format!(", {reason}: ")), "{url}: {finished:?}");
        assert!(finished.stderr.contains(expected), "{url}: {finished:?}");
        let as_json = test(&sandbox, &webhook.to_string(), &["--json"]);
        let seen = commands::json(&as_json.stdout);
        assert_eq!(as_json.code, Some(1), "{url}: {as_json:?}");
        assert_eq!((&seen["ok"], &seen["reason"]), (&json!(false), &json!(reason)), "{url}");
        assert_eq!(seen["request"].is_null(), reason == "rejected", "{url}: {seen}");
        assert_eq!(table(&sandbox), before, "{url}");
    }
    let unknown = test(&sandbox, &Uuid::new_v4().to_string(), &[]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(unknown.stderr.contains("no webhook has the id"), "{unknown:?}");
}

#[test]
fn a_disabled_webhook_can_be_tested_and_with_a_body_from_a_file() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/"), &["*"]).to_string();
    assert_eq!(sandbox.command(&["webhooks", "disable", &id]).code, Some(0));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("event.json");
    let body = "{\"n\" : 1e2,  \"s\":\"\\u00e9 é\"}";
    std::fs::write(&file, body).expect("it can be written");
    let file = file.to_str().expect("a plain path");

    let finished = test(&sandbox, &id, &["--body", file]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stderr.contains("is disabled"), "{finished:?}");
    let request = receiver.requests().remove(0);
    assert_eq!(request.body, body.as_bytes());
    assert_eq!(request.header("webhook-signature"), "", "it has no secret");

    std::fs::write(file, "[1]").expect("it can be written");
    for arguments in [&["--body", file][..], &["--body", "-"], &["--body", "/nowhere/x"]] {
        let finished = test(&sandbox, &id, arguments);
        assert_eq!(finished.code, Some(1), "{finished:?}");
    }
    let finished = test(&sandbox, &id, &["--body", file, "--type", "a"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert_eq!(receiver.requests().len(), 1);
}
