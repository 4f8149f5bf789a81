//! `webhooks`: registers, shows, changes and removes webhooks.

mod apply;
mod backlogs;
mod export;
mod file;
mod help;
mod limits;
mod list;
mod place;
mod settings;
mod shown;
mod trial;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use uuid::Uuid;

use self::apply::Apply;
use self::backlogs::Sum;
use self::list::List;
use self::place::NewPlace;
use self::settings::{GivenSecret, GivenSettings, Unset, changes, secret};
use self::shown::{Shown, redacted, show, show_id, show_secret, text};
use super::ids::WebhookId;
use super::{Common, Output, Usage, print, print_json, print_stderr, read};
use crate::config::Config;
use crate::domain::delivery_log::Extent;
use crate::domain::secret::Secret;
use crate::domain::signature::SigningKey;
use crate::domain::time::Span;
use crate::store::{NewSecret, Store};

/// How long an old secret may stay valid: ten years, because PostgreSQL's times are limited.
const LONGEST_KEEP: Duration = Duration::from_secs(87_600 * 3_600);

/// How long it stays valid by default: a day, to install the new one at the receiver.
const DEFAULT_KEEP: Duration = Duration::from_secs(24 * 3_600);

/// How many characters of a registered value are printed (a URL, all patterns, a reason): anybody may have
/// registered it.
const MOST_SHOWN: usize = 2_000;

#[derive(Debug, Subcommand)]
pub(super) enum Webhooks {
    /// Register a URL for events; prints the new webhook's id and its generated secret, which is never
    /// shown again; warns if deliveries would be rejected or fail
    #[command(after_long_help = help::ADD)]
    Add {
        /// Where to POST the events: http:// or https://
        url: String,
        /// Event types: exact (`user.created`), by prefix (`user.*`), or all (`*`)
        #[arg(required = true)]
        events: Vec<String>,
        #[command(flatten)]
        secret: GivenSecret,
        #[command(flatten)]
        settings: GivenSettings,
        #[command(flatten)]
        common: Common,
    },
    /// Change the URL, events, settings or secret of a webhook; what is not given stays as it is
    #[command(after_long_help = help::SET)]
    Set {
        #[command(flatten)]
        one: OneWebhook,
        #[command(flatten)]
        place: NewPlace,
        #[command(flatten)]
        secret: GivenSecret,
        /// With --secret-from: how long requests are also signed with the old secret; 0s ends it at once
        /// [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = keep, requires = "secret_from")]
        keep: Option<Duration>,
        #[command(flatten)]
        settings: GivenSettings,
        #[command(flatten)]
        unset: Unset,
    },
    /// List webhooks, oldest first: state, account, waiting deliveries, since when failing, URL and
    /// events
    #[command(after_long_help = help::LIST)]
    List(List),
    /// Print all webhooks as a file for `apply`, in TOML; with --json in JSON
    ///
    /// The file contains no secrets: parts of URLs that may be secret and values of headers are `***`, and
    /// the secrets that sign requests are left out. `apply` leaves all these unchanged.
    #[command(after_long_help = help::EXPORT)]
    Export {
        /// Write secrets too: whole URLs, values of headers, and the secrets that sign requests
        #[arg(long)]
        reveal: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Change the webhooks to match a file, in one transaction, and print the changes
    #[command(after_long_help = help::APPLY)]
    Apply(Apply),
    /// Show one webhook, with its settings and backlogs; only the names of its headers
    #[command(after_long_help = help::SHOW)]
    Show(OneWebhook),
    /// Send a test event to a webhook, and print the request and the answer
    ///
    /// The request is like that of a delivery, with the same headers, signature, deadline and checks. It
    /// does not go through RabbitMQ, is not counted, and changes nothing, whatever the answer. The exit
    /// code is 0 only if the answer is 2xx.
    #[command(after_long_help = help::TEST)]
    Test {
        #[command(flatten)]
        one: OneWebhook,
        #[command(flatten)]
        what: trial::TrialEvent,
    },
    /// Remove a webhook; the deliveries that wait for it are dropped
    #[command(after_long_help = help::REMOVE)]
    Remove {
        #[command(flatten)]
        one: OneWebhook,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Enable a disabled webhook: it gets the events that arrive from now on
    #[command(after_long_help = help::ENABLE)]
    Enable(OneWebhook),
    /// Send nothing to a webhook until it is resumed; its events wait, and none is lost
    #[command(after_long_help = help::PAUSE)]
    Pause(OneWebhook),
    /// Resume a paused webhook: the events that wait are sent first, in order
    #[command(after_long_help = help::RESUME)]
    Resume(OneWebhook),
    /// Disable a webhook: it gets no more events but stays registered; the deliveries that wait for it are
    /// dropped
    #[command(after_long_help = help::DISABLE)]
    Disable {
        #[command(flatten)]
        one: OneWebhook,
        /// The reason, for later readers
        #[arg(long, default_value = "by hand")]
        reason: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Generate a new secret for a webhook, and print it; it is never shown again
    #[command(after_long_help = help::ROTATE_SECRET)]
    RotateSecret {
        #[command(flatten)]
        one: OneWebhook,
        /// How long requests are also signed with the old secret; 0s ends it at once
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = keep)]
        keep: Duration,
    },
}

#[derive(Debug, Args)]
pub(super) struct OneWebhook {
    /// The webhook's id, or the beginning of it, if it is unique
    #[arg(value_name = "ID")]
    given: WebhookId,
    /// Set by [`Webhooks::resolve`].
    #[arg(skip)]
    id: Uuid,
    #[command(flatten)]
    common: Common,
    /// Show its complete URL, with parts that may be secret: query, fragment, user name and password
    #[arg(long)]
    reveal: bool,
}

impl Webhooks {
    /// Finds the webhook that a command is about.
    fn resolve(&mut self) -> Result<()> {
        let one = match self {
            Self::Add { .. } | Self::List(_) | Self::Export { .. } | Self::Apply(_) => {
                return Ok(());
            }
            Self::Show(one) | Self::Enable(one) | Self::Pause(one) | Self::Resume(one) => one,
            Self::Set { one, .. }
            | Self::Test { one, .. }
            | Self::Remove { one, .. }
            | Self::Disable { one, .. }
            | Self::RotateSecret { one, .. } => one,
        };
        one.id = one.given.registered(|| Ok(Store::new(&one.common.settings.0.read()?)?))?;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct DryRun {
    /// Only print how many deliveries would be dropped, and change nothing
    #[arg(long)]
    dry_run: bool,
}

fn keep(text: &str) -> Result<Duration, String> {
    let time = text.parse::<Span>()?.get();
    if time > LONGEST_KEEP {
        return Err(format!("longer than {}", Span::from(LONGEST_KEEP)));
    }
    Ok(time)
}

pub(super) fn run(mut command: Webhooks) -> Result<ExitCode> {
    command.resolve()?;
    let store = |common: &Common| -> Result<Store> { Ok(Store::new(&read(&common.settings.0)?)?) };
    let done = match command {
        Webhooks::Test { one: OneWebhook { id, common, .. }, what } => {
            return trial::run(id, what, &read(&common.settings.0)?, common.output);
        }
        Webhooks::Export { reveal, common } => return export::run(reveal, &common),
        Webhooks::Apply(command) => return apply::run(command),
        Webhooks::List(command) => list::run(command),
        Webhooks::Add { url, events, secret: given, settings, common } => {
            let place = NewPlace::of(url, events);
            place.check()?;
            let account = settings.account().map(str::to_owned);
            let existing = secret(&given, &settings)?;
            let settings = changes(&settings, &Unset::default())?;
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            let secret = existing.clone().map_or_else(new_secret, Ok)?;
            let added = store.add(place.url(), place.events(), &secret, settings)?;
            let id = added.id;
            match existing {
                Some(_) => show_id(added, common.output)?,
                None => show_secret(added, &secret, common.output)?,
            }
            place.warn(id, account.as_deref(), true, &config, &store)
        }
        Webhooks::Set {
            one: OneWebhook { id, common, reveal, .. },
            place,
            secret: given,
            keep,
            settings,
            unset,
        } => {
            place.check()?;
            let (account, is_other) = (settings.account().map(str::to_owned), unset.account());
            let secret = secret(&given, &settings)?;
            let mut changes = changes(&settings, &unset)?;
            changes.extend(place.changes());
            if changes.is_empty() && secret.is_none() {
                return Err(Usage("nothing to change: see `webhooks set --help`".to_owned()).into());
            }
            let keep = keep.unwrap_or(DEFAULT_KEEP);
            let secret = secret.map(|secret| NewSecret { secret, keep });
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            show(require(store.set(id, changes, secret)?, id)?, reveal, common.output)?;
            let is_other = is_other || account.is_some();
            place.warn(id, account.as_deref(), is_other, &config, &store)
        }
        Webhooks::Show(OneWebhook { id, common, reveal, .. }) => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            let webhook = redacted(require(store.list(Some(id))?.pop(), id)?, reveal);
            let backlogs = backlogs::find(&config, &store, |other| other == id)?;
            let failing = store.failing_since()?.remove(&id);
            let mut shown = Shown::of(&webhook, &backlogs, failing.as_deref());
            if let Some((found, _)) = store.look_up(id)? {
                // Without the table of instances, each instance keeps the limits by itself.
                let alive = store.instances_alive().or_else(|error| {
                    if error.is_temporary() { Err(error) } else { Ok(Vec::new()) }
                })?;
                shown.limits = limits::kept_by(&alive, &found, !backlogs.is_empty());
            }
            if common.output.json { print_json(&shown) } else { print(text(&shown)) }
        }
        Webhooks::Remove { one: OneWebhook { id, common, reveal, .. }, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, true, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(require(store.remove(id)?, id)?, reveal, common.output)
        }
        Webhooks::Pause(OneWebhook { id, common, reveal, .. }) => {
            show(require(store(&common)?.set_paused(id, true)?, id)?, reveal, common.output)
        }
        Webhooks::Resume(OneWebhook { id, common, reveal, .. }) => {
            show(require(store(&common)?.set_paused(id, false)?, id)?, reveal, common.output)
        }
        Webhooks::Enable(OneWebhook { id, common, reveal, .. }) => {
            show(require(store(&common)?.set_disabled(id, None)?, id)?, reveal, common.output)
        }
        Webhooks::Disable { one: OneWebhook { id, common, reveal, .. }, reason, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, false, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(require(store.set_disabled(id, Some(&reason))?, id)?, reveal, common.output)
        }
        Webhooks::RotateSecret { one: OneWebhook { id, common, .. }, keep } => {
            let secret = new_secret()?;
            let new = NewSecret { secret: secret.clone(), keep };
            let rotated = require(store(&common)?.set(id, Vec::new(), Some(new))?, id)?;
            show_secret(rotated, &secret, common.output)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn require<T>(found: Option<T>, id: Uuid) -> Result<T> {
    found.with_context(|| format!("no webhook has the id {id}: see `webhooks list`"))
}

/// Prints how many deliveries are dropped with a webhook, on standard error before it happens; or, in a
/// dry run, as the command's answer. Returns whether it is a dry run.
fn announce_loss(
    config: &Config,
    store: &Store,
    id: Uuid,
    is_removed: bool,
    DryRun { dry_run }: DryRun,
    output: Output,
) -> Result<bool> {
    require(store.list(Some(id))?.pop(), id)?;
    let backlogs = backlogs::find(config, store, |other| other == id)?;
    let sum = Sum::of(backlogs.iter());
    // The wait queues are shared by all webhooks, so only the log can tell, if it is there.
    let retries = store.waiting_for_attempt(id).ok().filter(|_| config.delivery_log != Extent::Off);
    let loss_of_retries = backlogs::loss_of_retries(retries, is_removed);
    if !dry_run {
        if let Some(loss) = sum.and_then(|sum| sum.loss("will")) {
            print_stderr(&loss);
        }
        if retries.is_some_and(|count| count > 0) {
            print_stderr(&loss_of_retries);
        }
    } else if output.json {
        print_json(&serde_json::json!({ "id": id, "backlogs": backlogs, "retries": retries }))?;
    } else {
        let loss = sum.and_then(|sum| sum.loss("would"));
        print(loss.unwrap_or_else(|| "nothing waits in its backlogs".to_owned()))?;
        print(loss_of_retries)?;
    }
    Ok(dry_run)
}

fn new_secret() -> Result<Secret> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).context("the system has no random numbers")?;
    Ok(SigningKey::secret_of(random))
}
