//! The status page and the data that it requests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use serde_json::Value;

use crate::{
    harness::{
        Event, LATER, Notifier, Proxy, Receiver, Reply, SOON, Sandbox, exposition::Exposition,
        rendered, wait_until,
    },
    observability::eventful,
};

/// What /status.json reports about a lane, and the metric that must agree.
const LANE_NUMBERS: [(&str, &str); 5] = [
    ("ready", "webhook_queue_messages"),
    ("in_flight", "webhook_requests_in_flight"),
    ("received", "webhook_events_received_total"),
    ("delivered", "webhook_request_success_total"),
    ("failed", "webhook_request_failure_total"),
];

pub(crate) fn status(notifier: &Notifier) -> Value {
    let answer = notifier.get("/status.json");
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
    serde_json::from_str(&answer.body).expect("JSON")
}

pub(crate) fn list<'a>(status: &'a Value, name: &str) -> &'a [Value] {
    status[name].as_array().expect("a list")
}

fn what_is_wrong(status: &Value) -> Vec<&str> {
    let advice = list(status, "advice").iter();
    advice.map(|advice| advice["what"].as_str().expect("a sentence")).collect()
}

fn is_well(notifier: &Notifier) -> bool {
    let status = status(notifier);
    status["state"] == "well" && what_is_wrong(&status).is_empty()
}

/// What the page shows for each metric's name: the text of each element with that title.
pub(crate) fn shown(dom: &str) -> BTreeMap<String, Vec<String>> {
    let mut shown: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for rest in dom.split(" title=\"").skip(1) {
        let (title, rest) = rest.split_once('"').expect("an attribute ends");
        let (_, rest) = rest.split_once('>').expect("a tag ends");
        let (text, _) = rest.split_once('<').expect("an element ends");
        shown.entry(title.replace("&quot;", "\"")).or_default().push(text.to_owned());
    }
    shown
}

#[track_caller]
fn assert_json_has_the_numbers(sandbox: &Sandbox, status: &Value, metrics: &Exposition) {
    let lanes = list(status, "lanes");
    let queues: Vec<_> = lanes.iter().map(|lane| lane["queue"].as_str()).collect();
    let backlogs = format!("{}.backlog", sandbox.queue());
    assert_eq!(queues, [Some(sandbox.queue()), Some(&sandbox.retry_queue()), Some(&backlogs)]);
    for lane in lanes {
        let labels = [("queue", lane["queue"].as_str().expect("a name"))];
        for (field, metric) in LANE_NUMBERS {
            let number = lane[field].as_f64();
            assert_eq!(number, Some(metrics.sum(metric, &labels)), "{field} of {labels:?}");
        }
        let consuming = metrics.value("webhook_broker_connected", &labels) == Some(1.0);
        assert_eq!(lane["state"] == "consuming", consuming, "{lane}");
    }
    let dead = [("queue", sandbox.dead_queue())];
    let dead = dead.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(lanes[0]["dead"].as_f64(), metrics.value("webhook_queue_messages", &dead));
    assert_eq!(lanes[1]["dead"], Value::Null);
    let ailing = metrics.value("webhook_receivers_ailing", &[]);
    assert_eq!(status["receivers"]["ailing"].as_f64(), ailing);
    let version = [("version", status["version"].as_str().expect("a version"))];
    assert_eq!(metrics.value("webhook_build_info", &version), Some(1.0));
}

#[track_caller]
fn assert_page_has_the_numbers(sandbox: &Sandbox, dom: &str, metrics: &Exposition) {
    let shown = shown(dom);
    for queue in [sandbox.queue().to_owned(), sandbox.retry_queue()] {
        for (_, metric) in LANE_NUMBERS {
            let title = format!("{metric}{{queue=\"{queue}\"}}");
            let expected = metrics.sum(metric, &[("queue", &queue)]).to_string();
            // A counter's total is below its rate.
            let at = usize::from(metric.ends_with("_total"));
            assert_eq!(shown[&title][at], expected, "{title}");
        }
    }
    let of = |title: &str| shown[title].join(" ");
    let dead = format!("webhook_queue_messages{{queue=\"{}\"}}", sandbox.dead_queue());
    assert_eq!(of(&dead).trim(), "1");
    assert_eq!(of("webhook_receivers_ailing"), "1");
    assert_eq!(of("webhook_database_up"), "✓ answers");
    let success = metrics.sum("webhook_request_success_total", &[]);
    assert!(dom.contains(&format!("<small>{success} since the start</small>")), "{dom}");
}

#[test]
fn page_and_json_show_the_numbers_of_the_metrics() {
    let sandbox = Sandbox::new();
    let notifier = eventful(&sandbox);
    // Quantiles are of the events between two samples. Nothing changes after that.
    wait_until(SOON, "the lags have been sampled, and the queues seen empty", || {
        let lanes = list(&status(&notifier), "lanes").to_vec();
        lanes[..2].iter().all(|lane| !lane["lag_p99"].is_null() && lane["ready"] == 0)
    });
    let metrics = notifier.metrics();
    let status = status(&notifier);
    assert_json_has_the_numbers(&sandbox, &status, &metrics);
    let lag = |lane: usize, quantile: &str| status["lanes"][lane][quantile]["seconds"].as_f64();
    assert!(lag(1, "lag_p50") >= Some(1.0), "the delay of a retry: {status}");
    assert_eq!(what_is_wrong(&status), ["1 dead letter.", "1 receiver fails or is slow."]);

    let (dom, console) = rendered(&format!("http://{}/", notifier.admin_address()));
    assert_eq!(console, Vec::<String>::new());
    assert_page_has_the_numbers(&sandbox, &dom, &metrics);
    for text in ["1 dead letter.", "<code>webhook-notifier dead-letters list</code>"] {
        assert!(dom.contains(text), "{text} in {dom}");
    }
    let never = status["receivers"]["listed"][0]["webhook"].as_str().expect("an id");
    assert!(dom.contains(&format!("<code>{never}</code>")), "{dom}");
}

#[test]
fn wait_queues_are_listed_by_their_delay() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "1s,2s,1s").start();
    wait_until(SOON, "RabbitMQ has reported how many wait", || {
        !status(&notifier)["depths_age_seconds"].is_null()
    });
    let status = status(&notifier);
    let shown: BTreeSet<_> = list(&status, "waiting")
        .iter()
        .map(|waiting| {
            assert!(waiting["messages"].as_u64().is_some(), "{waiting}");
            (waiting["delay"].as_str(), waiting["queue"].as_str())
        })
        .collect();
    // The last one is for deliveries that can't have a backlog.
    let delays = ["1s", "2s", "1m"];
    let queues = delays.map(|delay| format!("webhooks.wait.{delay}"));
    let expected = delays.iter().zip(&queues);
    let expected = expected.map(|(delay, queue)| (Some(*delay), Some(queue.as_str())));
    assert_eq!(shown, expected.collect());
    let metrics = notifier.metrics();
    for queue in &queues {
        // Other tests have retries there, too.
        let value = metrics.value("webhook_queue_messages", &[("queue", queue)]);
        assert!(value.is_some(), "{queue}");
    }
}

#[test]
fn it_says_plainly_which_server_is_away_and_when_all_is_well_again() {
    let sandbox = Sandbox::new();
    let broker = Proxy::before(&sandbox.servers.amqp_url);
    let database = Proxy::before(sandbox.database.url());
    let notifier = sandbox
        .notifier()
        .env("AMQP_URL", broker.url(&sandbox.servers.amqp_url))
        .env("DATABASE_URL", database.url(sandbox.database.url()))
        .start();
    wait_until(SOON, "all is well", || is_well(&notifier));

    // Both at once: each is polled every few seconds.
    broker.refuse();
    database.refuse();
    wait_until(LATER, "it reports that both are away, and what follows", || {
        let status = status(&notifier);
        let wrong = what_is_wrong(&status);
        let begins = |at: usize, text: &str| wrong.get(at).is_some_and(|one| one.starts_with(text));
        status["state"] == "trouble"
            && begins(0, "RabbitMQ has not answered for ")
            && wrong[0].ends_with(" s: nothing is being consumed.")
            && begins(1, "PostgreSQL has not answered for ")
    });
    let lanes = list(&status(&notifier), "lanes").to_vec();
    assert!(lanes.iter().all(|lane| lane["state"] != "consuming"), "{lanes:?}");
    broker.thaw();
    database.thaw();
    wait_until(LATER, "all is well again", || is_well(&notifier));
}

#[test]
fn ailing_receivers_are_listed_with_reason_and_next_attempt_until_they_are_well() {
    let sandbox = Sandbox::new();
    let (receiver, is_fixed) = Receiver::failing(500);
    let down = sandbox.webhook(&receiver.refusing_url(), &["down"]);
    let failing = sandbox.webhook(&receiver.url("/"), &["failing"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "1s,repeat")
        .env("CIRCUIT_BREAKER", "2,1h,1h")
        .start();
    for kind in ["down", "down", "failing"] {
        sandbox.publish(&Event::new(kind));
    }
    let listed = || status(&notifier)["receivers"]["listed"].clone();
    wait_until(SOON, "both are listed, the worse first", || {
        let listed = listed();
        listed[0]["condition"] == "open" && listed[1]["condition"] == "failing"
    });
    let listed_now = listed();
    let (open, other) = (&listed_now[0], &listed_now[1]);
    assert_eq!(open["webhook"], down.to_string());
    assert_eq!(open["reason"], "refused");
    assert!(open["failures"].as_u64() >= Some(2), "{open}");
    let next = open["next_in_seconds"].as_f64().expect("a pause");
    assert!((3_000.0..=3_600.0).contains(&next), "{next} s");
    assert_eq!(other["webhook"], failing.to_string());
    assert_eq!((&other["reason"], &other["next_in_seconds"]), (&"status_5xx".into(), &Value::Null));
    assert_eq!((&other["status"], &open["status"]), (&500.into(), &Value::Null));
    let output = status(&notifier);
    // And how many messages wait for it, once they are counted.
    assert_eq!(
        what_is_wrong(&output)[..2],
        ["1 receiver is down: its deliveries wait.", "1 receiver fails or is slow."]
    );

    is_fixed.store(true, Ordering::Relaxed);
    wait_until(SOON, "the recovered one is no longer listed", || {
        let listed = listed();
        listed.as_array().is_some_and(|listed| listed.len() == 1)
    });
    assert_eq!(listed()[0]["webhook"], down.to_string());
}

#[test]
fn the_page_reveals_no_event_or_secret_and_of_urls_only_where_they_lead() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|_| Reply::Status(500));
    let url = receiver.url("/in/concealed-0123456789?token=concealed-token");
    sandbox.webhook(&url, &["*"]);
    let notifier = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").start();
    sandbox.publish(&Event::new("concealed.kind").id("concealed-identity"));
    wait_until(SOON, "it is dead, and its receiver fails", || {
        let status = status(&notifier);
        status["receivers"]["ailing"] == 1 && status["lanes"][0]["dead"] == 1
    });
    let mut texts = vec![notifier.get("/").body, notifier.get("/status.json").body];
    texts.extend(["/", "/status.json"].map(|path| notifier.get(path).head));
    let password = |url: &str| url.split([':', '@']).nth(2).expect("a password").to_owned();
    let servers = &sandbox.servers;
    let secrets = [password(&servers.amqp_url), password(&servers.database_url)];
    for forbidden in ["concealed"].into_iter().chain(secrets.each_ref().map(|s| &**s)) {
        for text in &texts {
            assert!(!text.contains(forbidden), "{forbidden} in {text}");
        }
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere_and_lets_nothing_in() {
    let sandbox = Sandbox::new();
    let notifier = sandbox.notifier().start();
    let page = notifier.get("/");
    assert_eq!(page.status, 200);
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(page.head.contains(header), "{header} in {}", page.head);
    }
    assert!(!page.head.contains("unsafe-") && !page.head.contains("access-control"));
    let json = notifier.get("/status.json");
    assert!(json.head.contains("cache-control: no-store"), "{}", json.head);
    assert!(!json.head.contains("access-control"), "{}", json.head);

    let references = ["src=\"", "href=\"", "fetch(\""].iter().flat_map(|attribute| {
        let found = page.body.split(attribute).skip(1);
        found.map(|rest| rest.split('"').next().expect("a value"))
    });
    let references: BTreeSet<_> = references.collect();
    assert_eq!(
        references,
        BTreeSet::from(["data:,", "healthz", "metrics", "readyz", "status.json"])
    );
    for path in references.iter().filter(|reference| !reference.starts_with("data:")) {
        assert_eq!(notifier.get(&format!("/{path}")).status, 200, "{path}");
    }

    let head = notifier.ask("HEAD", "/");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let length = format!("content-length: {}", page.body.len());
    assert!(head.head.contains(&length), "{}", head.head);
    assert_eq!(notifier.ask("POST", "/").status, 405);
    // Without scripts it names the other sources.
    let (_, rest) = page.body.split_once("<noscript>").expect("there is something");
    assert!(rest.split("</noscript>").next().is_some_and(|text| text.contains("readyz")));
}
