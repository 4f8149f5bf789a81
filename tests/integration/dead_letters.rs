//! The commands for dead letters: none of them may lose anything, however it ends.

use std::{collections::BTreeSet, time::Duration};

use amiquip::AmqpValue;
use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    Event, LATER, Receiver, Reply, SOON, Sandbox, Servers, Signal, holds_for, wait_until,
};

mod looks;

/// A dead letter as the notifier publishes it.
fn dead_letter(sandbox: &Sandbox, webhook: Uuid, reason: &str, age_ms: i64) -> Event {
    let event = Event::new("order.paid");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
    let died = i64::try_from(now).expect("before 292278994") - age_ms;
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let headers = [
        ("x-event-id", text(&event.id)),
        ("x-event-type", text("order.paid")),
        ("x-webhook-id", text(&webhook.to_string())),
        ("x-attempt", AmqpValue::LongLongInt(12)),
        ("x-first-received-at", AmqpValue::LongLongInt(died - 1_000)),
        ("x-last-error", text("status 500")),
        ("x-origin-queue", text(sandbox.queue())),
        ("x-dead-reason", text(reason)),
        ("x-dead-at", AmqpValue::LongLongInt(died)),
    ];
    event.headers(headers.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Publishes `count` dead letters of one webhook.
fn many(sandbox: &Sandbox, count: usize) -> Vec<Event> {
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["nothing"]);
    sandbox.notifier().start().terminate();
    let letters: Vec<_> =
        (0..count).map(|_| dead_letter(sandbox, webhook, "exhausted", 0)).collect();
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);
    letters
}

/// Runs `dead-letters` with these arguments, which must succeed, and returns its output.
#[track_caller]
fn dead_letters(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let finished = sandbox.command(&[&["dead-letters"], arguments].concat());
    assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
    finished.stdout
}

#[track_caller]
fn dead_letters_json(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    let printed = dead_letters(sandbox, &[arguments, &["--json"]].concat());
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Takes all messages of a queue, and returns their ids.
fn drain(sandbox: &Sandbox, queue: &str) -> Vec<String> {
    let messages = std::iter::from_fn(|| sandbox.broker.take(queue));
    messages.map(|message| message.properties.message_id().clone().unwrap_or_default()).collect()
}

/// Three of one webhook; an old one and one with reason `gone` of another; and a malformed one.
fn seeded() -> (Sandbox, [Uuid; 2]) {
    let sandbox = Sandbox::new();
    let webhooks = [Uuid::new_v4(), Uuid::new_v4()];
    sandbox.notifier().start().terminate();
    let dead = |webhook, reason, age| dead_letter(&sandbox, webhook, reason, age);
    let hour = 3_600_000;
    let letters = [
        dead(webhooks[0], "exhausted", 0),
        dead(webhooks[0], "exhausted", 1_000),
        dead(webhooks[0], "exhausted", 2_000),
        dead(webhooks[1], "exhausted", 3 * hour),
        dead(webhooks[1], "gone", hour),
        Event::raw("not JSON").kind("user.created").id("by-hand"),
    ];
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);
    (sandbox, webhooks)
}

#[test]
fn list_counts_by_reason_and_webhook_and_every_condition_narrows_it() {
    let (sandbox, [first, second]) = seeded();
    let total = |conditions: &[&str]| {
        let groups = dead_letters_json(&sandbox, &[&["list"], conditions].concat());
        let groups = groups.as_array().expect("a list of groups").clone();
        groups.iter().map(|group| group["count"].as_u64().expect("a count")).sum::<u64>()
    };

    let groups = dead_letters_json(&sandbox, &["list"]);
    let largest = &groups[0];
    assert_eq!(groups.as_array().map(Vec::len), Some(4), "{groups}");
    assert_eq!(largest["count"], 3, "{groups}");
    assert_eq!(largest["reason"], "exhausted");
    assert_eq!(largest["webhook_id"], first.to_string());
    assert_eq!(largest["last_error"], "status 500");
    let (first, second) = (first.to_string(), second.to_string());
    let cases: [(&[&str], u64); 9] = [
        (&[], 6),
        (&["--webhook", &first], 3),
        (&["--webhook", &second, "--reason", "gone"], 1),
        (&["--type", "order.*"], 5),
        (&["--type", "user.created"], 1),
        (&["--older-than", "30m"], 2),
        (&["--newer-than", "2h"], 4),
        (&["--older-than", "30m", "--newer-than", "2h"], 1),
        (&["--queue", sandbox.queue(), "--reason", "unknown"], 1),
    ];
    for (conditions, expected) in cases {
        assert_eq!(total(conditions), expected, "{conditions:?}");
    }
    let table = dead_letters(&sandbox, &["list"]);
    assert!(table.contains("6  in total"), "{table}");
    assert!(table.contains(&second), "{table}");
    assert_eq!(dead_letters(&sandbox, &["list", "--each"]).lines().count(), 7);
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(6), "looking takes nothing");
}

#[test]
fn show_prints_headers_and_body() {
    let (sandbox, [_, second]) = seeded();
    let each = dead_letters_json(&sandbox, &["list", "--each", "--reason", "gone"]);
    let id = each[0]["event_id"].as_str().expect("an id");

    let shown = dead_letters(&sandbox, &["show", "--event", id]);
    for expected in [id, "x-dead-reason: gone", &second.to_string(), "status 500", "{\"data\":"] {
        assert!(shown.contains(expected), "no {expected} in {shown}");
    }
    let shown = dead_letters_json(&sandbox, &["show", "--event", id])[0].clone();
    assert_eq!(shown["headers"]["x-attempt"], 12);
    assert!(shown["body"].as_str().is_some_and(|body| body.starts_with("{\"data\":")));
    let by_hand = dead_letters(&sandbox, &["show", "--type", "user.*"]);
    assert!(by_hand.contains("not JSON"), "{by_hand}");
}

#[test]
fn replay_starts_the_schedule_over_for_the_selected_and_leaves_the_rest() {
    let sandbox = Sandbox::new();
    // Two of three attempts fail, twice: only a schedule that starts over reaches the sixth.
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/healed", 6..) => Reply::Status(200),
        _ => Reply::Status(500),
    });
    let healed = sandbox.webhook(&receiver.url("/healed"), &["*"]);
    sandbox.webhook(&receiver.url("/broken"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms,100ms").start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let dead = || sandbox.broker.ready(&sandbox.dead_queue());
    wait_until(SOON, "both deliveries are dead", || dead() == Some(2));

    let chosen = ["replay", "--webhook", &healed.to_string()];
    let dry = dead_letters(&sandbox, &[&chosen[..], &["--dry-run"]].concat());
    assert!(dry.contains("1 dead letter would be replayed"), "{dry}");
    assert_eq!(dead(), Some(2));
    let printed = dead_letters(&sandbox, &chosen);

    assert!(printed.starts_with("1 dead letter to be replayed\n1 replayed"), "{printed}");
    receiver.wait_at("/healed", 6);
    wait_until(SOON, "the sixth attempt counts", || {
        notifier.metric("webhook_request_success_total", &[]) == 1.0
    });
    assert_eq!(receiver.of("/healed", &event).len(), 6);
    assert_eq!(receiver.of("/broken", &event).len(), 3);
    assert_eq!(dead(), Some(1));
    assert!(receiver.of("/healed", &event).iter().all(|request| request.body == event.body));
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn a_replay_leaves_dead_letters_that_no_webhook_would_get_and_says_why() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.notifier().start().terminate();
    let webhook = |path: &str| sandbox.webhook(&receiver.url(path), &["nothing"]);
    let (enabled, disabled, deleted) = (webhook("/a"), webhook("/b"), Uuid::new_v4());
    let disable = "UPDATE webhooks SET disabled_at = now() WHERE id = $1";
    sandbox.database.execute(disable, &[&disabled]);
    let of = |webhook| dead_letter(&sandbox, webhook, "exhausted", 0);
    // Those that stay are read first: a limit of one still finds one that can be replayed.
    let letters = [Event::raw("not JSON"), of(deleted), of(disabled), of(disabled), of(enabled)];
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);
    let says_what_stays = |printed: &str| {
        let remedy =
            format!("2 stay dead, webhook disabled: `webhook-notifier webhooks enable {disabled}`");
        for part in [&remedy, "1 stays dead, webhook deleted", "1 stays dead, malformed"] {
            assert!(printed.contains(part), "no {part:?} in {printed}");
        }
    };

    let dry = dead_letters(&sandbox, &["replay", "--dry-run"]);
    assert!(dry.starts_with("1 dead letter would be replayed\n"), "{dry}");
    says_what_stays(&dry);
    let dry = dead_letters_json(&sandbox, &["replay", "--dry-run"]);
    let counts = ["fitting", "replayable", "replayed", "disabled", "deleted", "malformed"];
    assert_eq!(counts.map(|count| dry[count].as_u64()), [5, 1, 0, 2, 1, 1].map(Some), "{dry}");
    assert_eq!(dry["disabled_webhooks"][0], disabled.to_string());
    // Dead letters that stay don't count towards the limit.
    let printed = dead_letters(&sandbox, &["replay", "--limit", "1"]);
    assert!(printed.contains("\n1 replayed\n"), "{printed}");
    says_what_stays(&dead_letters(&sandbox, &["replay"]));
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(4));

    let succeed = |arguments: &[&str]| assert_eq!(sandbox.command(arguments).code, Some(0));
    succeed(&["webhooks", "enable", &disabled.to_string()]);
    let notifier = sandbox.notifier().start();
    let printed = dead_letters(&sandbox, &["replay"]);
    assert!(printed.contains("2 replayed"), "{printed}");
    assert_eq!(receiver.wait_at("/b", 2).len(), 2);
    assert_eq!(receiver.wait_at("/a", 1).len(), 1);
    notifier.terminate();
}

#[test]
fn one_event_is_selected_by_its_id_and_an_unknown_reason_is_an_error() {
    let (sandbox, _) = seeded();
    let each = dead_letters_json(&sandbox, &["list", "--each", "--reason", "gone"]);
    let id = each[0]["event_id"].as_str().expect("an id").to_owned();
    assert_eq!(dead_letters_json(&sandbox, &["list", "--event", &id])[0]["count"], 1);
    let dry = dead_letters_json(&sandbox, &["replay", "--event", &id, "--dry-run"]);
    assert_eq!(dry["fitting"], 1, "{dry}");
    assert!(dead_letters(&sandbox, &["purge", "--event", &id]).ends_with("1 purged"));
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(5));

    let wrong = sandbox.command(&["dead-letters", "replay", "--reason", "exhasted"]);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    for part in ["exhasted", "exhausted", "gone", "malformed", "orphaned", "delivery_limit"] {
        assert!(wrong.stderr.contains(part), "no {part:?} in {wrong:?}");
    }
}

#[test]
fn commands_that_read_the_same_queue_wait_for_each_other_and_count_right() {
    const COUNT: u64 = 2_000;
    let sandbox = Sandbox::new();
    sandbox.notifier().start().terminate();
    let letters: Vec<_> =
        (0..COUNT).map(|_| dead_letter(&sandbox, Uuid::nil(), "exhausted", 0)).collect();
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);
    let list = || sandbox.launch(&["dead-letters", "list", "--json"]).spawn();
    let all: Vec<_> = (0..4).map(|_| list()).collect();
    let mut waited = 0;
    for listing in all {
        let finished = listing.finish(LATER);
        let groups: Value = serde_json::from_str(&finished.stdout).expect("JSON");
        assert_eq!(groups[0]["count"], COUNT, "{finished:?}");
        waited += usize::from(finished.stderr.contains("waiting until it is done"));
    }
    assert!(waited > 0, "no two were there at the same time");
}

#[test]
fn the_count_of_dead_letters_does_not_change_while_they_are_read() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().start();
    let letters: Vec<_> =
        (0..5).map(|_| dead_letter(&sandbox, Uuid::nil(), "exhausted", 0)).collect();
    let queue = sandbox.dead_queue();
    sandbox.broker.publish(&queue, &letters);
    let count = || notifier.metric("webhook_queue_messages", &[("queue", &queue)]);
    wait_until(SOON, "they are counted", || count() == 5.0);
    sandbox.broker.while_held(&queue, 5, || {
        // The notifier reads its queues' lengths several times meanwhile.
        holds_for(Duration::from_secs(4), "they are counted", || count() == 5.0);
    });
    assert_eq!(sandbox.command(&["dead-letters", "purge", "--all"]).code, Some(0));
    wait_until(SOON, "there are none", || count() == 0.0);
    notifier.terminate();
}

#[test]
fn an_interrupted_replay_reports_how_many_it_moved() {
    const COUNT: usize = 3_000;
    let sandbox = Sandbox::new();
    let _ = many(&sandbox, COUNT);
    let replay = sandbox.launch(&["dead-letters", "replay"]).spawn();
    let moved = || sandbox.broker.ready(&sandbox.retry_queue()) > Some(0);
    wait_until(SOON, "it is under way", moved);
    replay.signal(Signal::INT);
    let finished = replay.finish(SOON);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let says = format!("of {COUNT} replayed, the others are still dead letters");
    assert!(finished.stderr.contains(&says), "{finished:?}");
}

#[test]
fn purge_deletes_the_selected_and_never_everything_by_accident() {
    let (sandbox, [first, _]) = seeded();
    let dead = || sandbox.broker.ready(&sandbox.dead_queue());
    let refused = sandbox.command(&["dead-letters", "purge"]);
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("--all"), "{refused:?}");

    let chosen = ["purge", "--webhook", &first.to_string()];
    dead_letters(&sandbox, &[&chosen[..], &["--dry-run"]].concat());
    assert_eq!(dead(), Some(6));
    assert!(dead_letters(&sandbox, &chosen).ends_with("3 purged"));
    assert_eq!(dead(), Some(3));
    let limited = sandbox.command(&["dead-letters", "purge", "--limit", "1000"]);
    assert_eq!(limited.code, Some(2), "{limited:?}");
    assert_eq!(dead_letters_json(&sandbox, &["purge", "--all", "--limit", "1"])["purged"], 1);
    assert_eq!(dead_letters_json(&sandbox, &["purge", "--all"])["purged"], 2);
    assert_eq!(dead(), Some(0));
}

#[test]
fn an_event_that_was_too_large_can_be_replayed_once_the_limit_is_raised() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let large = Event::new("order.paid").body(format!("{{\"x\":\"{}\"}}", "x".repeat(2_000)));
    let notifier = sandbox.notifier().env("MAX_EVENT_BYTES", "1KiB").start();
    sandbox.publish(&large);
    let dead = || sandbox.broker.ready(&sandbox.dead_queue());
    wait_until(SOON, "it is dead", || dead() == Some(1));
    notifier.terminate();

    let replay = |limit: &str| {
        let command = sandbox.launch(&["dead-letters", "replay"]).env("MAX_EVENT_BYTES", limit);
        command.spawn().finish(SOON)
    };
    let stays = replay("1KiB");
    assert_eq!(stays.code, Some(0), "{stays:?}");
    assert!(stays.stdout.contains("1 stays dead, malformed"), "{stays:?}");
    assert_eq!(dead(), Some(1));
    let comes_back = replay("4KiB");
    assert!(comes_back.stdout.contains("1 replayed"), "{comes_back:?}");
    assert_eq!(dead(), Some(0));

    let notifier = sandbox.notifier().env("MAX_EVENT_BYTES", "4KiB").start();
    let requests = receiver.wait_at("/", 1);
    assert_eq!((requests[0].id(), &requests[0].body), (large.id.as_str(), &large.body));
    notifier.terminate();
}

#[test]
fn a_sigkill_during_a_replay_loses_nothing() {
    const COUNT: usize = 1_000;
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["nothing"]);
    sandbox.notifier().start().terminate();
    let [dead_queue, retry_queue] = [sandbox.dead_queue(), sandbox.retry_queue()];
    let mut all = BTreeSet::new();

    // Until a replay is killed half-way: then this round's dead letters are in both queues.
    for round in 0.. {
        assert!(round < 10, "no replay was struck half-way");
        let letters: Vec<_> =
            (0..COUNT).map(|_| dead_letter(&sandbox, webhook, "exhausted", 0)).collect();
        sandbox.broker.publish(&dead_queue, &letters);
        all.extend(letters.into_iter().map(|letter| letter.id));
        let before = sandbox.broker.ready(&retry_queue).expect("the queue exists");
        let mut replay = sandbox.launch(&["dead-letters", "replay"]).spawn();
        wait_until(SOON, "the replay is under way", || {
            sandbox.broker.ready(&retry_queue) > Some(before) || !replay.is_running()
        });
        replay.kill();
        // The broker requeues what the replay held as soon as it notices the connection's end.
        wait_until(SOON, "every one is in one of the queues at least", || {
            let [dead, retry] =
                [&dead_queue, &retry_queue].map(|queue| sandbox.broker.ready(queue));
            dead.unwrap_or(0) + retry.unwrap_or(0) >= u32::try_from(all.len()).expect("few")
        });
        if sandbox.broker.ready(&dead_queue) > Some(0) {
            break;
        }
    }

    let again = dead_letters(&sandbox, &["replay"]);
    assert!(again.contains("replayed"), "{again}");
    assert_eq!(sandbox.broker.ready(&dead_queue), Some(0));
    let moved = drain(&sandbox, &retry_queue);
    // At most one batch was in both queues.
    assert!(moved.len() <= all.len() + 250, "{} of {}", moved.len(), all.len());
    assert_eq!(BTreeSet::from_iter(moved), all);
}

#[test]
fn dead_letters_survive_more_reads_than_the_delivery_limit_of_their_queue() {
    let sandbox = Sandbox::new();
    let arguments = [
        ("x-queue-type".to_owned(), AmqpValue::LongString("quorum".to_owned())),
        ("x-delivery-limit".to_owned(), AmqpValue::LongInt(20)),
    ];
    // The operator's own queue, with the delivery limit that is RabbitMQ 4's default.
    sandbox.broker.declare(&sandbox.dead_queue(), arguments.into()).expect("a fresh name");
    sandbox.notifier().start().terminate();
    let letters: Vec<_> =
        (0..5).map(|_| dead_letter(&sandbox, Uuid::nil(), "exhausted", 0)).collect();
    sandbox.broker.publish(&sandbox.dead_queue(), &letters);

    for _ in 0..30 {
        assert_eq!(dead_letters_json(&sandbox, &["list"])[0]["count"], 5);
    }
    let mut left = drain(&sandbox, &sandbox.dead_queue());
    left.sort_unstable();
    let mut expected: Vec<_> = letters.into_iter().map(|letter| letter.id).collect();
    expected.sort_unstable();
    assert_eq!(left, expected);
}

#[test]
fn a_queue_without_dead_letters_is_named_with_the_remedy() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let finished = sandbox.command(&["dead-letters", "list"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains(sandbox.queue()), "{finished:?}");
    assert!(finished.stderr.contains("QUEUES"), "{finished:?}");
}

#[test]
fn ten_thousand_dead_letters_are_replayed_each_once() {
    const COUNT: usize = 10_000;
    let sandbox = Sandbox::new();
    let letters = many(&sandbox, COUNT);

    // What is behind all the others is found, too.
    let last = &letters[COUNT - 1].id;
    let shown = dead_letters_json(&sandbox, &["show", "--event", last]);
    assert_eq!(shown[0]["message_id"], *last, "{shown}");

    let replay = sandbox.launch(&["dead-letters", "replay"]).spawn().finish(LATER);
    assert!(replay.stdout.ends_with("10000 replayed"), "{replay:?}");
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    wait_until(Duration::from_secs(5), "all are counted", || {
        sandbox.broker.ready(&sandbox.retry_queue()) == Some(10_000)
    });
}
