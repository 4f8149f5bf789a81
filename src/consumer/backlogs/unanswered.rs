//! Backlogs that RabbitMQ does not answer for, such as a quorum queue that has no leader after a crash:
//! to consume one costs the connection, and with it all other backlogs of the queue. So one that may be
//! such a queue is tried by a connection of its own before.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Drain, lost};
use crate::broker::{Link, backlog_queue};
use crate::consumer::Ended;

/// How soon it is tried again, doubled each time. Nothing else is begun here while it is tried, for
/// seconds.
const SOON: Duration = Duration::from_secs(30);
const LATEST: Duration = Duration::from_secs(300);

/// RabbitMQ takes this long to tell how many messages wait in a quorum queue whose leader does not
/// answer (`rabbit_quorum_queue:stat`, 250 ms), and then tells of none.
pub(super) const NO_LEADER: Duration = Duration::from_millis(200);

/// Those that may be such, when to try each again, and how long to wait after that.
pub(super) type Unanswered = BTreeMap<Uuid, (Instant, Duration)>;

impl Drain<'_, '_> {
    /// The connection was lost with a call for this backlog, perhaps because of it.
    pub(super) fn suspect(&mut self, webhook: Uuid, error: &amiquip::Error) -> Ended {
        if !self.context.shutdown.is_requested() {
            self.may_be_unanswered(webhook);
        }
        lost(error)
    }

    /// It is tried before it is used again.
    pub(super) fn may_be_unanswered(&mut self, webhook: Uuid) {
        self.unanswered.entry(webhook).or_insert((Instant::now(), SOON));
    }

    /// Until when a backlog is left alone, because RabbitMQ does not answer for it; none, if it does.
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
