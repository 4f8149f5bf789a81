//! Watches our queues, exchanges and bindings: how much is in them, and that they are there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crossbeam_channel::select;

use super::calls::QueueCounts;
use super::{BrokerError, Link, Objects, Topology};
use crate::config::Config;
use crate::domain::broker_names::{ORPHANED, is_dead_queue};
use crate::shutdown::Shutdown;

/// While a command looks at dead letters they are in its hands, and RabbitMQ counts none: what was counted
/// before is still right. But not longer than this: somebody may consume them for good.
const READ: Duration = Duration::from_secs(60);

/// Whether a queue is one that no notifier consumes.
fn is_for_people(queue: &str) -> bool {
    queue == ORPHANED || is_dead_queue(queue)
}

/// Watches the topology until shutdown, and makes again what somebody deletes: calls `tick` every time
/// around, then `depth` with each queue and how many messages are ready in it (`None`: there is no such
/// queue, or it doesn't answer), and at last `heard`, with whether the broker answered.
///
/// On a connection of its own: a lane's is busy with events, and the publisher's may be blocked by
/// an alarm, when a declaration on it would hang.
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
        let mut look = || -> Result<(), BrokerError> {
            let link = match &mut link {
                Some(link) => link,
                none => none.insert(Link::open(&config.amqp, config.connect_timeout, shutdown)?),
            };
            topology.declare(link, objects, shutdown, &mut count).map(drop)
        };
        let looked = look();
        heard(looked.is_ok());
        if let Err(error) = looked {
            // The lanes say that the broker is away; here it only costs some figures.
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
