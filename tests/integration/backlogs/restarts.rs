//! What a notifier takes over from the table of backlogs when it starts: a receiver that was away is probed
//! first; one that is back, and whose backlog is empty, isn't down.

use std::time::Duration;

use serde_json::Value;

use super::{Customer, Manner, open_breaker, publish};
use crate::commands::{json, succeed};
use crate::harness::{Notifier, SOON, Sandbox, holds_for, notifier::Launch, wait_until};

/// Failed attempts wait for an hour, so that only the backlog's deliveries probe the receiver.
fn launch(sandbox: &Sandbox) -> Launch {
    sandbox
        .notifier()
        .env("CIRCUIT_BREAKER", "1,1s,1s")
        .env("RETRY_SCHEDULE", "1h,repeat")
        // So that an outage is recorded within seconds.
        .env("DISABLE_AFTER", "2h")
}

fn breakers_open(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_circuit_breakers_open", &[])
}

/// The cause in the only row of the table.
fn cause(sandbox: &Sandbox) -> String {
    let rows = sandbox.database.query("SELECT cause FROM backlogs WHERE until IS NULL", &[]);
    rows.first().map_or_else(String::new, |row| row.get(0))
}

/// Ends the outage, and waits until all events have arrived, except those whose attempt failed.
#[track_caller]
fn end_outage(customer: &Customer, notifier: &Notifier, events: usize) {
    customer.becomes(Manner::AT_ONCE);
    wait_until(SOON, "all have arrived", || {
        let failed = notifier.metric("webhook_retries_scheduled_total", &[]);
        breakers_open(notifier) == 0.0 && customer.accepted() as f64 + failed == events as f64
    });
}

/// An outage that is over.
fn after_an_outage(sandbox: &Sandbox, customer: &Customer) -> Notifier {
    let notifier = launch(sandbox).start();
    // Each probe costs one: there must be some left when the cause is recorded.
    let events = open_breaker(sandbox, &notifier).len() + publish(sandbox, 100).len();
    wait_until(SOON, "the cause is recorded", || {
        let row = "SELECT 1 FROM backlogs WHERE cause = 'breaker' AND until IS NOT NULL";
        !sandbox.database.query(row, &[]).is_empty()
    });
    end_outage(customer, &notifier, events);
    notifier
}

#[test]
fn when_a_backlog_is_empty_its_row_no_longer_says_that_the_receiver_is_away() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    sandbox.webhook(&customer.url(), &["*"]);
    let notifier = after_an_outage(&sandbox, &customer);
    wait_until(SOON, "nothing holds it up", || cause(&sandbox) == "behind");
    notifier.terminate();
}

#[test]
fn a_receiver_whose_backlog_is_empty_is_not_down_after_a_restart_whatever_the_row_says() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    sandbox.webhook(&customer.url(), &["*"]);
    let notifier = after_an_outage(&sandbox, &customer);
    wait_until(SOON, "it is drained", || cause(&sandbox) == "behind");
    notifier.terminate();
    // As a notifier leaves it that is killed before it records the end; and all instances have forgotten
    // the outage.
    sandbox.database.run_script(
        "UPDATE backlogs SET cause = 'breaker', since = now() - interval '50 minutes';
         DELETE FROM webhook_conditions",
    );

    let mut notifier = launch(&sandbox).start();
    notifier.wait_stderr(SOON, "backlog opened");
    holds_for(Duration::from_secs(8), "it is not down", || {
        breakers_open(&notifier) == 0.0
            && sandbox.database.query("SELECT 1 FROM webhook_conditions", &[]).is_empty()
    });
    let status: Value = serde_json::from_str(&notifier.get("/status.json").body).expect("JSON");
    assert_eq!(status["receivers"]["ailing"], 0, "{status}");
    let list = json(&succeed(&sandbox, &["webhooks", "list", "--json"]));
    assert_eq!(list[0]["state"], "enabled", "{list}");
    notifier.terminate();
}

#[test]
fn a_receiver_that_is_away_when_an_instance_starts_is_not_when_another_one_has_delivered_all() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    sandbox.webhook(&customer.url(), &["*"]);
    // With a capacity of one, an instance never consumes anew with a larger prefetch, so that no other one
    // gets its turn.
    let start = || launch(&sandbox).env("QUEUES", sandbox.one_at_a_time()).start();
    let first = start();
    let events = open_breaker(&sandbox, &first).len() + publish(&sandbox, 20).len();
    wait_until(SOON, "they wait", || super::held(&first, sandbox.queue()) >= 20.0);
    let second = start();
    wait_until(SOON, "it knows that the receiver is away", || breakers_open(&second) == 1.0);
    end_outage(&customer, &first, events);
    wait_until(SOON, "the other one learns of it", || breakers_open(&second) == 0.0);
    assert_eq!(second.metric("webhook_request_success_total", &[]), 0.0, "the first delivered");
    first.terminate();
    second.terminate();
}

#[test]
fn a_receiver_that_is_down_gets_only_probes_after_a_kill() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    sandbox.webhook(&customer.url(), &["*"]);
    let start = || {
        let launch = launch(&sandbox).env("RETRY_SCHEDULE", "2s,repeat");
        launch.env("CIRCUIT_BREAKER", "5,30s,30s").start()
    };
    let mut notifier = start();
    open_breaker(&sandbox, &notifier);
    let mut waiting = publish(&sandbox, 100);
    wait_until(SOON, "they wait", || super::held(&notifier, sandbox.queue()) >= 100.0);
    for _ in 0..4 {
        notifier.kill();
        waiting.extend(publish(&sandbox, 5));
        let before = customer.requests();
        notifier = start();
        wait_until(SOON, "the new ones wait, too", || {
            super::held(&notifier, sandbox.queue()) >= 5.0
        });
        holds_for(Duration::from_secs(2), "it is only probed", || {
            customer.requests() <= before + 3
        });
    }
    customer.becomes(Manner::AT_ONCE);
    notifier.kill();
    let notifier = start();
    customer.wait_accepted(SOON, &waiting);
    notifier.terminate();
}
