//! The state of a queue before a move, and how far an earlier move has come.

use super::MoveError;
use crate::broker::calls::{Calls, QueueCounts, is_refusal};
use crate::broker::topology::{QUEUE_TYPE, event_options};
use crate::broker::{Link, SETUP_TIMEOUT, failed};
use crate::config::{Config, QueueType};
use crate::domain::broker_names::{moving_queue, turn_queue};
use crate::domain::event::MAX_NAME_BYTES;
use crate::shutdown::Shutdown;

/// The state of a queue before it is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStanding {
    /// Its type and counts; `None` if there is no such queue.
    pub queue: Option<(QueueType, QueueCounts)>,
    /// How many messages an interrupted move has put aside; `None` if there was no such move.
    pub put_aside: Option<u32>,
}

/// Returns the state of a queue, and how many of its messages were put aside. Changes nothing.
///
/// # Errors
/// [`MoveError`].
pub fn inspect_queue(
    config: &Config,
    shutdown: &Shutdown,
    queue: &str,
) -> Result<QueueStanding, MoveError> {
    let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
    let standing = standing(&mut link, queue);
    link.close();
    standing
}

pub(super) fn standing(link: &mut Link, queue: &str) -> Result<QueueStanding, MoveError> {
    // Its name is a part of two other queues' names.
    let most = MAX_NAME_BYTES - moving_queue("").len().max(turn_queue("").len());
    if !(1..=most).contains(&queue.len()) {
        return Err(MoveError::Unfit(format!(
            "{queue:?} can't be moved: its name must have 1 to {most} bytes"
        )));
    }
    let (kill, address) = (link.kill_switch(), link.address.clone());
    let found = kill.guard(SETUP_TIMEOUT, None, || {
        let mut calls = Calls::new(link);
        let put_aside = calls.queue(&moving_queue(queue))?.map(|counts| counts.ready);
        let Some(counts) = calls.queue(queue)? else {
            return Ok(Ok(QueueStanding { queue: None, put_aside }));
        };
        let mut others = Vec::new();
        // A queue without a type has the virtual host's default type: classic, if none is set.
        let kinds = [(Some(QueueType::Quorum), QueueType::Quorum)];
        let classic = [None, Some(QueueType::Classic)].map(|kind| (kind, QueueType::Classic));
        for (declared, kind) in kinds.into_iter().chain(classic) {
            let options = event_options(declared);
            // This changes nothing, and fails if the queue has other arguments.
            match calls.call(|channel| channel.queue_declare(queue, options).map(drop)) {
                Ok(()) => {
                    return Ok(Ok(QueueStanding { queue: Some((kind, counts)), put_aside }));
                }
                Err(error) if is_refusal(&error) => others.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Err(others))
    });
    let problems = match found.map_err(|error| failed(&address, queue, &error))? {
        Ok(standing) => return Ok(standing),
        Err(problems) => problems,
    };
    // Prefer an error that says more than that the queue has another type.
    let of_kind = |error: &amiquip::Error| error.to_string().contains(QUEUE_TYPE);
    let telling = problems.iter().find(|error| !of_kind(error)).or(problems.first());
    match telling {
        Some(amiquip::Error::ServerClosedChannel { code: 406, message, .. }) => {
            Err(MoveError::Unfit(format!(
                "{queue:?} has other arguments, which it would lose when it is recreated ({message}): set \
                 them by a policy, and recreate the queue by hand"
            )))
        }
        Some(error) => Err(failed(&address, queue, error).into()),
        None => Err(MoveError::Unfit(format!("{queue:?} is of no known type"))),
    }
}
