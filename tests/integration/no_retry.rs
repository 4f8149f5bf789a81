//! Statuses that are never retried: NO_RETRY_STATUS, and a webhook's own.

use serde_json::{Value, json};

use crate::{
    commands,
    harness::{DeadLetter, Event, Receiver, Reply, SOON, Sandbox, unwrapped, wait_until},
};

/// How `why` explains such a delivery.
const REFUSED: &str = "refused: its answer is one of NO_RETRY_STATUS";

/// Answers with the status in the path.
fn receiver() -> Receiver {
    Receiver::answering(|request| {
        Reply::Status(request.path.trim_start_matches('/').parse().expect("a status"))
    })
}

#[test]
fn a_delivery_with_a_no_retry_status_is_dead_at_once_and_others_are_retried() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let refusing = sandbox.webhook(&receiver.url("/422"), &["refused"]);
    sandbox.webhook(&receiver.url("/500"), &["failed"]);
    sandbox.webhook(&receiver.url("/410"), &["gone"]);
    let mut notifier = sandbox
        .notifier()
        .env("NO_RETRY_STATUS", "400,404-422")
        .env("RETRY_SCHEDULE", "100ms,1h")
        .start();
    let event = Event::new("refused");
    sandbox.publish(&event);

    let dead = sandbox.expect_dead(&DeadLetter {
        event: &event,
        kind: "refused",
        webhook: refusing,
        reason: "refused",
        attempts: 1,
    });
    assert!(dead.text("x-last-error").contains("status 422"), "{dead:?}");
    let line = notifier.wait_stderr(SOON, "attempt failed");
    assert!(line.contains("reason=status_4xx") && line.contains("next=dead:refused"), "{line}");
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "refused")], 1.0);
    // The log is written in parallel to the deliveries.
    wait_until(SOON, "`why` reports it", || {
        unwrapped(&sandbox.command(&["why", &event.id]).stdout).contains(REFUSED)
    });

    sandbox.publish(&Event::new("failed"));
    receiver.wait_at("/500", 2);
    sandbox.publish(&Event::new("gone"));
    assert_eq!(sandbox.take_dead().text("x-dead-reason"), "gone", "410 keeps its meaning");
    assert_eq!(receiver.at("/422").len(), 1);
}

#[test]
fn a_webhooks_own_statuses_count_instead_of_the_setting() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let add = |status: &str, options: &[&str]| {
        let url = receiver.url(&format!("/{status}"));
        let add = [&["webhooks", "add", &url, status, "--json"], options].concat();
        commands::json(&commands::succeed(&sandbox, &add))
    };
    let own = add("409", &["--no-retry", "409, 5xx"]);
    assert_eq!(own["no_retry_status"], "409, 5xx");
    let id = own["id"].as_str().expect("an id");
    let none = add("404", &["--no-retry", "none"]);
    let set = add("400", &[]);
    assert_eq!(set["no_retry_status"], Value::Null);
    let _notifier = sandbox
        .notifier()
        .env("NO_RETRY_STATUS", "400,404")
        .env("RETRY_SCHEDULE", "100ms,1h")
        .start();

    for (status, webhook) in [("409", &own), ("400", &set)] {
        let event = Event::new(status);
        sandbox.publish(&event);
        let webhook = webhook["id"].as_str().and_then(|id| id.parse().ok()).expect("an id");
        let (kind, reason, attempts) = (status, "refused", 1);
        sandbox.expect_dead(&DeadLetter { event: &event, kind, webhook, reason, attempts });
    }
    sandbox.publish(&Event::new("404"));
    receiver.wait_at("/404", 2);
    assert_eq!(none["no_retry_status"], "none");

    let shown = commands::succeed(&sandbox, &["webhooks", "show", id]);
    assert!(shown.contains("no_retry_status  409, 5xx"), "{shown}");
    let set = ["webhooks", "set", id, "--unset", "no-retry", "--json"];
    let changed = commands::json(&commands::succeed(&sandbox, &set));
    assert_eq!(changed["no_retry_status"], json!(null));
    sandbox.publish(&Event::new("409"));
    receiver.wait_at("/409", 3);

    let refused = sandbox.command(&["webhooks", "set", id, "--no-retry", "2xx"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--no-retry: \"2xx\""), "{refused:?}");
    let by_sql = "UPDATE webhooks SET no_retry_status = 'teapot' WHERE post_url LIKE '%/404'";
    sandbox.database.execute(by_sql, &[]);
    let event = Event::new("404");
    sandbox.publish(&event);
    let dead = sandbox.take_dead();
    assert_eq!(dead.text("x-dead-reason"), "rejected", "{dead:?}");
    assert!(dead.text("x-last-error").contains("unusable no_retry_status: \"teapot\""), "{dead:?}");
}

#[test]
fn a_test_says_that_a_delivery_would_be_dead() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let webhook = sandbox.webhook(&receiver.url("/404"), &["*"]).to_string();
    for (statuses, expected) in [("4xx", "would be dead at once"), ("400", "would be tried again")]
    {
        let test = sandbox.launch(&["webhooks", "test", &webhook]);
        let test = test.env("ALLOW_NETWORKS", "127.0.0.0/8").env("NO_RETRY_STATUS", statuses);
        let finished = test.spawn().finish(SOON);
        assert!(finished.stderr.contains(expected), "{finished:?}");
    }
}
