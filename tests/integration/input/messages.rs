//! Events, the headers of parked deliveries, and receivers' answers.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde::de::IgnoredAny;
use webhook_notifier::domain::{
    account,
    dead_letter::{DeadLetter, DeadLetterGroups, Replay, Selection, replay},
    delivery::{Delivery, Headers, Value, mark_malformed, unmark_dead},
    encoding::{header_of_id, id_of_header},
    event::{Event, MAX_DEPTH, MAX_NAME_BYTES, Malformed, Properties, without_byte_order_mark},
    outcome::{Decision, LONGEST_STAY, Outcome, Response, decide},
    retry::Schedule,
    time::UnixMillis,
};

use super::{
    MARK, cases, changed, changed_text, check_example, corpus, expect_one_line, fault_of, texts,
};

const MAX_BYTES: usize = 2 << 20;

/// Late in 2023, in milliseconds.
const NOW: UnixMillis = 1_700_000_000_000;

fn read(body: &[u8]) -> Result<Event, Malformed> {
    Event::read(Properties::default(), body, MAX_BYTES, || "new".to_owned())
}

/// What is true of every accepted event.
fn is_sound(event: &Event) -> bool {
    let Event { id, event_type, account } = event;
    (1..=MAX_NAME_BYTES).contains(&id.len())
        && !id.chars().any(char::is_control)
        // Its id fits into a header, and can be read back from it.
        && header_of_id(id).bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.')
        && id_of_header(&header_of_id(id)).unwrap_or_else(|| id.clone()) == *id
        && (1..=MAX_NAME_BYTES).contains(&event_type.len())
        && !event_type.chars().any(char::is_control)
        && account.as_deref().is_none_or(|account| account::check(account) == Ok(()))
}

#[test]
fn each_example_of_an_event_is_what_its_name_says() {
    for (name, body) in corpus("events") {
        if let Some(event) = check_example(&name, read(&body)) {
            assert!(is_sound(&event), "{name}: {event:?}");
        }
    }
    let duplicate = read(br#"{"type":"a","id":"1","type":"b","id":"2"}"#).expect("an event");
    assert_eq!((duplicate.id.as_str(), duplicate.event_type.as_str()), ("2", "b"));
    for (body, says) in [
        ("{\"type\":\"\\ud800\"}", "event type"),
        ("{\"type\":\"t\",\"id\":\"\\udfff\"}", "event id"),
    ] {
        let error = read(body.as_bytes()).expect_err("half a surrogate pair").to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn a_mebibyte_of_anything_is_read_or_refused_in_one_short_line() {
    let mebibyte = |unit: &str| unit.repeat((1 << 20) / unit.len());
    for unit in ["x", "\\u0000", "é", "\\ud83d\\ude00", "[[[[", "\\\\"] {
        let long = mebibyte(unit);
        let value = read(format!("{{\"type\":\"t\",\"x\":\"{long}\"}}").as_bytes());
        assert!(value.is_ok(), "{unit}: {value:?}");
        for body in [
            long.clone(),
            format!("\"{long}\""),
            format!("{{\"type\":\"{long}\"}}"),
            format!("{{\"type\":\"t\",\"id\":\"{long}\"}}"),
            format!("{{\"type\":\"t\",\"x\":\"{long}"),
            format!("{{\"type\":\"t\",\"x\":{long}}}"),
        ] {
            expect_one_line(&read(body.as_bytes()).expect_err(unit));
        }
    }
    let digits = mebibyte("9");
    assert!(read(format!("{{\"type\":\"t\",\"x\":{digits}}}").as_bytes()).is_ok());
    expect_one_line(
        &read(format!("{{\"type\":\"t\",\"id\":{digits}}}").as_bytes()).expect_err("long"),
    );
}

/// The names of our headers.
const NAMES: [&str; 10] = [
    "x-account",
    "x-event-id",
    "x-event-type",
    "x-webhook-id",
    "x-attempt",
    "x-first-received-at",
    "x-last-error",
    "x-origin-queue",
    "x-dead-reason",
    "x-dead-at",
];

fn any_value() -> impl Strategy<Value = Value> {
    let hostile = prop::sample::select(vec![
        "\u{1b}[2J",
        "a\r\nforged",
        "http://169.254.169.254/",
        "\u{202e}",
        "6f2b8a1e-3c4d-4e5f-8a9b-0c1d2e3f4a5b",
    ]);
    prop_oneof![
        any::<String>().prop_map(Value::Text),
        hostile.prop_map(|text| Value::Text(text.to_owned())),
        "\\PC{0,400}".prop_map(Value::Text),
        any::<i64>().prop_map(Value::Integer),
        prop::sample::select(vec![0, 1, -1, i64::MAX, i64::MIN]).prop_map(Value::Integer),
    ]
}

/// Headers as we write them, with some replaced and some removed.
fn crafted_headers() -> impl Strategy<Value = Headers> {
    let replaced = prop::collection::vec((prop::sample::select(&NAMES[..]), any_value()), 0..4);
    let missing = prop::collection::vec(prop::sample::select(&NAMES[..]), 0..2);
    (replaced, missing).prop_map(|(replaced, missing)| {
        let mut headers =
            headers_of(include_bytes!("../../corpus/headers/good-as-we-write-it.json"));
        headers.extend(replaced.into_iter().map(|(name, value)| (name.to_owned(), value)));
        missing.into_iter().for_each(|name| drop(headers.remove(name)));
        headers
    })
}

fn headers_of(json: &[u8]) -> Headers {
    let members: serde_json::Map<_, _> = serde_json::from_slice(json).expect("a JSON object");
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => Value::Text(text.clone()),
        other => Value::Integer(other.as_i64().expect("a text or an integer")),
    };
    members.iter().map(|(name, of)| (name.clone(), value(of))).collect()
}

/// What is true of every accepted delivery.
#[track_caller]
fn check_delivery(delivery: &Delivery) {
    assert!(is_sound(&delivery.event), "{delivery:?}");
    assert!((0..=NOW).contains(&delivery.first_received_at), "{delivery:?}");
    // The count can't overflow.
    assert!(delivery.attempts < u32::MAX / 2, "{delivery:?}");
    let error = &delivery.last_error;
    assert!(error.is_empty() || fault_of(error).is_none(), "{delivery:?}");
    let again = Delivery::from_headers(&delivery.headers("q"), b"", NOW);
    assert_eq!(again.as_ref(), Ok(delivery), "it is read differently");
}

#[test]
fn each_example_of_headers_is_what_its_name_says() {
    for (name, json) in corpus("headers") {
        let read = Delivery::from_headers(&headers_of(&json), b"", NOW);
        if let Some(delivery) = check_example(&name, read) {
            check_delivery(&delivery);
        }
    }
}

/// A schedule that retries without limit, and one that ends.
fn schedules() -> [Schedule; 2] {
    ["1s,2s,1m", "5s,1s,repeat"].map(|text| text.parse().expect("a schedule"))
}

/// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
fn answered_at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
}

fn wanted(code: u16, retry_after: &str) -> (Option<Duration>, Outcome) {
    let response =
        Response::Status { code, retry_after: Some(retry_after.to_owned()), excerpt: None };
    match Outcome::of(response, answered_at()) {
        failed @ Outcome::Failed { retry_after, .. } => (retry_after, failed),
        other => panic!("{code} is {other:?}"),
    }
}

/// Whatever a receiver wants, the delay is one of the schedule's, and not shorter than what it asked
/// for.
fn check_retry_after(value: &str) {
    let (_, outcome) = wanted(503, value);
    let (_, plain) = wanted(503, "");
    for schedule in schedules() {
        for attempt in 1..=3 {
            let (wanted_delay, due) =
                (decide(&outcome, attempt, &schedule), decide(&plain, attempt, &schedule));
            let (Decision::Park(wanted_delay), Decision::Park(due)) = (wanted_delay, due) else {
                assert_eq!(wanted_delay, due, "{value:?}");
                continue;
            };
            assert!(
                schedule.distinct_delays().contains(&wanted_delay),
                "{value:?}: {wanted_delay}"
            );
            assert!(
                (due..=schedule.longest()).contains(&wanted_delay),
                "{value:?}: {wanted_delay} for {due}"
            );
        }
    }
    // Other statuses' values are ignored.
    assert_eq!(wanted(500, value).0, None);
}

#[test]
fn each_example_of_retry_after_is_what_its_name_says() {
    for (name, value) in texts("retry_after") {
        check_retry_after(&value);
        check_example(&name, wanted(503, &value).0.ok_or("it asks for nothing"));
    }
    for date in ["imf", "rfc850", "asctime"] {
        let examples = texts("retry_after");
        let named = |(name, _): &&(String, String)| *name == format!("good-{date}-date");
        let (_, value) = examples.iter().find(named).expect("an example");
        assert_eq!(wanted(429, value).0, Some(Duration::from_secs(60)), "{value}");
    }
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn whatever_comes_as_an_event_is_sound_or_refused_without_its_words(body in changed("events")) {
        match read(&body) {
            Ok(event) => {
                prop_assert!(is_sound(&event), "{event:?}");
                prop_assert_eq!(read(&body), Ok(event), "read twice");
                let body = without_byte_order_mark(&body);
                let object = serde_json::from_slice::<HashMap<String, IgnoredAny>>(body);
                prop_assert!(object.is_ok(), "it is no object: {object:?}");
            }
            Err(malformed) => expect_one_line(&malformed),
        }
    }

    #[test]
    fn properties_of_any_text_are_sound_or_refused(
        message_id in any::<String>(), event_type in any::<String>(),
    ) {
        let given = Properties {
            message_id: Some(&message_id),
            event_type: Some(&event_type),
            ..Properties::default()
        };
        match Event::read(given, b"{\"type\":\"t\"}", MAX_BYTES, || "new".to_owned()) {
            Ok(event) => {
                prop_assert!(is_sound(&event), "{event:?}");
                prop_assert!(event_type.is_empty() || event.event_type == event_type);
            }
            Err(malformed) => expect_one_line(&malformed),
        }
    }

    #[test]
    fn nesting_is_allowed_to_its_limit_whatever_it_is_made_of(
        kinds in prop::collection::vec(any::<bool>(), 0..2 * MAX_DEPTH),
    ) {
        let open: String = kinds.iter().map(|array| if *array { "[" } else { "{\"[\":" }).collect();
        let close: String = kinds.iter().rev().map(|array| if *array { ']' } else { '}' }).collect();
        let read = read(format!("{{\"type\":\"t\",\"x\":{open}0{close}}}").as_bytes());
        prop_assert_eq!(read.is_ok(), kinds.len() < MAX_DEPTH, "{:?}", read);
    }

    #[test]
    fn crafted_headers_are_a_sound_delivery_or_malformed(headers in crafted_headers()) {
        let read = Delivery::from_headers(&headers, b"{\"type\":\"t\"}", NOW);
        match &read {
            Ok(delivery) => check_delivery(delivery),
            Err(malformed) => expect_one_line(malformed),
        }
        // An operator can read it and select it, and send it back only if it is sound.
        let properties = Properties::default();
        let letter = DeadLetter::read("q", properties, &headers);
        prop_assert!(Selection::default().includes(&letter));
        let mut groups = DeadLetterGroups::default();
        groups.add(letter);
        prop_assert_eq!(groups.largest_first().len(), 1);
        let body = b"{\"type\":\"t\"}";
        match replay(properties, &headers, body, MAX_BYTES, NOW) {
            Ok(Replay::Delivery(anew)) => {
                prop_assert_eq!((anew.attempts, anew.first_received_at), (0, NOW));
                prop_assert_eq!(Some(anew.webhook_id), read.ok().map(|read| read.webhook_id));
            }
            Ok(Replay::Event(_)) => prop_assert!(!headers.contains_key("x-webhook-id")),
            Err(malformed) => prop_assert_eq!(Some(malformed), read.err()),
        }
    }

    #[test]
    fn what_marks_a_malformed_message_is_ours_and_comes_off(headers in crafted_headers()) {
        let mut marked = headers.clone();
        mark_malformed(&mut marked, &Malformed::NotSearchable(format!("\u{1b}[2J\n{MARK}")), "q", NOW);
        let text = |name: &str| match &marked[name] {
            Value::Text(text) => text.clone(),
            other => panic!("{name} is {other:?}"),
        };
        prop_assert_eq!(text("x-dead-reason"), "malformed");
        prop_assert_eq!(text("x-origin-queue"), "q");
        prop_assert!(!text("x-last-error").contains(char::is_control));
        unmark_dead(&mut marked);
        prop_assert!(marked.iter().all(|(name, value)| headers.get(name) == Some(value)));
    }

    #[test]
    fn whatever_a_receiver_asks_for_it_gets_a_delay_of_the_schedule(
        value in prop_oneof![changed_text("retry_after"), any::<String>(), "[0-9]{1,60}"],
    ) {
        check_retry_after(&value);
    }

    #[test]
    fn a_date_asks_for_the_time_until_it_in_each_of_its_forms(ahead in -100_000_i64..4_000_000_000) {
        let at = if ahead < 0 {
            answered_at() - Duration::from_secs(ahead.unsigned_abs())
        } else {
            answered_at() + Duration::from_secs(ahead.unsigned_abs())
        };
        let expected = at.duration_since(answered_at()).ok().map(|wanted| wanted.min(LONGEST_STAY));
        prop_assert_eq!(wanted(503, &httpdate::fmt_http_date(at)).0, expected);
    }

    #[test]
    fn what_a_receiver_or_a_library_says_becomes_one_line(detail in any::<String>()) {
        let delivery = Delivery {
            event: Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None },
            webhook_id: uuid::Uuid::nil(),
            attempts: 1,
            first_received_at: 1,
            last_error: detail,
            last_answer: None,
            not_before: None,
        };
        let Value::Text(written) = &delivery.headers("q")["x-last-error"] else { panic!("a text") };
        prop_assert!(written.is_empty() || fault_of(written).is_none(), "{written:?}");
    }
}
