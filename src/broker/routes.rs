//! Reroutes messages whose queue is unusable, so that one bad queue holds up nothing else.

use std::sync::Arc;
use std::time::Instant;

use super::objects::Objects;
use super::outgoing::Outgoing;
use super::topology::{Topology, WITHOUT_BACKLOG};
use crate::domain::broker_names::{
    BACKLOG_EXCHANGE, ORPHANED, WAIT_EXCHANGE, is_dead_queue, origin_of_retries, queue_of,
    read_backlog_key, wait_key, wait_queue,
};
use crate::domain::time::Span;

/// Reroutes messages around the queues that are known to be unusable.
pub(super) struct Routes {
    /// The delays of the wait queues, shortest first.
    delays: Vec<Span>,
    objects: Arc<Objects>,
}

impl Routes {
    pub(super) fn new(topology: &Topology, objects: Arc<Objects>) -> Self {
        Self { delays: topology.delays.clone(), objects }
    }

    /// Reroutes a message if its queue is known to be unusable.
    pub(super) fn avoid_refused(&self, outgoing: &mut Outgoing) {
        if self.objects.refuses_any() && self.objects.is_refused(&outgoing.queue()) {
            self.reroute(outgoing);
        }
    }

    /// Reroutes a message if another route exists. A waiting delivery waits a little longer or, if there is no
    /// longer delay, a little shorter. A delivery for immediate retry waits for a minute. A dead letter becomes
    /// an orphaned delivery, which operators see too.
    pub(super) fn reroute(&self, outgoing: &mut Outgoing) {
        let refused = outgoing.queue();
        let way = match outgoing.exchange {
            WAIT_EXCHANGE => self.another_wait(&outgoing.routing_key),
            "" => match origin_of_retries(&refused) {
                Some(origin) => Some((WAIT_EXCHANGE, wait_key(WITHOUT_BACKLOG.into(), origin))),
                None if is_dead_queue(&refused) => Some(("", ORPHANED.to_owned())),
                None => None,
            },
            BACKLOG_EXCHANGE => read_backlog_key(&outgoing.routing_key)
                .map(|(origin, _)| (WAIT_EXCHANGE, wait_key(WITHOUT_BACKLOG.into(), origin))),
            _ => None,
        };
        if let Some((exchange, routing_key)) = way
            && !self.objects.is_refused(&queue_of(exchange, &routing_key))
        {
            log::debug!("{refused} is unusable: its message goes to {routing_key}");
            (outgoing.exchange, outgoing.routing_key) = (exchange, routing_key);
        }
    }

    fn another_wait(&self, key: &str) -> Option<(&'static str, String)> {
        let (delay, origin) = key.split_once('.')?;
        let delay: Span = delay.parse().ok()?;
        let longer = self.delays.iter().filter(|other| **other > delay);
        let shorter = self.delays.iter().rev().filter(|other| **other < delay);
        let mut others = longer.chain(shorter);
        let other = others.find(|other| !self.objects.is_refused(&wait_queue(**other)))?;
        Some((WAIT_EXCHANGE, wait_key(*other, origin)))
    }

    /// Records that a message was returned: its queue is missing, or not bound.
    pub(super) fn returned(&self, exchange: &str, routing_key: &str, published_at: Instant) {
        if exchange == WAIT_EXCHANGE {
            self.objects.returned(&queue_of(exchange, routing_key), published_at);
        }
        self.objects.check_soon();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::Message;
    use crate::metrics::{Metrics, ObjectKind};

    /// Where a message goes while these queues are unusable.
    fn way(outgoing: Outgoing, refused: &[&str]) -> String {
        let metrics = Metrics::new(["q".to_owned()]).expect("fresh names");
        let objects = Arc::new(Objects::new(metrics.topology()));
        for queue in refused {
            objects.refused(ObjectKind::Queue, queue, "classic");
        }
        let delays = ["1s", "2s", "1m"].map(|delay| delay.parse().expect("a span"));
        let routes = Routes { delays: delays.into(), objects };
        let mut outgoing = outgoing;
        routes.avoid_refused(&mut outgoing);
        format!("{}/{}", outgoing.exchange, outgoing.routing_key)
    }

    #[test]
    fn each_message_takes_the_nearest_safe_route() {
        let message = Message::default;
        let park = |delay: &str| Outgoing::park(message(), delay.parse().expect("a span"), "a.q");
        let wait = |delay: &str| format!("webhooks.wait/{delay}.a.q");
        let [w1, w2, w3] = ["webhooks.wait.1s", "webhooks.wait.2s", "webhooks.wait.1m"];
        assert_eq!(way(park("1s"), &[]), wait("1s"));
        assert_eq!(way(park("1s"), &[w2]), wait("1s"));
        assert_eq!(way(park("1s"), &[w1]), wait("2s"));
        assert_eq!(way(park("1s"), &[w1, w2]), wait("1m"));
        assert_eq!(way(park("1m"), &[w3]), wait("2s"));
        assert_eq!(way(park("1m"), &[w1, w2, w3]), wait("1m"), "there is none");
        let hand_over = || Outgoing::hand_over(message(), "a.q");
        assert_eq!(way(hand_over(), &[w1]), "/a.q.retry");
        assert_eq!(way(hand_over(), &["a.q.retry"]), wait("1m"));
        let dead = || Outgoing::dead(message(), "a.q");
        assert_eq!(way(dead(), &["a.q.dead"]), "/webhooks.orphaned");
        assert_eq!(way(dead(), &["a.q.dead", ORPHANED]), "/a.q.dead");
        assert_eq!(way(Outgoing::to_queue(message(), "a.q"), &["a.q"]), "/a.q");
        let backlog = || Outgoing::backlog(message(), "a.q", uuid::Uuid::nil(), "me");
        let queue = backlog().queue();
        assert_eq!(way(backlog(), &[w1]), format!("webhooks.backlog/a.q.{}", uuid::Uuid::nil()));
        assert_eq!(way(backlog(), &[&*queue]), wait("1m"));
    }
}
