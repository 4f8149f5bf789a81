//! The setup of a run: servers, receivers, a producer, and the notifiers; and how it ends.

use std::{
    collections::{HashMap, HashSet},
    mem, thread,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    bound::{
        CAPACITY, CIRCUIT_BREAKER, DELIVERY_MAX_AGE, PREFETCH_COUNT, REQUEST_TIMEOUT,
        RETRY_SCHEDULE,
    },
    cast::{Cast, Webhook},
    ground::Ground,
    history::{DeadLetter, Departure, History, Moment, Pause, Strike},
    producer::{Output, Producer},
    receivers::Receivers,
    settings::Settings,
};
use crate::harness::{Broker, Notifier, SOON, Sandbox, Signal, broker};

const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// If nothing is delivered, parked or dead for this long, nothing more will arrive. RabbitMQ's worker for
/// expired messages publishes one again if it wasn't confirmed within three minutes
/// (`dead_letter_worker_publisher_confirm_timeout`): after a crash it may have published to a queue that
/// wasn't available yet.
const STALLED: Duration = Duration::from_secs(200);

/// If nothing moves for this long and the queues are empty, the open deliveries were deleted with a queue.
/// It is longer than a request and its consequences take.
const SETTLED: Duration = Duration::from_secs(15);

const ORPHANED: &str = "webhooks.orphaned";

/// Finds the column in the sandbox's own schema.
const PAUSED_COLUMN: &str = "SELECT FROM information_schema.columns WHERE table_schema = \
                             current_schema() AND table_name = 'webhooks' AND column_name = \
                             'paused_at'";

/// A confirm arrives within this time while nothing is broken.
const CONFIRMED: Duration = Duration::from_secs(2);

const POLL: Duration = Duration::from_millis(50);

pub(super) struct Stage {
    pub(super) fleet: Vec<Notifier>,
    pub(super) producer: Producer,
    pub(super) receivers: Receivers,
    sandbox: Sandbox,
    pub(super) ground: Ground,
    began: Instant,
    cast: Cast,
    /// By id, including deleted ones.
    webhooks: HashMap<Uuid, Webhook>,
    pub(super) strikes: Vec<Strike>,
    pub(super) pauses: Vec<Pause>,
    pub(super) departures: Vec<Departure>,
    /// The dead letters found so far.
    dead: Vec<DeadLetter>,
    /// How many deliveries may have been deleted with their queue.
    pub(super) deleted: usize,
    /// The events of deliveries that no notifier consumes.
    pub(super) strangers: HashSet<String>,
    /// Whether the table of webhooks supports pauses: that of an older binary doesn't.
    pub(super) can_pause: bool,
    /// Problems that don't concern the ledger, as text.
    pub(super) problems: Vec<String>,
    /// The logs of notifiers that have ended.
    logs: Vec<String>,
    launched: usize,
}

/// A finished run.
pub(super) struct Played {
    pub(super) history: History,
    pub(super) problems: Vec<String>,
    pub(super) logs: Vec<String>,
    /// From the first event to the last.
    pub(super) produced_for: Duration,
    /// From the last event until all had arrived.
    pub(super) drained_in: Duration,
}

impl Stage {
    /// Starts everything. Returns when one notifier is ready and events are on their way.
    pub(super) fn set(settings: &Settings) -> Self {
        let (ground, sandbox) = Ground::set(settings.is_cluster);
        let cast = Cast { seed: settings.seed };
        let began = Instant::now();
        let receivers = Receivers::start(cast, began);
        let register = |webhook: Webhook| {
            let id = sandbox.webhook(&receivers.url(webhook), &[webhook.events()]);
            (id, webhook)
        };
        let webhooks = Webhook::ALL.into_iter().map(register).collect();
        let can_pause = !sandbox.database.query(PAUSED_COLUMN, &[]).is_empty();
        let first = start(&sandbox, &ground);
        let producer = Producer::start(Output {
            urls: broker::urls(&sandbox.servers.amqp_url),
            queues: sandbox.queues.clone(),
            cast,
            rate: settings.rate,
            began,
        });
        let mut stage = Self {
            fleet: vec![first],
            producer,
            receivers,
            sandbox,
            ground,
            began,
            cast,
            webhooks,
            strikes: Vec::new(),
            pauses: Vec::new(),
            departures: Vec::new(),
            dead: Vec::new(),
            deleted: 0,
            strangers: HashSet::new(),
            can_pause,
            problems: Vec::new(),
            logs: Vec::new(),
            launched: 1,
        };
        stage.await_ready(SOON);
        stage
    }

    pub(super) fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Adds a notifier, which may not be ready yet.
    pub(super) fn launch(&mut self) {
        self.fleet.push(start(&self.sandbox, &self.ground));
        self.launched += 1;
    }

    /// Waits until all notifiers are ready; false if they aren't in time.
    pub(super) fn await_ready(&mut self, limit: Duration) -> bool {
        self.await_that(limit, |stage| stage.fleet.iter().all(Notifier::is_ready))
    }

    /// Waits, and replaces notifiers that end unexpectedly.
    pub(super) fn await_that(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        while !holds(self) {
            if Instant::now() >= deadline {
                return false;
            }
            self.replace_ended();
            thread::sleep(POLL);
        }
        true
    }

    fn replace_ended(&mut self) {
        let fleet = mem::take(&mut self.fleet);
        for mut notifier in fleet {
            if notifier.is_running() {
                self.fleet.push(notifier);
                continue;
            }
            self.problems.push(format!("a notifier ended by itself at {:.1?}", self.now()));
            self.keep_log(&notifier);
            self.launch();
        }
    }

    /// Sends SIGKILL.
    pub(super) fn kill(&mut self, victim: usize) {
        let mut notifier = self.fleet.remove(victim % self.fleet.len());
        notifier.signal(Signal::KILL);
        notifier.wait_exit(SOON);
        self.keep_log(&notifier);
    }

    /// Sends SIGTERM, which must end it cleanly and in time.
    pub(super) fn terminate(&mut self, victim: usize) {
        let mut notifier = self.fleet.remove(victim % self.fleet.len());
        let asked = Instant::now();
        notifier.signal(Signal::TERM);
        while notifier.is_running() && asked.elapsed() < SOON {
            thread::sleep(POLL);
        }
        let took = asked.elapsed();
        if notifier.is_running() {
            self.problems.push(format!("SIGTERM did not end a notifier within {SOON:?}"));
            notifier.signal(Signal::KILL);
        } else if took > SHUTDOWN_TIMEOUT {
            self.problems.push(format!("a notifier took {took:.1?} to end after SIGTERM"));
        }
        let code = notifier.wait_exit(SOON).code;
        if code != Some(0) {
            self.problems.push(format!("a notifier ended with {code:?} after SIGTERM"));
        }
        self.keep_log(&notifier);
    }

    /// Pauses and resumes as the commands do.
    pub(super) fn set_paused(&self, webhook: Webhook, paused: bool) {
        let sql = "UPDATE webhooks SET paused_at = CASE WHEN $2 THEN now() END WHERE post_url = $1";
        self.sandbox.database.execute(sql, &[&self.receivers.url(webhook), &paused]);
    }

    pub(super) fn register(&mut self, webhook: Webhook) {
        let id = self.sandbox.webhook(&self.receivers.url(webhook), &[webhook.events()]);
        self.webhooks.insert(id, webhook);
    }

    /// Deletes a webhook. Its id stays known, since earlier dead letters have it.
    pub(super) fn unregister(&self, webhook: Webhook) {
        let sql = "DELETE FROM webhooks WHERE post_url = $1";
        self.sandbox.database.execute(sql, &[&self.receivers.url(webhook)]);
    }

    /// The number of the first event that its receiver hasn't accepted yet, of those that are promised or
    /// may be confirmed in a moment.
    pub(super) fn first_unaccepted(&self, webhook: Webhook) -> usize {
        let now = self.now();
        let events = self.producer.events();
        let requests = self.receivers.requests().into_iter();
        let accepted: HashSet<_> = requests
            .filter(|request| request.webhook == webhook && request.accepted)
            .map(|request| request.number)
            .collect();
        let is_open = |number: &usize| {
            let event = &events[*number];
            let may_be_promised = event.promised || now < event.at + CONFIRMED;
            may_be_promised && webhook.wants(event.kind) && !accepted.contains(number)
        };
        (0..events.len()).find(is_open).unwrap_or(events.len())
    }

    fn keep_log(&mut self, notifier: &Notifier) {
        let now = self.now();
        self.logs.push(format!("--- process {}, ended at {now:.1?}", notifier.id()));
        self.logs.extend(notifier.stderr());
    }

    /// Ends the run: stops the producer, waits for the events on their way, and collects the results.
    pub(super) fn finish(mut self) -> Played {
        let produced_for = self.now();
        let events = self.producer.finish();
        let mut open = HashSet::new();
        for (number, event) in events.iter().enumerate().filter(|(_, event)| event.promised) {
            let wanting = Webhook::ALL.into_iter().filter(|webhook| webhook.wants(event.kind));
            // Deliveries that may have been dropped with their webhook aren't waited for.
            let kept = wanting.filter(|webhook| {
                !self.departures.iter().any(|departure| departure.drops(number, *webhook))
            });
            open.extend(kept.map(|webhook| (number, webhook)));
        }
        self.drain(&mut open);
        let drained_in = self.now() - produced_for;
        while !self.fleet.is_empty() {
            self.terminate(0);
        }
        self.collect_dead();
        self.check_strangers();
        let strays = self.receivers.strays();
        if strays > 0 {
            self.problems
                .push(format!("{strays} requests to an unknown path or for an unknown event"));
        }
        let requests = self.receivers.requests();
        let history = History {
            events,
            requests,
            dead: mem::take(&mut self.dead),
            strikes: mem::take(&mut self.strikes),
            pauses: mem::take(&mut self.pauses),
            departures: mem::take(&mut self.departures),
            deleted: self.deleted,
        };
        let (problems, logs) = (mem::take(&mut self.problems), mem::take(&mut self.logs));
        Played { history, problems, logs, produced_for, drained_in }
    }

    /// Waits until no delivery is open and no queue holds anything, or until nothing moves any more.
    fn drain(&mut self, open: &mut HashSet<(usize, Webhook)>) {
        let mut seen = 0;
        let mut moved = Instant::now();
        loop {
            let (seen_before, dead_before) = (seen, self.dead.len());
            for request in self.receivers.requests_since(seen) {
                seen += 1;
                if request.accepted {
                    open.remove(&(request.number, request.webhook));
                }
            }
            self.collect_dead();
            // Some became dead letters before the last event.
            for dead in &self.dead {
                open.remove(&(dead.number, dead.webhook));
            }
            let is_over =
                open.is_empty() || open.len() <= self.deleted && moved.elapsed() > SETTLED;
            if is_over && self.queues_are_empty() {
                return;
            }
            self.replay_orphaned();
            if (seen, self.dead.len()) != (seen_before, dead_before) {
                moved = Instant::now();
            }
            if moved.elapsed() > STALLED {
                let left = open.len();
                self.problems.push(format!("{left} deliveries open, and nothing moves any more"));
                return;
            }
            self.replace_ended();
            thread::sleep(POLL);
        }
    }

    fn queues_are_empty(&self) -> bool {
        let lanes = self.sandbox.queues.iter().flat_map(|q| [q.clone(), format!("{q}.retry")]);
        let waiting = RETRY_SCHEDULE.iter().map(|delay| format!("webhooks.wait.{delay}"));
        lanes.chain(waiting).all(|queue| self.sandbox.broker.ready(&queue) == Some(0))
            && self.backlogs_are_empty()
    }

    fn backlogs_are_empty(&self) -> bool {
        let Ground::Pair(pair) = &self.ground else {
            // In a cluster, each node only knows the counts of its own queues.
            let is_empty = |queue: &String| self.broker().ready(queue).unwrap_or(0) == 0;
            return self.sandbox.backlogs().iter().all(is_empty);
        };
        let backlogs = format!("^webhooks[.]backlog[.]({})[.]", self.sandbox.queues.join("|"));
        let waiting = pair.servers.eval(&format!(
            "length([1 || [{{name, {{resource, _, queue, Name}}}}, {{messages, Messages}}] <- \
             rabbit_amqqueue:info_all(<<\"/\">>, [name, messages]), \
             Messages =/= 0, re:run(Name, \"{backlogs}\") =/= nomatch])"
        ));
        waiting.trim() == "0"
    }

    /// Replays orphaned deliveries once their queues exist again, as an operator does.
    fn replay_orphaned(&mut self) {
        let orphaned = self.broker().ready(ORPHANED).unwrap_or_default();
        if orphaned as usize > self.strangers.len() {
            let replay = ["dead-letters", "replay", "--reason", "orphaned"];
            let replayed = self.sandbox.command(&replay);
            if replayed.code != Some(0) {
                self.problems.push(format!("a replay failed: {replayed:?}"));
            }
        }
    }

    /// Checks that the deliveries of another notifier are where an operator finds them.
    fn check_strangers(&mut self) {
        let orphaned = self.broker().take_all(ORPHANED).unwrap_or_default();
        let mut strangers = mem::take(&mut self.strangers);
        for message in orphaned {
            if !strangers.remove(message.text("x-event-id")) {
                self.problems.push(format!("an unexpected orphaned message: {message:?}"));
            }
        }
        if !strangers.is_empty() {
            let count = strangers.len();
            self.problems.push(format!("{count} deliveries of another notifier are lost"));
        }
    }

    pub(super) fn queues(&self) -> &[String] {
        &self.sandbox.queues
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.sandbox.broker
    }

    pub(super) fn collect_dead(&mut self) {
        for queue in &self.sandbox.queues {
            let queue = format!("{queue}.dead");
            let messages = match self.sandbox.broker.take_all(&queue) {
                Ok(messages) => messages,
                Err(error) => {
                    self.problems.push(format!("{queue} can't be read: {error}"));
                    continue;
                }
            };
            for message in messages {
                let id = message.text("x-webhook-id").parse::<Uuid>();
                let webhook = id.ok().and_then(|id| self.webhooks.get(&id));
                let number = self.cast.number(message.text("x-event-id"));
                match (webhook, number, message.text("x-dead-reason")) {
                    (Some(&webhook), Some(number), "exhausted" | "expired") => {
                        self.dead.push(DeadLetter { number, webhook });
                    }
                    _ => self.problems.push(format!("an unexpected dead letter: {message:?}")),
                }
            }
        }
    }
}

fn start(sandbox: &Sandbox, ground: &Ground) -> Notifier {
    let lanes = sandbox.queues.iter().map(|queue| format!("{queue}={CAPACITY}"));
    let [amqp_url, database_url] = ground.urls(sandbox);
    sandbox
        .notifier()
        .env("AMQP_URL", format!("{amqp_url}?heartbeat=2"))
        .env("DATABASE_URL", database_url)
        .env("QUEUES", lanes.collect::<Vec<_>>().join(","))
        .env("AMQP_CONNECTION_ATTEMPTS", "100")
        .env("AMQP_RETRY_DELAY", "200ms")
        .env("RETRY_SCHEDULE", RETRY_SCHEDULE.join(","))
        .env("CIRCUIT_BREAKER", CIRCUIT_BREAKER)
        .env("PREFETCH_COUNT", PREFETCH_COUNT.to_string())
        .env("DELIVERY_MAX_AGE", format!("{}s", DELIVERY_MAX_AGE.as_secs()))
        .env("REQUEST_TIMEOUT", format!("{}ms", REQUEST_TIMEOUT.as_millis()))
        .env("CONNECT_TIMEOUT", "1s")
        .env("SHUTDOWN_TIMEOUT", format!("{}ms", SHUTDOWN_TIMEOUT.as_millis()))
        // Without a line for each failed attempt, of which there are thousands.
        .env("RUST_LOG", "info,webhook_notifier::pipeline=debug")
        .start_unready()
}
