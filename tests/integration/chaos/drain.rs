//! A receiver returns after an outage. While it catches up, the notifier, the broker or both get SIGKILL:
//! nothing is lost, and only requests that were in flight are repeated.
//!
//! `make drain-kill`: KILLS, EVENTS and SEED set the number of kills, the events of each, and the run.

use std::{
    collections::HashMap,
    env,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::harness::{
    Event, FaultServers, LATER, Notifier, Receiver, Reply, SOON, Sandbox, Signal, servers::Server,
    wait_until,
};

/// The most requests in flight, and so the most repeats after a kill.
const CAPACITY: usize = 64;

/// The receiver's response time. With half of the capacity, it gets about six hundred deliveries per
/// second.
const LATENCY: Duration = Duration::from_millis(50);

/// How long the receiver is unreachable after all its events have left their queue.
const AWAY: Duration = Duration::from_secs(2);

/// If nothing is delivered for this long, the missing events are lost. It is far longer than any pause or
/// wait after so short an outage, and than the broker's restart.
const STALLED: Duration = Duration::from_secs(60);

const KIND: &str = "drain.late";
const PATH: &str = "/late";

/// What is killed; each in turn.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Notifier,
    Broker,
    Both,
}

impl Victim {
    const ALL: [Self; 3] = [Self::Notifier, Self::Broker, Self::Both];

    fn name(self) -> &'static str {
        match self {
            Self::Notifier => "notifier",
            Self::Broker => "broker",
            Self::Both => "both",
        }
    }
}

/// What the receiver has seen.
#[derive(Debug, Default)]
struct Seen {
    is_away: bool,
    refused: usize,
    /// The ids of the present kill's events begin with this.
    kill: String,
    /// How often each event was accepted.
    accepted: HashMap<String, usize>,
    /// Accepted events of an earlier kill.
    belated: usize,
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("no holder panics")
}

struct Drain {
    servers: FaultServers,
    sandbox: Sandbox,
    seen: Arc<Mutex<Seen>>,
    notifier: Notifier,
    events: usize,
    random: Rng,
}

/// The result of a kill.
struct Left {
    lost: usize,
    repeated: usize,
}

#[test]
#[ignore = "takes minutes: make drain-kill"]
fn killed_while_a_backlog_drains_nothing_is_lost_and_little_repeated() {
    let kills = from_environment("KILLS", 10);
    let seed = from_environment("SEED", u64::from(fastrand::u32(..)));
    let events = from_environment("EVENTS", 3_000);
    eprintln!("KILLS={kills} EVENTS={events} SEED={seed}");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let answering = Arc::clone(&seen);
    let receiver = Receiver::forgetful(move |request| {
        let mut seen = lock(&answering);
        if seen.is_away {
            seen.refused += 1;
            return Reply::Status(503);
        }
        let id = request.id().to_owned();
        match id.starts_with(&seen.kill) {
            true => *seen.accepted.entry(id).or_default() += 1,
            false => seen.belated += 1,
        }
        Reply::Slow(LATENCY, 200)
    });
    let servers = FaultServers::take_for_long();
    let sandbox = Sandbox::on(servers.servers(), 1);
    sandbox.webhook(&receiver.url(PATH), &[KIND]);
    let notifier = start(&sandbox);
    let random = Rng::with_seed(seed);
    let mut drain = Drain { servers, sandbox, seen, notifier, events, random };
    eprintln!(
        "{:8} {:>7} {:>16} {:>5} {:>8} {:>14}",
        "KILLED", "EVENTS", "DELIVERED BEFORE", "LOST", "REPEATS", "ALL DELIVERED"
    );
    let mut problems = Vec::new();
    for (kill, victim) in Victim::ALL.into_iter().cycle().take(kills).enumerate() {
        let Left { lost, repeated } = drain.kill(kill, victim);
        let of = |what: &str, count: usize| {
            format!("kill {} ({}): {count} {what}", kill + 1, victim.name())
        };
        if lost > 0 {
            problems.push(of("events are lost", lost));
        }
        if repeated > CAPACITY {
            problems.push(of(&format!("repeats, of {CAPACITY} requests at most"), repeated));
        }
    }
    drain.notifier.terminate();
    let problems_text = problems.join("\n");
    assert!(problems.is_empty(), "{problems_text}\nto run it again: make drain-kill SEED={seed}");
}

impl Drain {
    /// An outage, the receiver's return, the kill, and the rest of the drain.
    fn kill(&mut self, kill: usize, victim: Victim) -> Left {
        let kill = format!("{kill}-");
        *lock(&self.seen) = Seen { is_away: true, kill: kill.clone(), ..Seen::default() };
        let event = |number| Event::new(KIND).id(&format!("{kill}{number:06}"));
        let events: Vec<_> = (0..self.events).map(event).collect();
        self.sandbox.broker.publish(self.sandbox.queue(), &events);
        wait_until(LATER, "the events wait for their receiver", || {
            lock(&self.seen).refused > 0
                && self.sandbox.broker.ready(self.sandbox.queue()) == Some(0)
        });
        thread::sleep(AWAY);
        // Not during the drain: it may be over before this is.
        self.servers.write_queue_names();

        let at_the_kill = self.random.usize(self.events / 10..self.events / 2);
        lock(&self.seen).is_away = false;
        wait_until(LATER, "it catches up", || lock(&self.seen).accepted.len() >= at_the_kill);
        let (struck, before) = (Instant::now(), lock(&self.seen).accepted.len());
        self.strike(victim);
        let lost = self.await_all();
        let took = struck.elapsed().as_secs_f64();
        let repeated = {
            let seen = lock(&self.seen);
            seen.belated + seen.accepted.values().map(|times| times - 1).sum::<usize>()
        };
        eprintln!(
            "{:8} {:>7} {before:>16} {lost:>5} {repeated:>8} {took:>12.1} s",
            victim.name(),
            self.events
        );
        Left { lost, repeated }
    }

    fn strike(&mut self, victim: Victim) {
        let kill_notifier = |drain: &mut Self| {
            drain.notifier.signal(Signal::KILL);
            drain.notifier.wait_exit(SOON);
        };
        match victim {
            Victim::Notifier => kill_notifier(self),
            Victim::Broker => self.servers.kill_broker_now(),
            Victim::Both => {
                kill_notifier(self);
                self.servers.kill_broker_now();
            }
        }
        if !matches!(victim, Victim::Notifier) {
            self.servers.start(Server::Broker);
        }
        if !matches!(victim, Victim::Broker) {
            self.notifier = start(&self.sandbox);
        }
    }

    /// Waits until no more events arrive, and returns how many are missing.
    fn await_all(&self) -> usize {
        let (mut count, mut moved) = (0, Instant::now());
        while count < self.events && moved.elapsed() < STALLED {
            let now = lock(&self.seen).accepted.len();
            if now > count {
                (count, moved) = (now, Instant::now());
            }
            thread::sleep(Duration::from_millis(20));
        }
        // By then, requests in flight have been answered, and redelivered events have arrived.
        wait_until(LATER, "every lane consumes, and has nothing left", || {
            let lanes = [self.sandbox.queue().to_owned(), self.sandbox.retry_queue()];
            self.notifier.is_ready()
                && lanes.iter().all(|queue| self.sandbox.broker.ready(queue) == Some(0))
        });
        thread::sleep(Duration::from_secs(2));
        self.events - count
    }
}

fn start(sandbox: &Sandbox) -> Notifier {
    sandbox
        .notifier()
        .env("QUEUES", format!("{}={CAPACITY}", sandbox.queue()))
        .env("AMQP_CONNECTION_ATTEMPTS", "100")
        .env("AMQP_RETRY_DELAY", "200ms")
        // Without a line for each failed attempt.
        .env("RUST_LOG", "info,webhook_notifier::pipeline=error")
        .start()
}

/// The environment's value, or the default.
fn from_environment<T: FromStr>(variable: &str, default: T) -> T {
    match env::var(variable).ok().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        None => default,
    }
}
