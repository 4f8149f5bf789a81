//! Who wants an event is known from memory, and every change to the table takes effect at once.

use std::time::{Duration, Instant};

use crate::harness::{
    Event, FaultServers, LATER, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, holds_for,
    wait_for, wait_until,
};

/// How soon a committed change must take effect.
const AT_ONCE: Duration = Duration::from_millis(100);

/// The same for an overloaded machine, in tests that don't measure time.
const SOON_ENOUGH: Duration = Duration::from_millis(500);

fn answers(notifier: &Notifier, from: &str) -> f64 {
    notifier.metric("webhook_directory_lookups_total", &[("answer", from)])
}

fn wait_delivered(notifier: &Notifier, count: usize) {
    wait_until(SOON, &format!("{count} deliveries are counted"), || {
        notifier.metric("webhook_request_success_total", &[]) >= count as f64
    });
}

#[test]
fn events_of_one_type_cost_one_query() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["order.*"]);
    // Two consumers might ask for the same at the same time.
    let notifier = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time()).start();
    notifier.wait_listening();

    let mut events: Vec<_> = (0..50).map(|_| Event::new("order.paid")).collect();
    // Nobody wants these, which is worth remembering, too.
    events.extend((0..50).map(|_| Event::new("user.created")));
    sandbox.broker.publish(sandbox.queue(), &events);

    wait_until(SOON, "all are settled", || {
        notifier.metric("webhook_events_unmatched_total", &[]) == 50.0
    });
    wait_delivered(&notifier, 50);
    assert_eq!(answers(&notifier, "database"), 2.0);
    assert_eq!(answers(&notifier, "memory"), 98.0);
}

#[test]
fn every_kind_of_committed_change_is_honoured() {
    let sandbox = Sandbox::alone(1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/first"), &["order.paid"]);
    let notifier = sandbox.notifier().start();
    notifier.wait_listening();
    let publish_after_a_change =
        |sql: &str, parameters: &[&(dyn postgres::types::ToSql + Sync)]| {
            // So that there is something to forget.
            let all = || answers(&notifier, "memory") + answers(&notifier, "database");
            let before = all();
            sandbox.publish(&Event::new("order.paid"));
            wait_until(SOON, "the event is looked up", || all() > before);
            sandbox.database.execute(sql, parameters);
            let committed = Instant::now();
            wait_until(SOON, "the time is over", || committed.elapsed() >= SOON_ENOUGH);
            let event = Event::new("order.paid");
            sandbox.publish(&event);
            sandbox.wait_drained();
            event
        };
    let count = |path: &str, event: &Event| receiver.of(path, event).len();
    let arrives = |path: &str, event: &Event| {
        wait_until(SOON, &format!("{path} receives it"), || count(path, event) == 1);
    };

    for round in 0..5 {
        let url = receiver.url(&format!("/added-{round}"));
        let event = publish_after_a_change(
            "INSERT INTO webhooks (post_url, events) VALUES ($1, '{order.*}')",
            &[&url],
        );
        arrives(&format!("/added-{round}"), &event);

        let moved = receiver.url(&format!("/moved-{round}"));
        let event = publish_after_a_change(
            "UPDATE webhooks SET post_url = $1 WHERE post_url = $2",
            &[&moved, &url],
        );
        arrives(&format!("/moved-{round}"), &event);
        assert_eq!(count(&format!("/added-{round}"), &event), 0);

        let event = publish_after_a_change(
            "UPDATE webhooks SET disabled_at = now() WHERE post_url = $1",
            &[&moved],
        );
        arrives("/first", &event);
        assert_eq!(count(&format!("/moved-{round}"), &event), 0);
    }
    let event = publish_after_a_change("DELETE FROM webhooks WHERE post_url LIKE '%/first'", &[]);
    let unmatched = || notifier.metric("webhook_events_unmatched_total", &[]);
    wait_until(SOON, "no webhook wants it", || unmatched() == 1.0);
    assert_eq!(count("/first", &event), 0);
    sandbox.webhook(&receiver.url("/last"), &["*"]);
    let event = publish_after_a_change("TRUNCATE webhooks", &[]);
    wait_until(SOON, "no webhook wants it", || unmatched() >= 2.0);
    assert_eq!(count("/last", &event), 0);
    assert!(answers(&notifier, "memory") > 0.0);
}

#[test]
fn a_change_is_honoured_only_once_it_is_committed() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/old"), &["*"]);
    let notifier = sandbox.notifier().start();
    notifier.wait_listening();
    let mut client =
        postgres::Client::connect(sandbox.database.url(), postgres::NoTls).expect("it answers");
    let mut transaction = client.transaction().expect("it answers");
    let url = receiver.url("/new");
    transaction
        .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook])
        .expect("it is there");

    for _ in 0..20 {
        sandbox.publish(&Event::new("order.paid"));
    }
    receiver.wait_at("/old", 20);
    transaction.commit().expect("it answers");
    let committed = Instant::now();
    wait_until(SOON, "the time is over", || committed.elapsed() >= SOON_ENOUGH);
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/new", 1);
    assert_eq!(receiver.at("/old").len(), 20);
    drop(notifier);
}

#[test]
fn without_notifications_every_event_asks_postgresql_and_later_memory_is_used_again() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/0"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    notifier.wait_listening();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/0", 1);

    // The trigger no longer runs, but its function still exists.
    sandbox.database.execute("ALTER TABLE webhooks DISABLE TRIGGER webhooks_updated", &[]);
    let line = notifier.wait_stderr(SOON, "directory bypassed");
    assert!(line.contains("run `webhook-notifier migrate`"), "{line}");
    for round in 1..=20 {
        let path = format!("/{round}");
        let url = receiver.url(&path);
        sandbox
            .database
            .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at(&path, 1);
    }
    assert!(notifier.metric("webhook_directory_age_seconds", &[]) > 0.0);
    wait_until(SOON, "ready: it is slower, and nothing is wrong", || notifier.is_ready());

    sandbox.database.execute("ALTER TABLE webhooks ENABLE TRIGGER webhooks_updated", &[]);
    notifier.wait_stderr(SOON, "directory in use again");
    let remembered = answers(&notifier, "memory");
    wait_until(SOON, "memory answers", || {
        let before = receiver.at("/20").len();
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at("/20", before + 1);
        answers(&notifier, "memory") >= remembered + 4.0
    });
}

#[test]
fn a_change_while_the_connection_is_lost_is_honoured_at_once() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/0"), &["*"]);
    let proxy = Proxy::before(sandbox.database.url());
    let notifier = sandbox
        .notifier()
        .env("RUST_LOG", "debug")
        .env("DATABASE_URL", proxy.url(sandbox.database.url()))
        .start();
    notifier.wait_listening();

    for round in 1..=5 {
        proxy.cut();
        let path = format!("/{round}");
        let url = receiver.url(&path);
        sandbox
            .database
            .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
        let committed = Instant::now();
        wait_until(SOON, "the time is over", || committed.elapsed() >= SOON_ENOUGH);
        let event = Event::new("order.paid");
        sandbox.publish(&event);
        wait_until(SOON, "the new URL receives it", || !receiver.of(&path, &event).is_empty());
    }
    assert_eq!(receiver.requests().len(), 5);
}

#[test]
fn every_change_is_honoured_although_the_listening_connection_is_killed() {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/0"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    notifier.wait_listening();

    for round in 1..=10 {
        // Only the notifier's connections: these servers are ours.
        let killed = sandbox.database.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name = 'webhook-notifier directory'",
            &[],
        );
        assert_eq!(killed.len(), 1);
        let path = format!("/{round}");
        let url = receiver.url(&path);
        sandbox
            .database
            .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
        let committed = Instant::now();
        wait_until(SOON, "the time is over", || committed.elapsed() >= SOON_ENOUGH);
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at(&path, 1);
        notifier.wait_listening();
    }
    assert_eq!(receiver.requests().len(), 10);
    wait_until(SOON, "it is ready", || notifier.is_ready());
    let remembered = answers(&notifier, "memory");
    for n in 2..=6 {
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at("/10", n);
    }
    assert!(answers(&notifier, "memory") >= remembered + 4.0, "memory is used again");
    assert!(notifier.is_running());
}

#[test]
fn deliveries_honour_a_committed_change_within_a_tenth_of_a_second() {
    let sandbox = Sandbox::alone(1);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/0"), &["*"]);
    let notifier = sandbox.notifier().start();
    notifier.wait_listening();
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/0", 1);

    let mut took = Vec::new();
    for round in 1..=30 {
        let path = format!("/{round}");
        let url = receiver.url(&path);
        sandbox
            .database
            .execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
        let committed = Instant::now();
        let arrived = || receiver.at(&path).first().map(|request| request.at);
        let first = wait_for(SOON, "the new URL receives one", || {
            sandbox.publish(&Event::new("order.paid"));
            arrived()
        });
        took.push(first.saturating_duration_since(committed));
    }
    took.sort_unstable();
    // Not the longest, which depends on what else the machine does.
    let median = took[took.len() / 2];
    eprintln!("median of 30: {median:?}, longest: {:?}", took[took.len() - 1]);
    assert!(median < AT_ONCE, "{took:?}");
    assert!(answers(&notifier, "memory") > 0.0);
}

/// While PostgreSQL is away, known types are delivered and unknown ones wait; everything is as before once it is
/// back.
fn check_absence(begin: impl Fn(&Proxy)) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = Proxy::before(sandbox.database.url());
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let notifier =
        sandbox.notifier().env("DATABASE_URL", proxy.url(sandbox.database.url())).start();
    notifier.wait_listening();
    sandbox.publish(&Event::new("known"));
    wait_delivered(&notifier, 1);
    begin(&proxy);

    let before = receiver.requests().len();
    let absent = Instant::now();
    let mut late = 0;
    let mut known = 0;
    // Longer than the last proof is valid.
    while absent.elapsed() < Duration::from_secs(6) {
        let published = Instant::now();
        sandbox.publish(&Event::new("known"));
        known += 1;
        receiver.wait_at("/", before + known);
        late += usize::from(published.elapsed() > Duration::from_secs(2));
    }
    // One look-up may have been the first to ask, and so have waited as long as a query may take.
    assert!(late <= 1, "{late} of {known} are late");
    wait_until(SOON, "PostgreSQL counts as unreachable", || {
        notifier.metric("webhook_database_up", &[]) == 0.0
    });
    wait_until(SOON, "the directory ages", || {
        notifier.metric("webhook_directory_age_seconds", &[]) > 1.0
    });
    sandbox.publish(&Event::new("known"));
    receiver.wait_at("/", before + known + 1);
    assert!(answers(&notifier, "last_known") >= 1.0);
    let unknown = Event::new("unknown");
    sandbox.publish(&unknown);
    holds_for(Duration::from_secs(1), "an event whose webhooks are unknown waits", || {
        receiver.of("/", &unknown).is_empty()
    });

    proxy.thaw();
    wait_until(LATER, "it arrives", || receiver.of("/", &unknown).len() == 1);
    notifier.wait_listening();
    wait_until(SOON, "all is well", || notifier.is_ready());
    assert_eq!(receiver.requests().len(), before + known + 2, "each once");
}

#[test]
fn while_postgresql_is_away_known_types_are_delivered_and_the_others_wait() {
    check_absence(Proxy::refuse);
}

#[test]
fn while_postgresql_is_frozen_known_types_are_delivered_and_the_others_wait() {
    check_absence(Proxy::freeze);
}

#[test]
fn more_types_than_the_directory_may_remember_are_only_slower() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["type.*"]);
    // One at a time: of several concurrent events, two may have the same type.
    let launch = sandbox.notifier().env("QUEUES", sandbox.one_at_a_time());
    let notifier = launch.env("DIRECTORY_ENTRIES", "5").start();
    notifier.wait_listening();

    // In each round, every type has been forgotten for the others.
    let events: Vec<_> = (0..60).map(|n| Event::new(&format!("type.{}", n % 20))).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    wait_delivered(&notifier, 60);
    assert_eq!(answers(&notifier, "database"), 60.0);
    let again = Event::new("type.19");
    sandbox.publish(&again);
    wait_delivered(&notifier, 61);
    assert_eq!(answers(&notifier, "memory"), 1.0);
}

#[test]
fn a_retry_goes_to_the_present_url_of_its_webhook() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| {
        Reply::Status(if request.path == "/new" { 200 } else { 500 })
    });
    let webhook = sandbox.webhook(&receiver.url("/old"), &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "500ms,repeat").start();
    notifier.wait_listening();
    let event = Event::new("order.paid");
    sandbox.publish(&event);
    receiver.wait_at("/old", 3);
    assert!(answers(&notifier, "memory") >= 1.0, "a retry finds its webhook from memory");

    let url = receiver.url("/new");
    sandbox.database.execute("UPDATE webhooks SET post_url = $1 WHERE id = $2", &[&url, &webhook]);
    receiver.wait_at("/new", 1);
    wait_delivered(&notifier, 1);
}
