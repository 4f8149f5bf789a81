//! `dead-letters`: lists, shows, replays and purges dead letters.

use std::collections::HashSet;

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use uuid::Uuid;

use super::ids::{self, WebhookId};
use super::{Common, Usage, account, read};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::dead_letters::DeadLetterScope;
use crate::domain::dead_letter::{Selection, reasons};
use crate::domain::time::{Span, UnixMillis, earlier};
use crate::domain::webhook::check_pattern;
use crate::shutdown;

mod help;
mod moving;
mod reading;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetters {
    /// Count them, by queue, reason and webhook; they all stay
    #[command(after_long_help = help::LIST)]
    List {
        /// A line for each dead letter, instead of one for each group
        #[arg(long)]
        each: bool,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        common: Common,
    },
    /// Print them with headers and body; they all stay
    #[command(after_long_help = help::SHOW)]
    Show {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: u64,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        common: Common,
    },
    /// Send them to their webhooks again, with the retry schedule from its start
    ///
    /// An event that was malformed and no longer is (because MAX_EVENT_BYTES was raised) returns to its
    /// queue; an event that still is stays dead. A replay that is interrupted loses nothing.
    #[command(after_long_help = help::REPLAY)]
    Replay {
        #[command(flatten)]
        options: MoveOptions,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        common: Common,
    },
    /// Delete them for good
    #[command(after_long_help = help::PURGE)]
    Purge {
        /// Delete all dead letters, if no other condition is given
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        options: MoveOptions,
        #[command(flatten)]
        conditions: Conditions,
        #[command(flatten)]
        common: Common,
    },
}

/// Selects dead letters: those that match all conditions.
#[derive(Debug, Args)]
pub(super) struct Conditions {
    /// Of this event: its id, or the header `webhook-id` that receivers got; or the beginning of either, if it
    /// is unique
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Of events from this queue, such as high_priority (can be repeated) [default: all of QUEUES, and
    /// orphaned ones of any queue]
    #[arg(long, value_name = "QUEUE")]
    queue: Vec<String>,
    /// For this webhook, by its id or the beginning of that
    #[arg(long, value_name = "ID")]
    webhook: Option<WebhookId>,
    /// Of this event type, or by a pattern such as `user.*`
    #[arg(long = "type", value_name = "TYPE", value_parser = pattern)]
    event_type: Option<String>,
    /// Of events of this account
    #[arg(long, value_name = "TEXT", value_parser = account)]
    account: Option<String>,
    /// Dead for this reason
    #[arg(long, value_parser = PossibleValuesParser::new(reasons()))]
    reason: Option<String>,
    /// Dead for longer than this, such as 36h
    #[arg(long, value_name = "TIME")]
    older_than: Option<Span>,
    /// Dead for less than this, such as 30m
    #[arg(long, value_name = "TIME")]
    newer_than: Option<Span>,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct MoveOptions {
    /// Only print how many it would be
    #[arg(long)]
    dry_run: bool,
    /// At most this many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

fn pattern(text: &str) -> Result<String, String> {
    check_pattern(text).map(|()| text.to_owned())
}

impl Conditions {
    fn is_unconditional(&self) -> bool {
        let Self { event, queue, webhook, event_type, account, reason, older_than, newer_than } =
            self;
        event.is_none()
            && queue.is_empty()
            && webhook.is_none()
            && event_type.is_none()
            && account.is_none()
            && reason.is_none()
            && older_than.is_none()
            && newer_than.is_none()
    }

    fn queues(&self, config: &Config) -> Vec<String> {
        match self.queue.as_slice() {
            [] => config.queues.iter().map(|queue| queue.name.clone()).collect(),
            named => {
                // The messages of a queue that is named twice must not count twice.
                let mut seen = HashSet::new();
                named.iter().filter(|queue| seen.insert(*queue)).cloned().collect()
            }
        }
    }

    fn selection(&self, webhook_id: Option<Uuid>) -> Selection {
        let ago = |span: Span| earlier(unix_millis(), span.get());
        Selection {
            event_id: self.event.clone(),
            by_beginning: false,
            event_type: self.event_type.clone(),
            account: self.account.clone(),
            webhook_id,
            reason: self.reason.clone(),
            dead_until: self.older_than.map(ago),
            dead_since: self.newer_than.map(ago),
        }
    }
}

pub(super) fn run(command: DeadLetters) -> Result<()> {
    match command {
        DeadLetters::List { each, conditions, common } => {
            let act = if each { reading::list_each } else { reading::list };
            with_scope(&conditions, &common, u64::MAX, Use::Read, |scope| act(scope, &common))
        }
        DeadLetters::Show { limit, conditions, common } => {
            with_scope(&conditions, &common, limit, Use::Read, |scope| {
                reading::show(scope, &common)
            })
        }
        DeadLetters::Replay { options, conditions, common } => {
            with_scope(&conditions, &common, options.most(), Use::Move, |scope| {
                moving::replay(scope, options, &common)
            })
        }
        DeadLetters::Purge { all, options, conditions, common } => {
            if conditions.is_unconditional() && !all {
                let problem = "this would delete every dead letter: give a condition, or --all";
                return Err(Usage(problem.to_owned()).into());
            }
            with_scope(&conditions, &common, options.most(), Use::Move, |scope| {
                moving::purge(scope, options, &common)
            })
        }
    }
}

/// What a command does with dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    /// This includes dry runs, which select the same ones.
    Move,
}

impl MoveOptions {
    fn most(self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }
}

fn with_scope(
    conditions: &Conditions,
    common: &Common,
    limit: u64,
    how: Use,
    act: impl FnOnce(DeadLetterScope<'_>) -> Result<()>,
) -> Result<()> {
    let config = read(&common.settings.0)?;
    let webhook = conditions.webhook.as_ref();
    let webhook = webhook.map(|webhook| webhook.known(ids::store(&config))).transpose()?;
    let (queues, mut selection) = (conditions.queues(&config), conditions.selection(webhook));
    let (trigger, shutdown) = shutdown::channel();
    // Ctrl-C ends the command between two batches, so that it can report its progress.
    shutdown::watch_signals(trigger)?;
    let scope = |selection| DeadLetterScope {
        config: &config,
        queues: &queues,
        any_orphaned: conditions.queue.is_empty(),
        selection,
        limit,
        shutdown: &shutdown,
    };
    let all = Selection::default();
    if let Some(given) = &conditions.event {
        selection.event_id = Some(ids::dead_event(scope(&all), given, how != Use::Read)?);
    }
    act(scope(&selection))
}

/// How long ago that was, in whole units of the largest that fits: `3d`.
pub(super) fn age(at: Option<UnixMillis>, now: UnixMillis) -> String {
    let Some(at) = at else { return "-".to_owned() };
    let seconds = now.saturating_sub(at).max(0) / 1_000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
