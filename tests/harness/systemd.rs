//! A systemd of its own for one network namespace: the real one, process 1 of its pid namespace, with a private /etc,
//! /run and /var/lib, that starts the units of `docker/systemd/` as they are installed.

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
    programs::{Ended, Running, built, finish},
    scratch,
    wait::wait_for,
};

/// What the services write.
const LOG: &str = "/var/log/services.log";
/// Where the units are, in /etc.
const UNITS: &str = "deadlight-units";
/// Of the distribution's own units, those that ours name.
const TARGETS: [&str; 7] = [
    "basic.target",
    "multi-user.target",
    "network-online.target",
    "network-pre.target",
    "shutdown.target",
    "sockets.target",
    "sysinit.target",
];
const BOOT: &str = r#"
echo $$ > "$CGROUP/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --propagation private --cgroup --ipc --uts sh -ec '
mount -t proc proc /proc
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t overlay overlay -o "lowerdir=$0/bin:/usr/bin" /usr/bin
mount -t tmpfs tmpfs /var/lib
systemd-tmpfiles --create /etc/deadlight-units/deadlight-*.tmpfiles.conf
exec env -i container=deadlight-lab SYSTEMD_UNIT_PATH=/etc/deadlight-units PATH="$PATH" \
    /lib/systemd/systemd --system --log-target=null --unit=basic.target
' "$0"
"#;

/// Ends with everything it started when dropped.
#[derive(Debug)]
pub struct Systemd<'a> {
    init: Option<Running>,
    cgroup: String,
    directory: TempDir,
    namespace: &'a Netns,
    etc: PathBuf,
}

impl<'a> Systemd<'a> {
    /// Installs the units in `namespace`, whose /etc is `etc` (see [`Netns::furnish`]), and boots; no service is started.
    pub fn boot(namespace: &'a Netns, etc: &Path) -> Result<Self> {
        let directory = scratch::directory()?;
        let bin = directory.path().join("bin");
        fs::create_dir(&bin)?;
        for program in ["deadlight-agent", "deadlight-scanner"] {
            fs::copy(built(program)?, bin.join(program))?;
        }
        install(etc)?;
        run(namespace.command("touch").arg(LOG))?;
        let cgroup = directory.path().file_name().and_then(|name| name.to_str()).context("a name")?.to_owned();
        let mut systemd = Self { init: None, directory, cgroup, namespace, etc: etc.to_owned() };
        systemd.start()?;
        Ok(systemd)
    }

    fn start(&mut self) -> Result<()> {
        let group = cgroup::unified()?.join(&self.cgroup);
        fs::create_dir(&group)?;
        let mut command = self.namespace.command("sh");
        command.args(["-ec", BOOT]).arg(self.directory.path()).env("CGROUP", group);
        self.init = Some(Running::start(&mut command, "init", self.directory.path())?);
        wait_for("systemd", Duration::from_secs(20), || match self.systemctl(&["is-active", "basic.target"]) {
            Ok(Ended { stdout, .. }) if stdout == "active\n" => Ok(()),
            other => Err(format!("{other:?}")),
        })
    }

    /// A command among the services, bound by nothing.
    pub fn command(&self, program: &str) -> Result<Command> {
        let unshare = self.init.as_ref().context("it runs as long as this lives")?.pid();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.path().display()));
        command.arg(format!("--mount=/proc/{unshare}/ns/mnt"));
        command.arg(format!("--pid=/proc/{unshare}/ns/pid_for_children")).arg("--").arg(program);
        Ok(command)
    }

    /// `systemctl WORDS…`, to its end.
    pub fn systemctl(&self, words: &[&str]) -> Result<Ended> {
        finish(self.command("systemctl")?.arg("--no-pager").args(words))
    }

    /// Starts a unit; the error shows what it said.
    pub fn start_unit(&self, unit: &str) -> Result<()> {
        let ended = self.systemctl(&["start", unit])?;
        let status = || self.systemctl(&["status", unit]);
        ensure!(ended.code()? == 0, "{}\n{}\n{}", ended.stderr, status()?.stdout, self.log());
        Ok(())
    }

    /// Adds a unit of the story's own, or replaces one.
    pub fn add_unit(&self, name: &str, text: &str) -> Result<()> {
        fs::write(self.etc.join(UNITS).join(name), text)?;
        self.systemctl(&["daemon-reload"])?.expect_code(0).map(drop)
    }

    /// The user that a running service is.
    pub fn owner_of(&self, unit: &str) -> Result<String> {
        let process = format!("/proc/{}", self.property(unit, "MainPID")?);
        Ok(run(self.command("stat")?.args(["--format", "%U", &process]))?.trim().to_owned())
    }

    /// One property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let ended = self.systemctl(&["show", "--value", "--property", name, unit])?.expect_code(0)?;
        Ok(ended.stdout.trim().to_owned())
    }

    /// Runs `script` by sh in the place of what `unit` starts, under everything that the unit says, to its end.
    pub fn run_as(&self, unit: &str, script: &str) -> Result<String> {
        let (name, text) = (format!("deadlight-probe-as-{unit}"), fs::read_to_string(source().join(unit))?);
        let kept =
            text.lines().filter(|line| !["Exec", "Restart=", "StandardInput="].iter().any(|it| line.starts_with(it)));
        fs::write(self.etc.join(UNITS).join("probe"), script)?;
        let probe = format!("[Service]\nType=oneshot\nExecStart=-/bin/sh /etc/{UNITS}/probe\n");
        let before = self.log().len();
        self.add_unit(&name, &format!("{}\n{probe}", kept.collect::<Vec<_>>().join("\n")))?;
        self.start_unit(&name)?;
        Ok(self.log()[before..].to_owned())
    }

    /// What the services have said so far.
    pub fn log(&self) -> String {
        run(self.namespace.command("cat").arg(LOG)).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Drop for Systemd<'_> {
    fn drop(&mut self) {
        // With process 1 of its namespace everything ends that it started.
        let ended = self.init.take().map_or(Ok(()), Running::kill).and_then(|()| cgroup::remove(&self.cgroup));
        if let Err(error) = ended {
            eprintln!("control group {} is left behind: {error:#}", self.cgroup);
        }
    }
}

/// `docker/systemd` of this repository.
pub fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/systemd")
}

/// Makes `user`, as /etc knows it, the owner of a directory and all in it.
pub fn give_to(etc: &Path, user: &str, directory: &Path) -> Result<()> {
    sysusers(etc)?;
    let passwd = fs::read_to_string(etc.join("passwd"))?;
    let entry = passwd.lines().find_map(|line| line.strip_prefix(&format!("{user}:x:"))).context("no such user")?;
    let ids: Vec<&str> = entry.split(':').take(2).collect();
    run(Command::new("chown").arg("--recursive").arg(ids.join(":")).arg(directory)).map(drop)
}

fn sysusers(etc: &Path) -> Result<()> {
    let root = etc.parent().context("a parent of /etc")?;
    let users = ["agent", "scanner"].map(|name| source().join(format!("deadlight-{name}.sysusers.conf")));
    run(Command::new("systemd-sysusers").arg("--root").arg(root).args(users)).map(drop)
}

/// As `docker/README.md` says, but for a directory of their own, so that nothing of this machine's is started; what the
/// services write goes to a file, there being no journal.
fn install(etc: &Path) -> Result<()> {
    let units = etc.join(UNITS);
    run(Command::new("cp").arg("--recursive").arg(source()).arg(&units))?;
    for target in TARGETS {
        fs::copy(Path::new("/lib/systemd/system").join(target), units.join(target))?;
    }
    let log = format!("[Service]\nStandardOutput=append:{LOG}\nStandardError=append:{LOG}\n");
    fs::write(units.join("deadlight-.service.d/log.conf"), log)?;
    sysusers(etc)
}
