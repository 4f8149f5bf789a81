//! Abbreviated ids: each command accepts an unambiguous beginning of an id, and names the candidates of
//! an ambiguous one.

use uuid::Uuid;

use crate::commands::{json, succeed};
use crate::harness::{Event, Notifier, Receiver, SOON, Sandbox, wait_until};

const ONE: &str = "6f1c4f0e-8d57-4d5e-9a8b-0f6f7c1f2a33";
const OTHER: &str = "6f1c9a00-0000-4000-8000-000000000001";

/// Two webhooks whose ids begin alike.
fn webhooks(sandbox: &Sandbox, url: &str) {
    for (id, pattern) in [(ONE, "one"), (OTHER, "other")] {
        let id = Uuid::parse_str(id).expect("an id");
        sandbox.database.execute(
            "INSERT INTO webhooks (id, post_url, events) VALUES ($1, $2, $3)",
            &[&id, &url, &vec![pattern]],
        );
    }
}

#[track_caller]
fn refused(sandbox: &Sandbox, arguments: &[&str], code: i32) -> String {
    let finished = sandbox.command(arguments);
    assert_eq!(finished.code, Some(code), "{arguments:?}: {finished:?}");
    finished.stderr
}

#[test]
fn a_webhook_is_named_by_the_beginning_of_its_id() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    webhooks(&sandbox, &receiver.url("/"));
    let commands: [&[&str]; 8] = [
        &["show"],
        &["set", "--timeout", "3s"],
        &["pause"],
        &["resume"],
        &["disable"],
        &["enable"],
        &["rotate-secret"],
        &["remove", "--dry-run"],
    ];
    for command in commands {
        let with = |id| [&["webhooks", command[0], id], &command[1..]].concat();
        let text = succeed(&sandbox, &[&with("6f1c4")[..], &["--json"]].concat());
        assert_eq!(json(&text)["id"], ONE, "{command:?}");
        let several = refused(&sandbox, &with("6f1c"), 1);
        assert!(several.contains(ONE) && several.contains(OTHER), "{several}");
        assert!(several.contains("Give more characters"), "{several}");
        let none = refused(&sandbox, &with("6f1d"), 1);
        assert!(none.contains("no webhook has an id that begins with 6f1d"), "{none}");
        for wrong in ["6f1", "6f1cx", "6f1-c4f0e"] {
            let wrong = refused(&sandbox, &with(wrong), 2);
            assert!(wrong.contains("the beginning of one, of at least 4 characters"), "{wrong}");
        }
    }
    let trial = ["webhooks", "test", "6F1C4F0E-8", "--json", "--allow-networks", "127.0.0.1"];
    assert_eq!(json(&succeed(&sandbox, &trial))["ok"], true);
    for command in [&["dead-letters", "list"][..], &["why"], &["tail"]] {
        let several = refused(&sandbox, &[command, &["--webhook", "6f1c"]].concat(), 1);
        assert!(several.contains(ONE) && several.contains(OTHER), "{several}");
    }
}

/// Dead letters of one webhook, of events with these ids.
fn with_dead(sandbox: &Sandbox, ids: &[&str]) -> Notifier {
    webhooks(sandbox, "http://10.1.2.3/");
    let notifier = sandbox.notifier().start();
    for id in ids {
        sandbox.publish(&Event::new("one").id(id));
    }
    notifier.wait_metric("webhook_dead_letters_total", &[], ids.len() as f64);
    notifier
}

#[test]
fn an_event_is_named_by_the_beginning_of_its_id() {
    let sandbox = Sandbox::new();
    let uuid = "0b7c3f6a-29d4-4c31-8f5e-6a1d2b3c4d5e";
    let ids = ["ord-20261125-3", "ord-20261125-31", "ord-2026_x", "pay-1", uuid, "größe 1"];
    let notifier = with_dead(&sandbox, &ids);
    let dead = |which: &str| {
        let listed = ["dead-letters", "list", "--each", "--json", "--event", which];
        let letters = json(&succeed(&sandbox, &listed));
        let letters = letters.as_array().expect("a list").clone();
        letters
            .iter()
            .map(|it| it["event_id"].as_str().expect("an id").to_owned())
            .collect::<Vec<_>>()
    };
    let why = |which: &str| {
        let finished = sandbox.command(&["why", which, "--json"]);
        (finished.code, json(&finished.stdout)["event_id"].as_str().unwrap_or_default().to_owned())
    };
    wait_until(SOON, "all are logged", || why("pay-1").0 == Some(0) && why(uuid).0 == Some(0));
    let pairs = [
        ("ord-20261125-3", "ord-20261125-3"),
        ("ord-2026_", "ord-2026_x"),
        ("0b7c3f6a", uuid),
        ("gr%C3%B6%C3%9Fe%20", "größe 1"),
    ];
    let ambiguous = |command: &[&str]| {
        let several = refused(&sandbox, &[command, &["ord-2026"]].concat(), 1);
        for id in &ids[..3] {
            assert!(several.contains(id), "no {id} in {several}");
        }
        assert!(several.contains("Give more characters"), "{several}");
    };
    for (given, whole) in pairs {
        assert_eq!(why(given), (Some(0), whole.to_owned()), "{given}");
    }
    ambiguous(&["why"]);
    // None of this needs the log.
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 6.0);
    sandbox.database.execute("DELETE FROM delivery_attempts", &[]);
    for (given, whole) in &pairs[..2] {
        assert_eq!(why(given), (Some(0), (*whole).to_owned()), "{given} without the log");
    }
    for (given, whole) in pairs {
        assert_eq!(dead(given), [whole], "{given}");
    }
    for command in [&["why"][..], &["dead-letters", "show", "--event"]] {
        ambiguous(command);
    }
    // A beginning that is too short isn't accepted, and a percent sign stands for itself.
    assert_eq!(dead("pay"), Vec::<String>::new());
    let unknown = sandbox.command(&["why", "pay", "--delivery-log", "all"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    let unknown = sandbox.command(&["why", "ord-%", "--delivery-log", "all"]);
    assert_eq!(unknown.code, Some(1), "{unknown:?}");

    // Moving dead letters requires the whole id if the given one may be another event's whole id.
    for act in [&["purge"][..], &["replay"], &["replay", "--dry-run"]] {
        let with = [&["dead-letters"], act, &["--event", "ord-2026_"]].concat();
        let cut = refused(&sandbox, &with, 1);
        assert!(cut.contains("ord-2026_x") && cut.contains("give the complete id"), "{cut}");
    }
    let purged = succeed(&sandbox, &["dead-letters", "purge", "--event", "ord-20261125-3"]);
    assert!(purged.contains("1 purged"), "{purged}");
    let purged = succeed(&sandbox, &["dead-letters", "purge", "--event", "0b7c3f"]);
    assert!(purged.contains("1 purged"), "{purged}");
    assert_eq!(dead("ord-20261125-31"), ["ord-20261125-31"]);
}

#[test]
fn ids_shown_by_tail_can_be_given_to_other_commands() {
    let sandbox = Sandbox::new();
    let _notifier = with_dead(&sandbox, &["größe 1"]);
    let tail = sandbox.launch(&["tail"]).spawn();
    let line = tail.wait_stdout(SOON, "dead: rejected");
    let shown: Vec<&str> = line.split_whitespace().collect();
    let (webhook, event) = (shown[4], shown[5]);
    assert_eq!((webhook, event), (&ONE[..8], "gr%C3%B6%C3%9Fe%201"), "{line}");
    for command in [
        &["why", event][..],
        &["why", event, "--webhook", webhook],
        &["why", "--webhook", webhook],
        &["webhooks", "show", webhook],
        &["dead-letters", "show", "--event", event, "--webhook", webhook],
    ] {
        let text = succeed(&sandbox, command);
        assert!(text.contains(ONE), "{command:?}: {text}");
    }

    // If eight characters are ambiguous, whole ids are shown.
    let like_one = Uuid::parse_str(&ONE.replace("33", "44")).expect("an id");
    sandbox.database.execute(
        "INSERT INTO webhooks (id, post_url, events) VALUES ($1, 'http://10.1.2.3/', '{}')",
        &[&like_one],
    );
    let tail = sandbox.launch(&["tail"]).spawn();
    assert!(tail.wait_stdout(SOON, "dead: rejected").contains(ONE));
}

#[test]
fn a_deleted_webhook_is_found_in_the_log() {
    let sandbox = Sandbox::new();
    let notifier = with_dead(&sandbox, &["pay-1"]);
    notifier.wait_metric("webhook_delivery_log_rows_total", &[("result", "written")], 1.0);
    sandbox.database.execute("DELETE FROM webhooks", &[]);
    for command in [&["why"][..], &["dead-letters", "show"]] {
        let text = succeed(&sandbox, &[command, &["--webhook", "6f1c4"]].concat());
        assert!(text.contains(ONE), "{command:?}: {text}");
    }
    refused(&sandbox, &["webhooks", "show", "6f1c4"], 1);
}
