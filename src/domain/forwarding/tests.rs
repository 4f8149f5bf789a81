use super::*;
use proptest::prelude::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let text = |text: &str| Value::Text(text.to_owned());
    pairs.iter().map(|(name, value)| (String::from(*name), text(value))).collect()
}

fn forwarded(names: &str, given: &Headers) -> Vec<(String, String)> {
    let forwarding = Forwarding::parse(names).expect("names");
    let headers = forwarding.of(given).headers.into_iter();
    let text = |value: HeaderValue| value.to_str().expect("visible").to_owned();
    headers.map(|(name, value)| (name.to_string(), text(value))).collect()
}

#[track_caller]
fn check(names: &str, given: &[(&str, &str)], expected: &[(&str, &str)]) {
    let owned = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
    let expected: Vec<_> = expected.iter().map(owned).collect();
    assert_eq!(forwarded(names, &headers(given)), expected, "{given:?}");
}

#[test]
fn trace_headers_and_named_headers_are_forwarded() {
    let trace = [("traceparent", PARENT), ("tracestate", "a=1, b@c=2"), ("baggage", "k=v;p,l=%20")];
    let more = [("x-tenant", "7"), ("x-other", "8"), ("x-attempt", "3")];
    check("", &[&trace[..], &more].concat(), &trace);
    check("X-Tenant, x-absent", &more, &[("x-tenant", "7")]);
    check(
        "x-tenant",
        &[("X-TENANT", " a b\t"), ("TraceParent", PARENT)],
        &[("traceparent", PARENT), ("x-tenant", "a b")],
    );
    let number = Headers::from([("n".to_owned(), Value::Integer(-7))]);
    assert_eq!(forwarded("n", &number), [("n".to_owned(), "-7".to_owned())]);
}

#[test]
fn a_malformed_traceparent_is_left_out_with_its_tracestate() {
    let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    for good in [PARENT.to_owned(), format!("cc-{trace}-{span}-09-what-comes")] {
        check("", &[("traceparent", &good)], &[("traceparent", &good)]);
    }
    let upper = PARENT.to_uppercase();
    for bad in [
        "",
        "00",
        &PARENT[..54],
        &upper,
        &format!("{PARENT}-more"),
        &format!("{PARENT}0"),
        &format!("ff-{trace}-{span}-01"),
        &format!("00-{}-{span}-01", "0".repeat(32)),
        &format!("00-{trace}-{}-01", "0".repeat(16)),
        &format!("00-{trace}-{span}-0g"),
        &format!("{PARENT}\r\nx-evil: 1"),
    ] {
        check(
            "",
            &[("traceparent", bad), ("tracestate", "a=1"), ("baggage", "k=v")],
            &[("baggage", "k=v")],
        );
    }
    check("", &[("tracestate", "a=1")], &[]);
    let many = vec!["a=1"; 33].join(",");
    for bad in ["a", "=1", "a=", "a b=1", "a=1=2", "a=é", &many] {
        let given = [("traceparent", PARENT), ("tracestate", bad)];
        check("", &given, &[("traceparent", PARENT)]);
    }
}

#[test]
fn values_that_a_header_cannot_hold_are_left_out_with_a_reason() {
    let long = "x".repeat(MAX_HEADER_BYTES);
    let given = headers(&[
        ("x-a", "1\r\nx-evil: 1"),
        ("x-b", "Müller"),
        ("x-c", &long),
        ("x-d", ""),
        ("x-e", "2"),
        ("traceparent", "00-0"),
    ]);
    let forwarding = Forwarding::parse("x-a,x-b,x-c,x-d,x-e").expect("names");
    let Forwarded { headers, left_out } = forwarding.of(&given);
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["x-e"]);
    let left_out: Vec<_> = left_out.iter().map(|(name, why)| (name.as_str(), *why)).collect();
    let ascii = "its value has characters other than visible ASCII and spaces";
    assert_eq!(
        left_out,
        [
            ("traceparent", "it is malformed"),
            ("x-a", ascii),
            ("x-b", ascii),
            ("x-c", "the forwarded headers would be too large"),
        ]
    );
}

#[test]
fn names_that_cannot_be_forwarded_are_refused() {
    let many = (0..33).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",");
    for (names, says) in [
        ("a b", "\"a b\" is not the name of a header"),
        ("a,,b", "\"\" is not the name"),
        (",", "\"\" is not the name"),
        ("a:", "is not the name"),
        ("é", "is not the name"),
        ("a,A", "\"A\" is listed twice"),
        ("traceparent", "always forwarded"),
        ("Webhook-Id", "can't be forwarded"),
        ("webhook-anything", "can't be forwarded"),
        ("Host", "can't be forwarded"),
        ("content-type", "can't be forwarded"),
        ("Content-Length", "can't be forwarded"),
        ("transfer-encoding", "can't be forwarded"),
        ("connection", "can't be forwarded"),
        ("proxy-authorization", "can't be forwarded"),
        ("Authorization", "--headers-from"),
        ("cookie", "--headers-from"),
        ("X-Attempt", "RabbitMQ writes it"),
        ("x-first-death-queue", "RabbitMQ writes it"),
        (&many, "more than 32"),
    ] {
        let error = Forwarding::parse(names).expect_err(names);
        assert!(error.contains(says), "{names}: {error}");
    }
    assert_eq!(Forwarding::parse(""), Ok(Forwarding::default()));
    assert!(Forwarding::parse("x-a, B3,account").is_ok());
}

proptest! {
    #[test]
    fn any_message_headers_become_valid_headers_or_none(
        given in prop::collection::btree_map(
            "traceparent|tracestate|baggage|x-a|X-A|.{0,8}",
            prop_oneof![
                "00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]",
                ".{0,40}",
                "[ -~]{0,3000}",
            ].prop_map(Value::Text),
            0..6,
        ),
    ) {
        let forwarding = Forwarding::parse("x-a").expect("a name");
        let Forwarded { headers, .. } = forwarding.of(&given);
        let size: usize = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum();
        prop_assert!(size <= MAX_HEADER_BYTES);
        let known = ["traceparent", "tracestate", "baggage", "x-a"];
        for (name, value) in &headers {
            prop_assert!(known.contains(&name.as_str()));
            prop_assert!(value.to_str().is_ok_and(|text| !text.is_empty()));
            prop_assert_eq!(headers.iter().filter(|(other, _)| other == name).count(), 1);
        }
    }
}
