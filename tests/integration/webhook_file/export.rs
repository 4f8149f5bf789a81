//! What `webhooks export` writes.

use super::{Declared, MARK, SECRET, rows};
use crate::{commands::succeed, harness::Sandbox};

#[test]
fn an_export_has_no_secrets_and_changes_nothing_when_it_is_applied() {
    let sandbox = Sandbox::new();
    // With values that can only be written by SQL.
    let odd =
        sandbox.webhook(&format!("https://u:{MARK}@example.org/"), &["a*", "order.\u{202e}paid"]);
    let full = sandbox.webhook(&format!("https://example.org/?{MARK}"), &["*"]);
    let twin = sandbox.webhook(&format!("https://example.org/?{MARK}"), &["*"]);
    sandbox.database.execute(
        "UPDATE webhooks SET headers = jsonb_build_object('x-token', $2::text), timeout_ms = 0,
             rate_per_second = 1e-7, description = E'two\\nlines \"quoted\" \\\\ é', account = ' a ',
             secret = $3, paused_at = now(), disabled_at = now(), disabled_reason = 'status 410'
         WHERE id = $1",
        &[&full, &MARK, &SECRET],
    );
    let before = rows(&sandbox);
    for options in [&["webhooks", "export"][..], &["webhooks", "export", "--json"]] {
        let exported = succeed(&sandbox, options);
        assert!(!exported.contains(MARK) && !exported.contains("whsec_"), "{exported}");
        assert!(!exported.contains('\u{202e}'), "{exported}");
        for id in [odd, full, twin] {
            assert!(exported.contains(&id.to_string()), "{exported}");
        }
        let file = Declared::new(&exported);
        for prune in [&[][..], &["--prune"]] {
            let output = file.apply(&sandbox, prune);
            assert_eq!(output, "nothing to change: 3 webhooks are as the file says");
        }
        let output = sandbox.launch(&["webhooks", "apply", "-"]).reading(&exported);
        assert!(output.stdout.starts_with("nothing to change"), "{output:?}");
        assert_eq!(rows(&sandbox), before);
    }

    // An export with its secrets creates the same webhooks elsewhere, once the values that only SQL can write
    // are replaced.
    sandbox.database.run_script(
        "UPDATE webhooks SET post_url = 'https://example.org/odd', events = '{order.paid}'
             WHERE post_url LIKE '%@%';
         UPDATE webhooks SET timeout_ms = 7, rate_per_second = 0.25 WHERE timeout_ms = 0",
    );
    let of = |column: &str| {
        let all =
            format!("SELECT coalesce(({column})::text, '') FROM webhooks ORDER BY created_at, id");
        sandbox.database.query(&all, &[]).iter().map(|row| row.get(0)).collect::<Vec<String>>()
    };
    let columns =
        "(id, post_url, events, headers, timeout_ms, rate_per_second, description, account,
                    paused_at IS NULL, disabled_at IS NULL, disabled_reason)";
    let (before, secrets) = (of(columns), of("secret"));
    for options in
        [&["webhooks", "export", "--reveal"][..], &["webhooks", "export", "--reveal", "--json"]]
    {
        let exported = succeed(&sandbox, options);
        assert!(exported.contains(MARK) && exported.contains(SECRET), "{exported}");
        sandbox.database.execute("DELETE FROM webhooks", &[]);
        let file = Declared::new(&exported);
        let finished = file.command(&sandbox, &[]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        assert!(finished.stdout.contains("3 added"), "{finished:?}");
        assert_eq!(of(columns), before);
        assert_eq!(of("secret")[1], secrets[1]);
    }
}

#[test]
fn a_webhook_that_a_file_cannot_express_is_left_out_named_and_not_removed() {
    let sandbox = Sandbox::new();
    let sound = sandbox.webhook("https://example.org/", &["*"]);
    let headers = sandbox.webhook("https://example.org/headers", &["*"]);
    let long = sandbox.webhook("https://example.org/long", &["*"]);
    let set = |id, change: &str| {
        sandbox.database.execute(&format!("UPDATE webhooks SET {change} WHERE id = $1"), &[&id]);
    };
    set(headers, "headers = '[\"s3cret-T0ken\"]'");
    set(long, "description = repeat('x', 20000)");
    let finished = sandbox.command(&["webhooks", "export"]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for part in [
        &format!("{headers} is left out: its headers"),
        &format!("{long} is left out: its description"),
    ] {
        assert!(finished.stderr.contains(part), "no {part} in {finished:?}");
    }
    assert!(finished.stdout.contains(&sound.to_string()), "{finished:?}");
    assert!(!format!("{finished:?}").contains(MARK), "{finished:?}");
    let file = Declared::new(&finished.stdout);
    let finished = file.command(&sandbox, &["--prune"]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(
        finished.stderr.contains(&format!("{long} stays: it can't be described")),
        "{finished:?}"
    );
    assert_eq!(rows(&sandbox).len(), 3);
    // A file can correct such a webhook.
    file.write(
        "webhooks.toml",
        &format!("[[webhooks]]\nid = \"{headers}\"\npost_url = \"https://example.org/new\"\nevents = [\"a\"]\n"),
    );
    file.apply(&sandbox, &[]);
    let exported = sandbox.command(&["webhooks", "export"]);
    assert!(exported.stdout.contains("https://example.org/new"), "{exported:?}");
}
