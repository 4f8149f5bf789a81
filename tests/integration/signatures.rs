//! Requests are signed, secrets can be replaced without a gap, and a receiver can report that it is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde_json::Value;
use standardwebhooks::{Webhook, WebhookError};
use uuid::Uuid;

use crate::harness::{
    Event, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, receiver::Request, wait_for, wait_until,
};

/// The output of a command that must succeed.
#[track_caller]
fn json(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let finished = sandbox.command(&[arguments, &["--json"]].concat());
    assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
    serde_json::from_str(&finished.stdout).expect("JSON")
}

/// Registers a webhook. Returns its id and secret.
#[track_caller]
fn add(sandbox: &Sandbox, url: &str) -> (Uuid, String) {
    let added = json(sandbox, &["webhooks", "add", url, "*"]);
    let text = |name: &str| added[name].as_str().expect("a text").to_owned();
    (text("id").parse().expect("an id"), text("secret"))
}

#[track_caller]
fn rotate(sandbox: &Sandbox, webhook: Uuid, keep: &[&str]) -> String {
    let id = webhook.to_string();
    let rotated = json(sandbox, &[&["webhooks", "rotate-secret", &id], keep].concat());
    rotated["secret"].as_str().expect("a secret").to_owned()
}

/// The reference library's verdict on a request.
pub(crate) fn verify(secret: &str, request: &Request) -> Result<(), WebhookError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let name: HeaderName = name.parse().expect("a header's name");
        headers.insert(name, value.parse().expect("a header's value"));
    }
    Webhook::new(secret).expect("a secret").verify(&request.body, &headers)
}

/// How many signatures a request carries.
fn signatures(request: &Request) -> usize {
    request.header("webhook-signature").split(' ').filter(|one| !one.is_empty()).count()
}

/// Publishes an event and returns its request.
#[track_caller]
fn next(sandbox: &Sandbox, receiver: &Receiver) -> Request {
    let event = Event::new("order.paid").body("{\"text\": \"é \\u00e9\", \"n\" :1e2}");
    sandbox.publish(&event);
    wait_for(SOON, "the event arrives", || receiver.of("/", &event).pop())
}

#[test]
fn every_attempt_is_signed_as_the_reference_library_expects() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 | 2 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let (_, secret) = add(&sandbox, &receiver.url("/"));
    let _notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,1s").start();

    sandbox.publish(&Event::new("order.paid").body("{\"a\" : \"\u{e9}\"}"));

    let attempts = receiver.wait_at("/", 3);
    for request in &attempts {
        verify(&secret, request).unwrap_or_else(|error| panic!("{error}: {request:?}"));
        assert_eq!(signatures(request), 1);
        let other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        assert!(verify(other, request).is_err(), "another secret's");
    }
    let timestamp = |request: &Request| request.header("webhook-timestamp").to_owned();
    assert_ne!(timestamp(&attempts[0]), timestamp(&attempts[2]), "the time of each attempt");
}

#[test]
fn a_webhook_without_a_secret_gets_its_requests_unsigned() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let _notifier = sandbox.notifier().start();
    assert_eq!(signatures(&next(&sandbox, &receiver)), 0);
}

#[test]
fn while_a_secret_is_rotated_both_sign_and_then_only_the_new_one() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let (webhook, first) = add(&sandbox, &receiver.url("/"));
    let _notifier = sandbox.notifier().start();
    // A change takes effect within a tenth of a second, not immediately.
    let check = |valid: &[&str], invalid: &[&str]| {
        wait_until(SOON, "requests are signed by these and no others", || {
            let request = next(&sandbox, &receiver);
            let by = |secret: &&str| verify(secret, &request).is_ok();
            signatures(&request) == valid.len() && valid.iter().all(by) && !invalid.iter().any(by)
        });
    };
    check(&[&first], &[]);

    let second = rotate(&sandbox, webhook, &[]);
    assert_ne!(first, second);
    check(&[&first, &second], &[]);
    let shown = json(&sandbox, &["webhooks", "show", &webhook.to_string()]);
    assert!(shown["previous_secret_expires_at"].is_string(), "{shown}");

    // By the clock, without a notification to the directory.
    sandbox
        .database
        .execute("UPDATE webhooks SET previous_secret_expires_at = now() + interval '2 s'", &[]);
    wait_for(SOON, "the first one ends", || {
        let request = next(&sandbox, &receiver);
        verify(&second, &request).expect("at any time");
        (signatures(&request) == 1).then_some(())
    });
    check(&[&second], &[&first]);

    let third = rotate(&sandbox, webhook, &["--keep", "0s"]);
    check(&[&third], &[&first, &second]);
}

#[test]
fn a_secret_is_printed_once_and_never_again() {
    let sandbox = Sandbox::new();
    let (webhook, first) = add(&sandbox, "http://127.0.0.1:9/");
    let id = webhook.to_string();
    let second = rotate(&sandbox, webhook, &["--keep", "1h"]);
    let stored = sandbox.database.query("SELECT secret, previous_secret FROM webhooks", &[]);
    assert_eq!(stored[0].get::<_, &str>(0), second);
    assert_eq!(stored[0].get::<_, &str>(1), first);
    for secret in [&first, &second] {
        assert!(secret.starts_with("whsec_"), "{secret}");
    }
    for verb in ["list", "show", "disable", "enable", "remove"] {
        for output in [&[][..], &["--json"]] {
            let one: &[&str] = if verb == "list" { &[] } else { &[&id] };
            let arguments = [&["webhooks", verb], one, output].concat();
            let finished = sandbox.command(&arguments);
            let text = format!("{}{}", finished.stdout, finished.stderr);
            assert!(!text.contains("whsec_"), "{arguments:?}: {text}");
        }
    }
    let finished = sandbox.command(&["webhooks", "add", "http://127.0.0.1:9/", "*"]);
    let words: Vec<_> = finished.stdout.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("id", "secret"), "{finished:?}");
    assert!(words[1].parse::<Uuid>().is_ok() && words[3].starts_with("whsec_"), "{finished:?}");
}

#[test]
fn an_invalid_secret_is_reported_and_costs_no_event() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let (webhook, _) = add(&sandbox, &receiver.url("/"));
    let (other, _) = add(&sandbox, &receiver.url("/other"));
    sandbox.database.execute("UPDATE webhooks SET secret = 'p4ssw0rd' WHERE id = $1", &[&webhook]);
    let mut notifier = sandbox.notifier().start();

    sandbox.publish(&Event::new("order.paid"));

    let line = notifier.wait_stderr(SOON, "attempt failed");
    assert!(line.contains(&format!("webhooks rotate-secret {webhook}")), "{line}");
    assert!(!line.contains("p4ssw0rd") && !line.contains(&other.to_string()), "{line}");
    wait_until(SOON, "it is dead", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(1));
    let rejected = [("reason", "rejected")];
    notifier.wait_metric("webhook_dead_letters_total", &rejected, 1.0);
    receiver.wait_at("/other", 1);

    let secret = rotate(&sandbox, webhook, &["--keep", "0s"]);
    wait_until(SOON, "it arrives, signed", || {
        let replayed = sandbox.command(&["dead-letters", "replay"]);
        assert_eq!(replayed.code, Some(0), "{replayed:?}");
        !receiver.at("/").is_empty()
    });
    let request = receiver.at("/").remove(0);
    verify(&secret, &request).expect("its new secret");
}

#[test]
fn listen_distinguishes_a_good_signature_from_a_bad_one() {
    let sandbox = Sandbox::new();
    let (webhook, secret) = add(&sandbox, "http://127.0.0.1:9/");
    let bad = sandbox.launch(&["listen", "--secret", "nonsense"]).spawn().finish(SOON);
    assert_eq!(bad.code, Some(2), "{bad:?}");
    assert!(bad.stderr.contains("whsec_") && !bad.stderr.contains("nonsense"), "{bad:?}");

    let listener = sandbox
        .launch(&["listen", "--addr", "127.0.0.1:0", "--json"])
        .env("WEBHOOK_SECRET", &secret)
        .spawn();
    let line = listener.wait_stdout(SOON, "listening");
    let listening: Value = serde_json::from_str(&line).expect("JSON");
    let url = listening["listening"].as_str().expect("a URL");
    sandbox.database.execute("UPDATE webhooks SET post_url = $1", &[&url]);
    let _notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "10s,10s").env("CIRCUIT_BREAKER", "off").start();
    let received = |signature: &str| {
        let signature = format!("\"signature\":\"{signature}");
        let line = wait_for(SOON, &format!("a line with {signature}"), || {
            // Repeatedly: a change takes effect within a tenth of a second, not immediately.
            sandbox.publish(&Event::new("order.paid"));
            listener.stdout().into_iter().find(|line| line.contains(&signature))
        });
        serde_json::from_str::<Value>(&line).expect("JSON")["status"].clone()
    };
    assert_eq!(received("valid"), 200);
    rotate(&sandbox, webhook, &["--keep", "0s"]);
    assert_eq!(received("invalid: made with another secret"), 401);
    sandbox.database.execute("UPDATE webhooks SET secret = NULL", &[]);
    assert_eq!(received("invalid: not signed"), 401);
}

/// The reason why the webhook was disabled.
fn disabled(sandbox: &Sandbox) -> Option<String> {
    let sql = "SELECT disabled_reason FROM webhooks WHERE disabled_at IS NOT NULL";
    sandbox.database.query(sql, &[]).first().map(|row| row.get(0))
}

#[test]
fn a_410_disables_the_webhook_until_it_is_enabled() {
    let status = Arc::new(AtomicU16::new(410));
    let answer = Arc::clone(&status);
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(move |_| Reply::Status(answer.load(Ordering::SeqCst)));
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();

    sandbox.publish(&Event::new("order.paid"));
    let line = notifier.wait_stderr(SOON, "webhook disabled");
    assert!(line.contains(&format!("webhooks enable {webhook}")), "{line}");
    assert_eq!(disabled(&sandbox).as_deref(), Some("410 Gone"));

    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_events_unmatched_total", &[], 1.0);
    assert_eq!(receiver.requests().len(), 1);

    status.store(200, Ordering::SeqCst);
    let enabled = json(&sandbox, &["webhooks", "enable", &webhook.to_string()]);
    assert_eq!(
        (&enabled["disabled_at"], &enabled["disabled_reason"]),
        (&Value::Null, &Value::Null)
    );
    wait_until(SOON, "it gets its events again", || {
        sandbox.publish(&Event::new("order.paid"));
        receiver.requests().len() > 1
    });
}

#[test]
fn deliveries_that_wait_for_a_deleted_webhook_are_dropped() {
    let gone = Arc::new(AtomicBool::new(false));
    let answer = Arc::clone(&gone);
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(move |_| {
        Reply::Status(if answer.load(Ordering::SeqCst) { 410 } else { 500 })
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "2s,repeat").start();
    let events = [Event::new("a"), Event::new("b"), Event::new("c")];
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at("/", 3);
    gone.store(true, Ordering::SeqCst);
    // One of them gets the answer, or several if they are sent together; the rest is dropped without a
    // request.
    wait_until(SOON, "none is left", || {
        let dropped =
            notifier.metric("webhook_deliveries_dropped_total", &[("reason", "disabled")]);
        let dead = notifier.metric("webhook_dead_letters_total", &[("reason", "gone")]);
        assert!(dropped + dead <= 3.0);
        dead >= 1.0 && dropped + dead == 3.0
    });
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_410_from_the_previous_url_of_a_webhook_does_not_disable_it() {
    let sandbox = Sandbox::new();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let receiver = Receiver::answering(move |request| match request.path.as_str() {
        "/old" => {
            let _ = released.recv_timeout(Duration::from_secs(5));
            Reply::Status(410)
        }
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/old"), &["*"]);
    let notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/old", 1);
    sandbox.database.execute("UPDATE webhooks SET post_url = $1", &[&receiver.url("/new")]);
    drop(release);

    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "gone")], 1.0);
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/new", 1);
    assert_eq!(disabled(&sandbox), None);
}

#[test]
fn a_410_while_postgresql_is_away_takes_effect_at_the_next_event() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(410));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let proxy = Proxy::before(sandbox.database.url());
    let mut notifier: Notifier =
        sandbox.notifier().env("DATABASE_URL", proxy.url(sandbox.database.url())).start();
    let (release, hold) = crossbeam_channel::bounded::<()>(0);
    let slow = Receiver::answering(move |_| {
        let _ = hold.recv_timeout(Duration::from_secs(8));
        Reply::Status(410)
    });
    sandbox.database.execute("UPDATE webhooks SET post_url = $1", &[&slow.url("/slow")]);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    slow.wait_at("/slow", 1);
    proxy.refuse();
    drop(release);

    notifier.wait_stderr(SOON, "webhook not disabled");
    wait_until(SOON, "it is dead all the same", || {
        sandbox.broker.ready(&sandbox.dead_queue()) == Some(1)
    });
    assert_eq!(disabled(&sandbox), None);
    proxy.thaw();
    notifier.wait_stderr(SOON, "directory in use again");
    sandbox.database.execute("UPDATE webhooks SET post_url = $1", &[&receiver.url("/")]);
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_stderr(SOON, "webhook disabled");
    assert_eq!(disabled(&sandbox).as_deref(), Some("410 Gone"));
}
