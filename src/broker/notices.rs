//! Publishing notices, on a separate connection: neither its failure, nor that of a queue that somebody has
//! bound to the exchange, may hold up a delivery.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use amiquip::{ConnectionBlockedNotification, ExchangeType};
use crossbeam_channel::{Receiver, TryRecvError, bounded};

use super::calls::{Calls, is_forbidden};
use super::outgoing::Outgoing;
use super::publisher::{CONFIRM_TIMEOUT, Confirming, Publication, Slip};
use super::topology::exchange_options;
use super::{BrokerError, CLOSE_TIMEOUT, Link, Message, SETUP_TIMEOUT, failed};
use crate::config::Config;
use crate::domain::broker_names::EVENTS_EXCHANGE;
use crate::domain::notice::Notice;
use crate::shutdown::Shutdown;

/// A connection that publishes notices with confirms, several at a time.
pub struct Announcer {
    channel: Confirming,
    /// Disconnected when the connection is lost.
    blocked: Receiver<ConnectionBlockedNotification>,
    /// The reason of the broker's alarm, while there is one: meanwhile the broker accepts no messages.
    alarm: Option<String>,
    link: Link,
}

/// The result of publishing notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// The broker has confirmed all of them, except those that it refused because one of the queues bound to
    /// the exchange accepts no messages.
    All {
        /// How many were refused.
        refused: usize,
    },
    /// The broker has not confirmed all of them yet.
    NotYet,
}

/// Why notices are not confirmed.
#[derive(Debug)]
pub struct NotAnnounced {
    /// What happened.
    pub error: BrokerError,
    /// Whether some may have been published nevertheless, because the broker has not refused them.
    pub may_have_arrived: bool,
}

impl fmt::Debug for Announcer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Announcer").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Announcer {
    /// Connects, and creates the exchange if it is missing.
    ///
    /// # Errors
    /// If the broker can't be reached, or refuses the exchange.
    pub fn open(config: &Config, shutdown: &Shutdown) -> Result<Self, BrokerError> {
        let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
        let (kill, address) = (link.kill_switch(), link.address.clone());
        let opened = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
            create_exchange(&mut Calls::new(&mut link))?;
            Ok((link.listen_for_loss()?, Confirming::open(&mut link, None)?))
        });
        let (blocked, channel) = opened.map_err(|error| {
            // Otherwise dropping a channel would wait for an answer.
            kill.cut();
            failed(&address, EVENTS_EXCHANGE, &error)
        })?;
        Ok(Self { channel, blocked, alarm: None, link })
    }

    /// Publishes notices, and waits for `limit` at most until the broker has confirmed them and all earlier
    /// ones.
    ///
    /// # Errors
    /// Why they can't be confirmed any more.
    pub fn publish(
        mut self,
        notices: &[Notice],
        limit: Duration,
    ) -> Result<(Self, Announced), NotAnnounced> {
        let kill = self.link.kill_switch();
        let all = || self.channel.publish_notices(notices);
        // In case a publish blocks.
        kill.guard(CLOSE_TIMEOUT, None, all);
        self.wait(limit)
    }

    /// Waits for the confirms of earlier notices, for `limit` at most.
    ///
    /// # Errors
    /// Why they can't be confirmed any more.
    pub fn wait(mut self, limit: Duration) -> Result<(Self, Announced), NotAnnounced> {
        let waited = self.channel.wait_for_confirms(Instant::now() + limit);
        self.update_alarm();
        match waited {
            Ok(announced) => Ok((self, announced)),
            Err(problem) => {
                let Self { channel, link, .. } = self;
                let kill = link.kill_switch();
                let (_, closed_by) = channel.into_unconfirmed(&kill);
                kill.cut();
                let may_have_arrived = closed_by.is_none();
                let problem = closed_by.unwrap_or(problem);
                let error = BrokerError::Unavailable { address: link.address.clone(), problem };
                Err(NotAnnounced { error, may_have_arrived })
            }
        }
    }

    /// The reason of the broker's alarm, if there is one: meanwhile the broker accepts no messages on this
    /// connection.
    #[must_use]
    pub fn alarm(&self) -> Option<&str> {
        self.alarm.as_deref()
    }

    fn update_alarm(&mut self) {
        while let Ok(notification) = self.blocked.try_recv() {
            self.alarm = match notification {
                ConnectionBlockedNotification::Blocked(reason) => Some(reason),
                ConnectionBlockedNotification::Unblocked => None,
            };
        }
    }

    /// Whether the connection is still open.
    #[must_use]
    pub fn is_open(&mut self) -> bool {
        self.update_alarm();
        !matches!(self.blocked.try_recv(), Err(TryRecvError::Disconnected))
            && !matches!(self.channel.confirms.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Closes cleanly.
    pub fn close(self) {
        let Self { channel, link, .. } = self;
        let _ = channel.into_unconfirmed(&link.kill_switch());
        link.close();
    }
}

/// Creates the exchange. A user without the permission to create it may still publish to it if it exists.
fn create_exchange(calls: &mut Calls<'_>) -> amiquip::Result<()> {
    let declare = |channel: &amiquip::Channel| {
        let options = exchange_options(EVENTS_EXCHANGE);
        channel.exchange_declare(ExchangeType::Topic, EVENTS_EXCHANGE, options).map(drop)
    };
    match calls.call(declare) {
        Err(error) if is_forbidden(&error) && calls.has_exchange(EVENTS_EXCHANGE)? => Ok(()),
        declared => declared,
    }
}

impl Confirming {
    fn publish_notices(&mut self, notices: &[Notice]) {
        let since = Instant::now();
        // Nobody receives these confirms: the caller reads the channel's lists instead.
        let (confirmed, _confirms) = bounded(notices.len());
        let slip: Arc<Slip> = Arc::default();
        for notice in notices {
            let (confirmed, slip) = (confirmed.clone(), Arc::clone(&slip));
            self.publish(Publication {
                message: Outgoing::notice(message(notice), notice.kind.label()),
                since,
                published_at: since,
                deadline: since + CONFIRM_TIMEOUT,
                confirmed,
                slip,
            });
        }
    }

    fn wait_for_confirms(&mut self, deadline: Instant) -> Result<Announced, String> {
        while !self.unconfirmed.is_empty() && self.broken.is_none() {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(error) if error.is_timeout() => return Ok(Announced::NotYet),
                Err(_) => return Err("connection lost".to_owned()),
            }
        }
        match self.broken.take() {
            Some(problem) => Err(problem),
            None => Ok(Announced::All { refused: self.unconfirmed.take_refused().len() }),
        }
    }
}

fn message(notice: &Notice) -> Message {
    Message {
        body: notice.body.clone(),
        content_type: Some("application/json".to_owned()),
        message_id: Some(notice.id.clone()),
        event_type: Some(notice.kind.label().to_owned()),
        headers: notice.headers(),
    }
}
