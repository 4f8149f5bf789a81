//! Configuration: environment variables, their flags, or a file of them → [`Config`], with every check.
//!
//! Flags, help and the names in errors come from one table (`SETTINGS`), so that they can't diverge.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::domain::address::AllowedNetworks;
use crate::domain::answer::MOST_OF_BODY;
use crate::domain::broker_names;
use crate::domain::delivery_log::Extent;
use crate::domain::forwarding::Forwarding;
use crate::domain::receiver::Breaker;
use crate::domain::retry::Schedule;
use crate::domain::shown::{self, quoted};
use crate::domain::statuses::Statuses;
use crate::domain::time::Span;
use crate::tls::{Check, Roots, Tls};

mod arguments;
mod env_file;
mod hosts;
mod proxy;
mod queue_type;
mod servers;

pub use arguments::ServerSettings;
pub use proxy::EgressProxy;
pub use queue_type::QueueType;
pub use servers::{Amqp, Database, Encryption, Host, session_attrs};

/// One setting: an environment variable and the flag of the same name.
struct Setting {
    variable: &'static str,
    default: &'static str,
    value: &'static str,
    help: &'static str,
}

const fn setting(
    variable: &'static str,
    default: &'static str,
    value: &'static str,
    help: &'static str,
) -> Setting {
    Setting { variable, default, value, help }
}

#[rustfmt::skip]
const SETTINGS: [Setting; 31] = [
    setting("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/%2f", "URL", "RabbitMQ; prefer the variable to the flag, which `ps` shows"),
    setting("DATABASE_URL", "postgres://postgres@127.0.0.1:5432/postgres", "URL", "PostgreSQL; prefer the variable to the flag, which `ps` shows"),
    setting("QUEUES", "high_priority,medium_priority,low_priority", "LIST", "Queues to consume: `name` or `name=capacity`, separated by commas; the capacity is how many requests may be in flight for it at a time, 64 if not given"),
    setting("QUEUE_TYPE", "", "TYPE", "Type of the queues that do not exist yet: quorum or classic; by default, the virtual host's default type"),
    setting("PREFETCH_COUNT", "1", "N", "Messages that RabbitMQ sends to a consumer before it has acked the earlier ones (prefetch)"),
    setting("METRICS_ADDR", "0.0.0.0:9090", "ADDR:PORT", "Where the status page, /metrics, /healthz and /readyz are served"),
    setting("METRICS_HOSTS", "", "NAMES", "Host names by which browsers may request the status page, besides addresses, localhost and this machine's name, separated by commas"),
    setting("AMQP_CONNECTION_ATTEMPTS", "3", "N", "Attempts to reach RabbitMQ at start; later it reconnects without limit"),
    setting("AMQP_RETRY_DELAY", "5s", "TIME", "Time between these attempts"),
    setting("RETRY_SCHEDULE", "1s,2s,4s,8s,16s,1m,5m,15m,1h,6h,24h", "LIST", "Delays between the attempts of a delivery; with `repeat` at the end, the list starts over again and again"),
    setting("REQUEST_TIMEOUT", "10s", "TIME", "Limit for one POST, from DNS to the last byte of the response; at most 10m"),
    setting("CONNECT_TIMEOUT", "3s", "TIME", "Limit for connecting to a receiver, to RabbitMQ or to PostgreSQL"),
    setting("FANOUT_INLINE", "64", "N", "An event for more webhooks than this is split: each delivery becomes a message of its own"),
    setting("CIRCUIT_BREAKER", "5,1s,5m", "LIST", "Failures in a row that open a receiver's circuit breaker, the shortest and the longest pause before it is probed; or `off`"),
    setting("DELIVERY_MAX_AGE", "72h", "TIME", "A delivery older than this is dead-lettered instead of waiting again"),
    setting("DISABLE_AFTER", "off", "TIME", "A webhook whose deliveries have failed for this long without a success is disabled, such as 5d; or `off`"),
    setting("MAX_EVENT_BYTES", "1MiB", "SIZE", "Larger events are dead-lettered as malformed"),
    setting("FORWARD_HEADERS", "", "NAMES", "Headers of the producer's messages that are forwarded to receivers, separated by commas; trace headers always are"),
    setting("MAX_RESPONSE_BYTES", "64KiB", "SIZE", "How much of a response is read; if there is more, its connection is closed"),
    setting("NO_RETRY_STATUS", "", "LIST", "Statuses after which a delivery is not retried but dead at once, such as 400,404,422 or 4xx; by default, only 410"),
    setting("ALLOW_NETWORKS", "", "CIDRS", "Networks beyond the public internet that a webhook may reach, separated by commas"),
    setting("DENY_NETWORKS", "", "CIDRS", "Networks that no webhook may reach, whatever else allows them, separated by commas"),
    setting("EGRESS_PROXY", "", "URL", "An HTTP proxy for requests to receivers, http://host:port or http://user:password@host:port; prefer the variable to the flag, which `ps` shows"),
    setting("TLS_CA_FILE", "", "FILE", "Certificates (PEM) of CAs to trust besides Mozilla's bundled ones, for receivers, RabbitMQ and PostgreSQL"),
    setting("DIRECTORY_ENTRIES", "100000", "N", "How many event types, and webhooks of waiting deliveries, are remembered"),
    setting("DATABASE_POOL_SIZE", "8", "N", "Connections to PostgreSQL"),
    setting("DELIVERY_LOG", "failures", "WHAT", "What the delivery log holds, the table that `why` and `tail` read: off, failures or all"),
    setting("DELIVERY_LOG_BODY", "512", "BYTES", "Bytes of a failed response's body that are kept, with its status line, in the delivery log and with dead letters; 0 keeps neither"),
    setting("DELIVERY_LOG_KEEP", "7d", "TIME", "How long the delivery log keeps an entry"),
    setting("SHUTDOWN_TIMEOUT", "15s", "TIME", "How long a shutdown may take; at least REQUEST_TIMEOUT"),
    setting("RUST_LOG", "info", "FILTER", "Log level: error, warn, info, debug, trace; or per module, such as info,webhook_notifier=debug"),
];

/// A request must end within RabbitMQ's `consumer_timeout`, 30 minutes by default, together with the other
/// attempts of its event and the wait for a confirm. After that RabbitMQ takes the message back, and its
/// requests are repeated.
const LONGEST_REQUEST: Duration = Duration::from_secs(600);

/// Ten years: for deliveries, or log entries, that should practically never expire.
const LONGEST_AGE: Duration = Duration::from_secs(87_600 * 3_600);

/// The longest problem, in characters, with what it quotes, such as a path.
const MOST_PROBLEM: usize = 500;

/// A setting that can't be used. It displays as one line that names the variable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct ConfigError {
    /// The environment variable.
    pub variable: &'static str,
    /// What is wrong, without the value if that may contain a password.
    pub problem: String,
}

/// The default capacity of a queue. A receiver that is 200 ms away gets half of it, 160 requests per second,
/// and the other half is free for others.
const CAPACITY: u16 = 64;

/// Each request in flight has a thread and a connection, and perhaps a channel.
const MOST_CAPACITY: u16 = 1_024;

/// A queue to consume, and its capacity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventQueue {
    /// The queue's name.
    pub name: String,
    /// The most requests in flight at a time for its events, their retries and its backlogs.
    pub capacity: u16,
}

/// The whole, checked configuration.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are the settings, and the table above says what each is"
)]
pub struct Config {
    pub amqp: Amqp,
    pub database: Database,
    pub queues: Vec<EventQueue>,
    pub queue_type: Option<QueueType>,
    pub prefetch_count: u16,
    pub metrics_addr: SocketAddr,
    pub metrics_hosts: Vec<String>,
    pub amqp_connection_attempts: u32,
    pub amqp_retry_delay: Duration,
    pub retry_schedule: Schedule,
    pub request_timeout: Duration,
    pub connect_timeout: Duration,
    pub fanout_inline: usize,
    pub circuit_breaker: Breaker,
    pub delivery_max_age: Duration,
    pub disable_after: Option<Duration>,
    pub max_event_bytes: usize,
    pub forward_headers: Forwarding,
    pub max_response_bytes: u64,
    pub no_retry_status: Statuses,
    /// Already without DENY_NETWORKS.
    pub allow_networks: AllowedNetworks,
    pub egress_proxy: Option<EgressProxy>,
    pub tls: Tls,
    pub directory_entries: usize,
    pub database_pool_size: u32,
    pub delivery_log: Extent,
    pub delivery_log_body: usize,
    pub delivery_log_keep: Duration,
    pub shutdown_timeout: Duration,
    pub rust_log: String,
}

/// The settings as given by flag, file or environment, before parsing.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    given: HashMap<&'static str, OsString>,
    warnings: Vec<String>,
}

impl Settings {
    /// Warnings about names in a file that are not settings, one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What is allowed and yet probably a mistake, one line each. For commands that need the whole
    /// configuration.
    #[must_use]
    pub fn suspicions(&self, config: &Config) -> Vec<String> {
        let spaced = config.queues.iter().filter(|queue| queue.name.contains(' ')).map(|queue| {
            let name = quoted(&queue.name);
            format!("QUEUES: {name} is one queue: if you mean several, put commas between them")
        });
        let age = Span::from(config.delivery_max_age);
        let cut = config.retry_schedule.attempts_until(age.get()).map(|(gets, all)| {
            format!(
                "RETRY_SCHEDULE: a delivery gets {gets} of the {all} attempts, because it is older than \
                 DELIVERY_MAX_AGE={age} before the others"
            )
        });
        self.misspelt_variables().into_iter().chain(spaced).chain(cut).collect()
    }

    /// Reads and checks all settings. Opens nothing.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn read(&self) -> Result<Config, ConfigError> {
        let queues = self.with("QUEUES", parse_queues)?;
        let request_timeout = self.time("REQUEST_TIMEOUT")?;
        let connect_timeout = match self.time("CONNECT_TIMEOUT")? {
            // A shorter request timeout shortens the default, but contradicts a given value.
            default if !self.given.contains_key("CONNECT_TIMEOUT") => default.min(request_timeout),
            given => given,
        };
        let roots = self.with("TLS_CA_FILE", |file| match file {
            "" => Ok(Roots::bundled()),
            file => Roots::bundled().with(Path::new(file)),
        })?;
        let allowed = self.with("ALLOW_NETWORKS", AllowedNetworks::parse)?;
        let config = Config {
            amqp: self.with("AMQP_URL", |text| Amqp::parse(text, &roots))?,
            database: self.with("DATABASE_URL", |text| Database::parse(text, &roots))?,
            tls: self.with("TLS_CA_FILE", |_| Tls::new(roots, Check::Name, None))?,
            queue_type: self.with("QUEUE_TYPE", |text| match text {
                "" => Ok(None),
                text => text.parse().map(Some),
            })?,
            prefetch_count: self.number("PREFETCH_COUNT", 1..=u16::MAX)?,
            metrics_addr: self.with("METRICS_ADDR", |text| {
                text.parse()
                    .map_err(|_| format!("{} is not an address such as 0.0.0.0:9090", quoted(text)))
            })?,
            metrics_hosts: self.with("METRICS_HOSTS", parse_hosts)?,
            amqp_connection_attempts: self.number("AMQP_CONNECTION_ATTEMPTS", 1..=1_000)?,
            amqp_retry_delay: self.time("AMQP_RETRY_DELAY")?,
            retry_schedule: self.with("RETRY_SCHEDULE", Schedule::from_str)?,
            request_timeout,
            connect_timeout,
            fanout_inline: self.number("FANOUT_INLINE", 1..=10_000)?,
            circuit_breaker: self.with("CIRCUIT_BREAKER", Breaker::from_str)?,
            delivery_max_age: self.time_up_to("DELIVERY_MAX_AGE", LONGEST_AGE)?,
            disable_after: match self.with("DISABLE_AFTER", |text| Ok(text == "off"))? {
                true => None,
                false => Some(self.time_up_to("DISABLE_AFTER", LONGEST_AGE)?),
            },
            max_event_bytes: self.size("MAX_EVENT_BYTES")?,
            forward_headers: self.with("FORWARD_HEADERS", Forwarding::parse)?,
            max_response_bytes: self.size("MAX_RESPONSE_BYTES")? as u64,
            no_retry_status: self.with("NO_RETRY_STATUS", Statuses::from_str)?,
            allow_networks: self.with("DENY_NETWORKS", |text| allowed.denying(text))?,
            egress_proxy: self.with("EGRESS_PROXY", EgressProxy::parse)?,
            directory_entries: self.number("DIRECTORY_ENTRIES", 1..=10_000_000)?,
            database_pool_size: self.number("DATABASE_POOL_SIZE", 1..=10_000)?,
            delivery_log: self.with("DELIVERY_LOG", Extent::from_str)?,
            delivery_log_body: self.number("DELIVERY_LOG_BODY", 0..=MOST_OF_BODY)?,
            delivery_log_keep: self.time_up_to("DELIVERY_LOG_KEEP", LONGEST_AGE)?,
            shutdown_timeout: self.time("SHUTDOWN_TIMEOUT")?,
            rust_log: self.with("RUST_LOG", parse_log_filter)?,
            queues,
        };
        let contradiction = |variable, problem: String| Err(ConfigError { variable, problem });
        let span = |duration: Duration| Span::from(duration);
        if config.request_timeout > LONGEST_REQUEST {
            return contradiction(
                "REQUEST_TIMEOUT",
                format!(
                    "{} is longer than {}: RabbitMQ takes back what is not acked within 30 minutes",
                    span(config.request_timeout),
                    span(LONGEST_REQUEST)
                ),
            );
        }
        if config.shutdown_timeout < config.request_timeout {
            return contradiction(
                "SHUTDOWN_TIMEOUT",
                format!(
                    "{} is shorter than REQUEST_TIMEOUT ({}), so a request in flight could not finish",
                    span(config.shutdown_timeout),
                    span(config.request_timeout)
                ),
            );
        }
        if config.connect_timeout > config.request_timeout {
            return contradiction(
                "CONNECT_TIMEOUT",
                format!(
                    "{} is longer than REQUEST_TIMEOUT ({}), which includes it",
                    span(config.connect_timeout),
                    span(config.request_timeout)
                ),
            );
        }
        Ok(config)
    }

    fn with<T>(
        &self,
        variable: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        let default = || SETTINGS.iter().find(|s| s.variable == variable).map_or("", |s| s.default);
        let text = match self.given.get(variable) {
            None => Ok(default()),
            Some(given) => given.to_str().ok_or_else(|| "is not UTF-8".to_owned()),
        };
        // A problem may quote a decoded part of a URL, which may contain a line break.
        text.and_then(|text| parse(text.trim())).map_err(|problem| ConfigError {
            variable,
            problem: shown::line(&problem, MOST_PROBLEM),
        })
    }

    fn number<T>(&self, variable: &'static str, range: RangeInclusive<T>) -> Result<T, ConfigError>
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        self.with(variable, |text| {
            let number = text.parse().ok().filter(|number| range.contains(number));
            number.ok_or_else(|| {
                let (shown, first, last) = (quoted(text), range.start(), range.end());
                format!("{shown} is not a number from {first} to {last}")
            })
        })
    }

    /// A time of at most a day, more than any sensible value of most settings.
    fn time(&self, variable: &'static str) -> Result<Duration, ConfigError> {
        self.time_up_to(variable, Duration::from_secs(86_400))
    }

    fn time_up_to(&self, variable: &'static str, most: Duration) -> Result<Duration, ConfigError> {
        self.with(variable, |text| {
            let time = text.parse::<Span>()?.get();
            if time.is_zero() || time > most {
                let (shown, most) = (quoted(text), Span::from(most));
                return Err(format!("{shown} is not between 1ms and {most}"));
            }
            Ok(time)
        })
    }

    fn size(&self, variable: &'static str) -> Result<usize, ConfigError> {
        self.with(variable, |text| {
            let shown = quoted(text);
            let usage = || format!("{shown} is not a size from 1B to 128MiB, such as 64KiB");
            let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at(digits);
            let factor = match unit {
                "" | "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                _ => return Err(usage()),
            };
            // RabbitMQ itself accepts messages of at most 128 MiB.
            number
                .parse::<usize>()
                .ok()
                .and_then(|number| number.checked_mul(factor))
                .filter(|size| (1..=128 << 20).contains(size))
                .ok_or_else(usage)
        })
    }
}

/// Reads METRICS_HOSTS: host names, since addresses are always accepted.
fn parse_hosts(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    let check = |name: &str| {
        let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        match name.chars().all(usual) {
            true => Ok(name.to_owned()),
            false => Err(format!(
                "{} is not the name of a host, such as hooks.example.com: no scheme, no port",
                quoted(name)
            )),
        }
    };
    names.map(check).collect()
}

fn parse_queues(text: &str) -> Result<Vec<EventQueue>, String> {
    let mut seen = HashSet::new();
    text.split(',')
        .map(|item| {
            let (name, capacity) = match item.split_once('=') {
                Some((name, capacity)) => (name, Some(capacity)),
                None => (item, None),
            };
            let name = name.trim().to_owned();
            check_queue_name(&name)?;
            let usable = |n: &u16| (1..=MOST_CAPACITY).contains(n);
            let capacity = match capacity {
                None => CAPACITY,
                Some(text) => text.trim().parse().ok().filter(usable).ok_or_else(|| {
                    let shown = quoted(item);
                    format!("{shown}: the capacity must be a number from 1 to {MOST_CAPACITY}")
                })?,
            };
            if !seen.insert(name.clone()) {
                let shown = quoted(&name);
                return Err(format!(
                    "{shown} is listed twice: use `name=128` for a larger capacity"
                ));
            }
            Ok(EventQueue { name, capacity })
        })
        .collect()
}

/// Checks that the notifier's own queues can be named after this queue, and bound with its name.
fn check_queue_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a queue's name is missing: needs one name at least, as in a,b".to_owned());
    }
    let shown = quoted(name);
    // AMQP allows 255 bytes; `.retry` and the name of the longest delay are appended.
    if name.len() > 200 || name.chars().any(char::is_control) {
        return Err(format!("{shown} is longer than 200 bytes or has a control character"));
    }
    if name.contains(['*', '#']) {
        return Err(format!("{shown} has a `*` or `#`, which is a wildcard in a topic binding"));
    }
    if broker_names::is_reserved(name) {
        return Err(format!("{shown} is reserved for the notifier or the broker"));
    }
    Ok(())
}

/// Libraries that print passwords, URLs or parameters at levels below warn.
const REVEAL_SECRETS: [&str; 5] = ["amiquip", "postgres", "tokio_postgres", "ureq", "ureq_proto"];

/// Checks `level` or `module=level`, separated by commas. The syntax is that of env_logger, but anything that
/// env_logger would silently ignore is an error.
fn parse_log_filter(text: &str) -> Result<String, String> {
    for part in text.split(',') {
        let (module, level) = match part.trim().rsplit_once('=') {
            Some((module, level)) => (Some(module), level.trim()),
            None => (None, part.trim()),
        };
        let Ok(filter) = level.parse::<log::LevelFilter>() else {
            let shown = quoted(level);
            return Err(format!("{shown} is not one of off, error, warn, info, debug, trace"));
        };
        let Some(module) = module else { continue };
        // env_logger treats a module as a prefix, and text after a slash as a pattern: `ureq:` and `ureq/x`
        // would also be ureq.
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !module.split("::").all(is_name) {
            return Err(format!("{} is not the name of a module", quoted(module)));
        }
        let library = module.split("::").next().unwrap_or(module);
        if REVEAL_SECRETS.contains(&library) && filter > log::LevelFilter::Warn {
            return Err(format!("at {level}, {library} prints secrets: at most warn"));
        }
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
