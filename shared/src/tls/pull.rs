//! Pull mode, in which the agent is the TLS client: whom a scanner lets in, and which scanner an agent calls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::time_provider::TimeProvider as _;
use rustls::{CertificateError, ClientConfig, Error, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

use super::verify::{AgentVerifier, Anchor, Clock, Judge};
use super::{Credentials, TlsError, client_config, period, server_config};
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
        verifier.judge(certificate, intermediates, now)?;
        let ended = period(certificate).is_none_or(|(_, to)| to < now);
        Ok(Caller::Agent { node, ended })
    }
}

impl Judge for Callers {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.judge_at(end_entity, intermediates, now).map(drop)
    }
}

/// Judges the scanner that an agent calls as it would judge one that calls it, and wants its role besides.
#[derive(Debug)]
struct ScannerVerifier(Anchor);

impl Judge for ScannerVerifier {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        self.0.judge(end_entity, intermediates, now)?;
        match Identity::of_certificate(end_entity) {
            Ok(Identity::Scanner(_)) => Ok(()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
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
    let verifier = Arc::new(ScannerVerifier(Anchor::Pinned { authority }));
    client_config(verifier, Clock::unset(), vec![certificate], key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_ca::{Ca, Held, N1, N2, SCANNER};
    use rcgen::{CertificateParams, KeyPair, PublicKeyData as _, SanType};

    fn judged(callers: &Callers, held: &Held) -> Result<Caller, Error> {
        callers.judge(&held.credentials.chain)
    }

    #[test]
    fn the_agent_of_a_node_that_calls_is_let_in_and_nobody_else() {
        let (ours, foreign) = (Ca::new(), Ca::new());
        let callers = ours.callers(&[], &[], false);
        let n1 = ours.held(N1, -1);
        assert_eq!(judged(&callers, &n1), Ok(Caller::Agent { node: "n1".parse().unwrap(), ended: false }));
        for held in [foreign.held(N1, -1), ours.held(N2, -1), ours.held(SCANNER, -1), ours.held(N1, 1)] {
            assert!(judged(&callers, &held).is_err());
        }
        assert!(callers.judge(&[]).is_err());
        let revoked = ours.callers(&[n1.key], &[n1.key], true);
        assert_eq!(judged(&revoked, &n1), Err(CertificateError::Revoked.into()));
    }

    #[test]
    fn an_ended_certificate_of_a_pinned_key_may_renew_for_thirty_days() {
        let ca = Ca::new();
        for (days_ago, wanted) in [(1, Some(true)), (29, Some(true)), (31, None)] {
            let held = ca.held(N1, days_ago);
            let judged = judged(&ca.callers(&[held.key], &[], false), &held);
            let ended = match judged {
                Ok(Caller::Agent { ended, .. }) => Some(ended),
                _ => None,
            };
            assert_eq!(ended, wanted, "{days_ago} days ago");
        }
    }

    #[test]
    fn a_certificate_has_ended_after_its_last_second() {
        let ca = Ca::new();
        let n1 = ca.held(N1, 1);
        let callers = ca.callers(&[n1.key], &[], false);
        let (_, end) = period(&n1.credentials.chain[0]).unwrap();
        for (seconds, wanted) in [(0, false), (1, true)] {
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(end.as_secs() + seconds));
            let judged = callers.judge_at(&n1.credentials.chain[0], &[], now);
            assert!(matches!(judged, Ok(Caller::Agent { ended, .. }) if ended == wanted), "{judged:?}");
        }
    }

    #[test]
    fn a_key_without_an_identity_is_a_stranger_while_somebody_is_invited() {
        let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
        let chain = [CertificateParams::default().self_signed(&key).unwrap().der().clone()];
        let wanted = Caller::Stranger(KeyId::of_public_key(&key.subject_public_key_info()));
        assert_eq!(ca.callers(&[], &[], true).judge(&chain), Ok(wanted));
        assert!(ca.callers(&[], &[], false).judge(&chain).is_err());

        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(N1.try_into().unwrap())];
        let forged = [params.self_signed(&key).unwrap().der().clone()];
        assert!(ca.callers(&[], &[], true).judge(&forged).is_err(), "an identity is always verified");
    }

    #[test]
    fn a_scanner_is_called_for_its_role_and_its_ca() {
        let (ours, foreign) = (Ca::new(), Ca::new());
        let (agent, scanner) = (ours.held(N1, -1), ours.held(SCANNER, -1));
        let judged = |verifier: &ScannerVerifier, chain: &[CertificateDer<'_>]| {
            verifier.judge(&chain[0], &chain[1..], UnixTime::now()).is_ok()
        };
        let roots = ScannerVerifier(agent.credentials.anchor().unwrap());
        assert!(judged(&roots, &scanner.credentials.chain));
        for other in [&agent, &foreign.held(SCANNER, -1), &ours.held(SCANNER, 1)] {
            assert!(!judged(&roots, &other.credentials.chain));
        }
        let revoked = agent.credentials.clone().with_trust(&ours.trust(&[scanner.key])).unwrap();
        assert!(!judged(&ScannerVerifier(revoked.anchor().unwrap()), &scanner.credentials.chain));

        let pinned = ScannerVerifier(Anchor::Pinned { authority: ours.key() });
        let sent = |held: &Held| [held.credentials.chain.clone(), held.credentials.authorities.clone()].concat();
        assert!(judged(&pinned, &sent(&scanner)));
        assert!(!judged(&pinned, &scanner.credentials.chain), "without the CA's certificate");
        assert!(!judged(&pinned, &sent(&agent)) && !judged(&pinned, &sent(&foreign.held(SCANNER, -1))));
    }
}
