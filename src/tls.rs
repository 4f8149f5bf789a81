//! TLS for receivers, RabbitMQ and PostgreSQL: the CAs that we trust, and our own certificate.
//!
//! All connections use rustls, which needs no installed library to build or to run.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible,
    RootCertStore, SignatureScheme,
};

/// A TLS configuration. Cheap to clone.
#[derive(Clone)]
pub struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may contain a private key.
        formatter.write_str("Tls")
    }
}

/// What to check about a server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// That a trusted CA signed it, and that it is for the name we connect to.
    Name,
    /// That a trusted CA signed it.
    Chain,
    /// Nothing: the connection is encrypted, but the other end is unknown.
    Nothing,
}

/// The CAs that we trust.
#[derive(Clone, Debug)]
pub struct Roots(RootCertStore);

/// A certificate and its key, by which a server recognizes us.
#[derive(Debug)]
pub struct Identity {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Roots {
    /// Mozilla's CAs as of the build.
    #[must_use]
    pub fn bundled() -> Self {
        Self(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
    }

    /// Only the CAs in this file.
    ///
    /// # Errors
    /// If the file (PEM) can't be read or contains no certificate; names it.
    pub fn only(file: &Path) -> Result<Self, String> {
        Self(RootCertStore::empty()).with(file)
    }

    /// Adds the CAs in this file.
    ///
    /// # Errors
    /// If the file (PEM) can't be read or contains no certificate; names it.
    pub fn with(mut self, file: &Path) -> Result<Self, String> {
        for certificate in certificates(file)? {
            let added = self.0.add(certificate);
            added.map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(self)
    }
}

impl Identity {
    /// Reads both from PEM files.
    ///
    /// # Errors
    /// If one of them can't be read; names it.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let certificates = certificates(certificate)?;
        let found = PrivateKeyDer::from_pem_file(key);
        let key = found.map_err(|error| unreadable(key, "private key", &error))?;
        Ok(Self { certificates, key })
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error: pem::Error| unreadable(file, "certificate", &error);
    let found = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(unreadable)?;
    if found.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unreadable(file: &Path, what: &str, error: &pem::Error) -> String {
    let file = file.display();
    match error {
        pem::Error::Io(error) => format!("cannot read {file}: {error}"),
        pem::Error::NoItemsFound => format!("{file} holds no {what} in PEM format"),
        error => format!("{file} holds no {what} in PEM format: {error:?}"),
    }
}

impl Tls {
    /// Puts the parts together.
    ///
    /// # Errors
    /// If the key doesn't match the certificate, or there is no CA to trust.
    pub fn new(roots: Roots, check: Check, identity: Option<Identity>) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let builder = match check {
            Check::Name => builder.with_root_certificates(roots.0),
            Check::Chain | Check::Nothing => {
                let chain = match check {
                    Check::Nothing => None,
                    _ => Some(chain_verifier(roots, &provider)?),
                };
                let lenient = Arc::new(Lenient { chain, provider });
                builder.dangerous().with_custom_certificate_verifier(lenient)
            }
        };
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificates, key }) => builder
                .with_client_auth_cert(certificates, key)
                .map_err(|error| format!("the client certificate cannot be used: {error}"))?,
        };
        Ok(Self(Arc::new(config)))
    }

    /// The configuration for rustls.
    #[must_use]
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0)
    }
}

fn chain_verifier(
    roots: Roots,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, String> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots.0), Arc::clone(provider))
        .build()
        .map_err(|error| error.to_string())
}

/// Checks less than rustls does by default, as libpq does for some values of `sslmode`.
#[derive(Debug)]
struct Lenient {
    /// `None` if the certificate isn't checked.
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        match chain.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The name is checked last, so everything else was valid.
            Err(rustls::Error::InvalidCertificate(
                NotValidForName | NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Explains an error of TLS, with the remedy; `None` if the error isn't about TLS.
#[must_use]
pub fn problem(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return Some(explain(error));
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

fn explain(error: &rustls::Error) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidForName, NotValidForNameContext,
        UnknownIssuer,
    };
    let remedy = match error {
        // The signature is bad if we trust another CA of the same name.
        rustls::Error::InvalidCertificate(UnknownIssuer | BadSignature) => {
            ": signed by an unknown CA: put that CA's certificate into TLS_CA_FILE"
        }
        rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            ": use a name that is in the certificate"
        }
        rustls::Error::InvalidCertificate(Expired | ExpiredContext { .. }) => {
            ": it needs a new certificate"
        }
        // The verifier's error, for which rustls has no name. It would be printed as nested brackets.
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            return other_certificate(&other.0.to_string());
        }
        rustls::Error::AlertReceived(alert) => refused(*alert),
        rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => TOO_OLD,
        rustls::Error::InvalidMessage(_) => ": is this a port that speaks TLS?",
        _ => "",
    };
    format!("TLS: {error}{remedy}")
}

const TOO_OLD: &str = ": it has to offer TLS 1.2 or 1.3";

/// Why a certificate is refused, by the name of the verifier's error (webpki).
fn other_certificate(name: &str) -> String {
    // Some names are followed by details.
    let name = name.split(['(', '{', ' ']).next().unwrap_or_default();
    let remedy = match name {
        "CaUsedAsEndEntity" => {
            ": that is a CA's own certificate; it needs one for its name, without CA:TRUE"
        }
        "UnsupportedCertVersion" => ": it needs one of X.509 version 3, with a subjectAltName",
        _ => ": it needs another",
    };
    format!("TLS: its certificate can't be used ({name}){remedy}")
}

/// Explains an alert of the other side.
fn refused(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::ProtocolVersion => TOO_OLD,
        AlertDescription::HandshakeFailure | AlertDescription::InsufficientSecurity => {
            ": refused by the other side: it has to offer TLS 1.2 or 1.3 with a modern cipher, or it \
             requires a client certificate"
        }
        AlertDescription::UnrecognisedName => {
            ": refused by the other side: it has no certificate for this name"
        }
        AlertDescription::InternalError => ": its own log should say why",
        _ => ": refused by the other side: does it require a client certificate?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let nothing = Path::new("/nowhere/ca.pem");
        let error = Roots::bundled().with(nothing).expect_err("there is no such file");
        assert!(error.starts_with("cannot read /nowhere/ca.pem: "), "{error}");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        for text in ["", "no PEM\n", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"]
        {
            file.write_all(text.as_bytes()).expect("it is writable");
            let error = Roots::only(file.path()).expect_err("it holds none");
            assert!(error.contains("holds no certificate"), "{error}");
            let error = Identity::read(file.path(), file.path()).expect_err("it holds none");
            assert!(error.contains("holds no certificate"), "{error}");
        }
    }

    #[test]
    fn a_tls_error_is_found_inside_other_errors() {
        let inner = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, inner));
        let problem = problem(&wrapped).expect("it is about TLS");
        assert!(problem.starts_with("TLS: ") && problem.contains("TLS_CA_FILE"), "{problem}");
        assert_eq!(super::problem(&io::Error::other("something else")), None);
    }

    #[test]
    fn each_problem_says_what_to_change() {
        let unknown = |name: &'static str| {
            let error: Arc<dyn Error + Send + Sync> =
                io::Error::other(name).into_inner().expect("an error").into();
            rustls::Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(error)))
        };
        for (error, says) in [
            (unknown("CaUsedAsEndEntity"), "(CaUsedAsEndEntity): that is a CA's own certificate"),
            (unknown("UnsupportedCertVersion"), "X.509 version 3"),
            (unknown("Whatever"), "can't be used (Whatever)"),
            (rustls::Error::AlertReceived(AlertDescription::ProtocolVersion), "TLS 1.2 or 1.3"),
            (rustls::Error::AlertReceived(AlertDescription::HandshakeFailure), "TLS 1.2 or 1.3"),
            (rustls::Error::AlertReceived(AlertDescription::UnrecognisedName), "for this name"),
            (
                rustls::Error::AlertReceived(AlertDescription::CertificateRequired),
                "does it require a client certificate?",
            ),
            (
                rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13),
                "it has to offer TLS 1.2 or 1.3",
            ),
        ] {
            let explained = explain(&error);
            assert!(explained.contains(says), "no {says:?} in {explained:?}");
            assert!(!explained.contains("OtherError"), "{explained}");
        }
    }
}
