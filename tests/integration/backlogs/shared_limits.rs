//! A webhook's limits apply to all instances together.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Customer, Manner, held, held_because, publish};
use crate::harness::{
    LATER, Notifier, Proxy, SOON, Sandbox, holds_for, notifier::Launch, wait_for, wait_until,
};

/// More than the time after which a silent instance counts as dead: five heartbeats of three seconds, and
/// the one that was in flight.
const EXPIRY: Duration = Duration::from_secs(18);

/// A webhook with this limit, whose receiver answers after `millis` milliseconds.
fn limited(sandbox: &Sandbox, limit: &str, millis: u64) -> (Customer, Uuid) {
    let customer = Customer::new(Manner::takes(millis));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    sandbox.database.execute(&format!("UPDATE webhooks SET {limit} WHERE id = $1"), &[&webhook]);
    (customer, webhook)
}

/// How many instances it knows of, including itself.
fn known_instances(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_instances", &[])
}

#[track_caller]
fn wait_all_know(instances: &[Notifier]) {
    let count = instances.len() as f64;
    wait_until(SOON, "they know of each other", || {
        instances.iter().all(|one| known_instances(one) == count)
    });
}

/// Requests take at most a second, so that an instance knows soon that the others have none in flight.
fn launch(sandbox: &Sandbox) -> Launch {
    sandbox.notifier().env("REQUEST_TIMEOUT", "1s")
}

#[track_caller]
fn start(sandbox: &Sandbox, count: usize) -> Vec<Notifier> {
    let instances: Vec<Notifier> = (0..count).map(|_| launch(sandbox).start()).collect();
    wait_all_know(&instances);
    instances
}

fn delivered(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_request_success_total", &[])
}

/// The only instance that has delivered more than before, if there is exactly one.
fn only_sender(instances: &[Notifier], before: &[f64]) -> Option<usize> {
    let more: Vec<usize> =
        (0..instances.len()).filter(|n| delivered(&instances[*n]) > before[*n]).collect();
    (more.len() == 1).then(|| more[0])
}

#[test]
fn three_instances_together_use_all_of_a_webhooks_limit_and_no_more() {
    let sandbox = Sandbox::new();
    let (customer, webhook) = limited(&sandbox, "max_in_flight = 4", 200);
    let instances = start(&sandbox, 3);
    let mut events = publish(&sandbox, 60);
    wait_until(SOON, "some have arrived", || customer.accepted() >= 20);
    events.extend(publish(&sandbox, 60));
    customer.wait_accepted(SOON, &events);
    assert!((1..=4).contains(&customer.most()), "{} were in flight", customer.most());

    // One of them delivers everything that has to wait, and may use the whole limit.
    let before: Vec<f64> = instances.iter().map(delivered).collect();
    customer.forget_most();
    wait_until(SOON, "the whole limit is used", || {
        if customer.accepted() + 10 > events.len() {
            events.extend(publish(&sandbox, 20));
        }
        customer.most() == 4 && only_sender(&instances, &before).is_some()
    });
    customer.wait_accepted(SOON, &events);
    assert_eq!(customer.most(), 4);
    let shown = sandbox.command(&["webhooks", "show", &webhook.to_string()]).stdout;
    assert!(shown.contains("of 3 instances, which consumes its backlog"), "{shown}");
    let shown = sandbox.command(&["check"]).stdout;
    assert!(shown.contains("3 keep the limits of webhooks together"), "{shown}");
    for notifier in instances {
        notifier.terminate();
    }
    sandbox.wait_drained();
    customer.assert_each_once(&events);
    let rows = sandbox.database.query("SELECT FROM notifier_instances", &[]);
    assert!(rows.is_empty(), "each has deleted its entry");
}

#[test]
fn a_limit_too_small_for_three_instances_is_kept_by_one_and_nothing_starves() {
    let sandbox = Sandbox::with_queues(2);
    let (customer, _) = limited(&sandbox, "max_in_flight = 1", 20);
    let instances = start(&sandbox, 3);
    let mut events = publish(&sandbox, 60);
    let others = super::events(60);
    sandbox.broker.publish(&sandbox.queues[1], &others);
    events.extend(others);
    customer.wait_accepted(SOON, &events);
    assert_eq!(customer.most(), 1);
    assert!(only_sender(&instances, &[0.0; 3]).is_some(), "one delivers for both queues");
    let elsewhere = |one: &Notifier| held_because(one, sandbox.queue(), "elsewhere");
    assert!(instances.iter().map(elsewhere).sum::<f64>() >= 1.0);
    for notifier in instances {
        notifier.terminate();
    }
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn three_instances_together_keep_a_rate() {
    const RATE: usize = 12;
    let sandbox = Sandbox::new();
    let (customer, _) = limited(&sandbox, "rate_per_second = 12", 0);
    let instances = start(&sandbox, 3);
    let began = Instant::now();
    let mut events = publish(&sandbox, 60);
    wait_until(SOON, "some have arrived", || customer.accepted() >= 30);
    events.extend(publish(&sandbox, 60));
    customer.wait_accepted(LATER, &events);
    // However late a request arrives, it must not have begun before its time.
    let requests = customer.receiver.requests();
    for (before, request) in requests.iter().enumerate() {
        let earliest = (before + 1).saturating_sub(RATE) as f64 / RATE as f64;
        let at = (request.at - began).as_secs_f64();
        assert!(at >= earliest, "request {} was made after {at} s", before + 1);
    }
    for notifier in instances {
        notifier.terminate();
    }
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn if_the_instance_that_keeps_a_limit_is_killed_another_takes_it_over() {
    let sandbox = Sandbox::new();
    let (customer, _) = limited(&sandbox, "max_in_flight = 1", 20);
    let mut instances = start(&sandbox, 3);
    let first = publish(&sandbox, 10);
    customer.wait_accepted(SOON, &first);
    let sender = wait_for(SOON, "one delivers", || only_sender(&instances, &[0.0; 3]));
    let events = publish(&sandbox, 400);
    wait_until(SOON, "it continues", || customer.accepted() >= 60);
    instances.remove(sender).kill();
    customer.forget_most();

    let left = customer.accepted_of(&events);
    assert!(left < 350, "{left} of 400 have arrived before the kill");
    customer.wait_accepted(LATER, &events);
    wait_all_know(&instances);
    assert!(customer.most() <= 2, "one each of the new sender and the killed one");
    let rows = || sandbox.database.query("SELECT FROM notifier_instances", &[]).len();
    wait_until(SOON, "the entry of the killed one is deleted", || rows() == 2);
    sandbox.drain(instances, || launch(&sandbox));
    assert!(customer.repeats(&events) <= super::CAPACITY);
}

#[test]
fn the_others_know_at_once_if_an_instance_ends_or_restarts_at_its_address() {
    let sandbox = Sandbox::new();
    let mut instances = start(&sandbox, 3);
    let changed = Instant::now();
    instances.remove(0).terminate();
    wait_all_know(&instances);
    let address = instances[0].admin_address().to_string();
    instances.remove(0).kill();
    instances.push(launch(&sandbox).env("METRICS_ADDR", &address).start());
    wait_all_know(&instances);
    assert!(changed.elapsed() < EXPIRY, "after {:?}", changed.elapsed());
    let line = instances[0].wait_stderr(SOON, "instances alive=2");
    let port = instances[1].admin_address().port().to_string();
    assert!(line.contains(&format!(":{port}")), "{line}");
}

#[test]
fn instances_that_join_while_a_backlog_drains_add_nothing_to_the_limit() {
    let sandbox = Sandbox::new();
    let (customer, webhook) = limited(&sandbox, "max_in_flight = 4", 50);
    super::pauses::set_paused(&sandbox, webhook, true);
    let mut instances = start(&sandbox, 1);
    let events = publish(&sandbox, 600);
    wait_until(SOON, "all are held back", || held(&instances[0], sandbox.queue()) == 600.0);
    super::pauses::set_paused(&sandbox, webhook, false);
    wait_until(SOON, "it drains", || customer.accepted() >= 40);
    // It doesn't end before they have started.
    customer.becomes(Manner::takes(500));
    for _ in 0..3 {
        instances.push(launch(&sandbox).start());
    }
    wait_all_know(&instances);
    let before = customer.accepted();
    assert!(before < 550, "{before} of 600 had arrived before");
    customer.becomes(Manner::takes(50));
    customer.wait_accepted(LATER, &events);
    assert!(customer.most() <= 4, "{} were in flight", customer.most());
    for notifier in instances {
        notifier.terminate();
    }
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn while_postgresql_is_away_the_last_known_number_of_instances_is_kept() {
    let sandbox = Sandbox::new();
    let (customer, _) = limited(&sandbox, "max_in_flight = 2", 300);
    let proxy = Proxy::before(&sandbox.servers.database_url);
    let url = proxy.url(sandbox.database.url());
    let start = || launch(&sandbox).env("DATABASE_URL", &url).start();
    let mut instances = vec![start(), start()];
    wait_all_know(&instances);
    for notifier in &instances {
        notifier.wait_listening();
    }
    // One event after the other: in a backlog they would wait for PostgreSQL.
    wait_until(SOON, "both know the type of event", || {
        let event = publish(&sandbox, 1);
        customer.wait_accepted(SOON, &event);
        instances.iter().all(|one| delivered(one) >= 1.0)
    });
    proxy.refuse();
    customer.forget_most();
    let (began, requests) = (Instant::now(), customer.requests());
    holds_for(EXPIRY + Duration::from_secs(2), "they know of each other", || {
        publish(&sandbox, 1);
        instances.iter().all(|one| known_instances(one) == 2.0)
    });
    assert!(customer.requests() > requests, "nothing was sent in {:?}", began.elapsed());
    assert!(customer.most() <= 2, "{} were in flight", customer.most());
    proxy.thaw();
    holds_for(EXPIRY, "they know of each other", || {
        instances.iter().all(|one| known_instances(one) == 2.0)
    });
    instances.remove(0).terminate();
    wait_all_know(&instances);
}

#[test]
fn without_the_table_each_instance_keeps_limits_by_itself_and_logs_it_once() {
    let sandbox = Sandbox::new();
    sandbox.database.run_script("DROP TABLE notifier_instances");
    let (customer, webhook) = limited(&sandbox, "max_in_flight = 1", 200);
    let mut instances: Vec<Notifier> = (0..2).map(|_| launch(&sandbox).start()).collect();
    wait_until(SOON, "each delivers", || {
        publish(&sandbox, 2);
        instances.iter().all(|one| delivered(one) >= 1.0)
    });
    assert!(instances.iter().all(|one| known_instances(one) == 0.0));
    let page = instances[0].get("/status.json").body;
    assert!(page.contains("each keeps `max_in_flight` and `rate_per_second` by itself"), "{page}");
    let shown = sandbox.command(&["webhooks", "show", &webhook.to_string()]).stdout;
    assert!(!shown.contains("kept by"), "{shown}");
    let checked = sandbox.command(&["check"]).stdout;
    assert!(checked.contains("missing: table notifier_instances"), "{checked}");

    let migrated = sandbox.command(&["migrate"]).stdout;
    assert!(migrated.contains("table notifier_instances"), "{migrated}");
    wait_all_know(&instances);
    for notifier in &mut instances {
        let line = notifier.wait_stderr(SOON, "instances not known");
        assert!(line.contains("WARN") && line.contains("webhook-notifier migrate"), "{line}");
        assert_eq!(notifier.count_stderr(&["instances not known"]), 1);
        notifier.wait_stderr(SOON, "instances share the limits of webhooks again");
    }
    // The requests in flight of each instance end within a second.
    wait_until(SOON, "one request is in flight at a time", || {
        customer.forget_most();
        let before = customer.accepted();
        wait_until(SOON, "some more arrive", || {
            publish(&sandbox, 1);
            customer.accepted() >= before + 5
        });
        customer.most() <= 1
    });
}

#[test]
fn instances_with_different_queues_each_deliver_what_is_in_their_own() {
    let sandbox = Sandbox::with_queues(2);
    let (customer, _) = limited(&sandbox, "max_in_flight = 1", 20);
    let of = |queue: &str| launch(&sandbox).env("QUEUES", queue).start();
    let instances = [of(&sandbox.queues[0]), of(&sandbox.queues[1])];
    wait_all_know(&instances);
    let mut events = publish(&sandbox, 40);
    let others = super::events(40);
    sandbox.broker.publish(&sandbox.queues[1], &others);
    events.extend(others);
    customer.wait_accepted(SOON, &events);
    assert!(customer.most() <= 2, "{} were in flight", customer.most());
    customer.assert_each_once(&events);
}

#[test]
fn the_others_deliver_for_an_instance_that_has_lost_rabbitmq() {
    let sandbox = Sandbox::new();
    let customers: Vec<_> = (0..6).map(|_| limited(&sandbox, "max_in_flight = 1", 10).0).collect();
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let url = proxy.url(&sandbox.servers.amqp_url);
    let instances = [launch(&sandbox).start(), launch(&sandbox).env("AMQP_URL", url).start()];
    wait_all_know(&instances);
    let mut events = publish(&sandbox, 20);
    customers.iter().for_each(|customer| customer.wait_accepted(SOON, &events));
    assert!(instances.iter().all(|one| delivered(one) >= 1.0), "each delivers to some");

    proxy.refuse();
    let more = publish(&sandbox, 20);
    events.extend(more);
    customers.iter().for_each(|customer| customer.wait_accepted(LATER, &events));
    assert_eq!(customers.iter().map(Customer::most).max(), Some(1));
    assert_eq!(known_instances(&instances[0]), 1.0);
    // An instance whose row has lost its queues writes them again.
    sandbox.database.execute("UPDATE notifier_instances SET queues = '{}'", &[]);
    let with_queues = "SELECT FROM notifier_instances WHERE queues <> '{}'";
    wait_until(SOON, "the one that consumes queues has written them", || {
        sandbox.database.query(with_queues, &[]).len() == 1
    });
}

#[test]
fn an_entry_without_an_instance_counts_for_a_while_and_is_deleted() {
    let sandbox = Sandbox::new();
    let notifier = launch(&sandbox).start();
    notifier.wait_metric("webhook_instances", &[], 1.0);
    sandbox.database.run_script(
        "INSERT INTO notifier_instances (id, name, queues)
         VALUES (gen_random_uuid(), E'a\\nb', ARRAY[['x', NULL], ['y', 'z']])",
    );
    notifier.wait_metric("webhook_instances", &[], 2.0);
    notifier.wait_metric("webhook_instances", &[], 1.0);
    let rows = || sandbox.database.query("SELECT FROM notifier_instances", &[]).len();
    wait_until(SOON, "it is deleted", || rows() == 1);
    sandbox.database.run_script("TRUNCATE notifier_instances");
    wait_until(SOON, "the notifier has written its own entry again", || rows() == 1);
    assert_eq!(known_instances(&notifier), 1.0);
    notifier.terminate();
    assert_eq!(rows(), 0);
}

#[test]
fn once_nothing_waits_for_a_limit_each_instance_delivers_its_share_again() {
    let sandbox = Sandbox::new();
    // Slow enough that some of the first events have to wait, however busy the machine is.
    let (customer, _) = limited(&sandbox, "max_in_flight = 4", 500);
    let instances = start(&sandbox, 2);
    let mut events = publish(&sandbox, 40);
    wait_until(SOON, "some wait for the limit", || {
        if customer.accepted() + 20 > events.len() {
            events.extend(publish(&sandbox, 20));
        }
        instances.iter().any(|one| held(one, sandbox.queue()) >= 1.0)
    });
    customer.becomes(Manner::takes(30));
    customer.wait_accepted(SOON, &events);
    let elsewhere = || -> f64 {
        let of = |one: &Notifier| held_because(one, sandbox.queue(), "elsewhere");
        instances.iter().map(of).sum()
    };
    let senders =
        |before: &[f64]| (0..2).filter(|n| delivered(&instances[*n]) > before[*n]).count();
    let mut next_ten = || {
        let before: Vec<f64> = instances.iter().map(delivered).collect();
        let held_before = elsewhere();
        for _ in 0..10 {
            let event = publish(&sandbox, 1);
            customer.wait_accepted(SOON, &event);
            events.extend(event);
        }
        (senders(&before), elsewhere() - held_before)
    };
    // RabbitMQ decides which of them gets an event.
    wait_until(SOON, "events of the other one go through the backlog", || next_ten().1 >= 1.0);
    // That takes a minute, and the time until all instances know.
    wait_until(2 * LATER, "each delivers its own events", || next_ten() == (2, 0.0));
    customer.wait_accepted(SOON, &events);
    assert!(customer.most() <= 4, "{} were in flight", customer.most());
    for notifier in instances {
        notifier.terminate();
    }
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}
