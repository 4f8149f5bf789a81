//! Accounts: which account an event belongs to, and that it reaches no other account's webhooks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use amiquip::{AmqpValue, FieldTable};
use uuid::Uuid;

use crate::{
    commands::{json, succeed},
    harness::{
        Event, LATER, Notifier, Receiver, Reply, SOON, Sandbox, unwrapped, wait_for, wait_until,
    },
};

mod odd;
mod output;
mod waiting;

/// Registers a webhook of an account, or of none.
#[track_caller]
fn webhook(sandbox: &Sandbox, url: &str, events: &[&str], account: Option<&str>) -> Uuid {
    let id = sandbox.webhook(url, events);
    set_account(sandbox, id, account);
    id
}

/// Sets a webhook's account by SQL.
#[track_caller]
fn set_account(sandbox: &Sandbox, id: Uuid, account: Option<&str>) {
    sandbox.database.execute("UPDATE webhooks SET account = $2 WHERE id = $1", &[&id, &account]);
}

fn text(text: &str) -> AmqpValue {
    AmqpValue::LongString(text.to_owned())
}

/// The event with this header `account`.
fn of(event: Event, account: AmqpValue) -> Event {
    event.headers(FieldTable::from([("account".to_owned(), account)]))
}

fn ids_at(receiver: &Receiver, path: &str) -> BTreeSet<String> {
    receiver.at(path).iter().map(|request| request.id().to_owned()).collect()
}

/// Pseudo-random numbers, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        // Knuth's multiplier; the upper bits are better.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % most
    }
}

#[test]
fn no_event_reaches_a_webhook_of_another_account() {
    const ACCOUNTS: [&str; 6] = ["acme", "Acme", "acme ", "7", "-7", "größe"];
    let seed = Uuid::new_v4().as_u64_pair().0;
    eprintln!("seed {seed}");
    let mut chance = Chance(seed);
    let sandbox = Sandbox::new();
    // Some deliveries are parked, some several times; some become dead letters.
    let receiver = Receiver::answering(|request| match request.body.len() % 3 {
        0 if request.attempt < 2 => Reply::Status(500),
        1 if request.path.ends_with("/2") && request.attempt < 3 => Reply::Status(503),
        _ => Reply::Status(200),
    });
    let mut accounts: BTreeMap<String, Option<&str>> = BTreeMap::new();
    for (n, account) in ACCOUNTS.into_iter().map(Some).chain([None]).enumerate() {
        for (m, pattern) in ["*", "user.*", "user.created"].into_iter().enumerate() {
            let path = format!("/{n}/{m}");
            webhook(&sandbox, &receiver.url(&path), &[pattern], account);
            accounts.insert(path, account);
        }
    }
    let notifier = sandbox
        .notifier()
        // Events of an account go to five of these webhooks, others to two or three.
        .env("FANOUT_INLINE", "4")
        .env("RETRY_SCHEDULE", "100ms,200ms,300ms,400ms")
        .env("CIRCUIT_BREAKER", "off")
        .start();

    let mut expected: BTreeMap<&str, BTreeSet<String>> =
        accounts.keys().map(|path| (path.as_str(), BTreeSet::new())).collect();
    let mut events = Vec::new();
    for _ in 0..300 {
        let kind = ["user.created", "user.deleted", "order.paid"][chance.below(3)];
        let owner = ACCOUNTS.get(chance.below(ACCOUNTS.len() + 2)).copied();
        let other = ACCOUNTS[chance.below(ACCOUNTS.len())];
        let filling = "x".repeat(chance.below(9));
        let quoted = owner.map(|owner| serde_json::json!(owner).to_string());
        let (header, members) = match (owner, chance.below(5)) {
            (None, 0) => (None, r#""account":{"id":"acme"}"#.to_owned()),
            (None, 1) => (Some(text("")), r#""account":7.5,"account_id":true"#.to_owned()),
            (None, _) => (None, r#""data":{"account":"acme"}"#.to_owned()),
            // The header takes precedence.
            (Some(owner), 0) => (Some(text(owner)), format!("\"account\":\"{other}\"")),
            (Some("7"), 1) => (Some(AmqpValue::LongInt(7)), String::from("\"a\":1")),
            (Some("-7"), 1) => (None, "\"account_id\":-7".to_owned()),
            (Some(_), 2) => {
                let owner = quoted.unwrap_or_default();
                (None, format!("\"account_id\":\"{other}\",\"account\":{owner}"))
            }
            (Some(_), _) => (None, format!("\"account_id\":{}", quoted.unwrap_or_default())),
        };
        let body = format!("{{{members},\"filling\":\"{filling}\"}}");
        let mut event = Event::new(kind).body(body);
        if let Some(header) = header {
            event = of(event, header);
        }
        for (path, account) in &accounts {
            let wants = match &path[path.len() - 2..] {
                "/0" => true,
                "/1" => kind.starts_with("user."),
                _ => kind == "user.created",
            };
            if wants && (account.is_none() || *account == owner) {
                expected.get_mut(path.as_str()).expect("each has some").insert(event.id.clone());
            }
        }
        events.push(event);
    }
    sandbox.broker.publish(sandbox.queue(), &events);

    for (path, ids) in &expected {
        wait_until(LATER, &format!("{path} gets all of its events"), || {
            ids_at(&receiver, path).is_superset(ids)
        });
    }
    sandbox.wait_drained();
    for (path, ids) in &expected {
        let wrong = &ids_at(&receiver, path) - ids;
        assert!(wrong.is_empty(), "{path} of {:?} got {wrong:?}", accounts[*path]);
    }
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), 0.0);
    notifier.terminate();
}

#[test]
fn a_change_of_an_account_by_sql_takes_effect_at_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/one"), &["*"]);
    sandbox.webhook(&receiver.url("/all"), &["*"]);
    let notifier = sandbox.notifier().start();
    notifier.wait_listening();
    let mut expected = BTreeSet::new();
    let mut published = 0;
    for account in [None, Some("a"), Some("b"), Some("a"), None] {
        set_account(&sandbox, id, account);
        // The directory forgets what it knew when the notification arrives.
        let before = answers(&notifier, "database");
        wait_until(SOON, "the notification of the change arrives", || {
            sandbox.publish(&Event::new("probe").id(&format!("probe-{published}")));
            published += 1;
            receiver.wait_at("/all", published);
            answers(&notifier, "database") > before
        });
        for owner in [None, Some("a"), Some("b")] {
            let event = Event::new("order.paid");
            let event = match owner {
                Some(owner) => of(event, text(owner)),
                None => event,
            };
            if account.is_none() || account == owner {
                expected.insert(event.id.clone());
            }
            sandbox.publish(&event);
            published += 1;
        }
        receiver.wait_at("/all", published);
    }
    wait_until(SOON, "/one gets them all", || ids_at(&receiver, "/one").is_superset(&expected));
    sandbox.wait_drained();
    let mut got = ids_at(&receiver, "/one");
    got.retain(|id| !id.starts_with("probe-"));
    assert_eq!(got, expected);
    notifier.terminate();
}

fn answers(notifier: &Notifier, from: &str) -> f64 {
    notifier.metric("webhook_directory_lookups_total", &[("answer", from)])
}

#[test]
fn events_of_accounts_without_a_webhook_are_looked_up_together() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/all"), &["order.*"]);
    webhook(&sandbox, &receiver.url("/a"), &["order.*"], Some("a"));
    // Two consumers might ask for the same at the same time.
    let notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    notifier.wait_listening();
    let before = answers(&notifier, "database");
    let of_account = |account: &str| of(Event::new("order.paid"), text(account));
    let mut events: Vec<_> = (0..50).map(|n| of_account(&format!("unknown {n}"))).collect();
    events.extend([of_account("a"), of_account("a"), Event::new("order.paid")]);
    sandbox.broker.publish(sandbox.queue(), &events);
    receiver.wait_at("/all", events.len());
    receiver.wait_at("/a", 2);
    sandbox.wait_drained();
    // One query by type and one for the account with a webhook; and another if, on a busy machine, the
    // notifier was unsure for a moment whether it gets notifications of changes.
    let queries = answers(&notifier, "database") - before;
    assert!((2.0..10.0).contains(&queries), "{queries}");
    notifier.terminate();
}

#[test]
fn a_waiting_delivery_whose_webhook_changes_account_is_dead_and_reported() {
    let sandbox = Sandbox::new();
    let (receiver, is_fixed) = Receiver::failing(500);
    let id = webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    let notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "1s,1h").env("CIRCUIT_BREAKER", "off").start();
    let event = of(Event::new("order.paid"), text("a"));
    sandbox.publish(&event);
    receiver.wait_at("/a", 1);
    set_account(&sandbox, id, Some("b"));
    is_fixed.store(true, Ordering::Relaxed);
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "other_account")], 1.0);
    assert_eq!(receiver.at("/a").len(), 1, "it got no more");

    let listed = json(&succeed(&sandbox, &["dead-letters", "list", "--each", "--json"]));
    let letter = &listed[0];
    assert_eq!((&letter["account"], &letter["reason"]), (&"a".into(), &"other_account".into()));
    let error = letter["last_error"].as_str().expect("a reason");
    assert!(error.ends_with(r#"belongs to account "b", the event to account "a""#), "{error}");
    let why = wait_for(SOON, "it is logged", || {
        let why = succeed(&sandbox, &["why", &event.id]);
        why.contains("dead since").then(|| unwrapped(&why))
    });
    for part in [
        "account a",
        r#"wants it by `*`, but it belongs to account "b""#,
        "its webhook belonged to another account",
        &format!("`webhooks set {id} --account a`, then"),
        "purge --webhook",
    ] {
        assert!(why.contains(part), "no {part:?} in {why}");
    }

    // A replay doesn't help as long as the accounts differ.
    let replay = ["dead-letters", "replay", "--account", "a"];
    assert!(succeed(&sandbox, &replay).contains("1 replayed"));
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "other_account")], 2.0);
    assert_eq!(receiver.at("/a").len(), 1);
    succeed(&sandbox, &["webhooks", "set", &id.to_string(), "--account", "a"]);
    wait_until(SOON, "the other one is no longer known", || {
        succeed(&sandbox, &replay);
        receiver.at("/a").len() == 2
    });
    assert_eq!(receiver.at("/a")[1].id(), event.id);
    notifier.terminate();
}

#[test]
fn a_backlog_delivers_nothing_of_another_account_after_its_webhook_has_changed() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    let notifier = sandbox.notifier().start();
    sandbox.publish(&of(Event::new("order.paid"), text("a")));
    receiver.wait_at("/a", 1);
    succeed(&sandbox, &["webhooks", "pause", &id.to_string()]);
    let held = [("reason", "paused")];
    let mut of_a = Vec::new();
    wait_until(SOON, "the notification of the pause arrives", || {
        let event = of(Event::new("order.paid"), text("a"));
        sandbox.publish(&event);
        of_a.push(event);
        notifier.metric("webhook_deliveries_held_total", &held) >= 1.0
    });
    // Otherwise the webhook might not want the last one any more.
    wait_until(SOON, "all are delivered or wait", || {
        let queue = [("queue", sandbox.queue())];
        let delivered = notifier.metric("webhook_request_success_total", &queue);
        let held = notifier.metric("webhook_deliveries_held_total", &queue);
        delivered + held >= (1 + of_a.len()) as f64
    });
    set_account(&sandbox, id, Some("b"));
    let mut of_b = Vec::new();
    wait_until(SOON, "the notification of the new account arrives", || {
        let before = notifier.metric("webhook_deliveries_held_total", &held);
        let event = of(Event::new("order.paid"), text("b"));
        sandbox.publish(&event);
        of_b.push(event.id);
        let count = (1 + of_a.len() + of_b.len()) as f64;
        // More than once, if RabbitMQ redelivers one.
        wait_until(SOON, "all are received", || {
            let queue = [("queue", sandbox.queue())];
            notifier.metric("webhook_events_received_total", &queue) >= count
        });
        notifier.metric("webhook_deliveries_held_total", &held) > before
    });
    let last = of_b.pop().expect("the one that was held");
    succeed(&sandbox, &["webhooks", "resume", &id.to_string()]);
    wait_until(LATER, "it gets the last event", || ids_at(&receiver, "/a").contains(&last));
    sandbox.wait_drained();
    let got = ids_at(&receiver, "/a");
    let kept = of_a.iter().filter(|event| !got.contains(&event.id)).count();
    assert!(kept >= 1);
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "other_account")], kept as f64);
    notifier.terminate();
}

#[test]
fn a_delivery_parked_by_an_older_version_belongs_to_the_account_in_its_body() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = webhook(&sandbox, &receiver.url("/a"), &["*"], Some("a"));
    let all = sandbox.webhook(&receiver.url("/all"), &["*"]);
    let notifier = sandbox.notifier().start();
    let parked = |body: &str, webhook: Uuid| {
        let event = Event::new("order.paid").body(body).parked(sandbox.queue(), webhook);
        sandbox.broker.publish(&sandbox.retry_queue(), std::slice::from_ref(&event));
        event.id
    };
    let own = parked(r#"{"type":"order.paid","account":"a"}"#, id);
    for body in [r#"{"account_id":"b"}"#, r#"{"account":{}}"#, "{}", "no JSON"] {
        parked(body, id);
        parked(body, all);
    }
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "other_account")], 4.0);
    receiver.wait_at("/all", 4);
    receiver.wait_at("/a", 1);
    sandbox.wait_drained();
    assert_eq!(ids_at(&receiver, "/a"), BTreeSet::from([own]));
    let list = |account: &str| {
        let each = ["dead-letters", "list", "--each", "--json", "--account", account];
        json(&succeed(&sandbox, &each)).as_array().map(Vec::len)
    };
    assert_eq!((list("a"), list("b")), (Some(0), Some(1)));
    notifier.terminate();
}
