//! What the commands print about accounts, and how they filter by them.

use super::*;
use crate::harness::{EncodedDatabase, Servers, unwrapped};

#[test]
fn why_names_the_accounts_of_an_event_and_of_the_webhooks_that_did_not_get_it() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let of_b = webhook(&sandbox, &receiver.url("/b"), &["user.*"], Some("b")).to_string();
    let notifier = sandbox.notifier().env("DELIVERY_LOG", "all").start();
    let why =
        |arguments: &[&str]| unwrapped(&sandbox.command(&[&["why"], arguments].concat()).stdout);
    let known = |event: &Event, part: &str| {
        wait_for(SOON, &format!("{part} of {}", event.id), || {
            Some(why(&[&event.id])).filter(|why| why.contains(part))
        })
    };
    let of_a = of(Event::new("user.created"), text("a"));
    let of_none = Event::new("user.created");
    sandbox.broker.publish(sandbox.queue(), &[of_a.clone(), of_none.clone()]);
    let output = known(&of_a, "dropped at");
    for part in [
        "account a queue",
        "the webhooks below want this type, but belong to other accounts",
        r#"enabled; wants it by `user.*`, but it belongs to account "b""#,
        r#"not for it: it belongs to account "b", the event to account "a""#,
        &format!("`webhooks set {of_b} --account a`"),
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }
    let output = known(&of_none, "dropped at");
    for part in [
        r#"wants it by `user.*`, but it belongs to account "b""#,
        r#"not for it: it belongs to account "b", the event to none"#,
        "the AMQP header `account`",
    ] {
        assert!(output.contains(part), "no {part:?} in {output}");
    }
    let of_b_too = of(Event::new("user.created"), text("b"));
    sandbox.publish(&of_b_too);
    let output = known(&of_b_too, "by attempt 1");
    assert!(
        output.contains("wants it by `user.*` ") && !output.contains("but it belongs to"),
        "{output}"
    );

    // For an event that is found nowhere, the operator states the account.
    let unknown = ["no-such-event", "--type", "user.created"];
    let output = why(&unknown);
    assert!(
        !output.contains("but it belongs to") && output.contains("nothing is logged for it"),
        "{output}"
    );
    let output = why(&[&unknown[..], &["--account", "a"]].concat());
    assert!(output.contains(r#"but it belongs to account "b""#), "{output}");
    let answer = sandbox.command(&["why", &of_a.id, "--json"]).stdout;
    let answer = json(&answer);
    assert_eq!(answer["account"], "a");
    assert_eq!(answer["webhooks"][0]["account"], "b");
    assert!(answer["webhooks"][0]["not_its_own"].is_string(), "{answer}");

    // However many others there are: those that may get it are first.
    sandbox.database.run_script(
        "INSERT INTO webhooks (post_url, events, account)
         SELECT 'https://example.org/', '{user.*}', 'other ' || n FROM generate_series(1, 1100) AS n",
    );
    let own = webhook(&sandbox, &receiver.url("/a"), &["user.*"], Some("a")).to_string();
    let output = why(&[&of_a.id]);
    let at = |part: &str| output.find(part).unwrap_or_else(|| panic!("no {part:?} in {output}"));
    assert!(at(&own) < at("but it belongs to account"), "{output}");
    assert!(at("publish it again: the webhooks below want it now") < at(&own));
    assert!(output.contains("more webhooks of other accounts"), "{output}");
    let output = why(&[&of_a.id, "--webhook", &of_b]);
    assert!(
        output.contains(r#"but it belongs to account "b""#) && !output.contains(&own),
        "{output}"
    );
    notifier.terminate();
}

#[test]
fn why_tells_accounts_with_the_same_event_id_apart_and_quotes_their_names() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let odd = "it's Acme; touch x";
    let ids = ["b", odd]
        .map(|account| webhook(&sandbox, &receiver.url("/"), &["t"], Some(account)).to_string());
    let notifier = sandbox.notifier().env("DELIVERY_LOG", "all").start();
    let why =
        |arguments: &[&str]| unwrapped(&sandbox.command(&[&["why"], arguments].concat()).stdout);
    for (count, account) in [(1, "b"), (2, odd)] {
        sandbox.publish(&of(Event::new("t").id("inv-1"), text(account)));
        receiver.wait_at("/", count);
        wait_until(SOON, "it is logged", || {
            why(&["inv-1", "--webhook", &ids[count - 1]]).contains("by attempt 1")
        });
    }
    let output = why(&["inv-1"]);
    assert!(output.contains(r#"events of "b" have this id, too: choose by --account"#), "{output}");
    assert!(!output.contains("but it belongs to account"), "each has had its own: {output}");
    let output = why(&["inv-1", "--account", "b"]);
    assert!(output.contains("account b queue"), "{output}");
    assert_eq!(output.matches("by attempt 1").count(), 1, "{output}");
    let part = format!(r#"not for it: it belongs to account "{odd}", the event to account "b""#);
    assert!(output.contains(&part), "{output}");
    let output = why(&["inv-1", "--account", odd, "--webhook", &ids[0]]);
    let command = format!(r"`webhooks set {} --account='it'\''s Acme; touch x'`", ids[0]);
    assert!(output.contains(&command), "no {command} in {output}");
    notifier.terminate();
}

#[test]
fn why_says_that_a_waiting_delivery_will_die_if_its_webhook_has_changed_account() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let waiting = webhook(&sandbox, &receiver.url("/w"), &["t"], Some("a"));
    let paused = webhook(&sandbox, &receiver.url("/p"), &["t"], Some("a"));
    succeed(&sandbox, &["webhooks", "pause", &paused.to_string()]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1h,repeat").start();
    let event = of(Event::new("t"), text("a"));
    sandbox.publish(&event);
    receiver.wait_at("/w", 1);
    let why = |id: Uuid| {
        let id = id.to_string();
        unwrapped(&sandbox.command(&["why", &event.id, "--webhook", &id]).stdout)
    };
    let states = [(waiting, "waits for attempt 2"), (paused, "the backlog of its webhook")];
    for (id, state) in states {
        let output = wait_for(SOON, "it is logged", || {
            Some(why(id)).filter(|output| output.contains(state))
        });
        assert!(!output.contains("other_account"), "{output}");
    }
    // Otherwise what is paused would be dead as soon as the notifier knows of the change.
    notifier.terminate();
    for (id, state) in states {
        set_account(&sandbox, id, Some("b"));
        let output = why(id);
        for part in [
            state,
            r#"it will be dead then, other_account: it belongs to account "b", the event to account "a""#,
            &format!("`webhooks set {id} --account a`"),
        ] {
            assert!(output.contains(part), "no {part:?} in {output}");
        }
    }
}

#[test]
fn why_names_no_account_for_what_was_logged_before_there_were_accounts() {
    let sandbox = Sandbox::new();
    let id = webhook(&sandbox, "https://example.org/", &["t"], Some("a")).to_string();
    let other = webhook(&sandbox, "https://example.org/2", &["t"], Some("b")).to_string();
    let why = |event: &str, ago: &str| {
        sandbox.database.run_script(&format!(
            "INSERT INTO delivery_attempts
                 (event_id, event_type, webhook_id, queue, outcome, attempt, status, detail, at)
             VALUES ('{event}', 't', '{id}', 'q', 'delivered', 1, 200, '', now() - interval '{ago}')"
        ));
        unwrapped(&sandbox.command(&["why", event]).stdout)
    };
    let before = why("before", "1 day");
    assert!(before.contains(&other) && !before.contains("but it belongs to"), "{before}");
    let after = why("after", "0");
    assert_eq!(after.matches("but it belongs to account").count(), 2, "{after}");
}

#[test]
fn a_malformed_dead_letter_belongs_to_the_account_in_its_body_or_to_none() {
    let sandbox = Sandbox::new();
    sandbox.webhook("https://example.org/", &["*"]);
    let notifier = sandbox.notifier().start();
    let no_type = r#"{"account":"a"}"#;
    sandbox.publish(&of(Event::raw(no_type).id("unset"), text("")));
    sandbox.publish(&of(Event::raw(no_type).id("odd"), AmqpValue::Boolean(true)));
    let malformed = [("reason", "malformed")];
    notifier.wait_metric("webhook_dead_letters_total", &malformed, 2.0);
    let of_a = ["dead-letters", "list", "--each", "--json", "--account", "a"];
    let listed = json(&succeed(&sandbox, &of_a));
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["event_id"], "unset");
    let output = unwrapped(&sandbox.command(&["why", "odd"]).stdout);
    assert!(output.contains("malformed, in") && !output.contains("1a}"), "{output}");
    notifier.terminate();
}

#[test]
fn an_account_outside_the_databases_encoding_is_logged_as_receivers_get_it() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let database = EncodedDatabase::new(&sandbox, "LATIN1");
    let command = |arguments: &[&str]| database.command(arguments);
    assert_eq!(command(&["webhooks", "add", &receiver.url("/all"), "*"]).code, Some(0));
    let own = ["webhooks", "add", &receiver.url("/own"), "*", "--account", "größe"];
    assert_eq!(command(&own).code, Some(0));
    let notifier =
        sandbox.notifier().env("DATABASE_URL", &database.url).env("DELIVERY_LOG", "all").start();
    let (lacked, held) = (of(Event::new("t"), text("日本")), of(Event::new("t"), text("größe")));
    sandbox.broker.publish(sandbox.queue(), &[lacked.clone(), held.clone()]);
    receiver.wait_at("/all", 2);
    receiver.wait_at("/own", 1);
    let why = |event: &Event, account: &[&str]| {
        wait_for(SOON, "it is logged", || {
            let output = command(&[&["why", &event.id], account].concat());
            Some(unwrapped(&output.stdout)).filter(|output| output.contains("by attempt 1"))
        })
    };
    for account in [&[][..], &["--account", "日本"]] {
        let output = why(&lacked, account);
        assert!(output.contains(r#"but it belongs to account "größe""#), "{output}");
    }
    assert!(why(&lacked, &[]).contains("account %E6%97%A5%E6%9C%AC"));
    let output = why(&held, &[]);
    assert!(!output.contains("but it belongs to"), "{output}");
    let listed = command(&["webhooks", "list", "--account", "日本", "--json"]);
    assert_eq!((listed.code, json(&listed.stdout).as_array().map(Vec::len)), (Some(0), Some(0)));
    notifier.terminate();
}

#[test]
fn commands_publish_list_follow_and_filter_by_account() {
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
        // After the first 410, the second event may have no receiver left.
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
    assert!(added.stderr.contains(r#"the spaces around the account "a " are part"#), "{added:?}");
}

#[test]
fn migrate_names_the_webhooks_whose_account_column_now_takes_effect() {
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

    // Nothing tells what was in a dropped column.
    sandbox.database.run_script("ALTER TABLE webhooks DROP COLUMN account CASCADE");
    let restored = sandbox.command(&["migrate"]);
    assert!(
        restored.stderr.contains("each webhook gets the events of all accounts"),
        "{restored:?}"
    );
    assert!(succeed(&sandbox, &["migrate"]).contains("nothing to do"));
}

#[test]
fn the_status_page_names_the_accounts_of_ailing_receivers_and_backlogs() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    webhook(&sandbox, &receiver.url("/a"), &["*"], Some("acme\u{202e}"));
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms,repeat")
        .env("CIRCUIT_BREAKER", "3,1h,1h")
        .start();
    notifier.wait_listening();
    for _ in 0..9 {
        sandbox.publish(&of(Event::new("order.paid"), text("acme\u{202e}")));
    }
    wait_until(LATER, "both are listed with their account", || {
        let status = json(&notifier.get("/status.json").body);
        let of = |part: &str| status[part]["listed"][0]["account"].clone();
        // In the form in which it can be shown.
        of("receivers") == "acme\\u{202e}" && of("backlogs") == "acme\\u{202e}"
    });
    notifier.terminate();
}
