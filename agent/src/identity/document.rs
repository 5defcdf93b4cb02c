//! The one file in which an agent keeps its identity: replaced whole, so key, certificate and trust always belong together.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use deadlight_shared::file;
use deadlight_shared::trust::Trust;
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "deadlight.identity/v1";

/// What is in the file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The file's form and its version.
    pub(crate) schema: String,
    /// The agent's certificate and its key; none while it only has files made by hand.
    pub pair: Option<Pair>,
    /// Whom it trusts; none until a scanner has told.
    pub trust: Option<Trust>,
    /// The operator's public key (PEM), pinned at enrolment.
    pub operator_key: Option<String>,
}

/// A certificate and its key, PEM. Has no `Debug`: the key is in it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is there and cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read it, and with it the private key.
    #[error("{} holds a private key and is readable by others (mode {mode:o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not what we wrote.
    #[error("{} is damaged or of another version", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be replaced; the old one stands.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Document {
    /// Reads the document of `state_dir`; an empty one when there is none.
    pub fn load(state_dir: &Path) -> Result<Self, DocumentError> {
        let path = file_in(state_dir);
        let read = fs::metadata(&path).and_then(|metadata| Ok((metadata, fs::read(&path)?)));
        let (metadata, bytes) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(DocumentError::Read { path, source }),
        };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(DocumentError::Exposed { path, mode });
        }
        // The parser's words could hold a piece of the key.
        let document = serde_json::from_slice::<Self>(&bytes).ok();
        document.filter(|document| document.schema == SCHEMA).ok_or(DocumentError::Damaged { path })
    }

    /// Removes what a killed agent left half-written in `state_dir`, keys among it. No other agent may run there.
    pub fn sweep(state_dir: &Path) {
        if let Err(error) = file::sweep(&file_in(state_dir)) {
            tracing::debug!(%error, "what a killed agent left stays in the state directory");
        }
    }

    /// Replaces the document of `state_dir`, and waits until it is on disk.
    pub fn save(&self, state_dir: &Path) -> Result<(), DocumentError> {
        let path = file_in(state_dir);
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(state_dir);
        made.and(bytes)
            .and_then(|bytes| file::replace(&path, &bytes, 0o600))
            .map_err(|source| DocumentError::Write { path, source })
    }
}

impl Default for Document {
    fn default() -> Self {
        Self { schema: SCHEMA.to_owned(), pair: None, trust: None, operator_key: None }
    }
}

fn file_in(state_dir: &Path) -> PathBuf {
    state_dir.join("identity.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exposed_or_damaged_file_is_refused_and_its_key_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let pair = Pair { certificate: "certificate".to_owned(), key: "sesame".to_owned() };
        Document { pair: Some(pair), ..Document::default() }.save(directory.path()).unwrap();
        assert_eq!(Document::load(directory.path()).unwrap().pair.unwrap().key, "sesame");
        let path = file_in(directory.path());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Document::load(directory.path()), Err(DocumentError::Exposed { mode: 0o640, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "{\"schema\": sesame}").unwrap();
        let error = Document::load(directory.path()).err().unwrap();
        assert!(matches!(error, DocumentError::Damaged { .. }) && !format!("{error:?} {error}").contains("sesame"));
    }
}
