//! `webhooks`: registers, shows, changes and removes webhooks.

mod apply;
mod backlogs;
mod export;
mod file;
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
use self::settings::{Given, GivenSecret, Unset, changes, secret};
use self::shown::{Shown, seen, show, show_id, show_secret, text};
use super::ids::WebhookId;
use super::{Common, Output, Usage, complain, help, print, print_json, read};
use crate::config::Config;
use crate::domain::secret::Secret;
use crate::domain::signature::Key;
use crate::domain::time::Span;
use crate::store::{NewSecret, Store};

/// How long an old secret may be kept: ten years. (PostgreSQL's calendar is finite.)
const LONGEST_KEEP: Duration = Duration::from_secs(87_600 * 3_600);

/// How long it is kept by default: a day to install the new one at the receiver.
const USUAL_KEEP: Duration = Duration::from_secs(24 * 3_600);

/// How many characters of registered values are printed, whoever registered them: of the URL, of all
/// patterns, of a reason.
const MOST_SHOWN: usize = 2_000;

#[derive(Debug, Subcommand)]
pub(super) enum Webhooks {
    /// Register a URL for events; prints the new webhook's id, and once the secret that it makes; warns
    /// if deliveries would be rejected or fail
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
    /// Change the URL, events, settings or secret of a webhook; what is not given stays as it is
    #[command(after_long_help = help::WEBHOOKS_SET)]
    Set {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        place: NewPlace,
        #[command(flatten)]
        secret: GivenSecret,
        /// With --secret-from: how long requests are also signed with the old secret; 0s ends it at once
        /// [default: 24h]
        #[arg(long, value_name = "TIME", value_parser = keep, requires = "secret_from")]
        keep: Option<Duration>,
        #[command(flatten)]
        settings: Given,
        #[command(flatten)]
        unset: Unset,
    },
    /// List webhooks, oldest first: state, account, waiting deliveries, since when failing, URL and
    /// events
    #[command(after_long_help = help::WEBHOOKS_LIST)]
    List(List),
    /// Print all webhooks as a file for `apply`, in TOML; with --json in JSON
    ///
    /// Without secrets: parts of URLs that may be secret and values of headers are `***`, and the
    /// secrets that sign requests are left out. `apply` leaves all these as they are.
    #[command(after_long_help = help::WEBHOOKS_EXPORT)]
    Export {
        /// Write secrets too: whole URLs, values of headers, and the secrets that sign requests
        #[arg(long)]
        reveal: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Make the webhooks match a file, completely or not at all, and print the changes
    #[command(after_long_help = help::WEBHOOKS_APPLY)]
    Apply(Apply),
    /// Show one webhook, with its settings and backlogs; only the names of its headers
    #[command(after_long_help = help::WEBHOOKS_SHOW)]
    Show(One),
    /// Send a test event to a webhook, and print the request and the answer
    ///
    /// The request is that of a delivery, with the same headers, signature, deadline and checks. It does
    /// not go through RabbitMQ, is not counted, and changes nothing, whatever the answer. Exit code 0
    /// only if the answer is 2xx.
    #[command(after_long_help = help::WEBHOOKS_TEST)]
    Test {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        what: trial::TrialEvent,
    },
    /// Remove a webhook; its waiting deliveries are dropped
    #[command(after_long_help = help::WEBHOOKS_REMOVE)]
    Remove {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Enable a disabled webhook: it gets its events again, from now on
    #[command(after_long_help = help::WEBHOOKS_ENABLE)]
    Enable(One),
    /// Send nothing to a webhook until it is resumed; its events wait, and none is lost
    #[command(after_long_help = help::WEBHOOKS_PAUSE)]
    Pause(One),
    /// Resume a paused webhook: first the waiting events are sent, in order
    #[command(after_long_help = help::WEBHOOKS_RESUME)]
    Resume(One),
    /// Disable a webhook: it gets no more events but stays registered; its waiting deliveries are
    /// dropped
    #[command(after_long_help = help::WEBHOOKS_DISABLE)]
    Disable {
        #[command(flatten)]
        one: One,
        /// The reason, for later readers
        #[arg(long, default_value = "by hand")]
        reason: String,
        #[command(flatten)]
        dry_run: DryRun,
    },
    /// Make a new secret for a webhook, and print it once
    #[command(after_long_help = help::WEBHOOKS_ROTATE_SECRET)]
    RotateSecret {
        #[command(flatten)]
        one: One,
        /// How long requests are also signed with the old secret; 0s ends it at once
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = keep)]
        keep: Duration,
    },
}

#[derive(Debug, Args)]
pub(super) struct One {
    /// The webhook's id, or a beginning of it that no other id has
    #[arg(value_name = "ID")]
    given: WebhookId,
    /// As [`Webhooks::resolve`] found it.
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
    /// Only print how many deliveries wait in its backlogs, and change nothing
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
        Webhooks::Test { one: One { id, common, .. }, what } => {
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
            one: One { id, common, reveal, .. },
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
            let keep = keep.unwrap_or(USUAL_KEEP);
            let secret = secret.map(|secret| NewSecret { secret, keep });
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            show(one(store.set(id, changes, secret)?, id)?, reveal, common.output)?;
            let is_other = is_other || account.is_some();
            place.warn(id, account.as_deref(), is_other, &config, &store)
        }
        Webhooks::Show(One { id, common, reveal, .. }) => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            let webhook = seen(one(store.list(Some(id))?.pop(), id)?, reveal);
            let backlogs = backlogs::find(&config, &store, |other| other == id)?;
            let failing = store.failing_since()?.remove(&id);
            let mut shown = Shown::of(&webhook, &backlogs, failing.as_deref());
            if let Some((found, _)) = store.look_up(id)? {
                // Without their table, each keeps them by itself.
                let alive = store.instances_alive().or_else(|error| {
                    if error.is_temporary() { Err(error) } else { Ok(Vec::new()) }
                })?;
                shown.limits = limits::kept_by(&alive, &found, !backlogs.is_empty());
            }
            if common.output.json { print_json(&shown) } else { print(text(&shown)) }
        }
        Webhooks::Remove { one: One { id, common, reveal, .. }, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(one(store.remove(id)?, id)?, reveal, common.output)
        }
        Webhooks::Pause(One { id, common, reveal, .. }) => {
            show(one(store(&common)?.set_paused(id, true)?, id)?, reveal, common.output)
        }
        Webhooks::Resume(One { id, common, reveal, .. }) => {
            show(one(store(&common)?.set_paused(id, false)?, id)?, reveal, common.output)
        }
        Webhooks::Enable(One { id, common, reveal, .. }) => {
            show(one(store(&common)?.set_disabled(id, None)?, id)?, reveal, common.output)
        }
        Webhooks::Disable { one: One { id, common, reveal, .. }, reason, dry_run } => {
            let config = read(&common.settings.0)?;
            let store = Store::new(&config)?;
            if announce_loss(&config, &store, id, dry_run, common.output)? {
                return Ok(ExitCode::SUCCESS);
            }
            show(one(store.set_disabled(id, Some(&reason))?, id)?, reveal, common.output)
        }
        Webhooks::RotateSecret { one: One { id, common, .. }, keep } => {
            let secret = new_secret()?;
            let new = NewSecret { secret: secret.clone(), keep };
            let rotated = one(store(&common)?.set(id, Vec::new(), Some(new))?, id)?;
            show_secret(rotated, &secret, common.output)
        }
    };
    done.map(|()| ExitCode::SUCCESS)
}

fn one<T>(found: Option<T>, id: Uuid) -> Result<T> {
    found.with_context(|| format!("no webhook has the id {id}: see `webhooks list`"))
}

/// Prints what is dropped with a webhook, on standard error before it happens; or, in a dry run, as the
/// command's answer. Returns whether that was all.
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
