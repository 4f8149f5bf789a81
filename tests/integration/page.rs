//! What a reader looks for on the status page: whose receiver it is, why it fails, what waits for it and
//! until when, and what happened to the deliveries that aren't there.

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    harness::{Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, rendered, wait_until},
    status::{list, shown, status},
};

/// Registers a webhook of an account.
fn webhook_of(sandbox: &Sandbox, account: &str, url: &str, kind: &str) -> Uuid {
    let webhook = sandbox.webhook(url, &[kind]);
    sandbox
        .database
        .execute("UPDATE webhooks SET account = $1 WHERE id = $2", &[&account, &webhook]);
    webhook
}

fn of_account(kind: &str, account: &str) -> Event {
    let account = AmqpValue::LongString(account.to_owned());
    Event::new(kind).headers(FieldTable::from([("account".to_owned(), account)]))
}

/// What the page shows about a receiver or backlog.
fn of_webhook(status: &Value, part: &str, webhook: Uuid) -> Option<Value> {
    let listed = list(&status[part], "listed").iter();
    listed.into_iter().find(|one| one["webhook"] == webhook.to_string()).cloned()
}

fn sought(notifier: &Notifier, words: &str) -> Value {
    let answer = notifier.get(&format!("/status.json?receivers={words}"));
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).expect("JSON")
}

#[test]
fn receivers_are_shown_with_account_host_path_and_status_code() {
    const ACCOUNT: &str = "Söhne & <img src=x onerror=alert(1)> \u{202e}GmbH";
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        path if path.starts_with("/in/") => Reply::Status(503),
        _ => Reply::Status(404),
    });
    let url = |path: &str| receiver.url(path);
    let path = "/in/%22><script>/concealed-0123456789?key=concealed#concealed";
    let hostile = webhook_of(&sandbox, ACCOUNT, &url(path), "a");
    let other = sandbox.webhook(&url("/other"), &["b"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h").start();
    sandbox.publish(&of_account("a", ACCOUNT));
    sandbox.publish(&Event::new("b"));
    let host = url("").replace("http://", "").replace('/', "");
    wait_until(SOON, "both are there with their names", || {
        let status = status(&notifier);
        let of = |webhook| of_webhook(&status, "receivers", webhook).unwrap_or_default();
        let (hostile, other) = (of(hostile), of(other));
        hostile["place"] == format!("{host}/in/%22%3E%3Cscript%3E/conc…")
            && hostile["account"] == ACCOUNT.replace('\u{202e}', "\\u{202e}")
            && (&hostile["status"], &hostile["reason"]) == (&503.into(), &"status_5xx".into())
            && other["place"] == format!("{host}/other")
            && other["account"] == Value::Null
            && other["status"] == 404
    });

    let json = notifier.get("/status.json").body;
    let (dom, console) = rendered(&format!("http://{}/", notifier.admin_address()));
    // If it were markup, the page's policy would be reported here.
    assert_eq!(console, Vec::<String>::new());
    for text in ["last attempt failed: status 503", "last attempt failed: status 404", "&lt;img"] {
        assert!(dom.contains(text), "{text} in {dom}");
    }
    for forbidden in ["concealed", "\u{202e}"] {
        assert!(!dom.contains(forbidden) && !json.contains(forbidden), "{forbidden} in {dom}");
    }
    // Complete, so that it can be copied.
    assert!(dom.contains(&format!("<code>{hostile}</code>")), "{dom}");
}

#[test]
fn all_receivers_that_got_requests_can_be_searched_including_healthy_ones() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/acme/failing" => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let well = webhook_of(&sandbox, "ACME Ltd", &receiver.url("/acme/in"), "a");
    let failing = webhook_of(&sandbox, "ACME Ltd", &receiver.url("/acme/failing"), "a");
    let other = sandbox.webhook(&receiver.url("/globex"), &["b"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h").start();
    sandbox.publish(&of_account("a", "ACME Ltd"));
    sandbox.publish(&Event::new("b"));
    let found = |words: &str| {
        let status = sought(&notifier, words);
        let listed = list(&status["receivers"], "listed").iter();
        let listed: Vec<_> =
            listed.map(|one| (one["webhook"].clone(), one["condition"].clone())).collect();
        assert_eq!(status["receivers"]["matching"], listed.len(), "{status}");
        listed
    };
    let is =
        |webhook: Uuid, condition: &str| (Value::from(webhook.to_string()), Value::from(condition));
    // The worst first.
    let both = [is(failing, "failing"), is(well, "well")];
    wait_until(LATER, "they are found", || {
        found("acme") == both && found("GLOBEX") == [is(other, "well")]
    });
    assert_eq!(found("ltd%20IN"), both[..]);
    assert_eq!(found("acme/in+ltd"), both[1..]);
    assert_eq!(found(&other.to_string()[..13]), [is(other, "well")]);
    assert_eq!(found("nobody"), []);
    for odd in ["%", "%00%ff", "%F0%9F%98%80", "acme&receivers=globex", &"x".repeat(900)] {
        assert_eq!(found(odd).len(), if odd.starts_with("acme&") { 2 } else { 0 }, "{odd}");
    }
    // Without words: those with a problem.
    assert_eq!(found(""), both[..1]);
    // After a renaming, it is found by its new name.
    sandbox.database.execute("UPDATE webhooks SET account = 'Initech' WHERE id = $1", &[&well]);
    wait_until(LATER, "it has its new name", || found("initech") == both[1..]);
}

#[test]
fn the_trend_of_a_backlog_shows_when_it_will_be_empty() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let falls = sandbox.webhook(&receiver.url("/falls"), &["falls"]);
    let paused = sandbox.webhook(&receiver.url("/paused"), &["paused"]);
    sandbox.database.execute(
        "UPDATE webhooks SET rate_per_second = 10, paused_at = CASE WHEN id = $1 THEN now() END",
        &[&paused],
    );
    let notifier = sandbox.notifier().start();
    let events = |kind: &str, count| (0..count).map(|_| Event::new(kind)).collect::<Vec<_>>();
    sandbox.broker.publish(sandbox.queue(), &events("falls", 600));
    sandbox.broker.publish(sandbox.queue(), &events("paused", 7));
    wait_until(LATER, "the one becomes less, the other does not", || {
        let status = status(&notifier);
        let of = |webhook| of_webhook(&status, "backlogs", webhook).unwrap_or_default();
        let (falls, paused) = (of(falls), of(paused));
        let counts = |one: &Value| one["trend"]["waiting"].as_array().map_or(0, Vec::len);
        falls["growth_per_second"].as_f64() < Some(-2.0)
            && falls["empty_in_seconds"].as_f64() > Some(5.0)
            && counts(&falls) > 1
            && paused["waiting"] == 7
            && paused["growth_per_second"].as_f64() >= Some(0.0)
            && paused["empty_in_seconds"].is_null()
            // A delivery that was late because of a backlog is late for its queue.
            && status["lanes"][0]["queue_lag_p99"]["seconds"].as_f64() >= Some(4.0)
            // The trend of the waiting deliveries is shown the same way.
            && status["lanes"][2]["growth_per_second"].as_f64() < Some(-2.0)
            // Because of the webhook whose deliveries never leave.
            && status["lanes"][2]["empty_in_seconds"].is_null()
    });
    let (dom, _) = rendered(&format!("http://{}/", notifier.admin_address()));
    for text in ["‖ paused", "▼ empty in", "its webhook's rate_per_second"] {
        assert!(dom.contains(text), "{text} in {dom}");
    }
    notifier.kill();
}

#[test]
fn deliveries_held_back_dropped_orphaned_or_refused_are_counted() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/refuses" => Reply::Status(400),
        _ => Reply::Status(500),
    });
    let paused = sandbox.webhook(&receiver.url("/paused"), &["paused"]);
    let deleted = sandbox.webhook(&receiver.url("/deleted"), &["deleted"]);
    sandbox.webhook(&receiver.url("/refuses"), &["refused"]);
    let pause = "UPDATE webhooks SET paused_at = now() WHERE id = $1";
    sandbox.database.execute(pause, &[&paused]);
    let launch = sandbox.notifier().env("RETRY_SCHEDULE", "1s,1s");
    let notifier = launch.env("NO_RETRY_STATUS", "400").start();
    for kind in ["paused", "paused", "paused", "deleted", "refused"] {
        sandbox.publish(&Event::new(kind));
    }
    receiver.wait_at("/deleted", 1);
    sandbox.database.execute("DELETE FROM webhooks WHERE id = $1", &[&deleted]);
    wait_until(LATER, "all are counted", || {
        let status = status(&notifier);
        let events = &status["lanes"][0];
        events["held"]["paused"] == 3
            && events["died"]["refused"] == 1
            && events["dead"] == 1
            && status["dropped"]["deleted"] == 1
            && status["refusals"] == 0
            && status["orphaned"].is_number()
    });
    let metrics = notifier.metrics();
    let (dom, _) = rendered(&format!("http://{}/", notifier.admin_address()));
    let shown = shown(&dom);
    for metric in ["webhook_deliveries_held_total", "webhook_deliveries_dropped_total"] {
        assert_eq!(shown[metric], [metrics.sum(metric, &[]).to_string()], "{metric}");
    }
    assert_eq!(shown["webhook_refusals_total"], ["0"]);
    assert!(shown.contains_key(r#"webhook_queue_messages{queue="webhooks.orphaned"}"#));
    for text in ["<small>paused 3</small>", "<small>deleted 1</small>", "<small>refused 1</small>"]
    {
        assert!(dom.contains(text), "{text} in {dom}");
    }
    notifier.kill();
}

#[test]
fn a_split_event_counts_with_its_queue_and_not_as_retried_or_held_back() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    for path in ["/a", "/b", "/c"] {
        sandbox.webhook(&receiver.url(path), &["order.paid"]);
    }
    let notifier = sandbox.notifier().env("FANOUT_INLINE", "1").start();
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_request_success_total", &[], 3.0);
    let (dom, _) = rendered(&format!("http://{}/", notifier.admin_address()));
    let (_, row) = dom.split_once("<tbody id=\"queues\"").expect("the queues");
    let row = row.split("</tbody>").next().expect("it ends");
    let cell = |label: &str| {
        let (_, rest) = row.split_once(&format!("data-label=\"{label}\"")).expect("a cell");
        let cell = rest.split("</td>").next().expect("it ends");
        let small = cell.split("<small").nth(1).and_then(|rest| rest.split_once('>'));
        let small = small.and_then(|(_, rest)| rest.split('<').next());
        small.expect("a number since the start").to_owned()
    };
    // One event, three deliveries.
    assert_eq!(cell("Received"), "1\n3 split off");
    assert_eq!((cell("Delivered"), cell("Failed")), ("3".to_owned(), "0".to_owned()));
    let shown = shown(&dom);
    assert_eq!(shown["webhook_deliveries_held_total"], ["0"]);
    let of_retries = |metric: &str| format!("{metric}{{queue=\"{}\"}}", sandbox.retry_queue());
    assert_eq!(shown[&of_retries("webhook_request_success_total")][1], "0");
}
