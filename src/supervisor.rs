//! Tells systemd, or another supervisor that supports sd_notify, when the process is ready, what it waits for, that it
//! is alive, and that it is stopping.
//!
//! It sends datagrams of `NAME=value` lines to the socket that NOTIFY_SOCKET names; without that variable it
//! sends nothing. The watchdog is for a process that hangs: stopped, starved of CPU, or with a lock that is never
//! released. A process that waits for RabbitMQ, PostgreSQL or a receiver doesn't hang, however long it waits: a restart
//! during an outage would not help.

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

/// How often to check for news. It delays the return of `systemctl start` by this much at most.
const TICK: Duration = Duration::from_millis(250);

/// The time limit for sending a message. The socket is full only while the supervisor itself hangs, and doesn't read
/// messages.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The extension of the start time that we request, repeatedly, while the process starts. If the database is away, the
/// start waits for it without a limit. Without an extension, systemd would kill and restart us every 90 seconds.
const START_EXTENSION: Duration = Duration::from_secs(60);

/// How much longer than SHUTDOWN_TIMEOUT the exit of the process may take on a slow machine.
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
    /// The supervisor kills the process if it gets no sign of life for this long.
    watchdog: Option<Duration>,
}

/// What was already sent to the supervisor.
#[derive(Clone, Debug, Default)]
struct Sent {
    /// Whether `READY=1` was sent.
    ready: bool,
    /// The last status.
    status: String,
    /// When the start time was last extended.
    extended: Option<Instant>,
    /// When the last sign of life was sent.
    alive: Option<Instant>,
}

impl Supervisor {
    /// The supervisor that the environment names, if any. If its socket can't be used, that is only a warning: the
    /// supervisor itself reports that it received nothing.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let name = env::var("NOTIFY_SOCKET").ok().filter(|name| !name.is_empty())?;
        let variable = |name| env::var(name).ok();
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid == process::id().to_string());
        let usec = variable("WATCHDOG_USEC").filter(|_| ours).and_then(|usec| usec.parse().ok());
        let watchdog = usec.filter(|usec| *usec > 0).map(Duration::from_micros);
        match Self::at(&name, watchdog) {
            Ok(supervisor) => Some(supervisor),
            Err(error) => {
                let name = shown::line(&name, MOST_OF_STATUS);
                log::warn!("cannot notify the supervisor: NOTIFY_SOCKET={name}: {error}");
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
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { socket, address, watchdog })
    }

    /// Notifies the supervisor from the start of the process until `over`, which follows `shutdown`.
    pub fn notify_until(
        &self,
        metrics: &Metrics,
        shutdown_timeout: Duration,
        shutdown: &Shutdown,
        over: &Shutdown,
    ) {
        let mut sent = Sent::default();
        let tick = self.watchdog.map_or(TICK, |watchdog| TICK.min(watchdog / 4));
        loop {
            self.send(&mut sent, |sent| self.news(sent, metrics));
            if shutdown.wait(tick) {
                break;
            }
        }
        let time = (shutdown_timeout + STOP_MARGIN).as_micros();
        let dead = metrics.health().ended_threads();
        let status = match dead.as_slice() {
            [] => "stopping: finishing the requests in flight".to_owned(),
            _ => format!("stopping: thread {} ended", dead.join(", ")),
        };
        self.send(&mut sent, |_| {
            format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={time}\n")
        });
        // The shutdown has its own time limit. Signs of life keep the watchdog from ending it earlier.
        while !over.wait(tick) {
            self.send(&mut sent, |sent| self.sign_of_life(sent));
        }
    }

    /// Sends the news, if there is any. If that fails, it is sent again next time.
    fn send(&self, sent: &mut Sent, news: impl FnOnce(&mut Sent) -> String) {
        let mut after = sent.clone();
        let message = news(&mut after);
        if message.is_empty() {
            return;
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.address) {
            Ok(_) => *sent = after,
            Err(error) => log::debug!("message to the supervisor not sent {message:?}: {error}"),
        }
    }

    /// What the supervisor doesn't know yet, before a shutdown.
    fn news(&self, sent: &mut Sent, metrics: &Metrics) -> String {
        let mut message = String::new();
        let missing = metrics.health().not_ready();
        if missing.is_empty() && !sent.ready {
            sent.ready = true;
            message.push_str("READY=1\n");
        }
        let status = match missing.as_slice() {
            [] => ALL_WELL.to_owned(),
            _ => shown::line(&format!("waiting: {}", missing.join(", ")), MOST_OF_STATUS),
        };
        if status != sent.status {
            let _ = writeln!(message, "STATUS={status}");
            sent.status = status;
        }
        if !metrics.health().ended_threads().is_empty() {
            // The main thread is about to stop the process. If it doesn't, the watchdog does.
            return message;
        }
        if !sent.ready && is_due(sent.extended, START_EXTENSION / 3) {
            let _ = writeln!(message, "EXTEND_TIMEOUT_USEC={}", START_EXTENSION.as_micros());
            sent.extended = Some(Instant::now());
        }
        if self.owes_sign_of_life(sent) {
            // This takes every lock that a delivery takes. If one is never released, it blocks too.
            let _ = metrics.encode();
            message.push_str(&self.sign_of_life(sent));
        }
        message
    }

    fn sign_of_life(&self, sent: &mut Sent) -> String {
        if !self.owes_sign_of_life(sent) {
            return String::new();
        }
        sent.alive = Some(Instant::now());
        "WATCHDOG=1\n".to_owned()
    }

    /// Whether a sign of life is due: after half of the watchdog's time, as sd_watchdog_enabled(3) advises.
    fn owes_sign_of_life(&self, sent: &Sent) -> bool {
        self.watchdog.is_some_and(|watchdog| is_due(sent.alive, watchdog / 2))
    }
}

fn is_due(last: Option<Instant>, every: Duration) -> bool {
    last.is_none_or(|last| last.elapsed() >= every)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::LiveValues;
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
    fn the_supervisor_is_told_what_is_missing_until_everything_is_ready() {
        let (listener, supervisor) = Listener::with(None);
        let metrics = metrics();
        let mut sent = Sent::default();
        let mut heard = |metrics: &Metrics| {
            supervisor.send(&mut sent, |sent| supervisor.news(sent, metrics));
            listener.hear()
        };
        metrics.health().set_consuming("a", true);
        assert_eq!(
            heard(&metrics),
            [
                "STATUS=waiting: lane a.retry is not consuming, PostgreSQL does not answer",
                "EXTEND_TIMEOUT_USEC=60000000",
            ]
        );
        assert_eq!(heard(&metrics), [""; 0], "no news");
        make_ready(&metrics);
        assert_eq!(heard(&metrics), ["READY=1", &format!("STATUS={ALL_WELL}")]);
        metrics.health().database().failed(None);
        assert_eq!(heard(&metrics), ["STATUS=waiting: PostgreSQL does not answer"]);
        metrics.health().database().answered();
        assert_eq!(heard(&metrics), [format!("STATUS={ALL_WELL}")], "ready once, not twice");
    }

    #[test]
    fn signs_of_life_are_sent_at_half_of_the_time_and_end_with_a_thread() {
        let watchdog = Duration::from_secs(60);
        let (listener, supervisor) = Listener::with(Some(watchdog));
        let metrics = metrics();
        make_ready(&metrics);
        let mut sent = Sent::default();
        // The time since the last sign of life.
        let mut hears_life = |after: Duration| {
            let last = Instant::now().checked_sub(after);
            sent.alive = Some(last.expect("the machine is up for longer"));
            supervisor.send(&mut sent, |sent| supervisor.news(sent, &metrics));
            listener.hear().contains(&"WATCHDOG=1".to_owned())
        };
        assert!((0..3).all(|_| hears_life(watchdog / 2)));
        assert!(!hears_life(watchdog / 4), "not before");
        metrics.health().thread_ended("monitor");
        assert!((0..3).all(|_| !hears_life(watchdog)));
    }

    #[test]
    fn a_lock_that_is_never_released_ends_the_signs_of_life() {
        let (listener, supervisor) = Listener::with(Some(Duration::from_millis(20)));
        let metrics = metrics();
        make_ready(&metrics);
        // As if a deadlocked thread held it.
        let (release, held) = shutdown::channel();
        let (waits, waiting) = crossbeam_channel::bounded(1);
        metrics.set_live_values(move || {
            let _ = waits.try_send(());
            let _ = held.wait(Duration::from_secs(600));
            LiveValues {
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
                supervisor.notify_until(&metrics, patience, &asked, &asked);
            });
            waiting
                .recv_timeout(Duration::from_secs(30))
                .expect("it reads the metrics before it sends a sign of life");
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
    fn a_message_that_could_not_be_sent_is_sent_again() {
        let (listener, supervisor) = Listener::with(None);
        let deaf = Supervisor::at("/nowhere/notify", None).expect("a name like any other");
        let metrics = metrics();
        make_ready(&metrics);
        let mut sent = Sent::default();
        deaf.send(&mut sent, |sent| deaf.news(sent, &metrics));
        supervisor.send(&mut sent, |sent| supervisor.news(sent, &metrics));
        assert!(listener.hear().contains(&"READY=1".to_owned()));
    }
}
