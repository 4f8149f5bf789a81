//! Requests through a proxy, EGRESS_PROXY.

use std::{fs, time::Duration};

use serde_json::Value;

use crate::{
    commands,
    harness::{
        Authority, ConnectProxy, Event, Notifier, Receiver, Reply, SOON, Sandbox, Terminator, Way,
        holds_for, process::Finished, wait_until,
    },
};

const PASSWORD: &str = "s3cret-Pa55word";

/// An address that no host has (RFC 5737), and that is allowed here.
const FAR: &str = "192.0.2.14";
const ALLOWED: &str = "192.0.2.0/24";

fn held(notifier: &Notifier) -> f64 {
    notifier.metric("webhook_deliveries_held_total", &[("reason", "proxy")])
}

#[test]
fn a_receiver_is_reached_through_the_proxy_by_its_address_over_one_connection() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    sandbox.webhook(&format!("http://{FAR}/in"), &["*"]);
    let notifier = sandbox
        .notifier()
        .env("QUEUES", sandbox.one_at_a_time())
        .env("ALLOW_NETWORKS", ALLOWED)
        .env("EGRESS_PROXY", proxy.url_with(&format!("user:{PASSWORD}")))
        .start();

    for count in 1..=20 {
        sandbox.publish(&Event::new("order.paid"));
        receiver.wait_at("/in", count);
    }

    let tunnels = proxy.asked();
    assert_eq!(tunnels.len(), 1, "the tunnel is used again: {tunnels:?}");
    assert_eq!((&*tunnels[0].target, &*tunnels[0].host), ("192.0.2.14:80", "192.0.2.14:80"));
    assert_eq!(tunnels[0].authorization, "Basic dXNlcjpzM2NyZXQtUGE1NXdvcmQ=");
    for request in receiver.requests() {
        assert_eq!(request.header("host"), FAR);
        assert_eq!(request.header("proxy-authorization"), "", "that is for the proxy only");
    }
    assert_eq!(notifier.metric("webhook_egress_proxy_up", &[]), 1.0);
    let log = notifier.stderr().join("\n");
    assert!(!log.contains(PASSWORD) && !log.contains("dXNlcjpz"), "{log}");
    notifier.terminate();
    sandbox.wait_drained();
}

#[test]
fn https_is_encrypted_all_the_way_and_its_name_is_the_receivers() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let authority = Authority::new("a CA of the tests");
    let trusted = authority.file();
    let plain = receiver.url("/");
    let good = Terminator::before(&plain, authority.good());
    let other = Terminator::before(&plain, authority.of_another_name());
    let by_name = |url: String| url.replace("127.0.0.1", "localhost");
    sandbox.webhook(&by_name(good.url(&plain)), &["good"]);
    sandbox.webhook(&by_name(other.url(&plain)), &["other"]);
    let proxy = ConnectProxy::new();
    let mut notifier = sandbox
        .notifier()
        .env("TLS_CA_FILE", trusted.path())
        .env("RETRY_SCHEDULE", "1h")
        .env("EGRESS_PROXY", proxy.url())
        .start();

    sandbox.publish(&Event::new("good"));
    let request = receiver.wait_at("/", 1).remove(0);
    assert!(request.header("host").starts_with("localhost:"), "{request:?}");
    sandbox.publish(&Event::new("other"));
    let line = notifier.wait_stderr(SOON, "attempt failed");
    assert!(line.contains("reason=tls") && line.contains("not valid for name"), "{line}");
    let tunnels = proxy.asked();
    assert_eq!(tunnels.len(), 2, "{tunnels:?}");
    for connect in tunnels {
        assert!(connect.target.starts_with("127.0.0.1:"), "by address: {connect:?}");
    }
    assert_eq!(receiver.requests().len(), 1);
}

/// An error of the proxy that affects all receivers delays their deliveries, but counts no attempt.
#[track_caller]
fn check_away(way: Way, expected: &str) {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    let paths = ["/a", "/b"];
    for path in paths {
        sandbox.webhook(&format!("http://{FAR}{path}"), &["*"]);
    }
    let mut notifier = sandbox
        .notifier()
        // If failures counted, one would open the breaker, and two would make a dead letter.
        .env("RETRY_SCHEDULE", "100ms")
        .env("CIRCUIT_BREAKER", "1,1m,1m")
        .env("ALLOW_NETWORKS", ALLOWED)
        .env("EGRESS_PROXY", proxy.url())
        .start();
    proxy.set(way);
    let events: Vec<_> = (0..3).map(|_| Event::new("order.paid")).collect();
    sandbox.broker.publish(sandbox.queue(), &events);

    let line = notifier.wait_stderr(SOON, "not sent");
    assert!(line.contains(&proxy.name()) && line.contains(expected), "{way:?}: {line}");
    wait_until(SOON, "more often than the schedule has attempts", || held(&notifier) >= 24.0);
    assert_eq!(notifier.metric("webhook_egress_proxy_up", &[]), 0.0);
    let status: Value = serde_json::from_str(&notifier.get("/status.json").body).expect("JSON");
    let advice = status["advice"].to_string();
    assert!(
        advice.contains("No request has reached a receiver") && advice.contains(expected),
        "{advice}"
    );
    assert_eq!(notifier.metric("webhook_request_failure_total", &[]), 0.0);
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), 0.0);
    assert_eq!(notifier.metric("webhook_circuit_breaker_transitions_total", &[]), 0.0);

    proxy.set(Way::Open);

    for path in paths {
        receiver.wait_at(path, 3);
    }
    wait_until(SOON, "it is known", || notifier.metric("webhook_egress_proxy_up", &[]) == 1.0);
    notifier.terminate();
    sandbox.wait_drained();
    for (event, path) in events.iter().flat_map(|event| paths.map(|path| (event, path))) {
        assert_eq!(receiver.of(path, event).len(), 1, "{way:?}");
    }
}

#[test]
fn a_proxy_that_closes_the_connection_costs_no_delivery_an_attempt() {
    check_away(Way::Close, "ended the connection");
}

#[test]
fn a_proxy_that_wants_other_credentials_costs_no_delivery_an_attempt() {
    let challenge = Way::Status(407, "Proxy-Authenticate: Basic realm=\"x\"");
    check_away(challenge, "requires other credentials");
}

#[test]
fn a_server_that_is_no_proxy_costs_no_delivery_an_attempt() {
    check_away(Way::Status(405, ""), "does not accept CONNECT (status 405)");
    check_away(Way::Garbage, "does not answer in HTTP");
}

#[test]
fn a_proxy_that_does_not_listen_costs_no_delivery_an_attempt() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    sandbox.webhook(&receiver.url("/"), &["*"]);
    let refusing = receiver.refusing_url();
    let mut notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "100ms")
        .env("EGRESS_PROXY", refusing.trim_end_matches('/'))
        .start();

    sandbox.publish(&Event::new("order.paid"));

    let line = notifier.wait_stderr(SOON, "not sent");
    assert!(line.contains("cannot be reached") && line.contains("127.0.0.2:"), "{line}");
    wait_until(SOON, "more often than the schedule has attempts", || held(&notifier) >= 4.0);
    assert_eq!(notifier.metric("webhook_dead_letters_total", &[]), 0.0);
    assert_eq!(receiver.connections(), 0, "nothing bypasses the proxy");
}

#[test]
fn an_error_of_the_proxy_about_one_receiver_is_that_receivers_failure() {
    for (way, reason, expected) in [
        (Way::Status(403, ""), "proxy", "with status 403: its rules do not allow it"),
        (Way::Status(407, ""), "proxy", "with status 407: its rules do not allow it"),
        (Way::Status(500, ""), "proxy", "with status 500: it cannot connect there"),
        (Way::Status(502, ""), "proxy", "with status 502: it cannot connect there"),
        (Way::Status(503, ""), "proxy", "with status 503: it cannot connect there"),
        (Way::Hang, "timeout", "did not connect to 192.0.2.14:80 in time"),
    ] {
        let sandbox = Sandbox::new();
        let proxy = ConnectProxy::new();
        proxy.set(way);
        sandbox.webhook(&format!("http://{FAR}/"), &["*"]);
        let notifier = sandbox
            .notifier()
            .env("RETRY_SCHEDULE", "100ms")
            .env("REQUEST_TIMEOUT", "1s")
            .env("ALLOW_NETWORKS", ALLOWED)
            .env("EGRESS_PROXY", proxy.url())
            .start();

        sandbox.publish(&Event::new("order.paid"));

        let dead = sandbox.take_dead();
        assert_eq!(dead.text("x-dead-reason"), "exhausted", "{way:?}: {dead:?}");
        assert_eq!(dead.number("x-attempt"), Some(2), "{way:?}: {dead:?}");
        let error = dead.text("x-last-error");
        assert!(error.contains(expected) && error.contains(&proxy.name()), "{way:?}: {error}");
        let failed = [("reason", reason)];
        assert_eq!(notifier.metric("webhook_request_failure_total", &failed), 2.0, "{way:?}");
        assert_eq!(notifier.metric("webhook_egress_proxy_up", &[]), 1.0, "{way:?}");
    }
}

#[test]
fn a_proxy_that_hangs_up_for_one_receiver_alone_is_that_receivers_failure() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    proxy.set(Way::CloseFor(FAR));
    sandbox.webhook(&format!("http://{FAR}/"), &["bad"]);
    sandbox.webhook("http://192.0.2.15/", &["good"]);
    let notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "500ms")
        .env("ALLOW_NETWORKS", ALLOWED)
        .env("EGRESS_PROXY", proxy.url())
        .start();

    sandbox.publish(&Event::new("bad"));
    // Other receivers get their deliveries meanwhile.
    let mut count = 0;
    wait_until(SOON, "it is dead", || {
        count += 1;
        sandbox.publish(&Event::new("good"));
        receiver.wait_at("/", count);
        sandbox.broker.ready(&sandbox.dead_queue()) == Some(1)
    });

    let dead = sandbox.take_dead();
    assert_eq!(dead.text("x-dead-reason"), "exhausted", "{dead:?}");
    assert!(dead.text("x-last-error").contains("ended the connection"), "{dead:?}");
    notifier.wait_metric("webhook_request_failure_total", &[("reason", "proxy")], 2.0);
}

#[test]
fn a_receiver_that_hangs_behind_the_proxy_times_out_and_the_proxy_is_well() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::answering(|request| match request.path.as_str() {
        "/hang" => Reply::Hang,
        _ => Reply::Status(200),
    });
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    sandbox.webhook(&format!("http://{FAR}/hang"), &["hang"]);
    sandbox.webhook(&format!("http://{FAR}/"), &["fine"]);
    let mut notifier = sandbox
        .notifier()
        .env("RETRY_SCHEDULE", "1h")
        .env("REQUEST_TIMEOUT", "1s")
        .env("ALLOW_NETWORKS", ALLOWED)
        .env("EGRESS_PROXY", proxy.url())
        .start();
    sandbox.publish(&Event::new("hang"));
    sandbox.publish(&Event::new("fine"));
    receiver.wait_at("/", 1);
    let line = notifier.wait_stderr(SOON, "attempt failed");
    assert!(line.contains("reason=timeout") && !line.contains("EGRESS_PROXY"), "{line}");
    assert_eq!(held(&notifier), 0.0);
}

#[track_caller]
fn check_command(sandbox: &Sandbox, proxy: &str) -> Finished {
    let finished = sandbox.launch(&["check"]).env("EGRESS_PROXY", proxy).spawn().finish(SOON);
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains(PASSWORD), "{text}");
    }
    finished
}

#[test]
fn check_says_whether_the_proxy_answers() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::new();
    sandbox.webhook("http://192.0.2.14/", &["*"]);
    // Creates the queues.
    drop(sandbox.notifier().start());
    let url = proxy.url_with(&format!("user:{PASSWORD}"));
    for (way, code, expected) in [
        (Way::Open, 0, "answers"),
        (Way::Status(403, ""), 0, "answers"),
        (Way::Status(407, ""), 0, "answers"),
        (Way::Status(407, "proxy-authenticate: Basic"), 1, "requires other credentials"),
        (Way::Status(401, ""), 1, "requires other credentials"),
        (Way::Status(501, ""), 1, "does not accept CONNECT"),
        (Way::Close, 1, "ends the connection without an answer"),
        (Way::Garbage, 1, "does not answer in HTTP"),
    ] {
        proxy.set(way);
        let finished = check_command(&sandbox, &url);
        let line = finished.stdout.lines().find(|line| line.contains("egress proxy"));
        let line = line.unwrap_or_else(|| panic!("{finished:?}"));
        assert!(line.contains(expected) && line.contains(&proxy.name()), "{way:?}: {line}");
        assert_eq!(finished.code, Some(code), "{way:?}: {finished:?}");
    }
    let refusing = check_command(&sandbox, receiver.refusing_url().trim_end_matches('/'));
    assert_eq!(refusing.code, Some(1), "{refusing:?}");
    assert!(refusing.stdout.contains("cannot be reached"), "{refusing:?}");
    let without = sandbox.command(&["check"]);
    assert!(!without.stdout.contains("egress proxy"), "{without:?}");
}

#[test]
fn a_test_goes_through_the_proxy_too() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    let webhook = sandbox.webhook(&format!("http://{FAR}/"), &["*"]).to_string();
    let test = || {
        let test = sandbox.launch(&["webhooks", "test", &webhook]);
        let test = test.env("ALLOW_NETWORKS", ALLOWED).env("EGRESS_PROXY", proxy.url());
        test.spawn().finish(SOON)
    };
    let finished = test();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert_eq!(receiver.requests().len(), 1);
    proxy.set(Way::Close);
    let finished = test();
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains(", proxy: the proxy 127.0.0.1:"), "{finished:?}");
}

#[test]
fn the_password_of_the_proxy_is_never_shown() {
    let sandbox = Sandbox::new();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("env");
    for proxy in [format!("https://u:{PASSWORD}@x:1"), format!("http://u:{PASSWORD}@x")] {
        fs::write(&file, format!("EGRESS_PROXY={proxy}\n")).expect("it is writable");
        let file = file.to_str().expect("a path in UTF-8");
        for command in [&["run", "--env-file", file][..], &["check", "--env-file", file]] {
            let finished = sandbox.launch(command).spawn().finish(SOON);
            assert_eq!(finished.code, Some(2), "{finished:?}");
            assert!(finished.stderr.contains("EGRESS_PROXY"), "{finished:?}");
            assert!(!finished.stderr.contains(PASSWORD), "{finished:?}");
        }
    }
    let help = commands::succeed(&sandbox, &["run", "--help"]);
    assert!(!help.contains(PASSWORD));
}

#[test]
fn the_address_guard_decides_before_the_proxy_is_connected_to() {
    let sandbox = Sandbox::new();
    let receiver = Receiver::new();
    let proxy = ConnectProxy::leading_to(&receiver.url(""));
    let urls = [
        "http://127.0.0.1/",
        "https://localhost/",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.1.2.3/",
        "http://[::ffff:10.1.2.3]/",
        "http://[64:ff9b::a01:203]/",
        "http://203.0.114.7/",
        "http://[2002:cb00:7207::1]/",
    ];
    for url in urls {
        sandbox.webhook(url, &["*"]);
    }
    let notifier = sandbox
        .notifier()
        .env("ALLOW_NETWORKS", "")
        .env("DENY_NETWORKS", "203.0.114.0/24")
        .env("EGRESS_PROXY", proxy.url())
        .start();

    sandbox.publish(&Event::new("order.paid"));

    let rejected = [("reason", "rejected")];
    notifier.wait_metric("webhook_dead_letters_total", &rejected, urls.len() as f64);
    holds_for(Duration::from_millis(300), "no connection is made", || {
        proxy.connections() == 0 && receiver.connections() == 0
    });
}
