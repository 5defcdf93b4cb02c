//! The scanner's configuration, read and checked.

mod error;
mod file;
mod node;
mod places;
mod sink;

use std::collections::BTreeSet;
use std::hash::{Hash as _, Hasher as _};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deadlight_shared::allowlist::Subject;
use deadlight_shared::config;
use deadlight_shared::port_set::PortSetError;
use deadlight_shared::tls::TlsPaths;
use deadlight_shared::{AllowEntry, Allowlist, Name, PortSet, Protocol};
use jiff::SignedDuration;
use jiff::civil::Date;
use siphasher::sip::SipHasher13;

use crate::assess::Expectation;
use crate::pki::Pki;
use crate::store::Location;

pub use error::ConfigError;
pub use node::{Node, Way};
pub use places::{UrlSource, WebConfig, sink_url};
pub use sink::{MannerConfig, SinkConfig};

use node::{check_nodes, checked_node};
use places::{checked_heartbeat, checked_web};
use sink::checked_sinks;

/// The commented default, as `--print-config` shows it.
pub const TEMPLATE: &str = include_str!("../scanner.toml");

const SHORTEST_QUICK: SignedDuration = SignedDuration::from_secs(1);
const SHORTEST_EVERY: SignedDuration = SignedDuration::from_secs(10);
const SHORTEST_KEEP: SignedDuration = SignedDuration::from_hours(24);
const SHORTEST_LEASE: SignedDuration = SignedDuration::from_secs(5);
const LONGEST_LEASE: SignedDuration = SignedDuration::from_hours(1);
/// MiB.
const LEAST_MOST: u32 = 16;
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
    /// So long after it has ended, or cannot be heard, other scanners have taken its nodes over; only where several share them.
    pub lease: Duration,
    /// Whether a port counts as closed only when a second vantage point has seen that too.
    pub seconded: bool,
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
    /// Bytes that a database in a file may have in use.
    pub most: u64,
    /// Where the page is; none without `[web]`.
    pub web: Option<WebConfig>,
}

/// Where our own certificate and the CA's come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustSource {
    /// The CA's own directory: certificates are kept fresh.
    Pki(Pki),
    /// Files that were made by hand on another scanner.
    Files(TlsPaths),
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

    /// The same for `nodes` alone.
    pub fn of(&self, nodes: &BTreeSet<Name>) -> Self {
        let mut part = self.clone();
        part.nodes.retain(|node| nodes.contains(&node.name));
        part
    }

    /// The names of all nodes.
    pub fn names(&self) -> BTreeSet<Name> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
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

    /// Whether `node` has an agent. One that was taken away says nothing any more, and nobody misses it.
    pub fn has_agent(&self, node: &Name) -> bool {
        self.nodes.iter().any(|known| known.name == *node && known.agent.is_some())
    }

    /// Every address that is looked at, with its node.
    pub fn targets(&self) -> BTreeSet<(&Name, IpAddr)> {
        self.nodes.iter().flat_map(|node| node.addresses.iter().map(|address| (&node.name, *address))).collect()
    }

    /// A word for what a full sweep looks at: another one where ports, nodes or addresses are others.
    pub fn scope(&self) -> String {
        let mut hasher = SipHasher13::new();
        self.ports.to_string().hash(&mut hasher);
        self.targets().hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// What of `other` cannot be taken over by a scanner that runs with this configuration: the first such key.
    pub fn settled_at_start(&self, other: &Self) -> Option<&'static str> {
        let calling = |config: &Self| -> Vec<(Name, Vec<IpAddr>)> {
            let pull = config.nodes.iter().filter(|node| node.agent == Some(Way::Pull));
            pull.map(|node| (node.name.clone(), node.addresses.clone())).collect()
        };
        let settled = [
            ("[vantage]", (&self.vantage, self.lease) == (&other.vantage, other.lease)),
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
            prove,
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
        if !(SHORTEST_LEASE..=LONGEST_LEASE).contains(&vantage.lease) {
            return Err(ConfigError::Lease(vantage.lease));
        }
        if !(1..=2).contains(&prove.vantages) {
            return Err(ConfigError::Vantages(prove.vantages));
        }
        for (key, rate) in [("rate", sweep.rate), ("rate_per_node", sweep.rate_per_node)] {
            if rate.get() > MOST_RATE {
                return Err(ConfigError::Rate { key, rate });
            }
        }
        if store.keep < SHORTEST_KEEP {
            return Err(ConfigError::Keep(store.keep));
        }
        if store.most < LEAST_MOST {
            return Err(ConfigError::Most(store.most));
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
        let (keep, most) = (store.keep, u64::from(store.most) << 20);
        let store = Location::parse(&store.url, directory)?;
        let seconded = prove.vantages > 1;
        if let (true, Location::File(_)) = (seconded, &store) {
            return Err(ConfigError::Alone);
        }
        Ok(Self {
            vantage: vantage.id,
            lease: vantage.lease.unsigned_abs(),
            seconded,
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
            store,
            sinks: checked_sinks(alert, directory)?,
            heartbeat: heartbeat.map(|heartbeat| checked_heartbeat(heartbeat, directory)).transpose()?,
            keep,
            most,
            web: web.map(|web| checked_web(web, directory)).transpose()?,
            nodes,
        })
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

#[cfg(test)]
mod tests;
