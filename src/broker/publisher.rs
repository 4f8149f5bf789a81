//! Confirmed publishing: a message counts as parked or dead-lettered once the broker says so.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amiquip::{
    AmqpProperties, AmqpValue, Channel, Confirm, ConnectionBlockedNotification, FieldTable,
    Publish, Return,
};
use crossbeam_channel::{
    Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, select, unbounded,
};

use uuid::Uuid;

mod upkeep;

use super::backlog::{backlog_key, read_backlog_key};
use super::refusals::Refusals;
use super::routes::{Routes, queue_of};
use super::topology::{
    BACKLOG_EXCHANGE, Topology, WAIT_EXCHANGE, WITHOUT_BACKLOG, dead_queue, retry_queue,
};
use super::{BrokerError, CLOSE_TIMEOUT, KillSwitch, Link, Message, Objects, SETUP_TIMEOUT};
use crate::config::{Amqp, Config};
use crate::domain::causes::Causes;
use crate::domain::delivery::Value;
use crate::domain::in_hand;
use crate::domain::retry::{Backoff, Span};
use crate::metrics::Refusing;
use crate::shutdown::Shutdown;

/// A confirm that has not come by then is late, which is told: RabbitMQ confirms within
/// milliseconds. Until [`in_hand::CONFIRM`] it may still come.
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long who ends waits for the confirm of a message that was refused: until it was sent to
/// another queue, where there is one.
const LAST_CHANCE: Duration = Duration::from_secs(7);

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
    /// Where it can go instead, if its queue takes nothing.
    pub(super) instead: Instead,
}

/// Where a message can go whose queue takes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Instead {
    /// It waits in another wait queue than that of this delay, for the retries of a queue.
    OtherWait(Span, String),
    /// It waits for a minute, as where there is no backlog.
    NoBacklog(String),
    /// It waits, and goes on from the retry lane of this queue to its dead-letter queue, without an
    /// attempt.
    DeadLater(String),
    /// Nowhere.
    Nowhere,
}

impl Outgoing {
    /// To wait for `delay`, then come back in the retry queue of `origin`.
    #[must_use]
    pub fn park(message: Message, delay: Span, origin: &str) -> Self {
        let instead = Instead::OtherWait(delay, origin.to_owned());
        let routing_key = format!("{delay}.{origin}");
        Self { exchange: WAIT_EXCHANGE, routing_key, message, instead }
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
        let instead = Instead::NoBacklog(origin.to_owned());
        Self { exchange: BACKLOG_EXCHANGE, routing_key, message, instead }
    }

    /// Into the dead-letter queue of `origin`.
    #[must_use]
    pub fn dead(message: Message, origin: &str) -> Self {
        let instead = Instead::DeadLater(origin.to_owned());
        Self { instead, ..Self::to_queue(message, &dead_queue(origin)) }
    }

    /// Into any queue, by its name.
    #[must_use]
    pub fn to_queue(message: Message, queue: &str) -> Self {
        let routing_key = queue.to_owned();
        Self { exchange: "", routing_key, message, instead: Instead::Nowhere }
    }

    /// The queue that it is for.
    pub(super) fn queue(&self) -> String {
        queue_of(self.exchange, &self.routing_key)
    }

    /// By what it finds its way: the name of the queue, of what is for one.
    #[must_use]
    pub fn routing_key(&self) -> &str {
        &self.routing_key
    }
}

/// How long a message whose queue is missing or not bound waits for it before it takes another way.
const UNROUTED_FOR: Duration = Duration::from_secs(2);

/// How often refused messages are tried again, and expired ones looked for.
const TICK: Duration = Duration::from_millis(500);

/// How long a fresh channel is given to answer whether refused messages are taken now. It takes
/// milliseconds, and the publisher does nothing else meanwhile.
const TRIAL: Duration = Duration::from_millis(250);

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
    refusing: Arc<Mutex<Vec<Refusing>>>,
    /// Backlogs that are gone, by queue and webhook.
    gone: Receiver<(String, Uuid)>,
}

pub(super) struct Request {
    pub(super) message: Outgoing,
    /// When it was asked for.
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    pub(super) confirmed: Sender<()>,
    pub(super) slip: Arc<Slip>,
}

/// What who asked and who publishes share.
#[derive(Debug, Default)]
pub(super) struct Slip {
    /// The broker has refused the message (nack).
    pub(super) is_refused: AtomicBool,
}

impl Request {
    /// Whether somebody waits for it still. If not, it will all be done again.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        self.deadline > now && Arc::strong_count(&self.slip) > 1
    }

    /// Whether the confirm should have come long ago.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= CONFIRM_TIMEOUT
    }
}

impl Publisher {
    /// The publisher, and what its thread runs.
    #[must_use]
    pub fn new(config: &Config, objects: Arc<Objects>) -> (Self, PublisherThread) {
        let (sender, requests) = bounded(PUBLISH_QUEUE);
        let able = Arc::new(AtomicBool::new(false));
        let (goes, gone) = unbounded();
        let topology = Topology::of(config);
        let delays = topology.wait_queues().map(|(delay, _)| delay).collect();
        let refusals = Refusals::new(delays, topology.watched_queues());
        let refusing = refusals.board();
        let thread = PublisherThread {
            requests,
            able: Arc::clone(&able),
            amqp: config.amqp.clone(),
            connect_timeout: config.connect_timeout,
            topology,
            objects,
            unconfirmed: Vec::new(),
            refusals,
            causes: Causes::default(),
            gone: goes,
        };
        (Self { requests: sender, able, refusing, gone }, thread)
    }

    /// Publishes a message. It is published again, and so perhaps twice, when the connection is lost
    /// before the broker has confirmed it.
    ///
    /// # Errors
    /// [`NotConfirmed`], if there are so many others that it could not even begin within 30 s.
    pub fn publish(&self, message: Outgoing) -> Result<Confirmation, NotConfirmed> {
        let (confirmed, outcome) = bounded(1);
        let since = Instant::now();
        let deadline = since + in_hand::CONFIRM;
        let slip = Arc::default();
        let request = Request { message, since, deadline, confirmed, slip: Arc::clone(&slip) };
        self.requests.send_timeout(request, CONFIRM_TIMEOUT).map_err(|_| NotConfirmed)?;
        Ok(Confirmation { outcome, deadline, slip })
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

    /// The queues that take no messages of ours, or took none before.
    #[must_use]
    pub fn refusing(&self) -> Vec<Refusing> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A message on its way: to be waited for before anything relies on it. Who drops it has given up, and
/// the message is not published any more, if it was not by then.
#[derive(Debug)]
#[must_use]
pub struct Confirmation {
    outcome: Receiver<()>,
    deadline: Instant,
    slip: Arc<Slip>,
}

impl Confirmation {
    /// Waits until the broker has the message safely: for minutes, if it has to be; from `shutdown` on
    /// only as long as [`Confirmation::wait_at_end`].
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait(&self, shutdown: &Shutdown) -> Result<(), NotConfirmed> {
        select! {
            recv(self.outcome) -> answer => answer.map_err(|_| NotConfirmed),
            recv(shutdown.receiver()) -> _ => self.wait_at_end(),
            default(self.patience()) => Err(NotConfirmed),
        }
    }

    /// Waits for a message that is worth little: at the first refusal it is given up.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait_unless_refused(&self) -> Result<(), NotConfirmed> {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        while !self.is_refused() && Instant::now() < deadline {
            match self.outcome.recv_timeout(TICK / 5) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(NotConfirmed),
            }
        }
        self.outcome.try_recv().map_err(|_| NotConfirmed)
    }

    /// Waits as long as somebody may who ends, and for whom this is the last message.
    ///
    /// # Errors
    /// [`NotConfirmed`].
    pub fn wait_at_end(&self) -> Result<(), NotConfirmed> {
        self.outcome.recv_timeout(self.patience_at_end()).map_err(|_| NotConfirmed)
    }

    /// How long that is.
    #[must_use]
    pub fn patience_at_end(&self) -> Duration {
        let most = if self.is_refused() { LAST_CHANCE } else { CONFIRM_TIMEOUT };
        most.min(self.patience())
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

    fn is_refused(&self) -> bool {
        self.slip.is_refused.load(Ordering::Relaxed)
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
    refusals: Refusals,
    /// Why there is no publishing, as far as it was told.
    causes: Causes,
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
    /// It was lost, or the broker gave a message back; in words, where they are known by then.
    Lost(Option<String>),
}

/// A connection at work.
struct Session {
    link: Link,
    /// Disconnected when the connection is lost.
    blocked: Receiver<ConnectionBlockedNotification>,
    main: Confirming,
    /// Channels that were replaced, for the confirms that are still to come by them.
    replaced: Vec<Confirming>,
    since: Instant,
    confirmed_at: Instant,
    /// Nothing is confirmed any more.
    is_overdue: bool,
    /// The broker has an alarm, and reads nothing.
    is_blocked: bool,
}

impl PublisherThread {
    /// Publishes until `stop`, which has to come after the last user of the [`Publisher`] ended.
    pub fn run(mut self, stop: &Shutdown, jitter: fn() -> f64) {
        let mut backoff = Backoff::default();
        while !stop.is_requested() {
            let problem = match self.open(stop) {
                Ok(session) => {
                    let since = Instant::now();
                    let ended = self.serve(session, stop);
                    if since.elapsed() > SETUP_TIMEOUT {
                        backoff.reset();
                    }
                    match ended {
                        Some(problem) => problem,
                        None => return,
                    }
                }
                Err(error) => error.to_string(),
            };
            self.able.store(false, Ordering::Relaxed);
            if stop.is_requested() {
                return;
            }
            // One line for each cause, not one for each attempt.
            if self.causes.is_news(&problem) {
                log::warn!("publishing interrupted: {problem}; reconnecting until it works");
            }
            let now = Instant::now();
            self.unconfirmed.retain(|request| request.is_wanted(now));
            let _ = stop.wait(backoff.next_wait(jitter()));
        }
    }

    fn open(&self, stop: &Shutdown) -> Result<Session, BrokerError> {
        let mut link = Link::open(&self.amqp, self.connect_timeout, stop)?;
        // Each time: somebody may have deleted a queue, and a restarted broker may be a new one. What
        // can't be had, and was told, is published another way.
        self.topology.declare(&mut link, &self.objects, stop, |_, _| {})?;
        let kill = link.kill_switch();
        let opened = kill.guard(SETUP_TIMEOUT, Some(stop), || {
            Ok((link.listen_for_loss()?, Confirming::open(&mut link, Some(self.routes()))?))
        });
        let (blocked, main) = opened.map_err(|error| link.unavailable(&error))?;
        let now = Instant::now();
        Ok(Session {
            link,
            blocked,
            main,
            replaced: Vec::new(),
            since: now,
            confirmed_at: now,
            is_overdue: false,
            is_blocked: false,
        })
    }

    /// Publishes and takes confirms until the connection ends, and says why it did; nothing, if
    /// nobody is left to publish.
    fn serve(&mut self, mut session: Session, stop: &Shutdown) -> Option<String> {
        self.able.store(true, Ordering::Relaxed);
        for request in std::mem::take(&mut self.unconfirmed) {
            self.publish(&mut session.main, request);
        }
        let ended = self.take_turns(&mut session, stop);
        let Session { link, main, replaced, .. } = session;
        let kill = link.kill_switch();
        let mut cause = None;
        for channel in replaced.into_iter().chain([main]) {
            let (unconfirmed, closed_by) = channel.into_unconfirmed(&kill);
            self.unconfirmed.extend(unconfirmed);
            cause = closed_by.or(cause);
        }
        self.unconfirmed.extend(self.refusals.take_all());
        match ended {
            Ended::NobodyLeft => {
                link.close();
                None
            }
            Ended::Lost(problem) => {
                // A channel that the broker closes has the cause; else the connection has.
                Some(problem.or(cause).unwrap_or_else(|| link.cause_of_loss()))
            }
        }
    }

    fn take_turns(&mut self, session: &mut Session, stop: &Shutdown) -> Ended {
        let ticks = crossbeam_channel::tick(TICK);
        let lost = || Ended::Lost(None);
        loop {
            if let Some(problem) = session.main.broken.take() {
                return Ended::Lost(Some(problem));
            }
            let main = &mut session.main;
            select! {
                recv(self.requests) -> request => match request {
                    Ok(request) => self.publish(main, request),
                    Err(_) => return Ended::NobodyLeft,
                },
                recv(main.confirms) -> confirm => match confirm {
                    Ok(confirm) => {
                        main.confirmed(confirm);
                        for request in self.heard(main) {
                            main.publish(request);
                        }
                        self.has_confirmed(session);
                    }
                    Err(_) => return lost(),
                },
                recv(main.returns) -> returned => match returned {
                    Ok(returned) => {
                        main.returned(&returned);
                        let _ = self.heard(main);
                    }
                    Err(_) => return lost(),
                },
                recv(session.blocked) -> blocked => match blocked {
                    Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                        session.is_blocked = true;
                        self.able.store(false, Ordering::Relaxed);
                        log::warn!("RabbitMQ takes no messages now ({reason}): retries have to wait");
                    }
                    Ok(ConnectionBlockedNotification::Unblocked) => {
                        session.is_blocked = false;
                        self.able.store(true, Ordering::Relaxed);
                        log::info!("RabbitMQ takes messages again");
                    }
                    Err(_) => return lost(),
                },
                recv(stop.receiver()) -> _ => return Ended::NobodyLeft,
                recv(ticks) -> _ => {
                    if let Err(problem) = self.tick(session) {
                        return Ended::Lost(problem);
                    }
                }
            }
        }
    }

    /// Other ways for what can't be routed.
    fn routes(&self) -> Routes {
        Routes::new(&self.topology, Arc::clone(&self.objects))
    }

    fn publish(&mut self, channel: &mut Confirming, request: Request) {
        // What is for a queue that takes nothing comes after what was refused before.
        if let Some(request) = self.refusals.put_aside(request) {
            channel.publish(request);
        }
    }
}

/// A channel in confirm mode, and what was published on it and is not confirmed yet.
pub(super) struct Confirming {
    channel: Channel,
    pub(super) confirms: Receiver<Confirm>,
    returns: Receiver<Return>,
    next_tag: u64,
    pub(super) unconfirmed: BTreeMap<u64, Request>,
    /// Refused by the broker (nack), to be published again.
    pub(super) refused: Vec<Request>,
    /// The queues that took what was refused before.
    accepted: Vec<String>,
    /// Other ways for what can't be routed; none: it ends the connection.
    routes: Option<Routes>,
    /// Could not be routed, to be published again.
    unrouted: Vec<Request>,
    /// Backlogs that are no longer there.
    gone: Vec<(String, Uuid)>,
    /// Why the connection should be given up.
    pub(super) broken: Option<String>,
}

impl Confirming {
    pub(super) fn open(link: &mut Link, routes: Option<Routes>) -> amiquip::Result<Self> {
        let channel = link.channel()?;
        let returns = channel.listen_for_returns()?;
        // In this order, or confirms that come early are dropped.
        let confirms = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Self {
            channel,
            confirms,
            returns,
            next_tag: 1,
            unconfirmed: BTreeMap::new(),
            refused: Vec::new(),
            accepted: Vec::new(),
            routes,
            unrouted: Vec::new(),
            gone: Vec::new(),
            broken: None,
        })
    }

    pub(super) fn publish(&mut self, mut request: Request) {
        if !request.is_wanted(Instant::now()) {
            return;
        }
        if let Some(routes) = &self.routes {
            routes.avoid_refused(&mut request.message);
        }
        let tag = self.next_tag;
        self.next_tag += 1;
        let Outgoing { exchange, routing_key, message, .. } = &request.message;
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
                if request.slip.is_refused.load(Ordering::Relaxed) {
                    self.accepted.push(request.message.queue());
                }
                // Fails if the publisher has given up; its message is then settled as not parked.
                let _ = request.confirmed.try_send(());
            }
        } else {
            // A queue that is full or has no leader: not now, but perhaps in a moment.
            self.refused.extend(settled.into_values());
        }
    }

    /// Takes the confirms that are there; false if no more can come.
    fn take_confirms(&mut self) -> bool {
        loop {
            match self.confirms.try_recv() {
                Ok(confirm) => self.confirmed(confirm),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// What came back is to be tried again, as whoever hears of a missing queue makes it; and after a
    /// while, another way.
    fn take_unrouted(&mut self, now: Instant) -> Vec<Request> {
        let mut unrouted = std::mem::take(&mut self.unrouted);
        if let Some(routes) = &self.routes {
            let is_late =
                |one: &&mut Request| now.saturating_duration_since(one.since) >= UNROUTED_FOR;
            for request in unrouted.iter_mut().filter(is_late) {
                routes.go_around(&mut request.message);
            }
        }
        unrouted
    }

    /// Drops what nobody waits for any more.
    fn forget_unwanted(&mut self, now: Instant) {
        self.unconfirmed.retain(|_, request| request.is_wanted(now));
        self.unrouted.retain(|request| request.is_wanted(now));
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
            if let Some((_, request)) = request {
                let message = request.message.message;
                let message = Outgoing::park(message, WITHOUT_BACKLOG.into(), origin);
                self.publish(Request { message, ..request });
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

    /// What has to be published again on another connection; and why the broker has closed this channel,
    /// if it has.
    pub(super) fn into_unconfirmed(mut self, kill: &KillSwitch) -> (Vec<Request>, Option<String>) {
        // Confirms that are on their way spare their messages a second time. Those that came back
        // have high tags, and no confirm to wait for.
        let deadline = Instant::now() + LAST_CONFIRMS;
        while self.unconfirmed.keys().any(|tag| *tag < self.next_tag) {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(confirm),
                Err(_) => break,
            }
        }
        // On a connection that hangs it would wait for an answer.
        let closed_by = match kill.guard(CLOSE_TIMEOUT, None, || self.channel.close()) {
            // Without the channel's number, which makes no new cause of it.
            Err(amiquip::Error::ServerClosedChannel { message, .. }) => Some(message),
            _ => None,
        };
        let unconfirmed = self.unconfirmed.into_values().chain(self.refused).chain(self.unrouted);
        (unconfirmed.collect(), closed_by)
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
