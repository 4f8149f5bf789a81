//! Invalid settings end the start before anything is connected.

use crate::harness::{SOON, notifier::Launch, unwrapped};

const PASSWORD: &str = "s3cret-Pa55word";

/// Servers that must never be contacted: a failed connection exits with code 1, not 2.
fn launch(arguments: &[&str]) -> Launch {
    Launch::new(arguments)
        .env("AMQP_URL", format!("amqp://user:{PASSWORD}@127.0.0.1:1/%2f"))
        .env("DATABASE_URL", format!("postgres://user:{PASSWORD}@127.0.0.1:1/none"))
        .env("METRICS_ADDR", "127.0.0.1:0")
}

/// Expects exit code 2 and exactly one line, which names the variable.
#[track_caller]
fn check_refused(launch: Launch, variable: &str, what: &str) {
    let finished = launch.spawn().finish(SOON);
    assert_eq!(finished.code, Some(2), "{what}: {finished:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{what}: {finished:?}");
    assert!(finished.stderr.contains(variable), "{what}: {finished:?}");
    assert_eq!(finished.stdout, "", "{what}");
    assert!(!finished.stderr.contains(PASSWORD), "{what}: {finished:?}");
}

#[test]
fn an_invalid_value_is_reported_in_one_line_that_names_its_variable() {
    let cases = [
        ("AMQP_URL", ""),
        ("AMQP_URL", "garbage"),
        ("AMQP_URL", "http://localhost/"),
        ("AMQP_URL", "amqp://user:s3cret-Pa55word@host:notaport/"),
        ("AMQP_URL", "amqp://user:s3cret-Pa55word@[::1/"),
        ("DATABASE_URL", ""),
        ("DATABASE_URL", "garbage"),
        ("DATABASE_URL", "mysql://user:s3cret-Pa55word@localhost/x"),
        ("DATABASE_URL", "postgres://user:s3cret-Pa55word@localhost:notaport/x"),
        ("QUEUES", ""),
        ("QUEUES", ","),
        ("QUEUES", "a,a"),
        ("QUEUES", "a=1,a=2"),
        ("QUEUES", "a=0"),
        ("QUEUES", "a=1025"),
        ("QUEUES", "a=many"),
        ("QUEUES", "a=-1"),
        ("QUEUES", "=3"),
        ("PREFETCH_COUNT", "0"),
        ("PREFETCH_COUNT", "-1"),
        ("PREFETCH_COUNT", "65536"),
        ("PREFETCH_COUNT", "1.5"),
        ("METRICS_ADDR", "bad"),
        ("METRICS_ADDR", "127.0.0.1"),
        ("METRICS_ADDR", "127.0.0.1:99999"),
        ("AMQP_CONNECTION_ATTEMPTS", "0"),
        ("AMQP_CONNECTION_ATTEMPTS", "few"),
        ("AMQP_RETRY_DELAY", "soon"),
        ("AMQP_RETRY_DELAY", "-1s"),
        ("RETRY_SCHEDULE", "abc"),
        ("RETRY_SCHEDULE", "1s,,2s"),
        ("RETRY_SCHEDULE", "0s"),
        ("RETRY_SCHEDULE", "repeat"),
        ("RETRY_SCHEDULE", "repeat,1s"),
        ("RETRY_SCHEDULE", "99999999999999999999h"),
        ("REQUEST_TIMEOUT", "0s"),
        ("REQUEST_TIMEOUT", "10 parsecs"),
        ("CONNECT_TIMEOUT", "0s"),
        ("FANOUT_INLINE", "0"),
        ("FANOUT_INLINE", "all"),
        ("CIRCUIT_BREAKER", "5,5m,1s"),
        ("MAX_EVENT_BYTES", "0"),
        ("MAX_EVENT_BYTES", "1 football field"),
        ("MAX_RESPONSE_BYTES", "-1"),
        ("ALLOW_NETWORKS", "nonsense"),
        ("ALLOW_NETWORKS", "10.0.0.0/33"),
        ("ALLOW_NETWORKS", "10.0.0.0/8;192.168.0.0/16"),
        ("DATABASE_POOL_SIZE", "0"),
        ("REQUEST_TIMEOUT", "11m"),
        ("SHUTDOWN_TIMEOUT", "0s"),
        ("SHUTDOWN_TIMEOUT", "1s"),
    ];
    for (variable, value) in cases {
        let what = format!("{variable}={value}");
        check_refused(launch(&["run"]).env(variable, value), variable, &what);
    }
}

#[test]
fn a_drain_shorter_than_a_request_is_refused_by_either_variable() {
    let contradiction =
        launch(&["run"]).env("SHUTDOWN_TIMEOUT", "20s").env("REQUEST_TIMEOUT", "30s");
    check_refused(contradiction, "SHUTDOWN_TIMEOUT", "20 s to drain, 30 s a request");
    let contradiction = launch(&["run"]).env("REQUEST_TIMEOUT", "60s");
    check_refused(contradiction, "SHUTDOWN_TIMEOUT", "15 s to drain, 60 s a request");
}

#[test]
fn a_flag_sets_the_same_as_its_variable_and_takes_precedence() {
    let contradiction = launch(&["run", "--prefetch-count", "0"]).env("PREFETCH_COUNT", "5");
    let finished = contradiction.spawn().finish(SOON);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(
        finished.stderr.contains("PREFETCH_COUNT") || finished.stderr.contains("--prefetch-count"),
        "{finished:?}"
    );
}

#[test]
fn an_unknown_command_or_flag_is_a_usage_error() {
    for arguments in [&["fly"][..], &["run", "--fast"], &["run", "now"], &[]] {
        let finished = launch(arguments).spawn().finish(SOON);
        assert_eq!(finished.code, Some(2), "{arguments:?}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{arguments:?}");
        assert!(!finished.stderr.contains(PASSWORD), "{finished:?}");
    }
}

#[test]
fn help_names_every_variable_and_its_default_and_no_password() {
    let defaults = [
        ("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f"),
        ("DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres"),
        ("QUEUES", "high_priority,medium_priority,low_priority"),
        ("PREFETCH_COUNT", "1"),
        ("METRICS_ADDR", "0.0.0.0:9090"),
        ("AMQP_CONNECTION_ATTEMPTS", "3"),
        ("AMQP_RETRY_DELAY", "5s"),
        ("RETRY_SCHEDULE", "1s,2s,4s,8s,16s,1m,5m,15m,1h,6h,24h"),
        ("REQUEST_TIMEOUT", "10s"),
        ("CONNECT_TIMEOUT", "3s"),
        ("FANOUT_INLINE", "64"),
        ("CIRCUIT_BREAKER", "5,1s,5m"),
        ("MAX_EVENT_BYTES", "1MiB"),
        ("MAX_RESPONSE_BYTES", "64KiB"),
        ("ALLOW_NETWORKS", ""),
        ("DATABASE_POOL_SIZE", "8"),
        ("SHUTDOWN_TIMEOUT", "15s"),
        ("RUST_LOG", "info"),
    ];
    let finished = launch(&["run", "--help"]).spawn().finish(SOON);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let help = finished.stdout;
    assert!(!help.contains(PASSWORD), "{help}");
    let words = unwrapped(&help);
    for (variable, default) in defaults {
        assert!(words.contains(variable), "{variable} is not in {help}");
        if !default.is_empty() {
            assert!(
                words.contains(&format!("[default: {default}]")),
                "the default {default} of {variable} is not in {help}"
            );
        }
    }
}
