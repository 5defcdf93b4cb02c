//! What a scanner remembers between sweeps: one JSON file, replaced whole.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use deadlight_shared::wire::OrderMark;
use deadlight_shared::{Finding, file};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "deadlight.state/v1";

/// The state, and the disk that it is on. Where that cannot be written, the state in memory goes on without.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    disk: Box<dyn Disk>,
    state: State,
    unsaved: Option<StoreError>,
}

/// Where the state lies.
pub trait Disk: fmt::Debug + Send {
    /// All of it, if there is any.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;

    /// Replaces it, whole or not at all.
    fn replace(&self, bytes: &[u8]) -> io::Result<()>;
}

/// A file, for one scanner at a time.
#[derive(Debug)]
struct OneFile {
    path: PathBuf,
    /// Held as long as the store lives.
    _lock: Option<File>,
}

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is there and cannot be read.
    #[error("failed to read the state file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another scanner works with the same file.
    #[error("another deadlight-scanner works with the state file {}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The file is not what we wrote.
    #[error("the state file {} is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where.
        #[source]
        source: serde_json::Error,
    },
    /// The file is of another version.
    #[error("the state file {} is not {SCHEMA}", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be replaced.
    #[error("failed to write the state file {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    schema: String,
    epoch: u64,
    sequence: u64,
    findings: Vec<Finding>,
}

impl Store {
    /// The state in the file at `path`, as [`on`](Self::on) has it.
    pub fn open(path: &Path, now: Timestamp) -> Result<Self, StoreError> {
        let disk = OneFile { path: path.to_owned(), _lock: lock(path)? };
        Self::on(Box::new(disk), path, now)
    }

    /// Reads the state from `disk`, which `path` names, and begins a new epoch: `now` in seconds, higher than
    /// every epoch before, also than those that a restored file has forgotten.
    pub fn on(disk: Box<dyn Disk>, path: &Path, now: Timestamp) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let state = match disk.read() {
            Ok(None) => State { schema: SCHEMA.to_owned(), epoch: 0, sequence: 0, findings: Vec::new() },
            Err(source) => return Err(StoreError::Read { path, source }),
            Ok(Some(bytes)) => match serde_json::from_slice::<State>(&bytes) {
                Ok(state) if state.schema == SCHEMA => state,
                Ok(_) => return Err(StoreError::Schema { path }),
                Err(source) => return Err(StoreError::Damaged { path, source }),
            },
        };
        let mut store = Self { path, disk, state, unsaved: None };
        store.begin_epoch(now);
        Ok(store)
    }

    /// Begins a new epoch in memory. Also where an agent has a later order than ours: the clock by which this
    /// epoch began may have been put right since.
    pub fn begin_epoch(&mut self, now: Timestamp) {
        let now = u64::try_from(now.as_second()).unwrap_or(0);
        (self.state.epoch, self.state.sequence) = (now.max(self.state.epoch.saturating_add(1)), 0);
    }

    /// The findings of all sweeps so far.
    pub fn findings(&self) -> &[Finding] {
        &self.state.findings
    }

    /// Replaces the findings, on disk as well.
    pub fn keep(&mut self, findings: Vec<Finding>) {
        self.state.findings = findings;
        self.save();
    }

    /// The mark of the next order. It is on disk before it is handed out, so that a crash never gives two
    /// orders the same one; where the disk cannot be written, the next epoch begins at a later second.
    pub fn next_mark(&mut self) -> OrderMark {
        self.state.sequence += 1;
        self.save();
        OrderMark { epoch: self.state.epoch, sequence: self.state.sequence }
    }

    /// Whether the last change is on disk; if not, why. Asked once after each round.
    pub fn saved(&mut self) -> Result<(), StoreError> {
        self.unsaved.take().map_or(Ok(()), Err)
    }

    fn save(&mut self) {
        let bytes = serde_json::to_vec_pretty(&self.state).map_err(io::Error::from);
        let written = bytes.and_then(|mut bytes| {
            bytes.push(b'\n');
            self.disk.replace(&bytes)
        });
        self.unsaved = written.err().map(|source| StoreError::Write { path: self.path.clone(), source });
    }
}

impl Disk for OneFile {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        match std::fs::read(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        file::replace(&self.path, bytes, 0o600)
    }
}

/// One scanner at a time. Where no lock file can be made, writing the state will fail as well.
fn lock(path: &Path) -> Result<Option<File>, StoreError> {
    let Ok(lock) = File::create(path.with_added_extension("lock")) else { return Ok(None) };
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Busy { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(StoreError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deadlight_shared::FindingId;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn remembers_findings_and_never_repeats_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        let mut store = Store::open(&path, at(1_000)).unwrap();
        assert_eq!(store.next_mark(), OrderMark { epoch: 1_000, sequence: 1 });
        let (node, address, port) = ("n1".parse().unwrap(), "192.0.2.1".parse().unwrap(), "8080/tcp".parse().unwrap());
        let id = FindingId::of(&node, address, port);
        let finding = crate::assess::first_seen(&id, node, address, port, at(1_001));
        store.keep(vec![finding.clone()]);
        store.saved().unwrap();
        assert!(matches!(Store::open(&path, at(2_000)), Err(StoreError::Busy { .. })));
        drop(store);
        let mut store = Store::open(&path, at(2_000)).unwrap();
        assert_eq!(store.findings(), [finding]);
        assert_eq!(store.next_mark(), OrderMark { epoch: 2_000, sequence: 1 });
        drop(store);
        let mut store = Store::open(&path, at(5)).unwrap();
        assert_eq!(store.next_mark(), OrderMark { epoch: 2_001, sequence: 1 }, "a clock that went back");
        store.begin_epoch(at(3_000));
        assert_eq!(store.next_mark(), OrderMark { epoch: 3_000, sequence: 1 }, "a clock that was put right");
    }

    #[test]
    fn a_damaged_file_is_refused_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state.json");
        for (bytes, wanted) in [
            ("", "is damaged"),
            ("{\"schema\":", "is damaged"),
            (
                "{\"schema\":\"deadlight.state/v9\",\"epoch\":1,\"sequence\":1,\"findings\":[]}",
                "is not deadlight.state/v1",
            ),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Store::open(&path, at(1)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), bytes);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let mut store = Store::open(Path::new("/nonexistent/state.json"), at(1)).unwrap();
        assert_eq!(store.next_mark(), OrderMark { epoch: 1, sequence: 1 }, "orders go on");
        let error = store.saved().unwrap_err().to_string();
        assert_eq!(error, "failed to write the state file /nonexistent/state.json");
    }
}
