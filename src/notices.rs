//! Notices: events about webhooks that are published to the exchange `webhooks.events`, for operators and
//! owners.
//!
//! A separate thread does all of this. It records since when each receiver has been failing, in the table
//! `webhook_conditions`, which all notifiers share. It disables webhooks that have failed for DISABLE_AFTER.
//! And it publishes notices, on its own connection. No delivery waits for it: the deaths of deliveries go
//! through a bounded channel; if that is full, their notices are dropped and counted.
//!
//! The table also records which changes of webhooks have been announced. So exactly one notifier announces
//! each of them, even if no notifier ran or RabbitMQ was away when it was made. A notifier takes changes from
//! the table only while it has a connection to publish them.

use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use uuid::Uuid;

use crate::clock::unix_millis;
use crate::config::Config;
use crate::directory::Directory;
use crate::domain::delivery::{Delivery, Headers};
use crate::domain::notice::{Death, is_notice};
use crate::domain::outcome::DeadReason;
use crate::metrics::{Metrics, NoticesState};
use crate::receivers::Receivers;
use crate::store::Store;

mod publisher;
mod watch;

use watch::OutageWatch;

pub use publisher::NoticePublisher;

/// How many deaths may wait to be published. They take some hundred kilobytes.
const MOST_WAITING: usize = 1_024;

/// Queues the deaths of deliveries for publication. Never waits.
#[derive(Clone, Debug)]
pub struct Notices {
    deaths: Sender<DeathReport>,
    state: NoticesState,
}

/// The death of a delivery, and its webhook.
#[derive(Debug)]
struct DeathReport {
    webhook: Uuid,
    death: Box<Death>,
}

/// A death to publish once RabbitMQ has confirmed the dead letter.
#[derive(Debug)]
pub struct PendingDeath {
    report: DeathReport,
    notices: Notices,
}

impl Notices {
    /// The death of a delivery for this reason, to be published later. `headers` are those of its message.
    /// `None` if it is the delivery of a notice.
    #[must_use]
    pub fn of_death(
        &self,
        delivery: &Delivery,
        headers: &Headers,
        reason: DeadReason,
        origin: &str,
    ) -> Option<Box<PendingDeath>> {
        if is_notice(&delivery.event.event_type, headers) {
            return None;
        }
        let death = Box::new(Death::of(delivery, reason, origin, unix_millis()));
        let report = DeathReport { webhook: delivery.webhook_id, death };
        Some(Box::new(PendingDeath { report, notices: self.clone() }))
    }
}

impl PendingDeath {
    /// Queues the death for publication: it is certain now.
    pub fn publish(self) {
        let Self { report, notices } = self;
        if notices.deaths.try_send(report).is_err() {
            notices.state.dropped.inc();
        }
    }
}

/// Creates the queue of deaths and the thread's part.
#[must_use]
pub fn open(
    config: &Arc<Config>,
    store: &Arc<Store>,
    directory: &Arc<Directory>,
    receivers: &Arc<Receivers>,
    metrics: &Metrics,
    jitter: fn() -> f64,
) -> (Notices, NoticePublisher) {
    let (sender, deaths) = bounded(MOST_WAITING);
    let state = metrics.notices().clone();
    let notices = Notices { deaths: sender, state: state.clone() };
    let (for_watch, receivers) = (Arc::clone(store), Arc::clone(receivers));
    let watch = OutageWatch::new(config, for_watch, receivers, state.clone());
    let (config, store, directory) = (Arc::clone(config), Arc::clone(store), Arc::clone(directory));
    let publisher = NoticePublisher::new(deaths, config, store, directory, state, watch, jitter);
    (notices, publisher)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::broker_names::header::NOTICE;
    use crate::domain::delivery::Value;
    use crate::domain::event::Event;

    fn delivery(event_type: &str) -> Delivery {
        let (id, event_type) = ("e".to_owned(), event_type.to_owned());
        Delivery {
            event: Event { id, event_type, account: None },
            webhook_id: Uuid::nil(),
            attempts: 1,
            first_received_at: 0,
            last_error: "status 500".to_owned(),
            last_answer: None,
            not_before: None,
        }
    }

    #[test]
    fn a_death_is_queued_without_a_wait_or_dropped_and_counted() {
        let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
        let (sender, deaths) = bounded(MOST_WAITING);
        let notices = Notices { deaths: sender, state: metrics.notices().clone() };
        let of = |delivery: &Delivery, headers: &Headers| {
            notices.of_death(delivery, headers, DeadReason::Exhausted, "q")
        };
        for _ in 0..MOST_WAITING + 3 {
            of(&delivery("order.paid"), &Headers::new()).expect("no notice").publish();
        }
        assert_eq!((deaths.len(), metrics.notices().dropped.get()), (MOST_WAITING, 3));
        let header = Headers::from([(NOTICE.to_owned(), Value::Text("x".to_owned()))]);
        assert!(of(&delivery("delivery.dead"), &Headers::new()).is_none());
        assert!(
            of(&delivery("order.paid"), &header).is_none(),
            "the death of a notice is not published"
        );
    }
}
