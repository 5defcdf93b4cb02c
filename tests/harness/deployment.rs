//! One scanner and one agent that trust each other, configured in a directory of their own.

use std::{
    env, fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{
    lab::{Family, Wire},
    programs::{self, Ended, Running, built, finish},
    scratch,
    test_ca::{Identity, TestCa, Validity},
    wait::wait_for,
};

/// Where the agent listens, on the node's addresses.
pub const AGENT_PORT: u16 = 7443;
/// Where the scanner listens for nodes that call.
pub const PULL_PORT: u16 = 7444;
/// The node's name.
pub const NODE: &str = "n1";
/// The scanner's name.
pub const VANTAGE: &str = "office-a";

/// What a story may want otherwise.
#[derive(Debug, Clone)]
pub struct Settings<'a> {
    /// `observe` or `enforce`.
    pub mode: &'a str,
    /// What the scanner probes, as `[sweep] tcp`.
    pub sweep: &'a str,
    /// The allowlist's ports; the agent's own must be among them.
    pub allow: &'a str,
    /// The node's addresses that the scanner looks at.
    pub families: &'a [Family],
    /// Where the agent looks for Docker.
    pub docker_socket: &'a Path,
    /// The node does not listen: it calls the scanner at its address of this family.
    pub pull: Option<Family>,
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            mode: "enforce",
            sweep: "1-10000",
            allow: "80,7443/tcp",
            families: &Family::BOTH,
            docker_socket: Path::new("/nonexistent/docker.sock"),
            pull: None,
        }
    }
}

/// Certificates made by the scanner's own `pki`, and both configuration files.
#[derive(Debug)]
pub struct Deployment {
    directory: TempDir,
}

impl Deployment {
    /// Creates the files; starts nothing.
    pub fn new(settings: &Settings<'_>) -> Result<Self> {
        let deployment = Self::node_only(settings)?;
        for words in [["init"].as_slice(), &["issue-scanner", VANTAGE], &["issue-agent", NODE]] {
            let mut command = Command::new(built("deadlight-scanner")?);
            finish(command.arg("pki").args(words).arg("--dir").arg(deployment.path("")))?.expect_code(0)?;
        }
        let agent = deployment.agent_toml(settings) + &deployment.tls_toml(&format!("agent-{NODE}"));
        fs::write(deployment.path("agent.toml"), agent)?;
        let scanner = deployment.scanner_toml(settings) + &deployment.tls_toml(&format!("scanner-{VANTAGE}"));
        fs::write(deployment.path("scanner.toml"), scanner)?;
        Ok(deployment)
    }

    /// A scanner with the CA, and a node that is not enrolled yet.
    pub fn unenrolled(settings: &Settings<'_>) -> Result<Self> {
        let deployment = Self::node_only(settings)?;
        let dir = deployment.path("pki");
        for words in [["init"].as_slice(), &["issue-scanner", VANTAGE]] {
            let mut command = Command::new(built("deadlight-scanner")?);
            finish(command.arg("pki").args(words).arg("--dir").arg(&dir))?.expect_code(0)?;
        }
        let scanner = format!("{}[pki]\ndirectory = {dir:?}\n", deployment.scanner_toml(settings));
        fs::write(deployment.path("scanner.toml"), scanner)?;
        Ok(deployment)
    }

    /// `deadlight-scanner pki WORDS…` on the deployment's CA, to its end.
    pub fn pki(&self, words: &[&str]) -> Result<Ended> {
        let mut command = Command::new(built("deadlight-scanner")?);
        finish(command.arg("pki").args(words).arg("--dir").arg(self.path("pki")))
    }

    /// Starts `deadlight-scanner enroll` and gives the line that it printed.
    pub fn invite(&self, wire: &Wire, words: &[&str]) -> Result<(Running, String)> {
        let mut command = programs::scanner(&wire.inet)?;
        command.args(["enroll", NODE]).args(words).arg("--config").arg(self.path("scanner.toml"));
        let name = format!("enroll-{}", fastrand::u32(..));
        let enroll = Running::start(&mut command, &name, self.directory.path())?;
        let line = wait_for("the enrolment line", Duration::from_secs(15), || {
            let log = enroll.log();
            log.lines().find(|line| line.starts_with("deadlight1:")).map(str::to_owned).ok_or(log)
        })?;
        Ok((enroll, line))
    }

    /// Starts `deadlight-agent enroll WORDS…` on the node and waits until its window is open.
    pub fn open_window(&self, wire: &Wire, words: &[&str]) -> Result<Running> {
        let mut command = programs::agent(&wire.node)?;
        command.arg("enroll").args(words).arg("--config").arg(self.path("agent.toml"));
        self.open_window_by(command, wire)
    }

    /// The same by a command of the caller's.
    pub fn open_window_by(&self, mut command: Command, wire: &Wire) -> Result<Running> {
        let name = format!("window-{}", fastrand::u32(..));
        let mut window = Running::start(&mut command, &name, self.directory.path())?;
        window.wait_ready(Duration::from_secs(15), || listens(wire))?;
        Ok(window)
    }

    /// Enrols the node by the two commands of a user.
    pub fn enroll(&self, wire: &Wire) -> Result<Ended> {
        let (enroll, line) = self.invite(wire, &[])?;
        let ended = self.agent(wire, &["enroll", &line])?.expect_code(0)?;
        enroll.wait(Duration::from_secs(15))?;
        Ok(ended)
    }

    /// An agent's configuration alone, without certificates: for the commands that need no scanner.
    pub fn node_only(settings: &Settings<'_>) -> Result<Self> {
        let deployment = Self { directory: scratch::directory()? };
        fs::write(deployment.path("agent.toml"), deployment.agent_toml(settings))?;
        Ok(deployment)
    }

    /// A file of the deployment.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a line at the top of the agent's configuration.
    pub fn prepend(&self, line: &str) -> Result<()> {
        let file = self.path("agent.toml");
        let config = fs::read_to_string(&file)?;
        Ok(fs::write(&file, format!("{line}\n{config}"))?)
    }

    /// Makes an operator's key; the agent's configuration names its public half.
    pub fn know_operator(&self) -> Result<()> {
        self.make_operator(&self.path(""))?;
        self.prepend(&format!("operator_key = {:?}", self.path("operator.pub")))
    }

    /// Makes an operator's key beside the CA in `directory`.
    pub fn make_operator(&self, directory: &Path) -> Result<()> {
        let mut command = Command::new(built("deadlight-scanner")?);
        let command = command.args(["pki", "operator-key"]).arg(self.path("operator.key"));
        finish(command.arg("--dir").arg(directory))?.expect_code(0).map(drop)
    }

    /// Makes `ports` the scanner's allowlist.
    pub fn allow(&self, ports: &str) -> Result<()> {
        let file = self.path("scanner.toml");
        let config = fs::read_to_string(&file)?;
        let line = |line: &str| {
            if line.starts_with("ports = ") { format!("ports = {ports:?}\n") } else { format!("{line}\n") }
        };
        Ok(fs::write(&file, config.lines().map(line).collect::<String>())?)
    }

    /// Signs the scanner's allowlist with the operator's key; what the command said.
    pub fn sign_allowlist(&self) -> Result<String> {
        let (key, config) = (self.path("operator.key"), self.path("scanner.toml"));
        let mut command = Command::new(built("deadlight-scanner")?);
        let command = command.args(["allowlist", "sign"]).arg("--key").arg(key).arg("--config").arg(config);
        Ok(finish(command)?.expect_code(0)?.stdout)
    }

    /// Starts the agent on the node and waits until it accepts connections.
    pub fn start_agent(&self, wire: &Wire) -> Result<Running> {
        self.start_agent_by(programs::agent(&wire.node)?, wire)
    }

    /// The same by a command of the caller's, such as one that finds other tools.
    pub fn start_agent_by(&self, mut command: Command, wire: &Wire) -> Result<Running> {
        command.arg("run").arg("--config").arg(self.path("agent.toml"));
        let mut agent = Running::start(&mut command, "agent", self.directory.path())?;
        agent.wait_ready(Duration::from_secs(15), || listens(wire))?;
        Ok(agent)
    }

    /// Starts the agent of a node that calls, under the configuration `file`, and waits until it does.
    pub fn start_caller(&self, wire: &Wire, file: &str) -> Result<Running> {
        let mut command = programs::agent(&wire.node)?;
        command.arg("run").arg("--config").arg(self.path(file));
        let name = format!("caller-{}", fastrand::u32(..));
        let mut agent = Running::start(&mut command, &name, self.directory.path())?;
        let log = self.path(&format!("{name}.log"));
        agent.wait_ready(Duration::from_secs(15), || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("agent started; it does not listen"))
        })?;
        Ok(agent)
    }

    /// Starts the scanner's daemon, and waits until nodes can call it.
    pub fn start_scanner(&self, wire: &Wire) -> Result<Running> {
        let mut command = programs::scanner(&wire.inet)?;
        command.arg("run").arg("--config").arg(self.path("scanner.toml"));
        let name = format!("scanner-{}", fastrand::u32(..));
        let mut scanner = Running::start(&mut command, &name, self.directory.path())?;
        scanner.wait_ready(Duration::from_secs(15), || {
            wire.inet.enter(|| Ok(TcpStream::connect(("127.0.0.1", PULL_PORT))?)).is_ok()
        })?;
        Ok(scanner)
    }

    /// [`Self::start_agent`], for an agent that takes the kernel for one without nf_tables.
    pub fn start_agent_without_nftables(&self, wire: &Wire) -> Result<Running> {
        let programs = self.path("bin");
        fs::create_dir_all(&programs)?;
        let nft = programs.join("nft");
        fs::write(&nft, "#!/bin/sh\necho Operation not supported >&2\nexit 1\n")?;
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
        let mut command = programs::agent(&wire.node)?;
        command.env("PATH", format!("{}:{}", programs.display(), env::var("PATH")?));
        self.start_agent_by(command, wire)
    }

    /// `deadlight-agent WORDS… --config …` on the node, to its end.
    pub fn agent(&self, wire: &Wire, words: &[&str]) -> Result<Ended> {
        finish(programs::agent(&wire.node)?.args(words).arg("--config").arg(self.path("agent.toml")))
    }

    /// `deadlight-scanner WORDS… --config …` on the internet side, to its end.
    pub fn scanner(&self, wire: &Wire, words: &[&str]) -> Result<Ended> {
        finish(programs::scanner(&wire.inet)?.args(words).arg("--config").arg(self.path("scanner.toml")))
    }

    /// A client identity from the deployment's own CA, with whatever URI is asked for.
    pub fn identity(&self, uri: &str, validity: Validity) -> Result<Identity> {
        self.ca()?.issue(uri, validity)
    }

    /// The deployment's own CA, with its stolen key.
    pub fn ca(&self) -> Result<TestCa> {
        let text = |name| {
            let path =
                [self.path("pki"), self.path("")].into_iter().map(|dir| dir.join(name)).find(|path| path.exists());
            fs::read_to_string(path.with_context(|| format!("no {name}"))?).with_context(|| format!("read {name}"))
        };
        TestCa::of(&text("ca.crt")?, &text("ca.key")?)
    }

    fn agent_toml(&self, settings: &Settings<'_>) -> String {
        let Settings { mode, docker_socket, pull, .. } = settings;
        let state = self.path("state");
        let pull = pull.map_or_else(String::new, |family| {
            let scanner = SocketAddr::new(family.scanner(), PULL_PORT).to_string();
            format!("[pull]\nscanners = [{scanner:?}]\n")
        });
        format!(
            "node = {NODE:?}\nmode = {mode:?}\nlisten = \"[::]:{AGENT_PORT}\"\nstate_dir = {state:?}\n\
             docker_socket = {docker_socket:?}\n{pull}"
        )
    }

    fn scanner_toml(&self, settings: &Settings<'_>) -> String {
        let Settings { sweep, allow, families, pull, .. } = settings;
        let addresses: Vec<_> = families.iter().map(|family| family.node(0).ip().to_string()).collect();
        let agent = match pull {
            Some(_) => "agent = \"pull\"\ncontrol = \"80/tcp\"".to_owned(),
            None => format!("agent = \"https://{}\"", Family::V4.node(AGENT_PORT)),
        };
        format!(
            "[vantage]\nid = {VANTAGE:?}\n\
             [sweep]\ntcp = {sweep:?}\n\
             [[node]]\nname = {NODE:?}\naddresses = {addresses:?}\n{agent}\n\
             [[allow]]\nports = {allow:?}\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"public site\"\n"
        )
    }

    fn tls_toml(&self, name: &str) -> String {
        let ca = self.path("ca.crt");
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        format!("[tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n")
    }
}

/// Whether somebody accepts connections on the agent's port.
fn listens(wire: &Wire) -> bool {
    wire.node.enter(|| Ok(TcpStream::connect(("127.0.0.1", AGENT_PORT))?)).is_ok()
}
