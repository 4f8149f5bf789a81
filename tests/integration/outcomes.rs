//! What happens to a delivery, depending on the receiver's answer.

use uuid::Uuid;

use crate::harness::{DeadLetter, Event, Receiver, Reply, SOON, Sandbox, wait_until};

#[test]
fn every_status_but_2xx_is_retried_and_no_redirect_is_followed() {
    let statuses = [300, 301, 302, 303, 307, 308, 304, 400, 401, 404, 408, 422, 500, 502, 504];
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        let status = request.path.trim_start_matches("/status/").parse();
        match (status, request.attempt) {
            (Ok(status), 1) => {
                Reply::WithHeaders(status, vec![("location", String::from("/elsewhere"))])
            }
            _ => Reply::Status(200),
        }
    });
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "200ms").start();
    for status in statuses {
        let url = receiver.url(&format!("/status/{status}"));
        sandbox.webhook(&url, &[&format!("status.{status}")]);
        sandbox.publish(&Event::new(&format!("status.{status}")));
    }

    for status in statuses {
        let requests = receiver.wait_at(&format!("/status/{status}"), 2);
        assert_eq!(requests[0].id(), requests[1].id());
        assert_eq!(requests[0].body, requests[1].body);
    }
    assert_eq!(receiver.at("/elsewhere").len(), 0, "a redirect was followed");
    let failures = |reason| notifier.metric("webhook_request_failure_total", &[("reason", reason)]);
    assert_eq!(failures("status_3xx"), 7.0);
    assert_eq!(failures("status_4xx"), 5.0);
    assert_eq!(failures("status_5xx"), 3.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), statuses.len() * 2);
}

#[test]
fn every_2xx_is_a_delivery() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        Reply::Status(request.path.trim_start_matches('/').parse().expect("a status"))
    });
    let statuses = [200, 201, 202, 206, 226, 299];
    for status in statuses {
        sandbox.webhook(&receiver.url(&format!("/{status}")), &["*"]);
    }
    let notifier = sandbox.notifier().start();

    sandbox.publish(&Event::new("order.paid"));

    wait_until(SOON, "all are counted", || {
        notifier.metric("webhook_request_success_total", &[]) == statuses.len() as f64
    });
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), statuses.len());
}

#[test]
fn a_410_is_dead_at_once_and_its_neighbour_is_served() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/gone" => Reply::Status(410),
        _ => Reply::Status(200),
    });
    let webhook = sandbox.webhook(&receiver.url("/gone"), &["*"]);
    sandbox.webhook(&receiver.url("/healthy"), &["*"]);
    let notifier = sandbox.notifier().start();
    let event = Event::new("order.paid").body("{\"a\" : 1e2}");

    sandbox.publish(&event);

    sandbox.expect_dead(&DeadLetter {
        event: &event,
        kind: "order.paid",
        webhook,
        reason: "gone",
        attempts: 1,
    });
    receiver.wait_at("/healthy", 1);
    let queue = [("queue", sandbox.queue()), ("reason", "gone")];
    notifier.wait_metric("webhook_dead_letters_total", &queue, 1.0);
    assert_eq!(notifier.metric("webhook_request_failure_total", &queue), 1.0);
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.at("/gone").len(), 1);
    assert_eq!(receiver.of("/healthy", &event).len(), 1);
}

#[test]
fn a_url_that_cannot_be_used_is_rejected_at_once() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().start();
    let urls =
        ["ftp://127.0.0.1/x", "not a url", "", "http://", "/path", "http://127.0.0.1:99999/"];
    for (number, url) in urls.into_iter().enumerate() {
        let kind = format!("case.{number}");
        let webhook = sandbox.webhook(url, &[&kind]);
        let event = Event::new(&kind);
        sandbox.publish(&event);
        eprintln!("now {url:?}");
        sandbox.expect_dead(&DeadLetter {
            event: &event,
            kind: &kind,
            webhook,
            reason: "rejected",
            attempts: 1,
        });
    }
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_delivery_that_has_used_up_its_schedule_is_dead_with_all_that_an_operator_needs() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(503));
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,200ms").start();
    let event = Event::new("order.paid")
        .body("{\"a\":1, \"a\":2,\n \"é\":\"\\u00e9\"}")
        .content_type("application/vnd.order+json");

    sandbox.publish(&event);

    let message = sandbox.expect_dead(&DeadLetter {
        event: &event,
        kind: "order.paid",
        webhook,
        reason: "exhausted",
        attempts: 3,
    });
    assert!(message.text("x-last-error").contains("503"), "{message:?}");
    let properties = &message.properties;
    assert_eq!(properties.message_id().as_deref(), Some(event.id.as_str()));
    assert_eq!(properties.type_().as_deref(), Some("order.paid"));
    assert_eq!(properties.content_type().as_deref(), Some("application/vnd.order+json"));
    let requests = receiver.requests();
    assert_eq!(requests.len(), 3);
    for request in requests {
        assert_eq!(request.header("content-type"), "application/vnd.order+json");
    }
    let exhausted = [("reason", "exhausted")];
    notifier.wait_metric("webhook_dead_letters_total", &exhausted, 1.0);
    notifier.terminate();
    sandbox.wait_drained();
}

/// A delivery waits for its retry while its webhook is changed: it is dropped, for that reason.
#[track_caller]
fn check_dropped(change: &str, reason: &str) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let webhook: Uuid = sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "2s,2s").start();
    sandbox.publish(&Event::new("order.paid"));
    notifier.wait_metric("webhook_retries_scheduled_total", &[], 1.0);

    sandbox.database.execute(change, &[&webhook]);

    notifier.wait_metric("webhook_deliveries_dropped_total", &[("reason", reason)], 1.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn a_waiting_delivery_of_a_deleted_webhook_is_dropped() {
    check_dropped("DELETE FROM webhooks WHERE id = $1", "deleted");
}

#[test]
fn a_waiting_delivery_of_a_disabled_webhook_is_dropped() {
    check_dropped("UPDATE webhooks SET disabled_at = now() WHERE id = $1", "disabled");
}

#[test]
fn a_waiting_delivery_goes_to_the_present_url_of_its_webhook() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/old" => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let webhook = sandbox.webhook(&receiver.url("/old"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "2s,2s").start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    notifier.wait_metric("webhook_retries_scheduled_total", &[], 1.0);

    // It no longer wants the event either, but this delivery was already promised.
    sandbox.database.execute(
        "UPDATE webhooks SET post_url = $2, events = '{other}' WHERE id = $1",
        &[&webhook, &receiver.url("/new")],
    );

    assert_eq!(receiver.wait_at("/new", 1)[0].id(), event.id);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.at("/old").len(), 1);
}
