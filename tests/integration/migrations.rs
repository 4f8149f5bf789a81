//! The migrations that a database has had, and what becomes of a version that has others.

use crate::{
    commands::succeed,
    harness::{Event, Receiver, SOON, Sandbox, process::Finished, wait_until},
};

/// What is written down of each: its number, its name and its checksum.
fn applied(sandbox: &Sandbox) -> Vec<(i32, String, Option<String>)> {
    let sql = "SELECT version, name, checksum FROM schema_migrations ORDER BY version";
    let rows = sandbox.database.query(sql, &[]);
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

fn has_index(sandbox: &Sandbox, name: &str) -> bool {
    !sandbox.database.query("SELECT 1 WHERE to_regclass($1) IS NOT NULL", &[&name]).is_empty()
}

/// `migrate`, where it refuses.
#[track_caller]
fn refuse(sandbox: &Sandbox, parts: &[&str]) -> Finished {
    let before = applied(sandbox);
    let finished = sandbox.command(&["migrate"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for part in parts {
        assert!(finished.stderr.contains(part), "no {part:?} in {finished:?}");
    }
    assert_eq!(finished.stdout, "", "{finished:?}");
    assert_eq!(applied(sandbox), before, "{finished:?}");
    finished
}

#[test]
fn migrations_are_recorded_with_a_checksum_and_those_of_older_versions_get_one() {
    let sandbox = Sandbox::new();
    let recorded = applied(&sandbox);
    assert!(recorded.len() >= 15, "{recorded:?}");
    for (version, name, checksum) in &recorded {
        let digits = checksum.as_deref().unwrap_or_default().chars();
        assert_eq!(digits.filter(char::is_ascii_hexdigit).count(), 64, "{version} {name}");
    }

    sandbox.database.run_script("ALTER TABLE schema_migrations DROP COLUMN checksum");
    let migrated = succeed(&sandbox, &["migrate"]);
    assert!(migrated.contains("nothing to do"), "{migrated}");
    assert_eq!(applied(&sandbox), recorded);

    // An older version beside this one has written its own down without.
    sandbox.database.run_script("UPDATE schema_migrations SET checksum = NULL WHERE version > 9");
    let checked = succeed(&sandbox, &["check"]);
    assert!(!checked.contains("migrations"), "{checked}");
    succeed(&sandbox, &["migrate"]);
    assert_eq!(applied(&sandbox), recorded);
}

#[test]
fn if_other_statements_were_applied_migrate_changes_nothing_and_says_what_to_do() {
    let sandbox = Sandbox::new();
    sandbox.database.run_script(
        "UPDATE schema_migrations SET checksum = repeat('f', 64) WHERE version IN (2, 7);
         DROP INDEX webhooks_events_idx",
    );
    let parts = [
        "those that were applied to the database: 2 (events_index), 7 (delivery_attempts)",
        "`DELETE FROM schema_migrations WHERE version IN (2, 7)`, then `migrate` again",
    ];
    let refused = refuse(&sandbox, &parts);
    assert!(refused.stderr.contains("nothing was changed"), "{refused:?}");
    assert!(!has_index(&sandbox, "webhooks_events_idx"), "{refused:?}");
    let checked = succeed(&sandbox, &["check"]);
    for part in parts.into_iter().chain(["missing: index webhooks_events_idx"]) {
        assert!(checked.contains(part), "no {part:?} in {checked}");
    }

    sandbox.database.run_script("DELETE FROM schema_migrations WHERE version IN (2, 7)");
    let migrated = succeed(&sandbox, &["migrate"]);
    assert!(migrated.contains("applied: events_index, delivery_attempts"), "{migrated}");
    assert!(has_index(&sandbox, "webhooks_events_idx"), "{migrated}");
    let checked = succeed(&sandbox, &["check"]);
    assert!(!checked.contains("migrations"), "{checked}");
    assert!(succeed(&sandbox, &["migrate"]).contains("nothing to do"));
}

#[test]
fn on_the_tables_of_a_newer_version_it_runs_and_migrate_leaves_them_alone() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.database.run_script(
        "INSERT INTO schema_migrations (version, name, checksum)
             VALUES (1000, 'shards', repeat('0', 64)), (1001, 'regions', NULL);
         ALTER TABLE webhooks ADD COLUMN shard INTEGER NOT NULL DEFAULT 0;
         DROP INDEX webhooks_at_rest_idx",
    );
    let refused =
        refuse(&sandbox, &["1000 (shards), 1001 (regions)", "newer", "nothing was changed"]);
    assert!(!has_index(&sandbox, "webhooks_at_rest_idx"), "{refused:?}");
    let checked = succeed(&sandbox, &["check"]);
    for part in [
        "does not know: 1000 (shards), 1001 (regions)",
        "`run` of this version works on its tables; for `migrate`, use the newer one",
        "missing: index webhooks_at_rest_idx: run `migrate` of the newer version",
    ] {
        assert!(checked.contains(part), "no {part:?} in {checked}");
    }

    let notifier = sandbox.notifier().start();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "it is delivered", || !receiver.of("/", &event).is_empty());
    let errors: Vec<_> =
        notifier.stderr().into_iter().filter(|line| line.contains("ERROR")).collect();
    assert!(errors.is_empty(), "{errors:?}");
    notifier.terminate();
}
