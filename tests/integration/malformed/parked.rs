//! Anybody who may publish can put a message with arbitrary headers into a retry queue. It never causes
//! a crash, and never a POST to an address in those headers.

use amiquip::{AmqpValue, FieldTable};
use uuid::Uuid;

use super::{publish_forged, publish_raw_to};
use crate::harness::{Event, Message, Notifier, Receiver, Reply, Sandbox};

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

/// A message as the notifier itself would have parked it.
fn parked(webhook: Uuid) -> FieldTable {
    FieldTable::from([
        (String::from("x-event-id"), text("crafted")),
        (String::from("x-event-type"), text("order.paid")),
        (String::from("x-webhook-id"), text(&webhook.to_string())),
        (String::from("x-attempt"), AmqpValue::LongLongInt(1)),
        (String::from("x-first-received-at"), AmqpValue::LongLongInt(1_700_000_000_000)),
        (String::from("x-last-error"), text("status 500")),
        (String::from("x-origin-queue"), text("another")),
    ])
}

/// Values of other types than in our headers.
fn foreign() -> Vec<AmqpValue> {
    vec![
        AmqpValue::Boolean(true),
        AmqpValue::Float(1.0),
        AmqpValue::Double(1.0),
        AmqpValue::Timestamp(1),
        AmqpValue::FieldArray(vec![AmqpValue::LongLongInt(1), text("1")]),
        AmqpValue::FieldTable(FieldTable::from([(String::from("x-attempt"), text("1"))])),
        AmqpValue::ByteArray(b"1".to_vec()),
        AmqpValue::Void,
    ]
}

/// Integers of all sizes are accepted.
fn integers() -> Vec<AmqpValue> {
    vec![
        AmqpValue::ShortShortInt(1),
        AmqpValue::ShortShortUInt(1),
        AmqpValue::ShortInt(1),
        AmqpValue::ShortUInt(1),
        AmqpValue::LongInt(1),
        AmqpValue::LongUInt(1),
        AmqpValue::LongLongInt(1),
    ]
}

struct Stage {
    sandbox: Sandbox,
    receiver: Receiver,
    webhook: Uuid,
}

impl Stage {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let receiver = Receiver::new();
        let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
        Self { sandbox, receiver, webhook }
    }

    /// The crafted deliveries are years old. On a busy machine one may have to wait before its attempt.
    fn notifier(&self) -> Notifier {
        self.sandbox.notifier().env("DELIVERY_MAX_AGE", "87600h").start()
    }

    fn parked(&self) -> FieldTable {
        parked(self.webhook)
    }

    fn with(&self, header: &str, value: AmqpValue) -> FieldTable {
        let mut headers = self.parked();
        headers.insert(header.to_owned(), value);
        headers
    }

    fn publish(&self, headers: FieldTable) {
        let event =
            Event::raw("{\"crafted\" : 1}").kind("order.paid").id("crafted").headers(headers);
        self.sandbox.broker.publish(&self.sandbox.retry_queue(), &[event]);
    }

    #[track_caller]
    fn take_malformed(&self, what: &str) -> Message {
        let message = self.sandbox.take_dead();
        assert_eq!(message.text("x-dead-reason"), "malformed", "{what}");
        assert!(!message.text("x-last-error").is_empty(), "{what}: no reason");
        assert!(message.text("x-last-error").len() < 1_000, "{what}: a long reason");
        assert!(!message.text("x-last-error").contains(char::is_control), "{what}");
        assert_eq!(message.text("x-origin-queue"), self.sandbox.queue(), "{what}");
        assert_eq!(message.body, b"{\"crafted\" : 1}", "{what}");
        message
    }

    /// A correct delivery still arrives, and nothing else did.
    #[track_caller]
    fn expect_only_good(&self, notifier: &mut Notifier) {
        assert_eq!(self.receiver.requests().len(), 0, "a malformed delivery was sent");
        // Only the headers of the others are wrong.
        self.publish(self.parked());
        assert_eq!(self.receiver.wait_at("/", 1)[0].id(), "crafted");
        assert!(notifier.is_running());
        let lost = notifier.stderr().into_iter().find(|line| line.contains("interrupted"));
        assert_eq!(lost, None, "it cost a connection");
    }
}

#[test]
fn a_message_of_the_retry_queue_that_is_no_delivery_is_a_dead_letter_and_not_sent() {
    let stage = Stage::new();
    let mut notifier = stage.notifier();
    let mut cases = vec![("no headers".to_owned(), FieldTable::new())];
    for (header, value) in [
        ("x-webhook-id", text("1; DROP TABLE")),
        ("x-webhook-id", text("http://169.254.169.254/")),
        ("x-event-id", text("a\r\nx-evil: 1")),
        ("x-event-id", text("")),
        ("x-event-id", text(&"i".repeat(256))),
        ("x-event-type", text("a\u{1b}[2Jb")),
        ("x-attempt", AmqpValue::LongLongInt(-1)),
        ("x-attempt", AmqpValue::LongLongInt(1_000_000_000_000_000_000)),
        ("x-attempt", AmqpValue::LongLongInt(i64::MIN)),
        ("x-attempt", AmqpValue::LongUInt(u32::MAX)),
        ("x-first-received-at", AmqpValue::LongLongInt(-1)),
    ] {
        cases.push((format!("{header} {value:?}"), stage.with(header, value)));
    }
    let texts = ["x-event-id", "x-event-type", "x-webhook-id", "x-last-error"];
    let numbers = ["x-attempt", "x-first-received-at"];
    for header in texts.iter().chain(&numbers) {
        let mut headers = stage.parked();
        headers.remove(*header);
        cases.push((format!("no {header}"), headers));
    }
    let of_text = texts.map(|header| (header, [foreign(), integers()].concat()));
    let of_number = numbers.map(|header| (header, [foreign(), vec![text("1")]].concat()));
    for (header, values) in of_text.into_iter().chain(of_number) {
        cases.extend(values.into_iter().map(|value| {
            let what = format!("{header} {value:?}");
            (what, stage.with(header, value))
        }));
    }

    let count = cases.len();
    for (_, headers) in &cases {
        stage.publish(headers.clone());
    }
    for (what, _) in cases {
        stage.take_malformed(&what);
    }
    stage.expect_only_good(&mut notifier);
    let retries = stage.sandbox.retry_queue();
    let malformed = [("queue", retries.as_str()), ("reason", "malformed")];
    notifier.wait_metric("webhook_dead_letters_total", &malformed, count as f64);
}

#[test]
fn integers_of_any_size_are_accepted_and_foreign_headers_are_ignored() {
    let stage = Stage::new();
    let mut notifier = stage.notifier();
    let mut expected = 0;
    for value in integers() {
        stage.publish(stage.with("x-attempt", value));
        expected += 1;
    }
    for value in [foreign(), vec![text(&"x".repeat(40_000))]].concat() {
        for name in ["x-unknown", "", "x-origin-queue", "x-death", "x-delivery-count"] {
            stage.publish(stage.with(name, value.clone()));
            expected += 1;
        }
    }
    assert_eq!(stage.receiver.wait_at("/", expected).len(), expected);
    assert_eq!(stage.sandbox.broker.ready(&stage.sandbox.dead_queue()), Some(0));
    assert!(notifier.is_running());
}

#[test]
fn a_parked_delivery_of_an_unregistered_webhook_is_dropped_and_counted() {
    let stage = Stage::new();
    let notifier = stage.notifier();
    for webhook in [Uuid::nil(), Uuid::max(), Uuid::new_v4()] {
        stage.publish(parked(webhook));
    }
    notifier.wait_metric("webhook_deliveries_dropped_total", &[("reason", "deleted")], 3.0);
    assert_eq!(stage.receiver.requests().len(), 0);
    assert_eq!(stage.sandbox.broker.ready(&stage.sandbox.dead_queue()), Some(0));
}

/// Replaces the text that begins with [`NEST`] by nested arrays or tables, up to its end.
fn nest(bytes: &mut [u8], is_table: bool) -> bool {
    let Some(start) = bytes.windows(NEST.len()).position(|part| part == NEST) else { return true };
    let size = u32::from_be_bytes(bytes[start - 4..start].try_into().expect("four bytes"));
    let Some(mut rest) = bytes.get_mut(start - 5..start + size as usize) else { return false };
    let head = if is_table { 6 } else { 5 };
    while rest.len() > 2 * head {
        let (level, inner) = rest.split_at_mut(head);
        level[0] = if is_table { b'F' } else { b'A' };
        let size = inner.len() + head - 5;
        level[1..5].copy_from_slice(&u32::try_from(size).expect("small").to_be_bytes());
        // An empty name.
        level[5..].fill(0);
        rest = inner;
    }
    let size = u32::try_from(rest.len() - 5).expect("small");
    rest[0] = b'S';
    rest[1..5].copy_from_slice(&size.to_be_bytes());
    true
}

const NEST: &[u8] = b"NEST";

#[test]
fn headers_nested_so_deep_that_parsing_would_crash_are_not_parsed() {
    let stage = Stage::new();
    let mut notifier = stage.notifier();
    // Each level takes five or six bytes, and a frame has 128 KiB.
    let deep = |bytes: usize| text(&format!("NEST{}", "x".repeat(bytes)));
    // About thirty levels are normal.
    for is_table in [false, true] {
        let headers = stage.with("a-deep-one", deep(140));
        let parked = Event::raw("{}").kind("order.paid").headers(headers);
        let forge = move |bytes: &mut [u8]| nest(bytes, is_table);
        publish_forged(&stage.sandbox, &stage.sandbox.retry_queue(), parked, forge);
    }
    let mut events = 2;
    stage.receiver.wait_at("/", events);
    for (is_table, bytes) in [(false, 1_000), (false, 60_000), (true, 60_000)] {
        let forge = move |bytes: &mut [u8]| nest(bytes, is_table);
        let headers = stage.with("a-deep-one", deep(bytes));
        // The other headers are unchanged.
        let parked = Event::raw("{}").kind("order.paid").headers(headers);
        publish_forged(&stage.sandbox, &stage.sandbox.retry_queue(), parked, forge);
        events += 1;
        stage.receiver.wait_at("/", events);
        let headers = FieldTable::from([(String::from("deep"), deep(bytes))]);
        let event = Event::new("order.paid").headers(headers);
        publish_forged(&stage.sandbox, stage.sandbox.queue(), event, forge);
        events += 1;
        stage.receiver.wait_at("/", events);
    }
    assert!(notifier.is_running());
    let lost = notifier.stderr().into_iter().find(|line| line.contains("interrupted"));
    assert_eq!(lost, None, "it cost a connection");
}

#[test]
fn a_huge_header_table_is_cut_and_costs_no_connection() {
    let stage = Stage::new();
    let mut notifier = stage.notifier();
    // Frames of 128 KiB, nearly full: with a dead letter's headers they would be too large.
    let huge = || text(&"x".repeat(130_500));
    let many = || {
        // amiquip's time to write a table grows with the square of its size.
        let entries = (0..1_000).map(|n| (format!("{n:05}"), AmqpValue::Boolean(true)));
        let texts = (0..1_000).map(|n| (format!("{n:05}"), text("abc")));
        [entries.collect::<FieldTable>(), texts.collect()]
    };
    let one = FieldTable::from([(String::from("x-unknown"), huge())]);
    let [flags, texts] = many();
    for headers in [one.clone(), flags.clone(), texts.clone()] {
        stage.publish(headers);
        let event = Event::raw("{\"crafted\" : 1}").headers(one.clone());
        stage.sandbox.publish(&event);
    }
    for n in 0..6 {
        stage.take_malformed(&format!("huge {n}"));
    }
    let mut long_error = stage.parked();
    long_error.insert("x-last-error".to_owned(), text(&"e".repeat(100_000)));
    stage.publish(long_error);
    stage.take_malformed("an error of 100 kB");
    stage.expect_only_good(&mut notifier);
}

#[test]
fn headers_that_are_not_utf8_are_malformed() {
    let stage = Stage::new();
    let mut notifier = stage.notifier();
    let event =
        |headers| Event::raw("{\"crafted\" : 1}").kind("order.paid").id("crafted").headers(headers);
    let mut keyed = stage.parked();
    let id = keyed.remove("x-webhook-id").expect("it is there");
    keyed.insert("x-webhook-XXXX".to_owned(), id);
    let retries = stage.sandbox.retry_queue();
    for (what, headers) in [
        ("an id", stage.with("x-event-id", text("XXXX"))),
        ("a type", stage.with("x-event-type", text("order.XXXX"))),
        ("an account", stage.with("x-account", text("XXXX"))),
        ("a name", keyed),
    ] {
        publish_raw_to(&stage.sandbox, &retries, event(headers));
        stage.take_malformed(what);
    }
    stage.expect_only_good(&mut notifier);
}

#[test]
fn timestamps_of_another_age_expire_a_delivery_and_distort_no_metric() {
    let stage = Stage::new();
    let receiver = Receiver::answering(|request| match request.id() {
        "fails" => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let webhook = stage.sandbox.webhook(&receiver.url("/both"), &["nothing"]);
    let notifier = stage
        .sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("CIRCUIT_BREAKER", "off")
        .env("DELIVERY_MAX_AGE", "1s")
        .start();
    let parked = |id: &str, at: i64| {
        let mut headers = parked(webhook);
        headers.insert("x-event-id".to_owned(), text(id));
        headers.insert("x-first-received-at".to_owned(), AmqpValue::LongLongInt(at));
        headers
    };
    for at in [0, i64::MAX] {
        stage.publish(parked("works", at));
    }
    receiver.wait_at("/both", 2);
    notifier.wait_metric("webhook_delivery_lag_seconds_count", &[], 2.0);
    // 1970 is half a century ago, but none of our delays lasted that long.
    assert!(notifier.metric("webhook_delivery_lag_seconds_sum", &[]) < 60.0);

    // One that arrived in the far future would never expire.
    for at in [0, i64::MAX] {
        stage.publish(parked("fails", at));
        let dead = stage.sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "expired", "{dead:?}");
        let received = dead.number("x-first-received-at").expect("a time");
        assert!(received <= dead.number("x-dead-at").expect("a time"), "{dead:?}");
    }
}

#[test]
fn the_last_attempt_of_a_schedule_is_the_last_whatever_the_headers_say() {
    let stage = Stage::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let webhook = stage.sandbox.webhook(&receiver.url("/"), &["nothing"]);
    let notifier = stage
        .sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,100ms")
        .env("CIRCUIT_BREAKER", "off")
        .start();
    for attempts in [2, 3, 1_000, 2_147_483_646] {
        let mut headers = parked(webhook);
        let now = AmqpValue::LongLongInt(i64::MAX);
        headers.insert("x-first-received-at".to_owned(), now);
        headers.insert("x-attempt".to_owned(), AmqpValue::LongLongInt(attempts));
        stage.publish(headers);
        let dead = stage.sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "exhausted", "{dead:?}");
        assert_eq!(dead.number("x-attempt"), Some(attempts + 1), "{dead:?}");
        // Its origin is the queue that it was read from, not the one in its headers.
        assert_eq!(dead.text("x-origin-queue"), stage.sandbox.queue(), "{dead:?}");
    }
    assert_eq!(receiver.requests().len(), 4, "one attempt each");
    notifier.terminate();
}
