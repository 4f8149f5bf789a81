//! `webhooks test`: sends one request to a webhook, and prints the result.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::super::{Output, print, print_json, print_stderr};
use super::require;
use crate::clock;
use crate::config::Config;
use crate::domain::delivery::Headers;
use crate::domain::event::{Event, Properties};
use crate::domain::outcome::{Outcome, Reason, Response};
use crate::domain::shown::{self, quoted};
use crate::domain::webhook::{Webhook, without_secrets};
use crate::sender::{Request, Sender, ShownAnswer, Trial};
use crate::store::Store;

/// How many characters of a body are printed.
const MOST_OF_BODY: usize = 2_000;

/// How many characters of a header's value, the URL and an error are printed.
const MOST_OF_LINE: usize = 1_000;

/// The headers of an answer that help to explain it. Others, such as cookies, are not shown.
const SHOWN_HEADERS: [&str; 6] =
    ["content-type", "content-length", "location", "retry-after", "server", "www-authenticate"];

/// The event to send.
#[derive(Debug, Args)]
pub(in crate::cli) struct TrialEvent {
    /// The event type
    #[arg(long = "type", value_name = "TYPE", default_value = "webhook.test")]
    event_type: String,
    /// A file with the event, a JSON object; `-` reads standard input [default: a sample]
    #[arg(long, value_name = "FILE", conflicts_with = "event_type")]
    body: Option<PathBuf>,
}

/// Exit code 0 if the receiver accepted it.
pub(super) fn run(id: Uuid, what: TrialEvent, config: &Config, output: Output) -> Result<ExitCode> {
    let (webhook, is_disabled) = require(Store::new(config)?.look_up(id)?, id)?;
    let (mut event, body) = event(what, config)?;
    // Otherwise the webhook might not get the event.
    event.account = webhook.account.clone().or(event.account);
    if is_disabled {
        print_stderr(&format!("{id} is disabled and gets no events: see `webhooks enable`"));
    } else if webhook.is_paused {
        print_stderr(&format!("{id} is paused, and its events wait: see `webhooks resume`"));
    }
    let began = Instant::now();
    let request = Request {
        webhook: &webhook,
        event: &event,
        attempt: 1,
        headers: &Headers::new(),
        content_type: None,
        body: &body,
        at: clock::now(),
    };
    let trial = Sender::new(config).try_out(request, MOST_OF_BODY);
    let report = TrialReport {
        ms: began.elapsed().as_millis(),
        url: url(&webhook),
        body: String::from_utf8_lossy(&body).into_owned(),
        code: match &trial.response {
            Response::Status { code, .. } => Some(*code),
            _ => None,
        },
        failure: failure(
            &Outcome::of(trial.response.clone(), clock::now()),
            trial.response.status(),
            is_refused(&trial.response, &webhook, config),
        ),
        trial,
    };
    if output.json {
        print_json(&report.json(is_disabled))?;
    } else {
        report.print()?;
    }
    Ok(if report.failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The event to send: the given one, or a sample that says that it is a test.
fn event(what: TrialEvent, config: &Config) -> Result<(Event, Vec<u8>)> {
    let id = Uuid::new_v4().to_string();
    let TrialEvent { event_type, body } = what;
    let body = match body {
        Some(file) => read_bytes(&file, config.max_event_bytes)
            .with_context(|| format!("cannot read {}", quoted(&file.to_string_lossy())))?,
        None => json!({
            "event_type": event_type,
            "test": true,
            "note": "sent by `webhook-notifier webhooks test`: nothing has happened",
        })
        .to_string()
        .into_bytes(),
    };
    let properties = Properties {
        message_id: Some(&id),
        event_type: Some(&event_type),
        ..Properties::default()
    };
    match Event::read(properties, &body, config.max_event_bytes, String::new) {
        Ok(event) => Ok((event, body)),
        Err(malformed) => bail!("this event can't be delivered: {malformed}"),
    }
}

fn read_bytes(file: &Path, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte beyond the limit shows that there is more.
    let most = most as u64 + 1;
    match file.to_str() {
        Some("-") => io::stdin().take(most).read_to_end(&mut bytes)?,
        _ => File::open(file)?.take(most).read_to_end(&mut bytes)?,
    };
    Ok(bytes)
}

/// The URL of the request, without the query, which may contain a secret.
fn url(webhook: &Webhook) -> Option<String> {
    let uri = &webhook.target.as_ref().ok()?.uri;
    let query = if uri.query().is_some() { "?***" } else { "" };
    Some(format!("{}://{}{}{query}", uri.scheme_str()?, uri.authority()?, uri.path()))
}

/// Why the request didn't succeed.
struct TrialFailure {
    reason: Reason,
    detail: String,
    /// What would happen to a delivery after this answer.
    then: &'static str,
    remedy: &'static str,
}

/// Whether a delivery wouldn't be retried after this answer.
fn is_refused(response: &Response, webhook: &Webhook, config: &Config) -> bool {
    let statuses = webhook.no_retry_status().unwrap_or(&config.no_retry_status);
    response.status().is_some_and(|status| statuses.contains(status))
}

fn failure(outcome: &Outcome, status: Option<u16>, is_refused: bool) -> Option<TrialFailure> {
    let (reason, detail, then) = match outcome {
        Outcome::Delivered => return None,
        Outcome::Failed { reason, detail, .. } if is_refused => {
            (reason, detail, "would be dead at once: NO_RETRY_STATUS, or the webhook's own")
        }
        Outcome::Failed { reason, detail, .. } => (reason, detail, "would be tried again"),
        Outcome::Hopeless { reason: Reason::Gone, detail, .. } => {
            (&Reason::Gone, detail, "would be dead, and the webhook disabled")
        }
        Outcome::Hopeless { reason, detail, .. } => (reason, detail, "would be dead at once"),
    };
    Some(TrialFailure {
        reason: *reason,
        detail: detail.clone(),
        then,
        remedy: remedy(*reason, status),
    })
}

/// What to do; empty if the detail already says it.
fn remedy(reason: Reason, status: Option<u16>) -> &'static str {
    match reason {
        Reason::Status1xx => "is it an HTTP server?",
        Reason::Status3xx => "redirects are not followed: register the URL that it leads to",
        Reason::Status4xx if status == Some(429) => {
            "the receiver wants fewer requests: `webhooks set ID --rate` or `--max-in-flight` limits them"
        }
        Reason::Status4xx => {
            "the receiver refuses the request: are path, headers and secret right?"
        }
        Reason::Status5xx => "the receiver failed: its own log should say why",
        Reason::Gone => {
            "the receiver wants no more events: `webhooks remove`, or repair the receiver"
        }
        Reason::Dns => "is the name right, and can this machine resolve names?",
        Reason::Timeout
        | Reason::Refused
        | Reason::Reset
        | Reason::Protocol
        | Reason::Io
        | Reason::Tls
        | Reason::Rejected
        | Reason::Proxy => "",
    }
}

/// Everything to show.
struct TrialReport {
    trial: Trial,
    /// From the look-up of the name to the end of the answer.
    ms: u128,
    url: Option<String>,
    body: String,
    code: Option<u16>,
    failure: Option<TrialFailure>,
}

impl TrialReport {
    /// Whether a request was made: the webhook could be used, its address is allowed, and the proxy let
    /// it through.
    fn was_made(&self) -> bool {
        !matches!(self.trial.response, Response::Refused { .. } | Response::NotSent { .. })
    }

    fn print(&self) -> Result<()> {
        let line = |text: &str| shown::line(text, MOST_OF_LINE);
        let headers = |headers: &[(String, String)]| -> String {
            let one = |(name, value): &(String, String)| format!("\n  {}: {}", name, line(value));
            headers.iter().map(one).collect()
        };
        if self.was_made()
            && let Some(url) = &self.url
        {
            let sent = headers(&self.trial.headers);
            print(format_args!("POST {}{sent}\n\n{}\n", line(url), shown_body(&self.body)))?;
        }
        if let (Some(code), Some(answer)) = (self.code, &self.trial.answer) {
            print(format_args!("{code} in {} ms{}", self.ms, headers(&shown_headers(answer))))?;
            if !answer.body.is_empty() {
                let more = if answer.is_cut { "…" } else { "" };
                print(format_args!("\n{}{more}", shown::lines(&answer.body)))?;
            }
        }
        if let Some(TrialFailure { reason, detail, then, remedy }) = &self.failure {
            let (reason, colon) = (reason.label(), if remedy.is_empty() { "" } else { ": " });
            print_stderr(&format!(
                "failed after {} ms, {reason}: {}{colon}{remedy} (a delivery {then})",
                self.ms,
                line(detail)
            ));
        }
        Ok(())
    }

    fn json(&self, is_disabled: bool) -> Value {
        let map = |headers: &[(String, String)]| -> Map<String, Value> {
            headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect()
        };
        let response = self.trial.answer.as_ref().map(|answer| {
            json!({
                "status": self.code,
                "headers": map(&shown_headers(answer)),
                "body": answer.body,
                "is_cut": answer.is_cut,
            })
        });
        json!({
            "ok": self.failure.is_none(),
            "disabled": is_disabled,
            "request": self.was_made().then(|| json!({
                "url": self.url,
                "headers": map(&self.trial.headers),
                "body": self.body,
            })),
            "response": response,
            "ms": u64::try_from(self.ms).unwrap_or(u64::MAX),
            "reason": self.failure.as_ref().map(|failure| failure.reason.label()),
            "detail": self.failure.as_ref().map(|failure| &failure.detail),
        })
    }
}

fn shown_body(body: &str) -> String {
    let start: String = body.chars().take(MOST_OF_BODY).collect();
    let more = if start.len() < body.len() { "…" } else { "" };
    format!("{}{more}", shown::lines(&start))
}

/// The headers of an answer that are shown, without the parts of URLs that may be secret.
fn shown_headers(answer: &ShownAnswer) -> Vec<(String, String)> {
    let told = answer.headers.iter().filter(|(name, _)| SHOWN_HEADERS.contains(&name.as_str()));
    told.map(|(name, value)| match name.as_str() {
        "location" => (name.clone(), without_secrets(value)),
        _ => (name.clone(), value.clone()),
    })
    .collect()
}
