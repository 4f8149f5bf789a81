//! Two instances share the queues. One of them consumes a backlog; if it is killed, the other one does.

use std::time::{Duration, Instant};

use super::{Customer, Manner, backlog, held, open_breaker, publish, with_a_breaker_for_a_minute};
use crate::harness::{Event, LATER, Notifier, SOON, Sandbox, wait_until};

fn probes(notifier: &Notifier) -> f64 {
    let state = [("state", "half_open")];
    notifier.metric("webhook_circuit_breaker_transitions_total", &state)
}

/// Publishes events until one of the two instances has opened the receiver's breaker.
#[track_caller]
fn open_breaker_of_one(sandbox: &Sandbox, instances: &[Notifier; 2]) -> Vec<Event> {
    let mut published = Vec::new();
    wait_until(SOON, "its circuit breaker is open", || {
        let is_open =
            |notifier: &Notifier| notifier.metric("webhook_circuit_breakers_open", &[]) >= 1.0;
        let is_open = instances.iter().any(is_open);
        if !is_open {
            published.extend(publish(sandbox, 2));
        }
        is_open
    });
    published
}

#[test]
fn of_two_instances_one_probes_a_receiver_that_is_away() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    sandbox.webhook(&customer.url(), &["*"]);
    let launch = || {
        let launch = sandbox.notifier().env("CIRCUIT_BREAKER", "2,1s,1s");
        launch.env("RETRY_SCHEDULE", "10m,repeat")
    };
    let instances = [launch().start(), launch().start()];
    open_breaker_of_one(&sandbox, &instances);
    wait_until(SOON, "both know of the backlog", || {
        publish(&sandbox, 2);
        instances.iter().all(|notifier| held(notifier, sandbox.queue()) > 0.0)
    });
    publish(&sandbox, 50);
    // Requests that were in flight when the breaker opened have been answered.
    let start = [0, 1].map(|n| probes(&instances[n]));
    wait_until(SOON, "it is probed", || [0, 1].iter().any(|n| probes(&instances[*n]) > start[*n]));
    let start = [0, 1].map(|n| probes(&instances[n]));
    let (requests, began) = (customer.requests(), Instant::now());
    wait_until(SOON, "it is probed again and again", || customer.requests() >= requests + 5);
    let took = began.elapsed();
    // Jitter shortens a pause by at most a fifth. Two independent instances would send twice as many
    // probes.
    assert!(took >= Duration::from_millis(3_100), "five probes in {took:?}");
    let more = [0, 1].map(|n| probes(&instances[n]) - start[n]);
    assert!(more.contains(&0.0), "both probed: {more:?}");
}

#[test]
fn if_the_instance_that_consumes_a_backlog_is_killed_the_other_probes_and_continues_at_once() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let launch = || with_a_breaker_for_a_minute(&sandbox).env("CIRCUIT_BREAKER", "1,5m,5m");
    let first = launch().start();
    let failed = open_breaker(&sandbox, &first);
    let before = held(&first, sandbox.queue());
    let mut waiting = publish(&sandbox, 30);
    wait_until(SOON, "they wait", || held(&first, sandbox.queue()) >= before + 30.0);
    // The other instance knows of the backlog before it gets events.
    let mut second = launch().start();
    let line = second.wait_stderr(SOON, "backlog opened");
    assert!(line.contains(&backlog(&sandbox, webhook)), "{line}");
    let requests = customer.requests();
    let held_by_second = || held(&second, sandbox.queue());
    wait_until(SOON, "the other instance has got some events", || {
        waiting.extend(publish(&sandbox, 10));
        held_by_second() > 0.0
    });
    let all = before + f64::from(u32::try_from(waiting.len()).expect("few"));
    wait_until(SOON, "all are held back", || {
        held(&first, sandbox.queue()) + held_by_second() >= all
    });
    assert_eq!(customer.requests(), requests, "no instance probes the receiver");

    customer.becomes(Manner::takes(5));
    let died = Instant::now();
    first.kill();
    customer.wait_accepted(SOON, &waiting);
    let took = died.elapsed();
    assert!(took < Duration::from_secs(15), "all arrived only after {took:?}");
    customer.assert_each_once(&waiting);
    customer.wait_accepted(LATER, &failed);
    second.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&failed);
}

#[test]
fn if_the_instance_that_drains_a_backlog_is_killed_the_other_continues() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::takes(50));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    super::pauses::set_paused(&sandbox, webhook, true);
    let mut instances = Vec::from([sandbox.notifier().start(), sandbox.notifier().start()]);
    let events = publish(&sandbox, 600);
    wait_until(SOON, "all wait", || {
        instances.iter().map(|one| held(one, sandbox.queue())).sum::<f64>() == 600.0
    });
    super::pauses::set_paused(&sandbox, webhook, false);
    wait_until(SOON, "it drains", || customer.accepted() >= 150);
    let by = |one: &Notifier| one.metric("webhook_request_success_total", &[]);
    // Both may have delivered events before: see which one delivers now.
    let start: Vec<f64> = instances.iter().map(by).collect();
    wait_until(SOON, "one of them continues", || {
        by(&instances[0]) + by(&instances[1]) > 30.0 + start.iter().sum::<f64>()
    });
    let consuming = usize::from(by(&instances[1]) - start[1] > by(&instances[0]) - start[0]);
    instances.remove(consuming).kill();
    let by_other = by(&instances[0]);
    let before = customer.accepted();
    assert!(before < 550, "{before} of 600 before the end");
    let died = Instant::now();
    wait_until(SOON, "the other continues", || by(&instances[0]) > by_other + 20.0);
    assert!(died.elapsed() < Duration::from_secs(10), "after {:?}", died.elapsed());
    customer.wait_accepted(LATER, &events);
    sandbox.drain(instances, || sandbox.notifier());
    let repeats = customer.repeats(&events);
    assert!(repeats <= super::CAPACITY, "{repeats} events were repeated");
}
