//! How a webhook's deliveries went over a period: counts from the log, and the worst entries.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uuid::Uuid;

use super::super::dead_letters::age;
use super::super::{Output, print, print_json};
use super::case::{MOST_SHOWN, registration};
use super::text::{PlainPage, broken};
use super::words;
use crate::clock::unix_millis;
use crate::config::Config;
use crate::domain::delivery_log::report::{Failures, WebhookReport};
use crate::domain::delivery_log::{Extent, LogEntry, What};
use crate::domain::diagnosis::Registration;
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::shown;
use crate::domain::time::{self, Span, UnixMillis, earlier, rfc3339};
use crate::domain::webhook::without_secrets;
use crate::store::{MOST_MARKS, Registered, Reported, Store};

/// The default period.
const DEFAULT_PERIOD: Duration = Duration::from_secs(24 * 3_600);

/// How many kinds of failures are printed.
const MOST_FAILURES: usize = 10;

/// How many characters of an answer are printed; `why EVENT` shows all that is kept.
const MOST_OF_BODY: usize = 200;

/// Everything to report.
#[derive(Debug, Serialize)]
struct WebhookStory {
    webhook_id: Uuid,
    /// Without parts that may be secret; `None` if it is no longer registered.
    url: Option<String>,
    registration: Registration,
    /// Why it is disabled.
    disabled_reason: Option<String>,
    #[serde(serialize_with = "time::serialize")]
    since: UnixMillis,
    #[serde(serialize_with = "time::serialize")]
    until: UnixMillis,
    /// The time of the log's oldest entry, of any webhook.
    #[serde(serialize_with = "time::serialize_option")]
    log_begins_at: Option<UnixMillis>,
    /// What the log contains, as in DELIVERY_LOG.
    log: String,
    /// Whether older entries of the period weren't read.
    truncated: bool,
    #[serde(flatten)]
    report: WebhookReport,
    failures: Vec<FailureKind>,
    first: Option<LogEntry>,
    last: Option<LogEntry>,
    slowest: Option<LogEntry>,
}

/// Failures of one kind, and the last of them.
#[derive(Debug, Serialize)]
struct FailureKind {
    #[serde(flatten)]
    failures: Failures,
    last: Option<LogEntry>,
}

/// Prints the report; exit code 1 if the webhook is neither registered nor in the log.
pub(super) fn run(
    config: &Config,
    store: &Store,
    id: Uuid,
    span: Option<Span>,
    output: Output,
) -> Result<ExitCode> {
    let span = span.map_or(DEFAULT_PERIOD, Span::get);
    let until = unix_millis();
    let since = earlier(until, span).max(0);
    let Reported { report, entries, truncated } = store.report(id, since)?;
    let registered = store.list(Some(id))?.pop();
    let kinds = report.failures.iter().cloned().map(|failures| {
        let last = entries.get(&failures.last).cloned();
        FailureKind { failures, last }
    });
    let failures: Vec<FailureKind> = kinds.collect();
    let entry = |id: Option<i64>| entries.get(&id?).cloned();
    let told = WebhookStory {
        webhook_id: id,
        url: registered
            .as_ref()
            .map(|webhook| shown::line(&without_secrets(&webhook.post_url), MOST_SHOWN)),
        registration: registration(registered.as_ref()),
        disabled_reason: registered.as_ref().and_then(|webhook| webhook.disabled_reason.clone()),
        since,
        until,
        log_begins_at: store.oldest_entry()?,
        log: config.delivery_log.to_string(),
        truncated,
        failures,
        first: entry(report.first),
        last: entry(report.last),
        slowest: entry(report.slowest),
        report,
    };
    let is_known = registered.is_some() || told.first.is_some();
    if output.json {
        print_json(&told)?;
    } else {
        print(as_text(&told, registered.as_ref(), config.delivery_log))?;
    }
    Ok(if is_known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_text(told: &WebhookStory, registered: Option<&Registered>, log: Extent) -> String {
    let mut page = PlainPage::default();
    let url = told.url.as_deref().unwrap_or_default();
    page.labelled("webhook", &format!("{} {url}", told.webhook_id));
    let wants = registered.map(|webhook| {
        let patterns: Vec<_> = webhook.events.iter().map(|it| format!("`{it}`")).collect();
        format!("; wants {}", shown::line(&patterns.join(" "), MOST_SHOWN))
    });
    let state = words::registration(told.registration, told.disabled_reason.as_deref());
    page.labelled("", &format!("{state}{}", wants.unwrap_or_default()));
    let span = age(Some(told.since), told.until);
    page.labelled("since", &format!("{}, for {span}", rfc3339(told.since)));
    counts(&mut page, told);
    failures(&mut page, told);
    page.blank();
    limits_of_log(&mut page, told, log);
    page.labelled("to do", &to_do(told));
    page.text()
}

fn counts(page: &mut PlainPage, told: &WebhookStory) {
    let report = &told.report;
    let Some((first, last)) = told.first.as_ref().zip(told.last.as_ref()) else {
        return page.labelled("counts", "nothing is logged for it");
    };
    let count = |count: u64, one: &str| {
        if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
    };
    let mut counts = vec![format!(
        "{} for {}: {} delivered, {} failed",
        count(report.attempts(), "attempt"),
        count(report.events, "event"),
        report.delivered,
        report.failed
    )];
    for (number, what) in [(report.held_back, "held back"), (report.dropped, "dropped")] {
        counts.extend((number > 0).then(|| format!("{number} {what}")));
    }
    let dead = report.dead.iter();
    counts
        .extend(dead.map(|(reason, number)| format!("{number} dead, {}", shown::line(reason, 40))));
    page.labelled("counts", &counts.join("; "));
    page.labelled("first", &line(first));
    page.labelled("last", &line(last));
    if let Some(slowest) = &told.slowest {
        let ms = slowest.ms.unwrap_or_default();
        page.labelled("slowest", &format!("{ms} ms, {}", line(slowest)));
    }
    if let Some(gap) = report.longest_gap {
        let millis = gap.millis();
        let long = match millis {
            ..60_000 => format!("{}.{}s", millis / 1_000, millis % 1_000 / 100),
            _ => age(Some(gap.from), gap.to),
        };
        page.labelled(
            "gap",
            &format!(
                "{long} at most between two attempts, from {} to {}",
                rfc3339(gap.from),
                rfc3339(gap.to)
            ),
        );
    }
}

/// An entry in one line.
fn line(entry: &LogEntry) -> String {
    let LogEntry { at, attempt, what, status, reason, event_id, .. } = entry;
    let why = match (what, status, reason) {
        (What::Failed, Some(status), _) => format!(", status {status}"),
        (_, _, Some(reason)) => format!(", {}", shown::line(reason, 40)),
        _ => String::new(),
    };
    let event = shown::line(event_id, MAX_NAME_BYTES);
    let attempt = match what {
        What::Delivered | What::Failed => format!(" (attempt {attempt} of {event})"),
        _ => format!(" ({event})"),
    };
    format!("{}, {}{why}{attempt}", rfc3339(*at), what.label().replace('_', " "))
}

fn failures(page: &mut PlainPage, told: &WebhookStory) {
    if told.failures.is_empty() {
        return;
    }
    page.blank();
    page.line(format!("  {:>7}  {:12}  {:20}  {:20}  LAST EVENT", "FAILED", "BY", "FIRST", "LAST"));
    for FailureKind { failures, last } in told.failures.iter().take(MOST_FAILURES) {
        let by = match failures.status {
            Some(status) => format!("status {status}"),
            None => shown::line(&failures.reason, 40),
        };
        let event = last.as_ref().map(|last| shown::line(&last.event_id, MAX_NAME_BYTES));
        let (first, at) = (rfc3339(failures.first_at), rfc3339(failures.last_at));
        let event = event.unwrap_or_default();
        page.line(format!("  {:>7}  {by:12}  {first}  {at}  {event}", failures.count));
        let said = last.as_ref().map(|last| match last.answer.as_deref() {
            Some(answer) => answer.line(MOST_OF_BODY),
            None => shown::line(&last.detail, MOST_OF_BODY),
        });
        // A mere status has been printed already.
        if let Some(said) = said.filter(|said| !said.is_empty() && *said != by) {
            page.labelled("", &broken(&said));
        }
    }
    if let Some(more) = told.failures.len().checked_sub(MOST_FAILURES).filter(|more| *more > 0) {
        page.line(format!("  … {more} more kinds: --json has them"));
    }
}

/// What the log doesn't contain.
fn limits_of_log(page: &mut PlainPage, told: &WebhookStory, log: Extent) {
    let mut limits = Vec::new();
    match log {
        Extent::All => {}
        Extent::Failures => limits.push(
            "the log holds only deliveries that fail or wait (DELIVERY_LOG=failures): those that succeeded at \
             the first attempt are not counted here"
                .to_owned(),
        ),
        Extent::Off => limits.push("nothing is logged now: DELIVERY_LOG=off".to_owned()),
    }
    match told.log_begins_at {
        None => limits.push("it is empty".to_owned()),
        Some(at) if at > told.since => limits.push(format!("it begins at {}", rfc3339(at))),
        Some(_) => {}
    }
    if told.truncated {
        limits.push(format!(
            "only the last {MOST_MARKS} entries are counted: choose a shorter --since"
        ));
    }
    if !limits.is_empty() {
        page.labelled("log", &limits.join("; "));
    }
}

fn to_do(told: &WebhookStory) -> String {
    let id = told.webhook_id;
    let mut steps = Vec::new();
    match told.registration {
        Registration::Deleted => steps.push("no webhook has this id now: see `webhooks list`".to_owned()),
        Registration::Disabled => steps.push(format!(
            "it gets no events: once its receiver works again, `webhook-notifier webhooks enable {id}`"
        )),
        Registration::Enabled => {
            if told.last.as_ref().is_some_and(|last| last.what != What::Delivered) {
                steps.push(format!(
                    "`webhook-notifier webhooks test {id}` says what its receiver answers now, `webhooks show {id}` \
                     how much waits for it"
                ));
            }
        }
    }
    if !told.report.dead.is_empty() {
        steps.push(format!(
            "`webhook-notifier dead-letters list --webhook {id}` lists its dead letters"
        ));
    }
    if steps.is_empty() { "nothing".to_owned() } else { steps.join("; ") }
}
