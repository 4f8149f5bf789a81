//! What the commands show of backlogs: pauses, and how many deliveries wait where.

use amiquip::FieldTable;
use serde_json::{Value, json as literal};
use uuid::Uuid;
use webhook_notifier::broker::backlog_queue;

use crate::{
    backlog_table::store,
    commands::{json, succeed},
    harness::{Event, SOON, Sandbox},
};

/// A webhook with waiting deliveries, as a notifier leaves it. The queue is deleted when this is
/// dropped.
pub(crate) struct Waiting<'a> {
    sandbox: &'a Sandbox,
    webhook: Uuid,
    queue: String,
}

impl<'a> Waiting<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, webhook: Uuid, count: usize) -> Self {
        let queue = backlog_queue(sandbox.queue(), webhook);
        sandbox.broker.declare(&queue, FieldTable::new()).expect("a queue under a fresh name");
        let events: Vec<_> = (0..count).map(|_| Event::new("order.paid")).collect();
        sandbox.broker.publish(&queue, &events);
        let waiting = Self { sandbox, webhook, queue };
        waiting.in_the_table(sandbox.queue());
        waiting
    }

    fn in_the_table(&self, queue: &str) {
        self.sandbox.database.execute(
            "INSERT INTO backlogs (queue, webhook_id, since, cause, class)
             VALUES ($1, $2, '2026-11-25 02:54:28Z', 'breaker', 'slow')",
            &[&queue, &self.webhook],
        );
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let _ = self.sandbox.broker.delete(&self.queue);
    }
}

#[track_caller]
fn json_of(sandbox: &Sandbox, arguments: &[&str]) -> Value {
    json(&succeed(sandbox, &[arguments, &["--json"]].concat()))
}

/// The words of a webhook's line in `webhooks list`.
#[track_caller]
fn listed(sandbox: &Sandbox, webhook: Uuid) -> Vec<String> {
    let table = succeed(sandbox, &["webhooks", "list"]);
    let line = table.lines().find(|line| line.starts_with(&webhook.to_string()));
    line.expect("it is listed").split_whitespace().map(str::to_owned).collect()
}

#[test]
fn pausing_and_resuming_a_webhook_can_be_repeated() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    assert_eq!(listed(&sandbox, webhook)[1], "enabled");
    let paused = json_of(&sandbox, &["webhooks", "pause", &id]);
    let since = paused["paused_at"].as_str().expect("a time").to_owned();
    assert_eq!(json_of(&sandbox, &["webhooks", "pause", &id])["paused_at"], since);
    assert_eq!(listed(&sandbox, webhook)[1], "paused");
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    assert!(shown.contains(&format!("\npaused           since {since}")), "{shown}");
    assert_eq!(json_of(&sandbox, &["webhooks", "show", &id])["paused_at"], since);

    // `disabled` takes precedence, and neither changes the other.
    succeed(&sandbox, &["webhooks", "disable", &id]);
    assert_eq!(listed(&sandbox, webhook)[1], "disabled");
    succeed(&sandbox, &["webhooks", "enable", &id]);
    assert_eq!(listed(&sandbox, webhook)[1], "paused");
    for _ in 0..2 {
        let resumed = json_of(&sandbox, &["webhooks", "resume", &id]);
        assert_eq!(resumed["paused_at"], Value::Null);
    }
    assert_eq!(listed(&sandbox, webhook)[1], "enabled");
    assert!(!succeed(&sandbox, &["webhooks", "show", &id]).contains("\npaused "));
    for verb in ["pause", "resume"] {
        let stranger = Uuid::new_v4().to_string();
        let finished = sandbox.command(&["webhooks", verb, &stranger]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains(&stranger), "{finished:?}");
    }
}

#[test]
fn waiting_deliveries_are_shown_as_far_as_their_number_is_known() {
    let sandbox = Sandbox::new();
    let calm = sandbox.webhook("http://127.0.0.1:9/calm", &["*"]);
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    assert!(!succeed(&sandbox, &["webhooks", "list"]).contains("WAITING"));
    assert_eq!(json_of(&sandbox, &["webhooks", "show", &id])["backlogs"], literal!([]));

    let queue = sandbox.queue();
    let waiting = Waiting::new(&sandbox, webhook, 3);
    let table = succeed(&sandbox, &["webhooks", "list"]);
    let head: Vec<_> = table.lines().next().expect("a head").split_whitespace().collect();
    assert_eq!(head, ["ID", "STATE", "WAITING", "FAILING", "SINCE", "URL", "EVENTS"]);
    assert_eq!(listed(&sandbox, webhook)[1..3], ["failing", "3"]);
    assert_eq!(listed(&sandbox, calm)[1..3], ["enabled", "-"]);
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    let line = format!("backlog          {queue}: 3 waiting since 2026-11-25T02:54:28Z, breaker");
    assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    let until = "UPDATE backlogs SET until = '9000-01-01 00:00:00Z'";
    sandbox.database.execute(until, &[]);
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    let line = format!("{line}, next attempt at 9000-01-01T00:00:00Z");
    assert!(shown.lines().any(|shown| shown == line), "no {line} in {shown}");
    let backlog = literal!({
        "queue": queue, "waiting": 3, "since": "2026-11-25T02:54:28Z", "cause": "breaker",
        "class": "slow", "until": "9000-01-01T00:00:00Z",
    });
    let shown = json_of(&sandbox, &["webhooks", "show", &id]);
    assert_eq!(shown["backlogs"], literal!([backlog]));
    let list = json_of(&sandbox, &["webhooks", "list"]);
    assert_eq!(list[1], shown);
    assert_eq!(list[0]["backlogs"], literal!([]));

    // A queue that doesn't exist, which doesn't affect the numbers of the others.
    waiting.in_the_table("aaa");
    let shown = succeed(&sandbox, &["webhooks", "show", &id]);
    for part in ["aaa: ? waiting since 2026", &format!("{queue}: 3 waiting")] {
        assert!(shown.contains(part), "no {part} in {shown}");
    }
    assert_eq!(listed(&sandbox, webhook)[2], "?");
    let backlogs = json_of(&sandbox, &["webhooks", "show", &id])["backlogs"].take();
    assert_eq!((&backlogs[0]["waiting"], &backlogs[1]["waiting"]), (&Value::Null, &literal!(3)));

    // Without a broker.
    let command = |arguments: &[&str]| {
        let launch = sandbox.launch(arguments).env("AMQP_URL", "amqp://127.0.0.1:9");
        let finished = launch.spawn().finish(SOON);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stderr.contains("is not known: RabbitMQ at 127.0.0.1:9"), "{finished:?}");
        finished
    };
    assert!(command(&["webhooks", "list"]).stdout.contains(" ? "));
    let shown = json(&command(&["webhooks", "show", &id, "--json"]).stdout);
    assert_eq!(shown["backlogs"][1]["waiting"], Value::Null);
    let output = command(&["webhooks", "disable", &id, "--dry-run"]).stdout;
    assert!(
        output.starts_with("an unknown number of deliveries waits in its backlogs"),
        "{output}"
    );
    let disabled = command(&["webhooks", "disable", &id]);
    assert!(disabled.stderr.contains("an unknown number"), "{disabled:?}");
}

#[test]
fn a_dry_run_says_how_many_deliveries_would_be_dropped_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let webhook = sandbox.webhook("http://127.0.0.1:9/", &["*"]);
    let id = webhook.to_string();
    let row = || -> String {
        let rows = sandbox.database.query("SELECT w::text FROM webhooks AS w", &[]);
        rows[0].get(0)
    };
    let before = row();
    let none = "the delivery log knows none that waits for its next attempt: such a delivery is dropped \
                when it is due";
    for (verb, end) in [("disable", ", unless the webhook is enabled by then"), ("remove", "")] {
        let output = succeed(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        assert_eq!(output, format!("nothing waits in its backlogs\n{none}{end}"));
    }
    // Two wait for their next attempt; that of the third was due.
    let log = "INSERT INTO delivery_attempts
                   (at, event_id, event_type, webhook_id, queue, outcome, attempt, detail, next_attempt_at)
               SELECT now() - interval '1 min' * n, 'e' || n % 3, 't', $1, 'q', 'failed', n, 'x',
                   now() + interval '1 min' * (5 - 2 * n)
               FROM generate_series(1, 3) AS n";
    sandbox.database.execute(log, &[&webhook]);
    let retries = "2 deliveries wait for their next attempt, by the delivery log: each is dropped when it is \
                   due";
    let waiting = Waiting::new(&sandbox, webhook, 1_234);
    for verb in ["disable", "remove"] {
        let output = succeed(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        let (in_backlogs, waits) = output.split_once('\n').expect("two lines");
        assert_eq!(in_backlogs, "1,234 deliveries wait in its backlogs, and would be dropped");
        assert!(waits.starts_with(retries), "{output}");
        let output = json_of(&sandbox, &["webhooks", verb, &id, "--dry-run"]);
        assert_eq!(
            (&output["id"], &output["backlogs"][0]["waiting"], &output["retries"]),
            (&literal!(id), &literal!(1_234), &literal!(2))
        );
        let unlogged = ["webhooks", verb, &id, "--dry-run", "--delivery-log", "off"];
        let output = succeed(&sandbox, &unlogged);
        assert!(output.contains("wait for their next attempt are not counted"), "{output}");
        let stranger = Uuid::new_v4().to_string();
        let finished = sandbox.command(&["webhooks", verb, &stranger, "--dry-run"]);
        assert_eq!(finished.code, Some(1), "{finished:?}");
    }
    assert_eq!(row(), before);
    for verb in ["disable", "remove"] {
        let finished = sandbox.command(&["webhooks", verb, &id, "--json"]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let output = "1,234 deliveries wait in its backlogs, and will be dropped";
        assert!(finished.stderr.contains(output), "{finished:?}");
        assert!(finished.stderr.contains(retries), "{finished:?}");
        assert_eq!(json(&finished.stdout)["id"], id);
    }
    assert!(sandbox.database.query("SELECT id FROM webhooks", &[]).is_empty());
    // The rows of its backlogs remain: they say that there are queues.
    assert_eq!(store(&sandbox).backlogs().expect("it answers").len(), 1);
    drop(waiting);
}
