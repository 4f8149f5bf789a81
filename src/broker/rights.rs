//! Checks what would keep `run` from working at a broker that answers: missing permissions, queue limits, and
//! queues of an unusable type.
//!
//! Each operation of `run` is tried with an invalid argument, so that the broker has to refuse it. The broker
//! checks the permission before the arguments, and says which of them is wrong. So nothing is created, consumed
//! or published. (RabbitMQ logs each attempt as a channel error.)

use uuid::Uuid;

use self::lacking::lack_of_rights;
use self::probe::Probe;
use super::{BrokerError, Lane, LaneKind, Link, Topology};
use crate::config::Config;
use crate::domain::broker_names::{
    BACKLOG_EXCHANGE, EVENTS_EXCHANGE, RETRY_EXCHANGE, WAIT_EXCHANGE, backlog_key, backlog_queue,
    dead_queue, wait_key,
};
use crate::domain::notice::NoticeKind;
use crate::shutdown::Shutdown;

mod lacking;
mod probe;

/// Something that keeps events from being delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What is wrong: `rights`, `room`, a queue or an exchange.
    pub subject: String,
    /// What is wrong, and the remedy.
    pub problem: String,
    /// Whether events are not delivered, or not all of them.
    pub is_fatal: bool,
}

impl Flaw {
    fn fatal(subject: String, problem: String) -> Self {
        Self { subject, problem, is_fatal: true }
    }
}

/// Finds what the broker would refuse to `run` with this configuration. Each step takes
/// [`SETUP_TIMEOUT`](super::SETUP_TIMEOUT) at most.
///
/// # Errors
/// If the connection is lost or the broker doesn't answer.
pub fn find_flaws(
    link: &mut Link,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<Vec<Flaw>, BrokerError> {
    let mut probe = Probe::new(link, shutdown);
    let topology = Topology::of(config);
    let lanes = Lane::all(config);
    let nobody = Uuid::nil();
    for exchange in [WAIT_EXCHANGE, RETRY_EXCHANGE, BACKLOG_EXCHANGE] {
        probe.check_configure_exchange(exchange)?;
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Events) {
        let origin = &lane.origin;
        probe.check_consume(origin)?;
        let _ = probe.check_configure_if_missing(origin)?;
        let dead = dead_queue(origin);
        probe.check_consume(&dead)?;
        if !probe.check_configure_if_missing(&dead)? {
            probe.check_expiry(&dead)?;
        }
        probe.check_publish("", &dead)?;
        // The backlog of a webhook that doesn't exist represents all backlogs.
        let backlog = backlog_queue(origin, nobody);
        let key = backlog_key(origin, nobody);
        probe.check_configure_queue(&backlog)?;
        probe.check_bind(&backlog, BACKLOG_EXCHANGE, &key)?;
        probe.check_consume(&backlog)?;
        probe.check_publish(BACKLOG_EXCHANGE, &key)?;
        for (delay, _) in topology.wait_queues() {
            probe.check_publish(WAIT_EXCHANGE, &wait_key(delay, origin))?;
        }
    }
    for lane in lanes.iter().filter(|lane| lane.kind == LaneKind::Retries) {
        probe.check_consume(&lane.queue)?;
        probe.check_configure_queue(&lane.queue)?;
        probe.count_if_missing(&lane.queue)?;
        probe.check_bind(&lane.queue, RETRY_EXCHANGE, &format!("*.{}", lane.origin))?;
        probe.check_publish("", &lane.queue)?;
        probe.check_publish(RETRY_EXCHANGE, &format!("0s.{}", lane.origin))?;
    }
    for (delay, queue) in topology.wait_queues() {
        probe.check_configure_queue(&queue)?;
        probe.count_if_missing(&queue)?;
        // To create a queue with a dead-letter exchange, the user needs the permission to read the queue.
        probe.check_consume(&queue)?;
        probe.check_bind(&queue, WAIT_EXCHANGE, &format!("{delay}.#"))?;
    }
    probe.check_queue_limit()?;
    let needed = std::mem::take(&mut probe.lacking);
    // Without the following permissions `run` delivers nevertheless.
    probe.check_configure_exchange(EVENTS_EXCHANGE)?;
    for kind in NoticeKind::ALL {
        probe.check_publish(EVENTS_EXCHANGE, kind.label())?;
    }
    probe.check_topic_exchange(EVENTS_EXCHANGE)?;
    let Probe { lacking: of_notices, mut flaws, .. } = probe;
    flaws.extend(lack_of_rights(&needed, config));
    flaws.extend(lack_of_rights(&of_notices, config).map(|flaw| Flaw {
        subject: format!("exchange {EVENTS_EXCHANGE}"),
        problem: format!("no notices are published: {}", flaw.problem),
        is_fatal: false,
    }));
    Ok(flaws)
}
