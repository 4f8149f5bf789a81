//! TLS below AMQP, for amiquip's event loop.
//!
//! amiquip supports TLS with OpenSSL. With ours, all connections of the notifier have the same TLS, CAs and
//! errors, and the build needs no installed library.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use mio::{Evented, Poll, PollOpt, Ready, Token};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::tls::Tls;

/// Performs the TLS handshake on a socket that still blocks. It has no time limit: call it in
/// [`KillSwitch::guard`](super::KillSwitch::guard).
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

/// An encrypted stream over a non-blocking socket.
pub(super) struct TlsStream<S> {
    socket: S,
    tls: ClientConnection,
    /// How many bytes the last `write` encrypted, if they could not all be sent.
    taken: usize,
}

impl<S: Read + Write> TlsStream<S> {
    pub(super) fn new(socket: S, tls: ClientConnection) -> Self {
        Self { socket, tls, taken: 0 }
    }

    /// Sends the encrypted bytes.
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
            // TLS's own messages, such as an alert. Those that can't be sent now are sent by the next `write`.
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
    /// Reports bytes as written only when they have been sent, because amiquip waits for the socket only while
    /// it has something left to write. Until then it has to pass the same bytes again, as with OpenSSL. It
    /// does, with new bytes appended.
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
