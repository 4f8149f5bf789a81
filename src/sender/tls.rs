//! TLS to a receiver, within the deadline of its request.

use std::fmt;
use std::io::ErrorKind::{BrokenPipe, ConnectionReset, WouldBlock};
use std::io::{self, Read, Write};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter, time,
};
use ureq::{Error, Timeout};

use super::transport::room;
use crate::tls::Tls;

/// Wraps the connections to https receivers. (ureq's connector can't trust an additional CA.)
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
        let mut tls = ClientConnection::new(self.0.config(), name).map_err(io::Error::other)?;
        let mut socket = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        socket.set_timeout(left_of(details)?);
        tls.complete_io(&mut socket)?;
        let config = details.config;
        let buffers = LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size());
        let stream = StreamOwned::new(tls, socket);
        Ok(Some(Either::B(TlsTransport { stream, buffers, only_reads: false })))
    }
}

/// The rest of the time for connecting, after TCP.
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

/// A TLS connection.
pub(super) struct TlsTransport {
    stream: StreamOwned<ClientConnection, TransportAdapter>,
    buffers: LazyBuffers,
    /// Set after a failed write, because before reading, rustls' stream would try to write the rest.
    only_reads: bool,
}

impl TlsTransport {
    fn read(&mut self) -> io::Result<usize> {
        let room = room(&mut self.buffers).map_err(Error::into_io)?;
        if !self.only_reads {
            match self.stream.read(room) {
                // This may be about the request's last bytes, which rustls had buffered: it reports a failed write
                // at its next call.
                Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                    self.only_reads = true;
                }
                read => return read,
            }
        }
        let StreamOwned { conn, sock } = &mut self.stream;
        loop {
            match conn.reader().read(room) {
                Err(error) if error.kind() == WouldBlock => {}
                read => return read,
            }
            if conn.read_tls(sock)? == 0 {
                return Ok(0);
            }
            conn.process_new_packets().map_err(io::Error::other)?;
        }
    }
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
        let written = self.stream.write_all(&self.buffers.output()[..amount]);
        self.only_reads |= written.is_err();
        Ok(written?)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.stream.sock.set_timeout(timeout);
        let read = self.read()?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    /// The other side may also have sent data out of turn that was received already, encrypted or decrypted.
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread;

    use rustls::pki_types::PrivatePkcs8KeyDer;
    use rustls::{ServerConfig, ServerConnection, crypto::ring};
    use ureq::Agent;

    use crate::sender::transport::TcpConnector;
    use crate::tls::{Check, Roots};

    /// An answer that fills the buffer to its last byte, and another one in its own record that arrives
    /// with it and waits behind the buffer.
    fn answers() -> [String; 2] {
        let answer = |filler: usize| {
            let body = "a".repeat(filler);
            format!("HTTP/1.1 200 OK\r\ncontent-length: {filler}\r\n\r\n{body}")
        };
        let head = answer(10_000).len() - 10_000;
        [answer((16 << 10) - head), answer(0)]
    }

    #[test]
    fn a_connection_with_an_answer_that_was_not_asked_for_is_not_reused() {
        let named = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a key");
        let ca = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(ca.path(), named.cert.pem()).expect("it is writable");
        let key = PrivatePkcs8KeyDer::from(named.signing_key.serialize_der());
        let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![named.cert.der().clone()], key.into())
            .expect("a certificate");
        let server = Arc::new(server);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("https://{}/", listener.local_addr().expect("it is bound"));
        let receiver = thread::spawn(move || {
            let mut open = Vec::new();
            for _ in 0..2 {
                let (stream, _) = listener.accept().expect("a connection for each request");
                let connection = ServerConnection::new(Arc::clone(&server)).expect("a connection");
                let mut tls = StreamOwned::new(connection, stream);
                let mut request = [0; 1_024];
                while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                    let _ = tls.read(&mut request).expect("a request");
                }
                // Encrypted first, so that both are sent at once.
                for answer in answers() {
                    tls.conn.writer().write_all(answer.as_bytes()).expect("there is room");
                }
                tls.flush().expect("somebody reads");
                open.push(tls);
            }
        });
        let roots = Roots::bundled().with(ca.path()).expect("a certificate");
        let tls = Tls::new(roots, Check::Name, None).expect("a client");
        let settings = Agent::config_builder()
            .timeout_global(Some(std::time::Duration::from_secs(5)))
            .input_buffer_size(16 << 10)
            .build();
        let connector =
            ().chain(TcpConnector { max_answer_bytes: 1 << 20 }).chain(TlsConnector(tls));
        let resolver = ureq::unversioned::resolver::DefaultResolver::default();
        let agent = Agent::with_parts(settings, connector, resolver);

        for _ in 0..2 {
            let mut response = agent.get(&url).call().expect("an answer");
            let body = response.body_mut().read_to_string().expect("a body");
            assert!(body.len() > 16_000, "that was the other answer: {}", body.len());
        }
        receiver.join().expect("each request had a connection of its own");
    }
}
