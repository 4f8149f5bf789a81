//! TLS below AMQP, for amiquip's event loop.
//!
//! amiquip could do it itself, by OpenSSL; this way all connections have one TLS, the same CAs and
//! the same errors, and nothing has to be installed to build.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::tls::Tls;

/// Shakes hands on a socket that still blocks: what limits that is whoever may shut it down.
///
/// # Errors
/// If the socket fails, or one side refuses the other.
pub(super) fn handshake(
    socket: &mut TcpStream,
    tls: &Tls,
    host: &str,
) -> io::Result<ClientConnection> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(tls.config(), name).map_err(io::Error::other)?;
    connection.complete_io(socket)?;
    Ok(connection)
}

/// A stream that encrypts, over one that doesn't block.
pub(super) struct TlsStream<S> {
    socket: S,
    tls: ClientConnection,
    /// How much was taken from the last `write`, which could not be sent to its end then.
    taken: usize,
}

impl<S: Read + Write> TlsStream<S> {
    pub(super) fn new(socket: S, tls: ClientConnection) -> Self {
        Self { socket, tls, taken: 0 }
    }

    /// Sends what is encrypted.
    fn send(&mut self) -> io::Result<()> {
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut self.socket)? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }
}

impl<S: Read + Write> Read for TlsStream<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A clean end, or one without a farewell.
                read => return read,
            }
            self.tls.read_tls(&mut self.socket)?;
            let processed = self.tls.process_new_packets();
            // An answer of TLS's own, such as why we refuse; the next `write` sends what can't be
            // sent now.
            let sent = self.send();
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match sent {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
    }
}

impl<S: Read + Write> Write for TlsStream<S> {
    /// Tells of bytes as written only once they are on their way: amiquip waits for a socket that
    /// takes more only while it still has something to write. Until then they are to be given again,
    /// as to OpenSSL, and amiquip does: what it adds comes behind them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send()?;
        if self.taken == 0 {
            self.taken = self.tls.writer().write(bytes)?;
            self.send()?;
        }
        Ok(std::mem::take(&mut self.taken))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

impl<S: Evented> Evented for TlsStream<S> {
    fn register(&self, poll: &Poll, token: Token, ready: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.register(poll, token, ready, opts)
    }

    fn reregister(&self, poll: &Poll, token: Token, ready: Ready, opts: PollOpt) -> io::Result<()> {
        self.socket.reregister(poll, token, ready, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket.deregister(poll)
    }
}
