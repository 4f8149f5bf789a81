//! What isn't a valid event becomes a dead letter, unchanged, and affects nothing else.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
};

mod parked;

use crate::harness::{Broker, Event, Receiver, Sandbox};

/// Publishes each to the queue, and then a good event; expects the former as dead letters and the latter
/// to be delivered.
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
    notifier.wait_metric("webhook_dead_letters_total", &malformed, cases.len() as f64);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_message_that_is_no_event_is_a_dead_letter_with_a_reason_and_the_next_is_delivered() {
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
        ("two byte order marks", typed("\u{feff}\u{feff}{\"type\":\"t\"}")),
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
        ("a control character in the id", typed("{\"id\":\"a\u{85}b\"}")),
        ("an id of 300 bytes", typed(&format!("{{\"id\":\"{}\"}}", "i".repeat(300)))),
        ("too large", typed(&object_of(64 * 1024))),
    ];
    check_malformed(&Sandbox::new(), cases, "64KiB");
}

#[test]
fn a_large_body_of_the_wrong_kind_is_not_quoted_in_its_reason() {
    // If the parser's message quoted what it didn't expect, headers would be too large for a frame.
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
fn an_event_of_exactly_the_largest_size_and_reasonable_depth_is_delivered() {
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

/// [`publish_raw`] replaces these bytes by bytes that aren't UTF-8.
const MARK: &[u8] = b"XXXX";

/// Publishes an event; each [`MARK`] in its properties arrives as four bytes of 0xff.
fn publish_raw(sandbox: &Sandbox, event: Event) {
    publish_raw_to(sandbox, sandbox.queue(), event);
}

/// Publishes it to any queue.
pub(crate) fn publish_raw_to(sandbox: &Sandbox, queue: &str, event: Event) {
    publish_forged(sandbox, queue, event, |bytes| {
        let marks = bytes.windows(4).enumerate().filter(|(_, four)| *four == MARK);
        for at in marks.map(|(at, _)| at).collect::<Vec<_>>() {
            bytes[at..at + 4].fill(0xff);
        }
        true
    });
}

/// Publishes an event as changed by `forge`, in a way that no Rust library would send, but others do.
/// `forge` sees all bytes that haven't been sent yet, and returns whether they can be sent.
fn publish_forged(
    sandbox: &Sandbox,
    queue: &str,
    event: Event,
    forge: impl Fn(&mut [u8]) -> bool + Send + 'static,
) {
    let url = url::Url::parse(&sandbox.servers.amqp_url).expect("a URL");
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
        let (mut buffer, mut unsent) = ([0; 64 * 1024], Vec::new());
        while let Ok(read @ 1..) = up.read(&mut buffer) {
            unsent.extend_from_slice(&buffer[..read]);
            if forge(&mut unsent) {
                (&server).write_all(&unsent).expect("the broker reads");
                unsent.clear();
            }
        }
    });
    Broker::new(through.as_str()).publish(queue, &[event]);
}

#[test]
fn an_event_whose_property_is_not_utf8_is_a_dead_letter_and_the_next_is_delivered() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();

    let body = r#"{"type":"order.paid"}"#;
    publish_raw(&sandbox, Event::raw(body).kind("order.XXXX"));
    publish_raw(&sandbox, Event::raw(body).id("id-XXXX"));
    // An invalid content type is no reason to reject an event.
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
