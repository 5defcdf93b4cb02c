//! Mutual TLS 1.3 with the deployment's own CA. The only module that sets rustls up.

mod pull;
#[cfg(test)]
mod test_ca;
mod verify;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde::Deserialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::identity::Identity;
use crate::key_id::KeyId;
use crate::trust::Trust;
use verify::{AgentVerifier, Anchor, AnyKey, Clock, Judge, Judged};

pub use pull::{Caller, Callers, pinned_calling_config};
pub use verify::RENEWABLE;

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

/// CA, certificate and key of one side, read and matched. Has no `Debug`: the key is in it.
pub struct Credentials {
    authorities: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    revoked: Arc<BTreeSet<KeyId>>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    identity: Identity,
    validity: Validity,
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            authorities: self.authorities.clone(),
            roots: Arc::clone(&self.roots),
            revoked: Arc::clone(&self.revoked),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            identity: self.identity.clone(),
            validity: self.validity,
        }
    }
}

/// When a certificate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From this instant.
    pub from: Timestamp,
    /// Up to this one.
    pub to: Timestamp,
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
    /// A text is no PEM of the wanted kind.
    #[error("failed to parse {what}")]
    Parse {
        /// The kind of content that was looked for.
        what: &'static str,
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
    /// Our certificate says no time that a calendar has.
    #[error("failed to read the validity of our certificate")]
    Validity,
    /// The trust document names no usable CA.
    #[error("failed to take over the trust document")]
    Trust(#[from] crate::trust::TrustError),
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
        refuse_exposed(&paths.key)?;
        let key = PrivateKeyDer::from_pem_file(&paths.key).map_err(read_error("the private key", &paths.key))?;
        let chain = certificates("our certificate", &paths.certificate)?;
        Self::new(certificates("the CA certificate", &paths.ca)?, chain, key, &paths.certificate)
    }

    /// `certificate` and `key` (PEM), trusting whom `trust` says.
    pub fn of_pair(certificate: &str, key: &str, trust: &Trust) -> Result<Self, TlsError> {
        Self::parse(trust.certificates()?, certificate, key)?.with_trust(trust)
    }

    /// `certificate` and `key` (PEM) in place of ours, when a CA that we trust has signed the certificate and it holds.
    pub fn with_pair(&self, certificate: &str, key: &str) -> Result<Self, TlsError> {
        let new = Self::parse(self.authorities.clone(), certificate, key)?;
        let new = Self { revoked: Arc::clone(&self.revoked), ..new };
        verify::signed_by_us(&new.chain, &new.roots, new.clock()).map_err(TlsError::Pair)?;
        Ok(new)
    }

    fn parse(authorities: Vec<CertificateDer<'static>>, certificate: &str, key: &str) -> Result<Self, TlsError> {
        let parse = |what| move |source| TlsError::Parse { what, source };
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<_, _>>();
        let chain = chain.map_err(parse("the certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(parse("its private key"))?;
        Self::new(authorities, chain, key, Path::new("the certificate"))
    }

    /// The same, trusting whom `trust` says.
    pub fn with_trust(mut self, trust: &Trust) -> Result<Self, TlsError> {
        self.authorities = trust.certificates()?;
        self.roots = root_store(&self.authorities)?;
        self.revoked = Arc::new(trust.revoked_keys());
        Ok(self)
    }

    fn new(
        authorities: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        path: &Path,
    ) -> Result<Self, TlsError> {
        let roots = root_store(&authorities)?;
        let first = chain.first();
        let identity = first
            .map_or(Err(crate::identity::IdentityError::NotOurs), Identity::of_certificate)
            .map_err(|source| TlsError::Identity { path: path.to_owned(), source })?;
        let validity = first.and_then(Validity::of_certificate).ok_or(TlsError::Validity)?;
        Ok(Self { authorities, roots, revoked: Arc::default(), chain, key, identity, validity })
    }

    /// Whom our own certificate speaks for.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The CAs that we trust.
    pub fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    /// When our certificate holds.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The server side: a client certificate of our CA is required, its role is the caller's to check.
    /// No session tickets, no early data: every connection proves itself anew.
    pub fn server_config(&self) -> Result<ServerConfig, TlsError> {
        server_config(Arc::new(self.anchor()?), self.clock(), self.chain.clone(), self.key.clone_key())
    }

    /// The client side: the server must show a certificate of our CA that carries `expected`.
    /// Host names are not looked at; the identity is the name.
    pub fn client_config(&self, expected: Identity) -> Result<ClientConfig, TlsError> {
        self.renewing_config(expected, BTreeSet::new())
    }

    /// The same for the call that renews: a certificate of one of the keys `renewable` may have ended up to 30 days ago.
    pub fn renewing_config(&self, expected: Identity, renewable: BTreeSet<KeyId>) -> Result<ClientConfig, TlsError> {
        let verifier = self.agent_verifier(expected, renewable);
        client_config(Arc::new(verifier), self.clock(), self.chain.clone(), self.key.clone_key())
    }

    /// The client side for a first meeting: the server may show any key, and gets the CA's certificate to compare with
    /// the one that it was told of.
    pub fn enrolling_config(&self) -> Result<ClientConfig, TlsError> {
        let chain = self.chain.iter().chain(&self.authorities).cloned().collect();
        client_config(Arc::new(AnyKey), self.clock(), chain, self.key.clone_key())
    }

    fn agent_verifier(&self, expected: Identity, renewable: BTreeSet<KeyId>) -> AgentVerifier {
        AgentVerifier { roots: Arc::clone(&self.roots), revoked: Arc::clone(&self.revoked), expected, renewable }
    }

    fn anchor(&self) -> Result<Anchor, TlsError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&self.roots), provider())
            .build()
            .map_err(TlsError::Verifier)?;
        Ok(Anchor::Roots { verifier, revoked: Arc::clone(&self.revoked) })
    }

    /// The certificate was made after this instant, so it has passed.
    fn clock(&self) -> Clock {
        let passed = u64::try_from(self.validity.from.as_second()).unwrap_or(0);
        Clock { floor: UnixTime::since_unix_epoch(Duration::from_secs(passed)) }
    }
}

impl Validity {
    /// When `certificate` holds; `None` when it is not X.509.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let [from, to] = [validity.not_before, validity.not_after].map(|time| Timestamp::from_second(time.timestamp()));
        Some(Self { from: from.ok()?, to: to.ok()? })
    }
}

/// The server side of a first meeting: `certificate` is anything that holds `key`, and the client must show a
/// certificate of the CA whose key is `authority`.
pub fn pinned_server_config(
    authority: KeyId,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    server_config(Arc::new(Anchor::Pinned { authority }), Clock::unset(), vec![certificate], key)
}

fn server_config(
    judge: Arc<dyn Judge>,
    clock: Clock,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Pair)?
        .with_client_cert_verifier(Arc::new(Judged(judge)))
        .with_single_cert(chain, key)
        .map_err(TlsError::Pair)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    judge: Arc<dyn Judge>,
    clock: Clock,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(clock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Pair)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Judged(judge)))
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Pair)?;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// When `certificate` holds, as rustls counts time.
fn period(certificate: &CertificateDer<'_>) -> Option<(UnixTime, UnixTime)> {
    let Validity { from, to } = Validity::of_certificate(certificate)?;
    let unix =
        |time: Timestamp| Some(UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(time.as_second()).ok()?)));
    Some((unix(from)?, unix(to)?))
}

fn root_store(authorities: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(TlsError::Root)?;
    }
    Ok(Arc::new(roots))
}

fn refuse_exposed(key: &Path) -> Result<(), TlsError> {
    let metadata = std::fs::metadata(key).map_err(|source| TlsError::Stat { path: key.to_owned(), source })?;
    match metadata.permissions().mode() & 0o777 {
        mode if mode & 0o077 != 0 => Err(TlsError::KeyExposed { path: key.to_owned(), mode }),
        _ => Ok(()),
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
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

#[cfg(test)]
mod tests;
