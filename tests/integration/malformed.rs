//! What is not an event goes to the dead letters, as it is, and harms nobody.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

use amiquip::{AmqpValue, FieldTable};
use uuid::Uuid;

use crate::harness::{Broker, Event, Receiver, Sandbox};

/// Publishes each to the queue, then a good event; expects the former as dead
/// letters and the latter delivered.
#[track_caller]
fn check_malformed(sandbox: &Sandbox, cases: Vec<(&str, Event)>, max_event_bytes: &str) {
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().env("MAX_EVENT_BYTES", max_event_bytes).start();

    for (what, event) in &cases {
        sandbox.publish(event);
        let message = sandbox.take_dead();
        assert_eq!(message.text("x-dead-reason"), "malformed", "{what}");
        assert!(!message.text("x-last-error").is_empty(), "{what}: no reason");
        assert!(message.text("x-last-error").len() < 1000, "{what}: a long reason");
        assert_eq!(message.text("x-origin-queue"), sandbox.queue(), "{what}");
        assert!(message.number("x-dead-at").is_some(), "{what}");
        assert!(message.body == event.body, "{what}: the body differs");
    }
    let good = Event::new("order.paid");
    sandbox.publish(&good);
    let requests = receiver.wait_at("/", 1);

    assert_eq!(requests[0].id(), good.id);
    assert_eq!(receiver.requests().len(), 1, "a malformed event was sent");
    assert!(notifier.is_running());
    let malformed = [("queue", sandbox.queue()), ("reason", "malformed")];
    assert_eq!(notifier.metric("webhook_dead_letters_total", &malformed), cases.len() as f64);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn what_is_not_an_event_is_a_dead_letter_with_a_reason_and_the_next_event_is_served() {
    let object_of = |bytes: usize| format!("{{\"type\":\"t\",\"x\":\"{}\"}}", "x".repeat(bytes));
    let body = |body: &str| Event::raw(body);
    let typed = |body: &str| Event::raw(body).kind("t");
    let cases = vec![
        ("empty", typed("")),
        ("white space only", typed(" \n")),
        ("truncated", typed("{\"type\":\"t\",\"a\":[1,2")),
        ("an array", typed("[{\"type\":\"t\"}]")),
        ("null", typed("null")),
        ("a number", typed("7")),
        ("a string", typed("\"t\"")),
        ("not JSON", typed("<event/>")),
        ("single quotes", typed("{'type':'t'}")),
        ("a comma too many", typed("{\"type\":\"t\",}")),
        ("trailing garbage", typed("{\"type\":\"t\"} x")),
        ("two objects", typed("{\"type\":\"t\"}{\"type\":\"t\"}")),
        ("a byte order mark", typed("\u{feff}{\"type\":\"t\"}")),
        ("not UTF-8", Event::raw(b"{\"type\":\"t\",\"x\":\"\xff\xfe\"}".as_slice())),
        ("a control character in a string", typed("{\"x\":\"\u{1}\"}")),
        ("a number that is not one", typed("{\"x\":NaN}")),
        ("no type", body("{\"id\":\"1\"}")),
        ("an empty type", body("{\"type\":\"\"}")),
        ("a type that is no string", body("{\"type\":7}")),
        ("a type of 300 bytes", body(&format!("{{\"type\":\"{}\"}}", "t".repeat(300)))),
        ("NUL in the type", body("{\"type\":\"a\\u0000b\"}")),
        ("a newline in the type", body("{\"type\":\"a\\nb\"}")),
        ("a newline in the id", typed("{\"id\":\"a\\r\\nx-evil: 1\"}")),
        ("a newline in the id property", typed("{}").id("a\r\nx-evil: 1")),
        ("an id that is not ASCII", typed("{\"id\":\"é\"}")),
        ("an id of 300 bytes", typed(&format!("{{\"id\":\"{}\"}}", "i".repeat(300)))),
        ("too large", typed(&object_of(64 * 1024))),
    ];
    check_malformed(&Sandbox::new(), cases, "64KiB");
}

#[test]
fn a_large_body_of_the_wrong_kind_is_not_quoted_in_its_reason() {
    // A parser that quotes what it did not expect would make headers too large for a frame.
    let text = format!("\"{}\"", "x".repeat(300_000));
    check_malformed(&Sandbox::new(), vec![("a long string", Event::raw(text).kind("t"))], "1MiB");
}

#[test]
fn nesting_is_bounded_before_it_can_end_the_process() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let inside = |depth: usize| Event::raw(format!("{{\"x\":{}}}", nested(depth))).kind("t");
    let objects = "{\"x\":".repeat(100_000);
    let cases = vec![
        ("arrays in arrays", Event::raw(nested(100_000)).kind("t")),
        ("opening brackets only", Event::raw("[".repeat(100_000)).kind("t")),
        ("arrays in an object", inside(100_000)),
        ("objects in objects", Event::raw(objects).kind("t")),
        ("just too deep", inside(200)),
    ];
    check_malformed(&Sandbox::new(), cases, "1MiB");
}

#[test]
fn an_event_of_exactly_the_largest_size_and_reasonable_depth_is_served() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let _notifier = sandbox.notifier().env("MAX_EVENT_BYTES", "64KiB").start();
    let frame = "{\"x\":\"\"}".len();
    let largest = format!("{{\"x\":\"{}\"}}", "x".repeat(64 * 1024 - frame));
    let deep = format!("{{\"x\":{}{}}}", "[".repeat(100), "]".repeat(100));

    for (number, body) in [largest, deep].into_iter().enumerate() {
        let event = Event::new("t").body(body);
        sandbox.publish(&event);
        let requests = receiver.wait_at("/", number + 1);
        assert!(requests[number].body == event.body);
    }
}

/// A message as the notifier itself would have parked it.
fn parked(webhook: Uuid) -> FieldTable {
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    FieldTable::from([
        (String::from("x-event-id"), text("crafted")),
        (String::from("x-event-type"), text("order.paid")),
        (String::from("x-webhook-id"), text(&webhook.to_string())),
        (String::from("x-attempt"), AmqpValue::LongLongInt(1)),
        (String::from("x-first-received-at"), AmqpValue::LongLongInt(1_700_000_000_000)),
        (String::from("x-last-error"), text("status 500")),
    ])
}

#[test]
fn what_is_not_a_parked_delivery_in_the_retry_queue_is_a_dead_letter_and_not_sent() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    let with = |header: &str, value: AmqpValue| {
        let mut headers = parked(webhook);
        headers.insert(header.to_owned(), value);
        headers
    };
    let without = |header: &str| {
        let mut headers = parked(webhook);
        headers.remove(header);
        headers
    };
    let cases = [
        ("no headers", FieldTable::new()),
        ("no webhook", without("x-webhook-id")),
        ("no attempt", without("x-attempt")),
        (
            "a webhook that is no UUID",
            with("x-webhook-id", AmqpValue::LongString(String::from("1; DROP TABLE"))),
        ),
        ("a webhook that is a number", with("x-webhook-id", AmqpValue::LongLongInt(1))),
        ("attempt -1", with("x-attempt", AmqpValue::LongLongInt(-1))),
        ("attempt 10^18", with("x-attempt", AmqpValue::LongLongInt(1_000_000_000_000_000_000))),
        ("attempt as a string", with("x-attempt", AmqpValue::LongString(String::from("1")))),
    ];

    for (what, headers) in cases {
        let event =
            Event::raw("{\"crafted\" : 1}").kind("order.paid").id("crafted").headers(headers);
        sandbox.broker.publish(&sandbox.retry_queue(), std::slice::from_ref(&event));
        let message = sandbox.take_dead();
        assert_eq!(message.text("x-dead-reason"), "malformed", "{what}");
        assert!(!message.text("x-last-error").is_empty(), "{what}: no reason");
        assert_eq!(message.body, event.body, "{what}");
    }
    assert_eq!(receiver.requests().len(), 0, "a malformed delivery was sent");

    // What is wrong with them is only what the table says.
    let good = Event::raw("{}").kind("order.paid").id("crafted").headers(parked(webhook));
    sandbox.broker.publish(&sandbox.retry_queue(), &[good]);
    assert_eq!(receiver.wait_at("/", 1)[0].id(), "crafted");
    assert!(notifier.is_running());
}

/// What [`publish_raw`] makes of these bytes is not UTF-8.
const MARK: &[u8] = b"XXXX";

/// Publishes an event of whose properties each [`MARK`] arrives as four bytes of 0xff: no library
/// for Rust would send them, but others do.
fn publish_raw(sandbox: &Sandbox, event: Event) {
    let url = url::Url::parse(&sandbox.servers.amqp_url).expect("an URL");
    let upstream = (url.host_str().expect("a host"), url.port().expect("a port"));
    let server = TcpStream::connect(upstream).expect("the broker accepts");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let mut through = url.clone();
    let port = listener.local_addr().expect("it is bound").port();
    through.set_port(Some(port)).expect("it has a host");
    thread::spawn(move || {
        let (client, _) = listener.accept().expect("the test connects");
        let (mut up, mut down) = (client.try_clone().expect("a socket"), client);
        let mut back = server.try_clone().expect("a socket");
        thread::spawn(move || io::copy(&mut back, &mut down));
        let mut buffer = [0; 64 * 1024];
        while let Ok(read @ 1..) = up.read(&mut buffer) {
            let marks = buffer[..read].windows(4).enumerate().filter(|(_, four)| *four == MARK);
            for at in marks.map(|(at, _)| at).collect::<Vec<_>>() {
                buffer[at..at + 4].fill(0xff);
            }
            (&server).write_all(&buffer[..read]).expect("the broker reads");
        }
    });
    Broker::new(through.as_str()).publish(sandbox.queue(), &[event]);
}

#[test]
fn a_property_that_is_not_utf8_is_a_dead_letter_and_the_next_event_is_served() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();

    let body = r#"{"type":"order.paid"}"#;
    publish_raw(&sandbox, Event::raw(body).kind("order.XXXX"));
    publish_raw(&sandbox, Event::raw(body).id("id-XXXX"));
    // A content type that no header can hold is not worth an event.
    publish_raw(&sandbox, Event::raw(body).id("good").content_type("XXXX/json"));
    let requests = receiver.wait_at("/", 1);

    assert_eq!(
        (requests[0].id(), requests[0].header("content-type")),
        ("good", "application/json")
    );
    for _ in 0..2 {
        let dead = sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "malformed", "{dead:?}");
        assert_eq!(dead.body, body.as_bytes());
    }
    assert_eq!(receiver.requests().len(), 1);
    assert!(notifier.is_running());
    let lost = notifier.stderr().into_iter().find(|line| line.contains("lane interrupted"));
    assert_eq!(lost, None, "it cost a connection");
    notifier.terminate();
    sandbox.wait_drained();
}
