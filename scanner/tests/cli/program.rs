//! Runs `deadlight-scanner`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// What the program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self {
            status: output.status.code().expect("it exits by itself"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// Checks the exit status, and that standard error holds each of `wanted`.
    #[track_caller]
    pub(crate) fn expect(self, status: i32, wanted: &[&str]) -> Self {
        assert_eq!(self.status, status, "{self:#?}");
        for text in wanted {
            assert!(self.stderr.contains(text), "no {text:?} in {self:#?}");
        }
        self
    }
}

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_deadlight-scanner"));
    command.env_remove("DEADLIGHT_LOG");
    command
}

/// In a namespace where nothing but loopback is up: what follows asks nobody else, and nobody's services come and go.
pub(crate) fn alone() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "sh", "-ec", "ip link set lo up; exec \"$0\" \"$@\""]);
    command
}

/// Runs the test `name` once more, alone. `false` if this is that run.
pub(crate) fn is_run_alone(name: &str) -> bool {
    const MARK: &str = "DEADLIGHT_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return false;
    }
    let mut command = alone();
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "--nocapture", name]).env(MARK, name);
    let ended = Ended::of(command.output().unwrap()).expect(0, &[]);
    assert!(ended.stdout.contains("1 passed"), "no test {name}: {ended:?}");
    true
}

pub(crate) fn run(arguments: &[&str]) -> Ended {
    Ended::of(program().args(arguments).output().unwrap())
}

/// A directory with a CA, the certificates of scanner office-a and of some agents, and a configuration.
pub(crate) struct Deployment(TempDir);

impl Deployment {
    pub(crate) fn new(agents: &[&str]) -> Self {
        let deployment = Self(tempfile::tempdir().unwrap());
        deployment.pki(&["init"]).expect(0, &[]);
        deployment.pki(&["issue-scanner", "office-a"]).expect(0, &[]);
        for agent in agents {
            deployment.pki(&["issue-agent", agent]).expect(0, &[]);
        }
        deployment
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn pki(&self, words: &[&str]) -> Ended {
        Ended::of(program().arg("pki").args(words).arg("--dir").arg(self.0.path()).output().unwrap())
    }

    /// Writes a configuration that sweeps `ports` of node n1 at 127.0.0.1.
    pub(crate) fn configure(&self, ports: &[u16], node: &str) -> PathBuf {
        let tcp: Vec<_> = ports.iter().map(ToString::to_string).collect();
        self.write(&format!(
            "[vantage]\nid = \"office-a\"\n\
             [sweep]\ntcp = {:?}\nudp = \"\"\n\
             [[node]]\nname = \"n1\"\naddresses = [\"127.0.0.1\"]\n{node}\n\
             [tls]\nca = \"ca.crt\"\ncertificate = \"scanner-office-a.crt\"\nkey = \"scanner-office-a.key\"\n",
            tcp.join(",")
        ))
    }

    pub(crate) fn write(&self, config: &str) -> PathBuf {
        let path = self.path("scanner.toml");
        std::fs::write(&path, config).unwrap();
        path
    }

    /// Starts the program and lets it run.
    pub(crate) fn spawn(&self, words: &[&str]) -> Child {
        let mut command = program();
        command.args(words).arg("--config").arg(self.path("scanner.toml")).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    pub(crate) fn run(&self, words: &[&str]) -> Ended {
        Ended::of(program().args(words).arg("--config").arg(self.path("scanner.toml")).output().unwrap())
    }
}

/// Names and contents of all files in `directory`.
pub(crate) fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let kept = entries.filter(|path| path.extension().is_none_or(|extension| extension != "lock"));
    let mut files: Vec<_> = kept.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    files.sort();
    files
}
