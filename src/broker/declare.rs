//! Creates missing queues, exchanges and bindings, and detects which were lost.
//!
//! Objects are independent of each other: if one is unusable, [`Objects`] records that, and the others are
//! created nevertheless.

use std::time::{Duration, Instant};

use amiquip::{Channel, ExchangeType, FieldTable, QueueDeclareOptions};

use super::calls::{Calls, QueueCounts, has_other_arguments, is_absent, is_forbidden, is_refusal};
use super::objects::Objects;
use super::refusal::is_away;
use super::topology::{
    Lane, LaneKind, Topology, event_options, exchange_options, plain_options, retry_options,
    wait_options,
};
use super::{BrokerError, Link, SETUP_TIMEOUT, failed};
use crate::domain::broker_names::{
    BACKLOG_EXCHANGE, ORPHANED, RETRY_EXCHANGE, WAIT_EXCHANGE, dead_queue, retry_queue, wait_queue,
};
use crate::metrics::ObjectKind as Kind;
use crate::shutdown::Shutdown;

/// An unusable object.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Which object, why it is unusable, and the remedy.
    pub error: BrokerError,
    /// Whether nothing works without it, because nothing can replace it.
    pub is_vital: bool,
}

/// How long it may take to declare everything. It takes tens of milliseconds if everything exists, and
/// several seconds if a busy broker has to create the quorum queues of a long schedule.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(10);

/// What each queue of QUEUES adds to that: two quorum queues belong to it, and a cluster takes tens of
/// milliseconds for each.
const DECLARE_EACH: Duration = Duration::from_millis(200);

impl Topology {
    /// Creates missing objects, and calls `depth` with each watched queue and how many messages are ready in
    /// it. Returns the problem of each unusable object. An existing queue of QUEUES is never redeclared: it
    /// belongs to the operator and may have any arguments. The same holds for dead-letter queues. This has a
    /// time limit, and shutdown ends it.
    ///
    /// # Errors
    /// If the connection is lost.
    pub fn declare(
        &self,
        link: &mut Link,
        objects: &Objects,
        shutdown: &Shutdown,
        mut depth: impl FnMut(&str, Option<QueueCounts>),
    ) -> Result<Vec<Problem>, BrokerError> {
        let (kill, address) = (link.kill_switch(), link.address.clone());
        let queues = u32::try_from(self.origins.len()).unwrap_or(u32::MAX);
        let limit = DECLARE_TIMEOUT + DECLARE_EACH.saturating_mul(queues);
        let declared = kill.guard(limit, Some(shutdown), || {
            let calls = Calls::new(link);
            let mut declarer = Declarer { calls, objects, depth: &mut depth, problems: Vec::new() };
            self.declare_all(&mut declarer).map(|()| declarer.problems)
        });
        declared.map_err(|error| failed(&address, "the topology", &error))
    }

    fn declare_all(&self, declarer: &mut Declarer<'_>) -> amiquip::Result<()> {
        for origin in &self.origins {
            declarer.queue(origin, event_options(self.queue_type), Arguments::Any)?;
        }
        declarer.exchange(ExchangeType::Fanout, ORPHANED)?;
        declarer.exchange(ExchangeType::Direct, BACKLOG_EXCHANGE)?;
        let mut bindings = Vec::new();
        for origin in &self.origins {
            let queue = retry_queue(origin);
            if declarer.queue(&queue, retry_options(origin), Arguments::Ours)? {
                bindings.push((queue, format!("*.{origin}")));
            }
        }
        declarer.retry_exchange(&bindings)?;
        declarer.exchange(ExchangeType::Topic, WAIT_EXCHANGE)?;
        let vital = declarer.problems.len();
        for origin in &self.origins {
            declarer.queue(&dead_queue(origin), plain_options(), Arguments::Any)?;
        }
        if declarer.queue(ORPHANED, plain_options(), Arguments::Ours)? {
            declarer.bind(ORPHANED, ORPHANED, "")?;
        }
        let mut can_wait = false;
        for delay in &self.delays {
            let queue = wait_queue(*delay);
            if declarer.queue(&queue, wait_options(*delay), Arguments::Ours)? {
                declarer.bind(&queue, WAIT_EXCHANGE, &format!("{delay}.#"))?;
                can_wait = true;
            }
        }
        // Any wait queue can replace another.
        for problem in declarer.problems.iter_mut().skip(vital) {
            problem.is_vital = !can_wait;
        }
        Ok(())
    }
}

/// Creates the queue that a lane consumes, unless it exists. Takes [`SETUP_TIMEOUT`] at most.
///
/// # Errors
/// If the queue is unusable, or the connection is lost.
pub fn declare_lane(
    link: &mut Link,
    lane: &Lane,
    objects: &Objects,
    shutdown: &Shutdown,
) -> Result<(), BrokerError> {
    let (kill, address) = (link.kill_switch(), link.address.clone());
    let declared = kill.guard(SETUP_TIMEOUT, Some(shutdown), || {
        let calls = Calls::new(link);
        let mut declarer = Declarer { calls, objects, depth: &mut |_, _| {}, problems: Vec::new() };
        match lane.kind {
            LaneKind::Events => {
                declarer.queue(&lane.origin, event_options(lane.queue_type), Arguments::Any)?;
            }
            LaneKind::Retries => {
                let options = retry_options(&lane.origin);
                // It can be consumed even without its exchange, but then the topology has to be checked.
                if declarer.queue(&lane.queue, options, Arguments::Ours)?
                    && declarer.calls.has_exchange(RETRY_EXCHANGE)?
                {
                    declarer.bind(&lane.queue, RETRY_EXCHANGE, &format!("*.{}", lane.origin))?;
                } else {
                    objects.check_soon();
                }
            }
            // Each backlog is declared when it is opened.
            LaneKind::Backlogs => {}
        }
        Ok(declarer.problems)
    });
    let problems = declared.map_err(|error| failed(&address, &lane.queue, &error))?;
    problems.into_iter().next().map_or(Ok(()), |problem| Err(problem.error))
}

/// Which arguments a queue must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arguments {
    /// Those that we declare.
    Ours,
    /// Any.
    Any,
}

struct Declarer<'a> {
    calls: Calls<'a>,
    objects: &'a Objects,
    depth: &'a mut dyn FnMut(&str, Option<QueueCounts>),
    problems: Vec<Problem>,
}

impl Declarer<'_> {
    /// Creates a queue, unless it exists. Returns whether we can use it.
    fn queue(
        &mut self,
        name: &str,
        options: QueueDeclareOptions,
        arguments: Arguments,
    ) -> amiquip::Result<bool> {
        let asked = Instant::now();
        let counts = match self.calls.queue(name) {
            Ok(counts) => counts,
            // The queue exists, but doesn't answer.
            Err(error) => {
                self.refused(Kind::Queue, name, error)?;
                (self.depth)(name, None);
                return Ok(false);
            }
        };
        (self.depth)(name, counts);
        let messages = counts.map(|counts| counts.ready);
        // An empty queue is always compared: if it is deleted just then, nothing is lost.
        let is_to_be_compared = |messages| {
            arguments == Arguments::Ours
                && (messages == 0 || self.objects.is_to_be_compared(Kind::Queue, name))
        };
        match messages {
            None => self.objects.missing(Kind::Queue, name, asked),
            Some(messages) if is_to_be_compared(messages) => {}
            Some(messages) => {
                self.objects.found(Kind::Queue, name, messages);
                return Ok(true);
            }
        }
        let ready = messages.unwrap_or(0);
        // This changes nothing if the queue exists, and fails if it has other arguments.
        match self.calls.call(|channel| channel.queue_declare(name, options).map(drop)) {
            Ok(()) => self.objects.declared(Kind::Queue, name, ready),
            // Without the permission to create a queue, its arguments can't be compared either.
            Err(error) if messages.is_some() && is_forbidden(&error) => {
                self.objects.found(Kind::Queue, name, ready);
            }
            Err(error) => return self.refused(Kind::Queue, name, error).map(|()| false),
        }
        Ok(true)
    }

    /// Creates an exchange, unless it exists.
    fn exchange(&mut self, kind: ExchangeType, name: &str) -> amiquip::Result<()> {
        let asked = Instant::now();
        let is_there = match self.calls.has_exchange(name) {
            Ok(is_there) => is_there,
            Err(error) => return self.refused(Kind::Exchange, name, error),
        };
        if !is_there {
            self.objects.missing(Kind::Exchange, name, asked);
        } else if !self.objects.is_to_be_compared(Kind::Exchange, name) {
            self.objects.found(Kind::Exchange, name, 0);
            return Ok(());
        }
        match self.create_exchange(kind, name) {
            Ok(()) => self.objects.declared(Kind::Exchange, name, 0),
            Err(error) if is_there && is_forbidden(&error) => {
                self.objects.found(Kind::Exchange, name, 0);
            }
            Err(error) => return self.refused(Kind::Exchange, name, error),
        }
        Ok(())
    }

    fn create_exchange(&mut self, kind: ExchangeType, name: &str) -> amiquip::Result<()> {
        let options = exchange_options(name);
        self.calls.call(|channel| channel.exchange_declare(kind, name, options).map(drop))
    }

    /// Creates the exchange that expired messages are published to, and binds our queues to it. An exchange
    /// that an older version created without an alternate exchange is recreated, because arguments can't be
    /// changed.
    ///
    /// Messages that expire before the bindings exist would be orphaned. So `webhooks.orphaned` is unbound
    /// meanwhile: a message without a route stays in its wait queue, and RabbitMQ tries again within three
    /// minutes.
    fn retry_exchange(&mut self, bindings: &[(String, String)]) -> amiquip::Result<()> {
        let asked = Instant::now();
        let is_there = match self.calls.has_exchange(RETRY_EXCHANGE) {
            Ok(is_there) => is_there,
            Err(error) => return self.refused(Kind::Exchange, RETRY_EXCHANGE, error),
        };
        let mut is_older = false;
        let is_to_be_compared = self.objects.is_to_be_compared(Kind::Exchange, RETRY_EXCHANGE);
        if !is_there {
            self.objects.missing(Kind::Exchange, RETRY_EXCHANGE, asked);
        } else if is_to_be_compared
            && let Err(error) = self.create_exchange(ExchangeType::Topic, RETRY_EXCHANGE)
        {
            is_older = has_no_alternate(&error);
            if !is_older && !is_forbidden(&error) {
                return self.refused(Kind::Exchange, RETRY_EXCHANGE, error);
            }
        }
        if (!is_there || is_older)
            && let Err(error) = self.create_retry_exchange(is_older)
        {
            return self.refused(Kind::Exchange, RETRY_EXCHANGE, error);
        }
        for (queue, key) in bindings {
            self.bind(queue, RETRY_EXCHANGE, key)?;
        }
        if is_to_be_compared {
            self.objects.declared(Kind::Exchange, RETRY_EXCHANGE, 0);
        } else {
            self.objects.found(Kind::Exchange, RETRY_EXCHANGE, 0);
        }
        if is_older {
            log::info!(
                "exchange {RETRY_EXCHANGE} recreated: deliveries without a retry queue go to {ORPHANED} now. \
                 Older versions can't connect while it exists"
            );
        }
        Ok(())
    }

    fn create_retry_exchange(&mut self, is_older: bool) -> amiquip::Result<()> {
        let unbind =
            |channel: &Channel| channel.queue_unbind(ORPHANED, ORPHANED, "", FieldTable::new());
        match self.calls.call(unbind) {
            Err(error) if !is_absent(&error) => return Err(error),
            _ => {}
        }
        // Unless another instance has just recreated it and bound its queues.
        if is_older && self.create_exchange(ExchangeType::Topic, RETRY_EXCHANGE).is_err() {
            self.calls.call(|channel| channel.exchange_delete(RETRY_EXCHANGE, false))?;
        }
        self.create_exchange(ExchangeType::Topic, RETRY_EXCHANGE)
    }

    fn bind(&mut self, queue: &str, exchange: &str, key: &str) -> amiquip::Result<()> {
        let asked = Instant::now();
        let arguments = FieldTable::new;
        match self.calls.call(|channel| channel.queue_bind(queue, exchange, key, arguments())) {
            Ok(()) => self.objects.bound(queue, asked),
            // Somebody has just deleted the queue or the exchange: the next check creates it.
            Err(error) if is_absent(&error) => {}
            Err(error) => return self.refused(Kind::Binding, queue, error),
        }
        Ok(())
    }

    /// Records that the broker refused an object. Any other error is returned, and ends the declaration of all.
    fn refused(&mut self, kind: Kind, name: &str, error: amiquip::Error) -> amiquip::Result<()> {
        if !is_refusal(&error) {
            return Err(error);
        }
        if has_other_arguments(&error) {
            self.objects.replaced(kind, name);
        }
        // If only its node is away, its lane waits and keeps trying.
        let is_vital = !is_away(&error);
        let error = failed(self.calls.address(), name, &error);
        self.objects.refused(kind, name, error.problem());
        self.problems.push(Problem { error, is_vital });
        Ok(())
    }
}

fn has_no_alternate(error: &amiquip::Error) -> bool {
    matches!(error, amiquip::Error::ServerClosedChannel { code: 406, message, .. }
        if message.contains("inequivalent arg 'alternate-exchange'")
            && message.contains("current is none"))
}
