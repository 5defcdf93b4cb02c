//! The change from one CA to another, in steps that each can be taken back, and none of which cuts an agent off. Pure.

use deadlight_shared::{Identity, Name};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::registry::{AuthorityName, Certificate, Registry, is_alive};

/// How far the change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Rotation {
    /// One CA is trusted.
    Standby {
        /// The CA before it, whose files are still here.
        former: Option<AuthorityName>,
    },
    /// The next CA is trusted besides; it signs nothing yet.
    Prepared {
        /// The next CA.
        next: AuthorityName,
        /// The first generation of the trust document that names it.
        since: u64,
    },
    /// The new CA signs; the former one is still trusted.
    Switched {
        /// The former CA.
        former: AuthorityName,
    },
}

/// Why a step cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// These have not heard of the next CA, so certificates of it would mean nothing to them.
    #[error("these have not been told of the next CA yet and would be cut off: {}", names(.0))]
    Untold(Vec<String>),
    /// These still show certificates of the CA that would no longer be trusted.
    #[error("these still have certificates of the CA that would no longer be trusted: {}", names(.0))]
    Unrenewed(Vec<String>),
    /// No change is under way.
    #[error("no change of the CA is under way, and there is none before this one")]
    Nothing,
}

impl Registry {
    /// The next step. `next` is the CA that comes into play when a change begins.
    pub(super) fn advance(&mut self, next: Option<AuthorityName>, now: Timestamp) -> Result<(), RotationError> {
        self.rotation = match self.rotation.clone() {
            Rotation::Standby { .. } => {
                let next = next.ok_or(RotationError::Nothing)?;
                Rotation::Prepared { next, since: self.trust.generation + 1 }
            }
            Rotation::Prepared { next, since } => {
                self.refuse_untold(since, now)?;
                let former = std::mem::replace(&mut self.signer, next);
                Rotation::Switched { former }
            }
            Rotation::Switched { former } => {
                self.refuse_unrenewed(&former, now)?;
                Rotation::Standby { former: Some(former) }
            }
        };
        Ok(())
    }

    /// The step back.
    pub(super) fn back(&mut self, now: Timestamp) -> Result<(), RotationError> {
        self.rotation = match self.rotation.clone() {
            Rotation::Standby { former: None } => return Err(RotationError::Nothing),
            Rotation::Standby { former: Some(former) } => Rotation::Switched { former },
            Rotation::Switched { former } => {
                // Who was enrolled meanwhile has been told of both.
                let next = std::mem::replace(&mut self.signer, former);
                Rotation::Prepared { next, since: 0 }
            }
            Rotation::Prepared { next, .. } => {
                self.refuse_unrenewed(&next, now)?;
                Rotation::Standby { former: None }
            }
        };
        Ok(())
    }

    /// The CAs that are trusted.
    pub(super) fn trusted(&self) -> Vec<&AuthorityName> {
        let besides = match &self.rotation {
            Rotation::Standby { .. } => None,
            Rotation::Prepared { next: other, .. } | Rotation::Switched { former: other } => Some(other),
        };
        let mut trusted: Vec<_> = std::iter::once(&self.signer).chain(besides).collect();
        // Who of them signs makes no difference to whom is trusted.
        trusted.sort_by(|one, other| one.stem.cmp(&other.stem));
        trusted
    }

    fn refuse_untold(&self, since: u64, now: Timestamp) -> Result<(), RotationError> {
        let has_heard = |node: &Name| self.held.get(node).is_some_and(|held| *held >= since);
        let untold: Vec<_> = self
            .latest()
            .into_iter()
            .filter(|certificate| is_alive(certificate, now))
            .filter_map(|certificate| match &certificate.identity {
                Identity::Agent(node) if !has_heard(node) => Some(format!("agent {node}")),
                Identity::Agent(_) | Identity::Scanner(_) => None,
            })
            .collect();
        untold.is_empty().then_some(()).ok_or(RotationError::Untold(untold))
    }

    fn refuse_unrenewed(&self, leaving: &AuthorityName, now: Timestamp) -> Result<(), RotationError> {
        let is_theirs = |held: &&Certificate| held.authority == leaving.key && is_alive(held, now);
        let theirs = self.in_use().into_values().filter_map(|held| held.into_iter().find(is_theirs));
        let unrenewed: Vec<_> = theirs
            .map(|held| match &held.identity {
                Identity::Agent(node) => format!("agent {node}"),
                Identity::Scanner(name) => format!("scanner {name}"),
            })
            .collect();
        unrenewed.is_empty().then_some(()).ok_or(RotationError::Unrenewed(unrenewed))
    }
}

fn names(list: &[String]) -> String {
    list.join(", ")
}
