//! A backlog is needed, but can't be created.

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::{Customer, Manner, held, oldest_parked, publish};
use crate::harness::{LATER, Notifier, Proxy, SOON, Sandbox, holds_for, wait_until};

/// Checks that it is logged that no backlog can be created for that webhook, and each cause once. The end
/// of a connection and a refused one are two causes.
#[track_caller]
fn assert_reported(notifier: &Notifier, webhook: Uuid) {
    let stderr = notifier.stderr();
    let is_one = |line: &&String| {
        line.contains("WARN")
            && line.contains("backlog not created")
            && line.contains(&webhook.to_string())
    };
    let cause = |line: &String| line.split_once("cause=").map(|(_, cause)| cause.to_owned());
    let causes: Vec<_> = stderr.iter().filter(is_one).map(cause).collect();
    let different: BTreeSet<_> = causes.iter().collect();
    assert!(!causes.is_empty() && different.len() == causes.len(), "{causes:?}");
}

/// Publishes events for a receiver that takes one request at a time, between `breaks` and `repairs`.
#[track_caller]
fn check(breaks: impl FnOnce(&Sandbox, &Proxy), repairs: impl FnOnce(&Sandbox, &Proxy)) {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(&sandbox.servers.database_url);
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    sandbox.database.execute("UPDATE webhooks SET max_in_flight = 1 WHERE id = $1", &[&webhook]);
    let mut notifier = sandbox
        .notifier()
        .env("DATABASE_URL", proxy.url(sandbox.database.url()))
        .env("REQUEST_TIMEOUT", "1m")
        .env("SHUTDOWN_TIMEOUT", "1m")
        .start();
    notifier.wait_listening();
    let first = publish(&sandbox, 1);
    customer.wait_accepted(SOON, &first);
    breaks(&sandbox, &proxy);

    // Until the others have left their queue, the receiver's only request doesn't end. Otherwise some of them
    // would follow it without needing a backlog: how many depends on the machine, since a delivery waits for
    // the end of a request for up to 100 ms, and the consumers that take the next ones start meanwhile.
    customer.becomes(Manner::Holds);
    let events = publish(&sandbox, 10);
    // In less than the minute after which the first of them is attempted again.
    wait_until(SOON, "one is in flight, and the others wait", || {
        held(&notifier, sandbox.queue()) == 9.0
    });
    assert_eq!(customer.requests(), 2);
    assert!(oldest_parked(&notifier, &sandbox) > 0.0);
    assert_reported(&notifier, webhook);
    customer.becomes(Manner::takes(50));
    wait_until(SOON, "the request ends", || customer.accepted() == 2);
    holds_for(Duration::from_secs(1), "the others wait", || customer.requests() == 2);
    assert!(sandbox.backlogs().is_empty());
    repairs(&sandbox, &proxy);

    // If a backlog still can't be created after the minute, some wait for another one.
    customer.wait_accepted(2 * LATER, &events);
    assert_reported(&notifier, webhook);
    assert!(notifier.is_running());
    notifier.wait_metric("webhook_request_success_total", &[], 11.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    assert_eq!(customer.most(), 1);
}

#[test]
fn while_postgresql_is_away_deliveries_that_need_a_backlog_wait_a_minute() {
    check(|_, proxy| proxy.refuse(), |_, proxy| proxy.thaw());
}

#[test]
fn while_no_row_can_be_written_deliveries_that_need_a_backlog_wait_a_minute() {
    let forbid = "ALTER TABLE backlogs ADD CONSTRAINT never CHECK (queue = '')";
    check(
        |sandbox, _| sandbox.database.run_script(forbid),
        |sandbox, _| sandbox.database.run_script("ALTER TABLE backlogs DROP CONSTRAINT never"),
    );
}
