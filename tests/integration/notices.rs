//! What happens to webhooks is published to the exchange `webhooks.events`, once, for every queue that is bound
//! a queue; nothing waits for that.

mod disable_after;
mod failing;
mod refused;
mod table;

use std::time::Duration;

use amiquip::FieldTable;
use serde_json::Value;
use uuid::Uuid;

use crate::{
    commands::succeed,
    harness::{
        Event, Message, Notifier, Receiver, Reply, SOON, Sandbox, holds_for, wait_for, wait_until,
    },
};

const EXCHANGE: &str = "webhooks.events";

/// A queue bound to the exchange, and the notices it got. Other tests' notices arrive, too.
struct NoticeQueue<'s> {
    sandbox: &'s Sandbox,
    queue: String,
    notices: std::cell::RefCell<Vec<(Message, Value)>>,
}

impl<'s> NoticeQueue<'s> {
    #[track_caller]
    fn bound(sandbox: &'s Sandbox, key: &str) -> Self {
        let queue = format!("{}.notices", sandbox.queue());
        sandbox.broker.declare(&queue, FieldTable::new()).expect("a fresh name");
        sandbox.broker.bind(&queue, EXCHANGE, key);
        Self { sandbox, queue, notices: std::cell::RefCell::default() }
    }

    /// All notices about a webhook so far.
    fn of(&self, webhook: Uuid) -> Vec<Value> {
        let mut notices = self.notices.borrow_mut();
        let read = |message: Message| {
            let body = serde_json::from_slice(&message.body).expect("it is JSON");
            (message, body)
        };
        let taken = self.sandbox.broker.take_all(&self.queue).expect("it answers");
        notices.extend(taken.into_iter().map(read));
        let about = |body: &Value| body["data"]["webhook_id"] == webhook.to_string();
        notices.iter().map(|(_, body)| body.clone()).filter(about).collect()
    }

    fn types_of(&self, webhook: Uuid) -> Vec<String> {
        let text = |notice: &Value| notice["type"].as_str().expect("a text").to_owned();
        self.of(webhook).iter().map(text).collect()
    }

    #[track_caller]
    fn wait_for(&self, webhook: Uuid, types: &[&str]) -> Vec<Value> {
        wait_until(SOON, &format!("{types:?}"), || self.types_of(webhook).len() >= types.len());
        assert_eq!(self.types_of(webhook), types);
        self.of(webhook)
    }
}

impl Drop for NoticeQueue<'_> {
    fn drop(&mut self) {
        let _ = self.sandbox.broker.delete(&self.queue);
    }
}

fn published(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_notices_total", &[("result", "published")])
}

#[test]
fn a_change_to_a_webhook_is_published_once_in_the_form_of_an_event() {
    let sandbox = Sandbox::new();
    let url = "https://hooks.example.com:8443/s3cret?token=s3cret";
    let webhook = sandbox.webhook(url, &["*"]);
    let set_account = "UPDATE webhooks SET account = 'acme' WHERE id = $1";
    sandbox.database.execute(set_account, &[&webhook]);
    let notifiers = [sandbox.notifier().start(), sandbox.notifier().start()];
    let bound = NoticeQueue::bound(&sandbox, "#");
    let id = webhook.to_string();
    let mut types = Vec::new();
    for (arguments, of_type) in [
        (&["webhooks", "pause", &id][..], "webhook.paused"),
        (&["webhooks", "resume", &id], "webhook.resumed"),
        (&["webhooks", "disable", &id, "--reason", "s3cret"], "webhook.disabled"),
        (&["webhooks", "enable", &id], "webhook.enabled"),
    ] {
        succeed(&sandbox, arguments);
        types.push(of_type);
        bound.wait_for(webhook, &types);
    }
    holds_for(Duration::from_secs(1), "each is published once", || {
        bound.types_of(webhook).len() == types.len()
    });
    let all: f64 = notifiers.iter().map(published).sum();
    assert_eq!(all, 4.0);

    let notices = bound.of(webhook);
    for notice in &notices {
        assert_eq!(notice["version"], 1, "{notice}");
        assert_eq!(notice["account"], "acme", "{notice}");
        assert_eq!(notice["data"]["host"], "hooks.example.com:8443", "{notice}");
        assert!(notice["timestamp"].as_str().expect("a time").ends_with('Z'), "{notice}");
        assert!(!notice.to_string().contains("s3cret"), "{notice}");
    }
    assert!(notices[0]["data"]["paused_at"].is_string(), "{}", notices[0]);
    assert_eq!(notices[2]["data"]["cause"], "operator");
    let messages = bound.notices.borrow();
    let (message, body) =
        messages.iter().find(|(_, body)| *body == notices[0]).expect("it was taken");
    let properties = &message.properties;
    assert_eq!(properties.message_id().as_deref(), body["id"].as_str());
    assert_eq!(properties.type_().as_deref(), Some("webhook.paused"));
    assert_eq!(properties.content_type().as_deref(), Some("application/json"));
    assert_eq!(message.text("account"), "acme");
    assert_eq!(message.text("x-notice"), "webhook.paused");
}

#[test]
fn a_change_while_no_notifier_runs_is_published_by_the_next_and_an_older_one_is_not() {
    let sandbox = Sandbox::without_queues(&crate::harness::Servers::shared(), 1);
    sandbox.broker.declare(sandbox.queue(), FieldTable::new()).expect("a fresh name");
    let [old, new] =
        ["/old", "/new"].map(|path| sandbox.webhook(&format!("https://example.com{path}"), &["*"]));
    let pause = "UPDATE webhooks SET paused_at = now() WHERE id = $1";
    sandbox.database.execute(pause, &[&old]);
    // As if the table were created while the webhook is paused.
    sandbox.database.run_script("DROP TABLE webhook_conditions");
    assert!(succeed(&sandbox, &["migrate"]).contains("table webhook_conditions"));
    let first = sandbox.notifier().start();
    let bound = NoticeQueue::bound(&sandbox, "webhook.*");
    first.terminate();

    sandbox.database.execute(pause, &[&new]);
    let second = sandbox.notifier().start();
    let notices = bound.wait_for(new, &["webhook.paused"]);
    assert!(notices[0].get("account").is_none(), "{}", notices[0]);
    second.kill();
    let third = sandbox.notifier().start();
    let resume = "UPDATE webhooks SET paused_at = NULL";
    sandbox.database.execute(resume, &[]);
    bound.wait_for(new, &["webhook.paused", "webhook.resumed"]);
    bound.wait_for(old, &["webhook.resumed"]);
    third.terminate();
}

#[test]
fn the_owner_of_a_dead_letter_gets_a_notice_and_a_dead_notice_causes_none() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/notices" => Reply::Status(200),
        _ => Reply::Status(422),
    });
    let notifier = sandbox.notifier().env("NO_RETRY_STATUS", "422").start();
    // Its owner's events and notices arrive through one queue.
    sandbox.broker.bind(sandbox.queue(), EXCHANGE, "#");
    let register = |path: &str, events: &[&str], account: Option<&str>| {
        let webhook = sandbox.webhook(&receiver.url(path), events);
        let sql = "UPDATE webhooks SET account = $2 WHERE id = $1";
        sandbox.database.execute(sql, &[&webhook, &account]);
        webhook
    };
    let refusing = register("/refusing", &["order.*"], Some("acme"));
    register("/notices", &["delivery.dead"], Some("acme"));
    register("/others", &["delivery.dead"], Some("other"));
    // It refuses all notices, which become dead letters.
    register("/operator", &["delivery.dead"], None);
    let mut headers = FieldTable::new();
    let account = amiquip::AmqpValue::LongString("acme".to_owned());
    headers.insert("account".to_owned(), account);
    let event = Event::new("order.paid").headers(headers);
    sandbox.publish(&event);

    let is_ours = |body: &[u8]| String::from_utf8_lossy(body).contains(&refusing.to_string());
    let notice = wait_for(SOON, "its owner gets the notice", || {
        receiver.at("/notices").into_iter().find(|request| is_ours(&request.body))
    });
    assert_eq!(notice.header("webhook-event-type"), "delivery.dead");
    assert_eq!(notice.header("webhook-account"), "acme");
    let body: Value = serde_json::from_slice(&notice.body).expect("it is JSON");
    assert_eq!(notice.id(), body["id"].as_str().expect("a text"));
    let data = &body["data"];
    assert_eq!(data["event_id"], event.id, "{body}");
    assert_eq!(data["event_type"], "order.paid", "{body}");
    assert_eq!(data["reason"], "refused", "{body}");
    assert_eq!((&data["attempts"], &data["last_status"]), (&1.into(), &422.into()), "{body}");

    // The operator's webhook has refused it: a dead letter that causes no notice.
    wait_until(SOON, "the notice is dead", || {
        receiver.at("/operator").iter().any(|request| is_ours(&request.body))
    });
    notifier.wait_metric("webhook_notices_total", &[("result", "published")], 1.0);
    let letters = || notifier.metric("webhook_dead_letters_total", &[]);
    wait_until(SOON, "both are dead letters", || letters() >= 2.0);
    holds_for(Duration::from_secs(2), "of a dead notice there is none", || {
        published(&notifier) == 1.0
    });
    let seen = receiver.at("/notices").into_iter().filter(|request| is_ours(&request.body));
    assert_eq!(seen.count(), 1);
    assert!(!receiver.at("/others").iter().any(|request| is_ours(&request.body)));
    notifier.terminate();
}

#[test]
fn each_of_a_flood_of_dead_letters_is_published_or_counted_and_nothing_waits_for_it() {
    const MANY: usize = 1_500;
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(422));
    let webhook = sandbox.webhook(&receiver.url("/"), &["*"]);
    let launch = sandbox.notifier().env("NO_RETRY_STATUS", "422").env("PREFETCH_COUNT", "64");
    let notifier = launch.env("CIRCUIT_BREAKER", "off").start();
    let bound = NoticeQueue::bound(&sandbox, "delivery.dead");
    let events: Vec<Event> = (0..MANY).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);
    notifier.wait_metric("webhook_dead_letters_total", &[], MANY as f64);
    let dropped = || notifier.metric("webhook_notices_total", &[("result", "dropped")]);
    wait_until(SOON, "each is published or counted as dropped", || {
        published(&notifier) + dropped() == MANY as f64
    });
    assert_eq!(bound.of(webhook).len() as f64, published(&notifier));
    assert_eq!(notifier.metric("webhook_notices_waiting", &[]), 0.0);
    notifier.terminate();
}
