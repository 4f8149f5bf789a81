//! DISABLE_AFTER: a webhook that has failed for so long is disabled.

use std::time::Duration;

use uuid::Uuid;

use super::NoticeQueue;
use crate::{
    commands::{json, succeed},
    harness::{Event, Launch, Receiver, Reply, SOON, Sandbox, holds_for, wait_until},
};

/// A failing webhook is attempted several times per second.
fn launch(sandbox: &Sandbox, after: &str) -> Launch {
    sandbox
        .notifier()
        .env("DISABLE_AFTER", after)
        .env("CIRCUIT_BREAKER", "2,100ms,200ms")
        .env("RETRY_SCHEDULE", "200ms,repeat")
}

fn is_disabled(sandbox: &Sandbox, webhook: Uuid) -> bool {
    let sql = "SELECT disabled_at IS NOT NULL FROM webhooks WHERE id = $1";
    sandbox.database.query(sql, &[&webhook])[0].get(0)
}

#[test]
fn a_webhook_that_fails_for_long_is_disabled_and_one_that_succeeds_or_gets_nothing_is_not() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/flaky" if request.attempt % 3 != 0 => Reply::Status(500),
        "/dead" => Reply::Status(500),
        "/once" => Reply::Status(422),
        _ => Reply::Status(200),
    });
    let [dead, flaky, once] = ["/dead", "/flaky", "/once"]
        .map(|path| sandbox.webhook(&receiver.url(path), &[path.trim_start_matches('/')]));
    let sql = "UPDATE webhooks SET no_retry_status = '422' WHERE id = $1";
    sandbox.database.execute(sql, &[&once]);
    let mut notifier = launch(&sandbox, "4s").start();
    let bound = NoticeQueue::bound(&sandbox, "webhook.*");
    for kind in ["once", "dead"] {
        sandbox.publish(&Event::new(kind));
        sandbox.publish(&Event::new(kind));
    }
    wait_until(SOON, "it is disabled", || {
        sandbox.publish(&Event::new("flaky"));
        is_disabled(&sandbox, dead)
    });
    let line = notifier.wait_stderr(SOON, "webhook disabled");
    for part in [&dead.to_string(), "no success for 4s", "are dropped", "webhooks enable"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!is_disabled(&sandbox, flaky) && !is_disabled(&sandbox, once));
    let notice = &bound.wait_for(dead, &["webhook.disabled"])[0];
    assert_eq!(notice["data"]["cause"], "failing", "{notice}");
    let shown = succeed(&sandbox, &["webhooks", "show", &dead.to_string()]);
    assert!(shown.contains("no success for 4s (DISABLE_AFTER)"), "{shown}");
    let labels = [("reason", "failing")];
    notifier.wait_metric("webhook_auto_disabled_total", &labels, 1.0);
    wait_until(SOON, "the page names it", || {
        let advice = json(&notifier.get("/status.json").body)["advice"].to_string();
        advice.contains(&dead.to_string()) && advice.contains("no success for 4s")
    });

    // Once enabled, it has the whole time again.
    succeed(&sandbox, &["webhooks", "enable", &dead.to_string()]);
    bound.wait_for(dead, &["webhook.disabled", "webhook.enabled"]);
    sandbox.publish(&Event::new("dead"));
    holds_for(Duration::from_secs(2), "it fails anew", || !is_disabled(&sandbox, dead));
    notifier.terminate();
}

#[test]
fn how_long_a_webhook_has_failed_is_known_to_all_and_to_the_next_process() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let start = || launch(&sandbox, "1h").env("RETRY_SCHEDULE", "1s,repeat").start();
    let first = start();
    // Seen by another notifier.
    let insert = "INSERT INTO webhook_conditions (webhook_id, failing_since, failed_at)
                  VALUES ($1, now() - interval '50 min', now())";
    sandbox.database.execute(insert, &[&webhook]);
    sandbox.publish(&Event::new("order.paid"));
    wait_until(SOON, "it fails", || !receiver.requests().is_empty());
    first.kill();
    assert!(!is_disabled(&sandbox, webhook));
    sandbox
        .database
        .execute("UPDATE webhook_conditions SET failing_since = now() - interval '61 min'", &[]);
    let second = start();
    wait_until(SOON, "it is disabled", || is_disabled(&sandbox, webhook));
    second.terminate();
}

#[test]
fn by_default_nothing_is_disabled_and_a_paused_webhook_never_is() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let paused = sandbox.webhook("http://127.0.0.1:9/paused", &["none"]);
    let insert = "INSERT INTO webhook_conditions (webhook_id, failing_since, failed_at)
                  VALUES ($1, now() - interval '90 days', now())";
    sandbox.database.execute(insert, &[&webhook]);
    let default = sandbox.notifier().start();
    holds_for(Duration::from_secs(7), "it is not", || !is_disabled(&sandbox, webhook));
    default.terminate();
    let pause = "UPDATE webhooks SET paused_at = now() WHERE id = $1";
    sandbox.database.execute(pause, &[&paused]);
    sandbox.database.execute(insert, &[&paused]);
    let with_it = launch(&sandbox, "5d").start();
    wait_until(SOON, "the other is", || is_disabled(&sandbox, webhook));
    assert!(!is_disabled(&sandbox, paused));
    with_it.terminate();
}
