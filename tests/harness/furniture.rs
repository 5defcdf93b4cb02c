//! A node's own /etc, /run and /var/log, for programs that know no other place: ufw, firewalld, the xtables lock;
//! and on demand the /usr of another release.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    panic,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
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

    /// Puts `usr` in the place of /usr, read-only. Not by `mount`, which the /usr that is there now may not have.
    pub(crate) fn replace_usr(&self, usr: &Path) -> Result<()> {
        let mounts = File::open(self.mounts())?;
        let work = || -> nix::Result<()> {
            // The kernel asks that no other thread has the same root directory.
            unshare(CloneFlags::CLONE_FS)?;
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
            mount(Some(usr), "/usr", None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
            mount(None::<&str>, "/usr", None::<&str>, read_only, None::<&str>)
        };
        thread::scope(|scope| scope.spawn(work).join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
            .with_context(|| format!("mount {} as /usr", usr.display()))
    }

    /// What is /etc inside.
    pub(crate) fn etc(&self) -> PathBuf {
        self.directory.path().join("etc")
    }
}
