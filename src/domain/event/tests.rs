use super::*;
use proptest::prelude::*;

const LIMIT: usize = 1 << 20;

fn read(properties: Properties<'_>, body: &str) -> Result<Event, Malformed> {
    Event::read(properties, body.as_bytes(), LIMIT, || "new".to_owned())
}

#[track_caller]
fn check(body: &str, id: &str, event_type: &str) {
    let event = read(Properties::default(), body).expect("well-formed");
    assert_eq!((event.id.as_str(), event.event_type.as_str()), (id, event_type));
}

#[track_caller]
fn check_malformed(body: &[u8], expected: &str) {
    let error = Event::read(Properties::default(), body, LIMIT, || "new".to_owned())
        .expect_err("malformed");
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn the_first_name_found_is_the_event_type() {
    check(r#"{"event_type":"a","event":"b","type":"c"}"#, "new", "a");
    check(r#"{"type":"c","event":"b"}"#, "new", "b");
    check(r#"{"type":"c"}"#, "new", "c");
    check(r#"{"event":{"nested":1},"type":"c"}"#, "new", "c");
    check(r#"{"type":"a","type":"b"}"#, "new", "b");
    check("{\"\\u0074ype\":\"\\u00e9\"}", "new", "é");
}

#[test]
fn properties_take_precedence_unless_they_are_empty() {
    let body = r#"{"id":"body","type":"body"}"#;
    let event = |id: &str, event_type: &str| Event {
        id: id.to_owned(),
        event_type: event_type.to_owned(),
        account: None,
    };
    let given =
        Properties { message_id: Some("m"), event_type: Some("t"), ..Properties::default() };
    assert_eq!(read(given, body), Ok(event("m", "t")));
    let empty = Properties { message_id: Some(""), event_type: Some(""), ..Properties::default() };
    assert_eq!(read(empty, body), Ok(event("body", "body")));
}

#[test]
fn an_id_may_be_a_string_or_an_integer_of_any_size() {
    check(r#"{"id":"x-1","type":"t"}"#, "x-1", "t");
    check(r#"{"id":-7,"type":"t"}"#, "-7", "t");
    check(
        r#"{"id":123456789012345678901234567890,"type":"t"}"#,
        "123456789012345678901234567890",
        "t",
    );
    check(r#"{"id":"order 17.\u00fc","type":"t"}"#, "order 17.ü", "t");
    for other in ["1.5", "1e3", "null", "true", "[1]", "{}", "\"\""] {
        check(&format!(r#"{{"id":{other},"type":"t"}}"#), "new", "t");
    }
}

#[test]
fn the_account_comes_from_the_header_or_else_from_the_bodys_members() {
    let text = |text: &str| Some(Value::Text(text.to_owned()));
    let seven = || Some(Value::Integer(7));
    let longest = "x".repeat(MAX_NAME_BYTES);
    let quoted = format!("\"account\":\"{longest}\"");
    for (header, members, account) in [
        (None, "", None),
        (None, r#""account":"acme""#, Some("acme")),
        (None, r#""account":7"#, Some("7")),
        (None, r#""account":"7""#, Some("7")),
        (None, r#""account":"007""#, Some("007")),
        (None, r#""account":-7"#, Some("-7")),
        (None, r#""account":12345678901234567890123"#, Some("12345678901234567890123")),
        (None, r#""account":"Acme ""#, Some("Acme ")),
        (None, r#""\u0061ccount":"\u00e9""#, Some("é")),
        (None, &quoted, Some(&*longest)),
        (None, r#""account_id":"x""#, Some("x")),
        (None, r#""account_id":"x","account":"y""#, Some("y")),
        // As with types, a value that is neither a string nor an integer names no account.
        (None, r#""account":{"id":7}"#, None),
        (None, r#""account":["7"]"#, None),
        (None, r#""account":7.0"#, None),
        (None, r#""account":7e0"#, None),
        (None, r#""account":true"#, None),
        (None, r#""account":null"#, None),
        (None, r#""account":"""#, None),
        (None, r#""account":{"account":"a"},"account_id":7"#, Some("7")),
        (None, r#""account":"","account_id":7"#, Some("7")),
        (None, r#""account":null,"account_id":{}"#, None),
        (None, r#""data":{"account":"a"}"#, None),
        (None, r#""Account":"a""#, None),
        (None, r#""account":"a","account":"b""#, Some("b")),
        (None, r#""account":"a","account":{}"#, None),
        (text("acme"), r#""account":"other""#, Some("acme")),
        (seven(), r#""account":"other""#, Some("7")),
        (text("7"), r#""account":"other","account_id":8"#, Some("7")),
        (text("acme"), "", Some("acme")),
        // Client libraries send an unset header as an empty one too.
        (text(""), r#""account":"other""#, Some("other")),
        (text(""), "", None),
    ] {
        let comma = if members.is_empty() { "" } else { "," };
        let body = format!("{{\"type\":\"t\"{comma}{members}}}");
        let properties = Properties { account: header.as_ref(), ..Properties::default() };
        let event = read(properties, &body).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert_eq!(event.account.as_deref(), account, "{header:?} {body}");
        if header.is_none() {
            assert_eq!(account_of(body.as_bytes()).as_deref(), account, "{body}");
        }
    }
}

#[test]
fn an_invalid_account_makes_an_event_malformed() {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let digits = "9".repeat(MAX_NAME_BYTES + 1);
    for (bad, says) in [
        (&*long, "longer than 255"),
        ("a\nb", "control character"),
        (account::NO_NAME, "neither a string nor an integer"),
    ] {
        let header = Value::Text(bad.to_owned());
        let properties = Properties { account: Some(&header), ..Properties::default() };
        // The header decides, even though the body's account is valid.
        let error = read(properties, r#"{"type":"t","account":"a"}"#).expect_err(bad);
        assert!(error.to_string().starts_with("the account "), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    for member in [
        format!("\"account\":\"{long}\""),
        format!("\"account_id\":{digits}"),
        r#""account":"a\u0000""#.to_owned(),
        r#""account":"\ud800""#.to_owned(),
        format!("\"account\":\"{long}\",\"account_id\":7"),
    ] {
        let body = format!("{{\"type\":\"t\",{member}}}");
        check_malformed(body.as_bytes(), "the account ");
        assert_eq!(account_of(body.as_bytes()), None, "{body}");
    }
    assert_eq!(account_of(b"{"), None);
}

#[test]
fn a_byte_order_mark_is_skipped() {
    check("\u{feff} {\"id\":\"1\",\"type\":\"t\"}", "1", "t");
    assert_eq!(without_byte_order_mark(b"\xef\xbb\xbf{}"), b"{}");
    assert_eq!(without_byte_order_mark(b"{}"), b"{}");
}

#[test]
fn the_error_says_why_an_event_is_malformed() {
    check_malformed(b"", "not a JSON object");
    check_malformed(b"{\"type\":\"t\"", "not a JSON object");
    check_malformed(b"{\"type\":\"t\"} x", "not a JSON object");
    check_malformed(b"[1]", "not a JSON object");
    check_malformed(b"null", "not a JSON object");
    check_malformed(b"7", "not a JSON object");
    check_malformed(b"{\"type\":\"t\",\"a\":\"\xff\"}", "not UTF-8: bad byte at offset 17");
    check_malformed(b"{}", "no event type");
    check_malformed(b"{\"type\":7}", "no event type");
    check_malformed(b"{\"type\":\"\"}", "event type is empty");
    check_malformed(b"{\"type\":\"a\\u0000b\"}", "control character");
    check_malformed(b"{\"type\":\"t\",\"id\":\"a\\nb\"}", "event id has a control character");
    check_malformed(b"\xef\xbb\xbf\xef\xbb\xbf{\"type\":\"t\"}", "not a JSON object");
    let quoted = format!("\"{}\"", "x".repeat(200_000));
    check_malformed(quoted.as_bytes(), "not a JSON object");
    let error = read(Properties::default(), &quoted).expect_err("malformed").to_string();
    assert!(error.len() < 300, "{} bytes of error", error.len());
    let long = "x".repeat(256);
    check_malformed(format!("{{\"type\":\"{long}\"}}").as_bytes(), "longer than 255");
    check_malformed(format!("{{\"type\":\"t\",\"id\":\"{long}\"}}").as_bytes(), "longer than");
    let deep = format!("{{\"type\":\"t\",\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    check_malformed(deep.as_bytes(), "deeper than 128");
    let error = Event::read(Properties::default(), b"{\"type\":\"t\"}", 4, String::new);
    assert_eq!(error, Err(Malformed::TooLarge { bytes: 12, limit: 4 }));
}

#[test]
fn only_brackets_outside_strings_count_for_the_depth() {
    let nested = |n: usize| {
        format!("{{\"type\":\"t\",\"a\":{}\"\\\"[[[\"{}}}", "[".repeat(n), "]".repeat(n))
    };
    check(&nested(MAX_DEPTH - 1), "new", "t");
    assert_eq!(read(Properties::default(), &nested(MAX_DEPTH)), Err(Malformed::TooDeep));
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn reading_never_panics(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Event::read(Properties::default(), &body, LIMIT, String::new);
    }

    #[test]
    fn reading_something_like_json_never_panics(body in "[\\[\\]{}\":,\\\\a-c0-9. -]{0,80}") {
        let _ = Event::read(Properties::default(), body.as_bytes(), LIMIT, String::new);
    }

    #[test]
    fn any_object_with_a_type_is_an_event(extra in json(), event_type in "[a-z.]{1,20}") {
        let body = serde_json::json!({ "payload": extra, "event_type": event_type });
        let event = read(Properties::default(), &body.to_string()).expect("well-formed");
        prop_assert_eq!(event.event_type, event_type);
    }
}
