//! The agent's certificate and trust while it runs: renewed and learnt without a restart.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use deadlight_shared::hint::causes;
use deadlight_shared::tls::{Credentials, TlsError, TlsPaths, Validity};
use deadlight_shared::trust::{SignedTrust, TrustError};
use deadlight_shared::{Identity, KeyId};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

use super::document::{Document, DocumentError, Pair};

/// The agent's keys.
pub struct Keyring {
    state_dir: PathBuf,
    held: Mutex<Held>,
    tls: watch::Sender<Arc<ServerConfig>>,
    calls: watch::Sender<Arc<ClientConfig>>,
}

struct Held {
    document: Document,
    credentials: Credentials,
    /// The key of a certificate that was asked for.
    pending: Option<KeyPair>,
}

/// Why the agent has no identity, or keeps the one that it has.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Neither enrolled nor given files.
    #[error("this node is not enrolled, and the configuration has no [tls]")]
    None,
    /// Enrolled, and about to be so once more.
    #[error("this node is enrolled already")]
    Again,
    /// The file cannot be used.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The certificate cannot be used.
    #[error("failed to use our certificate")]
    Tls(#[from] TlsError),
    /// The trust document is not to be trusted.
    #[error("failed to take over the trust document")]
    Trust(#[from] TrustError),
    /// No key or request can be made.
    #[error("failed to make a key and its request")]
    Key(#[from] rcgen::Error),
    /// Nothing was asked for.
    #[error("no certificate was requested")]
    NotRequested,
    /// A certificate for another key than the one that was made.
    #[error("the certificate is not for the key that was made last")]
    OtherKey,
    /// A certificate for somebody else.
    #[error("the certificate is for {found}, this is {own}")]
    OtherIdentity {
        /// Whom it is for.
        found: Identity,
        /// Who we are.
        own: Identity,
    },
}

impl IdentityError {
    /// What an operator can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::None => {
                "run `deadlight-scanner enroll NODE` where the CA is, and here the line that it prints".to_owned()
            }
            Self::Tls(TlsError::KeyExposed { path, .. }) => format!("chmod 600 {}", path.display()),
            Self::Document(DocumentError::Read { .. }) => "run as root, or see who may read it".to_owned(),
            _ => "`deadlight-agent enroll --again LINE` replaces what is there; LINE comes from \
                  `deadlight-scanner enroll NODE`"
                .to_owned(),
        }
    }
}

impl Keyring {
    /// What was enrolled or renewed, or the files of `by_hand`: whichever certificate is younger.
    pub fn load(state_dir: PathBuf, by_hand: Option<&TlsPaths>) -> Result<Self, IdentityError> {
        let mut document = Document::load(&state_dir)?;
        let by_hand = by_hand.map(Credentials::load).transpose()?;
        let own = match (&document.pair, &document.trust) {
            (Some(pair), Some(trust)) => Some(Credentials::of_pair(&pair.certificate, &pair.key, trust)?),
            _ => None,
        };
        let credentials = match (by_hand, own) {
            (Some(by_hand), Some(own)) if by_hand.validity().from <= own.validity().from => own,
            (Some(by_hand), _) => match document.trust.take() {
                Some(trust) if shares(by_hand.authorities(), &trust.certificates()?) => {
                    by_hand.with_trust(document.trust.insert(trust))?
                }
                // Files of another CA than the one we were told of: the operator has begun anew, and so do generations.
                _ => by_hand,
            },
            (None, Some(own)) => own,
            (None, None) => return Err(IdentityError::None),
        };
        let (tls, _) = watch::channel(Arc::new(credentials.server_config()?));
        let (calls, _) = watch::channel(Arc::new(credentials.calling_config()?));
        Ok(Self { state_dir, held: Mutex::new(Held { document, credentials, pending: None }), tls, calls })
    }

    /// How connections are met, now and after each change.
    pub fn tls(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.tls.subscribe()
    }

    /// How scanners are called, now and after each change.
    pub fn calls(&self) -> watch::Receiver<Arc<ClientConfig>> {
        self.calls.subscribe()
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.lock().credentials.identity().clone()
    }

    /// When our certificate holds.
    pub fn validity(&self) -> Validity {
        self.lock().credentials.validity()
    }

    /// The generation of the trust document that we hold; 0 before we were told of any.
    pub fn generation(&self) -> u64 {
        self.lock().document.trust.as_ref().map_or(0, |trust| trust.generation)
    }

    /// Takes over the trust document `header`, when it is younger than ours and a CA that we trust has signed it.
    pub fn learn(&self, header: &str) -> Result<(), IdentityError> {
        let mut held = self.lock();
        let trust = SignedTrust::from_header(header)?.open(held.credentials.authorities())?;
        if held.document.trust.as_ref().is_some_and(|known| known.generation >= trust.generation) {
            return Ok(());
        }
        let credentials = held.credentials.clone().with_trust(&trust)?;
        tracing::info!(generation = trust.generation, revoked = trust.revoked.len(), "told whom to trust");
        let (server, client) = (credentials.server_config()?, credentials.calling_config()?);
        self.tls.send_replace(Arc::new(server));
        self.calls.send_replace(Arc::new(client));
        held.credentials = credentials;
        held.document.trust = Some(trust);
        // In force at once, also where it cannot be kept: a revoked key must not wait for a disk.
        if let Err(error) = held.document.save(&self.state_dir) {
            tracing::warn!("the trust document is in force but not persisted: {}", causes(&error));
        }
        Ok(())
    }

    /// Makes the next key; a request for its certificate.
    pub fn request(&self) -> Result<String, IdentityError> {
        let key = KeyPair::generate()?;
        let request = request(&key)?;
        self.lock().pending = Some(key);
        Ok(request)
    }

    /// Takes over the certificate that was asked for. Connections under way end as they began.
    pub fn install(&self, certificate: &str) -> Result<(), IdentityError> {
        let mut held = self.lock();
        let key = held.pending.as_ref().ok_or(IdentityError::NotRequested)?.serialize_pem();
        if key_of(certificate) != held.pending.as_ref().map(key_id) {
            return Err(IdentityError::OtherKey);
        }
        let credentials = held.credentials.with_pair(certificate, &key)?;
        let (found, own) = (credentials.identity(), held.credentials.identity());
        if found != own {
            return Err(IdentityError::OtherIdentity { found: found.clone(), own: own.clone() });
        }
        let (server, client) = (credentials.server_config()?, credentials.calling_config()?);
        let mut document = held.document.clone();
        document.pair = Some(Pair { certificate: certificate.to_owned(), key });
        document.save(&self.state_dir)?;
        *held = Held { document, credentials, pending: None };
        self.tls.send_replace(Arc::new(server));
        self.calls.send_replace(Arc::new(client));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // Every change is made whole before it is put in place.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request (PKCS#10, PEM) for a certificate of `key`. It names nobody: the CA does.
pub(super) fn request(key: &KeyPair) -> Result<String, rcgen::Error> {
    CertificateParams::default().serialize_request(key)?.pem()
}

/// The key that `certificate` (PEM) is for.
pub(super) fn key_of(certificate: &str) -> Option<KeyId> {
    KeyId::of_certificate(&CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?)
}

pub(super) fn key_id(key: &KeyPair) -> KeyId {
    use rcgen::PublicKeyData as _;
    KeyId::of_public_key(&key.subject_public_key_info())
}

fn shares(one: &[CertificateDer<'_>], other: &[CertificateDer<'_>]) -> bool {
    one.iter().any(|certificate| other.contains(certificate))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use deadlight_shared::trust::Trust;
    use rcgen::{BasicConstraints, IsCa, Issuer, SanType};

    /// The keyring of a node that is enrolled as `node`.
    pub(crate) fn enrolled(state_dir: PathBuf, node: &str) -> Keyring {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let (authority, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let authorities = vec![params.self_signed(&authority).unwrap().pem()];
        let issuer = Issuer::new(params, authority);
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://deadlight/agent/{node}").try_into().unwrap())];
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        let document = Document {
            pair: Some(Pair { certificate, key: key.serialize_pem() }),
            trust: Some(Trust { generation: 1, authorities, revoked: Vec::new() }),
            ..Document::default()
        };
        document.save(&state_dir).unwrap();
        Keyring::load(state_dir, None).unwrap()
    }
}
