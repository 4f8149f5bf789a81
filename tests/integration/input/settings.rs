//! The settings: mistakes of an operator, or of a deployment.

use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStringExt as _;
use std::time::Duration;

use clap::{Args as _, FromArgMatches as _};
use ipnet::IpNet;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use webhook_notifier::config::{Config, ConfigError, Settings};
use webhook_notifier::domain::{
    address::AllowedNetworks, receiver::Breaker, retry::Schedule, time::Span,
};

use super::{MARK, cases, changed, changed_text, check_example, corpus, expect_one_line, texts};

/// Reads the settings with this one given.
fn read(variable: &'static str, value: impl Into<OsString>) -> Result<Config, ConfigError> {
    let mut flag = OsString::from(format!("--{}=", variable.to_lowercase().replace('_', "-")));
    flag.push(value.into());
    let command = Settings::augment_args(clap::Command::new("notifier"));
    let matches = command.try_get_matches_from([OsString::from("notifier"), flag]);
    let matches = matches.expect("an argument that is there is an argument");
    Settings::from_arg_matches(&matches).expect("a value is a value").read()
}

/// The settings with examples.
const PARSERS: [&str; 10] = [
    "AMQP_URL",
    "DATABASE_URL",
    "QUEUES",
    "RETRY_SCHEDULE",
    "CIRCUIT_BREAKER",
    "MAX_EVENT_BYTES",
    "REQUEST_TIMEOUT",
    "ALLOW_NETWORKS",
    "FORWARD_HEADERS",
    "RUST_LOG",
];

/// What is true of every accepted configuration.
#[track_caller]
fn check_config(config: &Config) {
    let day = Duration::from_secs(86_400);
    let mut names = Vec::new();
    for queue in &config.queues {
        assert!((1..=1_024).contains(&queue.capacity), "{queue:?}");
        // Our queues are named after it, within AMQP's 255 bytes.
        assert!((1..=200).contains(&queue.name.len()), "{queue:?}");
        assert!(!queue.name.contains(|c: char| c.is_control() || "*#".contains(c)), "{queue:?}");
        names.push(&queue.name);
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), config.queues.len(), "a queue is consumed twice");
    assert!(!names.is_empty());
    assert_eq!(config.database_pool_size, 8);

    let delays = config.retry_schedule.distinct_delays();
    assert!((1..=64).contains(&delays.len()), "{delays:?}");
    let month = Duration::from_secs(30 * 86_400);
    assert!(delays.iter().all(|delay| (1..=month.as_millis()).contains(&delay.get().as_millis())));
    assert!(delays.iter().map(|delay| delay.get()).sum::<Duration>() <= 64 * month);
    assert_eq!(config.retry_schedule.to_string().parse(), Ok(config.retry_schedule.clone()));

    assert_eq!(config.circuit_breaker.to_string().parse(), Ok(config.circuit_breaker));

    assert!((1..=128 << 20).contains(&config.max_event_bytes));
    assert!((1..=128 << 20).contains(&config.max_response_bytes));
    assert!(!config.connect_timeout.is_zero());
    assert!(config.connect_timeout <= config.request_timeout);
    assert!(config.request_timeout <= config.shutdown_timeout && config.shutdown_timeout <= day);

    let shown = format!("{config:?} {}", config.amqp);
    assert!(!shown.contains(MARK), "{shown}");
}

/// A refusal names the variable once, and then the problem.
#[track_caller]
fn check_refusal(variable: &str, error: &ConfigError) {
    expect_one_line(error);
    assert_eq!(error.variable, variable, "{error}");
    assert!(error.to_string().starts_with(&format!("{variable}: ")), "{error}");
}

#[test]
fn each_example_of_a_setting_is_what_its_name_says() {
    for variable in PARSERS {
        for (name, value) in texts(variable) {
            let read = read(variable, &value).inspect_err(|error| check_refusal(variable, error));
            if let Some(config) = check_example(&format!("{name} of {variable}"), read) {
                check_config(&config);
            }
        }
    }
}

#[test]
fn what_is_not_utf8_is_refused_by_the_variables_name() {
    for variable in PARSERS.into_iter().chain(["METRICS_ADDR", "TLS_CA_FILE", "FANOUT_INLINE"]) {
        let mut value = OsString::from(MARK);
        value.push(OsString::from_vec(vec![0xff]));
        check_refusal(variable, &read(variable, value).expect_err("it is not UTF-8"));
    }
}

#[test]
fn a_network_that_is_allowed_is_allowed_as_a_whole() {
    for (name, value) in texts("ALLOW_NETWORKS") {
        let Ok(networks) = AllowedNetworks::parse(&value) else { continue };
        for part in value.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let network: IpNet = part
                .parse()
                .or_else(|_| part.parse::<IpAddr>().map(IpNet::from))
                .expect("it was accepted");
            for address in [network.network(), network.broadcast(), network.addr()] {
                assert_eq!(networks.check(address), Ok(()), "{name}");
            }
        }
    }
    let metadata: IpAddr = "169.254.169.254".parse().expect("an address");
    let private = AllowedNetworks::parse("10.0.0.0/8").expect("a network");
    assert!(private.check(metadata).is_err());
}

/// Any text that a variable can hold.
fn any_value() -> impl Strategy<Value = OsString> {
    "[^\0]{0,40}".prop_map(OsString::from)
}

fn changed_value(variable: &'static str) -> impl Strategy<Value = OsString> {
    changed(variable).prop_map(|mut bytes| {
        bytes.retain(|byte| *byte != 0);
        OsString::from_vec(bytes)
    })
}

proptest! {
    #![proptest_config(cases(1))]

    #[test]
    fn whatever_comes_as_a_setting_is_bounded_or_refused_in_one_line(
        (variable, value) in prop::sample::select(&PARSERS[..])
            .prop_flat_map(|variable| (Just(variable), prop_oneof![changed_value(variable), any_value()])),
    ) {
        match read(variable, value) {
            Ok(config) => check_config(&config),
            // A timeout can be refused because of another setting.
            Err(error) if variable == "REQUEST_TIMEOUT" => check_refusal(error.variable, &error),
            Err(error) => {
                // A changed URL may show a piece of the mark as a file's or a parameter's name: only
                // what precedes the `@` is secret.
                if !error.to_string().contains(MARK) {
                    check_refusal(variable, &error);
                }
            }
        }
    }

    #[test]
    fn a_password_of_any_characters_arrives_and_is_told_to_nobody(
        password in "\\PC{1,20}", rest in "[a-z/?&=%0-9]{0,20}",
    ) {
        let password = format!("{MARK}{password}");
        let encoded = utf8_percent_encode(&password, NON_ALPHANUMERIC).to_string();
        // The mark has a hyphen.
        let encoded = encoded.replace("%2D", "-");
        for (variable, url) in [
            ("AMQP_URL", format!("amqp://user:{encoded}@host/{rest}")),
            ("AMQP_URL", format!("amqps://user:{encoded}@host{rest}")),
            ("DATABASE_URL", format!("postgres://user:{encoded}@host/{rest}")),
            ("DATABASE_URL", format!("host=h password='{encoded}' {rest}")),
        ] {
            match read(variable, &url) {
                Err(error) => check_refusal(variable, &error),
                Ok(config) => {
                    check_config(&config);
                    if variable == "AMQP_URL" {
                        prop_assert_eq!(config.amqp.password.expose(), &password);
                    } else {
                        prop_assert!(config.database.url.expose().contains(&encoded));
                    }
                }
            }
        }
    }

    #[test]
    fn whatever_comes_as_a_schedule_or_a_breaker_prints_as_it_is_read(
        schedule in prop_oneof![changed_text("RETRY_SCHEDULE"), "([0-9]{1,7}(ms|s|m|h),){0,5}(repeat)?"],
        breaker in prop_oneof![changed_text("CIRCUIT_BREAKER"), "[0-9]{1,4},[0-9]{1,7}(ms|s|m),[0-9]{1,7}(s|m|h)"],
        time in prop_oneof![changed_text("REQUEST_TIMEOUT"), "[0-9]{0,25}[a-z]{0,2}"],
    ) {
        match schedule.parse::<Schedule>() {
            Ok(read) => prop_assert_eq!(read.to_string().parse(), Ok(read)),
            Err(problem) => expect_one_line(&problem),
        }
        match breaker.parse::<Breaker>() {
            Ok(read) => prop_assert_eq!(read.to_string().parse(), Ok(read)),
            Err(problem) => expect_one_line(&problem),
        }
        match time.parse::<Span>() {
            Ok(read) => prop_assert_eq!(read.to_string().parse(), Ok(read)),
            Err(problem) => expect_one_line(&problem),
        }
    }
}

#[test]
fn every_parser_has_good_and_bad_examples() {
    for parser in PARSERS.into_iter().chain([
        "events",
        "headers",
        "frames",
        "retry_after",
        "urls",
        "secrets",
        "signatures",
    ]) {
        for kind in ["good-", "bad-"] {
            assert!(
                corpus(parser).iter().any(|(name, _)| name.starts_with(kind)),
                "{parser}: {kind}"
            );
        }
    }
}
