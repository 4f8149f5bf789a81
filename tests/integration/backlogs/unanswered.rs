//! RabbitMQ doesn't answer requests about one backlog, because its quorum queue has no leader. Here the
//! queue's process is suspended, which looks the same from outside.

use super::{Customer, Manner, backlog, held, open_breaker, publish};
use crate::harness::{Event, FaultServers, LATER, SOON, Sandbox, Vhost, wait_until};

fn others(count: usize) -> Vec<Event> {
    (0..count).map(|_| Event::new("other")).collect()
}

#[test]
fn a_backlog_that_rabbitmq_does_not_answer_for_delays_nothing_else_and_loses_nothing() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let customer = Customer::new(Manner::Refuses(503));
    let other = Customer::new(Manner::takes(20));
    let webhook = sandbox.webhook(&customer.url(), &["order.paid"]);
    let other_webhook = sandbox.webhook(&other.url(), &["other"]);
    let slowly = "UPDATE webhooks SET max_in_flight = 1 WHERE id = $1";
    sandbox.database.execute(slowly, &[&other_webhook]);
    let launch = || {
        let few = format!("{}=8", sandbox.queue());
        sandbox.notifier().env("QUEUES", few).env("CIRCUIT_BREAKER", "1,1s,1s")
    };
    let mut notifier = launch().env("RETRY_SCHEDULE", "1m,repeat").start();
    open_breaker(&sandbox, &notifier);
    let before = held(&notifier, sandbox.queue());
    let mut events = publish(&sandbox, 20);
    wait_until(SOON, "all are held back", || held(&notifier, sandbox.queue()) >= before + 20.0);
    let queue = backlog(&sandbox, webhook);
    vhost.suspend(&queue);

    // More than the notifier can have in hand.
    events.extend(publish(&sandbox, 40));
    let some = others(200);
    sandbox.broker.publish(sandbox.queue(), &some);
    other.wait_accepted(LATER, &some);
    let line = notifier.wait_stderr(SOON, "queue confirms no messages");
    assert!(line.contains("WARN") && line.contains(&format!("queue={queue}:")), "{line}");
    assert_eq!(notifier.count_stderr(&["queue confirms no messages"]), 1);
    // A new process finds both backlogs.
    notifier.terminate();
    let mut notifier = launch().env("RETRY_SCHEDULE", "1s,repeat").start();
    let more = others(200);
    sandbox.broker.publish(sandbox.queue(), &more);
    other.wait_accepted(LATER, &more);
    let line = notifier.wait_stderr(SOON, "not usable");
    assert!(line.contains("ERROR") && line.contains(&format!("queue={queue}:")), "{line}");
    wait_until(SOON, "it is ready", || notifier.is_ready());
    other.assert_each_once(&[some, more].concat());
    assert_eq!(notifier.count_stderr(&["lane interrupted"]), 0);

    vhost.resume(&queue);
    customer.becomes(Manner::AT_ONCE);
    customer.wait_accepted(2 * LATER, &events);
    notifier.wait_stderr(SOON, "usable again");
    notifier.terminate();
}
