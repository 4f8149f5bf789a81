//! Reads, replays and purges the dead-letter queues and `webhooks.orphaned`.
//!
//! A dead letter leaves its queue by an ack, and never before the broker has confirmed the message that replaces
//! it. So an interrupted replay loses nothing: dead letters that it hadn't reached are still dead, and at most
//! one batch of [`broker::BATCH`] is both dead and replayed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

use uuid::Uuid;

use crate::broker::{
    self, Batches, BrokerError, Browsed, Manner, Message, ORPHANED, Outgoing, Verdict,
};
use crate::clock;
use crate::config::Config;
use crate::domain::broker_names::header;
use crate::domain::dead_letter::{DeadLetter, Replay, Selection, replay};
use crate::domain::delivery::Value;
use crate::domain::event::{Event, Malformed, account_of};
use crate::shutdown::{self, Shutdown};
use crate::store::{Standing, Store, StoreError};

/// A dead letter that was read this often is replaced by a copy, with others of its queue.
///
/// RabbitMQ counts each read of a dead letter as a failed delivery, and may drop it after some: after 20 on
/// RabbitMQ 4, unless somebody has set another limit. Each command replaces some by copies, so that few reach
/// this number: large ones, or those of interrupted commands.
const MANY_READS: i64 = 12;

/// If a dead letter in a queue has reached [`MANY_READS`], all that were read at least this often are replaced.
const SOME_READS: i64 = 6;

/// The dead letters that a command is about.
#[derive(Clone, Copy, Debug)]
pub struct DeadLetterScope<'a> {
    /// The broker's address, among others.
    pub config: &'a Config,
    /// The queues that the events were published to.
    pub queues: &'a [String],
    /// Whether to include orphaned deliveries of other queues.
    pub any_orphaned: bool,
    /// Selects among their dead letters.
    pub selection: &'a Selection,
    /// The most dead letters to act on; in a replay, those that stay don't count.
    pub limit: u64,
    /// Ends waiting for the broker.
    pub shutdown: &'a Shutdown,
}

/// Why a command couldn't be completed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The broker failed; all dead letters that weren't replayed or purged yet are still there.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// PostgreSQL failed; all dead letters that weren't replayed yet are still there.
    #[error("cannot find out which webhooks are disabled or deleted: {0}")]
    Store(#[from] StoreError),
    /// There is no such dead-letter queue.
    #[error(
        "{0:?} has no dead-letter queue: check --queue and QUEUES (`run` creates the queues). If it had one, \
         somebody has deleted it with its dead letters"
    )]
    NoQueue(String),
    /// Some dead letters could not be read.
    #[error(
        "{queue:?} has {count} more dead letters that could not be read: does another command read them? If \
         not, try again"
    )]
    Withheld {
        /// The queue that the events were published to.
        queue: String,
        /// How many weren't read, by the broker's count.
        count: u64,
    },
}

/// The counts of a replay, or of what it would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Replayed.
    pub replayed: u64,
    /// Not replayed: still malformed.
    pub malformed: u64,
    /// Not replayed: their webhook is disabled, so nobody would get them.
    pub disabled: u64,
    /// The disabled webhooks.
    pub disabled_webhooks: BTreeSet<Uuid>,
    /// Not replayed: their webhook is deleted.
    pub deleted: u64,
    /// Not replayed: the queue to replay them to is missing.
    pub stranded: u64,
    /// The missing queues.
    pub missing: BTreeSet<String>,
}

impl Replayed {
    /// How many were considered.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.replayed + self.malformed + self.disabled + self.deleted + self.stranded
    }
}

/// What was done with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// It was shown and stays.
    Shown,
    /// Nothing could be done, so it stays.
    Nothing,
    /// It was replayed or is unwanted, so it is removed.
    Removed,
}

/// Queues with dead letters that were read so often that RabbitMQ might soon drop them.
#[derive(Debug)]
#[must_use = "they have to be replaced by copies"]
pub struct ToRenew<'a>(Vec<Place<'a>>);

impl ToRenew<'_> {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Replaces dead letters that were read often by copies at the end of their queue. That takes seconds for
    /// some ten thousand. It may be interrupted at any point; the next command continues.
    ///
    /// # Errors
    /// [`DeadLetterError`]. Nothing is lost.
    pub fn renew(self, scope: DeadLetterScope<'_>) -> Result<(), DeadLetterError> {
        self.0.into_iter().try_for_each(|place| renew(scope, place))
    }
}

/// Calls `each` with each dead letter and its message.
///
/// # Errors
/// [`DeadLetterError`].
pub fn read(
    scope: DeadLetterScope<'_>,
    each: impl FnMut(DeadLetter, &Message),
) -> Result<(), DeadLetterError> {
    read_first(scope, each)?.renew(scope)
}

/// The same, for callers that print something before copies are made.
///
/// # Errors
/// [`DeadLetterError`].
pub fn read_first<'a>(
    scope: DeadLetterScope<'a>,
    mut each: impl FnMut(DeadLetter, &Message),
) -> Result<ToRenew<'a>, DeadLetterError> {
    walk(scope, |chosen, most| {
        let chosen = chosen.into_iter().take(most);
        Ok(chosen.map(|(letter, message)| each(letter, message)).map(|()| Done::Shown).collect())
    })
}

/// Counts the dead letters.
///
/// # Errors
/// [`DeadLetterError`].
pub fn count(scope: DeadLetterScope<'_>) -> Result<u64, DeadLetterError> {
    let mut count = 0;
    read(scope, |_, _| count += 1)?;
    Ok(count)
}

/// Replays dead letters: deliveries go to their webhook, with the retry schedule from its start; events that
/// were malformed and no longer are (MAX_EVENT_BYTES may have been raised) go to their queue. Dead letters whose
/// webhook is disabled or deleted stay. With `dry_run` all of them stay. `progress` gets the counts so far.
///
/// # Errors
/// [`DeadLetterError`]. Nothing is lost; see the module.
pub fn replay_all(
    scope: DeadLetterScope<'_>,
    store: &Store,
    dry_run: bool,
    mut progress: impl FnMut(&Replayed),
) -> Result<Replayed, DeadLetterError> {
    // A separate connection: during an alarm the broker stops reading from connections that publish, and acks
    // have to get through.
    let mut batches = Batches::open(scope.config, scope.shutdown)?;
    let mut done = Replayed::default();
    let mut queues: HashMap<String, bool> = HashMap::new();
    walk(scope, |chosen, most| {
        let webhooks: BTreeSet<Uuid> =
            chosen.iter().filter_map(|(letter, _)| letter.webhook_id).collect();
        let standings = match webhooks.is_empty() {
            true => HashMap::new(),
            false => store.standings(&Vec::from_iter(webhooks))?,
        };
        let (mut outgoing, mut ends) = (Vec::new(), Vec::new());
        for (letter, message) in chosen {
            if outgoing.len() == most {
                break;
            }
            let Ok(replaying) = replaying(message, &letter.queue, scope.config.max_event_bytes)
            else {
                done.malformed += 1;
                ends.push(Done::Nothing);
                continue;
            };
            if let Some(webhook) = letter.webhook_id {
                let standing = standings.get(&webhook);
                if matches!(standing, None | Some(Standing::Disabled)) {
                    match standing {
                        None => done.deleted += 1,
                        Some(_) => {
                            done.disabled += 1;
                            done.disabled_webhooks.insert(webhook);
                        }
                    }
                    ends.push(Done::Nothing);
                    continue;
                }
            }
            let queue = replaying.routing_key().to_owned();
            let is_there = match queues.get(&queue) {
                Some(is_there) => *is_there,
                None => batches.has_queue(&queue)?,
            };
            if is_there {
                ends.push(if dry_run { Done::Shown } else { Done::Removed });
                outgoing.push(replaying);
            } else {
                done.stranded += 1;
                done.missing.insert(queue.clone());
                ends.push(Done::Nothing);
            }
            queues.insert(queue, is_there);
        }
        done.replayed += outgoing.len() as u64;
        if !dry_run {
            batches.publish(outgoing)?;
        }
        progress(&done);
        Ok(ends)
    })?
    .renew(scope)?;
    batches.close();
    Ok(done)
}

/// Deletes dead letters for good. `progress` gets the count so far.
///
/// # Errors
/// [`DeadLetterError`]; all dead letters that weren't deleted yet are still there.
pub fn purge(
    scope: DeadLetterScope<'_>,
    mut progress: impl FnMut(u64),
) -> Result<u64, DeadLetterError> {
    let mut purged = 0;
    walk(scope, |chosen, most| {
        let count = chosen.len().min(most);
        purged += count as u64;
        progress(purged);
        Ok(vec![Done::Removed; count])
    })?
    .renew(scope)?;
    Ok(purged)
}

/// A queue that holds dead letters.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    /// The dead-letter queue of this queue.
    Dead(&'a str),
    /// `webhooks.orphaned`, for all queues.
    Orphaned,
}

impl Place<'_> {
    fn queue(self) -> String {
        match self {
            Self::Dead(origin) => broker::dead_queue(origin),
            Self::Orphaned => ORPHANED.to_owned(),
        }
    }

    fn read(self, message: &Message, max_event_bytes: usize) -> DeadLetter {
        let (properties, headers) = (message.properties(), &message.headers);
        let mut letter = match self {
            Self::Dead(origin) => DeadLetter::read(origin, properties, headers),
            Self::Orphaned => DeadLetter::read_orphaned(properties, headers),
        };
        if letter.last_error.is_none() {
            // It comes from somebody else, perhaps RabbitMQ.
            let read = Event::read(properties, &message.body, max_event_bytes, || "any".to_owned());
            letter.last_error = read.err().map(|malformed| malformed.to_string());
        }
        let says_nothing =
            |account: &Value| matches!(account, Value::Text(text) if text.is_empty());
        let is_told = headers.contains_key(header::ACCOUNT)
            || properties.account.is_some_and(|account| !says_nothing(account));
        match is_told {
            true => letter,
            false => {
                let account = account_of(&message.body).map(String::from);
                DeadLetter { account, ..letter }
            }
        }
    }
}

/// Calls `act` with the selected dead letters of each queue, some at a time, and the number that it may act on.
/// `act` returns what it did with each, or with the first of them.
fn walk<'a>(
    scope: DeadLetterScope<'a>,
    mut act: impl FnMut(Vec<(DeadLetter, &Message)>, usize) -> Result<Vec<Done>, DeadLetterError>,
) -> Result<ToRenew<'a>, DeadLetterError> {
    let mut left = scope.limit;
    let mut to_renew = Vec::new();
    let mut missing = Vec::new();
    // The queues that have orphaned deliveries.
    let mut stranded = HashSet::new();
    let places = scope.queues.iter().map(|queue| Place::Dead(queue)).chain([Place::Orphaned]);
    for place in places {
        let mut most_reads = 0;
        let browsed = browse(scope, place, true, &mut |messages| {
            let mut verdicts = vec![Verdict::Keep; messages.len()];
            let (mut numbers, mut chosen) = (Vec::new(), Vec::new());
            for (number, message) in messages.iter().enumerate() {
                most_reads = most_reads.max(message.redeliveries());
                let letter = place.read(message, scope.config.max_event_bytes);
                if matches!(place, Place::Orphaned) {
                    let is_meant = scope.any_orphaned || scope.queues.contains(&letter.queue);
                    if !is_meant {
                        continue;
                    }
                    stranded.insert(letter.queue.clone());
                }
                if scope.selection.includes(&letter) {
                    numbers.push(number);
                    chosen.push((letter, message));
                }
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let ends = if chosen.is_empty() { Vec::new() } else { act(chosen, most)? };
            for (number, done) in numbers.into_iter().zip(ends) {
                left -= u64::from(done != Done::Nothing);
                if done == Done::Removed {
                    verdicts[number] = Verdict::Remove;
                }
            }
            Ok(if left > 0 {
                ControlFlow::Continue(verdicts)
            } else {
                ControlFlow::Break(verdicts)
            })
        });
        match (browsed, place) {
            (Ok(reads), _) if reads >= MANY_READS => to_renew.push(place),
            (Ok(_), _) => {}
            (Err(DeadLetterError::NoQueue(queue)), Place::Dead(_)) => missing.push(queue),
            // The first notifier of this version creates it.
            (Err(DeadLetterError::NoQueue(_)), Place::Orphaned) => {}
            (Err(error), _) => {
                // Otherwise a queue that is never browsed completely would never be renewed.
                if most_reads >= MANY_READS && !scope.shutdown.is_requested() {
                    renew(scope, place)?;
                }
                return Err(error);
            }
        }
        if left == 0 {
            break;
        }
    }
    // A queue that was removed from QUEUES may still have orphaned deliveries.
    match missing.into_iter().find(|queue| left > 0 && !stranded.contains(queue)) {
        Some(queue) => Err(DeadLetterError::NoQueue(queue)),
        None => Ok(ToRenew(to_renew)),
    }
}

/// Browses a queue. Returns how often the remaining messages were read before, at most.
fn browse(
    scope: DeadLetterScope<'_>,
    place: Place<'_>,
    renews: bool,
    judge: &mut broker::Judge<'_, DeadLetterError>,
) -> Result<i64, DeadLetterError> {
    let name = |place: Place<'_>| match place {
        Place::Dead(origin) => origin.to_owned(),
        Place::Orphaned => ORPHANED.to_owned(),
    };
    let manner = Manner { all: scope.limit == u64::MAX, renews };
    let browsed = broker::browse(scope.config, scope.shutdown, &place.queue(), manner, judge)?;
    match browsed {
        (Browsed::Seen, reads) => Ok(reads),
        (Browsed::NoQueue, _) => Err(DeadLetterError::NoQueue(name(place))),
        (Browsed::Withheld(count), _) => {
            Err(DeadLetterError::Withheld { queue: name(place), count })
        }
    }
}

/// Replaces dead letters that were read often by copies at the end of their queue. The copies are browsed once
/// more, and stay.
fn renew(scope: DeadLetterScope<'_>, place: Place<'_>) -> Result<(), DeadLetterError> {
    // A batch isn't interrupted, or a part of it would be in the queue twice.
    let (_never, uninterrupted) = shutdown::channel();
    let mut batches = Batches::open(scope.config, &uninterrupted)?;
    let queue = place.queue();
    browse(DeadLetterScope { limit: u64::MAX, ..scope }, place, false, &mut |messages| {
        let is_old = |message: &Message| message.redeliveries() >= SOME_READS;
        let old = messages.iter().filter(|message| is_old(message));
        let copies =
            old.map(|message| Outgoing::to_queue(message.clone().without_redeliveries(), &queue));
        batches.publish(copies.collect())?;
        let verdict = |message: &Message| match is_old(message) {
            true => Verdict::Remove,
            false => Verdict::Keep,
        };
        Ok(ControlFlow::Continue(messages.iter().map(verdict).collect()))
    })?;
    batches.close();
    Ok(())
}

/// The message that replays a dead letter.
fn replaying(
    message: &Message,
    queue: &str,
    max_event_bytes: usize,
) -> Result<Outgoing, Malformed> {
    let Message { body, headers, .. } = message;
    Ok(match replay(message.properties(), headers, body, max_event_bytes, clock::unix_millis())? {
        Replay::Delivery(delivery) => {
            Outgoing::hand_over(message.carrying(&delivery, queue), queue)
        }
        Replay::Event(headers) => {
            Outgoing::to_queue(Message { headers, ..message.clone() }.without_redeliveries(), queue)
        }
    })
}
