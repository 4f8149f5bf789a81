//! Describes missing permissions, with the commands that grant them.

use std::collections::BTreeSet;

use super::Flaw;
use crate::config::Config;

/// How many missing permissions of each kind are listed.
const MOST_TOLD: usize = 5;

/// A permission that the user doesn't have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lacking {
    /// Which permission, and for which object.
    Right(&'static str, String),
    /// A topic permission: the exchange, and which permission for which routing key.
    Topic(&'static str, String),
}

/// A queue, for a sentence.
pub(super) fn queue_named(name: &str) -> String {
    format!("queue {name:?}")
}

pub(super) fn exchange_named(name: &str) -> String {
    match name {
        "" => "the default exchange (amq.default)".to_owned(),
        _ => format!("exchange {name:?}"),
    }
}

/// The arguments of RabbitMQ's `set_permissions`: three patterns, for the permissions to configure, to write
/// and to read. They are the least that `run` and the commands need, including the permission to create the
/// event queues.
#[must_use]
fn least_rights(config: &Config) -> [String; 3] {
    let names: Vec<String> = config.queues.iter().map(|queue| escaped(&queue.name)).collect();
    let names = names.join("|");
    [
        format!(r"^(webhooks\..*|({names})(\.(retry|dead))?)$"),
        format!(r"^(amq\.default|webhooks\..*|({names})\.retry)$"),
        format!(r"^(webhooks\..*|({names})(\.(retry|dead))?)$"),
    ]
}

/// A sentence with the permissions that the user doesn't have, and the commands that grant them.
pub(super) fn lack_of_rights(lacking: &BTreeSet<Lacking>, config: &Config) -> Option<Flaw> {
    if lacking.is_empty() {
        return None;
    }
    let (user, vhost) = (&config.amqp.user, &config.amqp.vhost);
    let mut remedies = Vec::new();
    let mut parts = Vec::new();
    for right in ["configure", "write", "read"] {
        let objects: Vec<&str> = lacking
            .iter()
            .filter_map(|one| match one {
                Lacking::Right(of, object) if *of == right => Some(object.as_str()),
                _ => None,
            })
            .collect();
        if !objects.is_empty() {
            parts.push(format!("to {right} {}", listed(&objects)));
        }
    }
    if !parts.is_empty() {
        let [configure, write, read] = least_rights(config);
        remedies.push(format!(
            "rabbitmqctl set_permissions -p {} {} '{configure}' '{write}' '{read}'",
            quoted(vhost),
            quoted(user)
        ));
    }
    let mut exchanges = BTreeSet::new();
    let topics: Vec<String> = lacking
        .iter()
        .filter_map(|one| match one {
            Lacking::Topic(exchange, key) => {
                exchanges.insert(*exchange);
                Some(format!("{key} at {exchange}"))
            }
            Lacking::Right(..) => None,
        })
        .collect();
    if !topics.is_empty() {
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        parts.push(format!("by topic permissions to {}", listed(&topics)));
        remedies.extend(exchanges.into_iter().map(|exchange| {
            let (vhost, user) = (quoted(vhost), quoted(user));
            format!("rabbitmqctl set_topic_permissions -p {vhost} {user} {exchange} '.*' '.*'")
        }));
    }
    let problem =
        format!("{}. User {user:?} lacks the permission {}", remedies.join("; "), parts.join("; "));
    Some(Flaw::fatal("rights".to_owned(), format!("run: {problem}")))
}

/// The first items of a list, and how many more there are.
fn listed(all: &[&str]) -> String {
    let told = all.iter().take(MOST_TOLD).copied().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MOST_TOLD) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

/// Quotes a word for a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The pattern that matches only this name.
fn escaped(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_punctuation() && !"_-".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::domain::broker_names::WAIT_EXCHANGE;

    #[test]
    fn missing_permissions_are_listed_with_the_command_that_grants_them() {
        let config = Settings::default().read().expect("the defaults");
        assert_eq!(lack_of_rights(&BTreeSet::new(), &config), None);
        let names = ["a", "b", "c", "d", "e", "f", "g"];
        let mut lacking: BTreeSet<_> =
            names.iter().map(|name| Lacking::Right("read", queue_named(name))).collect();
        lacking.insert(Lacking::Topic(WAIT_EXCHANGE, "write \"1s.a\"".to_owned()));
        let flaw = lack_of_rights(&lacking, &config).expect("a flaw").problem;
        for part in [
            "set_permissions -p '/' 'guest'",
            r"'^(amq\.default|webhooks\..*|(high_priority|medium_priority|low_priority)\.retry)$'",
            "set_topic_permissions -p '/' 'guest' webhooks.wait",
            r#"to read queue "a", queue "b""#,
            "and 2 more",
            r#"write "1s.a" at webhooks.wait"#,
        ] {
            assert!(flaw.contains(part), "no {part} in {flaw}");
        }
    }

    #[test]
    fn a_name_is_a_pattern_for_itself() {
        assert_eq!(escaped("high_priority"), "high_priority");
        assert_eq!(escaped("a.b+c(d)"), r"a\.b\+c\(d\)");
    }
}
