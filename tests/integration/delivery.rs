//! Every event reaches each webhook that wants it, unchanged, exactly once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use uuid::Uuid;

use crate::harness::{Event, LATER, Receiver, Reply, SOON, Sandbox, wait_until};

/// Bodies that a parser followed by a serializer would change.
const ODD_BODIES: [&str; 10] = [
    "{\"n\":N}",
    "  {\r\n\t\"n\" :N ,\"a\":  [ ]\n}\n\n",
    "{\"n\":N,\"a\":1,\"a\":2,\"a\":1}",
    "{\"n\":N,\"big\":123456789012345678901234567890,\"float\":1.0e+2,\"zero\":-0}",
    "{\"n\":N,\"escapes\":\"\\u00e9\\/\\n\\ud83d\\ude00\"}",
    "{\"n\":N,\"unicode\":\"é 😀 \u{202e}\u{7f}\"}",
    "{\"z\":1,\"n\":N,\"b\":{\"y\":null,\"a\":true}}",
    "{\"n\":N,\"precise\":0.1000000000000000055511151231257827}",
    // Half a character: JSON's grammar allows it, few parsers do.
    "{\"n\":N,\"half\":\"\\ud800\"}",
    "{\"\":\"\",\"n\":N,\"html\":\"</script>&amp;<b>\"}",
];

#[test]
fn every_event_reaches_exactly_the_webhooks_that_want_it_once_and_byte_for_byte() {
    let kinds = [
        "order.paid",
        "order.paid.late",
        "user",
        "user.created",
        "user.profile.updated",
        "userx.created",
    ];
    // Path, patterns, and the types that they match.
    let webhooks: [(&str, &[&str], &[&str]); 4] = [
        ("/exact", &["order.paid"], &["order.paid"]),
        ("/prefix", &["user.*"], &["user.created", "user.profile.updated"]),
        ("/all", &["*"], &kinds),
        (
            "/overlap",
            &["user.created", "user.*", "order.paid", "of.no.event"],
            &["order.paid", "user.created", "user.profile.updated"],
        ),
    ];

    let sandbox = Sandbox::with_queues(3);
    let receiver = Receiver::new();
    for (path, patterns, _) in webhooks {
        sandbox.webhook(&receiver.url(path), patterns);
    }
    let mut expected: BTreeMap<&str, BTreeMap<String, Vec<u8>>> = BTreeMap::new();
    let mut batches = vec![Vec::new(); sandbox.queues.len()];
    for number in 0..450 {
        let kind = kinds[number % kinds.len()];
        let body = ODD_BODIES[number % ODD_BODIES.len()].replace('N', &number.to_string());
        let event = Event::new(kind).body(body);
        for (path, _, wanted) in webhooks {
            if wanted.contains(&kind) {
                let at_path = expected.entry(path).or_default();
                at_path.insert(event.id.clone(), event.body.clone());
            }
        }
        batches[number % 3].push(event);
    }
    let notifier = sandbox.notifier().start();
    for (queue, events) in sandbox.queues.iter().zip(&batches) {
        sandbox.broker.publish(queue, events);
    }

    let total: usize = expected.values().map(BTreeMap::len).sum();
    wait_until(SOON, "all deliveries are counted", || {
        notifier.metric("webhook_request_success_total", &[]) >= total as f64
    });
    sandbox.wait_drained();
    let metrics = notifier.metrics();
    notifier.terminate();
    sandbox.wait_drained();

    for (path, _, _) in webhooks {
        let requests = receiver.at(path);
        let expected = &expected[path];
        assert_eq!(requests.len(), expected.len(), "requests at {path}");
        let got: BTreeMap<_, _> =
            requests.into_iter().map(|request| (request.id().to_owned(), request.body)).collect();
        assert!(&got == expected, "bodies at {path} differ");
    }
    assert_eq!(receiver.requests().len(), total);
    assert_eq!(metrics.sum("webhook_request_success_total", &[]), total as f64);
    assert_eq!(metrics.sum("webhook_request_failure_total", &[]), 0.0);
    assert_eq!(metrics.sum("webhook_retries_scheduled_total", &[]), 0.0);
    for (queue, events) in sandbox.queues.iter().zip(&batches) {
        let queue = [("queue", queue.as_str())];
        let count = events.len() as f64;
        assert_eq!(metrics.sum("webhook_events_received_total", &queue), count);
        assert_eq!(metrics.sum("webhook_event_processing_seconds_count", &queue), count);
    }
}

#[test]
fn an_event_that_nobody_wants_is_acked_and_counted() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["wanted"]);
    let notifier = sandbox.notifier().start();

    sandbox.publish(&Event::new("unwanted"));
    sandbox.publish(&Event::new("wanted.not"));
    let wanted = Event::new("wanted");
    sandbox.publish(&wanted);

    // With one lane and one request at a time, everything before has been settled now.
    let requests = receiver.wait_at("/", 1);
    assert_eq!(requests[0].id(), wanted.id);
    let metrics = notifier.metrics();
    assert_eq!(metrics.sum("webhook_events_unmatched_total", &[]), 2.0);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    assert_eq!(receiver.requests().len(), 1);
}

#[test]
fn a_request_carries_the_headers_of_standard_webhooks_and_the_producers_content_type() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/hook?tenant=7&x=a%20b"), &["*"]);
    let _notifier = sandbox.notifier().start();

    let plain = Event::new("order.paid");
    let cloud =
        Event::new("order.paid").content_type("application/cloudevents+json; charset=utf-8");
    sandbox.publish(&plain);
    sandbox.publish(&cloud);

    let requests = receiver.wait_at("/hook?tenant=7&x=a%20b", 2);
    for (request, event) in requests.iter().zip([&plain, &cloud]) {
        assert_eq!(request.method, "POST");
        assert_eq!(request.id(), event.id);
        assert_eq!(
            request.header("user-agent"),
            concat!("webhook-notifier/", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(request.header("content-length"), event.body.len().to_string());
        assert_eq!(request.header("transfer-encoding"), "");
        assert_eq!(request.header("accept-encoding"), "", "{request:?}");
        let stamp: u64 = request.header("webhook-timestamp").parse().expect("seconds");
        let arrived = seconds(request.wall);
        assert!(arrived.abs_diff(stamp) <= 5, "{stamp} is not near {arrived}");
    }
    assert_eq!(requests[0].header("content-type"), "application/json");
    assert_eq!(requests[1].header("content-type"), "application/cloudevents+json; charset=utf-8");
}

#[test]
fn several_consumers_with_a_prefetch_deliver_each_event_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_millis(5), 204));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let events: Vec<_> = (0..300).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    let notifier = sandbox
        .notifier()
        .env("QUEUES", format!("{}=4", sandbox.queue()))
        .env("PREFETCH_COUNT", "16")
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .start();
    receiver.wait_at("/", events.len());
    notifier.wait_metric("webhook_request_success_total", &[], events.len() as f64);
    notifier.terminate();

    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), events.len());
    let published: BTreeSet<_> = events.iter().map(|event| event.id.clone()).collect();
    let got: BTreeSet<_> =
        receiver.requests().iter().map(|request| request.id().to_owned()).collect();
    assert_eq!(got, published);
}

#[test]
fn events_prefetched_by_a_stuck_consumer_are_delivered_by_others_and_acked_by_it() {
    let sandbox = Sandbox::new();
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let stuck = Receiver::answering(move |_| {
        let _ = released.recv_timeout(LATER);
        Reply::Status(200)
    });
    let healthy = Receiver::new();
    sandbox.webhook(&stuck.url("/"), &["stuck"]);
    sandbox.webhook(&healthy.url("/"), &["healthy"]);
    // All are published before the first consumer exists, so that it gets all of them at once.
    let mut events = vec![Event::new("stuck")];
    events.extend((0..40).map(|_| Event::new("healthy")));
    sandbox.broker.publish(sandbox.queue(), &events);
    let notifier = sandbox
        .notifier()
        .env("PREFETCH_COUNT", "64")
        .env("REQUEST_TIMEOUT", "2m")
        .env("SHUTDOWN_TIMEOUT", "2m")
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .start();

    healthy.wait_at("/", 40);
    let received = [("queue", sandbox.queue())];
    assert_eq!(notifier.metric("webhook_events_received_total", &received), 41.0);
    assert_eq!(notifier.metric("webhook_event_processing_seconds_count", &received), 0.0);
    drop(release);
    notifier.wait_metric("webhook_event_processing_seconds_count", &received, 41.0);
    notifier.wait_metric("webhook_request_success_total", &[], 41.0);
    assert_eq!(notifier.metric("webhook_events_received_total", &received), 41.0, "each once");
    // What wasn't acked would be ready again.
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(stuck.requests().len(), 1);
    for event in &events[1..] {
        assert_eq!(healthy.of("/", event).len(), 1);
    }
}

#[test]
fn the_requests_of_one_event_run_concurrently() {
    const WEBHOOKS: usize = 20;
    let sandbox = Sandbox::new();
    let together = Arc::new(AtomicUsize::new(0));
    let receivers: Vec<_> = (0..WEBHOOKS)
        .map(|_| {
            let together = Arc::clone(&together);
            Receiver::answering(move |_| {
                together.fetch_add(1, Ordering::SeqCst);
                // If they arrived one after another, none would ever be answered.
                let have_arrived = || together.load(Ordering::SeqCst) == WEBHOOKS;
                wait_until(SOON, "all have arrived", have_arrived);
                Reply::Status(200)
            })
        })
        .collect();
    for receiver in &receivers {
        sandbox.webhook(&receiver.url("/"), &["*"]);
    }
    let notifier =
        sandbox.notifier().env("REQUEST_TIMEOUT", "1m").env("SHUTDOWN_TIMEOUT", "1m").start();

    sandbox.publish(&Event::new("order.paid"));

    wait_until(SOON, "all are delivered", || {
        notifier.metric("webhook_request_success_total", &[]) == WEBHOOKS as f64
    });
    for receiver in &receivers {
        assert_eq!(receiver.requests().len(), 1);
    }
}

#[test]
fn several_instances_share_the_events() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_millis(20), 200));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let one = sandbox.notifier().start();
    let other = sandbox.notifier().start();

    let events: Vec<_> = (0..60).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    receiver.wait_at("/", events.len());
    for notifier in [one, other] {
        assert!(notifier.metric("webhook_events_received_total", &[]) > 0.0);
        notifier.terminate();
    }
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), events.len());
}

#[test]
fn the_type_is_the_property_then_event_type_then_event_then_type() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    for kind in ["property", "event_type", "event", "type"] {
        sandbox.webhook(&receiver.url(&format!("/{kind}")), &[&format!("a.{kind}")]);
    }
    let body = r#"{"type":"a.type","event":"a.event","event_type":"a.event_type"}"#;
    // The event, and where it must go.
    let cases = [
        (Event::raw(body).kind("a.property"), "/property"),
        (Event::raw(body), "/event_type"),
        (Event::raw(r#"{"type":"a.type","event":"a.event"}"#), "/event"),
        (Event::raw(r#"{"type":"a.type","events":"a.event"}"#), "/type"),
        // The first one that is a string counts.
        (Event::raw(r#"{"event_type":7,"event":{"type":"x"},"type":"a.type"}"#), "/type"),
        // Only members of the object itself count, not nested ones.
        (Event::raw(r#"{"data":{"type":"a.type"},"event":"a.event"}"#), "/event"),
        (Event::raw(r#"{"\u0074ype":"a.\u0074ype"}"#), "/type"),
    ];
    let _notifier = sandbox.notifier().start();

    for (number, (event, path)) in cases.into_iter().enumerate() {
        let event = event.id(&format!("case-{number}"));
        sandbox.publish(&event);
        wait_until(SOON, "the event arrives", || receiver.requests().len() > number);
        let request = receiver.requests().pop().expect("just waited for it");
        assert_eq!(request.id(), event.id);
        assert_eq!(request.path, path, "{}", String::from_utf8_lossy(&event.body));
    }
}

#[test]
fn the_id_is_the_property_then_the_bodys_id_then_a_new_one() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["t"]);
    let _notifier = sandbox.notifier().start();
    let id_of = |number: usize, event: Event| {
        sandbox.publish(&event.kind("t"));
        let requests = receiver.wait_at("/", number);
        requests[number - 1].id().to_owned()
    };

    let string = r#"{"id":"from-the-body"}"#;
    assert_eq!(id_of(1, Event::raw(string).id("the-property")), "the-property");
    assert_eq!(id_of(2, Event::raw(string)), "from-the-body");
    assert_eq!(id_of(3, Event::raw(r#"{"id":12345}"#)), "12345");
    assert_eq!(id_of(4, Event::raw(r#"{"id":-7}"#)), "-7");
    assert_eq!(id_of(5, Event::raw(r#"{"id":18446744073709551615}"#)), "18446744073709551615");

    // Equal events without an id are different events.
    let one = id_of(6, Event::raw(r#"{"id":true}"#));
    let other = id_of(7, Event::raw(r#"{"id":true}"#));
    let neither = id_of(8, Event::raw("{}"));
    for id in [&one, &other, &neither] {
        Uuid::parse_str(id).unwrap_or_else(|_| panic!("{id} is not a UUID"));
    }
    assert_ne!(one, other);
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
