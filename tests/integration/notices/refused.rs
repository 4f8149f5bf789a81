//! If notices can't be published, deliveries continue, and it is logged.

use std::time::Duration;

use amiquip::{AmqpValue, FieldTable};

use super::{EXCHANGE, NoticeQueue, published};
use crate::harness::{
    Event, FaultServers, LATER, MemoryAlarm, Receiver, Reply, SOON, Sandbox, Vhost, holds_for,
    servers::{End, Server},
    wait_until,
};

#[test]
fn without_a_right_to_the_exchange_deliveries_continue_and_notices_are_published_later() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::answering(|request| {
        Reply::Status(if request.path == "/refusing" { 422 } else { 200 })
    });
    sandbox.webhook(&receiver.url("/"), &["fine"]);
    let refusing = sandbox.webhook(&receiver.url("/refusing"), &["bad"]);
    let failing = sandbox.webhook("http://127.0.0.1:9/", &["none"]);
    let insert = "INSERT INTO webhook_conditions (webhook_id, failing_since, failed_at)
                  VALUES ($1, now() - interval '1 hour', now())";
    sandbox.database.execute(insert, &[&failing]);
    let others = r"^(?!webhooks\.events$).*$";
    let write = r"^(?!webhooks\.events$).*$";
    vhost.grant([others, write, ".*"]);
    let launch = |arguments: &[&str]| sandbox.launch(arguments).env("AMQP_URL", &vhost.url);
    let checked = launch(&["check"]).spawn().finish(SOON);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let line = checked.stdout.lines().find(|line| line.contains("exchange webhooks.events"));
    let line = line.unwrap_or_else(|| panic!("no line in {checked:?}"));
    assert!(
        line.contains("no notices are published") && line.contains("set_permissions"),
        "{line}"
    );

    let mut notifier = sandbox
        .notifier()
        .env("AMQP_URL", &vhost.url)
        .env("NO_RETRY_STATUS", "422")
        .env("DISABLE_AFTER", "5d")
        .start();
    let line = notifier.wait_stderr(SOON, "notices not published");
    assert!(line.contains("webhooks.events") && line.contains("deliveries go on"), "{line}");
    for kind in ["bad", "fine"] {
        sandbox.publish(&Event::new(kind));
    }
    receiver.wait_at("/", 1);
    receiver.wait_at("/refusing", 1);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    wait_until(SOON, "they wait", || notifier.metric("webhook_notices_waiting", &[]) >= 1.0);
    assert!(notifier.is_ready());
    // DISABLE_AFTER doesn't wait for them either.
    let forgotten =
        "SELECT 1 FROM webhook_conditions WHERE webhook_id = $1 AND failing_since IS NULL";
    wait_until(SOON, "what was before the pause counts no more", || {
        !sandbox.database.query(forgotten, &[&failing]).is_empty()
    });

    vhost.grant([".*", ".*", ".*"]);
    notifier.wait_stderr(SOON, "notices published again");
    wait_until(SOON, "the pauses and the dead letter are published", || {
        published(&notifier) == 4.0
    });
    let bound = NoticeQueue::bound(&sandbox, "#");
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL", &[]);
    bound.wait_for(refusing, &["webhook.resumed"]);
    notifier.terminate();
}

#[test]
fn a_queue_that_refuses_notices_does_not_affect_the_others() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    vhost.grant([".*", ".*", ".*"]);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let receiver = Receiver::new();
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let mut notifier = sandbox.notifier().start();
    let bound = NoticeQueue::bound(&sandbox, "#");
    let arguments = FieldTable::from([
        ("x-max-length".to_owned(), AmqpValue::LongInt(0)),
        ("x-overflow".to_owned(), AmqpValue::LongString("reject-publish".to_owned())),
    ]);
    let full = format!("{}.full", sandbox.queue());
    sandbox.broker.declare(&full, arguments).expect("a fresh name");
    sandbox.broker.bind(&full, EXCHANGE, "#");
    for (sql, types) in [
        ("UPDATE webhooks SET paused_at = now()", &["webhook.paused"][..]),
        ("UPDATE webhooks SET paused_at = NULL", &["webhook.paused", "webhook.resumed"]),
    ] {
        sandbox.database.execute(sql, &[]);
        bound.wait_for(webhook, types);
    }
    let dropped = [("result", "dropped")];
    notifier.wait_metric("webhook_notices_total", &dropped, 2.0);
    notifier.wait_stderr(SOON, "notices dropped");
    sandbox.publish(&Event::new("order.paid"));
    receiver.wait_at("/", 1);
    holds_for(Duration::from_secs(1), "none is repeated", || bound.types_of(webhook).len() == 2);
    let lines = notifier.stderr().iter().filter(|it| it.contains("notices dropped")).count();
    assert_eq!(lines, 1, "once a minute at most");
    notifier.terminate();
}

#[test]
fn a_deleted_exchange_is_created_again() {
    let fault = FaultServers::share();
    let vhost = Vhost::new(&fault);
    vhost.grant([".*", ".*", ".*"]);
    let sandbox = Sandbox::on(&vhost.servers, 1);
    let webhook = sandbox.webhook("https://example.com/", &["*"]);
    let notifier = sandbox.notifier().start();
    wait_until(SOON, "there is one", || {
        sandbox.broker.declare_exchange(EXCHANGE, FieldTable::new()).is_ok()
    });
    sandbox.broker.delete_exchange(EXCHANGE);
    sandbox.database.execute("UPDATE webhooks SET paused_at = now()", &[]);
    wait_until(SOON, "it is published, and no queue gets it", || published(&notifier) == 1.0);
    let bound = NoticeQueue::bound(&sandbox, "#");
    sandbox.database.execute("UPDATE webhooks SET paused_at = NULL", &[]);
    bound.wait_for(webhook, &["webhook.resumed"]);
    notifier.terminate();
}

#[test]
fn changes_while_rabbitmq_takes_nothing_or_is_away_are_published_once_afterwards() {
    let faults = FaultServers::take();
    let sandbox = Sandbox::on(faults.servers(), 1);
    let webhook = sandbox.webhook("https://example.com/", &["*"]);
    let mut notifier = sandbox.notifier().start();
    let bound = NoticeQueue::bound(&sandbox, "#");
    let waiting = || notifier.metric("webhook_notices_waiting", &[]);
    let pause = "UPDATE webhooks SET paused_at = now()";
    let resume = "UPDATE webhooks SET paused_at = NULL";

    let alarm = MemoryAlarm::raised(&faults);
    // The first one may get through.
    sandbox.database.execute(pause, &[]);
    wait_until(SOON, "the first is taken", || published(&notifier) + waiting() >= 1.0);
    sandbox.database.execute(resume, &[]);
    wait_until(SOON, "they wait", || waiting() >= 1.0);
    holds_for(Duration::from_secs(8), "it is ready", || notifier.is_ready());
    drop(alarm);
    bound.wait_for(webhook, &["webhook.paused", "webhook.resumed"]);

    faults.end(Server::Broker, End::Kill);
    sandbox.database.execute(pause, &[]);
    notifier.wait_stderr(LATER, "notices not published");
    faults.start(Server::Broker);
    wait_until(LATER, "it is published", || published(&notifier) >= 3.0);
    sandbox.database.execute(resume, &[]);
    wait_until(LATER, "so is this", || published(&notifier) >= 4.0);
    let dropped = notifier.metric("webhook_notices_total", &[("result", "dropped")]);
    assert_eq!((published(&notifier), dropped), (4.0, 0.0));
    notifier.terminate();
}
