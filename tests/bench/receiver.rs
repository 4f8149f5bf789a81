//! Receivers: a thread per connection, mostly one read and one write per request, and a log of what
//! came when. [`crate::raw_loop`] shows what they can take.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{event, measure::now};

/// What every request gets.
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok";

/// Far above the size of any request here.
const BUFFER: usize = 16 * 1024;

/// One request, when its last byte was there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    /// The number of the event.
    pub(crate) event: u32,
    /// The number at the end of the path.
    pub(crate) webhook: u32,
    pub(crate) sent: u64,
    pub(crate) at: u64,
}

impl Receipt {
    /// Nanoseconds from publishing to here.
    pub(crate) fn latency(&self) -> u64 {
        self.at.saturating_sub(self.sent)
    }
}

/// What one or several receivers got.
#[derive(Debug, Default)]
pub(crate) struct Log {
    entries: Mutex<Entries>,
    reached: Condvar,
}

#[derive(Debug, Default)]
struct Entries {
    receipts: Vec<Receipt>,
    connections: usize,
    strangers: usize,
    /// Who waits wants to know of this many.
    awaited: usize,
}

/// What came, compared with what should have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) missing: usize,
    pub(crate) repeated: usize,
    /// Requests for nothing that was expected there.
    pub(crate) strangers: usize,
}

impl Account {
    pub(crate) fn is_right(self) -> bool {
        self == Self::default()
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, repeated, strangers } = self;
        write!(f, "{missing} missing, {repeated} repeated, {strangers} that nobody sent")
    }
}

impl Log {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().expect("no receiver panics while it holds it")
    }

    fn push(&self, receipt: Receipt) {
        let mut entries = self.lock();
        entries.receipts.push(receipt);
        let reached = entries.receipts.len() == entries.awaited;
        drop(entries);
        if reached {
            self.reached.notify_all();
        }
    }

    /// Waits until that many requests have come. False: they have not, within the limit.
    pub(crate) fn wait(&self, count: usize, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut entries = self.lock();
        entries.awaited = count;
        while entries.receipts.len() < count {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { return false };
            entries = self.reached.wait_timeout(entries, left).expect("as above").0;
        }
        true
    }

    pub(crate) fn connections(&self) -> usize {
        self.lock().connections
    }

    pub(crate) fn receipts(&self) -> Vec<Receipt> {
        self.lock().receipts.clone()
    }

    /// Compares with what should have come: these events, each to one webhook.
    pub(crate) fn account(&self, events: impl IntoIterator<Item = u32>) -> Account {
        self.account_by(|receipt| receipt.event, events)
    }

    /// Compares with what should have come: one event, to each of these webhooks.
    pub(crate) fn account_of_webhooks(&self, webhooks: impl IntoIterator<Item = u32>) -> Account {
        self.account_by(|receipt| receipt.webhook, webhooks)
    }

    fn account_by(
        &self,
        key: fn(&Receipt) -> u32,
        expected: impl IntoIterator<Item = u32>,
    ) -> Account {
        let entries = self.lock();
        let mut times: HashMap<u32, usize> = HashMap::new();
        for receipt in &entries.receipts {
            *times.entry(key(receipt)).or_default() += 1;
        }
        let mut account = Account { strangers: entries.strangers, ..Account::default() };
        for number in expected {
            match times.remove(&number) {
                None => account.missing += 1,
                Some(times) => account.repeated += times - 1,
            }
        }
        account.strangers += times.len();
        account
    }
}

/// Listens on loopback until it is dropped.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    open: Arc<Open>,
}

/// What a receiver does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    Prompt,
    /// Answers after this time.
    Slow(Duration),
    /// Accepts, reads, and never answers.
    Silent,
}

/// What must be closed at the end.
#[derive(Default)]
struct Open {
    ended: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Receiver {
    /// At a port that the system chooses.
    pub(crate) fn start(behaviour: Behaviour, log: &Arc<Log>) -> Self {
        Self::start_at(0, behaviour, log)
    }

    pub(crate) fn start_at(port: u16, behaviour: Behaviour, log: &Arc<Log>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let open = Arc::new(Open::default());
        let (log, shared) = (Arc::clone(log), Arc::clone(&open));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.ended.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                log.lock().connections += 1;
                if let Ok(handle) = stream.try_clone() {
                    shared.streams.lock().expect("no holder panics").push(handle);
                }
                let log = Arc::clone(&log);
                // A client may end its connection whenever it likes.
                thread::spawn(move || drop(serve(stream, behaviour, &log)));
            }
        });
        Self { address, open }
    }

    /// The URL of one of its webhooks.
    pub(crate) fn url(&self, webhook: u32) -> String {
        format!("http://{}/webhooks/{webhook}", self.address)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.open.ended.store(true, Ordering::Release);
        // Wakes the thread that accepts; it takes the listener with it.
        let _ = TcpStream::connect(self.address);
        for stream in self.open.streams.lock().expect("no holder panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Serves one connection until the client ends it.
fn serve(mut stream: TcpStream, behaviour: Behaviour, log: &Log) -> io::Result<()> {
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
        match event::read(body) {
            Some(stamp) => log.push(Receipt { event: stamp.number, webhook, sent: stamp.sent, at }),
            None => log.lock().strangers += 1,
        }
        buffer.copy_within(length..filled, 0);
        filled -= length;
        match behaviour {
            Behaviour::Prompt => stream.write_all(RESPONSE)?,
            Behaviour::Slow(time) => {
                thread::sleep(time);
                stream.write_all(RESPONSE)?;
            }
            Behaviour::Silent => {}
        }
    }
}

/// A complete request at the start of a buffer.
struct Request<'a> {
    webhook: u32,
    body: &'a [u8],
    /// Of all of it.
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

/// A port where nobody listens, for a receiver that is not there yet. Below the range that outgoing
/// connections get theirs from: a client that tries such a port of its own machine now and then
/// connects to itself.
pub(crate) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    (0..1_000).map(|_| fastrand::u16(10_000..20_000)).find(free).expect("one port is free")
}
