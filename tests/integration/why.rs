//! `why`: what an operator learns about one event, for each possible outcome.

use serde_json::Value;
use uuid::Uuid;

use crate::harness::{
    Event, Notifier, Receiver, Reply, SOON, Sandbox, process::Finished, unwrapped, wait_for,
};

/// A notifier that delivers, waits, dead-letters and drops; its log has everything.
fn notifier(sandbox: &Sandbox) -> Notifier {
    let notifier = sandbox.notifier().env("DELIVERY_LOG", "all");
    notifier.env("RETRY_SCHEDULE", "200ms,1h").env("CIRCUIT_BREAKER", "off").start()
}

/// Always fails at `/never`, and once elsewhere.
fn receiver() -> Receiver {
    Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/never", _) | (_, 1) => Reply::Status(500),
        _ => Reply::Status(200),
    })
}

fn publish(sandbox: &Sandbox, kind: &str) -> String {
    let event = Event::new(kind);
    sandbox.publish(&event);
    event.id
}

/// Runs `why` with these arguments, and returns its output for people.
#[track_caller]
fn why(sandbox: &Sandbox, code: i32, arguments: &[&str]) -> String {
    let finished = sandbox.command(&[&["why"], arguments].concat());
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    let too_long = finished.stdout.lines().find(|line| line.chars().count() > 100);
    assert_eq!(too_long, None, "for a terminal");
    finished.stdout
}

fn read(finished: &Finished) -> Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished:?}"))
}

fn ask(sandbox: &Sandbox, event: &str) -> Value {
    read(&sandbox.command(&["why", event, "--json"]))
}

/// Waits until the first webhook's delivery is in that state. Returns the answer.
#[track_caller]
fn wait_state(sandbox: &Sandbox, event: &str, state: &str, attempts: u64) -> Value {
    wait_for(SOON, &format!("{event} is {state}"), || {
        let answer = ask(sandbox, event);
        let case = &answer["webhooks"][0];
        let last = case["entries"].as_array().and_then(|entries| entries.last());
        let attempt = last.and_then(|entry| entry["attempt"].as_u64());
        (case["state"] == state && attempt == Some(attempts)).then_some(answer)
    })
}

#[track_caller]
fn expect_parts(text: &str, parts: &[&str]) {
    let words = unwrapped(text);
    for part in parts {
        assert!(words.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn a_delivered_event_has_its_history_and_needs_nothing() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let once = sandbox.webhook(&receiver.url("/once?token=s3cret"), &["order.*"]).to_string();
    let _notifier = notifier(&sandbox);
    let event = publish(&sandbox, "order.paid");
    let answer = wait_state(&sandbox, &event, "delivered", 2);

    assert_eq!(answer["event_type"], "order.paid");
    assert_eq!(answer["queues"], serde_json::json!([sandbox.queue()]));
    let case = &answer["webhooks"][0];
    assert_eq!(case["webhook_id"], once.as_str());
    assert_eq!(case["patterns"], serde_json::json!(["order.*"]));
    assert_eq!(case["entries"].as_array().map(Vec::len), Some(2), "{answer}");
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(
        &text,
        &[&event, &once, "wants it by `order.*`", "status 500", "by attempt 2", "to do nothing"],
    );
    for text in [text, answer.to_string()] {
        assert!(text.contains("/once") && !text.contains("s3cret"), "{text}");
        // What is over has no next attempt.
        assert!(!text.contains("1970"), "{text}");
    }
    // All of that is from PostgreSQL alone.
    let refusing = Receiver::new().refusing_url().replace("http:", "amqp:");
    let alone = sandbox.launch(&["why", &event]).env("AMQP_URL", refusing);
    let alone = alone.spawn().finish(SOON);
    assert_eq!((alone.code, alone.stderr.as_str()), (Some(0), ""), "{alone:?}");
}

/// The time of day of `2026-11-25T02:54:28.123Z`, in milliseconds.
#[track_caller]
fn of_day(at: &Value) -> i64 {
    let at = at.as_str().expect("a time");
    let (_, time) = at.split_once('T').expect("a date before it");
    let parts = time.strip_suffix('Z').expect("UTC").split([':', '.']);
    let parts: Vec<i64> = parts.map(|part| part.parse().expect("a number")).collect();
    let [hours, minutes, seconds, millis] = parts[..] else { panic!("{at}") };
    ((hours * 60 + minutes) * 60 + seconds) * 1_000 + millis
}

#[test]
fn for_a_waiting_event_its_time_is_shown_and_for_an_overdue_one_where_to_look() {
    let sandbox = Sandbox::new();
    let receiver = receiver();
    let never = sandbox.webhook(&receiver.url("/never"), &["order.paid"]);
    let _notifier = notifier(&sandbox);
    let event = publish(&sandbox, "order.paid");
    let answer = wait_state(&sandbox, &event, "waiting", 2);

    let case = &answer["webhooks"][0];
    assert_eq!(case["overdue"], false, "{answer}");
    let (until, at) = (of_day(&case["until"]), of_day(&case["entries"][1]["at"]));
    assert_eq!((until - at).rem_euclid(86_400_000), 3_600_000, "{answer}");
    expect_parts(&why(&sandbox, 0, &[&event]), &["waits for attempt 3 at", "next attempt at"]);

    sandbox.database.execute("UPDATE webhooks SET disabled_at = now()", &[]);
    let enable = format!("`webhooks enable {never}`");
    expect_parts(&why(&sandbox, 0, &[&event]), &["disabled", &enable]);
    sandbox.database.execute(
        "UPDATE delivery_attempts
         SET at = at - interval '2 h', next_attempt_at = next_attempt_at - interval '2 h'",
        &[],
    );
    assert_eq!(ask(&sandbox, &event)["webhooks"][0]["overdue"], true);
    expect_parts(&why(&sandbox, 0, &[&event]), &["overdue", "is a notifier running", "/readyz"]);
}

#[test]
fn for_an_event_in_a_backlog_the_number_before_it_is_shown() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["order.paid"]);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    let notifier = notifier(&sandbox);
    let events: Vec<String> = (1..=3)
        .map(|count| {
            let event = publish(&sandbox, "order.paid");
            let written = [("result", "written")];
            notifier.wait_metric("webhook_delivery_log_rows_total", &written, f64::from(count));
            event
        })
        .collect();
    let number = |event: &String| -> Option<u64> {
        let text = why(&sandbox, 0, &[event]);
        let (_, rest) = text.split_once("about number ")?;
        rest.split(' ').next()?.parse().ok()
    };
    wait_for(SOON, "each is one behind the other", || {
        let numbers: Vec<u64> = events.iter().filter_map(number).collect();
        (numbers.len() == 3 && numbers.is_sorted_by(|a, b| a + 1 == *b)).then_some(())
    });
}

#[test]
fn an_event_in_the_backlog_of_a_webhook_that_is_disabled_or_deleted_is_dropped_with_it() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/"), &["order.paid"]).to_string();
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    let before = notifier(&sandbox);
    let event = publish(&sandbox, "order.paid");
    wait_for(SOON, "it is in the backlog", || {
        (ask(&sandbox, &event)["webhooks"][0]["state"] == "in_backlog").then_some(())
    });
    before.terminate();

    let disable = "UPDATE webhooks SET disabled_at = '2026-11-25 02:54:28.5Z'";
    sandbox.database.execute(disable, &[]);
    let there = ["still in the backlog of its webhook", "disabled at 2026-11-25T02:54:28Z"];
    expect_parts(&why(&sandbox, 0, &[&event]), &there);
    let nobody = Receiver::new().refusing_url().replace("http:", "amqp:");
    let blind = || {
        let finished = sandbox.launch(&["why", &event]).env("AMQP_URL", &nobody).spawn();
        finished.finish(SOON).stdout
    };
    expect_parts(&blind(), &["it entered the backlog of its webhook at", "does not say whether"]);

    let notifier = notifier(&sandbox);
    notifier.wait_metric("webhook_deliveries_dropped_total", &[("reason", "disabled")], 1.0);
    let enable = format!("`webhooks enable {id}`, then publish the event again");
    let dropped = ["dropped: it waited in the backlog", "disabled at 2026-11-25T02:54:28Z"];
    expect_parts(&why(&sandbox, 0, &[&event]), &[&dropped[..], &[&enable]].concat());

    // Once the webhook is enabled again, nothing says for certain that it was dropped.
    sandbox.database.execute("UPDATE webhooks SET disabled_at = NULL", &[]);
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(&text, &["its webhook was disabled", "publish the event again"]);
    assert!(!text.contains("number 1 of 1"), "{text}");

    sandbox.database.execute("DELETE FROM webhooks", &[]);
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(
        &text,
        &["was dropped with that backlog", "deleted", "register the webhook again"],
    );
    assert!(!text.contains("waits for"), "{text}");
    let text = why(&sandbox, 0, &["--webhook", &id]);
    expect_parts(&text, &["1 held back", "dropped with its backlog have no entry of their own"]);
}

#[test]
fn a_delivery_that_waits_as_long_as_its_receiver_asked_for_is_not_taken_for_lost() {
    let sandbox = Sandbox::new();
    // No delay of the schedule. The delivery waits for the shorter delay first, longer than the test takes.
    let receiver =
        Receiver::answering(|_| Reply::WithHeaders(429, vec![("retry-after", "1234".to_owned())]));
    sandbox.webhook(&receiver.url("/"), &["order.paid"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "10m,1h");
    let notifier = notifier.env("DELIVERY_LOG", "all").start();
    let event = publish(&sandbox, "order.paid");
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 1.0);
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(&text, &["waits for attempt 2"]);
    assert!(!text.contains("lost"), "{text}");
    notifier.terminate();
}

#[test]
fn a_dead_event_is_looked_for_in_the_dead_letter_queue() {
    let sandbox = Sandbox::new();
    let good = Receiver::new();
    let forbidden = sandbox.webhook("http://10.1.2.3/", &["order.paid"]);
    let neighbour = sandbox.webhook(&good.url("/"), &["order.*"]).to_string();
    let notifier = notifier(&sandbox);
    let event = publish(&sandbox, "order.paid");
    notifier.wait_metric("webhook_dead_letters_total", &[], 1.0);
    let answer = wait_for(SOON, "both deliveries are logged", || {
        let answer = ask(&sandbox, &event);
        (answer["webhooks"][1]["state"] == "delivered").then_some(answer)
    });

    // Those that need attention are first.
    let case = &answer["webhooks"][0];
    assert_eq!((&case["state"], &case["reason"]), (&"dead".into(), &"rejected".into()), "{answer}");
    assert_eq!(case["dead_letter"]["event_id"], event.as_str(), "{answer}");
    let replay = format!("dead-letters replay --webhook {forbidden}");
    let dead_queue = format!("it lies in {}", sandbox.dead_queue());
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(&text, &[&dead_queue, "ALLOW_NETWORKS", &replay, "delivered at"]);
    let text = why(&sandbox, 0, &[&event, "--webhook", &forbidden.to_string()]);
    assert!(text.contains(&dead_queue) && !text.contains(&neighbour), "{text}");
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(1), "looking takes nothing");

    let refusing = Receiver::new().refusing_url().replace("http:", "amqp:");
    let blind = sandbox.launch(&["why", &event]).env("AMQP_URL", refusing).spawn().finish(SOON);
    assert_eq!(blind.code, Some(0), "{blind:?}");
    expect_parts(&blind.stdout, &["whether it still lies in", "is not known", &replay]);

    // Without the log, it is in the dead letter.
    sandbox.database.execute("DELETE FROM delivery_attempts", &[]);
    expect_parts(&why(&sandbox, 0, &[&event]), &[&dead_queue, &replay]);
    sandbox.database.execute(
        "INSERT INTO delivery_attempts
             (at, event_id, event_type, webhook_id, queue, outcome, attempt, detail, dead)
         VALUES (now(), $1, 'order.paid', $2, $3, 'failed', 1, 'x', 'rejected')",
        &[&event, &forbidden, &sandbox.queue()],
    );
    assert_eq!(sandbox.command(&["dead-letters", "purge", "--all"]).code, Some(0));
    expect_parts(
        &why(&sandbox, 0, &[&event]),
        &["it is no longer in", "replayed, purged, or deleted"],
    );
}

#[test]
fn each_reason_of_death_is_shown_with_what_to_do_before_a_replay() {
    let sandbox = Sandbox::new();
    let id = sandbox.webhook("https://example.org/", &["order.paid"]).to_string();
    // Only the log has it.
    let refusing = Receiver::new().refusing_url().replace("http:", "amqp:");
    for (reason, to_do) in [
        ("exhausted", "once the receiver works again: `webhook-notifier dead-letters replay"),
        ("rejected", "fix what the error says, then"),
        ("orphaned", "start a notifier with"),
        ("delivery_limit", "raise the delivery limit of the broker's policy, then"),
        ("maxlen", "raise the length limit of the broker's policy, then"),
        ("malformed", "publish the event again: a replay would fail for the same reason"),
        ("sulked", "once the receiver works again: `webhook-notifier dead-letters replay"),
    ] {
        sandbox.database.run_script(&format!(
            "INSERT INTO delivery_attempts
                 (at, event_id, event_type, webhook_id, queue, outcome, attempt, detail, dead)
             VALUES (now(), 'e-{reason}', 'order.paid', '{id}', 'q', 'failed', 1, 'x', '{reason}')"
        ));
        let event = format!("e-{reason}");
        let output =
            sandbox.launch(&["why", &event]).env("AMQP_URL", &refusing).spawn().finish(SOON);
        assert_eq!(output.code, Some(0), "{output:?}");
        expect_parts(&output.stdout, &["dead since", reason, to_do]);
    }
}

#[test]
fn for_an_unmatched_event_the_webhooks_that_nearly_want_it_are_named() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["Order.*"]);
    sandbox.webhook(&receiver.url("/"), &["user.*"]);
    let _notifier = notifier(&sandbox);
    let event = publish(&sandbox, "order.paid");
    let answer = wait_for(SOON, "it is logged", || {
        let answer = ask(&sandbox, &event);
        answer["known"].as_bool().filter(|known| *known).map(|_| answer)
    });
    of_day(&answer["unmatched_at"]);
    assert_eq!(answer["near"].as_array().map(Vec::len), Some(1), "{answer}");
    let text = why(&sandbox, 0, &[&event]);
    expect_parts(&text, &["no webhook wanted it", "webhooks add", "nearly: `Order.*`"]);
    let unknown = Uuid::new_v4().to_string();
    expect_parts(&why(&sandbox, 0, &[&event, "--webhook", &unknown]), &["no webhook has this id"]);

    let later = sandbox.webhook(&receiver.url("/"), &["order.paid"]).to_string();
    expect_parts(&why(&sandbox, 0, &[&event]), &[&later, "publish it again"]);
}

#[test]
fn for_an_unknown_event_the_possible_causes_are_named_and_it_fails() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["order.*"]).to_string();
    let _notifier = notifier(&sandbox);
    let arguments = ["no-such-event", "--delivery-log", "all"];
    let text = why(&sandbox, 1, &arguments);
    let meanings = [
        "and it is in no dead-letter queue",
        "DELIVERY_LOG=all",
        "DELIVERY_LOG_KEEP",
        "never received",
        "first request is in flight",
        "its id is another one",
    ];
    expect_parts(&text, &meanings);
    assert!(!text.contains("first attempt"), "that would be in the log: {text}");
    let text = why(&sandbox, 1, &[&arguments[..], &["--type", "order.paid"]].concat());
    expect_parts(&text, &[&webhook, "wants it by `order.*`", "nothing is logged for it"]);
    let answer = read(&sandbox.command(&[&["why", "--json"], &arguments[..]].concat()));
    assert_eq!(
        (&answer["known"], answer["may_be"].as_array().map(Vec::len)),
        (&false.into(), Some(4))
    );
    expect_parts(&why(&sandbox, 1, &["x", "--delivery-log", "off"]), &["DELIVERY_LOG=off"]);
    for wrong in [&["why", "x", "--type", "two\nlines"][..], &["why", ""]] {
        let finished = sandbox.command(wrong);
        assert_eq!(finished.code, Some(2), "{finished:?}");
    }
}

#[test]
fn the_id_of_a_webhook_is_recognised_and_the_command_for_it_is_said() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("https://example.org/", &["order.*"]).to_string();
    let command = format!("`webhook-notifier why --webhook {webhook}`");
    for log in ["failures", "all"] {
        let text = why(&sandbox, 1, &[&webhook, "--delivery-log", log]);
        expect_parts(&text, &["no event has this id, but a webhook has", &command]);
        assert!(!text.contains("nothing went wrong"), "{text}");
    }
    let answer = read(&sandbox.command(&["why", &webhook, "--json"]));
    assert_eq!(answer["webhooks_with_this_id"], serde_json::json!([webhook]), "{answer}");
    assert_eq!(answer["no_failure"], false, "{answer}");
    // A beginning may be that of an event's id.
    expect_parts(
        &why(&sandbox, 0, &[&webhook[..9]]),
        &[
            "nothing went wrong with it, as far as is known",
            "it is the beginning of a webhook's id",
            &command,
        ],
    );
    let stranger = Uuid::new_v4().to_string();
    let text = why(&sandbox, 0, &[&stranger]);
    assert!(!text.contains("--webhook"), "{text}");
}

#[test]
fn if_only_failures_are_logged_a_delivered_event_is_no_failure() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["order.*"]).to_string();
    let _notifier = sandbox.notifier().start();
    let event = publish(&sandbox, "order.paid");
    receiver.wait_at("/", 1);
    let text = why(&sandbox, 0, &[&event]);
    let output = [
        "nothing went wrong with it, as far as is known",
        "DELIVERY_LOG=failures",
        "the log can't tell which",
        "it was delivered, to each webhook at the first attempt",
        "no webhook wanted it",
        "never received",
        "its id is another one",
        "DELIVERY_LOG_KEEP",
    ];
    expect_parts(&text, &output);
    let text = why(&sandbox, 0, &[&event, "--type", "order.paid"]);
    expect_parts(&text, &[&webhook, "wants it by `order.*`", "nothing is logged for it"]);
    let answer = read(&sandbox.command(&["why", &event, "--json"]));
    assert_eq!((&answer["known"], &answer["no_failure"]), (&false.into(), &true.into()));
    assert_eq!(answer["may_be"].as_array().map(Vec::len), Some(6), "{answer}");
    // It isn't known whether it is dead.
    let refusing = receiver.refusing_url().replace("http:", "amqp:");
    let blind = sandbox.launch(&["why", &event]).env("AMQP_URL", refusing).spawn().finish(SOON);
    assert_eq!(blind.code, Some(1), "{blind:?}");
}

#[test]
fn a_malformed_event_with_an_id_is_found_among_the_dead() {
    let sandbox = Sandbox::new();
    let notifier = notifier(&sandbox);
    sandbox.publish(&Event::raw("[]").kind("order.paid").id("by-hand"));
    notifier.wait_metric("webhook_dead_letters_total", &[("reason", "malformed")], 1.0);
    let text = why(&sandbox, 0, &["by-hand"]);
    expect_parts(&text, &["malformed, in", "not a JSON object", "publish it again"]);
}

#[test]
fn without_the_log_it_says_what_to_run() {
    let sandbox = Sandbox::new();
    sandbox.database.execute("DROP TABLE delivery_attempts", &[]);
    for command in [&["why", "x"][..], &["tail"]] {
        let finished = sandbox.command(command);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains("webhook-notifier migrate"), "{finished:?}");
    }
}
