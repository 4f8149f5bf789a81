//! What a queue is before it is moved, and how far an earlier move has come.

use super::MoveError;
use crate::broker::calls::{Calls, QueueCounts, is_refusal};
use crate::broker::topology::{QUEUE_TYPE, event_options};
use crate::broker::{Link, SETUP_TIMEOUT, failed};
use crate::config::{Config, QueueType};
use crate::domain::broker_names::{moving_queue, turn_queue};
use crate::domain::event::MAX_NAME_BYTES;
use crate::shutdown::Shutdown;

/// What a queue is, before it is moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStanding {
    /// Its type, and what it holds; `None` if there is no such queue.
    pub queue: Option<(QueueType, QueueCounts)>,
    /// How many messages an interrupted move has put aside; `None` if there was none.
    pub put_aside: Option<u32>,
}

/// What a queue is, and what was put aside of it. Changes nothing.
///
/// # Errors
/// [`MoveError`].
pub fn look_at(
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
    // The names of two other queues are made of its name.
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
        // A queue without a type has the virtual host's default, which is classic if it is unset.
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
    // Rather one that says more than that the queue is of another type.
    let of_kind = |error: &amiquip::Error| error.to_string().contains(QUEUE_TYPE);
    let telling = problems.iter().find(|error| !of_kind(error)).or(problems.first());
    match telling {
        Some(amiquip::Error::ServerClosedChannel { code: 406, message, .. }) => {
            Err(MoveError::Unfit(format!(
                "{queue:?} has arguments of its own, which it would lose when it is made anew \
                 ({message}): set them by a policy, and make the queue by hand"
            )))
        }
        Some(error) => Err(failed(&address, queue, error).into()),
        None => Err(MoveError::Unfit(format!("{queue:?} is of no known type"))),
    }
}
