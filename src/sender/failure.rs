//! Explains why there was no answer, and what to change.

use std::error;
use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use ureq::{Error, Timeout};

use super::egress;
use crate::domain::address::Forbidden;
use crate::domain::outcome::{Reason, Response};
use crate::domain::shown;
use crate::domain::time::Span;
use crate::lookup::LookUpError;
use crate::tls::problem as tls_problem;

/// A failure of a connection for which ureq has no error.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A reused connection ended, or turned out to be dead, before a byte of this answer. The request is sent
    /// again on a fresh connection.
    Stale,
    /// The time was up.
    TimedOut(Phase),
    /// The answer isn't HTTP: its beginning.
    NotHttp(Vec<u8>),
    /// The connection ended within the head of an answer.
    CutOff,
    /// The connection ended during the TLS handshake.
    NoHandshake,
}

/// The phase of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The connection was being opened, with TLS.
    Connecting,
    /// The request was being sent.
    Sending,
    /// The request was sent, and no byte of the answer had arrived.
    Answer,
    /// The head of the answer had begun to arrive.
    Rest,
}

/// The time limits of an attempt and of connecting for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeLimits {
    pub(super) request: Duration,
    pub(super) connect: Duration,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Other(Box::new(fault))
    }
}

impl error::Error for Fault {}

/// For logs of ureq; people read [`Fault::words`].
impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{self:?}")
    }
}

impl Fault {
    const fn reason(&self) -> Reason {
        match self {
            Self::TimedOut(_) => Reason::Timeout,
            Self::NotHttp(_) => Reason::Protocol,
            Self::Stale | Self::CutOff | Self::NoHandshake => Reason::Reset,
        }
    }

    fn words(&self, limits: TimeLimits) -> String {
        let within = format!("within {}", Span::from(limits.request));
        match self {
            Self::TimedOut(Phase::Connecting) => {
                let within = Span::from(limits.connect.min(limits.request));
                format!(
                    "no connection within {within}: is its address right, and do firewalls let us through?"
                )
            }
            Self::TimedOut(Phase::Sending) => {
                format!(
                    "did not read the whole request {within}: it has to read it, or to answer with an error"
                )
            }
            Self::TimedOut(Phase::Answer) => format!(
                "no answer {within}: it should answer first and work later; or allow it more time \
                 (--timeout, REQUEST_TIMEOUT)"
            ),
            Self::TimedOut(Phase::Rest) => {
                format!("its answer began, but its headers were not complete {within}")
            }
            // A TLS alert, or a record of the TLS handshake.
            Self::NotHttp(bytes) if matches!(bytes[..], [0x15 | 0x16, 3, ..]) => {
                "answers in TLS: its URL must begin with https://".to_owned()
            }
            Self::NotHttp(bytes) => {
                let said = shown::quoted(&String::from_utf8_lossy(bytes));
                format!("its answer is not HTTP/1.1: {said}: is this the right port?")
            }
            Self::CutOff => "closed the connection in the middle of its answer".to_owned(),
            Self::NoHandshake => {
                "closed the connection in the TLS handshake: does this port speak TLS, with a certificate for \
                 this name?"
                    .to_owned()
            }
            Self::Stale => CLOSED.to_owned(),
        }
    }
}

const CLOSED: &str =
    "closed the connection without an answer: does it crash, or take only HTTPS there?";

/// The response for an error of ureq, or of our parts in it, in an attempt with these limits.
pub(super) fn no_answer(error: Error, limits: TimeLimits) -> Response {
    if let Some(response) = egress::response(&error) {
        return response;
    }
    let (reason, detail) = match error {
        Error::Io(io) => match tls_problem(&io) {
            Some(problem) => (Reason::Tls, problem),
            None => of_io(&io),
        },
        Error::Other(inner) => {
            if let Some(fault) = inner.downcast_ref::<Fault>() {
                (fault.reason(), fault.words(limits))
            } else if let Some(failed) = inner.downcast_ref::<LookUpError>() {
                let reason = match failed {
                    LookUpError::Silent => Reason::Timeout,
                    LookUpError::Refused(_) | LookUpError::Busy | LookUpError::NoThread(_) => {
                        Reason::Dns
                    }
                };
                (reason, failed.to_string())
            } else if inner.is::<Forbidden>() {
                return Response::Refused { detail: inner.to_string() };
            } else {
                (Reason::Io, inner.to_string())
            }
        }
        Error::BadUri(_) | Error::Http(_) => {
            return Response::Refused { detail: format!("unusable URL: {error}") };
        }
        Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            (Reason::Timeout, Fault::TimedOut(Phase::Connecting).words(limits))
        }
        Error::Timeout(_) => (Reason::Timeout, Fault::TimedOut(Phase::Answer).words(limits)),
        Error::LargeResponseHeader(_, most) => {
            (Reason::Protocol, format!("its answer's headers are longer than {most} bytes"))
        }
        Error::Protocol(error) => {
            (Reason::Protocol, format!("its answer is not valid HTTP: {error}"))
        }
        Error::Tls(problem) => (Reason::Tls, problem.to_owned()),
        Error::HostNotFound => (Reason::Dns, error.to_string()),
        Error::ConnectionFailed => (Reason::Refused, error.to_string()),
        Error::BodyStalled => (Reason::Protocol, error.to_string()),
        error => (Reason::Io, error.to_string()),
    };
    Response::NoAnswer { reason, detail }
}

fn of_io(error: &io::Error) -> (Reason, String) {
    match error.kind() {
        ErrorKind::ConnectionRefused => (
            Reason::Refused,
            "connection refused: does the receiver run, and listen on this port?".to_owned(),
        ),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => (
            Reason::Refused,
            format!("no route to its address ({error}): can this machine reach it?"),
        ),
        // Which of these it is depends on chance. (The message of one of them links to a library's manual.)
        ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe
        | ErrorKind::UnexpectedEof
        | ErrorKind::NotConnected => (Reason::Reset, CLOSED.to_owned()),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => (
            Reason::Timeout,
            "the connection is dead: its address does not answer any more".to_owned(),
        ),
        _ => (Reason::Io, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: impl Into<Error>, reason: Reason, says: &str) {
        let limits =
            TimeLimits { request: Duration::from_secs(10), connect: Duration::from_millis(1_500) };
        let Response::NoAnswer { reason: found, detail } = no_answer(error.into(), limits) else {
            panic!("an attempt was made");
        };
        assert_eq!(found, reason, "{detail}");
        assert!(detail.contains(says), "no {says:?} in {detail:?}");
        // It has to fit in a header and in a log line.
        assert!(detail.chars().count() < 200 && !detail.contains("://docs.rs"), "{detail}");
    }

    #[test]
    fn each_failure_says_what_to_change() {
        let within = |phase| Fault::TimedOut(phase);
        check(within(Phase::Connecting), Reason::Timeout, "no connection within 1500ms: is its");
        check(within(Phase::Sending), Reason::Timeout, "the whole request within 10s");
        check(
            within(Phase::Answer),
            Reason::Timeout,
            "no answer within 10s: it should answer first",
        );
        check(within(Phase::Rest), Reason::Timeout, "headers were not complete within 10s");
        check(Error::Timeout(Timeout::Global), Reason::Timeout, "no answer within 10s");
        check(Fault::NotHttp(vec![0x15, 3, 1, 0]), Reason::Protocol, "https://");
        check(
            Fault::NotHttp(b"SSH-2.0\r\n".to_vec()),
            Reason::Protocol,
            r#""SSH-2.0\r\n": is this"#,
        );
        check(Fault::NotHttp(vec![0xff; 999]), Reason::Protocol, "…");
        check(Fault::CutOff, Reason::Reset, "in the middle of its answer");
        check(Fault::NoHandshake, Reason::Reset, "in the TLS handshake");
        for kind in [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof] {
            let error = io::Error::new(kind, "see https://docs.rs/rustls");
            check(Error::Io(error), Reason::Reset, "without an answer");
        }
        let refused = io::Error::from(ErrorKind::ConnectionRefused);
        check(Error::Io(refused), Reason::Refused, "does the receiver run");
        let unreachable = io::Error::from(ErrorKind::HostUnreachable);
        check(Error::Io(unreachable), Reason::Refused, "can this machine reach it?");
        check(Error::LargeResponseHeader(9, 8), Reason::Protocol, "are longer than 8 bytes");
    }
}
