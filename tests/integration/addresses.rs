//! Webhook URLs are from outsiders: they may lead to the public internet, or where the operator allows,
//! and nowhere else.

use serde_json::Value;

use crate::harness::{
    ConnectProxy, DeadLetter, Event, Receiver, SOON, Sandbox, process::Finished, wait_until,
};

/// Each URL's event is dead at once, for a reason with that text, and no connection was made, neither
/// directly nor through a proxy.
#[track_caller]
fn check_rejected(cases: &[(&str, &str)]) {
    check_rejected_with("", "", cases);
}

#[track_caller]
fn check_rejected_with(allowed: &str, denied: &str, cases: &[(&str, &str)]) {
    for with_proxy in [false, true] {
        check_each_rejected(allowed, denied, with_proxy, cases);
    }
}

#[track_caller]
fn check_each_rejected(allowed: &str, denied: &str, with_proxy: bool, cases: &[(&str, &str)]) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let port = receiver.url("").rsplit(':').next().expect("a port").to_owned();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    let notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("ALLOW_NETWORKS", allowed)
        .env("DENY_NETWORKS", denied)
        .env("EGRESS_PROXY", if with_proxy { proxy.url() } else { String::new() })
        .start();
    let mut expected = Vec::new();
    for (number, (url, text)) in cases.iter().enumerate() {
        let kind = format!("case.{number}");
        let webhook = sandbox.webhook(&url.replace("PORT", &port), &[&kind]);
        expected.push((Event::new(&kind), kind, webhook, url, text));
    }
    let events: Vec<_> = expected.iter().map(|(event, ..)| event.clone()).collect();

    sandbox.broker.publish(sandbox.queue(), &events);

    // With one consumer, they die in the order in which they arrived.
    for (event, kind, webhook, url, text) in &expected {
        let (webhook, reason, attempts) = (*webhook, "rejected", 1);
        let dead = sandbox.expect_dead(&DeadLetter { event, kind, webhook, reason, attempts });
        let detail = dead.text("x-last-error");
        assert!(detail.contains(**text), "{url}: {detail}");
        let id = webhook.to_string();
        let logged = |line: &String| line.contains(&id) && line.contains(**text);
        wait_until(SOON, &format!("{url} is in the log"), || notifier.stderr().iter().any(logged));
    }
    assert_eq!((receiver.connections(), proxy.connections()), (0, 0));
    let log = notifier.stderr().join("\n");
    assert!(!log.contains("s3cret"), "a password of a URL is in the log");
    assert_eq!(notifier.metric("webhook_retries_scheduled_total", &[]), 0.0);
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn an_address_that_is_not_allowed_is_rejected_without_a_connection_however_it_is_written() {
    let loopback = "(loopback, 127.0.0.0/8): allow it by ALLOW_NETWORKS=127.0.0.1";
    check_rejected(&[
        ("http://127.0.0.1:PORT/", loopback),
        ("https://127.0.0.1:PORT/", loopback),
        ("http://127.0.0.1.:PORT/", loopback),
        ("http://127.1:PORT/", loopback),
        ("http://2130706433:PORT/", loopback),
        ("http://0x7f000001:PORT/", loopback),
        ("http://0x7f.1:PORT/", loopback),
        ("http://0177.0.0.1:PORT/", loopback),
        ("http://017700000001:PORT/", loopback),
        ("http://１２７.０.０.１:PORT/", loopback),
        ("http://127。0。0。1:PORT/", loopback),
        ("http://%31%32%37.0.0.1:PORT/", loopback),
        ("http:\\\\127.0.0.1:PORT\\", loopback),
        ("hTTp:127.0.0.1:PORT", loopback),
        ("http://[::ffff:127.0.0.1]:PORT/", loopback),
        ("http://[::ffff:7f00:1]:PORT/", loopback),
        ("http://localhost:PORT/", "(loopback, "),
        ("http://LOCALHOST:PORT/", "(loopback, "),
        ("http://127.1.2.3:PORT/", "(loopback, 127.0.0.0/8)"),
        ("http://0:PORT/", "(this network, 0.0.0.0/8)"),
        ("http://[::]:PORT/", "(unspecified, ::/128)"),
        ("http://[::1]:PORT/", "(loopback, ::1/128): allow it by ALLOW_NETWORKS=::1"),
        ("http://[::127.0.0.1]:PORT/", "(IPv4-compatible, ::/96)"),
        ("http://[64:ff9b::7f00:1]:PORT/", "(loopback, 127.0.0.0/8)"),
        ("http://[64:ff9b:1::7f00:1]:PORT/", "(local NAT64, 64:ff9b:1::/48)"),
        ("http://[2002:7f00:1::]:PORT/", "(loopback, 127.0.0.0/8)"),
        ("http://[2001::7f00:1]:PORT/", "(Teredo, 2001::/32)"),
        ("http://[fd00:ec2::254]/latest/meta-data/", "(unique local, fc00::/7)"),
        (
            "http://169.254.169.254/latest/meta-data/",
            "(link-local: cloud metadata and credentials, 169.254.0.0/16)",
        ),
        (
            "http://2852039166/latest/meta-data/",
            "(link-local: cloud metadata and credentials, 169.254.0.0/16)",
        ),
        ("http://10.1.2.3/", "(private, 10.0.0.0/8)"),
    ]);
}

#[test]
fn a_denied_address_is_never_reached_whatever_allows_it_and_however_it_is_written() {
    let denied = "127.0.0.0/8,::1,10.1.0.0/16,2001:db8:64::/96,2606:4700::/32";
    let loopback = "in DENY_NETWORKS (127.0.0.0/8)";
    check_rejected_with(
        "0.0.0.0/0,::/0",
        denied,
        &[
            ("http://127.0.0.1:PORT/", "the address 127.0.0.1 is in DENY_NETWORKS (127.0.0.0/8)"),
            ("https://127.0.0.1:PORT/", loopback),
            ("http://0x7f.1:PORT/", loopback),
            ("http://localhost:PORT/", "in DENY_NETWORKS ("),
            ("http://[::1]:PORT/", "in DENY_NETWORKS (::1/128)"),
            ("http://0:PORT/", "in DENY_NETWORKS (127.0.0.0/8)"),
            ("http://0.0.0.0:PORT/", "in DENY_NETWORKS (127.0.0.0/8)"),
            ("http://[::]:PORT/", "in DENY_NETWORKS (::1/128)"),
            ("http://[::ffff:0:0]:PORT/", "in DENY_NETWORKS (127.0.0.0/8)"),
            ("http://[::ffff:127.0.0.1]:PORT/", loopback),
            ("http://[::127.0.0.1]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://[::ffff:0:127.0.0.1]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://[64:ff9b::7f00:1]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://[64:ff9b:1::7f00:1]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            (
                "http://[64:ff9b:1:7f00:0:100::]:PORT/",
                "leads to 127.0.0.1, which is in DENY_NETWORKS",
            ),
            ("http://[2002:7f00:1::]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://[2001:0:7f00:1::]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://[2001::80ff:fffe]:PORT/", "leads to 127.0.0.1, which is in DENY_NETWORKS"),
            ("http://10.1.2.3/", "in DENY_NETWORKS (10.1.0.0/16)"),
            ("http://[64:ff9b::a01:203]/", "leads to 10.1.2.3, which is in DENY_NETWORKS"),
            // The operator's own NAT64 prefix and public addresses.
            ("http://[2001:db8:64::a09:9]/", "in DENY_NETWORKS (2001:db8:64::/96)"),
            ("http://[2606:4700::1111]/", "in DENY_NETWORKS (2606:4700::/32)"),
        ],
    );
}

#[test]
fn denying_a_network_does_not_deny_its_neighbour() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["here"]);
    sandbox.webhook(&receiver.url("/").replace("127.0.0.1", "localhost"), &["by.name"]);
    let _notifier = sandbox
        .notifier()
        .env("ALLOW_NETWORKS", "127.0.0.0/8,::1")
        .env("DENY_NETWORKS", "127.0.0.2,::1")
        .start();

    sandbox.publish(&Event::new("here"));
    receiver.wait_at("/", 1);
    // If `localhost` is also ::1, that address is skipped.
    sandbox.publish(&Event::new("by.name"));
    receiver.wait_at("/", 2);
}

#[test]
fn check_names_the_webhooks_that_lead_to_denied_addresses() {
    let sandbox = Sandbox::new();
    let denied = sandbox.webhook("http://10.1.2.3/", &["*"]);
    sandbox.webhook("http://10.2.0.1/", &["*"]);
    sandbox.webhook("https://93.184.215.14/", &["*"]);
    let check = sandbox.launch(&["check"]).env("ALLOW_NETWORKS", "10.0.0.0/8");
    let finished = check.env("DENY_NETWORKS", "10.1.0.0/16").spawn().finish(SOON);
    let line = finished.stdout.lines().find(|line| line.contains("  webhooks  "));
    let line = line.unwrap_or_else(|| panic!("{finished:?}"));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(line.starts_with("warn  webhooks "), "{line}");
    for part in [
        "3 enabled of 3, 1 with a warning: ",
        &format!("{denied}: deliveries will be rejected: the address 10.1.2.3"),
        "is in DENY_NETWORKS (10.1.0.0/16)",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
}

#[test]
fn an_invalid_url_is_rejected_and_its_password_is_not_shown() {
    check_rejected(&[
        ("http://user:s3cret@127.0.0.1:PORT/", "a user name or password"),
        ("http://s3cret@127.0.0.1:PORT/", "a user name or password"),
        ("http://[fe80::1%25lo]:PORT/", "unusable URL"),
        ("http://127.0.0.1%00:PORT/", "unusable URL"),
        ("http://127.0.0.256:PORT/", "unusable URL"),
        ("http://0x100000000:PORT/", "unusable URL"),
        ("ftp://127.0.0.1:PORT/", "needs http:// or https://"),
        ("file:///etc/passwd", "needs http:// or https://"),
        ("gopher://127.0.0.1:PORT/_x", "needs http:// or https://"),
        ("javascript:alert(1)", "needs http:// or https://"),
        ("//127.0.0.1:PORT/", "unusable URL"),
        ("not a url", "unusable URL"),
        ("", "unusable URL"),
    ]);
}

#[test]
fn an_allowed_network_is_reached_and_its_neighbour_is_not() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["here"]);
    let webhook = sandbox.webhook(&receiver.refusing_url(), &["there"]);
    let _notifier = sandbox.notifier().env("ALLOW_NETWORKS", "127.0.0.1, 10.0.0.0/8").start();

    sandbox.publish(&Event::new("here"));
    let there = Event::new("there");
    sandbox.publish(&there);

    receiver.wait_at("/", 1);
    sandbox.expect_dead(&DeadLetter {
        event: &there,
        kind: "there",
        webhook,
        reason: "rejected",
        attempts: 1,
    });
}

#[test]
fn a_name_is_reached_at_its_allowed_addresses_only() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    // If `localhost` is also ::1, that address is skipped.
    sandbox.webhook(&receiver.url("/").replace("127.0.0.1", "localhost"), &["*"]);
    let _notifier = sandbox.notifier().env("ALLOW_NETWORKS", "127.0.0.1").start();

    sandbox.publish(&Event::new("order.paid"));

    receiver.wait_at("/", 1);
}

#[test]
fn no_proxy_of_the_environment_is_used() {
    let sandbox = Sandbox::new();
    let (receiver, proxy) = (Receiver::new(), Receiver::new());
    sandbox.webhook(&receiver.url("/plain"), &["*"]);
    let encrypted = receiver.url("/").replace("http:", "https:");
    sandbox.webhook(&encrypted, &["*"]);
    let mut launch = sandbox.notifier().env("RETRY_SCHEDULE", "1h");
    for name in ["http_proxy", "https_proxy", "all_proxy", "ftp_proxy"] {
        launch = launch.env(name, proxy.url("")).env(&name.to_uppercase(), proxy.url(""));
    }
    let notifier = launch.env("no_proxy", "").env("NO_PROXY", "").start();

    sandbox.publish(&Event::new("order.paid"));

    receiver.wait_at("/plain", 1);
    wait_until(SOON, "the other one has failed", || {
        notifier.metric("webhook_request_failure_total", &[]) == 1.0
    });
    assert_eq!(proxy.connections(), 0);
}

#[track_caller]
fn add(sandbox: &Sandbox, url: &str, allowed: &str, options: &[&str]) -> Finished {
    let arguments = [&["webhooks", "add", url, "*"], options].concat();
    let launch = sandbox.launch(&arguments).env("ALLOW_NETWORKS", allowed);
    let launch = launch.env("DENY_NETWORKS", "93.184.216.0/24");
    let finished = launch.spawn().finish(SOON);
    assert_eq!(finished.code, Some(0), "{url}: {finished:?}");
    finished
}

#[test]
fn adding_a_webhook_that_no_delivery_would_reach_succeeds_with_a_warning() {
    let sandbox = Sandbox::new();
    const OF_RUN: &str = ". What counts are the ALLOW_NETWORKS and DENY_NETWORKS of `run`: change \
                          them there, and restart it";
    let rejected = "warning: deliveries will be rejected: ";
    for (url, allowed, warnings) in [
        (
            "http://127.0.0.1:9/",
            "",
            &[rejected, "(loopback, ", "ALLOW_NETWORKS=127.0.0.1", OF_RUN][..],
        ),
        ("http://0x7f.1:9/", "10.0.0.0/8", &[rejected, "(loopback, 127.0.0.0/8)"]),
        ("https://localhost/in", "", &[rejected, "(loopback, "]),
        ("http://[fd00::1]/", "", &[rejected, "(unique local, fc00::/7)"]),
        ("http://no-such-host.invalid/", "", &["warning: deliveries will fail until ", "invalid"]),
        ("http://localhost/", "127.0.0.0/8,::1", &[]),
        ("https://93.184.215.14/", "", &[]),
        (
            "https://93.184.216.34/",
            "0.0.0.0/0",
            &[rejected, "the address 93.184.216.34 is in DENY_NETWORKS (93.184.216.0/24)"],
        ),
        ("https://[2606:4700::1111]/", "", &[]),
    ] {
        let finished = add(&sandbox, url, allowed, &[]);
        for part in warnings {
            assert!(finished.stderr.contains(part), "{url}: no {part:?} in {finished:?}");
        }
        let warned = finished.stderr.contains("warning");
        assert_eq!(warned, !warnings.is_empty(), "{url}: {finished:?}");
        assert!(finished.stdout.starts_with("id "), "{finished:?}");
    }

    let finished = add(&sandbox, "http://10.0.0.1/", "", &["--json"]);

    let added: Value = serde_json::from_str(&finished.stdout).expect("only JSON on stdout");
    assert_eq!(added["post_url"], "http://10.0.0.1/");
    assert!(finished.stderr.contains(rejected), "{finished:?}");
    let rows = sandbox.database.query("SELECT count(*) FROM webhooks", &[]);
    assert_eq!(rows[0].get::<_, i64>(0), 10);
}
