//! Mutual TLS 1.3 with the deployment's own CA. The only module that sets rustls up.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::Deserialize;

use crate::identity::Identity;

/// Where the three files of one side are.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsPaths {
    /// The deployment's CA certificate, PEM.
    pub ca: PathBuf,
    /// Our certificate, PEM.
    pub certificate: PathBuf,
    /// Our private key, PEM, readable by its owner only.
    pub key: PathBuf,
}

/// CA, certificate and key of one side, read and matched.
pub struct Credentials {
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    identity: Identity,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of the wanted kind.
    #[error("failed to read {what} from {}", path.display())]
    Read {
        /// The kind of content that was looked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// Others may read the private key.
    #[error("the private key {} is readable by others (mode {mode:o})", path.display())]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file's permissions cannot be read.
    #[error("failed to look at {}", path.display())]
    Stat {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The CA file holds no usable CA certificate.
    #[error("failed to take the CA certificate as a root")]
    Root(#[source] rustls::Error),
    /// Our certificate carries no identity of this deployment.
    #[error("failed to read our own identity from {}", path.display())]
    Identity {
        /// The certificate file.
        path: PathBuf,
        /// Why.
        #[source]
        source: crate::identity::IdentityError,
    },
    /// Certificate and key do not belong together, or their kind is not supported.
    #[error("failed to use our certificate and key")]
    Pair(#[source] rustls::Error),
    /// The verifier of peer certificates cannot be built.
    #[error("failed to set up the verification of client certificates")]
    Verifier(#[source] VerifierBuilderError),
}

impl Credentials {
    /// Reads the three files. Refuses a key that others may read.
    pub fn load(paths: &TlsPaths) -> Result<Self, TlsError> {
        let metadata =
            std::fs::metadata(&paths.key).map_err(|source| TlsError::Stat { path: paths.key.clone(), source })?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::KeyExposed { path: paths.key.clone(), mode });
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates("the CA certificate", &paths.ca)? {
            roots.add(certificate).map_err(TlsError::Root)?;
        }
        let chain = certificates("our certificate", &paths.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&paths.key).map_err(read_error("the private key", &paths.key))?;
        let identity = chain
            .first()
            .map_or(Err(crate::identity::IdentityError::NotOurs), Identity::of_certificate)
            .map_err(|source| TlsError::Identity { path: paths.certificate.clone(), source })?;
        Ok(Self { roots: Arc::new(roots), chain, key, identity })
    }

    /// Whom our own certificate speaks for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The server side: a client certificate of our CA is required, its role is the caller's to check.
    /// No session tickets, no early data: every connection proves itself anew.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), Arc::clone(&provider))
            .build()
            .map_err(TlsError::Verifier)?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Pair)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Pair)?;
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// The client side: the server must show a certificate of our CA that carries `expected`.
    /// Host names are not looked at; the identity is the name.
    pub fn client_config(&self, expected: Identity) -> Result<ClientConfig, TlsError> {
        let provider = provider();
        let verifier = IdentityVerifier { roots: Arc::clone(&self.roots), provider: Arc::clone(&provider), expected };
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Pair)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(TlsError::Pair)?;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(config)
    }
}

/// The key is nobody's to see.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Verifies the chain up to our CA, its validity in time, and the identity in the URI SAN.
#[derive(Debug)]
struct IdentityVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Identity,
}

#[derive(thiserror::Error)]
#[error("the peer is not {0}")]
struct WrongIdentity(Identity);

/// rustls shows errors of others by their debug form.
impl std::fmt::Debug for WrongIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        match Identity::of_certificate(end_entity) {
            Ok(identity) if identity == self.expected => Ok(ServerCertVerified::assertion()),
            _ => {
                let error = OtherError(Arc::new(WrongIdentity(self.expected.clone())));
                Err(CertificateError::Other(error).into())
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = read_error(what, path);
    let found: Vec<_> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(&error)?;
    match found.is_empty() {
        true => Err(error(pem::Error::NoItemsFound)),
        false => Ok(found),
    }
}

fn read_error(what: &'static str, path: &Path) -> impl Fn(pem::Error) -> TlsError {
    let path = path.to_owned();
    move |source| TlsError::Read { what, path: path.clone(), source }
}
