//! A receiver that fails for a long time, and recovers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::NoticeQueue;
use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, holds_for, wait_until};

/// As if the outage had begun `minutes` minutes earlier.
fn age(sandbox: &Sandbox, minutes: i32) {
    let sql = "UPDATE webhook_conditions SET
                   failing_since = failing_since - make_interval(mins => $1),
                   open_since = open_since - make_interval(mins => $1)";
    sandbox.database.execute(sql, &[&minutes]);
}

#[track_caller]
fn wait_open(sandbox: &Sandbox, notifier: &Notifier) {
    wait_until(SOON, "its circuit breaker is open", || {
        sandbox.publish(&Event::new("order.paid"));
        notifier.metric("webhook_circuit_breakers_open", &[]) == 1.0
    });
    wait_until(SOON, "that is written down", || {
        let open = "SELECT 1 FROM webhook_conditions WHERE open_since IS NOT NULL";
        !sandbox.database.query(open, &[]).is_empty()
    });
}

#[test]
fn a_breaker_open_for_ten_minutes_is_published_once_across_instances_and_so_is_its_end() {
    let sandbox = Sandbox::new();
    let (receiver, is_fixed) = Receiver::failing(503);
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    // So that an outage is recorded within seconds.
    let start = || {
        let launch = sandbox.notifier().env("DISABLE_AFTER", "2h");
        launch.env("CIRCUIT_BREAKER", "2,200ms,500ms").env("RETRY_SCHEDULE", "1s,repeat").start()
    };
    let (first, second) = (start(), start());
    let bound = NoticeQueue::bound(&sandbox, "webhook.#");
    // Another notifier has seen it fail, too; the table has one row for all.
    let insert = "INSERT INTO webhook_conditions (webhook_id, failing_since, failed_at, open_since)
                  VALUES ($1, now(), now(), now())";
    sandbox.database.execute(insert, &[&webhook]);
    wait_open(&sandbox, &first);
    age(&sandbox, 9);
    holds_for(Duration::from_secs(6), "nine minutes are not enough", || {
        bound.types_of(webhook).is_empty()
    });
    age(&sandbox, 2);
    let notices = bound.wait_for(webhook, &["webhook.failing"]);
    assert!(notices[0]["data"]["failing_since"].is_string(), "{}", notices[0]);
    assert!(notices[0]["data"]["last_failed_at"].is_string(), "{}", notices[0]);

    // A restart causes no notice.
    first.kill();
    let third = start();
    holds_for(Duration::from_secs(6), "it is published once", || {
        bound.types_of(webhook) == ["webhook.failing"]
    });
    is_fixed.store(true, Ordering::SeqCst);
    let notices = bound.wait_for(webhook, &["webhook.failing", "webhook.recovered"]);
    assert!(notices[1]["data"]["recovered_at"].is_string(), "{}", notices[1]);
    holds_for(Duration::from_secs(6), "that is published once, too", || {
        bound.types_of(webhook).len() == 2
    });
    second.terminate();
    third.terminate();
}
