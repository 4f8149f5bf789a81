//! What /metrics, /healthz and /readyz report.

use crate::harness::{
    Event, Notifier, Receiver, Reply, SOON, Sandbox, exposition::Exposition, wait_until,
};

/// Name, type, and the labels of its samples.
const METRICS: [(&str, &str, &[&str]); 29] = [
    ("webhook_event_processing_seconds", "histogram", &["queue"]),
    ("webhook_request_success_total", "counter", &["queue"]),
    ("webhook_request_failure_total", "counter", &["queue", "reason"]),
    ("webhook_request_duration_seconds", "histogram", &["queue"]),
    ("webhook_delivery_lag_seconds", "histogram", &["queue"]),
    ("webhook_events_received_total", "counter", &["queue"]),
    ("webhook_events_unmatched_total", "counter", &["queue"]),
    ("webhook_retries_scheduled_total", "counter", &["queue"]),
    ("webhook_dead_letters_total", "counter", &["queue", "reason"]),
    ("webhook_deliveries_dropped_total", "counter", &["reason"]),
    ("webhook_queue_messages", "gauge", &["queue"]),
    ("webhook_oldest_waiting_seconds", "gauge", &["queue"]),
    ("webhook_requests_in_flight", "gauge", &["queue"]),
    ("webhook_capacity", "gauge", &["queue"]),
    ("webhook_capacity_in_use", "gauge", &["class", "queue"]),
    ("webhook_lane_consumers", "gauge", &["queue"]),
    ("webhook_receivers_ailing", "gauge", &[]),
    ("webhook_receivers_slow", "gauge", &[]),
    ("webhook_broker_connected", "gauge", &["queue"]),
    ("webhook_database_up", "gauge", &[]),
    ("webhook_broker_accepting", "gauge", &[]),
    ("webhook_messages_refused", "gauge", &["queue"]),
    ("webhook_refusals_total", "counter", &["queue"]),
    ("webhook_delivery_log_rows_total", "counter", &["result"]),
    ("webhook_notices_total", "counter", &["result"]),
    ("webhook_notices_waiting", "gauge", &[]),
    ("webhook_auto_disabled_total", "counter", &["reason"]),
    ("webhook_build_info", "gauge", &["version"]),
    ("process_resident_memory_bytes", "gauge", &[]),
];

/// A notifier that has had events of every kind, so that every metric has a sample.
pub(crate) fn eventful(sandbox: &Sandbox) -> Notifier {
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/never" | "/doomed", _) | ("/once", 1) => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1s").start();
    let doomed = sandbox.webhook(&receiver.url("/doomed"), &["doomed"]);
    for path in ["/good", "/once", "/never"] {
        let kind = path.trim_start_matches('/');
        sandbox.webhook(&receiver.url(path), &[kind]);
    }
    for kind in ["good", "once", "never", "nobody", "doomed"] {
        sandbox.publish(&Event::new(kind));
    }
    receiver.wait_at("/doomed", 1);
    let delete = "DELETE FROM webhooks WHERE id = $1";
    sandbox.database.execute(delete, &[&doomed]);
    let dead_queue = sandbox.dead_queue();
    wait_until(SOON, "all that is to happen is counted", || {
        let metrics = notifier.metrics();
        metrics.sum("webhook_request_success_total", &[]) == 2.0
            && metrics.sum("webhook_dead_letters_total", &[]) == 1.0
            && metrics.sum("webhook_deliveries_dropped_total", &[]) == 1.0
            && metrics.value("webhook_queue_messages", &[("queue", &dead_queue)]) == Some(1.0)
    });
    notifier
}

#[test]
fn every_promised_metric_is_there_with_its_type_and_labels() {
    let sandbox = Sandbox::new();
    let notifier = eventful(&sandbox);
    let queue = sandbox.queue();
    let retry = sandbox.retry_queue();

    let metrics = notifier.metrics();
    for (name, kind, labels) in METRICS {
        let has = metrics.types.get(name);
        assert_eq!(has.map(String::as_str), Some(kind), "{name}");
        let samples = match kind {
            "histogram" => format!("{name}_count"),
            _ => name.to_owned(),
        };
        let has: Vec<_> = metrics.labels(&samples).into_iter().collect();
        assert_eq!(has, labels, "labels of {name}");
    }
    let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels);
    let of = |name: &str, queue: &str| value(name, &[("queue", queue)]);
    assert_eq!(of("webhook_events_received_total", queue), Some(5.0));
    assert_eq!(of("webhook_events_unmatched_total", queue), Some(1.0));
    assert_eq!(of("webhook_event_processing_seconds_count", queue), Some(5.0));
    assert_eq!(of("webhook_request_duration_seconds_count", queue), Some(4.0));
    assert_eq!(of("webhook_delivery_lag_seconds_count", queue), Some(1.0));
    assert_eq!(of("webhook_delivery_lag_seconds_count", &retry), Some(1.0));
    let lag = of("webhook_delivery_lag_seconds_sum", &retry).expect("just counted");
    assert!(lag >= 1.0, "a lag of {lag} s after a retry");
    assert_eq!(of("webhook_requests_in_flight", queue), Some(0.0));
    assert_eq!(of("webhook_capacity", queue), Some(64.0));
    assert_eq!(metrics.sum("webhook_capacity_in_use", &[]), 0.0);
    assert!(of("webhook_lane_consumers", queue) >= Some(1.0));
    assert!(of("webhook_lane_consumers", &retry) >= Some(1.0));
    assert_eq!(of("webhook_queue_messages", queue), Some(0.0));
    assert_eq!(of("webhook_queue_messages", &retry), Some(0.0));
    assert_eq!(of("webhook_broker_connected", queue), Some(1.0));
    assert_eq!(of("webhook_broker_connected", &retry), Some(1.0));
    assert_eq!(value("webhook_database_up", &[]), Some(1.0));
    assert_eq!(metrics.sum("webhook_retries_scheduled_total", &[]), 3.0);
    let dropped = [("reason", "deleted")];
    assert_eq!(value("webhook_deliveries_dropped_total", &dropped), Some(1.0));
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(value("webhook_build_info", &version), Some(1.0));
}

#[test]
fn the_label_values_are_bounded_and_reveal_nothing_about_receivers() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    for number in 0..5 {
        let kind = format!("kind.{number}");
        sandbox.webhook(&receiver.url(&format!("/secret-{number}")), &[&kind]);
        sandbox.publish(&Event::new(&kind).id(&format!("identity-{number}")));
    }
    wait_until(SOON, "all are dead", || notifier.metric("webhook_dead_letters_total", &[]) == 5.0);
    let text = notifier.get("/metrics").body;
    for forbidden in ["secret-", "identity-", "kind.", "127.0.0.1"] {
        assert!(!text.contains(forbidden), "{forbidden} is in the metrics");
    }
    let exposition = Exposition::parse(&text);
    let exhausted = [("queue", format!("{}.retry", sandbox.queue()))];
    let exhausted = exhausted.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(exposition.sum("webhook_dead_letters_total", &exhausted), 5.0);
}

#[test]
fn first_attempts_count_under_the_queue_of_their_event_even_where_it_was_split() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    for path in ["/a", "/b", "/c"] {
        sandbox.webhook(&receiver.url(path), &["order.paid"]);
    }
    let launch = sandbox.notifier().env("FANOUT_INLINE", "1").env("RETRY_SCHEDULE", "1s,1s");
    let notifier = launch.start();
    sandbox.publish(&Event::new("order.paid"));
    let count = |metric: &str, queue: &str| notifier.metric(metric, &[("queue", queue)]);
    let retries = sandbox.retry_queue();
    wait_until(SOON, "each is attempted twice", || {
        count("webhook_request_success_total", &retries) == 3.0
    });
    assert_eq!(count("webhook_request_failure_total", sandbox.queue()), 3.0);
    assert_eq!(count("webhook_request_failure_total", &retries), 0.0);
}

#[test]
fn requests_in_flight_are_counted_as_such() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Hang);
    for path in ["/a", "/b", "/c"] {
        sandbox.webhook(&receiver.url(path), &["*"]);
    }
    let notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    let queue = [("queue", sandbox.queue())];
    notifier.wait_metric("webhook_requests_in_flight", &queue, 3.0);
    let of_class = |class: &'static str| [("queue", sandbox.queue()), ("class", class)];
    // After a second they are counted as slow.
    notifier.wait_metric("webhook_capacity_in_use", &of_class("slow"), 3.0);
    assert_eq!(notifier.metric("webhook_capacity_in_use", &of_class("unproven")), 0.0);
    assert_eq!(notifier.metric("webhook_receivers_slow", &[]), 3.0);
    notifier.kill();
}

#[test]
fn the_age_of_the_oldest_waiting_delivery_is_reported_while_it_waits() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1s,1h").start();
    let age = |queue: &str| notifier.metric("webhook_oldest_waiting_seconds", &[("queue", queue)]);
    let (queue, retry) = (sandbox.queue(), sandbox.retry_queue());
    assert_eq!((age(queue), age(&retry)), (0.0, 0.0));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 2);
    // First parked for a second, which is over; then for an hour, with the same age.
    wait_until(SOON, "only the second still waits", || age(queue) == 0.0 && age(&retry) >= 1.0);
    let before = age(&retry);
    wait_until(SOON, "it grows older", || age(&retry) > before);
}
