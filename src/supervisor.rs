//! Tells systemd, or another supervisor that understands sd_notify, when we are ready, what we wait for, that
//! we are alive, and that we stop.
//!
//! It sends datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET names; without that variable it
//! sends nothing. The watchdog is for a process that hangs: stopped, starved, or with a lock that is never
//! released. Waiting for RabbitMQ, PostgreSQL or a receiver, however long, is not hanging: a restart in the
//! middle of an outage would help nobody.

use std::env;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::time::{Duration, Instant};

use crate::domain::shown;
use crate::metrics::Metrics;
use crate::shutdown::Shutdown;

/// How often we look for news. It delays the return of `systemctl start` by this much at most.
const TICK: Duration = Duration::from_millis(250);

/// The time limit for sending a message. The socket is full only while the supervisor itself hangs, and then
/// nobody would read the message.
const SEND_TIME: Duration = Duration::from_secs(1);

/// The start time that we ask for, repeatedly, while we start. We wait for a database that is away as long as
/// it takes. Without an extension systemd would kill and restart us every 90 seconds.
const START_EXTENSION: Duration = Duration::from_secs(60);

/// How long the process may take to exit after SHUTDOWN_TIMEOUT, on a slow machine.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The longest status, in characters: people read it as one line.
const MOST_OF_STATUS: usize = 500;

/// What `systemctl status` says while all is well.
const ALL_WELL: &str = "ready: every lane consumes, and PostgreSQL answers";

/// The supervisor that started us.
#[derive(Debug)]
pub struct Supervisor {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The supervisor kills us if it gets no sign of life for this long.
    watchdog: Option<Duration>,
}

/// What the supervisor was told already.
#[derive(Clone, Debug, Default)]
struct Told {
    ready: bool,
    status: String,
    extended: Option<Instant>,
    alive: Option<Instant>,
}

impl Supervisor {
    /// The supervisor that the environment names, if any. If its socket can't be used, that is only a
    /// warning: the supervisor reports for itself that it heard nothing.
    #[must_use]
    pub fn of_environment() -> Option<Self> {
        let name = env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty())?;
        let variable = |name| env::var(name).ok();
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == process::id().to_string());
        let usec = variable("WATCHDOG_USEC").filter(|_| ours).and_then(|usec| usec.parse().ok());
        let watchdog = usec.filter(|usec| *usec > 0).map(Duration::from_micros);
        match Self::at(&name, watchdog) {
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                let name = shown::line(&name, MOST_OF_STATUS);
                log::warn!("cannot tell the supervisor anything: NOTIFY_SOCKET={name}: {error}");
                None
            }
        }
    }

    fn at(name: &str, watchdog: Option<Duration>) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIME))?;
        Ok(Self { socket, address, watchdog })
    }

    /// Keeps the supervisor informed from the start of the process until `over`, which follows `shutdown`.
    pub fn keep_informed(
        &self,
        metrics: &Metrics,
        shutdown_timeout: Duration,
        shutdown: &Shutdown,
        over: &Shutdown,
    ) {
        let mut told = Told::default();
        let tick = self.watchdog.map_or(TICK, |watchdog| TICK.min(watchdog / 4));
        loop {
            self.tell(&mut told, |told| self.news(told, metrics));
            if shutdown.wait(tick) {
                break;
            }
        }
        let time = (shutdown_timeout + STOP_MARGIN).as_micros();
        let dead = metrics.health().ended_threads();
        let status = match dead.as_slice() {
            [] => "stopping: finishing what is under way".to_owned(),
            _ => format!("stopping: thread {} ended", dead.join(", ")),
        };
        self.tell(&mut told, |_| {
            format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={time}\n")
        });
        // The shutdown has its own time limit, so the watchdog need not end it earlier.
        while !over.wait(tick) {
            self.tell(&mut told, |told| self.sign_of_life(told));
        }
    }

    /// Sends the news, if there is any. If sending fails, it is sent again next time.
    fn tell(&self, told: &mut Told, news: impl FnOnce(&mut Told) -> String) {
        let mut after = told.clone();
        let message = news(&mut after);
        if message.is_empty() {
            return;
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.address) {
            Ok(_) => *told = after,
            Err(error) => log::debug!("the supervisor was not told {message:?}: {error}"),
        }
    }

    /// What the supervisor does not know yet, before a shutdown.
    fn news(&self, told: &mut Told, metrics: &Metrics) -> String {
        let mut message = String::new();
        let missing = metrics.health().not_ready();
        if missing.is_empty() && !told.ready {
            told.ready = true;
            message.push_str("READY=1\n");
        }
        let status = match missing.as_slice() {
            [] => ALL_WELL.to_owned(),
            _ => shown::line(&format!("waiting: {}", missing.join(", ")), MOST_OF_STATUS),
        };
        if status != told.status {
            let _ = writeln!(message, "STATUS={status}");
            told.status = status;
        }
        if !metrics.health().ended_threads().is_empty() {
            // The main thread is about to stop us. If it fails to, the watchdog does.
            return message;
        }
        if !told.ready && is_due(told.extended, START_EXTENSION / 3) {
            let _ = writeln!(message, "EXTEND_TIMEOUT_USEC={}", START_EXTENSION.as_micros());
            told.extended = Some(Instant::now());
        }
        if self.owes_sign_of_life(told) {
            // Takes each lock that a delivery takes. If one is never released, this blocks too.
            let _ = metrics.encode();
            message.push_str(&self.sign_of_life(told));
        }
        message
    }

    fn sign_of_life(&self, told: &mut Told) -> String {
        if !self.owes_sign_of_life(told) {
            return String::new();
        }
        told.alive = Some(Instant::now());
        "WATCHDOG=1\n".to_owned()
    }

    /// A sign of life is due after half of the watchdog's time, as sd_watchdog_enabled(3) advises.
    fn owes_sign_of_life(&self, told: &Told) -> bool {
        self.watchdog.is_some_and(|watchdog| is_due(told.alive, watchdog / 2))
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Glance;
    use crate::shutdown;
    use uuid::Uuid;

    /// The supervisor's end of the socket, non-blocking.
    struct Listener(UnixDatagram);

    impl Listener {
        fn with(watchdog: Option<Duration>) -> (Self, Supervisor) {
            let name = format!("webhook-notifier-test-{}", Uuid::new_v4());
            let address = SocketAddr::from_abstract_name(&name).expect("Linux has abstract names");
            let socket = UnixDatagram::bind_addr(&address).expect("a fresh name");
            socket.set_nonblocking(true).expect("a socket");
            let supervisor = Supervisor::at(&format!("@{name}"), watchdog).expect("a socket");
            (Self(socket), supervisor)
        }

        /// The lines of the next datagram; empty if there is none.
        fn hear(&self) -> Vec<String> {
            let mut bytes = [0; 4_096];
            let length = self.0.recv(&mut bytes).unwrap_or(0);
            let text = std::str::from_utf8(&bytes[..length]).expect("text");
            text.lines().map(str::to_owned).collect()
        }
    }

    fn metrics() -> Metrics {
        Metrics::new(["a".to_owned(), "a.retry".to_owned()]).expect("fresh names")
    }

    fn make_ready(metrics: &Metrics) {
        metrics.health().set_consuming("a", true);
        metrics.health().set_consuming("a.retry", true);
        metrics.health().database().answered();
    }

    #[test]
    fn it_is_ready_when_everything_is_and_says_until_then_what_is_missing() {
        let (listener, supervisor) = Listener::with(None);
        let metrics = metrics();
        let mut told = Told::default();
        let mut tell = |metrics: &Metrics| {
            supervisor.tell(&mut told, |told| supervisor.news(told, metrics));
            listener.hear()
        };
        metrics.health().set_consuming("a", true);
        assert_eq!(
            tell(&metrics),
            [
                "STATUS=waiting: lane a.retry is not consuming, PostgreSQL does not answer",
                "EXTEND_TIMEOUT_USEC=60000000",
            ]
        );
        assert_eq!(tell(&metrics), [""; 0], "no news");
        make_ready(&metrics);
        assert_eq!(tell(&metrics), ["READY=1", &format!("STATUS={ALL_WELL}")]);
        metrics.health().database().failed(None);
        assert_eq!(tell(&metrics), ["STATUS=waiting: PostgreSQL does not answer"]);
        metrics.health().database().answered();
        assert_eq!(tell(&metrics), [format!("STATUS={ALL_WELL}")], "ready once, not twice");
    }

    #[test]
    fn signs_of_life_come_at_half_of_the_time_and_end_with_a_thread() {
        let watchdog = Duration::from_secs(60);
        let (listener, supervisor) = Listener::with(Some(watchdog));
        let metrics = metrics();
        make_ready(&metrics);
        let mut told = Told::default();
        // The time since the last sign of life.
        let mut hears_life = |after: Duration| {
            let last = Instant::now().checked_sub(after);
            told.alive = Some(last.expect("the machine is up for longer"));
            supervisor.tell(&mut told, |told| supervisor.news(told, &metrics));
            listener.hear().contains(&"WATCHDOG=1".to_owned())
        };
        assert!((0..3).all(|_| hears_life(watchdog / 2)));
        assert!(!hears_life(watchdog / 4), "not before");
        metrics.health().thread_ended("monitor");
        assert!((0..3).all(|_| !hears_life(watchdog)));
    }

    #[test]
    fn a_lock_that_is_never_given_back_ends_the_signs_of_life() {
        let (listener, supervisor) = Listener::with(Some(Duration::from_millis(20)));
        let metrics = metrics();
        make_ready(&metrics);
        // As if a deadlocked thread held it.
        let (release, held) = shutdown::channel();
        let (waits, waiting) = crossbeam_channel::bounded(1);
        metrics.look_by(move || {
            let _ = waits.try_send(());
            let _ = held.wait(Duration::from_secs(600));
            Glance {
                receivers_ailing: 0,
                receivers_slow: 0,
                in_use: Vec::new(),
                breakers_open: 0,
                directory_age: Duration::ZERO,
                broker_accepts: true,
                refusing: Vec::new(),
            }
        });
        let (trigger, asked) = shutdown::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let patience = Duration::from_secs(15);
                supervisor.keep_informed(&metrics, patience, &asked, &asked);
            });
            waiting.recv_timeout(Duration::from_secs(30)).expect("it looks before it says so");
            assert_eq!(listener.hear(), [""; 0]);
            release.fire();
            trigger.fire();
        });
        let heard: Vec<String> = std::iter::repeat_with(|| listener.hear())
            .take_while(|lines| !lines.is_empty())
            .flatten()
            .collect();
        assert!(heard.contains(&"WATCHDOG=1".to_owned()), "{heard:?}");
        assert!(heard.contains(&"STOPPING=1".to_owned()), "{heard:?}");
        assert!(heard.contains(&"EXTEND_TIMEOUT_USEC=20000000".to_owned()), "{heard:?}");
    }

    #[test]
    fn what_did_not_arrive_is_told_again() {
        let (listener, supervisor) = Listener::with(None);
        let deaf = Supervisor::at("/nowhere/notify", None).expect("a name like any other");
        let metrics = metrics();
        make_ready(&metrics);
        let mut told = Told::default();
        deaf.tell(&mut told, |told| deaf.news(told, &metrics));
        supervisor.tell(&mut told, |told| supervisor.news(told, &metrics));
        assert!(listener.hear().contains(&"READY=1".to_owned()));
    }
}
