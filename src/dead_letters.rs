//! The operator's way back: what lies in the dead-letter queues, replayed or purged.
//!
//! A dead letter leaves its queue by an ack, and never before the broker has confirmed the message
//! that carries it on. So a replay that is interrupted, by whatever and wherever, loses nothing:
//! what it had not come to is still dead, and at most one batch of [`broker::BATCH`] is both dead
//! and on its way.

use std::ops::ControlFlow;

use crate::broker::{self, Batches, BrokerError, Browsed, Message, Outgoing, Verdict};
use crate::config::Config;
use crate::domain::dead_letter::{DeadLetter, Replay, Selection, replay};
use crate::domain::event::Malformed;
use crate::shutdown::Shutdown;

/// The dead letters that a command is about.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Where the broker is.
    pub config: &'a Config,
    /// The queues that the events were published to.
    pub queues: &'a [String],
    /// Which of their dead letters.
    pub selection: &'a Selection,
    /// At most so many; of a replay, what stays because it is malformed does not count.
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
    /// Not all that is there was seen.
    #[error(
        "{queue:?} has {count} more dead letters that could not be seen: does another command look \
         at them? If not, try again"
    )]
    Withheld {
        /// The queue that the events were published to.
        queue: String,
        /// How many, by the broker's count.
        count: u64,
    },
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// On their way again.
    pub replayed: u64,
    /// Left where they are: malformed still.
    pub malformed: u64,
}

/// What was done with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    /// It was looked at, and stays.
    Looked,
    /// Nothing could be done; it stays.
    Nothing,
    /// It is on its way, or not wanted any more: it goes.
    Removed,
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
        let count = chosen.len();
        for (letter, message) in chosen {
            each(letter, message);
        }
        Ok(vec![Done::Looked; count])
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
        let mut ends = Vec::new();
        for (_, message) in chosen {
            let returning = returning(message, queue, scope.config.max_event_bytes);
            ends.push(if returning.is_ok() { Done::Removed } else { Done::Nothing });
            outgoing.extend(returning);
        }
        let replayed = outgoing.len() as u64;
        batches.publish(outgoing)?;
        done.replayed += replayed;
        done.malformed += ends.len() as u64 - replayed;
        progress(done.replayed + done.malformed);
        Ok(ends)
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
        Ok(vec![Done::Removed; chosen.len()])
    })?;
    Ok(purged)
}

/// Shows the chosen dead letters of each queue to `act`, some at a time, which says what it did.
fn walk(
    scope: Scope<'_>,
    mut act: impl FnMut(&str, Vec<(DeadLetter, &Message)>) -> Result<Vec<Done>, DeadLetterError>,
) -> Result<(), DeadLetterError> {
    let mut left = scope.limit;
    for queue in scope.queues {
        let mut any_weary = false;
        let browsed = browse(scope, queue, &mut |messages| {
            let mut verdicts = vec![Verdict::Keep; messages.len()];
            let (mut places, mut chosen) = (Vec::new(), Vec::new());
            for (place, message) in messages.iter().enumerate() {
                any_weary |= message.is_weary();
                let letter = DeadLetter::read(queue, message.properties(), &message.headers);
                if (chosen.len() as u64) < left && scope.selection.includes(&letter) {
                    places.push(place);
                    chosen.push((letter, message));
                }
            }
            let ends = if chosen.is_empty() { Vec::new() } else { act(queue, chosen)? };
            for (place, done) in places.into_iter().zip(ends) {
                left -= u64::from(done != Done::Nothing);
                if done == Done::Removed {
                    verdicts[place] = Verdict::Remove;
                }
            }
            Ok(if left > 0 {
                ControlFlow::Continue(verdicts)
            } else {
                ControlFlow::Break(verdicts)
            })
        });
        // Also after what could not be seen to its end, or it would never be.
        if any_weary {
            renew(scope, queue)?;
        }
        browsed?;
        if left == 0 {
            break;
        }
    }
    Ok(())
}

fn browse(
    scope: Scope<'_>,
    queue: &str,
    look: &mut broker::Look<'_, DeadLetterError>,
) -> Result<(), DeadLetterError> {
    match broker::browse(scope.config, scope.shutdown, &broker::dead_queue(queue), look)? {
        Browsed::Seen => Ok(()),
        Browsed::NoQueue => Err(DeadLetterError::NoQueue(queue.to_owned())),
        Browsed::Withheld(count) => {
            Err(DeadLetterError::Withheld { queue: queue.to_owned(), count })
        }
    }
}

/// Replaces the weary dead letters by copies, at the end of their queue; these come by once more,
/// and stay.
fn renew(scope: Scope<'_>, queue: &str) -> Result<(), DeadLetterError> {
    let mut batches = Batches::open(scope.config, scope.shutdown)?;
    browse(scope, queue, &mut |messages| {
        let weary = messages.iter().filter(|message| message.is_weary());
        let copies = weary.map(|message| Outgoing::dead(message.clone().rested(), queue));
        batches.publish(copies.collect())?;
        let verdict = |message: &Message| match message.is_weary() {
            true => Verdict::Remove,
            false => Verdict::Keep,
        };
        Ok(ControlFlow::Continue(messages.iter().map(verdict).collect()))
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
    Ok(match replay(message.properties(), headers, body, max_event_bytes, broker::unix_millis())? {
        Replay::Delivery(delivery) => {
            let message = Message::carrying(&delivery, queue, body.clone(), content_type.clone());
            Outgoing::hand_over(message, queue)
        }
        Replay::Event(headers) => {
            Outgoing::to_queue(Message { headers, ..message.clone() }.rested(), queue)
        }
    })
}
