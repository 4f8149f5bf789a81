//! Confirmed publishing: a message counts as parked or dead-lettered once the broker has confirmed it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use amiquip::ConnectionBlockedNotification;
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};
use uuid::Uuid;

mod confirmation;
mod confirming;
mod upkeep;

pub use confirmation::{Confirmation, NotConfirmed};
pub(super) use confirming::Confirming;

use super::outgoing::{Instead, Outgoing};
use super::refusals::Refusals;
use super::routes::Routes;
use super::topology::Topology;
use super::{BrokerError, Link, Objects, SETUP_TIMEOUT};
use crate::config::{Amqp, Config};
use crate::domain::causes::Causes;
use crate::domain::in_hand;
use crate::domain::retry::Backoff;
use crate::metrics::Refusing;
use crate::shutdown::Shutdown;

/// After this time a missing confirm is late, and that is logged: RabbitMQ confirms within milliseconds. It
/// may still arrive until [`in_hand::CONFIRM`].
pub(super) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a queue may leave a message unconfirmed, while other queues confirm theirs, before its messages
/// are rerouted: long enough for the queue to elect a leader. RabbitMQ neither confirms nor refuses messages
/// for a quorum queue without a leader.
const SILENCE: Duration = Duration::from_secs(5);

/// How many messages may wait for the publisher's thread. If there are more, their threads have to wait: this
/// limits the rate to what the broker accepts.
const PUBLISH_QUEUE: usize = 256;

/// How long a message whose queue is missing or not bound waits for the queue before it is rerouted.
const UNROUTED_FOR: Duration = Duration::from_secs(2);

/// How often refused messages are retried and expired ones dropped.
const TICK: Duration = Duration::from_millis(500);

/// How long to wait for the answer whether a fresh channel accepts refused messages. It takes milliseconds,
/// and the publisher does nothing else meanwhile.
const TRIAL: Duration = Duration::from_millis(250);

/// How long a connection that is given up may still confirm messages. A healthy broker confirms within
/// milliseconds.
const LAST_CONFIRMS: Duration = Duration::from_secs(1);

/// Publishes with confirms, over one connection for the whole process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Publisher {
    publications: Sender<Publication>,
    able: Arc<AtomicBool>,
    refusing: Arc<Mutex<Vec<Refusing>>>,
    /// The queues and webhooks of backlogs that are gone.
    gone: Receiver<(String, Uuid)>,
}

pub(super) struct Publication {
    pub(super) message: Outgoing,
    /// When it was passed to the publisher.
    pub(super) since: Instant,
    /// When it was last published.
    pub(super) published_at: Instant,
    pub(super) deadline: Instant,
    pub(super) confirmed: Sender<()>,
    pub(super) slip: Arc<Slip>,
}

/// Shared by the publisher's thread and the one that waits for the confirm.
#[derive(Debug, Default)]
pub(super) struct Slip {
    /// Whether the broker has refused the message (nack).
    pub(super) is_refused: AtomicBool,
}

impl Publication {
    /// Whether a thread still waits for the confirm. If not, the message's delivery will be settled again.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        self.deadline > now && Arc::strong_count(&self.slip) > 1
    }

    /// Whether its confirm is overdue.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= CONFIRM_TIMEOUT
    }

    /// Whether its queue seems to have no leader: other queues have confirmed later messages, or it is for a
    /// backlog and has waited for twice as long. Never if it can't be rerouted.
    fn is_unanswered(&self, confirmed_at: Instant, now: Instant) -> bool {
        let waited = now.saturating_duration_since(self.published_at);
        let others_confirm = confirmed_at > self.published_at + SILENCE / 5;
        match self.message.instead {
            Instead::Nowhere => false,
            Instead::NoBacklog(_) if waited >= 2 * SILENCE => true,
            _ => waited >= SILENCE && others_confirm,
        }
    }
}

impl Publisher {
    /// Creates the publisher, and the body of its thread.
    #[must_use]
    pub fn new(config: &Config, objects: Arc<Objects>) -> (Self, PublisherThread) {
        let (sender, publications) = bounded(PUBLISH_QUEUE);
        let able = Arc::new(AtomicBool::new(false));
        let (goes, gone) = unbounded();
        let topology = Topology::of(config);
        let delays = topology.wait_queues().map(|(delay, _)| delay).collect();
        let refusals = Refusals::new(delays, topology.watched_queues());
        let refusing = refusals.board();
        let thread = PublisherThread {
            publications,
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
        (Self { publications: sender, able, refusing, gone }, thread)
    }

    /// Publishes a message. If the connection is lost before the broker has confirmed it, it is published
    /// again, and so perhaps twice.
    ///
    /// # Errors
    /// [`NotConfirmed`] if so many others wait that it could not be accepted within `CONFIRM_TIMEOUT`.
    pub fn publish(&self, message: Outgoing) -> Result<Confirmation, NotConfirmed> {
        let (confirmed, outcome) = bounded(1);
        let since = Instant::now();
        let deadline = since + in_hand::CONFIRM;
        let slip = Arc::default();
        let publication = Publication {
            message,
            since,
            published_at: since,
            deadline,
            confirmed,
            slip: Arc::clone(&slip),
        };
        self.publications.send_timeout(publication, CONFIRM_TIMEOUT).map_err(|_| NotConfirmed)?;
        Ok(Confirmation { outcome, deadline, slip })
    }

    /// Receives the queue and webhook of each backlog that turned out to be gone. Messages published to it
    /// wait for a minute instead.
    #[must_use]
    pub fn gone_backlogs(&self) -> &Receiver<(String, Uuid)> {
        &self.gone
    }

    /// Whether publishing seems to work now: we are connected, and not blocked by a memory or disk alarm.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.able.load(Ordering::Relaxed)
    }

    /// The queues that refuse our messages, or have refused some before.
    #[must_use]
    pub fn refusing(&self) -> Vec<Refusing> {
        self.refusing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The thread behind [`Publisher`]. It owns the connection, and reconnects forever.
pub struct PublisherThread {
    publications: Receiver<Publication>,
    able: Arc<AtomicBool>,
    amqp: Amqp,
    connect_timeout: Duration,
    topology: Topology,
    objects: Arc<Objects>,
    /// Published on a connection that was lost before they were confirmed.
    unconfirmed: Vec<Publication>,
    refusals: Refusals,
    /// The logged causes for not being able to publish.
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
    /// All users of the [`Publisher`] have ended.
    NobodyLeft,
    /// It was lost, or its channel failed: the cause, if it is known.
    Lost(Option<String>),
}

/// A connection in use.
struct Session {
    link: Link,
    /// Disconnected when the connection is lost.
    blocked: Receiver<ConnectionBlockedNotification>,
    main: Confirming,
    /// Channels that were replaced, kept for their outstanding confirms.
    replaced: Vec<Confirming>,
    since: Instant,
    confirmed_at: Instant,
    /// Whether confirms are overdue, and none has arrived for [`CONFIRM_TIMEOUT`].
    is_overdue: bool,
    /// Whether the broker has an alarm, and reads nothing from us.
    is_blocked: bool,
}

impl PublisherThread {
    /// Publishes until `stop`, which must not be requested before all users of the [`Publisher`] have ended.
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
            // One line for each cause, not for each attempt.
            if self.causes.is_news(&problem) {
                log::warn!("publishing interrupted: {problem}; reconnecting until it works");
            }
            let now = Instant::now();
            self.unconfirmed.retain(|publication| publication.is_wanted(now));
            let _ = stop.wait(backoff.next_wait(jitter()));
        }
    }

    fn open(&self, stop: &Shutdown) -> Result<Session, BrokerError> {
        let mut link = Link::open(&self.amqp, self.connect_timeout, stop)?;
        // On each connection: somebody may have deleted a queue, or replaced the broker by an empty one.
        // Unusable queues are logged, and their messages are rerouted.
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

    /// Publishes and reads confirms until the connection ends. Returns why it ended; `None` if all users have
    /// ended.
    fn serve(&mut self, mut session: Session, stop: &Shutdown) -> Option<String> {
        self.able.store(true, Ordering::Relaxed);
        for publication in std::mem::take(&mut self.unconfirmed) {
            self.publish(&mut session.main, publication);
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
                // If the broker closed a channel, it said why; otherwise the connection has the cause.
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
                recv(self.publications) -> publication => match publication {
                    Ok(publication) => self.publish(main, publication),
                    Err(_) => return Ended::NobodyLeft,
                },
                recv(main.confirms) -> confirm => match confirm {
                    Ok(confirm) => {
                        main.confirmed(confirm);
                        for publication in self.evaluate(main) {
                            main.publish(publication);
                        }
                        self.note_confirm(session);
                    }
                    Err(_) => return lost(),
                },
                recv(main.returns) -> returned => match returned {
                    Ok(returned) => {
                        main.returned(&returned);
                        let _ = self.evaluate(main);
                    }
                    Err(_) => return lost(),
                },
                recv(session.blocked) -> blocked => match blocked {
                    Ok(ConnectionBlockedNotification::Blocked(reason)) => {
                        session.is_blocked = true;
                        self.able.store(false, Ordering::Relaxed);
                        log::warn!("RabbitMQ accepts no messages now ({reason}): retries have to wait");
                    }
                    Ok(ConnectionBlockedNotification::Unblocked) => {
                        session.is_blocked = false;
                        self.able.store(true, Ordering::Relaxed);
                        log::info!("RabbitMQ accepts messages again");
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

    /// The rules for messages that can't be routed.
    fn routes(&self) -> Routes {
        Routes::new(&self.topology, Arc::clone(&self.objects))
    }

    fn publish(&mut self, channel: &mut Confirming, publication: Publication) {
        // If its queue refuses messages, it waits behind those that were refused before.
        if let Some(publication) = self.refusals.put_aside(publication) {
            channel.publish(publication);
        }
    }
}
