//! One scanner and one agent that trust each other, configured in a directory of their own.

use std::{
    env, fs,
    net::TcpStream,
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
};

/// Where the agent listens, on the node's addresses.
pub const AGENT_PORT: u16 = 7443;
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
}

impl Default for Settings<'_> {
    fn default() -> Self {
        Self {
            mode: "enforce",
            sweep: "1-10000",
            allow: "80,7443/tcp",
            families: &Family::BOTH,
            docker_socket: Path::new("/nonexistent/docker.sock"),
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

    /// Starts the agent on the node and waits until it accepts connections.
    pub fn start_agent(&self, wire: &Wire) -> Result<Running> {
        self.start_agent_by(programs::agent(&wire.node)?, wire)
    }

    /// The same by a command of the caller's, such as one that finds other tools.
    pub fn start_agent_by(&self, mut command: Command, wire: &Wire) -> Result<Running> {
        command.arg("run").arg("--config").arg(self.path("agent.toml"));
        let mut agent = Running::start(&mut command, "agent", self.directory.path())?;
        agent.wait_ready(Duration::from_secs(15), || {
            wire.node.enter(|| Ok(TcpStream::connect(("127.0.0.1", AGENT_PORT))?)).is_ok()
        })?;
        Ok(agent)
    }

    /// The same for an agent that takes the kernel for one without nf_tables.
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
        let text = |name| fs::read_to_string(self.path(name)).with_context(|| format!("read {name}"));
        TestCa::of(&text("ca.crt")?, &text("ca.key")?)?.issue(uri, validity)
    }

    fn agent_toml(&self, settings: &Settings<'_>) -> String {
        let Settings { mode, docker_socket, .. } = settings;
        let state = self.path("state");
        format!(
            "node = {NODE:?}\nmode = {mode:?}\nlisten = \"[::]:{AGENT_PORT}\"\nstate_dir = {state:?}\n\
             docker_socket = {docker_socket:?}\n"
        )
    }

    fn scanner_toml(&self, settings: &Settings<'_>) -> String {
        let Settings { sweep, allow, families, .. } = settings;
        let addresses: Vec<_> = families.iter().map(|family| family.node(0).ip().to_string()).collect();
        let agent = Family::V4.node(AGENT_PORT);
        let store = self.path("findings.json");
        format!(
            "[vantage]\nid = {VANTAGE:?}\n\
             [sweep]\ntcp = {sweep:?}\n\
             [[node]]\nname = {NODE:?}\naddresses = {addresses:?}\nagent = \"https://{agent}\"\n\
             [[allow]]\nports = {allow:?}\nnodes = [\"*\"]\nowner = \"web\"\nreason = \"public site\"\n\
             [store]\nfile = {store:?}\n"
        )
    }

    fn tls_toml(&self, name: &str) -> String {
        let ca = self.path("ca.crt");
        let (certificate, key) = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        format!("[tls]\nca = {ca:?}\ncertificate = {certificate:?}\nkey = {key:?}\n")
    }
}
