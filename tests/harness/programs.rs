//! Deadlight's own programs, the real binaries, inside a namespace.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Netns, wait::wait_for};

/// How long a program may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// The path of a program that this workspace builds, next to the running test; of [`old`] where `DEADLIGHT_OLD_PLAYS` names it.
pub fn built(name: &str) -> Result<PathBuf> {
    if env::var("DEADLIGHT_OLD_PLAYS").is_ok_and(|plays| plays.split(' ').any(|played| played == name)) {
        return old(name);
    }
    let test = env::current_exe().context("find the running test")?;
    // target/PROFILE/deps/stories-HASH, or target/PROFILE/PROGRAM
    let found = test.ancestors().skip(1).take(2).map(|directory| directory.join(name)).find(|path| path.exists());
    found.with_context(|| format!("{name} is not built next to {}\nhint: cargo build --workspace", test.display()))
}

/// The path of a program of another version, which `make compat` has built.
pub fn old(name: &str) -> Result<PathBuf> {
    let hint = "hint: make compat OLD=REVISION";
    let directory = env::var_os("DEADLIGHT_OLD_BIN")
        .with_context(|| format!("DEADLIGHT_OLD_BIN does not say where another version is\n{hint}"))?;
    let path = Path::new(&directory).join(name);
    ensure!(path.exists(), "there is no {}\n{hint}", path.display());
    Ok(path)
}

/// What a program that ran to its end said.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its data.
    pub stdout: String,
    /// Its messages.
    pub stderr: String,
}

impl Ended {
    /// The exit status; a death by signal is an error.
    pub fn code(&self) -> Result<i32> {
        self.status.code().with_context(|| format!("{self:?}"))
    }

    /// Itself, if the exit status is `code`.
    pub fn expect_code(self, code: i32) -> Result<Self> {
        ensure!(self.code()? == code, "exit status {}, not {code}\n{}\n{}", self.code()?, self.stdout, self.stderr);
        Ok(self)
    }
}

/// Runs a command to its end, whatever its exit status.
pub fn finish(command: &mut Command) -> Result<Ended> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    Ok(Ended {
        status: output.status,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// For [`agent_apart`]: the directory `$STATE` is on a full disk there.
pub const FULL: &str = "mount -t tmpfs -o size=4k tmpfs \"$STATE\" && head -c 4096 /dev/zero > \"$STATE/full\"";
/// For [`agent_apart`]: nothing can be written into the directory `$STATE` there.
pub const READ_ONLY: &str = "mount -t tmpfs -o ro tmpfs \"$STATE\"";

/// A program that runs until told to end; dropping it ends it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`, its output going to `NAME.log` in `directory`.
    pub fn start(command: &mut Command, name: &str, directory: &Path) -> Result<Self> {
        Self::start_on(command, Stdio::null(), name, directory)
    }

    /// The same, with `stdin` as its standard input.
    pub fn start_on(command: &mut Command, stdin: Stdio, name: &str, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(stdin)
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { child, log })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        // A pid fits by definition of pid_t.
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Everything it said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }

    /// Waits for `ready` while the program is alive; a failure shows its log.
    pub fn wait_ready(&mut self, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let mut ended = None;
        wait_for("the program to be ready", limit, || {
            ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || ready() { Ok(()) } else { Err(self.log()) }
        })?;
        ensure!(ended.is_none(), "it ended at once: {ended:?}\n{}", self.log());
        Ok(())
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.terminate()
    }

    /// Waits for an end that somebody else brings about; everything that it said.
    pub fn wait(mut self, limit: Duration) -> Result<String> {
        wait_for("the program to end", limit, || match self.child.try_wait() {
            Ok(Some(_)) => Ok(self.log()),
            other => Err(format!("{other:?}\n{}", self.log())),
        })
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(self.pid(), Signal::SIGTERM)?;
        wait_for("the program to end", GRACE, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
        .or_else(|_| {
            self.child.kill()?;
            Ok(self.child.wait()?)
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("process {} is left behind: {error:#}", self.child.id());
        }
    }
}

/// `deadlight-agent` inside `node`, its arguments still to be added.
pub fn agent(node: &Netns) -> Result<Command> {
    let mut agent = node.command(built("deadlight-agent")?);
    // As in its unit.
    agent.env("MALLOC_ARENA_MAX", "1");
    Ok(agent)
}

/// The same in a mount namespace of its own, after `prepare`, a shell's words, was run there.
pub fn agent_apart(node: &Netns, prepare: &str) -> Result<Command> {
    let mut command = node.command("unshare");
    command.args(["--mount", "sh", "-ec"]).arg(format!("{prepare}; exec \"$0\" \"$@\"")).arg(built("deadlight-agent")?);
    Ok(command)
}

/// `deadlight-scanner` inside `vantage`, its arguments still to be added.
pub fn scanner(vantage: &Netns) -> Result<Command> {
    Ok(vantage.command(built("deadlight-scanner")?))
}
