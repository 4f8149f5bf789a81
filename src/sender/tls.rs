//! TLS to a receiver, within the deadline of its request.

use std::fmt;
use std::io::{Read, Write};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter, time,
};
use ureq::{Error, Timeout};

use super::transport::room;
use crate::tls::Tls;

/// Wraps the connections to https receivers. (ureq's own can't believe one more CA beside the usual
/// ones.)
#[derive(Debug)]
pub(super) struct TlsConnector(pub(super) Tls);

impl<In: Transport> Connector<In> for TlsConnector {
    type Out = Either<In, TlsTransport>;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        let Some(transport) = chained else { return Ok(None) };
        if !details.needs_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Error::Tls("no certificate can be for such a host"))?;
        let mut tls =
            ClientConnection::new(self.0.config(), name).map_err(std::io::Error::other)?;
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        socket.set_timeout(left_of(details)?);
        tls.complete_io(&mut socket)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        Ok(Some(Either::B(TlsTransport { stream: StreamOwned::new(tls, socket), buffers })))
    }
}

/// What TCP has left of the time for connecting.
fn left_of(details: &ConnectionDetails<'_>) -> Result<NextTimeout, Error> {
    let (time::Duration::Exact(limit), time::Instant::Exact(began)) =
        (details.timeout.after, details.now)
    else {
        return Ok(details.timeout);
    };
    match limit.checked_sub(began.elapsed()) {
        Some(left) if !left.is_zero() => {
            Ok(NextTimeout { after: time::Duration::Exact(left), ..details.timeout })
        }
        _ => Err(Error::Timeout(Timeout::Connect)),
    }
}

/// A connection.
pub(super) struct TlsTransport {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
}

impl fmt::Debug for TlsTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsTransport").finish_non_exhaustive()
    }
}

impl Transport for TlsTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.stream.sock.set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = self.stream.read(room(&mut self.buffers)?)?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// What was said out of turn may also have come already, to wait here in one form or the other.
    fn is_open(&mut self) -> bool {
        let silent =
            self.stream.conn.process_new_packets().is_ok_and(|state| {
                state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed()
            });
        let tcp = self.stream.sock.get_mut();
        silent && tcp.buffers().input().is_empty() && tcp.is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}
