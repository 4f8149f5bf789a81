//! `why --webhook ID`: a webhook's attempts during a period.

use uuid::Uuid;

use crate::commands::{json, succeed};
use crate::harness::{Event, Receiver, Reply, SOON, Sandbox, receiver::Then, unwrapped, wait_for};

/// Entries by SQL: seconds ago, event, outcome, attempt, status, reason, milliseconds, dead.
fn fill(sandbox: &Sandbox, webhook: Uuid) {
    sandbox.database.execute(
        "INSERT INTO delivery_attempts
             (at, event_id, event_type, webhook_id, queue, outcome, attempt, status, reason, detail, ms,
              dead, status_line, answer_body)
         SELECT now() - make_interval(secs => ago), event, 'order.paid', $1, 'q', outcome, attempt,
             status, reason, detail, ms, dead, line, body
         FROM (VALUES
             (90000, 'old', 'failed', 1, 500, 'status_5xx', 'status 500', 99000, NULL, NULL, NULL),
             (7000, 'a', 'held_back', 0, NULL, 'breaker', 'x', NULL, NULL, NULL, NULL),
             (6000, 'a', 'failed', 1, 503, 'status_5xx', 'status 503', 12, NULL, NULL, NULL),
             (5000, 'b', 'failed', 1, NULL, 'timeout', 'no answer within 10s', 10000, NULL, NULL, NULL),
             (1400, 'a', 'failed', 2, 503, 'status_5xx', 'status 503', 7, NULL,
                 'HTTP/1.1 503 Away', 'until nine'),
             (1300, 'b', 'failed', 2, NULL, 'timeout', 'no answer within 10s', 9000, 'exhausted', NULL, NULL),
             (1200, 'a', 'delivered', 3, 200, NULL, '', 40, NULL, NULL, NULL)
         ) AS entries (ago, event, outcome, attempt, status, reason, detail, ms, dead, line, body)",
        &[&webhook],
    );
}

#[test]
fn it_counts_the_logged_attempts_and_names_the_worst() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("https://example.org/in?token=s3cret", &["order.*"]);
    let other = sandbox.webhook("https://example.org/", &["*"]);
    fill(&sandbox, webhook);
    fill(&sandbox, other);
    let id = webhook.to_string();
    let report = json(&succeed(&sandbox, &["why", "--webhook", &id, "--since", "2h", "--json"]));
    for (name, expected) in [
        ("webhook_id", id.as_str().into()),
        ("registration", "enabled".into()),
        ("events", 2.into()),
        ("delivered", 1.into()),
        ("failed", 4.into()),
        ("held_back", 1.into()),
        ("dropped", 0.into()),
        ("dead", serde_json::json!({ "exhausted": 1 })),
        ("log", "failures".into()),
        ("truncated", false.into()),
    ] {
        assert_eq!(report[name], expected, "{name} of {report}");
    }
    let failures = report["failures"].as_array().expect("a list");
    let kinds: Vec<_> =
        failures.iter().map(|it| (&it["reason"], &it["status"], &it["count"])).collect();
    let (by_status, timeout) = ("status_5xx".into(), "timeout".into());
    let (two, status, none) = (2.into(), 503.into(), serde_json::Value::Null);
    assert_eq!(kinds, [(&by_status, &status, &two), (&timeout, &none, &two)], "{report}");
    assert_eq!(failures[0]["last"]["answer"]["body"], "until nine", "{report}");
    assert_eq!(report["slowest"]["ms"], 10_000, "{report}");
    assert_eq!(
        (&report["first"]["what"], &report["last"]["what"]),
        (&"held_back".into(), &"delivered".into())
    );
    let gap = &report["longest_gap"];
    for end in ["from", "to"] {
        assert!(gap[end].as_str().is_some_and(|at| at.ends_with('Z')), "{report}");
    }

    let text = succeed(&sandbox, &["why", "--webhook", &id[..8], "--since", "2h"]);
    let words = unwrapped(&text);
    for part in [
        "enabled; wants `order.*`",
        "for 2h",
        "counts 5 attempts for 2 events: 1 delivered, 4 failed; 1 held back; 1 dead, exhausted",
        "slowest 10000 ms,",
        "(attempt 1 of b)",
        "gap 1h at most between two attempts, from",
        "2 status 503",
        "status 503 Away: until nine",
        "2 timeout",
        "no answer within 10s",
        "DELIVERY_LOG=failures",
        &format!("dead-letters list --webhook {id}"),
    ] {
        assert!(words.contains(part), "no {part:?} in {text}");
    }
    assert!(!text.contains("s3cret") && !report.to_string().contains("s3cret"), "{text}");
    let wide = text.lines().find(|line| line.chars().count() > 100);
    assert_eq!(wide, None, "for a terminal");

    let day = json(&succeed(&sandbox, &["why", "--webhook", &id, "--since", "3d", "--json"]));
    assert_eq!((&day["failed"], &day["slowest"]["ms"]), (&5.into(), &99_000.into()), "{day}");
    // A day by default.
    let usual = json(&succeed(&sandbox, &["why", "--webhook", &id, "--json"]));
    assert_eq!(usual["failed"], 4, "{usual}");
    let text = succeed(&sandbox, &["why", "--webhook", &id, "--since", "1m"]);
    assert!(text.contains("nothing is logged for it"), "{text}");
}

#[test]
fn it_counts_what_a_notifier_has_logged() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| {
        let answer = b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 9\r\n\r\n<p>no</p>".to_vec();
        Reply::Raw(answer, Then::Stay)
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]).to_string();
    let _notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    sandbox.publish(&Event::new("order.paid"));
    let text = wait_for(SOON, "both attempts are counted", || {
        let text = succeed(&sandbox, &["why", "--webhook", &webhook, "--since", "10m"]);
        text.contains("2 attempts for 1 event").then_some(text)
    });
    let words = unwrapped(&text);
    for part in ["status 502 Bad Gateway: <p>no</p>", "1 dead, exhausted", "webhooks test"] {
        assert!(words.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn an_unknown_webhook_and_contradictory_arguments_are_errors() {
    let sandbox = Sandbox::new();
    let stranger = Uuid::new_v4().to_string();
    let finished = sandbox.command(&["why", "--webhook", &stranger]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains("nothing is logged for it"), "{finished:?}");
    let quiet = sandbox.webhook("https://example.org/", &["*"]).to_string();
    assert!(succeed(&sandbox, &["why", "--webhook", &quiet]).contains("nothing is logged for it"));
    for wrong in [
        &["why"][..],
        &["why", "--since", "2h"],
        &["why", "e", "--webhook", &quiet, "--since", "2h"],
        &["why", "--webhook", &quiet, "--since", "soon"],
        &["why", "--webhook", &quiet, "--type", "order.paid"],
    ] {
        let finished = sandbox.command(wrong);
        assert_eq!(finished.code, Some(2), "{wrong:?}: {finished:?}");
    }
}
