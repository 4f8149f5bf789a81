//! Where the deliveries of an event are: what RabbitMQ says about the queues that the log refers to.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use uuid::Uuid;

use super::case;
use crate::broker::{Link, ORPHANED, Topology, backlog_queue, dead_queue, wait_queue};
use crate::config::Config;
use crate::dead_letters::{self, DeadLetterScope};
use crate::domain::dead_letter::{DeadLetter, Selection};
use crate::domain::delivery_log::{DeliveryState, LogEntry};
use crate::domain::diagnosis::BacklogSeen;
use crate::domain::time::{Span, UnixMillis, between, to_unix_millis};
use crate::shutdown;
use crate::store::Store;

/// How long the broker may take: without its answer, the log says most.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest number of dead letters in a queue that is searched. It takes a second, in which other commands
/// can't read them.
const MOST_DEAD_LETTERS: u32 = 20_000;

/// A delivery with at most this long to wait, in milliseconds, may have left its wait queue.
const ABOUT_TO_EXPIRE: UnixMillis = 2_000;

/// How often a queue is checked before its deliveries are reported as missing.
const CHECKS: u32 = 3;
const CHECK_INTERVAL: Duration = Duration::from_millis(300);

/// The result of searching the dead letters.
#[derive(Debug, Default)]
pub(super) struct Dead {
    pub(super) letters: Vec<DeadLetter>,
    /// Why there may be more.
    pub(super) problem: Option<String>,
    /// Missing queues, whose dead letters are lost.
    pub(super) lost: Vec<String>,
}

/// Searches for the event's dead letters if the log says that there are some, or has no entry of the event;
/// and among the orphaned ones if a delivery is overdue.
pub(super) fn find_dead(
    config: &Config,
    event_id: &str,
    stories: &BTreeMap<Uuid, Vec<LogEntry>>,
    is_unmatched: bool,
    now: UnixMillis,
) -> Dead {
    let dead = stories.values().filter(|entries| case::is_dead(entries, now));
    let mut queues: BTreeSet<String> =
        dead.filter_map(|entries| entries.last()).map(|entry| entry.queue.clone()).collect();
    if stories.is_empty() && !is_unmatched {
        queues = config.queues.iter().map(|queue| queue.name.clone()).collect();
    }
    let is_overdue = |entries: &Vec<LogEntry>| {
        matches!(
            DeliveryState::of(entries, now),
            Some(DeliveryState::Waiting { overdue: true, .. })
        )
    };
    if queues.is_empty() && !stories.values().any(is_overdue) {
        return Dead::default();
    }
    search(config, event_id, false, queues)
}

/// Searches for the dead letters of an event that isn't in the log; with `by_beginning`, of all events whose
/// ids begin with this text.
pub(super) fn find_unlogged(config: &Config, event_id: &str, by_beginning: bool) -> Dead {
    let queues = config.queues.iter().map(|queue| queue.name.clone()).collect();
    search(config, event_id, by_beginning, queues)
}

fn search(config: &Config, event_id: &str, by_beginning: bool, queues: BTreeSet<String>) -> Dead {
    let event_id = Some(event_id.to_owned());
    let selection = Selection { event_id, by_beginning, ..Selection::default() };
    let (sender, found) = crossbeam_channel::bounded(1);
    let config = config.clone();
    let look = move || {
        let queues: Vec<String> = queues.into_iter().collect();
        // This fails if the search took too long.
        let _ = sender.send(search_queues(&config, &queues, &selection));
    };
    // The thread ends with the command, which returns all messages to their queues.
    if let Err(error) = thread::Builder::new().name("dead-letters".to_owned()).spawn(look) {
        return Dead { problem: Some(error.to_string()), ..Dead::default() };
    }
    found.recv_timeout(SEARCH_TIMEOUT).unwrap_or_else(|_| Dead {
        problem: Some(format!("RabbitMQ did not answer within {SEARCH_TIMEOUT:?}")),
        ..Dead::default()
    })
}

fn search_queues(config: &Config, queues: &[String], selection: &Selection) -> Dead {
    let (_trigger, shutdown) = shutdown::channel();
    let mut letters = Vec::new();
    let mut lost = Vec::new();
    let mut look = || -> Result<()> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, &shutdown)?;
        let mut count = |queue: &str| -> Result<Option<u32>> {
            let count = link.queue_messages(queue, &shutdown)?;
            match count.filter(|count| *count > MOST_DEAD_LETTERS) {
                Some(count) => {
                    anyhow::bail!("{queue} has {count} dead letters, too many to search")
                }
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
        let scope = DeadLetterScope {
            config,
            queues: &filled,
            any_orphaned: true,
            selection,
            limit: u64::MAX,
            shutdown: &shutdown,
        };
        if orphaned > 0 || !filled.is_empty() {
            dead_letters::read(scope, |letter, _| letters.push(letter))?;
        }
        Ok(())
    };
    let problem = look().err().map(|error| format!("{error:#}"));
    Dead { letters, problem, lost }
}

/// The webhooks whose delivery should wait in a queue that doesn't exist, or in one that is empty, with
/// that queue. If RabbitMQ can't be asked, there are none, and the log alone says where deliveries are.
pub(super) fn find_not_waiting(
    config: &Config,
    stories: &BTreeMap<Uuid, Vec<LogEntry>>,
    is_enabled: impl Fn(Uuid) -> bool,
    now: UnixMillis,
) -> Vec<(Uuid, String)> {
    let topology = Topology::of(config);
    let place = |id: Uuid, entries: &[LogEntry]| {
        let last = entries.last()?;
        match DeliveryState::of(entries, now)? {
            DeliveryState::Waiting { until, .. } if until > last.at.max(now + ABOUT_TO_EXPIRE) => {
                let delay = Span::from(between(last.at, until));
                // For another delay, such as that of a Retry-After, it waits in several queues, one after
                // another.
                let has_queue = topology.wait_queues().any(|(other, _)| other == delay);
                has_queue.then(|| (wait_queue(delay), true))
            }
            // If a backlog is empty, its first delivery may be in hand. That of a webhook that is not
            // enabled is emptied for good.
            DeliveryState::InBacklog { .. } => {
                Some((backlog_queue(&last.queue, id), !is_enabled(id)))
            }
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
        // A delivery that was logged just now may still be on its way to the queue.
        (0..CHECKS).all(|check| {
            let is_over = check > 0 && shutdown.wait(CHECK_INTERVAL);
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

/// Determines the event's position in its webhooks' backlogs. Positions that can't be determined are
/// left out: the log alone says that the event waits there.
pub(super) fn find_backlogs(
    config: &Config,
    store: &Store,
    event_id: &str,
    stories: &BTreeMap<Uuid, Vec<LogEntry>>,
    now: UnixMillis,
) -> Vec<(Uuid, BacklogSeen)> {
    let waits = |entries: &[LogEntry]| {
        matches!(DeliveryState::of(entries, now), Some(DeliveryState::InBacklog { .. }))
    };
    let stories = stories.iter().filter(|(_, entries)| waits(entries));
    let waiting: Vec<(Uuid, &LogEntry)> =
        stories.filter_map(|(id, entries)| Some((*id, entries.last()?))).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    let rows = store.backlogs().unwrap_or_default();
    let (_trigger, shutdown) = shutdown::channel();
    let mut link = Link::open(&config.amqp, config.connect_timeout, &shutdown).ok();
    let mut count = |id: Uuid, entry: &LogEntry| {
        let queue = backlog_queue(&entry.queue, id);
        let ready = link.as_mut()?.queue_messages(&queue, &shutdown).ok()??;
        let behind = store.entered_after(event_id, &entry.queue, id).ok()?;
        // The first one is in hand, and not counted as ready.
        let all = u64::from(ready) + 1;
        Some((all, all.saturating_sub(behind + 1)))
    };
    let backlog = |(id, entry): (Uuid, &LogEntry)| {
        let row = rows.iter().find(|row| row.queue == entry.queue && row.webhook == id)?;
        let seen = BacklogSeen {
            cause: row.cause.as_str().into(),
            until: row.until.map(to_unix_millis),
            count: count(id, entry),
        };
        Some((id, seen))
    };
    let backlogs = waiting.into_iter().filter_map(backlog).collect();
    if let Some(link) = link {
        link.close();
    }
    backlogs
}
