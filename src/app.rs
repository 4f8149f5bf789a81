//! The wiring of `run`: check, connect, spawn, wait, drain.

use std::collections::HashSet;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use crossbeam_channel::{Receiver, Sender, select, unbounded};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uuid::Uuid;

use crate::admin::{self, Casualties};
use crate::backlogs::{Backlogs, Keeper};
use crate::broker::{self, BrokerError, Lane, Link, Objects, Publisher, Topology};
use crate::config::Config;
use crate::consumer;
use crate::delivery_log;
use crate::directory::Directory;
use crate::domain::delivery_log::Extent;
use crate::instances::Presence;
use crate::metrics::{Glance, InUse, Metrics};
use crate::notices;
use crate::pipeline::{Pipeline, Tally};
use crate::receivers::Receivers;
use crate::shutdown::{self, Shutdown};
use crate::status::Status;
use crate::store::{EACH_BY_ITSELF, Store};
use crate::supervisor::Supervisor;
use crate::threads;
use crate::workers::Workers;

/// How often the monitor asks for queue depths and whether PostgreSQL answers.
const MONITOR_INTERVAL: Duration = Duration::from_secs(5);

/// How long the last threads (publisher, delivery log, notices, instances, admin) may take once nobody needs them any
/// more, within SHUTDOWN_TIMEOUT.
const FAREWELL: Duration = Duration::from_millis(2_500);

/// Open files that we ask for, within the hard limit. More than we ever use; the kernel sizes
/// nothing by it.
const MOST_FILES: u64 = 65_536;

/// The threads of a lane: its own, its consumer's and its connection's two.
const THREADS_OF_LANE: usize = 4;

/// The other threads at rest: those below, some of the libraries', and a few that come and go.
const OTHER_THREADS: usize = 32;

/// Whether there can be the threads that the notifier has at rest. It needs more for requests, but can wait
/// for these; libraries that start theirs in the beginning can't.
///
/// # Errors
/// If there can't.
pub fn check_threads(config: &Config) -> Result<()> {
    let needed = Lane::all(config).len() * THREADS_OF_LANE + OTHER_THREADS;
    threads::check(needed).context(
        "too few threads: raise the limit (`ulimit -u`, TasksMax of the unit, the container's pids \
         limit) or leave more memory",
    )
}

/// Runs the notifier until a signal stops it.
///
/// # Errors
/// If it can't start (the database or the broker refuses, a port is taken), or a thread ended that
/// should not have.
pub fn run(config: Config, store: Store) -> Result<()> {
    let (trigger, shutdown) = shutdown::channel();
    shutdown::watch_signals(trigger.clone())?;
    log::info!("webhook-notifier {} starts", env!("CARGO_PKG_VERSION"));
    raise_file_limit();

    let lanes = Lane::all(&config);
    let metrics = Arc::new(Metrics::new(lanes.iter().map(|lane| lane.queue.clone()))?);
    let capacities = config.queues.iter().map(|queue| queue.capacity);
    let receivers = Arc::new(Receivers::new(capacities, config.circuit_breaker, jitter));
    let (backlogs, inbox) = Backlogs::new(&config);
    let backlogs = Arc::new(backlogs);
    let objects = Arc::new(Objects::new(metrics.topology()));
    let store = Arc::new(store);
    let directory = Arc::new(Directory::new(&config, Arc::clone(&store), metrics.lookups()));
    let status = Arc::new(Status::new(
        &config,
        Arc::clone(&metrics),
        Arc::clone(&directory),
        Arc::clone(&receivers),
        Arc::clone(&backlogs),
        Arc::clone(&objects),
        shutdown.clone(),
    ));
    let casualties = Arc::new(Casualties::default());
    // Fired when the lanes have ended: until then they need the publisher, and operators /metrics.
    let (drained, lanes_over) = shutdown::channel();
    let mut threads = Threads::new();
    // Before the checks, which may take a while: a probe should hear "not ready", not nothing.
    let (door, admin) = admin::open(config.metrics_addr, &config.metrics_hosts)?;
    let port = door.port();
    threads.spawn("admin-door".to_owned(), {
        let stop = lanes_over.clone();
        move || door.keep(&stop)
    })?;
    threads.spawn("admin".to_owned(), {
        let (metrics, casualties) = (Arc::clone(&metrics), Arc::clone(&casualties));
        let (status, stop) = (Arc::clone(&status), lanes_over.clone());
        move || {
            admin.serve(&metrics, &status, &casualties, &stop);
            Ok(())
        }
    })?;
    threads.spawn("status".to_owned(), {
        let stop = lanes_over.clone();
        move || {
            status.watch(&stop);
            Ok(())
        }
    })?;
    if let Some(supervisor) = Supervisor::of_environment() {
        let (metrics, casualties) = (Arc::clone(&metrics), Arc::clone(&casualties));
        let (limit, shutdown, over) =
            (config.shutdown_timeout, shutdown.clone(), lanes_over.clone());
        threads.spawn("supervisor".to_owned(), move || {
            supervisor.keep_informed(&metrics, &casualties, limit, &shutdown, &over);
            Ok(())
        })?;
    }
    check_database(&config, &store, &metrics)?;
    if first_connection(&config, &objects, &shutdown)?.is_none() {
        log::info!("stopped: {}", Tally::new(shutdown));
        return Ok(());
    }

    let config = Arc::new(config);
    let (publisher, publisher_thread) = Publisher::new(&config, Arc::clone(&objects));
    metrics.look_by({
        let (receivers, directory) = (Arc::clone(&receivers), Arc::clone(&directory));
        let (publisher, queues) = (publisher.clone(), config.queues.clone());
        move || {
            let count = receivers.count();
            Glance {
                receivers_ailing: count.ailing,
                receivers_slow: count.slow,
                breakers_open: count.broken,
                in_use: (0..)
                    .zip(&queues)
                    .map(|(number, queue)| InUse {
                        queue: queue.name.clone(),
                        capacity: queue.capacity.into(),
                        by_class: receivers.in_use(number),
                    })
                    .collect(),
                directory_age: directory.age(),
                broker_accepts: publisher.is_able(),
                refusing: publisher.refusing(),
            }
        }
    });
    let workers = Workers::default();
    let (log, log_writer) = delivery_log::open(&config, &store, metrics.log_rows(), jitter);
    let (notices, teller) =
        notices::open(&config, &store, &directory, &receivers, &metrics, jitter);
    let mut presence = Presence::new(
        &config,
        Arc::clone(&store),
        Arc::clone(&directory),
        Arc::clone(&receivers),
        &metrics,
        port,
    );
    if metrics.database().is_up() {
        // First this: the others have heard of it before anything is sent.
        presence.beat();
    }
    let keeper = Keeper::new(
        Arc::clone(&backlogs),
        inbox,
        Arc::clone(&config),
        Arc::clone(&store),
        Arc::clone(&directory),
        Arc::clone(&receivers),
        &publisher,
        Arc::clone(&metrics),
        shutdown.clone(),
    );
    let pipeline = Arc::new(Pipeline::new(
        &config,
        Arc::clone(&directory),
        publisher,
        Arc::clone(&receivers),
        Arc::clone(&backlogs),
        workers.clone(),
        log,
        notices,
        Arc::clone(&metrics),
        shutdown.clone(),
    ));

    if let Some(writer) = log_writer {
        let stop = lanes_over.clone();
        threads.spawn("delivery-log".to_owned(), move || {
            writer.run(&stop);
            Ok(())
        })?;
    }
    threads.spawn("notices".to_owned(), {
        let stop = lanes_over.clone();
        move || {
            teller.run(&stop);
            Ok(())
        }
    })?;
    threads.spawn("instances".to_owned(), {
        let stop = lanes_over.clone();
        move || {
            presence.run(&stop);
            Ok(())
        }
    })?;
    threads.spawn("publisher".to_owned(), move || {
        publisher_thread.run(&lanes_over, jitter);
        Ok(())
    })?;
    let late = threads.names();
    threads.spawn("monitor".to_owned(), {
        let (config, store, metrics) = (Arc::clone(&config), store, Arc::clone(&metrics));
        let (pipeline, shutdown) = (Arc::clone(&pipeline), shutdown.clone());
        let objects = Arc::clone(&objects);
        move || {
            let tick = || pipeline.close_idle();
            monitor(&config, &store, &metrics, &objects, &shutdown, tick);
            Ok(())
        }
    })?;
    threads.spawn("directory".to_owned(), {
        let shutdown = shutdown.clone();
        move || {
            directory.listen(&shutdown, jitter);
            Ok(())
        }
    })?;
    threads.spawn("backlogs".to_owned(), move || {
        keeper.run();
        Ok(())
    })?;
    for lane in lanes {
        let context = consumer::Context {
            config: Arc::clone(&config),
            pipeline: Arc::clone(&pipeline),
            metrics: Arc::clone(&metrics),
            workers: workers.clone(),
            receivers: Arc::clone(&receivers),
            backlogs: Arc::clone(&backlogs),
            objects: Arc::clone(&objects),
            shutdown: shutdown.clone(),
            jitter,
        };
        threads.spawn(format!("lane-{}", lane.queue), move || {
            consumer::run(&context, &Arc::new(lane));
            Ok(())
        })?;
    }

    let failed = threads.wait_for_end(&shutdown);
    if let Some(end) = &failed {
        casualties.add(&end.thread);
        log::error!("thread {} ended unexpectedly: {}; stopping", end.thread, end.how);
        trigger.fire();
    }
    let deadline = Instant::now() + config.shutdown_timeout;
    let overdue = threads.join_until(deadline, &late);
    if !overdue.is_empty() {
        log::warn!(
            "SHUTDOWN_TIMEOUT is over, not waiting for {}: the broker requeues what they hold",
            overdue.join(", ")
        );
    }
    drained.fire();
    let farewell = if overdue.is_empty() { FAREWELL } else { Duration::ZERO };
    threads.join_until((Instant::now() + farewell).min(deadline), &HashSet::new());
    log::info!("stopped: {}", pipeline.tally());
    match failed.into_iter().chain(threads.failed).next() {
        Some(end) => bail!("thread {} ended unexpectedly: {}", end.thread, end.how),
        None => Ok(()),
    }
}

/// Each connection is a file, and 1,024, the usual soft limit, are too few where a fan-out and many
/// clients of the metrics port meet.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MOST_FILES, |most| most.min(MOST_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        let raised = Rlimit { current: Some(wanted), ..limit };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            log::warn!("cannot raise the limit of open files to {wanted}: {error}");
        }
    }
}

/// A database that is away is waited for, as later on; one that refuses us won't change its mind. What
/// we may not do there is told, and done without.
fn check_database(config: &Config, store: &Store, metrics: &Metrics) -> Result<()> {
    match store.check() {
        Ok(()) => metrics.database().answered(),
        Err(error) if error.is_passing() => {
            log::warn!("{error}; consuming begins when it answers");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let with_log = config.delivery_log != Extent::Off;
    for (follows, error) in store.unable(with_log).unwrap_or_default() {
        // Of the instances whoever needs them tells.
        if follows != EACH_BY_ITSELF {
            log::warn!("{error}; until then {follows}");
        }
    }
    Ok(())
}

/// Reaches the broker and declares the topology, at least what is vital, within the configured number of
/// attempts; `None` if shutdown came first.
fn first_connection(config: &Config, objects: &Objects, shutdown: &Shutdown) -> Result<Option<()>> {
    let topology = Topology::of(config);
    let most = config.amqp_connection_attempts;
    let mut attempt = 1;
    loop {
        let connect = || {
            let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
            let problems = topology.declare(&mut link, objects, shutdown, |_, _| {})?;
            link.close();
            // What something else can stand in for is told, and costs only what needs it.
            let vital = problems.into_iter().find(|problem| problem.is_vital);
            vital.map_or(Ok(()), |problem| Err(problem.error))
        };
        let connected = connect().map(|()| objects.tell());
        match connected {
            _ if shutdown.is_requested() => return Ok(None),
            Ok(()) => return Ok(Some(())),
            Err(error @ BrokerError::Misconfigured { .. }) => return Err(error.into()),
            Err(error) if attempt == most => {
                return Err(error).context(format!("no connection after {most} attempts"));
            }
            Err(error) => log::warn!("{error} (attempt {attempt} of {most})"),
        }
        attempt += 1;
        if shutdown.wait(config.amqp_retry_delay) {
            return Ok(None);
        }
    }
}

/// Keeps current what no event moves: queue depths, that the queues are there, and whether RabbitMQ and
/// PostgreSQL answer; and does what is to be done every time around.
fn monitor(
    config: &Config,
    store: &Store,
    metrics: &Metrics,
    objects: &Objects,
    shutdown: &Shutdown,
    tick: impl Fn(),
) {
    let depth = |queue: &str, messages| metrics.set_queue_messages(queue, messages);
    let ask = || {
        tick();
        match store.ping() {
            Ok(()) => metrics.database().answered(),
            Err(error) => metrics.database().failed(error.answer()),
        }
    };
    let heard = |answers| match answers {
        true => metrics.broker().answered(),
        false => metrics.broker().failed(None),
    };
    broker::watch_queues(config, objects, shutdown, MONITOR_INTERVAL, depth, heard, ask);
}

/// A random number from 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
fn jitter() -> f64 {
    (Uuid::new_v4().as_u128() >> 75) as f64 / (1_u64 << 53) as f64
}

/// The threads of the process. Each has a name, and each end is noticed.
struct Threads {
    running: HashSet<String>,
    /// Those that failed while they were waited for.
    failed: Vec<End>,
    sender: Sender<End>,
    ends: Receiver<End>,
}

/// How a thread ended.
struct End {
    thread: String,
    how: String,
}

impl End {
    /// How a thread ends that has done what it was there for.
    const RETURNED: &str = "returned";
}

/// Reports the end of its thread, even by a panic.
struct Reporter {
    end: End,
    sender: Sender<End>,
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let how = if thread::panicking() { "panicked".to_owned() } else { self.end.how.clone() };
        // Fails only when the process is past caring.
        let _ = self.sender.send(End { thread: self.end.thread.clone(), how });
    }
}

impl Threads {
    fn new() -> Self {
        let (sender, ends) = unbounded();
        Self { running: HashSet::new(), failed: Vec::new(), sender, ends }
    }

    fn names(&self) -> HashSet<String> {
        self.running.clone()
    }

    fn spawn(
        &mut self,
        name: String,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let end = End { thread: name.clone(), how: End::RETURNED.to_owned() };
        let reporter = Reporter { end, sender: self.sender.clone() };
        let report = move || {
            let mut reporter = reporter;
            if let Err(error) = body() {
                reporter.end.how = format!("{error:#}");
            }
        };
        thread::Builder::new()
            .name(name.clone())
            .spawn(report)
            .with_context(|| format!("cannot start the thread {name}"))?;
        self.running.insert(name);
        Ok(())
    }

    /// Waits for shutdown, or for the end of a thread before it.
    fn wait_for_end(&mut self, shutdown: &Shutdown) -> Option<End> {
        select! {
            recv(shutdown.receiver()) -> _ => None,
            recv(self.ends) -> end => end.ok().filter(|end| {
                self.running.remove(&end.thread);
                // Both at once: the thread did what shutdown asked of it.
                !shutdown.is_requested() || end.how != End::RETURNED
            }),
        }
    }

    /// Waits until all threads but those in `spared` have ended; returns those that have not.
    fn join_until(&mut self, deadline: Instant, spared: &HashSet<String>) -> Vec<String> {
        while self.running.iter().any(|name| !spared.contains(name)) {
            match self.ends.recv_deadline(deadline) {
                Ok(end) => {
                    self.running.remove(&end.thread);
                    if end.how != End::RETURNED {
                        self.failed.push(end);
                    }
                }
                Err(_) => break,
            }
        }
        let mut overdue: Vec<String> = self.running.difference(spared).cloned().collect();
        overdue.sort_unstable();
        overdue
    }
}
