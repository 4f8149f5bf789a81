//! Somebody else changes the table while a file is applied.

use super::Declared;
use crate::{
    commands::succeed,
    harness::{SOON, Sandbox, wait_until},
};

#[test]
fn if_several_apply_the_same_file_at_once_one_registers_the_new_webhook() {
    let sandbox = Sandbox::new();
    let file = Declared::new(
        "[[webhooks]]\npost_url = \"https://example.org/in\"\nevents = [\"user.*\"]\n",
    );
    let path = file.path("webhooks.toml");
    let apply = || sandbox.launch(&["webhooks", "apply", path.to_str().expect("plain")]).spawn();
    let all: Vec<_> = (0..4).map(|_| apply()).collect();
    let finished: Vec<_> = all.into_iter().map(|one| one.finish(SOON)).collect();
    let added = finished.iter().filter(|one| one.stdout.contains("1 added")).count();
    assert_eq!(added, 1, "{finished:?}");
    // Those that had read the table before the webhook was added report it.
    for one in finished.iter().filter(|one| one.code != Some(0)) {
        assert!(one.stderr.contains("run the command again"), "{one:?}");
    }
    assert_eq!(sandbox.database.query("SELECT 1 FROM webhooks", &[]).len(), 1);
    assert!(file.apply(&sandbox, &[]).contains("nothing to change"));
}

#[test]
fn a_concurrent_change_is_not_overwritten() {
    let sandbox = Sandbox::new();
    let ids: Vec<_> =
        (0..3).map(|n| sandbox.webhook(&format!("http://a.example/{n}"), &["*"])).collect();
    let exported = succeed(&sandbox, &["webhooks", "export"]);
    let file = Declared::new(&exported.replace("events = [\"*\"]", "events = [\"order.paid\"]"));
    // `apply` has read the rows when it waits for this lock.
    let mut other =
        postgres::Client::connect(sandbox.database.url(), postgres::NoTls).expect("it answers");
    let path = file.path("webhooks.toml");
    let arguments = ["webhooks", "apply", path.to_str().expect("a plain name")];
    let mut held = other.transaction().expect("it answers");
    held.execute("UPDATE webhooks SET account = 'theirs' WHERE id = $1", &[&ids[2]])
        .expect("it is there");
    let process = sandbox.launch(&arguments).spawn();
    wait_until(SOON, "it waits for the row", || {
        let waiting =
            "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'webhooks'::regclass";
        !sandbox.database.query(waiting, &[]).is_empty()
    });
    held.commit().expect("it answers");
    let finished = process.finish(SOON);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let expected = format!(
        "nothing was changed: somebody else has changed {} meanwhile; run the command again",
        ids[2]
    );
    assert!(finished.stderr.contains(&expected), "{finished:?}");
    let events = "SELECT DISTINCT events::text FROM webhooks";
    let events: Vec<String> =
        sandbox.database.query(events, &[]).iter().map(|row| row.get(0)).collect();
    assert_eq!(events, ["{*}"], "not the others either");
    let output = file.apply(&sandbox, &[]);
    assert!(
        output.contains("account          theirs -> none") && output.contains("3 changed"),
        "{output}"
    );

    // If the table is locked, the command fails and changes nothing.
    let mut held = other.transaction().expect("it answers");
    held.batch_execute("LOCK TABLE webhooks IN SHARE MODE").expect("it answers");
    file.write("webhooks.toml", &exported);
    let finished = file.command(&sandbox, &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(
        finished.stderr.contains("nothing was changed: ") && finished.stderr.contains("locked"),
        "{finished:?}"
    );
}
