//! Queues that refuse messages: by policies with a maximal length, which are removed again. These tests
//! have their own virtual hosts, since a policy applies to all queues of a kind.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    Event, FaultServers, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Signal, Vhost, holds_for,
    wait_until,
};

/// Queues refuse messages after the first, until this is dropped.
struct Policy<'a>(&'a Vhost<'a>);

impl<'a> Policy<'a> {
    fn on(vhost: &'a Vhost<'a>, pattern: &str) -> Self {
        vhost.set_policy(pattern, r#"{"max-length":1,"overflow":"reject-publish"}"#);
        Self(vhost)
    }
}

impl Drop for Policy<'_> {
    fn drop(&mut self) {
        self.0.clear_policy();
    }
}

fn refused(notifier: &Notifier, queue: &str) -> f64 {
    notifier.metric("webhook_messages_refused", &[("queue", queue)])
}

/// Checks that a warning in the log names the queue, and that the metrics and the status page do.
#[track_caller]
fn assert_told(notifier: &mut Notifier, queue: &str) {
    let line = notifier.wait_stderr(SOON, "queue accepts no messages");
    assert!(line.contains("WARN") && line.contains(&format!("queue={queue}: ")), "{line}");
    wait_until(SOON, "the metrics show it", || {
        refused(notifier, queue) >= 1.0
            && notifier.metric("webhook_refusals_total", &[("queue", queue)]) >= 1.0
    });
    wait_until(SOON, "the status page shows it", || {
        let status = notifier.get("/status.json").body;
        status.contains(r#""state":"trouble""#)
            && status.contains(&format!("{queue} has accepted no messages for "))
    });
}

/// Checks that it is over, and that this is logged once.
#[track_caller]
fn assert_over(notifier: &mut Notifier, queue: &str) {
    let line = notifier.wait_stderr(SOON, "queue accepts messages again");
    assert!(line.contains(queue), "{line}");
    wait_until(SOON, "the metrics show it", || refused(notifier, queue) == 0.0);
    let warning =
        |line: &&String| line.contains("queue accepts no messages") && line.contains(queue);
    assert_eq!(notifier.stderr().iter().filter(warning).count(), 1);
}

fn events(kind: &str, count: usize) -> Vec<Event> {
    (0..count).map(|_| Event::new(kind)).collect()
}

/// Publishes malformed messages, of which the dead-letter queue takes the first few, and good ones after
/// them. Returns how many are malformed, and the good ones.
fn publish_some_malformed(sandbox: &Sandbox) -> (u32, Vec<Event>) {
    let malformed = || sandbox.publish(&Event::raw("malformed"));
    let dead = || sandbox.broker.ready(&sandbox.dead_queue());
    // RabbitMQ takes messages beyond the limit if they arrive together.
    let mut count = 0;
    let is_refused = |count: u32| {
        let end = Instant::now() + Duration::from_secs(1);
        while dead() != Some(count) {
            if Instant::now() >= end {
                return true;
            }
            thread::sleep(Duration::from_millis(20));
        }
        false
    };
    while count == 0 || !is_refused(count) {
        malformed();
        count += 1;
        assert!(count < 10, "the policy is in force");
    }
    malformed();
    let good = events("good", 200);
    sandbox.broker.publish(sandbox.queue(), &good);
    (count + 1, good)
}

#[track_caller]
fn assert_each(receiver: &Receiver, path: &str, events: &[Event], times: usize) {
    for event in events {
        assert_eq!(receiver.of(path, event).len(), times, "requests for {} at {path}", event.id);
    }
}

#[test]
fn events_settled_behind_a_refused_message_are_acked_without_it() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["good"]);
    let policy = Policy::on(&vhost, "^t.*[.]dead$");
    let mut notifier = sandbox.notifier().env("PREFETCH_COUNT", "50").start();
    let (malformed, good) = publish_some_malformed(&sandbox);
    receiver.wait_at("/", good.len());
    wait_until(SOON, "all good ones are settled", || {
        let of_queue = [("queue", sandbox.queue())];
        notifier.metric("webhook_event_processing_seconds_count", &of_queue) >= 200.0
    });
    // Time for the acks.
    holds_for(Duration::from_millis(500), "it runs", || notifier.is_running());
    notifier.kill();
    // What wasn't acked is redelivered: only the malformed ones.
    let consumers = || sandbox.broker.consumers(sandbox.queue());
    wait_until(SOON, "it no longer consumes", || consumers() == Some(0));
    holds_for(Duration::from_secs(1), "only these are redelivered", || {
        sandbox.broker.ready(sandbox.queue()) <= Some(2)
    });
    drop(policy);

    let notifier = sandbox.notifier().start();
    wait_until(SOON, "all are dead", || {
        sandbox.broker.ready(&sandbox.dead_queue()) >= Some(malformed)
    });
    sandbox.wait_drained();
    notifier.terminate();
    assert_each(&receiver, "/", &good, 1);
}

#[test]
fn a_dead_letter_queue_that_refuses_is_reported_and_used_again_when_it_takes_messages() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["good"]);
    let policy = Policy::on(&vhost, "^t.*[.]dead$");
    let mut notifier = sandbox.notifier().env("PREFETCH_COUNT", "50").start();
    let (malformed, mut good) = publish_some_malformed(&sandbox);
    receiver.wait_at("/", good.len());
    let dead_queue = sandbox.dead_queue();
    assert_told(&mut notifier, &dead_queue);
    // It is retried, and returns through a wait queue after some seconds.
    let retried = [("queue", sandbox.retry_queue())];
    let retried = retried.each_ref().map(|(name, value)| (*name, value.as_str()));
    wait_until(SOON, "it takes another way", || {
        notifier.metric("webhook_events_received_total", &retried) >= 1.0
    });
    assert!(sandbox.broker.ready(&dead_queue) < Some(malformed));
    let more = events("good", 20);
    sandbox.broker.publish(sandbox.queue(), &more);
    receiver.wait_at("/", good.len() + more.len());
    good.extend(more);
    drop(policy);

    wait_until(Duration::from_secs(15), "all are dead", || {
        sandbox.broker.ready(&dead_queue) == Some(malformed)
    });
    assert_over(&mut notifier, &dead_queue);
    sandbox.wait_drained();
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), f64::from(malformed));
    notifier.terminate();
    for _ in 0..malformed {
        let dead = sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "malformed", "{dead:?}");
        assert_eq!(dead.body, b"malformed", "{dead:?}");
        assert_eq!(dead.text("x-bound-for"), "", "{dead:?}");
    }
    assert_each(&receiver, "/", &good, 1);
}

#[test]
fn a_delivery_that_is_dead_is_not_attempted_again_because_its_queue_refuses_it() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::answering(|_| Reply::Status(500));
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let policy = Policy::on(&vhost, "^t.*[.]dead$");
    let mut notifier =
        sandbox.notifier().env("RETRY_SCHEDULE", "1s").env("CIRCUIT_BREAKER", "off").start();
    let all = events("order.paid", 12);
    sandbox.broker.publish(sandbox.queue(), &all);
    assert_told(&mut notifier, &sandbox.dead_queue());
    wait_until(LATER, "each has been tried twice", || receiver.requests().len() >= 24);
    // Meanwhile each circulates through a wait queue and the retry lane.
    holds_for(Duration::from_secs(10), "none is attempted a third time", || {
        receiver.requests().len() == 24
    });
    drop(policy);
    wait_until(LATER, "all are dead", || sandbox.broker.ready(&sandbox.dead_queue()) == Some(12));
    sandbox.wait_drained();
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), 12.0);
    notifier.terminate();
    assert_each(&receiver, "/", &all, 2);
    for _ in 0..12 {
        assert_eq!(sandbox.take_dead().number("x-attempt"), Some(2));
    }
}

#[test]
fn while_wait_queues_refuse_nothing_is_repeated_and_failed_deliveries_wait() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::answering(|request| match (request.path.as_str(), request.attempt) {
        ("/failing", 1) => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/healthy"), &["healthy", "both"]);
    sandbox.webhook(&receiver.url("/failing"), &["failing", "both"]);
    let policy = Policy::on(&vhost, "^webhooks[.]wait[.]");
    let mut notifier = sandbox
        .notifier()
        .env("PREFETCH_COUNT", "50")
        // Not 1s, so that this wait queue is the first to refuse.
        .env("RETRY_SCHEDULE", "9s,9s")
        .env("CIRCUIT_BREAKER", "off")
        .start();
    let both = events("both", 20);
    let mut failing = events("failing", 10);
    let healthy = events("healthy", 100);
    for events in [&both, &failing, &healthy] {
        sandbox.broker.publish(sandbox.queue(), events);
    }
    receiver.wait_at("/healthy", both.len() + healthy.len());
    let is_told = |delay: &str| {
        let warning = format!("queue accepts no messages queue=webhooks.wait.{delay}:");
        notifier.stderr().iter().any(|line| line.contains("WARN") && line.contains(&warning))
    };
    // RabbitMQ takes messages beyond the limit if they arrive together.
    wait_until(LATER, "both are logged", || {
        let more = events("failing", 2);
        sandbox.broker.publish(sandbox.queue(), &more);
        failing.extend(more);
        receiver.wait_at("/failing", both.len() + failing.len());
        is_told("9s") && is_told("1m")
    });
    wait_until(SOON, "they are counted", || {
        ["9s", "1m"]
            .iter()
            .any(|delay| refused(&notifier, &format!("webhooks.wait.{delay}")) >= 1.0)
    });
    drop(policy);

    receiver.wait_at_within(LATER, "/failing", 2 * (both.len() + failing.len()));
    wait_until(LATER, "it is counted", || {
        let second = both.len() + failing.len();
        let all = both.len() + healthy.len() + second;
        notifier.metric("webhook_request_success_total", &[]) == all as f64
    });
    sandbox.wait_drained();
    assert!(notifier.is_running());
    notifier.terminate();
    assert_each(&receiver, "/healthy", &[both.clone(), healthy].concat(), 1);
    assert_each(&receiver, "/failing", &[both, failing].concat(), 2);
    assert_eq!(sandbox.broker.ready(&sandbox.dead_queue()), Some(0));
}

#[test]
fn a_refusing_queue_that_is_deleted_and_created_again_takes_messages() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let policy = Policy::on(&vhost, "^t.*[.]dead$");
    let mut notifier = sandbox.notifier().start();
    let dead_queue = sandbox.dead_queue();
    let refusals = || notifier.metric("webhook_refusals_total", &[("queue", &dead_queue)]);
    // RabbitMQ takes messages beyond the limit if they arrive together.
    wait_until(LATER, "some are refused", || {
        sandbox.publish(&Event::raw("malformed"));
        refusals() >= 2.0
    });
    sandbox.broker.delete(&dead_queue).expect("it was made");
    notifier.wait_stderr(SOON, &format!("recreated queue={dead_queue}"));
    drop(policy);
    let line = notifier.wait_stderr(SOON, "queue accepts messages again");
    assert!(line.contains(&dead_queue), "{line}");
    wait_until(SOON, "the metrics show it", || refused(&notifier, &dead_queue) == 0.0);
    sandbox.wait_drained();
    notifier.terminate();
}

#[test]
fn the_parts_of_a_split_event_wait_for_a_refusing_retry_queue_and_arrive_once_each() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::answering(|_| Reply::Slow(Duration::from_millis(100), 200));
    let paths: Vec<_> = (0..40).map(|number| format!("/{number}")).collect();
    for path in &paths {
        sandbox.webhook(&receiver.url(path), &["order.paid"]);
    }
    sandbox.webhook(&receiver.url("/other"), &["other"]);
    let policy = Policy::on(&vhost, "^t.*[.]retry$");
    let mut notifier = sandbox.notifier().env("FANOUT_INLINE", "2").start();
    let (event, other) = (Event::new("order.paid"), Event::new("other"));
    // RabbitMQ takes messages beyond the limit if they arrive together, and refuses later ones. The
    // queue is emptied meanwhile, so that it takes one now and then.
    sandbox.publish(&event);
    let refusals = || {
        let of_queue = [("queue", &*sandbox.retry_queue())];
        notifier.metric("webhook_refusals_total", &of_queue)
    };
    let mut more = Vec::new();
    wait_until(SOON, "one is refused", || {
        let one = Event::new("order.paid");
        sandbox.publish(&one);
        more.push(one);
        refusals() >= 1.0
    });
    sandbox.publish(&other);
    let line = notifier.wait_stderr(SOON, "queue accepts no messages");
    assert!(line.contains(&format!("queue={}: ", sandbox.retry_queue())), "{line}");
    wait_until(SOON, "others go on", || !receiver.of("/other", &other).is_empty());
    drop(policy);
    let events = [vec![event], more].concat();
    let all = paths.len() * events.len();
    wait_until(LATER, "all have arrived", || receiver.requests().len() > all);
    assert_over(&mut notifier, &sandbox.retry_queue());
    sandbox.wait_drained();
    notifier.terminate();
    for path in &paths {
        assert_each(&receiver, path, &events, 1);
    }
}

#[test]
fn deliveries_that_a_backlog_refuses_wait_elsewhere_and_arrive_once() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/paused"), &["paused"]);
    sandbox.webhook(&receiver.url("/healthy"), &["healthy"]);
    let pause = "UPDATE webhooks SET paused_at = $2 WHERE id = $1";
    sandbox.database.execute(pause, &[&webhook, &Some(std::time::SystemTime::now())]);
    // The healthy one may need a backlog, too.
    let policy = Policy::on(&vhost, &format!("^webhooks[.]backlog[.].*{webhook}$"));
    let mut notifier = sandbox.notifier().env("PREFETCH_COUNT", "50").start();
    let paused = events("paused", 30);
    let healthy = events("healthy", 100);
    sandbox.broker.publish(sandbox.queue(), &paused[..1]);
    let queue = format!("webhooks.backlog.{}.{webhook}", sandbox.queue());
    wait_until(SOON, "it is full", || sandbox.broker.ready(&queue) == Some(1));
    let backlog = format!("webhooks.backlog.{}", sandbox.queue());
    let refusals = || notifier.metric("webhook_refusals_total", &[("queue", &backlog)]);
    for (number, event) in (2..).zip(&paused[1..]) {
        // RabbitMQ takes messages beyond the limit if they arrive together.
        sandbox.broker.publish(sandbox.queue(), std::slice::from_ref(event));
        wait_until(SOON, "it is taken or refused", || {
            refusals() >= 1.0 || sandbox.broker.ready(&queue) == Some(number)
        });
    }
    sandbox.broker.publish(sandbox.queue(), &healthy);
    receiver.wait_at("/healthy", healthy.len());
    let line = notifier.wait_stderr(SOON, "queue accepts no messages");
    assert!(line.contains(&format!("queue={queue}: ")), "{line}");
    wait_until(SOON, "they wait elsewhere", || {
        sandbox.broker.ready("webhooks.wait.1m") >= Some(20) && refused(&notifier, &backlog) == 0.0
    });
    drop(policy);
    let resume: Option<std::time::SystemTime> = None;
    sandbox.database.execute(pause, &[&webhook, &resume]);
    receiver.wait_at_within(LATER, "/paused", paused.len());
    sandbox.wait_drained();
    assert!(notifier.is_running());
    notifier.terminate();
    assert_each(&receiver, "/paused", &paused, 1);
    assert_each(&receiver, "/healthy", &healthy, 1);
}

#[test]
fn a_shutdown_hands_back_refused_messages_and_nothing_else() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["good"]);
    // Dead letters can't be published anywhere.
    let policy = Policy::on(&vhost, "^(t.*[.]dead|webhooks[.]wait[.].*)$");
    let mut notifier = sandbox.notifier().env("PREFETCH_COUNT", "50").start();
    let (malformed, good) = publish_some_malformed(&sandbox);
    receiver.wait_at("/", good.len());
    notifier.wait_stderr(SOON, "queue accepts no messages");
    notifier.signal(Signal::TERM);
    assert_eq!(notifier.wait_exit(SOON).code, Some(0));
    drop(policy);
    let mut notifier = sandbox.notifier().start();
    wait_until(LATER, "all are dead", || {
        sandbox.broker.ready(&sandbox.dead_queue()) >= Some(malformed)
    });
    sandbox.wait_drained();
    assert!(notifier.is_running());
    notifier.terminate();
    assert_each(&receiver, "/", &good, 1);
}

#[test]
fn a_command_that_is_refused_names_the_queue() {
    let faults = FaultServers::share();
    let vhost = Vhost::new(&faults);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let _policy = Policy::on(&vhost, "^t.*_high$");
    let publish = || sandbox.command(&["publish", sandbox.queue(), r#"{"type":"a"}"#]);
    let mut refused = publish();
    for _ in 0..3 {
        if refused.code == Some(0) {
            refused = publish();
        }
    }
    assert_eq!(refused.code, Some(1), "{refused:?}");
    let expected = format!("the queue {} accepts no messages", sandbox.queue());
    assert!(refused.stderr.contains(&expected), "{refused:?}");
}
