//! Invalid accounts: of events, and in the table.

use super::*;
use crate::{harness::Proxy, malformed::publish_raw_to};

#[test]
fn an_invalid_account_header_makes_an_event_malformed_whatever_its_body_says() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    sandbox.webhook(&receiver.url("/all"), &["*"]);
    let notifier = sandbox.notifier().start();
    let table = FieldTable::from([("id".to_owned(), text("a"))]);
    let odd = [
        (AmqpValue::Double(7.0), "neither a string nor an integer"),
        (AmqpValue::Float(7.0), "neither a string nor an integer"),
        (AmqpValue::Boolean(true), "neither a string nor an integer"),
        (AmqpValue::Timestamp(7), "neither a string nor an integer"),
        (AmqpValue::FieldArray(vec![text("a")]), "neither a string nor an integer"),
        (AmqpValue::FieldTable(table), "neither a string nor an integer"),
        (AmqpValue::ByteArray(b"a".to_vec()), "neither a string nor an integer"),
        (text(&"a".repeat(256)), "longer than 255 bytes"),
        (text(&"a".repeat(80_000)), "longer than 255 bytes"),
        (text("a\n"), "control character"),
    ];
    let count = odd.len() + 1;
    let mut expected = BTreeMap::new();
    for (header, says) in odd {
        let event = of(Event::new("order.paid").body(r#"{"account":"a"}"#), header);
        sandbox.publish(&event);
        expected.insert(event.id, says);
    }
    // For example in Latin-1: what is sent for these four letters isn't UTF-8.
    let latin = of(Event::new("order.paid").body(r#"{"account":"a"}"#), text("grXXXXe"));
    publish_raw_to(&sandbox, sandbox.queue(), latin.clone());
    expected.insert(latin.id, "not UTF-8");
    let malformed = [("reason", "malformed")];
    notifier.wait_metric("webhook_dead_letters_total", &malformed, count as f64);
    let listed = json(&succeed(&sandbox, &["dead-letters", "list", "--each", "--json"]));
    for letter in listed.as_array().expect("a list") {
        let reason = expected[letter["event_id"].as_str().expect("an id")];
        let error = letter["last_error"].as_str().expect("a reason");
        assert!(error.starts_with("the account ") && error.contains(reason), "{error}");
    }
    // They are still malformed when they return.
    let replayed = succeed(&sandbox, &["dead-letters", "replay"]);
    assert!(replayed.contains(&format!("{count} stay dead, malformed")), "{replayed}");

    // With empty headers, the body decides the account.
    let body = |event: Event| event.body(r#"{"account":"a"}"#);
    let unset = [
        of(body(Event::new("order.paid")), AmqpValue::Void),
        of(body(Event::new("order.paid")), text("")),
        body(Event::new("order.paid")),
    ];
    sandbox.broker.publish(sandbox.queue(), &unset);
    receiver.wait_at("/a", unset.len());
    receiver.wait_at("/all", unset.len());
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2 * unset.len());
    notifier.terminate();
}

#[test]
fn an_account_counts_however_many_other_headers_there_are() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    webhook(&sandbox, &receiver.url("/b"), &["*"], Some("b"));
    let notifier = sandbox.notifier().env("RUST_LOG", "info,webhook_notifier=debug").start();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let many = (0..200).map(|n| (format!("a-{n}"), AmqpValue::LongInt(n)));
    let large = [("a".to_owned(), text(&"x".repeat(64 << 10)))];
    for others in [many.collect::<FieldTable>(), large.into_iter().collect()] {
        let mut headers = others;
        headers.insert("account".to_owned(), text("a"));
        headers.insert("traceparent".to_owned(), text(trace));
        // By its body, it would be another account's.
        sandbox.publish(&Event::new("t").body(r#"{"account":"b"}"#).headers(headers));
    }
    let requests = receiver.wait_at("/a", 2);
    sandbox.wait_drained();
    assert_eq!(receiver.at("/b").len(), 0);
    // Nor does a trace get lost among many other headers; it is logged that some are left out.
    assert!(requests.iter().all(|request| request.header("traceparent") == trace));
    let lines = notifier.stderr();
    let warnings = lines.iter().filter(|line| line.contains("headers left out")).count();
    assert_eq!(warnings, 2, "{lines:?}");
    notifier.terminate();
}

#[test]
fn an_account_counts_beside_a_header_nested_too_deep_and_is_refused_if_nested_itself() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    webhook(&sandbox, &receiver.url("/b"), &["*"], Some("b"));
    let notifier = sandbox.notifier().start();
    let nested = (0..40).fold(AmqpValue::Void, |inner, _| {
        AmqpValue::FieldTable(FieldTable::from([("k".to_owned(), inner)]))
    });
    // By its body, it would be another account's.
    let event = |headers: FieldTable| Event::new("t").body(r#"{"account":"b"}"#).headers(headers);
    for other in ["_", "z"] {
        let headers = [(other.to_owned(), nested.clone()), ("account".to_owned(), text("a"))];
        sandbox.publish(&event(headers.into()));
    }
    sandbox.publish(&event(FieldTable::from([("account".to_owned(), nested)])));
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "malformed")], 1.0);
    receiver.wait_at("/a", 2);
    sandbox.wait_drained();
    assert_eq!(receiver.at("/b").len(), 0);
    notifier.terminate();
}

#[test]
fn accounts_that_a_collation_finds_equal_each_get_their_events() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.database.run_script(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         DROP INDEX webhooks_account_idx, webhooks_everybodys_idx;
         ALTER TABLE webhooks ALTER account TYPE text COLLATE any_case",
    );
    succeed(&sandbox, &["migrate"]);
    let accounts = ["acme", "ACME", "Acme"];
    for account in accounts {
        webhook(&sandbox, &receiver.url(&format!("/{account}")), &["*"], Some(account));
    }
    sandbox.webhook(&receiver.url("/all"), &["*"]);
    let notifier = sandbox.notifier().start();
    notifier.wait_listening();
    for account in accounts.iter().chain(&accounts) {
        sandbox.publish(&of(Event::new("t"), text(account)));
    }
    receiver.wait_at("/all", 6);
    sandbox.wait_drained();
    for account in accounts {
        assert_eq!(receiver.at(&format!("/{account}")).len(), 2, "{account}");
        let listed = succeed(&sandbox, &["webhooks", "list", "--account", account, "--json"]);
        assert_eq!(json(&listed).as_array().map(Vec::len), Some(1), "{account}");
    }
    notifier.terminate();
}

/// What the column is set to, and what is wrong with that; empty if all is well.
const ROWS: [(&str, &str); 10] = [
    ("NULL", ""),
    ("'a'", ""),
    ("'7'", ""),
    ("'A'", ""),
    ("' a '", "spaces around"),
    ("''", "unusable account: it is empty"),
    ("E'\\x1b[2J\\u202e'", "unusable account: it has a control character"),
    ("repeat('a', 256)", "unusable account: it is longer than 255 bytes"),
    ("repeat('é', 128)", "unusable account: it is longer than 255 bytes"),
    ("repeat('é', 50000000)", "unusable account: it is longer than 255 bytes"),
];

#[test]
fn an_invalid_account_in_the_table_makes_only_its_own_webhook_unusable() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let mut ids = Vec::new();
    for (n, (value, _)) in ROWS.iter().enumerate() {
        let id = sandbox.webhook(&receiver.url(&format!("/{n}")), &["*"]);
        sandbox
            .database
            .run_script(&format!("UPDATE webhooks SET account = {value} WHERE id = '{id}'"));
        ids.push(id.to_string());
    }
    let notifier = sandbox.notifier().start();
    let longest = "a".repeat(255);
    let headers = ["a", "7", "A", " a ", "a ", &longest];
    for account in headers {
        sandbox.publish(&of(Event::new("order.paid"), text(account)));
    }
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/0", headers.len() + 1);
    sandbox.wait_drained();
    let expected = [headers.len() + 1, 1, 1, 1, 1, 0, 0, 0, 0, 0];
    for (n, count) in expected.into_iter().enumerate() {
        assert_eq!(receiver.at(&format!("/{n}")).len(), count, "{}", ROWS[n].0);
    }
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), 0.0);

    let listed = succeed(&sandbox, &["webhooks", "list"]);
    assert!(listed.lines().next().is_some_and(|line| line.contains("ACCOUNT")), "{listed}");
    for ((value, problem), id) in ROWS.iter().zip(&ids) {
        let shown = succeed(&sandbox, &["webhooks", "show", id]);
        assert!(shown.contains(problem) && shown.len() < 9_000, "{value}: {shown}");
        let line = listed.lines().find(|line| line.starts_with(id)).expect("it is listed");
        assert!(line.chars().count() < 300, "{line}");
        let state = match *problem {
            text if text.starts_with("unusable") => "unusable",
            "" => "enabled",
            _ => "warning",
        };
        assert!(line.contains(state), "{value}: {line}");
    }
    let checked = sandbox.command(&["check"]);
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains("5 of them get nothing"), "{checked:?}");
    // The remedy works.
    for id in &ids[5..] {
        succeed(&sandbox, &["webhooks", "set", id, "--unset", "account"]);
    }
    succeed(&sandbox, &["check"]);
    notifier.terminate();
}

#[test]
fn a_column_of_numbers_works_and_a_collation_that_ignores_case_has_no_effect() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = webhook(&sandbox, &receiver.url("/own"), &["*"], Some("7"));
    let set_type = |kind: &str| {
        sandbox.database.run_script(&format!(
            "DROP INDEX webhooks_account_idx, webhooks_everybodys_idx; ALTER TABLE webhooks ALTER account TYPE {kind}"
        ));
        assert!(succeed(&sandbox, &["migrate"]).contains("index webhooks_account_idx"));
    };
    set_type("integer USING account::integer");
    sandbox.webhook(&receiver.url("/all"), &["*"]);
    let notifier = sandbox.notifier().start();
    for body in [r#"{"account":7}"#, r#"{"account":"7"}"#, r#"{"account":"x"}"#] {
        sandbox.publish(&Event::new("t").body(body));
    }
    receiver.wait_at("/all", 3);
    receiver.wait_at("/own", 2);
    sandbox.wait_drained();
    notifier.terminate();

    sandbox.database.run_script(
        "CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
    );
    set_type("text COLLATE any_case");
    set_account(&sandbox, id, Some("acme"));
    let notifier = sandbox.notifier().start();
    for account in ["acme", "ACME"] {
        sandbox.publish(&of(Event::new("t"), text(account)));
    }
    receiver.wait_at("/all", 5);
    receiver.wait_at("/own", 3);
    sandbox.wait_drained();
    assert_eq!(receiver.at("/own").len(), 3);
    notifier.terminate();
}

#[test]
fn while_postgresql_is_away_accounts_decide_as_before() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    for account in [Some("a"), Some("b"), None] {
        let path = format!("/{}", account.unwrap_or("all"));
        webhook(&sandbox, &receiver.url(&path), &["*"], account);
    }
    let proxy = Proxy::before(sandbox.database.url());
    let notifier =
        sandbox.notifier().env("DATABASE_URL", proxy.url(sandbox.database.url())).start();
    notifier.wait_listening();
    sandbox.publish(&of(Event::new("t"), text("a")));
    receiver.wait_at("/a", 1);
    receiver.wait_at("/all", 1);

    proxy.refuse();
    wait_until(SOON, "PostgreSQL counts as unreachable", || {
        notifier.metric("webhook_database_up", &[]) == 0.0
    });
    // Known are the type, that `a` and `b` have webhooks for it, and the webhooks of `a`.
    for owner in ["a", "unknown"] {
        sandbox.publish(&of(Event::new("t"), text(owner)));
    }
    sandbox.publish(&Event::new("t"));
    receiver.wait_at("/all", 4);
    receiver.wait_at("/a", 2);
    let of_b = of(Event::new("t"), text("b"));
    sandbox.publish(&of_b);
    // It waits: it isn't sent to some of its webhooks while others are known only to PostgreSQL.
    wait_until(SOON, "it waits", || {
        notifier.stderr().iter().any(|line| line.contains("lane interrupted"))
    });
    assert_eq!(receiver.requests().len(), 6);
    proxy.thaw();
    wait_until(LATER, "it arrives", || {
        !receiver.of("/b", &of_b).is_empty() && !receiver.of("/all", &of_b).is_empty()
    });
    sandbox.wait_drained();
    assert_eq!((receiver.at("/a").len(), receiver.at("/b").len()), (2, 1));
    notifier.terminate();
}
