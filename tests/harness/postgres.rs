//! A real PostgreSQL server of Debian's, in a directory of its own, reached by a socket in it.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User},
};
use tempfile::TempDir;

use crate::{process::run, scratch, wait::wait_for};

/// It never runs as root.
const USER: &str = "postgres";
const SOON: Duration = Duration::from_secs(60);

/// The server; it ends with this.
#[derive(Debug)]
pub struct Postgres {
    directory: TempDir,
    server: Child,
}

impl Postgres {
    /// Starts one with nothing in it.
    pub fn start() -> Result<Self> {
        let directory = scratch::directory()?;
        let user = User::from_name(USER)?.context("no user postgres\nhint: tests/install.sh")?;
        chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700))?;
        let data = directory.path().join("data");
        run(as_user("initdb")?.args(["--auth=trust", "--username=deadlight", "--no-sync", "-D"]).arg(&data))?;
        let server = as_user("postgres")?
            .args(["-c", "listen_addresses=", "-c", "fsync=off", "-k"])
            .arg(directory.path())
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log"))?)
            .spawn()
            .context("start postgres")?;
        let postgres = Self { directory, server };
        wait_for("PostgreSQL", SOON, || postgres.sql("postgres", "SELECT 1").map_err(|error| format!("{error:#}")))?;
        Ok(postgres)
    }

    /// Makes a database; its URL.
    pub fn database(&self, name: &str) -> Result<String> {
        self.sql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(format!("postgres:///{name}?host={}&user=deadlight", self.directory.path().display()))
    }

    /// What psql says to one statement.
    pub fn sql(&self, database: &str, statement: &str) -> Result<String> {
        let mut psql = as_user("psql")?;
        psql.args(["-XAtq", "-U", "deadlight", "-d", database, "-c", statement, "-h"]).arg(self.directory.path());
        Ok(run(&mut psql)?.trim().to_owned())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let ended = i32::try_from(self.server.id()).map_err(anyhow::Error::from).and_then(|pid| {
            kill(Pid::from_raw(pid), Signal::SIGINT)?;
            Ok(self.server.wait()?)
        });
        if let Err(error) = ended {
            eprintln!("PostgreSQL is still there: {error:#}");
        }
    }
}

/// A program of PostgreSQL as its own user; it goes when the test goes.
fn as_user(program: &str) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--pdeathsig", "KILL"]).arg(path(program)?);
    command.current_dir("/");
    Ok(command)
}

/// Debian has them by version, and not all of them in PATH.
fn path(program: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("no PostgreSQL\nhint: tests/install.sh")?;
    let found = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin").join(program)));
    found.filter(|path| path.exists()).max().with_context(|| format!("no {program}\nhint: tests/install.sh"))
}
