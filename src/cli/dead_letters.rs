//! `dead-letters`: what died, why, and the way back.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::json;
use uuid::Uuid;

use super::ids::{self, WebhookId};
use super::{Common, Usage, account, help, print, print_json, read};
use crate::broker::{Message, unix_millis};
use crate::config::Config;
use crate::dead_letters::{self, Replayed, Scope};
use crate::domain::dead_letter::{DeadLetter, Groups, Selection, reasons};
use crate::domain::delivery::{UnixMillis, Value};
use crate::domain::event::MAX_NAME_BYTES;
use crate::domain::retry::Span;
use crate::domain::shown;
use crate::domain::webhook::check_pattern;
use crate::shutdown;
use crate::store::Store;

/// How much of a reason a table has room for, in characters: ours are words.
const MOST_OF_REASON: usize = 40;

/// How many webhooks are named in a line.
const MOST_NAMED: usize = 5;

/// How much of an error, in characters: ours are no longer.
const MOST_OF_ERROR: usize = 300;

#[derive(Debug, Subcommand)]
pub(super) enum DeadLetters {
    /// Count them, by queue, reason and webhook; they all stay
    #[command(after_long_help = help::DEAD_LETTERS_LIST)]
    List {
        /// One line for each dead letter instead of each group
        #[arg(long)]
        each: bool,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: Common,
    },
    /// Print them with headers and body; they all stay
    #[command(after_long_help = help::DEAD_LETTERS_SHOW)]
    Show {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 10)]
        limit: u64,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: Common,
    },
    /// Send them to their webhooks again, with the retry schedule from its start
    ///
    /// An event that was malformed and no longer is (after MAX_EVENT_BYTES was raised) goes back to
    /// its queue; what is still malformed stays. A replay that is interrupted loses nothing.
    #[command(after_long_help = help::DEAD_LETTERS_REPLAY)]
    Replay {
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: Common,
    },
    /// Delete them for good
    #[command(after_long_help = help::DEAD_LETTERS_PURGE)]
    Purge {
        /// Without any other condition: really all of them
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        act: Act,
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        common: Common,
    },
}

/// Which dead letters: those that fit all that is given.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Of this event: its id, or the receivers' header `webhook-id`; or the beginning of one that no other
    /// has
    #[arg(long, value_name = "ID")]
    event: Option<String>,
    /// Of events from this queue, such as high_priority (can be repeated) [default: all of QUEUES, and
    /// what is orphaned of any queue]
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
pub(super) struct Act {
    /// Only say how many it would be
    #[arg(long)]
    dry_run: bool,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
}

fn pattern(text: &str) -> Result<String, String> {
    check_pattern(text).map(|()| text.to_owned())
}

impl Which {
    fn is_everything(&self) -> bool {
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
                // Looked at twice, everything in it would count twice.
                let mut seen = HashSet::new();
                named.iter().filter(|queue| seen.insert(*queue)).cloned().collect()
            }
        }
    }

    fn selection(&self, webhook_id: Option<Uuid>) -> Selection {
        let ago = |span: Span| unix_millis() - i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
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
        DeadLetters::List { each, which, common } => {
            with_scope(&which, &common, u64::MAX, Use::Look, |scope| {
                if each { list_each(scope, &common) } else { list(scope, &common) }
            })
        }
        DeadLetters::Show { limit, which, common } => {
            with_scope(&which, &common, limit, Use::Look, |scope| show(scope, &common))
        }
        DeadLetters::Replay { act, which, common } => {
            with_scope(&which, &common, act.most(), act.of(), |scope| replay(scope, act, &common))
        }
        DeadLetters::Purge { all, act, which, common } => {
            if which.is_everything() && !all {
                let problem = "this would delete every dead letter: say which, or --all";
                return Err(Usage(problem.to_owned()).into());
            }
            with_scope(&which, &common, act.most(), act.of(), |scope| purge(scope, act, &common))
        }
    }
}

/// What is done with dead letters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Look,
    /// Said what would be done.
    Plan,
    Move,
}

impl Act {
    fn of(self) -> Use {
        if self.dry_run { Use::Plan } else { Use::Move }
    }

    fn most(self) -> u64 {
        self.limit.unwrap_or(u64::MAX)
    }
}

fn with_scope(
    which: &Which,
    common: &Common,
    limit: u64,
    how: Use,
    act: impl FnOnce(Scope<'_>) -> Result<()>,
) -> Result<()> {
    let config = read(&common.settings.0)?;
    let webhook = which.webhook.as_ref();
    let webhook = webhook.map(|webhook| webhook.known(ids::store(&config))).transpose()?;
    let (queues, mut selection) = (which.queues(&config), which.selection(webhook));
    let (trigger, shutdown) = shutdown::channel();
    if how == Use::Move {
        // To say how far it came. Nothing is lost, whatever it was at.
        shutdown::watch_signals(trigger)?;
    }
    let scope = |selection| Scope {
        config: &config,
        queues: &queues,
        any_orphaned: which.queue.is_empty(),
        selection,
        limit,
        shutdown: &shutdown,
    };
    let all = Selection::default();
    if let Some(given) = &which.event {
        selection.event_id = Some(ids::dead_event(scope(&all), given, how != Use::Look)?);
    }
    act(scope(&selection))
}

fn list(scope: Scope<'_>, common: &Common) -> Result<()> {
    let mut groups = Groups::default();
    dead_letters::look(scope, |letter, _| groups.add(letter))?;
    let groups = groups.largest_first();
    if common.output.json {
        return print_json(&groups);
    }
    let reasons = groups.iter().map(|group| cell(Some(&group.reason), MOST_OF_REASON));
    let reasons: Vec<String> = reasons.collect();
    let queue = groups.iter().map(|group| group.queue.chars().count()).max().unwrap_or(0).max(5);
    let reason = reasons.iter().map(|reason| reason.chars().count()).max().unwrap_or(0).max(6);
    let mut lines = vec![format!(
        "{:>7}  {:queue$}  {:reason$}  {:36}  {:>6}  {:>6}  LAST ERROR",
        "COUNT", "QUEUE", "REASON", "WEBHOOK", "OLDEST", "NEWEST"
    )];
    let now = unix_millis();
    lines.extend(groups.iter().zip(reasons).map(|(group, shown)| {
        format!(
            "{:>7}  {:queue$}  {shown:reason$}  {:36}  {:>6}  {:>6}  {}",
            group.count,
            group.queue,
            or_dash(group.webhook_id.as_ref()),
            age(group.oldest, now),
            age(group.newest, now),
            cell(group.last_error.as_ref(), MOST_OF_ERROR),
        )
    }));
    let total: u64 = groups.iter().map(|group| group.count).sum();
    lines.push(format!("{total:>7}  in total"));
    print(lines.join("\n"))
}

fn list_each(scope: Scope<'_>, common: &Common) -> Result<()> {
    let mut letters = Vec::new();
    dead_letters::look(scope, |letter, _| letters.push(letter))?;
    letters.sort_by_key(|letter| letter.dead_at);
    if common.output.json {
        return print_json(&letters);
    }
    let now = unix_millis();
    let mut lines =
        vec![format!("{:>6}  {:10}  {:36}  {:36}  TYPE", "DEAD", "REASON", "WEBHOOK", "EVENT")];
    lines.extend(letters.iter().map(|letter| {
        format!(
            "{:>6}  {:10}  {:36}  {:36}  {}",
            age(letter.dead_at, now),
            cell(Some(&letter.reason), MOST_OF_REASON),
            or_dash(letter.webhook_id.as_ref()),
            cell(letter.event_id.as_ref(), MAX_NAME_BYTES),
            cell(letter.event_type.as_ref(), MAX_NAME_BYTES),
        )
    }));
    print(lines.join("\n"))
}

fn show(scope: Scope<'_>, common: &Common) -> Result<()> {
    let (mut shown, mut documents) = (Vec::new(), Vec::new());
    dead_letters::look(scope, |letter, message| {
        if common.output.json {
            documents.push(as_json(&letter, message));
        } else {
            shown.push(for_people(&letter, message));
        }
    })?;
    match shown.as_slice() {
        _ if common.output.json => print_json(&documents),
        [] => print("no dead letter fits"),
        shown => print(shown.join("\n\n")),
    }
}

/// The whole message.
fn as_json(letter: &DeadLetter, message: &Message) -> serde_json::Value {
    let headers = message.headers.iter().map(|(name, value)| {
        let value = match value {
            Value::Text(text) => json!(text),
            Value::Integer(integer) => json!(integer),
        };
        (name.clone(), value)
    });
    json!({
        "dead_letter": letter,
        "message_id": message.message_id,
        "type": message.event_type,
        "content_type": message.content_type,
        "headers": headers.collect::<serde_json::Map<_, _>>(),
        "body": String::from_utf8_lossy(&message.body),
    })
}

fn for_people(letter: &DeadLetter, message: &Message) -> String {
    let mut lines = vec![format!("queue         {}", letter.queue)];
    let properties = [
        ("message-id", &message.message_id),
        ("type", &message.event_type),
        ("content-type", &message.content_type),
    ];
    for (name, value) in properties {
        lines.extend(value.as_ref().map(|value| format!("{name:12}  {}", value.escape_debug())));
    }
    for (name, value) in &message.headers {
        let value = match value {
            // Many quote JSON.
            Value::Text(text) => shown::line(text, usize::MAX),
            Value::Integer(at) if name.ends_with("-at") => {
                format!("{at} ({} ago)", age(Some(*at), unix_millis()))
            }
            Value::Integer(integer) => integer.to_string(),
        };
        lines.push(format!("{}: {value}", name.escape_debug()));
    }
    lines.push(String::new());
    // Other people's bytes must not move the cursor.
    lines.push(shown::lines(&String::from_utf8_lossy(&message.body)));
    lines.join("\n")
}

fn replay(scope: Scope<'_>, act: Act, common: &Common) -> Result<()> {
    let store = Store::new(scope.config)?;
    let plan = dead_letters::replay_all(scope, &store, true, |_| ())?;
    let is_json = common.output.json;
    let count = plan.replayed;
    if act.dry_run || count == 0 {
        return match is_json {
            true => print_json(&replayed_json(&plan, 0)),
            false => print(lines(would(count, act, "replayed"), &plan)),
        };
    }
    if !is_json {
        // Where nobody reads it, what was asked for is done all the same.
        let _ = print(would(count, act, "replayed"));
    }
    // No more than was said: what dies meanwhile is not meant.
    let scope = Scope { limit: count, ..scope };
    let mut so_far = Progress::of(count, "replayed");
    let done = dead_letters::replay_all(scope, &store, false, |done| so_far.is(done.replayed));
    let done = done.with_context(|| so_far.when_ended())?;
    // Where as many were found as were said, it went no further.
    let done =
        Replayed { replayed: done.replayed, ..if done.all() < plan.all() { plan } else { done } };
    match is_json {
        true => print_json(&replayed_json(&done, done.replayed)),
        false => print(lines(format!("{} replayed", done.replayed), &done)),
    }
}

fn replayed_json(done: &Replayed, replayed: u64) -> serde_json::Value {
    json!({
        "fitting": done.all(), "replayable": done.replayed, "replayed": replayed,
        "malformed": done.malformed, "disabled": done.disabled,
        "disabled_webhooks": done.disabled_webhooks, "deleted": done.deleted,
        "stranded": done.stranded, "missing_queues": done.missing,
    })
}

/// What is not replayed, why, and what to do.
fn stay(done: &Replayed) -> impl Iterator<Item = String> {
    let malformed = (done.malformed > 0).then(|| {
        format!(
            "{} are malformed and stay: see `dead-letters show --reason malformed`, \
             publish them again as they should be, and purge these",
            done.malformed
        )
    });
    let disabled = (done.disabled > 0).then(|| {
        let webhooks: Vec<_> = done.disabled_webhooks.iter().map(Uuid::to_string).collect();
        let named = &webhooks[..webhooks.len().min(MOST_NAMED)];
        let more = match webhooks.len() - named.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!(
            "{} stay: their webhook is disabled. `webhook-notifier webhooks enable {}`{more}, and replay \
             again; or purge them",
            done.disabled,
            named.join(" ")
        )
    });
    let deleted = (done.deleted > 0)
        .then(|| format!("{} stay: their webhook is deleted. Purge them", done.deleted));
    let stranded = (done.stranded > 0).then(|| {
        let missing: Vec<_> =
            done.missing.iter().map(|queue| shown::line(queue, MAX_NAME_BYTES)).collect();
        format!(
            "{} stay: there is no queue {}. Start a notifier with its queue in QUEUES, which makes it, and \
             replay again",
            done.stranded,
            missing.join(", ")
        )
    });
    [malformed, disabled, deleted, stranded].into_iter().flatten()
}

fn lines(first: String, done: &Replayed) -> String {
    std::iter::once(first).chain(stay(done)).collect::<Vec<_>>().join("\n")
}

fn would(count: u64, act: Act, verb: &str) -> String {
    let letters = if count == 1 { "dead letter" } else { "dead letters" };
    let would = if act.dry_run { "would be" } else { "to be" };
    format!("{count} {letters} {would} {verb}")
}

fn purge(scope: Scope<'_>, act: Act, common: &Common) -> Result<()> {
    let count = dead_letters::count(scope)?;
    let is_json = common.output.json;
    if act.dry_run || count == 0 {
        return match is_json {
            true => print_json(&json!({ "fitting": count, "purged": 0 })),
            false => print(would(count, act, "purged")),
        };
    }
    if !is_json {
        // As above.
        let _ = print(would(count, act, "purged"));
    }
    let scope = Scope { limit: count, ..scope };
    let mut so_far = Progress::of(count, "purged");
    let purged = dead_letters::purge(scope, |done| so_far.is(done));
    let purged = purged.with_context(|| so_far.when_ended())?;
    match is_json {
        true => print_json(&json!({ "fitting": count, "purged": purged })),
        false => print(format_args!("{purged} purged")),
    }
}

/// How far a command has come: a line that follows it, where somebody sees it; and the end of it, where
/// it ends before.
struct Progress {
    of: u64,
    verb: &'static str,
    done: u64,
    is_seen: bool,
}

impl Progress {
    fn of(of: u64, verb: &'static str) -> Self {
        Self { of, verb, done: 0, is_seen: io::stderr().is_terminal() }
    }

    fn is(&mut self, done: u64) {
        self.done = done;
        if self.is_seen {
            let mut err = io::stderr();
            let _ = write!(err, "\r{done} of {} ", self.of);
            if done >= self.of {
                let _ = writeln!(err);
            }
        }
    }

    fn when_ended(&self) -> String {
        let Self { of, verb, done, .. } = self;
        format!("{done} of {of} {verb}, the others are still dead letters")
    }
}

/// A cell of a table: what somebody else may have written.
fn cell(text: Option<&String>, most: usize) -> String {
    text.map_or_else(|| "-".to_owned(), |text| shown::line(text, most))
}

fn or_dash(value: Option<&impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), ToString::to_string)
}

/// How long ago, in the largest unit that gives a whole number: `3d`.
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
