//! Limits the time of calls. One thread does this for the whole process.
//!
//! The thread is started once, before the first connection. If each call started its own, that could fail
//! just when the machine is overloaded; then the call would have no time limit, or we would have to give up
//! the connection with all messages in hand.

use std::io;
use std::net::{Shutdown as Half, TcpStream};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Select, Sender, unbounded};

use super::{CALL_TIMEOUT, CLOSE_TIMEOUT};
use crate::shutdown::Shutdown;

/// Cuts a connection from another thread, whatever its owner is waiting for.
#[derive(Clone, Debug)]
pub struct KillSwitch(Arc<TcpStream>);

impl KillSwitch {
    pub(super) fn of(stream: &TcpStream) -> io::Result<Self> {
        Ok(Self(Arc::new(stream.try_clone()?)))
    }

    /// Shuts the socket down: every call on the connection fails within a millisecond.
    pub fn cut(&self) {
        // This fails only if the socket is closed already.
        let _ = self.0.shutdown(Half::Both);
    }

    /// Runs a call that may hang. Cuts the connection if the call takes longer than `limit`, or at shutdown.
    ///
    /// This wakes another thread, so it is for rare calls: opening, setting up, closing.
    pub fn guard<T>(
        &self,
        limit: Duration,
        shutdown: Option<&Shutdown>,
        call: impl FnOnce() -> T,
    ) -> T {
        self.watch(limit, shutdown.cloned(), Duration::ZERO, call)
    }

    /// The same on a connection that other threads use: cuts it after `CALL_TIMEOUT`, or `CLOSE_TIMEOUT`
    /// after they were asked to end (`ending`).
    pub fn guard_shared<T>(&self, ending: &Shutdown, call: impl FnOnce() -> T) -> T {
        self.watch(CALL_TIMEOUT, Some(ending.clone()), CLOSE_TIMEOUT, call)
    }

    fn watch<T>(
        &self,
        limit: Duration,
        shutdown: Option<Shutdown>,
        grace: Duration,
        call: impl FnOnce() -> T,
    ) -> T {
        let end = Arc::new(Mutex::new(Some(self.clone())));
        let deadline = Instant::now() + limit;
        let watched = Watched { end: Arc::clone(&end), deadline, shutdown, grace };
        if let Err(error) = WATCH.add(watched) {
            log::warn!("connection cut: no thread can limit the time of a call: {error}");
            self.cut();
        }
        let result = call();
        // From here on the connection is no longer cut.
        take(&end);
        result
    }
}

/// Starts the thread that limits calls, unless it is running.
///
/// # Errors
/// If the thread can't be started.
pub(super) fn start() -> io::Result<()> {
    WATCH.start()
}

static WATCH: LazyLock<Watch> = LazyLock::new(Watch::new);

struct Watch {
    calls: Sender<Watched>,
    /// Set until the thread is started.
    receiver: Mutex<Option<Receiver<Watched>>>,
}

/// A call under way.
struct Watched {
    /// Taken at the end of the call or at its limit, whichever comes first.
    end: Arc<Mutex<Option<KillSwitch>>>,
    deadline: Instant,
    /// Once shutdown is requested, the call may take at most `grace` longer.
    shutdown: Option<Shutdown>,
    grace: Duration,
}

impl Watch {
    fn new() -> Self {
        let (calls, receiver) = unbounded();
        Self { calls, receiver: Mutex::new(Some(receiver)) }
    }

    fn start(&self) -> io::Result<()> {
        let mut receiver = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = &*receiver {
            let calls = calls.clone();
            thread::Builder::new().name("time-limits".to_owned()).spawn(move || watch(&calls))?;
            *receiver = None;
        }
        Ok(())
    }

    fn add(&self, watched: Watched) -> io::Result<()> {
        self.start()?;
        // The thread never ends.
        self.calls.send(watched).map_err(|_| io::Error::other("its thread has ended"))
    }
}

fn watch(calls: &Receiver<Watched>) {
    let mut watched: Vec<Watched> = Vec::new();
    loop {
        let now = Instant::now();
        watched.retain_mut(|call| call.is_running(now));
        let mut select = Select::new();
        select.recv(calls);
        for shutdown in watched.iter().filter_map(|call| call.shutdown.as_ref()) {
            select.recv(shutdown.receiver());
        }
        // Whatever happened, all calls are checked.
        let _ = match watched.iter().map(|call| call.deadline).min() {
            Some(deadline) => select.ready_deadline(deadline).ok(),
            None => Some(select.ready()),
        };
        drop(select);
        watched.extend(calls.try_iter());
    }
}

impl Watched {
    /// Whether the call is still running. Ends it if it has taken too long.
    fn is_running(&mut self, now: Instant) -> bool {
        if self.shutdown.take_if(|shutdown| shutdown.is_requested()).is_some() {
            self.deadline = self.deadline.min(now + self.grace);
        }
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if self.deadline <= now
            && let Some(kill) = end.take()
        {
            // Under the lock, because there must be no cut after the end of the call.
            kill.cut();
        }
        end.is_some()
    }
}

fn take(end: &Mutex<Option<KillSwitch>>) {
    drop(end.lock().unwrap_or_else(PoisonError::into_inner).take());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown;
    use std::io::Read;
    use std::net::TcpListener;

    const LONG: Duration = Duration::from_secs(600);

    /// A connection to somebody who sends nothing.
    fn silence() -> (TcpStream, KillSwitch, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(address).expect("it listens");
        let kill = KillSwitch::of(&stream).expect("a second handle");
        (stream, kill, listener)
    }

    #[test]
    fn a_call_that_hangs_is_ended_by_its_limit_and_by_shutdown() {
        let (mut stream, kill, _listener) = silence();
        let read = kill.guard(Duration::from_millis(10), None, || stream.read(&mut [0]));
        assert_eq!(read.expect("the end of the connection"), 0);

        let (mut stream, kill, _listener) = silence();
        let (trigger, shutdown) = shutdown::channel();
        thread::scope(|scope| {
            let hangs = scope.spawn(|| kill.guard(LONG, Some(&shutdown), || stream.read(&mut [0])));
            trigger.fire();
            assert_eq!(hangs.join().expect("no panic").expect("the end of the connection"), 0);
        });
    }

    #[test]
    fn a_call_on_a_connection_that_others_use_is_ended_soon_after_they_are_to_end() {
        let (mut stream, kill, _listener) = silence();
        let (trigger, ending) = shutdown::channel();
        thread::scope(|scope| {
            let hangs = scope.spawn(|| kill.guard_shared(&ending, || stream.read(&mut [0])));
            let began = Instant::now();
            trigger.fire();
            assert_eq!(hangs.join().expect("no panic").expect("the end of the connection"), 0);
            let took = began.elapsed();
            assert!(took < CALL_TIMEOUT, "{took:?}");
        });
        let (stream, kill, _listener) = silence();
        let (trigger, ending) = shutdown::channel();
        trigger.fire();
        // The call may still end in time.
        kill.guard_shared(&ending, || thread::sleep(Duration::from_millis(50)));
        stream.set_nonblocking(true).expect("a socket");
        let read = (&stream).read(&mut [0]).expect_err("nothing has come, not even an end");
        assert_eq!(read.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_call_that_ends_in_time_leaves_the_connection_as_it_was() {
        let (stream, kill, _listener) = silence();
        let (trigger, shutdown) = shutdown::channel();
        for _ in 0..100 {
            assert_eq!(kill.guard(Duration::from_millis(50), Some(&shutdown), || 7), 7);
        }
        trigger.fire();
        // The thread checks all calls again for each new one, and cuts none.
        let (other, other_kill, _other_listener) = silence();
        other_kill.guard(LONG, None, || ());
        thread::sleep(Duration::from_millis(60));
        other_kill.guard(LONG, None, || ());
        for stream in [stream, other] {
            stream.set_nonblocking(true).expect("a socket");
            let read = (&stream).read(&mut [0]).expect_err("nothing has come, not even an end");
            assert_eq!(read.kind(), io::ErrorKind::WouldBlock);
        }
    }
}
