//! Receivers: they have a thread per connection, need mostly one read and one write per request, and log
//! what arrived when. [`crate::raw_loop`] measures their throughput.

mod log;

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

pub(crate) use log::{Answer, Differences, Log, Receipt};

use crate::{event, measure::now};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";
const FAILED: &[u8] = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
const UNAVAILABLE: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";

/// Far more than the size of any request here.
const BUFFER: usize = 16 * 1024;

/// The stack size of a connection's thread: there can be many of them. The buffer isn't on the stack.
const STACK: usize = 128 * 1024;

/// How many connections may wait to be accepted: more than are ever opened at once.
const BACKLOG: i32 = 4_096;

/// Listens on loopback until it is dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Behaviour {
    Prompt,
    /// Answers after this time.
    Slow(Duration),
    /// Accepts, reads, and never answers.
    Silent,
    /// Never answers these webhooks' requests, and answers others promptly.
    SilentTo(fn(u32) -> bool),
    /// Fails this percentage of requests. Event and attempt determine which ones, so that each run fails
    /// the same.
    Flaky(u64),
    /// Answers 503 for this long after its first request.
    Away(Duration),
    /// Alternates for each webhook: a request takes this long, and so do those that arrive meanwhile; the
    /// next one is answered at once.
    Alternating(Duration),
}

/// The state that a receiver's connections share.
struct Shared {
    behaviour: Behaviour,
    log: Arc<Log>,
    first_request: OnceLock<u64>,
    /// How often each event has arrived.
    attempts: Mutex<HashMap<u32, u64>>,
    /// Until when a webhook hangs; if it is missing, its next request sets it.
    hanging: Mutex<HashMap<u32, u64>>,
    is_away: AtomicBool,
    is_held: AtomicBool,
    held: Mutex<()>,
    released: Condvar,
    ended: AtomicBool,
    /// The connections to close at the end.
    streams: Mutex<Vec<TcpStream>>,
}

impl Shared {
    /// The answer to a request, and its delay.
    fn answer(&self, event: u32, webhook: u32, at: u64) -> (Answer, Duration) {
        if self.is_away.load(Ordering::Acquire) {
            return (Answer::Unavailable, Duration::ZERO);
        }
        let answer = match self.behaviour {
            Behaviour::Prompt => Answer::Success,
            Behaviour::Slow(time) => return (Answer::Success, time),
            Behaviour::Silent => Answer::Nothing,
            Behaviour::SilentTo(these) if these(webhook) => Answer::Nothing,
            Behaviour::SilentTo(_) => Answer::Success,
            Behaviour::Flaky(percent) => {
                let mut attempts = self.attempts.lock().expect("no holder panics");
                let attempt = attempts.entry(event).or_default();
                *attempt += 1;
                match mixed(u64::from(event) << 16 | *attempt) % 100 < percent {
                    true => Answer::Failure,
                    false => Answer::Success,
                }
            }
            Behaviour::Away(time) => match at < self.first_request_at(at) + nanoseconds(time) {
                true => Answer::Unavailable,
                false => Answer::Success,
            },
            Behaviour::Alternating(time) => {
                let mut hanging = self.hanging.lock().expect("no holder panics");
                let until = *hanging.entry(webhook).or_insert(at + nanoseconds(time));
                if at < until {
                    return (Answer::Success, time);
                }
                hanging.remove(&webhook);
                Answer::Success
            }
        };
        (answer, Duration::ZERO)
    }

    fn first_request_at(&self, at: u64) -> u64 {
        *self.first_request.get_or_init(|| at)
    }

    fn wait_released(&self) {
        let mut held = self.held.lock().expect("no holder panics");
        while self.is_held.load(Ordering::Acquire) {
            held = self.released.wait(held).expect("no holder panics");
        }
    }
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("less than centuries")
}

/// A pseudo-random number (splitmix64).
fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Receiver {
    /// On a port chosen by the system.
    pub(crate) fn start(behaviour: Behaviour, log: &Arc<Log>) -> Self {
        Self::start_at(0, behaviour, log)
    }

    pub(crate) fn start_at(port: u16, behaviour: Behaviour, log: &Arc<Log>) -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, port), behaviour, log)
    }

    /// On its own host: all of 127.0.0.0/8 is loopback.
    pub(crate) fn on(host: Ipv4Addr, behaviour: Behaviour, log: &Arc<Log>) -> Self {
        Self::listen((host, 0), behaviour, log)
    }

    /// On this port of every host of 127.0.0.0/8 at once.
    pub(crate) fn on_every_host(port: u16, behaviour: Behaviour, log: &Arc<Log>) -> Self {
        Self::listen((Ipv4Addr::UNSPECIFIED, port), behaviour, log)
    }

    fn listen(address: (Ipv4Addr, u16), behaviour: Behaviour, log: &Arc<Log>) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        // By default 128 connections may wait to be accepted. Others would be retried after a second.
        rustix::net::listen(&listener, BACKLOG).expect("it listens");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            behaviour,
            log: Arc::clone(log),
            first_request: OnceLock::new(),
            attempts: Mutex::default(),
            hanging: Mutex::default(),
            is_away: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            held: Mutex::default(),
            released: Condvar::new(),
            ended: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let receiver = Self { address, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                shared.log.count_connection();
                if let Ok(handle) = stream.try_clone() {
                    shared.streams.lock().expect("no holder panics").push(handle);
                }
                let shared = Arc::clone(&shared);
                // A client may close its connection at any time.
                let serve = move || drop(serve(stream, &shared));
                thread::Builder::new().stack_size(STACK).spawn(serve).expect("one more thread");
            }
        });
        receiver
    }

    /// When its first request arrived.
    pub(crate) fn first_request(&self) -> Option<u64> {
        self.shared.first_request.get().copied()
    }

    /// From now on it answers 503 at once, until [`Self::recover`].
    pub(crate) fn fail(&self) {
        self.shared.is_away.store(true, Ordering::Release);
    }

    /// Ends [`Self::fail`]. Returns the time.
    pub(crate) fn recover(&self) -> u64 {
        self.shared.is_away.store(false, Ordering::Release);
        now()
    }

    /// From now on it doesn't answer, until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.shared.is_held.store(true, Ordering::Release);
    }

    pub(crate) fn release(&self) {
        let held = self.shared.held.lock().expect("no holder panics");
        self.shared.is_held.store(false, Ordering::Release);
        drop(held);
        self.shared.released.notify_all();
    }

    /// The URL of one of its webhooks.
    pub(crate) fn url(&self, webhook: u32) -> String {
        format!("http://{}/webhooks/{webhook}", self.address)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Release);
        self.release();
        // Wakes the accepting thread, which closes the listener.
        let _ = TcpStream::connect(self.address);
        for stream in self.shared.streams.lock().expect("no holder panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Serves one connection until the client closes it.
fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; BUFFER];
    let mut filled = 0;
    loop {
        let request = loop {
            if let Some(request) = Request::parse(&buffer[..filled]) {
                break request;
            }
            let read = stream.read(&mut buffer[filled..])?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
        };
        let at = now();
        let Request { webhook, body, length } = request;
        let (answer, after) = match event::read(body) {
            Some(event::Stamp { number: event, sent }) => {
                let (answer, after) = shared.answer(event, webhook, at);
                shared.log.push(Receipt { event, webhook, sent, at, answer });
                (answer, after)
            }
            None => {
                shared.log.count_unexpected();
                (Answer::Success, Duration::ZERO)
            }
        };
        buffer.copy_within(length..filled, 0);
        filled -= length;
        if shared.is_held.load(Ordering::Acquire) {
            shared.wait_released();
        }
        if !after.is_zero() {
            thread::sleep(after);
        }
        match answer {
            Answer::Success => stream.write_all(OK)?,
            Answer::Failure => stream.write_all(FAILED)?,
            Answer::Unavailable => stream.write_all(UNAVAILABLE)?,
            Answer::Nothing => {}
        }
    }
}

/// A complete request at the start of a buffer.
struct Request<'a> {
    webhook: u32,
    body: &'a [u8],
    /// The length of the whole request.
    length: usize,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
        let mut lines = bytes[..head].split(|&byte| byte == b'\n');
        let path = lines.next()?.split(|&byte| byte == b' ').nth(1)?;
        let webhook = number(path.rsplit(|&byte| byte == b'/').next()?).unwrap_or(u32::MAX);
        const NAME: &[u8] = b"content-length:";
        let length = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(NAME.len())?;
            name.eq_ignore_ascii_case(NAME).then(|| number(value.trim_ascii()))?
        })?;
        let length = head + length as usize;
        Some(Self { webhook, body: bytes.get(head..length)?, length })
    }
}

fn number(digits: &[u8]) -> Option<u32> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A port where nothing listens, for a receiver that will start later. It is below the range of
/// ephemeral ports: a client that connects to such a port of its own machine occasionally connects to
/// itself.
pub(crate) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..1_000).map(|_| fastrand::u16(10_000..20_000)).find(free).expect("one port is free")
}
