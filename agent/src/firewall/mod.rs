//! The node's firewall: what shall stand, what stands, and the change between the two.
//!
//! Two layers. The *guard* ([`nftables`]) shuts ports before any DNAT, where Docker never writes.
//! *Tightening* ([`iptables`]) narrows Docker's own wide rules. Rendering, parsing and comparing
//! are pure; only [`Linux`] runs programs.

#[cfg(test)]
pub(crate) mod fake;
pub mod iptables;
#[cfg(test)]
pub(crate) mod kernel;
mod linux;
pub mod nftables;
mod runner;
mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use deadlight_shared::{Port, PortSet};
use ipnet::IpNet;

pub use linux::{Linux, legacy_in_use, legacy_tables};
pub use runner::{FirewallError, is_own_program};
pub use survey::{Survey, Tables};

/// What shall stand in the kernel, whatever the backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Published ports that are shut to the outside.
    pub closed: PortSet,
    /// Whether the guard stands even with nothing to close, so that every session is tracked from
    /// its start: the direction of one that is picked up in the middle cannot be told.
    pub armed: bool,
    /// Interfaces that face the outside; only what comes in by them is dropped.
    pub outside: BTreeSet<String>,
    /// Sources that pass the guard all the same.
    pub trusted: Vec<IpNet>,
    /// The swarm's nodes: what is closed to the outside is not closed to them.
    pub peers: BTreeSet<IpAddr>,
    /// Subnets of the node's own containers.
    pub docker_subnets: Vec<IpNet>,
    /// Published ports that stay open to everybody.
    pub allowed: PortSet,
    /// The agent's own port; none where everybody may call.
    pub own: Option<OwnPort>,
}

/// The agent's own TCP port and who alone reaches it from outside. It belongs to no order and to nobody else's service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPort {
    /// Its number.
    pub number: NonZeroU16,
    /// Where scanners call from.
    pub scanners: Vec<IpNet>,
}

impl Desired {
    /// Whether the guard stands at all.
    fn has_guard(&self) -> bool {
        self.armed || !self.closed.is_empty()
    }

    /// Sources that pass the guard.
    fn passing(&self) -> Vec<IpNet> {
        let all = self.trusted.iter().copied().chain(self.peers.iter().copied().map(IpNet::from));
        IpNet::aggregate(&all.collect::<Vec<_>>())
    }

    /// The agent's own port, where the guard stands.
    fn own(&self) -> Option<&OwnPort> {
        self.own.as_ref().filter(|_| self.has_guard())
    }

    /// Sources that a tightened rule of Docker's still lets through.
    fn inner_sources(&self) -> Vec<IpNet> {
        let sources: BTreeSet<IpNet> = self.docker_subnets.iter().chain(&self.trusted).map(IpNet::trunc).collect();
        sources.into_iter().collect()
    }
}

/// One atomic write: a script for one program on standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The program with its arguments, such as `nft -f -`.
    pub program: Vec<String>,
    /// Its standard input.
    pub script: String,
    /// Every port that the script shuts or tightens.
    pub ports: Vec<Port>,
}

/// What would make the kernel match; empty when it matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// In the order in which they are written: the guard first.
    pub steps: Vec<Step>,
}

impl Change {
    /// Whether the kernel matches already.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What is shown of it, line by line, for a log.
    pub fn lines(&self) -> Vec<String> {
        self.to_string().lines().map(str::to_owned).collect()
    }
}

impl fmt::Display for Change {
    /// The exact lines, each script under the program that takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "# {}", step.program.join(" "))?;
            f.write_str(&step.script)?;
        }
        Ok(())
    }
}

/// What one look at the kernel showed.
#[derive(Debug, Default)]
pub struct Inspection {
    /// What is missing or too much.
    pub change: Change,
    /// Packets dropped by the guard so far, by closed port.
    pub dropped: BTreeMap<Port, u64>,
    /// Docker's rules as they stand.
    pub docker: DockerRules,
    /// Our own rules as they stand, one line each.
    pub owned: Vec<String>,
    /// What iptables-legacy had when this look read it; none where it was not read.
    pub legacy: Option<[iptables::Save; 2]>,
    /// Why Docker's rules could not be read. The guard needs none of them and goes first.
    pub fault: Option<FirewallError>,
}

/// Docker's rules of both families, read-only.
#[derive(Debug, Clone, Default)]
pub struct DockerRules {
    /// Destination NAT rules of published ports.
    pub dnat: Vec<iptables::Dnat>,
    /// All rules but ours of tables `raw`, `nat` and `filter`, such as `iptables -t nat -A DOCKER-INGRESS …`.
    pub lines: Vec<String>,
}

impl DockerRules {
    /// Ports that Docker publishes to the outside.
    pub fn published(&self) -> PortSet {
        self.dnat.iter().map(|dnat| dnat.port).collect()
    }

    /// Whether `port` goes through the routing mesh in `family`.
    fn has_ingress(&self, port: Port, family: iptables::Family) -> bool {
        self.dnat.iter().any(|dnat| dnat.port == port && dnat.chain == "DOCKER-INGRESS" && family.holds(dnat.to))
    }
}

/// A backend. `inspect` and `apply` are all there is, so that a fault between any two calls can
/// be played by a fake.
pub trait Firewall: Send {
    /// Reads what stands and compares it with `desired`.
    fn inspect(&self, desired: &Desired) -> Result<Inspection, FirewallError>;

    /// Writes each step, whole or not at all; stops at the first that fails.
    fn apply(&self, change: &Change) -> Result<(), FirewallError>;

    /// The lines that stand for `port` once `desired` is in force beside Docker's own rules.
    fn lines_for(&self, port: Port, desired: &Desired, docker: &DockerRules) -> Vec<String>;
}
