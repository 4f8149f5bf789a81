//! TLS for the tests: certificates, good and bad, and a server that presents one and forwards what
//! arrives to a server without TLS.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::{
    TextFile,
    streams::{OpenStreams, address_of, with_address},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::{
    ServerConfig, ServerConnection,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer},
};

/// The pause between two dripped bytes.
const DRIP: Duration = Duration::from_millis(100);

/// A CA that a test creates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a server presents.
#[derive(Debug)]
pub(crate) struct Certificate {
    chain: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(parameters, new_key());
        Self(issuer.expect("parameters of a CA"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A file for TLS_CA_FILE.
    pub(crate) fn file(&self) -> TextFile {
        TextFile::new(&self.pem())
    }

    /// For 127.0.0.1 and localhost.
    pub(crate) fn good(&self) -> Certificate {
        self.sign(|_| {}, &["127.0.0.1", "localhost"])
    }

    pub(crate) fn of_another_name(&self) -> Certificate {
        self.sign(|_| {}, &["other.test"])
    }

    pub(crate) fn expired(&self) -> Certificate {
        let long_ago = |parameters: &mut CertificateParams| {
            parameters.not_before = date_time_ymd(2001, 1, 1);
            parameters.not_after = date_time_ymd(2002, 1, 1);
        };
        self.sign(long_ago, &["127.0.0.1", "localhost"])
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams), names: &[&str]) -> Certificate {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).expect("names of servers");
        change(&mut parameters);
        let key = new_key();
        let signed = parameters.signed_by(&key, &self.0).expect("a CA can sign");
        Certificate { chain: signed.der().clone(), key: key.into() }
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("there is chance enough for a key")
}

/// A server that speaks TLS in front of one that doesn't.
pub(crate) struct Terminator {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    config: Arc<ServerConfig>,
    /// Whether a connection begins with PostgreSQL's SSLRequest.
    is_postgres: bool,
    /// Whether it sends one byte at a time after the handshake.
    drips: bool,
    open: OpenStreams,
}

impl Terminator {
    /// In front of the server that the URL names, whatever its protocol; PostgreSQL's preface is
    /// handled.
    pub(crate) fn before(url: &str, certificate: Certificate) -> Self {
        Self::start(url, certificate, false)
    }

    /// A terminator that sends one byte at a time after the handshake.
    pub(crate) fn dripping(url: &str, certificate: Certificate) -> Self {
        Self::start(url, certificate, true)
    }

    fn start(url: &str, certificate: Certificate, drips: bool) -> Self {
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("ring supports them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.chain], certificate.key)
            .expect("the key is the certificate's");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream: address_of(url),
            config: Arc::new(config),
            is_postgres: url.starts_with("postgres:"),
            drips,
            open: OpenStreams::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let shared = Arc::clone(&accepting);
                if !shared.open.keep(&client) {
                    return;
                }
                // The notifier under test reports which side refused.
                thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { address, shared }
    }

    /// The URL with this in place of the server, and with the scheme for TLS if there is one.
    pub(crate) fn url(&self, url: &str) -> String {
        let text = with_address(url, self.address);
        for scheme in ["http", "amqp"] {
            if let Some(rest) = text.strip_prefix(&format!("{scheme}://")) {
                return format!("{scheme}s://{rest}");
            }
        }
        text
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.shared.open.end(self.address);
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        if self.is_postgres {
            client.read_exact(&mut [0; 8])?;
            client.write_all(b"S")?;
        }
        let mut tls = ServerConnection::new(Arc::clone(&self.config)).map_err(io::Error::other)?;
        tls.complete_io(&mut client)?;
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        self.open.keep(&server);
        let tls = Mutex::new(tls);
        thread::scope(|scope| {
            scope.spawn(|| {
                let _ = encrypt(&server, &client, &tls, self.drips);
                let _ = client.shutdown(Shutdown::Both);
            });
            let _ = decrypt(&client, &server, &tls);
            let _ = server.shutdown(Shutdown::Both);
        });
        Ok(())
    }
}

fn encrypt(
    mut from: &TcpStream,
    mut to: &TcpStream,
    tls: &Mutex<ServerConnection>,
    drips: bool,
) -> io::Result<()> {
    let mut room = [0; 16 << 10];
    loop {
        let read = from.read(&mut room)?;
        let mut tls = tls.lock().expect("no holder panics");
        if read == 0 {
            tls.send_close_notify();
        } else {
            tls.writer().write_all(&room[..read])?;
        }
        let mut encrypted = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut encrypted)?;
        }
        if drips {
            drip(to, &encrypted)?;
        } else {
            to.write_all(&encrypted)?;
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Sends one byte at a time, until the other side has had enough.
pub(crate) fn drip(mut to: &TcpStream, bytes: &[u8]) -> io::Result<()> {
    for byte in bytes {
        to.write_all(std::slice::from_ref(byte))?;
        thread::sleep(DRIP);
    }
    Ok(())
}

fn decrypt(
    mut from: &TcpStream,
    mut to: &TcpStream,
    tls: &Mutex<ServerConnection>,
) -> io::Result<()> {
    let mut room = [0; 16 << 10];
    loop {
        // What arrived together with the handshake is decrypted first.
        let mut plain = Vec::new();
        {
            let mut tls = tls.lock().expect("no holder panics");
            match tls.reader().read_to_end(&mut plain) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => {}
            }
        }
        to.write_all(&plain)?;
        // Without the lock: the other direction must continue meanwhile.
        let read = from.read(&mut room)?;
        if read == 0 {
            return Ok(());
        }
        let mut encrypted = &room[..read];
        let mut tls = tls.lock().expect("no holder panics");
        while !encrypted.is_empty() {
            tls.read_tls(&mut encrypted)?;
            tls.process_new_packets().map_err(io::Error::other)?;
        }
    }
}
