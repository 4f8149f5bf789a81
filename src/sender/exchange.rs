//! Requests and answers on a connection, one after another.
//!
//! This is a layer between ureq and the connection (TCP, or TLS above it). It handles what ureq doesn't:
//!
//! - An idle connection may have ended, or its other end may be gone. If it fails before a byte of the answer,
//!   that is [`Fault::Stale`]: the request wasn't processed, and the [`Sender`](super::Sender) sends it on a
//!   fresh connection as part of the same attempt. Then the other idle connections to that host are no longer
//!   used either. See [`HostGeneration`].
//! - A connection isn't used for longer, or more often, than `Keep-Alive` says.
//! - A receiver may answer and close before it has read the whole request. Its answer is read when writing
//!   fails.
//! - Faulty heads that other clients accept are repaired, so that ureq accepts them too. See [`head`].

use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, NextTimeout, Transport, time,
};

use super::excerpt;
use super::head::{self, HeadFacts, Search};
use super::hosts::{HostGeneration, HostGenerations};
use super::{MAX_RESPONSE_HEADER_BYTES, failure::Fault, failure::Phase};

mod input;

use input::Input;

/// A connection is last used this long before the end that `Keep-Alive` announces: as long as a request may take
/// to arrive. If half of the announced time is less, that is used instead.
const MARGIN: Duration = Duration::from_secs(1);

/// How long to wait, after a write that timed out, for an answer that has arrived already: as long as a busy
/// machine may take to read it.
const ALREADY_HERE: Duration = Duration::from_millis(400);

/// Opens connections with a chain of connectors.
#[derive(Debug)]
pub(super) struct ExchangeConnector<C> {
    chain: C,
    hosts: HostGenerations,
}

impl<C> ExchangeConnector<C> {
    pub(super) fn new(chain: C) -> Self {
        Self { chain, hosts: HostGenerations::default() }
    }
}

impl<C: Connector> Connector for ExchangeConnector<C> {
    type Out = Exchange<C::Out>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<()>,
    ) -> Result<Option<Self::Out>, Error> {
        let connected = self.chain.connect(details, chained).map_err(|error| match error {
            Error::Timeout(_) => Fault::TimedOut(Phase::Connecting).into(),
            Error::Io(error) if details.needs_tls() && is_closed(&error) => {
                Fault::NoHandshake.into()
            }
            error => error,
        })?;
        Ok(connected.map(|inner| Exchange::new(inner, self.hosts.of(details.uri))))
    }
}

/// A connection.
pub(super) struct Exchange<T> {
    inner: T,
    host: Arc<HostGeneration>,
    /// The host's generation when this connection last worked.
    generation: u32,
    /// Whether it served a request before the present one.
    is_reused: bool,
    /// Whether a byte of the answer to the present request has arrived.
    is_answered: bool,
    /// Whether the other side has answered and accepts nothing more.
    is_closed: bool,
    input: Input,
    /// Searches for the end of an answer's head; `None` while the body is read.
    search: Option<Search>,
    /// From `Keep-Alive`.
    idle_limit: Option<Duration>,
    requests_left: Option<u64>,
    /// Since when it has been idle; set only if there is an idle limit.
    idle_since: Option<Instant>,
}

impl<T> fmt::Debug for Exchange<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exchange").finish_non_exhaustive()
    }
}

impl<T: Transport> Exchange<T> {
    fn new(inner: T, host: Arc<HostGeneration>) -> Self {
        let generation = host.generation();
        Self {
            inner,
            host,
            generation,
            is_reused: false,
            is_answered: false,
            is_closed: false,
            input: Input::default(),
            search: Some(Search::default()),
            idle_limit: None,
            requests_left: None,
            idle_since: None,
        }
    }

    /// Reads until ureq can process something: a whole head, or any part of a body. False at the end of the
    /// connection.
    fn read(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let began = Instant::now();
        loop {
            if self.release()? {
                return Ok(true);
            }
            let timeout = NextTimeout { after: left(timeout.after, began), ..timeout };
            if !self.read_more(timeout)? {
                return Ok(false);
            }
        }
    }

    fn read_more(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let has_arrived =
            if self.is_reused && !self.is_answered && !self.host.is_after(self.generation) {
                self.await_first_byte(timeout)?
            } else {
                self.inner.await_input(timeout)?
            };
        let buffers = self.inner.buffers();
        let bytes = buffers.input();
        let count = bytes.len();
        self.input.append(bytes);
        buffers.input_consume(count);
        self.is_answered |= count > 0;
        Ok(has_arrived)
    }

    /// Waits for the first byte of an answer on a reused connection. If half of the time passes without one, the
    /// receiver may be slow, or the other end may be gone. Then this keeps waiting, but idle connections are no
    /// longer reused.
    fn await_first_byte(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let began = Instant::now();
        let half = NextTimeout { after: time::Duration::Exact(*timeout.after / 2), ..timeout };
        match self.inner.await_input(half) {
            Err(Error::Timeout(_)) => {
                self.host.end(self.generation);
                let rest = NextTimeout { after: left(timeout.after, began), ..timeout };
                self.inner.await_input(rest)
            }
            other => other,
        }
    }

    /// Releases the bytes that ureq can process. False if there are none.
    fn release(&mut self) -> Result<bool, Error> {
        let Some(search) = &mut self.search else { return Ok(self.input.release_all()) };
        let bytes = self.input.waiting();
        if !head::begins_as_http(bytes) {
            // Enough bytes to recognize the protocol.
            return Err(Fault::NotHttp(bytes[..bytes.len().min(100)].to_vec()).into());
        }
        let Some(length) = search.end(bytes) else {
            if bytes.len() >= MAX_RESPONSE_HEADER_BYTES {
                let most = MAX_RESPONSE_HEADER_BYTES;
                return Err(Error::LargeResponseHeader(bytes.len(), most));
            }
            return Ok(false);
        };
        let read = HeadFacts::read(&bytes[..length]);
        if !read.is_interim {
            excerpt::note_status_line(&bytes[..length]);
        }
        let repaired = read.has_mistakes.then(|| head::repair(&bytes[..length]));
        self.input.release(length, repaired);
        if read.is_interim {
            self.search = Some(Search::default());
        } else {
            self.search = None;
            self.idle_limit = read.idle_limit.or(self.idle_limit);
            self.requests_left = read.requests_left.or(self.requests_left);
            self.input.release_all();
        }
        Ok(true)
    }

    /// Whether the other side announced that it would close the connection about now.
    fn is_used_up(&self) -> bool {
        let is_over = |limit: Duration| {
            let idle = self.idle_since.map_or(Duration::ZERO, |since| since.elapsed());
            idle >= limit - MARGIN.min(limit / 2)
        };
        self.requests_left == Some(0) || self.idle_limit.is_some_and(is_over)
    }

    /// Reads the answer after a failed write: the other side accepts no more of the request, but may have
    /// answered it.
    fn after_failed_write(&mut self, error: Error, timeout: NextTimeout) -> Result<(), Error> {
        // If the connection has ended, all data has already arrived, so reading takes no time.
        let limit = match error {
            Error::Timeout(_) => ALREADY_HERE,
            _ => *timeout.after,
        };
        let (began, limit) = (Instant::now(), time::Duration::Exact(limit));
        // An interim answer isn't an answer.
        while self.search.is_some() {
            match self.read(NextTimeout { after: left(limit, began), ..timeout }) {
                Ok(true) => {}
                // The failed write is the cause.
                Ok(false) | Err(_) => return Err(self.failed(error, Phase::Sending)),
            }
        }
        self.is_closed = true;
        // So that ureq processes the answer before it waits for more.
        self.input.made_progress = true;
        Ok(())
    }

    /// Classifies a failure, and excludes idle connections from reuse if they may be dead too.
    fn failed(&self, error: Error, phase: Phase) -> Error {
        let is_early = self.is_reused && !self.is_answered;
        match error {
            Error::Timeout(_) => {
                if is_early {
                    self.host.end(self.generation);
                }
                let is_begun = self.is_answered && phase == Phase::Answer;
                Fault::TimedOut(if is_begun { Phase::Rest } else { phase }).into()
            }
            Error::Io(error) if is_early && is_end(&error) => {
                self.host.end(self.generation);
                Fault::Stale.into()
            }
            Error::Io(error) if self.is_answered && is_end(&error) => Fault::CutOff.into(),
            error => error,
        }
    }
}

impl<T: Transport> Transport for Exchange<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.is_closed {
            return Ok(());
        }
        // Leaves time to read an answer that has already arrived.
        let after = timeout.after.saturating_sub(ALREADY_HERE.min(*timeout.after / 4));
        let within = NextTimeout { after: time::Duration::Exact(after), ..timeout };
        match self.inner.transmit_output(amount, within) {
            Ok(()) => Ok(()),
            Err(error) => self.after_failed_write(error, timeout),
        }
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let is_head = self.search.is_some();
        match self.read(timeout) {
            Ok(false) if is_head => {
                Err(self.failed(io::Error::from(ErrorKind::UnexpectedEof).into(), Phase::Answer))
            }
            Err(error) if is_head => Err(self.failed(error, Phase::Answer)),
            other => other,
        }
    }

    /// Called when an answer was read completely, and before the next request uses the connection.
    fn is_open(&mut self) -> bool {
        if self.is_closed || !self.input.is_empty() {
            return false;
        }
        if self.is_answered {
            self.generation = self.host.generation();
            self.is_reused = true;
            self.is_answered = false;
            self.search = Some(Search::default());
            self.idle_since = self.idle_limit.map(|_| Instant::now());
        } else {
            if self.is_used_up() || self.host.is_after(self.generation) {
                return false;
            }
            self.requests_left = self.requests_left.map(|left| left - 1);
        }
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

/// The output is the inner transport's own; the input is copied from it piece by piece.
impl<T: Transport> Buffers for Exchange<T> {
    fn output(&mut self) -> &mut [u8] {
        self.inner.buffers().output()
    }

    fn input(&self) -> &[u8] {
        self.input.released()
    }

    /// Only transports write there, and this one doesn't.
    fn input_append_buf(&mut self) -> &mut [u8] {
        &mut []
    }

    fn input_appended(&mut self, _: usize) {}

    fn input_consume(&mut self, amount: usize) {
        self.input.consume(amount);
    }

    fn tmp_and_output(&mut self) -> (&mut [u8], &mut [u8]) {
        self.inner.buffers().tmp_and_output()
    }

    fn can_use_input(&self) -> bool {
        self.input.made_progress && !self.input.released().is_empty()
    }
}

/// The rest of a time limit that began at `began`.
fn left(after: time::Duration, began: Instant) -> time::Duration {
    match after {
        time::Duration::Exact(after) => {
            time::Duration::Exact(after.saturating_sub(began.elapsed()))
        }
        never => never,
    }
}

/// Whether the error means that the connection has ended, or that its other end is gone.
fn is_end(error: &io::Error) -> bool {
    let is_lost = matches!(
        error.kind(),
        ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    );
    is_lost || is_closed(error)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof
            | ErrorKind::NotConnected
    )
}
