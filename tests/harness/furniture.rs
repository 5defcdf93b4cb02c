//! A node's own /etc, /run and /var/log, for programs that know no other place: ufw, firewalld, the xtables lock.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command, time::Duration};

use anyhow::Result;
use tempfile::TempDir;

use crate::{docker_rules::Backend, process::run, programs::Running, scratch};

/// A mount namespace that lives as long as this does; the machine's own files are never written.
#[derive(Debug)]
pub(crate) struct Furniture {
    keeper: Running,
    directory: TempDir,
}

impl Furniture {
    /// `unshare` is that program, to be run where the mounts are needed. `iptables` without a suffix is the one of `backend`.
    pub(crate) fn new(mut unshare: Command, backend: Backend) -> Result<Self> {
        let directory = scratch::directory()?;
        let etc = directory.path().join("etc");
        run(Command::new("cp").args(["--archive", "/etc"]).arg(&etc))?;
        for family in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let link = etc.join("alternatives").join(format!("{family}{suffix}"));
                fs::remove_file(&link)?;
                symlink(format!("/usr/sbin/{}", backend.tool(family, suffix)), link)?;
            }
        }
        let mount = "mount --bind \"$0/etc\" /etc; mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/log; \
                     touch \"$0/ready\"; exec sleep infinity";
        unshare.args(["--mount", "--propagation", "private", "sh", "-ec", mount]).arg(directory.path());
        let mut keeper = Running::start(&mut unshare, "keeper", directory.path())?;
        keeper.wait_ready(Duration::from_secs(10), || directory.path().join("ready").exists())?;
        Ok(Self { keeper, directory })
    }

    /// The file that stands for the mount namespace.
    pub(crate) fn mounts(&self) -> PathBuf {
        format!("/proc/{}/ns/mnt", self.keeper.pid()).into()
    }

    /// What is /etc inside.
    pub(crate) fn etc(&self) -> PathBuf {
        self.directory.path().join("etc")
    }
}
