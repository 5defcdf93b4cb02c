//! How a peer's certificate is judged.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{period, provider};
use crate::identity::Identity;
use crate::key_id::KeyId;

/// Says whether a peer's certificate is good enough.
pub(super) trait Judge: fmt::Debug + Send + Sync {
    /// Judges `end_entity`, which came with `intermediates`.
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error>;
}

/// A judge as either side of TLS asks for one: what peers sign is checked alike, whoever judges their certificates.
#[derive(Debug)]
pub(super) struct Judged(pub(super) Arc<dyn Judge>);

impl ServerCertVerifier for Judged {
    /// A host's name is not looked at: an identity is in no name.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.judge(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judged {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.judge(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// How long after its end the certificate of a known key is good for its own renewal.
pub const RENEWABLE: SignedDuration = SignedDuration::from_hours(24 * 30);

/// The clock, which is never before an instant that is known to have passed: a node may boot in 1970.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) floor: UnixTime,
}

impl Clock {
    /// One of which nothing is known to have passed.
    pub(super) fn unset() -> Self {
        Self { floor: UnixTime::since_unix_epoch(Duration::ZERO) }
    }

    /// The time by which `certificate` is judged: our CA makes none for later, so one that seems too young says that our
    /// clock is behind.
    fn at(certificate: &CertificateDer<'_>, now: UnixTime) -> UnixTime {
        period(certificate).map_or(now, |(from, _)| now.max(from))
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::now().max(self.floor))
    }
}

/// Judges an agent: the chain up to our CA, its time, the identity in the URI SAN, whether its key is revoked.
#[derive(Debug)]
pub(super) struct AgentVerifier {
    pub(super) roots: Arc<RootCertStore>,
    pub(super) revoked: Arc<BTreeSet<KeyId>>,
    pub(super) expected: Identity,
    /// Keys whose certificate may have ended up to 30 days ago, to be renewed.
    pub(super) renewable: BTreeSet<KeyId>,
}

#[derive(thiserror::Error)]
#[error("the peer is not {0}")]
struct WrongIdentity(Identity);

/// rustls shows errors of others by their debug form.
impl fmt::Debug for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl AgentVerifier {
    fn time(&self, certificate: &CertificateDer<'_>, key: KeyId, now: UnixTime) -> UnixTime {
        match period(certificate) {
            Some((_, to)) if self.renewable.contains(&key) && is_renewable(to, now) => now.min(to),
            _ => Clock::at(certificate, now),
        }
    }
}

impl Judge for AgentVerifier {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let key = unrevoked_key(end_entity, &self.revoked)?;
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            self.time(end_entity, key, now),
            provider().signature_verification_algorithms.all,
        )?;
        match Identity::of_certificate(end_entity) {
            Ok(identity) if identity == self.expected => Ok(()),
            _ => {
                let error = OtherError(Arc::new(WrongIdentity(self.expected.clone())));
                Err(CertificateError::Other(error).into())
            }
        }
    }
}

/// Takes any agent that holds the key it shows: whom it shows it for, the enrolment's proofs say.
#[derive(Debug)]
pub(super) struct AnyKey;

impl Judge for AnyKey {
    fn judge(&self, _: &CertificateDer<'_>, _: &[CertificateDer<'_>], _: UnixTime) -> Result<(), Error> {
        Ok(())
    }
}

/// Which CA a client's certificate must come from.
#[derive(Debug)]
pub(super) enum Anchor {
    /// One of these.
    Roots { verifier: Arc<dyn ClientCertVerifier>, revoked: Arc<BTreeSet<KeyId>> },
    /// The one with this key, which the client sends along: for a first meeting.
    Pinned { authority: KeyId },
}

impl Judge for Anchor {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let now = Clock::at(end_entity, now);
        let verified = match self {
            Self::Roots { verifier, revoked } => {
                unrevoked_key(end_entity, revoked)?;
                verifier.verify_client_cert(end_entity, intermediates, now)
            }
            Self::Pinned { authority } => {
                let mut roots = RootCertStore::empty();
                for sent in intermediates.iter().filter(|sent| KeyId::of_certificate(sent) == Some(*authority)) {
                    roots.add(sent.clone().into_owned())?;
                }
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|_| CertificateError::UnknownIssuer)?
                    .verify_client_cert(end_entity, &[], now)
            }
        };
        verified.map(drop)
    }
}

/// Whether the first of `chain` is signed by one of `roots` and holds now.
pub(super) fn signed_by_us(chain: &[CertificateDer<'_>], roots: &RootCertStore, clock: Clock) -> Result<(), Error> {
    let [certificate, intermediates @ ..] = chain else { return Err(CertificateError::BadEncoding.into()) };
    let now = clock.current_time().ok_or(Error::FailedToGetCurrentTime)?;
    verify_server_cert_signed_by_trust_anchor(
        &ParsedCertificate::try_from(certificate)?,
        roots,
        intermediates,
        Clock::at(certificate, now),
        provider().signature_verification_algorithms.all,
    )
}

fn unrevoked_key(certificate: &CertificateDer<'_>, revoked: &BTreeSet<KeyId>) -> Result<KeyId, Error> {
    let key = KeyId::of_certificate(certificate).ok_or(CertificateError::BadEncoding)?;
    match revoked.contains(&key) {
        true => Err(CertificateError::Revoked.into()),
        false => Ok(key),
    }
}

/// Whether a certificate that ended at `end` may still be renewed.
fn is_renewable(end: UnixTime, now: UnixTime) -> bool {
    now.as_secs() <= end.as_secs().saturating_add(RENEWABLE.unsigned_abs().as_secs())
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewable_for_thirty_days() {
        let day = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
        assert!(is_renewable(day(100), day(99)));
        assert!(is_renewable(day(100), day(130)));
        assert!(!is_renewable(day(100), day(131)));
    }
}
