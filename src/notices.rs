//! Notices: the exchange `webhooks.events` tells operators and owners what happens to webhooks.
//!
//! A separate thread watches and publishes. It records since when each receiver has been failing, for
//! all notifiers and the next process (the table `webhook_conditions`), disables webhooks that have
//! failed for DISABLE_AFTER, and publishes notices on its own connection. Nobody waits for it: the death
//! of a delivery is put into a bounded channel, and dropped and counted if that is full.
//!
//! The table also records which changes of webhooks have been announced, so that exactly one notifier
//! announces each, even changes made while none ran or RabbitMQ was away. They are taken from the table
//! only while there is a connection to publish them.

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

mod teller;
mod watch;

use watch::Watch;

pub use teller::Teller;

/// How many deaths may wait to be published: some hundred kilobytes.
const MOST_WAITING: usize = 1_024;

/// Accepts deaths to publish. Never waits.
#[derive(Clone, Debug)]
pub struct Notices {
    deaths: Sender<Obituary>,
    state: NoticesState,
}

/// A delivery that is dead as soon as RabbitMQ has confirmed it.
#[derive(Debug)]
struct Obituary {
    webhook: Uuid,
    death: Box<Death>,
}

/// A death to publish once it is certain.
#[derive(Debug)]
pub struct UntoldDeath {
    obituary: Obituary,
    notices: Notices,
}

impl Notices {
    /// The notice to send once a delivery, whose message has these headers, has died for this reason;
    /// `None` if it is a delivery of a notice.
    #[must_use]
    pub fn of_death(
        &self,
        delivery: &Delivery,
        headers: &Headers,
        reason: DeadReason,
        origin: &str,
    ) -> Option<Box<UntoldDeath>> {
        if is_notice(&delivery.event.event_type, headers) {
            return None;
        }
        let death = Box::new(Death::of(delivery, reason, origin, unix_millis()));
        let obituary = Obituary { webhook: delivery.webhook_id, death };
        Some(Box::new(UntoldDeath { obituary, notices: self.clone() }))
    }
}

impl UntoldDeath {
    /// The death is certain: publishes it.
    pub fn tell(self) {
        let Self { obituary, notices } = self;
        if notices.deaths.try_send(obituary).is_err() {
            notices.state.dropped.inc();
        }
    }
}

/// Creates both ends.
#[must_use]
pub fn open(
    config: &Arc<Config>,
    store: &Arc<Store>,
    directory: &Arc<Directory>,
    receivers: &Arc<Receivers>,
    metrics: &Metrics,
    jitter: fn() -> f64,
) -> (Notices, Teller) {
    let (sender, deaths) = bounded(MOST_WAITING);
    let state = metrics.notices().clone();
    let notices = Notices { deaths: sender, state: state.clone() };
    let (for_watch, receivers) = (Arc::clone(store), Arc::clone(receivers));
    let watch = Watch::new(config, for_watch, receivers, state.clone());
    let (config, store, directory) = (Arc::clone(config), Arc::clone(store), Arc::clone(directory));
    let teller = Teller::new(deaths, config, store, directory, state, watch, jitter);
    (notices, teller)
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
    fn who_tells_of_a_death_never_waits_and_what_is_too_much_is_counted() {
        let metrics = Metrics::new(["q".to_owned()]).expect("distinct names");
        let (sender, deaths) = bounded(MOST_WAITING);
        let notices = Notices { deaths: sender, state: metrics.notices().clone() };
        let of = |delivery: &Delivery, headers: &Headers| {
            notices.of_death(delivery, headers, DeadReason::Exhausted, "q")
        };
        for _ in 0..MOST_WAITING + 3 {
            of(&delivery("order.paid"), &Headers::new()).expect("no notice").tell();
        }
        assert_eq!((deaths.len(), metrics.notices().dropped.get()), (MOST_WAITING, 3));
        let header = Headers::from([(NOTICE.to_owned(), Value::Text("x".to_owned()))]);
        assert!(of(&delivery("delivery.dead"), &Headers::new()).is_none());
        assert!(of(&delivery("order.paid"), &header).is_none(), "of a notice there is none");
    }
}
