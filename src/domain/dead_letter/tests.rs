use super::*;
use proptest::prelude::*;

const NO_PROPERTIES: Properties<'_> =
    Properties { message_id: None, event_type: None, account: None };

fn delivery(event_type: &str, webhook: u128) -> Delivery {
    Delivery {
        event: Event {
            id: "e".to_owned(),
            event_type: event_type.to_owned(),
            account: Some("acme".into()),
        },
        webhook_id: Uuid::from_u128(webhook),
        attempts: 12,
        first_received_at: 1_000,
        last_error: "status 500".to_owned(),
        last_answer: None,
        not_before: None,
    }
}

fn dead(event_type: &str, webhook: u128, at: UnixMillis) -> DeadLetter {
    let mut headers = delivery(event_type, webhook).headers("q");
    delivery::mark_dead(&mut headers, DeadReason::Exhausted, at);
    DeadLetter::read("q", NO_PROPERTIES, &headers)
}

#[test]
fn a_dead_letter_is_read_from_its_headers() {
    let letter = dead("user.created", 7, 2_000);
    assert_eq!(letter.reason, "exhausted");
    assert_eq!(letter.event_id.as_deref(), Some("e"));
    assert_eq!(letter.event_type.as_deref(), Some("user.created"));
    assert_eq!(letter.account.as_deref(), Some("acme"));
    let seven = Value::Integer(7);
    let given = Properties { account: Some(&seven), ..NO_PROPERTIES };
    let malformed = DeadLetter::read("q", given, &Headers::new());
    assert_eq!(malformed.account.as_deref(), Some("7"));
    assert_eq!(letter.webhook_id, Some(Uuid::from_u128(7)));
    assert_eq!(letter.attempts, Some(12));
    assert_eq!((letter.first_received_at, letter.dead_at), (Some(1_000), Some(2_000)));
    assert_eq!(letter.last_error.as_deref(), Some("status 500"));
}

#[test]
fn there_is_a_word_for_each_of_our_own_reasons() {
    let decided: Vec<&str> = reasons().take(DeadReason::ALL.len()).collect();
    assert_eq!(decided, DeadReason::ALL.map(DeadReason::label));
}

#[test]
fn a_dead_letter_is_selected_by_its_event_id_or_by_the_header_of_receivers() {
    let mut letter = dead("a", 7, 2_000);
    letter.event_id = Some("evt.1 ü".to_owned());
    let is_found = |id: &str| {
        let event_id = Some(id.to_owned());
        Selection { event_id, ..Selection::default() }.includes(&letter)
    };
    assert!(is_found("evt.1 ü") && is_found("evt%2E1%20%C3%BC"));
    assert!(!is_found("evt.1") && !is_found("evt%2e1%20%c3%bc"));
    let begins = |id: &str| {
        let event_id = Some(id.to_owned());
        Selection { event_id, by_beginning: true, ..Selection::default() }.includes(&letter)
    };
    assert!(begins("evt.1") && begins("evt%2E1") && begins("evt.1 ü"));
    assert!(!begins("evt.2") && !begins("vt.1"));
}

#[test]
fn a_message_that_rabbitmq_dead_lettered_has_rabbitmqs_reason() {
    let headers = [("x-first-death-reason".to_owned(), Value::Text("delivery_limit".to_owned()))];
    let letter = DeadLetter::read("q", NO_PROPERTIES, &headers.into());
    assert_eq!(letter.reason, "delivery_limit");
    assert_eq!(DeadLetter::read("q", NO_PROPERTIES, &Headers::new()).reason, "unknown");
}

#[test]
fn an_orphaned_message_shows_the_queue_that_it_came_from() {
    let mut headers = delivery("a", 1).headers("q");
    headers.insert("x-last-death-reason".to_owned(), Value::Text("expired".to_owned()));
    let letter = DeadLetter::read_orphaned(NO_PROPERTIES, &headers);
    assert_eq!((letter.queue.as_str(), letter.reason.as_str()), ("q", "orphaned"));
    delivery::mark_dead(&mut headers, DeadReason::Gone, 7);
    assert_eq!(DeadLetter::read_orphaned(NO_PROPERTIES, &headers).reason, "gone");
    let strange = DeadLetter::read_orphaned(NO_PROPERTIES, &Headers::new());
    assert_eq!((strange.queue.as_str(), strange.reason.as_str()), ("unknown", "orphaned"));
}

#[test]
fn a_selection_includes_dead_letters_that_meet_all_its_conditions() {
    let letter = dead("user.created", 7, 2_000);
    let text = |text: &str| Some(text.to_owned());
    let all = Selection::default;
    let fitting = [
        all(),
        Selection { event_id: text("e"), ..all() },
        Selection { event_type: text("user.created"), ..all() },
        Selection { event_type: text("user.*"), reason: text("exhausted"), ..all() },
        Selection { webhook_id: Some(Uuid::from_u128(7)), event_type: text("*"), ..all() },
        Selection { account: text("acme"), ..all() },
        Selection { dead_until: Some(2_000), dead_since: Some(2_000), ..all() },
    ];
    for selection in fitting {
        assert!(selection.includes(&letter), "{selection:?}");
    }
    let other = [
        Selection { event_id: text("f"), ..all() },
        Selection { account: text("Acme"), ..all() },
        Selection { event_type: text("user"), ..all() },
        Selection { event_type: text("order.*"), reason: text("exhausted"), ..all() },
        Selection { webhook_id: Some(Uuid::nil()), ..all() },
        Selection { reason: text("gone"), ..all() },
        Selection { dead_until: Some(1_999), ..all() },
        Selection { dead_since: Some(2_001), ..all() },
    ];
    for selection in other {
        assert!(!selection.includes(&letter), "{selection:?}");
    }
}

#[test]
fn groups_count_by_reason_and_webhook_and_show_the_latest_error() {
    let mut groups = DeadLetterGroups::default();
    groups.add(dead("a", 1, 10));
    groups.add(DeadLetter { last_error: Some("later".to_owned()), ..dead("a", 2, 30) });
    groups.add(dead("b", 2, 20));
    let groups = groups.largest_first();
    assert_eq!(groups.len(), 2);
    assert_eq!((groups[0].webhook_id, groups[0].count), (Some(Uuid::from_u128(2)), 2));
    assert_eq!((groups[0].oldest, groups[0].newest), (Some(20), Some(30)));
    assert_eq!(groups[0].last_error.as_deref(), Some("later"));
    assert_eq!(groups[1].count, 1);
}

#[test]
fn an_event_is_replayed_once_it_is_no_longer_malformed() {
    let body = br#"{"type":"a"}"#;
    let mut headers = Headers::from([("own".to_owned(), Value::Integer(1))]);
    let too_large = Malformed::TooLarge { bytes: body.len(), limit: 5 };
    delivery::mark_malformed(&mut headers, &too_large, "q", 5);
    assert_eq!(replay(NO_PROPERTIES, &headers, body, 5, 9), Err(too_large));
    let back = Headers::from([("own".to_owned(), Value::Integer(1))]);
    assert_eq!(replay(NO_PROPERTIES, &headers, body, 100, 9), Ok(Replay::Event(back)));
}

#[test]
fn a_delivery_with_headers_that_we_did_not_write_is_not_replayed() {
    let mut headers = delivery("a", 1).headers("q");
    headers.insert("x-attempt".to_owned(), Value::Integer(-1));
    let stays = replay(NO_PROPERTIES, &headers, br#"{"type":"a"}"#, 100, 9);
    assert_eq!(stays, Err(Malformed::BadHeader("x-attempt")));
}

proptest! {
    #[test]
    fn a_replayed_delivery_is_unchanged_except_for_its_age_and_attempts(
        event_type in "[a-z.]{1,30}", webhook: u128, died: i64, now in 0..i64::MAX,
    ) {
        let delivery = delivery(&event_type, webhook);
        let mut headers = delivery.headers("q");
        delivery::mark_dead(&mut headers, DeadReason::Exhausted, died);
        let expected =
            Delivery { attempts: 0, first_received_at: now, ..delivery };
        let back = replay(NO_PROPERTIES, &headers, b"", 100, now);
        prop_assert_eq!(back, Ok(Replay::Delivery(expected)));
    }
}
