//! Pull mode, in which the agent is the TLS client: whom a scanner lets in, and which scanner an agent calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::time_provider::TimeProvider as _;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::verify::{AgentVerifier, Anchor, Clock, no_tls12};
use super::{Credentials, TlsError, client_config, period, provider, server_config};
use crate::identity::Identity;
use crate::key_id::KeyId;
use crate::name::Name;

/// Judges who calls a scanner: when the call begins, and again before each request.
#[derive(Debug)]
pub struct Callers {
    agents: BTreeMap<Name, AgentVerifier>,
    strangers: bool,
    clock: Clock,
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// The agent of a node that shall call.
    Agent {
        /// The node.
        node: Name,
        /// Its certificate has ended: the call is good for its renewal and for nothing else.
        ended: bool,
    },
    /// Somebody with this key and no identity: a node that waits to be enrolled, or anybody.
    Stranger(KeyId),
}

impl Callers {
    /// Who shows `chain`, if he is to be let in.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<Caller, Error> {
        let [certificate, intermediates @ ..] = chain else { return Err(CertificateError::BadEncoding.into()) };
        let now = self.clock.current_time().ok_or(Error::FailedToGetCurrentTime)?;
        self.judge_at(certificate, intermediates, now)
    }

    /// Whoever shows an identity has it verified; who shows none can be nobody but a stranger.
    fn judge_at(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Caller, Error> {
        let node = match Identity::of_certificate(certificate) {
            Ok(Identity::Agent(node)) => node,
            Ok(Identity::Scanner(_)) => return Err(CertificateError::ApplicationVerificationFailure.into()),
            Err(_) if self.strangers => {
                let key = KeyId::of_certificate(certificate).ok_or(CertificateError::BadEncoding)?;
                return Ok(Caller::Stranger(key));
            }
            Err(_) => return Err(CertificateError::UnknownIssuer.into()),
        };
        let verifier = self.agents.get(&node).ok_or(CertificateError::ApplicationVerificationFailure)?;
        verifier.verify_server_cert(certificate, intermediates, &any_name()?, &[], now)?;
        let ended = period(certificate).is_none_or(|(_, to)| to < now);
        Ok(Caller::Agent { node, ended })
    }
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge_at(end_entity, intermediates, now).map(|_| ClientCertVerified::assertion())
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

/// Judges the scanner that an agent calls as it would judge one that calls it, and wants its role besides.
#[derive(Debug)]
struct ScannerVerifier(Anchor);

impl ServerCertVerifier for ScannerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)?;
        match Identity::of_certificate(end_entity) {
            Ok(Identity::Scanner(_)) => Ok(ServerCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
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
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl Credentials {
    /// The agent's side of its call: the other end must show a scanner's certificate of our CA.
    pub fn calling_config(&self) -> Result<ClientConfig, TlsError> {
        let verifier = Arc::new(ScannerVerifier(self.anchor()?));
        client_config(verifier, self.clock(), self.chain.clone(), self.key.clone_key())
    }

    /// Whom we let call: the agents of `nodes`, each with the keys whose certificate may have ended up to 30 days ago,
    /// and `strangers` while somebody is invited.
    pub fn callers(&self, nodes: BTreeMap<Name, BTreeSet<KeyId>>, strangers: bool) -> Callers {
        let verifier = |(node, renewable): (Name, _)| {
            let verifier = self.agent_verifier(Identity::Agent(node.clone()), renewable);
            (node, verifier)
        };
        Callers { agents: nodes.into_iter().map(verifier).collect(), strangers, clock: self.clock() }
    }

    /// The scanner's side of a call. A stranger gets the CA's certificate to compare with the one that it was told of.
    pub fn answering_config(&self, callers: Arc<Callers>) -> Result<ServerConfig, TlsError> {
        let authorities = self.authorities.iter().filter(|_| callers.strangers);
        let chain = self.chain.iter().chain(authorities).cloned().collect();
        server_config(callers, self.clock(), chain, self.key.clone_key())
    }
}

/// The agent's side of a first meeting by its own call: `certificate` is anything that holds `key`, and the scanner must
/// show a certificate of the CA whose key is `authority`.
pub fn pinned_calling_config(
    authority: KeyId,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let verifier = Arc::new(ScannerVerifier(Anchor::Pinned { authority, provider: provider() }));
    client_config(verifier, Clock::unset(), vec![certificate], key)
}

/// TLS wants a name; an identity is in no name.
fn any_name() -> Result<ServerName<'static>, Error> {
    ServerName::try_from("agent").map_err(|_| CertificateError::NotValidForName.into())
}
