use super::*;
use proptest::prelude::*;

fn columns(headers: &str) -> Columns {
    Columns { headers: Some(Secret::new(headers.to_owned())), ..Columns::default() }
}

fn pairs(headers: &str) -> Result<Vec<(String, String)>, String> {
    let settings = columns(headers).read().map_err(|unusable| unusable.to_string())?;
    let headers = settings.expect("they are given").headers.into_iter();
    let text = |value: HeaderValue| value.to_str().expect("visible").to_owned();
    Ok(headers.map(|(name, value)| (name.to_string(), text(value))).collect())
}

#[test]
fn headers_are_a_json_object_of_texts() {
    let check = |headers, expected: &[(&str, &str)]| {
        let owned = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
        assert_eq!(pairs(headers), Ok(expected.iter().map(owned).collect()));
    };
    check(r#"{"Authorization": "Bearer x"}"#, &[("authorization", "Bearer x")]);
    check(
        r#"{"x-a": "1", "Accept": "", "cookie": "a=b\tc"}"#,
        &[("accept", ""), ("cookie", "a=b\tc"), ("x-a", "1")],
    );
    check("{}", &[]);
    check("null", &[]);
    let many = (0..32).map(|n| format!("\"x-{n}\":\"\""));
    assert!(pairs(&format!("{{{}}}", many.collect::<Vec<_>>().join(","))).is_ok());
}

#[test]
fn headers_that_cannot_be_sent_are_refused_without_their_values() {
    let many = (0..33).map(|n| format!("\"x-{n}\":\"s3cret\"")).collect::<Vec<_>>().join(",");
    let (many, long) = (format!("{{{many}}}"), "s3cret".repeat(700));
    let escaped = format!("{{\"a\":\"{}\"}}", "\\u0061".repeat(3_000));
    for (headers, said) in [
        ("[]", "JSON object"),
        ("\"s3cret\"", "JSON object"),
        ("s3cret", "JSON object"),
        ("{\"a\":\"s3cret", "JSON object"),
        ("", "JSON object"),
        (r#"{"a": 1}"#, "value of a is not a string"),
        (r#"{"a": null}"#, "value of a is not a string"),
        (r#"{"a": ["s3cret"]}"#, "value of a is not a string"),
        (r#"{"a": "s3cret\r\nx: y"}"#, "value of a has characters"),
        (r#"{"a": "s3cret\u0000"}"#, "value of a has characters"),
        (r#"{"a": "s3cret é"}"#, "value of a has characters"),
        (r#"{"": "s3cret"}"#, "\"\" is not the name"),
        (r#"{"a b": "s3cret"}"#, "\"a b\" is not the name"),
        (r#"{"a:": "s3cret"}"#, "is not the name"),
        (r#"{"a\nb": "s3cret"}"#, r#""a\nb" is not the name"#),
        (r#"{"é": "s3cret"}"#, "is not the name"),
        (r#"{"X-A": "s3cret", "x-a": "s3cret"}"#, "x-a is listed twice"),
        (&many, "more than 32"),
        (&format!("{{\"a\":\"{long}\"}}"), "4096 bytes"),
        (&escaped, "4096 bytes"),
    ] {
        let error = pairs(headers).expect_err(headers);
        assert!(error.starts_with("unusable headers: ") && error.contains(said), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn reserved_headers_are_refused() {
    for name in [
        "webhook-id",
        "Webhook-Signature",
        "webhook-anything",
        "Content-Type",
        "content-length",
        "content-encoding",
        "Host",
        "connection",
        "Transfer-Encoding",
        "TE",
        "upgrade",
        "trailer",
        "expect",
        "keep-alive",
        "proxy-authorization",
        "Proxy-Connection",
        "User-Agent",
        "accept-encoding",
        "http2-settings",
    ] {
        let error = pairs(&format!("{{\"{name}\": \"x\"}}")).expect_err(name);
        assert!(error.contains("a webhook can't set"), "{error}");
    }
    for name in ["authorization", "cookie", "accept", "x-host", "date", "content", "webhook"] {
        assert!(pairs(&format!("{{\"{name}\": \"x\"}}")).is_ok(), "{name}");
    }
}

#[test]
fn numbers_are_read_whatever_type_their_column_has() {
    let read = |timeout_ms: &str, max_in_flight: &str, rate: &str| {
        let given = |text: &str| (text != "-").then(|| text.to_owned());
        let columns = Columns {
            timeout_ms: given(timeout_ms),
            max_in_flight: given(max_in_flight),
            rate_per_second: given(rate),
            ..Columns::default()
        };
        columns.read().map_err(|unusable| unusable.column)
    };
    assert_eq!(read("-", "-", "-"), Ok(None));
    let all = read("1500", "3", "0.5").expect("numbers").expect("settings");
    assert_eq!(all.timeout, Some(Duration::from_millis(1_500)));
    assert_eq!(all.limits.max_in_flight, NonZeroU32::new(3));
    assert_eq!(all.limits.rate, "0.50".parse().ok());
    for bad in ["0", "-1", "600001", "1.5", "5s", "", "99999999999999999999"] {
        assert_eq!(read(bad, "-", "-"), Err(Column::TimeoutMs), "{bad}");
    }
    for bad in ["0", "-1", "1000001", "1.5", "x", ""] {
        assert_eq!(read("-", bad, "-"), Err(Column::MaxInFlight), "{bad}");
    }
    for bad in ["0", "-1", "NaN", "Infinity", "1e300", "x", ""] {
        assert_eq!(read("-", "-", bad), Err(Column::RatePerSecond), "{bad}");
    }
}

#[test]
fn an_invalid_account_is_unusable() {
    let read =
        |account: &str| Columns { account: Some(account.to_owned()), ..Columns::default() }.read();
    for good in ["acme", "7", "a b ", "ü"] {
        assert_eq!(read(good), Ok(None), "{good:?}");
    }
    for bad in ["", "a\nb", &"x".repeat(256), &"?".repeat(1_024)] {
        let error = read(bad).expect_err(bad).to_string();
        assert!(error.starts_with("unusable account: it "), "{error}");
        assert!(error.ends_with("no event can belong to it"), "{error}");
    }
}

#[test]
fn debug_output_contains_no_value_of_a_header() {
    let columns = columns(r#"{"Authorization": "s3cret"}"#);
    let settings = columns.read().expect("a header");
    let printed = format!("{columns:?} {settings:?}");
    assert!(printed.contains("authorization") && !printed.contains("s3cret"), "{printed}");
    assert_eq!(columns.header_names(), Some(vec!["Authorization".to_owned()]));
}

proptest! {
    #[test]
    fn any_settings_are_within_the_limits_or_refused_in_one_line(
        headers in prop_oneof![
            any::<String>(),
            prop::collection::btree_map(".{0,8}|[a-z-]{1,20}", ".{0,20}|[ -~]{0,600}", 0..40)
                .prop_map(|map| serde_json::to_string(&map).expect("texts")),
        ],
        numbers in prop::collection::vec("-?[0-9.eE]{0,12}|.{0,6}", 3),
    ) {
        let columns =
            Columns { headers: Some(Secret::new(headers)), ..Columns::default() };
        match columns.read() {
            Ok(settings) => {
                let headers = settings.expect("there are some").headers;
                prop_assert!(headers.len() <= MAX_HEADERS);
                for (name, value) in &headers {
                    prop_assert!(value.is_sensitive());
                    let plain = |byte: &u8| matches!(*byte, b' '..=b'~' | b'\t');
                    prop_assert!(value.as_bytes().iter().all(plain));
                    prop_assert!(check_name(name.as_str()).is_ok());
                }
            }
            Err(unusable) => prop_assert!(!unusable.to_string().contains(char::is_control)),
        }
        let [timeout_ms, max_in_flight, rate_per_second] =
            [0, 1, 2].map(|n| Some(numbers[n].clone()));
        let columns = Columns { timeout_ms, max_in_flight, rate_per_second, ..Columns::default() };
        if let Err(unusable) = columns.read() {
            prop_assert!(!unusable.to_string().contains(char::is_control));
        }
    }
}
