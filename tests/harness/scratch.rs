//! Directories, control groups and namespaces carry the number of the process that made them, so that those of a
//! killed run can be told and removed.

use std::{env, fs, path::Path, process, sync::Once};

use anyhow::Result;
use tempfile::TempDir;

use crate::{cgroup, netns};

/// What all names begin with.
const PREFIX: &str = "dl";

/// The beginning of a name that belongs to this process: `dl-PID-`.
pub fn prefix() -> String {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| {
        if let Err(error) = sweep_stale() {
            eprintln!("leftovers of a killed run are still there: {error:#}");
        }
    });
    format!("{PREFIX}-{}-", process::id())
}

/// A directory for one story.
pub fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&prefix()).tempdir()?)
}

/// The process whose thing has this name, if a test made it.
pub fn owner(name: &str) -> Option<u32> {
    let mut parts = name.split('-');
    (parts.next() == Some(PREFIX)).then(|| parts.next()?.parse().ok())?
}

/// Removes what processes left that were killed before they could clean up.
pub fn sweep_stale() -> Result<()> {
    sweep(|name| owner(name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()))
}

/// Removes what this process made, for when it has to end at once.
pub fn sweep_own() -> Result<()> {
    sweep(|name| owner(name) == Some(process::id()))
}

fn sweep(is_due: impl Fn(&str) -> bool) -> Result<()> {
    for name in netns::all()?.into_iter().filter(|name| is_due(name)) {
        netns::remove(&name)?;
    }
    for name in cgroup::names().into_iter().filter(|name| is_due(name)) {
        cgroup::remove(&name)?;
    }
    for entry in fs::read_dir(env::temp_dir())? {
        let entry = entry?;
        // Another test's sweep may be quicker.
        if entry.file_name().to_str().is_some_and(&is_due) && entry.path().exists() {
            fs::remove_dir_all(entry.path())
                .or_else(|error| if entry.path().exists() { Err(error) } else { Ok(()) })?;
        }
    }
    Ok(())
}
