//! A webhook's limits apply to its events, its backlogs and its retries together.

use std::time::Instant;

use super::{CAPACITY, Customer, Manner, events, held, oldest_parked, publish};
use crate::harness::{LATER, Receiver, Reply, SOON, Sandbox, wait_until};

/// Requests per second, and how many may follow one another at once after a pause.
const RATE: usize = 20;

#[test]
fn a_rate_holds_for_events_backlog_and_retries_together_and_all_arrive() {
    let sandbox = Sandbox::new();
    // Every fifth event fails once.
    let firsts = std::sync::atomic::AtomicUsize::new(0);
    let receiver = Receiver::answering(move |request| {
        let is_fifth = request.attempt == 1
            && firsts.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 5 == 4;
        Reply::Status(if is_fifth { 500 } else { 200 })
    });
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let rate = format!("UPDATE webhooks SET rate_per_second = {RATE} WHERE id = $1");
    sandbox.database.execute(&rate, &[&webhook]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("RETRY_SCHEDULE", "1s")
        .start();
    let began = Instant::now();
    let mut all = publish(&sandbox, 60);
    wait_until(SOON, "some have arrived", || receiver.requests().len() >= 30);
    // While there is a backlog, and retries are due.
    all.extend(publish(&sandbox, 40));

    wait_until(LATER, "all arrive", || {
        notifier.metric("webhook_request_success_total", &[]) == 100.0
    });
    let requests = receiver.requests();
    assert_eq!(requests.len(), 120);
    // However late a request arrives, it must not have begun before its time.
    for (before, request) in requests.iter().enumerate() {
        let earliest = (before + 1).saturating_sub(RATE) as f64 / RATE as f64;
        let at = (request.at - began).as_secs_f64();
        assert!(at >= earliest, "request {} was made after {at} s", before + 1);
    }
    let retries = notifier.metric("webhook_retries_scheduled_total", &[]);
    assert_eq!(retries, 20.0);
    assert!(held(&notifier, sandbox.queue()) <= 100.0, "each is moved at most once");
    assert!(held(&notifier, &sandbox.retry_queue()) <= retries, "each retry at most once");
    assert_eq!(held(&notifier, &format!("{}.backlog", sandbox.queue())), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
    let first = requests.iter().filter(|request| request.attempt == 1).map(|request| request.id());
    let place = |id: &str| all.iter().position(|event| event.id == id).expect("it was published");
    let places: Vec<_> = first.map(place).collect();
    assert_eq!(places.len(), 100);
    for (at, place) in places.iter().enumerate() {
        // After a stall of the machine, as many requests as were saved up meanwhile are in flight
        // together.
        assert!(at.abs_diff(*place) < RATE, "event {place} was request {at}: {places:?}");
    }
}

#[test]
fn a_receiver_with_one_request_at_a_time_gets_all_events_in_order_with_one_move_each() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::takes(20));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    sandbox.database.execute("UPDATE webhooks SET max_in_flight = 1 WHERE id = $1", &[&webhook]);
    let notifier = sandbox.notifier().start();
    let mut all = publish(&sandbox, 60);
    wait_until(SOON, "some have arrived", || customer.accepted() >= 20);
    all.extend(publish(&sandbox, 60));
    customer.wait_accepted(SOON, &all);

    notifier.wait_metric("webhook_request_success_total", &[], 120.0);
    assert_eq!(customer.most(), 1);
    customer.assert_each_once(&all);
    customer.assert_in_order(&all, CAPACITY);
    assert!(held(&notifier, sandbox.queue()) <= 120.0, "each is moved at most once");
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0);
    assert_eq!(oldest_parked(&notifier, &sandbox), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[track_caller]
fn check_two_queues(limit: &str) {
    let sandbox = Sandbox::with_queues(2);
    let customer = Customer::new(Manner::takes(50));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    sandbox.database.execute(&format!("UPDATE webhooks SET {limit} WHERE id = $1"), &[&webhook]);
    let notifier = sandbox.notifier().start();
    // Far more than can be delivered during the test: the first queue has a long backlog when the second gets
    // its events.
    let first = publish(&sandbox, 400);
    let second = events(400);
    wait_until(SOON, "the first has a backlog", || held(&notifier, sandbox.queue()) >= 50.0);
    sandbox.broker.publish(&sandbox.queues[1], &second);
    wait_until(SOON, "the other has one, too", || held(&notifier, &sandbox.queues[1]) >= 50.0);

    let accepted = || [&first, &second].map(|events| customer.accepted_of(events));
    let before = accepted();
    let began = Instant::now();
    wait_until(SOON, "both backlogs drain", || {
        let now = accepted();
        now[0] >= before[0] + 10 && now[1] >= before[1] + 10
    });
    let (now, took) = (accepted(), began.elapsed());
    let more = [now[0] - before[0], now[1] - before[1]];
    // They take turns, but on a busy machine one of them may begin late.
    let [fewer, most] = [more[0].min(more[1]), more[0].max(more[1])];
    assert!(most <= 4 * fewer, "{before:?} became {now:?} in {took:?}");
    assert!(now[0] < 400 && now[1] < 400, "one backlog was empty already: {now:?}");
    customer.assert_in_order(&first, CAPACITY);
    customer.assert_in_order(&second, CAPACITY);
}

#[test]
fn the_backlogs_of_two_queues_share_the_rate_of_their_receiver() {
    check_two_queues("rate_per_second = 10");
}

#[test]
fn the_backlogs_of_two_queues_take_turns_if_one_request_may_be_in_flight() {
    check_two_queues("max_in_flight = 1");
}
