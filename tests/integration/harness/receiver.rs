//! A customer's server: an HTTP server that records every request and answers as the test
//! specifies.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{RecvTimeoutError, TryRecvError};

use super::{Event, SOON, wait_until};

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Status(u16),
    WithHeaders(u16, Vec<(&'static str, String)>),
    /// Answers with the status after this time.
    Slow(Duration, u16),
    /// Doesn't answer until either side closes the connection.
    Hang,
    /// Sends RST instead of an answer.
    Reset,
    /// Closes the connection instead of answering.
    Close,
    /// Not HTTP.
    Garbage,
    /// Sends a head one byte at a time, without end.
    Drip,
    /// Answers with status 200 and an endless body, as fast as the other side reads.
    Endless,
    /// Sends these bytes, HTTP or not.
    Raw(Vec<u8>, Then),
}

/// What follows raw bytes.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    /// Reads the next request.
    Stay,
    /// Closes the connection.
    Close,
    /// RST.
    Reset,
    /// Sends more bytes after this time, and then reads the next request.
    Later(Duration, Vec<u8>),
    /// Sends the same bytes again and again, at this interval.
    Repeat(Duration, Vec<u8>),
}

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// When its head was complete.
    pub(crate) at: Instant,
    pub(crate) wall: SystemTime,
    pub(crate) method: String,
    pub(crate) path: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// How many requests have brought this event to this path, including this one.
    pub(crate) attempt: usize,
}

impl Request {
    pub(crate) fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The header; "" if it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

type Behaviour = dyn Fn(&Request) -> Reply + Send + Sync;

pub(crate) struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Dropped at the end, which wakes every hanging connection.
    alive: Option<crossbeam_channel::Sender<()>>,
}

struct Shared {
    behaviour: Box<Behaviour>,
    journal: Mutex<Journal>,
    /// The open connections, by peer address.
    connections: Mutex<BTreeMap<SocketAddr, TcpStream>>,
    accepted: AtomicUsize,
    ended: crossbeam_channel::Receiver<()>,
}

struct Journal {
    /// `None`: requests are only counted.
    requests: Option<Vec<Request>>,
    /// By path and event.
    attempts: HashMap<(String, String), usize>,
}

impl Receiver {
    /// Answers 200 to everything.
    pub(crate) fn new() -> Self {
        Self::answering(|_| Reply::Status(200))
    }

    pub(crate) fn answering(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(Some(Vec::new()), behaviour)
    }

    /// Answers with this status until the returned flag is set, and with 200 from then on.
    pub(crate) fn failing(status: u16) -> (Self, Arc<AtomicBool>) {
        let is_fixed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_fixed);
        let receiver = Self::answering(move |_| {
            Reply::Status(if seen.load(Ordering::SeqCst) { 200 } else { status })
        });
        (receiver, is_fixed)
    }

    /// Keeps no requests, for hundreds per second over minutes; `behaviour` sees each.
    pub(crate) fn forgetful(behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::start(None, behaviour)
    }

    fn start(
        requests: Option<Vec<Request>>,
        behaviour: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (sender, ended) = crossbeam_channel::bounded(0);
        let shared = Arc::new(Shared {
            behaviour: Box::new(behaviour),
            journal: Mutex::new(Journal { requests, attempts: HashMap::new() }),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            ended,
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Self { address, shared, alive: Some(sender) }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// A URL where nothing listens while this receiver lives: its port, at another address.
    pub(crate) fn refusing_url(&self) -> String {
        format!("http://127.0.0.2:{}/", self.address.port())
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        let journal = self.shared.journal.lock().expect("no holder panics");
        journal.requests.clone().expect("a receiver that is not forgetful")
    }

    /// The requests to one path.
    pub(crate) fn at(&self, path: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.path == path);
        requests
    }

    /// The requests to one path that carry this event.
    pub(crate) fn of(&self, path: &str, event: &Event) -> Vec<Request> {
        let mut requests = self.at(path);
        requests.retain(|request| request.id() == event.id);
        requests
    }

    /// How many connections it has accepted in total.
    pub(crate) fn connections(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Waits until a path has received this many requests.
    #[track_caller]
    pub(crate) fn wait_at(&self, path: &str, count: usize) -> Vec<Request> {
        self.wait_at_within(SOON, path, count)
    }

    #[track_caller]
    pub(crate) fn wait_at_within(&self, limit: Duration, path: &str, count: usize) -> Vec<Request> {
        wait_until(limit, &format!("{count} requests at {path}"), || self.at(path).len() >= count);
        self.at(path)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.alive.take());
        for connection in self.shared.open().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the accepting thread, which notices that the receiver has ended.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { return };
        if shared.has_ended() {
            return;
        }
        let (Ok(peer), Ok(handle)) = (stream.peer_addr(), stream.try_clone()) else {
            continue;
        };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        shared.open().insert(peer, handle);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // The test sees the effects of a broken connection at the other side.
            let _ = serve(stream, peer, &shared);
            shared.open().remove(&peer);
        });
    }
}

/// Serves one connection, which may carry any number of requests.
fn serve(mut stream: TcpStream, peer: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        let request = shared.record(request);
        let (bytes, then) = match (shared.behaviour)(&request) {
            Reply::Status(status) => (answer(status, &[]), Then::Stay),
            Reply::WithHeaders(status, headers) => (answer(status, &headers), Then::Stay),
            Reply::Slow(delay, status) => (Vec::new(), Then::Later(delay, answer(status, &[]))),
            Reply::Hang => {
                io::copy(&mut reader, &mut io::sink())?;
                return Ok(());
            }
            Reply::Reset => (Vec::new(), Then::Reset),
            Reply::Close => (Vec::new(), Then::Close),
            Reply::Garbage => (b"SMTP 220 wrong number\r\n\r\n".to_vec(), Then::Close),
            Reply::Drip => {
                let drop = Then::Repeat(Duration::from_millis(100), b"x".to_vec());
                (b"HTTP/1.1 200 OK\r\nx-drip: ".to_vec(), drop)
            }
            Reply::Endless => {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n";
                (head.to_vec(), Then::Repeat(Duration::ZERO, vec![b'x'; 64 * 1024]))
            }
            Reply::Raw(bytes, then) => (bytes, then),
        };
        stream.write_all(&bytes)?;
        match then {
            Then::Stay => {}
            Then::Close => return stream.shutdown(Shutdown::Both),
            Then::Reset => {
                // The RST is sent when the socket's last handle is closed.
                shared.open().remove(&peer);
                return reset(stream);
            }
            Then::Later(delay, more) => {
                if shared.pause(delay) {
                    stream.write_all(&more)?;
                }
            }
            Then::Repeat(delay, more) => {
                while shared.pause(delay) {
                    stream.write_all(&more)?;
                }
            }
        }
    }
    Ok(())
}

impl Shared {
    fn record(&self, mut request: Request) -> Request {
        let mut journal = self.journal.lock().expect("no holder panics");
        let of = (request.path.clone(), request.id().to_owned());
        let attempts = journal.attempts.entry(of).or_default();
        *attempts += 1;
        request.attempt = *attempts;
        if let Some(requests) = &mut journal.requests {
            requests.push(request.clone());
        }
        request
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, TcpStream>> {
        self.connections.lock().expect("no holder panics")
    }

    fn has_ended(&self) -> bool {
        self.ended.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// False: the receiver has ended meanwhile.
    fn pause(&self, period: Duration) -> bool {
        self.ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout)
    }
}

/// The first byte of a TLS client.
const TLS_HANDSHAKE: u8 = 0x16;

/// Answers a TLS client as web servers do on a port for plain HTTP.
fn answer_tls(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let answer = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer)?;
    reader.get_mut().shutdown(Shutdown::Write)?;
    // An answer is lost if the connection is closed with unread input.
    io::copy(reader, &mut io::sink())?;
    Ok(None)
}

/// `None` at the end of the connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    if reader.fill_buf()?.first() == Some(&TLS_HANDSHAKE) {
        return answer_tls(reader);
    }
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace().map(str::to_owned);
    let method = parts.next().unwrap_or_default();
    let path = parts.next().unwrap_or_default();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let (at, wall) = (Instant::now(), SystemTime::now());
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Request { at, wall, method, path, headers, body, attempt: 0 }))
}

fn answer(status: u16, headers: &[(&str, String)]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Test\r\ncontent-length: 2\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\nok");
    head.into_bytes()
}

/// A linger of zero turns the close into an RST; std can't set it.
fn reset(stream: TcpStream) -> io::Result<()> {
    let stream = mio::net::TcpStream::from_stream(stream)?;
    stream.set_linger(Some(Duration::ZERO))
}
