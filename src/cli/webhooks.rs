//! `webhooks`: register, show, change and remove them.

mod backlogs;
mod settings;
mod trial;

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;

use self::backlogs::{Backlog, Sum};
use self::settings::{Given, GivenSecret, Unset, changes, secret};
use super::{Common, Output, Usage, complain, help, print, print_json, read};
use crate::config::Config;
use crate::domain::account;
use crate::domain::retry::Span;
use crate::domain::secret::Secret;
use crate::domain::shown;
use crate::domain::signature::Key;
use crate::domain::webhook::{check_pattern, doubt, read_url};
use crate::sender;
use crate::store::{NewSecret, Registered, Store};

/// How long the look-up of a new webhook's host may take. Name servers are asked again after five
/// seconds, but somebody waits for this, and it is no more than a warning.
const LOOK_UP: Duration = Duration::from_secs(3);

/// How long an old secret may be kept: ten years. (PostgreSQL's calendar ends some time.)
const LONGEST_KEEP: Duration = Duration::from_secs(87_600 * 3_600);

/// How long it is kept where nobody says: a day to bring the new one to the receiver.
const USUAL_KEEP: Duration = Duration::from_secs(24 * 3_600);

/// How much of what was registered, by whomever, is shown to people, in characters: of the URL, of all
/// patterns, of a reason.
const MOST_SHOWN: usize = 2_000;

/// How much of an account a table has room for, in characters.
const MOST_OF_ACCOUNT: usize = 40;

/// How much of the reason for which a webhook is disabled, in a table.
const MOST_OF_REASON: usize = 60;

#[derive(Debug, Subcommand)]
pub(super) enum Webhooks {
    /// Register a URL for events; prints the new webhook's id, and once the secret that it makes; warns
    /// if deliveries would not get there
    #[command(after_long_help = help::WEBHOOKS_ADD)]
    Add {
        /// Where to POST the events: http:// or https://
        url: String,
        /// Event types: exact (`user.created`), by prefix (`user.*`), or all (`*`)
        #[arg(required = true)]
        events: Vec<String>,
        #[command(flatten)]
        secret: GivenSecret,
        #[command(flatten)]
        settings: Given,
        #[command(flatten)]
        common: Common,
    },
    /// Change the settings of a webhook, or its secret; what is not given stays as it is
    #[command(after_long_help = help::WEBHOOKS_SET)]
    Set {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        secret: GivenSecret,
        /// With --secret-from: how long requests are signed with the secret that it had, too; 0s ends it
        /// at once [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = keep, requires = "secret_from")]
        keep: Option<Duration>,
        #[command(flatten)]
        settings: Given,
        #[command(flatten)]
        unset: Unset,
    },
    /// List all webhooks, oldest first, and how many deliveries wait in backlogs
    #[command(after_long_help = help::WEBHOOKS_LIST)]
    List {
        /// Only those of this account
        #[arg(long)]
        account: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Show one webhook, with its settings and backlogs; of its headers the names only
    #[command(after_long_help = help::WEBHOOKS_SHOW)]
    Show(One),
    /// Send a test event to a webhook, and print the request and what came back
    ///
    /// The request is that of a delivery, with the same headers, signature, deadline and checks. It
    /// does not go through RabbitMQ, counts for nothing, and changes nothing, whatever the answer is.
    /// Exit code 0 only if that is 2xx.
    #[command(after_long_help = help::WEBHOOKS_TEST)]
    Test {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        what: trial::What,
    },
    /// Remove a webhook; what waits for it is dropped at its next attempt
    #[command(after_long_help = help::WEBHOOKS_REMOVE)]
    Remove {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Give a disabled webhook its events again, from now on
    #[command(after_long_help = help::WEBHOOKS_ENABLE)]
    Enable(One),
    /// Send nothing to a webhook until it is resumed, and lose nothing: all that comes waits
    #[command(after_long_help = help::WEBHOOKS_PAUSE)]
    Pause(One),
    /// Send a paused webhook its events again, first what has waited, in order
    #[command(after_long_help = help::WEBHOOKS_RESUME)]
    Resume(One),
    /// Give a webhook no more events, but keep it; what waits for it is dropped
    #[command(after_long_help = help::WEBHOOKS_DISABLE)]
    Disable {
        #[command(flatten)]
        one: One,
        /// Why, for those who look later
        #[arg(long, default_value = "by hand")]
        reason: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Make a new secret for a webhook, and print it, once
    #[command(after_long_help = help::WEBHOOKS_ROTATE_SECRET)]
    RotateSecret {
        #[command(flatten)]
        one: One,
        /// How long requests are signed with the old secret, too; 0s ends it at once
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = keep)]
        keep: Duration,
    },
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The webhook's id
    id: Uuid,
    #[command(flatten)]
    common: Common,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DryRun {
    /// Only say how many deliveries wait in its backlogs, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// A webhook together with what waits for it.
#[derive(Serialize)]
struct WithBacklogs<'a> {
    #[serde(flatten)]
    webhook: &'a Registered,
    backlogs: &'a [Backlog],
}

/// A webhook together with its new secret.
#[derive(Serialize)]
struct WithSecret<'a> {
    #[serde(flatten)]
    webhook: &'a Registered,
    secret: &'a str,
}

fn keep(text: &str) -> Result<Duration, String> {
    let time = text.parse::<Span>()?.get();
    if time > LONGEST_KEEP {
        return Err(format!("longer than {}", Span::from(LONGEST_KEEP)));
    }
    Ok(time)
}

pub(super) fn run(command: Webhooks) -> Result<ExitCode> {
    let store = |common: &Common| -> Result<Store> { Ok(Store::new(&read(&common.settings.0)?)?) };
    let done = match command {
        Webhooks::Test { one: One { id, common }, what } => {
            return trial::run(id, what, &read(&common.settings.0)?, common.output);
        }
        Webhooks::Add { url, events, secret: given, settings, common } => {
            let uri = read_url(&url).map_err(anyhow::Error::msg)?;
            for pattern in &events {
                check_pattern(pattern).map_err(anyhow::Error::msg)?;
            }
            let account_doubt = settings.account().and_then(account::doubt);
            let existing = secret(&given, &settings)?;
            let settings = changes(&settings, &Unset::default())?;
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if let Some(secret) = existing {
                let added = store.add(&url, &events, &secret, settings)?;
                show_id(&added, common.output)?;
            } else {
                let secret = new_secret()?;
                let added = store.add(&url, &events, &secret, settings)?;
                show_secret(&added, &secret, common.output)?;
            }
            let doubts = events.iter().filter_map(|pattern| doubt(pattern));
            for doubt in doubts.chain(account_doubt) {
                complain(&format!("warning: {doubt}"));
            }
            if let Some(obstacle) = sender::obstacle(&uri, &config.allow_networks, LOOK_UP) {
                complain(&format!("warning: {obstacle}"));
            }
            Ok(())
        }
        Webhooks::Set { one: One { id, common }, secret: given, keep, settings, unset } => {
            let secret = secret(&given, &settings)?;
            let changes = changes(&settings, &unset)?;
            if changes.is_empty() && secret.is_none() {
                return Err(Usage("nothing to change: see `webhooks set --help`".to_owned()).into());
            }
            let keep = keep.unwrap_or(USUAL_KEEP);
            let secret = secret.map(|secret| NewSecret { secret, keep });
            show(&one(store(&common)?.set(id, changes, secret)?, id)?, common.output)
        }
        Webhooks::List { account, common } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            let list = match account {
                None => store.list(None)?,
                Some(account) => store.of_account(&account)?,
            };
            let ids: HashSet<_> = list.iter().map(|webhook| webhook.id).collect();
            let mut waiting: HashMap<Uuid, Vec<Backlog>> = HashMap::new();
            for backlog in backlogs::find(&config, &store, |id| ids.contains(&id))? {
                waiting.entry(backlog.webhook).or_default().push(backlog);
            }
            let listed = list.iter().map(|webhook| {
                let backlogs = waiting.get(&webhook.id).map_or(&[][..], Vec::as_slice);
                WithBacklogs { webhook, backlogs }
            });
            let listed: Vec<_> = listed.collect();
            if common.output.json { print_json(&listed) } else { print(table(&listed)) }
        }
        Webhooks::Show(One { id, common }) => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            let webhook = one(store.list(Some(id))?.pop(), id)?;
            let backlogs = backlogs::find(&config, &store, |other| other == id)?;
            let shown = WithBacklogs { webhook: &webhook, backlogs: &backlogs };
            if common.output.json { print_json(&shown) } else { print(text(&shown)) }
        }
        Webhooks::Remove { one: One { id, common }, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(&one(store.remove(id)?, id)?, common.output)
        }
        Webhooks::Pause(One { id, common }) => {
            show(&one(store(&common)?.set_paused(id, true)?, id)?, common.output)
        }
        Webhooks::Resume(One { id, common }) => {
            show(&one(store(&common)?.set_paused(id, false)?, id)?, common.output)
        }
        Webhooks::Enable(One { id, common }) => {
            show(&one(store(&common)?.set_disabled(id, None)?, id)?, common.output)
        }
        Webhooks::Disable { one: One { id, common }, reason, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(&one(store.set_disabled(id, Some(&reason))?, id)?, common.output)
        }
        Webhooks::RotateSecret { one: One { id, common }, keep } => {
            let secret = new_secret()?;
            let new = NewSecret { secret: secret.clone(), keep };
            let rotated = one(store(&common)?.set(id, Vec::new(), Some(new))?, id)?;
            show_secret(&rotated, &secret, common.output)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn one<T>(found: Option<T>, id: Uuid) -> Result<T> {
    found.with_context(|| format!("no webhook has the id {id}: see `webhooks list`"))
}

/// Says what is dropped with a webhook, on standard error, before that happens; or, where nothing is to
/// happen, as the command's answer. Returns whether that was all.
fn announce_loss(
    config: &Config,
    store: &Store,
    id: Uuid,
    DryRun { dry_run }: DryRun,
    output: Output,
) -> Result<bool> {
    one(store.list(Some(id))?.pop(), id)?;
    let backlogs = backlogs::find(config, store, |other| other == id)?;
    let sum = Sum::of(backlogs.iter());
    if !dry_run {
        if let Some(loss) = sum.and_then(|sum| sum.loss("will")) {
            complain(&loss);
        }
    } else if output.json {
        print_json(&serde_json::json!({ "id": id, "backlogs": backlogs }))?;
    } else {
        let loss = sum.and_then(|sum| sum.loss("would"));
        print(loss.unwrap_or_else(|| "nothing waits in its backlogs".to_owned()))?;
    }
    Ok(dry_run)
}

fn new_secret() -> Result<Secret> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("the system has no random numbers")?;
    Ok(Key::secret_of(random))
}

/// The one time that a secret is shown.
fn show_secret(webhook: &Registered, secret: &Secret, output: Output) -> Result<()> {
    let secret = secret.expose();
    if output.json {
        return print_json(&WithSecret { webhook, secret });
    }
    print(format_args!("id      {}\nsecret  {secret}", webhook.id))?;
    complain("the secret is shown only now: the receiver checks signatures with it");
    Ok(())
}

fn show_id(webhook: &Registered, output: Output) -> Result<()> {
    if output.json { print_json(webhook) } else { print(format_args!("id      {}", webhook.id)) }
}

fn show(webhook: &Registered, output: Output) -> Result<()> {
    if output.json {
        print_json(webhook)
    } else {
        print(text(&WithBacklogs { webhook, backlogs: &[] }))
    }
}

fn text(WithBacklogs { webhook, backlogs }: &WithBacklogs<'_>) -> String {
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
        // These only where there is something to say.
        ("description", webhook.description.clone()),
        ("account", webhook.account.clone()),
        ("headers", headers),
        ("timeout_ms", webhook.timeout_ms.clone()),
        ("max_in_flight", webhook.max_in_flight.clone()),
        ("rate_per_second", webhook.rate_per_second.clone()),
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

/// With a column of accounts where any webhook has one, and one of what waits where there is any backlog.
fn table(listed: &[WithBacklogs<'_>]) -> String {
    let urls = listed.iter().map(|listed| shown::line(&listed.webhook.post_url, MOST_SHOWN));
    let urls: Vec<String> = urls.collect();
    let width = urls.iter().map(|url| url.chars().count()).max().unwrap_or(0).max(3);
    let any_waits = listed.iter().any(|listed| !listed.backlogs.is_empty());
    let column = |text: &str| if any_waits { format!("  {text:>10}") } else { String::new() };
    let waiting = column("WAITING");
    let accounts: Vec<String> = listed
        .iter()
        .map(|listed| listed.webhook.account.as_deref())
        .map(|account| {
            account.map_or_else(|| "-".to_owned(), |it| shown::line(it, MOST_OF_ACCOUNT))
        })
        .collect();
    let any_account = listed.iter().any(|listed| listed.webhook.account.is_some());
    let widest = accounts.iter().map(|account| account.chars().count()).max().unwrap_or(0).max(7);
    let of_account =
        |text: &str| if any_account { format!("  {text:widest$}") } else { String::new() };
    let account = of_account("ACCOUNT");
    let mut lines =
        vec![format!("{:36}  {:width$}  {:8}{account}{waiting}  EVENTS", "ID", "URL", "STATE")];
    let rows = listed.iter().zip(&urls).zip(&accounts);
    lines.extend(rows.map(|((WithBacklogs { webhook, backlogs }, url), account)| {
        let Registered { id, events, disabled_at, paused_at, unusable, warnings, .. } = webhook;
        let state = match (disabled_at, paused_at, unusable) {
            (Some(_), _, _) => "disabled",
            (None, Some(_), None) => "paused",
            (None, _, Some(_)) => "unusable",
            (None, None, None) if !warnings.is_empty() => "warning",
            (None, None, None) => "enabled",
        };
        let waiting = Sum::of(backlogs.iter()).map_or_else(|| "-".to_owned(), Sum::figure);
        let waiting = column(&waiting);
        let events = shown::line(&events.join(" "), MOST_SHOWN);
        let account = of_account(account);
        let reason = webhook.disabled_reason.as_ref().filter(|_| disabled_at.is_some());
        let reason = reason.map_or_else(String::new, |reason| {
            format!("  ({})", shown::line(reason, MOST_OF_REASON))
        });
        format!("{id}  {url:width$}  {state:8}{account}{waiting}  {events}{reason}")
    }));
    lines.join("\n")
}
