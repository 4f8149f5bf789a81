//! What the table of conditions records of what notifiers have seen.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use uuid::Uuid;
use webhook_notifier::{
    config::Settings,
    store::{Failing, Store, WebhookChange},
};

use crate::harness::Sandbox;

fn store(sandbox: &Sandbox) -> Store {
    let command = Settings::augment_args(clap::Command::new("notifier"));
    let url = sandbox.database.url();
    let matches = command.get_matches_from(["notifier", "--database-url", url]);
    let config = Settings::from_arg_matches(&matches).expect("a URL").read().expect("a URL");
    Store::new(&config).expect("a URL")
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const HOUR: Duration = seconds(3_600);
const DAY: Duration = seconds(86_400);

/// Records that it has failed since `since` ago, the last time `failed` ago.
fn fails(store: &Store, webhook: Uuid, since: Duration, failed: Duration) {
    let failing = [Failing { webhook, since, failed, opened: None }];
    store.record_failures(&failing, seconds(70), HOUR).expect("it answers");
}

fn none_disabled(store: &Store, after: Duration) -> bool {
    disabled(store, after).is_empty()
}

fn none_fail(store: &Store) -> bool {
    store.failing_webhooks().expect("it answers").is_empty()
}

fn disabled(store: &Store, after: Duration) -> Vec<Uuid> {
    let disabled = store.disable_failing(after, "no success for long").expect("it answers");
    disabled.into_iter().map(|(webhook, _)| webhook).collect()
}

/// As if everything recorded were `by` older.
fn age(sandbox: &Sandbox, by: Duration) {
    let by = by.as_secs_f64();
    let sql = "UPDATE webhook_conditions SET
                   failing_since = failing_since - make_interval(secs => $1),
                   failed_at = failed_at - make_interval(secs => $1),
                   succeeded_at = succeeded_at - make_interval(secs => $1)";
    sandbox.database.execute(sql, &[&by]);
}

#[test]
fn failures_count_from_the_first_to_the_last_without_a_success_and_without_a_gap() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let webhook = sandbox.webhook("https://example.com/", &["*"]);
    // An outage that only this process has seen for an hour must have ended for another process, or it
    // would be in the table.
    fails(&store, webhook, HOUR, seconds(0));
    assert!(none_disabled(&store, seconds(80)));
    age(&sandbox, HOUR / 2);
    fails(&store, webhook, 2 * HOUR, seconds(0));
    assert!(none_disabled(&store, HOUR));
    // It has failed for half an hour; time without an attempt doesn't count.
    age(&sandbox, HOUR / 2);
    assert!(none_disabled(&store, seconds(2_000)));

    // A success in between, seen by any process.
    fails(&store, webhook, seconds(0), seconds(0));
    let failing = store.failing_webhooks().expect("it answers");
    assert_eq!(failing.len(), 1);
    assert!(failing[0].1 > HOUR, "{failing:?}");
    store.record_successes(&[(webhook, seconds(60))]).expect("it answers");
    assert!(none_disabled(&store, seconds(90)));
    assert!(store.failing_webhooks().expect("it answers")[0].1 < seconds(70), "since then");
    store.record_successes(&[(webhook, seconds(0))]).expect("it answers");
    assert!(none_fail(&store), "it is well");
    age(&sandbox, 6 * DAY);
    fails(&store, webhook, seconds(1), seconds(0));
    assert!(none_disabled(&store, HOUR), "a week after a success it has failed for a second");

    // Nothing was attempted for a week: it begins again.
    age(&sandbox, 6 * DAY);
    fails(&store, webhook, 7 * DAY, seconds(0));
    assert!(none_disabled(&store, HOUR));
    for _ in 0..3 {
        age(&sandbox, HOUR / 2);
        fails(&store, webhook, 7 * DAY, seconds(0));
    }
    assert_eq!(disabled(&store, HOUR), [webhook]);
    assert!(none_disabled(&store, HOUR), "once");
}

#[test]
fn a_webhook_that_is_paused_disabled_or_deleted_no_longer_counts_as_failing() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    let webhook = sandbox.webhook("https://example.com/", &["*"]);
    let rows = || sandbox.database.query("SELECT 1 FROM webhook_conditions", &[]).len();
    fails(&store, Uuid::new_v4(), HOUR, seconds(0));
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    fails(&store, webhook, HOUR, seconds(0));
    assert_eq!(rows(), 0);
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL", &[]);
    fails(&store, webhook, HOUR, seconds(0));
    store.forget_conditions().expect("it answers");
    assert_eq!(rows(), 1);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    age(&sandbox, seconds(1));
    assert_eq!(store.count_unannounced(true).expect("it answers"), 1);
    assert_eq!(store.take_unannounced(10).expect("it answers").len(), 1);
    assert!(none_fail(&store), "it begins anew");
    sandbox.database.execute("DELETE FROM webhooks", &[]);
    store.forget_conditions().expect("it answers");
    assert_eq!(rows(), 0);
}

#[test]
fn of_many_that_take_unpublished_changes_one_takes_each() {
    let sandbox = Sandbox::new();
    let store = store(&sandbox);
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, paused_at)
             SELECT 'https://example.com/' || n, ARRAY['*'], now() FROM generate_series(1, 200) AS n",
    );
    assert_eq!(
        store.count_unannounced(false).expect("it answers"),
        0,
        "none is counted before the first look"
    );
    assert_eq!(store.count_unannounced(true).expect("it answers"), 200);
    let taken: Vec<Uuid> = thread::scope(|scope| {
        let take = || {
            let mut taken = Vec::new();
            while store.count_unannounced(true).expect("it answers") > 0 {
                for untold in store.take_unannounced(7).expect("it answers") {
                    assert!(
                        matches!(untold.changes[..], [WebhookChange::Paused { .. }]),
                        "{untold:?}"
                    );
                    taken.push(untold.webhook);
                }
            }
            taken
        };
        let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        takers.into_iter().flat_map(|taker| taker.join().expect("no panic")).collect()
    });
    assert_eq!(taken.len(), 200);
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 200);
    // Both at once: only the result is published.
    sandbox.database.run_script(
        "UPDATE webhooks SET paused_at = NULL, disabled_at = now(), disabled_reason = 'no success for 5d';
         DELETE FROM webhooks WHERE post_url <> 'https://example.com/1'",
    );
    let untold = store.take_unannounced(10).expect("it answers");
    let [one] = &untold[..] else { panic!("{untold:?}") };
    let [WebhookChange::Disabled { at: Some(at), reason: Some(reason) }, WebhookChange::Resumed] =
        &one.changes[..]
    else {
        panic!("{one:?}")
    };
    assert!(at.ends_with('Z') && reason == "no success for 5d", "{one:?}");
}
