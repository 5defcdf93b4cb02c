//! What the CA remembers: who has certificates, who is invited, and whom the deployment trusts. Pure.

use std::collections::{BTreeMap, BTreeSet};

use deadlight_shared::enrol::Verifier;
use deadlight_shared::tls::{RENEWABLE, Validity};
use deadlight_shared::trust::{MAX_REVOKED, Revoked, SignedTrust, Trust};
use deadlight_shared::{Identity, KeyId, Name};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::rotation::Rotation;

/// How long an invitation holds.
const INVITATION: SignedDuration = SignedDuration::from_mins(10);
/// How long a certificate of the daemon's own making holds.
pub const LIFE: SignedDuration = SignedDuration::from_hours(24 * 7);

/// The CA's memory, one file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    pub(super) schema: String,
    /// The CA that signs.
    pub(super) signer: AuthorityName,
    /// How far the change to another CA is.
    pub(super) rotation: Rotation,
    /// Keys that are no longer anybody's.
    pub(super) revoked: Vec<Revoked>,
    /// Whom the deployment trusts, as it was last signed.
    pub(super) trust: Trust,
    /// The same, signed.
    pub(super) signed: SignedTrust,
    /// All certificates that are not long dead.
    pub(super) certificates: Vec<Certificate>,
    invitations: Vec<Invitation>,
    /// The generation of the trust document that each agent holds.
    pub(super) held: BTreeMap<Name, u64>,
}

/// A CA by the stem of its files, and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthorityName {
    pub(super) stem: String,
    pub(super) key: KeyId,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    /// Whose it is.
    #[serde(with = "uri")]
    pub identity: Identity,
    /// The key it is for.
    pub key: KeyId,
    /// The CA that signed it.
    pub authority: KeyId,
    /// It holds from then on.
    pub from: Timestamp,
    /// And until then.
    pub to: Timestamp,
    /// Whether it is known to have reached whom it is for; early registries do not say.
    #[serde(default)]
    pub arrived: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Invitation {
    node: Name,
    verifier: Verifier,
    until: Timestamp,
    used: Option<Timestamp>,
}

/// Why an enrolment line is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// There never was one, or it is long gone.
    #[error("node {0} is not invited")]
    None(Name),
    /// Older than ten minutes.
    #[error("the enrolment line of node {node} has expired at {until}")]
    Expired {
        /// The node.
        node: Name,
        /// When.
        until: Timestamp,
    },
    /// Somebody was faster.
    #[error("the enrolment line of node {node} was used already, at {used}")]
    Used {
        /// The node.
        node: Name,
        /// When.
        used: Timestamp,
        /// Until when it was good.
        until: Timestamp,
    },
    /// Used, and in vain.
    #[error("the enrolment line of node {node} was used at {used}, but its certificate is not known to have arrived")]
    Lost {
        /// The node.
        node: Name,
        /// When.
        used: Timestamp,
    },
}

/// The document cannot name so many keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_REVOKED} keys would be revoked at a time; change the CA instead: pki rotate-ca")]
pub struct TooManyRevoked;

impl Registry {
    pub(super) const SCHEMA: &str = "deadlight.registry/v1";

    pub(super) fn new(signer: AuthorityName, trust: Trust, signed: SignedTrust) -> Self {
        Self {
            schema: Self::SCHEMA.to_owned(),
            signer,
            rotation: Rotation::Standby { former: None },
            revoked: Vec::new(),
            trust,
            signed,
            certificates: Vec::new(),
            invitations: Vec::new(),
            held: BTreeMap::new(),
        }
    }

    /// Invites `node` for ten minutes; an invitation that it had is void.
    pub fn invite(&mut self, node: Name, verifier: Verifier, now: Timestamp) {
        self.invitations.retain(|invitation| invitation.node != node);
        self.invitations.push(Invitation { node, verifier, until: now + INVITATION, used: None });
    }

    /// What the invitation of `node` is proven by, if it holds.
    pub fn invitation(&self, node: &Name, now: Timestamp) -> Result<&Verifier, InvitationError> {
        let invitation = self.invitations.iter().find(|invitation| invitation.node == *node);
        let invitation = invitation.ok_or_else(|| InvitationError::None(node.clone()))?;
        match invitation {
            Invitation { used: Some(used), until, .. } => {
                Err(InvitationError::Used { node: node.clone(), used: *used, until: *until })
            }
            Invitation { until, .. } if *until < now => {
                Err(InvitationError::Expired { node: node.clone(), until: *until })
            }
            Invitation { verifier, .. } => Ok(verifier),
        }
    }

    /// The nodes with an invitation that holds.
    pub fn invited(&self, now: Timestamp) -> Vec<Name> {
        let nodes = self.invitations.iter().map(|invitation| &invitation.node);
        nodes.filter(|node| self.invitation(node, now).is_ok()).cloned().collect()
    }

    /// Whether the last line of `node` has brought it its certificate, as far as anybody knows; an error when it never will.
    pub fn is_enrolled(&self, node: &Name, now: Timestamp) -> Result<bool, InvitationError> {
        let is_its = |certificate: &&Certificate| certificate.identity == Identity::Agent(node.clone());
        match self.invitation(node, now) {
            Ok(_) => Ok(false),
            Err(InvitationError::Used { .. })
                if self.certificates.iter().rfind(is_its).is_some_and(|it| it.arrived) =>
            {
                Ok(true)
            }
            // The node waits as long, and a scanner beside us may be about to hand it over.
            Err(InvitationError::Used { until, .. }) if now <= until => Ok(false),
            Err(InvitationError::Used { node, used, .. }) => Err(InvitationError::Lost { node, used }),
            Err(error) => Err(error),
        }
    }

    /// Uses up the invitation of `node`.
    pub fn redeem(&mut self, node: &Name, now: Timestamp) -> Result<(), InvitationError> {
        self.invitation(node, now)?;
        let mine = self.invitations.iter_mut().filter(|invitation| invitation.node == *node);
        mine.for_each(|invitation| invitation.used = Some(now));
        // What the node was told before, its new key need not know.
        self.held.remove(node);
        Ok(())
    }

    /// Remembers a certificate that the signing CA has made, and that is on its way.
    pub(super) fn record(&mut self, identity: Identity, key: KeyId, validity: Validity) {
        let Validity { from, to } = validity;
        let authority = self.signer.key;
        self.certificates.push(Certificate { identity, key, authority, from, to, arrived: false });
    }

    /// The youngest certificate of `identity` has reached it.
    pub fn arrived(&mut self, identity: &Identity) {
        if let Some(youngest) = self.certificates.iter_mut().rfind(|certificate| certificate.identity == *identity) {
            youngest.arrived = true;
        }
    }

    /// The youngest certificate that each identity is known to have, or was ever sent; but for revoked keys.
    pub fn latest(&self) -> Vec<&Certificate> {
        let known = |held: &Vec<&Certificate>| held.first().is_some_and(|first| first.arrived);
        let in_use = self.in_use().into_values();
        in_use.filter_map(|held| if known(&held) { held.first().copied() } else { held.last().copied() }).collect()
    }

    /// Whether the youngest certificate of `identity` is revoked.
    pub fn was_revoked(&self, identity: &Identity) -> bool {
        let youngest = self.certificates.iter().rfind(|certificate| certificate.identity == *identity);
        youngest.is_some_and(|youngest| self.is_revoked(youngest.key))
    }

    /// What each identity may show: what has arrived last, and what was sent after that. An answer that got lost leaves
    /// it open which of them it has.
    pub(super) fn in_use(&self) -> BTreeMap<String, Vec<&Certificate>> {
        let mut in_use: BTreeMap<String, Vec<&Certificate>> = BTreeMap::new();
        for certificate in self.certificates.iter().filter(|certificate| !self.is_revoked(certificate.key)) {
            let held = in_use.entry(certificate.identity.to_string()).or_default();
            if certificate.arrived {
                held.clear();
            }
            held.push(certificate);
        }
        in_use
    }

    /// Whether `identity` has a certificate.
    pub fn knows(&self, identity: &Identity) -> bool {
        self.latest().into_iter().any(|certificate| certificate.identity == *identity)
    }

    /// Whether the latest certificate of `identity` is half through its life, or of a CA that signs no longer. How
    /// near to the half depends on the key, so that a fleet does not renew at once. `false` for whom has none.
    pub fn is_due(&self, identity: &Identity, now: Timestamp) -> bool {
        let latest = self.latest();
        let Some(certificate) = latest.into_iter().find(|certificate| certificate.identity == *identity) else {
            return false;
        };
        let life = certificate.to.duration_since(certificate.from);
        let spread = i64::from(certificate.key.as_bytes()[0]) - 128;
        let due = certificate.from + life / 2 + SignedDuration::from_millis(whole_millis(life) / 10 * spread / 128);
        certificate.authority != self.signer.key || now >= due
    }

    /// Keys of `identity` whose certificate holds, or ended at most 30 days ago.
    pub fn renewable(&self, identity: &Identity, now: Timestamp) -> BTreeSet<KeyId> {
        let own = self.certificates.iter().filter(|certificate| certificate.identity == *identity);
        let alive = own.filter(|certificate| is_alive(certificate, now) && !self.is_revoked(certificate.key));
        alive.map(|certificate| certificate.key).collect()
    }

    /// Revokes every key of `identity` and its invitation. How many keys those were.
    pub fn revoke(&mut self, identity: &Identity, now: Timestamp) -> Result<usize, TooManyRevoked> {
        let keys = self.renewable(identity, now);
        if self.revoked.len() + keys.len() > MAX_REVOKED {
            return Err(TooManyRevoked);
        }
        let end = |key: KeyId| self.certificates.iter().filter(move |c| c.key == key).map(|c| c.to).max();
        let revoked = keys.iter().map(|&key| Revoked { key, until: end(key).unwrap_or(now) + RENEWABLE });
        let revoked: Vec<_> = revoked.collect();
        self.revoked.extend(revoked);
        if let Identity::Agent(node) = identity {
            self.invitations.retain(|invitation| invitation.node != *node);
            self.held.remove(node);
        }
        Ok(keys.len())
    }

    /// Remembers that the agent of `node` holds this generation of the trust document. Whether that is news.
    pub fn hold(&mut self, node: &Name, generation: u64) -> bool {
        self.held.insert(node.clone(), generation) != Some(generation)
    }

    /// Forgets what is long dead.
    pub(super) fn prune(&mut self, now: Timestamp) {
        self.certificates.retain(|certificate| is_alive(certificate, now));
        self.revoked.retain(|revoked| revoked.until >= now);
        self.invitations.retain(|invitation| now.duration_since(invitation.until) < RENEWABLE);
    }

    /// Whether `key` is revoked.
    pub fn is_revoked(&self, key: KeyId) -> bool {
        self.revoked.iter().any(|revoked| revoked.key == key)
    }

    /// The key of the CA that signs.
    pub fn signer(&self) -> KeyId {
        self.signer.key
    }

    /// Whether the agent of `node` is known to hold the trust document of now.
    pub fn is_told(&self, node: &Name) -> bool {
        self.held.get(node).is_some_and(|held| *held >= self.trust.generation)
    }

    /// The trust document, signed.
    pub fn signed_trust(&self) -> &SignedTrust {
        &self.signed
    }

    /// The trust document.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }
}

pub(super) fn is_alive(certificate: &Certificate, now: Timestamp) -> bool {
    now.duration_since(certificate.to) <= RENEWABLE
}

fn whole_millis(duration: SignedDuration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

mod uri {
    use deadlight_shared::Identity;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(identity: &Identity, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(identity)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Identity, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
