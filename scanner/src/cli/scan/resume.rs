//! `--resume FILE`: what an interrupted scan has settled, so that the next one need not ask it again.
//!
//! Closed and filtered ports are kept. Everything else, open ports among it, is asked again: what is
//! reported was seen by the scan that reports it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use deadlight_shared::hint::Hinted;
use deadlight_shared::{PortSet, file, text::printable};
use serde::{Deserialize, Serialize};

use crate::sweep::{Known, Plan, PlannedNode, Sweep};

const SCHEMA: &str = "deadlight.resume/v1";

/// Why a scan cannot be continued, or its state not be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResumeError {
    /// The file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not ours, or not whole.
    #[error("{} is no interrupted scan: {}", path.display(), printable(reason, 200))]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file belongs to another scan.
    #[error("{} was left by a scan of other targets or ports", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be written, or removed.
    #[error("failed to write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

impl ResumeError {
    /// With what to do about it.
    pub(super) fn remedied(self) -> Hinted {
        let remedy = match &self {
            Self::Malformed { path, .. } | Self::Other { path } => format!("rm {} begins anew", path.display()),
            Self::Read { .. } | Self::Write { .. } => "name a file in a directory that you may write to".to_owned(),
        };
        Hinted::new(self, remedy)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    schema: String,
    /// What is scanned: address and ports.
    targets: BTreeMap<IpAddr, String>,
    settled: BTreeMap<IpAddr, SavedPorts>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPorts {
    closed: String,
    filtered: String,
}

/// Leaves out of `plan` what the file at `path` has; nothing where there is no file.
pub(super) fn load(path: &Path, plan: &mut Plan) -> Result<(), ResumeError> {
    let path_buf = || path.to_owned();
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return writable(path),
        other => other.map_err(|source| ResumeError::Read { path: path_buf(), source })?,
    };
    let malformed = |reason: String| ResumeError::Malformed { path: path_buf(), reason };
    let saved: Saved = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    if saved.schema != SCHEMA {
        return Err(malformed(format!("its schema is {}, not {SCHEMA}", saved.schema)));
    }
    if saved.targets != targets(plan) {
        return Err(ResumeError::Other { path: path_buf() });
    }
    for (address, ports) in saved.settled {
        let set = |text: &str| match text {
            "" => Ok(PortSet::default()),
            text => text.parse::<PortSet>().map_err(|error| malformed(error.to_string())),
        };
        let known = Known { closed: set(&ports.closed)?, filtered: set(&ports.filtered)? };
        let of_the_scan = |node: &PlannedNode| {
            let asked = |set: &PortSet| set.iter().all(|port| node.ports.contains(port));
            node.addresses.contains(&address) && asked(&known.closed) && asked(&known.filtered)
        };
        if known.closed.common(&known.filtered).is_some() || !plan.nodes.iter().any(of_the_scan) {
            return Err(malformed(format!("what it says of {address} cannot be")));
        }
        plan.known.insert(address, known);
    }
    Ok(())
}

/// Whether there is a directory to write the file to: better asked now than when the scan is interrupted.
fn writable(path: &Path) -> Result<(), ResumeError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(ResumeError::Write { path: path.to_owned(), source: io::ErrorKind::NotADirectory.into() }),
        Err(source) => Err(ResumeError::Write { path: path.to_owned(), source }),
    }
}

/// Keeps in the file at `path` what `sweep` has settled of `plan`; a scan that came to its end leaves none.
pub(super) fn save(path: &Path, plan: &Plan, sweep: &Sweep) -> Result<(), ResumeError> {
    let write = |source| ResumeError::Write { path: path.to_owned(), source };
    if !sweep.interrupted {
        return match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(write(error)),
            _ => Ok(()),
        };
    }
    let ports = |known: &Known| SavedPorts { closed: known.closed.to_string(), filtered: known.filtered.to_string() };
    let saved = Saved {
        schema: SCHEMA.to_owned(),
        targets: targets(plan),
        settled: sweep.settled.iter().map(|(address, known)| (*address, ports(known))).collect(),
    };
    let text = serde_json::to_vec(&saved).map_err(|error| write(error.into()))?;
    file::replace(path, &text, 0o600).map_err(write)
}

fn targets(plan: &Plan) -> BTreeMap<IpAddr, String> {
    let of_node = |node: &PlannedNode| {
        let ports = node.ports.to_string();
        node.addresses.iter().map(move |address| (*address, ports.clone())).collect::<Vec<_>>()
    };
    plan.nodes.iter().flat_map(of_node).collect()
}
