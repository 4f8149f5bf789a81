//! Confirmed publishing: a message counts as parked or dead-lettered once the broker says so.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConnectionBlockedNotification, FieldTable,
    Publish, Return,
};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, unbounded};

use uuid::Uuid;

use super::backlog::{backlog_key, read_backlog_key};
use super::routes::Routes;
use super::topology::{
    BACKLOG_EXCHANGE, Topology, WAIT_EXCHANGE, WITHOUT_BACKLOG, dead_queue, retry_queue,
};
use super::{BrokerError, CLOSE_TIMEOUT, KillSwitch, Link, Message, Objects, SETUP_TIMEOUT};
use crate::config::{Amqp, Config};
use crate::domain::delivery::Value;
use crate::domain::retry::{Backoff, Span};
use crate::shutdown::Shutdown;

/// How long a publish may wait for its confirm, lost connections on the way included. Far below
/// RabbitMQ's 30-minute limit for acking the message that waits for it.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// Publishes that may wait for the publisher's thread. Whoever publishes more waits, and sends the
/// broker no more than it takes.
const PUBLISH_QUEUE: usize = 256;

/// The header that says which process put a delivery into a backlog.
pub(super) const ENTERED_BY: &str = "x-entered-by";

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(super) exchange: &'static str,
    pub(super) routing_key: String,
    pub(super) message: Message,
}

impl Outgoing {
    /// To wait for `delay`, then come back in the retry queue of `origin`.
    #[must_use]
    pub fn park(message: Message, delay: Span, origin: &str) -> Self {
        Self { exchange: WAIT_EXCHANGE, routing_key: format!("{delay}.{origin}"), message }
    }

    /// Into the retry queue of `origin` at once. By its name: the exchange has an alternate one, and
    /// would confirm what no retry queue has taken.
    #[must_use]
    pub fn hand_over(message: Message, origin: &str) -> Self {
        Self::to_queue(message, &retry_queue(origin))
    }

    /// Into a webhook's backlog. It says which process has put it there.
    #[must_use]
    pub fn backlog(mut message: Message, origin: &str, webhook: Uuid, instance: &str) -> Self {
        let by = Value::Text(instance.to_owned());
        message.headers.insert(ENTERED_BY.to_owned(), by);
        let routing_key = backlog_key(origin, webhook);
        Self { exchange: BACKLOG_EXCHANGE, routing_key, message }
    }

    /// Into the dead-letter queue of `origin`.
    #[must_use]
    pub fn dead(message: Message, origin: &str) -> Self {
        Self::to_queue(message, &dead_queue(origin))
    }

    /// Into any queue, by its name.
    #[must_use]
    pub fn to_queue(message: Message, queue: &str) -> Self {
        Self { exchange: "", routing_key: queue.to_owned(), message }
    }

    /// By what it finds its way: the name of the queue, of what is for one.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }
}

/// How often refused messages are tried again, and expired ones looked for.
const TICK: Duration = Duration::from_millis(500);

/// For how long a backlog may refuse a message: as long as its queue may be without a leader. Whoever
/// waits for the confirm holds a consumer, or a whole lane up in the end.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// How long a connection that is given up may still confirm what was published on it. The broker
/// confirms within milliseconds, unless it is in trouble itself.
const LAST_CONFIRMS: Duration = Duration::from_secs(1);

/// A message was not confirmed in time: nobody knows whether the broker has it, so the message it
/// was made of must not be acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("RabbitMQ did not confirm the message")]
pub struct NotConfirmed;

/// Publishes with confirms, over one connection for the whole process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    requests: Sender<Request>,
    able: Arc<AtomicBool>,
    /// Backlogs that are gone, by queue and webhook.
    gone: Receiver<(String, Uuid)>,
}

pub(super) struct Request {
    pub(super) message: Outgoing,
    pub(super) deadline: Instant,
    pub(super) confirmed: Sender<()>,
}

impl Publisher {
    /// The publisher, and what its thread runs.
    #[must_use]
    pub fn new(config: &Config, objects: Arc<Objects>) -> (Self, PublisherThread) {
        let (sender, requests) = bounded(PUBLISH_QUEUE);
        let able = Arc::new(AtomicBool::new(false));
        let (goes, gone) = unbounded();
        let thread = PublisherThread {
            requests,
            able: Arc::clone(&able),
            amqp: config.amqp.clone(),
            connect_timeout: config.connect_timeout,
            topology: Topology::of(config),
            objects,
            unconfirmed: Vec::new(),
            gone: goes,
        };
        (Self { requests: sender, able, gone }, thread)
    }

    /// Publishes a message. It is published again, and so perhaps twice, when the connection is lost
    /// before the broker has confirmed it.
    ///
    /// # Errors
    /// [`NotConfirmed`], if there are so many others that it could not even begin within 30 s.
    pub fn publish(&self, message: Outgoing) -> Result<Confirmation, NotConfirmed> {
        let (confirmed, outcome) = bounded(1);
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        let request = Request { message, deadline, confirmed };
        self.requests.send_deadline(request, deadline).map_err(|_| NotConfirmed)?;
        Ok(Confirmation { outcome, deadline })
    }

    /// The queues and webhooks of backlogs that were found to be gone. What was published to them waits
    /// for a minute instead.
    #[must_use]
    pub fn gone_backlogs(&self) -> &Receiver<(String, Uuid)> {
        &self.gone
    }

    /// Whether publishing works right now, as far as we know: connected, and not blocked by a
    /// memory or disk alarm.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.able.load(Ordering::Relaxed)
    }
}

/// A message on its way: to be waited for before anything relies on it.
#[derive(Debug)]
#[must_use]
pub struct Confirmation {
    outcome: Receiver<()>,
    deadline: Instant,
}

impl Confirmation {
    /// Waits until the broker has the message safely, up to 30 s from when it was published.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait(&self) -> Result<(), NotConfirmed> {
        self.outcome.recv_deadline(self.deadline).map_err(|_| NotConfirmed)
    }

    /// What is known so far; `None` if that is nothing yet.
    #[must_use]
    pub fn poll(&self) -> Option<Result<(), NotConfirmed>> {
        match self.outcome.try_recv() {
            Ok(()) => Some(Ok(())),
            Err(TryRecvError::Empty) if Instant::now() < self.deadline => None,
            Err(_) => Some(Err(NotConfirmed)),
        }
    }

    /// For `select!`: becomes ready when the message is confirmed or given up, though not when
    /// [`Confirmation::patience`] is over.
    #[must_use]
    pub fn receiver(&self) -> &Receiver<()> {
        &self.outcome
    }

    /// How much longer it may take.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}

/// The thread behind [`Publisher`]: owns the connection, reconnects for ever.
pub struct PublisherThread {
    requests: Receiver<Request>,
    able: Arc<AtomicBool>,
    amqp: Amqp,
    connect_timeout: Duration,
    topology: Topology,
    objects: Arc<Objects>,
    /// Published on a connection that was lost before the confirm came.
    unconfirmed: Vec<Request>,
    gone: Sender<(String, Uuid)>,
}

impl fmt::Debug for PublisherThread {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PublisherThread").finish_non_exhaustive()
    }
}

/// Why a publishing connection is no longer used.
enum Ended {
    /// Everybody who could publish is gone.
    NobodyLeft,
    /// It was lost, or the broker refused a message; in words.
    Lost(String),
}

impl PublisherThread {
    /// Publishes until `stop`, which has to come after the last user of the [`Publisher`] ended.
    pub fn run(mut self, stop: &Shutdown, jitter: fn() -> f64) {
        let mut backoff = Backoff::default();
        let mut reported = false;
        while !stop.is_requested() {
            let ended = match self.open(stop) {
                Ok((link, channel)) => {
                    if reported {
                        log::info!("publishing again: connected to RabbitMQ at {}", self.amqp);
                        reported = false;
                    }
                    let since = Instant::now();
                    let ended = self.serve(link, channel, stop);
                    if since.elapsed() > SETUP_TIMEOUT {
                        backoff.reset();
                    }
                    ended
                }
                Err(error) => Ended::Lost(error.to_string()),
            };
            self.able.store(false, Ordering::Relaxed);
            let problem = match ended {
                Ended::NobodyLeft => return,
                Ended::Lost(problem) => problem,
            };
            if stop.is_requested() {
                return;
            }
            // One line for the change of state, not one for each attempt.
            if !reported {
                log::warn!("publishing interrupted: {problem}; reconnecting until it works");
                reported = true;
            }
            let now = Instant::now();
            self.unconfirmed.retain(|request| request.deadline > now);
            let _ = stop.wait(backoff.next_wait(jitter()));
        }
    }

    fn open(&self, stop: &Shutdown) -> Result<(Link, Confirming), BrokerError> {
        let mut link = Link::open(&self.amqp, self.connect_timeout, stop)?;
        // Each time: somebody may have deleted a queue, and a restarted broker may be a new one. What
        // can't be had, and was told, is published another way.
        self.topology.declare(&mut link, &self.objects, stop, |_, _| {})?;
        let kill = link.kill_switch();
        let routes = Routes::new(&self.topology, Arc::clone(&self.objects));
        let opened =
            kill.guard(SETUP_TIMEOUT, Some(stop), || Confirming::open(&mut link, Some(routes)));
        let channel = opened.map_err(|error| link.unavailable(&error))?;
        Ok((link, channel))
    }

    /// Publishes and takes confirms until the connection ends.
    fn serve(&mut self, link: Link, mut channel: Confirming, stop: &Shutdown) -> Ended {
        self.able.store(true, Ordering::Relaxed);
        for request in std::mem::take(&mut self.unconfirmed) {
            channel.publish(request);
        }
        let ended = self.take_turns(&mut channel, stop);
        self.unconfirmed = channel.into_unconfirmed(&link.kill_switch());
        if matches!(ended, Ended::NobodyLeft) {
            link.close();
        }
        ended
    }

    fn take_turns(&self, channel: &mut Confirming, stop: &Shutdown) -> Ended {
        let ticks = crossbeam_channel::tick(TICK);
        loop {
            if let Some(problem) = channel.broken.take() {
                return Ended::Lost(problem);
            }
            select! {
                recv(self.requests) -> request => match request {
                    Ok(request) => channel.publish(request),
                    Err(_) => return Ended::NobodyLeft,
                },
                recv(channel.confirms) -> confirm => match confirm {
                    Ok(confirm) => {
                        channel.confirmed(confirm);
                        if std::mem::take(&mut channel.overdue) {
                            self.able.store(true, Ordering::Relaxed);
                            log::info!("RabbitMQ confirms messages again");
                        }
                    }
                    Err(_) => return Ended::Lost("the connection was lost".to_owned()),
                },
                recv(channel.returns) -> returned => match returned {
                    Ok(returned) => {
                        channel.returned(&returned);
                        for backlog in channel.gone.drain(..) {
                            // Whoever hears of it ends later than this.
                            let _ = self.gone.send(backlog);
                        }
                    }
                    Err(_) => return Ended::Lost("the connection was lost".to_owned()),
                },
                recv(channel.blocked) -> blocked => match blocked {
                    Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                        self.able.store(false, Ordering::Relaxed);
                        log::warn!("RabbitMQ takes no messages now ({reason}): retries have to wait");
                    }
                    Ok(ConnectionBlockedNotification::Unblocked) => {
                        self.able.store(true, Ordering::Relaxed);
                        log::info!("RabbitMQ takes messages again");
                    }
                    Err(_) => return Ended::Lost("the connection was lost".to_owned()),
                },
                recv(stop.receiver()) -> _ => return Ended::NobodyLeft,
                recv(ticks) -> _ => {
                    channel.publish_refused();
                    channel.publish_returned();
                    if channel.forget_expired() && !std::mem::replace(&mut channel.overdue, true) {
                        self.able.store(false, Ordering::Relaxed);
                        log::warn!("RabbitMQ did not confirm a message within {CONFIRM_TIMEOUT:?}");
                    }
                }
            }
        }
    }
}

/// A channel in confirm mode, and what was published on it and is not confirmed yet.
pub(super) struct Confirming {
    channel: Channel,
    pub(super) confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    blocked: Receiver<ConnectionBlockedNotification>,
    next_tag: u64,
    pub(super) unconfirmed: BTreeMap<u64, Request>,
    /// Refused by the broker (nack), to be published again.
    pub(super) refused: Vec<Request>,
    /// Other ways for what can't be routed; none: it ends the connection.
    routes: Option<Routes>,
    /// Could not be routed, to be published again.
    unrouted: Vec<Request>,
    /// A confirm did not come in time, and none has come since.
    overdue: bool,
    /// Backlogs that are no longer there.
    gone: Vec<(String, Uuid)>,
    /// Backlogs that refused messages for too long, which was told.
    full: HashSet<String>,
    /// Why the connection should be given up.
    pub(super) broken: Option<String>,
}

impl Confirming {
    pub(super) fn open(link: &mut Link, routes: Option<Routes>) -> amiquip::Result<Self> {
        let blocked = link.listen_for_loss()?;
        let channel = link.channel()?;
        let returns = channel.listen_for_returns()?;
        // In this order, or confirms that come early are dropped.
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Self {
            channel,
            confirms,
            returns,
            blocked,
            next_tag: 1,
            unconfirmed: BTreeMap::new(),
            refused: Vec::new(),
            routes,
            unrouted: Vec::new(),
            overdue: false,
            gone: Vec::new(),
            full: HashSet::new(),
            broken: None,
        })
    }

    pub(super) fn publish(&mut self, mut request: Request) {
        // Whoever asked has given up and will do it all again.
        if request.deadline <= Instant::now() {
            return;
        }
        if let Some(routes) = &self.routes {
            routes.avoid_refused(&mut request.message);
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        let Outgoing { exchange, routing_key, message } = &request.message;
        let publish = Publish {
            body: &message.body,
            routing_key: routing_key.clone(),
            mandatory: true,
            immediate: false,
            properties: properties(message, tag),
        };
        if let Err(error) = self.channel.basic_publish(*exchange, publish) {
            self.broken = Some(error.to_string());
        }
        self.unconfirmed.insert(tag, request);
    }

    pub(super) fn confirmed(&mut self, confirm: Confirm) {
        // A message that came back is acked too, after it came back. The two take different ways
        // to us, so the return may be waiting still.
        while let Ok(returned) = self.returns.try_recv() {
            self.returned(&returned);
        }
        let (Confirm::Ack(payload) | Confirm::Nack(payload)) = confirm;
        let later = self.unconfirmed.split_off(&(payload.delivery_tag + 1));
        let mut settled = std::mem::replace(&mut self.unconfirmed, later);
        if !payload.multiple {
            let this = settled.remove(&payload.delivery_tag);
            self.unconfirmed.append(&mut settled);
            settled.extend(this.map(|request| (payload.delivery_tag, request)));
        }
        if matches!(confirm, Confirm::Ack(_)) {
            for request in settled.into_values() {
                // Fails if the publisher has given up; its message is then settled as not parked.
                let _ = request.confirmed.try_send(());
            }
        } else {
            // A queue that is full or has no leader: not now, but perhaps in a moment.
            self.refused.extend(settled.into_values());
        }
    }

    fn publish_refused(&mut self) {
        for request in std::mem::take(&mut self.refused) {
            let is_late = request.deadline < Instant::now() + CONFIRM_TIMEOUT - REFUSED_FOR;
            let request = if is_late { self.instead_of_backlog(request) } else { request };
            self.publish(request);
        }
    }

    /// What came back is tried again, as whoever hears of a missing queue makes it; and after a while,
    /// another way.
    fn publish_returned(&mut self) {
        for mut request in std::mem::take(&mut self.unrouted) {
            let is_late = request.deadline < Instant::now() + CONFIRM_TIMEOUT - REFUSED_FOR;
            if is_late && let Some(routes) = &self.routes {
                routes.go_around(&mut request.message);
            }
            self.publish(request);
        }
    }

    /// A message for a backlog that takes none is parked for a minute instead; what is for something
    /// else stays as it is.
    fn instead_of_backlog(&mut self, request: Request) -> Request {
        let Outgoing { exchange, routing_key, .. } = &request.message;
        if *exchange != BACKLOG_EXCHANGE {
            return request;
        }
        let Some((origin, _)) = read_backlog_key(routing_key) else { return request };
        if self.full.insert(routing_key.clone()) {
            log::warn!(
                "backlog takes nothing more queue={BACKLOG_EXCHANGE}.{routing_key}: a policy may limit \
                 it; what its receiver can't take is tried again every minute, in no order"
            );
        }
        let origin = origin.to_owned();
        let Request { message, deadline, confirmed } = request;
        let message = Outgoing::park(message.message, WITHOUT_BACKLOG.into(), &origin);
        Request { message, deadline, confirmed }
    }

    /// Drops what nobody waits for any more; true if there was any.
    fn forget_expired(&mut self) -> bool {
        let (now, before) = (Instant::now(), self.unconfirmed.len());
        self.unconfirmed.retain(|_, request| request.deadline > now);
        self.refused.retain(|request| request.deadline > now);
        self.unrouted.retain(|request| request.deadline > now);
        self.unconfirmed.len() < before
    }

    /// A message came back: the queue it was for is gone, or not bound. Its ack follows, and means
    /// nothing, so it is taken out, to be published again.
    fn returned(&mut self, returned: &Return) {
        let tag = returned.properties.correlation_id().as_ref().and_then(|tag| tag.parse().ok());
        let request = tag.and_then(|tag: u64| self.unconfirmed.remove(&tag).map(|r| (tag, r)));
        if returned.exchange == BACKLOG_EXCHANGE
            && let Some((origin, webhook)) = read_backlog_key(&returned.routing_key)
        {
            // Somebody has just removed it, as it was empty, or deleted it by hand. What is parked comes
            // back, and finds or makes another.
            if let Some((_, Request { message, deadline, confirmed })) = request {
                let message = message.message;
                let message = Outgoing::park(message, WITHOUT_BACKLOG.into(), origin);
                self.publish(Request { message, deadline, confirmed });
            }
            self.gone.push((origin.to_owned(), webhook));
            return;
        }
        if let Some(routes) = &self.routes {
            routes.returned(&returned.exchange, &returned.routing_key);
            self.unrouted.extend(request.map(|(_, request)| request));
            return;
        }
        self.broken = Some(format!(
            "the broker returned a message for {:?}, {:?}: {}",
            returned.exchange, returned.routing_key, returned.reply_text
        ));
        // At a tag that no confirm can reach any more.
        self.unconfirmed.extend(request.map(|(tag, request)| (u64::MAX - tag, request)));
    }

    /// What has to be published again on another connection.
    pub(super) fn into_unconfirmed(mut self, kill: &KillSwitch) -> Vec<Request> {
        // Confirms that are on their way spare their messages a second time. Those that came back
        // have high tags, and no confirm to wait for.
        let deadline = Instant::now() + LAST_CONFIRMS;
        while self.unconfirmed.keys().any(|tag| *tag < self.next_tag) {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(_) => break,
            }
        }
        // Dropping the channel of a connection that hangs would wait for its answer.
        kill.guard(CLOSE_TIMEOUT, None, || drop(self.channel));
        self.unconfirmed.into_values().chain(self.refused).chain(self.unrouted).collect()
    }
}

fn properties(message: &Message, tag: u64) -> AmqpProperties {
    let mut headers = FieldTable::new();
    for (name, value) in &message.headers {
        let value = match value {
            Value::Text(text) => AmqpValue::LongString(text.clone()),
            Value::Integer(integer) => AmqpValue::LongLongInt(*integer),
        };
        headers.insert(name.clone(), value);
    }
    const PERSISTENT: u8 = 2;
    let mut properties = AmqpProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_headers(headers)
        // A returned message comes back without a tag; this says which one it was.
        .with_correlation_id(tag.to_string());
    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(content_type.clone());
    }
    if let Some(message_id) = &message.message_id {
        properties = properties.with_message_id(message_id.clone());
    }
    if let Some(event_type) = &message.event_type {
        properties = properties.with_type_(event_type.clone());
    }
    properties
}
