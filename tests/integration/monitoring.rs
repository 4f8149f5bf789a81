//! What operators get for monitoring: Prometheus rules and a Grafana dashboard.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
    sync::atomic::Ordering,
};

use serde_json::{Value, json};

use crate::{
    harness::{
        Event, LATER, Prometheus, Proxy, Receiver, Sandbox, exposition::Exposition,
        prometheus::folder, wait_until,
    },
    observability::eventful,
    readme::{documented_topic, documents},
};

mod dashboard;
mod promql;

use promql::Use;

/// The labels that Prometheus adds to everything it scrapes.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

/// Metrics of Prometheus itself.
const ITS_OWN: [(&str, &[&str]); 2] = [("up", &[]), ("ALERTS", &["alertname", "alertstate"])];

#[track_caller]
fn promtool(arguments: &[&str], file: PathBuf) {
    let output = Command::new("promtool").args(arguments).arg(&file).output();
    let output = output.expect("promtool is installed: `make test` installs it");
    let printed =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{}: {}", file.display(), printed.concat());
}

#[test]
fn the_rules_are_valid_and_each_of_their_cases_holds() {
    promtool(&["check", "config"], folder().join("prometheus.yml"));
    promtool(
        &["check", "rules", "--lint=all", "--lint-fatal"],
        folder().join("prometheus-rules.yml"),
    );
    promtool(&["test", "rules"], folder().join("prometheus-rules.test.yml"));
}

/// The series that an expression may use.
struct Known {
    metrics: Exposition,
    /// By name; only the rules define the labels of these.
    recorded: BTreeSet<String>,
}

impl Known {
    /// The type of a metric and its labels; None if there is no such metric.
    fn metric(&self, name: &str) -> Option<(&str, BTreeSet<&str>)> {
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let histogram = part.filter(|metric| {
            self.metrics.types.get(*metric).is_some_and(|kind| kind == "histogram")
        });
        let kind = match histogram {
            Some(_) => "histogram",
            None => self.metrics.types.get(name).filter(|kind| *kind != "histogram")?,
        };
        Some((kind, self.metrics.labels(name)))
    }

    /// What is wrong with an expression.
    fn objections(&self, expression: &str) -> Vec<String> {
        let uses = promql::uses(expression);
        let mut objections: Vec<_> =
            uses.iter().flat_map(|used| self.objections_to_use(used)).collect();
        if uses.is_empty() {
            objections.push("no metric is used".to_owned());
        }
        let labels = uses.iter().filter_map(|used| self.metric(&used.metric));
        let labels: BTreeSet<_> = labels.flat_map(|(_, labels)| labels).collect();
        let grouped = promql::grouping_labels(expression);
        let unknown = grouped.iter().filter(|label| !has(&labels, label));
        objections.extend(unknown.map(|label| format!("nothing has the label {label}")));
        objections
    }

    fn objections_to_use(&self, used: &Use) -> Vec<String> {
        let Use { metric, labels: asked, functions } = used;
        if self.recorded.contains(metric) {
            return Vec::new();
        }
        let own = ITS_OWN.iter().find(|(name, _)| name == metric);
        let own = own.map(|(_, labels)| ("gauge", labels.iter().copied().collect()));
        let Some((kind, labels)) = own.or_else(|| self.metric(metric)) else {
            return vec![format!("{metric} is not exported")];
        };
        let unknown = asked.iter().filter(|label| !has(&labels, label));
        let mut objections: Vec<_> =
            unknown.map(|label| format!("{metric} has no label {label}")).collect();
        let is_in = |names: &[&str]| functions.iter().any(|name| names.contains(&name.as_str()));
        if is_in(&["rate", "increase"]) != (kind != "gauge") {
            objections.push(format!("{metric} is a {kind}, and used in {functions:?}"));
        }
        if is_in(&["histogram_quantile"]) && !metric.ends_with("_bucket") {
            objections.push(format!("{metric} has no buckets"));
        }
        objections
    }

    #[track_caller]
    fn assert_sound(&self, expressions: &BTreeMap<String, String>) {
        for (place, expression) in expressions {
            let objections = self.objections(expression);
            assert!(objections.is_empty(), "{place}: {objections:#?} in {expression}");
        }
    }
}

fn has(labels: &BTreeSet<&str>, label: &str) -> bool {
    labels.contains(label) || TARGET_LABELS.contains(&label)
}

#[test]
fn these_tests_object_to_metrics_that_are_not_used_by_their_type() {
    let exposition = "# TYPE g gauge\ng{x=\"1\"} 1\n# TYPE c counter\nc 1\n\
                      # TYPE h histogram\nh_bucket{le=\"1\"} 1\nh_sum 1\n";
    let known = Known {
        metrics: Exposition::parse(exposition),
        recorded: BTreeSet::from(["r:g:max".to_owned()]),
    };
    for (expression, expected) in [
        ("sum by (x) (g{x=\"2\",job=\"j\"}) / max without (instance) (rate(c[1m]))", ""),
        ("histogram_quantile(0.9, rate(h_bucket[1m])) > r:g:max and up == 1", ""),
        ("1 + time()", "no metric is used"),
        ("g_total", "g_total is not exported"),
        ("rate(h[1m])", "h is not exported"),
        ("rate(g[1m])", "g is a gauge, and used in [\"rate\"]"),
        ("deriv(c[1m])", "c is a counter, and used in [\"deriv\"]"),
        ("g{y=\"1\"}", "g has no label y"),
        ("sum by (y) (g)", "nothing has the label y"),
        ("histogram_quantile(0.9, rate(h_sum[1m]))", "h_sum has no buckets"),
    ] {
        assert_eq!(known.objections(expression).join("; "), expected, "{expression}");
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

#[test]
fn rules_dashboard_and_documents_use_metrics_as_they_are_exported() {
    let sandbox = Sandbox::new();
    let notifier = eventful(&sandbox);
    let prometheus = Prometheus::watching(notifier.admin_address());
    let rules = prometheus.rules();
    let recording = rules.iter().filter(|rule| rule["type"] == "recording");
    let known = Known {
        metrics: notifier.metrics(),
        recorded: recording.map(|rule| text(&rule["name"]).to_owned()).collect(),
    };
    let named = |rule: &Value| (text(&rule["name"]).to_owned(), text(&rule["query"]).to_owned());
    known.assert_sound(&rules.iter().map(named).collect());

    let panels = dashboard::expressions();
    known.assert_sound(&panels);
    // The depths of wait queues, which not every notifier reports.
    let has_waits = notifier.get("/metrics").body.contains("\"webhooks.wait.");
    for (place, expression) in &panels {
        if has_waits || !expression.contains("queue=~\"webhooks[.]wait") {
            wait_until(LATER, &format!("{place} shows something: {expression}"), || {
                !prometheus.query(expression).is_empty()
            });
        }
    }

    let text = documents().into_values().collect::<String>();
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    // The program, a field of notices, a table.
    let others = ["webhook_notifier", "webhook_id", "webhook_conditions"];
    for name in words.filter(|word| word.starts_with("webhook_") && !others.contains(word)) {
        assert!(
            known.metric(name).is_some() || known.metrics.types.contains_key(name),
            "a document invents {name}"
        );
    }
}

#[test]
fn the_manual_lists_exactly_the_alerts() {
    let rules = std::fs::read_to_string(folder().join("prometheus-rules.yml")).expect("text");
    let names = rules.lines().filter_map(|line| line.trim_start().strip_prefix("- alert: "));
    let alerts: BTreeSet<_> = names.map(str::to_owned).collect();
    assert_eq!(documented_topic("alerts"), alerts);
    let cases = std::fs::read_to_string(folder().join("prometheus-rules.test.yml")).expect("text");
    for alert in alerts {
        let fires = format!("labels: 'ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"");
        let silent = format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}', eval_time: ");
        assert!(cases.contains(&fires) && cases.contains(&silent), "no case of {alert}");
    }
}

/// An example of each alert whose expression always holds, as JSON, which is also YAML.
fn always_firing(rules: &[Value]) -> String {
    let always = r#"label_replace(label_replace(label_replace(vector(0.75), "instance", "vm-7:9090", "", ""),
        "queue", "high_priority", "", ""), "reason", "exhausted", "", "")"#;
    let rules: Vec<_> = rules
        .iter()
        .filter(|rule| rule["type"] == "alerting")
        .map(|rule| {
            json!({ "alert": rule["name"], "expr": always, "labels": rule["labels"],
                    "annotations": rule["annotations"] })
        })
        .collect();
    json!({ "groups": [{ "name": "always", "rules": rules }] }).to_string()
}

#[test]
fn each_alert_states_the_problem_its_severity_and_the_remedy() {
    // Nothing listens there.
    let prometheus = Prometheus::watching("127.0.0.1:9".parse().expect("an address"));
    let rules = prometheus.rules();
    let count = rules.iter().filter(|rule| rule["type"] == "alerting").count();
    prometheus.replace_rules(&always_firing(&rules));
    wait_until(LATER, "all alerts fire", || prometheus.alerts().len() == count);
    for alert in prometheus.alerts() {
        let name = &alert.name;
        assert!(
            ["critical", "warning"].contains(&alert.text("severity")),
            "{name} has no severity"
        );
        for annotation in ["summary", "description", "runbook"] {
            let text = alert.text(annotation);
            assert!(!text.is_empty(), "{name} has no {annotation}");
            for mistake in ["{{", "error expanding", "no value", "%!", "  "] {
                assert!(!text.contains(mistake), "{annotation} of {name}: {text}");
            }
        }
    }
}

#[test]
fn prometheus_alerts_for_a_lane_cut_off_and_an_ended_process_until_both_are_back() {
    let sandbox = Sandbox::new();
    let proxy = Proxy::before(&sandbox.servers.amqp_url);
    let start = || {
        let launch = sandbox.notifier().env("AMQP_URL", proxy.url(&sandbox.servers.amqp_url));
        launch.env("AMQP_RETRY_DELAY", "100ms").start()
    };
    let notifier = start();
    let prometheus = Prometheus::watching(notifier.admin_address());
    let is_up = || !prometheus.query("up == 1").is_empty();
    wait_until(LATER, "it is scraped", is_up);
    prometheus.wait_quiet(LATER);

    proxy.refuse();
    let alerts = prometheus.wait_firing(LATER, "WebhookLaneNotConsuming");
    let lanes = ["", ".retry", ".backlog"].map(|lane| format!("{}{lane}", sandbox.queue()));
    for alert in &alerts {
        assert!(lanes.iter().any(|lane| lane == alert.text("queue")), "{alert:?}");
        assert!(alert.text("summary").ends_with(alert.text("queue")), "{alert:?}");
        assert_eq!(alert.text("severity"), "critical");
    }
    prometheus.wait_firing(LATER, "WebhookNotifierNotReady");
    proxy.thaw();
    prometheus.wait_quiet(LATER);

    notifier.terminate();
    let alerts = prometheus.wait_firing(LATER, "WebhookNotifierAbsent");
    let [alert] = &alerts[..] else { panic!("one for all instances: {alerts:?}") };
    assert!(alert.text("description").starts_with("None of 1 instances"), "{alert:?}");
    let notifier = start();
    prometheus.watch(notifier.admin_address());
    wait_until(LATER, "the new one is scraped", is_up);
    prometheus.wait_quiet(LATER);
}

#[test]
fn prometheus_sees_most_deliveries_fail_and_die_and_then_recover() {
    let sandbox = Sandbox::new();
    let (receiver, is_fixed) = Receiver::failing(500);
    // One or two failing receivers cause no alert.
    for path in ["/a", "/b", "/c"] {
        sandbox.webhook(&receiver.url(path), &["*"]);
    }
    let launch = sandbox.notifier().env("RETRY_SCHEDULE", "100ms").env("CIRCUIT_BREAKER", "off");
    let notifier = launch.start();
    let prometheus = Prometheus::watching(notifier.admin_address());
    prometheus.wait_quiet(LATER);

    // For as long as needed: the rules here only look back ten seconds.
    let mut fired = BTreeMap::new();
    wait_until(LATER, "both alerts have fired", || {
        sandbox.publish(&Event::new("order.paid"));
        fired.extend(prometheus.alerts().into_iter().map(|alert| (alert.name.clone(), alert)));
        ["WebhookFailureRatio", "WebhookDeadLettersGrowing"]
            .iter()
            .all(|name| fired.contains_key(*name))
    });
    let dying = &fired["WebhookDeadLettersGrowing"];
    assert_eq!(dying.text("reason"), "exhausted");
    assert!(dying.text("description").contains("(exhausted)"), "{dying:?}");
    let failing = fired["WebhookFailureRatio"].text("description");
    assert!(failing.starts_with("100% of"), "{failing}");

    is_fixed.store(true, Ordering::SeqCst);
    wait_until(LATER, "no alert fires any more", || {
        sandbox.publish(&Event::new("order.paid"));
        prometheus.alerts().is_empty()
    });
    assert_eq!(notifier.terminate().code, Some(0));
}
