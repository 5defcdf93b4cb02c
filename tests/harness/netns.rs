//! Network namespaces that vanish with their owner.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    panic,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

use crate::{docker_rules::Backend, furniture::Furniture, process::run, scratch, wait::wait_for};

const DIRECTORY: &str = "/run/netns";

/// A named network namespace with its loopback up and nothing else in it.
///
/// Dropping it ends every process that still lives inside.
#[derive(Debug)]
pub struct Netns {
    name: String,
    furniture: Option<Furniture>,
}

impl Netns {
    /// A fresh namespace; `role` only makes its name readable.
    pub fn new(role: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            geteuid().is_root(),
            "network namespaces need root\nhint: sudo -E env PATH=\"$PATH\" cargo nextest run -p deadlight-tests"
        );
        let name = format!("{}{}-{role}", scratch::prefix(), COUNTER.fetch_add(1, Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name, furniture: None };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The name `ip netns` shows.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets opened there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        enter(&self.path(), work)
    }

    /// A command that will run inside. Unlike `ip netns exec` it keeps the machine's /sys, and with it the cgroups.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(furniture) = &self.furniture else { return command_in(&self.path(), program) };
        let mut command = nsenter(&self.path());
        command.arg(option("--mount", &furniture.mounts())).arg("--").arg(program);
        command
    }

    /// From now on commands inside have an /etc, a /run and a /var/log of their own, and `iptables` is that of
    /// `backend`. Returns where their /etc can be edited.
    pub fn furnish(&mut self, backend: Backend) -> Result<PathBuf> {
        let furniture = Furniture::new(self.command("unshare"), backend)?;
        Ok(self.furniture.insert(furniture).etc())
    }

    /// From now on commands inside find the programs and libraries of `usr`, read-only; needs [`Self::furnish`].
    pub fn replace_usr(&self, usr: &Path) -> Result<()> {
        self.furniture.as_ref().context("the node has no mounts of its own")?.replace_usr(usr)
    }

    /// `ip …` inside; `words` are separated by blanks.
    pub fn ip(&self, words: &str) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace())).map(drop)
    }

    /// Sets a `net.*` kernel parameter of this namespace, such as `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys").join(key);
        self.enter(|| fs::write(&file, value).with_context(|| format!("set {key}")))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("namespace {} is left behind: {error:#}", self.name);
        }
    }
}

/// [`Netns::enter`] for a namespace that somebody else made.
pub fn enter<T: Send>(namespace: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
                work()
            })
            .join()
            .unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}

/// [`Netns::command`] for a namespace that somebody else made.
pub fn command_in(namespace: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = nsenter(namespace);
    command.arg("--").arg(program);
    command
}

fn nsenter(namespace: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(option("--net", namespace));
    command
}

/// nsenter takes a file only behind an equals sign.
fn option(name: &str, file: &Path) -> OsString {
    let mut option = OsString::from(format!("{name}="));
    option.push(file);
    option
}

/// Names of all namespaces that a test process made, of this run and of others.
pub fn all() -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(DIRECTORY),
    };
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| scratch::owner(name).is_some())
        .collect())
}

/// Ends every process in a namespace and removes it; nothing to do where it is gone.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = Path::new(DIRECTORY).join(name);
    let Ok(inode) = fs::metadata(&path).map(|it| it.ino()) else { return Ok(()) };
    end_inhabitants(inode)?;
    // Another test's sweep may be quicker.
    if path.exists() {
        run(Command::new("ip").args(["netns", "del", name]))
            .or_else(|error| if path.exists() { Err(error) } else { Ok(String::new()) })?;
    }
    Ok(())
}

fn end_inhabitants(inode: u64) -> Result<()> {
    for pid in inhabitants(inode) {
        // An error only says that it ended by itself.
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    wait_for("the processes in a namespace", Duration::from_secs(10), || match inhabitants(inode) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("still alive: {left:?}")),
    })
}

fn inhabitants(inode: u64) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|it| it.ino() == inode))
        .collect()
}
