//! Backlogs for which RabbitMQ doesn't answer, such as a quorum queue without a leader after a crash.
//! Consuming one costs the connection, and interrupts all other backlogs of the event queue. So a suspect is
//! first tried on a separate connection.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Drain, lost};
use crate::broker::{Link, backlog_queue};
use crate::consumer::Ended;

/// How soon it is tried again, doubled each time. A trial takes seconds, while no other backlog of the queue
/// moves on.
const SOON: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(300);

/// If the leader of a quorum queue doesn't answer, RabbitMQ takes at least this long to report the number of
/// waiting messages (`rabbit_quorum_queue:stat`, 250 ms), and then reports 0.
pub(super) const NO_LEADER: Duration = Duration::from_millis(200);

/// The suspects: when to try each again, and how long to wait after that.
pub(super) type Unanswered = BTreeMap<Uuid, (Instant, Duration)>;

impl Drain<'_, '_> {
    /// The connection was lost during a call for this backlog, perhaps because of it.
    pub(super) fn suspect(&mut self, webhook: Uuid, error: &amiquip::Error) -> Ended {
        if !self.context.shutdown.is_requested() {
            self.add_suspect(webhook);
        }
        lost(error)
    }

    /// From now on this backlog is tried before it is consumed.
    pub(super) fn add_suspect(&mut self, webhook: Uuid) {
        self.unanswered.entry(webhook).or_insert((Instant::now(), SOON));
    }

    /// Until when a backlog is left alone because RabbitMQ doesn't answer for it; `None` if it does.
    pub(super) fn is_unanswered_until(&mut self, webhook: Uuid) -> Result<Option<Instant>, Ended> {
        let Some((until, wait)) = self.unanswered.get(&webhook).copied() else { return Ok(None) };
        if Instant::now() < until {
            return Ok(Some(until));
        }
        let (config, shutdown) = (&self.context.config, &self.context.shutdown);
        let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)
            .map_err(|error| Ended::Lost(error.to_string()))?;
        let queue = backlog_queue(&self.lane.origin, webhook);
        if link.try_to_consume(&queue, shutdown).is_ok() {
            link.close();
            self.forget_unanswered(webhook);
            return Ok(None);
        }
        self.context.objects.unanswered(&queue);
        let until = Instant::now() + wait;
        self.unanswered.insert(webhook, (until, (wait * 2).min(LATEST)));
        Ok(Some(until))
    }

    pub(super) fn forget_unanswered(&mut self, webhook: Uuid) {
        if self.unanswered.remove(&webhook).is_some() {
            let queue = backlog_queue(&self.lane.origin, webhook);
            self.context.objects.forget_unanswered(&queue);
        }
    }
}
