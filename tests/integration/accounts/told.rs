//! What the commands say of accounts, and how they choose by them.

use super::*;
use crate::harness::Servers;

/// As words, however it is wrapped.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn why_says_whose_an_event_is_and_of_whom_a_webhook_that_did_not_get_it() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let of_b = webhook(&sandbox, &receiver.url("/b"), &["user.*"], Some("b")).to_string();
    let notifier = sandbox.notifier().env("DELIVERY_LOG", "all").start();
    let why = |arguments: &[&str]| words(&sandbox.command(&[&["why"], arguments].concat()).stdout);
    let known = |event: &Event, part: &str| {
        wait_for(SOON, &format!("{part} of {}", event.id), || {
            Some(why(&[&event.id])).filter(|why| why.contains(part))
        })
    };
    let of_a = of(Event::new("user.created"), text("a"));
    let of_none = Event::new("user.created");
    sandbox.broker.publish(sandbox.queue(), &[of_a.clone(), of_none.clone()]);
    let told = known(&of_a, "dropped at");
    for part in [
        "account a queue",
        "those below want this type, and are of other accounts",
        r#"enabled; wants it by `user.*`, but it is of account "b""#,
        r#"not for it: it is of account "b", and the event of account "a""#,
        &format!("`webhooks set {of_b} --account a`"),
    ] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    let told = known(&of_none, "dropped at");
    for part in [
        r#"wants it by `user.*`, but it is of account "b""#,
        r#"not for it: it is of account "b", and the event of none"#,
        "the AMQP header `account`",
    ] {
        assert!(told.contains(part), "no {part:?} in {told}");
    }
    let of_b_too = of(Event::new("user.created"), text("b"));
    sandbox.publish(&of_b_too);
    let told = known(&of_b_too, "by attempt 1");
    assert!(told.contains("wants it by `user.*` ") && !told.contains("but it is"), "{told}");

    // Of an event that nobody knows, the operator says it.
    let unknown = ["no-such-event", "--type", "user.created"];
    let told = why(&unknown);
    assert!(!told.contains("but it is") && told.contains("nothing is logged for it"), "{told}");
    let told = why(&[&unknown[..], &["--account", "a"]].concat());
    assert!(told.contains(r#"but it is of account "b""#), "{told}");
    let answer = sandbox.command(&["why", &of_a.id, "--json"]).stdout;
    let answer = json(&answer);
    assert_eq!(answer["account"], "a");
    assert_eq!(answer["webhooks"][0]["account"], "b");
    assert!(answer["webhooks"][0]["not_its_own"].is_string(), "{answer}");

    // However many others there are: those that may have it come first.
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, account)
         SELECT 'https://example.org/', '{user.*}', 'other ' || n FROM generate_series(1, 1100) AS n",
    );
    let own = webhook(&sandbox, &receiver.url("/a"), &["user.*"], Some("a")).to_string();
    let told = why(&[&of_a.id]);
    let at = |part: &str| told.find(part).unwrap_or_else(|| panic!("no {part:?} in {told}"));
    assert!(at(&own) < at("but it is of account"), "{told}");
    assert!(at("publish it again: those below would want it today") < at(&own));
    assert!(told.contains("more webhooks of other accounts"), "{told}");
    let told = why(&[&of_a.id, "--webhook", &of_b]);
    assert!(told.contains(r#"but it is of account "b""#) && !told.contains(&own), "{told}");
    notifier.terminate();
}

#[test]
fn commands_publish_list_follow_and_choose_by_account() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(410));
    for account in [Some("a"), Some("b"), None] {
        let path = account.unwrap_or("all");
        webhook(&sandbox, &receiver.url(&format!("/{path}")), &["*"], account);
    }
    let list = |account: &str| {
        let listed = succeed(&sandbox, &["webhooks", "list", "--account", account, "--json"]);
        json(&listed).as_array().map(Vec::len)
    };
    assert_eq!((list("a"), list("A"), list("")), (Some(1), Some(0), Some(0)));
    let mut tail = sandbox.launch(&["tail", "--account", "a"]).spawn();
    let notifier = sandbox.notifier().env("DELIVERY_LOG", "all").start();
    let publish = |id: &str, account: &str| {
        let body = r#"{"type":"t","account":"b"}"#;
        let arguments =
            ["publish", sandbox.queue(), body, "--id", id, "--account", account, "--count", "2"];
        succeed(&sandbox, &arguments);
    };
    publish("first", "a");
    receiver.wait_at("/a", 1);
    publish("second", "b");
    receiver.wait_at("/b", 1);
    tail.wait_stdout(SOON, "first-2");
    wait_until(SOON, "all is dead", || {
        let listed = succeed(&sandbox, &["dead-letters", "list", "--each", "--json"]);
        // After the first 410 there is nobody left to send the second event to, perhaps.
        json(&listed).as_array().is_some_and(|letters| letters.len() >= 3)
    });
    sandbox.wait_drained();
    let dead = |account: &str| {
        let arguments = ["dead-letters", "list", "--each", "--json", "--account", account];
        let listed = json(&succeed(&sandbox, &arguments));
        let letters = listed.as_array().cloned().unwrap_or_default();
        assert!(letters.iter().all(|letter| letter["account"] == account), "{letters:?}");
        letters.len()
    };
    assert!(dead("a") >= 2 && dead("b") >= 1 && dead("c") == 0);
    let shown = succeed(&sandbox, &["dead-letters", "show", "--account", "b", "--limit", "1"]);
    assert!(shown.contains("x-account: b"), "{shown}");
    let purged = succeed(&sandbox, &["dead-letters", "purge", "--account", "c"]);
    assert!(purged.contains("0 dead letters"), "{purged}");
    tail.kill();
    let mut tail = sandbox.launch(&["tail", "--account", "b", "--lines", "99"]).spawn();
    tail.wait_stdout(SOON, "second-1");
    tail.kill();
    let seen = tail.stdout();
    assert!(seen.iter().all(|line| !line.contains("first-")), "{seen:?}");
    notifier.terminate();

    for arguments in [
        &["webhooks", "add", "https://example.org/", "*", "--account", ""][..],
        &["webhooks", "add", "https://example.org/", "*", "--account", "a\nb"],
        &["publish", sandbox.queue(), "--account", ""],
        &["publish", sandbox.queue(), "--account", &"x".repeat(256)],
        &["tail", "--account", ""],
        &["why", "x", "--account", ""],
        &["dead-letters", "replay", "--account", ""],
    ] {
        let finished = sandbox.command(arguments);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(finished.stderr.contains("account"), "{arguments:?}: {finished:?}");
    }
    let add = ["webhooks", "add", "https://example.org/", "*", "--account", "a "];
    let added = sandbox.command(&add);
    assert_eq!(added.code, Some(0), "{added:?}");
    assert!(added.stderr.contains(r#"the spaces around the account "a " count"#), "{added:?}");
}

#[test]
fn migrate_says_which_webhooks_had_a_label_that_decides_now() {
    let sandbox = Sandbox::bare(&Servers::shared(), 1);
    let fresh = succeed(&sandbox, &["migrate"]);
    assert!(!fresh.contains("label"), "{fresh}");
    let before = "DELETE FROM schema_migrations WHERE name = 'accounts';
                  DROP INDEX webhooks_account_idx, webhooks_everybodys_idx;
                  ALTER TABLE delivery_attempts DROP COLUMN account";
    sandbox.database.run_script(before);
    assert_eq!(succeed(&sandbox, &["migrate"]).trim(), "applied: accounts");
    let id = webhook(&sandbox, "https://example.org/", &["*"], Some("a")).to_string();
    sandbox.database.run_script(before);
    let one = succeed(&sandbox, &["migrate"]);
    for part in ["applied: accounts", "1 webhook has an account", "it gets", "--unset account", &id]
    {
        assert!(one.contains(part), "no {part:?} in {one}");
    }
    assert!(succeed(&sandbox, &["migrate"]).contains("nothing to do"));
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, account, created_at)
         SELECT 'https://example.org/', '{*}', 'a' || n, now() + interval '1 h'
         FROM generate_series(1, 9) AS n",
    );
    sandbox.database.run_script(before);
    let many = succeed(&sandbox, &["migrate"]);
    for part in ["10 webhooks have an account", "each gets", &id, "and 5 more"] {
        assert!(many.contains(part), "no {part:?} in {many}");
    }

    // What was in a column that somebody dropped, nobody knows.
    sandbox.database.run_script("ALTER TABLE webhooks DROP COLUMN account CASCADE");
    let restored = sandbox.command(&["migrate"]);
    assert!(
        restored.stderr.contains("each webhook gets the events of all accounts"),
        "{restored:?}"
    );
    assert!(succeed(&sandbox, &["migrate"]).contains("nothing to do"));
}

#[test]
fn the_status_page_says_of_ailing_receivers_and_backlogs_whose_they_are() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    webhook(&sandbox, &receiver.url("/a"), &["*"], Some("acme\u{202e}"));
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("CIRCUIT_BREAKER", "3,1h,1h")
        .start();
    wait_listening(&notifier);
    for _ in 0..9 {
        sandbox.publish(&of(Event::new("order.paid"), text("acme\u{202e}")));
    }
    wait_until(LATER, "both are listed with their account", || {
        let status = json(&notifier.get("/status.json").body);
        let of = |part: &str| status[part]["listed"][0]["account"].clone();
        // As it can be shown.
        of("receivers") == "acme\\u{202e}" && of("backlogs") == "acme\\u{202e}"
    });
    notifier.terminate();
}
