//! A problem is reported in three places: the headline of the status page, /readyz, and an alert whose
//! metric shows it. Each state is caused for real.

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    Event, FaultServers, LATER, Launch, Notifier, Proxy, Receiver, Sandbox, Vhost, wait_until,
};

const RULES: &str = include_str!("../../scripts/monitoring/prometheus-rules.yml");

/// What must be reported in a state.
struct Problem {
    /// The beginning or end of one of the page's sentences.
    headline: &'static str,
    verdict: &'static str,
    readyz: u16,
    alert: &'static str,
    /// A metric of the alert's expression, one of its samples, and its value.
    metric: &'static str,
    labels: &'static [(&'static str, &'static str)],
    shows: fn(f64) -> bool,
}

/// An alert's expression.
fn expression(alert: &str) -> &'static str {
    let (_, rule) =
        RULES.split_once(&format!("- alert: {alert}\n")).expect("there is such an alert");
    let (_, expression) = rule.split_once("expr:").expect("it has an expression");
    expression
        .split_once("\n        for:")
        .or(expression.split_once("\n        labels:"))
        .expect("more")
        .0
}

#[track_caller]
fn assert_reported(notifier: &Notifier, problem: &Problem) {
    assert!(expression(problem.alert).contains(problem.metric), "{} looks at it", problem.alert);
    wait_until(LATER, problem.headline, || {
        let status: Value = serde_json::from_str(&notifier.get("/status.json").body).expect("JSON");
        let advice = status["advice"].as_array().expect("a list");
        let is_said = advice
            .iter()
            .filter_map(|one| one["what"].as_str())
            .any(|what| what.starts_with(problem.headline) || what.ends_with(problem.headline));
        is_said
            && status["state"] == problem.verdict
            && notifier.get("/readyz").status == problem.readyz
            && (problem.shows)(notifier.metric(problem.metric, problem.labels))
    });
}

fn launch(sandbox: &Sandbox) -> Launch {
    sandbox.notifier().env("RETRY_SCHEDULE", "1s,2s")
}

/// In its own virtual host, since some states affect all notifiers of one.
fn with_vhost(test: impl FnOnce(&Vhost<'_>, &Sandbox)) {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    test(&vhost, &sandbox);
}

#[test]
fn a_queue_that_refuses_messages_is_trouble() {
    with_vhost(|vhost, sandbox| {
        vhost.set_policy("^t.*[.]dead$", r#"{"max-length":1,"overflow":"reject-publish"}"#);
        let notifier = launch(sandbox).start();
        let refusals = || notifier.metric("webhook_refusals_total", &[]);
        // RabbitMQ takes messages beyond the limit if they arrive together.
        wait_until(LATER, "one is refused", || {
            sandbox.publish(&Event::raw("malformed"));
            refusals() >= 1.0
        });
        assert_reported(
            &notifier,
            &Problem {
                headline: " for it.",
                verdict: "trouble",
                readyz: 200,
                alert: "WebhookQueueRefuses",
                metric: "webhook_messages_refused",
                labels: &[],
                shows: |messages| messages >= 1.0,
            },
        );
        vhost.clear_policy();
        notifier.terminate();
    });
}

#[test]
fn orphaned_deliveries_want_attention() {
    with_vhost(|_, sandbox| {
        let notifier = launch(sandbox).start();
        let orphan = Event::new("order.paid").parked("gone", Uuid::new_v4());
        sandbox.broker.publish_to("webhooks.wait", "1s.gone", &[orphan]);
        assert_reported(
            &notifier,
            &Problem {
                headline: "1 orphaned delivery.",
                verdict: "attention",
                readyz: 200,
                alert: "WebhookOrphaned",
                metric: "webhook_queue_messages",
                labels: &[("queue", "webhooks.orphaned")],
                shows: |messages| messages == 1.0,
            },
        );
        notifier.terminate();
    });
}

#[test]
fn a_deleted_queue_is_reported_when_it_exists_again() {
    with_vhost(|_, sandbox| {
        let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h").start();
        let waiting = Event::new("order.paid").parked(sandbox.queue(), Uuid::new_v4());
        sandbox.broker.publish_to("webhooks.wait", "1h.x", &[waiting]);
        assert_eq!(sandbox.broker.delete("webhooks.wait.1h").ok(), Some(1));
        assert_reported(
            &notifier,
            &Problem {
                headline: "The queue webhooks.wait.1h was deleted ",
                verdict: "attention",
                readyz: 200,
                alert: "WebhookTopologyLost",
                metric: "webhook_topology_lost_total",
                labels: &[("object", "queue")],
                shows: |lost| lost == 1.0,
            },
        );
        notifier.terminate();
    });
}

#[test]
fn an_unusable_queue_is_trouble() {
    with_vhost(|_, sandbox| {
        let mut classic = FieldTable::new();
        classic.insert("x-queue-type".to_owned(), AmqpValue::LongString("classic".to_owned()));
        sandbox.broker.declare("webhooks.wait.1s", classic).expect("a fresh name");
        let notifier = launch(sandbox).start();
        assert_reported(
            &notifier,
            &Problem {
                headline: "The queue webhooks.wait.1s can't be used: ",
                verdict: "trouble",
                readyz: 200,
                alert: "WebhookTopologyUnusable",
                metric: "webhook_topology_unusable",
                labels: &[],
                shows: |unusable| unusable == 1.0,
            },
        );
        notifier.terminate();
    });
}

#[test]
fn an_error_of_postgresql_is_trouble() {
    let sandbox = Sandbox::new();
    let notifier = launch(&sandbox).start();
    sandbox.database.run_script("ALTER TABLE webhooks RENAME TO gone");
    sandbox.publish(&Event::new("order.paid"));
    assert_reported(
        &notifier,
        &Problem {
            headline: "PostgreSQL has answered with an error for ",
            verdict: "trouble",
            readyz: 503,
            alert: "WebhookDatabaseAway",
            metric: "webhook_database_up",
            labels: &[],
            shows: |up| up == 0.0,
        },
    );
    sandbox.database.run_script("ALTER TABLE gone RENAME TO webhooks");
    sandbox.wait_drained();
    notifier.terminate();
}

#[test]
fn a_broker_that_is_away_is_trouble_and_nothing_is_consumed() {
    let sandbox = Sandbox::new();
    let broker = Proxy::before(&sandbox.servers.amqp_url);
    let amqp_url = broker.url(&sandbox.servers.amqp_url);
    let notifier = launch(&sandbox).env("AMQP_URL", amqp_url).start();
    broker.refuse();
    assert_reported(
        &notifier,
        &Problem {
            headline: ": nothing is being consumed.",
            verdict: "trouble",
            readyz: 503,
            alert: "WebhookLaneNotConsuming",
            metric: "webhook_broker_connected",
            labels: &[],
            shows: |connected| connected == 0.0,
        },
    );
    broker.thaw();
    notifier.terminate();
}

#[test]
fn missing_notifications_of_changes_want_attention() {
    let sandbox = Sandbox::new();
    sandbox.database.run_script("DROP TRIGGER webhooks_updated ON webhooks");
    let notifier = launch(&sandbox).start();
    assert_reported(
        &notifier,
        &Problem {
            headline: "Notifications of changes to the webhooks have failed for ",
            verdict: "attention",
            readyz: 200,
            alert: "WebhookDirectoryBypassed",
            metric: "webhook_directory_age_seconds",
            labels: &[],
            shows: |age| age > 0.0,
        },
    );
    notifier.terminate();
}

#[test]
fn most_receivers_failing_together_is_trouble() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    for kind in ["a", "b", "c"] {
        sandbox.webhook(&receiver.refusing_url(), &[kind]);
    }
    sandbox.webhook(&receiver.url("/"), &["d"]);
    let notifier = launch(&sandbox).start();
    for kind in ["a", "b", "c", "d"] {
        sandbox.publish(&Event::new(kind));
    }
    assert_reported(
        &notifier,
        &Problem {
            headline: "3 of 4 receivers fail, are slow or are down.",
            verdict: "trouble",
            readyz: 200,
            alert: "WebhookFailureRatio",
            metric: "webhook_receivers_ailing",
            labels: &[],
            shows: |ailing| ailing == 3.0,
        },
    );
    notifier.terminate();
}
