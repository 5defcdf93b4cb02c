//! Somebody who reads the page "First steps", with the packages at hand: what is printed there is what they can do.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use deadlight_tests::{
    netns::Netns,
    packages,
    process::run,
    programs::{Ended, Running, finish},
    scratch,
    wait::wait_for,
};
use tempfile::TempDir;

use crate::{
    lab::Node,
    swarm::{PATIENCE, Swarm},
};

const PAGE: &str = include_str!("../../docker/docs/first-steps.md");
/// Both packages of the agent, on every node.
const OLDER: &str = "older.deb";
const CURRENT: &str = "current.deb";
/// What belongs to the node itself and not to its root tree.
const MOUNTS: [&str; 5] = ["proc", "sys", "dev", "run", "lab"];

/// A line of the page.
pub(crate) fn printed(line: &str) -> Result<&str> {
    printed_in(PAGE, line)
}

/// A line of some page.
pub(crate) fn printed_in<'a>(page: &str, line: &'a str) -> Result<&'a str> {
    ensure!(page.lines().any(|other| other.trim() == line), "the page has no line {line:?}");
    Ok(line)
}

/// The file of this name on the page.
pub(crate) fn file(name: &str) -> Result<String> {
    let (_, rest) =
        PAGE.split_once(&format!("```toml\n# {name}\n")).with_context(|| format!("no {name} on the page"))?;
    Ok(rest.split_once("```").context("a block without an end")?.0.to_owned())
}

/// The machine outside of the swarm, with the program of the scanner's package.
pub(crate) struct Outside<'a> {
    inet: &'a Netns,
    directory: TempDir,
}

impl<'a> Outside<'a> {
    /// Puts the agent's packages where the nodes find them, too.
    pub(crate) fn new(swarm: &'a Swarm) -> Result<Self> {
        let outside = Self { inet: swarm.inet(), directory: scratch::directory()? };
        let [agent, scanner] = packages::current()?;
        run(Command::new("dpkg-deb").arg("--extract").arg(scanner).arg(outside.directory.path()))?;
        let shared = swarm.lab().shared();
        fs::copy(packages::older(&agent, outside.directory.path())?, shared.join(OLDER))?;
        fs::copy(agent, shared.join(CURRENT))?;
        Ok(outside)
    }

    /// Writes a file of the page.
    pub(crate) fn write(&self, name: &str) -> Result<()> {
        Ok(fs::write(self.directory.path().join(name), file(name)?)?)
    }

    /// Runs a line of the page.
    pub(crate) fn run(&self, line: &str, code: i32) -> Result<String> {
        self.shell(printed(line)?, code)
    }

    /// Runs something else.
    pub(crate) fn shell(&self, line: &str, code: i32) -> Result<String> {
        let ended = finish(&mut self.command(line))?.expect_code(code).with_context(|| line.to_owned())?;
        Ok(ended.stdout)
    }

    /// Starts a line of the page, which goes on.
    pub(crate) fn start(&self, line: &str, name: &str) -> Result<Running> {
        Running::start(&mut self.command(&format!("exec {}", printed(line)?)), name, self.directory.path())
    }

    /// Starts an enrolment; what it waits in, and the line for the node.
    pub(crate) fn invite(&self, node: &str) -> Result<(Running, String)> {
        let line = printed("deadlight-scanner enroll n1 --config scanner.toml")?.replace("n1", node);
        let enroll = Running::start(&mut self.command(&format!("exec {line}")), node, self.directory.path())?;
        let line = wait_for("the line for the node", PATIENCE, || {
            let log = enroll.log();
            log.lines().find(|line| line.starts_with("deadlight1:")).map(str::to_owned).ok_or(log)
        })?;
        Ok((enroll, line))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = self.inet.command("sh");
        let program = self.directory.path().join("usr/bin");
        command.args(["-c", line]).current_dir(self.directory.path());
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", program.display()));
        command
    }
}

/// A node that can be installed on: its root tree under one of its own.
pub(crate) struct Machine<'a> {
    swarm: &'a Swarm,
    pub(crate) node: &'static Node,
}

impl<'a> Machine<'a> {
    pub(crate) fn new(swarm: &'a Swarm, node: &'static Node) -> Result<Self> {
        let machine = Self { swarm, node };
        let systemctl = Path::new(env!("CARGO_MANIFEST_DIR")).join("swarm/systemctl.sh");
        fs::copy(systemctl, swarm.lab().shared().join("systemctl"))?;
        let mounts: String =
            MOUNTS.map(|name| format!("busybox mount -o rbind /{name} /disk/root/{name} && ")).concat();
        swarm.on(
            node,
            &format!(
                "mkdir -p /disk/upper /disk/work /disk/root && \
                 busybox mount -t overlay -o lowerdir=/,upperdir=/disk/upper,workdir=/disk/work tree /disk/root && \
                 {mounts} cp /lab/systemctl /disk/root/usr/bin/"
            ),
        )?;
        Ok(machine)
    }

    /// Runs a line of the page.
    pub(crate) fn run(&self, line: &str) -> Result<String> {
        self.shell(printed(line)?)
    }

    /// Runs something else.
    pub(crate) fn shell(&self, line: &str) -> Result<String> {
        let ended = self.ask(line)?.expect_code(0).with_context(|| format!("on node {}: {line}", self.node.name))?;
        Ok(ended.stdout)
    }

    /// Runs something to its end.
    pub(crate) fn ask(&self, line: &str) -> Result<Ended> {
        ensure!(!line.contains('\''), "{line:?} is quoted by apostrophes");
        self.swarm.lab().ask(self.node, &format!("chroot /disk/root sh -c '{line}'"))
    }

    /// Installs the package of an earlier version.
    pub(crate) fn install(&self) -> Result<()> {
        self.shell(&format!("dpkg --install /lab/{OLDER}")).map(drop)
    }

    /// Installs the package under test instead, as somebody who keeps their configuration.
    pub(crate) fn upgrade(&self) -> Result<()> {
        self.shell(&format!("dpkg --force-confold --install /lab/{CURRENT}")).map(drop)
    }

    /// As it was: no agent, no rule, no tree.
    fn leave(&self) -> Result<()> {
        let undo = "pid=$(cat /run/agent-service.pid 2>/dev/null) && kill $pid && rm /run/agent-service.pid; \
                    [ ! -e /disk/root/var/lib/deadlight/ledger.json ] || chroot /disk/root deadlight-agent revert --all; \
                    busybox umount -l /disk/root && rm -rf /disk/upper /disk/work";
        self.swarm.on(self.node, undo).map(drop)
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.leave() {
            eprintln!("node {} is not as it was: {error:#}", self.node.name);
        }
    }
}
