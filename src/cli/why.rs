//! `why`: what happened to an event, according to the log and the dead-letter queues; or how a webhook's
//! deliveries went.

mod case;
mod places;
mod report;
mod text;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use serde::Serialize;
use uuid::Uuid;

use super::ids::{self, WebhookId};
use super::{Common, Usage, account, print, print_json, read};
use crate::clock::unix_millis;
use crate::config::Config;
use crate::domain::dead_letter::DeadLetter;
use crate::domain::delivery_log::{Extent, LogEntry, What};
use crate::domain::diagnosis::{Owner, Registration};
use crate::domain::encoding::{header_of_id, header_of_name, id_of_header};
use crate::domain::event::check_event_type;
use crate::domain::time::{self, Span, UnixMillis};
use crate::domain::webhook::{matching_patterns, nearly_matches};
use crate::store::{MOST_ENTRIES, Registered, Store, StoreError};

use case::{Case, Facts, registration};
use places::{find_backlogs, find_dead, find_not_waiting, find_unlogged};

/// How many webhooks of an event are reported.
const MOST_WEBHOOKS: i64 = 1_000;

/// How many nearly matching patterns are named.
const MOST_NEAR: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Why {
    /// The event's id, which is `event=` in the log; or the header `webhook-id` that the receiver got; or
    /// the beginning of either, if it is unique
    #[arg(required_unless_present = "webhook", value_parser = NonEmptyStringValueParser::new())]
    event: Option<String>,
    /// Only this webhook: its id or the beginning of it. Without an event: how its deliveries went
    #[arg(long, value_name = "ID")]
    webhook: Option<WebhookId>,
    /// With --webhook and without an event: the period, such as 2h [default: 24h]
    #[arg(long, value_name = "TIME", requires = "webhook", conflicts_with = "event")]
    since: Option<Span>,
    /// The event's type, if the log doesn't know it: shows which webhooks want such an event
    #[arg(long = "type", value_name = "TYPE", requires = "event")]
    event_type: Option<String>,
    /// The event's account, if the log doesn't know it, or if several events have this id
    #[arg(long, value_name = "TEXT", value_parser = account, requires = "event")]
    account: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Everything that is known about an event.
#[derive(Debug, Serialize)]
struct Story {
    event_id: String,
    event_type: Option<String>,
    /// Its account, if it has one.
    account: Option<String>,
    /// The accounts of other events with this id.
    other_accounts: BTreeSet<String>,
    /// The queues that it was published to.
    queues: BTreeSet<String>,
    /// Whether anything is known.
    known: bool,
    /// Whether the log, which contains failures only, has none of it.
    no_failure: bool,
    /// What the log contains, as in DELIVERY_LOG.
    log: String,
    /// When it was dropped because no webhook wanted it.
    #[serde(serialize_with = "time::serialize_option")]
    unmatched_at: Option<UnixMillis>,
    webhooks: Vec<Case>,
    /// Dead letters that name no webhook: malformed events.
    malformed: Vec<DeadLetter>,
    /// Patterns that nearly match.
    near: Vec<Near>,
    /// Why the dead-letter queues couldn't be searched; `None` if they were, or if that was not needed.
    dead_letters_unknown: Option<String>,
    /// The time of the log's oldest entry.
    #[serde(serialize_with = "time::serialize_option")]
    log_begins_at: Option<UnixMillis>,
    /// Whether the log has more entries than were read.
    truncated: bool,
    /// The webhooks that have the given id, or whose ids begin with it, if no event is known by it.
    webhooks_with_this_id: Vec<Uuid>,
    /// The possible reasons if nothing is known.
    may_be: Vec<String>,
}

/// A pattern that nearly matches.
#[derive(Debug, Serialize)]
struct Near {
    webhook_id: Uuid,
    pattern: String,
}

/// What the operator says about the event, by options.
struct GivenDetails {
    event_type: Option<String>,
    account: Option<String>,
}

impl GivenDetails {
    /// Whether an entry or dead letter of this account may concern the event: it is the given account, or
    /// one of the two is not known.
    fn may_concern(&self, account: Option<&str>) -> bool {
        match (&self.account, account) {
            // The log encodes an account if the database's encoding lacks one of its characters.
            (Some(given), Some(account)) => given == account || header_of_name(given) == account,
            _ => true,
        }
    }
}

/// Prints the answer; exit code 1 if there is none.
pub(super) fn run(command: Why) -> Result<ExitCode> {
    let Why { event, webhook, since, event_type, account, common } = command;
    if let Some(event_type) = &event_type {
        check_event_type(event_type).map_err(|error| Usage(format!("--type: {error}")))?;
    }
    let config = read(&common.settings.0)?;
    let store = Store::new(&config)?;
    let webhook = webhook.map(|webhook| webhook.known(ids::store(&config))).transpose()?;
    let event = match (event, webhook) {
        (Some(event), _) => event,
        (None, Some(webhook)) => {
            return report::run(&config, &store, webhook, since, common.output);
        }
        // (clap ensures this.)
        (None, None) => return Err(Usage("give an event, or --webhook".to_owned()).into()),
    };
    let story = story(&config, &store, event, webhook, GivenDetails { event_type, account })?;
    if common.output.json {
        print_json(&story)?;
    } else {
        print(text::as_text(&story, webhook))?;
    }
    Ok(if story.known || story.no_failure { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn story(
    config: &Config,
    store: &Store,
    asked: String,
    webhook: Option<Uuid>,
    given: GivenDetails,
) -> Result<Story> {
    let now = unix_millis();
    let mut entries = logged(store, &asked, webhook)?;
    let (mut meant, mut unlogged) = (asked.clone(), None);
    if entries.is_empty() {
        let mut dead = find_unlogged(config, &meant, ids::may_be_beginning(&meant));
        let complete = complete_id(store, &meant, &dead.letters)?;
        dead.letters.retain(|letter| is_of(letter, &complete));
        if complete != meant {
            entries = logged(store, &complete, webhook)?;
        }
        (meant, unlogged) = (complete, entries.is_empty().then_some(dead));
    }
    let truncated = entries.len() >= MOST_ENTRIES;
    entries.retain(|entry| given.may_concern(entry.account.as_deref()));
    let log_begins_at = store.oldest_entry()?;
    let unmatched_at = entries.iter().rfind(|e| e.what == What::Unmatched).map(|e| e.at);
    let mut queues: BTreeSet<String> = entries.iter().map(|entry| entry.queue.clone()).collect();
    let logged_type = entries.last().map(|entry| entry.event_type.clone());
    // Without the right to read that table, the time is unknown.
    let since = store.accounts_since().unwrap_or(None);
    let logged_owner = Owner::of(&entries, None, since);
    let mut accounts: BTreeSet<String> =
        entries.iter().filter_map(|entry| entry.account.clone()).collect();
    let logged_id = entries.last().map(|entry| entry.event_id.clone());

    let mut stories: BTreeMap<Uuid, Vec<LogEntry>> = BTreeMap::new();
    for entry in entries {
        if let Some(id) = entry.webhook_id {
            stories.entry(id).or_default().push(entry);
        }
    }
    let mut dead = match unlogged {
        Some(dead) => dead,
        None => find_dead(config, &meant, &stories, unmatched_at.is_some(), now),
    };
    dead.letters.retain(|letter| given.may_concern(letter.account.as_deref()));
    let (letters, malformed): (Vec<_>, Vec<_>) =
        dead.letters.into_iter().partition(|letter| letter.webhook_id.is_some());
    let known = !stories.is_empty()
        || unmatched_at.is_some()
        || !letters.is_empty()
        || !malformed.is_empty();
    queues.extend(letters.iter().chain(&malformed).map(|letter| letter.queue.clone()));
    let mut dead_types = letters.iter().chain(&malformed).filter_map(|l| l.event_type.clone());
    let event_type = logged_type.or_else(|| dead_types.next()).or(given.event_type);
    let mut dead_accounts = letters.iter().chain(&malformed).filter_map(|l| l.account.clone());
    accounts.extend(dead_accounts.clone());
    // An entry or a dead letter names the event's account, or shows that it has none.
    let owner = match (given.account, logged_owner) {
        (Some(account), _) | (None, Owner::Account(account)) => Owner::Account(account),
        (None, other) => match dead_accounts.next() {
            Some(account) => Owner::Account(account),
            None if letters.is_empty() && malformed.is_empty() => other,
            None => Owner::Nobody,
        },
    };
    let account = owner.account().map(str::to_owned);
    accounts.retain(|other| Some(other) != account.as_ref());
    let mut dead_ids = letters.iter().chain(&malformed).filter_map(|l| l.event_id.clone());
    let event_id = logged_id.or_else(|| dead_ids.next()).unwrap_or(meant);

    // The log doesn't mention all of them: those that want the event today are added.
    let mut ids: BTreeSet<Uuid> = stories.keys().copied().collect();
    ids.extend(letters.iter().filter_map(|letter| letter.webhook_id));
    let mut patterns = event_type.as_deref().map(matching_patterns).unwrap_or_default();
    if let Some(only) = webhook {
        (ids, patterns) = (BTreeSet::from([only]), Vec::new());
    }
    let named: Vec<Uuid> = ids.iter().copied().collect();
    let registered = store.concerned(&named, &patterns, account.as_deref(), MOST_WEBHOOKS)?;
    ids.extend(registered.iter().map(|webhook| webhook.id));
    let mut registered: BTreeMap<Uuid, Registered> =
        registered.into_iter().map(|webhook| (webhook.id, webhook)).collect();
    let backlogs = find_backlogs(config, store, &event_id, &stories, now);
    let is_enabled = |id: Uuid| registration(registered.get(&id)) == Registration::Enabled;
    let not_waiting = find_not_waiting(config, &stories, is_enabled, now);
    let facts = Facts {
        event_type: event_type.as_deref(),
        owner: &owner,
        is_unmatched: unmatched_at.is_some(),
        dead_letters_unknown: dead.problem.as_deref(),
        lost_dead_letters: &dead.lost,
        backlogs: &backlogs,
        not_waiting: &not_waiting,
        now,
    };
    let mut webhooks: Vec<Case> = ids
        .into_iter()
        .map(|id| {
            let letter = letters.iter().rfind(|letter| letter.webhook_id == Some(id)).cloned();
            let entries = stories.remove(&id).unwrap_or_default();
            // Events of two accounts may have the same id.
            let own = match (&letter, &entries[..]) {
                (None, []) => owner.clone(),
                (letter, entries) => Owner::of(entries, letter.as_ref(), since),
            };
            let facts = Facts { owner: &own, ..facts };
            Case::new(id, registered.remove(&id), entries, letter, facts)
        })
        .collect();
    webhooks.sort_by_key(|case| case.rank);

    let near = match &event_type {
        Some(event_type) if webhooks.iter().all(|case| case.patterns.is_empty()) => {
            near(store, event_type)?
        }
        _ => Vec::new(),
    };
    let log = config.delivery_log;
    // The beginning of a webhook's id may also be the id of an event, such as a number.
    let given = asked.parse::<WebhookId>().ok().filter(|_| !known);
    let webhooks_with_this_id =
        given.as_ref().map_or(Ok(Vec::new()), |given| given.matching(store))?;
    let is_webhook = !webhooks_with_this_id.is_empty() && given.is_some_and(|it| it.is_complete());
    let no_failure = !known && !is_webhook && log == Extent::Failures && dead.problem.is_none();
    let may_be = match webhooks_with_this_id.as_slice() {
        _ if known || is_webhook => Vec::new(),
        webhooks => text::may_be(log, log_begins_at, webhooks),
    };
    Ok(Story {
        event_id,
        event_type,
        account,
        other_accounts: accounts,
        queues,
        known,
        no_failure,
        log: log.to_string(),
        unmatched_at,
        webhooks,
        malformed,
        near,
        dead_letters_unknown: dead.problem,
        log_begins_at,
        truncated,
        webhooks_with_this_id,
        may_be,
    })
}

/// The log's entries for the event with this id or `webhook-id`. Owners of receivers know the event by its
/// `webhook-id`, and the log uses it if the database's encoding lacks a character of the id.
fn logged(store: &Store, asked: &str, webhook: Option<Uuid>) -> Result<Vec<LogEntry>> {
    let written = header_of_id(asked).into_owned();
    for id in [Some(asked.to_owned()), id_of_header(asked), Some(written)].into_iter().flatten() {
        match store.entries_of(&id, webhook) {
            Ok(entries) if entries.is_empty() => {}
            Err(StoreError::InvalidValue(_)) if !id.is_ascii() => {}
            entries => return Ok(entries?),
        }
    }
    Ok(Vec::new())
}

/// Whether a dead letter belongs to the event with this id or `webhook-id`.
fn is_of(letter: &DeadLetter, event_id: &str) -> bool {
    letter.event_id.as_ref().is_some_and(|id| id == event_id || header_of_id(id) == event_id)
}

/// The complete id of the event. That is the given id if a dead letter has it, or if no id begins with it;
/// otherwise the only id, in the log or among these dead letters, that begins with it.
fn complete_id(store: &Store, given: &str, letters: &[DeadLetter]) -> Result<String> {
    if letters.iter().any(|letter| is_of(letter, given)) || !ids::may_be_beginning(given) {
        return Ok(given.to_owned());
    }
    let mut found: BTreeSet<String> = letters.iter().filter_map(|it| it.event_id.clone()).collect();
    found.extend(ids::logged_events(store, given)?);
    let found: Vec<String> = found.into_iter().collect();
    match found.as_slice() {
        [] => Ok(given.to_owned()),
        [one] => Ok(one.clone()),
        several => bail!(ids::several_events(given, several)),
    }
}

/// The patterns that nearly match the type, and were probably meant to match it.
fn near(store: &Store, event_type: &str) -> Result<Vec<Near>> {
    let webhooks = store.list(None)?.into_iter();
    let patterns = webhooks.flat_map(|webhook| {
        let id = webhook.id;
        webhook.events.into_iter().map(move |pattern| Near { webhook_id: id, pattern })
    });
    Ok(patterns.filter(|near| nearly_matches(&near.pattern, event_type)).take(MOST_NEAR).collect())
}
