//! The wiring of `run`: check, connect, spawn, wait, drain.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use uuid::Uuid;

use crate::admin;
use crate::backlogs::{Backlogs, Inbox, Keeper};
use crate::broker::{self, BrokerError, Lane, LaneKind, Link, Objects, Publisher, Topology};
use crate::config::{Config, EventQueue};
use crate::consumer;
use crate::delivery_log;
use crate::directory::Directory;
use crate::domain::delivery_log::Extent;
use crate::instances::{Heartbeat, ServedQueue};
use crate::metrics::{InUse, LiveValues, Metrics};
use crate::notices;
use crate::pipeline::{Pipeline, Tally};
use crate::receivers::Receivers;
use crate::shutdown::{self, Shutdown};
use crate::status::Status;
use crate::store::{Store, UNSHARED_LIMITS};
use crate::supervisor::Supervisor;
use crate::threads::{self, Threads};
use crate::workers::Workers;

/// How often the monitor asks for queue depths and whether PostgreSQL answers.
const MONITOR_INTERVAL: Duration = Duration::from_secs(5);

/// How long the last threads (publisher, delivery log, notices, instances, admin) may take to end after the
/// lanes have ended, within SHUTDOWN_TIMEOUT.
const GRACE_PERIOD: Duration = Duration::from_millis(2_500);

/// The limit of open files that we request, up to the hard limit. It is more than we ever use, and costs
/// nothing: the kernel reserves nothing for it.
const MOST_FILES: u64 = 65_536;

/// The threads of an idle lane: its own, its consumer's and its connection's two.
const THREADS_PER_LANE: usize = 4;

/// The other threads of an idle notifier: those started below, those of libraries, and a few that end soon.
const OTHER_THREADS: usize = 32;

/// Checks that the threads of an idle notifier can be started. Requests need more, but can wait for theirs;
/// libraries start theirs at once, and can't wait.
///
/// # Errors
/// If they can't be started.
pub fn check_threads(config: &Config) -> Result<()> {
    let needed = Lane::all(config).len() * THREADS_PER_LANE + OTHER_THREADS;
    threads::check(needed).context(
        "too few threads: raise the limit (`ulimit -u`, TasksMax of the unit, the container's pids \
         limit) or free some memory",
    )
}

/// Runs the notifier until a signal stops it.
///
/// # Errors
/// If it can't start (the database or the broker refuses us, a port is in use), or if a thread ended
/// unexpectedly.
pub fn run(config: Config, store: Store) -> Result<()> {
    let (trigger, shutdown) = shutdown::channel();
    shutdown::watch_signals(trigger.clone())?;
    log::info!("webhook-notifier {} starts", env!("CARGO_PKG_VERSION"));
    raise_file_limit();

    // `drained` is fired when the lanes have ended, or were given up. Until then the lanes need the publisher, and operators need
    // /metrics.
    let (drained, lanes_over) = shutdown::channel();
    let mut threads = Threads::default();
    let (parts, inbox) = Parts::new(config, store, shutdown)?;
    // This comes before the checks, which may take a while: a probe should get "not ready" instead of no
    // answer.
    let port = parts.start_watching(&mut threads, &lanes_over)?;
    parts.check_database()?;
    let Some(broker) = parts.first_connection()? else {
        log::info!("stopped: {}", Tally::new(parts.shutdown));
        return Ok(());
    };
    let (pipeline, keeper) =
        parts.start_support(&mut threads, inbox, port, &broker, &lanes_over)?;
    // These threads run until the lanes have ended.
    let late = threads.names();
    parts.start_lanes(&mut threads, keeper, &pipeline)?;

    let failed = threads.wait_for_end(&parts.shutdown);
    if let Some(end) = &failed {
        parts.metrics.health().thread_ended(&end.thread);
        log::error!("thread {} ended unexpectedly: {}; stopping", end.thread, end.how);
        trigger.fire();
    }
    let deadline = Instant::now() + parts.config.shutdown_timeout;
    let overdue = threads.join_until(deadline, &late);
    if !overdue.is_empty() {
        log::warn!(
            "SHUTDOWN_TIMEOUT is over, not waiting for {}: the broker requeues what they hold",
            overdue.join(", ")
        );
    }
    drained.fire();
    let grace = if overdue.is_empty() { GRACE_PERIOD } else { Duration::ZERO };
    threads.join_until((Instant::now() + grace).min(deadline), &HashSet::new());
    log::info!("stopped: {}", pipeline.tally());
    match failed.or(threads.into_failed()) {
        Some(end) => bail!("thread {} ended unexpectedly: {}", end.thread, end.how),
        None => Ok(()),
    }
}

/// What the threads share.
struct Parts {
    config: Arc<Config>,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
    receivers: Arc<Receivers>,
    backlogs: Arc<Backlogs>,
    objects: Arc<Objects>,
    directory: Arc<Directory>,
    workers: Workers,
    shutdown: Shutdown,
}

impl Parts {
    fn new(config: Config, store: Store, shutdown: Shutdown) -> Result<(Self, Inbox)> {
        let queues = Lane::all(&config).into_iter().map(|lane| lane.queue);
        let metrics = Arc::new(Metrics::new(queues)?);
        let capacities = config.queues.iter().map(|queue| queue.capacity);
        let (backlogs, inbox) = Backlogs::new(&config);
        let store = Arc::new(store);
        let directory = Directory::new(&config, Arc::clone(&store), metrics.lookups());
        let parts = Self {
            receivers: Arc::new(Receivers::new(capacities, config.circuit_breaker, jitter)),
            backlogs: Arc::new(backlogs),
            objects: Arc::new(Objects::new(metrics.topology())),
            directory: Arc::new(directory),
            workers: Workers::default(),
            config: Arc::new(config),
            store,
            metrics,
            shutdown,
        };
        Ok((parts, inbox))
    }

    /// Starts the metrics port, the status page and the messages to the supervisor. Returns the port.
    fn start_watching(&self, threads: &mut Threads, lanes_over: &Shutdown) -> Result<u16> {
        let status = Arc::new(Status::new(
            &self.config,
            Arc::clone(&self.metrics),
            Arc::clone(&self.directory),
            Arc::clone(&self.receivers),
            Arc::clone(&self.backlogs),
            Arc::clone(&self.objects),
            self.shutdown.clone(),
        ));
        let (door, admin) = admin::open(self.config.metrics_addr, &self.config.metrics_hosts)?;
        let port = door.port();
        let stop = lanes_over.clone();
        threads.spawn("admin-door", move || door.serve(&stop))?;
        let (metrics, shown) = (Arc::clone(&self.metrics), Arc::clone(&status));
        let stop = lanes_over.clone();
        threads.spawn("admin", move || admin.serve(&metrics, &shown, &stop))?;
        let stop = lanes_over.clone();
        threads.spawn("status", move || status.watch(&stop))?;
        if let Some(supervisor) = Supervisor::from_environment() {
            let (metrics, limit) = (Arc::clone(&self.metrics), self.config.shutdown_timeout);
            let (shutdown, over) = (self.shutdown.clone(), lanes_over.clone());
            threads.spawn("supervisor", move || {
                supervisor.notify_until(&metrics, limit, &shutdown, &over);
            })?;
        }
        Ok(port)
    }

    /// Checks the database. If it is away, consuming waits for it, as it would later. If it refuses us, that
    /// is an error, since waiting would not help. Missing rights are logged, and what needs them is not done.
    fn check_database(&self) -> Result<()> {
        match self.store.check() {
            Ok(()) => self.metrics.health().database().answered(),
            Err(error) if error.is_temporary() => {
                log::warn!("{error}; consuming begins when it answers");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let with_log = self.config.delivery_log != Extent::Off;
        for (follows, error) in self.store.missing_rights(with_log).unwrap_or_default() {
            // The `instances` thread logs this itself.
            if follows != UNSHARED_LIMITS {
                log::warn!("{error}; until then {follows}");
            }
        }
        Ok(())
    }

    /// Connects to the broker and declares the topology, at least its vital part, within the configured
    /// number of attempts. Returns the broker's cluster and vhost as one name; `None` if shutdown came first.
    fn first_connection(&self) -> Result<Option<String>> {
        let (config, objects, shutdown) = (&self.config, &self.objects, &self.shutdown);
        let topology = Topology::of(config);
        let most = config.amqp_connection_attempts;
        let mut attempt = 1;
        loop {
            let connect = || {
                let mut link = Link::open(&config.amqp, config.connect_timeout, shutdown)?;
                let name = format!("{} {}", link.cluster(), config.amqp.vhost);
                let problems = topology.declare(&mut link, objects, shutdown, |_, _| {})?;
                link.close();
                // Other problems are logged, and affect only what needs those objects.
                let vital = problems.into_iter().find(|problem| problem.is_vital);
                vital.map_or(Ok(name), |problem| Err(problem.error))
            };
            let connected = connect().inspect(|_| objects.start_logging());
            match connected {
                _ if shutdown.is_requested() => return Ok(None),
                Ok(name) => return Ok(Some(name)),
                Err(error @ BrokerError::Misconfigured { .. }) => return Err(error.into()),
                Err(error) if attempt == most => {
                    return Err(error).context(format!("gave up after {most} attempts"));
                }
                Err(error) => log::warn!("{error} (attempt {attempt} of {most})"),
            }
            attempt += 1;
            if shutdown.wait(config.amqp_retry_delay) {
                return Ok(None);
            }
        }
    }

    /// Starts the threads that the lanes need until they have ended. Returns the pipeline and the keeper, which start with the lanes.
    fn start_support(
        &self,
        threads: &mut Threads,
        inbox: Inbox,
        port: u16,
        broker: &str,
        lanes_over: &Shutdown,
    ) -> Result<(Arc<Pipeline>, Keeper)> {
        let Self { config, store, metrics, directory, receivers, .. } = self;
        let (publisher, publisher_thread) = Publisher::new(config, Arc::clone(&self.objects));
        self.set_live_values(publisher.clone());
        let (log, log_writer) = delivery_log::open(config, store, metrics.log_rows(), jitter);
        let (notices, notice_publisher) =
            notices::open(config, store, directory, receivers, metrics, jitter);
        let backlogs = Lane::all(config).into_iter().filter(|lane| lane.kind == LaneKind::Backlogs);
        let served = backlogs.map(|lane| ServedQueue {
            name: format!("{} {broker}", lane.origin),
            lane: lane.queue,
        });
        let served = served.collect();
        let mut heartbeat = Heartbeat::new(
            config,
            Arc::clone(store),
            Arc::clone(directory),
            Arc::clone(receivers),
            Arc::clone(metrics),
            served,
            port,
        );
        if metrics.health().database().is_up() {
            // The other instances must know of this one before it sends anything.
            heartbeat.beat();
        }
        if let Some(writer) = log_writer {
            let stop = lanes_over.clone();
            threads.spawn("delivery-log", move || writer.run(&stop))?;
        }
        let stop = lanes_over.clone();
        threads.spawn("notices", move || notice_publisher.run(&stop))?;
        let stop = lanes_over.clone();
        threads.spawn("instances", move || heartbeat.run(&stop))?;
        let stop = lanes_over.clone();
        threads.spawn("publisher", move || publisher_thread.run(&stop, jitter))?;
        let keeper = Keeper::new(
            Arc::clone(&self.backlogs),
            inbox,
            Arc::clone(config),
            Arc::clone(store),
            Arc::clone(directory),
            Arc::clone(receivers),
            &publisher,
            Arc::clone(metrics),
            Arc::clone(&self.objects),
            self.shutdown.clone(),
        );
        let pipeline = Pipeline::new(
            config,
            Arc::clone(directory),
            publisher,
            Arc::clone(receivers),
            Arc::clone(&self.backlogs),
            self.workers.clone(),
            log,
            notices,
            Arc::clone(metrics),
            self.shutdown.clone(),
        );
        Ok((Arc::new(pipeline), keeper))
    }

    /// Sets the function that reads the gauges which only a scrape updates.
    fn set_live_values(&self, publisher: Publisher) {
        let (receivers, directory) = (Arc::clone(&self.receivers), Arc::clone(&self.directory));
        let queues = self.config.queues.clone();
        let in_use = move |number: usize, queue: &EventQueue| InUse {
            queue: queue.name.clone(),
            capacity: queue.capacity.into(),
            by_class: receivers.in_use(number),
        };
        let receivers = Arc::clone(&self.receivers);
        self.metrics.set_live_values(move || {
            let count = receivers.count();
            LiveValues {
                receivers_ailing: count.ailing,
                receivers_slow: count.slow,
                breakers_open: count.broken,
                in_use: (0..).zip(&queues).map(|(number, queue)| in_use(number, queue)).collect(),
                directory_age: directory.age(),
                broker_accepts: publisher.is_able(),
                refusing: publisher.refusing(),
            }
        });
    }

    /// Starts the lanes, and the threads that end with them.
    fn start_lanes(
        &self,
        threads: &mut Threads,
        keeper: Keeper,
        pipeline: &Arc<Pipeline>,
    ) -> Result<()> {
        self.start_monitor(threads, Arc::clone(pipeline))?;
        let (directory, shutdown) = (Arc::clone(&self.directory), self.shutdown.clone());
        threads.spawn("directory", move || directory.listen(&shutdown, jitter))?;
        threads.spawn("backlogs", move || keeper.run())?;
        let interruptions = Arc::default();
        for lane in Lane::all(&self.config) {
            let context = consumer::Context {
                config: Arc::clone(&self.config),
                pipeline: Arc::clone(pipeline),
                metrics: Arc::clone(&self.metrics),
                workers: self.workers.clone(),
                receivers: Arc::clone(&self.receivers),
                backlogs: Arc::clone(&self.backlogs),
                objects: Arc::clone(&self.objects),
                interruptions: Arc::clone(&interruptions),
                shutdown: self.shutdown.clone(),
                jitter,
            };
            let name = format!("lane-{}", lane.queue);
            threads.spawn(name, move || consumer::run(&context, &Arc::new(lane)))?;
        }
        Ok(())
    }

    /// Starts the monitor. It checks the queues and their depths, and whether RabbitMQ and PostgreSQL answer.
    /// It also closes idle connections.
    fn start_monitor(&self, threads: &mut Threads, pipeline: Arc<Pipeline>) -> Result<()> {
        let (config, store) = (Arc::clone(&self.config), Arc::clone(&self.store));
        let (metrics, objects) = (Arc::clone(&self.metrics), Arc::clone(&self.objects));
        let shutdown = self.shutdown.clone();
        threads.spawn("monitor", move || {
            let depth = |queue: &str, messages| metrics.set_queue_messages(queue, messages);
            let ask = || {
                pipeline.close_idle();
                match store.ping() {
                    Ok(()) => metrics.health().database().answered(),
                    Err(error) => metrics.health().database().failed(error.answer()),
                }
            };
            let heard = |answers| match answers {
                true => metrics.health().broker().answered(),
                false => metrics.health().broker().failed(None),
            };
            broker::watch_queues(&config, &objects, &shutdown, MONITOR_INTERVAL, depth, heard, ask);
        })
    }
}

/// Raises the limit of open files. Each connection is one, and the usual soft limit of 1,024 is too low for a
/// large fan-out beside many clients of the metrics port.
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

/// A random number from 0 (inclusive) to 1 (exclusive).
#[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
fn jitter() -> f64 {
    (Uuid::new_v4().as_u128() >> 75) as f64 / (1_u64 << 53) as f64
}
