//! Which settings are accepted, and what is said of the others.

use super::*;

fn read(given: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    let given = given.iter().map(|(variable, value)| (*variable, (*value).into()));
    Settings { given: given.collect(), ..Settings::default() }.read()
}

#[test]
fn the_defaults_are_a_configuration() {
    let config = read(&[]).expect("the defaults");
    assert_eq!(config.queues.len(), 3);
    assert_eq!(config.database_pool_size, 8);
    assert_eq!(config.retry_schedule.to_string(), "1s,2s,4s,8s,16s,1m,5m,15m,1h,6h,24h");
    assert_eq!((config.amqp.vhost.as_str(), config.amqp.hosts[0].port), ("/", 5672));
}

#[test]
fn a_short_request_shortens_the_default_connect_timeout() {
    let config = read(&[("REQUEST_TIMEOUT", "2s")]).expect("no contradiction");
    assert_eq!(config.connect_timeout, Duration::from_secs(2));
}

#[test]
fn queues_may_say_how_much_capacity_they_have() {
    let config = read(&[("QUEUES", "a=8, b")]).expect("two queues");
    assert_eq!(
        config.queues,
        [
            EventQueue { name: "a".to_owned(), capacity: 8 },
            EventQueue { name: "b".to_owned(), capacity: 64 }
        ]
    );
}

#[test]
fn a_queue_whose_name_has_a_space_is_allowed_and_suspicious() {
    let suspicions = |queues: &str| {
        let given = [("QUEUES", queues.into())].into();
        let settings = Settings { given, ..Settings::default() };
        settings.suspicions(&settings.read().expect("queues"))
    };
    let is_said = |line: &String| line.starts_with("QUEUES: \"a b\" is one queue");
    assert!(suspicions("a b").iter().any(is_said));
    assert!(!suspicions("a, b").iter().any(is_said));
}

#[test]
fn attempts_that_are_never_made_are_suspicious() {
    let suspicions = |age: &str| {
        let given = [("QUEUES", "a".into()), ("DELIVERY_MAX_AGE", age.into())].into();
        let settings = Settings { given, ..Settings::default() };
        settings.suspicions(&settings.read().expect("they can be used"))
    };
    let is_said = |line: &String| line.contains("11 of the 12 attempts") && line.contains("=7h");
    assert!(suspicions("7h").iter().any(is_said), "{:?}", suspicions("7h"));
    assert!(!suspicions("72h").iter().any(|line| line.starts_with("RETRY_SCHEDULE")));
}

#[test]
fn what_cannot_be_used_is_named() {
    for (variable, value) in [
        ("AMQP_URL", "http://s3cret@x/"),
        ("DATABASE_URL", "postgres://u:s3cret@x/?sslmode=on"),
        ("TLS_CA_FILE", "/nowhere/ca.pem"),
        ("QUEUES", ""),
        ("QUEUES", "a,,b"),
        ("QUEUES", "a,a"),
        ("QUEUES", "a=0"),
        ("QUEUES", "a=1025"),
        ("QUEUES", "a=x"),
        ("QUEUES", "a.retry"),
        ("QUEUES", "a.*"),
        ("PREFETCH_COUNT", "0"),
        ("PREFETCH_COUNT", "65536"),
        ("METRICS_ADDR", "9090"),
        ("METRICS_HOSTS", "https://hooks.example.com"),
        ("AMQP_CONNECTION_ATTEMPTS", "0"),
        ("AMQP_RETRY_DELAY", "5"),
        ("RETRY_SCHEDULE", "1s,soon"),
        ("REQUEST_TIMEOUT", "0s"),
        ("CONNECT_TIMEOUT", "11s"),
        ("FANOUT_INLINE", "0"),
        ("CIRCUIT_BREAKER", "5,5m,1s"),
        ("DISABLE_AFTER", "never"),
        ("DISABLE_AFTER", "0s"),
        ("MAX_EVENT_BYTES", "1GB"),
        ("MAX_EVENT_BYTES", "0"),
        ("FORWARD_HEADERS", "webhook-id"),
        ("MAX_RESPONSE_BYTES", "129MiB"),
        ("NO_RETRY_STATUS", "4x"),
        ("NO_RETRY_STATUS", "200"),
        ("ALLOW_NETWORKS", "home"),
        ("DENY_NETWORKS", "home"),
        ("EGRESS_PROXY", "https://u:s3cret@proxy:3128"),
        ("DATABASE_POOL_SIZE", "-1"),
        ("DELIVERY_LOG", "some"),
        ("DELIVERY_LOG_KEEP", "3651d"),
        ("SHUTDOWN_TIMEOUT", "9s"),
        ("RUST_LOG", "inof"),
    ] {
        let error = read(&[(variable, value)]).expect_err(value);
        assert_eq!(error.variable, variable, "{value}: {error}");
        let line = error.to_string();
        assert!(!line.contains('\n') && !line.contains("s3cret"), "{line}");
    }
}
