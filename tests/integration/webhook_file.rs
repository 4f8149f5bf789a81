//! Webhooks as a file: what `webhooks apply` does with it.

mod concurrent;
mod export;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json as literal};
use tempfile::TempDir;
use uuid::Uuid;

use crate::backlog_commands::Waiting;
use crate::commands::{json, succeed};
use crate::harness::{
    Event, Receiver, SOON, Sandbox, notifier::binary, process::Finished, wait_for,
};
use crate::signatures::verify;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OTHER_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Stands for a secret other than a webhook's.
const MARK: &str = "s3cret-T0ken";

/// A folder with a test's file.
struct Declared {
    folder: TempDir,
}

impl Declared {
    fn new(text: &str) -> Self {
        let declared = Self { folder: tempfile::tempdir().expect("a folder") };
        declared.write("webhooks.toml", text);
        declared
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("it can be written");
    }

    /// Runs `webhooks apply` with it.
    #[track_caller]
    fn command(&self, sandbox: &Sandbox, options: &[&str]) -> Finished {
        let file = self.path("webhooks.toml");
        let file = file.to_str().expect("a plain name");
        sandbox.command(&[&["webhooks", "apply", file], options].concat())
    }

    #[track_caller]
    fn apply(&self, sandbox: &Sandbox, options: &[&str]) -> String {
        let finished = self.command(sandbox, options);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        finished.stdout
    }

    /// The file has problems, and nothing is changed. Returns standard error.
    #[track_caller]
    fn refused(&self, sandbox: &Sandbox, options: &[&str]) -> String {
        let before = rows(sandbox);
        let finished = self.command(sandbox, options);
        assert_eq!(finished.code, Some(2), "{finished:?}");
        assert_eq!(rows(sandbox), before);
        assert!(finished.stderr.ends_with("webhook-notifier: nothing was changed"), "{finished:?}");
        finished.stderr
    }
}

/// All rows, with the transaction that wrote each: it shows whether a row was touched.
fn rows(sandbox: &Sandbox) -> Vec<String> {
    let all = "SELECT xmin::text || ' ' || webhooks::text FROM webhooks ORDER BY created_at, id";
    sandbox.database.query(all, &[]).iter().map(|row| row.get(0)).collect()
}

/// One row, as JSON.
#[track_caller]
fn row(sandbox: &Sandbox, url: &str) -> Value {
    let one = "SELECT row_to_json(webhooks)::text FROM webhooks WHERE post_url = $1";
    let rows = sandbox.database.query(one, &[&url]);
    assert_eq!(rows.len(), 1, "{url}");
    json(rows[0].get(0))
}

#[test]
fn a_file_adds_changes_and_removes_webhooks_and_the_second_time_nothing() {
    let sandbox = Sandbox::new();
    let file = Declared::new(&format!(
        "# of the team\n\
         [[webhooks]]\n\
         post_url = \"https://example.org/all?token={MARK}\"\n\
         events = [\"user.*\", \"order.paid\"]\n\
         account = \"acme\"\n\
         description = \"für alle\"\n\
         timeout_ms = 5000\n\
         max_in_flight = 4\n\
         rate_per_second = 0.5\n\
         no_retry_status = \"400,422\"\n\
         headers = {{ Authorization = \"Bearer {MARK}\", x-team = \"a\" }}\n\
         secret = \"{SECRET}\"\n\
         paused = true\n\
         \n\
         [[webhooks]]\n\
         post_url = \"https://example.org/off\"\n\
         events = [\"*\"]\n\
         disabled = true\n\
         disabled_reason = \"moved\"\n"
    ));
    let planned = file.apply(&sandbox, &["--dry-run"]);
    assert!(planned.ends_with("2 to add, 0 unchanged; nothing was changed"), "{planned}");
    assert!(rows(&sandbox).is_empty());

    let output = file.apply(&sandbox, &[]);
    assert!(output.contains("\n2 added, 0 unchanged\n"), "{output}");
    assert!(output.contains("1 new webhook was given a secret, which is not shown"), "{output}");
    assert!(!output.contains(MARK) && !output.contains("whsec_"), "{output}");
    for part in ["+ ", "https://example.org/all?***", "authorization: ***", "user.* order.paid"] {
        assert!(output.contains(part), "no {part} in {output}");
    }
    let all = row(&sandbox, &format!("https://example.org/all?token={MARK}"));
    let expected = literal!({
        "events": ["user.*", "order.paid"], "account": "acme", "description": "für alle",
        "timeout_ms": 5000, "max_in_flight": 4, "rate_per_second": 0.5, "no_retry_status": "400,422",
        "headers": {"authorization": format!("Bearer {MARK}"), "x-team": "a"}, "secret": SECRET,
        "disabled_at": null, "previous_secret": null,
    });
    for (key, value) in expected.as_object().expect("an object") {
        assert_eq!(&all[key], value, "{key}");
    }
    assert!(all["paused_at"].is_string() && all["created_at"].is_string());
    let off = row(&sandbox, "https://example.org/off");
    assert_eq!(off["disabled_reason"], "moved");
    assert!(
        off["disabled_at"].is_string()
            && off["secret"].as_str().is_some_and(|it| it.starts_with("whsec_"))
    );
    // In the order of the file.
    let listed = json(&succeed(&sandbox, &["webhooks", "list", "--json"]));
    assert_eq!(listed[1]["post_url"], "https://example.org/off");

    let before = rows(&sandbox);
    let output = file.apply(&sandbox, &["--prune"]);
    assert_eq!(output, "nothing to change: 2 webhooks are as the file says");
    assert_eq!(rows(&sandbox), before);

    // A setting that is missing is unset, and the others are unchanged.
    file.write(
        "webhooks.toml",
        "[[webhooks]]\n\
         post_url = \"https://example.org/off\"\n\
         events = [\"order.paid\"]\n\
         timeout_ms = 1000\n\
         disabled = false\n",
    );
    let output = file.apply(&sandbox, &[]);
    for part in
        ["~ ", "events           * -> order.paid", "timeout_ms       none -> 1000", "1 changed"]
    {
        assert!(output.contains(part), "no {part:?} in {output}");
    }
    assert!(output.contains("disabled         yes: moved -> none"), "{output}");
    assert!(
        output
            .contains("1 webhook of the table is not in the file, and stays (--prune removes it)"),
        "{output}"
    );
    let now = row(&sandbox, "https://example.org/off");
    assert_eq!((&now["id"], &now["secret"]), (&off["id"], &off["secret"]));
    assert_eq!((&now["disabled_at"], &now["disabled_reason"]), (&Value::Null, &Value::Null));
    assert_eq!(rows(&sandbox)[0], before[0]);
    let output = file.apply(&sandbox, &["--prune"]);
    assert!(output.starts_with("- ") && output.contains("1 removed, 1 unchanged"), "{output}");
    assert!(!output.contains(MARK), "{output}");
    assert_eq!(rows(&sandbox).len(), 1);
    let output = json(&file.apply(&sandbox, &["--prune", "--json"]));
    let expected = literal!({
        "dry_run": false, "added": [], "changed": [], "removed": [], "unchanged": 1, "not_in_file": 0,
        "warnings": [],
    });
    assert_eq!(output, expected);
}

#[test]
fn all_errors_of_a_file_are_reported_with_their_lines_and_nothing_is_changed() {
    let sandbox = Sandbox::new();
    let has = sandbox.webhook("https://example.org/", &["*"]);
    let file = Declared::new(&format!(
        "[[webhooks]]\n\
         id = \"{has}\"\n\
         post_url = \"https://example.org/new\"\n\
         events = [\"*\"]\n\
         [[webhooks]]\n\
         url = \"https://{MARK}@example.org/\"\n\
         events = \"*\"\n\
         timeout_ms = true\n\
         [[webhooks]]\n\
         id = \"{has}\"\n\
         post_url = \"ftp://{MARK}@example.org/?{MARK}\"\n\
         events = [\"user*\"]\n\
         headers = {{ host = \"{MARK}\" }}\n\
         rate_per_second = -1\n\
         secret = \"{MARK}\"\n\
         [[webhooks]]\n\
         post_url = \"https://example.org/?***\"\n\
         events = [\"*\"]\n\
         secret_from = \"nowhere\"\n\
         [webhook]\n\
         post_url = \"https://example.org/\"\n"
    ));
    let output = file.refused(&sandbox, &["--prune"]);
    let lines: Vec<_> = output.lines().collect();
    for (line, parts) in [
        (6, &["\"url\": there is no such key: is it `post_url`?"][..]),
        (5, &["post_url: missing"]),
        (7, &["events: it is not a list of strings"]),
        (8, &["timeout_ms: it is neither a string nor a number"]),
        (9, &["the same `id` as on line 1"]),
        (11, &["post_url: unusable URL"]),
        (12, &["\"user*\" matches nothing"]),
        (13, &["headers: a webhook can't set the header \"host\""]),
        (14, &["rate_per_second: ", "from 0.001"]),
        (15, &["secret: the secret is not `whsec_`"]),
        (17, &["post_url: `***` stands for", "export --reveal"]),
        (19, &["secret_from: cannot read", "nowhere"]),
        (20, &["\"webhook\" belongs to no webhook"]),
    ] {
        let start = format!("webhooks.toml:{line}: ");
        let is_told =
            |told: &&&str| told.contains(&start) && parts.iter().all(|part| told.contains(part));
        assert!(lines.iter().any(|told| is_told(&told)), "no {start} {parts:?} in {output}");
    }
    assert_eq!(lines.len(), 14, "{output}");
    assert!(!output.contains(MARK), "{output}");

    for (text, reason) in [
        ("[[webhooks]]\npost_url = \"https://s3cret-T0ken\nevents = [\n", "webhooks.toml:2: "),
        ("{\"webhooks\": [\n  {\"secret\": \"s3cret-T0ken\",}]}", "webhooks.toml:2: "),
        ("", "no `webhooks` in it"),
        ("[\"x\"]", "webhooks.toml:1: "),
    ] {
        file.write("webhooks.toml", text);
        let output = file.refused(&sandbox, &[]);
        assert!(output.contains(reason) && !output.contains(MARK), "{output}");
    }
    // An empty list is most likely a mistake, and not meant to remove all webhooks.
    file.write("webhooks.toml", "webhooks = []\n");
    let output = file.refused(&sandbox, &["--prune"]);
    assert!(output.contains("--prune would remove all 1"), "{output}");
    assert!(file.apply(&sandbox, &[]).contains("1 webhook of the table is not in the file"));
    for (name, reason) in [("/nowhere/x.toml", "cannot read"), ("/", "cannot read")] {
        let finished = sandbox.command(&["webhooks", "apply", name]);
        assert!(finished.code != Some(0) && finished.stderr.contains(reason), "{finished:?}");
    }
}

#[test]
fn a_secret_comes_from_the_file_or_stays_and_its_change_leaves_no_gap() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let url = receiver.url("/");
    let entry =
        |secret: &str| format!("[[webhooks]]\npost_url = \"{url}\"\nevents = [\"*\"]\n{secret}\n");
    let file = Declared::new(&entry("secret_from = \"secret.txt\""));
    file.write("secret.txt", &format!("{SECRET}\n"));
    let output = file.apply(&sandbox, &[]);
    assert!(!output.contains("was given a secret"), "{output}");
    assert_eq!(row(&sandbox, &url)["secret"], SECRET);
    let before = rows(&sandbox);
    for secret in ["", "secret = \"***\"", &format!("secret = \"{SECRET}\"")] {
        file.write("webhooks.toml", &entry(secret));
        assert!(file.apply(&sandbox, &[]).starts_with("nothing to change"), "{secret}");
    }
    assert_eq!(rows(&sandbox), before);
    file.write("webhooks.toml", &entry(&format!("secret = \"{OTHER_SECRET}\"")));
    let output = file.apply(&sandbox, &[]);
    assert!(output.contains("secret           *** -> *** (another)"), "{output}");
    assert!(!output.contains("whsec_"), "{output}");
    let _notifier = sandbox.notifier().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let request = wait_for(SOON, "it arrives", || receiver.of("/", &event).pop());
    verify(OTHER_SECRET, &request).expect("the new one");
    verify(SECRET, &request).expect("and the old one, for a day");
    assert!(file.apply(&sandbox, &[]).starts_with("nothing to change"));
}

#[test]
fn applying_a_file_says_how_many_waiting_deliveries_are_dropped() {
    let sandbox = Sandbox::new();
    let gone = sandbox.webhook("http://127.0.0.1:9/gone", &["*"]);
    let off = sandbox.webhook("http://127.0.0.1:9/off", &["*"]);
    sandbox.webhook("http://127.0.0.1:9/idle", &["*"]);
    let _of_gone = Waiting::new(&sandbox, gone, 3);
    let _of_off = Waiting::new(&sandbox, off, 2);
    let file = Declared::new(&format!(
        "[[webhooks]]\nid = \"{off}\"\npost_url = \"http://127.0.0.1:9/off\"\nevents = [\"*\"]\ndisabled = true\n"
    ));
    let output = file.apply(&sandbox, &["--prune", "--dry-run"]);
    for part in [
        "2 deliveries wait in its backlogs, and would be dropped",
        "3 deliveries wait in its backlogs, and would be dropped",
        "all together: 5 deliveries wait in their backlogs, and would be dropped",
        "1 to change, 2 to remove, 0 unchanged; nothing was changed",
    ] {
        assert!(output.contains(part), "no {part} in {output}");
    }
    let output = json(&file.apply(&sandbox, &["--prune", "--json"]));
    assert_eq!(output["changed"][0]["backlogs"][0]["waiting"], 2, "{output}");
    let removed = output["removed"].as_array().expect("a list");
    let of =
        |id: Uuid| removed.iter().find(|it| it["id"] == id.to_string()).expect("it is reported");
    assert_eq!(of(gone)["backlogs"][0]["waiting"], 3, "{output}");
    assert_eq!(rows(&sandbox).len(), 1);
}

#[test]
fn webhooks_are_changed_even_if_nobody_reads_the_output() {
    let sandbox = Sandbox::new();
    let entry =
        |n| format!("[[webhooks]]\npost_url = \"http://a.example/{n}\"\nevents = [\"*\"]\n");
    let file = Declared::new(&(0..3_000).map(entry).collect::<String>());
    let mut child = Command::new(binary())
        .args(["webhooks", "apply"])
        .arg(file.path("webhooks.toml"))
        .env_clear()
        .env("DATABASE_URL", sandbox.database.url())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary can be started");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    assert_eq!(rows(&sandbox).len(), 3_000);
}

#[test]
fn ten_thousand_webhooks_are_applied_and_then_there_is_nothing_to_change() {
    let sandbox = Sandbox::new();
    let entry = |n: usize| {
        format!(
            "[[webhooks]]\npost_url = \"https://customer-{n}.example.com/in\"\nevents = [\"user.*\", \"order.{n}\"]\n\
             account = \"customer-{n}\"\nrate_per_second = {}\nheaders = {{ x-customer = \"{n}\" }}\n\n",
            n % 50 + 1
        )
    };
    let count = 10_000;
    let file = Declared::new(&(0..count).map(entry).collect::<String>());
    let timed = |options: &[&str]| {
        let began = Instant::now();
        let output = file.apply(&sandbox, options);
        (began.elapsed(), output)
    };
    // Hosts are looked up for three seconds at most, even if none of them resolves.
    let (first, output) = timed(&[]);
    assert!(output.contains("10,000 added, 0 unchanged"), "{}", &output[output.len() - 300..]);
    assert!(first < Duration::from_secs(60), "{first:?}");
    let before = rows(&sandbox);
    let (again, output) = timed(&["--prune"]);
    assert_eq!(output, "nothing to change: 10,000 webhooks are as the file says");
    assert!(again < Duration::from_secs(60), "{again:?}");
    assert_eq!(rows(&sandbox), before);
    let text = fs::read_to_string(file.path("webhooks.toml")).expect("text");
    file.write("webhooks.toml", &text.replace("\"user.*\"", "\"user.created\""));
    let (_, output) = timed(&["--json"]);
    assert_eq!(json(&output)["changed"].as_array().map(Vec::len), Some(count));
}
