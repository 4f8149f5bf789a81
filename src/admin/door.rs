//! The door of the metrics port: one thread that holds the connections of all clients.
//!
//! tiny_http gives each connection a thread, and has neither limits nor timeouts. So it gets a single connection,
//! from here, which lasts as long as the process. The door reads each request within limits, sends its method and
//! path to tiny_http, one request at a time, and sends the answer as fast as the client reads it. It never blocks
//! on a single client.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use httparse::{EMPTY_HEADER, Response, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::POLL;
use super::head::{BadRequest, MOST_HEADERS, PageRequest};
use super::hosts::{Hosts, REMEDY};
use crate::shutdown;

/// The most connections that have sent nothing yet. Beyond this number, the oldest are closed. Each costs a file
/// descriptor and almost no memory. A scraper sends its request right after it has connected, so this limits how
/// many others may connect in between; 50 in a millisecond were measured from the same machine. Together they get
/// at most one in [`SHARE_OF_FILES`] of the file descriptors that we may have.
const MOST_SILENT: usize = 1_024;
const SHARE_OF_FILES: u64 = 4;

/// The most connections in the middle of a request or an answer. Beyond this number, the oldest are closed: a
/// well-behaved client is done sooner. The heads of their requests take 1 MiB in total, their answers about 4 MiB.
const MOST_MIDWAY: usize = 128;

/// The most requests that may wait for an answer. Beyond this number, no connections are accepted. None is
/// closed to make room: they wait for us, and equal requests share an answer.
const MOST_WAITING: usize = 128;

/// The time limit for the head of a request. A scraper sends it at once; a lost packet costs a second, and a second
/// loss two more.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// The time limit from the end of the head until the client has the answer. Prometheus gives up after ten seconds, too.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long, and how many bytes, we still read from a client after its answer. If a socket is closed with unread
/// bytes, the connection is reset, and a client that is still sending can lose the answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
const CLOSE_BYTES: usize = 4 << 20;

/// How long to wait after accepting has failed, for example because too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The most bytes of one read.
const CHUNK: usize = 16 * 1024;

/// All connections of the metrics port.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    /// The connection to tiny_http.
    server: UnixStream,
    /// The request that tiny_http is answering.
    pending: Option<PendingRequest>,
    /// The clients, the oldest first.
    clients: Vec<Client>,
    most_silent: usize,
    /// While accepting fails: when to accept again.
    paused_until: Option<Instant>,
    hosts: Arc<Hosts>,
}

/// A request that was sent to tiny_http. Its clients may have disconnected meanwhile.
#[derive(Debug)]
struct PendingRequest {
    head_only: bool,
    answer: Vec<u8>,
}

/// A client's connection.
#[derive(Debug)]
struct Client {
    stream: TcpStream,
    stage: Stage,
    /// The deadline of the stage.
    until: Instant,
    hosts: Arc<Hosts>,
}

#[derive(Debug)]
enum Stage {
    /// It sends the head of its request. Holds the part received so far.
    SendingHead(Vec<u8>),
    /// Its request waits for its turn at tiny_http.
    Waiting(PageRequest),
    /// tiny_http is answering its request.
    Asked,
    /// It receives its answer. Holds the part not yet sent.
    ReceivingAnswer(Vec<u8>),
    /// It has its answer. Holds the number of bytes that it has sent since.
    Closing(usize),
}

/// The kinds of connections, each with its own limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ClientKind {
    Silent,
    Midway,
    Waiting,
}

/// This client's connection has to be closed.
struct Disconnect;

impl From<io::Error> for Disconnect {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Door {
    /// A door for the clients of `listener`. tiny_http is at the other end of `server`.
    pub(super) fn new(listener: TcpListener, server: UnixStream, hosts: Hosts) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most_silent = usize::try_from(files / SHARE_OF_FILES).unwrap_or(usize::MAX);
        Ok(Self {
            listener,
            server,
            pending: None,
            clients: Vec::new(),
            most_silent: most_silent.min(MOST_SILENT),
            paused_until: None,
            hosts: Arc::new(hosts),
        })
    }

    /// The port of the listener. No other process of this machine has it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    /// Serves clients until `stop`.
    ///
    /// # Errors
    /// If the connection to tiny_http breaks, which only a bug can cause.
    pub fn serve(mut self, stop: &shutdown::Shutdown) -> Result<()> {
        while !stop.is_requested() {
            let mut ready = self.wait()?.into_iter();
            let mut is_ready = || ready.next() == Some(true);
            let (server, listener) = (is_ready(), is_ready());
            let now = Instant::now();
            self.clients.retain_mut(|client| {
                let progress = if is_ready() { client.advance(now) } else { Ok(()) };
                progress.and_then(|()| client.check_deadline(now)).is_ok()
            });
            if server {
                self.read_answer(now)?;
            }
            if listener {
                self.accept(now);
            }
            self.close_excess();
            self.send_next()?;
        }
        Ok(())
    }

    /// Waits for sockets, and returns which are ready: tiny_http, the listener, and the clients in order.
    /// Waits at most [`POLL`], since neither `stop` nor a deadline wakes it.
    fn wait(&self) -> Result<Vec<bool>> {
        let accepting = match self.paused_until {
            Some(until) if Instant::now() < until => PollFlags::empty(),
            _ if self.count(ClientKind::Waiting) >= MOST_WAITING => PollFlags::empty(),
            _ => PollFlags::IN,
        };
        let mut files = Vec::with_capacity(2 + self.clients.len());
        files.push(PollFd::new(&self.server, PollFlags::IN));
        files.push(PollFd::new(&self.listener, accepting));
        let clients = self.clients.iter();
        files.extend(clients.map(|client| PollFd::new(&client.stream, client.stage.awaits())));
        let limit = Timespec::try_from(POLL).context("POLL does not fit a timespec")?;
        match poll(&mut files, Some(&limit)) {
            // Interrupted by a signal: `files` has no results.
            Err(Errno::INTR) => Ok(vec![false; files.len()]),
            ready => {
                ready.context("cannot wait for the clients of the metrics port")?;
                Ok(files.iter().map(|file| !file.revents().is_empty()).collect())
            }
        }
    }

    fn count(&self, kind: ClientKind) -> usize {
        self.clients.iter().filter(|client| client.kind() == kind).count()
    }

    /// Accepts new connections, at most as many as there is room for waiting requests, so that existing clients get
    /// their turn.
    fn accept(&mut self, now: Instant) {
        for _ in self.count(ClientKind::Waiting)..MOST_WAITING {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.paused_until.take().is_some() {
                        log::info!("metrics port answers again");
                    }
                    self.add_client(stream, now);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    // The client disconnected before it was accepted.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    // Perhaps out of file descriptors: close the oldest connection and accept again.
                    _ if self.close_oldest() => {}
                    _ => {
                        // Logs the change of state, not each attempt.
                        if self.paused_until.replace(now + ACCEPT_PAUSE).is_none() {
                            log::warn!("metrics port interrupted: cannot accept: {error}");
                        }
                        break;
                    }
                },
            }
        }
    }

    fn add_client(&mut self, stream: TcpStream, now: Instant) {
        let stage = Stage::SendingHead(Vec::new());
        let hosts = Arc::clone(&self.hosts);
        let mut client = Client { stream, stage, until: now + HEAD_TIMEOUT, hosts };
        // Often its request has arrived already, so that it never counts as silent.
        if client.stream.set_nonblocking(true).is_ok() && client.advance(now).is_ok() {
            self.clients.push(client);
        }
    }

    /// Closes the oldest connection that doesn't wait for an answer; false if there is none.
    fn close_oldest(&mut self) -> bool {
        let oldest = self.clients.iter().position(|client| client.kind() != ClientKind::Waiting);
        oldest.map(|at| self.clients.remove(at)).is_some()
    }

    /// Closes the oldest connections of each kind that are beyond its limit.
    fn close_excess(&mut self) {
        for (kind, most) in
            [(ClientKind::Silent, self.most_silent), (ClientKind::Midway, MOST_MIDWAY)]
        {
            let mut excess = self.count(kind).saturating_sub(most);
            self.clients.retain(|client| {
                let is_closed = excess > 0 && client.kind() == kind;
                excess -= usize::from(is_closed);
                !is_closed
            });
        }
    }

    /// Sends the next request to tiny_http, if it is idle.
    fn send_next(&mut self) -> Result<()> {
        if self.pending.is_some() {
            return Ok(());
        }
        let Some(request) = self.clients.iter_mut().find_map(Client::take_request) else {
            return Ok(());
        };
        // This never blocks: the socket's buffer is empty, and has room for the request.
        let sent = self.server.write_all(request.rewritten().as_bytes());
        sent.context("cannot send a request to tiny_http")?;
        self.pending =
            Some(PendingRequest { head_only: request.wants_head_only(), answer: Vec::new() });
        // Equal requests share the answer, so a burst of scrapers is served as fast as one.
        for client in &mut self.clients {
            if matches!(&client.stage, Stage::Waiting(other) if *other == request) {
                client.stage = Stage::Asked;
            }
        }
        Ok(())
    }

    /// Reads tiny_http's answer, and sends it to its clients once it is complete.
    fn read_answer(&mut self, now: Instant) -> Result<()> {
        let mut chunk = [0; CHUNK];
        loop {
            let length = match self.server.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read tiny_http's answer"),
                Ok(length) => length,
            };
            let Some(pending) = self.pending.as_mut().filter(|_| length > 0) else {
                bail!("tiny_http closed its connection, or sent something without a request");
            };
            pending.answer.extend_from_slice(&chunk[..length]);
            if let Some(answer) = pending.complete_answer()? {
                self.pending = None;
                self.clients.retain_mut(|client| match client.stage {
                    Stage::Asked => client.answer(answer.clone(), now).is_ok(),
                    _ => true,
                });
            }
        }
    }
}

impl PendingRequest {
    /// The answer for the client; `None` while it is incomplete.
    fn complete_answer(&mut self) -> Result<Option<Vec<u8>>> {
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut head = Response::new(&mut headers);
        let parsed = head.parse(&self.answer);
        let parsed = parsed.map_err(|error| anyhow!("tiny_http's answer is not HTTP: {error}"))?;
        let Status::Complete(end) = parsed else { return Ok(None) };
        let mut lengths = head.headers.iter().filter_map(|header| {
            let length = str::from_utf8(header.value).ok()?.parse::<usize>().ok()?;
            header.name.eq_ignore_ascii_case("content-length").then_some(length)
        });
        let length = lengths.next().context("tiny_http's answer has no content-length")?;
        let whole = end + if self.head_only { 0 } else { length };
        if self.answer.len() < whole {
            return Ok(None);
        }
        let mut answer = std::mem::take(&mut self.answer);
        // Inserted before the empty line that ends the head.
        answer.splice(end - 2..end - 2, *b"connection: close\r\n");
        Ok(Some(answer))
    }
}

impl Client {
    fn kind(&self) -> ClientKind {
        match &self.stage {
            Stage::SendingHead(head) if head.is_empty() => ClientKind::Silent,
            Stage::SendingHead(_) | Stage::ReceivingAnswer(_) | Stage::Closing(_) => {
                ClientKind::Midway
            }
            Stage::Waiting(_) | Stage::Asked => ClientKind::Waiting,
        }
    }

    /// Takes its request if it waits for its turn, and makes its stage `Asked`.
    fn take_request(&mut self) -> Option<PageRequest> {
        match std::mem::replace(&mut self.stage, Stage::Asked) {
            Stage::Waiting(request) => Some(request),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Reads or writes what its socket is ready for.
    fn advance(&mut self, now: Instant) -> Result<(), Disconnect> {
        match &mut self.stage {
            Stage::SendingHead(head) => {
                let mut chunk = [0; CHUNK];
                head.extend_from_slice(read(&self.stream, &mut chunk)?);
                match PageRequest::read(head, &self.hosts) {
                    Ok(None) => Ok(()),
                    Ok(Some(request)) => {
                        self.stage = Stage::Waiting(request);
                        self.until = now + ANSWER_TIMEOUT;
                        Ok(())
                    }
                    Err(BadRequest::Malformed) => self.refuse("400 Bad Request", "", now),
                    Err(BadRequest::TooLarge) => {
                        self.refuse("431 Request Header Fields Too Large", "", now)
                    }
                    // RFC 9110, 15.5.20.
                    Err(BadRequest::Misdirected) => {
                        self.refuse("421 Misdirected Request", REMEDY, now)
                    }
                }
            }
            // For these, poll reports only that the client has disconnected.
            Stage::Waiting(_) | Stage::Asked => Err(Disconnect),
            Stage::ReceivingAnswer(rest) => {
                match (&self.stream).write(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => drop(rest.drain(..written?)),
                }
                if rest.is_empty() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.stage = Stage::Closing(0);
                    self.until = now + CLOSE_TIMEOUT;
                }
                Ok(())
            }
            Stage::Closing(sent) => {
                *sent += read(&self.stream, &mut [0; CHUNK])?.len();
                if *sent < CLOSE_BYTES { Ok(()) } else { Err(Disconnect) }
            }
        }
    }

    /// Enforces the deadline of its stage.
    fn check_deadline(&mut self, now: Instant) -> Result<(), Disconnect> {
        match &self.stage {
            _ if now < self.until => Ok(()),
            Stage::SendingHead(head) if !head.is_empty() => {
                self.refuse("408 Request Timeout", "", now)
            }
            _ => Err(Disconnect),
        }
    }

    fn answer(&mut self, answer: Vec<u8>, now: Instant) -> Result<(), Disconnect> {
        self.stage = Stage::ReceivingAnswer(answer);
        self.advance(now)
    }

    /// Answers a request that isn't sent to tiny_http.
    fn refuse(&mut self, status: &str, why: &str, now: Instant) -> Result<(), Disconnect> {
        self.until = now + ANSWER_TIMEOUT;
        let body =
            if why.is_empty() { format!("{status}\n") } else { format!("{status}: {why}\n") };
        let answer = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: text/plain\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.answer(answer.into_bytes(), now)
    }
}

impl Stage {
    /// The socket's events that it waits for.
    fn awaits(&self) -> PollFlags {
        match self {
            Self::SendingHead(_) | Self::Closing(_) => PollFlags::IN,
            Self::Waiting(_) | Self::Asked => PollFlags::empty(),
            Self::ReceivingAnswer(_) => PollFlags::OUT,
        }
    }
}

/// Reads what has arrived; empty if nothing has. The end of the stream is an error.
fn read<'a>(mut stream: &TcpStream, chunk: &'a mut [u8]) -> Result<&'a [u8], Disconnect> {
    match stream.read(chunk) {
        Ok(0) => Err(Disconnect),
        Ok(length) => Ok(&chunk[..length]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(&[]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_as_fast_as_the_client_reads_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut reader = TcpStream::connect(address).expect("it listens");
        let (stream, _) = listener.accept().expect("one is connected");
        stream.set_nonblocking(true).expect("it is a socket");
        let now = Instant::now();
        let hosts = Arc::new(Hosts::new(&[], ""));
        let mut client = Client { stream, stage: Stage::Asked, until: now + ANSWER_TIMEOUT, hosts };

        // More than the kernel buffers for a client that does not read.
        let answer: Vec<u8> = (0..50_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        assert!(client.answer(answer.clone(), now).is_ok());
        assert!(matches!(&client.stage, Stage::ReceivingAnswer(rest) if !rest.is_empty()));
        let mut taken = Vec::new();
        while matches!(client.stage, Stage::ReceivingAnswer(_)) {
            let mut chunk = vec![0; 1 << 20];
            let length = reader.read(&mut chunk).expect("there is more");
            taken.extend_from_slice(&chunk[..length]);
            assert!(client.advance(now).is_ok());
        }
        reader.read_to_end(&mut taken).expect("the rest, and the end");
        assert!(taken == answer, "{} bytes", taken.len());
        assert!(
            client.check_deadline(now + CLOSE_TIMEOUT).is_err(),
            "the connection is closed then"
        );
    }

    #[test]
    fn an_answer_is_sent_to_clients_only_when_it_is_complete() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let expected = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nconnection: close\r\n\r\nabc";
        for length in 0..whole.len() {
            let mut pending = PendingRequest { head_only: false, answer: whole[..length].to_vec() };
            assert_eq!(pending.complete_answer().expect("no defect"), None, "{length} bytes");
        }
        let mut pending = PendingRequest { head_only: false, answer: whole.to_vec() };
        assert_eq!(pending.complete_answer().expect("no defect").as_deref(), Some(&expected[..]));
        let head = whole[..whole.len() - 3].to_vec();
        let mut pending = PendingRequest { head_only: true, answer: head };
        assert!(
            pending
                .complete_answer()
                .expect("no defect")
                .is_some_and(|answer| answer.ends_with(b"\r\n\r\n"))
        );
        let mut pending =
            PendingRequest { head_only: false, answer: b"HTTP/1.1 200 OK\r\n\r\n".to_vec() };
        assert!(pending.complete_answer().is_err(), "an answer without a length");
    }
}
