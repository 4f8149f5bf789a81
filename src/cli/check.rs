//! `check`: checks everything that `run` needs, and changes nothing.

use std::collections::HashMap;
use std::fmt::Display;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uuid::Uuid;

use super::{paint, print, print_json};
use crate::config::Config;
use crate::domain::delivery_log::Extent;
use crate::domain::shown;
use crate::domain::webhook::read_url;
use crate::sender;
use crate::shutdown;
use crate::store::{Registered, Store, StoreError};

mod broker;

/// How many characters of a detail the table shows: it may quote a server.
const MOST_DETAIL: usize = 1_500;

/// How long all look-ups of webhooks' hosts together may take.
const LOOK_UPS: Duration = Duration::from_secs(3);

/// The most webhooks that a line names.
const MOST_WEBHOOKS: usize = 5;

/// What a finding means for `run`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// It has what it needs.
    Ok,
    /// It works, but something is probably not as it is meant.
    Warn,
    /// It would not work, or a webhook gets nothing.
    Fail,
}

#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    /// False only for failures.
    ok: bool,
    level: Level,
    detail: String,
}

/// Prints the findings; exit code 1 if one of them is a failure.
pub(super) fn run(config: &Config, json: bool) -> Result<ExitCode> {
    let mut findings = vec![Finding::ok("configuration", "readable")];
    let (_trigger, shutdown) = shutdown::channel();
    findings.extend(broker::findings(config, &shutdown));
    findings.extend(sender::try_proxy(config).map(|tried| Finding::of("egress proxy", tried)));
    findings.extend(of_database(config, &Store::new(config)?));

    let ok = findings.iter().all(|finding| finding.ok);
    if json {
        print_json(&serde_json::json!({ "ok": ok, "checks": findings }))?;
    } else {
        let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for Finding { name, level, detail, .. } in &findings {
            let detail = shown::line(detail, MOST_DETAIL);
            let mark = match level {
                Level::Ok => paint::good("ok  "),
                Level::Warn => paint::warning("warn"),
                Level::Fail => paint::bad("FAIL"),
            };
            print(format_args!("{mark}  {name:width$}  {detail}"))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks what `run` does with PostgreSQL.
fn of_database(config: &Config, store: &Store) -> Vec<Finding> {
    let place = store.place();
    if let Err(error) = store.check() {
        return vec![Finding::fail("database", error)];
    }
    let detail = format!("PostgreSQL at {place}, with the tables");
    let mut findings = vec![Finding::ok("database", detail)];
    let mut found = |result: Result<Vec<Finding>, StoreError>| match result {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(Finding::fail("database", error)),
    };
    let with_log = config.delivery_log != Extent::Off;
    found(store.missing_rights(with_log).map(|unable| {
        let bad =
            |(follows, error)| Finding::fail("rights", format!("{error}; until then {follows}"));
        unable.into_iter().map(bad).collect()
    }));
    let mut migrate = "`webhook-notifier migrate`";
    found(store.differing_migrations().map(|differences| {
        if differences.is_empty() {
            return Vec::new();
        }
        if !differences.unknown.is_empty() {
            migrate = "`migrate` of the newer version";
        }
        vec![Finding::warn("migrations", differences)]
    }));
    found(store.missing().map(|missing| {
        let what = missing.join(", ");
        let detail = format!("missing: {what}: run {migrate}");
        if missing.is_empty() { Vec::new() } else { vec![Finding::warn("tables", detail)] }
    }));
    found(store.check_notifications().map(|heard| {
        vec![match heard {
            Ok(()) => Finding::ok("changes", "a change to the tables takes effect at once"),
            Err(error) => {
                let detail = format!("not received, so every event asks PostgreSQL: {error}");
                Finding::warn("changes", detail)
            }
        }]
    }));
    found(store.instances_alive().map(|alive| {
        let mut names: Vec<&str> = alive.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        let detail = match names.len() {
            0 => return Vec::new(),
            1 => format!("one is running: {}", names.concat()),
            count => format!("{count} keep the limits of webhooks together: {}", names.join(", ")),
        };
        vec![Finding::ok("instances", detail)]
    }));
    found(store.has_log().map(|has_log| {
        let name = "delivery log";
        vec![match (config.delivery_log, has_log) {
            (Extent::Off, _) => {
                Finding::ok(name, "off (DELIVERY_LOG): `why` and `tail` show nothing new")
            }
            (_, true) => Finding::ok(name, "its table exists"),
            (_, false) => Finding::warn(
                name,
                "has no table, so nothing is logged: run `webhook-notifier migrate`",
            ),
        }]
    }));
    found(store.list(None).map(|webhooks| {
        let rejected = rejected(&webhooks, config);
        vec![of_webhooks(&webhooks, &rejected)]
    }));
    findings
}

/// Why deliveries to some webhooks would be rejected: their addresses aren't allowed.
fn rejected(webhooks: &[Registered], config: &Config) -> HashMap<Uuid, String> {
    let usable = webhooks.iter().filter(|it| it.disabled_at.is_none() && it.unusable.is_none());
    let (ids, urls): (Vec<_>, Vec<_>) =
        usable.filter_map(|it| Some((it.id, read_url(&it.post_url).ok()?))).unzip();
    let found = sender::rejected(&urls, &config.allow_networks, LOOK_UPS);
    ids.into_iter().zip(found).filter_map(|(id, why)| Some((id, why?))).collect()
}

/// It is a failure if an enabled webhook is unusable or wants nothing. If its address isn't allowed, that
/// is only a warning, because the addresses of names change.
fn of_webhooks(webhooks: &[Registered], rejected: &HashMap<Uuid, String>) -> Finding {
    let enabled = || webhooks.iter().filter(|webhook| webhook.disabled_at.is_none());
    let (count, all) = (enabled().count(), webhooks.len());
    let problem = |webhook: &Registered| {
        let wants_nothing = || webhook.warnings.first().filter(|_| webhook.wants_nothing);
        webhook.unusable.as_ref().or_else(wants_nothing).cloned()
    };
    let listed = |problems: &[(Uuid, String)]| {
        let named = problems.iter().take(MOST_WEBHOOKS);
        let named: Vec<_> = named.map(|(id, problem)| format!("{id}: {problem}")).collect();
        let more = problems.len().saturating_sub(MOST_WEBHOOKS);
        let more = if more > 0 { format!("; and {more} more") } else { String::new() };
        format!("{}{more}", named.join("; "))
    };
    let bad: Vec<_> = enabled().filter_map(|it| Some((it.id, problem(it)?))).collect();
    let warnings = enabled().filter_map(|it| {
        let warning = rejected.get(&it.id).or(it.warnings.first())?;
        Some((it.id, warning.clone()))
    });
    let doubtful: Vec<_> = warnings.collect();
    match (count, bad.as_slice(), doubtful.as_slice()) {
        (0, ..) => {
            let none = "none enabled: every event is dropped as unmatched; see `webhooks add`";
            Finding::warn("webhooks", none)
        }
        (_, [], []) => Finding::ok("webhooks", format!("{count} enabled of {all}")),
        (_, [], doubtful) => {
            let (number, told) = (doubtful.len(), listed(doubtful));
            let detail = format!("{count} enabled of {all}, {number} with a warning: {told}");
            Finding::warn("webhooks", detail)
        }
        (_, bad, _) => {
            let (number, told) = (bad.len(), listed(bad));
            let detail = format!("{count} enabled of {all}, {number} of them get nothing: {told}");
            Finding::fail("webhooks", detail)
        }
    }
}

impl Finding {
    fn new(name: &str, level: Level, detail: impl Display) -> Self {
        let (name, detail) = (name.to_owned(), detail.to_string());
        Self { name, ok: level != Level::Fail, level, detail }
    }

    fn ok(name: &str, detail: impl Display) -> Self {
        Self::new(name, Level::Ok, detail)
    }

    fn warn(name: &str, detail: impl Display) -> Self {
        Self::new(name, Level::Warn, detail)
    }

    fn fail(name: &str, problem: impl Display) -> Self {
        Self::new(name, Level::Fail, problem)
    }

    fn of(name: &str, result: Result<impl Display, impl Display>) -> Self {
        match result {
            Ok(detail) => Self::ok(name, detail),
            Err(problem) => Self::fail(name, problem),
        }
    }
}
