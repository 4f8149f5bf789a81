//! The front door of the metrics port: one thread that holds every client's connection.
//!
//! tiny_http gives each connection a thread, and knows neither limits nor time-outs. So it has one
//! connection only, from here, which lasts as long as the process. A request is read here, within
//! bounds; its method and path go to tiny_http, one request at a time; the answer is passed on as
//! fast as the client takes it. Nothing in the loop waits for any one of them.

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

/// Connections that have not said anything yet: the oldest give way to newer ones. They cost a file
/// each and next to no memory. A scraper says all in the moment after it has connected, so what
/// counts is how many others can come in that moment; a rush from this very machine was 50 in a
/// millisecond. Of the files that we may have open they get [`SHARE_OF_FILES`] at most.
const MOST_SILENT: usize = 1_024;
const SHARE_OF_FILES: u64 = 4;

/// Connections that are amid a request or an answer, where no good client stays for long: the
/// oldest give way here, too. Their heads are 1 MiB together, their answers perhaps 4.
const MOST_MIDWAY: usize = 128;

/// Requests that wait for an answer, before we accept more. None of these gives way: they wait for
/// us, and for the same answer together.
const MOST_WAITING: usize = 128;

/// The time for a request's head. A scraper sends it at once; a lost packet or two on the way cost
/// it one second and two.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The time from there until the client has the answer. Prometheus gives up after ten seconds, too.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// How long, and for how many bytes, we still listen to a client that has been answered. A socket
/// that is closed with something unread resets its connection, which can take the answer away from
/// a client that is still sending.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
const FAREWELL_BYTES: usize = 4 << 20;

/// The wait before we accept again after it failed, as it does while there are too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

/// What is read at once.
const CHUNK: usize = 16 * 1024;

/// All connections of the metrics port.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    /// To tiny_http.
    server: UnixStream,
    /// What we have asked tiny_http and not yet heard the end of.
    exchange: Option<Exchange>,
    /// In the order in which they came.
    clients: Vec<Client>,
    most_silent: usize,
    /// Set while accepting fails.
    paused_until: Option<Instant>,
    hosts: Arc<Hosts>,
}

/// A request at tiny_http. The clients whose it is may have gone meanwhile.
#[derive(Debug)]
struct Exchange {
    head_only: bool,
    answer: Vec<u8>,
}

#[derive(Debug)]
struct Client {
    stream: TcpStream,
    stage: Stage,
    /// When the stage must be over.
    until: Instant,
    hosts: Arc<Hosts>,
}

#[derive(Debug)]
enum Stage {
    /// What there is of its request's head.
    Asking(Vec<u8>),
    /// It waits until those before it are answered.
    Waiting(PageRequest),
    /// Its request is the one that tiny_http answers.
    Asked,
    /// What it has not taken of its answer.
    Answered(Vec<u8>),
    /// How many bytes it has sent since it was answered.
    Leaving(usize),
}

/// What a client's connection costs, and whom it waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Silent,
    Midway,
    Waiting,
}

/// The client's connection is of no more use.
struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

impl Door {
    /// For clients of `listener`, which are answered at the other end of `server`.
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

    /// Where clients come to: no other process of this machine has it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    /// Lets clients in until `stop`.
    ///
    /// # Errors
    /// If the connection to tiny_http breaks, which only a defect can do.
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

    /// Which are ready: tiny_http, the listener, and the clients in their order. Waits not longer
    /// than [`POLL`], since `stop` and time-outs wake nobody.
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
            // A signal's: nothing has been filled in.
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

    /// Accepts who waits; not more at once than may ask, so that those get their turn.
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
                    // It hung up while it waited.
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                    // Files may be what is missing, and some have one to spare.
                    _ if self.oldest_gives_way() => {}
                    _ => {
                        // One line for the change of state, not one for each attempt.
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
        // Its request is often here already, and then it never counts as silent.
        if client.stream.set_nonblocking(true).is_ok() && client.go_on(now).is_ok() {
            self.clients.push(client);
        }
    }

    /// Closes the oldest connection that nobody waits for; false if there is none.
    fn oldest_gives_way(&mut self) -> bool {
        let oldest = self.clients.iter().position(|client| client.kind() != Kind::Waiting);
        oldest.map(|at| self.clients.remove(at)).is_some()
    }

    /// Closes the oldest connections of each kind that are too many.
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

    /// Passes a request on to tiny_http, if it is free and there is one.
    fn ask_next(&mut self) -> Result<()> {
        if self.exchange.is_some() {
            return Ok(());
        }
        let Some(request) = self.clients.iter_mut().find_map(Client::take_request) else {
            return Ok(());
        };
        // It fits: nothing else is on its way there.
        let sent = self.server.write_all(request.rewritten().as_bytes());
        sent.context("cannot pass a request on to tiny_http")?;
        self.exchange = Some(Exchange { head_only: request.wants_head_only(), answer: Vec::new() });
        // So a rush of scrapers is answered as fast as one.
        for client in &mut self.clients {
            if matches!(&client.stage, Stage::Waiting(other) if *other == request) {
                client.stage = Stage::Asked;
            }
        }
        Ok(())
    }

    /// Reads what tiny_http answers, and passes it on once it is complete.
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
    /// The answer as the client gets it, once it is complete.
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
        // Before the empty line.
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

    /// Its request, if that is what it waits with; from here on it counts as asked.
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
            // All that poll reports of these: it has hung up.
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

    /// Sees to it that its time is kept.
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

    /// Answers what tiny_http does not get to see.
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

/// What the client has sent, if anything is there; the end of it is an error.
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

        // More than the kernel takes for a client that does not read.
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
