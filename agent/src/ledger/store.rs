//! The ledger on disk: one file, replaced whole, one writer at a time.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use deadlight_shared::file;

use super::Ledger;

const LOCK_LIMIT: Duration = Duration::from_secs(20);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Where the ledger is kept. Every use locks it, so that the daemon and a command on the same node
/// never overwrite each other.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The directory or the lock file cannot be made.
    #[error("failed to lock the state directory {}", path.display())]
    Lock {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process holds the lock and does not let go.
    #[error("another deadlight-agent has held the state directory {} for {} s", path.display(), LOCK_LIMIT.as_secs())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is no ledger. It is left as it is.
    #[error("{} is not a ledger; it was left untouched", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The ledger was written by another version of the agent. It is left as it is.
    #[error("{} is a ledger of another version; it was left untouched", path.display())]
    Version {
        /// The file.
        path: PathBuf,
    },
    /// The new ledger cannot be written; the old one stands.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl Store {
    /// A store in `directory`, which is made when it is missing.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Takes the lock, waiting for another holder up to 20 s. Dropping the guard lets go.
    ///
    /// A read-only directory that cannot hold a lock file gives `None`: nobody else can write
    /// there either.
    pub fn lock(&self) -> Result<Option<File>, LedgerError> {
        let path = self.directory.clone();
        let opened = fs::create_dir_all(&path).and_then(|()| file::open_lock(&path.join("lock")));
        let lock = match opened {
            Ok(lock) => lock,
            Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::StorageFull) => {
                return Ok(None);
            }
            Err(source) => return Err(LedgerError::Lock { path, source }),
        };
        let started = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    if let Err(error) = file::sweep(&self.file()) {
                        tracing::debug!(%error, "what a killed agent left stays in the state directory");
                    }
                    return Ok(Some(lock));
                }
                Err(TryLockError::Error(source)) => return Err(LedgerError::Lock { path, source }),
                Err(TryLockError::WouldBlock) if started.elapsed() > LOCK_LIMIT => {
                    return Err(LedgerError::Busy { path });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            }
        }
    }

    /// Reads the ledger; an empty one when there is none yet.
    pub fn load(&self) -> Result<Ledger, LedgerError> {
        let path = self.file();
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice::<Ledger>(&bytes) {
                Ok(ledger) if ledger.is_current() => Ok(ledger),
                Ok(_) => Err(LedgerError::Version { path }),
                Err(source) => Err(LedgerError::Corrupt { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
            Err(source) => Err(LedgerError::Read { path, source }),
        }
    }

    /// Replaces the ledger and waits until it is on disk.
    pub fn save(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let path = self.file();
        let bytes = serde_json::to_vec_pretty(ledger).map_err(io::Error::from);
        bytes
            .and_then(|bytes| file::replace(&path, &bytes, 0o600))
            .map_err(|source| LedgerError::Write { path, source })
    }

    fn file(&self) -> PathBuf {
        self.directory.join("ledger.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Closure, Origin};

    fn closure(origin: Origin) -> Closure {
        Closure { port: "8080/tcp".parse().unwrap(), origin, since: jiff::Timestamp::UNIX_EPOCH }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(&directory.path().join("new"));
        let _lock = store.lock().unwrap();
        let mut ledger = store.load().unwrap();
        assert_eq!(ledger, Ledger::default());
        let order = Origin::Order("office-a".parse().unwrap());
        ledger.close(closure(order.clone()));
        ledger.close(closure(Origin::Local));
        ledger.close(closure(order));
        assert_eq!(ledger.closures, [closure(Origin::Local)]);
        store.save(&ledger).unwrap();
        assert_eq!(store.load().unwrap(), ledger);
    }

    #[test]
    fn a_torn_ledger_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ledger.json");
        fs::write(&file, b"{\"schema\":").unwrap();
        let error = Store::new(directory.path()).load().unwrap_err();
        assert!(matches!(error, LedgerError::Corrupt { .. }));
        assert_eq!(fs::read(&file).unwrap(), b"{\"schema\":");
        fs::write(&file, b"{\"schema\":\"deadlight.ledger/v9\"}").unwrap();
        assert!(matches!(Store::new(directory.path()).load(), Err(LedgerError::Version { .. })));
    }

    #[test]
    fn a_ledger_that_knows_less_is_read() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("ledger.json"), b"{\"schema\":\"deadlight.ledger/v1\"}").unwrap();
        assert_eq!(Store::new(directory.path()).load().unwrap(), Ledger::default());
    }
}
