//! Watches our queues, exchanges and bindings: whether they exist, and how many messages the queues hold.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::select;

use super::calls::QueueCounts;
use super::{BrokerError, Link, Objects, Topology};
use crate::config::Config;
use crate::domain::broker_names::{ORPHANED, is_dead_queue};
use crate::shutdown::Shutdown;

/// While a command reads dead letters, it has them in hand and RabbitMQ doesn't count them: the last count is
/// still right. After this time it isn't used any more, because the consumer may be removing them.
const READ: Duration = Duration::from_secs(60);

/// Whether a queue is for operators: no notifier consumes it.
fn is_for_people(queue: &str) -> bool {
    queue == ORPHANED || is_dead_queue(queue)
}

/// Watches the topology until shutdown, and recreates deleted objects. Each round calls `tick`, then `depth`
/// with each queue and how many messages are ready in it (`None` if there is no such queue, or it doesn't
/// answer), and finally `heard` with whether the broker has answered.
///
/// It has its own connection: a lane's is busy with events, and the publisher's may be blocked by an alarm,
/// so that a declaration on it would hang.
pub fn watch_queues(
    config: &Config,
    objects: &Objects,
    shutdown: &Shutdown,
    every: Duration,
    mut depth: impl FnMut(&str, Option<u32>),
    mut heard: impl FnMut(bool),
    mut tick: impl FnMut(),
) {
    let topology = Topology::of(config);
    let mut link = None;
    let mut read_since: HashMap<String, Instant> = HashMap::new();
    let mut count = |queue: &str, counts: Option<QueueCounts>| {
        if is_for_people(queue) && counts.is_some_and(|counts| counts.consumers > 0) {
            let since = *read_since.entry(queue.to_owned()).or_insert_with(Instant::now);
            if since.elapsed() < READ {
                return;
            }
        } else {
            read_since.remove(queue);
        }
        depth(queue, counts.map(|counts| counts.ready));
    };
    loop {
        tick();
        let mut check = || -> Result<(), BrokerError> {
            let link = match &mut link {
                Some(link) => link,
                none => none.insert(Link::open(&config.amqp, config.connect_timeout, shutdown)?),
            };
            topology.declare(link, objects, shutdown, &mut count).map(drop)
        };
        let checked = check();
        heard(checked.is_ok());
        if let Err(error) = checked {
            // The lanes log that the broker is away. Here only some metrics are missing.
            log::debug!("queue depths unknown: {error}");
            link = None;
        }
        select! {
            recv(shutdown.receiver()) -> _ => break,
            recv(objects.asked()) -> _ => {}
            default(every) => {}
        }
    }
    if let Some(link) = link {
        link.close();
    }
}
