//! `why`: what became of one event, by what was logged and by what lies in the dead-letter queues.

mod case;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use super::{Common, Usage, account, print, print_json, read};
use crate::broker::{Link, ORPHANED, backlog_queue, dead_queue, unix_millis, wait_queue};
use crate::config::Config;
use crate::dead_letters::{self, Scope};
use crate::domain::calendar;
use crate::domain::dead_letter::{DeadLetter, Selection};
use crate::domain::delivery::UnixMillis;
use crate::domain::encoding::{header_of_id, header_of_name, id_of_header};
use crate::domain::event::check_event_type;
use crate::domain::history::{Entry, State, What};
use crate::domain::webhook::{matching_patterns, nearly_matches};
use crate::shutdown;
use crate::store::{MOST_ENTRIES, Registered, Store, StoreError};

use case::{Backlog, Case, Facts, Owner};

/// How long the broker may take. The log alone says most of it.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// How many dead letters of a queue are looked through: a second's work. Meanwhile other commands
/// can't see them.
const MOST_DEAD_LETTERS: u32 = 20_000;

/// What waits for no longer than this may have left its wait queue, in milliseconds.
const ABOUT_TO_EXPIRE: UnixMillis = 2_000;

/// How often a queue has to be found empty until what should be in it is said to be missing.
const LOOKS: u32 = 3;
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

/// How many webhooks of an event are told of.
const MOST_WEBHOOKS: i64 = 1_000;

/// How many patterns are named that nearly match.
const MOST_NEAR: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Why {
    /// The event's id, `event=` in the log; or the receiver's header `webhook-id`, where no event has that
    /// as its id
    event: String,
    /// Only what concerns this webhook
    #[arg(long, value_name = "ID")]
    webhook: Option<Uuid>,
    /// The event's type, where the log does not know it: says which webhooks want such an event
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// The event's account, where the log does not know it, or has several with this id
    #[arg(long, value_name = "TEXT", value_parser = account)]
    account: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// All that is known of an event.
#[derive(Debug, Serialize)]
struct Answer {
    event_id: String,
    event_type: Option<String>,
    /// Whose it is, if it is anybody's.
    account: Option<String>,
    /// Of whom else events have this id.
    other_accounts: BTreeSet<String>,
    /// The queues that it was published to.
    queues: BTreeSet<String>,
    /// Whether anything is.
    known: bool,
    /// When no webhook wanted it.
    #[serde(serialize_with = "calendar::serialize_option")]
    unmatched_at: Option<UnixMillis>,
    webhooks: Vec<Case>,
    /// Dead letters that name no webhook: malformed ones.
    malformed: Vec<DeadLetter>,
    /// Patterns that nearly match.
    near: Vec<Near>,
    /// Why the dead-letter queues could not be looked through; none if they were, or need not be.
    dead_letters_unknown: Option<String>,
    /// When the oldest entry of the log was made.
    #[serde(serialize_with = "calendar::serialize_option")]
    log_begins_at: Option<UnixMillis>,
    /// Whether the log has more of it than was read.
    truncated: bool,
    /// What it may mean that nothing is known.
    may_be: Vec<String>,
}

/// A pattern that nearly matches.
#[derive(Debug, Serialize)]
struct Near {
    webhook_id: Uuid,
    pattern: String,
}

/// What the operator says of the event.
struct Given {
    event_type: Option<String>,
    account: Option<String>,
}

impl Given {
    /// Whether something may be of the event that is meant: it is of the account that is given, or
    /// nobody has written down of which.
    fn may_mean(&self, account: Option<&str>) -> bool {
        match (&self.account, account) {
            // As the log has it where the database's encoding lacks a character.
            (Some(given), Some(account)) => given == account || header_of_name(given) == account,
            _ => true,
        }
    }
}

/// What a look at the dead letters has found.
#[derive(Debug, Default)]
struct Dead {
    letters: Vec<DeadLetter>,
    /// Why it is not all that there may be.
    problem: Option<String>,
    /// Queues that there are not, whose dead letters are lost.
    lost: Vec<String>,
}

/// Prints the answer; exit code 1 if there is none.
pub(super) fn run(command: Why) -> Result<ExitCode> {
    let Why { event, webhook, event_type, account, common } = command;
    if let Some(event_type) = &event_type {
        check_event_type(event_type).map_err(|error| Usage(format!("--type: {error}")))?;
    }
    let config = read(&common.settings.0)?;
    let store = Store::new(&config)?;
    let answer = answer(&config, &store, event, webhook, Given { event_type, account })?;
    if common.output.json {
        print_json(&answer)?;
    } else {
        print(text::for_people(&answer, webhook))?;
    }
    Ok(if answer.known { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn answer(
    config: &Config,
    store: &Store,
    asked: String,
    webhook: Option<Uuid>,
    given: Given,
) -> Result<Answer> {
    let now = unix_millis();
    let mut entries = history(store, &asked, webhook)?;
    let truncated = entries.len() >= MOST_ENTRIES;
    entries.retain(|entry| given.may_mean(entry.account.as_deref()));
    let log_begins_at = store.oldest_entry()?;
    let unmatched_at = entries.iter().rfind(|e| e.what == What::Unmatched).map(|e| e.at);
    let mut queues: BTreeSet<String> = entries.iter().map(|entry| entry.queue.clone()).collect();
    let logged_type = entries.last().map(|entry| entry.event_type.clone());
    // Who can't read that table has to do without.
    let since = store.accounts_since().unwrap_or(None);
    let logged_owner = Owner::of(&entries, None, since);
    let mut accounts: BTreeSet<String> =
        entries.iter().filter_map(|entry| entry.account.clone()).collect();
    let logged_id = entries.last().map(|entry| entry.event_id.clone());

    let mut stories: BTreeMap<Uuid, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        if let Some(id) = entry.webhook_id {
            stories.entry(id).or_default().push(entry);
        }
    }
    let mut dead = find_dead(config, &asked, &stories, unmatched_at.is_some(), now);
    dead.letters.retain(|letter| given.may_mean(letter.account.as_deref()));
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
    // What is known of an event says whose it is, or that it is nobody's.
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
    let event_id = logged_id.or_else(|| dead_ids.next()).unwrap_or_else(|| asked.clone());

    // Told of even where the log has nothing of them: those that want it today.
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
    let not_waiting = find_not_waiting(config, &stories, now);
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
            // Two accounts may have used the same id.
            let own = match (&letter, &entries[..]) {
                (None, []) => owner.clone(),
                (letter, entries) => Owner::of(entries, letter.as_ref(), since),
            };
            let facts = Facts { owner: &own, ..facts };
            Case::new(id, registered.remove(&id), entries, letter, facts)
        })
        .collect();
    webhooks.sort_by_key(Case::rank);

    let near = match &event_type {
        Some(event_type) if webhooks.iter().all(|case| case.patterns.is_empty()) => {
            near(store, event_type)?
        }
        _ => Vec::new(),
    };
    let may_be = if known { Vec::new() } else { text::may_be(log_begins_at) };
    Ok(Answer {
        event_id,
        event_type,
        account,
        other_accounts: accounts,
        queues,
        known,
        unmatched_at,
        webhooks,
        malformed,
        near,
        dead_letters_unknown: dead.problem,
        log_begins_at,
        truncated,
        may_be,
    })
}

/// What was logged of the event with this id; or with this `webhook-id`, which is what a receiver's owner
/// has of it, and the log where the database's encoding lacks a character.
fn history(store: &Store, asked: &str, webhook: Option<Uuid>) -> Result<Vec<Entry>> {
    let written = header_of_id(asked).into_owned();
    for id in [Some(asked.to_owned()), id_of_header(asked), Some(written)].into_iter().flatten() {
        match store.history(&id, webhook) {
            Ok(entries) if entries.is_empty() => {}
            Err(StoreError::Refused(_)) if !id.is_ascii() => {}
            entries => return Ok(entries?),
        }
    }
    Ok(Vec::new())
}

/// Looks for the event's dead letters, where the log says that there are some, or says nothing; and
/// among the orphaned ones, where it is overdue.
fn find_dead(
    config: &Config,
    event_id: &str,
    stories: &BTreeMap<Uuid, Vec<Entry>>,
    is_unmatched: bool,
    now: UnixMillis,
) -> Dead {
    let dead = stories.values().filter(|entries| case::is_dead(entries, now));
    let mut queues: BTreeSet<String> =
        dead.filter_map(|entries| entries.last()).map(|entry| entry.queue.clone()).collect();
    if stories.is_empty() && !is_unmatched {
        queues = config.queues.iter().map(|queue| queue.name.clone()).collect();
    }
    let is_overdue = |entries: &Vec<Entry>| {
        matches!(State::of(entries, now), Some(State::Waiting { overdue: true, .. }))
    };
    if queues.is_empty() && !stories.values().any(is_overdue) {
        return Dead::default();
    }
    let selection = Selection { event_id: Some(event_id.to_owned()), ..Selection::default() };
    let (sender, found) = crossbeam_channel::bounded(1);
    let config = config.clone();
    let look = move || {
        let queues: Vec<String> = queues.into_iter().collect();
        // Fails when nobody waits for it any more.
        let _ = sender.send(look_through(&config, &queues, &selection));
    };
    // It ends with the command, and then leaves everything where it is.
    if let Err(error) = thread::Builder::new().name("dead-letters".to_owned()).spawn(look) {
        return Dead { problem: Some(error.to_string()), ..Dead::default() };
    }
    found.recv_timeout(LOOK_TIMEOUT).unwrap_or_else(|_| Dead {
        problem: Some(format!("RabbitMQ did not answer within {LOOK_TIMEOUT:?}")),
        ..Dead::default()
    })
}

fn look_through(config: &Config, queues: &[String], selection: &Selection) -> Dead {
    let (_trigger, shutdown) = shutdown::channel();
    let mut letters = Vec::new();
    let mut lost = Vec::new();
    let mut look = || -> Result<()> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, &shutdown)?;
        let mut count = |queue: &str| -> Result<Option<u32>> {
            let count = link.queue_messages(queue, &shutdown)?;
            match count.filter(|count| *count > MOST_DEAD_LETTERS) {
                Some(count) => anyhow::bail!("{queue} has {count}, too many to look through"),
                None => Ok(count),
            }
        };
        let mut filled = Vec::new();
        for queue in queues {
            match count(&dead_queue(queue))? {
                Some(0) => {}
                Some(_) => filled.push(queue.clone()),
                None => lost.push(queue.clone()),
            }
        }
        let orphaned = count(ORPHANED)?.unwrap_or(0);
        link.close();
        let scope = Scope {
            config,
            queues: &filled,
            any_orphaned: true,
            selection,
            limit: u64::MAX,
            shutdown: &shutdown,
        };
        if orphaned > 0 || !filled.is_empty() {
            dead_letters::look(scope, |letter, _| letters.push(letter))?;
        }
        Ok(())
    };
    let problem = look().err().map(|error| format!("{error:#}"));
    Dead { letters, problem, lost }
}

/// The webhooks whose delivery should wait in a queue that is not there, or in a wait queue that holds
/// nothing; and that queue. Where RabbitMQ can't be asked, the log alone says where they are.
fn find_not_waiting(
    config: &Config,
    stories: &BTreeMap<Uuid, Vec<Entry>>,
    now: UnixMillis,
) -> Vec<(Uuid, String)> {
    let place = |id: Uuid, entries: &[Entry]| {
        let last = entries.last()?;
        match State::of(entries, now)? {
            State::Waiting { until, .. } if until > now + ABOUT_TO_EXPIRE => {
                let delay = Duration::from_millis(u64::try_from(until - last.at).ok()?);
                Some((wait_queue(delay.into()), true))
            }
            // Its first may be in somebody's hand.
            State::InBacklog { .. } => Some((backlog_queue(&last.queue, id), false)),
            _ => None,
        }
    };
    let places: Vec<(Uuid, (String, bool))> =
        stories.iter().filter_map(|(id, entries)| Some((*id, place(*id, entries)?))).collect();
    if places.is_empty() {
        return Vec::new();
    }
    let (_trigger, shutdown) = shutdown::channel();
    let Ok(mut link) = Link::open(&config.amqp, config.connect_timeout, &shutdown) else {
        return Vec::new();
    };
    let mut lacks = |queue: &str, all_in_it: bool| {
        // What was logged just now may be on its way still.
        (0..LOOKS).all(|look| {
            let is_over = look > 0 && shutdown.wait(LOOK_INTERVAL);
            let count = link.queue_messages(queue, &shutdown);
            !is_over && count.is_ok_and(|count| count.is_none_or(|count| all_in_it && count == 0))
        })
    };
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    let mut missing = Vec::new();
    for (id, (queue, all_in_it)) in places {
        if *known.entry(queue.clone()).or_insert_with(|| lacks(&queue, all_in_it)) {
            missing.push((id, queue));
        }
    }
    link.close();
    missing
}

/// Looks how far the event has come in its webhooks' backlogs. What can't be told is left out: the log
/// alone says that it waits there.
fn find_backlogs(
    config: &Config,
    store: &Store,
    event_id: &str,
    stories: &BTreeMap<Uuid, Vec<Entry>>,
    now: UnixMillis,
) -> Vec<Backlog> {
    let waits =
        |entries: &[Entry]| matches!(State::of(entries, now), Some(State::InBacklog { .. }));
    let stories = stories.iter().filter(|(_, entries)| waits(entries));
    let waiting: Vec<(Uuid, &Entry)> =
        stories.filter_map(|(id, entries)| Some((*id, entries.last()?))).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let rows = store.backlogs().unwrap_or_default();
    let (_trigger, shutdown) = shutdown::channel();
    let mut link = Link::open(&config.amqp, config.connect_timeout, &shutdown).ok();
    let mut count = |id: Uuid, entry: &Entry| {
        let queue = backlog_queue(&entry.queue, id);
        let ready = link.as_mut()?.queue_messages(&queue, &shutdown).ok()??;
        let behind = store.entered_after(event_id, &entry.queue, id).ok()?;
        // One more is in somebody's hand.
        let all = u64::from(ready) + 1;
        Some((all, all.saturating_sub(behind + 1)))
    };
    let backlog = |(id, entry): (Uuid, &Entry)| {
        let row = rows.iter().find(|row| row.queue == entry.queue && row.webhook == id)?;
        let millis = |at: SystemTime| {
            let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
        };
        Some(Backlog {
            webhook_id: id,
            cause: row.cause.clone(),
            until: row.until.map(millis),
            count: count(id, entry),
        })
    };
    let backlogs = waiting.into_iter().filter_map(backlog).collect();
    if let Some(link) = link {
        link.close();
    }
    backlogs
}

/// The patterns that look as if they were meant to match.
fn near(store: &Store, event_type: &str) -> Result<Vec<Near>> {
    let webhooks = store.list(None)?.into_iter();
    let patterns = webhooks.flat_map(|webhook| {
        let id = webhook.id;
        webhook.events.into_iter().map(move |pattern| Near { webhook_id: id, pattern })
    });
    Ok(patterns.filter(|near| nearly_matches(&near.pattern, event_type)).take(MOST_NEAR).collect())
}
