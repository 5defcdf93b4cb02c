//! The deployment's own CA: who is a scanner and who is an agent, for how long, and who no longer.
//!
//! [`Pki`] is the directory; what it remembers and decides is in [`Registry`].

mod authority;
mod directory;
mod operator;
mod registry;
mod rotation;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use deadlight_shared::file;
use deadlight_shared::operator::OperatorKeyError;
use deadlight_shared::trust::TrustError;

pub use directory::Pki;
pub use registry::{Certificate, InvitationError, LIFE, Registry, TooManyRevoked};
pub use rotation::{Rotation, RotationError};

/// The two files of one identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate, readable by all.
    pub certificate: PathBuf,
    /// The private key, readable by its owner.
    pub key: PathBuf,
}

/// Why nothing was issued. Nothing was written either.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The directory cannot be made.
    #[error("failed to make the directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One of the files is there already.
    #[error("{} is there already, nothing was written", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The CA's key file holds no usable key.
    #[error("failed to read the CA's key from {}", path.display())]
    CaKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The scanner's key file holds no usable key.
    #[error("failed to read the key {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// ca.crt and ca.key do not belong together.
    #[error("{} is not the certificate of the key beside it", path.display())]
    Pair {
        /// The certificate.
        path: PathBuf,
    },
    /// A certificate or key cannot be made.
    #[error("failed to make the certificate")]
    Make(#[from] rcgen::Error),
    /// A certificate request that is none, or whose signature does not fit its key.
    #[error("failed to read the certificate request")]
    Request(#[source] rcgen::Error),
    /// The operator's key cannot be made.
    #[error("failed to make the operator's key")]
    Operator(#[from] OperatorKeyError),
    /// The file of the operator's public key holds none.
    #[error("failed to use the operator's public key in {}", path.display())]
    OperatorKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OperatorKeyError,
    },
    /// The lifetime ends after the year 9999.
    #[error("failed to put {days} days of validity on the calendar")]
    Lifetime {
        /// The wanted lifetime.
        days: i64,
    },
    /// The registry is not what we wrote.
    #[error("{} is damaged", path.display())]
    Registry {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The registry is of another version.
    #[error("{} is not {}", path.display(), Registry::SCHEMA)]
    Schema {
        /// The file.
        path: PathBuf,
    },
    /// Whom the deployment trusts cannot be written down.
    #[error("failed to sign the trust document")]
    Trust(#[from] TrustError),
    /// The enrolment line is not taken.
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    /// No more keys can be revoked.
    #[error(transparent)]
    Revoke(#[from] TooManyRevoked),
    /// The CA cannot be changed now.
    #[error(transparent)]
    Rotation(#[from] RotationError),
}

/// Writes key and certificate; both or neither, and never over a file that is there.
fn write(directory: &Path, stem: &str, certificate: &str, key: &str) -> Result<Issued, PkiError> {
    let issued =
        Issued { certificate: directory.join(format!("{stem}.crt")), key: directory.join(format!("{stem}.key")) };
    refuse_existing(&issued)?;
    create(&issued.key, key, 0o600)?;
    create(&issued.certificate, certificate, 0o644).inspect_err(|_| {
        if let Err(error) = fs::remove_file(&issued.key) {
            tracing::warn!(path = %issued.key.display(), %error, "failed to remove the key again");
        }
    })?;
    Ok(issued)
}

fn refuse_existing(files: &Issued) -> Result<(), PkiError> {
    match [&files.certificate, &files.key].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        Some(path) => Err(PkiError::Exists { path: path.clone() }),
        None => Ok(()),
    }
}

fn create(path: &Path, pem: &str, mode: u32) -> Result<(), PkiError> {
    file::create_new(path, pem.as_bytes(), mode).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => PkiError::Write { path: path.to_owned(), source },
    })
}

#[cfg(test)]
mod tests;
