//! What a request has about its event besides the body: the id, the type, the attempt's number, and the
//! forwarded producer's headers. It is the same for a delivery that waited, was split or died.

use std::sync::atomic::Ordering;

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;

use crate::commands::{json, succeed};
use crate::harness::{
    EncodedDatabase, Event, Receiver, Reply, SOON, Sandbox, notifier::Launch, receiver::Request,
    wait_for, wait_until,
};
use crate::signatures::verify;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

fn table(headers: &[(&str, AmqpValue)]) -> FieldTable {
    headers.iter().map(|(name, value)| (String::from(*name), value.clone())).collect()
}

/// An event whose type is only in its property, with headers of all kinds.
fn with_headers() -> Event {
    Event::new("order.paid").body("{\"n\": 1}").headers(table(&[
        ("traceparent", text(TRACEPARENT)),
        ("tracestate", text("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")),
        ("baggage", text("customer=17;p=1,region=eu%20west")),
        ("account", text("größe 7")),
        ("x-tenant", text("blue")),
        ("X-Shard", AmqpValue::LongInt(17)),
        ("x-private", text("a secret")),
        ("x-flag", AmqpValue::Boolean(true)),
        // A header that we write ourselves.
        ("x-attempt", AmqpValue::LongInt(40)),
    ]))
}

/// Some of the headers of [`with_headers`].
const FORWARDED: &str = "x-tenant, x-shard,x-flag";

#[track_caller]
fn expect_told(request: &Request, event: &Event, attempt: &str) {
    for (name, expected) in [
        ("webhook-id", event.id.as_str()),
        ("webhook-event-type", "order.paid"),
        ("webhook-attempt", attempt),
        ("webhook-account", "gr%C3%B6%C3%9Fe%207"),
        ("traceparent", TRACEPARENT),
        ("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        ("baggage", "customer=17;p=1,region=eu%20west"),
        ("x-tenant", "blue"),
        ("x-shard", "17"),
        ("x-private", ""),
        ("x-flag", ""),
        ("x-attempt", ""),
        ("content-type", "application/json"),
    ] {
        assert_eq!(request.header(name), expected, "{name} of {request:?}");
    }
    assert_eq!(request.body, event.body);
}

fn notifier(sandbox: &Sandbox) -> Launch {
    sandbox.notifier().env("FORWARD_HEADERS", FORWARDED).env("CIRCUIT_BREAKER", "off")
}

#[test]
fn each_attempt_has_its_number_and_the_same_headers_about_its_event() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 | 2 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["order.*"]);
    let _notifier = notifier(&sandbox).env("RETRY_SCHEDULE", "100ms,200ms").start();
    let event = with_headers();
    sandbox.publish(&event);
    for (request, attempt) in receiver.wait_at("/", 3).iter().zip(["1", "2", "3"]) {
        expect_told(request, &event, attempt);
    }

    let plain = Event::new("größe 100%").headers(FieldTable::new());
    sandbox.webhook(&receiver.url("/odd"), &["größe 100%"]);
    wait_until(SOON, "the webhook is known", || {
        sandbox.publish(&plain);
        !receiver.of("/odd", &plain).is_empty()
    });
    let request = receiver.of("/odd", &plain).remove(0);
    assert_eq!(request.header("webhook-event-type"), "gr%C3%B6%C3%9Fe%20100%25");
    assert_eq!((request.header("traceparent"), request.header("webhook-account")), ("", ""));
}

#[test]
fn a_delivery_from_a_backlog_or_of_a_split_event_has_the_same_headers() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let paused = sandbox.webhook(&receiver.url("/paused"), &["*"]).to_string();
    succeed(&sandbox, &["webhooks", "pause", &paused]);
    sandbox.webhook(&receiver.url("/split"), &["*"]);
    let notifier = notifier(&sandbox).env("FANOUT_INLINE", "1").start();
    let event = with_headers();
    sandbox.publish(&event);
    expect_told(&receiver.wait_at("/split", 1)[0], &event, "1");
    let split = [("reason", "split")];
    notifier.wait_metric("webhook_deliveries_held_total", &split, 2.0);
    wait_until(SOON, "one waits in the backlog", || {
        let backlogs = sandbox.backlogs();
        backlogs.iter().any(|queue| sandbox.broker.ready(queue).is_some())
    });
    succeed(&sandbox, &["webhooks", "resume", &paused]);
    expect_told(&receiver.wait_at("/paused", 1)[0], &event, "1");
}

#[test]
fn a_replayed_delivery_has_the_same_headers_and_counts_anew() {
    let sandbox = Sandbox::new();
    let (receiver, is_fixed) = Receiver::failing(500);
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let _notifier = notifier(&sandbox).env("RETRY_SCHEDULE", "100ms").start();
    let event = with_headers();
    sandbox.publish(&event);
    wait_until(SOON, "it is dead", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(1));
    is_fixed.store(true, Ordering::SeqCst);
    // It has no FORWARD_HEADERS, and loses nothing because of that.
    succeed(&sandbox, &["dead-letters", "replay"]);
    let requests = receiver.wait_at("/", 3);
    for (request, attempt) in requests.iter().zip(["1", "2", "1"]) {
        expect_told(request, &event, attempt);
    }
}

#[test]
fn a_value_that_no_header_can_hold_is_left_out_and_costs_no_delivery() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let url = receiver.url("/");
    let add = ["webhooks", "add", &url, "*", "--header", "x-own: of the webhook"];
    succeed(&sandbox, &add);
    let mut notifier = sandbox
        .notifier()
        .env("FORWARD_HEADERS", "x-a,x-b,x-own,x-last")
        .env("RUST_LOG", "debug")
        .start();
    let event = Event::new("order.paid").headers(table(&[
        ("traceparent", text("00-0-0-01")),
        ("tracestate", text("rojo=1")),
        ("baggage", text("a=\r\nx-evil: 1")),
        ("x-a", text("1\r\nx-evil: 1\r\n\r\n")),
        ("x-b", text("Müller")),
        ("x-own", text("of the producer")),
        ("x-last", text(" as it is\t")),
    ]));
    sandbox.publish(&event);
    let request = receiver.wait_at("/", 1).remove(0);
    for name in ["traceparent", "tracestate", "baggage", "x-a", "x-b", "x-evil"] {
        assert_eq!(request.header(name), "", "{name} of {request:?}");
    }
    assert_eq!(request.header("x-own"), "of the webhook");
    assert_eq!(request.header("x-last"), "as it is");
    for name in ["traceparent", "baggage", "x-a", "x-b"] {
        let line = notifier.wait_stderr(SOON, &format!("header={name} "));
        let event = format!("event={}", event.id);
        assert!(line.contains("DEBUG") && line.contains(&event), "{line}");
        assert!(!line.contains("evil") && !line.contains("Müller"), "{line}");
    }
}

#[test]
fn very_many_headers_cost_a_retry_none_of_its_own() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let _notifier = notifier(&sandbox).env("RETRY_SCHEDULE", "100ms").start();
    let many = (0..300).map(|n| (format!("a-{n}"), text("x")));
    let large = (0..4).map(|n| (format!("b-{n}"), text(&"x".repeat(20_000))));
    let trace = [("traceparent".to_owned(), text(TRACEPARENT))];
    for headers in [many.collect::<FieldTable>(), large.chain(trace).collect()] {
        let event = Event::new("order.paid").headers(headers);
        sandbox.publish(&event);
        wait_until(SOON, "it arrives twice", || receiver.of("/", &event).len() == 2);
        let [first, second] = receiver.of("/", &event).try_into().expect("two");
        assert_eq!(first.header("traceparent"), second.header("traceparent"));
        assert_eq!(second.header("webhook-attempt"), "2");
    }
}

#[test]
fn a_header_that_cannot_be_forwarded_fails_the_start_and_is_named() {
    let sandbox = Sandbox::new();
    for (names, says) in [
        ("x-a,Webhook-Id", "\"Webhook-Id\" can't be forwarded"),
        ("host", "\"host\" can't be forwarded"),
        ("a b", "\"a b\" is not the name of a header"),
        ("authorization", "--headers-from"),
    ] {
        let finished = sandbox.notifier().env("FORWARD_HEADERS", names).spawn().finish(SOON);
        assert_eq!(finished.code, Some(2), "{names}: {finished:?}");
        for part in ["FORWARD_HEADERS: ", says] {
            assert!(finished.stderr.contains(part), "no {part:?} in {finished:?}");
        }
    }
}

/// An event id, and the `webhook-id` that receivers get.
const IDS: [(&str, &str); 5] = [
    ("order 17", "order%2017"),
    ("bestellung-ü", "bestellung-%C3%BC"),
    ("evt.123", "evt%2E123"),
    ("50%", "50%25"),
    ("a event=b", "a%20event=b"),
];

#[test]
fn any_id_is_delivered_signed_and_found_again() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let added = json(&succeed(&sandbox, &["webhooks", "add", &receiver.url("/"), "*", "--json"]));
    let secret = added["secret"].as_str().expect("a secret");
    let mut notifier = notifier(&sandbox).env("RETRY_SCHEDULE", "100ms").start();
    for (number, (id, header)) in IDS.into_iter().enumerate() {
        // As a property, and in the body.
        let event = match number % 2 {
            0 => Event::new("order.paid").id(id),
            _ => Event::raw(serde_json::json!({ "id": id, "type": "order.paid" }).to_string()),
        };
        sandbox.publish(&event);
        let found = || receiver.requests().into_iter().filter(|request| request.id() == header);
        wait_until(SOON, "both attempts arrive", || found().count() == 2);
        for request in found() {
            verify(secret, &request).unwrap_or_else(|error| panic!("{error}: {request:?}"));
        }
        // In the log, what isn't a plain word is quoted.
        let is_plain = id.bytes().all(|byte| byte.is_ascii_graphic());
        let shown = if is_plain { id.to_owned() } else { format!("{id:?}") };
        notifier.wait_stderr(SOON, &format!("attempt failed event={shown} webhook="));
        for name in [id, header] {
            let answer = wait_for(SOON, "its story is written", || {
                let answer: Value = json(&sandbox.command(&["why", name, "--json"]).stdout);
                (answer["webhooks"][0]["state"] == "delivered").then_some(answer)
            });
            assert_eq!(answer["event_id"], id, "{name}");
        }
    }
}

#[test]
fn a_dead_letter_is_found_by_its_id_and_by_the_id_that_receivers_get() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(410));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let _notifier = sandbox.notifier().env("DELIVERY_LOG", "off").start();
    sandbox.publish(&Event::new("order.paid").id("evt.1 ü"));
    wait_until(SOON, "it is dead", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(1));
    for name in ["evt.1 ü", "evt%2E1%20%C3%BC"] {
        let shown = succeed(&sandbox, &["dead-letters", "show", "--event", name]);
        assert!(shown.contains("x-event-id: evt.1 ü"), "{name}: {shown}");
        let answer = json(&succeed(&sandbox, &["why", name, "--json"]));
        assert_eq!(answer["event_id"], "evt.1 ü", "{name}: {answer}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped_and_not_sent_on() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let added = json(&succeed(&sandbox, &["webhooks", "add", &receiver.url("/"), "*", "--json"]));
    let _notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    sandbox.publish(&Event::raw("\u{feff}{\"id\":\"marked\", \"type\":\"order.paid\"}"));
    for request in receiver.wait_at("/", 2) {
        assert_eq!(request.id(), "marked");
        assert_eq!(request.body, b"{\"id\":\"marked\", \"type\":\"order.paid\"}");
        verify(added["secret"].as_str().expect("a secret"), &request).expect("it is signed");
    }
}

#[test]
fn an_id_outside_the_databases_encoding_is_logged_as_receivers_get_it() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let database = EncodedDatabase::new(&sandbox, "LATIN1");
    let added = database.command(&["webhooks", "add", &receiver.url("/"), "*"]);
    assert_eq!(added.code, Some(0), "{added:?}");
    let notifier = notifier(&sandbox)
        .env("DATABASE_URL", &database.url)
        .env("RETRY_SCHEDULE", "100ms")
        .start();
    for (id, header) in [("日本", "%E6%97%A5%E6%9C%AC"), ("bestellung-ü", "bestellung-%C3%BC")] {
        sandbox.publish(&Event::new("order.paid").id(id));
        let found = || receiver.requests().into_iter().filter(|request| request.id() == header);
        wait_until(SOON, "both attempts arrive", || found().count() == 2);
        for name in [id, header] {
            wait_until(SOON, "its story is written", || {
                let answer = json(&database.command(&["why", name, "--json"]).stdout);
                answer["webhooks"][0]["state"] == "delivered"
            });
        }
    }
    notifier.terminate();
}
