//! A clean Debian, installed in a directory: what is done to it is gone with it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::{
    cgroup,
    netns::Netns,
    process::run,
    programs::{Ended, Running, finish},
    scratch,
    wait::wait_for,
};

/// Becomes the first process. As a container's: of this machine's kernel it can set nothing but its own network's rules.
const ENTER: &str = r#"
own=$1 tree=$2 first=$3
echo $$ > "$CGROUP/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --propagation private --cgroup --ipc --uts sh -ec '
own=$0 tree=$1 first=$2
mount -t tmpfs tmpfs "$own/disk"
mkdir "$own/disk/upper" "$own/disk/work" "$own/disk/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$own/disk/upper,workdir=$own/disk/work" "$own/disk/root"
cd "$own/disk/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs dev
mkdir dev/shm dev/pts packages
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"; done
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount --bind "$own/packages" packages
pivot_root . mnt
umount --lazy /mnt
touch /packages/ready
exec env -i container=deadlight-lab PATH=/usr/sbin:/usr/bin $first
' "$own" "$tree" "$first"
"#;
/// All of it but consoles to log in at.
const SYSTEMD: &str = "/lib/systemd/systemd --system --log-target=null --unit=multi-user.target";

/// What runs as its first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// Nothing of Debian's, as where an image is made.
    Sleep,
    /// As on a machine.
    Systemd,
}

/// Ends with everything in it when dropped.
#[derive(Debug)]
pub struct Debian {
    first: Option<Running>,
    cgroup: String,
    network: PathBuf,
    directory: TempDir,
}

impl Debian {
    /// Of `suite`, such as `trixie`, with what the packages depend on, in a network namespace.
    pub fn new(suite: &str, network: &Netns, first: First) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packages/tree.sh");
        let tree = run(Command::new(script).arg(suite)).context("hint: tests/install.sh installs mmdebstrap")?;
        let directory = scratch::directory()?;
        for name in ["disk", "packages"] {
            fs::create_dir(directory.path().join(name))?;
        }
        let cgroup = directory.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let mut debian = Self { first: None, cgroup, network: network.path(), directory };
        debian.start(network, tree.trim(), first)?;
        Ok(debian)
    }

    fn start(&mut self, network: &Netns, tree: &str, first: First) -> Result<()> {
        let group = cgroup::unified()?.join(&self.cgroup);
        fs::create_dir(&group)?;
        let program = if first == First::Systemd { SYSTEMD } else { "sleep infinity" };
        let mut command = network.command("sh");
        command.args(["-ec", ENTER, "sh"]).arg(self.directory.path()).args([tree, program]).env("CGROUP", group);
        let ready = self.packages().join("ready");
        let running = self.first.insert(Running::start(&mut command, "debian", self.directory.path())?);
        running.wait_ready(Duration::from_secs(10), || ready.exists())?;
        if first == First::Sleep {
            return Ok(());
        }
        wait_for("systemd", Duration::from_secs(30), || {
            match self.finish("systemctl", &["is-active", "multi-user.target"]) {
                Ok(Ended { stdout, .. }) if stdout == "active\n" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// What is /packages inside.
    pub fn packages(&self) -> PathBuf {
        self.directory.path().join("packages")
    }

    /// A directory outside, for as long as this lives.
    pub fn outside(&self) -> &Path {
        self.directory.path()
    }

    /// `program WORDS…` inside, by root, to its end.
    pub fn finish(&self, program: &str, words: &[&str]) -> Result<Ended> {
        let unshare = self.first.as_ref().context("it runs as long as this lives")?.pid();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.network.display()));
        command.arg(format!("--mount=/proc/{unshare}/ns/mnt"));
        command.arg(format!("--pid=/proc/{unshare}/ns/pid_for_children"));
        command.args(["--", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"]);
        command.args(["DEBIAN_FRONTEND=noninteractive", program]).args(words);
        finish(&mut command)
    }

    /// The same; what it wrote, if it ended well.
    pub fn run(&self, program: &str, words: &[&str]) -> Result<String> {
        let ended = self.finish(program, words)?;
        ensure!(ended.code()? == 0, "{program} {words:?}\n{}\n{}", ended.stdout, ended.stderr);
        Ok(ended.stdout)
    }

    /// A shell's words, by root; what they wrote.
    pub fn sh(&self, script: &str) -> Result<String> {
        self.run("sh", &["-ec", script])
    }

    /// `apt-get install` of package files, without any network; what it said.
    pub fn install(&self, packages: &[&Path]) -> Result<String> {
        let mut words = vec!["install", "--yes", "--no-install-recommends"];
        words.extend(["-o", "Dpkg::Options::=--force-confold", "-o", "APT::Sandbox::User=root"]);
        let mut names = Vec::new();
        for package in packages {
            let name = package.file_name().and_then(|name| name.to_str()).context("a name")?;
            fs::copy(package, self.packages().join(name))?;
            names.push(format!("/packages/{name}"));
        }
        words.extend(names.iter().map(String::as_str));
        let ended = self.finish("apt-get", &words)?;
        ensure!(ended.code()? == 0, "{}\n{}", ended.stdout, ended.stderr);
        Ok(ended.stdout + &ended.stderr)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        // With the first process of its namespace everything ends that it started.
        let ended = self.first.take().map_or(Ok(()), Running::kill).and_then(|()| cgroup::remove(&self.cgroup));
        if let Err(error) = ended {
            eprintln!("control group {} is left behind: {error:#}", self.cgroup);
        }
    }
}
