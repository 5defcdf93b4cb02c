//! Removing the control groups that a container engine made.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::wait::wait_for;

const ROOT: &str = "/sys/fs/cgroup";

/// Removes the groups below `/NAME` in every hierarchy, of version 1 or 2, once they are empty.
pub fn remove(name: &str) -> Result<()> {
    for group in hierarchies().map(|it| it.join(name)).filter(|it| it.exists()) {
        wait_for("empty control groups", Duration::from_secs(5), || {
            remove_tree(&group).map_err(|error| format!("{}: {error}", group.display()))
        })?;
    }
    Ok(())
}

/// The hierarchy of version 2.
pub fn unified() -> Result<PathBuf> {
    let candidates = [PathBuf::from(ROOT), Path::new(ROOT).join("unified")];
    let found = candidates.into_iter().find(|it| it.join("cgroup.controllers").exists());
    found.context("no control groups of version 2\nhint: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
}

/// Names of all groups at the top of any hierarchy.
pub(crate) fn names() -> BTreeSet<String> {
    let groups = hierarchies().flat_map(|hierarchy| fs::read_dir(hierarchy).into_iter().flatten());
    groups.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let version_1 = fs::read_dir(ROOT).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    std::iter::once(PathBuf::from(ROOT)).chain(version_1)
}

/// Unlike [`fs::remove_dir_all`] it leaves the files alone: they go with their group.
fn remove_tree(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}
