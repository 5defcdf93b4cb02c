//! The scanner's configuration, read and checked.

mod file;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deadlight_shared::allowlist::{AllowlistError, Subject};
use deadlight_shared::config::{self, ConfigError as FileError};
use deadlight_shared::port_set::PortSetError;
use deadlight_shared::tls::TlsPaths;
use deadlight_shared::{AllowEntry, Allowlist, Name, Port, PortSet, Protocol};
use jiff::SignedDuration;
use jiff::civil::Date;
use reqwest::Url;

use crate::alert::SinkKind;
use crate::assess::Expectation;
use crate::pki::Pki;
use crate::store::{Location, LocationError, is_near};

/// The commented default, as `--print-config` shows it.
pub const TEMPLATE: &str = include_str!("../scanner.toml");

const SHORTEST_QUICK: SignedDuration = SignedDuration::from_secs(1);
const SHORTEST_EVERY: SignedDuration = SignedDuration::from_secs(10);
/// Where PagerDuty takes events.
const PAGERDUTY: &str = "https://events.pagerduty.com/v2/enqueue";
const SHORTEST_KEEP: SignedDuration = SignedDuration::from_hours(24);
const LONGEST_EVERY: SignedDuration = SignedDuration::from_hours(24 * 30);
/// Highest rate that can be asked for.
pub const MOST_RATE: u32 = 1_000_000;
/// Probes a second, all nodes together, where nothing else is said.
pub const RATE: NonZeroU32 = NonZeroU32::new(20_000).unwrap();
/// Probes a second at one node, where nothing else is said.
pub const RATE_PER_NODE: NonZeroU32 = NonZeroU32::new(5_000).unwrap();

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of this vantage point.
    pub vantage: Name,
    /// From the start of one sweep to the start of the next.
    pub every: Duration,
    /// From the end of one round to the start of a quick sweep; none where this is not shorter than `every`.
    pub quick: Duration,
    /// Ports asked at every address.
    pub ports: PortSet,
    /// Probes a second, all nodes together.
    pub rate: NonZeroU32,
    /// Probes a second at one node.
    pub rate_per_node: NonZeroU32,
    /// Whether to find out what is behind an open port.
    pub identify: bool,
    /// What UDP probes say, before the built-in payloads.
    pub payloads: Option<PathBuf>,
    /// The nodes; at least one.
    pub nodes: Vec<Node>,
    /// What may be open.
    pub allowlist: Allowlist,
    /// What of it the operator has signed.
    pub signed: PathBuf,
    /// Where our certificate is; there when a node has an agent.
    pub trust: Option<TrustSource>,
    /// Where the agents of pull mode call.
    pub pull: SocketAddr,
    /// Where everything is remembered.
    pub store: Location,
    /// Where alerts are sent.
    pub sinks: Vec<SinkConfig>,
    /// Where the sign of life is sent.
    pub heartbeat: Option<UrlSource>,
    /// How long what happened is remembered.
    pub keep: SignedDuration,
    /// Where the page is; none without `[web]`.
    pub web: Option<WebConfig>,
}

/// Where the page is, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The file with the word that a reader has to know. Without one, only this host can ask.
    pub token: Option<PathBuf>,
}

/// Where our own certificate and the CA's come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    /// The CA's own directory: certificates are kept fresh.
    Pki(Pki),
    /// Files that were made by hand on another scanner.
    Files(TlsPaths),
}

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// Its addresses; at least one.
    pub addresses: Vec<IpAddr>,
    /// Its agent.
    pub agent: Option<Way>,
    /// Its labels.
    pub labels: Vec<String>,
    /// The TCP port that must answer.
    pub control: Option<Port>,
}

/// How an agent is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It listens there.
    Push(Url),
    /// It calls us.
    Pull,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Push(url) => url.fmt(f),
            Self::Pull => f.write_str("by its call"),
        }
    }
}

/// Somewhere that alerts are sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name: that of its kind where there is no other.
    pub name: String,
    /// How it is spoken to.
    pub kind: SinkKind,
    /// Where its URL stands, which is a secret: whoever knows it can speak there.
    pub url: UrlSource,
    /// The file with PagerDuty's routing key.
    pub key: Option<PathBuf>,
}

/// A URL, or the file that it stands in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UrlSource {
    /// In the configuration itself.
    Given(Url),
    /// In a file, read when it is needed.
    File(PathBuf),
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read, or is not of the right shape.
    #[error(transparent)]
    File(#[from] FileError),
    /// The allowlist contradicts itself or the nodes.
    #[error(transparent)]
    Allowlist(#[from] AllowlistError),
    /// `[[node]]` is missing.
    #[error("no [[node]]: there is nothing to sweep")]
    NoNodes,
    /// A node without addresses.
    #[error("node {0} has no addresses")]
    NoAddresses(Name),
    /// Two nodes of one name.
    #[error("two nodes are named {0}")]
    SameName(Name),
    /// One address twice.
    #[error("address {address} stands twice, the second time at node {node}")]
    SameAddress {
        /// The address.
        address: IpAddr,
        /// The later node.
        node: Name,
    },
    /// An agent that cannot be reached by this text.
    #[error("agent of node {node}: `{}` is not like https://198.51.100.11:7443, nor \"pull\"", deadlight_shared::text::printable(.text, 80))]
    AgentUrl {
        /// The node.
        node: Name,
        /// What was written.
        text: String,
    },
    /// A control port that silence could not be measured by.
    #[error("control of node {node}: {port} is not a TCP port, and UDP ports need not answer")]
    ControlUdp {
        /// The node.
        node: Name,
        /// The port.
        port: Port,
    },
    /// An agent, but no certificate to show it.
    #[error("node {0} has an agent, but there is neither [pki] nor [tls]")]
    NoTrust(Name),
    /// Two places for our certificate.
    #[error("there are both [pki] and [tls]; where the CA is, [pki] is enough")]
    TwoTrusts,
    /// `every` makes no sense.
    #[error("[sweep] every = {0:#}: must be between 10s and 30d")]
    Every(SignedDuration),
    /// `quick` makes no sense.
    #[error("[sweep] quick = {0:#}: must be between 1s and 30d")]
    Quick(SignedDuration),
    /// A rate makes no sense.
    #[error("[sweep] {key} = {rate}: must be at most {MOST_RATE}")]
    Rate {
        /// Its key.
        key: &'static str,
        /// What was written.
        rate: NonZeroU32,
    },
    /// An alert without a place, or with two.
    #[error("[[alert]] {0} needs `url` or `url_file`, and not both")]
    SinkUrl(String),
    /// PagerDuty without a key, or another with one.
    #[error("[[alert]] {0}: `key_file`, with the integration key, is what \"pagerduty\" needs and no other kind takes")]
    SinkKey(String),
    /// A sign of life without a place, or with two.
    #[error("[heartbeat] needs `url` or `url_file`, and not both")]
    HeartbeatUrl,
    /// A URL that no sign of life should be sent to.
    #[error("url of [heartbeat] is not like https://…; http is only for this host and for private addresses")]
    HeartbeatScheme,
    /// A URL that nothing should be sent to.
    #[error(
        "url of [[alert]] {0} is not like https://hooks.example.net/…; http is only for this host and for private addresses"
    )]
    SinkScheme(String),
    /// Two alerts of one name.
    #[error("two [[alert]] are named {0}: give them a `name` each")]
    SameSink(String),
    /// The store is nowhere.
    #[error(transparent)]
    Store(#[from] LocationError),
    /// Next to nothing would be remembered.
    #[error("[store] keep = {0:#}: must be at least {SHORTEST_KEEP:#}")]
    Keep(SignedDuration),
    /// The page would be open to everybody.
    #[error(
        "[web] listen = \"{0}\" is reached from other hosts: it needs `token_file`, or 127.0.0.1 behind a reverse proxy"
    )]
    WebToken(SocketAddr),
    /// Neither TCP nor UDP ports.
    #[error("[sweep] has neither tcp nor udp ports")]
    NoPorts,
}

impl Config {
    /// Reads and checks the file at `path`. Relative paths in it are relative to its directory.
    pub fn load(path: &Path, today: Date) -> Result<Self, ConfigError> {
        Self::check(config::load(path)?, path, today)
    }

    /// Checks `text`, which stands in the file at `path`.
    pub fn parse(text: &str, path: &Path, today: Date) -> Result<Self, ConfigError> {
        Self::check(config::parse(text, path)?, path, today)
    }

    /// What may be open on each node on `today`, in the order of the nodes.
    pub fn expectations(&self, today: Date) -> Vec<Expectation> {
        let expectation = |node: &Node| {
            let mut ports = node.own_ports();
            ports.extend(&self.allowlist.ports_of(node.subject(), today));
            Expectation { node: node.name.clone(), ports }
        };
        self.nodes.iter().map(expectation).collect()
    }

    /// Every address that is looked at, with its node.
    pub fn targets(&self) -> BTreeSet<(&Name, IpAddr)> {
        self.nodes.iter().flat_map(|node| node.addresses.iter().map(|address| (&node.name, *address))).collect()
    }

    /// What of `other` cannot be taken over by a scanner that runs with this configuration: the first such key.
    pub fn settled_at_start(&self, other: &Self) -> Option<&'static str> {
        let calling = |config: &Self| -> Vec<(Name, Vec<IpAddr>)> {
            let pull = config.nodes.iter().filter(|node| node.agent == Some(Way::Pull));
            pull.map(|node| (node.name.clone(), node.addresses.clone())).collect()
        };
        let settled = [
            ("[vantage] id", self.vantage == other.vantage),
            ("[store] url", self.store == other.store),
            ("[pki] or [tls]", self.trust == other.trust),
            ("[pull] listen", self.pull == other.pull),
            ("[web]", self.web == other.web),
            ("the nodes with agent = \"pull\"", calling(self) == calling(other)),
        ];
        settled.iter().find(|(_, is_same)| !is_same).map(|(key, _)| *key)
    }

    /// Entries that no longer hold, as sentences.
    pub fn expired(&self, today: Date) -> Vec<String> {
        expired(&self.allowlist, today)
    }

    fn check(file: file::File, path: &Path, today: Date) -> Result<Self, ConfigError> {
        let file::File {
            vantage,
            sweep,
            node,
            allow,
            allowlist: file::Allowlist { signed },
            tls,
            pki,
            pull,
            store,
            alert,
            heartbeat,
            web,
        } = file;
        if !(SHORTEST_EVERY..=LONGEST_EVERY).contains(&sweep.every) {
            return Err(ConfigError::Every(sweep.every));
        }
        if !(SHORTEST_QUICK..=LONGEST_EVERY).contains(&sweep.quick) {
            return Err(ConfigError::Quick(sweep.quick));
        }
        for (key, rate) in [("rate", sweep.rate), ("rate_per_node", sweep.rate_per_node)] {
            if rate.get() > MOST_RATE {
                return Err(ConfigError::Rate { key, rate });
            }
        }
        if store.keep < SHORTEST_KEEP {
            return Err(ConfigError::Keep(store.keep));
        }
        let mut ports = sweep.tcp;
        ports.extend(&sweep.udp);
        if ports.is_empty() {
            return Err(ConfigError::NoPorts);
        }
        let nodes = node.into_iter().map(checked_node).collect::<Result<Vec<_>, _>>()?;
        check_nodes(&nodes)?;
        let allowlist = Allowlist::new(allow);
        let subjects: Vec<_> = nodes.iter().map(Node::subject).collect();
        allowlist.check(&subjects, today)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let trust = match (pki, tls) {
            (Some(_), Some(_)) => return Err(ConfigError::TwoTrusts),
            (Some(pki), None) => Some(TrustSource::Pki(Pki::at(&directory.join(pki.directory)))),
            (None, Some(TlsPaths { ca, certificate, key })) => Some(TrustSource::Files(TlsPaths {
                ca: directory.join(ca),
                certificate: directory.join(certificate),
                key: directory.join(key),
            })),
            (None, None) => None,
        };
        if let (None, Some(node)) = (&trust, nodes.iter().find(|node| node.agent.is_some())) {
            return Err(ConfigError::NoTrust(node.name.clone()));
        }
        Ok(Self {
            vantage: vantage.id,
            every: sweep.every.unsigned_abs(),
            quick: sweep.quick.unsigned_abs(),
            ports,
            rate: sweep.rate,
            rate_per_node: sweep.rate_per_node,
            identify: sweep.identify,
            payloads: sweep.payloads.map(|file| directory.join(file)),
            allowlist,
            signed: directory.join(signed),
            trust,
            pull: pull.listen,
            store: Location::parse(&store.url, directory)?,
            sinks: checked_sinks(alert, directory)?,
            heartbeat: heartbeat.map(|heartbeat| checked_heartbeat(heartbeat, directory)).transpose()?,
            keep: store.keep,
            web: web.map(|web| checked_web(web, directory)).transpose()?,
            nodes,
        })
    }
}

impl Node {
    /// The node as the allowlist sees it.
    pub fn subject(&self) -> Subject<'_> {
        Subject { node: &self.name, labels: &self.labels }
    }

    /// The TCP port that must answer: the configured one, or the agent's.
    pub fn control_port(&self) -> Option<Port> {
        self.control.or_else(|| self.agent_port())
    }

    /// What may be open although no entry says so: the agent and the control port.
    pub fn own_ports(&self) -> PortSet {
        self.control.into_iter().chain(self.agent_port()).collect()
    }

    fn agent_port(&self) -> Option<Port> {
        let Some(Way::Push(url)) = &self.agent else { return None };
        Port::new(Protocol::Tcp, url.port_or_known_default()?)
    }
}

/// Reads an allowlist alone, for nodes that it need not know.
pub fn load_allowlist<'a>(
    path: &Path,
    nodes: impl Iterator<Item = &'a Name>,
    today: Date,
) -> Result<Allowlist, ConfigError> {
    checked_allowlist(config::load(path)?, nodes, today)
}

/// The same from `text`, which stands in the file at `path`.
pub fn parse_allowlist<'a>(
    text: &str,
    path: &Path,
    nodes: impl Iterator<Item = &'a Name>,
    today: Date,
) -> Result<Allowlist, ConfigError> {
    checked_allowlist(config::parse(text, path)?, nodes, today)
}

fn checked_allowlist<'a>(
    file: file::AllowFile,
    nodes: impl Iterator<Item = &'a Name>,
    today: Date,
) -> Result<Allowlist, ConfigError> {
    let named = file.allow.iter().flat_map(|entry: &AllowEntry| &entry.nodes).filter_map(|name| name.parse().ok());
    let known: BTreeSet<Name> = nodes.cloned().chain(named).collect();
    let subjects: Vec<_> = known.iter().map(|node| Subject { node, labels: &[] }).collect();
    let allowlist = Allowlist::new(file.allow);
    allowlist.check(&subjects, today)?;
    Ok(allowlist)
}

/// Entries of `allowlist` that no longer hold, as sentences.
pub fn expired(allowlist: &Allowlist, today: Date) -> Vec<String> {
    let sentence = |(position, entry): (usize, &AllowEntry)| {
        let since = entry.expires.map(|day| day.to_string()).unwrap_or_default();
        format!("[[allow]] entry {position} ({}) expired on {since} and no longer holds", entry.ports)
    };
    allowlist.expired(today).map(sentence).collect()
}

/// Why a text is no list of ports of one protocol.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// No list of ports at all.
    #[error(transparent)]
    List(#[from] PortSetError),
    /// Ports of the other protocol.
    #[error("`{0}` has other than {1} ports")]
    Foreign(PortSet, Protocol),
}

/// A list of ports in which `protocol` need not be said, and nothing else may be.
pub fn ports_of(protocol: Protocol, text: &str) -> Result<PortSet, PortsError> {
    let ports = PortSet::parse_with_default(text, protocol)?;
    let pure = ports.iter().all(|port| port.protocol == protocol);
    match pure {
        true => Ok(ports),
        false => Err(PortsError::Foreign(ports, protocol)),
    }
}

fn checked_web(web: file::Web, directory: &Path) -> Result<WebConfig, ConfigError> {
    let file::Web { listen, token_file } = web;
    match (listen.ip().is_loopback(), &token_file) {
        (false, None) => Err(ConfigError::WebToken(listen)),
        _ => Ok(WebConfig { listen, token: token_file.map(|file| directory.join(file)) }),
    }
}

fn checked_heartbeat(heartbeat: file::Heartbeat, directory: &Path) -> Result<UrlSource, ConfigError> {
    match (heartbeat.url, heartbeat.url_file) {
        (Some(url), None) => sink_url(&url).map(UrlSource::Given).ok_or(ConfigError::HeartbeatScheme),
        (None, Some(file)) => Ok(UrlSource::File(directory.join(file))),
        _ => Err(ConfigError::HeartbeatUrl),
    }
}

fn checked_sinks(sinks: Vec<file::Alert>, directory: &Path) -> Result<Vec<SinkConfig>, ConfigError> {
    let mut names = BTreeSet::new();
    let checked = |sink: file::Alert| {
        let name = sink.name.map_or_else(|| sink.kind.as_str().to_owned(), |name| name.to_string());
        if (sink.kind == SinkKind::Pagerduty) != sink.key_file.is_some() {
            return Err(ConfigError::SinkKey(name));
        }
        let given = sink
            .url
            .or_else(|| (sink.kind == SinkKind::Pagerduty && sink.url_file.is_none()).then(|| PAGERDUTY.to_owned()));
        let url = match (given, sink.url_file) {
            (Some(url), None) => UrlSource::Given(sink_url(&url).ok_or_else(|| ConfigError::SinkScheme(name.clone()))?),
            (None, Some(file)) => UrlSource::File(directory.join(file)),
            _ => return Err(ConfigError::SinkUrl(name)),
        };
        match names.insert(name.clone()) {
            true => Ok(SinkConfig { name, kind: sink.kind, url, key: sink.key_file.map(|file| directory.join(file)) }),
            false => Err(ConfigError::SameSink(name)),
        }
    };
    sinks.into_iter().map(checked).collect()
}

/// A URL that alerts may be sent to: https; or http to an address that no stranger listens in on.
pub fn sink_url(text: &str) -> Option<Url> {
    let url: Url = text.trim().parse().ok()?;
    let is_near = is_near(url.host_str()?);
    (url.scheme() == "https" || url.scheme() == "http" && is_near).then_some(url)
}

fn checked_node(node: file::Node) -> Result<Node, ConfigError> {
    let file::Node { name, addresses, agent, labels, control } = node;
    if let Some(port) = control.filter(|port| port.protocol != Protocol::Tcp) {
        return Err(ConfigError::ControlUdp { node: name, port });
    }
    let agent = match agent {
        None => None,
        Some(text) if text == "pull" => Some(Way::Pull),
        Some(text) => match agent_url(&text) {
            Some(url) => Some(Way::Push(url)),
            None => return Err(ConfigError::AgentUrl { node: name, text }),
        },
    };
    match addresses.is_empty() {
        true => Err(ConfigError::NoAddresses(name)),
        false => Ok(Node { name, addresses, agent, labels, control }),
    }
}

/// An https URL with a port and nothing behind it.
fn agent_url(text: &str) -> Option<Url> {
    let authority = text.strip_prefix("https://")?;
    let (_, port) = authority.strip_suffix('/').unwrap_or(authority).rsplit_once(':')?;
    let url: Url = text.parse().ok()?;
    let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
    (plain && port.parse() == Ok(url.port_or_known_default()?) && url.path() == "/").then_some(url)
}

fn check_nodes(nodes: &[Node]) -> Result<(), ConfigError> {
    if nodes.is_empty() {
        return Err(ConfigError::NoNodes);
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for node in nodes {
        if !names.insert(&node.name) {
            return Err(ConfigError::SameName(node.name.clone()));
        }
        if let Some(address) = node.addresses.iter().find(|address| !addresses.insert(**address)) {
            return Err(ConfigError::SameAddress { address: *address, node: node.name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::date;

    const TODAY: Date = date(2026, 11, 23);

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/deadlight/scanner.toml"), TODAY)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    /// The template with every commented-out default switched on.
    fn uncommented() -> String {
        let is_key = |line: &str| {
            line.strip_prefix("# ").is_some_and(|rest| {
                rest.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
            })
        };
        TEMPLATE.lines().map(|line| if is_key(line) { &line[2..] } else { line }).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_template_reads_and_shows_the_defaults() {
        let plain = parse(TEMPLATE).unwrap();
        let full = parse(&uncommented()).unwrap();
        assert_eq!(plain.every, Duration::from_secs(900));
        assert_eq!((plain.every, plain.rate, plain.rate_per_node), (full.every, full.rate, full.rate_per_node));
        assert_eq!((&plain.ports, &plain.store, plain.keep), (&full.ports, &full.store, full.keep));
        assert_eq!(plain.store, Location::File("/etc/deadlight/deadlight.db".into()));
        assert_eq!((plain.signed.as_path(), &plain.signed), (Path::new("/etc/deadlight/permits.json"), &full.signed));
        assert!(matches!(plain.trust, Some(TrustSource::Pki(_))));
        assert_eq!(plain.nodes[0].control_port(), "7443/tcp".parse().ok());
        assert_eq!(full.nodes[0].control_port(), "22/tcp".parse().ok());
        assert_eq!(full.nodes[0].own_ports().to_string(), "22/tcp,7443/tcp");
    }

    #[test]
    fn refuses_by_line_and_nearest_key() {
        let text = error(&TEMPLATE.replace("[sweep]", "[sweep]\nrat = 5"));
        assert!(text.starts_with("/etc/deadlight/scanner.toml, line 9: unknown field `rat`"), "{text}");
        assert!(text.ends_with("did you mean `rate`?"), "{text}");
        for (key, value, wanted) in [
            ("tcp", "\"443-80\"", "`tcp`: range 443-80 runs backwards"),
            ("tcp", "\"0\"", "port 0 is out of range"),
            ("udp", "\"65536\"", "port 65536 is out of range"),
            ("udp", "\"80/tcp\"", "`80/tcp` has other than udp ports"),
            ("every", "\"soon\"", "`every`: `soon` is no duration"),
            ("rate", "0", "nonzero"),
        ] {
            let text = error(&TEMPLATE.replace("[sweep]", &format!("[sweep]\n{key} = {value}")));
            assert!(text.contains("line 9") && text.contains(wanted), "{key} = {value}: {text}");
        }
        let web = |rest: &str| error(&TEMPLATE.replace("[web]\n", &format!("[web]\n{rest}\n")));
        assert!(web("listen = \"[::]:7480\"").contains("is reached from other hosts: it needs `token_file`"));
        assert!(web("token = \"x\"").contains("unknown field `token`"));
        assert!(error(&format!("{TEMPLATE}\nfile = \"state.json\"")).contains("unknown field `file`"));
    }

    #[test]
    fn refuses_what_contradicts_itself() {
        let second = "[[node]]\nname = \"n2\"\naddresses = [\"198.51.100.12\"]\n";
        let with = |node: &str| format!("{TEMPLATE}\n{node}");
        assert!(parse(&with(second)).is_ok());
        assert_eq!(error(&with(&second.replace("n2", "n1"))), "two nodes are named n1");
        let text = error(&with(&second.replace("100.12", "100.11")));
        assert_eq!(text, "address 198.51.100.11 stands twice, the second time at node n2");
        assert_eq!(error(&with(&second.replace("\"198.51.100.12\"", ""))), "node n2 has no addresses");
        let text = error(&with(&format!("{second}control = \"53/udp\"")));
        assert!(text.contains("53/udp is not a TCP port"), "{text}");
        assert_eq!(error("[vantage]\nid = \"a\""), "no [[node]]: there is nothing to sweep");
        assert!(error(&uncommented().replace("\"15m\"", "\"1s\"")).contains("between 10s and 30d"));
        assert!(error(&uncommented().replace("9600h", "1h")).contains("must be at least 24h"));
        assert!(error(&uncommented().replace("sqlite:", "mysql:")).contains("`url` of [store]"));
        assert!(error(&uncommented().replace("20000", "2000000")).contains("rate = 2000000: must be at most"));
        let no_pki = TEMPLATE.split("[pki]").next().unwrap();
        assert_eq!(error(no_pki), "node n1 has an agent, but there is neither [pki] nor [tls]");
        let by_hand = "[tls]\nca = \"ca.crt\"\ncertificate = \"scanner.crt\"\nkey = \"scanner.key\"\n";
        assert!(matches!(parse(&format!("{no_pki}{by_hand}")).unwrap().trust, Some(TrustSource::Files(_))));
        assert!(error(&with(by_hand)).contains("both [pki] and [tls]"));
        let overlap = TEMPLATE
            .replace("[pki]", "[[allow]]\nports = \"443/tcp\"\nnodes = [\"n1\"]\nowner = \"x\"\nreason = \"y\"\n[pki]");
        assert!(error(&overlap).contains("entries 1 and 2 overlap: both cover 443/tcp on n1"));
    }

    #[test]
    fn an_alert_has_one_place_and_no_stranger_listens_in() {
        let with = |alert: &str| parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"slack\"\n{alert}"));
        let config = with("url_file = \"slack.url\"").unwrap();
        assert_eq!(config.sinks[0].url, UrlSource::File("/etc/deadlight/slack.url".into()));
        assert_eq!(config.sinks[0].name, "slack");
        assert!(with("name = \"ops\"\nurl = \"https://hooks.example.net/x\"").is_ok());
        assert!(with("url_file = \"a\"\nkey_file = \"b\"").unwrap_err().to_string().contains("no other kind takes"));
        let pager = |more: &str| parse(&format!("{TEMPLATE}\n[[alert]]\nkind = \"pagerduty\"\n{more}"));
        let config = pager("key_file = \"pagerduty.key\"").unwrap();
        assert_eq!(config.sinks[0].url, UrlSource::Given(PAGERDUTY.parse().unwrap()));
        assert_eq!(config.sinks[0].key.as_deref(), Some(Path::new("/etc/deadlight/pagerduty.key")));
        assert!(pager("").unwrap_err().to_string().contains("is what \"pagerduty\" needs"));
        let text = with("").unwrap_err().to_string();
        assert_eq!(text, "[[alert]] slack needs `url` or `url_file`, and not both");
        let again = "url_file = \"a\"\n[[alert]]\nkind = \"slack\"\nurl_file = \"b\"";
        assert!(with(again).unwrap_err().to_string().contains("two [[alert]] are named slack"));
        for bad in [
            "http://hooks.example.net/secret",
            "http://203.0.113.1/",
            "ftp://x/",
            "hooks.example.net",
            "https://",
            "http://[2001:db8::1]/",
        ] {
            let text = with(&format!("url = {bad:?}")).unwrap_err().to_string();
            assert!(
                text.starts_with("url of [[alert]] slack is not like") && !text.contains("secret"),
                "{bad}: {text}"
            );
        }
        for good in [
            "http://127.0.0.1:9093",
            "http://[::1]:9093/x",
            "http://10.1.2.3/",
            "http://localhost/",
            "https://203.0.113.1/",
        ] {
            assert!(sink_url(good).is_some(), "{good}");
        }
    }

    #[test]
    fn an_agent_is_an_https_url_with_a_port() {
        for good in ["https://198.51.100.11:7443", "https://[2001:db8::1]:7443/", "https://n1.example.net:443"] {
            assert!(agent_url(good).is_some(), "{good}");
        }
        for bad in [
            "http://198.51.100.11:7443",
            "https://198.51.100.11",
            "https://[2001:db8::1]",
            "https://n1:0x50",
            "https://n1:7443/v1",
            "https://user@n1:7443",
            "https://n1:7443?x=1",
            "198.51.100.11:7443",
            "https://n1:99999",
        ] {
            assert!(agent_url(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_node_that_calls_has_no_port_of_its_own() {
        let text = TEMPLATE.replace("https://198.51.100.11:7443", "pull");
        let config = parse(&text).unwrap();
        assert_eq!(config.nodes[0].agent, Some(Way::Pull));
        assert_eq!((config.nodes[0].control_port(), config.nodes[0].own_ports()), (None, PortSet::default()));
        assert_eq!(config.pull, parse(&uncommented()).unwrap().pull);
        let text = error(&TEMPLATE.replace("https://198.51.100.11:7443", "pul"));
        assert_eq!(text, "agent of node n1: `pul` is not like https://198.51.100.11:7443, nor \"pull\"");
    }

    #[test]
    fn an_expired_entry_is_named_but_not_refused() {
        let text = TEMPLATE.replace("# expires = 2027-01-31", "expires = 2026-01-31");
        let config = parse(&text).unwrap();
        let wanted = "[[allow]] entry 1 (80/tcp,443/tcp) expired on 2026-01-31 and no longer holds";
        assert_eq!(config.expired(TODAY), [wanted]);
    }
}
