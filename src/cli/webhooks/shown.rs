//! A webhook as the commands print it.

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use super::MOST_SHOWN;
use super::backlogs::{ShownBacklog, Sum};
use crate::cli::{Output, print, print_json, print_stderr};
use crate::domain::secret::Secret;
use crate::domain::shown;
use crate::domain::webhook::without_secrets;
use crate::store::Registered;

/// A webhook's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::cli) enum WebhookState {
    /// It gets its events
    Enabled,
    /// Its events wait until it is resumed
    Paused,
    /// It gets no events
    Disabled,
    /// All its deliveries are rejected, because a setting can't be used
    Unusable,
    /// Its receiver is failing, and its events wait
    Failing,
    /// It gets events, but probably not those that were meant
    Warning,
}

/// A webhook with its waiting deliveries.
#[derive(Serialize)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    pub(super) webhook: &'a Registered,
    pub(super) state: WebhookState,
    pub(super) failing_since: Option<&'a str>,
    /// The deliveries in all its backlogs; `None` if the number isn't known.
    pub(super) waiting: Option<u64>,
    pub(super) backlogs: &'a [ShownBacklog],
    /// Which instances share its limits, if there are several and it has limits. Only in `webhooks
    /// show`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limits: Option<String>,
}

impl WebhookState {
    pub(super) fn label(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl<'a> Shown<'a> {
    /// With its backlogs, and since when it has been failing as far as notifiers recorded it.
    pub(super) fn of(
        webhook: &'a Registered,
        backlogs: &'a [ShownBacklog],
        failing_since: Option<&'a str>,
    ) -> Self {
        // Times in the same format can be compared as text.
        let failing_since =
            backlogs.iter().filter_map(ShownBacklog::failing_since).chain(failing_since).min();
        let Registered { disabled_at, paused_at, unusable, warnings, .. } = webhook;
        let state = match (disabled_at, paused_at, unusable, failing_since) {
            (Some(_), ..) => WebhookState::Disabled,
            (None, _, Some(_), _) => WebhookState::Unusable,
            (None, Some(_), None, _) => WebhookState::Paused,
            (None, None, None, Some(_)) => WebhookState::Failing,
            (None, None, None, None) if !warnings.is_empty() => WebhookState::Warning,
            (None, None, None, None) => WebhookState::Enabled,
        };
        let waiting = Sum::of(backlogs.iter()).map_or(Some(0), Sum::known);
        Self { webhook, state, failing_since, waiting, backlogs, limits: None }
    }
}

/// A webhook with its new secret.
#[derive(Serialize)]
struct WithSecret<'a> {
    #[serde(flatten)]
    webhook: &'a Registered,
    secret: &'a str,
}

/// Hides the parts of a webhook's URL that may be secret, unless `reveal`.
pub(super) fn redacted(mut webhook: Registered, reveal: bool) -> Registered {
    if !reveal {
        webhook.post_url = without_secrets(&webhook.post_url);
    }
    webhook
}

/// Shows a new secret. No command shows it again.
pub(super) fn show_secret(webhook: Registered, secret: &Secret, output: Output) -> Result<()> {
    let (webhook, secret) = (redacted(webhook, false), secret.expose());
    if output.json {
        return print_json(&WithSecret { webhook: &webhook, secret });
    }
    print(format_args!("id      {}\nsecret  {secret}", webhook.id))?;
    print_stderr(
        "the secret is not shown again: give it to the receiver, which checks signatures with it",
    );
    Ok(())
}

pub(super) fn show_id(webhook: Registered, output: Output) -> Result<()> {
    let webhook = redacted(webhook, false);
    if output.json { print_json(&webhook) } else { print(format_args!("id      {}", webhook.id)) }
}

/// Shows a webhook after a change.
pub(super) fn show(webhook: Registered, reveal: bool, output: Output) -> Result<()> {
    let webhook = redacted(webhook, reveal);
    if output.json { print_json(&webhook) } else { print(text(&Shown::of(&webhook, &[], None))) }
}

pub(super) fn text(Shown { webhook, failing_since, backlogs, limits, .. }: &Shown<'_>) -> String {
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let signed = match &webhook.previous_secret_expires_at {
        _ if !webhook.signed => "no: `webhooks rotate-secret` makes a secret".to_owned(),
        None => "yes".to_owned(),
        Some(at) => format!("yes, and with the previous secret until {at}"),
    };
    let reason = webhook.disabled_reason.as_deref().unwrap_or_default();
    let headers = webhook.headers.as_ref().map(|names| format!("{}: ***", names.join(": ***, ")));
    let rows = [
        ("id", Some(webhook.id.to_string())),
        ("url", Some(webhook.post_url.clone())),
        ("events", Some(webhook.events.join(" "))),
        ("created", Some(or(&webhook.created_at))),
        ("signed", Some(signed)),
        ("disabled", Some(format!("{} {reason}", or(&webhook.disabled_at)))),
        ("paused", webhook.paused_at.as_ref().map(|at| format!("since {at}"))),
        ("failing", failing_since.map(|since| format!("since {since}"))),
        // The others are shown only if they are set.
        ("description", webhook.description.clone()),
        ("account", webhook.account.clone()),
        ("headers", headers),
        ("timeout_ms", webhook.timeout_ms.clone()),
        ("max_in_flight", webhook.max_in_flight.clone()),
        ("rate_per_second", webhook.rate_per_second.clone()),
        ("limits", limits.clone()),
        ("no_retry_status", webhook.no_retry_status.clone()),
        ("unusable", webhook.unusable.clone()),
    ];
    let warnings = webhook.warnings.iter().map(|warning| ("warning", Some(warning.clone())));
    let backlogs = backlogs.iter().map(|backlog| ("backlog", Some(backlog.line())));
    let lines =
        rows.into_iter().chain(warnings).chain(backlogs).filter_map(|(name, text)| {
            Some(format!("{name:15}  {}", shown::line(&text?, MOST_SHOWN)))
        });
    lines.collect::<Vec<_>>().join("\n")
}
