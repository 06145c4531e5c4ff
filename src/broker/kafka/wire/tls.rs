//! TLS: what is trusted, who this client is, and what a failed handshake means.
//!
//! The cryptography is ring's, given to each configuration: this process has no default that something else might
//! have chosen.

mod verifier;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{WireError, WireErrorKind};
use crate::spec::TlsSpec;
use verifier::Verifier;

/// A TLS configuration, read once and shared by the connections.
#[derive(Clone)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads the certificate files. The system's roots are trusted where no CA is given.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub(super) fn new(spec: &TlsSpec) -> Result<Self, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?;
        let (roots, trusted) = roots(spec.ca.as_deref())?;
        let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let webpki = webpki.map_err(|error| format!("TLS: {error}"))?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier::new(webpki, trusted)));
        let config = match (&spec.certificate, &spec.key) {
            (Some(certificate), Some(key)) => {
                let (chain, private) = (certificates(certificate)?, private_key(key)?);
                builder.with_client_auth_cert(chain, private).map_err(|error| {
                    format!("`{}` and `{}` cannot be used: {error}", certificate.display(), key.display())
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => return Err("a client certificate needs its key, and a key its certificate".to_owned()),
        };
        Ok(Self(Arc::new(config)))
    }

    /// Encrypts a connection to `host`.
    ///
    /// # Errors
    /// When `host` cannot stand in a certificate, and when the handshake fails.
    pub(super) async fn connect(
        &self,
        host: &str,
        peer: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, WireError> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| WireError::new(WireErrorKind::Settings, peer, "no certificate can be for this name"))?;
        let handshake = TlsConnector::from(self.0.clone()).connect(name, stream);
        handshake.await.map_err(|error| failed_handshake(peer, &error))
    }
}

/// Who is trusted to sign, and what was read from the CA file.
fn roots(ca: Option<&Path>) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = ca {
        let trusted = certificates(path)?;
        for certificate in &trusted {
            let added = roots.add(certificate.clone());
            added.map_err(|error| format!("`{}` holds no CA certificate: {error}", path.display()))?;
        }
        return Ok((roots, trusted));
    }
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reasons: Vec<_> = found.errors.iter().map(|error| format!(": {error}")).collect();
        return Err(format!(
            "this system has no CA certificates; name a file under `tls: {{ ca }}`{}",
            reasons.concat()
        ));
    }
    Ok((roots, Vec::new()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(format!("`{}` holds no certificate (PEM)", path.display())),
        Ok(found) => Ok(found),
        Err(error) => Err(pem_error(path, "certificate", &error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        pem::Error::NoItemsFound => format!(
            "`{}` holds no private key (PEM) that is not encrypted; `client: librdkafka` can use one with a passphrase",
            path.display()
        ),
        error => pem_error(path, "private key", &error),
    })
}

fn pem_error(path: &Path, what: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => format!("cannot read `{}`: {error}", path.display()),
        // The error itself may quote the file.
        _ => format!("`{}` holds no {what} that can be read (PEM)", path.display()),
    }
}

/// The TLS error inside a stream's error.
pub(super) fn error_of(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

fn failed_handshake(peer: &str, error: &io::Error) -> WireError {
    if let Some(error) = error_of(error) {
        let (kind, reason) = reason(error);
        return WireError::new(kind, peer, reason);
    }
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => {
            "the broker closed the connection during the TLS handshake; does this port expect TLS?".to_owned()
        }
        _ => format!("the TLS handshake broke: {error}"),
    };
    WireError::new(WireErrorKind::Unreachable, peer, reason)
}

/// What a TLS error means, and its reason for a person.
pub(super) fn reason(error: &rustls::Error) -> (WireErrorKind, String) {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(error) => certificate_reason(error),
        Error::InvalidMessage(_) => {
            (WireErrorKind::Settings, "the answer is not TLS; does this port expect TLS?".to_owned())
        }
        Error::AlertReceived(alert) => alert_reason(*alert),
        Error::PeerIncompatible(error) => (WireErrorKind::Settings, format!("no common kind of TLS: {error:?}")),
        error => (WireErrorKind::Closed, format!("TLS failed: {error}")),
    }
}

/// Checks at the other side ended the handshake, in TLS 1.3 only after this side has finished it.
fn alert_reason(alert: AlertDescription) -> (WireErrorKind, String) {
    use AlertDescription as Alert;
    match alert {
        Alert::CertificateRequired => {
            (WireErrorKind::Denied, "the broker asks for a client certificate, and none is set".to_owned())
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied
        | Alert::DecryptError => {
            (WireErrorKind::Denied, format!("the broker refused the client certificate: {alert:?}"))
        }
        Alert::ProtocolVersion | Alert::HandshakeFailure | Alert::InsufficientSecurity => (
            WireErrorKind::Settings,
            format!("no common kind of TLS, or the broker asks for a client certificate: {alert:?}"),
        ),
        alert => (WireErrorKind::Closed, format!("the broker ended TLS: {alert:?}")),
    }
}

fn certificate_reason(error: &CertificateError) -> (WireErrorKind, String) {
    use CertificateError as Certificate;
    let (kind, reason) = match error {
        Certificate::UnknownIssuer => {
            (WireErrorKind::Settings, "is signed by a CA that is not trusted; check `tls: { ca }`".to_owned())
        }
        Certificate::NotValidForName => (WireErrorKind::Settings, "is not for this name".to_owned()),
        Certificate::NotValidForNameContext { expected, presented } => {
            let names = if presented.is_empty() { "no name at all".to_owned() } else { presented.join(", ") };
            let expected = expected.to_str();
            (WireErrorKind::Settings, format!("is not for `{expected}` (its subject alternative names: {names})"))
        }
        Certificate::Expired | Certificate::ExpiredContext { .. } => (WireErrorKind::Denied, "has expired".to_owned()),
        Certificate::NotValidYet | Certificate::NotValidYetContext { .. } => {
            (WireErrorKind::Denied, "is not valid yet; check the clock".to_owned())
        }
        Certificate::Revoked => (WireErrorKind::Denied, "was revoked".to_owned()),
        Certificate::BadSignature => {
            (WireErrorKind::Settings, "has a signature that its CA did not make; check `tls: { ca }`".to_owned())
        }
        error if verifier::is_authority(error) => {
            (WireErrorKind::Settings, "is a CA's own, and not in the file of `tls: { ca }`".to_owned())
        }
        other => (WireErrorKind::Settings, format!("cannot be used: {other}")),
    };
    (kind, format!("the broker's certificate {}", super::error::words(&reason)))
}
