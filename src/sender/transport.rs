//! TCP to a receiver, with a deadline that costs few system calls.
//!
//! Before each read and write, ureq's transport sets the remaining time in the kernel, and it makes three calls to
//! find out whether an idle connection is still open. For a small request to a nearby receiver that is half of
//! all system calls. This transport keeps a timeout as long as it fits the deadline, within [`TOLERANCE`], and
//! checks a connection with one call.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::set_tcp_user_timeout;
use rustix::net::{RecvFlags, recv};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

/// How much later than the deadline a read or write may end.
const TOLERANCE: Duration = Duration::from_millis(50);

/// The initial value, before any timeout is set in the kernel.
const NEVER: Duration = Duration::MAX;

/// The least time that the other side's kernel has to confirm data: some round trips to the other end of the
/// world, with two lost packets.
const LEAST_UNCONFIRMED: Duration = Duration::from_secs(1);

/// A part of a request up to this many bytes is sent at once: receivers have room for it, whether they read or
/// not.
const SMALL: usize = 4 << 10;

/// Opens the connections.
#[derive(Debug)]
pub(super) struct TcpConnector {
    /// The most bytes to read of the answer to one request: head, body, and interim responses (1xx), which ureq
    /// would read and ignore without end.
    pub(super) max_answer_bytes: usize,
}

impl<In: Transport> Connector<In> for TcpConnector {
    type Out = Either<In, Tcp>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if chained.is_some() {
            return Ok(chained.map(Either::A));
        }
        let config = details.config;
        let stream = connect(details)?;
        stream.set_nodelay(config.no_delay())?;
        Ok(Some(Either::B(Tcp {
            stream,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            read_timeout: NEVER,
            write_timeout: NEVER,
            unconfirmed: NEVER,
            was_idle: false,
            is_cut: false,
            answered: 0,
            max_answer_bytes: self.max_answer_bytes,
        })))
    }
}

/// Tries the addresses in turn. Each gets half of the remaining time, and the last one all of it: a dead address
/// must not use up the time of another.
fn connect(details: &ConnectionDetails<'_>) -> Result<TcpStream, Error> {
    let deadline = Deadline::of(details.timeout)?;
    let mut last = Error::ConnectionFailed;
    for (n, address) in details.addrs.iter().enumerate() {
        let left = deadline.left()?;
        let is_last = n + 1 == details.addrs.len();
        let limit = if is_last { left } else { (left / 2).max(Duration::from_millis(1)) };
        match TcpStream::connect_timeout(address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) if is_timeout(&error) => last = Error::Timeout(deadline.reason),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// A TCP connection.
#[derive(Debug)]
pub(super) struct Tcp {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// The timeouts set in the kernel.
    read_timeout: Duration,
    write_timeout: Duration,
    unconfirmed: Duration,
    /// Whether it was idle and nothing has been sent since.
    was_idle: bool,
    /// Whether a request was sent in part: the next one would be taken for its rest.
    is_cut: bool,
    /// The number of bytes read since the last write.
    answered: usize,
    max_answer_bytes: usize,
}

impl Transport for Tcp {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if self.is_cut {
            return Err(io::Error::from(ErrorKind::BrokenPipe).into());
        }
        let deadline = Deadline::of(timeout.for_write())?;
        self.answered = 0;
        if amount > SMALL {
            self.wait_while_it_reads();
        } else if std::mem::take(&mut self.was_idle) {
            self.limit_unconfirmed(deadline.after);
        }
        let sent = self.send(amount, deadline);
        self.is_cut = sent.is_err();
        sent
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let deadline = Deadline::of(timeout.for_read())?;
        loop {
            let set = |left| self.stream.set_read_timeout(Some(left));
            deadline.set(&mut self.read_timeout, set)?;
            match (&self.stream).read(room(&mut self.buffers)?) {
                Ok(read) => {
                    self.buffers.input_appended(read);
                    self.answered += read;
                    if self.answered > self.max_answer_bytes {
                        return Err(Error::LargeResponseHeader(
                            self.answered,
                            self.max_answer_bytes,
                        ));
                    }
                    return Ok(read > 0);
                }
                Err(error) => deadline.may_repeat_after(error)?,
            }
        }
    }

    /// Whether the other side has neither closed the connection nor sent data out of turn.
    fn is_open(&mut self) -> bool {
        self.was_idle = true;
        !has_input(&self.stream)
    }
}

/// Whether there is something to read, even if it is only the end.
fn has_input(stream: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    !matches!(recv(stream, &mut [0_u8; 1], flags), Err(Errno::WOULDBLOCK))
}

impl Tcp {
    fn send(&mut self, amount: usize, deadline: Deadline) -> Result<(), Error> {
        let mut output = &self.buffers.output()[..amount];
        while !output.is_empty() {
            let set = |left| self.stream.set_write_timeout(Some(left));
            deadline.set(&mut self.write_timeout, set)?;
            match (&self.stream).write(output) {
                Ok(0) => return Err(io::Error::from(ErrorKind::WriteZero).into()),
                Ok(written) => output = &output[written..],
                Err(error) => deadline.may_repeat_after(error)?,
            }
        }
        Ok(())
    }

    /// Disables the limit for unconfirmed data, because the request may fill the window: if a receiver reads
    /// slowly, its window closes, which TCP_USER_TIMEOUT treats as if the receiver were gone.
    fn wait_while_it_reads(&mut self) {
        if self.unconfirmed != NEVER && set_tcp_user_timeout(&self.stream, 0).is_ok() {
            self.unconfirmed = NEVER;
        }
    }

    /// Limits the time for unconfirmed data. While a connection is idle, a router may forget it, or its other end
    /// may disappear silently. Then the kernel reports that (ETIMEDOUT) after a third of the request's time, and
    /// the rest is left for a fresh connection. A receiver that only answers slowly still confirms the data. A
    /// fresh connection needs no such limit: it has the whole time.
    fn limit_unconfirmed(&mut self, after: Duration) {
        let limit = (after / 3).max(LEAST_UNCONFIRMED);
        // Set once if all requests have about the same time.
        if self.unconfirmed > limit * 2 || self.unconfirmed < limit / 2 {
            let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
            // If this fails, it works as in any other client: the request's timeout applies.
            if set_tcp_user_timeout(&self.stream, millis).is_ok() {
                self.unconfirmed = limit;
            }
        }
    }
}

/// The buffer for the next piece of an answer. No room is an error: reading 0 bytes would look like the end of
/// the connection.
pub(super) fn room(buffers: &mut LazyBuffers) -> Result<&mut [u8], Error> {
    if buffers.input_append_buf().is_empty() {
        let most = buffers.input().len();
        return Err(Error::LargeResponseHeader(most + 1, most));
    }
    Ok(buffers.input_append_buf())
}

/// When an operation has to end.
#[derive(Clone, Copy)]
struct Deadline {
    began: Instant,
    after: Duration,
    reason: Timeout,
}

impl Deadline {
    fn of(timeout: NextTimeout) -> Result<Self, Error> {
        let deadline =
            Self { began: Instant::now(), after: *timeout.after, reason: timeout.reason };
        if deadline.after.is_zero() { Err(Error::Timeout(timeout.reason)) } else { Ok(deadline) }
    }

    /// The remaining time; an error if there is none.
    fn left(self) -> Result<Duration, Error> {
        match self.after.checked_sub(self.began.elapsed()) {
            Some(left) if !left.is_zero() => Ok(left),
            _ => Err(Error::Timeout(self.reason)),
        }
    }

    /// Makes sure that an operation ends with the deadline. A timeout that was set earlier may end it sooner; see
    /// [`Deadline::may_repeat_after`].
    fn set(
        self,
        current: &mut Duration,
        set: impl FnOnce(Duration) -> io::Result<()>,
    ) -> Result<(), Error> {
        let left = self.left()?;
        // Kept while it roughly fits: setting it costs a call for every piece of a long answer.
        if *current > left.saturating_add(TOLERANCE) || *current < left / 2 {
            // The kernel accepts neither centuries nor zero.
            let left = left.clamp(Duration::from_millis(1), Duration::from_secs(86_400));
            set(left)?;
            *current = left;
        }
        Ok(())
    }

    /// Ok if an operation that failed may be repeated. (`TimedOut` is the end of the connection; a timeout that we
    /// set ends as `WouldBlock`.)
    fn may_repeat_after(self, error: io::Error) -> Result<(), Error> {
        if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) {
            return self.left().map(drop);
        }
        Err(error.into())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn deadline(millis: u64) -> Deadline {
        let after = Duration::from_millis(millis);
        Deadline { began: Instant::now(), after, reason: Timeout::Global }
    }

    #[test]
    fn a_timeout_is_set_only_if_the_present_one_does_not_fit() {
        let calls = Cell::new(0);
        let mut current = NEVER;
        let mut check = |millis: u64, expected: u32| {
            let count = |_| {
                calls.set(calls.get() + 1);
                Ok(())
            };
            deadline(millis).set(&mut current, count).expect("time is left");
            assert_eq!(calls.get(), expected, "{millis} ms");
            assert!(current <= Duration::from_millis(millis) + TOLERANCE);
        };
        check(10_000, 1);
        check(9_990, 1);
        check(10_000, 1);
        check(8_000, 2);
        check(10_000, 2);
        check(3_000, 3);
        check(10_000, 4);
    }

    #[test]
    fn an_operation_is_repeated_only_until_its_deadline() {
        let timeout = || io::Error::from(ErrorKind::WouldBlock);
        assert!(deadline(1_000).may_repeat_after(timeout()).is_ok());
        assert!(deadline(1_000).may_repeat_after(ErrorKind::Interrupted.into()).is_ok());
        for end in [ErrorKind::ConnectionReset, ErrorKind::TimedOut] {
            assert!(deadline(1_000).may_repeat_after(end.into()).is_err());
        }
        let over = deadline(0).may_repeat_after(timeout());
        assert!(matches!(over, Err(Error::Timeout(Timeout::Global))));
    }
}
