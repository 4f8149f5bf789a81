//! Behind PgBouncer: if it lends sessions for a transaction, no change is notified, and the notifier
//! notices that.

use crate::commands::json;
use crate::harness::{
    Event, Notifier, Pooler, Receiver, SOON, Sandbox, holds_for, process::Finished, wait_until,
};
use std::time::Duration;

/// PgBouncer then accepts `options`, which it ignores.
const IGNORES_OPTIONS: &str = "ignore_startup_parameters = options";

struct Behind<'a> {
    sandbox: &'a Sandbox,
    pooler: Pooler,
}

impl<'a> Behind<'a> {
    fn new(sandbox: &'a Sandbox, pool_mode: &str, settings: &str) -> Self {
        Self { sandbox, pooler: Pooler::before(sandbox, pool_mode, settings) }
    }

    #[track_caller]
    fn command(&self, arguments: &[&str]) -> Finished {
        let launch = self.sandbox.launch(arguments).env("DATABASE_URL", self.pooler.url());
        let finished = launch.spawn().finish(SOON);
        assert_eq!(finished.code, Some(0), "{arguments:?}: {finished:?}");
        finished
    }

    fn start(&self) -> Notifier {
        let launch = self.sandbox.notifier().env("DATABASE_URL", self.pooler.url());
        launch.env("DELIVERY_LOG", "all").start()
    }
}

/// A change takes effect with the next event, and all commands work.
fn check_changes(settings: &str) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let behind = Behind::new(&sandbox, "transaction", settings);
    assert!(behind.command(&["migrate"]).stdout.contains("nothing to do"));
    let webhook = sandbox.webhook(&receiver.url("/0"), &["*"]);
    let checked = behind.command(&["check"]).stdout;
    assert!(!checked.contains("takes effect at once"), "{checked}");
    for part in ["every event asks PostgreSQL", "pool_mode = transaction"] {
        assert!(checked.contains(part), "no {part:?} in {checked}");
    }

    let mut notifier = behind.start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/0", 1);
    let line = notifier.wait_stderr(SOON, "directory bypassed");
    assert!(line.contains("pool_mode = transaction"), "{line}");
    for round in 1..=10 {
        let path = format!("/{round}");
        let url = receiver.url(&path);
        sandbox
            .database
            .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
        let event = Event::new("order.paid");
        sandbox.publish(&event);
        wait_until(SOON, "the new URL receives it", || !receiver.of(&path, &event).is_empty());
    }
    assert_eq!(notifier.metric("webhook_directory_lookups_total", &[("answer", "memory")]), 0.0);
    wait_until(SOON, "ready: it is slower, and nothing is wrong", || notifier.is_ready());

    // Backlogs and all commands work, too.
    let id = webhook.to_string();
    behind.command(&["webhooks", "pause", &id]);
    for _ in 0..3 {
        sandbox.publish(&Event::new("order.paused"));
    }
    wait_until(SOON, "they wait in a backlog", || {
        behind.command(&["webhooks", "show", &id]).stdout.contains("3 waiting")
    });
    behind.command(&["webhooks", "resume", &id]);
    receiver.wait_at("/10", 1 + 3);
    let logged = Event::new("order.logged");
    sandbox.publish(&logged);
    wait_until(SOON, "it is logged", || {
        let launch = sandbox.launch(&["why", &logged.id]).env("DATABASE_URL", behind.pooler.url());
        launch.spawn().finish(SOON).code == Some(0)
    });
    let tail = sandbox.launch(&["tail", "--lines", "50"]).env("DATABASE_URL", behind.pooler.url());
    tail.spawn().wait_stdout(SOON, "order.logged");
    behind.command(&["webhooks", "remove", &id]);
    let after = Event::new("order.after");
    sandbox.publish(&after);
    sandbox.wait_drained();
    holds_for(Duration::from_millis(300), "a deleted webhook gets nothing", || {
        receiver.requests().iter().all(|request| request.id() != after.id)
    });
    notifier.terminate();
}

#[test]
fn behind_a_transaction_pooler_every_event_needs_a_query_and_every_change_is_honoured() {
    check_changes(IGNORES_OPTIONS);
}

#[test]
fn a_transaction_pooler_that_accepts_no_options_works_too() {
    check_changes("");
}

#[test]
fn behind_a_session_pooler_changes_are_notified() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    // What PgBouncer runs between two clients of a session: the default would reset the search path.
    let settings = "default_pool_size = 20\nserver_reset_query = UNLISTEN *";
    let behind = Behind::new(&sandbox, "session", settings);
    let checked = behind.command(&["check"]).stdout;
    assert!(checked.contains("a change to the tables takes effect at once"), "{checked}");
    let notifier = behind.start();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    wait_until(SOON, "notifications arrive", || {
        notifier.metric("webhook_directory_age_seconds", &[]) == 0.0
    });
    notifier.terminate();
}

#[test]
fn times_are_in_utc_whatever_the_time_zone_of_the_session() {
    let sandbox = Sandbox::new();
    let behind = Behind::new(&sandbox, "transaction", "");
    let add = ["webhooks", "add", "https://example.org/", "*", "--json"];
    let id = json(&behind.command(&add).stdout)["id"].as_str().expect("an id").to_owned();
    behind.command(&["webhooks", "pause", &id]);
    behind.command(&["webhooks", "disable", &id]);
    behind.command(&["webhooks", "rotate-secret", &id]);
    let shown = json(&behind.command(&["webhooks", "show", &id, "--json"]).stdout);
    for (time, hours_ahead) in [
        ("created_at", 0),
        ("paused_at", 0),
        ("disabled_at", 0),
        ("previous_secret_expires_at", 24),
    ] {
        let text = shown[time].as_str().unwrap_or_else(|| panic!("no {time}: {shown}"));
        assert!(text.ends_with('Z'), "{time}: {text}");
        let is_right = sandbox.database.query(
            "SELECT abs(extract(epoch FROM $1::text::timestamptz - now())::float8 / 3600 - $2) < 0.5",
            &[&text, &f64::from(hours_ahead)],
        )[0]
        .get::<_, bool>(0);
        assert!(is_right, "{time}: {text}");
    }
}

#[test]
fn own_options_that_the_pooler_refuses_are_an_error_with_the_remedy() {
    let sandbox = Sandbox::new();
    let pooler = Pooler::before(&sandbox, "transaction", "");
    let url = format!("{}?options=-csearch_path%3Delsewhere", pooler.url());
    for arguments in [&["check"][..], &["run"]] {
        let launch = sandbox.launch(arguments).env("METRICS_ADDR", "127.0.0.1:0");
        let finished = launch.env("DATABASE_URL", &url).spawn().finish(SOON);
        let output = [finished.stdout, finished.stderr].concat();
        assert_eq!(finished.code, Some(1), "{output}");
        for part in ["ignore_startup_parameters = options", "ALTER ROLE"] {
            assert!(output.contains(part), "no {part:?} in {output}");
        }
    }
}
