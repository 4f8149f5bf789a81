//! `check`: looks at everything that `run` needs, and changes nothing.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::{print, print_json};
use crate::broker::BrokerError;
use crate::config::Config;
use crate::domain::history::Extent;
use crate::domain::shown;
use crate::shutdown;
use crate::store::Store;

mod broker;

/// How much of a detail stands in the table, in characters: it may quote a server.
const MOST_DETAIL: usize = 1_000;

#[derive(Serialize)]
struct Finding {
    name: String,
    ok: bool,
    detail: String,
}

/// Prints the findings; exit code 1 if `run` would not work.
pub(super) fn run(config: &Config, json: bool) -> Result<ExitCode> {
    let mut findings = vec![finding("configuration", Ok::<_, BrokerError>("readable".to_owned()))];
    let (_trigger, shutdown) = shutdown::channel();
    findings.extend(broker::findings(config, &shutdown));
    let store = Store::new(config)?;
    let database = store.check();
    let answers = database.is_ok();
    let database = match database {
        Ok(()) => Ok(format!("PostgreSQL at {}, with the tables", store.address())),
        Err(error) => Err(format!("{error} ({})", store.address())),
    };
    findings.push(finding("database", database));
    if answers && let Ok(tells) = store.tells_of_changes() {
        let detail = match tells {
            true => "a change of the tables is honoured at once",
            false => "not told of, so every event asks PostgreSQL: run `webhook-notifier migrate`",
        };
        findings.push(finding("changes", Ok::<_, BrokerError>(detail.to_owned())));
    }
    if answers && let Ok(has_log) = store.has_log() {
        let detail = match (config.delivery_log, has_log) {
            (Extent::Off, _) => "off: `why` and `tail` have nothing to tell",
            (_, true) => "there is a table for it",
            (_, false) => "has no table, so nothing is logged: run `webhook-notifier migrate`",
        };
        findings.push(finding("delivery log", Ok::<_, BrokerError>(detail.to_owned())));
    }
    if answers && let Ok(webhooks) = store.list(None) {
        let enabled = webhooks.iter().filter(|webhook| webhook.disabled_at.is_none()).count();
        let detail = match enabled {
            0 => "none enabled: every event is dropped as unmatched; see `webhooks add`".to_owned(),
            _ => format!("{enabled} enabled of {}", webhooks.len()),
        };
        findings.push(finding("webhooks", Ok::<_, BrokerError>(detail)));
    }

    let ok = findings.iter().all(|finding| finding.ok);
    if json {
        print_json(&serde_json::json!({ "ok": ok, "checks": findings }))?;
    } else {
        let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
        for Finding { name, ok, detail } in &findings {
            let detail = shown::line(detail, MOST_DETAIL);
            print(format_args!("{}  {name:width$}  {detail}", if *ok { "ok  " } else { "FAIL" }))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn finding<E: std::fmt::Display>(name: &str, result: Result<String, E>) -> Finding {
    let ok = result.is_ok();
    let detail = result.unwrap_or_else(|error| error.to_string());
    Finding { name: name.to_owned(), ok, detail }
}
