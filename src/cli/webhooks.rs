//! `webhooks`: register, show, change and remove them.

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

/// How long an old secret may be kept: ten years. (PostgreSQL's calendar ends some time.)
const LONGEST_KEEP: Duration = Duration::from_secs(87_600 * 3_600);

/// How long it is kept where nobody says: a day to bring the new one to the receiver.
const USUAL_KEEP: Duration = Duration::from_secs(24 * 3_600);

/// How much of what was registered, by whomever, is shown to people, in characters: of the URL, of all
/// patterns, of a reason.
const MOST_SHOWN: usize = 2_000;

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
    /// Change URL, events or settings of a webhook, or its secret; what is not given stays as it is
    #[command(after_long_help = help::WEBHOOKS_SET)]
    Set {
        #[command(flatten)]
        one: One,
        #[command(flatten)]
        place: NewPlace,
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
    /// List webhooks, oldest first: state, account, how much waits, since when it fails, URL and events
    #[command(after_long_help = help::WEBHOOKS_LIST)]
    List(List),
    /// Print all webhooks as a file that `apply` takes, in TOML; with --json in JSON
    ///
    /// Without secrets: what may be one in a URL and the values of headers are `***`, and the secrets that
    /// sign are left out. `apply` leaves all these as they are.
    #[command(after_long_help = help::WEBHOOKS_EXPORT)]
    Export {
        /// Write secrets, too: whole URLs, values of headers, and what signs
        #[arg(long)]
        reveal: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Make the webhooks what a file says, all of it or nothing, and print what changes
    #[command(after_long_help = help::WEBHOOKS_APPLY)]
    Apply(Apply),
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
        what: trial::TrialEvent,
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
    /// The webhook's id, or as much of its beginning as no other has
    #[arg(value_name = "ID")]
    given: WebhookId,
    /// As [`Webhooks::resolve`] has found it.
    #[arg(skip)]
    id: Uuid,
    #[command(flatten)]
    common: Common,
    /// Show its URL with what may be secret in it: query, fragment, user name and password
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
    /// Only say how many deliveries wait in its backlogs, and change nothing
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
                let alive = store.instances_alive()?;
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
