//! Deliveries that a receiver can't take now wait in a queue of their own, its backlog, and are made in
//! order as soon as possible.

mod customer;
mod drains;
mod instances;
mod limits;
mod lost;
mod pauses;
mod restarts;
mod shared_limits;
mod unanswered;
mod webhooks;
mod without;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use amiquip::{AmqpValue, FieldTable};
use customer::{Customer, Manner};
use uuid::Uuid;

use crate::harness::{Event, Notifier, SOON, Sandbox, holds_for, notifier::Launch, wait_until};

/// The default capacity of a queue.
const CAPACITY: usize = 64;

fn events(count: usize) -> Vec<Event> {
    (0..count).map(|_| Event::new("order.paid")).collect()
}

fn publish(sandbox: &Sandbox, count: usize) -> Vec<Event> {
    let events = events(count);
    sandbox.broker.publish(sandbox.queue(), &events);
    events
}

/// How many deliveries of this queue were held back, for whatever reason.
fn held(notifier: &Notifier, queue: &str) -> f64 {
    notifier.metric("webhook_deliveries_held_total", &[("queue", queue)])
}

fn held_because(notifier: &Notifier, queue: &str, reason: &str) -> f64 {
    let labels = [("queue", queue), ("reason", reason)];
    notifier.metric("webhook_deliveries_held_total", &labels)
}

#[track_caller]
fn wait_held(notifier: &Notifier, sandbox: &Sandbox, count: usize) {
    wait_until(SOON, &format!("{count} are held back"), || {
        held(notifier, sandbox.queue()) >= count as f64
    });
    assert_eq!(held(notifier, sandbox.queue()), count as f64, "each is moved once");
}

/// The age of the oldest parked delivery, in seconds; 0 if there is none.
fn oldest_parked(notifier: &Notifier, sandbox: &Sandbox) -> f64 {
    let oldest =
        |queue: &str| notifier.metric("webhook_oldest_waiting_seconds", &[("queue", queue)]);
    oldest(sandbox.queue()).max(oldest(&sandbox.retry_queue()))
}

/// This webhook's only backlog for the first queue.
fn backlog(sandbox: &Sandbox, webhook: Uuid) -> String {
    format!("webhooks.backlog.{}.{webhook}", sandbox.queue())
}

/// The breaker opens when a second event fails at least a second after the first, and stays open for a
/// minute. A failed delivery waits for a minute, too.
fn with_a_breaker_for_a_minute(sandbox: &Sandbox) -> Launch {
    sandbox.notifier().env("CIRCUIT_BREAKER", "1,1m,1m").env("RETRY_SCHEDULE", "1m,repeat")
}

/// Publishes one event after another until the receiver's circuit breaker is open.
#[track_caller]
fn open_breaker(sandbox: &Sandbox, notifier: &Notifier) -> Vec<Event> {
    let mut published = Vec::new();
    wait_until(SOON, "its circuit breaker is open", || {
        let is_open = notifier.metric("webhook_circuit_breakers_open", &[]) >= 1.0;
        if !is_open {
            published.extend(publish(sandbox, 1));
        }
        is_open
    });
    published
}

#[test]
fn a_receiver_gets_what_it_missed_once_and_in_order_within_seconds_of_its_return() {
    let sandbox = Sandbox::alone(1);
    let customer = Customer::new(Manner::AT_ONCE);
    sandbox.webhook(&customer.url(), &["*"]);
    let notifier = sandbox.notifier().start();
    let mut events = publish(&sandbox, 20);
    customer.wait_accepted(SOON, &events);

    let left = Instant::now();
    customer.becomes(Manner::Refuses(503));
    events.extend(open_breaker(&sandbox, &notifier));
    let held_before = held(&notifier, sandbox.queue());
    events.extend(publish(&sandbox, 100));
    let opened = [("state", "open")];
    wait_until(SOON, "two probes fail", || {
        notifier.metric("webhook_circuit_breaker_transitions_total", &opened) >= 3.0
    });
    let late = publish(&sandbox, 100);
    events.extend(late.iter().cloned());
    wait_until(SOON, "all are held back", || {
        held(&notifier, sandbox.queue()) >= held_before + 200.0
    });
    let refused = customer.requests() - 20;

    customer.becomes(Manner::takes(5));
    let returned = Instant::now();
    let outage = returned - left;
    wait_until(SOON, "the first of them arrives", || customer.accepted_of(&late) > 0);
    // These queue behind the waiting ones.
    events.extend(publish(&sandbox, 50));
    customer.wait_accepted(SOON, &late);
    let took = returned.elapsed();
    // A probe is made after at most a quarter of the outage. Then the receiver needs some seconds for the events
    // that it missed.
    assert!(took < outage / 4 + Duration::from_secs(5), "{took:?} after {outage:?}");
    // A failed delivery waits according to the schedule: up to 16 s.
    customer.wait_accepted(SOON, &events);
    notifier.wait_metric("webhook_request_success_total", &[], events.len() as f64);
    customer.assert_each_once(&events);
    // Up to a capacity may be reordered on the way into the backlog, and again on the way out.
    customer.assert_in_order(&events, 2 * CAPACITY);

    let failures = notifier.metric("webhook_request_failure_total", &[]);
    assert_eq!(failures, (customer.requests() - events.len()) as f64);
    assert!(failures >= refused as f64);
    let retries = notifier.metric("webhook_retries_scheduled_total", &[]);
    assert_eq!(retries, failures, "each failed attempt is parked once, and nothing else is");
    assert!(held(&notifier, sandbox.queue()) <= events.len() as f64, "each is moved at most once");
    assert!(held(&notifier, &sandbox.retry_queue()) <= retries, "each retry at most once");
    let from_backlog = format!("{}.backlog", sandbox.queue());
    assert_eq!(held(&notifier, &from_backlog), 0.0, "nothing returns to the backlog");
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}

#[test]
fn a_burst_for_a_new_receiver_is_not_parked_and_delays_no_neighbour() {
    let sandbox = Sandbox::alone(1);
    let distant = Customer::new(Manner::takes(300));
    let near = Customer::new(Manner::AT_ONCE);
    sandbox.webhook(&distant.url(), &["order.paid"]);
    sandbox.webhook(&near.url(), &["near"]);
    let notifier = sandbox.notifier().start();
    let near_event = || Event::new("near");
    let first = near_event();
    sandbox.publish(&first);
    near.wait_accepted(SOON, std::slice::from_ref(&first));

    let events = publish(&sandbox, 100);
    let mut slowest = Duration::ZERO;
    let mut neighbours = 0;
    wait_until(SOON, "all arrive", || {
        let (event, published) = (near_event(), Instant::now());
        sandbox.publish(&event);
        near.wait_accepted(SOON, std::slice::from_ref(&event));
        slowest = slowest.max(published.elapsed());
        neighbours += 1;
        distant.accepted_of(&events) == 100
    });
    // Usually milliseconds; more only on a busy machine.
    assert!(slowest < Duration::from_secs(2), "a neighbour's event arrived after {slowest:?}");
    assert!(neighbours >= 5, "only {neighbours} events of the neighbour meanwhile");
    distant.assert_each_once(&events);
    distant.assert_in_order(&events, CAPACITY);
    notifier.wait_metric("webhook_request_success_total", &[], 101.0 + f64::from(neighbours));
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0);
    assert_eq!(oldest_parked(&notifier, &sandbox), 0.0);
    assert!(held(&notifier, sandbox.queue()) <= 100.0, "each is moved at most once");
    assert_eq!(held(&notifier, &sandbox.retry_queue()), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
}

/// A delivery as parked by an older version.
fn parked_long_ago(webhook: Uuid, queue: &str, attempts: i64) -> Event {
    let event = Event::new("order.paid");
    let text = |text: &str| AmqpValue::LongString(text.to_owned());
    let headers = FieldTable::from([
        (String::from("x-event-id"), text(&event.id)),
        (String::from("x-event-type"), text("order.paid")),
        (String::from("x-webhook-id"), text(&webhook.to_string())),
        (String::from("x-attempt"), AmqpValue::LongLongInt(attempts)),
        (String::from("x-first-received-at"), AmqpValue::LongLongInt(now_millis())),
        (String::from("x-last-error"), text("no attempt yet: its turn comes later")),
        (String::from("x-origin-queue"), text(queue)),
        (String::from("x-deferrals"), AmqpValue::LongLongInt(7)),
        (String::from("x-turn-at"), AmqpValue::LongLongInt(now_millis() + 3_600_000)),
    ]);
    event.headers(headers)
}

fn now_millis() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since.expect("after 1970").as_millis()).expect("it is small")
}

#[test]
fn deliveries_parked_by_an_older_version_arrive_at_once_or_through_the_backlog() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let paused = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let paused_webhook = sandbox.webhook(&paused.url(), &["*"]);
    pauses::set_paused(&sandbox, paused_webhook, true);
    let notifier = sandbox.notifier().start();
    let parked = |webhook| -> Vec<_> {
        (0..10).map(|n| parked_long_ago(webhook, sandbox.queue(), n % 2)).collect()
    };
    let (at_once, later) = (parked(webhook), parked(paused_webhook));
    sandbox.broker.publish(&sandbox.retry_queue(), &[&later[..], &at_once[..]].concat());

    customer.wait_accepted(SOON, &at_once);
    // Half of them were never attempted, and count for the event queue.
    let paused_in = |queue: &str| held_because(&notifier, queue, "paused");
    wait_until(SOON, "the others wait", || {
        paused_in(&sandbox.retry_queue()) == 5.0 && paused_in(sandbox.queue()) == 5.0
    });
    assert_eq!(paused.requests(), 0);
    pauses::set_paused(&sandbox, paused_webhook, false);
    paused.wait_accepted(SOON, &later);
    notifier.wait_metric("webhook_request_success_total", &[], 20.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&at_once);
    paused.assert_each_once(&later);
}

#[test]
fn a_delivery_that_becomes_too_old_in_a_backlog_is_dead_while_the_breaker_is_open() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::Refuses(503));
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    let notifier = with_a_breaker_for_a_minute(&sandbox)
        .env("QUEUES", sandbox.one_at_a_time())
        .env("DELIVERY_MAX_AGE", "4s")
        .start();
    let attempted = open_breaker(&sandbox, &notifier);
    let waiting = publish(&sandbox, 20);
    let ids: BTreeSet<_> = waiting.iter().map(|event| event.id.as_str()).collect();

    let mut letters = Vec::new();
    wait_until(SOON, "all are dead", || {
        letters.extend(sandbox.broker.take_all(&sandbox.dead_queue()).expect("it answers"));
        letters
            .retain(|letter| attempted.iter().all(|event| event.id != letter.text("x-event-id")));
        letters.len() >= waiting.len()
    });
    let was_attempted = || customer.arrivals().iter().any(|one| ids.contains(one.id.as_str()));
    assert!(!was_attempted(), "none was attempted");
    assert_eq!(letters.len(), waiting.len());
    assert_eq!(ids, letters.iter().map(|letter| letter.text("x-event-id")).collect());
    for letter in &letters {
        assert_eq!(letter.text("x-dead-reason"), "expired");
        assert_eq!(letter.text("x-webhook-id"), webhook.to_string());
        assert_eq!(letter.number("x-attempt"), Some(0));
        assert!(letter.text("x-last-error").starts_with("no attempt yet"), "{letter:?}");
    }
    let backlog = backlog(&sandbox, webhook);
    wait_until(SOON, "the backlog is empty", || sandbox.broker.ready(&backlog) == Some(0));
    holds_for(Duration::from_millis(300), "none is attempted", || !was_attempted());
}

#[test]
fn the_head_of_a_backlog_that_was_returned_often_is_attempted_later_and_not_dropped() {
    let sandbox = Sandbox::new();
    let customer = Customer::new(Manner::AT_ONCE);
    let webhook = sandbox.webhook(&customer.url(), &["*"]);
    pauses::set_paused(&sandbox, webhook, true);
    let launch = || sandbox.notifier().env("QUEUES", sandbox.one_at_a_time());
    let notifier = launch().start();
    let events = publish(&sandbox, 3);
    wait_held(&notifier, &sandbox, 3);
    notifier.terminate();
    let backlog = backlog(&sandbox, webhook);
    wait_until(SOON, "all wait", || sandbox.broker.ready(&backlog) == Some(3));
    sandbox.broker.bounce_by_consumer(&backlog, 15);
    pauses::set_paused(&sandbox, webhook, false);

    let notifier = launch().start();
    customer.wait_accepted(SOON, &events[1..]);
    let from_backlog = format!("{}.backlog", sandbox.queue());
    wait_until(SOON, "the first is held back", || {
        held_because(&notifier, &from_backlog, "interrupted") == 1.0
    });
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
    customer.wait_accepted(crate::harness::LATER, &events);
    notifier.wait_metric("webhook_request_success_total", &[], 3.0);
    notifier.terminate();
    sandbox.wait_drained();
    customer.assert_each_once(&events);
}
