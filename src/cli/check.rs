//! `check`: checks everything that `run` needs, and changes nothing.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uuid::Uuid;

use super::{paint, print, print_json};
use crate::broker::BrokerError;
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

/// How many webhooks that get nothing are named.
const MOST_WEBHOOKS: usize = 5;

#[derive(Serialize)]
struct Finding {
    name: String,
    ok: bool,
    detail: String,
}

/// Prints the findings; exit code 1 if `run` wouldn't work.
pub(super) fn run(config: &Config, json: bool) -> Result<ExitCode> {
    let mut findings = vec![finding("configuration", Ok::<_, BrokerError>("readable".to_owned()))];
    let (_trigger, shutdown) = shutdown::channel();
    findings.extend(broker::findings(config, &shutdown));
    findings.extend(sender::try_proxy(config).map(|tried| finding("egress proxy", tried)));
    findings.extend(of_database(config, &Store::new(config)?));

    let ok = findings.iter().all(|finding| finding.ok);
    if json {
        print_json(&serde_json::json!({ "ok": ok, "checks": findings }))?;
    } else {
        let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for Finding { name, ok, detail } in &findings {
            let detail = shown::line(detail, MOST_DETAIL);
            let mark = if *ok { paint::good("ok  ") } else { paint::bad("FAIL") };
            print(format_args!("{mark}  {name:width$}  {detail}"))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Tries what `run` does with PostgreSQL.
fn of_database(config: &Config, store: &Store) -> Vec<Finding> {
    let place = store.place();
    if let Err(error) = store.check() {
        return vec![finding("database", Err(error))];
    }
    let mut findings = vec![good("database", format!("PostgreSQL at {place}, with the tables"))];
    let mut found = |result: Result<Vec<Finding>, StoreError>| match result {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(finding("database", Err(error))),
    };
    let with_log = config.delivery_log != Extent::Off;
    found(store.missing_rights(with_log).map(|unable| {
        let bad = |(follows, error)| {
            finding("rights", Err::<String, _>(format!("{error}; until then {follows}")))
        };
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
        vec![good("migrations", differences.to_string())]
    }));
    found(store.missing().map(|missing| {
        let what = missing.join(", ");
        let detail = format!("missing: {what}: run {migrate}");
        if missing.is_empty() { Vec::new() } else { vec![good("tables", detail)] }
    }));
    found(store.check_notifications().map(|heard| {
        let detail = match heard {
            Ok(()) => "a change to the tables takes effect at once".to_owned(),
            Err(error) => format!("not received, so every event asks PostgreSQL: {error}"),
        };
        vec![good("changes", detail)]
    }));
    found(store.instances_alive().map(|alive| {
        let mut names: Vec<&str> = alive.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        let detail = match names.len() {
            0 => return Vec::new(),
            1 => format!("one is running: {}", names.concat()),
            count => format!("{count} keep the limits of webhooks together: {}", names.join(", ")),
        };
        vec![good("instances", detail)]
    }));
    found(store.has_log().map(|has_log| {
        let detail = match (config.delivery_log, has_log) {
            (Extent::Off, _) => "off: `why` and `tail` have nothing to show",
            (_, true) => "there is a table for it",
            (_, false) => "has no table, so nothing is logged: run `webhook-notifier migrate`",
        };
        vec![good("delivery log", detail.to_owned())]
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

/// Enabled webhooks have to be usable and want something. That their address isn't allowed is only a
/// warning, because names change.
fn of_webhooks(webhooks: &[Registered], rejected: &HashMap<Uuid, String>) -> Finding {
    let enabled = || webhooks.iter().filter(|webhook| webhook.disabled_at.is_none());
    let (count, all) = (enabled().count(), webhooks.len());
    let problem = |webhook: &Registered| {
        let wants_nothing = || webhook.warnings.first().filter(|_| webhook.wants_nothing);
        webhook.unusable.as_ref().or_else(wants_nothing).cloned()
    };
    let told = |problems: &[(Uuid, String)]| {
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
            good("webhooks", none.to_owned())
        }
        (_, [], []) => good("webhooks", format!("{count} enabled of {all}")),
        (_, [], doubtful) => {
            let (number, told) = (doubtful.len(), told(doubtful));
            let detail = format!("{count} enabled of {all}, {number} with a warning: {told}");
            good("webhooks", detail)
        }
        (_, bad, _) => {
            let (number, told) = (bad.len(), told(bad));
            let detail = format!("{count} enabled of {all}, {number} of them get nothing: {told}");
            finding("webhooks", Err::<String, _>(detail))
        }
    }
}

fn good(name: &str, detail: String) -> Finding {
    finding(name, Ok::<_, BrokerError>(detail))
}

fn finding<E: std::fmt::Display>(name: &str, result: Result<String, E>) -> Finding {
    let ok = result.is_ok();
    let detail = result.unwrap_or_else(|error| error.to_string());
    Finding { name: name.to_owned(), ok, detail }
}
