//! The agent's configuration file.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};

use deadlight_shared::config::{self, ConfigError};
use deadlight_shared::operator::OperatorKeyError;
use deadlight_shared::tls::TlsPaths;
use deadlight_shared::wire::Mode;
use deadlight_shared::{Name, OperatorKey, Port, PortSet, Protocol};
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::Error as _;

use crate::firewall::OwnPort;
use crate::identity::{Document, DocumentError};
use crate::inventory::listeners::View;
use crate::inventory::{Listener, Process, interfaces};
use crate::ledger::Permitted;
use crate::plan::{Policy, Protection};

/// The commented default file, as `--print-config` shows it.
pub const SAMPLE: &str = include_str!("../agent.toml");

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/deadlight/agent.toml";

/// Who reaches the swarm's own ports: 2377/tcp, 7946/tcp, 7946/udp, 4789/udp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwarmControl {
    /// Everybody; they are reported and never closed.
    #[default]
    Open,
    /// The swarm's nodes and `trusted`, as soon as Docker has told who the nodes are.
    Peers,
}

/// What is closed without anybody's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posture {
    /// Nothing: what a scanner reports is closed.
    #[default]
    Reported,
    /// Everything that Docker publishes, but what the file or a scanner allows.
    Allowlist,
}

/// The file's content. [`SAMPLE`] explains each key.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "the sample file says what each key means")]
pub struct Config {
    pub node: Option<Name>,
    pub mode: Mode,
    pub listen: SocketAddr,
    pub state_dir: PathBuf,
    #[serde(deserialize_with = "interface_names")]
    pub outside: Vec<String>,
    #[serde(deserialize_with = "networks")]
    pub trusted: Vec<IpNet>,
    #[serde(deserialize_with = "networks")]
    pub scanners: Vec<IpNet>,
    pub protected: Vec<PortSet>,
    pub swarm_control: SwarmControl,
    pub posture: Posture,
    #[serde(with = "deadlight_shared::port_set::as_items")]
    pub allow: PortSet,
    pub max_new_per_hour: usize,
    pub operator_key: Option<PathBuf>,
    pub docker_socket: PathBuf,
    /// Where it is seen who listens; said by `--helpers` and `--host` alone.
    #[serde(skip)]
    pub listeners: View,
    pub tls: Option<TlsPaths>,
    pub pull: Option<Pull>,
    pub metrics: Option<Metrics>,
}

/// For a node that does not listen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    /// The scanners that it calls; at least one.
    #[serde(deserialize_with = "called")]
    pub scanners: Vec<SocketAddr>,
}

/// For a Prometheus on this host.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Where it reads the numbers: a loopback address, because they are given to whoever asks.
    #[serde(deserialize_with = "loopback")]
    pub listen: SocketAddr,
}

/// Why the operator's key cannot be had; then nothing is permitted.
#[derive(Debug, thiserror::Error)]
pub enum OperatorFileError {
    /// The file cannot be read.
    #[error("failed to read the operator's key from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The one that was pinned at enrolment cannot be read.
    #[error("failed to read the operator's key that was pinned at enrolment")]
    Pinned(#[from] DocumentError),
    /// The file holds no such key.
    #[error("failed to use the operator's key in {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: OperatorKeyError,
    },
}

impl Config {
    /// Reads `path`, or the default path; a missing default file gives the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        match path {
            Some(path) => config::load(path),
            None if Path::new(DEFAULT_PATH).exists() => config::load(Path::new(DEFAULT_PATH)),
            None => Ok(Self::default()),
        }
    }

    /// Ports that are closed by the file itself. Without a known peer, closing them would cut the swarm.
    pub fn closed(&self, knows_peers: bool) -> PortSet {
        match self.swarm_control {
            SwarmControl::Peers if knows_peers => swarm_control(),
            SwarmControl::Peers | SwarmControl::Open => PortSet::default(),
        }
    }

    /// The key of the operator without whose signature no order opens a port: the file's, or else the one that
    /// was pinned at enrolment. Read each time, so that one that comes or goes counts at once.
    pub fn operator(&self) -> Result<Option<OperatorKey>, OperatorFileError> {
        let pem = match &self.operator_key {
            Some(path) => {
                let read = std::fs::read_to_string(path);
                Some(read.map_err(|source| OperatorFileError::Read { path: path.clone(), source })?)
            }
            None => Document::load(&self.state_dir)?.operator_key,
        };
        let key = |pem: String| OperatorKey::from_pem(pem.as_bytes());
        let file = || self.operator_key.clone().unwrap_or_else(|| self.state_dir.clone());
        pem.map(key).transpose().map_err(|source| OperatorFileError::Key { path: file(), source })
    }

    /// The agent's own port, where the file says who may call.
    pub fn own_port(&self) -> Option<OwnPort> {
        let number = NonZeroU16::new(self.listen.port())?;
        (self.pull.is_none() && !self.scanners.is_empty()).then(|| OwnPort { number, scanners: self.scanners.clone() })
    }

    /// The local policy; `listeners` are looked through for sshd.
    pub fn policy(&self, listeners: &[Listener], knows_peers: bool, permitted: Permitted) -> Policy {
        let held = |is_it: fn(&Process) -> bool| -> PortSet {
            let held = listeners.iter().filter(|listener| listener.process.as_ref().is_some_and(is_it));
            held.map(|listener| listener.port).collect()
        };
        let sshd = held(|process| process.program.starts_with("sshd"));
        let init = held(|process| process.pid == 1);
        let hidden = listeners.iter().filter(|listener| listener.is_hidden).map(|listener| listener.port).collect();
        let mut local = PortSet::default();
        self.protected.iter().for_each(|ports| local.extend(ports));
        let own = self.pull.is_none().then(|| Port::new(Protocol::Tcp, self.listen.port())).flatten();
        let by_the_swarm = if self.closed(knows_peers).is_empty() { swarm_control() } else { PortSet::default() };
        let protection = |ports: PortSet, reason: &str| Protection { ports, reason: reason.to_owned() };
        Policy {
            protected: vec![
                protection(Port::new(Protocol::Tcp, 22).into_iter().collect(), "ssh may be the only way in"),
                protection(sshd, "sshd listens on it"),
                protection(init, "process 1 holds it for a unit, which may be ssh.socket"),
                protection(own.into_iter().collect(), "the agent listens on it"),
                protection(hidden, "the agent's container cannot see who listens on it, which may be sshd"),
                protection(by_the_swarm, "the swarm needs it between its nodes"),
                protection(local, "the configuration protects it"),
            ],
            max_new_per_hour: self.max_new_per_hour,
            permitted,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            mode: Mode::Observe,
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 7443)),
            state_dir: PathBuf::from("/var/lib/deadlight"),
            outside: Vec::new(),
            trusted: Vec::new(),
            scanners: Vec::new(),
            protected: Vec::new(),
            swarm_control: SwarmControl::Open,
            posture: Posture::Reported,
            allow: PortSet::default(),
            max_new_per_hour: 20,
            operator_key: None,
            docker_socket: PathBuf::from("/var/run/docker.sock"),
            listeners: View::Own,
            tls: None,
            pull: None,
            metrics: None,
        }
    }
}

fn swarm_control() -> PortSet {
    let tcp = [2377, 7946].map(|number| Port::new(Protocol::Tcp, number));
    let udp = [7946, 4789].map(|number| Port::new(Protocol::Udp, number));
    tcp.into_iter().chain(udp).flatten().collect()
}

fn interface_names<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(deserializer)?;
    match names.iter().find(|name| !interfaces::is_valid_name(name)) {
        Some(bad) => Err(D::Error::custom(format!("{bad:?} is not an interface name"))),
        None => Ok(names),
    }
}

fn networks<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let networks: Vec<IpNet> =
        texts.iter().map(|text| network(text)).collect::<Result<_, _>>().map_err(D::Error::custom)?;
    match networks.iter().find(|network| network.prefix_len() == 0) {
        Some(all) => Err(D::Error::custom(format!("{all} is everybody; a closed port would be open"))),
        None => Ok(networks),
    }
}

fn called<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    let scanners = Vec::<String>::deserialize(deserializer)?;
    let address = |text: &String| {
        let parsed: Result<SocketAddr, _> = text.parse();
        parsed.map_err(|_| {
            D::Error::custom(format!("{text:?} is not like \"203.0.113.5:7444\" or \"[2001:db8::5]:7444\""))
        })
    };
    match scanners.is_empty() {
        true => Err(D::Error::custom("at least one scanner has to be named")),
        false => scanners.iter().map(address).collect(),
    }
}

fn loopback<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        _ => Err(D::Error::custom(format!(
            "{text:?} is no loopback address such as \"127.0.0.1:9473\" or \"[::1]:9473\": whoever reaches [metrics] reads them"
        ))),
    }
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network =
        network.map_err(|_| format!("{text:?} is neither an address nor a network such as 203.0.113.0/24"))?;
    match network.addr().to_canonical() == network.addr() {
        true => Ok(network),
        false => Err(format!("{text:?} is an IPv4 address in the form of IPv6; write it as IPv4")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_default() {
        let sample: Config = config::parse(SAMPLE, Path::new("agent.toml")).unwrap();
        assert_eq!(sample, Config::default());
    }

    #[test]
    fn what_keeps_an_operator_in_is_protected() {
        let listener = |port: &str, pid, program: &str| Listener {
            port: port.parse().unwrap(),
            address: Ipv6Addr::UNSPECIFIED.into(),
            process: Some(Process { pid, program: program.to_owned(), ..Process::default() }),
            is_hidden: false,
        };
        let listeners = [
            listener("2222/tcp", 700, "sshd"),
            listener("2223/tcp", 1, "systemd"),
            listener("8080/tcp", 701, "dockerd"),
        ];
        let config = Config { protected: vec!["9100/tcp".parse().unwrap()], ..Config::default() };
        let policy = config.policy(&listeners, true, Permitted::default());
        for port in
            ["22/tcp", "2222/tcp", "2223/tcp", "7443/tcp", "2377/tcp", "7946/tcp", "7946/udp", "4789/udp", "9100/tcp"]
        {
            assert!(policy.protection(port.parse().unwrap()).is_some(), "{port}");
        }
        for port in ["8080/tcp", "22/udp", "4789/tcp", "9100/udp"] {
            assert!(policy.protection(port.parse().unwrap()).is_none(), "{port}");
        }
    }

    #[test]
    fn an_operator_s_key_is_configured_pinned_absent_or_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let secret = deadlight_shared::OperatorSecret::generate().unwrap();
        let (key, other) = (secret.public().unwrap(), directory.path().join("operator.pub"));
        let mut config = Config { state_dir: directory.path().join("state"), ..Config::default() };
        assert_eq!(config.operator().unwrap(), None);
        let document = Document { operator_key: Some(key.to_pem()), ..Document::default() };
        document.save(&config.state_dir).unwrap();
        assert_eq!(config.operator().unwrap(), Some(key));
        config.operator_key = Some(other.clone());
        assert!(matches!(config.operator(), Err(OperatorFileError::Read { .. })), "what is configured has to be there");
        std::fs::write(&other, secret.to_pem().unwrap()).unwrap();
        assert!(matches!(config.operator(), Err(OperatorFileError::Key { .. })), "the private half");
    }

    #[test]
    fn a_node_that_calls_protects_no_port_of_its_own() {
        let pull: Config =
            config::parse("[pull]\nscanners = [\"[2001:db8::5]:7444\"]", Path::new("agent.toml")).unwrap();
        let policy = pull.policy(&[], true, Permitted::default());
        assert!(policy.protection("7443/tcp".parse().unwrap()).is_none());
    }

    #[test]
    fn the_swarms_own_ports_are_closed_once_its_nodes_are_known() {
        let config = Config { swarm_control: SwarmControl::Peers, ..Config::default() };
        assert_eq!(config.closed(true).to_string(), "2377/tcp,7946/tcp,4789/udp,7946/udp");
        assert!(config.closed(false).is_empty());
        let gossip = "7946/udp".parse().unwrap();
        assert!(config.policy(&[], true, Permitted::default()).protection(gossip).is_none());
        assert!(config.policy(&[], false, Permitted::default()).protection(gossip).is_some());
    }

    #[test]
    fn bad_values_are_refused_by_line() {
        for (text, wanted) in [
            ("mode = \"enforced\"", "did you mean `enforce`"),
            ("\nlisen = \"x\"", "line 2: unknown field `lisen`"),
            ("outside = [\"eth0; drop\"]", "is not an interface name"),
            ("protected = [\"70000/tcp\"]", "out of range"),
            ("trusted = [\"203.0.113.0/33\"]", "line 1"),
            ("trusted = [\"203.0.113\"]", "is neither an address nor a network"),
            ("\nscanners = [\"::ffff:203.0.113.5\"]", "line 2"),
            ("scanners = [\"::ffff:203.0.113.5\"]", "write it as IPv4"),
            ("scanners = [\"::/0\"]", "is everybody"),
            ("trusted = [\"0.0.0.0/0\"]", "is everybody"),
            ("trusted = [\"::/0\"]", "is everybody"),
            ("node = \"a b\"", "is not a name"),
            ("swarm_control = \"peer\"", "did you mean `peers`"),
            ("posture = \"allowlst\"", "did you mean `allowlist`"),
            ("\nallow = [\"80\"]", "line 2"),
            ("allow = [\"70000/tcp\"]", "out of range"),
            ("[pull]\nscanners = []", "at least one scanner"),
            ("[pull]\nscanners = [\"203.0.113.5\"]", "is not like \"203.0.113.5:7444\""),
            ("[pull]\nscanner = []", "did you mean `scanners`"),
            ("[metrics]\nlisten = \"0.0.0.0:9473\"", "line 2: `listen`: \"0.0.0.0:9473\" is no loopback address"),
            ("[metrics]\nlisten = \"[::ffff:127.0.0.1]:1\"", "is no loopback address"),
            ("[metrics]\nlisten = \"localhost:9473\"", "such as \"127.0.0.1:9473\""),
            ("[metrics]", "missing field `listen`"),
        ] {
            let error = config::parse::<Config>(text, Path::new("agent.toml")).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
