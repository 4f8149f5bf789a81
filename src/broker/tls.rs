//! TLS below AMQP, for amiquip's event loop.
//!
//! amiquip could do TLS itself, by OpenSSL. This way all connections of the notifier have the same TLS, CAs
//! and errors, and nothing has to be installed to build.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::tls::Tls;

/// Shakes hands on a socket that still blocks. It has no time limit: guard it.
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

/// A stream that encrypts, over a socket that doesn't block.
pub(super) struct TlsStream<S> {
    socket: S,
    tls: ClientConnection,
    /// How many bytes of the last `write` were encrypted, but could not all be sent.
    taken: usize,
}

impl<S: Read + Write> TlsStream<S> {
    pub(super) fn new(socket: S, tls: ClientConnection) -> Self {
        Self { socket, tls, taken: 0 }
    }

    /// Sends what was encrypted.
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
                // Including the end of the stream, clean or not.
                read => return read,
            }
            self.tls.read_tls(&mut self.socket)?;
            let processed = self.tls.process_new_packets();
            // Messages of TLS itself, such as an alert; what can't be sent now, the next `write` sends.
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
    /// Reports bytes as written only when they have been sent: amiquip waits for the socket to take more only
    /// while it has something left to write. Until then it has to pass the same bytes again, as with
    /// OpenSSL, and it does, with new ones behind them.
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
