//! The cause of an outage may change while it lasts: each new cause is a line in the log.

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable};

use crate::harness::{
    Event, FaultServers, LATER, Notifier, Receiver, Reply, SOON, Sandbox, holds_for, wait_until,
};

/// A RabbitMQ user, deleted when this is dropped.
struct User<'a> {
    faults: &'a FaultServers,
    name: String,
}

impl<'a> User<'a> {
    const PASSWORD: &'static str = "first";

    fn new(faults: &'a FaultServers, sandbox: &Sandbox) -> Self {
        let name = format!("user-{}", sandbox.queue());
        faults.add_user(&name, Self::PASSWORD);
        let user = Self { faults, name };
        user.may_write(".*");
        user
    }

    fn may_write(&self, what: &str) {
        self.faults.grant(&self.name, "/", [".*", what, ".*"]);
    }

    fn has_password(&self, password: &str) {
        self.faults.change_password(&self.name, password);
    }

    /// Closes its connections.
    fn disconnect(&self) {
        let reason = "maintenance";
        self.faults.rabbitmqctl(&["close_all_user_connections", &self.name, reason]);
    }

    fn url(&self, sandbox: &Sandbox) -> String {
        let mut url = url::Url::parse(&sandbox.servers.amqp_url).expect("it is a URL");
        url.set_username(&self.name).expect("it has a host");
        url.set_password(Some(Self::PASSWORD)).expect("it has a host");
        url.into()
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        self.faults.delete_user(&self.name);
    }
}

/// The queues of the lanes that a line `lane interrupted` names; none for other lines.
fn interrupted(line: &str) -> Vec<&str> {
    let Some((_, rest)) = line.split_once("lane interrupted queue=") else { return Vec::new() };
    let queues = rest.split_once(' ').map_or(rest, |(queues, _)| queues);
    queues.split(',').collect()
}

/// How many lines say that the lane of this queue was interrupted, for a cause with these words.
fn count_interruptions(notifier: &Notifier, queue: &str, words: &str) -> usize {
    let is_one = |line: &&String| interrupted(line).contains(&queue) && line.contains(words);
    notifier.stderr().iter().filter(is_one).count()
}

#[test]
fn a_start_while_postgresql_is_away_logs_the_cause_once_with_all_lanes() {
    let sandbox = Sandbox::with_queues(3);
    let mut nowhere = url::Url::parse(sandbox.database.url()).expect("it is an URL");
    nowhere.set_port(Some(1)).expect("it has a host");
    let mut notifier = sandbox.notifier().env("DATABASE_URL", nowhere.as_str()).start_unready();
    let line = notifier.wait_stderr(SOON, "lane interrupted");
    let mut expected: Vec<String> = sandbox
        .queues
        .iter()
        .flat_map(|queue| ["", ".retry", ".backlog"].map(|kind| format!("{queue}{kind}")))
        .collect();
    expected.sort();
    assert_eq!(interrupted(&line), expected, "{line}");
    assert!(line.contains("WARN") && line.contains("PostgreSQL"), "{line}");
    holds_for(Duration::from_secs(3), "that is all", || {
        notifier.count_stderr(&["lane interrupted"]) == 1
    });
    assert!(notifier.is_running());
    notifier.terminate();
}

#[test]
fn a_password_rotated_during_a_reconnect_is_reported_once_by_each_connection() {
    let faults = FaultServers::share();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let user = User::new(&faults, &sandbox);
    let mut notifier = sandbox.notifier().env("AMQP_URL", user.url(&sandbox)).start();

    user.has_password("second");
    user.disconnect();
    let by_lane = |what: &str| count_interruptions(&notifier, sandbox.queue(), what);
    let by_publisher =
        |what: &str| notifier.count_stderr(&["WARN", "publishing interrupted", what]);
    let each_reports_once = |what: &str| by_lane(what) == 1 && by_publisher(what) == 1;
    wait_until(SOON, "each logs why it ended, and why it can't connect again", || {
        each_reports_once("maintenance") && each_reports_once("refuses the login of user")
    });
    // The attempts that fail meanwhile are logged only at DEBUG.
    holds_for(Duration::from_secs(5), "no other attempt is reported", || {
        each_reports_once("refuses the login of user")
    });

    user.has_password(User::PASSWORD);
    wait_until(LATER, "it is ready again", || notifier.is_ready());
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    let again = format!("lane connected again queue={} ", sandbox.queue());
    assert_eq!(notifier.count_stderr(&[&again]), 1);
    assert!(notifier.is_running());
    notifier.terminate();
}

#[test]
fn a_missing_right_to_publish_is_reported_and_not_only_the_lost_connection() {
    let faults = FaultServers::share();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let user = User::new(&faults, &sandbox);
    let mut notifier =
        sandbox.notifier().env("AMQP_URL", user.url(&sandbox)).env("RETRY_SCHEDULE", "1s").start();
    user.may_write("^$");
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    let line = notifier.wait_stderr(SOON, "publishing interrupted");
    assert!(line.contains("ACCESS_REFUSED") && line.contains("webhooks.wait"), "{line}");

    user.may_write(".*");
    receiver.wait_at_within(LATER, "/", 2);
    notifier.wait_stderr(SOON, "publishing again");
    wait_until(LATER, "it is counted", || {
        notifier.metric("webhook_request_success_total", &[]) == 1.0
    });
    // RabbitMQ 4.0 and newer say "write access".
    let told = ["publishing interrupted", "ACCESS_REFUSED - ", "access to exchange"];
    assert_eq!(notifier.count_stderr(&told), 1);
    notifier.terminate();
    sandbox.wait_drained();
    assert_eq!(receiver.requests().len(), 2);
}

#[test]
fn a_postgresql_role_that_may_no_longer_log_in_is_reported_after_its_sessions_end() {
    let faults = FaultServers::share();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let role = format!("role_{}", sandbox.queue());
    let schema = sandbox.queue().trim_end_matches("_high").to_owned();
    let run = |sql: &str| sandbox.database.run_script(sql);
    run(&format!(
        "CREATE ROLE {role} LOGIN PASSWORD 'first'; GRANT USAGE ON SCHEMA {schema} TO {role};
         GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}"
    ));
    let mut url = url::Url::parse(sandbox.database.url()).expect("it is a URL");
    url.set_username(&role).expect("it has a host");
    url.set_password(Some("first")).expect("it has a host");
    let mut notifier = sandbox.notifier().env("DATABASE_URL", url.as_str()).start();
    notifier.wait_listening();

    run(&format!(
        "ALTER ROLE {role} NOLOGIN;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
    ));
    let told = |what: &str| notifier.count_stderr(&["WARN", "directory bypassed", what]);
    wait_until(SOON, "both causes are logged", || {
        told("not permitted to log in") == 1 && told("") == 2
    });
    run(&format!("ALTER ROLE {role} LOGIN"));
    notifier.wait_stderr(SOON, "directory in use again");
    assert_eq!(notifier.count_stderr(&["directory bypassed"]), 2);
    notifier.terminate();
    run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

/// Sets RabbitMQ's time limit for acks, and how often it checks that, both in milliseconds, until this is
/// dropped.
struct ConsumerTimeout<'a>(&'a FaultServers);

impl<'a> ConsumerTimeout<'a> {
    fn of(faults: &'a FaultServers, timeout: u32, interval: u32) -> Self {
        let set = Self(faults);
        set.set(timeout, interval);
        set
    }

    fn set(&self, timeout: u32, interval: u32) {
        let set = |name, value| format!("application:set_env(rabbit, {name}, {value})");
        let both = [set("consumer_timeout", timeout), set("channel_tick_interval", interval)];
        self.0.eval(&both.join(", "));
    }
}

impl Drop for ConsumerTimeout<'_> {
    fn drop(&mut self) {
        self.set(1_800_000, 60_000);
    }
}

/// With a quorum queue: RabbitMQ 4.3 no longer applies the limit to classic queues.
fn with_a_quorum_queue(faults: &FaultServers) -> Sandbox {
    let sandbox = Sandbox::without_queues(faults.servers(), 1);
    let quorum = AmqpValue::LongString("quorum".to_owned());
    let arguments = FieldTable::from([("x-queue-type".to_owned(), quorum)]);
    sandbox.broker.declare(sandbox.queue(), arguments).expect("a fresh name");
    sandbox
}

#[test]
fn a_consumer_timeout_that_is_too_short_is_reported_with_the_value_it_needs() {
    let faults = FaultServers::take();
    let sandbox = with_a_quorum_queue(&faults);
    let receiver = Receiver::answering(|request| match request.attempt {
        1 => Reply::Slow(Duration::from_secs(9), 200),
        _ => Reply::Status(200),
    });
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let limit = ConsumerTimeout::of(&faults, 500, 250);
    let mut notifier = sandbox.notifier().start();
    sandbox.publish(&Event::new("order.paid"));
    let line = notifier.wait_stderr(SOON, "lane interrupted");
    assert!(line.contains("raise RabbitMQ's consumer_timeout to at least 30 minutes"), "{line}");
    // The event was redelivered, and its delivery succeeds.
    receiver.wait_at("/", 2);
    drop(limit);
    notifier.terminate();
    sandbox.wait_drained();
}

/// The head of a backlog is held unacked while it waits, for some seconds at a time.
#[test]
fn a_consumer_timeout_that_is_too_short_for_a_backlog_is_reported_and_loses_nothing() {
    let faults = FaultServers::take();
    let sandbox = with_a_quorum_queue(&faults);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now() WHERE id = $1", &[&webhook]);
    let limit = ConsumerTimeout::of(&faults, 500, 250);
    let mut notifier = sandbox.notifier().start();
    let events: Vec<_> = (0..3).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    // The lane is interrupted, because its channel is closed; or, since RabbitMQ 4.3, only the backlog,
    // because its consumer is cancelled.
    let told = ["WARN", "interrupted queue=", "backlog", "raise RabbitMQ's consumer_timeout"];
    wait_until(LATER, "it is logged", || notifier.count_stderr(&told) >= 1);
    drop(limit);
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL WHERE id = $1", &[&webhook]);
    for event in &events {
        wait_until(LATER, "it is delivered", || !receiver.of("/", event).is_empty());
    }
    assert!(notifier.is_running());
    notifier.terminate();
    sandbox.wait_drained();
}
