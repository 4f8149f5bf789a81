use super::*;
use proptest::prelude::*;

fn delivery() -> impl Strategy<Value = Delivery> {
    let account = prop::option::of("[ -~é日]{1,60}");
    let event = ("[!-~]{1,255}|\\PC{1,60}", "[a-z.]{1,255}", account).prop_map(
        |(id, event_type, account)| Event {
            id,
            event_type,
            account: account.map(String::into_boxed_str),
        },
    );
    let not_before = prop::option::of(any::<i64>());
    let last_error = "[ -~é日]{0,300}";
    let last_answer = prop::option::of(("\\PC{0,60}", "\\PC{0,600}"));
    let error = (last_error, last_answer, not_before);
    (event, any::<u128>(), 0_u32..1_000, 0_i64..i64::MAX, error).prop_map(
        |(event, webhook, attempts, first_received_at, error)| {
            let (last_error, last_answer, not_before) = error;
            Delivery {
                event,
                webhook_id: Uuid::from_u128(webhook),
                attempts,
                first_received_at,
                last_error,
                last_answer: last_answer
                    .map(|(line, body)| Box::new(Excerpt::new(&line, &body, 512))),
                not_before,
            }
        },
    )
}

#[test]
fn headers_that_we_write_are_not_taken_for_the_producers() {
    let mut headers = sample();
    mark_dead(&mut headers, DeadReason::Exhausted, 7);
    for name in
        headers.keys().map(String::as_str).chain([header::LAST_STATUS_LINE, header::LAST_BODY])
    {
        assert!(!is_producers(name), "{name} would be copied to other deliveries");
    }
    for name in ["traceparent", "account", "x-tenant", "x-deaths"] {
        assert!(is_producers(name), "{name}");
    }
}

fn sample() -> Headers {
    Delivery {
        event: Event { id: "e".to_owned(), event_type: "t".to_owned(), account: None },
        webhook_id: Uuid::nil(),
        attempts: 1,
        first_received_at: 1,
        last_error: String::new(),
        last_answer: None,
        not_before: None,
    }
    .headers("q")
}

#[test]
fn headers_that_we_did_not_write_are_malformed() {
    let crafted = [
        ("x-event-id", Value::Text("two\nlines".to_owned())),
        ("x-event-id", Value::Integer(7)),
        ("x-event-type", Value::Text(String::new())),
        ("x-webhook-id", Value::Text("http://169.254.169.254/".to_owned())),
        ("x-attempt", Value::Integer(-1)),
        ("x-attempt", Value::Integer(1_000_000_000_000_000_000)),
        ("x-attempt", Value::Text("1".to_owned())),
        ("x-first-received-at", Value::Integer(-5)),
        ("x-last-error", Value::Integer(0)),
        ("x-account", Value::Integer(7)),
        ("x-account", Value::Text("two\nlines".to_owned())),
        ("x-account", Value::Text("x".repeat(256))),
    ];
    for (name, value) in crafted {
        let mut headers = sample();
        headers.insert(name.to_owned(), value.clone());
        assert!(Delivery::from_headers(&headers, b"", 9).is_err(), "{name}={value:?}");
    }
    let optional = |name: &String| name == "x-origin-queue" || name == header::ACCOUNT;
    for name in sample().into_keys().filter(|name| !optional(name)) {
        let mut headers = sample();
        headers.remove(&name);
        assert!(Delivery::from_headers(&headers, b"", 9).is_err(), "without {name}");
    }
}

#[test]
fn a_time_beyond_an_hour_and_the_clock_skew_is_ignored() {
    let hour = 3_600_000;
    for (not_before, expected) in [
        (None, None),
        (Some(1_000), None),
        (Some(999), None),
        (Some(i64::MIN), None),
        (Some(1_001), Some(1)),
        (Some(1_000 + hour), Some(3_600_000)),
        (Some(1_000 + hour + 60_000), Some(3_660_000)),
        (Some(1_001 + hour + 60_000), None),
        (Some(i64::MAX), None),
    ] {
        let delivery = Delivery::from_headers(&sample(), b"", 9).expect("a delivery");
        let stay = Delivery { not_before, ..delivery }.stay_away_for(1_000);
        assert_eq!(stay, expected.map(Duration::from_millis), "{not_before:?}");
    }
}

#[test]
fn a_malformed_message_keeps_its_headers_and_gets_a_short_reason() {
    let mut headers = sample();
    headers.insert("x-attempt".to_owned(), Value::Integer(-1));
    let error = Malformed::NotAnObject("x".repeat(100_000));
    mark_malformed(&mut headers, &error, "q", 7);
    assert_eq!(headers["x-webhook-id"], sample()["x-webhook-id"]);
    assert_eq!(headers["x-attempt"], Value::Integer(-1));
    assert_eq!(headers["x-dead-reason"], Value::Text("malformed".to_owned()));
    let Value::Text(reason) = &headers["x-last-error"] else { panic!("a text") };
    assert_eq!(reason.chars().count(), MAX_ERROR_CHARS + 1);
}

#[test]
fn a_delivery_parked_by_an_older_version_is_read() {
    let mut headers = sample();
    headers.insert("x-deferrals".to_owned(), Value::Integer(7));
    headers.insert("x-turn-at".to_owned(), Value::Integer(1));
    let read = |headers: &Headers, body: &[u8]| Delivery::from_headers(headers, body, 9);
    assert_eq!(read(&headers, b""), read(&sample(), b""));
    // Without the header, the body names the account.
    let account = |headers: &Headers, body: &[u8]| {
        read(headers, body).expect("a delivery").event.account.map(String::from)
    };
    let body = br#"{"account":"acme"}"#;
    assert_eq!(account(&headers, body), None, "the header says that it has none");
    headers.remove(header::ACCOUNT);
    assert_eq!(account(&headers, body).as_deref(), Some("acme"));
    assert_eq!(account(&headers, b"{}"), None);
    assert_eq!(account(&headers, b"no JSON"), None);
    headers.insert(header::ACCOUNT.to_owned(), Value::Text("other".to_owned()));
    assert_eq!(account(&headers, body).as_deref(), Some("other"));
}

proptest! {
    #[test]
    fn headers_are_read_back_as_the_same_delivery(delivery in delivery()) {
        let read = Delivery::from_headers(&delivery.headers("q"), b"", i64::MAX);
        prop_assert_eq!(read, Ok(delivery));
    }
}
