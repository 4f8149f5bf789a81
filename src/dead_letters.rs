//! The operator's way back: what lies in the dead-letter queues, replayed or purged.
//!
//! A dead letter leaves its queue by an ack, and never before the broker has confirmed the message
//! that carries it on. So a replay that is interrupted, by whatever and wherever, loses nothing:
//! what it had not come to is still dead, and at most one batch of [`broker::BATCH`] is both dead
//! and on its way.

use std::time::SystemTime;

use crate::broker::{self, Batches, BrokerError, Message, Outgoing, Verdict};
use crate::config::Config;
use crate::domain::dead_letter::{DeadLetter, Replay, Selection, replay};
use crate::domain::delivery::UnixMillis;
use crate::domain::event::Malformed;
use crate::shutdown::Shutdown;

/// How often the broker may have taken a dead letter back. Whoever looks at one puts it back, and
/// a quorum queue counts that: at its delivery limit, which is 20 on RabbitMQ 4 where nobody says
/// otherwise, it would drop the message. Half of that leaves room for readers that crash.
const MOST_REDELIVERIES: i64 = 10;

/// The dead letters that a command is about.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Where the broker is.
    pub config: &'a Config,
    /// The queues that the events were published to.
    pub queues: &'a [String],
    /// Which of their dead letters.
    pub selection: &'a Selection,
    /// At most so many.
    pub limit: u64,
    /// Ends waiting for the broker.
    pub shutdown: &'a Shutdown,
}

/// Why a command could not be carried out, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The broker; what was not yet replayed or purged is still there.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// There is no such dead-letter queue.
    #[error("{0:?} has no dead-letter queue: check --queue and QUEUES (`run` makes the queues)")]
    NoQueue(String),
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// On their way again.
    pub replayed: u64,
    /// Left where they are: malformed still.
    pub malformed: u64,
}

/// Shows each dead letter, and the message it is, to `each`.
///
/// # Errors
/// [`DeadLetterError`].
pub fn look(
    scope: Scope<'_>,
    mut each: impl FnMut(DeadLetter, &Message),
) -> Result<(), DeadLetterError> {
    walk(scope, |_, chosen| {
        for (letter, message) in chosen {
            each(letter, message);
        }
        Ok(Vec::new())
    })
}

/// How many there are.
///
/// # Errors
/// [`DeadLetterError`].
pub fn count(scope: Scope<'_>) -> Result<u64, DeadLetterError> {
    let mut count = 0;
    look(scope, |_, _| count += 1)?;
    Ok(count)
}

/// Sends dead letters on their way again: deliveries to their webhook, with the retry schedule from
/// its start; events that were malformed and no longer are (perhaps MAX_EVENT_BYTES was raised)
/// back to their queue. `progress` hears how many were looked at.
///
/// # Errors
/// [`DeadLetterError`]. Nothing is lost then; see the module.
pub fn replay_all(
    scope: Scope<'_>,
    mut progress: impl FnMut(u64),
) -> Result<Replayed, DeadLetterError> {
    // A connection of its own: a broker with an alarm stops reading from those that publish, and
    // acks have to get through.
    let mut batches = Batches::open(scope.config, scope.shutdown)?;
    let mut done = Replayed::default();
    walk(scope, |queue, chosen| {
        let mut outgoing = Vec::new();
        let mut removed = Vec::new();
        for (_, message) in chosen {
            match returning(message, queue, scope.config.max_event_bytes) {
                Ok(message) => {
                    outgoing.push(message);
                    removed.push(Verdict::Remove);
                }
                Err(_) => removed.push(Verdict::Keep),
            }
        }
        batches.publish(&outgoing)?;
        done.replayed += outgoing.len() as u64;
        done.malformed += (removed.len() - outgoing.len()) as u64;
        progress(done.replayed + done.malformed);
        Ok(removed)
    })?;
    batches.close();
    Ok(done)
}

/// Deletes dead letters, for good. `progress` hears how many so far.
///
/// # Errors
/// [`DeadLetterError`]; what was not yet deleted is still there.
pub fn purge(scope: Scope<'_>, mut progress: impl FnMut(u64)) -> Result<u64, DeadLetterError> {
    let mut purged = 0;
    walk(scope, |_, chosen| {
        purged += chosen.len() as u64;
        progress(purged);
        Ok(vec![Verdict::Remove; chosen.len()])
    })?;
    Ok(purged)
}

/// Shows the chosen dead letters of each queue to `decide`, some at a time. What it returns no
/// verdict about stays.
fn walk(
    scope: Scope<'_>,
    mut decide: impl FnMut(&str, Vec<(DeadLetter, &Message)>) -> Result<Vec<Verdict>, DeadLetterError>,
) -> Result<(), DeadLetterError> {
    let mut left = scope.limit;
    for queue in scope.queues {
        if left == 0 {
            break;
        }
        let mut weary = false;
        browse(scope, queue, &mut |messages| {
            let mut verdicts = vec![Verdict::Keep; messages.len()];
            let (mut places, mut chosen) = (Vec::new(), Vec::new());
            for (place, message) in messages.iter().enumerate() {
                weary |= is_weary(message);
                let letter = DeadLetter::read(queue, message.properties(), &message.headers);
                if left > 0 && scope.selection.includes(&letter) {
                    left -= 1;
                    places.push(place);
                    chosen.push((letter, message));
                }
            }
            if !chosen.is_empty() {
                for (place, verdict) in places.into_iter().zip(decide(queue, chosen)?) {
                    verdicts[place] = verdict;
                }
            }
            Ok(verdicts)
        })?;
        if weary {
            renew(scope, queue)?;
        }
    }
    Ok(())
}

fn browse(
    scope: Scope<'_>,
    queue: &str,
    look: &mut broker::Look<'_, DeadLetterError>,
) -> Result<(), DeadLetterError> {
    let found = broker::browse(scope.config, scope.shutdown, &broker::dead_queue(queue), look)?;
    if found { Ok(()) } else { Err(DeadLetterError::NoQueue(queue.to_owned())) }
}

/// Whether the broker has taken a dead letter back so often that it might soon drop it.
fn is_weary(message: &Message) -> bool {
    message.redeliveries() > MOST_REDELIVERIES
}

/// Replaces the weary dead letters by copies, at the end of their queue; these come by once more,
/// and stay.
fn renew(scope: Scope<'_>, queue: &str) -> Result<(), DeadLetterError> {
    let mut batches = Batches::open(scope.config, scope.shutdown)?;
    browse(scope, queue, &mut |messages| {
        let copies: Vec<Outgoing> = messages
            .iter()
            .filter(|message| is_weary(message))
            .map(|message| Outgoing::dead(message.clone().without_redeliveries(), queue))
            .collect();
        batches.publish(&copies)?;
        let verdict = |message| if is_weary(message) { Verdict::Remove } else { Verdict::Keep };
        Ok(messages.iter().map(verdict).collect())
    })?;
    batches.close();
    Ok(())
}

/// The message by which a dead letter comes back.
fn returning(
    message: &Message,
    queue: &str,
    max_event_bytes: usize,
) -> Result<Outgoing, Malformed> {
    let Message { body, content_type, headers, .. } = message;
    Ok(match replay(message.properties(), headers, body, max_event_bytes, now())? {
        Replay::Delivery(delivery) => {
            let message = Message::carrying(&delivery, queue, body.clone(), content_type.clone());
            Outgoing::hand_over(message, queue)
        }
        Replay::Event(headers) => Outgoing::to_queue(Message { headers, ..message.clone() }, queue),
    })
}

/// The time, as dead letters have it.
#[must_use]
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UnixMillis::try_from(since.as_millis()).unwrap_or(UnixMillis::MAX)
}
