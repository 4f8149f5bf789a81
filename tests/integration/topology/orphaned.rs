//! Deliveries that are due for a retry queue that no longer exists: they don't delay others, are reported, and
//! come back.

use amiquip::{AmqpValue, FieldTable};
use serde_json::Value;
use uuid::Uuid;

use super::{arguments, text};
use crate::harness::{
    Event, FaultServers, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Servers, Vhost,
    unwrapped, wait_until,
};

/// More than RabbitMQ takes out of a wait queue at a time.
const MANY: usize = 40;

/// Fails once.
fn receiver() -> Receiver {
    Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    })
}

fn many_parked(queue: &str, webhook: Uuid) -> Vec<Event> {
    (0..MANY).map(|_| Event::new("order.paid").parked(queue, webhook)).collect()
}

fn notifier(sandbox: &Sandbox, queue: &str) -> Notifier {
    let notifier = sandbox.notifier().env("QUEUES", queue).env("CIRCUIT_BREAKER", "off");
    notifier.env("RETRY_SCHEDULE", "1s,repeat").start()
}

fn dead_letters(sandbox: &Sandbox, queue: &str, arguments: &[&str]) -> String {
    let arguments = [&["dead-letters"], arguments].concat();
    let finished = sandbox.launch(&arguments).env("QUEUES", queue).spawn().finish(SOON);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

#[test]
fn a_missing_retry_queue_delays_nobody_and_its_deliveries_can_be_replayed() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 2);
    let [staying, leaving] = [&sandbox.queues[0], &sandbox.queues[1]];
    let receiver = receiver();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    notifier(&sandbox, leaving).terminate();
    let mut notifier_of_staying = notifier(&sandbox, staying);

    sandbox.broker.delete(&format!("{leaving}.retry")).expect("it was made");
    let stranded = many_parked(leaving, webhook);
    sandbox.broker.publish_to("webhooks.wait", &format!("1s.{leaving}"), &stranded);
    wait_until(SOON, "they are where an operator finds them", || {
        sandbox.broker.ready("webhooks.orphaned") == Some(MANY.try_into().expect("few"))
    });
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    wait_until(SOON, "retries of the other queue arrive", || receiver.of("/", &event).len() == 2);

    let orphaned = [("queue", "webhooks.orphaned")];
    notifier_of_staying.wait_metric("webhook_queue_messages", &orphaned, MANY as f64);
    let status = notifier_of_staying.get("/status.json").body;
    assert!(status.contains("40 orphaned deliveries."), "{status}");
    let listed = dead_letters(&sandbox, staying, &["list", "--json"]);
    let groups: Value = serde_json::from_str(&listed).expect("JSON");
    assert_eq!(groups[0]["queue"], leaving.as_str(), "{groups}");
    assert_eq!(groups[0]["reason"], "orphaned", "{groups}");
    assert_eq!(groups[0]["count"], MANY, "{groups}");
    assert_eq!(groups[0]["webhook_id"], webhook.to_string(), "{groups}");
    let listed = dead_letters(&sandbox, staying, &["list", "--queue", staying]);
    assert!(listed.contains("0  in total"), "{listed}");
    let why = unwrapped(&sandbox.command(&["why", &stranded[0].id]).stdout);
    for part in ["orphaned: its retry queue was gone", "it lies in webhooks.orphaned", leaving] {
        assert!(why.contains(part), "no {part} in {why}");
    }

    let stays = dead_letters(&sandbox, staying, &["replay"]);
    assert!(stays.contains(&format!("40 stay dead, no queue {leaving}.retry")), "{stays}");
    assert_eq!(sandbox.broker.ready("webhooks.orphaned"), Some(40));
    let notifier_of_leaving = notifier(&sandbox, leaving);
    let replayed = dead_letters(&sandbox, staying, &["replay", "--reason", "orphaned"]);
    assert!(replayed.contains("40 replayed"), "{replayed}");
    for event in &stranded {
        wait_until(SOON, "it is delivered", || receiver.of("/", event).len() >= 2);
    }
    notifier_of_staying.wait_metric("webhook_queue_messages", &orphaned, 0.0);
    assert!(notifier_of_staying.is_running());
    notifier_of_leaving.terminate();
    notifier_of_staying.terminate();
}

/// What an older version has created: `webhooks.retry` without an alternate exchange.
fn make_older_topology(sandbox: &Sandbox) {
    let queue = sandbox.queue();
    sandbox.broker.declare_exchange("webhooks.retry", FieldTable::new()).expect("a fresh name");
    sandbox.broker.declare_exchange("webhooks.wait", FieldTable::new()).expect("a fresh name");
    let retry = arguments([
        ("x-queue-type", text("quorum")),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(&sandbox.dead_queue())),
    ]);
    sandbox.broker.declare(&sandbox.retry_queue(), retry).expect("a fresh name");
    sandbox.broker.bind(&sandbox.retry_queue(), "webhooks.retry", &format!("*.{queue}"));
    let wait = arguments([
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", AmqpValue::LongLongInt(1_000)),
        ("x-dead-letter-exchange", text("webhooks.retry")),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
    ]);
    sandbox.broker.declare("webhooks.wait.1s", wait).expect("a fresh name");
    sandbox.broker.bind("webhooks.wait.1s", "webhooks.wait", "1s.#");
}

/// How long until RabbitMQ retries what found no way out of a wait queue, in milliseconds. It applies to
/// queues that are created afterwards.
fn tries_again_after(faults: &FaultServers, milliseconds: u32) {
    let set = format!(
        "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {milliseconds})"
    );
    faults.eval(&set);
}

/// RabbitMQ's default.
const BY_DEFAULT: u32 = 180_000;

#[test]
fn a_virtual_host_of_an_older_version_gets_the_new_topology_and_nothing_is_lost() {
    let faults = FaultServers::take();
    tries_again_after(&faults, 2_000);
    let vhost = Vhost::new(&faults);
    let servers: &Servers = &vhost.servers;
    let sandbox = Sandbox::on(servers, 1);
    let receiver = receiver();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    make_older_topology(&sandbox);
    // They delay those behind them.
    sandbox.broker.publish_to("webhooks.wait", "1s.former", &many_parked("former", webhook));
    let waiting = many_parked(sandbox.queue(), webhook);
    sandbox.broker.publish_to("webhooks.wait", &format!("1s.{}", sandbox.queue()), &waiting);

    let mut notifier = notifier(&sandbox, sandbox.queue());
    for event in &waiting {
        wait_until(LATER, "what waited is delivered", || receiver.of("/", event).len() >= 2);
    }
    wait_until(SOON, "the others are orphaned", || {
        sandbox.broker.ready("webhooks.orphaned") == Some(MANY.try_into().expect("few"))
    });
    let alternate = || arguments([("alternate-exchange", text("webhooks.orphaned"))]);
    let same = sandbox.broker.declare_exchange("webhooks.retry", alternate());
    assert!(same.is_ok(), "{same:?}");
    notifier.wait_stderr(SOON, "exchange webhooks.retry recreated");
    assert_eq!(notifier.metric("webhook_topology_lost_total", &[]), 0.0);
    notifier.terminate();
    tries_again_after(&faults, BY_DEFAULT);
    sandbox.wait_drained();
}

#[test]
fn deleted_exchanges_and_bindings_are_reported_and_created_again() {
    let faults = FaultServers::take();
    tries_again_after(&faults, 2_000);
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = receiver();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = notifier(&sandbox, sandbox.queue());
    let lost = |notifier: &Notifier, object: &str| {
        notifier.metric("webhook_topology_lost_total", &[("object", object)])
    };
    let expect_retry = |event: &Event| {
        wait_until(LATER, "its retry arrives", || receiver.of("/", event).len() >= 2);
    };

    sandbox.broker.delete_exchange("webhooks.retry");
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let line = notifier.wait_stderr(SOON, "exchange lost exchange=webhooks.retry");
    assert!(line.contains("ERROR"), "{line}");
    expect_retry(&event);
    assert_eq!(lost(&notifier, "exchange"), 1.0);

    sandbox.broker.delete_exchange("webhooks.wait");
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    expect_retry(&event);
    notifier.wait_stderr(SOON, "exchange lost exchange=webhooks.wait");
    assert_eq!(lost(&notifier, "exchange"), 2.0);

    sandbox.broker.unbind("webhooks.wait.1s", "webhooks.wait", "1s.#");
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    expect_retry(&event);
    notifier.wait_stderr(SOON, "binding lost binding=webhooks.wait.1s");
    assert_eq!(lost(&notifier, "binding"), 1.0);

    let key = format!("*.{}", sandbox.queue());
    sandbox.broker.unbind(&sandbox.retry_queue(), "webhooks.retry", &key);
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    let orphaned = || sandbox.broker.ready("webhooks.orphaned");
    wait_until(SOON, "it is bound again in time, or it is orphaned", || {
        receiver.of("/", &event).len() >= 2 || orphaned() == Some(1)
    });
    let mut others = Vec::new();
    wait_until(SOON, "retries arrive again", || {
        let other = Event::new("order.paid");
        sandbox.publish(&other);
        others.push(other);
        others.iter().any(|other| receiver.of("/", other).len() >= 2)
    });
    dead_letters(&sandbox, sandbox.queue(), &["replay"]);
    expect_retry(&event);
    assert_eq!(lost(&notifier, "queue"), 0.0);
    notifier.terminate();
    tries_again_after(&faults, BY_DEFAULT);
}
