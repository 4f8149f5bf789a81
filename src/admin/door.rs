//! The front door of the metrics port: one thread that holds every client's connection.
//!
//! tiny_http gives each connection a thread, and has neither limits nor time-outs. So it gets only one
//! connection, from here, which lasts as long as the process. The door reads each request, within bounds. It
//! sends the method and path to tiny_http, one request at a time, and sends the answer as fast as the client
//! takes it. The loop never waits for a single client.

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

/// The most connections that have sent nothing yet. Beyond it, the oldest are closed. Each costs a file
/// descriptor and almost no memory. A scraper sends its request right after it has connected, so this limits
/// how many others may connect in that moment; a rush from the same machine was 50 in a millisecond. They get
/// at most one in [`SHARE_OF_FILES`] of the file descriptors that we may have.
const MOST_SILENT: usize = 1_024;
const SHARE_OF_FILES: u64 = 4;

/// The most connections in the middle of a request or an answer. Beyond it, the oldest are closed: a
/// well-behaved client does not stay there for long. Their heads take 1 MiB in total, their answers about 4.
const MOST_MIDWAY: usize = 128;

/// The most requests that may wait for an answer. Beyond it, we accept no more connections. None of these is
/// closed: they wait for us, and equal requests share an answer.
const MOST_WAITING: usize = 128;

/// The time limit for a request's head. A scraper sends it at once; a lost packet costs it one second, a
/// second loss two more.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The time limit from there until the client has the answer. Prometheus gives up after ten seconds, too.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long, and for how many bytes, we still read from a client after its answer. Closing a socket with
/// unread bytes resets the connection, and a client that is still sending can lose the answer.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: usize = 4 << 20;

/// The wait after a failed accept, for example while too many files are open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// The bytes of one read.
const CHUNK: usize = 16 * 1024;

/// All connections of the metrics port.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    /// The connection to tiny_http.
    server: UnixStream,
    /// The request that tiny_http is answering.
    exchange: Option<Exchange>,
    /// The oldest first.
    clients: Vec<Client>,
    most_silent: usize,
    /// When to accept again; set while accepting fails.
    paused_until: Option<Instant>,
    hosts: Arc<Hosts>,
}

/// A request at tiny_http. Its clients may have left meanwhile.
#[derive(Debug)]
struct Exchange {
    head_only: bool,
    answer: Vec<u8>,
}

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
    /// It sends its request's head. Holds the part received so far.
    Asking(Vec<u8>),
    /// Its request waits for its turn.
    Waiting(PageRequest),
    /// tiny_http is answering its request.
    Asked,
    /// It receives its answer. Holds the part not yet sent.
    Answered(Vec<u8>),
    /// It has its answer. Holds the number of bytes that it has sent since.
    Leaving(usize),
}

/// The kinds of connections, each with its own limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Silent,
    Midway,
    Waiting,
}

/// The client's connection is to be closed.
struct Gone;

impl From<io::Error> for Gone {
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
            exchange: None,
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
    pub fn keep(mut self, stop: &shutdown::Shutdown) -> Result<()> {
        while !stop.is_requested() {
            let mut ready = self.wait()?.into_iter();
            let mut is_ready = || ready.next() == Some(true);
            let (server, listener) = (is_ready(), is_ready());
            let now = Instant::now();
            self.clients.retain_mut(|client| {
                let progress = if is_ready() { client.go_on(now) } else { Ok(()) };
                progress.and_then(|()| client.look_at(now)).is_ok()
            });
            if server {
                self.hear(now)?;
            }
            if listener {
                self.accept(now);
            }
            self.make_room();
            self.ask_next()?;
        }
        Ok(())
    }

    /// Waits for sockets, and returns which are ready: tiny_http, the listener, and the clients in order.
    /// Waits at most [`POLL`], since neither `stop` nor a deadline wakes it.
    fn wait(&self) -> Result<Vec<bool>> {
        let accepting = match self.paused_until {
            Some(until) if Instant::now() < until => PollFlags::empty(),
            _ if self.count(Kind::Waiting) >= MOST_WAITING => PollFlags::empty(),
            _ => PollFlags::IN,
        };
        let mut files = Vec::with_capacity(2 + self.clients.len());
        files.push(PollFd::new(&self.server, PollFlags::IN));
        files.push(PollFd::new(&self.listener, accepting));
        let clients = self.clients.iter();
        files.extend(clients.map(|client| PollFd::new(&client.stream, client.stage.awaits())));
        let limit = Timespec::try_from(POLL).context("a short time")?;
        match poll(&mut files, Some(&limit)) {
            // Interrupted by a signal: `files` has no results.
            Err(Errno::INTR) => Ok(vec![false; files.len()]),
            ready => {
                ready.context("cannot wait for the clients of the metrics port")?;
                Ok(files.iter().map(|file| !file.revents().is_empty()).collect())
            }
        }
    }

    fn count(&self, kind: Kind) -> usize {
        self.clients.iter().filter(|client| client.kind() == kind).count()
    }

    /// Accepts new connections, at most as many as requests may still wait, so that the others get their
    /// turn.
    fn accept(&mut self, now: Instant) {
        for _ in self.count(Kind::Waiting)..MOST_WAITING {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if self.paused_until.take().is_some() {
                        log::info!("metrics port answers again");
                    }
                    self.let_in(stream, now);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    // The client hung up before we accepted it.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    // Perhaps out of file descriptors: close the oldest connection and accept again.
                    _ if self.oldest_gives_way() => {}
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

    fn let_in(&mut self, stream: TcpStream, now: Instant) {
        let stage = Stage::Asking(Vec::new());
        let hosts = Arc::clone(&self.hosts);
        let mut client = Client { stream, stage, until: now + HEAD_TIME, hosts };
        // Its request has often arrived already. Then it never counts as silent.
        if client.stream.set_nonblocking(true).is_ok() && client.go_on(now).is_ok() {
            self.clients.push(client);
        }
    }

    /// Closes the oldest connection that does not wait for an answer; false if there is none.
    fn oldest_gives_way(&mut self) -> bool {
        let oldest = self.clients.iter().position(|client| client.kind() != Kind::Waiting);
        oldest.map(|at| self.clients.remove(at)).is_some()
    }

    /// Closes the oldest connections of each kind beyond its limit.
    fn make_room(&mut self) {
        for (kind, most) in [(Kind::Silent, self.most_silent), (Kind::Midway, MOST_MIDWAY)] {
            let mut excess = self.count(kind).saturating_sub(most);
            self.clients.retain(|client| {
                let goes = excess > 0 && client.kind() == kind;
                excess -= usize::from(goes);
                !goes
            });
        }
    }

    /// Sends the next request to tiny_http, if it is idle.
    fn ask_next(&mut self) -> Result<()> {
        if self.exchange.is_some() {
            return Ok(());
        }
        let Some(request) = self.clients.iter_mut().find_map(Client::take_request) else {
            return Ok(());
        };
        // Never blocks: the request fits into the socket's buffer, which is empty.
        let sent = self.server.write_all(request.rewritten().as_bytes());
        sent.context("cannot pass a request on to tiny_http")?;
        self.exchange = Some(Exchange { head_only: request.wants_head_only(), answer: Vec::new() });
        // Equal requests share the answer, so a rush of scrapers is answered as fast as one.
        for client in &mut self.clients {
            if matches!(&client.stage, Stage::Waiting(other) if *other == request) {
                client.stage = Stage::Asked;
            }
        }
        Ok(())
    }

    /// Reads tiny_http's answer, and sends it to its clients once it is complete.
    fn hear(&mut self, now: Instant) -> Result<()> {
        let mut chunk = [0; CHUNK];
        loop {
            let length = match self.server.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot read tiny_http's answer"),
                Ok(length) => length,
            };
            let Some(exchange) = self.exchange.as_mut().filter(|_| length > 0) else {
                bail!("tiny_http closed its connection, or spoke unasked");
            };
            exchange.answer.extend_from_slice(&chunk[..length]);
            if let Some(answer) = exchange.passed_on()? {
                self.exchange = None;
                self.clients.retain_mut(|client| match client.stage {
                    Stage::Asked => client.answer(answer.clone(), now).is_ok(),
                    _ => true,
                });
            }
        }
    }
}

impl Exchange {
    /// The answer for the client; `None` while it is incomplete.
    fn passed_on(&mut self) -> Result<Option<Vec<u8>>> {
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut head = Response::new(&mut headers);
        let parsed = head.parse(&self.answer);
        let parsed = parsed.map_err(|error| anyhow!("tiny_http's answer is no HTTP: {error}"))?;
        let Status::Complete(end) = parsed else { return Ok(None) };
        let mut lengths = head.headers.iter().filter_map(|header| {
            let length = str::from_utf8(header.value).ok()?.parse::<usize>().ok()?;
            header.name.eq_ignore_ascii_case("content-length").then_some(length)
        });
        let length = lengths.next().context("tiny_http gives no length")?;
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
    fn kind(&self) -> Kind {
        match &self.stage {
            Stage::Asking(head) if head.is_empty() => Kind::Silent,
            Stage::Asking(_) | Stage::Answered(_) | Stage::Leaving(_) => Kind::Midway,
            Stage::Waiting(_) | Stage::Asked => Kind::Waiting,
        }
    }

    /// Takes its request if it waits for its turn. Its stage is `Asked` then.
    fn take_request(&mut self) -> Option<PageRequest> {
        match std::mem::replace(&mut self.stage, Stage::Asked) {
            Stage::Waiting(request) => Some(request),
            other => {
                self.stage = other;
                None
            }
        }
    }

    /// Does what its socket is ready for.
    fn go_on(&mut self, now: Instant) -> Result<(), Gone> {
        match &mut self.stage {
            Stage::Asking(head) => {
                let mut chunk = [0; CHUNK];
                head.extend_from_slice(read(&self.stream, &mut chunk)?);
                match PageRequest::read(head, &self.hosts) {
                    Ok(None) => Ok(()),
                    Ok(Some(request)) => {
                        self.stage = Stage::Waiting(request);
                        self.until = now + ANSWER_TIME;
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
            // For these, poll reports only that the client hung up.
            Stage::Waiting(_) | Stage::Asked => Err(Gone),
            Stage::Answered(rest) => {
                match (&self.stream).write(rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => drop(rest.drain(..written?)),
                }
                if rest.is_empty() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.stage = Stage::Leaving(0);
                    self.until = now + FAREWELL_TIME;
                }
                Ok(())
            }
            Stage::Leaving(sent) => {
                *sent += read(&self.stream, &mut [0; CHUNK])?.len();
                if *sent < FAREWELL_BYTES { Ok(()) } else { Err(Gone) }
            }
        }
    }

    /// Enforces the deadline of its stage.
    fn look_at(&mut self, now: Instant) -> Result<(), Gone> {
        match &self.stage {
            _ if now < self.until => Ok(()),
            Stage::Asking(head) if !head.is_empty() => self.refuse("408 Request Timeout", "", now),
            _ => Err(Gone),
        }
    }

    fn answer(&mut self, answer: Vec<u8>, now: Instant) -> Result<(), Gone> {
        self.stage = Stage::Answered(answer);
        self.go_on(now)
    }

    /// Answers a request that does not go to tiny_http.
    fn refuse(&mut self, status: &str, why: &str, now: Instant) -> Result<(), Gone> {
        self.until = now + ANSWER_TIME;
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
    fn awaits(&self) -> PollFlags {
        match self {
            Self::Asking(_) | Self::Leaving(_) => PollFlags::IN,
            Self::Waiting(_) | Self::Asked => PollFlags::empty(),
            Self::Answered(_) => PollFlags::OUT,
        }
    }
}

/// Reads what has arrived; empty if nothing has. The end of the stream is an error.
fn read<'a>(mut stream: &TcpStream, chunk: &'a mut [u8]) -> Result<&'a [u8], Gone> {
    match stream.read(chunk) {
        Ok(0) => Err(Gone),
        Ok(length) => Ok(&chunk[..length]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(&[]),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_as_fast_as_the_client_takes_it() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut reader = TcpStream::connect(address).expect("it listens");
        let (stream, _) = listener.accept().expect("one is connected");
        stream.set_nonblocking(true).expect("it is a socket");
        let now = Instant::now();
        let hosts = Arc::new(Hosts::new(&[], ""));
        let mut client = Client { stream, stage: Stage::Asked, until: now + ANSWER_TIME, hosts };

        // More than the kernel buffers for a client that does not read.
        let answer: Vec<u8> = (0..50_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        assert!(client.answer(answer.clone(), now).is_ok());
        assert!(matches!(&client.stage, Stage::Answered(rest) if !rest.is_empty()));
        let mut taken = Vec::new();
        while matches!(client.stage, Stage::Answered(_)) {
            let mut chunk = vec![0; 1 << 20];
            let length = reader.read(&mut chunk).expect("there is more");
            taken.extend_from_slice(&chunk[..length]);
            assert!(client.go_on(now).is_ok());
        }
        reader.read_to_end(&mut taken).expect("the rest, and the end");
        assert!(taken == answer, "{} bytes", taken.len());
        assert!(client.look_at(now + FAREWELL_TIME).is_err(), "it is not waited for any longer");
    }

    #[test]
    fn of_an_answer_only_the_whole_is_passed_on() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        let expected = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nconnection: close\r\n\r\nabc";
        for length in 0..whole.len() {
            let mut exchange = Exchange { head_only: false, answer: whole[..length].to_vec() };
            assert_eq!(exchange.passed_on().expect("no defect"), None, "{length} bytes");
        }
        let mut exchange = Exchange { head_only: false, answer: whole.to_vec() };
        assert_eq!(exchange.passed_on().expect("no defect").as_deref(), Some(&expected[..]));
        let head = whole[..whole.len() - 3].to_vec();
        let mut exchange = Exchange { head_only: true, answer: head };
        assert!(
            exchange
                .passed_on()
                .expect("no defect")
                .is_some_and(|answer| answer.ends_with(b"\r\n\r\n"))
        );
        let mut exchange =
            Exchange { head_only: false, answer: b"HTTP/1.1 200 OK\r\n\r\n".to_vec() };
        assert!(exchange.passed_on().is_err(), "an answer without a length");
    }
}
