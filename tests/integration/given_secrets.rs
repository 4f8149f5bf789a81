//! A secret that a receiver already has: registered from a file or standard input, and shown nowhere.

use serde_json::Value;

use crate::commands::{json, succeed};
use crate::harness::{
    Event, Receiver, SOON, Sandbox, TextFile, notifier::Launch, process::Finished,
    receiver::Request, wait_for, wait_until,
};
use crate::signatures::verify;

const FIRST: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const SECOND: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// The only webhook's secret, its previous one, and whether that expires.
fn stored(sandbox: &Sandbox) -> (Option<String>, Option<String>, bool) {
    let columns = "secret, previous_secret, previous_secret_expires_at IS NOT NULL";
    let row = sandbox.database.query(&format!("SELECT {columns} FROM webhooks"), &[]).remove(0);
    (row.get(0), row.get(1), row.get(2))
}

fn owned(secret: &str) -> Option<String> {
    Some(secret.to_owned())
}

/// Runs a command with this input. Its output must not contain the input.
fn reading(sandbox: &Sandbox, arguments: &[&str], input: &str) -> Finished {
    let launch = Launch::new(arguments).env("DATABASE_URL", sandbox.database.url());
    let finished = launch.reading(input);
    assert_hides(&finished, &[input.trim()]);
    finished
}

#[track_caller]
fn assert_hides(finished: &Finished, secrets: &[&str]) {
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        let text = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!text.contains(secret), "{finished:?}");
    }
}

#[test]
fn a_webhook_is_added_with_the_secret_that_its_receiver_has() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let url = receiver.url("/");
    let given = TextFile::new(&format!("  {FIRST}\n"));
    let finished =
        sandbox.command(&["webhooks", "add", &url, "order.*", "--secret-from", given.path()]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_hides(&finished, &["whsec_", "secret"]);
    let mut words = finished.stdout.split_whitespace();
    assert_eq!((words.next(), words.clone().count()), (Some("id"), 1), "{finished:?}");
    let id = words.next().expect("an id").to_owned();
    assert_eq!(stored(&sandbox), (owned(FIRST), None, false));
    let _notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    verify(FIRST, &receiver.wait_at("/", 1)[0]).expect("signed with it");
    succeed(&sandbox, &["webhooks", "remove", &id]);

    let add = ["webhooks", "add", &url, "*", "--json", "--secret-from", "-", "--timeout", "5s"];
    let finished = reading(&sandbox, &add, SECOND);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let added = json(&finished.stdout);
    assert_eq!((&added["secret"], &added["signed"]), (&Value::Null, &Value::Bool(true)));
    assert_eq!(added["timeout_ms"], 5_000);
    assert_eq!(stored(&sandbox), (owned(SECOND), None, false));
}

#[test]
fn set_gives_a_webhook_another_secret_without_a_gap() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let id = sandbox.webhook(&receiver.url("/"), &["*"]).to_string();
    let _notifier = sandbox.notifier().start();
    let (first, second) = (TextFile::new(FIRST), TextFile::new(SECOND));
    let set = |arguments: &[&str]| {
        let finished = sandbox.command(&[&["webhooks", "set", &id], arguments].concat());
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        assert_hides(&finished, &[FIRST, SECOND]);
        finished.stdout
    };
    let check = |valid: &[&str]| {
        // A change takes effect within a tenth of a second, not immediately.
        wait_until(SOON, "requests are signed by these", || {
            let event = Event::new("order.paid");
            sandbox.publish(&event);
            let request: Request = wait_for(SOON, "it arrives", || receiver.of("/", &event).pop());
            let signatures = request.header("webhook-signature").split_whitespace().count();
            let by = |secret: &&str| verify(secret, &request).is_ok();
            signatures == valid.len() && valid.iter().all(by)
        });
    };

    // It had no secret.
    let shown = set(&["--secret-from", first.path(), "--rate", "1000", "--description", "mine"]);
    assert!(shown.contains("mine"), "{shown}");
    assert_eq!(stored(&sandbox), (owned(FIRST), None, false));
    check(&[FIRST]);
    for _ in 0..2 {
        // The second time, it changes nothing.
        set(&["--secret-from", second.path(), "--keep", "1h"]);
        assert_eq!(stored(&sandbox), (owned(SECOND), owned(FIRST), true));
    }
    check(&[FIRST, SECOND]);
    set(&["--secret-from", second.path(), "--keep", "0s"]);
    assert_eq!(stored(&sandbox), (owned(SECOND), None, false));
    check(&[SECOND]);
    set(&["--secret-from", first.path()]);
    let day =
        "SELECT previous_secret_expires_at - now() BETWEEN interval '23 h' AND interval '24 h'
               FROM webhooks";
    assert!(sandbox.database.query(day, &[])[0].get::<_, bool>(0), "a day by default");
}

#[test]
fn an_invalid_secret_is_refused_without_being_shown() {
    let sandbox = Sandbox::new();
    let add = ["webhooks", "add", "http://127.0.0.1:9/", "*", "--secret-from"];
    for bad in [
        "",
        "\n",
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "whsec_c2hvcnQ=",
        "whsec_not base64 at all, but long enough",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ] {
        let given = TextFile::new(bad);
        let from_file = sandbox.command(&[&add[..], &[given.path()]].concat());
        let from_stdin = reading(&sandbox, &[&add[..], &["-"]].concat(), bad);
        for finished in [from_file, from_stdin] {
            assert_eq!(finished.code, Some(2), "{bad:?}: {finished:?}");
            assert!(finished.stderr.contains("--secret-from"), "{finished:?}");
            assert!(finished.stderr.contains("base64 of 24 to 64 bytes"), "{finished:?}");
            assert_hides(&finished, &[bad.trim()]);
        }
    }
    let finished = sandbox.command(&[&add[..], &[FIRST]].concat());
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("takes the name of a file"), "{finished:?}");
    assert_hides(&finished, &[FIRST]);
    let bare = FIRST.trim_start_matches("whsec_");
    let finished = sandbox.command(&[&add[..], &[bare]].concat());
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("looks like a secret"), "{finished:?}");
    assert_hides(&finished, &[bare]);
    let finished = sandbox.command(&[&add[..], &["/nowhere/secret"]].concat());
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains("cannot read \"/nowhere/secret\""), "{finished:?}");
    let both = reading(&sandbox, &[&add[..], &["-", "--headers-from", "-"]].concat(), FIRST);
    assert_eq!(both.code, Some(2), "{both:?}");
    assert!(both.stderr.contains("both"), "{both:?}");
    let rows = sandbox.database.query("SELECT id FROM webhooks", &[]);
    assert!(rows.is_empty(), "nothing was added");

    let id = sandbox.webhook("http://127.0.0.1:9/", &["*"]).to_string();
    let keep = sandbox.command(&["webhooks", "set", &id, "--rate", "1", "--keep", "1h"]);
    assert_eq!(keep.code, Some(2), "{keep:?}");
    assert!(keep.stderr.contains("--secret-from"), "{keep:?}");
}
